#!/usr/bin/env bash
# InstructGPT, whole, with one command.
#
#   ./run.sh [--seed N] [--name NAME] [--fresh]      the embedded world, all stages, in minutes
#   ./run.sh study [--seeds "31 32 33"] [--jobs 2]   three sizes, sweeps, ablations, over several
#                                                    seeds: hours; what is there is not made again
#   ./run.sh real --comparisons FILE --text FILE --vocab FOLDER [--seed N] [--name NAME] [--fresh]
#                                                    real comparisons in HH-RLHF's format
#   ./run.sh hh [--model gpt2-xl] [--offline DIR] [--tiny] [--yes] [--seed N] [--name NAME]
#               [--fresh]                            GPT-2 on HH-RLHF, both fetched; for a GPU
#   ./run.sh label [--run RUN] [--models sft ppo] [--prompts FILE] [--completions FILE --out FILE]
#                                                    people rank what a run's models answer
#   ./run.sh label --agreement                       how often they agree
#   ./run.sh ask ["QUESTION"] [--run RUN] [--models base sft ppo ppo_ptx] [--temperature T]
#            [--seed N] [--max_response N]           a run's models answer side by side; without a
#                                                    question, a chat
#   ./run.sh plot [--run RUN] [--out FOLDER]         pictures of a run, in RUN/plots
#   ./run.sh test [pytest's flags]                   the tests
#   ./run.sh prove [math|lost|soak|fuzz|mutation]    the proofs, run now, and a table of them
#
# Everything a run makes lies in runs/NAME. Running it again makes only what is missing or older
# than what it is made from; a stage that was stopped goes on from its last checkpoint.
set -euo pipefail
cd "$(dirname "$0")"
# threads that spin some microseconds while they wait: not at all is 1.3 times slower alone on the
# machine, and as long as they like 10 times slower beside other work
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-2000}

die() { echo "error: $*" >&2; exit 2; }
say() { # a heading and lines below it; a part says nothing but what its programs print
    [ -z "$PART" ] || return 0
    echo; printf '== %s\n' "$1"; shift; for line in "$@"; do printf '   %s\n' "$line"; done
}

# -- python: one that has the packages, or .venv, made and filled here ---------------------------
has() { # the python, the packages: it imports them, and neither it nor torch is too old
    "$1" -c "import sys, ${2// /, }
old = sys.version_info < (3, 11) or [*map(int, torch.__version__.split('.')[:2])] < [2, 11]
sys.exit(old)" 2>/dev/null
}
cores() { nproc 2>/dev/null || sysctl -n hw.ncpu; }
find_python() { # the packages to import, the file that lists them
    local python
    for PYTHON in python3 python .venv/bin/python; do
        command -v "$PYTHON" >/dev/null && has "$PYTHON" "$1" && return
    done
    if has python3 "torch numpy tiktoken" && [ "$2" != requirements.txt ]; then
        die "the tests need more packages: pip install -r $2"
    fi
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or half of one
        for python in python3 python3.13 python3.12 python3.11 python ""; do
            "${python:-false}" -c 'import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && break
        done
        [ -n "$python" ] || die "no Python 3.11 to 3.13 found" \
            "($(python3 --version 2>/dev/null || echo "no python3 at all"))"
        "$python" -m venv --clear .venv >/dev/null ||
            die "$python -m venv failed; on Debian and Ubuntu: sudo apt install python3-venv"
    fi
    echo "Installing $2 into .venv (once; a minute or two, on Linux more, as torch brings some" \
        "gigabytes of CUDA; where python3 has a CPU build of torch, numpy and tiktoken, that serves)"
    PYTHON=.venv/bin/python
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$2"
}

if [ "${1:-}" = test ]; then
    shift
    find_python "torch numpy tiktoken pytest hypothesis" requirements-dev.txt
    echo "The tests take about 8 minutes on two cores."
    workers=() # a file of tests on each core, where pytest-xdist is at hand
    ! "$PYTHON" -c "import xdist" 2>/dev/null || workers=(-n "$(cores)" --dist loadfile)
    exec "$PYTHON" -m pytest -q -m "not slow" ${workers[@]+"${workers[@]}"} tests "$@"
