"""Tokenizers: published ids of GPT-2's encoding, the template, damaged vocabularies."""

import base64
import json
import pathlib
import shutil

import numpy as np
import pytest
import tiktoken

from common import InputError
from conftest import ROOT
from data.tokenizer import (END_OF_TEXT, PROMPT_TEMPLATE, RESPONSE_TEMPLATE, SPLIT_PATTERN,
                            Tokenizer, load_tokenizer)

REAL = ROOT.parent / "shared" / "data"
needs_gpt2 = pytest.mark.skipif(not (REAL / "gpt2").is_dir(),
                                reason="GPT-2's vocabulary is not in ../shared/data/gpt2")


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer(REAL / "gpt2")


def byte_ranks(*merges):
    """The 256 single bytes in order, then the merged tokens given."""
    return {token: i for i, token in enumerate([bytes([b]) for b in range(256)] + list(merges))}


@pytest.fixture
def small():
    """Bytes are their own ids; "ab" is 256, two line ends are 257, end-of-text is 258."""
    return Tokenizer("small", byte_ranks(b"ab", b"\n\n"))


def write_tiktoken(path, ranks):
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % r for t, r in ranks.items()))
    return path


# -- the encoding -----------------------------------------------------------------------------


def test_ids_by_hand(small):
    assert (small.eos, small.vocab_size) == (258, 259)
    assert small.encode("cab") == [99, 256]
    assert small.encode_prompt("ab") == [256, 10]
    assert small.encode_response("ba") == [32, 98, 97, 258]
    assert small.encode_response("") == [32, 258]


@needs_gpt2
def test_gpt2_gives_the_published_ids(gpt2):
    assert (gpt2.vocab_size, gpt2.eos) == (50257, 50256)
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746,
                                                           11]
    assert gpt2.encode("\n") == [198] and gpt2.encode("\n\n") == [628]
    assert gpt2.encode("é🙂") == [2634, 8582, 25081]


@needs_gpt2
def test_shakespeare_has_as_many_tokens_as_nanogpt_counts(gpt2):
    path = REAL / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip("../shared/data/tinyshakespeare.txt is not there")
    assert len(gpt2.encode(path.read_text())) == 301_966 + 36_059


