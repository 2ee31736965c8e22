"""A small closed world in which the right answer, the truth and good manners are known exactly.

    python -m data.world --out FOLDER --seed 0

writes, whole or not at all, in seconds:

    text.txt              pretraining text, documents between lines of the end-of-text token
    prompts.jsonl         {"prompt", "user", "category", "key"}: customers' prompts (Table 1)
    demonstrations.jsonl  {"prompt", "response", "source", "user", "key"} (Table 6's proportions)
    flan.jsonl, t0.jsonl  the same of two mixtures of academic tasks (FLAN and T0, §3.5)
    probes.jsonl          {"kind", "prompt", "key", ...}: truthfulness, toxicity, closed-domain and
                          few-shot tasks (§4.2)

The pools of words are fixed (data/grammar.py); the seed decides which facts hold, which of them
have a popular falsehood, who the users are and what is written. `key` says what was asked and is
for the simulated labelers alone (data/labelers.py): no model sees it.

Users are split by a hash of the seed and their name (data/filters.py), and so is what can be asked
at all: `World.side` says which side of the split may ask where the fox lives, or for something on Ada
to read to Ben, in whatever frame, and nobody else does (`people.Asked`), nor does the pretraining
text. No test prompt, and no paraphrase that shares its words for a fact, is then in a training set,
as long as data/prepare.py splits by the same seed and fractions; the fact itself may be asked for in
other words. No prompt of one user is asked by another either.
"""

import itertools
import json
import pathlib
import random
from dataclasses import dataclass
from functools import lru_cache

from common import InputError, alone, required, run, setting
from data.filters import side_of
from data.grammar import FACTS, POOLS, fill, kind_of
from data.readers import write_files
from data.tasks import other
from data.tokenizer import END_OF_TEXT
from data.wordings import CLAUSES, QUESTIONS

FALSEHOODS = 24             # facts with a popular wrong value


@lru_cache(maxsize=16)
class World:
    """The facts that hold under one seed.

    `facts[entity][attribute]` is the value; `myths[entity, attribute]` is the popular wrong value
    of the few facts that have one. Entities and values are spelled as in the pools.
    """

    def __init__(self, seed):
        rng = random.Random(f"world {seed}")
        self.seed = seed
        self.facts = {entity: {} for kind in ("person", "animal", "town") for entity in POOLS[kind]}
        for kind, attribute in FACTS:
            for entity, value in zip(POOLS[kind], _deal(rng, POOLS[attribute], len(POOLS[kind]))):
                self.facts[entity][attribute] = value
        self.triples = [(e, a, v) for e, attributes in self.facts.items()
                        for a, v in attributes.items()]
        self.myths = {}
        for entity, attribute, value in rng.sample(self.triples, FALSEHOODS):
            self.myths[entity, attribute] = other(rng, attribute, value)
        self._lower = {(e.lower(), a): v.lower() for e, a, v in self.triples}
        self._probed = {fill(form, e).lower() for e, a in self.myths
                        for form in (*CLAUSES[kind_of(e), a], *QUESTIONS[kind_of(e), a])}
        self._sides = {}

    def side(self, core):
        """Which side of the split may ask for `core` (tasks.Task): train, valid or test."""
        core = core.lower()
        if core not in self._sides:
            self._sides[core] = "test" if core in self._probed else \
                side_of(self.seed, "core", core)
        return self._sides[core]

    def is_true(self, claim):
        """Whether (entity, attribute, value), in lower case, holds; None where the world has no
        such fact."""
        value = self._lower.get(claim[:2])
        return None if value is None else value == claim[2]


def _deal(rng, values, count):
    """`count` values, each as often as any other to within one, in random order."""
    decks = [rng.sample(values, len(values)) for _ in range(-(-count // len(values)))]
    return list(itertools.chain(*decks))[:count]


# -- the command ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldConfig:
    out: str = required("folder to write; made where it is missing")
    seed: int = setting(0, "another seed is another world")
    documents: int = setting(60_000, "pretraining documents, about 2.5M tokens; *scaled*")
    demonstrations: int = setting(5_000, "*scaled*; Table 6: 12,725 of 11,295 + 1,430")
    prompts: int = setting(12_000, "customers' prompts; *scaled*; Table 6: 47,329")
    academic: int = setting(3_000, "templated tasks of each mixture; *scaled*; FLAN, T0")


def generate(config):
    """File name -> list of rows (for .jsonl) or documents (for .txt), all from the seed."""
    from data import people, webtext       # they write about a World
    world = World(config.seed)

    def stream(name):       # each file its own random numbers
        return random.Random(f"{name} {config.seed}")
    asked = people.Asked(world)
    return {
        "probes.jsonl": list(people.probes(world, stream("probes"), asked)),
        "demonstrations.jsonl": people.demonstrations(
            world, stream("demonstrations"), config.demonstrations, asked),
        "prompts.jsonl": people.prompts(world, stream("prompts"), config.prompts, asked),
        "flan.jsonl": people.academic(world, stream("flan"), config.academic, asked, "flan"),
        "t0.jsonl": people.academic(world, stream("t0"), config.academic, asked, "t0"),
        "text.txt": webtext.documents(world, stream("text"), config.documents),
    }


def main(config):
    """Write the world's files, and print what is in them."""
    for name in ("documents", "demonstrations", "prompts", "academic"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: expected 1 or more")
    files = generate(config)
    folder = pathlib.Path(config.out)
    with alone(folder):
        write_files({folder / name: [_lines(name, rows)] for name, rows in files.items()})
    for name, rows in files.items():
        print(f"{pathlib.Path(config.out, name)}: {len(rows):,} "
              + ("documents" if name.endswith(".txt") else "rows"))


def _lines(name, rows):
    if name.endswith(".txt"):
        return "".join(f"{row}\n{END_OF_TEXT}\n" for row in rows)
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    run(main, WorldConfig, __doc__)
