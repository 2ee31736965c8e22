"""Every fast path against the plain one: scores, losses and gradients to rounding, memory flags
bitwise, and sampling by its distribution (the chi-squared tests stand in test_generate.py)."""

import copy
import gc
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, randomize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import common
import machine
import model as models
import ppo
import reward
from common import InputError
from data.tokenizer import load_tokenizer
from machine import (PACKED_FROM, add_gradients, at_hand, compile_decoder, in_parts, packed,
                     parts_at_once, side_by_side, step_in_backward)
from model import (GPT, GPTConfig, KVCache, ScalarGPT, adam, attend_once, attention,
                   fused_attention, generate, response_logprobs, token_logprobs)
from test_stages import SETTINGS, files, make  # noqa: F401 (fixture)

SHAPE = GPTConfig(vocab_size=29, n_ctx=80, n_layer=3, n_head=2, d_model=16)


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def random_ids(n):
    return torch.randint(29, (n,)).tolist()


# -- one pass over a shared prompt ----------------------------------------------------------------


def rankings_of(*sizes):
    """(prompt tokens, tokens of each completion) of rankings; no completion begins like another."""
    found = []
    for prompt, completions in sizes:
        start = random_ids(prompt)
        found.append(reward.Ranking([start + [k] + random_ids(n - 1)
                                     for k, n in enumerate(completions)],
                                    tuple(range(len(completions))), ""))
    return found


RAGGED = [(40, [3, 7, 1, 5]), (25, [2, 2, 9]), (61, [19, 4, 4, 4, 6, 1, 2, 3, 8])]


@pytest.mark.parametrize("recompute", [False, True])
def test_completions_that_share_their_prompts_pass_have_the_same_scores_and_gradients(recompute):
    model, rankings, found = randomize(ScalarGPT(SHAPE)), rankings_of(*RAGGED), []
    model.decoder.recompute = recompute
    for score in (reward.score_rows, reward.score_branches):
        model.zero_grad()
        scores_M = score(model, rankings, "cpu")
        weights_M = torch.linspace(-1, 1, len(scores_M))
        (scores_M * weights_M).sum().backward()
        found.append((scores_M.detach(), gradients(model)))
    (rows, row_gradients), (branches, branch_gradients) = found
    torch.testing.assert_close(branches, rows, atol=1e-5, rtol=1e-5)
    assert rows.std() > 0.1
    for a, b in zip(branch_gradients, row_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 * float(b.abs().max() + 1), rtol=1e-4)


def test_each_score_is_that_of_the_completion_alone_behind_its_prompt():
    model, rankings = randomize(ScalarGPT(SHAPE)), rankings_of(*RAGGED)
    with torch.no_grad():
        got = reward.score_branches(model, rankings, "cpu").tolist()
        alone = [model(torch.tensor([s]))[0, -1].item() for r in rankings for s in r.sequences]
    assert got == pytest.approx(alone, abs=1e-4)


def test_equal_completions_keep_their_last_token_to_themselves():
    ranking = reward.Ranking([[1, 2, 3, 4]] * 3, (1, 1, 2), "")
    assert ranking.shared() == 3
    model = randomize(ScalarGPT(SHAPE))
    with torch.no_grad():
        torch.testing.assert_close(reward.score_branches(model, [ranking], "cpu"),
                                   reward.score_rows(model, [ranking], "cpu"))


@pytest.mark.parametrize("shapes, expected", [
    ([(30, [5, 6])], "branch"), ([(12, [9] * 6)], "branch"), ([(2, [6, 6])], "rows"),
    ([(3, [20, 6])], "rows"), ([(12, [10])] * 3, "rows"), ([(12, [9] * 6), (3, [4, 4])], "branch")])
def test_completions_share_their_prompts_pass_where_that_is_less_work(monkeypatch, shapes,
                                                                      expected):
    model, taken = ScalarGPT(SHAPE), []
    for name in ("scores", "branch_scores"):
        original = getattr(ScalarGPT, name)
        monkeypatch.setattr(ScalarGPT, name, lambda self, *args, name=name, original=original:
                            taken.append(name) or original(self, *args))
    reward.score_rankings(model, rankings_of(*shapes))
    assert taken == [{"branch": "branch_scores", "rows": "scores"}[expected]]


def test_a_long_prompt_costs_a_third_at_most_when_it_is_shared():
    """Floating-point operations of nine completions behind a prompt ten times as long."""
    from torch.utils.flop_counter import FlopCounterMode
    model = ScalarGPT(GPTConfig(vocab_size=29, n_ctx=220, n_layer=2, n_head=2, d_model=64))
    rankings, cost = rankings_of((200, [20] * 9)), []
    for score in (reward.score_rows, reward.score_branches):
        with FlopCounterMode(display=False) as counter:
            score(model, rankings, "cpu").sum().backward()
        cost.append(counter.get_total_flops())
    assert cost[0] > 3 * cost[1]