@needs_gpt2
def test_the_split_pattern_equals_the_one_gpt2_was_published_with(gpt2):
    published = (r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+"""
                 r"""|\s+(?!\S)|\s+""")
    ranks = {gpt2._encoding.decode_single_token_bytes(i): i for i in range(gpt2.eos)}
    slow = tiktoken.Encoding("published", pat_str=published, mergeable_ranks=ranks,
                             special_tokens={})
    letters, random = "aZ é1９ \n\t'stre.!🙂\u3000\u200b", np.random.default_rng(0)
    for _ in range(2000):
        text = "".join(random.choice(list(letters), random.integers(1, 12)))
        assert gpt2.encode(text) == slow.encode_ordinary(text), repr(text)


def test_the_special_token_in_user_text_is_ordinary_text(small):
    ids = small.encode(f"a{END_OF_TEXT}b")
    assert small.eos not in ids and small.decode(ids) == f"a{END_OF_TEXT}b"
    assert small.encode_response(END_OF_TEXT).count(small.eos) == 1


@needs_gpt2
def test_the_special_token_in_user_text_is_ordinary_text_in_gpt2(gpt2):
    assert gpt2.encode(END_OF_TEXT) == [27, 91, 437, 1659, 5239, 91, 29]


def test_decode_stops_at_the_first_end_of_text(small):
    assert small.decode([97, 258, 98, 258]) == "a"
    assert small.decode([258]) == small.decode([]) == ""
    assert small.decode(np.array([97, 98])) == "ab"


def test_decode_replaces_bytes_that_are_no_utf8(small):
    assert small.decode([0xC3]) == "\ufffd"
    assert small.decode([0xC3, 0xA9]) == "é"


@pytest.mark.parametrize("bad", [-1, 259, 2**40])
def test_decode_refuses_ids_outside_the_vocabulary(small, bad):
    with pytest.raises(ValueError, match="outside"):
        small.decode([97, bad])


def test_half_a_surrogate_pair_is_encoded_as_a_replacement_character(small):
    assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("tail", ["", "x", "\n"])
def test_a_run_of_a_million_spaces_is_encoded(small, tail):
    text = "x" + " " * 1_000_001 + tail
    assert small.decode(small.encode(text)) == text


def test_documents_are_each_followed_by_the_end_of_text(small):
    ids = small.encode_documents(["ab", "c"])
    assert ids.tolist() == [256, 258, 99, 258] and ids.dtype == np.int32
    assert small.encode_documents([]).tolist() == []


# -- the template -----------------------------------------------------------------------------


def rendered(prompt, response):
    return PROMPT_TEMPLATE.format(prompt=prompt) + RESPONSE_TEMPLATE.format(response=response)


def test_prompt_and_response_are_tokenised_apart():
    """A response that begins with an empty line: together, the template's line end merges with
    the response's space into token 257."""
    small = Tokenizer("small", byte_ranks(b"ab", b"\n "))
    together = small.encode(rendered("c", "\nab"))
    apart = small.encode_prompt("c") + small.encode_response("\nab")
    assert together == [99, 257, 10, 256]
    assert apart == [99, 10, 32, 10, 256, 258]


@needs_gpt2
def test_a_responses_first_word_is_the_token_it_is_in_mid_sentence(gpt2):
    assert gpt2.encode_prompt("Say") == [25515, 198]
    assert gpt2.encode_response("ok") == [*gpt2.encode(" ok"), 50256] == [12876, 50256]


@pytest.mark.parametrize("response", ["", "ba", " ba", "\n\nab ", "a b"])
def test_a_response_decodes_to_itself(small, response):
    assert small.decode_response(small.encode_response(response)) == response


def test_braces_in_a_prompt_are_text(small):
    assert small.decode(small.encode_prompt("{prompt} {0} {{x}}")) == "{prompt} {0} {{x}}\n"


# -- fingerprints -----------------------------------------------------------------------------


def test_the_fingerprint_tells_vocabularies_apart_and_not_names():
    one = Tokenizer("one", byte_ranks(b"ab", b"cd")).fingerprint
    assert one == Tokenizer("two", byte_ranks(b"ab", b"cd")).fingerprint
    assert one != Tokenizer("one", byte_ranks(b"cd", b"ab")).fingerprint
    assert one != Tokenizer("one", byte_ranks(b"ab")).fingerprint


def test_the_fingerprint_covers_template_and_pattern(monkeypatch):
    before = Tokenizer("t", byte_ranks()).fingerprint
    monkeypatch.setattr("data.tokenizer.PROMPT_TEMPLATE", "{prompt}\n\n")
    template = Tokenizer("t", byte_ranks()).fingerprint
    monkeypatch.setattr("data.tokenizer.SPLIT_PATTERN", SPLIT_PATTERN + "|x")
    assert len({before, template, Tokenizer("t", byte_ranks()).fingerprint}) == 3


# -- loading ----------------------------------------------------------------------------------


def test_a_tiktoken_file_loads_and_its_name_loads_it_again(tmp_path, small):
    path = write_tiktoken(tmp_path / "small.tiktoken", byte_ranks(b"ab", b"\n\n"))
    loaded = load_tokenizer(path)
    assert loaded.fingerprint == small.fingerprint and loaded.encode("cab") == [99, 256]
    assert load_tokenizer(loaded.name).fingerprint == small.fingerprint


def test_a_changed_file_is_read_anew(tmp_path):
    """tiktoken's own loader would answer from its copy of the file as it was."""
    path = write_tiktoken(tmp_path / "small.tiktoken", byte_ranks(b"ab"))
    assert load_tokenizer(path).encode("ab") == [256]
    write_tiktoken(path, byte_ranks(b"ba"))
    assert load_tokenizer(path).encode("ab") == [97, 98]


@pytest.fixture
def folder(tmp_path):
    """A copy of GPT-2's two files."""
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copyfile(REAL / "gpt2" / name, tmp_path / name)
    return tmp_path


@needs_gpt2
def test_a_changed_gpt2_file_is_read_anew(folder, monkeypatch):
    """Damage after a first load must be seen, and no cache setting of the user is lost."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "cache"))
    load_tokenizer(folder)
    swap = (folder / "vocab.bpe").read_text().replace("\nĠ t\nĠ a\n", "\nĠ a\nĠ t\n", 1)
    (folder / "vocab.bpe").write_text(swap)
    with pytest.raises(InputError, match="vocab.bpe: does not belong to encoder.json"):
        load_tokenizer(folder)
    assert not (folder / "cache").exists()


@needs_gpt2
@pytest.mark.parametrize("name, damage, message", [
    ("encoder.json", lambda b: b[:5000], "encoder.json: not JSON"),
    ("encoder.json", lambda b: b"[1]", "encoder.json: expected a JSON object"),
    ("encoder.json", lambda b: b"", "encoder.json: not JSON"),
    ("encoder.json", lambda b: b"[" * 100_000, "encoder.json: not JSON"),
    ("encoder.json", lambda b: b'{"a": "b"}', "encoder.json: expected a JSON object"),
    ("encoder.json", lambda b: b.replace(b"<|endoftext|>", b"<|startoftext|>"),
     r"encoder.json: expected 50256 tokens and <\|endoftext\|>"),
    ("encoder.json", lambda b: b"\xff" + b, "encoder.json:1: not UTF-8"),
    ("vocab.bpe", lambda b: b[:5000], "vocab.bpe: does not belong"),
    ("vocab.bpe", lambda b: b"", "vocab.bpe:1: not a list of merges"),
    ("vocab.bpe", lambda b: b.replace(b"\nh e\n", b"\nhe\n"), "vocab.bpe: does not belong"),
    ("vocab.bpe", lambda b: b.replace(b"\nh e\n", b"\n\xff\n"), "vocab.bpe:4: not UTF-8"),
])
def test_a_damaged_gpt2_file_is_named(folder, name, damage, message):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


@needs_gpt2
@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe"])
def test_a_missing_gpt2_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: No such file"):
        load_tokenizer(folder)


@needs_gpt2
def test_the_hubs_names_of_the_two_files_are_known_too(folder, gpt2):
    (folder / "encoder.json").rename(folder / "vocab.json")
    (folder / "vocab.bpe").rename(folder / "merges.txt")
    assert load_tokenizer(folder).fingerprint == gpt2.fingerprint
    (folder / "vocab.json").unlink()
    with pytest.raises(InputError, match="vocab.json: No such file"):
        load_tokenizer(folder)


GOOD = [base64.b64encode(t).decode() + f" {r}" for t, r in byte_ranks(b"ab").items()]


@pytest.mark.parametrize("lines, message", [
    (GOOD[:3] + ["!!!! 3"] + GOOD[4:], ":4: '!!!! 3' is damaged"),
    (GOOD[:3] + ["!" + GOOD[3]] + GOOD[4:], ":4: '!Aw== 3' is damaged"),
    (GOOD[:3] + GOOD[4:], ":4: .* expected 'base64 3'"),
    (GOOD + [GOOD[0].replace(" 0", " 257")], ":258: .* each token once"),
    (GOOD[:-1] + [GOOD[-1] + " 7"], ":257: "),
    (GOOD[:-1] + [GOOD[-1].replace("256", "two")], ":257: "),
    (GOOD[:-1] + ["", GOOD[-1]], ":257: '' is damaged"),
    (GOOD[:255], "1 of the 256 single bytes have no token, the first is 255"),
    ([], "256 of the 256 single bytes"),
])
def test_a_damaged_tiktoken_file_is_named_with_its_line(tmp_path, lines, message):
    path = tmp_path / "t.tiktoken"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("spec", ["gpt-2", "", "no/such/folder", "vocabulary.json"])
def test_an_unknown_name_is_refused(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if spec:        # an empty path is the current folder, which lacks the two files
        with pytest.raises(InputError, match="no such tokenizer; expected gpt2, world"):
            load_tokenizer(spec)
    else:
        with pytest.raises(InputError, match="vocab.bpe: No such file"):
            load_tokenizer(spec)


def test_a_missing_tiktoken_file_is_named():
    with pytest.raises(InputError, match="nowhere.tiktoken: No such file"):
        load_tokenizer("nowhere.tiktoken")


def test_the_world_tokenizer_stands_beside_the_module(tmp_path, monkeypatch):
    monkeypatch.setattr("data.tokenizer.WORLD_FILE",
                        write_tiktoken(tmp_path / "world.tiktoken", byte_ranks(b"ab")))
    assert load_tokenizer("world").name == "world"
    monkeypatch.setattr("data.tokenizer.WORLD_FILE", pathlib.Path("gone/world.tiktoken"))
    with pytest.raises(InputError, match="world.tiktoken: No such file"):
        load_tokenizer("world")


def test_gpt2_that_cannot_be_fetched_is_one_clear_line(monkeypatch):
    def unreachable(name):
        raise OSError("no\nroute")
    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(InputError, match="^gpt2: the vocabulary could not be fetched .no route.; "
                                         "expected a network, or a folder"):
        load_tokenizer("gpt2")


@needs_gpt2
def test_gpt2_by_name_equals_gpt2_from_its_files(gpt2, monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: gpt2._encoding)
    fetched = load_tokenizer("gpt2")
    assert fetched.fingerprint == gpt2.fingerprint and fetched.name == "gpt2"


@needs_gpt2
def test_the_gpt2_fingerprint_is_pinned(gpt2):
    """Checkpoints carry it: a change here turns every one of them away."""
    assert gpt2.fingerprint == "0ad31f580413"
    assert json.loads((REAL / "gpt2" / "encoder.json").read_text())[END_OF_TEXT] == gpt2.eos
