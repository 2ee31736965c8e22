"""The proofs, run now, and one table: claim, method, figure, verdict, what would turn it red.

    python tests/prove.py [math] [lost] [soak] [fuzz] [mutation]         no word: all of them

    math        1 the known optimum, 2 gradients, 3 statistics, 5 second readings
    lost        7 places that cannot be written, 8 numbers going bad, 10 the same seed
    soak        6 every stage killed 20 times
    fuzz        9 malformed inputs over all readers
    mutation    4 wrong edits of the code

Every figure comes from what runs here. The last column names wrong edits of the code that were made
in a copy, one at a time, and the test on which each failed: none of the rows can be true by
construction. Exits with 1 where a verdict is "fails".
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import mutate
import pytest

TESTS = pathlib.Path(__file__).resolve().parent


# -- running ---------------------------------------------------------------------------------------


class Recorder:
    """A plugin of pytest: outcomes, what tests recorded, and calls of the naive functions."""

    def __init__(self):
        self.passed, self.failed, self.skipped, self.figures, self.calls = 0, [], 0, {}, {}

    def pytest_collection_finish(self, session):
        import naive
        self.within = False
        for name, function in list(vars(naive).items()):
            if getattr(function, "__module__", "") == "naive" and not name.startswith("_"):
                setattr(naive, name, self.counted(name, function))

    def counted(self, name, function):
        def call(*args, **more):
            if self.within:  # one naive function calls another: no test of that one
                return function(*args, **more)
            self.calls[name] = self.calls.get(name, 0) + 1
            self.within = True
            try:
                return function(*args, **more)
            finally:
                self.within = False
        return call

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed += 1
            for name, value in report.user_properties:
                self.figures.setdefault(name, []).append(float(value))
        elif report.failed:
            self.failed.append(report.nodeid)
        elif report.skipped:
            self.skipped += 1


class Found(NamedTuple):
    """What a group of tests gave."""
    passed: int
    failed: list
    skipped: int
    figures: dict
    calls: dict


def run_tests(*arguments):
    """Run tests in a fork of this process: what they found."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = pathlib.Path(folder, "found"), pathlib.Path(folder, "log")
        child = os.fork()
        if child == 0:
            os.chdir(TESTS.parent)
            sys.modules["__main__"].__dict__.pop("__file__")
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            recorder = Recorder()
            code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[recorder])
            if code not in (0, 1):
                recorder.failed.append(f"pytest's exit code {code}")
            path.write_text(json.dumps([recorder.passed, recorder.failed, recorder.skipped,
                                        recorder.figures, recorder.calls]))
            os._exit(0)
        os.waitpid(child, 0)
        if not path.exists():
            return Found(0, ["the tests' process died"], 0, {}, {})
        found = Found(*json.loads(path.read_text()))
        for name in found.failed:
            print(f"failed: {name}", flush=True)
        return found


def run_script(name, *arguments):
    """Run soak.py, fuzz.py or mutate.py, which print as they go: (exit code, their JSON)."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "found.json")
        code = subprocess.run([sys.executable, str(TESTS / name), "--json", str(path),
                               *arguments]).returncode
        return code, json.loads(path.read_text()) if path.exists() else None


def tests_of(*words):
    """pytest's arguments for test files: their names without `test_` and `.py`."""
    return [str(TESTS / f"test_{word}.py") for word in words]


# -- the rows --------------------------------------------------------------------------------------


class Row(NamedTuple):
    claim: str
    method: str
    figure: str
    good: bool
    red: str  # the row's name in mutate.EDITS


