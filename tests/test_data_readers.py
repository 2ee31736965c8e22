"""Readers and the writer: each kind by hand, the real HH-RLHF file, and whatever can be malformed.

A malformed file is one InputError, "file:line: what is wrong; expected ...", and nothing else.
"""

import gzip
import json
import os
import random
import string

import pytest

from common import InputError
from conftest import ROOT, sweep
from data import readers
from data.readers import Comparison, Demonstration, Prompt

HH_FILE = ROOT.parent / "shared" / "data" / "hh_harmless.jsonl.gz"
READERS = {"demonstrations": readers.read_demonstrations, "prompts": readers.read_prompts,
           "comparisons": readers.read_comparisons, "hh": readers.read_hh}
GOOD = {
    "demonstrations": {"prompt": "p", "response": "r", "source": "labeler"},
    "prompts": {"prompt": "p"},
    "comparisons": {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]},
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
}


@pytest.fixture
def write(tmp_path):
    """Write bytes, text, or rows as JSON Lines to a file; its path."""
    def write(content, name="rows.jsonl"):
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    return write


# -- each kind by hand ------------------------------------------------------------------------


def test_demonstrations_by_hand(write):
    path = write('{"prompt": "Say hi", "response": "Hi", "source": "labeler"}\n'
                 '{"prompt": "é", "response": "", "source": "customer", "user": "u1", "key": 7}')
    assert readers.read_demonstrations(path) == [
        Demonstration("Say hi", "Hi", "labeler"),
        Demonstration("é", "", "customer", user="u1", extra={"key": 7})]


def test_comparisons_by_hand(write):
    path = write('{"prompt": "q", "completions": ["a", "b", "c"], "ranks": [3, 1, 1]}\n'
                 '{"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "l1",'
                 ' "user": null, "tags": {"x": [1.5, null]}}\n')
    assert readers.read_comparisons(path) == [
        Comparison("q", ("a", "b", "c"), (3, 1, 1)),
        Comparison("q", ("a", "b"), (1, 2), labeler="l1", extra={"tags": {"x": [1.5, None]}})]


def test_prompts_by_hand(write):
    path = write('{"prompt": "q"}\r\n{"prompt": "r", "user": "u", "category": "chat", "n": 1}\r\n')
    assert readers.read_prompts(path) == [Prompt("q"), Prompt("r", "u", "chat", {"n": 1})]


def test_rows_are_hashable():
    assert len({Prompt("q", extra={"n": 1}), Prompt("q", extra={"n": 1}), Prompt("r")}) == 2


def test_text_by_hand(write):
    path = write("one\r\ntwo\n\n<|endoftext|>\n\n <|endoftext|>three<|endoftext|>", "text.txt")
    assert readers.read_text(path) == ["one\r\ntwo", "three"]
    assert readers.read_text(write("no end", "text.txt")) == ["no end"]


def test_gzip_is_known_by_its_bytes_not_by_its_name(write):
    rows = json.dumps(GOOD["prompts"]).encode()
    for path in (write(gzip.compress(rows), "a.jsonl"), write(rows, "b.jsonl.gz"),
                 write(gzip.compress(rows + b"\n") + gzip.compress(rows), "two_members.gz")):
        assert set(readers.read_prompts(path)) == {Prompt("p")}
    assert readers.read_text(write(gzip.compress(b"text"), "text")) == ["text"]


def test_blank_lines_may_end_a_file_and_a_byte_order_mark_begin_it(write):
    path = write("\ufeff" + json.dumps(GOOD["prompts"]) + "\n\n  \n\n")
    assert readers.read_prompts(path) == [Prompt("p")]


# -- HH-RLHF ----------------------------------------------------------------------------------

ASKED = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"


