"""Simulated labelers: who ranks completions, by what rule, and how they disagree (§3.4, App. B).

    python -m data.labelers --completions FILE --out FILE --seed 0

reads {"prompt", "completions": [...], "key"} and writes comparisons {"prompt", "completions",
"ranks", "labeler"}: each prompt is ranked by one labeler, drawn by the seed. No person ranks
anything here, and no model sees `key` or the rule.

The rule is `quality` (data/rule.py), and `overall` makes one mark of it: helpful comes first;
broken sentences, rambling, an unkept constraint, a falsehood or bad manners each cost a share. A
labeler weighs these in a way of their own, likes long or short answers, mostly likes a word of
courtesy, errs a little, and gives each completion a mark: 1 is worthless, 7 is all that was asked
(as in Table 3's overall quality, but to a tenth). Equal marks are ties. So labelers are mostly of
one mind where one answer is clearly better, and differ where two are alike.
"""

import dataclasses
import itertools
import random
from dataclasses import dataclass
from functools import lru_cache

from common import InputError, alone, output_file, required, run, setting
from data import people, readers
from data.rule import (RESEARCHERS, Judgement, overall, quality, toxic,  # noqa: F401 (public here)
                       truthful)
from data.tasks import USE_CASES, Voice
from data.usecases import make_task
from data.world import World

# -- labelers ---------------------------------------------------------------------------------

GROUPS = "ABCDE"            # five folds of training labelers (§4.1)
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Labeler:
    """A simulated labeler: what they weigh, what they like, and how much they err."""
    name: str
    group: str
    constraint: float       # weights of `overall`
    false: float
    rude: float
    length: float           # marks per ten words beyond six
    courtesy: float         # marks for a word of courtesy
    candour: float          # marks for "I do not know"
    noise: float            # standard deviation of a mark, on the scale of 0 to 1
    harm_weighs: bool = False


# the researchers' weights, no tastes, no error: the rule itself
RULE = Labeler("the rule", "", **RESEARCHERS, length=0.0, courtesy=0.0, candour=0.0, noise=0.0)


def for_evaluation(labeler):
    """The labeler as asked in the final evaluation: truth and harmlessness come first (§3.4)."""
    return dataclasses.replace(labeler, false=0.8, rude=0.9, harm_weighs=True)


def mark(labeler, found, rng):
    """The labeler's mark for a Judgement, about 1 to 7: taste and error reach beyond the ends."""
    value = overall(found, labeler.constraint, labeler.false, labeler.rude, labeler.harm_weighs)
    value += labeler.length * max(-1.0, min(1.0, (found.words - 6) / 10))
    value += labeler.courtesy * found.courteous + labeler.candour * found.unknown
    value += rng.gauss(0, labeler.noise)
    return round(1 + 6 * value, 1)


def rank(labeler, key, completions, rng):
    """Ranks of the completions, 1 = best; equal marks share a rank, and so do equal texts."""
    found = {c: quality(key, c) for c in completions}
    return ranks_of(marks_of(labeler, found, completions, rng))


def marks_of(labeler, found, completions, rng):
    """The labeler's marks for the completions; `found` holds the Judgement of each text, which is
    marked once."""
    marks = {c: mark(labeler, judgement, rng) for c, judgement in found.items()}
    return [marks[c] for c in completions]


def ranks_of(marks):
    """Dense ranks of marks, the highest first: [5, 7, 5] -> [2, 1, 2]."""
    order = sorted(set(marks), reverse=True)
    return [order.index(m) + 1 for m in marks]


def prefers(labeler, key, a, b, rng):
    """1 where the labeler prefers response `a`, 0 where `b`, 0.5 for a tie."""
    first, second = rank(labeler, key, [a, b], rng)
    return 0.5 if first == second else float(first < second)


def agreement(labelers, items, seed=0, rounds=1):
    """How often two labelers agree on which of two completions is better, where neither calls it
    a tie. `items` holds (key, completions) pairs; two labelers are drawn for each."""
    alike, pairs = zip(*agreements(labelers, list(items) * rounds, seed))
    return sum(alike) / sum(pairs)