def optimum():
    found = run_tests(*tests_of("proof_optimum"), "-m", "slow or not slow")
    kl, best, mixed = (found.figures.get(name, []) for name in (
        "kl_to_optimum", "mass_on_the_best", "kl_to_mixed"))
    good = not found.failed and len(kl) >= 10 and max(kl) <= 0.02 and len(best) >= 3 and \
        min(best) > 0.97 and len(mixed) >= 3 and max(mixed) <= 0.02
    return Row("1 the known optimum is reached", "production PPO on worlds that can be listed",
               f"KL at most {max(kl, default=9):.4f} nats in {len(kl)} runs; without KL "
               f"{min(best, default=0):.3f} of the mass on the best response, at least; with text "
               f"KL at most {max(mixed, default=9):.4f} in {len(mixed)}", good, "optimum")


def gradients():
    found = run_tests(*tests_of("proof_gradient", "second_reading", "ppo_math", "reward_math",
                                "model"), "-k", "proof_gradient or finite_differences or gradient")
    z, worst = found.figures.get("largest_z", []), found.figures.get("finite_differences", [9])
    losses, batches = (found.figures.get(what, [0])[0] for what in ("losses", "batches"))
    return Row("2 gradients are exact", "against enumeration; against finite differences",
               f"mean of {batches:.0f} batches within {max(z, default=9):.1f} standard errors in "
               f"{len(z)} settings; {losses:.0f} losses within {worst[0]:.0e}",
               not found.failed and len(z) >= 3 and max(z) < 4 and worst[0] < 1e-6, "gradients")


def statistics():
    found = run_tests(*tests_of("proof_statistics", "generate", "second_reading"), "-k",
                      "proof_statistics or distribution or covers")
    p, z = found.figures.get("p_value", []), found.figures.get("largest_z", [])
    coverage = found.figures.get("coverage", [0])[0]
    good = not found.failed and len(p) >= 7 and min(p) > 1e-4 and len(z) >= 4 and max(z) < 4
    return Row("3 samples and estimates are unbiased", "chi-squared tests; standard errors",
               f"smallest p {min(p, default=0):.3f} of {len(p)}; KL, entropy, objective, "
               f"advantages within {max(z, default=9):.1f} standard errors; 95 % intervals cover "
               f"{100 * coverage:.0f} %", good, "statistics")


def readings():
    found = run_tests(*tests_of("second_reading", "model", "ppo_math", "reward_math"), "-k",
                      "not transformers")
    compared = {name: n for name, n in found.calls.items() if n >= 100}
    few = min(compared, key=compared.get) if compared else "none"
    return Row("5 two readings agree", "production against numpy loops, random inputs",
               f"{sum(compared.values()):,} comparisons with {len(compared)} naive functions, the "
               f"fewest {compared.get(few, 0):,} ({few}); {found.passed} tests",
               not found.failed and len(compared) >= 12, "readings")


def places():
    found = run_tests(*tests_of("nothing_is_lost", "steps", "stages", "label", "download"), "-k",
                      "full_disk or read_only or second_run or second_stage or disk or "
                      "belong_together or on_the_disk or server_at_a_time")
    skipped = f", {found.skipped} skipped" if found.skipped else ""
    return Row("7 no place to write: last state intact", "file limits, a small tmpfs, read-only "
               "mounts, held locks", f"{found.passed} cases{skipped}: one line, exit code 2, "
               "every file as before", not found.failed and found.passed >= 25, "places")


def numbers():
    found = run_tests(*tests_of("nothing_is_lost", "steps", "stages"), "-k",
                      "finite or infinite or memory")
    return Row("8 numbers going bad stop the run", "weights made NaN in mid-run; torch's own "
               "out-of-memory errors", f"{found.passed} cases: what, where, last good checkpoint; "
               "nothing saved", not found.failed and found.passed >= 20, "numbers")


def same_seed():
    found = run_tests(*tests_of("nothing_is_lost", "stages", "generate"), "-k",
                      "same_seed or same_generator or not_promised")
    return Row("10 the same seed is the same run", "every stage and program twice, other hash "
               "seeds", f"{found.passed} cases equal in every bit", not found.failed
               and found.passed >= 6, "same seed")