# -- sampling's attention -------------------------------------------------------------------------


def test_one_query_attends_as_the_definition_says():
    q, k, v = torch.randn(3, 2, 1, 8), torch.randn(3, 2, 12, 8), torch.randn(3, 2, 12, 8)
    k, v = k[:, :, :9], v[:, :, :9]  # what a cache holds so far
    mask = (torch.arange(9) <= torch.tensor([[3], [8], [0]]))[:, None, None]
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    expected = attention(q, k, v, mask)
    torch.testing.assert_close(attend_once(q[:, :, 0], k, v, bias), expected[:, :, 0])
    torch.testing.assert_close(fused_attention(q, k, v, bias), expected)  # as it does on a GPU


@torch.no_grad()
def test_packed_weights_change_only_rounding_and_go_when_sampling_ends(by_torch):
    model = GPT(GPTConfig(1024, 24, 1, 8, 512))
    assert model.decoder.h[0].mlp.c_fc.weight.numel() >= PACKED_FROM
    tokens = torch.randint(1024, (3, 9))
    plain = model(tokens)
    with packed(model, 3):
        blocks = model(tokens)
        attn, mlp = model.decoder.h[0].attn, model.decoder.h[0].mlp
        assert "unembed" in vars(model) and "expand" in vars(mlp) and all(
            "forward" in vars(layer) for layer in (attn.c_attn, attn.c_proj, mlp.c_proj))
    torch.testing.assert_close(blocks, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
    assert not torch.equal(blocks, plain)  # another kernel did run
    model.decoder.h[0].mlp.c_fc.weight.add_(1.0)
    model.decoder.wte.weight.mul_(2.0)
    assert not torch.allclose(model(tokens), plain)  # and none of it is left behind
    model.decoder.h[0].mlp.c_fc.weight.sub_(1.0)
    samples = generate(model, tokens.tolist(), 12, eos=5)
    again = response_logprobs(model, samples.tokens_BT, samples.prompt_lens_B, samples.mask_BR)
    torch.testing.assert_close(samples.logprobs_BR, again, rtol=1e-4, atol=1e-4)


def test_weights_of_other_kinds_are_not_packed(by_torch):
    model = randomize(GPT(GPTConfig(1024, 24, 1, 8, 512)))
    with packed(model.double(), 3):
        assert "unembed" not in vars(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), packed(model.float(), 3):
        assert "expand" not in vars(model.decoder.h[0].mlp)
        assert model.unembed(torch.ones(2, 512)).dtype == torch.float32
    with pytest.raises(ZeroDivisionError), packed(model, 3):
        assert "unembed" in vars(model)
        1 / 0
    assert "unembed" not in vars(model)


@torch.no_grad()
def test_the_cache_has_room_for_the_longest_row_and_no_more():
    decoder = randomize(GPT(GPTConfig(11, 48, 3, 2, 16))).decoder
    tokens, lens, cache = torch.randint(11, (3, 40)), torch.tensor([20, 3, 5]), KVCache(block=8)
    decoder.prefill(tokens[:, :20], cache)
    cache.start(lens)

    def steps(tokens, lens, count):
        shown = []
        for i in range(count):
            shown.append(cache.shown)
            rows = torch.arange(len(lens))
            found = decoder.decode(tokens[rows, lens + i], cache)
            for row, n in enumerate((lens + i).tolist()):  # as in a sequence that ends there
                expected = decoder(tokens[row:row + 1, :n + 1])[0, -1]
                torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
            cache.advance()
        return shown

    assert steps(tokens, lens, 13) == [24] * 4 + [32] * 8 + [40]
    cache.keep(torch.tensor([False, True, True]))  # of 16 and 18 tokens
    assert steps(tokens[1:], torch.tensor([16, 18]), 8) == [24] * 6 + [32] * 2


def test_the_cache_has_the_dtype_of_autocast(by_torch):
    model, seen = randomize(GPT(SHAPE)), []
    for enabled, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        original = model.decoder.prefill

        def prefill(tokens, cache):
            found = original(tokens, cache)
            seen.append(cache.keys[0].dtype)
            return found
        model.decoder.prefill = prefill
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            generate(model, [[1, 2], [3]], 3)
        del model.decoder.prefill
        assert seen.pop() == dtype


def test_in_low_precision_sampling_converts_each_weight_once():
    from torch.utils._python_dispatch import TorchDispatchMode
    counts, size = [], 4 * 16 * 16  # of c_fc's and c_proj's weights, in each of three layers

    class CountCopies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **kwargs or {})
            if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to):
                counts[-1] += args[0].numel() == size and found.dtype != args[0].dtype
            return found
    model = randomize(GPT(SHAPE))
    for steps in (2, 9):
        counts.append(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False), CountCopies():
            generate(model, [[1, 2], [3]], steps)
    assert counts == [6, 6]


