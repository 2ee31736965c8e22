# The study: what it adds to each seed's run, and in which order. Sourced by run.sh, whose functions
# it calls; `./run.sh study` ends in runs/study/report.md.
#
# Each part is one process and writes files of its own, so that several may run side by side.

SIZES="mini-s mini mini-l" # "1.3B, 6B, 175B" in miniature: 0.3, 1 and 4 million parameters
# one reward model, of size mini, serves all sizes, as the paper's 6B one does; sweeps: size mini-s,
# as the paper's Figures 33 and 34 are of 1.3B

study() {
    local seed part first=${SEEDS%% *} runs=()
    for seed in $SEEDS; do runs+=("runs/world-$seed"); done
    say "The study: seeds $SEEDS, sizes $SIZES, $JOBS processes of one thread each" \
        "What each one prints goes to runs/study/SEED-PART.log, the report to runs/study/report.md." \
        "It takes hours. Ctrl-C stops; the same command goes on."
    mkdir -p runs/study
    # every seed's own run first: the other parts need its world and its reward model
    for seed in $SEEDS; do echo "$seed own"; done | study_jobs
    {
        for seed in $SEEDS; do echo "$seed mini-l"; done # the longest first
        for seed in $SEEDS; do
            for part in mini-s mini; do echo "$seed $part"; done
        done
    } | study_jobs
    {
        for part in reward again; do echo "$first $part"; done
        for seed in $SEEDS; do
            for part in academic ptx kl no_kl sft16; do echo "$seed $part"; done
        done
    } | study_jobs
    # shellcheck disable=SC2086
    "$PYTHON" -m data.study --runs "${runs[@]}" --sizes $SIZES --out runs/study
    echo "This took $((SECONDS / 3600)) hours $((SECONDS / 60 % 60)) minutes."
}

study_jobs() { # "seed part" lines on standard input, JOBS at a time
    OMP_NUM_THREADS=1 xargs -P "$JOBS" -L 1 bash -c '
        flags=(--seed "$0" --part "$1")
        [ "$1" != own ] || flags=(--seed "$0")
        echo "   $0 $1 ..."
        if ./run.sh "${flags[@]}" >"runs/study/$0-$1.log" 2>&1; then
            echo "   $0 $1: done, $((SECONDS / 60)) minutes"
        elif [ $? = 130 ]; then echo "   $0 $1: stopped"; exit 1
        else echo "   $0 $1: failed; see runs/study/$0-$1.log"; exit 1; fi' |
        until_all_end 'echo "   finishing the steps in progress, then saving (again: stop at once)"'
}

study_part() { # what `./run.sh --seed N --part PART` makes
    local coef model what
    case $1 in
        mini) answers start start ;;
        mini-s) size_part mini-s 2.5e-3 1.07 ;;
        mini-l) size_part mini-l 1.2e-3 2.3 ;;
        academic) # Figure 5 is of 175B
            at mini-l
            academic ;;
        ptx) # Figure 33: the pretraining coefficient; 0 and 1 are there
            at mini-s
            for coef in 0.1 0.3 3 10 30 100; do
                ppo_ptx "ptx_$coef" --ptx_coef "$coef"
                answers "ptx_$coef" "ptx_$coef"
            done ;;
        kl) # Figure 34: the KL coefficient, without pretraining gradients
            at mini-s
            for coef in 0.02 0.2 0.5 1 3 8; do
                ppo "kl_$coef" --ptx_coef 0 --kl_coef "$coef"
                answers "kl_$coef" "kl_$coef"
            done ;;
        no_kl) # over-optimisation, against best of n; and PPO without demonstrations
            at mini-s
            # twice as many iterations: seeds differ in how soon they go astray; beside PPO the report
            # puts the policy after as many as PPO's
            ppo no_kl --ptx_coef 0 --kl_coef 0 --episodes 12288 --keep_every 6
            for model in "$HERE"/no_kl-*.pt; do
                model=$(basename "$model" .pt)
                answers "$model" "$model"
            done
            step "$HERE/answers/best_of_64.jsonl" "$HERE/start.pt $RUN/reward.pt" evaluate.py \
                best_of --checkpoint "$HERE/start.pt" --out "$HERE/answers" \
                --reward "$RUN/reward.pt" --prompts "$DATA/prompts.test.jsonl" --seed "$SEED" \
                --max_response "${LENGTHS[3]}" "${TOKENIZER[@]}"
            ppo from_base --ptx_coef 0 --policy "$HERE/base.pt"
            answers from_base from_base --reference "$HERE/base.pt" ;;
        reward) # as run.sh does with few comparisons, here with all
            for what in A B C D E epochs pairs; do reward_model "$RUN" $what 0; done ;;
        sft16) # the paper's 16 epochs: loss and reward on validation data after each; beside one
            sft sft1 --epochs 1
            sft sft16 --epochs 16
            for model in sft1 sft16; do answers $model $model; done ;;
        again) # steps 2 and 3 once more: comparisons of the PPO-ptx policy's answers as well
            complete "$RUN/ppo_ptx.pt" train "$RUN/completions.again.jsonl"
            rank "$RUN/completions.again.jsonl" training "$DATA/comparisons.again.jsonl"
            if [ "$DATA/comparisons.again.jsonl" -nt "$DATA/comparisons.both.jsonl" ]; then
                cat "$DATA"/comparisons.{train,again}.jsonl >"$DATA/comparisons.both.tmp"
                mv "$DATA/comparisons.both.tmp" "$DATA/comparisons.both.jsonl"
            fi
            reward "$RUN/start.pt" "$RUN/reward-again.pt" "$DATA/comparisons.both.jsonl" \
                "$DATA/comparisons.valid.jsonl"
            REWARD_MODEL=$RUN/reward-again.pt ppo_ptx again
            answers again again ;;
        *) die "--part $1: expected mini, mini-s, mini-l, academic, ptx, kl, no_kl, reward, again" \
               "or sft16" ;;
    esac
}

at() { # size: the stages below are of that size; narrower models have higher learning rates
    local tuning=1.5e-3 policy=6e-4
    [ "$1" = mini-s ] || { tuning=5e-4 policy=2.2e-4; }
    HERE=$RUN/$1
    mkdir -p "$HERE"
    START+=(--rate $tuning) SFT+=(--rate $tuning) PPO+=(--policy_rate $policy)
    # where the processor multiplies bf16 the largest takes half to two thirds of the time in it; the
    # others gain little
    if [ "$1" = mini-l ] && grep -qsE "amx_bf16|avx512_bf16" /proc/cpuinfo; then
        BASE+=(--dtype bfloat16) START+=(--dtype bfloat16) SFT+=(--dtype bfloat16)
        PPO+=(--dtype bfloat16) ANSWERS+=(--dtype bfloat16)
    fi
}

size_part() { # size, learning rate of the base model, its epochs of text: the largest finds out
    # later how to copy, and then knows more
    local part
    at "$1"
    base "${BASE[@]}" --model "$1" --rate "$2" --epochs "$3"
    for part in start base sft ppo_ptx ppo; do make $part; done
    answers start start
}