def hh(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def test_hh_by_hand(write):
    kept, dropped = readers.read_hh(write([
        hh(ASKED + " good\n", ASKED + " bad"),
        hh(ASKED + " a", ASKED.replace("two", "2") + " b"),         # another dialogue
        hh(ASKED + " a\n\nAssistant: b", ASKED + " c"),             # one turn more
        hh(ASKED + " ", ASKED + " b"),
        hh(ASKED + " a\n\nHuman: b", ASKED + " c"),
        hh(ASKED + " same ", ASKED + "  same"),
    ]))
    assert kept == [Comparison(ASKED, ("good", "bad"), (1, 2))]
    assert dropped == {"dialogues differ before the last answer": 2, "an answer is empty": 1,
                       "a human turn follows the answer": 1, "both answers are the same": 1}


def test_hh_without_a_usable_pair_is_an_input_error(write):
    with pytest.raises(InputError, match="no usable pair"):
        readers.read_hh(write([hh(ASKED + " a", ASKED + " a")]))


@pytest.mark.skipif(not HH_FILE.exists(), reason="../shared/data/hh_harmless.jsonl.gz is absent")
def test_the_real_hh_file():
    """2,000 published pairs: 1,992 are usable; each gives its two dialogues back."""
    kept, dropped = readers.read_hh(HH_FILE)
    assert len(kept) == 1992 and sum(dropped.values()) == 8
    assert dropped["dialogues differ before the last answer"] == 4
    assert dropped["an answer is empty"] == 4
    with gzip.open(HH_FILE, "rt", encoding="utf-8") as file:
        chosen = {"".join(json.loads(line)["chosen"].split()) for line in file}
    for pair in kept:
        assert pair.prompt.startswith("\n\nHuman:") and pair.prompt.endswith("\n\nAssistant:")
        assert "".join((pair.prompt + pair.completions[0]).split()) in chosen


# -- malformed rows ---------------------------------------------------------------------------


def changed(kind, **changes):
    """A good row of the kind with some keys changed; ... takes a key away."""
    row = GOOD[kind] | changes
    return json.dumps({key: value for key, value in row.items() if value is not ...})


MALFORMED = [(kind, changed(kind, **{key: value}), says) for kind, key, value, says in [
    ("demonstrations", "prompt", ..., "key 'prompt' is missing; expected it with a string"),
    ("demonstrations", "response", ..., "key 'response' is missing"),
    ("demonstrations", "source", ..., "key 'source' is missing"),
    ("demonstrations", "source", "robot", '"robot"; expected one of labeler, customer'),
    ("demonstrations", "source", "Labeler", "expected one of labeler, customer"),
    ("demonstrations", "prompt", 3, "'prompt' is 3; expected a string"),
    ("demonstrations", "response", None, "'response' is null; expected a string"),
    ("demonstrations", "response", ["r"], r"'response' is \[.*; expected a string"),
    ("demonstrations", "user", 12, "'user' is 12; expected a string"),
    ("prompts", "prompt", ..., "key 'prompt' is missing"),
    ("prompts", "prompt", False, "'prompt' is false; expected a string"),
    ("prompts", "category", {}, "'category' is {}; expected a string"),
    ("comparisons", "prompt", ..., "key 'prompt' is missing"),
    ("comparisons", "completions", ..., "key 'completions' is missing; expected .* list of str"),
    ("comparisons", "ranks", ..., "key 'ranks' is missing; expected it with a list of integers"),
    ("comparisons", "completions", "abc", "'completions' is \"abc\"; expected a list of strings"),
    ("comparisons", "completions", ["a", 1, "c"], "expected a list of strings"),
    ("comparisons", "completions", ["a"], "1 completions; expected 2 or more"),
    ("comparisons", "completions", [], "0 completions; expected 2 or more"),
    ("comparisons", "ranks", [1, 2], "2 ranks for 3 completions; expected one rank each"),
    ("comparisons", "ranks", [1, 2, 3, 4], "4 ranks for 3 completions"),
    ("comparisons", "ranks", [], "0 ranks for 3 completions"),
    ("comparisons", "ranks", [0, 1, 2], r"ranks are \[0, 1, 2\]; expected integers from 1 up"),
    ("comparisons", "ranks", [1, -1, 2], "expected integers from 1 up"),
    ("comparisons", "ranks", [1, 2.0, 2], "expected a list of integers"),
    ("comparisons", "ranks", [1, "2", 2], "expected a list of integers"),
    ("comparisons", "ranks", [1, True, 2], "true, 2.; expected a list of integers"),
    ("comparisons", "ranks", [1, None, 2], "expected a list of integers"),
    ("comparisons", "ranks", 1, "'ranks' is 1; expected a list of integers"),
    ("comparisons", "ranks", [1, 2, 10**20], "expected integers from 1 up"),
    ("comparisons", "labeler", 4, "'labeler' is 4; expected a string"),
    ("hh", "chosen", ..., "key 'chosen' is missing"),
    ("hh", "rejected", 0, "'rejected' is 0; expected a string"),
    ("hh", "chosen", "no turns", "chosen has no turn 'Assistant:' after an empty line; expected"),
]]

EVERY_KIND = [
    ('{"prompt": "p"', "not JSON .*column 15.; expected one object on the line"),
    ("prompt", "not JSON"),
    ("{'prompt': 'p'}", "not JSON"),
    ('{"prompt": "tab\there"}', "not JSON"),
    ("[]", r"\[\] is not an object; expected"),
    ('"p"', '"p" is not an object'),
    ("null", "null is not an object"),
    ("1 2", "not JSON"),
    ('{"prompt": "p", "prompt": "q"}', 'key "prompt" stands twice in one object'),
    ('{"x": {"y": 1, "y": 2}}', 'key "y" stands twice'),
    ('{"x": NaN}', "NaN is not JSON; expected a finite number"),
    ('{"x": -Infinity}', "-Infinity is not JSON"),
    ('{"x": 1e999}', "1e999 is too large; expected a finite number"),
    ('{"x": %s}' % ("9" * 5000), "an integer of 5000 digits; expected at most 30"),
    ('{"x": "\\ud83d"}', "half of a surrogate pair; expected whole characters"),
    ('{"\\udc00": 1}', "half of a surrogate pair"),
    ('{"x": ' + "[" * 40 + "]" * 40 + "}", "nested too deep; expected at most 32"),
    ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    ('{"x": ' + '{"y": ' * 100_000 + "1" + "}" * 100_000 + "}", "nested too deep"),
    ("", "blank line; expected a JSON object on each line"),
    (" \t ", "blank line"),
]


def assert_refused(read, path, line, says):
    """The reader raises one line that begins with file and line number and says what it should."""
    with pytest.raises(InputError, match=says) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:{line}: ") and "; expected " in text
    assert "\n" not in text and len(text) < len(str(path)) + 250


@pytest.mark.parametrize("kind, line, says", MALFORMED)
def test_a_malformed_row_is_named_with_file_and_line(write, kind, line, says):
    good = json.dumps(GOOD[kind])
    assert_refused(READERS[kind], write(f"{good}\n{good}\n{line}\n{good}\n"), 3, says)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("line, says", EVERY_KIND, ids=range(len(EVERY_KIND)))
def test_a_line_that_is_no_object_is_named_with_file_and_line(write, kind, line, says):
    good = json.dumps(GOOD[kind])
    assert_refused(READERS[kind], write(f"{good}\n{line}\n{good}\n"), 2, says)


@pytest.mark.parametrize("kind", READERS)
def test_bytes_that_are_no_utf8_are_named_with_file_and_line(write, kind):
    good = json.dumps(GOOD[kind]).encode()
    path = write(good + b"\n" + good.replace(b"q", b"\xe9").replace(b"p", b"\xe9", 1) + b"\n")
    assert_refused(READERS[kind], path, 2, "not UTF-8")
    assert_refused(READERS[kind], write(gzip.compress(path.read_bytes())), 2, "not UTF-8")
    assert_refused(READERS[kind], write(json.dumps(GOOD[kind]).encode("utf-16")), 1, "not UTF-8")


def test_text_that_is_no_utf8_is_named_with_file_and_line(write):
    assert_refused(readers.read_text, write(b"one\ntwo\nthr\xffe\n"), 3, "not UTF-8")


# -- malformed files --------------------------------------------------------------------------

EVERY_READER = [*READERS.values(), readers.read_text]


@pytest.mark.parametrize("read", EVERY_READER)
@pytest.mark.parametrize("content", [b"", b"\n\n", b" \n", gzip.compress(b"", mtime=0),
                                     b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(write, read, content):
    path = write(content)
    with pytest.raises(InputError, match="(empty|no text in it); expected"):
        read(path)


@pytest.mark.parametrize("read", EVERY_READER)
def test_a_truncated_or_damaged_gzip_file_is_refused(write, read):
    noise = random.Random(0).randbytes(3000).hex()
    kind = next((kind for kind, reader in READERS.items() if reader is read), "prompts")
    whole = gzip.compress((json.dumps(GOOD[kind]) + "\n").encode() * 3 + noise.encode())
    flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for damaged in (whole[:len(whole) // 2], whole[:3], whole[:-4], flipped,
                    whole[:100] + b"\0" * 50 + whole[150:]):
        with pytest.raises(InputError, match=r":\d+: (the gzip file is truncated or damaged|not )"):
            read(write(damaged))


@pytest.mark.parametrize("read", EVERY_READER)
def test_a_missing_file_and_a_folder_are_refused(tmp_path, read):
    with pytest.raises(InputError, match="gone.jsonl: No such file or directory; expected"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match=r"Is a directory; expected a readable file"):
        read(tmp_path)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(write):
    path = write([GOOD["prompts"]])
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        readers.read_prompts(path)


# -- mutated lines ----------------------------------------------------------------------------


def mutated(line, dice):
    """`line` with a few bytes cut, doubled, swapped or replaced, likeliest at JSON's own marks."""
    line = bytearray(line)
    for _ in range(dice.randint(1, 4)):
        at, action = dice.randrange(len(line)), dice.randrange(5)
        if action == 0:
            line[at] = dice.choice(b'{}[]",:\\0123456789-.eENItfnu \xff\x00\xc3\xed')
        elif action == 1:
            del line[at:at + dice.randint(1, 8)]
        elif action == 2:
            line[at:at] = line[at:at + dice.randint(1, 20)]
        elif action == 3:
            line[at:at] = dice.choice([b'"ranks": null, ', b"\\ud800", b"1e999", b"true", b"{}",
                                       b'"prompt": 1,', b"9" * 50, b"[[[", b"\n"])
        else:
            other = dice.randrange(len(line))
            line[at], line[other] = line[other], line[at]
        line = line or bytearray(b" ")
    return bytes(line)


@pytest.mark.parametrize("kind", READERS)
def test_a_thousand_mutated_lines_are_read_or_refused_in_one_line(write, kind):
    dice, good, refusals = random.Random(1), json.dumps(GOOD[kind]).encode(), 0
    for _ in range(1000):
        path = write(good + b"\n" + mutated(good, dice) + b"\n" + good)
        try:
            READERS[kind](path)
        except InputError as error:
            refusals += 1
            assert "; expected " in str(error) and "\n" not in str(error)
    assert refusals > 500


def test_five_hundred_mutated_gzip_files_are_read_or_refused(write):
    dice = random.Random(2)
    whole = gzip.compress((json.dumps(GOOD["prompts"]) + "\n").encode() * 20)
    for _ in range(500):
        try:
            readers.read_prompts(write(mutated(whole, dice)))
        except InputError as error:
            assert "; expected " in str(error)


# -- writing ----------------------------------------------------------------------------------


def any_text(dice):
    return "".join(dice.choice(string.printable + "é🙂\u2028\ufeff\x00")
                   for _ in range(dice.randint(0, 12)))


def any_rows(kind, dice):
    def maybe():
        return dice.choice([None, any_text(dice)])

    def one():
        extra = {f"x{any_text(dice)}": dice.choice([1, -2.5, None, True, [any_text(dice)], {}])
                 for _ in range(dice.randint(0, 2))}
        if kind == "demonstrations":
            return Demonstration(any_text(dice), any_text(dice), dice.choice(readers.SOURCES),
                                 maybe(), extra)
        if kind == "prompts":
            return Prompt(any_text(dice), maybe(), maybe(), extra)
        K = dice.randint(2, 9)
        return Comparison(any_text(dice), tuple(any_text(dice) for _ in range(K)),
                          tuple(dice.randint(1, K) for _ in range(K)), maybe(), maybe(), extra)

    return [one() for _ in range(dice.randint(1, 5))]


@pytest.mark.parametrize("kind", ["demonstrations", "prompts", "comparisons"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@sweep(50)
def test_what_is_written_is_read_again(tmp_path_factory, kind, name, seed):
    rows = any_rows(kind, random.Random(seed))
    path = tmp_path_factory.getbasetemp() / name
    readers.write_jsonl(path, rows)
    assert READERS[kind](path) == rows


def test_a_row_as_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    readers.write_jsonl(path, [Prompt("é\n", extra={"key": 1}), {"any": None}])
    assert path.read_text() == '{"prompt": "é\\n", "key": 1}\n{"any": null}\n'


def test_the_same_rows_give_the_same_gzip_bytes(tmp_path):
    paths = [tmp_path / "a.gz", tmp_path / "b.gz"]
    for path in paths:
        readers.write_jsonl(path, [Prompt("p")])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes()[:8] == b"\x1f\x8b\x08\x00" + bytes(4)      # no name, no time


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": "\ud800"}, {"x": object()}])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    readers.write_jsonl(path, [Prompt("old")])
    with pytest.raises((ValueError, TypeError)):
        readers.write_jsonl(path, [Prompt("new"), bad])
    assert readers.read_prompts(path) == [Prompt("old")]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a place to write"):
        readers.write_jsonl(tmp_path / "file" / "rows.jsonl", [Prompt("p")])


def test_a_folder_that_is_missing_is_made(tmp_path):
    readers.write_jsonl(tmp_path / "a" / "b" / "rows.jsonl", [Prompt("p")])
    assert readers.read_prompts(tmp_path / "a" / "b" / "rows.jsonl") == [Prompt("p")]
