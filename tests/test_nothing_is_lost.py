"""Whatever happens to a run, its last good state stays, and one line says what happened.

Kills, signals, full disks, read-only folders, two runs at a time, numbers that are not finite, too
little memory: each as a real process where the machine allows it. `soak.py` kills more often.
"""

import dataclasses
import fcntl
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import sys

import pytest
import torch

import common
import programs
import soak
from common import InputError
from conftest import ROOT
from data.readers import write_jsonl
from test_stages import (SETTINGS, files, make, ppo_settings, same_weights,  # noqa: F401 (fixture)
                         sft_settings)

# -- kill and go on -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", soak.STAGES)
def test_a_stage_killed_at_random_moments_ends_bitwise_as_the_undisturbed_one(
        files, tmp_path, stage, record_property):  # noqa: F811
    counts = soak.kill_and_go_on(stage, files, tmp_path, kills=3)
    record_property("kills", counts["kills"])
    assert counts["kills"] == 3 and counts["runs"] >= 1


@pytest.fixture
def stop_after(monkeypatch):
    """A function that makes the next run stop, as by SIGTERM, when so many steps are done."""
    seed_step = common.Stage.seed_step

    def set_up(steps):
        def seeds(self, step, seed):
            seed_step(self, step, seed)
            if step + 1 == steps:
                self.stop_signal = signal.SIGTERM
        monkeypatch.setattr(common.Stage, "seed_step", seeds)

    yield set_up
    release()


def release():
    """Let go of the lock of a stage that ended by an exception, as the end of its process does."""
    if common.Stage.running is not None:
        common.Stage.running.lock.close()
    common.Stage.running = None


def stopped(files, out, stop_after, steps=4, stage="ppo", **changes):  # noqa: F811
    """Leave a run that was stopped after so many steps, its two last checkpoints beside `out`."""
    stop_after(steps)
    with pytest.raises(SystemExit) as ended:
        make(stage, files, out, save_every=1, **changes)
    assert ended.value.code == 143
    release()
    stop_after(10**9)
    return out.with_suffix(".resume.pt"), out.with_suffix(".resume-1.pt")


def test_the_last_two_checkpoints_are_kept(files, tmp_path, stop_after):  # noqa: F811
    newest, before = stopped(files, tmp_path / "p.pt", stop_after)
    assert [torch.load(path, weights_only=True)["step"] for path in (newest, before)] == [4, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "p.jsonl", "p.lock", "p.resume-1.pt", "p.resume.pt"]


def flip_in_the_middle(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [
    flip_in_the_middle, lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(b""), lambda path: path.write_bytes(bytes(100_000))])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
        files, tmp_path, stop_after, capsys, damage):  # noqa: F811
    whole = make("ppo", files, tmp_path / "whole.pt", save_every=1)
    newest, before = stopped(files, tmp_path / "p.pt", stop_after)
    damage(newest)
    capsys.readouterr()
    resumed = make("ppo", files, tmp_path / "p.pt", save_every=1)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if str(newest) in line and "trying the one before" in line]
    assert [line for line in said if f"going on after step 3 of {before}" in line]
    assert same_weights(whole, resumed)
    assert soak.metrics(tmp_path / "whole.jsonl") == soak.metrics(tmp_path / "p.jsonl")


def test_a_damaged_newest_checkpoint_never_replaces_the_good_one_before_it(
        files, tmp_path, stop_after, monkeypatch):  # noqa: F811
    """The next save moves the newest to the place of the one before: that must be the good one."""
    newest, before = stopped(files, tmp_path / "p.pt", stop_after)
    flip_in_the_middle(newest)

    def full(path, **contents):
        raise InputError(f"{path}: no space")

    monkeypatch.setattr(common, "save_checkpoint", full)
    with pytest.raises(InputError, match="no space"):
        make("ppo", files, tmp_path / "p.pt", save_every=1)
    assert [common.read_checkpoint(path)["step"] for path in (newest, before)
            if path.exists()] == [3]


