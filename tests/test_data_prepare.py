"""The preparing command: what it writes, and that bad input costs one line and no file."""

import base64
import gzip
import json
import os
import subprocess
import sys

import pytest

from common import InputError, run
from conftest import ROOT
from data import prepare, readers
from data.filters import SPLITS
from data.prepare import PrepareConfig, split_documents
from data.readers import Comparison, Demonstration, Prompt

REAL = ROOT.parent / "shared" / "data"


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "bytes.tiktoken"
    path.write_text("".join(f"{base64.b64encode(bytes([b])).decode()} {b}\n" for b in range(256)))
    return str(path)


@pytest.fixture
def inputs(tmp_path):
    """One well-formed file of each kind; {flag: path}."""
    users = [f"u{i}" for i in range(60)]
    rows = {
        "demonstrations": [Demonstration(f"ask {u}", "said", "labeler", u) for u in users],
        "prompts": [Prompt(f"want {u}", u, extra={"key": 1}) for u in users],
        "comparisons": [Comparison(f"rank {u}", ("a", "b"), (2, 1), "l", u) for u in users],
        "hh": [{"chosen": f"\n\nHuman: {u}\n\nAssistant: yes",
                "rejected": f"\n\nHuman: {u}\n\nAssistant: no"} for u in users],
    }
    paths = {kind: tmp_path / f"{kind}.jsonl" for kind in rows}
    for kind, path in paths.items():
        readers.write_jsonl(path, rows[kind])
    paths["text"] = tmp_path / "text.txt"
    paths["text"].write_text("<|endoftext|>".join(f"document {i}" for i in range(40)))
    return {kind: str(path) for kind, path in paths.items()}


def prepared(tmp_path, vocabulary, **settings):
    """Run the preparation in this process; its folder."""
    out = tmp_path / "out"
    prepare.main(PrepareConfig(out=str(out), tokenizer=vocabulary, **settings))
    return out


