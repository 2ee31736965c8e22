"""What every test shares: the import path, seeds, markers, and helpers that do no mathematics.

A test imports production code from the repository's root, and the slow, obviously right versions of
it from `naive.py` beside this file.
"""

import os
import pathlib
import random
import sys

import numpy
import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # equal to the last bit, as many tests claim, no GPU is
torch.set_num_threads(1)  # the models here are tiny: a second thread costs more than it brings


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds; not in `run.sh test`")


def seed_everything():
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def seeded_file():
    """What a file's tests share is made from the same random state, too."""
    seed_everything()


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whichever tests ran before it."""
    seed_everything()


@pytest.fixture
def by_torch(monkeypatch):
    """Small models sample as large ones do, not by decode.c."""
    import machine
    monkeypatch.setattr(machine, "SHARED_BELOW", 0)


def sweep(examples):
    """Run a test for many values of its argument `seed`, by hypothesis where it is installed.

    The seeds are the same in every run. Where hypothesis is absent the test still runs, over a
    plain list of seeds.
    """
    try:
        from hypothesis import HealthCheck, given, settings, strategies
    except ImportError:
        return pytest.mark.parametrize("seed", range(examples))

    def decorate(test):
        quiet = settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(HealthCheck))
        return quiet(given(seed=strategies.integers(0, 2**32 - 1))(test))

    return decorate


def array(tensor):
    """A tensor of any dtype as a float64 (or boolean, or integer) numpy array."""
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def randomize(model, std=0.3, seed=0):
    """Replace every weight, bias and gain by a large random number, so that none is inert."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()
