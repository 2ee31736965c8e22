"""A slice of the malformed inputs of fuzz.py, and the proof that it would notice."""

import pathlib
import pickle

import pytest
import torch

import fuzz


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_malformed_inputs_are_read_or_refused_in_one_line(kind):
    assert sum(fuzz.outcome(kind, seed) for seed in range(40)) > 8


def test_code_in_a_file_would_be_noticed(monkeypatch):
    """With a reader that unpickles anything, the mark appears."""
    def careless(rng, folder):
        path = folder / "input.pt"
        path.write_bytes(pickle.dumps(fuzz.Evil(folder / "mark", rng)))
        return lambda path: pickle.loads(path.read_bytes()), path

    monkeypatch.setitem(fuzz.KINDS, "careless", careless)
    with pytest.raises(AssertionError, match="code was run"):
        fuzz.outcome("careless", 0)


@pytest.mark.parametrize("read, message", [
    (lambda path: 1 / 0, "ZeroDivisionError"),
    (lambda path: path.with_name("half").write_text("x"), "files changed"),
    (lambda path: next(iter(int, 1) and (x for x in iter(int, 1) if x)), "seconds of computing")])
def test_tracebacks_partial_output_and_hanging_would_be_noticed(monkeypatch, read, message):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setitem(fuzz.KINDS, "bad", lambda rng, folder: (read, folder / "input"))
    with pytest.raises(AssertionError, match=message):
        fuzz.outcome("bad", 0)


def test_whatever_single_bit_of_a_checkpoint_changes_it_is_refused_or_the_same(tmp_path):
    good = torch.load(_write(tmp_path / "good.pt", fuzz.checkpoint_bytes()), weights_only=True)
    data = (tmp_path / "good.pt").read_bytes()
    refused = 0
    for place in range(0, 8 * len(data), 211):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        try:
            found = fuzz.common.read_checkpoint(_write(tmp_path / "bad.pt", changed))
        except fuzz.InputError:
            refused += 1
            continue
        assert found.keys() == good.keys() and all(
            torch.equal(found["weights"][k], good["weights"][k]) for k in good["weights"])
        assert {k: v for k, v in found.items() if k != "weights"} == \
            {k: v for k, v in good.items() if k != "weights"}
    assert refused > 50


def _write(path, data) -> pathlib.Path:
    path.write_bytes(data)
    return path