fi
if [ "${1:-}" = prove ]; then # no part: all of them, some half an hour
    shift
    find_python "torch numpy tiktoken pytest hypothesis scipy" requirements-dev.txt
    exec "$PYTHON" tests/prove.py "$@"
fi
MODULE=
case "${1:-}" in # all flags of these: ./run.sh label --help, and so on
    label) MODULE=data.label ;;
    ask) MODULE=data.chat ;;
    plot) MODULE=data.plot ;;
esac
if [ -n "$MODULE" ]; then
    shift
    find_python "torch numpy tiktoken" requirements.txt
    exec "$PYTHON" -m "$MODULE" "$@"
fi

# until_all_end COMMAND: pass on what all programs write into this pipe, until the last has ended. At
# Ctrl-C xargs is gone at once, while its programs still finish a step; COMMAND is run then.
until_all_end() {
    local line
    # shellcheck disable=SC2064
    trap "$1" INT
    while IFS= read -r line; do printf '%s\n' "$line"; done
}

# -- flags ---------------------------------------------------------------------------------------
VERB=world SEED=0 SEEDS="31 32 33" JOBS=2 PART= NAME= FRESH=
COMPARISONS= TEXT= VOCAB= MODEL=gpt2 OFFLINE= TINY=false YES=false
case "${1:-}" in
    real | hh | study) VERB=$1; shift ;;
    -h | --help) sed -n '2,/^set -euo/{/^set -euo/!s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
    "" | --*) ;;
    *) die "$1: no such command; expected nothing, study, real, hh, label, ask, plot, test or prove" \
           "(./run.sh --help)" ;;
esac
while [ $# -gt 0 ]; do
    case "$VERB $1" in
        "study --seed" | "study --name" | "study --fresh" | "study --part")
            die "$1 does not belong to ./run.sh study, which makes runs/world-SEED for each of --seeds" ;;
        "study "*) ;;
        *" --seeds" | *" --jobs") die "$1 belongs to ./run.sh study" ;;
    esac
    case "$1" in
        --fresh) FRESH=yes; shift; continue ;;
        --tiny) TINY=true; shift; continue ;;
        --yes) YES=true; shift; continue ;;
        --seed | --seeds | --jobs | --part | --name | --comparisons | --text | --vocab | --model | --offline) ;;
        *) die "$1: unknown flag (./run.sh --help)" ;;
    esac
    [ $# -ge 2 ] || die "$1: expected a value"
    case "$1" in
        --seed) [[ $2 =~ ^[0-9]{1,9}$ ]] || die "--seed $2: expected a whole number"; SEED=$2 ;;
        --seeds) [[ $2 =~ ^[0-9]{1,9}(\ [0-9]{1,9})*$ ]] || die "--seeds $2: expected whole numbers"
                 [ -z "$(tr ' ' '\n' <<<"$2" | sort | uniq -d)" ] || die "--seeds $2: one stands twice"
                 SEEDS=$2 ;;
        --jobs) [[ $2 =~ ^[1-9][0-9]?$ ]] || die "--jobs $2: expected 1 to 99"; JOBS=$2 ;;
        --part) PART=$2 ;; # of a study; see below
        --name) [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "--name $2: expected a plain name"
                NAME=$2 ;;
        --comparisons) COMPARISONS=$2 ;;
        --text) TEXT=$2 ;;
        --vocab) VOCAB=$2 ;;
        --model) [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "--model $2: expected a plain name"
                 MODEL=$2 ;;
        --offline) [ -d "$2" ] || die "--offline $2: no such folder"
                   OFFLINE=$2 ;;
    esac
    shift 2
done
if [ $VERB = real ]; then
    for flag in COMPARISONS TEXT VOCAB; do
        [ -n "${!flag}" ] || die "real: --$(tr A-Z a-z <<<"$flag") is missing (./run.sh --help)"
        [ -r "${!flag}" ] || die "${!flag}: no such file or folder"
    done