def test_with_both_checkpoints_damaged_the_run_begins_anew_and_says_so(
        files, tmp_path, stop_after, capsys):  # noqa: F811
    whole = make("ppo", files, tmp_path / "whole.pt", save_every=1)
    for path in stopped(files, tmp_path / "p.pt", stop_after):
        flip_in_the_middle(path)
    capsys.readouterr()
    assert same_weights(whole, make("ppo", files, tmp_path / "p.pt", save_every=1))
    assert capsys.readouterr().out.count("not a whole checkpoint") == 2


def test_a_run_of_other_settings_or_another_model_does_not_go_on(files, tmp_path,  # noqa: F811
                                                                 stop_after):
    newest, before = stopped(files, tmp_path / "p.pt", stop_after)
    with pytest.raises(InputError, match="left by a run with other settings"):
        make("ppo", files, tmp_path / "p.pt", save_every=1, kl_coef=0.5)
    release()
    state = torch.load(newest, weights_only=True)
    del state["objects"]["value_model"]
    common.save_checkpoint(newest, **state)
    with pytest.raises(InputError, match="does not fit this run"):
        make("ppo", files, tmp_path / "p.pt", save_every=1)


@pytest.mark.parametrize("step", ["x", 1.5, None, True, -3, 0, 6])
def test_a_checkpoint_that_was_left_in_no_step_of_the_run_is_refused(files, tmp_path,  # noqa: F811
                                                                     stop_after, step):
    newest, _ = stopped(files, tmp_path / "p.pt", stop_after)
    torch.save(torch.load(newest, weights_only=True) | {"step": step}, newest)
    with pytest.raises(InputError, match="does not fit this run .*; remove it"):
        make("ppo", files, tmp_path / "p.pt", save_every=1)


def test_a_run_goes_on_with_other_settings_that_change_no_number(files, tmp_path,  # noqa: F811
                                                                 stop_after):
    """As the message advises that tells of too little memory."""
    whole = make("ppo", files, tmp_path / "whole.pt")
    stopped(files, tmp_path / "p.pt", stop_after)
    resumed = make("ppo", files, tmp_path / "p.pt", micro_tokens=64, sample_rows=3, device="cpu",
                   compile="off", save_every=3, show_every=1, keep_every=5)
    assert resumed["step"] == 5 and resumed["config"]["micro_tokens"] == 64
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, atol=1e-4, rtol=1e-3)


