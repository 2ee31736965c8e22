"""Byte-pair encodings, the end-of-text token, and the template of prompt and response (App. C).

The paper uses GPT-2's encoding with 50257 tokens. `load_tokenizer` gives it by name (fetched and
kept by tiktoken) or from its two published files; a small encoding in tiktoken's own format
serves the embedded data.

The template stands here and nowhere else (*open*: the paper does not print the separator):

    prompt tokens   = encode(prompt + "\\n")
    response tokens = encode(" " + response) + [end of text]

The space makes a response's first word the token that the same word is in mid-sentence, where
pretraining has mostly seen it. Both are tokenised apart. Tokenised together, characters on either
side of the seam may merge into one token, which neither a policy that writes token by token nor a
reward model that reads its tokens would ever meet.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import pathlib
import re

import numpy as np
import tiktoken
import tiktoken.load

from common import InputError

END_OF_TEXT = "<|endoftext|>"
PROMPT_TEMPLATE = "{prompt}\n"
RESPONSE_TEMPLATE = " {response}"

# GPT-2's split pattern, in the equivalent form that tiktoken runs fastest.
SPLIT_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)

# tiktoken's regex engine aborts inside a run of a million white-space characters before a word;
# such a run is cut off from its word, which costs one other token boundary and no crash.
_LONG_RUN = 500_000
_LONG_SPACE = re.compile(r"(?<!\s)(\s{%d,})" % _LONG_RUN)

WORLD_FILE = pathlib.Path(__file__).with_name("world.tiktoken")


class Tokenizer:
    """A byte-pair encoding, its end-of-text token, and the template around it.

    `ranks` maps each token's bytes to its id, 0 to n-1, the 256 single bytes among them; the
    end-of-text token gets the id n. `name` is what `load_tokenizer` loads it by.
    Raises InputError where the ranks are not such a mapping.
    """

    def __init__(self, name, ranks):
        _check_ranks(name, ranks)
        self.name = name
        self.eos = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.fingerprint = _fingerprint(ranks)
        self._encoding = tiktoken.Encoding(
            name, pat_str=SPLIT_PATTERN, mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.eos})

    def __repr__(self):
        return f"Tokenizer({self.name!r}, {self.vocab_size} tokens, {self.fingerprint})"

    def encode(self, text):
        """Token ids of ordinary text. "<|endoftext|>" in it is thirteen characters like any
        others: no user text can end a document or a response."""
        pieces = [text] if len(text) <= _LONG_RUN else _LONG_SPACE.split(text)
        return [token for piece in pieces for token in self._encoding.encode_ordinary(piece)]

    def decode(self, ids):
        """Text of `ids` up to the first end-of-text token, where a response ends; bytes that are
        no UTF-8 become U+FFFD. Raises ValueError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        if self.eos in ids:
            ids = ids[:ids.index(self.eos)]
        if ids and not 0 <= min(ids) <= max(ids) < self.eos:
            raise ValueError(f"token ids {min(ids)}..{max(ids)} outside 0..{self.eos}")
        return self._encoding.decode(ids, errors="replace")

    def encode_prompt(self, prompt):
        """Token ids of a prompt in the template."""
        return self.encode(PROMPT_TEMPLATE.format(prompt=prompt))

    def encode_response(self, response):
        """Token ids of a response in the template, and the end-of-text token after them."""
        return [*self.encode(RESPONSE_TEMPLATE.format(response=response)), self.eos]

    def decode_response(self, ids):
        """The response whose tokens these are, up to the first end-of-text token."""
        return self.decode(ids).removeprefix(RESPONSE_TEMPLATE.format(response=""))

    def encode_documents(self, documents):
        """Pretraining text as one int32 array: each document's ids, each followed by the
        end-of-text token."""
        parts = [np.array([*self.encode(d), self.eos], dtype=np.int32) for d in documents]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def load_tokenizer(spec):
    """The tokenizer that `spec` names:

        gpt2            GPT-2's encoding, fetched once by tiktoken and kept in its cache
        world           the encoding of the embedded data
        a folder        that holds GPT-2's `encoder.json` and `vocab.bpe`, or the same under the
                        names that they have on the hub, `vocab.json` and `merges.txt`
        *.tiktoken      a file of "base64 rank" lines, tiktoken's own format

    Raises InputError that names the file (and the line, where there is one) when `spec` is none
    of these, or its files are missing, damaged, or do not belong together.
    """
    spec = str(spec)
    if spec == "gpt2":
        return Tokenizer(spec, _fetch_gpt2())
    path = WORLD_FILE if spec == "world" else pathlib.Path(spec)
    if path.is_dir():
        return Tokenizer(spec, _read_gpt2_folder(path))
    if path.suffix == ".tiktoken":
        return Tokenizer(spec, _read_tiktoken(path))
    raise InputError(f"{spec}: no such tokenizer; expected gpt2, world, a folder holding "
                     "encoder.json and vocab.bpe, or a .tiktoken file")


# -- reading vocabularies ---------------------------------------------------------------------


def _fetch_gpt2():
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:      # whatever the network layer raises, the remedy is the same
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"gpt2: the vocabulary could not be fetched ({reason}); expected a "
                         "network, or a folder holding encoder.json and vocab.bpe") from error
    return {encoding.decode_single_token_bytes(i): i for i in range(encoding.n_vocab - 1)}


def _read_gpt2_folder(folder):
    pairs = [(folder / "vocab.bpe", folder / "encoder.json"),
             (folder / "merges.txt", folder / "vocab.json")]    # as published, as on the hub
    merges, vocabulary = next((p for p in pairs if any(f.exists() for f in p)), pairs[0])
    if not read_utf8(merges).startswith("#version"):
        raise InputError(f"{merges}:1: not a list of merges; expected '#version' first")
    tokens = _read_vocabulary(vocabulary)
    try:
        with _no_tiktoken_cache():
            ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary))
    except (AssertionError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{merges}: does not belong to {vocabulary.name} beside it, or one of "
                         "them is damaged; expected the same tokens in both") from error
    if tokens.get(END_OF_TEXT) != len(ranks) or len(tokens) != len(ranks) + 1:
        raise InputError(f"{vocabulary}: expected {len(ranks)} tokens and {END_OF_TEXT} as "
                         "the last")
    return ranks


def _read_vocabulary(path):
    try:
        tokens = json.loads(read_utf8(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); expected token strings to ids") from error
    if not isinstance(tokens, dict) or not all(type(i) is int for i in tokens.values()):
        raise InputError(f"{path}: expected a JSON object of token strings to ids")
    return tokens


def _read_tiktoken(path):
    """tiktoken.load.load_tiktoken_bpe, but strict: that one skips letters outside base64 and
    lets a repeated token pass."""
    ranks = {}
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        try:
            token, rank = line.split()
            token = base64.b64decode(token, validate=True)
            if int(rank) != len(ranks) or not token or token in ranks:
                raise ValueError
        except (ValueError, binascii.Error) as error:
            raise InputError(f"{path}:{number}: {line[:60]!r} is damaged or out of order; "
                             f"expected 'base64 {len(ranks)}', each token once") from error
        ranks[token] = len(ranks)
    return ranks


def read_utf8(path):
    """A whole text file. Raises InputError when it cannot be read or is not UTF-8."""
    try:
        return pathlib.Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a readable file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; expected text in UTF-8") from error


@contextlib.contextmanager
def _no_tiktoken_cache():
    """tiktoken keeps a copy of every file it reads, local ones too, under its path; without this
    a file that has changed since would be answered from the copy."""
    kept = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        if kept is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = kept


def _check_ranks(name, ranks):
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"{name}: expected token ranks 0 to {len(ranks) - 1}, each once")
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:     # tiktoken would abort on the first text that holds such a byte
        raise InputError(f"{name}: {len(missing)} of the 256 single bytes have no token, the "
                         f"first is {missing[0]}; expected all of them")


def _fingerprint(ranks):
    """Twelve hex digits that differ whenever any text could get other ids."""
    rules = (END_OF_TEXT, PROMPT_TEMPLATE, RESPONSE_TEMPLATE, SPLIT_PATTERN)
    digest = hashlib.sha256(repr(rules).encode())
    for token in sorted(ranks, key=ranks.get):
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()[:12]