class Tape(TorchDispatchMode):
    """What a CUDA graph keeps of a step: operations, their numbers, and which memory they work on.
    Nothing of Python runs again."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, result))
        return result

    def play(self):
        made = {}
        for operation, args, kwargs, result in self.calls:
            args, kwargs = tree_map(lambda x: made.get(id(x), x), (args, kwargs))
            for old, new in zip(tree_leaves(result), tree_leaves(operation(*args, **kwargs)),
                                strict=True):
                made[id(old)] = new
        return made


def recorded_on_tape(step, x):
    given = x.clone()
    with Tape() as tape:
        result = step(given)

    def play(x):
        given.copy_(x)
        result.copy_(tape.play()[id(result)])
        return result
    return play


@pytest.mark.parametrize("eos", [None, 5])
def test_a_step_that_is_recorded_and_played_samples_the_same(monkeypatch, eos, by_torch):
    """As on a GPU: attention looks at blocks of positions, steps are recorded and played."""
    model = randomize(GPT(GPTConfig(vocab_size=11, n_ctx=48, n_layer=2, n_head=2, d_model=16)))
    prompts = [torch.randint(11, (n,)).tolist() for n in (1, 9, 4, 6) * 4]
    played, kinds = [], []

    def draw():
        return generate(model, prompts, 36, eos=eos, generator=torch.Generator().manual_seed(1))

    def replayed(step, device):
        made = machine.Replayed(step, torch.device("cuda"))
        kinds.append(made)
        return made

    def record(step, x):
        play = recorded_on_tape(step, x)
        return lambda x: played.append(len(x)) or play(x)

    plain = draw()
    monkeypatch.setattr(machine, "record", record)
    monkeypatch.setattr("model.Replayed", replayed)
    monkeypatch.setattr("model.positions_at_once", lambda device: 8)
    again = draw()
    assert torch.equal(again.tokens_BT, plain.tokens_BT)
    assert torch.equal(again.mask_BR, plain.mask_BR)
    torch.testing.assert_close(again.logprobs_BR, plain.logprobs_BR, rtol=1e-5, atol=1e-5)
    if eos is None:  # 35 steps after positions 9 to 43: five kinds, the first step of each plain
        assert len(played) == 35 - 5 and set(played) == {16} and len(kinds) == 1
    else:
        assert len(set(played)) > 1  # rows have left on the way


def test_where_a_step_cannot_be_recorded_it_runs_as_written(monkeypatch, capsys):
    def refuse(step, x):
        raise RuntimeError("operation not permitted when stream is capturing")
    monkeypatch.setattr(machine, "record", refuse)
    monkeypatch.setattr(machine.Replayed, "works", True)  # and so again after the test
    step = machine.Replayed(lambda x: 2 * x, torch.device("cuda"))
    results = [step(torch.tensor(float(i)), "kind").item() for i in range(4)]
    assert results == [0.0, 2.0, 4.0, 6.0]
    assert capsys.readouterr().out.count("no CUDA graph") == 1


def test_after_a_recording_that_failed_there_are_random_numbers(monkeypatch):
    class Generator:
        """Of a GPU: `capturing` as torch 2.11 leaves it; what is cloned goes on where it was."""

        def __init__(self, place, capturing):
            self.place, self.capturing = place, capturing

        def clone_state(self):
            return Generator(self.place, capturing=False)

        def graphsafe_set_state(self, other):
            self.__dict__ = other.__dict__

    def refuse(step, x):
        one.capturing = True
        raise RuntimeError("operation not permitted when stream is capturing")
    one = Generator(12, capturing=False)
    monkeypatch.setattr(torch.cuda, "default_generators", (one,))
    monkeypatch.setattr(machine, "record", refuse)
    monkeypatch.setattr(machine.Replayed, "works", True)
    step = machine.Replayed(lambda x: x, torch.device("cuda"))
    for _ in range(2):
        step(torch.zeros(1), "kind")
    assert one.place == 12 and not one.capturing
    own = torch.Generator().manual_seed(3)  # a real one, of the CPU, has these methods too
    torch.rand(5, generator=own)
    clone = own.clone_state()
    assert torch.equal(torch.rand(4, generator=clone), torch.rand(4, generator=own))


def test_another_kind_of_step_is_recorded_anew(monkeypatch):
    recorded = []
    monkeypatch.setattr(machine, "record", lambda step, x: recorded.append(len(x)) or step)
    step = machine.Replayed(lambda x: x + 1, torch.device("cuda"))
    for n in (3, 3, 3, 2, 2, 2, 3):
        assert step(torch.zeros(n), n).tolist() == [1.0] * n
    assert recorded == [3, 2]
    assert machine.Replayed(len, torch.device("cpu"))([0, 0], "kind") == 2 and recorded == [3, 2]


def test_in_low_precision_logits_are_not_rounded():
    """As GPT-2's they lie far from 0, here around −60: the sampler and training still agree."""
    model = randomize(GPT(GPTConfig(vocab_size=101, n_ctx=40, n_layer=2, n_head=2, d_model=64)), 0.1)
    with torch.no_grad():
        model.decoder.ln_f.weight[0], model.decoder.ln_f.bias[0] = 0.0, 20.0
        model.decoder.wte.weight[:, 0] = -3.0
    prompts = torch.randint(101, (64, 8)).tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        samples = generate(model, prompts, 32, generator=torch.Generator().manual_seed(0))
        logits = model(samples.tokens_BT)
        again = response_logprobs(model, samples.tokens_BT, samples.prompt_lens_B, samples.mask_BR)
    assert logits.dtype == torch.float32 and -70 < logits.mean() < -50
    assert (again - samples.logprobs_BR).abs().max() < 0.05