def test_half_a_checkpoint_that_a_kill_left_is_removed(files, tmp_path):  # noqa: F811
    for name in (".p.resume.pt.123", ".p.pt.99", ".p.resume-1.pt.7", ".other.pt.5"):
        (tmp_path / name).write_bytes(b"half")
    make("ppo", files, tmp_path / "p.pt", episodes=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.pt.5", "p.jsonl", "p.pt"]


def test_a_garbled_end_of_the_metrics_is_left_out(files, tmp_path, stop_after):  # noqa: F811
    make("ppo", files, tmp_path / "whole.pt", save_every=1)
    stopped(files, tmp_path / "p.pt", stop_after)
    with open(tmp_path / "p.jsonl", "ab") as file:
        file.write(b'{"step": 4, "rew\xff\0\0\n{"st')
    make("ppo", files, tmp_path / "p.pt", save_every=1)
    assert soak.metrics(tmp_path / "whole.jsonl") == soak.metrics(tmp_path / "p.jsonl")


# -- places that cannot be written ----------------------------------------------------------------


WRITERS = ["world", "prepare", "labelers", "sample", "answers", "best_of", "accuracy", "study",
           "export", "import"]


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):  # noqa: F811
    """A folder with what every program that writes needs, and settings for each."""
    folder = tmp_path_factory.mktemp("run")
    world = {"documents": 60, "demonstrations": 60, "prompts": 120, "academic": 10}
    settings = {"world": world | {"out": folder / "world"}}
    assert programs.finish("world", settings["world"], folder / "said")[0] == 0
    rows = [json.loads(line) for line in (folder / "world/prompts.jsonl").open()]
    write_jsonl(folder / "completions.jsonl", [
        {"prompt": r["prompt"], "key": r["key"], "completions": ["Yes.", "No.", "I do not know."]}
        for r in rows])
    contents = torch.load(files["base"], weights_only=True)
    base = tmp_path_factory.mktemp("models")
    for name in ("base", "start", "sft", "ppo", "ppo_ptx"):
        stage = {"base": "base", "start": "sft", "ppo_ptx": "ppo"}.get(name, name)
        common.save_checkpoint(base / f"{name}.pt", **contents | {"stage": stage})
    shutil.copy(files["reward"], base / "reward.pt")
    for name in ("ppo", "ppo_ptx"):
        write_jsonl(base / f"{name}.jsonl", [
            {"step": i, "reward": 0.1 * i, "kl": 0.5, "entropy": 1.0} for i in range(5)])
    (base / "data").mkdir()
    prompts = base / "data" / "prompts.test.jsonl"
    write_jsonl(prompts, [{"prompt": r["prompt"]} for r in rows if len(r["prompt"]) < 60][:12])
    settings |= {
        "prepare": {"out": folder / "data", "tokenizer": "world",
                    "demonstrations": folder / "world/demonstrations.jsonl",
                    "prompts": folder / "world/prompts.jsonl", "text": folder / "world/text.txt"},
        "labelers": {"completions": folder / "completions.jsonl", "out": folder / "ranked.jsonl"},
        "sample": {"checkpoint": base / "sft.pt", "prompts": prompts,
                   "out": folder / "sampled.jsonl", "max_response": 6},
        "answers": {"checkpoint": base / "sft.pt", "reward": base / "reward.pt",
                    "reference": base / "start.pt", "prompts": prompts, "max_response": 6,
                    "out": base / "answers" / "sft.jsonl"},
        "best_of": {"checkpoint": base / "sft.pt", "reward": base / "reward.pt", "most": 2,
                    "prompts": prompts, "max_response": 6, "out": base / "answers"},
        "accuracy": {"reward": base / "reward.pt", "comparisons": files["comparisons"],
                     "out": base / "accuracy" / "training.jsonl"},
        "study": {"runs": base, "out": folder / "study"},
        "export": {"checkpoint": base / "sft.pt", "out": folder / "exported"},
        "import": {"folder": folder / "exported", "out": folder / "imported.pt",
                   "tokenizer": "world"}}
    for name in WRITERS[1:]:
        code, _, error = programs.finish(name, settings[name], folder / "said")
        assert code == 0, (name, error)
    return folder, base, settings


def everything(*folders):
    """{path: bytes} of all files below the folders, but what a test's own processes say."""
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*")
            if path.is_file() and path.suffix not in (".out", ".err")}


def refuses(name, settings, said, **limits):
    """Run a program that must end with code 2 and one line, which is returned."""
    code, _, error = programs.finish(name, settings, said, **limits)
    if code == programs.NO_MOUNTS:
        pytest.skip("this user may not mount anything here")
    assert code == 2 and error.count("\n") == 1 and error.startswith("error: "), (code, error)
    return error


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_stops_a_program_in_one_line_and_changes_no_file(run, tmp_path, name):
    folder, base, settings = run
    before = everything(folder, base)
    error = refuses(name, settings[name], tmp_path / "said", file_limit=400)
    assert "File too large" in error or "could not be written" in error
    assert everything(folder, base) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_folder_stops_a_program_in_one_line(run, tmp_path, name):
    folder, base, settings = run
    place = base if name in OF_THE_MODELS else folder
    before = everything(folder, base)
    assert "Read-only file system" in refuses(name, settings[name], tmp_path / "said",
                                              read_only=place)
    assert everything(folder, base) == before


OF_THE_MODELS = ("answers", "best_of", "accuracy")
LOCKS = {"world": "world/.lock", "prepare": "data/.lock", "answers": "answers/.sft.jsonl.lock",
         "best_of": "answers/.best_of_1.jsonl.lock", "accuracy": "accuracy/.training.jsonl.lock",
         "study": "study/.lock", "labelers": ".ranked.jsonl.lock", "sample": ".sampled.jsonl.lock",
         "export": "exported/.lock", "import": ".imported.pt.lock"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_second_run_in_the_same_place_is_refused(run, tmp_path, name):
    folder, base, settings = run
    before = everything(folder, base)
    path = (base if name in OF_THE_MODELS else folder) / LOCKS[name]
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another run is writing it" in refuses(name, settings[name], tmp_path / "said")
    path.unlink()
    assert everything(folder, base) == before
    assert programs.finish(name, settings[name], tmp_path / "said")[0] == 0
    assert not path.exists()


def test_output_that_goes_to_a_full_disk_is_one_line(run, tmp_path):
    _, _, settings = run
    flags = programs.flags_of(settings["labelers"] | {"out": tmp_path / "out.jsonl"})
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    for env in (buffered, buffered | {"PYTHONUNBUFFERED": "1"}):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "data.labelers", *flags], cwd=ROOT, env=env,
                                  text=True, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2 and done.stderr == "error: output: No space left on device\n"