elif [ -n "$COMPARISONS$TEXT$VOCAB" ]; then
    die "--comparisons, --text and --vocab belong to ./run.sh real"
fi
if [ $VERB != hh ] && [ "$MODEL$OFFLINE$TINY$YES" != gpt2falsefalse ]; then
    die "--model, --offline, --tiny and --yes belong to ./run.sh hh"
fi
RUN=runs/${NAME:-$VERB-$SEED}
DATA=$RUN/data
# a part is told by the run that it is of: to look means to import torch
[ "$PART" ] && [ "${PYTHON:-}" ] || find_python "torch numpy tiktoken" requirements.txt
export PYTHON
if [ $VERB = hh ]; then # what fits this GPU, and what it costs; without a GPU it asks
    FILES=${OFFLINE:-downloads}
    SETTINGS=$("$PYTHON" -m data.plan settings --model "$MODEL" --folder "$FILES" \
        --tiny $TINY --yes $YES --shell true)
    eval "$SETTINGS" # arrays of flags, as below for the others
    say "0. GPT-2, its vocabulary, HH-RLHF and WebText, in $FILES" \
        "What is there is used; what was cut off is taken up; the sizes and digests are checked."
    "$PYTHON" -m data.download --folder "$FILES" --what "$MODEL" "$REWARD_MODEL" vocab hh webtext \
        --offline "$([ -n "$OFFLINE" ] && echo true || echo false)"
    TEXT=$FILES/webtext/webtext.train.jsonl VOCAB=$FILES/vocab
fi
if [ $VERB = study ]; then
    . data/study.sh
    study
    exit
fi
[ -z "$FRESH" ] || rm -rf "$RUN"
mkdir -p "$RUN"
[ $VERB != hh ] || echo "$SETTINGS" >"$RUN/settings"
STARTED=$SECONDS

# step OUTPUT "INPUTS" COMMAND…: run it where OUTPUT is missing or older than one of its inputs;
# $RUN/commands keeps each command, ready to be copied.
step() {
    local output=$1 inputs=$2 input needed= command
    shift 2
    [ -e "$output" ] || needed=yes
    for input in $inputs; do
        if [ "$input" -nt "$output" ]; then needed=yes; fi
    done
    if [ "$needed" ]; then
        printf -v command '%q ' "$PYTHON" "$@"
        echo "${command% }" >>"$RUN/commands" # in one piece, as parts write side by side
        "$PYTHON" "$@"
    elif [ -z "$PART" ]; then echo "   $output is there"; fi
}

