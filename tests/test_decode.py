"""decode.c against the model itself: hidden states at every position, and what `generate` samples."""

import math
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, randomize

import machine
from machine import PastInC, packed
from model import GPT, GPTConfig, Past, generate, response_logprobs

SHAPE = GPTConfig(vocab_size=29, n_ctx=70, n_layer=2, n_head=4, d_model=128)
PROMPTS = [[1, 2, 3], [4], [1, 2, 3], [5, 6, 7, 8, 9, 10, 11], [4, 0], [12] * 33, [1, 2, 3]]
compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler, cc")


def inner(model):
    """A model whose every parameter matters, biases too."""
    return randomize(model, 0.2)


def begun(model, rows=3):
    """The class of what `model.decoder.begin` returns within `packed`."""
    with torch.inference_mode(), packed(model, rows):
        return type(model.decoder.begin(torch.tensor([[1, 2]]), torch.tensor([2])))


def check_hidden(model, prompts, steps=12, tolerance=1e-4):
    """Rows that begin with prompts, of which some leave halfway, against whole passes."""
    decoder, V = model.decoder, model.config.vocab_size
    lens, P = torch.tensor([len(p) for p in prompts]), max(map(len, prompts))
    tokens = torch.randint(V, (len(prompts), P + steps))
    for row, prompt in zip(tokens, prompts, strict=True):
        row[:len(prompt)] = torch.tensor(prompt)
    padded = torch.where(torch.arange(P) < lens[:, None], tokens[:, :P], 0)
    unique, of_b = padded.unique(dim=0, return_inverse=True)
    assert len(unique) < len(prompts)
    expected = decoder(tokens)
    with packed(model, len(prompts)):
        for prompts_nP, prompt_of_b in ((unique, of_b), (padded, None)):
            past = decoder.begin(prompts_nP, lens, prompt_of_b)
            assert isinstance(past, PastInC)
            hidden, rows, at = past.hidden_BD, torch.arange(len(prompts)), lens - 1
            for step in range(steps):
                torch.testing.assert_close(hidden, expected[rows, at], rtol=tolerance,
                                           atol=tolerance * float(expected.abs().max()))
                if step == steps // 2:
                    alive = rows % 3 != 1
                    past.keep(alive)
                    rows, at = rows[alive], at[alive]
                at = at + 1
                hidden = past.step(tokens[rows, at])


# odd sizes of heads, and widths that are no multiple of what a register or a panel holds
SHAPES = [(128, 4), (80, 4), (20, 4), (21, 3), (8, 8), (33, 1), (96, 2)]


@compiler
@torch.no_grad()
@pytest.mark.parametrize("width, heads", SHAPES)
def test_every_hidden_state_is_the_models(width, heads):
    check_hidden(inner(GPT(replace(SHAPE, d_model=width, n_head=heads))), PROMPTS * 6)


@compiler
@torch.no_grad()
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other registers of x86-64")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-march=x86-64", "-O0"])
def test_with_other_registers_too(flags, tmp_path, monkeypatch, fresh):
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\ntouch "$0".ran; exec cc "$@" {flags}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    check_hidden(inner(GPT(replace(SHAPE, d_model=72, n_head=3))), PROMPTS * 2)
    assert (tmp_path / "cc.ran").exists()


@compiler
@torch.no_grad()
def test_large_and_small_activations_have_no_bounds():
    """Scores far apart, inputs of the GELU far from 0: where e^x is 0, and where it is large."""
    model = inner(GPT(replace(SHAPE, n_layer=1)))
    block = model.decoder.h[0]
    block.attn.c_attn.weight[:256] *= 30.0
    block.mlp.c_fc.weight *= 100.0
    block.mlp.c_proj.weight /= 100.0
    x = block.ln_1(model.decoder.wte.weight + model.decoder.wpe.weight[:29])
    assert (block.mlp.c_fc(x).abs() > 88).any() and (block.attn.c_attn(x) > 100).any()
    check_hidden(model, PROMPTS)