def goes_on(files, tmp_path, stage="ppo"):  # noqa: F811
    """Whether a run, with nothing in its way any more, ends as the undisturbed one."""
    whole = make(stage, files, tmp_path / "whole.pt", save_every=1)
    folder = tmp_path / "run"
    kept = make(stage, files, folder / "p.pt", save_every=1)
    return same_weights(whole, kept) and soak.left_over(folder / "p.pt") == []


@pytest.mark.parametrize("stage, steps", [("base", 2), ("sft", 3), ("reward", 4), ("ppo", 2)])
def test_a_disk_that_fills_up_leaves_a_stage_its_last_checkpoint(files, tmp_path,  # noqa: F811
                                                                 stop_after, stage, steps):
    out = tmp_path / "run" / "p.pt"
    newest, before = stopped(files, out, stop_after, steps, stage)
    program, settings = (("sft" if stage in ("base", "sft") else stage),
                         SETTINGS[stage](files) | {"out": out, "save_every": 1})
    said = tmp_path / "said"
    error = refuses(program, settings, said, file_limit=500_000)
    assert "the checkpoint could not be written" in error and "intact" in error
    good = [path for path in (newest, before) if path.exists()]
    assert common.read_checkpoint(good[0])["step"] == steps and not out.exists()
    assert "what was saved before is intact" in refuses(program, settings, said, file_limit=1000)
    assert goes_on(files, tmp_path, stage)


def test_a_disk_without_space_leaves_a_stage_its_last_checkpoint(files, tmp_path,  # noqa: F811
                                                                 stop_after):
    """The same on a real disk of 14 MB, where one checkpoint of 9 MB fits and two do not."""
    folder = tmp_path / "run"
    newest, before = stopped(files, folder / "p.pt", stop_after, steps=1)
    settings = ppo_settings(files) | {"out": folder / "p.pt", "save_every": 1}
    error = refuses("ppo", settings, tmp_path / "said", small=(folder, 14_000_000))
    assert "the checkpoint could not be written" in error and str(newest) in error
    shutil.rmtree(folder)
    shutil.move(tmp_path / "run.after", folder)  # what was on the small disk at the end
    assert [common.read_checkpoint(path)["step"] for path in (newest, before)
            if path.exists()] == [1]
    assert goes_on(files, tmp_path)


def test_a_read_only_folder_leaves_a_stage_its_last_checkpoint(files, tmp_path,  # noqa: F811
                                                               stop_after):
    folder = tmp_path / "run"
    stopped(files, folder / "p.pt", stop_after, steps=2)
    before = everything(folder)
    settings = ppo_settings(files) | {"out": folder / "p.pt", "save_every": 1}
    assert "Read-only file system" in refuses("ppo", settings, tmp_path / "said",
                                              read_only=folder)
    assert everything(folder) == before and goes_on(files, tmp_path)


def test_a_second_stage_on_the_same_output_is_refused_while_the_first_runs(files,  # noqa: F811
                                                                           tmp_path):
    settings = ppo_settings(files) | {"out": tmp_path / "p.pt", "episodes": 80_000}
    first = programs.start("ppo", settings, tmp_path / "first")
    while first.is_alive() and "p 2/" not in (tmp_path / "first.out").read_text():
        first.join(0.05)
    error = refuses("ppo", settings, tmp_path / "second")
    assert f"{tmp_path / 'p.pt'}: another run is writing it" in error
    os.kill(first.pid, signal.SIGINT)  # the first is not disturbed: it ends its step and saves
    first.join(60)
    assert first.exitcode == 130
    assert common.read_checkpoint(tmp_path / "p.resume.pt")["step"] >= 2


