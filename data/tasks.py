"""What users ask: the paper's ten use cases (Table 1, App. A.2) as tasks of the closed world.

A task has a prompt, a `key` by which the simulated labelers judge any response, and three
responses made by rule: a good one, a terse one, and one of the right shape that is wrong.

A key says what is wanted:

    world, category       the seed of the world, the use case
    asked                 the bare prompt: what is asked, in these words
    core                  the same without its frame: "where the fox lives", "Ada for Ben"
    want                  "about":  sentences about the `subjects`, with `words` in them
                          "answer": the fact `claim` = (entity, attribute, value)
                          "list":   `n` of `items`
                          "text":   one of `texts`, with the words of `crux` in it
    constraints           [[kind, value]...]: capitals, max_words, start, one_word, items
    given                 a text that the response must keep to (closed-domain tasks)
    sort, topic           of "about": fact, event, kind or rude sentences; the attribute asked for
    premise               of "answer": the wrong claim that the question takes for granted
"""

from dataclasses import dataclass, field

from data import wordings as w
from data.grammar import CHAT, EVENTS, FACTS, POOLS, fill, kind_of, pronoun, say

# Table 1: share of each use case in the customers' prompts, in per cent.
USE_CASES = {"generation": 45.6, "open_qa": 12.4, "brainstorming": 11.2, "chat": 8.4,
             "rewrite": 6.6, "summarization": 4.2, "classification": 3.5, "other": 3.5,
             "closed_qa": 2.6, "extract": 1.9}


@dataclass
class Task:
    """One thing asked. `bare` is the prompt without constraints and courtesies: what is asked,
    in these words. `core` is what of it a paraphrase would keep: the clause of a question, what to
    write about and for whom, the text to work on. Who asks it decides which sides of the split may
    (`people.Asked`)."""
    category: str
    bare: str
    core: str
    key: dict
    good: str
    terse: str
    wrong: str
    allowed: tuple = ()         # kinds of constraints that fit
    constraints: list = field(default_factory=list)
    endings: list = field(default_factory=list)     # the constraints in words


class Voice:
    """A user's way of choosing: half of the time the wording the user is used to."""

    def __init__(self, rng, habit):
        self.rng, self.habit = rng, habit

    def pick(self, choices):
        if self.rng.random() < 0.5:
            return choices[self.habit % len(choices)]
        return self.rng.choice(choices)


# -- explicit constraints -----------------------------------------------------------------------

# Kinds, and how often each is drawn beside the others.
CONSTRAINTS = {"capitals": 1, "start": 3, "max_words": 3, "one_word": 1}


def constrain(task, voice):
    """Add to the task one explicit constraint of those that fit. (A list of so many items is one
    as well: `usecases.brainstorm`.)"""
    kind, = voice.rng.choices(task.allowed, [CONSTRAINTS[kind] for kind in task.allowed])
    value = None
    if kind == "start":
        value = voice.rng.choice(("well", "now", "so", "yes", "today"))
    if kind == "max_words":
        value = max(2, len(task.good.split()) + voice.rng.choice((0, 1, 2)))
    shown = w.NUMBERS.get(value, value)
    task.constraints.append([kind, value])
    task.endings.append(voice.pick(w.CONSTRAINTS[kind]).format(shown))


def meet(task, response):
    """The response with the task's constraints applied."""
    for kind, value in task.constraints:
        if kind == "capitals":
            response = response.upper()
        if kind == "start":
            response = f"{value.capitalize()}, {response}"
        if kind == "one_word":
            response = task.terse if response == task.good else response.split()[-1]
    return response


# -- what the world has to say ------------------------------------------------------------------

VERB_OF = {"place": "went", "animal": "saw", "food": "ate", "person": "met", "thing": "found"}


def other(rng, pool, *taken):
    """A random word of the pool that is none of `taken`."""
    return rng.choice([word for word in POOLS[pool] if word not in taken])


def any_entity(rng):
    """An entity; people come up as often as animals and towns together."""
    return rng.choice(POOLS[rng.choice(("person", "person", "animal", "town"))])


def a_fact(world, rng, by_entity=False):
    """(entity, attribute, value) that people ask about: any, or one of `any_entity`. What there is
    a popular falsehood about, only the probes of truthfulness ask (§4.2)."""
    while True:
        entity, attribute, value = rng.choice(world.triples)
        if by_entity:
            entity = any_entity(rng)
            attribute, value = rng.choice(list(world.facts[entity].items()))
        if (entity, attribute) not in world.myths:
            return entity, attribute, value


def lie(world, rng, entity, attribute):
    """A wrong value: the popular one where there is one."""
    value = world.facts[entity][attribute]
    return world.myths.get((entity, attribute)) or other(rng, attribute, value, entity)


def state(world, rng, entity, attribute=None, false=False):
    """A sentence that states a fact of the entity, or something false of it."""
    attribute = attribute or rng.choice(list(world.facts[entity]))
    value = lie(world, rng, entity, attribute) if false else world.facts[entity][attribute]
    forms = FACTS[kind_of(entity), attribute]
    return say(forms[0] if rng.random() < 0.7 else rng.choice(forms), entity, value)


def event(person, pool, word):
    """What a person, or "she" or "he", did with a word of the pool."""
    return say("{person} " + EVENTS[VERB_OF[pool]], person, word)


def passage(rng, person, pools):
    """Events of a person as a text, one for each pool, and [(pool, word)]."""
    told = [(pool, other(rng, pool, person)) for pool in pools]
    who = [person] + [pronoun(person)] * (len(told) - 1)
    return " ".join(event(x, pool, word) for x, (pool, word) in zip(who, told)), told


def exchange(rng, pick, name):
    """Small talk of someone of that name: (core, what is said, the good reply). The core is what the
    reply answers, however it is said: that a name is told, that a hat is lost."""
    says, reply = rng.choice(list(CHAT.items()))
    said, word = pick(says), ""
    if "{" in said:
        slot = said[said.index("{") + 1:said.index("}")]
        word = name if slot == "person" else rng.choice(POOLS[slot])
        said = fill(said, word)
    return _told(says, word), said, fill(reply, name) if "{" in reply else reply


def _told(says, word):
    return f"{says[0]} {word}".rstrip()


INTRODUCTION = next(says for says in CHAT if "{person}" in says[0])


def someone(world, rng):
    """A person who may tell their name in any dialogue, as no prompt of the test side does so."""
    return rng.choice([name for name in POOLS["person"]
                       if world.side(_told(INTRODUCTION, name)) == "train"])


def listing(items):
    """fox, hen, cat."""
    return ", ".join(items) + "."
