"""run.sh as a script: which commands it runs, in which order, and that it repeats none in vain.

A stand-in for Python writes down each command and makes the file that its --out names, so that the
whole pipeline takes a second here; what the commands do is tested elsewhere.
"""

import itertools
import os
import shlex
import shutil
import signal
import stat
import subprocess

import pytest
from conftest import ROOT

from data.study import KL_SWEEP

STAND_IN = """#!/usr/bin/env bash
[ "$1" != -c ] || exit 0
echo "$*" >>"$LOG"
[[ " $* " != *" --keep_every "* ]] || kept=yes
while [ $# -gt 0 ]; do
    if [ "$1" = --out ]; then
        case "$2" in
            *.pt | *.jsonl) mkdir -p "$(dirname "$2")"; touch "$2"
                            [ -z "$kept" ] || touch "${2%.pt}"-{4,40}.pt ;;
            *) mkdir -p "$2"; touch "$2"/{text.txt,filters.json,best_of_64.jsonl} ;;
        esac
    fi
    shift
done
"""


# One that steps as long as it is let, and at Ctrl-C takes a second for the step and saves.
SLOW = """#!/usr/bin/env bash
[ "$1" != -c ] || exit 0
case "$*" in
    *start.pt* | *early.pt*)
        trap 'sleep 1; touch "$LOG-saved-$$"; exit 130' INT
        echo training
        while true; do sleep 0.1; done ;;
    *) exec "$(dirname "$0")/other" "$@" ;;
esac
"""

# Two that lack the packages: an old one, and one that makes environments of a third kind.
OLD = """#!/usr/bin/env bash
[ "$1" != --version ] || echo "Python 3.9.1"
exit 1
"""
BARE = """#!/usr/bin/env bash
[[ "$2" != *torch* ]] || exit 1
[ "$1 $2" != "-m venv" ] || { mkdir -p .venv/bin; cp "$(dirname "$0")/other" .venv/bin/python; }
"""


def place(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def script(tmp_path):
    """A function that runs run.sh with the stand-in; returns the commands that it ran."""
    shutil.copy(ROOT / "run.sh", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "study.sh", tmp_path / "data")
    (tmp_path / "bin").mkdir()
    place(tmp_path / "bin" / "python3", STAND_IN)
    place(tmp_path / "bin" / "other", STAND_IN)
    log = tmp_path / "log"

    def run(*flags):
        log.write_text("")
        done = subprocess.run(["./run.sh", *flags], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                                                "LOG": str(log)}, check=False)
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()
    run.folder = tmp_path
    return run


def outputs(commands):
    """What each command makes, in order."""
    return [words[words.index("--out") + 1] for words in map(str.split, commands)]


def test_everything_is_made_once_and_in_order(script):
    made = outputs(script())
    assert len(made) == len(set(made))
    order = ["world", "data", "base.pt", "{}.pt", "completions.train.jsonl",
             "data/comparisons.train.jsonl", "reward.pt", "{}.pt", "answers/{}.jsonl"]
    for first, last in itertools.product(("start", "early"), ("sft", "ppo", "ppo_ptx")):
        names = [name.format(last if n > 5 else first) for n, name in enumerate(order)]
        places = [made.index(f"runs/world-0/{name}") for name in names]
        assert places == sorted(places)
    assert made[-1] == "runs/world-0"  # the report comes last


def test_a_second_run_makes_only_the_report(script):
    script()
    assert outputs(script()) == ["runs/world-0"]


def test_what_is_missing_is_made_again_with_what_depends_on_it(script):
    script()
    (script.folder / "runs/world-0/sft.pt").unlink()
    assert outputs(script()) == [f"runs/world-0{x}" for x in ("/sft.pt", "/answers/sft.jsonl", "")]


def test_what_is_older_than_what_it_is_made_from_is_made_again(script):
    before = outputs(script())
    os.utime(script.folder / "runs/world-0/reward.pt", (2e9, 2e9))
    again = outputs(script())
    assert "runs/world-0/base.pt" not in again and "runs/world-0/reward.pt" not in again
    for name in ("sft.pt", "ppo.pt", "ppo_ptx.pt", "answers/base.jsonl"):
        assert f"runs/world-0/{name}" in again
    assert set(again) < set(before)