@pytest.mark.parametrize("out", ["", ".", "/", "{folder}"])
def test_an_output_that_is_no_file_is_refused_before_any_training(
        files, tmp_path, out, capsys):  # noqa: F811
    settings = sft_settings(files) | {"out": out.format(folder=tmp_path)}
    code, error = said_by("sft", settings, capsys)
    assert code == 2 and "--out" in error and error.count("\n") == 1


@pytest.mark.parametrize("program", ["sample", "accuracy", "labelers", "import", "answers"])
def test_a_program_that_writes_one_file_takes_only_the_name_of_one(run, tmp_path, capsys,
                                                                   program):
    _, _, settings = run
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(os.path.relpath(tmp_path / "socket"))
    for out in (".", "/", tmp_path, tmp_path / "fifo", tmp_path / "socket"):
        code, error = said_by(program, settings[program] | {"out": out}, capsys)
        assert code == 2 and f"--out {out}: " in error and error.count("\n") == 1
        assert "is not a plain file" in error
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


@pytest.mark.parametrize("stage, flag, name, out", [
    ("reward", "comparisons", "rm.jsonl", "rm.pt"), ("ppo", "prompts", "x.jsonl", "x.pt"),
    ("sft", "demonstrations", "d.jsonl", "d.pt"), ("sft", "demonstrations", "d.jsonl", "d.jsonl"),
    ("sft", "init", "d.pt", "d.pt"), ("ppo", "policy", "p-3.pt", "p.pt"),
    ("ppo", "text", "p.lock", "p.pt"), ("reward", "init", "r.resume-1.pt", "r.pt")])
@pytest.mark.parametrize("link", [False, True])
def test_a_stage_never_writes_over_its_own_input(files, tmp_path, capsys, stage,  # noqa: F811
                                                 flag, name, out, link):
    settings, given = SETTINGS[stage](files), tmp_path / name
    shutil.copy(settings[flag], given)
    before = given.read_bytes()
    if link:
        (tmp_path / "other").symlink_to(given)
        settings[flag] = tmp_path / "other"
    else:
        settings[flag] = os.path.relpath(given)
    changed = {"out": tmp_path / out} | ({"keep_every": 1} if stage == "ppo" else {})
    code, error = said_by(stage, settings | changed, capsys)
    assert code == 2 and error.count("\n") == 1 and f"{given} would be written over" in error
    assert f"--{flag} {settings[flag]}" in error and given.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {name, "other"}


@pytest.mark.parametrize("program, flag", [
    ("sample", "prompts"), ("answers", "prompts"), ("accuracy", "comparisons"),
    ("labelers", "completions"), ("sample", "checkpoint"), ("best_of", "prompts"),
    ("prepare", "demonstrations")])
def test_no_program_writes_over_its_own_input(run, tmp_path, capsys, program, flag):
    _, _, settings = run
    name = {"best_of": "best_of_2.jsonl", "prepare": "demonstrations.train.jsonl"}.get(program, "x")
    given = tmp_path / name
    shutil.copy(settings[program][flag], given)
    before, out = given.read_bytes(), given if name == "x" else tmp_path
    code, error = said_by(program, settings[program] | {flag: given, "out": out}, capsys)
    assert code == 2 and error.count("\n") == 1 and f"{given} would be written over" in error
    assert everything(tmp_path) == {given: before}


