"""The bench runs the production code and says what it measured; its peers are not needed here."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import bench
import machine as cores

TINY = ["--vocab", "32", "--n_layer", "1", "--d_model", "16", "--n_head", "2", "--batch", "4",
        "--prompt", "6", "--response", "5", "--minibatches", "2", "--completions", "3",
        "--iters", "2", "--warmup", "1", "--threads", "1"]


def last_line(capsys, *argv):
    bench.main([*argv[:1], *TINY, *argv[1:]])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("verb, tokens", [("ppo", 4 * 5), ("rollout", 4 * 5), ("train", 4 * 11),
                                          ("reward", 4 * 3 * 11)])
def test_the_last_line_says_what_an_iteration_takes(capsys, verb, tokens):
    found = last_line(capsys, verb)
    assert found["s_per_iter"] > 0 and len(found["iters_s"]) == 2
    seconds = sum(found["iters_s"])
    assert found["tokens_per_s"] == pytest.approx(2 * tokens / seconds, rel=0.1)
    assert found["settings"]["d_model"] == 16 and found["settings"]["device"] in ("cpu", "cuda")


def test_eos_may_stand_alone_and_ends_responses(capsys):
    verb, b = bench.parse(["rollout", "--eos", "--vocab", "4", "--response", "40", "--prompt", "3",
                           "--iters", "1"])
    assert b.eos and bench.parse(["rollout"])[1].eos is False
    step, lengths = bench.prepare(verb, b), bench.response_lengths(b)
    totals = [int(step()) for _ in range(20)]
    assert totals == [int(next(lengths).sum()) for _ in range(20)]  # the peer's are the same
    assert np.mean(totals) / 64 == pytest.approx(4, rel=0.1)  # one token in four ends a response


def test_the_profile_names_the_parts_and_counts_their_operations(capsys):
    found = last_line(capsys, "ppo", "--profile", "--ptx", "1")
    assert {"sampling", "reference", "values", "rewards", "policy update", "value update", "ptx",
            "optimizer"} <= set(found["parts_s"])
    # value update: 6 operations a weight and token (12·16² weights, 4 sequences of 11 tokens), less
    # what the first layer need not give back, and the embedding; attention adds a little
    assert 0 < found["gflop"] < 0.1 and found["matrix_gflops"] > 0


def test_a_training_steps_needed_operations_by_hand(capsys):
    """44 tokens; 12·16² weights in the layer, 32·16 in the unembedding, 6 operations each; attention
    to 11/2 positions on average, twice 2·16 operations each, and twice that in the backward pass."""
    found = last_line(capsys, "train", "--profile")
    expected = 44 * (6 * (12 * 16**2 + 32 * 16) + 3 * 11 / 2 * 2 * 2 * 16)
    assert found["needed_gflop"] == pytest.approx(expected / 1e9, abs=1e-6)
    assert found["needed_gflop"] == pytest.approx(found["gflop"], rel=0.1)


def test_what_helpers_compute_counts_too(capsys):
    counts = []
    try:
        for threads in "12":
            for verb, flags in (("train", ()), ("rollout", ("--batch", "256"))):
                found = last_line(capsys, verb, "--profile", *flags, "--threads", threads)
                counts.append(found["gflop"])
    finally:
        torch.set_num_threads(1)
    assert counts[:2] == counts[2:] and min(counts) > 0


def test_the_memory_of_helpers_counts_too():
    before = bench.peak_bytes("cpu")
    model = bench.GPT(bench.GPTConfig(8, 8, 1, 1, 8))
    torch.set_num_threads(2)
    try:
        cores.in_parts([partial(hold, i) for i in range(2)], model)
        assert bench.peak_bytes("cpu") - before > 2**26
    finally:
        torch.set_num_threads(1)
        HELD.clear()


HELD = []


def hold(i, model):
    """64 MiB, in the second process."""
    HELD.extend([torch.ones(2**24)] * i)


def test_the_exponent_of_a_power_is_its_power():
    assert bench.slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