def kills(count=20):
    code, found = run_script("soak.py", "--kills", str(count))
    stages = found["stages"].values() if found else []
    total, halves, runs, resumed = (sum(s[k] for s in stages) for k in (
        "kills", "in_a_write", "runs", "resumed"))
    signals = run_tests(*tests_of("stages", "nothing_is_lost"), "-k",
                        "signal or damaged or last_two or truncated or flipped")
    good = code == 0 and len(stages) == 6 and total >= 6 * count and not signals.failed
    return Row("6 killed runs end as undisturbed ones", "SIGKILL at random moments, six stages",
               f"{total} kills, {halves} in the middle of a checkpoint's writing; {resumed} "
               f"resumptions, {runs} ended runs equal in every bit", good, "kills")


def bad_files(inputs=700):
    code, found = run_script("fuzz.py", "--inputs", str(inputs))
    found = found or {"inputs": 0, "refused": 0, "kinds": 0, "failures": ["died"]}
    return Row("9 bad files are refused", f"{found['kinds']} kinds of input, damaged",
               f"{found['inputs']:,} inputs, {found['refused']:,} refused in one line, "
               f"{len(found['failures'])} tracebacks, hangs, changed files or code run",
               code == 0 and found["refused"] >= 10_000, "bad files")


def mutation():
    code, found = run_script("mutate.py")
    found = found or []
    failed = sum(v["verdict"] == "failed" for v in found)
    tried.extend(found)
    return Row("4 the tests notice wrong edits", "edits of the code, one at a time",
               f"{failed} of {len(found)} noticed", code == 0 and len(found) >= 40, "")


PARTS = {"math": (optimum, gradients, statistics, readings), "lost": (places, numbers, same_seed),
         "soak": (kills,), "fuzz": (bad_files,), "mutation": (mutation,)}
tried = []  # verdicts of mutate.py, of all its edits or of those that belong to the rows shown


def try_edits(names):
    """The verdicts on the edits of some rows, for the last column."""
    with tempfile.TemporaryDirectory() as folder:
        root, log = mutate.copy_of_project(folder), pathlib.Path(folder, "log")
        for edit in mutate.EDITS:
            if edit.row in names:
                verdict, by = mutate.verdict(root, edit, log)
                tried.append({"what": edit.what, "row": edit.row, "verdict": verdict, "by": by})
                print(f"{verdict:9} {edit.what} [{edit.row}]: {by}", flush=True)


def red_of(row):
    """(what turns the row red, whether all of it did)."""
    if not row.red:
        return "an edit that survives, as does a comment's (tests/test_mutate.py)", True
    mine = [v for v in tried if v["row"] == row.red]
    return "; ".join(f"{v['what']} ({v['by'] if v['verdict'] == 'failed' else v['verdict']})"
                     for v in mine), bool(mine) and all(v["verdict"] == "failed" for v in mine)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.
                                     RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part")
    parts = parser.parse_args().parts or list(PARTS)
    sys.dont_write_bytecode = True
    started, rows = time.monotonic(), []
    for part in parts:
        for prove in PARTS[part]:
            begun = time.monotonic()
            rows.append(prove())
            print(f"== {rows[-1].claim}: {'holds' if rows[-1].good else 'fails'} "
                  f"({time.monotonic() - begun:.0f} s)", flush=True)
    if "mutation" not in parts:
        try_edits({row.red for row in rows})
    print()
    failed = False
    for row in sorted(rows, key=lambda row: int(row.claim.split()[0])):
        red, was_red = red_of(row)
        failed |= not (row.good and was_red)
        print(f"{row.claim}\n    method   {row.method}\n    figure   {row.figure}\n"
              f"    verdict  {'holds' if row.good and was_red else 'fails'}\n"
              f"    red if   {red}")
    print(f"\n{len(rows)} claims in {(time.monotonic() - started) / 60:.0f} minutes")
    sys.exit(failed)


if __name__ == "__main__":
    main()