def test_an_output_that_is_a_link_is_written_where_it_leads(files, run, tmp_path):  # noqa: F811
    _, _, settings = run
    (tmp_path / "disk").mkdir()
    for name in ("p.pt", "ranked.jsonl", "p.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "ranked.jsonl").write_text("before")
    make("ppo", files, tmp_path / "p.pt", episodes=8)
    programs.finish("labelers", settings["labelers"] | {"out": tmp_path / "ranked.jsonl"},
                    tmp_path / "said")
    assert len(list(tmp_path.glob("disk/*"))) == 3 and all(
        (tmp_path / name.name).is_symlink() and name.stat().st_size > 6
        for name in tmp_path.glob("disk/*"))


def test_two_outputs_that_differ_behind_a_point_share_no_file(files, tmp_path):  # noqa: F811
    for out in ("ppo-kl0.02", "ppo-kl0.05"):
        make("ppo", files, tmp_path / out, episodes=8, keep_every=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        name + end for name in ("ppo-kl0.02", "ppo-kl0.05") for end in ("", "-1.pt", ".jsonl")]


# -- numbers going bad ----------------------------------------------------------------------------


def said_by(program, settings, capsys):
    """Run a program in this process: (exit code, standard error)."""
    with pytest.raises(SystemExit) as ended:
        common.run(*programs.find(program), "", programs.flags_of(settings))
    release()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("stage, model, what", [
    ("sft", "model", "loss is nan"), ("reward", "model", "loss is nan"),
    ("ppo", "policy", "policy_loss is nan"), ("ppo", "value_model", "is nan")])
def test_a_number_that_is_not_finite_stops_the_run_and_says_what_where_and_what_is_left(
        files, tmp_path, monkeypatch, capsys, stage, model, what):  # noqa: F811
    whole = make(stage, files, tmp_path / "whole.pt")
    out, resume, seed_step = tmp_path / "p.pt", common.Stage.resume, common.Stage.seed_step
    models = {}

    def remembers(self, objects, steps):
        models.update(objects)
        return resume(self, objects, steps)

    def poisons(self, step, seed):
        seed_step(self, step, seed)
        if step == 3:  # a weight of the model goes bad in the fourth step
            models[model].decoder.ln_f.weight.data[0] = float("nan")

    monkeypatch.setattr(common.Stage, "resume", remembers)
    monkeypatch.setattr(common.Stage, "seed_step", poisons)
    code, error = said_by(stage, SETTINGS[stage](files) | {"out": out}, capsys)
    monkeypatch.undo()
    assert code == 1 and error.count("\n") == 1 and what in error
    assert f"in step 4 of {out}" in error
    assert f"the last good checkpoint is {out.with_suffix('.resume.pt')}, after step 2" in error
    state = common.read_checkpoint(out.with_suffix(".resume.pt"))
    assert state["step"] == 2 and common.not_finite(state) is None and not out.exists()
    assert same_weights(whole, make(stage, files, out))


def test_the_norm_of_a_gradient_that_is_not_finite_leaves_the_weights_alone():
    from model import GPT, GPTConfig, adam, step_optimizer
    model = GPT(GPTConfig(5, 4, 1, 1, 4))
    optimizer = adam(model, 1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {k: w.clone() for k, w in model.state_dict().items()}
    model.decoder.ln_f.bias.grad[1] = float("inf")
    with pytest.raises(FloatingPointError, match="norm of the GPT's gradient is inf"):
        step_optimizer(model, optimizer, 1e-3)
    assert all(torch.equal(w, before[k]) for k, w in model.state_dict().items())


def test_weights_that_a_step_made_infinite_are_not_saved(files, tmp_path, capsys):  # noqa: F811
    """The gradient was finite; the rate was not small. No later step is there to notice."""
    settings = sft_settings(files) | {"out": tmp_path / "p.pt", "epochs": 0.01, "rate": 3e38,
                                      "dropout": 0.0}
    for key in ("reward", "prompts"):
        settings.pop(key)
    code, error = said_by("sft", settings, capsys)
    assert code == 1 and "p.resume.pt is not written" in error or "p.pt is not written" in error
    assert "not finite" in error and "nothing was saved before" in error
    assert not list(tmp_path.glob("*.pt"))


def test_nothing_not_finite_is_saved_wherever_it_stands(tmp_path):
    good = {"a": torch.ones(2), "b": {"c": [torch.arange(3), torch.ones(2)]}}
    common.save_checkpoint(tmp_path / "good.pt", **good)
    for bad in (float("nan"), float("inf")):
        for contents, name in (
                ({"objects": {"optimizer": {"state": {7: {"exp_avg": torch.tensor([bad])}}}}},
                 "objects.optimizer.state.7.exp_avg"),
                ({"weights": {"w": torch.tensor([0.0, bad], dtype=torch.bfloat16)}}, "weights.w"),
                ({"list": [{"x": torch.tensor(bad)}]}, "list.0.x")):
            with pytest.raises(FloatingPointError, match=f"{name} holds values"):
                common.save_checkpoint(tmp_path / "bad.pt", **good, **contents)
    assert [p.name for p in tmp_path.iterdir()] == ["good.pt"]


def test_a_validation_score_that_is_not_finite_stops_the_run(files, tmp_path,  # noqa: F811
                                                             monkeypatch, capsys):
    import sft
    monkeypatch.setattr(sft, "reward_of_answers", lambda *args: torch.tensor([float("nan")]))
    code, error = said_by("sft", sft_settings(files) | {"out": tmp_path / "p.pt"}, capsys)
    assert code == 1 and "valid_reward is nan" in error and not (tmp_path / "p.pt").exists()


# -- too little memory, Ctrl-C ---------------------------------------------------------------------


def too_much(config):
    torch.empty(2**50, dtype=torch.uint8)  # what torch really says on a CPU


def beyond_all_memory(config):
    torch.empty(2**61 - 1)


def raises(error):
    def main(config):
        raise error
    return main


@pytest.mark.parametrize("main", [
    too_much, beyond_all_memory, raises(MemoryError()),
    raises(torch.OutOfMemoryError("CUDA out of memory. Tried")),
    raises(RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't "
                        "allocate memory: you tried to allocate 99 bytes."))])
@pytest.mark.parametrize("program, setting", [("ppo", "--micro_tokens"), ("sft", "--micro_tokens"),
                                              ("reward", "--micro_tokens"),
                                              ("sample", "--max_response")])
def test_too_little_memory_names_the_setting_to_lower(files, tmp_path, capsys, main,  # noqa: F811
                                                      program, setting):
    settings = SETTINGS.get(program, lambda _: {"checkpoint": "x", "prompts": "y"})(files)
    with pytest.raises(SystemExit) as ended:
        common.run(main, programs.find(program)[1], "", programs.flags_of(
            settings | {"out": tmp_path / "p.pt"}))
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.startswith(f"error: out of memory: lower {setting}")
    assert error.count("\n") == 1


def test_other_errors_of_the_program_are_not_hidden(files, tmp_path):  # noqa: F811
    flags = programs.flags_of(ppo_settings(files) | {"out": tmp_path / "p.pt"})
    with pytest.raises(RuntimeError, match="a fault"):
        common.run(raises(RuntimeError("a fault")), programs.find("ppo")[1], "", flags)


def test_ctrl_c_before_a_stage_has_begun_is_one_line(files, tmp_path, capsys):  # noqa: F811
    flags = programs.flags_of(ppo_settings(files) | {"out": tmp_path / "p.pt"})
    with pytest.raises(SystemExit) as ended:
        common.run(raises(KeyboardInterrupt()), programs.find("ppo")[1], "", flags)
    assert ended.value.code == 130 and capsys.readouterr().err.count("\n") == 1


# -- settings out of bounds ------------------------------------------------------------------------


@pytest.mark.parametrize("n_ctx", [1, 2**61])
def test_a_context_out_of_bounds_is_one_line(files, tmp_path, capsys, n_ctx):  # noqa: F811
    settings = SETTINGS["base"](files) | {"out": tmp_path / "p.pt", "n_ctx": n_ctx}
    code, error = said_by("sft", settings, capsys)
    assert code == 2 and f"--n_ctx {n_ctx}: expected 2 to" in error and error.count("\n") == 1


@pytest.mark.parametrize("flag, value, expected", [
    ("batch", 0, "above 0"), ("minibatch", 0, "above 0"), ("save_every", 0, "above 0"),
    ("policy_rate", "nan", "finite"), ("kl_coef", "inf", "finite"), ("kl_coef", -1, "0 or more"),
    ("ema_decay", 1.5, "at most 1"), ("seed", 10**30, "below 2**62"),
    ("limit_score", "nan", "finite"), ("max_response", -3, "above 0"),
    ("ptx_tokens", 1000, "at most the context of 32"), ("policy", "", "expected a value"),
    ("ptx_tokens", 1, "2 or more"), ("temperature", 0, "above 0"), ("clip", 0, "0.001 or more"),
    ("clip", 1e308, "fp32"), ("limit_score", "-1e300", "fp32"), ("limit_score", "-inf", "finite"),
    ("compile", "false", "auto or on or off"), ("compile", "OFF", "auto or on or off")])
def test_settings_out_of_bounds_are_one_line(files, tmp_path, capsys, flag, value,  # noqa: F811
                                             expected):
    settings = ppo_settings(files) | {"out": tmp_path / "p.pt", flag: value}
    code, error = said_by("ppo", settings, capsys)
    assert code == 2 and f"--{flag}" in error and expected in error and error.count("\n") == 1
    assert not (tmp_path / "p.pt").exists()


@pytest.mark.parametrize("flags, named", [
    ({"n_ctx": 16}, "--n_ctx"), ({"prompts": "x"}, "--reward"), ({"reward": "x"}, "--prompts")])
def test_flags_that_would_not_be_read_are_refused(files, tmp_path, capsys, flags, named):  # noqa: F811
    settings = SETTINGS["sft"](files) | {"out": tmp_path / "p.pt", "reward": "", "prompts": ""}
    code, error = said_by("sft", settings | flags, capsys)
    assert code == 2 and named in error and error.count("\n") == 1


@pytest.mark.parametrize("score", ["-3", "-1e3", "-1.5E-2", "-.5", "-2."])
def test_a_score_for_cut_off_responses_may_be_negative(score):
    config = common.parse_config(programs.find("ppo")[1], "", [
        "--policy", "p", "--reward", "r", "--prompts", "x", "--out", "o", "--text", "t",
        "--limit_score", score])
    assert config.limit_score == float(score)


def test_output_that_cannot_spell_a_character_escapes_it(monkeypatch):
    for encoding, errors in (("latin-1", "strict"), ("ascii", "surrogateescape")):
        said = io.TextIOWrapper(io.BytesIO(), encoding, errors)
        monkeypatch.setattr(sys, "stdout", said)
        common.run(lambda config: print("fox \N{FOX FACE}"), dataclasses.make_dataclass("C", []),
                   argv=[])
        assert said.buffer.getvalue() == b"fox \\U0001f98a\n"


def test_every_bounded_setting_exists():
    fields = {f.name for name in programs.PROGRAMS for f in dataclasses.fields(
        programs.find(name)[1])}
    assert common.POSITIVE | common.SHARES | common.LIMITLESS <= fields


# -- the same seed ---------------------------------------------------------------------------------

ALL_PROGRAMS = """
import sys, torch
sys.path[:0] = ["tests"]
import programs, common
torch.set_num_threads(1)
for line in sys.stdin:
    name, *flags = eval(line)
    common.run(*programs.find(name), "", flags)
"""


def test_the_same_seed_gives_the_same_files_in_every_process(run, tmp_path):
    """Whatever order Python's sets take in a process, which a seed of their own decides."""
    _, base, settings = run
    work, models = tmp_path / "work", tmp_path / "models"

    def all_files(hash_seed, seed):
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(models, ignore_errors=True)
        shutil.copytree(base, models)
        shutil.rmtree(models / "answers")
        outs = {"answers": models / "answers" / "sft.jsonl", "study": work / "study"}
        plan = []
        for name in ("world", "prepare", "labelers", "sample", "answers", "study"):
            changed = settings[name] | {"seed": seed}
            changed["out"] = outs.get(name, work / changed["out"].name)
            if name == "study":
                changed["runs"] = models
            plan.append(repr([name, *programs.flags_of(changed)]))
        work.mkdir()
        subprocess.run([sys.executable, "-c", ALL_PROGRAMS], input="\n".join(plan), cwd=ROOT,
                       text=True, env=os.environ | {"PYTHONHASHSEED": str(hash_seed)}, check=True,
                       stdout=subprocess.DEVNULL)
        return everything(work, models)

    one, two, other = all_files(1, 0), all_files(2, 0), all_files(1, 5)
    assert one.keys() == two.keys() == other.keys()
    assert [str(p) for p in one if one[p] != two[p]] == []
    changed = {p.name for p in one if one[p] != other[p]}
    assert {"text.txt", "prompts.jsonl", "ranked.jsonl", "sampled.jsonl", "sft.jsonl",
            "report.md"} <= changed


def test_the_report_says_what_is_not_promised(run):
    folder, _, _ = run
    text = " ".join((folder / "study" / "report.md").read_text().split())
    for words in ("bit for bit", "one machine", "number of threads", "version of torch",
                  "not across machines, thread counts or versions"):
        assert words in text