@compiler
@torch.no_grad()
@pytest.mark.parametrize("x", [-4.5, -3.0, -1.5, -0.1, -1e-6, 1e-6, 0.3, 2.0, 10.0, 88.0, 1e4])
def test_the_gelu_is_exact_to_its_last_bits(x):
    """One layer that does nothing but add a number, as large as 1, for gelu(x)."""
    exact = GPT(GPTConfig(5, 4, 1, 1, 8)).double()
    for p in exact.parameters():
        p.zero_()
    block, size = exact.decoder.h[0], F.gelu(torch.tensor(x).double(), approximate="tanh")
    exact.decoder.wte.weight[:] = torch.linspace(-1, 1, 8).double()
    exact.decoder.ln_f.weight.fill_(1.0)
    block.mlp.c_fc.bias.fill_(x)
    block.mlp.c_proj.weight[0, 0] = 1 / size
    model = GPT(exact.config)
    model.load_state_dict(exact.state_dict())
    machine._SAME[model.decoder] = True  # torch's own loses the digits of a small 1 + tanh
    with packed(model, 1):
        found = model.decoder.begin(torch.tensor([[1]]), torch.tensor([1])).hidden_BD[0]
    torch.testing.assert_close(found.double(), exact.decoder(torch.tensor([[1]]))[0, 0],
                               rtol=1e-6 * max(1, x * x), atol=2e-6 if x > -2 else 1e-5)


@compiler
@torch.no_grad()
def test_what_is_not_a_number_stays_so():
    for part in ("ln_1.bias", "mlp.c_fc.bias", "attn.c_attn.bias"):
        model = inner(GPT(SHAPE))
        dict(model.decoder.h[0].named_parameters())[part][:] = math.nan
        with packed(model, 3):
            assert model.decoder.begin(torch.tensor([[1, 2]]), torch.tensor([2])
                                       ).hidden_BD.isnan().all()


