"""Runs `other_device_cases.py` in a process of its own: in one that has such a device torch starts
threads for it, after which no process forked from it can compute gradients (`machine.Helper`)."""

import subprocess
import sys

from conftest import ROOT


def test_every_stage_on_a_device_beside_the_cpu():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                           "tests/other_device_cases.py"], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout
