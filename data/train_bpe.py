"""Train the byte-pair encoding of the closed world, shared by all seeds.

    python -m data.train_bpe --out data/world.tiktoken

Byte-level BPE as GPT-2's: text is split by its pattern, and the most frequent pair of neighbouring
tokens within a piece becomes a token, again and again. What is counted is the text of a few
worlds, each piece once with the square root of its count: training takes seconds, and the rarer
words, those in capital letters above all, get tokens too. The 256 bytes come first; with the
end-of-text token, which the file does not hold, there are 1024 tokens.
"""

import base64
import collections
import math
import re
from dataclasses import dataclass

from common import InputError, check_output, run, setting
from data.readers import write_whole
from data.tokenizer import WORLD_FILE

SEEDS = (0, 1, 2)
# GPT-2's split pattern as the standard library can say it; the world writes ASCII only
SPLIT = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class BPEConfig:
    out: str = setting(str(WORLD_FILE), "file of `base64 rank` lines, tiktoken's own format")
    vocab_size: int = setting(1024, "the end-of-text token included; *scaled*, App. C: 50257")
    documents: int = setting(4_000, "pretraining documents of each seed; *scaled*")

    def __post_init__(self):
        if self.vocab_size < 257:
            raise InputError(f"--vocab_size {self.vocab_size}: expected 257 or more: every byte is "
                             "a token, and end-of-text is one")


def pieces(config):
    """The weight of each piece of the split pattern in the text of all seeds."""
    from data.world import WorldConfig, generate
    counts = collections.Counter()
    for seed in SEEDS:
        files = generate(WorldConfig(out="", seed=seed, documents=config.documents,
                                     demonstrations=500, prompts=500, academic=500))
        for row in files.pop("text.txt"):
            counts.update(SPLIT.findall(row))
        for rows in files.values():
            for row in rows:
                counts.update(SPLIT.findall(row["prompt"] + "\n"))
                counts.update(SPLIT.findall(row.get("response", "")))
    return {piece: math.isqrt(100 * n) for piece, n in counts.items()}


def train(counts, n_tokens):
    """Tokens in the order of their ranks: the 256 bytes, then merges, most frequent pair first.

    Of equally frequent pairs the one with the smaller bytes is merged, so that the result does
    not depend on the order of the text.
    """
    tokens = [bytes([b]) for b in range(256)]
    words = [([bytes([b]) for b in piece.encode()], n) for piece, n in counts.items()]
    while len(tokens) < n_tokens:
        pairs = collections.Counter()
        for parts, n in words:
            for pair in zip(parts, parts[1:]):
                pairs[pair] += n
        if not pairs:
            raise InputError(f"the text gives {len(tokens)} tokens; expected {n_tokens}")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(best[0] + best[1])
        words = [(_merge(parts, best), n) for parts, n in words if len(parts) > 1]
    return tokens


def _merge(parts, pair):
    """`parts` with each occurrence of the pair, from the left, put into one token."""
    out, i = [], 0
    while i < len(parts):
        if tuple(parts[i:i + 2]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


def main(config):
    """Train on the text of SEEDS and write the vocabulary."""
    check_output(config, config.out)
    tokens = train(pieces(config), config.vocab_size - 1)
    write_whole(config.out, (f"{base64.b64encode(t).decode()} {rank}\n"
                             for rank, t in enumerate(tokens)))
    print(f"{config.out}: {len(tokens)} tokens")


if __name__ == "__main__":
    run(main, BPEConfig, __doc__)