# side_by_side PART…: parts of this run as processes that share the cores, two at a time or as many
# as have two cores each: models this small keep one core busy and little more. Ctrl-C ends all, and
# they say so.
side_by_side() {
    local threads=${OMP_NUM_THREADS:-$(cores)} at_once=1
    [ "$threads" -lt 2 ] || at_once=$((threads < 4 ? 2 : threads / 2))
    [ $at_once -le $# ] || at_once=$#
    printf '%s\n' "$@" | OMP_NUM_THREADS=$((threads / at_once)) xargs -P $at_once -I{} \
        ./run.sh --seed "$SEED" --name "$(basename "$RUN")" --part {} |
        until_all_end : || exit $(($? == 130 ? 130 : 2))
}

# -- settings: the paper's defaults stand in each stage; what is given here is scaled to the size --
if [ $VERB = world ]; then
    TOKENIZER=(--tokenizer world)
    LENGTHS=(--max_prompt 48 --max_response 40)
    PREPARE=(--max_prompt_tokens 48 --max_response_tokens 40 --text_valid_fraction 0.02)
    BASE=(--model mini --epochs 1.07 --batch 8 --rate 1.5e-3 --warmup 50 --weight_decay 0.1 --dropout 0
          --log_every 50)
    START=(--epochs 4 --batch 10 --ptx_fraction 0.1 --rate 1e-3 --dropout 0.1 --log_every 50)
    SFT=(--epochs 4 --batch 16 --rate 1e-3 --dropout 0.2 --choose_prompts 500 --log_every 50)
    REWARD=(--rate 4e-4 --batch 8 --log_every 50)
    # clipped: of a dozen runs without, one met a gradient that undid what it had learnt
    PPO=(--episodes 6144 --batch 256 --minibatch 32 --policy_rate 4.5e-4 --value_rate 1e-3
         --max_grad_norm 1 --kl_coef 0.08 --ema_decay 0.97 --ptx_per_episode 1 --ptx_tokens 48
         --save_every 10 --show_every 10)
    PTX_COEF=1 COMPLETIONS=4500 FEW=400 ANSWERS=(--probes "$RUN/world/probes.jsonl")
elif [ $VERB = hh ]; then # the others stand in data/plan.py, by size of model and GPU
    TOKENIZER=(--tokenizer "$VOCAB")
    PTX_COEF=1
else
    TOKENIZER=(--tokenizer "$VOCAB")
    LENGTHS=(--max_prompt 192 --max_response 48)
    PREPARE=(--max_prompt_tokens 192 --max_response_tokens 48)
    BASE=(--model mini --n_ctx 240 --epochs 1 --batch 8 --rate 2e-3 --warmup 20 --dropout 0
          --weight_decay 0.1 --log_every 5)
    START=(--epochs 2 --batch 16 --ptx_fraction 0.1 --rate 1e-3 --dropout 0 --log_every 5)
    SFT=(--epochs 3 --batch 16 --rate 1e-3 --dropout 0.2 --choose_prompts 64 --log_every 5)
    REWARD=(--rate 1e-3 --max_tokens 240 --batch 32)
    PPO=(--episodes 1024 --batch 64 --minibatch 16 --policy_rate 3e-4 --value_rate 1e-3 --warmup 2
         --kl_coef 0.3 --ptx_per_episode 1 --ptx_tokens 64 --save_every 5 --show_every 5)
    PTX_COEF=1 ANSWERS=()
fi
about() { [ $VERB = hh ] || echo " ($1)"; } # how long; for GPT-2, step 0 has said

# -- one stage each: OUTPUT is a name in the folder $HERE (the run's, or one size's within it) -------
HERE=$RUN
base() { # flags
    step "$HERE/base.pt" "$DATA/filters.json" sft.py --out "$HERE/base.pt" --seed "$SEED" \
        --text "$DATA/text.train.txt" --valid_text "$DATA/text.valid.txt" "${TOKENIZER[@]}" "$@"
}
start() { # base model, output, flags
    step "$2" "$1" sft.py --out "$2" --init "$1" \
        --demonstrations "$DATA/demonstrations.train.jsonl" \
        --valid "$DATA/demonstrations.valid.jsonl" --text "$DATA/text.train.txt" \
        --valid_text "$DATA/text.valid.txt" --seed "$SEED" "${TOKENIZER[@]}" "${LENGTHS[@]}" \
        "${@:3}"
}
reward() { # starts from, output, training comparisons, those for validation, flags
    step "$2" "$1 $3" reward.py --out "$2" --init "$1" --comparisons "$3" --valid "$4" \
        --seed "$SEED" --demonstrations "$DATA/demonstrations.train.jsonl" "${TOKENIZER[@]}" \
        "${REWARD[@]}" "${@:5}"
}
sft() { # output, flags
    step "$HERE/$1.pt" "$HERE/base.pt $RUN/reward.pt" sft.py --out "$HERE/$1.pt" \
        --init "$HERE/base.pt" --demonstrations "$DATA/demonstrations.train.jsonl" \
        --valid "$DATA/demonstrations.valid.jsonl" --reward "$RUN/reward.pt" \
        --prompts "$DATA/prompts.valid.jsonl" --seed "$SEED" "${TOKENIZER[@]}" "${LENGTHS[@]}" \
        "${SFT[@]}" "${@:2}"
}
ppo() { # output, flags; REWARD_MODEL where it is another than the run's
    local reward=${REWARD_MODEL:-$RUN/reward.pt}
    step "$HERE/$1.pt" "$HERE/start.pt $reward" ppo.py --out "$HERE/$1.pt" \
        --policy "$HERE/start.pt" --reward "$reward" --prompts "$DATA/prompts.train.jsonl" \
        --seed "$SEED" "${TOKENIZER[@]}" "${LENGTHS[@]}" "${PPO[@]}" "${@:2}"
}
ppo_ptx() { # output, flags
    ppo "$1" --text "$DATA/text.train.txt" --ptx_coef "$PTX_COEF" "${@:2}"
}
make() { # start, early, train, valid, base, sft, ppo, ppo_ptx, accuracy or few-…, and what comes
    # of it
    case $1 in
        train | valid)
            complete "$RUN/start.pt $RUN/early.pt" "$1" "$RUN/completions.$1.jsonl"
            rank "$RUN/completions.$1.jsonl" training "$DATA/comparisons.$1.jsonl"
            [ "$1" = train ] ||
                rank "$RUN/completions.valid.jsonl" held-out "$DATA/comparisons.held-out.jsonl"
            return ;;
        accuracy)
            accuracy "$RUN/reward.pt" "$DATA/comparisons.valid.jsonl" \
                "$RUN/accuracy/training.jsonl"
            [ $VERB != world ] ||
                accuracy "$RUN/reward.pt" "$DATA/comparisons.held-out.jsonl" \
                    "$RUN/accuracy/held-out.jsonl"
            return ;;
        few-*) reward_model "$RUN/few" "${1#few-}" "$FEW"; return ;;
        start) start "$HERE/base.pt" "$HERE/start.pt" "${START[@]}"; return ;;
        early) start "$HERE/base.pt" "$HERE/early.pt" "${START[@]}" --epochs 1; return ;;
        base) [ $VERB != world ] || prompted ;;
        sft) sft sft ;;
        ppo) ppo ppo --ptx_coef 0 ;;
        ppo_ptx) ppo_ptx ppo_ptx ;;
    esac
    answers "$1" "$1"
}
answers() { # model, name of its answers, flags
    step "$HERE/answers/$2.jsonl" "$HERE/$1.pt $HERE/start.pt $RUN/reward.pt" evaluate.py answers \
        --checkpoint "$HERE/$1.pt" --out "$HERE/answers/$2.jsonl" --reward "$RUN/reward.pt" \
        --reference "$HERE/start.pt" --prompts "$DATA/prompts.test.jsonl" \
        --text "$DATA/text.valid.txt" --seed "$SEED" --max_response "${LENGTHS[3]}" \
        "${TOKENIZER[@]}" ${ANSWERS[@]+"${ANSWERS[@]}"} "${@:3}"
}
prompted() { # GPT with a few demonstrations before each prompt
    answers base prompted --prefix_from "$DATA/demonstrations.train.jsonl" \
        --prefix_prompts "$DATA/prompts.valid.jsonl"
}
academic() { # GPT fine-tuned on mixtures of academic tasks, as FLAN and T0 are; the epoch is chosen
    # as SFT's is (§3.5); flags
    local mixture
    for mixture in flan t0; do
        step "$HERE/$mixture.pt" "$HERE/base.pt $RUN/reward.pt" sft.py --out "$HERE/$mixture.pt" \
            --init "$HERE/base.pt" --demonstrations "$RUN/world/$mixture.jsonl" --seed "$SEED" \
            --reward "$RUN/reward.pt" --prompts "$DATA/prompts.valid.jsonl" "${TOKENIZER[@]}" \
            "${LENGTHS[@]}" "${SFT[@]}" --epochs 2 "$@"
        answers $mixture $mixture
    done
}
complete() { # policies, side of the prompts, output: 4 to 9 completions of each prompt
    # shellcheck disable=SC2086
    step "$3" "$1" evaluate.py sample --checkpoint $1 --out "$3" --seed "$SEED" \
        --prompts "$DATA/prompts.$2.jsonl" --limit "$COMPLETIONS" "${TOKENIZER[@]}" \
        --max_response "${LENGTHS[3]}"
}
rank() { # completions, group of simulated labelers, output: comparisons; flags
    step "$3" "$1" -m data.labelers --completions "$1" --seed "$SEED" --group "$2" --out "$3" \
        "${@:4}"
}
accuracy() { # reward model, comparisons, output, flags
    step "$3" "$1 $2" evaluate.py accuracy --reward "$1" --comparisons "$2" --out "$3" \
        "${TOKENIZER[@]}" "${@:4}"
}
reward_model() { # folder, what for, how many comparisons (0 = all): a reward model beside the run's,
    # without a group of labelers, A to E (§4.1), of four epochs or of shuffled pairs (§3.5), or
    # once, which these two are compared with
    local model=$1/reward-$2.pt data=$1/data/comparisons known train valid flags=()
    train=$DATA/comparisons.train.jsonl valid=$DATA/comparisons.valid.jsonl
    case $2 in
        [A-E])
            known=$(tr -d "$2" <<<ABCDE)
            train=$data.train-$2.jsonl
            rank "$RUN/completions.train.jsonl" "$known" "$train" --limit "$3"
            rank "$RUN/completions.valid.jsonl" "$known" "$data.within-$2.jsonl" --limit "$3"
            rank "$RUN/completions.valid.jsonl" "$2" "$data.fold-$2.jsonl" --limit "$3"
            reward "$RUN/start.pt" "$model" "$train" "$data.fold-$2.jsonl"
            accuracy "$model" "$data.within-$2.jsonl" "$1/accuracy/within-$2.jsonl"
            accuracy "$model" "$data.fold-$2.jsonl" "$1/accuracy/fold-$2.jsonl"
            return ;;
        epochs) flags=(--epochs 4) ;;
        pairs) flags=(--shuffle_pairs true) ;;
        once) ;;
        *) die "--part few-$2: expected few-A to few-E, few-epochs, few-pairs or few-once" ;;
    esac
    reward "$RUN/start.pt" "$model" "$train" "$valid" --limit "$3" ${flags[@]+"${flags[@]}"}
    accuracy "$model" "$valid" "$1/accuracy/$2.jsonl" --limit "$3"
}

