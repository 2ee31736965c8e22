"""The three stages as programs: what they write, that they resume, and how they refuse bad input."""

import ast
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import common
import ppo
import reward
import sft
from common import InputError, load_model
from conftest import ROOT
from data.tokenizer import load_tokenizer
from model import GPT, ScalarGPT

STAGES = {"sft": (sft, sft.SFTConfig), "reward": (reward, reward.RewardConfig),
          "ppo": (ppo, ppo.PPOConfig)}

# -- settings -------------------------------------------------------------------------------------

PAPER = {
    "sft": {"epochs": 16, "dropout": 0.2, "floor": 0.1, "warmup": 0, "batch": 32, "rate": 9.65e-6,
            "max_prompt": 1024, "max_response": 1024},
    "reward": {"epochs": 1, "rate": 9e-6, "floor": 0.1, "batch": 64},
    "ppo": {"episodes": 256_000, "batch": 512, "minibatch": 64, "inner_epochs": 1, "kl_coef": 0.02,
            "ptx_coef": 27.8, "ptx_per_episode": 8, "discount": 1.0, "lam": 0.95, "clip": 0.2,
            "value_rate": 9e-6, "warmup": 10, "ema_decay": 0.992, "temperature": 1.0,
            "max_prompt": 1024, "max_response": 1024},
}


@pytest.mark.parametrize("stage", PAPER)
def test_the_defaults_are_the_papers_constants(stage):
    defaults = {f.name: f.default for f in dataclasses.fields(STAGES[stage][1])}
    assert {name: defaults[name] for name in PAPER[stage]} == PAPER[stage]


def test_adam_has_the_papers_betas():
    optimizer = sft.adam(torch.nn.Linear(2, 2), 1e-3)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


@pytest.mark.parametrize("stage", STAGES)
def test_no_setting_goes_unread(stage):
    """Every field is read as config.FIELD (or self.FIELD in its own class) in its stage, or by
    common.Stage, which every stage hands its config to."""
    sources = [(ROOT / name).read_text() for name in (f"{stage}.py", "common.py")]
    read = {node.attr for source in sources for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            and ast.unparse(node.value) in ("config", "self", "self.config")}
    assert {f.name for f in dataclasses.fields(STAGES[stage][1])} <= read


