"""Every stage on a device beside the CPU: nothing meets there that lies on two devices, and what
comes out is the CPU's to rounding. (What only a GPU has, its kernels and graphs, is not shown.)"""

import contextlib
import json

import pytest
import torch
from conftest import randomize
from other_device import DEVICE, on_other_device, waits
from test_stages import SETTINGS, files, make  # noqa: F401 (a fixture)

import common
import evaluate
import machine
import ppo
import reward
import sft
from model import GPT, GPTConfig, generate


@pytest.fixture
def elsewhere(monkeypatch):
    """A context in which every program's `--device auto` is the other device."""
    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch, on_other_device():
            for module in (sft, reward, ppo, evaluate):
                patch.setattr(module, "device_of", lambda *names: DEVICE)
            yield
    return context


def close(one, other):
    """Adam moves a weight whose gradient is all rounding by as much as any other: keys' biases."""
    assert one["weights"].keys() == other["weights"].keys()
    for name, weight in one["weights"].items():
        moved = other["weights"][name]
        assert moved.device.type == "cpu" and type(moved) is torch.Tensor
        torch.testing.assert_close(moved, weight, rtol=1e-3, atol=2e-3 if "bias" in name else 1e-4)


@pytest.mark.parametrize("stage", SETTINGS)
def test_a_stage_ends_with_the_cpus_weights(files, tmp_path, elsewhere, stage):  # noqa: F811
    here = make(stage, files, tmp_path / "here.pt")
    with elsewhere():
        there = make(stage, files, tmp_path / "there.pt")
    assert waits  # it has been there
    close(here, there)


@pytest.mark.parametrize("stage, last", [("sft", 2), ("ppo", 2), ("sft", 6)])  # an epoch: 3 steps
def test_a_run_goes_on_on_another_device(files, tmp_path, elsewhere, monkeypatch,  # noqa: F811
                                         stage, last):
    whole = make(stage, files, tmp_path / "whole.pt")

    def stops(self, step, *rest, after_step=common.Stage.after_step):
        after_step(self, step, *rest)
        if step == last:
            self.lock.close()  # as the end of a process does
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(common.Stage, "after_step", stops)
        with pytest.raises(KeyboardInterrupt):
            make(stage, files, tmp_path / "cut.pt")
    with elsewhere():
        close(whole, make(stage, files, tmp_path / "cut.pt"))


@pytest.mark.parametrize("eos", [None, 5])
def test_samples_are_the_cpus(eos):
    shape = GPTConfig(vocab_size=11, n_ctx=48, n_layer=2, n_head=2, d_model=16)
    prompts = [[1] * n for n in (1, 9, 4, 6) * 4]

    def samples(device):
        torch.manual_seed(0)
        return generate(randomize(GPT(shape)).to(device), prompts, 30, eos=eos,
                        generator=torch.Generator().manual_seed(1))
    here = samples("cpu")
    with on_other_device():
        there = [x.cpu() for x in samples(DEVICE)]
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_sampling_waits_for_the_device_once_in_eight_steps():
    shape = GPTConfig(vocab_size=11, n_ctx=48, n_layer=2, n_head=2, d_model=16)

    def count(new_tokens):
        with on_other_device():
            generate(randomize(GPT(shape)).to(DEVICE), [[1, 2]] * 4, new_tokens, eos=99)
            return sum(waits.values())
    assert count(32) - count(16) == 2


@pytest.mark.parametrize("mode, width, device, compiled", [
    ("auto", 16, "cuda", False), ("auto", 1600, "cuda", True), ("auto", 1600, "cpu", False),
    ("on", 16, "cpu", True), ("off", 1600, "cuda", False)])
def test_large_models_are_compiled_on_a_gpu(monkeypatch, mode, width, device, compiled):
    done = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **more: done.append(module))
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=11, n_ctx=8, n_layer=1, n_head=1, d_model=width))
    monkeypatch.setattr("os.path.exists", lambda path: True)
    machine.compile_decoder(model, mode, torch.device(device))
    assert done == list(model.decoder.h) * compiled


def units(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluation_says_the_same(files, tmp_path, elsewhere):  # noqa: F811
    shared = {"prompts": files["prompts"], "max_response": 8}
    programs = {
        "sample": lambda out: evaluate.sample(evaluate.SampleConfig(
            checkpoint=(files["base"],), out=str(out), **shared)),
        "answers": lambda out: evaluate.answers(evaluate.AnswersConfig(
            checkpoint=files["base"], out=str(out), reward=files["reward"],
            reference=files["base"], text=files["text"], **shared)),
        "accuracy": lambda out: evaluate.accuracy(evaluate.AccuracyConfig(
            reward=files["reward"], comparisons=files["comparisons"], out=str(out))),
        "best_of": lambda out: evaluate.best_of(evaluate.BestOfConfig(
            checkpoint=files["base"], out=str(out.with_suffix("")), reward=files["reward"], most=2,
            **shared))}
    for name, program in programs.items():
        found = []
        for place, context in ("here", contextlib.nullcontext), ("there", elsewhere):
            out = tmp_path / place / f"{name}.jsonl"
            with context():
                program(out)
            found.append(units(out) if out.exists() else units(out.parent / name
                                                              / "best_of_2.jsonl"))
        assert waits and len(found[0]) == len(found[1]) > 0
        for one, other in zip(*found, strict=True):
            assert one == {k: pytest.approx(v, abs=2e-4) if isinstance(v, float) else v
                           for k, v in other.items()}