def test_fresh_starts_over_and_another_seed_or_name_has_a_folder_of_its_own(script):
    first = outputs(script())
    assert sorted(outputs(script("--fresh"))) == sorted(first)
    assert outputs(script("--seed", "3"))[0] == "runs/world-3/world"
    assert outputs(script("--name", "mine"))[0] == "runs/mine/world"


def test_each_command_is_kept_ready_to_be_copied(script):
    commands = script()
    kept = (script.folder / "runs/world-0/commands").read_text().splitlines()
    assert sorted(shlex.join(shlex.split(line)[1:]) for line in kept) == sorted(
        shlex.join(line.split()) for line in commands[:-1])  # the last one is the report


def test_at_ctrl_c_run_sh_ends_when_all_its_programs_have(script):
    place(script.folder / "bin" / "python3", SLOW)
    run = subprocess.Popen(["./run.sh"], cwd=script.folder, text=True, start_new_session=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                           env=os.environ | {"PATH": f"{script.folder / 'bin'}:"
                                                     f"{os.environ['PATH']}",
                                             "OMP_NUM_THREADS": "2",
                                             "LOG": str(script.folder / "log")})
    assert len(list(itertools.islice((x for x in run.stdout if x == "training\n"), 2))) == 2
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    assert run.wait(30) == 130
    assert len(list(script.folder.glob("log-saved-*"))) == 2
    run.stdout.close()


def test_where_python3_is_too_old_another_makes_the_environment_anew(script):
    for name, text in (("python3", OLD), ("python", OLD), ("python3.13", OLD), ("python3.12", BARE)):
        place(script.folder / "bin" / name, text)
    half = script.folder / ".venv/bin/python"  # what venv leaves where it lacks ensurepip
    half.parent.mkdir(parents=True)
    place(half, OLD)
    commands = script()
    assert commands[0] == "-m pip install --quiet --disable-pip-version-check -r requirements.txt"
    assert commands[-1].startswith("-m data.study")
    assert script()[0].startswith("-m data.study")  # and it is installed once


def test_further_reward_models_are_of_few_comparisons_and_no_fold_sees_its_group(script):
    """Table 7: five folds of labelers, four epochs and shuffled pairs, beside one of one epoch."""
    told = {}
    for words in map(str.split, script()):
        told[words[words.index("--out") + 1]] = dict(itertools.pairwise(words))  # the last counts
    few = "runs/world-0/few"
    for group in "ABCDE":
        others = "ABCDE".replace(group, "")
        trained = told[f"{few}/reward-{group}.pt"]["--comparisons"]
        assert told[trained]["--group"] == others and told[trained]["--limit"] == "400"
        assert told[trained]["--completions"] == "runs/world-0/completions.train.jsonl"
        for kind, judges in (("within", others), ("fold", group)):
            flags = told[f"{few}/accuracy/{kind}-{group}.jsonl"]
            assert flags["--reward"] == f"{few}/reward-{group}.pt"
            ranked = told[flags["--comparisons"]]
            assert ranked["--group"] == judges and ranked["--limit"] == "400"
            assert ranked["--completions"] == "runs/world-0/completions.valid.jsonl"
    for name, flags in (("once", {}), ("epochs", {"--epochs": "4"}),
                        ("pairs", {"--shuffle_pairs": "true"})):
        given = told[f"{few}/reward-{name}.pt"]
        assert given["--comparisons"] == "runs/world-0/data/comparisons.train.jsonl"
        assert given["--limit"] == told[f"{few}/accuracy/{name}.jsonl"]["--limit"] == "400"
        assert {k: given.get(k) for k in ("--epochs", "--shuffle_pairs")} == \
            {"--epochs": None, "--shuffle_pairs": None} | flags