# -- the pipeline ----------------------------------------------------------------------------------
LONG="about 15 minutes on two cores"
[ $VERB = world ] || LONG="$LONG for 2,000 comparisons"
say "All of it goes to $RUN, the report to $RUN/report.md$(about "$LONG")" \
    "Ctrl-C stops; the same command goes on."
if [ $VERB = world ]; then
    say "1. Data: an invented world, its users, and people who write demonstrations (seconds)" \
        "Seed $SEED decides what is true in it. Filters of section 3.2; users are split apart."
    step "$RUN/world/text.txt" "" -m data.world --out "$RUN/world" --seed "$SEED"
    step "$DATA/filters.json" "$RUN/world/text.txt" -m data.prepare --out "$DATA" \
        --demonstrations "$RUN/world/demonstrations.jsonl" --prompts "$RUN/world/prompts.jsonl" \
        --text "$RUN/world/text.txt" --seed "$SEED" "${TOKENIZER[@]}" "${PREPARE[@]}"
else
    HH=("$COMPARISONS") MADE_FROM="$COMPARISONS $TEXT $VOCAB"
    [ $VERB = real ] || HH=("$FILES"/hh/*/*.jsonl.gz) MADE_FROM="$FILES $MODEL tiny $TINY"
    [ "$(cat "$RUN/made_from" 2>/dev/null || echo "$MADE_FROM")" = "$MADE_FROM" ] ||
        die "$RUN was made from other files: give --fresh or another --name"
    echo "$MADE_FROM" >"$RUN/made_from"
    say "1. Data: real comparisons; the chosen answers are the demonstrations (seconds)" \
        "Filters of section 3.2; conversations with the same opening stay on one side of a split."
    step "$DATA/filters.json" "${HH[*]} $TEXT" -m data.prepare --out "$DATA" \
        --hh "${HH[@]}" --text "$TEXT" --seed "$SEED" "${TOKENIZER[@]}" "${PREPARE[@]}"
fi
case $PART in
    "") ;;
    start | early | train | valid | base | sft | ppo | ppo_ptx | accuracy | few-*)
        make "$PART"
        exit ;;
    *) . data/study.sh; study_part "$PART"; exit ;;
esac

import_gpt2() { # name of the published model, output
    step "$2" "$FILES/$1/config.json" -m data.weights import --folder "$FILES/$1" --out "$2" \
        "${TOKENIZER[@]}"
}
if [ $VERB = hh ]; then
    say "2. The base model: $MODEL as it was published (seconds)" \
        "It continues a question with more questions."
    import_gpt2 "$MODEL" "$RUN/base.pt"
else
    say "2. A base model, from text alone (about 4 minutes)" \
        "Expect the loss to fall from 7 to about 1. It continues a question with more questions."
    base "${BASE[@]}"
fi

say "3. The policy that PPO starts from: demonstrations, and 10 % text$(about "2 minutes")"
if [ $VERB = world ]; then
    echo "   Beside it one that reads them once, whose answers are ranked with the policy's in step 4."
    side_by_side start early
else
    make start
fi
REWARD_INIT=$RUN/start.pt
if [ $VERB = hh ] && [ "$REWARD_MODEL" != "$MODEL" ]; then
    say "   The same for $REWARD_MODEL, which the reward model starts from: $MODEL would not fit"
    import_gpt2 "$REWARD_MODEL" "$RUN/reward-base.pt"
    REWARD_INIT=$RUN/reward-start.pt
    start "$RUN/reward-base.pt" "$REWARD_INIT" "${REWARD_START[@]}"
fi

if [ $VERB = world ]; then
    say "4. Comparisons: 4 to 9 answers a prompt, ranked by simulated labelers (a minute)" \
        "Training labelers; and for the evaluation, others who produce no training data."
    side_by_side train valid
fi

say "5. The reward model: all pairs of a prompt in one batch element, one epoch$(about "2 minutes")"
reward "$REWARD_INIT" "$RUN/reward.pt" "$DATA/comparisons.train.jsonl" \
    "$DATA/comparisons.valid.jsonl"

if [ $VERB = world ]; then
    say "6. to 9. The SFT baseline; PPO, and PPO-ptx with pretraining gradients; all their answers" \
        "Side by side, about 6 minutes. SFT keeps the epoch whose answers the reward model likes" \
        "best; in PPO expect reward and KL to rise. Every model answers test prompts and probes." \
        "Further reward models, of $FEW comparisons: folds of labelers, four epochs, shuffled pairs."
    side_by_side ppo_ptx ppo sft base accuracy few-{pairs,epochs,A,B,C,D,E,once}
else
    say "6. The SFT baseline: the epoch whose answers the reward model likes best"
    make sft
    say "7. PPO against the reward model" "Expect reward and KL to rise, slowly at first."
    make ppo
    say "8. PPO-ptx: the same with pretraining gradients mixed in"
    make ppo_ptx
    say "9. The base model's answers to the same test prompts"
    make base
    make accuracy
fi
if [ $VERB = hh ]; then
    say "10. Folders that other tools load: the policy, and the reward model (seconds)"
    for name in ppo_ptx reward; do
        step "$RUN/export/$name/config.json" "$RUN/$name.pt" -m data.weights export \
            --checkpoint "$RUN/$name.pt" --out "$RUN/export/$name" "${TOKENIZER[@]}"
    done
fi
echo
"$PYTHON" -m data.study --runs "$RUN" --out "$RUN" --seed "$SEED"
echo "The whole took $(((SECONDS - STARTED) / 60)) minutes $(((SECONDS - STARTED) % 60)) seconds."