def agreements(labelers, items, seed=0):
    """The same item by item: (pairs ordered alike, pairs that neither calls a tie)."""
    rng, counts = random.Random(f"agreement {seed}"), []
    for key, completions in items:
        found = {c: quality(key, c) for c in completions}
        first, second = (marks_of(labeler, found, completions, rng)
                         for labeler in rng.sample(labelers, 2))
        moves = [(first[i] - first[j], second[i] - second[j])
                 for i, j in itertools.combinations(range(len(completions)), 2)]
        decided = [(one > 0) == (two > 0) for one, two in moves if one and two]
        counts.append((sum(decided), len(decided)))
    return counts


# -- hiring (App. B.1) ------------------------------------------------------------------------

NOISE = (0.17, 0.38)        # of candidates
COURTESY = 0.22             # mean taste for a word of courtesy


@lru_cache(maxsize=8)
def hire(seed=0, count=40, held_out=16, candidates=70):
    """(training labelers in five groups, held-out labelers).

    Training labelers are the candidates who did best at the screening; held-out ones were hired
    without it, as in the paper.
    """
    rng = random.Random(f"labelers {seed}")
    tastes = dict(zip((*GROUPS, HELD_OUT), _tastes(rng)))
    applicants = [_candidate(rng, f"candidate-{n:02}", GROUPS[n % 5], tastes, noise)
                  for n, noise in enumerate(_spread(NOISE, candidates, rng))]
    samples = [(key, [quality(key, c) for c in cs]) for key, cs in examples(seed, 40)]
    results = {one: screening(one, samples, rng) for one in applicants}
    kept = []
    for group in GROUPS:        # as many of each, so that folds are of one size
        best = sorted((one for one in applicants if one.group == group), key=results.get)
        kept += best[-(count // len(GROUPS)):]
    training = [dataclasses.replace(one, name=f"labeler-{n:02}") for n, one in enumerate(kept)]
    outside = [_candidate(rng, f"held-out-{n:02}", HELD_OUT, tastes, noise)
               for n, noise in enumerate(_spread(NOISE, held_out, rng))]
    return tuple(training), tuple(outside)


def training_labelers(seed=0):
    """The 40 screened labelers, whose rankings train reward models."""
    return list(hire(seed)[0])


def held_out_labelers(seed=0):
    """Labelers who have no part in the training data."""
    return list(hire(seed)[1])


def _tastes(rng):
    """What the members of each group have in common, the held-out group's last."""
    shifts = (-0.16, -0.08, 0.0, 0.08, 0.16)
    lengths, courtesies = ([*rng.sample(shifts, 5), rng.uniform(-0.12, 0.12)] for _ in range(2))
    return [{"length": a, "courtesy": b} for a, b in zip(lengths, courtesies)]


def _spread(bounds, count, rng):
    """Evenly spaced numbers in random order: another seed is another team, no better one."""
    low, high = bounds
    return rng.sample([low + (high - low) * (n + 0.5) / count for n in range(count)], count)


def _candidate(rng, name, group, tastes, noise):
    taste = tastes[group]
    return Labeler(name, group,
                   constraint=rng.uniform(0.5, 0.9), false=rng.uniform(0.3, 0.7),
                   rude=rng.uniform(0.4, 0.8),
                   length=taste["length"] + rng.gauss(0, 0.12),
                   courtesy=COURTESY + taste["courtesy"] + rng.gauss(0, 0.12),
                   candour=rng.gauss(0.05, 0.05), noise=noise)


def screening(candidate, samples, rng):
    """The candidate's result: the share of responses flagged as rude as the researchers would,
    the share of comparisons ranked as they would, and a demonstration's and a self-assessed mark,
    which say less."""
    flags, pairs = [], []
    for key, found in samples:
        marks = [mark(candidate, f, rng) for f in found]
        wise = [overall(f) for f in found]
        flags += [(f.rude == (rng.random() > candidate.noise if f.rude else
                              rng.random() < candidate.noise / 4)) for f in found]
        pairs += [(wise[i] > wise[j]) == (marks[i] > marks[j])
                  for i, j in itertools.combinations(range(len(found)), 2)
                  if wise[i] != wise[j] and marks[i] != marks[j]]
    demonstration = 1 - candidate.noise + rng.gauss(0, 0.1)
    self_assessed = rng.random()
    return (sum(flags) / len(flags) + 2 * sum(pairs) / len(pairs)
            + 0.5 * demonstration + 0.1 * self_assessed)


def examples(seed, count, completions=5):
    """(key, completions) of tasks in Table 1's shares, answered as an imitator of the
    demonstrations would."""
    rng, world = random.Random(f"examples {seed}"), World(seed)
    for category in rng.choices(list(USE_CASES), list(USE_CASES.values()), k=count):
        task = make_task(category, world, Voice(rng, rng.randrange(1000)))
        yield task.key, people.completions(world, task, completions, rng)


# -- the command ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelersConfig:
    completions: str = required('{"prompt", "completions", "key"} in JSON Lines; §3.2')
    out: str = output_file("comparisons to write")
    seed: int = setting(0, "who is hired, who ranks what, and their noise")
    group: str = setting("training", "training, held-out, or some of A B C D E, as in ABCD")
    limit: int = setting(0, "rank at most so many prompts' completions, 0 = all")


def main(config):
    """Rank the completions of every prompt, each by one labeler of the group."""
    labelers = choose(config.group, config.seed)
    rng = random.Random(f"ranking {config.seed}")
    rows = [label(row, rng.choice(labelers), rng)
            for row in read_completions(config.completions, config.limit)]
    with alone(config.out, is_file=True):
        readers.write_jsonl(config.out, rows)
    print(f"{config.out}: {len(rows):,} comparisons by {len({r['labeler'] for r in rows})} "
          "simulated labelers")


def choose(group, seed=0):
    """The labelers of `training`, `held-out`, or of groups such as `A` or `ABCD`."""
    if group == "training":
        return training_labelers(seed)
    if group == HELD_OUT:
        return held_out_labelers(seed)
    chosen = [one for one in training_labelers(seed) if one.group in group]
    if not chosen or set(group) - set(GROUPS):
        raise InputError(f"--group {group}: expected training, held-out, or some of {GROUPS}")
    return chosen


def label(row, labeler, rng):
    """One comparison; the key stays behind."""
    ranks = rank(labeler, row["key"], row["completions"], rng)
    kept = {k: v for k, v in row.items() if k != "key"}
    return kept | {"ranks": ranks, "labeler": labeler.name}


def read_completions(path, most=0):
    """The first `most` rows (0 = all), their completions and keys checked. Raises InputError at the
    first bad line."""
    rows = []
    for number, item in enumerate(readers.read_prompts(path)[:most or None], 1):
        completions, key = item.extra.get("completions"), item.extra.get("key")
        if (not isinstance(completions, list) or not 2 <= len(completions) <= 9
                or not all(isinstance(c, str) for c in completions)):
            raise InputError(f"{path}:{number}: completions; expected a list of 2 to 9 strings "
                             "(§3.1: 4 to 9)")
        check_key(path, number, key)
        rows.append(readers.as_row(item))
    return rows


STRINGS = ("subjects", "words", "claim", "items", "texts", "crux")     # a key's lists of them
KINDS = {"sentences": int, "n": int, "given": str, **dict.fromkeys(STRINGS, list)}
VALUES = {"max_words": int, "items": int, "start": str}     # of constraints


def check_key(path, number, key):
    """Raises InputError unless answers can be judged by the key of this line."""
    try:
        quality(key, "")        # finds what is missing; an empty answer meets few of the values
        parts = [("world", key["world"], int)]
        parts += [(name, key[name], kind) for name, kind in KINDS.items() if name in key]
        parts += [(name, text, str) for name in STRINGS for text in key.get(name, ())]
        parts += [(name, value, VALUES[name]) for name, value in key["constraints"]
                  if name in VALUES]
        for name, value, kind in parts:
            if type(value) is not kind:
                raise TypeError(name)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}:{number}: key does not say what was asked ({error!r}); "
                         "expected one as in prompts.jsonl") from error


if __name__ == "__main__":
    run(main, LabelersConfig, __doc__)