def test_a_study_makes_every_seed_size_and_sweep_and_then_nothing_twice(script):
    commands = script("study", "--seeds", "1 2", "--jobs", "2")
    made = outputs(commands)
    for seed in (1, 2):
        for size in ("", "mini-s/", "mini-l/"):
            for model in ("base", "prompted", "start", "sft", "ppo", "ppo_ptx"):
                assert f"runs/world-{seed}/{size}answers/{model}.jsonl" in made
        for mixture in ("flan", "t0"):
            assert f"runs/world-{seed}/mini-l/answers/{mixture}.jsonl" in made
        for name in ("ptx_30", "kl_3", "no_kl-4", "no_kl-40", "from_base"):
            assert f"runs/world-{seed}/mini-s/answers/{name}.jsonl" in made
        for name in ("sft16.pt", "answers/sft1.jsonl", "answers/sft16.jsonl"):
            assert f"runs/world-{seed}/{name}" in made
    assert "runs/world-1/reward-pairs.pt" in made and "runs/world-1/answers/again.jsonl" in made
    assert "runs/world-2/reward-pairs.pt" not in made  # the longest: the first seed
    limits = {flags["--limit"] for flags in (dict(itertools.pairwise(c.split())) for c in commands)
              if flags.get("--out", "").startswith("runs/world-1/reward-") and "--limit" in flags}
    assert limits == {"0"} and "runs/world-2/few/reward-pairs.pt" in made
    assert made[-1] == "runs/study" and "--sizes mini-s mini mini-l" in commands[-1]
    models = [name for name in made if name.endswith((".pt", ".jsonl"))]
    assert len(models) == len(set(models))
    again = [name for name in outputs(script("study", "--seeds", "1 2", "--jobs", "2"))
             if name.endswith((".pt", ".jsonl"))]
    assert again == []


def test_the_report_names_the_coefficients_that_the_study_gives(script):
    given = {}
    for words in map(str.split, script("study", "--seeds", "1")):
        if words[0] == "ppo.py" and "/mini-s/" in words[words.index("--out") + 1]:
            values = dict(itertools.pairwise(words))  # the last one counts
            given[values["--out"].split("/")[-1].removesuffix(".pt")] = values
    swept = {name for name in given if name.startswith("kl_")}
    assert swept == set(KL_SWEEP.values()) - {"ppo"}
    for label, name in KL_SWEEP.items():
        assert given[name]["--kl_coef"] == label.split()[0] and given[name]["--ptx_coef"] == "0"
    for name in (name for name in given if name.startswith("ptx_")):
        assert given[name]["--ptx_coef"] == name.removeprefix("ptx_")


@pytest.mark.parametrize("flags, words", [
    (["study", "--jobs", "0"], "--jobs 0"), (["study", "--seeds", "a"], "--seeds a"),
    (["--seed", "x"], "--seed x"), (["--seed"], "expected a value"), (["nonsense"], "no such"),
    (["study", "--fresh"], "--fresh does not"), (["study", "--seed", "3"], "--seed does not"),
    (["study", "--seeds", "3 4 3"], "one stands twice"), (["--jobs", "2"], "--jobs belongs"),
    (["--nonsense"], "unknown flag"), (["--part", "nonsense"], "--part nonsense"),
    (["--part", "few-AB"], "--part few-AB")])
def test_bad_flags_are_one_line(script, flags, words):
    done = subprocess.run(["./run.sh", *flags], cwd=script.folder, capture_output=True, text=True,
                          env=os.environ | {"PATH": f"{script.folder / 'bin'}:"
                                                    f"{os.environ['PATH']}",
                                            "LOG": str(script.folder / "log")}, check=False)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("threads, at_once, each", [(1, 1, 1), (2, 2, 1), (3, 2, 1), (4, 2, 2),
                                                    (6, 3, 2), (16, 8, 2), (64, 13, 4)])
def test_parts_share_the_cores_and_know_python(script, monkeypatch, threads, at_once, each):
    """Of the thirteen parts at the end at_once run side by side; none looks for Python again."""
    (script.folder / "bin" / "xargs").write_text(
        '#!/bin/sh\necho "xargs $2 $OMP_NUM_THREADS" >>"$LOG"\nexec /usr/bin/xargs "$@"\n')
    (script.folder / "bin" / "xargs").chmod(0o755)
    stand_in = script.folder / "bin" / "python3"
    stand_in.write_text(stand_in.read_text().replace(
        '[ "$1" != -c ] ||', '[ "$1" != -c ] || echo look >>"$LOG"; [ "$1" != -c ] ||'))
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    lines = script()
    assert [line for line in lines if line.startswith("xargs")][-1] == f"xargs {at_once} {each}"
    assert lines.count("look") == 1