@pytest.mark.parametrize("block", [1, 8])  # rows of 29 or of 32, as a GPU has them
def test_a_wide_product_has_the_gradients_of_a_product(monkeypatch, block):
    monkeypatch.setattr(models, "row_length", lambda n, device: -(-n // block) * block)
    model, ids = randomize(GPT(SHAPE)), torch.randint(29, (4, 20))
    everything = torch.ones_like(ids, dtype=torch.bool)

    def found(low):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = -models.target_logprobs(model, ids, everything).mean()
        loss.backward()
        return loss.detach(), model.decoder.wte.weight.grad.clone()
    for low, exact in zip(found(True), found(False), strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, exact, rtol=0.03, atol=0.03 * exact.abs().max().item())


@pytest.mark.parametrize("masked", [False, True])
def test_in_low_precision_a_cpu_attends_in_fp32(masked):
    """Its fused kernel is faster in fp32; what goes in and comes out is rounded all the same."""
    q, k, v = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in "qkv")
    mask = (torch.rand(2, 1, 9, 9) < 0.5) | torch.eye(9, dtype=torch.bool) if masked else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = fused_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    exact = attention(q, k, v, mask)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.02, atol=0.02)
    for one, other in zip(torch.autograd.grad(low.square().sum(), (q, k, v)),
                          torch.autograd.grad(exact.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * other.abs().max().item())


@pytest.mark.parametrize("name, gpu, low", [
    ("auto", "cpu", False), ("float32", "cpu", False), ("bfloat16", "cpu", True),
    ("auto", "cuda", True), ("float32", "cuda", False), ("bfloat16", "cuda", True)])
def test_forward_passes_compute_in_the_dtype_asked_for(monkeypatch, name, gpu, low):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    common.device_of("cpu", name)
    try:
        assert models.low_precision(torch.device(gpu)) == low
        if gpu == "cpu":
            with models.compute_dtype(torch.device("cpu")):
                product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert product.dtype == (torch.bfloat16 if low else torch.float32)
    finally:
        models.set_forward_dtype("auto")


@pytest.mark.parametrize("stage", SETTINGS)
def test_a_stage_computes_in_bf16(files, tmp_path, stage):  # noqa: F811
    """Close to fp32's weights, and not the same."""
    exact, low = (make(stage, files, tmp_path / f"{name}.pt", dtype=name)["weights"]
                  for name in ("float32", "bfloat16"))
    models.set_forward_dtype("auto")
    assert all(x.dtype == torch.float32 for x in low.values())
    apart = torch.cat([(low[name] - exact[name]).flatten() for name in exact])
    moved = torch.cat([x.flatten() for x in exact.values()])
    assert 0 < apart.norm() < 0.05 * moved.norm()


def test_a_dtype_that_is_none_is_refused(files, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="--dtype half: expected auto, float32 or bfloat16"):
        make("sft", files, tmp_path / "x.pt", dtype="half")


def test_what_generate_returns_can_take_part_in_training():
    model = randomize(GPT(SHAPE))
    samples = generate(model, [[1, 2], [3]], 3)
    for x in samples:
        assert not x.is_inference()
    loss = (model(samples.tokens_BT).logsumexp(-1)[:, :3] * samples.logprobs_BR)[samples.mask_BR]
    loss.sum().backward()


@pytest.mark.parametrize("stage, kind", [("base", GPT), ("reward", ScalarGPT)])
def test_a_model_is_loaded_without_first_weights(files, stage, kind):  # noqa: F811
    weights, state = common.read_checkpoint(files[stage])["weights"], torch.get_rng_state()
    model = common.load_model(kind, files[stage], (stage,), load_tokenizer("world"))
    assert torch.equal(torch.get_rng_state(), state)  # no random number was drawn
    loaded = dict(model.named_parameters())
    assert loaded.keys() == model.state_dict().keys() == weights.keys()
    for name, weight in loaded.items():
        assert torch.equal(weight, weights[name]) and weight.requires_grad and weight.is_leaf
        assert weight.dtype == torch.float32 and weight.stride() == weights[name].stride()
    assert not torch.equal(*(GPT(SHAPE).decoder.h[0].mlp.c_fc.weight for _ in "ab"))  # as ever


# -- recomputation --------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_activations_changes_no_bit(dropout):
    model = randomize(GPT(GPTConfig(29, 80, 3, 2, 16, dropout))).train()
    tokens, found = torch.randint(29, (4, 12)), []
    for recompute in (False, True):
        model.decoder.recompute = recompute
        model.zero_grad()
        torch.manual_seed(3)
        loss = model(tokens).logsumexp(-1).sum()
        loss.backward()
        found.append([loss.detach(), *gradients(model)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_recomputing_keeps_only_the_inputs_of_the_blocks():
    kept = []
    for recompute in (False, True):
        model, saved = GPT(GPTConfig(29, 80, 6, 2, 32)), {}
        model.decoder.recompute = recompute

        def pack(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = model.decoder(torch.randint(29, (8, 64)))
        assert output.requires_grad
        kept.append(sum(n for at, n in saved.items() if at not in weights))
    assert kept[1] < kept[0] / 4


# -- PPO: what runs side by side, and what saves memory -------------------------------------------

EOS = 28


def ppo_config(**changes):
    return ppo.PPOConfig(**{"policy": "p", "reward": "r", "prompts": "x", "out": "o", "batch": 8,
                            "minibatch": 4, "max_response": 9, "kl_coef": 0.1, "ptx_coef": 0.0,
                            "policy_rate": 1e-3, "value_rate": 1e-3} | changes)


def iteration(threads=1, **changes):
    """Everything that one iteration from the same start gives: rollout, numbers and weights."""
    torch.manual_seed(0)
    policy, value_model, reward_model = (randomize(kind(SHAPE), 0.1, seed) for seed, kind in
                                         enumerate((GPT, ScalarGPT, ScalarGPT)))
    reference, average = copy.deepcopy(policy), copy.deepcopy(policy)
    for frozen in (reference, reward_model, average):
        frozen.requires_grad_(False)
    config = ppo_config(**changes)
    policy.decoder.recompute = value_model.decoder.recompute = config.recompute
    compile_decoder(policy, config.compile, torch.device("cpu"))
    state = ppo.State(policy, average, value_model, adam(policy, 1e-3), adam(value_model, 1e-3))
    prompts = [random_ids(1 + i) for i in range(8)]
    torch.set_num_threads(threads)
    try:
        rollout = ppo.roll_out(policy, reference, reward_model, value_model, prompts, EOS, config)
        stats = ppo.update(state, rollout, lambda number: torch.full((4, 12), number), config,
                           1e-3, first=True)
    finally:
        torch.set_num_threads(1)
    return rollout, stats, [*policy.parameters(), *average.parameters(), *value_model.parameters()]


@pytest.mark.parametrize("changes", [{"recompute": True}, {"offload": True},
                                     {"step_in_backward": True},
                                     {"step_in_backward": True, "minibatch": 1},
                                     {"recompute": True, "offload": True, "step_in_backward": True},
                                     {"ptx_coef": 2.0, "text": "t", "step_in_backward": True}])
def test_flags_that_save_memory_change_no_bit(changes):
    plain = {k: v for k, v in changes.items() if k in ("ptx_coef", "text", "minibatch")}
    (rollout, stats, weights), (same, other_stats, other_weights) = (
        iteration(**plain), iteration(**changes))
    for a, b in zip([*rollout, *weights], [*same, *other_weights], strict=True):
        assert torch.equal(a, b)
    del stats["grad_norm"], other_stats["grad_norm"]  # unknown where no gradient is whole
    assert stats == other_stats


def test_a_step_in_the_backward_pass_never_holds_all_gradients():
    model = randomize(GPT(SHAPE))
    optimizer, held = adam(model, 1e-3), []
    step = optimizer.step
    optimizer.step = lambda: step(held.append(sum(p.grad is not None for p in model.parameters())))
    with step_in_backward(model, optimizer, 1e-3, on=True):
        model(torch.randint(29, (2, 8))).logsumexp(-1).sum().backward()
    assert set(held) == {1} and len(held) == len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_that_is_not_finite_stops_a_step_in_the_backward_pass():
    model = randomize(GPT(SHAPE))
    with pytest.raises(FloatingPointError), step_in_backward(model, adam(model, 1e-3), 1e-3, True):
        (model(torch.randint(29, (2, 8))).sum() * float("nan")).backward()


def test_a_model_at_rest_comes_and_goes_with_the_weights_it_had():
    """Weights go to the device within the context only; nothing is copied back."""
    model, moved = ScalarGPT(SHAPE).requires_grad_(False), []
    before = [p.data_ptr() for p in model.parameters()]
    weights = [p.clone() for p in model.parameters()]

    class Device:
        """Stands for a GPU: what is moved there is a copy."""
    original = torch.Tensor.to

    def to(tensor, device, *args, **more):
        if isinstance(device, Device):
            moved.append(tensor)
            return tensor.clone()
        return original(tensor, device, *args, **more)
    torch.Tensor.to = to
    try:
        with at_hand(model, Device(), offload=True):
            during = [p.data_ptr() for p in model.parameters()]
            assert all(map(torch.equal, model.parameters(), weights))
    finally:
        torch.Tensor.to = original
    assert len(moved) == len(before) and not set(during) & set(before)
    assert [p.data_ptr() for p in model.parameters()] == before


def test_weights_at_rest_are_pinned_once_where_there_is_a_gpu(monkeypatch):
    model, pinned = ScalarGPT(SHAPE).requires_grad_(False), []

    def pin_memory(tensor):
        if all(tensor.data_ptr() != one.data_ptr() for one in pinned):
            pinned.append(tensor.clone())
            return pinned[-1]
        return tensor
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    before = [p.clone() for p in model.parameters()]
    for _ in range(2):
        with at_hand(model, torch.device("cpu"), offload=True):
            pass
        assert len(pinned) == len(before) and all(map(torch.equal, model.parameters(), before))
        assert [p.data_ptr() for p in model.parameters()] == [one.data_ptr() for one in pinned]


def test_side_by_side_changes_only_rounding():
    (rollout, stats, _), (same, other_stats, _) = iteration(1), iteration(2)
    assert torch.equal(rollout.tokens_BT, same.tokens_BT)
    for a, b in zip(rollout, same, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    assert stats == pytest.approx(other_stats, rel=1e-3, abs=1e-5)


def test_side_by_side_keeps_order_modes_and_threads_and_raises():
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            tasks = [lambda i=i: (i, torch.is_grad_enabled(), torch.get_num_threads())
                     for i in range(4)]
            assert side_by_side(tasks, torch.device("cpu")) == [(i, False, 1) for i in range(4)]
        with pytest.raises(ZeroDivisionError):
            side_by_side([lambda: 1 / 0, lambda: 1], torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


TOKENS = torch.randint(29, (12, 9), generator=torch.Generator().manual_seed(0))


def some_of_the_loss(i, parts, model):
    """Every so manieth row's share, from the i-th on; and where it was computed, in which mode."""
    loss = -token_logprobs(model(TOKENS[i::parts]), TOKENS[i::parts]).sum()
    return loss, (i, os.getpid(), model.training)


def seeded_model(dropout=0.0):
    torch.manual_seed(0)
    return randomize(GPT(replace(SHAPE, dropout=dropout)), 0.1)


def gradients_in_parts(model, cores, parts=4, function=some_of_the_loss):
    """The gradients that the model has after add_gradients on so many cores; and its results."""
    torch.set_num_threads(cores)
    try:
        results = add_gradients([partial(function, i, parts) for i in range(parts)], model)
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(1)
    return [p.grad.clone() for p in model.parameters()], results


@pytest.mark.parametrize("before", [None, 3.0])
@pytest.mark.parametrize("cores", [2, 3])
def test_gradients_of_parts_side_by_side_add_up_in_their_order(before, cores):
    def found(cores):
        model = seeded_model()
        for p in model.parameters():
            p.grad = None if before is None else torch.full_like(p, before)
        return gradients_in_parts(model, cores)

    (plain, alone), (helped, results) = found(1), found(cores)
    assert {pid for _, pid, _ in alone} == {os.getpid()}
    assert [i for i, _, _ in results] == [0, 1, 2, 3]
    pids = [pid for _, pid, _ in results]
    assert pids[0] == os.getpid() and len(set(pids)) == cores and pids[cores:] == pids[:4 - cores]
    for a, b in zip(plain, helped, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for _ in range(3):  # whichever ends first, to the bit
        assert all(map(torch.equal, helped, found(cores)[0]))


def test_helpers_see_every_change_of_the_weights_and_of_the_mode():
    ours, theirs = seeded_model(), seeded_model()
    for step in range(6):
        for model, cores in ((ours, 1), (theirs, 2)):
            model.zero_grad()
            model.train(step % 2 == 0)
            if step == 3:
                model.load_state_dict({k: v * 0.9 for k, v in model.state_dict().items()})
            if step == 4:  # other memory than the helper knows of
                for p in model.parameters():
                    p.data = p.data * 1.1
            _, results = gradients_in_parts(model, cores)
            assert {mode for _, _, mode in results} == {step % 2 == 0}
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(p.grad, alpha=-1e-3)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_helpers_draw_dropout_of_their_own_from_the_seed():
    def found(seed, parts=2):
        model = seeded_model(dropout=0.5).train()
        gradients_in_parts(model, 2, parts, whole_loss)  # numbers drawn before the seed
        model.zero_grad()
        torch.manual_seed(seed)
        return gradients_in_parts(model, 2, parts, whole_loss)

    (gradients, losses), (same, same_losses), (_, others) = found(1), found(1), found(2)
    assert all(map(torch.equal, gradients, same)) and losses == same_losses
    assert len({*losses, *others}) == 4  # each part of each seed drops other activations


def whole_loss(i, parts, model):
    loss = -token_logprobs(model(TOKENS), TOKENS).sum()
    return loss, loss.item()


def failing(i, parts, model):
    if i == 1:
        raise FloatingPointError("no number")
    return whole_loss(i, parts, model)


def killed(i, parts, model):
    if i == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_loss(i, parts, model)


@pytest.mark.parametrize("function, error", [(failing, FloatingPointError), (killed, MemoryError)])
def test_what_a_helper_meets_is_raised_and_the_next_call_works(function, error):
    model = seeded_model()
    with pytest.raises(error):
        gradients_in_parts(model, 2, function=function)
    model.zero_grad()
    plain, _ = gradients_in_parts(seeded_model(), 1)
    for a, b in zip(plain, gradients_in_parts(model, 2)[0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_helper_killed_between_two_steps_is_told_as_want_of_memory():
    model = seeded_model()
    pids = {pid for _, pid, _ in gradients_in_parts(model, 2)[1]} - {os.getpid()}
    os.kill(*pids, signal.SIGKILL)
    while any(map(runs, pids)):
        time.sleep(0.01)
    with pytest.raises(MemoryError):
        gradients_in_parts(model, 2)
    assert len({pid for _, pid, _ in gradients_in_parts(model, 2)[1]}) == 2


def runs(pid):
    """Whether that process runs; a dead one may wait for whoever asks how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_helpers_end_with_their_model():
    model = seeded_model()
    pids = {pid for _, pid, _ in gradients_in_parts(model, 3)[1]} - {os.getpid()}
    assert len(pids) == 2 and all(map(runs, pids))
    del model
    gc.collect()
    assert not any(map(runs, pids))


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit()"])
def test_helpers_end_with_their_process_and_ignore_its_signals(end):
    program = f"""
import os, signal, sys, torch
sys.path[:0] = {sys.path!r}
from test_fast_paths import gradients_in_parts, seeded_model
model = seeded_model()
pids = {{pid for _, pid, _ in gradients_in_parts(model, 3)[1]}} - {{os.getpid()}}
for pid in pids:
    os.kill(pid, signal.SIGINT), os.kill(pid, signal.SIGTERM)
assert pids < {{pid for _, pid, _ in gradients_in_parts(model, 3)[1]}}
print(*pids, flush=True)
{end}"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pids = [*map(int, done.stdout.split())]  # read to the end: no helper holds the pipe any more
    assert len(pids) == 2
    until = time.monotonic() + 20
    while any(map(runs, pids)):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_only_small_models_are_passed_in_parts_where_a_process_may_fork(monkeypatch):
    torch.set_num_threads(3)
    try:
        assert parts_at_once(GPT(SHAPE)) == 3
        with monkeypatch.context() as patch:
            patch.setattr(sys, "platform", "darwin")
            assert parts_at_once(GPT(SHAPE)) == 1
        with monkeypatch.context() as patch:
            patch.setattr(torch.accelerator, "is_available", lambda: True)
            assert parts_at_once(GPT(SHAPE)) == 1
        with ThreadPoolExecutor(1) as pool:  # others may hold locks while it forks
            assert pool.submit(parts_at_once, GPT(SHAPE)).result() == 1
        compiled = GPT(SHAPE)
        compile_decoder(compiled, "auto", torch.device("cpu"))  # too small to be worth it
        assert parts_at_once(compiled) == 3
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "which", lambda name: name)
            compile_decoder(compiled, "on", torch.device("cpu"))
        assert parts_at_once(compiled) == 1
        monkeypatch.setattr(machine, "SHARED_BELOW", 10)
        assert parts_at_once(GPT(SHAPE)) == 1
    finally:
        torch.set_num_threads(1)
    assert parts_at_once(GPT(SHAPE)) == 1


def who(i, model):
    return i, os.getpid(), model.training, [p.grad is None for p in model.parameters()].count(True)


def test_parts_without_gradients_are_shared_out_too_and_leave_gradients_alone():
    model = seeded_model().train()
    torch.set_num_threads(3)
    try:
        found = in_parts([partial(who, i) for i in range(5)], model)
        before, _ = gradients_in_parts(model, 3)
        torch.set_num_threads(3)
        again = in_parts([partial(who, i) for i in range(5)], model.eval())
    finally:
        torch.set_num_threads(1)
    assert [i for i, *_ in found] == [0, 1, 2, 3, 4]
    pids = [pid for _, pid, *_ in found]
    assert pids[0] == pids[3] == os.getpid() and pids[1] == pids[4] and len(set(pids)) == 3
    assert [pid for _, pid, *_ in again] == pids  # the same helpers serve both
    assert {mode for *_, mode, _ in found} == {True} and {mode for *_, mode, _ in again} == {False}
    for p, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, gradient)


@pytest.mark.parametrize("cores, at_once, low, temperature", [
    (2, 0, False, 1.0), (3, 0, False, 0.7), (2, 5, False, 0.0), (2, 0, True, 1.0)])
def test_rows_sampled_by_several_processes_are_the_same_rows(cores, at_once, low, temperature,
                                                            monkeypatch):
    monkeypatch.setattr(models, "IN_PARTS_FROM", 1)
    shared = []
    monkeypatch.setattr(models, "in_parts", lambda parts, model: shared.append(len(parts)) or
                        in_parts(parts, model))
    model = randomize(GPT(replace(SHAPE, dropout=0.5)), 0.1).train()
    prompts = [random_ids(1 + i % 5) for i in range(21)]

    def found():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            return generate(model, prompts, 12, temperature, EOS, at_once=at_once,
                            generator=torch.Generator().manual_seed(1))
    plain = found()
    torch.set_num_threads(cores)
    try:
        parts = found()
        with torch.no_grad():  # as a training step does
            for p in model.parameters():
                p.mul_(1.2)
        later = found()
    finally:
        torch.set_num_threads(1)
    assert shared == [cores, cores] and model.training
    # in bf16 a product rounds differently where it has another number of rows
    near = {"atol": 0.05, "rtol": 0.05} if low else {"atol": 1e-5, "rtol": 1e-5}
    for ours, theirs in ((plain, parts), (found(), later)):
        if not low:
            assert torch.equal(ours.tokens_BT, theirs.tokens_BT)
            assert torch.equal(ours.mask_BR, theirs.mask_BR)
            assert torch.equal(ours.lens_B, theirs.lens_B)
        same_B = (ours.tokens_BT == theirs.tokens_BT).all(1)
        assert same_B.float().mean() > 0.5 and not theirs.logprobs_BR.is_inference()
        torch.testing.assert_close(ours.logprobs_BR[same_B], theirs.logprobs_BR[same_B], **near)


@pytest.mark.parametrize("at_once", [0, 3, 1])
def test_rows_sampled_in_parts_are_the_same_rows(at_once):
    model, prompts = randomize(GPT(SHAPE), 0.1), [random_ids(1 + i % 5) for i in range(20)]
    plain, parts = (generate(model, prompts, 12, eos=EOS, at_once=n,
                             generator=torch.Generator().manual_seed(1)) for n in (20, at_once))
    assert torch.equal(plain.tokens_BT, parts.tokens_BT)
    assert torch.equal(plain.mask_BR, parts.mask_BR)
    torch.testing.assert_close(plain.logprobs_BR, parts.logprobs_BR, atol=1e-5, rtol=1e-5)


def test_the_policys_gradient_never_holds_all_logits(monkeypatch):
    """What autograd keeps of the update does not grow with vocabulary times tokens beyond one
    chunk of logits."""
    monkeypatch.setattr(models, "LOGITS_AT_ONCE", 2**12)
    kept = []
    for vocab in (64, 1024):
        policy = GPT(GPTConfig(vocab, 40, 1, 1, 8))
        tokens = torch.randint(64, (8, 40))
        largest = []

        def pack(tensor):
            largest.append(tensor.untyped_storage().nbytes())
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            logprobs = models.target_logprobs(policy, tokens, torch.ones_like(tokens).bool())
        weights = {p.untyped_storage().nbytes() for p in policy.parameters()}
        kept.append(max(n for n in largest if n not in weights))
        assert logprobs.numel() == 8 * 39
    assert kept[1] <= kept[0]  # all logits would be 8 · 39 · 1024 numbers: 1.3 MB


@pytest.mark.parametrize("recompute", [False, True])
def test_under_compile_the_first_ratio_is_one_and_nothing_is_clipped(recompute):
    """One code serves every block, and sampling has none of it."""
    from torch._dynamo.utils import counters
    torch._dynamo.reset()
    counters.clear()
    _, stats, _ = iteration(compile="on", minibatch=8, recompute=recompute)
    assert counters["stats"]["unique_graphs"] == 1
    assert stats["max_log_ratio"] < 1e-4 and stats["clip_fraction"] == 0
    _, eager, _ = iteration(minibatch=8)
    assert stats == pytest.approx(eager, rel=1e-3, abs=1e-5)


# -- memory that stays ----------------------------------------------------------------------------

FREED = """
import sys, torch, machine
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if sys.argv[1] == "keep":
    machine.keep_freed_memory()
before = resident()
block = torch.ones(2**28, dtype=torch.uint8)
del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_stays_with_the_process():
    left = {way: int(subprocess.run([sys.executable, "-c", FREED, way], check=True, text=True,
                                    cwd=ROOT, stdout=subprocess.PIPE).stdout)
            for way in ("keep", "return")}
    assert left["keep"] > 2**28 * 0.9 and left["return"] < 2**28 * 0.1


def test_without_glibc_nothing_happens(monkeypatch):
    asked = []
    for error in (AttributeError, OSError, TypeError):
        def absent(name, error=error):
            asked.append(error)
            raise error
        monkeypatch.setattr(machine.ctypes, "CDLL", absent)
        machine.keep_freed_memory()
    assert asked == [AttributeError, OSError, TypeError]