@pytest.mark.parametrize("stage", STAGES)
def test_help_lists_every_setting_and_where_it_comes_from(stage, capsys):
    with pytest.raises(SystemExit) as stopped:
        common.parse_config(STAGES[stage][1], "", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for f in dataclasses.fields(STAGES[stage][1]):
        assert f"--{f.name}" in text and " ".join(f.metadata["source"].split()[:3]) in text


# -- a tiny run -----------------------------------------------------------------------------------

WORDS = "red green blue fox hare owl runs sleeps sings".split()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data for all stages, and a base model and a reward model trained on it for a few steps."""
    paths = tiny_files(tmp_path_factory.mktemp("tiny"))
    sft.main(sft.SFTConfig(**base_settings(paths) | {"out": paths["base"]}))
    reward.main(reward.RewardConfig(**reward_settings(paths) | {"out": paths["reward"]}))
    return paths


def tiny_files(folder):
    """Data for all stages, and where a base model and a reward model shall lie."""
    sentences = [f"The {a} {b} {c}." for a in WORDS[:3] for b in WORDS[3:6] for c in WORDS[6:]]
    paths = {"folder": folder}
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(sentences * 8))
    paths["text"] = str(folder / "text.txt")
    asked = [f"Who {c}?" for c in WORDS[6:]] * 6
    paths["demonstrations"] = write(folder / "d.jsonl", [
        {"prompt": p, "response": f"The fox {p[4:-1]}.", "source": "labeler"} for p in asked])
    paths["prompts"] = write(folder / "p.jsonl", [{"prompt": p} for p in asked])
    paths["comparisons"] = write(folder / "c.jsonl", [
        {"prompt": p, "completions": ["The fox.", "The owl.", "Red", "no"], "ranks": [1, 2, 3, 3],
         "labeler": "a"} for p in asked])
    return paths | {"base": str(folder / "base.pt"), "reward": str(folder / "reward.pt")}


def base_settings(files):
    return {"model": "mini-s", "n_ctx": 32, "text": files["text"], "epochs": 1.0, "rate": 1e-3,
            "batch": 4, "dropout": 0.1, "save_every": 2}


def sft_settings(files):
    return {"init": files["base"], "demonstrations": files["demonstrations"], "text": files["text"],
            "ptx_fraction": 0.25, "epochs": 3.0, "rate": 1e-3, "batch": 8, "dropout": 0.1,
            "max_prompt": 12, "max_response": 12, "save_every": 2, "reward": files.get("reward", ""),
            "prompts": files["prompts"], "choose_prompts": 4}


def reward_settings(files):
    return {"init": files["base"], "comparisons": files["comparisons"], "rate": 1e-3, "batch": 4,
            "demonstrations": files["demonstrations"], "valid": files["comparisons"], "epochs": 2,
            "save_every": 2}


def ppo_settings(files):
    return {"policy": files["base"], "reward": files["reward"], "prompts": files["prompts"],
            "text": files["text"], "episodes": 40, "batch": 8, "minibatch": 4, "max_prompt": 12,
            "max_response": 8, "ptx_per_episode": 1, "ptx_tokens": 16, "policy_rate": 1e-3,
            "ptx_coef": 1.0, "save_every": 2, "show_every": 2}


SETTINGS = {"base": base_settings, "sft": sft_settings, "reward": reward_settings,
            "ppo": ppo_settings}
PROGRAM = {"base": "sft", "sft": "sft", "reward": "reward", "ppo": "ppo"}


def make(stage, files, out, **changes):
    module, config_class = STAGES[PROGRAM[stage]]
    module.main(config_class(**SETTINGS[stage](files) | {"out": str(out)} | changes))
    return torch.load(out, weights_only=True)


def same_weights(a, b):
    return a["weights"].keys() == b["weights"].keys() and all(
        torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])


@pytest.mark.parametrize("stage", SETTINGS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(files, tmp_path, stage):
    one, two = (make(stage, files, tmp_path / f"{n}.pt") for n in "ab")
    other = make(stage, files, tmp_path / "c.pt", seed=1)
    assert same_weights(one, two) and not same_weights(one, other)


@pytest.mark.parametrize("stage", SETTINGS)
def test_a_stage_stopped_in_mid_run_goes_on_to_bitwise_the_same_weights(files, tmp_path, stage,
                                                                       monkeypatch):
    undisturbed = make(stage, files, tmp_path / "whole.pt")
    after_step, calls = common.Stage.after_step, []

    def dies_at_the_fourth(self, step, *rest):
        after_step(self, step, *rest)
        calls.append(step)
        if len(calls) == 4:
            self.lock.close()  # as the end of a process does
            raise KeyboardInterrupt

    monkeypatch.setattr(common.Stage, "after_step", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        make(stage, files, tmp_path / "cut.pt")
    assert (tmp_path / "cut.resume.pt").exists() and not (tmp_path / "cut.pt").exists()
    resumed = make(stage, files, tmp_path / "cut.pt")
    assert calls[4] == 4 and same_weights(undisturbed, resumed)
    assert sorted(p.name for p in tmp_path.glob("cut*")) == ["cut.jsonl", "cut.pt"]
    numbers = [[{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"}
                for line in (tmp_path / f"{n}.jsonl").open()] for n in ("whole", "cut")]
    if stage == "ppo":  # every iteration logs; the other stages log some steps
        assert numbers[0] == numbers[1]


def test_a_resumed_run_checks_its_first_ratio_too(files, tmp_path, monkeypatch):
    checked, after_step = [], common.Stage.after_step
    monkeypatch.setattr(ppo, "check_first_ratio",
                        lambda *_: checked.append(common.Stage.running.step))

    def stops_after_two(self, step, *rest):
        self.stop_signal = signal.SIGTERM if step == 1 else None
        after_step(self, step, *rest)

    monkeypatch.setattr(common.Stage, "after_step", stops_after_two)
    with pytest.raises(SystemExit):
        make("ppo", files, tmp_path / "p.pt")
    common.Stage.running.lock.close()
    make("ppo", files, tmp_path / "p.pt")
    assert checked == [0, 2]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_exits(files, tmp_path, number, code):
    settings = ppo_settings(files) | {"out": str(tmp_path / "p.pt"), "episodes": 80_000}
    flags = [word for k, v in settings.items() for word in (f"--{k}", str(v))]
    process = subprocess.Popen([sys.executable, "ppo.py", *flags], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("p 3/"):
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code and "goes on from there" in error
    said = ["p: finishing this step, then saving (again: stop at once)"] if code == 130 else []
    assert error.splitlines()[:-1] == said
    assert torch.load(tmp_path / "p.resume.pt", weights_only=True)["step"] >= 3


def test_a_second_ctrl_c_stops_at_once_and_what_was_saved_stays(files, tmp_path):
    settings = ppo_settings(files) | {"out": str(tmp_path / "p.pt"), "episodes": 80_000}
    flags = [word for k, v in settings.items() for word in (f"--{k}", str(v))]
    slow = ("import ppo, common, time\n"
            "def gae(*rest, real=ppo.gae):\n"
            "    if common.Stage.running.step == 3:\n"
            "        print('slow', flush=True)\n"
            "        for _ in range(6000): time.sleep(0.01)\n"  # a signal just before a sleep waits
            "    return real(*rest)\n"
            "ppo.gae = gae\n"
            "common.run(ppo.main, ppo.PPOConfig)")
    process = subprocess.Popen([sys.executable, "-c", slow, *flags], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.stdout.readline() != "slow\n":
        pass
    process.send_signal(signal.SIGINT)
    assert "finishing this step" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert torch.load(tmp_path / "p.resume.pt", weights_only=True)["step"] == 2


def test_a_result_that_will_be_replaced_is_named(files, tmp_path, capsys):
    make("base", files, tmp_path / "b.pt")
    assert "is there" not in capsys.readouterr().out
    make("base", files, tmp_path / "b.pt")
    assert f"{tmp_path / 'b.pt'} is there; it will be replaced" in capsys.readouterr().out


def test_a_truncated_resume_checkpoint_is_passed_over_for_the_one_before(files, tmp_path, capsys,
                                                                         monkeypatch):
    whole = make("ppo", files, tmp_path / "whole.pt")
    monkeypatch.setattr(common.Stage, "finish", lambda self, *a, **k: self.lock.close())
    with pytest.raises(FileNotFoundError):
        make("ppo", files, tmp_path / "cut.pt")
    monkeypatch.undo()
    newest = tmp_path / "cut.resume.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = make("ppo", files, tmp_path / "cut.pt")
    assert "trying the one before it" in capsys.readouterr().out
    assert same_weights(whole, resumed)


def test_a_flipped_byte_in_a_checkpoint_is_noticed(files, tmp_path):
    data = bytearray(open(files["base"], "rb").read())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(InputError, match="bad.pt: not a whole checkpoint"):
        common.read_checkpoint(tmp_path / "bad.pt")


def test_demonstrations_score_zero_on_average_and_still_do_after_a_load(files):
    tokenizer = load_tokenizer("world")
    model = load_model(ScalarGPT, files["reward"], ("reward",), tokenizer)
    assert model.head.bias.item() != 0
    rows = reward.read_demonstrations(files["demonstrations"])
    scores = [model(torch.tensor([tokenizer.encode_prompt(d.prompt)
                                  + tokenizer.encode_response(d.response)]))[0, -1].item()
              for d in rows]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)


def test_the_value_function_starts_as_the_reward_model(files):
    tokenizer = load_tokenizer("world")
    config = ppo.PPOConfig(**ppo_settings(files) | {"out": "unused"})
    _, reward_model, state = ppo.load(config, tokenizer, torch.device("cpu"))
    for a, b in zip(reward_model.parameters(), state.value_model.parameters()):
        assert torch.equal(a, b) and a is not b


def test_the_kl_is_to_a_reference_where_one_is_given(files, tmp_path):
    """By default to the policy's start; a policy that has moved on keeps the KL to another."""
    moved = tmp_path / "moved.pt"
    make("sft", files, moved)
    kls = {}
    for name, reference in (("own", ""), ("same", str(moved)), ("other", files["base"])):
        out = tmp_path / f"{name}.pt"
        make("ppo", files, out, policy=str(moved), reference=reference)
        rows = map(json.loads, open(out.with_suffix(".jsonl")))
        kls[name] = [row["kl"] for row in rows if "kl" in row]
    assert kls["own"] == kls["same"] and abs(kls["own"][0]) < 1e-4 < 1e-2 < abs(kls["other"][0])


def test_ppo_ships_the_averaged_policy(files, tmp_path):
    shipped = make("ppo", files, tmp_path / "p.pt", ema_decay=1.0)  # an average that never moves
    start = torch.load(files["base"], weights_only=True)
    assert same_weights(shipped, start)


def test_the_reward_of_ones_own_in_the_readme_runs_as_it_stands(files, tmp_path, monkeypatch,
                                                                capsys):
    run = tmp_path / "runs" / "world-0"
    run.mkdir(parents=True)
    make("sft", files, run / "start.pt")
    shutil.copy(files["reward"], run / "reward.pt")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    code, = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    exec(compile(code, "README.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(n) for n, _ in lines] == list(range(1, 31))
    scores = [float(score) for _, score in lines]
    assert sum(scores[-5:]) > sum(scores[:5])  # PPO has followed the function


def judged(*scores_of_epochs):
    """(the epoch kept, whether each was kept when it was seen) by a Judge that was also saved and
    loaded between epochs, as a resumed run's is."""
    judge, model, kept = sft.Judge(), torch.nn.Linear(1, 1), []
    for epoch, scores in enumerate(scores_of_epochs):
        model.weight.data.fill_(epoch)
        kept.append(judge.see(None if scores is None else torch.tensor(scores), model))
        state, judge = judge.state_dict(), sft.Judge()
        judge.load_state_dict(state)
    found = int(judge.weights["weight"].item())
    expected = None if scores_of_epochs[found] is None else pytest.approx(
        sum(scores_of_epochs[found]) / len(scores_of_epochs[found]))
    assert judge.reward == expected
    return found, kept


def test_the_epoch_kept_is_the_one_the_reward_model_scores_highest():
    assert judged([0.1, 0.2], [0.7, 0.8], [0.3, 0.4]) == (1, [True, True, False])
    assert judged([0.7, 0.8], [0.1, 0.2], [0.3, 0.4]) == (0, [True, False, False])
    assert judged([0.1, 0.2], [0.3, 0.4], [0.7, 0.8]) == (2, [True, True, True])
    assert judged(None, None) == (1, [True, True])  # no reward model: the last


def test_of_epochs_that_an_interval_cannot_tell_from_the_highest_the_last_is_kept():
    """Differences of 0.1 and 0.3 in four answers: mean 0.2, deviation 0.1, so that 1.96 standard
    errors are 0.098; with -0.3 and 0.5 the mean is 0.1, the deviation 0.4, and they are 0.392."""
    best = [5.0, 1.0, 3.0, 2.0]  # answers differ by prompt, which must not count
    clearly = [4.9, 0.7, 2.9, 1.7]
    hardly = [5.3, 0.5, 3.3, 1.5]
    assert judged(best, clearly) == (0, [True, False])
    assert judged(best, hardly) == (1, [True, True])
    # the third is compared with the highest, and not with the one kept, which it is as good as
    assert judged(hardly, clearly) == (1, [True, True])
    assert judged(best, hardly, clearly) == (1, [True, True, False])


def test_prompt_tokens_and_padding_carry_no_loss_in_fine_tuning():
    tokens, mask = sft.demonstration_batch([([5, 6, 7], [8, 9]), ([1], [2, 3, 4, 9, 9])])
    assert tokens.tolist() == [[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 9, 9]]
    assert mask.tolist() == [[False] * 3 + [True] * 2 + [False], [False] + [True] * 5]


def test_a_reward_batch_gradient_does_not_depend_on_how_it_is_cut(files):
    tokenizer = load_tokenizer("world")
    rankings = reward.load_rankings(files["comparisons"], tokenizer, 32)[:5]
    tied = rankings[0]._replace(ranks=(1, 1, 1, 1))  # no pair: it must not enter the mean
    found = []
    for micro_tokens, threads in (10**6, 1), (1, 1), (10**6, 2):
        model = load_model(ScalarGPT, files["reward"], ("reward",), tokenizer)
        config = reward.RewardConfig(**reward_settings(files) | {
            "out": "unused", "micro_tokens": micro_tokens, "max_grad_norm": 0.0})
        grads = []
        optimizer = sft.adam(model, 1e-3)
        optimizer.step = lambda: grads.extend(p.grad.clone() for p in model.parameters())
        torch.set_num_threads(threads)
        try:
            numbers = reward.train_step(model, optimizer, [*rankings, tied], 1e-3, config)
        finally:
            torch.set_num_threads(1)
        found.append((grads, numbers))
    (grads, numbers), *others = found
    for other_grads, other_numbers in others:
        for a, b in zip(grads, other_grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
        assert numbers == pytest.approx(other_numbers, rel=1e-4)


@pytest.mark.parametrize("branches", [False, True])
def test_a_reward_batch_runs_each_completion_once(files, monkeypatch, branches):
    tokenizer = load_tokenizer("world")
    model = load_model(ScalarGPT, files["reward"], ("reward",), tokenizer)
    rows, scores, branch_scores = [], ScalarGPT.scores, ScalarGPT.branch_scores
    monkeypatch.setattr(reward, "cheaper_as_branches", lambda rankings: branches)
    monkeypatch.setattr(ScalarGPT, "scores", lambda self, tokens, lens:
                        rows.append(len(tokens)) or scores(self, tokens, lens))
    monkeypatch.setattr(ScalarGPT, "branch_scores", lambda self, prompts, lens, tails, *more:
                        rows.append(len(tails)) or branch_scores(self, prompts, lens, tails, *more))
    rankings = reward.load_rankings(files["comparisons"], tokenizer, 32)[:3]
    scores_NK, _, _ = reward.score_rankings(model, rankings)
    assert sum(rows) == 12 and scores_NK.shape == (3, 4)


# -- bad input ------------------------------------------------------------------------------------


def refused(program, settings):
    """Run a stage with flags; returns its one line on standard error."""
    flags = [word for k, v in settings.items() for word in (f"--{k}", str(v))]
    done = subprocess.run([sys.executable, f"{program}.py", *flags], cwd=ROOT, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    return done.stderr


def test_bad_input_is_one_clear_line_and_exit_code_2_and_touches_no_earlier_file(files, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in files["folder"].iterdir()}
    out = str(tmp_path / "o.pt")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "response": "b", "source": "labeler"}\n{"prompt": "a"}\n')
    assert f"{broken}:2:" in refused("sft", sft_settings(files) | {
        "out": out, "demonstrations": str(broken)})
    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "a", "completions": ["b"], "ranks": [1]}\n')
    assert f"{one}:1:" in refused("reward", reward_settings(files) | {
        "out": out, "comparisons": str(one)})
    assert "stage 'base'; expected 'reward'" in refused("ppo", ppo_settings(files) | {
        "out": out, "reward": files["base"]})
    assert "--nonsense" in refused("ppo", ppo_settings(files) | {"out": out, "nonsense": 1})
    assert "minibatch 3 does not divide" in refused("ppo", ppo_settings(files) | {
        "out": out, "minibatch": 3})
    assert {p: p.stat().st_mtime_ns for p in files["folder"].iterdir()} == before
    assert not os.path.exists(out)


@pytest.mark.parametrize("stage, changes, expected", [
    ("ppo", {"text": "short", "ptx_tokens": 16}, "expected a window of 16"),
    ("reward", {"demonstrations": "long"}, "none has at most 32 tokens"),
    ("reward", {"comparisons": "ties"}, "no two completions differ in rank"),
    ("reward", {"comparisons": "ties", "shuffle_pairs": True}, "no two completions differ")])
def test_bad_input_leaves_the_metrics_of_the_run_before(files, tmp_path, stage, changes, expected):
    (tmp_path / "short").write_text("red fox")
    write(tmp_path / "long", [{"prompt": "red " * 60, "response": "a", "source": "labeler"}])
    write(tmp_path / "ties", [{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 1]}])
    (tmp_path / "o.jsonl").write_text('{"step": 0}\n')
    changes = {k: str(tmp_path / v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(InputError, match=expected):
        make(stage, files, tmp_path / "o.pt", **changes)
    assert (tmp_path / "o.jsonl").read_text() == '{"step": 0}\n'
    assert not (tmp_path / "o.pt").exists()


@pytest.mark.parametrize("shuffled, sizes", [(False, [2, 2, 1] * 2), (True, [9, 9, 7] * 2)])
def test_an_epoch_of_reward_training_sees_every_comparison_once(files, tmp_path, monkeypatch,
                                                                shuffled, sizes):
    """Five comparisons in batches of 2; or their pairs, a third of them in each of the 3 steps."""
    rows = [json.loads(line) for line in open(files["comparisons"])][:5]
    seen, train_step = [], reward.train_step
    monkeypatch.setattr(reward, "train_step", lambda model, optimizer, chosen, *rest:
                        seen.append(chosen) or train_step(model, optimizer, chosen, *rest))
    make("reward", files, tmp_path / "r.pt", batch=2, shuffle_pairs=shuffled,
         comparisons=write(tmp_path / "c.jsonl", rows))
    assert list(map(len, seen)) == sizes
    told = [json.loads(line) for line in (tmp_path / "r.jsonl").open()]
    assert [i for i, row in enumerate(told) if "valid_accuracy" in row] == [2, 5]
    assert told[-1]["step"] == 5
    pairs = len(reward.split_pairs([r for batch in seen[:3] for r in batch]))
    assert pairs == sum(row["pairs"] for row in told[:3])


def test_limit_takes_the_first_comparisons_of_each_file_and_every_step_is_noted(files, tmp_path,
                                                                                capsys):
    rows = [json.loads(line) for line in open(files["comparisons"])]
    changes = {"batch": 1, "epochs": 2, "log_every": 3}
    few = {name: write(tmp_path / f"{name}.jsonl", rows[at:at + 4])
           for name, at in (("comparisons", 0), ("valid", 4))}
    whole = make("reward", files, tmp_path / "few.pt", **changes, **few)
    few = {name: write(tmp_path / f"{name}.jsonl", rows[at:at + 9])
           for name, at in (("comparisons", 0), ("valid", 4))}
    capsys.readouterr()
    assert same_weights(whole, make("reward", files, tmp_path / "r.pt", limit=4, **changes, **few))
    printed = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()
               if line.startswith("r ")]
    assert printed == [3, 4, 6, 8]  # the ends of the epochs as well
    told = [[json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
            for name in ("few", "r")]
    assert [[row["step"] for row in one] for one in told] == [list(range(8))] * 2
    for one, other in zip(*told):
        assert one.get("valid_loss") == other.get("valid_loss")


def test_an_epoch_of_fine_tuning_sees_every_demonstration_once(files, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in open(files["demonstrations"])][:5]
    seen, make_batch = [], sft.demonstration_batch
    monkeypatch.setattr(sft, "demonstration_batch",
                        lambda pairs: seen.append(pairs) or make_batch(pairs))
    changes = {"text": "", "ptx_fraction": 0.0, "reward": "", "prompts": "", "epochs": 2.0}
    make("sft", files, tmp_path / "s.pt", batch=2, log_every=1, **changes,
         demonstrations=write(tmp_path / "d.jsonl", rows))
    assert list(map(len, seen)) == [2, 2, 1] * 2
    told = [json.loads(line) for line in (tmp_path / "s.jsonl").open()]
    assert [row["step"] for row in told if "kept" in row] == [2, 5]
    assert told[-1]["rate"] == pytest.approx(0.1 * 1e-3)  # the schedule ends with the last step


@pytest.mark.parametrize("spoil, reason", [
    (lambda w: w.to_sparse(), "plain tensor"), (lambda w: w.long(), "plain tensor"),
    (lambda w: w > 0, "plain tensor"), (lambda w: w + 0j, "plain tensor"),
    (lambda w: w / 0, "not finite")])
def test_weights_that_are_no_finite_numbers_are_refused(files, tmp_path, spoil, reason):
    contents = torch.load(files["base"], weights_only=True)
    name = "decoder.wpe.weight"
    contents["weights"][name] = spoil(contents["weights"][name])
    torch.save(contents, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=f"bad.pt: not the weights of a GPT: {name} .*{reason}"):
        load_model(GPT, tmp_path / "bad.pt", ("base",), load_tokenizer("world"))


def test_a_checkpoint_of_another_tokenizer_is_refused(files, tmp_path):
    contents = torch.load(files["base"], weights_only=True)
    contents["tokenizer"]["fingerprint"] = "0" * 12
    common.save_checkpoint(tmp_path / "other.pt", **contents)
    with pytest.raises(InputError, match="other.pt: made with tokenizer 'world'"):
        load_model(GPT, tmp_path / "other.pt", ("base",), load_tokenizer("world"))


def test_a_second_run_on_the_same_output_is_refused(files, tmp_path):
    config = ppo.PPOConfig(**ppo_settings(files) | {"out": str(tmp_path / "p.pt")})
    tokenizer = load_tokenizer("world")
    shape = load_model(GPT, files["base"], ("base",), tokenizer).config
    first = common.Stage("ppo", config, shape, tokenizer)
    with pytest.raises(InputError, match="another run is writing it"):
        common.Stage("ppo", config, shape, tokenizer)
    first.lock.close()


def test_prompts_over_the_limit_are_dropped_and_counted(files, tmp_path, capsys):
    long = write(tmp_path / "p.jsonl", [{"prompt": "red " * 60}, {"prompt": "Who runs?"}])
    config = ppo.PPOConfig(**ppo_settings(files) | {"out": "unused", "prompts": long})
    kept = ppo.load_prompts(config, load_tokenizer("world"), 32)
    assert len(kept) == 1 and "1 prompts; 1 dropped, longer than 12 tokens" in \
        capsys.readouterr().out


def test_prompts_leave_room_in_the_smallest_context(files, tmp_path, capsys):
    """A reward model of 16 positions scores responses of 8 tokens to prompts of at most 8."""
    contents = torch.load(files["reward"], weights_only=True)
    contents["model_config"]["n_ctx"], name = 16, "decoder.wpe.weight"
    contents["weights"][name] = contents["weights"][name][:16].clone()
    small = str(tmp_path / "small.pt")
    common.save_checkpoint(small, **contents)
    rows = write(tmp_path / "asked", [{"prompt": "red fox " * 6}, {"prompt": "Who runs?"}])
    make("ppo", files, tmp_path / "p.pt", reward=small, value=files["reward"], prompts=rows,
         episodes=8)
    assert "1 prompts; 1 dropped, longer than 8 tokens" in capsys.readouterr().out
    make("sft", files, tmp_path / "s.pt", reward=small, prompts=rows, max_response=8, epochs=0.3)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(files, tmp_path):
    with pytest.raises(FloatingPointError):
        make("sft", files, tmp_path / "bad.pt", rate=float("inf"), dropout=0.0)
    assert not (tmp_path / "bad.pt").exists()