@compiler
@torch.no_grad()
def test_nothing_is_read_that_was_not_written(monkeypatch):
    """Where memory holds what is not a number, no row sees it."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **more: empty(*size, **more).fill_(math.nan)
                        if len(size) == 6 else empty(*size, **more))
    check_hidden(inner(GPT(SHAPE)), PROMPTS)


@compiler
@torch.no_grad()
def test_several_threads_may_decode_at_once():
    model = inner(GPT(SHAPE))
    tokens = torch.randint(29, (8, 40, 60))
    expected = [model.decoder(t)[:, -1] for t in tokens]
    with packed(model, 3), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: model.decoder.begin(t, torch.full((40,), 60)).hidden_BD,
                              tokens))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@compiler
def test_a_small_model_on_one_core_and_few_rows_of_it_take_this_way():
    model = GPT(SHAPE)
    assert begun(model, 3) is PastInC and begun(model, 1000) is PastInC
    torch.set_num_threads(2)
    try:
        assert begun(model, 64) is PastInC and begun(model, 65) is Past
    finally:
        torch.set_num_threads(1)
    assert "begin" not in vars(model.decoder)
    assert begun(GPT(replace(SHAPE, d_model=1024, n_layer=1))) is Past  # 12 million parameters
    assert begun(GPT(SHAPE).double()) is Past
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert begun(model) is Past
    with pytest.raises(ZeroDivisionError), packed(model, 3):
        1 / 0
    assert begun(model) is PastInC and "begin" not in vars(model.decoder)


def sampled(model, temperature=1.0, eos=None):
    return generate(model, PROMPTS * 9, 30, temperature, eos=eos,
                    generator=torch.Generator().manual_seed(5))


def same(ours, theirs):
    assert torch.equal(ours.tokens_BT, theirs.tokens_BT)
    assert torch.equal(ours.lens_B, theirs.lens_B) and torch.equal(ours.mask_BR, theirs.mask_BR)
    torch.testing.assert_close(ours.logprobs_BR, theirs.logprobs_BR, rtol=1e-4, atol=1e-4)


@compiler
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_the_same_samples(temperature, monkeypatch):
    model, taken = inner(GPT(SHAPE)), []
    read = PastInC._read
    monkeypatch.setattr(PastInC, "_read", lambda self, tokens, *where: taken.append(len(tokens))
                        or read(self, tokens, *where))
    whole = sampled(model, temperature)
    eos = int(whole.tokens_BT[whole.tokens_BT > 0].mode().values)  # often drawn
    taken.clear()
    ours = sampled(model, temperature, eos)
    assert len(set(map(tuple, PROMPTS))) == 5 and taken[0] == 3 + 7 + 2 + 33  # [4] is in [4, 0]
    assert taken[1:] == sorted(taken[1:], reverse=True) and taken[-1] < taken[1]  # rows leave
    count = len(taken)
    monkeypatch.setattr(machine, "SHARED_BELOW", 0)
    same(ours, sampled(model, temperature, eos))
    assert len(taken) == count


@compiler
def test_weights_that_change_count_from_then_on():
    model = inner(GPT(SHAPE))
    first = sampled(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    assert not torch.equal(sampled(model).tokens_BT, first.tokens_BT)


@compiler
def test_a_token_beyond_the_vocabulary_is_an_error_as_it_is_elsewhere(monkeypatch):
    for below in (2**23, 0):
        monkeypatch.setattr(machine, "SHARED_BELOW", below)
        with pytest.raises(IndexError):
            generate(GPT(SHAPE), [[1, 29]], 3)


def forget():
    machine._in_c.cache_clear()
    machine._say_once.cache_clear()


@pytest.fixture
def fresh():
    """Nothing is compiled yet, nor after the test."""
    forget()
    yield
    forget()


@pytest.mark.parametrize("command, said", [
    ("no-such-compiler", "No such file"), ("false", "false ends with 1"),
    ("cc 'of no end", "No closing quotation"),
    (f"{sys.executable} -c 'import sys; sys.exit(\"one thing\\nand another\")'", "one thing")])
def test_without_a_compiler_it_says_so_once_and_samples_the_same(command, said, monkeypatch,
                                                                 capfd, fresh):
    model = inner(GPT(SHAPE))
    ours = sampled(model)
    capfd.readouterr()
    monkeypatch.setenv("CC", command)
    forget()
    same(ours, sampled(model))
    sampled(inner(GPT(replace(SHAPE, d_model=64))))
    out = capfd.readouterr().out
    assert out.count("\n") == 1 and "decode.c" in out and said in out


class Squared(torch.nn.Module):
    def forward(self, x):
        return x.square()


def other_gelu(model):
    model.decoder.h[1].mlp.expand = lambda x: F.relu(model.decoder.h[1].mlp.c_fc(x))


def other_scores(model):
    for block in model.decoder.h:
        block.attn.register_forward_hook(lambda module, x, found: 1.1 * found)


def more_parameters(model):
    model.decoder.h[0].mlp.scale = torch.nn.Parameter(torch.ones(128))


def fewer_parameters(model):
    model.decoder.h[0].attn.c_attn = torch.nn.Linear(128, 384, bias=False)


def other_layer(model):
    model.decoder.h[1].ln_2 = torch.nn.Sequential(model.decoder.h[1].ln_2, Squared())


@compiler
@pytest.mark.parametrize("change", [other_gelu, other_scores, more_parameters, fewer_parameters,
                                    other_layer])
def test_a_model_that_was_changed_samples_as_it_computes(change, capfd, fresh):
    model = GPT(SHAPE)  # as initialized: where differences are smallest
    assert begun(model) is PastInC
    changed = GPT(SHAPE)
    changed.load_state_dict(model.state_dict())
    change(changed)
    assert begun(changed) is Past and begun(changed) is Past and begun(model) is PastInC
    out = capfd.readouterr().out
    assert out.count("\n") == 1 and "decode.c" in out
    samples = sampled(changed)
    again = response_logprobs(changed, samples.tokens_BT, samples.prompt_lens_B, samples.mask_BR)
    torch.testing.assert_close(samples.logprobs_BR, again, rtol=1e-4, atol=1e-4)


HELPERS = """
import torch, machine, model as M
torch.manual_seed(0)
torch.set_num_threads(3)
gpt = M.GPT(M.GPTConfig(29, 64, 2, 2, 16))
machine.in_parts([], gpt)  # forks before anything was compiled
found = M.generate(gpt, [[1, 2]] * 60, 40)
assert found.mask_BR.all()
"""


def test_helpers_do_not_say_it_again():
    done = subprocess.run([sys.executable, "-c", HELPERS], cwd=ROOT, text=True, check=True,
                          stdout=subprocess.PIPE, env={**os.environ, "CC": "false"})
    assert done.stdout.count("decode.c") == 1 == done.stdout.count("\n")
