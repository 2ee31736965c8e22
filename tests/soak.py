"""Every stage, killed at random moments, goes on to the weights of the undisturbed run.

    python tests/soak.py [--kills 20] [--seed 0] [--stage ppo]

Stages run on a tiny world with one thread. Each is first run undisturbed; then it is started,
killed with SIGKILL at a moment drawn uniformly from the time that the undisturbed run took, and
started again, until it was killed so many times; a run that ends before is compared too, and
another begun.
Prints a line a stage; exits with 1 where weights or metrics differ in any bit, where anything half
written is left, or where an ended run is not the undisturbed one.
"""

import argparse
import json
import pathlib
import random
import sys
import tempfile
import time

import programs
import torch
from test_stages import (base_settings, ppo_settings, reward_settings, sft_settings, tiny_files,
                         same_weights)


def start_settings(files):
    """PPO's start: demonstrations and text mixed, no choice of an epoch."""
    kept = {k: v for k, v in sft_settings(files).items() if k not in ("reward", "prompts")}
    return kept | {"epochs": 2.0}


def sft_alone_settings(files):
    """The SFT baseline: the reward model chooses the epoch."""
    return {k: v for k, v in sft_settings(files).items() if k not in ("text", "ptx_fraction")}


STAGES = {  # in the order in which they need one another
    "base": ("sft", base_settings),
    "start": ("sft", start_settings),
    "reward": ("reward", reward_settings),
    "sft": ("sft", sft_alone_settings),
    "ppo": ("ppo", lambda files: ppo_settings(files) | {"ptx_coef": 0.0}),
    "ppo_ptx": ("ppo", ppo_settings),
}


def settings_of(stage, files):
    return STAGES[stage][1](files) | {"save_every": 1, "compile": "off", "device": "cpu"}


def undisturbed(stage, files, out):
    """Run a stage to its end; the seconds that it took."""
    started = time.monotonic()
    code, _, error = programs.finish(STAGES[stage][0], settings_of(stage, files) | {"out": out},
                                     out.with_suffix(".said"))
    assert code == 0, error
    return time.monotonic() - started


def metrics(path):
    """The lines of a metrics file, without what a clock decides."""
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"}
            for line in path.open()]


def same_run(one, other):
    """Whether two checkpoints hold the same bits, and their metrics files the same numbers."""
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    return same_weights(a, b) and metrics(one.with_suffix(".jsonl")) == \
        metrics(other.with_suffix(".jsonl"))


def left_over(out):
    """Files of a run that has ended, beside its checkpoint and its metrics."""
    wanted = (out, out.with_suffix(".jsonl"))
    return sorted(p.name for p in out.parent.iterdir() if out.stem in p.name
                  and p.suffix not in (".out", ".err") and p not in wanted)


def half_written(out):
    return any(out.parent.glob(f".{out.stem}*.pt.*"))


def kill_and_go_on(stage, files, folder, kills, seed=0):
    """Kill a stage so many times: {"kills", "in_a_write": those that left half a checkpoint,
    "runs": ended and compared, "resumed": starts that went on from a checkpoint}."""
    rng = random.Random(f"soak {stage} {seed}")
    whole = folder / f"{stage}-whole.pt"
    seconds = undisturbed(stage, files, whole)
    counts = {"kills": 0, "in_a_write": 0, "runs": 0, "resumed": 0}
    while counts["kills"] < kills:
        out = folder / f"{stage}-cut{counts['runs']}.pt"
        while not out.exists():
            settings = settings_of(stage, files) | {"out": out}
            process = programs.start(STAGES[stage][0], settings, out.with_suffix(".said"))
            process.join(rng.uniform(0, seconds) if counts["kills"] < kills else 600)
            if process.is_alive():
                process.kill()
                counts["kills"] += 1
            process.join()
            assert process.exitcode in (0, -9), out.with_suffix(".said.err").read_text()
            counts["in_a_write"] += process.exitcode == -9 and half_written(out)
            counts["resumed"] += "going on after" in out.with_suffix(".said.out").read_text()
        assert same_run(whole, out), f"{stage}: not the undisturbed run's weights or metrics"
        counts["runs"] += 1
        out_left = left_over(out)
        if process.exitcode == 0:
            assert not out_left, f"{stage}: left over: {out_left}"
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, help="this one only, after those it needs")
    parser.add_argument("--json", help="file to write the counts to")
    arguments = parser.parse_args()
    failed, found = False, {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = tiny_files(folder)
        for stage in STAGES:
            if stage in ("base", "reward"):
                undisturbed(stage, files, pathlib.Path(files[stage]))
            if arguments.stage not in (None, stage):
                continue
            try:
                found[stage] = kill_and_go_on(stage, files, folder, arguments.kills,
                                              arguments.seed)
                print(stage, *(f"{k} {v}" for k, v in found[stage].items()), sep="  ", flush=True)
            except AssertionError as error:
                failed = True
                print(f"{stage}: {error}", flush=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"failed": failed, "stages": found}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
