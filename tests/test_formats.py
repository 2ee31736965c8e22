"""Readers of data that others published: by hand in each layout, and whatever can be malformed."""

import gzip
import json
import random
import string

import pytest

from common import InputError
from conftest import ROOT, sweep
from data import formats, prepare, readers
from data.readers import Comparison, Demonstration

REAL = ROOT.parent / "shared" / "data"
POST = {"info": {"id": "t3_1", "post": "I crashed.\n", "title": "A crash", "subreddit": "advice"},
        "summaries": [{"text": " crashed", "policy": "sup4", "note": None}, {"text": " fine"}],
        "choice": 1, "worker": "w1", "batch": "batch9", "split": "train", "extra": {}}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
DOLLY = {"instruction": "Add.", "context": "1 and 2", "response": "3", "category": "closed_qa"}
READERS = {"summaries": (formats.read_summaries, POST), "alpaca": (formats.read_alpaca, ALPACA),
           "dolly": (formats.read_dolly, DOLLY),
           "documents": (formats.read_documents, {"id": 1, "text": "a document", "length": 2})}


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file; its path."""
    def write(content, name="rows.json"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    return write


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# -- by hand --------------------------------------------------------------------------------------


def test_a_summary_comparison_by_hand(write):
    kept, dropped = formats.read_summaries(write(lines(POST)))
    assert kept == [Comparison(
        "SUBREDDIT: r/advice\n\nTITLE: A crash\n\nPOST: I crashed.\n\nTL;DR:",
        ("crashed", "fine"), (2, 1), labeler="w1", user="t3_1")]
    assert dropped == {}


def test_choice_0_prefers_the_first_summary(write):
    kept, _ = formats.read_summaries(write(lines(POST | {"choice": 0})))
    assert kept[0].ranks == (1, 2)


def test_summaries_of_news_articles(write):
    info = {"id": "x", "article": "News.", "title": "Title", "site": "dailymail"}
    kept, _ = formats.read_summaries(write(lines(POST | {"info": info})))
    assert kept[0].prompt == "TITLE: Title\n\nNews.\n\nTL;DR:"


def test_useless_comparisons_are_counted(write):
    same = POST | {"summaries": [{"text": "a"}, {"text": " a "}]}
    empty = POST | {"summaries": [{"text": "a"}, {"text": " "}]}
    kept, dropped = formats.read_summaries(write(lines(same, POST, empty, same)))
    assert len(kept) == 1
    assert dropped == {"both answers are the same": 2, "an answer is empty": 1}


def test_alpaca_by_hand(write):
    kept, dropped = formats.read_alpaca(write(json.dumps(
        [ALPACA, ALPACA | {"input": ""}, ALPACA | {"output": " "}, ALPACA | {"instruction": ""}])))
    assert kept == [Demonstration("Add.\n\n1 and 2", "3", "labeler"),
                    Demonstration("Add.", "3", "labeler")]
    assert dropped == {"an answer is empty": 1, "an instruction is empty": 1}


def test_dolly_by_hand(write):
    kept, _ = formats.read_dolly(write(lines(DOLLY, DOLLY | {"context": ""})))
    assert kept == [Demonstration("Add.\n\n1 and 2", "3", "labeler",
                                  extra={"category": "closed_qa"}),
                    Demonstration("Add.", "3", "labeler", extra={"category": "closed_qa"})]


def test_an_input_may_be_absent(write):
    assert formats.read_alpaca(write('[{"instruction": "a", "output": "b"}]'))[0] == [
        Demonstration("a", "b", "labeler")]


def test_documents_by_hand(write):
    assert formats.read_documents(write('{"text": " one\\n"}\n{"text": ""}\n{"text": "two"}\n',
                                        "webtext.train.jsonl")) == ["one", "two"]
    assert formats.read_documents(write("one<|endoftext|>two", "text.txt")) == ["one", "two"]
    assert formats.read_documents(write('{"text": "one"}\n{"text": "two"}\nnot reached',
                                        "webtext.jsonl"), limit=2) == ["one", "two"]


def test_an_object_that_holds_the_mark_between_documents_is_several(write):
    texts = "one <|endoftext|> two", "<|endoftext|>three", "four"
    path = write(lines(*({"text": text} for text in texts)), "webtext.jsonl")
    assert formats.read_documents(path) == ["one", "two", "three", "four"]
    assert formats.read_documents(path, limit=3) == ["one", "two", "three"]


# -- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READERS)
def test_every_layout_of_the_same_rows_reads_the_same(write, kind):
    """JSON Lines, arrays on one line, on many, indented; gzip; a byte order mark; line ends."""
    read, row = READERS[kind]
    rows = [row, row, row]
    expected = read(write(lines(*rows)))
    layouts = [json.dumps(rows), json.dumps(rows, indent=4), f"\n\n {json.dumps(rows)}\n \n",
               "\ufeff" + json.dumps(rows, indent="\t"), json.dumps(rows, indent=2
                                                                    ).replace("\n", "\r\n")]
    for layout in layouts:
        assert read(write(layout)) == expected
        assert read(write(gzip.compress(layout.encode()), "rows.json.gz")) == expected


@pytest.mark.skipif(not (REAL / "seed_tasks.jsonl").exists(),
                    reason="../shared/data/seed_tasks.jsonl is absent")
def test_real_instructions_in_every_format(write):
    """175 real instructions with inputs and outputs, spelt as Alpaca and as Dolly spell them."""
    tasks = [json.loads(line) for line in (REAL / "seed_tasks.jsonl").open(encoding="utf-8")]
    triples = [(t["instruction"], t["instances"][0]["input"], t["instances"][0]["output"])
               for t in tasks]
    alpaca = [dict(zip(("instruction", "input", "output"), t)) for t in triples]
    dolly = [dict(zip(("instruction", "context", "response"), t)) for t in triples]
    kept, dropped = formats.read_alpaca(write(json.dumps(alpaca, indent=1)))
    assert len(kept) + sum(dropped.values()) == 175 and len(kept) > 160
    assert (kept, dropped) == formats.read_dolly(write(lines(*dolly)))
    assert all(d.prompt.startswith(d.prompt.split("\n\n")[0]) and d.response for d in kept)


# -- malformed files ------------------------------------------------------------------------------


def test_the_line_of_an_element_is_named(write):
    path = write(json.dumps([ALPACA, ALPACA, ALPACA | {"output": 7}], indent=1))
    with pytest.raises(InputError, match=r"rows.json:12: 'output' is 7; expected a string"):
        formats.read_alpaca(path)


@pytest.mark.parametrize("kind, row, message", [
    ("summaries", {"info": None}, "'info' is null; expected an object"),
    ("summaries", {"info": {"id": "x"}}, "key 'post' is missing"),
    ("summaries", {"info": POST["info"] | {"title": 5}}, "'title' is 5"),
    ("summaries", {"summaries": [{"text": "a"}]}, "expected two objects"),
    ("summaries", {"summaries": "ab"}, "expected two objects"),
    ("summaries", {"summaries": [{"text": "a"}, {"text": None}]}, "'text' is null"),
    ("summaries", {"choice": 2}, "'choice' is 2; expected 0 or 1"),
    ("summaries", {"choice": True}, "'choice' is true; expected 0 or 1"),
    ("summaries", {"choice": None}, "'choice' is null; expected 0 or 1"),
    ("summaries", {"worker": 3}, "'worker' is 3"),
    ("alpaca", {"instruction": None}, "'instruction' is null"),
    ("alpaca", {"input": ["a"]}, "'input' is"),
    ("dolly", {"response": {}}, "'response' is {}"),
    ("documents", {"text": 1}, "'text' is 1"),
])
def test_a_wrong_value_is_named(write, kind, row, message):
    read, good = READERS[kind]
    for content in (lines(good, good | row), json.dumps([good, good | row])):
        with pytest.raises(InputError) as error:
            read(write(content))
        assert message in str(error.value) and "rows.json:" in str(error.value)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("content", [
    "", "  \n", "[]", "[", "[{", "[1", "[{}]", "[{},]", "[,]", "[[]]", "[{} {}]", "{}", "null",
    "[null]", "[{}] x", "[NaN]", "[" * 100_000, "[" + "9" * 5000 + "]", '[{"text": "\\ud800"}]',
    '[{"a": 1, "a": 2}]', "\x00", "{'text': 1}", '"[1]"', "[{}]\n[{}]", '{"text": ""}',
])
def test_malformed_files_are_input_errors(write, kind, content):
    read, _ = READERS[kind]
    with pytest.raises(InputError) as error:
        read(write(content))
    assert "\n" not in str(error.value)


@sweep(300)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, seed):
    """Whatever becomes of some bytes: the rows, or one line that says what is wrong."""
    rng = random.Random(seed)
    read, row = READERS[rng.choice(list(READERS))]
    rows = [row] * rng.randint(1, 4)
    content = bytearray(rng.choice([lines(*rows), json.dumps(rows, indent=2)]).encode())
    if rng.random() < 0.2:
        content = bytearray(gzip.compress(bytes(content)))
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(content))
        change = rng.choice(["replace", "insert", "remove", "cut"])
        letter = ord(rng.choice(string.printable)) if rng.random() < 0.7 else rng.randrange(256)
        if change == "cut" or not content:
            content = content[:place] or bytearray(b"x")
        elif change == "remove":
            del content[place:place + rng.randint(1, 9)]
            content = content or bytearray(b"x")
        else:
            content[place:place + (change == "replace")] = bytes([letter])
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    try:
        assert read(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)


# -- into files to train on -----------------------------------------------------------------------


def test_prepare_spreads_published_data_over_the_kinds(tmp_path, write):
    """One command from what others published to files of every kind that the readers accept."""
    posts = [POST | {"info": POST["info"] | {"id": f"t3_{i}", "post": f"Post {i}."}}
             for i in range(40)]
    alpaca = [ALPACA | {"instruction": f"Add {i}."} for i in range(30)]
    dolly = [DOLLY | {"instruction": f"Take {i}."} for i in range(30)]
    text = lines(*({"text": f"Document {i}."} for i in range(40)))
    out = tmp_path / "data"
    prepare.main(prepare.PrepareConfig(
        out=str(out), tokenizer="world", summaries=(str(write(lines(*posts), "posts.json")),),
        alpaca=(str(write(json.dumps(alpaca), "alpaca.json")),),
        dolly=(str(write(lines(*dolly), "dolly.jsonl")),),
        text=str(write(text, "webtext.jsonl"))))
    comparisons = [c for side in ("train", "valid", "test")
                   for c in readers.read_comparisons(out / f"comparisons.{side}.jsonl")]
    demonstrations = [d for side in ("train", "valid", "test")
                      for d in readers.read_demonstrations(out / f"demonstrations.{side}.jsonl")]
    assert len(comparisons) == 40 and {c.ranks for c in comparisons} == {(2, 1)}
    assert sorted(d.response for d in demonstrations) == ["3"] * 60 + ["fine"] * 40
    documents = [d for side in ("train", "valid") for d in readers.read_text(
        out / f"text.{side}.txt")]
    assert sorted(documents) == sorted(f"Document {i}." for i in range(40))