def command(capsys, *flags):
    """What the command line does, without a process of its own: (exit code, standard error)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run(prepare.main, PrepareConfig, prepare.__doc__, [str(flag) for flag in flags])
    return exit.value.code, capsys.readouterr().err


# -- what it writes ---------------------------------------------------------------------------


def test_every_kind_is_written_in_its_own_format(tmp_path, vocabulary, inputs):
    out = prepared(tmp_path, vocabulary, **inputs)
    names = {f"{kind}.{side}.jsonl" for kind in prepare.KINDS for side in SPLITS}
    assert set(os.listdir(out)) == names | {"text.train.txt", "text.valid.txt", "filters.json"}
    demonstrations = readers.read_demonstrations(out / "demonstrations.train.jsonl")
    assert Demonstration("ask u0", "said", "labeler", "u0") in demonstrations
    assert readers.read_prompts(out / "prompts.train.jsonl")[0].extra == {"key": 1}
    assert Comparison("rank u1", ("a", "b"), (2, 1), "l", "u1") in \
        readers.read_comparisons(out / "comparisons.train.jsonl")
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_no_user_is_in_two_files_of_different_splits(tmp_path, vocabulary, inputs):
    out = prepared(tmp_path, vocabulary, **inputs)
    users = {side: set() for side in SPLITS}
    for kind in prepare.KINDS:
        for side, mine in users.items():
            lines = (out / f"{kind}.{side}.jsonl").read_text().splitlines()
            mine |= {json.loads(line)["user"] for line in lines}
    assert all(users.values())
    assert not (users["train"] & users["valid"] or users["train"] & users["test"]
                or users["valid"] & users["test"])


def test_nothing_is_lost_uncounted(tmp_path, vocabulary, inputs):
    """Rows written and rows dropped are the rows read: 60 of the kind and 60 of HH-RLHF."""
    out = prepared(tmp_path, vocabulary, **inputs)
    summary = json.loads((out / "filters.json").read_text())
    for kind in prepare.KINDS:
        written = sum(summary["written"][f"{kind}.{side}.jsonl"] for side in SPLITS)
        dropped = sum(n for e in summary["filters"] if e["rows"] == kind
                      for n in e["dropped"].values())
        assert written + dropped == 120
        for side in SPLITS:
            lines = (out / f"{kind}.{side}.jsonl").read_text().splitlines()
            assert len(lines) == summary["written"][f"{kind}.{side}.jsonl"]


def test_hh_pairs_give_three_kinds_and_the_opening_stands_for_the_user(tmp_path, vocabulary):
    """Two turns of one conversation fall on one side; the chosen answer is the demonstration."""
    turns = [("\n\nHuman: hi {0}\n\nAssistant:", " a"),
             ("\n\nHuman: hi {0}\n\nAssistant: a\n\nHuman: go on\n\nAssistant:", " c")]
    rows = [{"chosen": p.format(i) + a, "rejected": p.format(i) + " no"}
            for i in range(40) for p, a in turns]
    readers.write_jsonl(tmp_path / "hh.jsonl", rows)
    out = prepared(tmp_path, vocabulary, hh=str(tmp_path / "hh.jsonl"))
    for side in SPLITS:
        pairs = readers.read_comparisons(out / f"comparisons.{side}.jsonl")
        shown = readers.read_demonstrations(out / f"demonstrations.{side}.jsonl")
        asked = readers.read_prompts(out / f"prompts.{side}.jsonl")
        assert len(pairs) % 2 == 0 and len({p.user for p in pairs}) == len(pairs) / 2
        assert [p.prompt for p in pairs] == [d.prompt for d in shown] == [p.prompt for p in asked]
        assert [p.completions[0] for p in pairs] == [d.response for d in shown]
        assert {d.source for d in shown} == {"labeler"}


def test_the_filters_are_applied_and_reported(tmp_path, vocabulary, capsys):
    rows = [Prompt(f"prompt {i}", user=f"u{i}") for i in range(100)]
    rows += [Prompt("x" * 60 + str(i)) for i in range(5)] + [Prompt("y" * 300)]
    rows += [Prompt(f"write to a{i}@b.com") for i in range(40)]
    rows += [Prompt(f"more {i}", user="greedy") for i in range(9)]
    readers.write_jsonl(tmp_path / "p.jsonl", rows)
    out = prepared(tmp_path, vocabulary, prompts=str(tmp_path / "p.jsonl"), max_prompt_tokens=100,
                   max_prompts_per_user=4, shared_prefix=50)
    shown = " ".join(capsys.readouterr().out.split())
    assert "common prefix 4 of 155 dropped: 4 same first 50 characters" in shown
    assert "prompts per user 5 of 151 dropped: 5 over 4 prompts of one user" in shown
    assert "length 1 of 146 dropped: 1 prompt over 100 tokens" in shown
    train = readers.read_prompts(out / "prompts.train.jsonl")
    assert not any("@" in row.prompt for row in train)
    held_out = (out / "prompts.valid.jsonl").read_text() + (out / "prompts.test.jsonl").read_text()
    assert "@b.com" in held_out         # personal data leaves the training split (§3.2)


def test_the_same_seed_writes_the_same_bytes(tmp_path, vocabulary, inputs):
    first, again, other = ({path.name: path.read_bytes() for path in
                            prepared(tmp_path, vocabulary, seed=seed, **inputs).iterdir()}
                           for seed in (0, 0, 1))
    assert first == again and first["prompts.valid.jsonl"] != other["prompts.valid.jsonl"]


# -- text -------------------------------------------------------------------------------------


def test_many_documents_are_held_out_whole():
    documents = [f"document {i}" for i in range(100)]
    train, valid = split_documents(documents, 0.05, 0)
    assert len(valid) == 5 and sorted(train + valid) == sorted(documents)
    assert split_documents(documents, 0.05, 1)[1] != valid
    assert set(split_documents(documents[::-1], 0.05, 0)[1]) == set(valid)


def test_of_a_single_document_the_end_is_held_out_from_a_line_end_on():
    document = "\n".join(f"line {i:03}" for i in range(200))        # 1,799 characters
    train, valid = split_documents([document], 0.05, 0)
    assert train == ["\n".join(f"line {i:03}" for i in range(190))]
    assert valid == ["\n".join(f"line {i:03}" for i in range(190, 200))]


def test_a_document_without_line_ends_is_cut_between_words_or_anywhere():
    assert split_documents(["aa bb cc dd"], 0.5, 0) == (["aa bb"], ["cc dd"])
    assert split_documents(["a" * 10], 0.2, 0) == (["a" * 8], ["aa"])


def test_repeated_documents_are_in_one_split_only(tmp_path, vocabulary, capsys):
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(f"document {i % 30}" for i in range(90)))
    out = prepared(tmp_path, vocabulary, text=str(path))
    train, valid = (readers.read_text(out / f"text.{side}.txt") for side in ("train", "valid"))
    assert len(train) + len(valid) == 30 and not set(train) & set(valid)
    assert "60 same document" in capsys.readouterr().out


def test_text_too_short_to_split_is_an_input_error(tmp_path, vocabulary):
    path = tmp_path / "text.txt"
    path.write_text("a")
    with pytest.raises(InputError, match="too short to hold out a part"):
        prepared(tmp_path, vocabulary, text=str(path))


# -- bad input --------------------------------------------------------------------------------

BAD_LINES = [
    ("prompts", b'{"prompt": "p"', "not JSON"),
    ("prompts", b'{"user": "u"}', "key 'prompt' is missing"),
    ("prompts", b'{"prompt": "\xe9"}', "not UTF-8"),
    ("comparisons", b'{"prompt": "p", "completions": ["a"], "ranks": [1]}', "expected 2 or more"),
    ("comparisons", b'{"prompt": "p", "completions": ["a", "b"], "ranks": [1]}', "1 ranks for 2"),
    ("demonstrations", b'{"prompt": "p", "response": "r", "source": "x"}', "expected one of"),
    ("hh", b'{"chosen": "a", "rejected": "b"}', "no turn"),
]


@pytest.mark.parametrize("kind, line, says", BAD_LINES)
def test_a_bad_line_ends_the_command_and_no_file_is_touched(tmp_path, vocabulary, inputs, capsys,
                                                            kind, line, says):
    out = prepared(tmp_path, vocabulary, **inputs)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    with open(inputs[kind], "ab") as file:
        file.write(line + b"\n")
    flags = [part for name, path in inputs.items() for part in (f"--{name}", path)]
    code, errors = command(capsys, "--out", out, "--tokenizer", vocabulary, *flags)
    assert code == 2 and errors.count("\n") == 1
    assert errors.startswith(f"error: {inputs[kind]}:61: ") and says in errors
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}


def test_other_bad_input_ends_the_command_with_one_line(tmp_path, vocabulary, inputs, capsys):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}" * 1000)[:20])
    good = ["--out", tmp_path / "new", "--tokenizer", vocabulary, "--prompts", inputs["prompts"]]
    for flags, says in [
        (good[:4], "no input; expected one or more of --demonstrations"),
        (good[2:], "--out"),
        (good + ["--bogus", "1"], "--bogus"),
        (good + ["--seed", "x"], "--seed"),
        (good + ["--max_prompt_tokens", "0"], "--max_prompt_tokens is 0; expected 1 or more"),
        (good + ["--max_prompt_tokens", "1"], "prompts: no row is left to train on"),
        (good + ["--max_prompt_tokens", "1"], "prompt over 1 tokens"),  # of all filters this one
        (good + ["--valid_fraction", "0.6", "--test_fraction", "0.5"], "together below 1"),
        (good + ["--valid_fraction", "nan"], "expected a finite number"),
        (good + ["--text_valid_fraction", "1"], "between 0 and 1"),
        (good + ["--text", tmp_path / "empty"], "empty: no text in it"),
        (good + ["--text", tmp_path / "cut.gz"], "cut.gz:1: the gzip file is truncated"),
        (good + ["--hh", tmp_path / "gone"], "gone: No such file"),
        (good + ["--hh", tmp_path], "Is a directory"),
        (good + ["--tokenizer", "nonsense"], "nonsense: no such tokenizer"),
        (good + ["--out", vocabulary], "File exists; expected a folder to write into"),
    ]:
        code, errors = command(capsys, *flags)
        assert code == 2 and errors.count("\n") == 1 and says in errors, (flags, errors)
    assert not (tmp_path / "new").exists()


def test_a_bad_line_given_to_the_real_command(tmp_path, vocabulary, inputs):
    with open(inputs["prompts"], "a") as file:
        file.write("{}\n")
    done = subprocess.run([sys.executable, "-m", "data.prepare", "--out", tmp_path / "new",
                           "--tokenizer", vocabulary, "--prompts", inputs["prompts"]],
                          cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "new").exists()
    assert done.stderr == (f"error: {inputs['prompts']}:61: key 'prompt' is missing; expected it "
                           "with a string\n")


def test_the_real_files(tmp_path):
    """2,000 pairs and Shakespeare, with GPT-2's encoding, as `run.sh real` prepares them."""
    if not (REAL / "hh_harmless.jsonl.gz").exists():
        pytest.skip("../shared/data is not there")
    out = prepared(tmp_path, str(REAL / "gpt2"), hh=str(REAL / "hh_harmless.jsonl.gz"),
                   text=str(REAL / "tinyshakespeare.txt"))
    summary = json.loads((out / "filters.json").read_text())
    assert [e for e in summary["filters"] if e["rows"] == "HH-RLHF pairs"][0]["before"] == 2000
    pairs = {side: readers.read_comparisons(out / f"comparisons.{side}.jsonl")
             for side in SPLITS}
    personal = [e for e in summary["filters"] if e["filter"] == "personal data"]
    assert sum(map(len, pairs.values())) == 1992 - sum(personal[2]["dropped"].values())
    assert min(map(len, pairs.values())) > 150
    train, valid = ((out / f"text.{side}.txt").read_text() for side in ("train", "valid"))
    assert 0.94 < len(train) / (len(train) + len(valid)) < 0.96
    assert "".join((train + valid).split()) == \
        "".join((REAL / "tinyshakespeare.txt").read_text().split())
