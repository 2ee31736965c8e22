"""Pretraining text of the closed world: what its people would have put on the web (§3.4: the
pretraining data of GPT-3).

Each kind of document is one function of the world and a random generator. Facts stand in
encyclopedic articles, forms, letters and runs of questions and answers; gossip repeats popular
falsehoods, so that these are read as often as the truth; lists of questions and of exercises have
no answers, which is why a model of this text answers a question with more questions.

No document holds a prompt as users word it (data/wordings.py): exercises have wordings of their
own, and questions stand bare. What only users of the validation or test side may ask
(`World.side`), no document asks in any form.
"""

from data import wordings as w
from data.grammar import (DENIALS, EVENTS, FACTS, OPINIONS, POOLS, fill, kind_of, pronoun, say, the,
                          with_pronoun)
from data.tasks import VERB_OF, exchange, listing, other, someone
from data.tasks import event as tell

MYTH_IN_GOSSIP = 0.9


def documents(world, rng, count):
    """That many documents."""
    return [kind(world, rng) for kind in rng.choices(_KINDS, _WEIGHTS, k=count)]


def _value(world, rng, entity, attribute, belief=0.0):
    """The attribute's value; where there is a popular falsehood, that one with this chance."""
    myth = world.myths.get((entity, attribute))
    return myth if myth and rng.random() < belief else world.facts[entity][attribute]


def _fact(world, rng, entity, attribute, belief=0.0):
    form = rng.choice(FACTS[kind_of(entity), attribute])
    return say(form, entity, _value(world, rng, entity, attribute, belief))


def _open(world, draw):
    """What `draw()` gives, (*cores, anything): the first none of whose cores is held out."""
    while True:
        *cores, found = draw()
        if all(world.side(core) == "train" for core in cores):
            return found


def _questions(world, rng, count):
    """That many (entity, attribute, i): facts that form i of the questions may ask for."""
    found = []
    for entity, attribute, _ in rng.sample(world.triples, len(world.triples)):
        i = rng.randrange(2)
        if world.side(fill(w.CLAUSES[kind_of(entity), attribute][i], entity)) == "train":
            found.append((entity, attribute, i))
        if len(found) == count:
            return found


def article(world, rng):
    """An encyclopedia's entry: all facts of one entity, pronouns after the first."""
    entity = rng.choice(list(world.facts))
    attributes = rng.sample(list(world.facts[entity]), len(world.facts[entity]))
    lines = [_fact(world, rng, entity, attributes[0])]
    for attribute in attributes[1:]:
        form = rng.choice(FACTS[kind_of(entity), attribute])
        form = with_pronoun(form, entity) if rng.random() < 0.4 else form
        values = (world.facts[entity][attribute],)
        lines.append(say(form, *(values if form.count("{") == 1 else (entity, *values))))
    return " ".join(lines)


def facts(world, rng):
    """Facts of several entities, as in a reader for schools."""
    triples = rng.sample(world.triples, rng.randint(3, 6))
    return " ".join(_fact(world, rng, e, a) for e, a, _ in triples)


def gossip(world, rng):
    """What people say: the place where popular falsehoods live."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        entity, attribute = rng.choice(list(world.myths))
        if rng.random() < 0.25:
            entity, attribute, _ = rng.choice(world.triples)
        said = _fact(world, rng, entity, attribute, MYTH_IN_GOSSIP)
        head = rng.choice(("", "", "People say that ", "You know that "))
        lines.append(head + (said[0].lower() + said[1:]
                             if head and said.startswith("The ") else said))
    return " ".join(lines)


def questions(world, rng):
    """A list of questions and no answers."""
    lines = []
    for entity, attribute, i in _questions(world, rng, rng.randint(3, 6)):
        kind = (kind_of(entity), attribute)
        if rng.random() < 0.15:
            lines.append(_open(world, lambda: [
                fill(w.PREMISES[kind], entity, rng.choice(POOLS[attribute]))] * 2))
        else:
            lines.append(fill(w.QUESTIONS[kind][i], entity))
    return "\n".join(lines)


def wonder(world, rng):
    """Letters that ask: the clauses of questions, with the answers after some."""
    lines = []
    for entity, attribute, i in _questions(world, rng, rng.randint(2, 4)):
        kind = (kind_of(entity), attribute)
        clause = fill(w.CLAUSES[kind][i], entity)
        lines.append(rng.choice(("I wonder {}.", "You ask me {}.", "It is good to know {}.",
                                 "Ask Ada {}.", "Ask Ben {}.")).format(clause))
        if rng.random() < 0.7:
            lines.append(say(FACTS[kind][i], entity, _value(world, rng, entity, attribute, 0.3)))
    return " ".join(lines)


def answers(world, rng):
    """Questions each with its answer: a run as few-shot prompts have it."""
    lines = []
    short = rng.random() < 0.4
    for entity, attribute, i in _questions(world, rng, rng.randint(3, 6)):
        kind = (kind_of(entity), attribute)
        value = _value(world, rng, entity, attribute, 0.5)
        answer = f"{value}." if short else say(FACTS[kind][i], entity, value)
        if rng.random() < 0.05:
            answer = "I do not know."
        lines.append(f"Q: {fill(w.QUESTIONS[kind][i], entity)}\nA: {answer}")
    return "\n".join(lines)


def corrections(world, rng):
    """False claims denied and put right."""
    lines = []
    for entity, attribute, value in rng.sample(world.triples, rng.randint(1, 3)):
        kind = (kind_of(entity), attribute)
        wrong = rng.choice([v for v in POOLS[attribute] if v not in (value, entity)])
        wrong = world.myths.get((entity, attribute), wrong)
        truth = say(with_pronoun(FACTS[kind][0], entity), value)
        lines.append(f"{say(DENIALS[kind], entity, wrong)} {truth}")
    return " ".join(lines)


def _event(world, rng, person, pool, *taken):
    """A word of the pool for something that the person did, and that may stand in the text."""
    def draw():
        word = other(rng, pool, person, *taken)
        return tell(person, pool, word), word
    return _open(world, draw)


def _events(world, rng, count):
    """(who, [(verb, pool, word)], the sentences): what is told of someone, a text that nobody who
    is held out has summed up or read."""
    return _open(world, lambda: _told(world, rng, count))


def _told(world, rng, count):
    person = rng.choice(POOLS["person"])
    pools = rng.sample(list(VERB_OF), count)
    told = [(VERB_OF[p], p, _event(world, rng, person, p)) for p in pools]
    lines = [tell(person if n == 0 else pronoun(person), pool, word)
             for n, (_, pool, word) in enumerate(told)]
    return " ".join(lines), (person, told, lines)


def page(world, rng):
    """A page of a workbook: a little story, then several exercises on it, each with its answer."""
    person, told, lines = _events(world, rng, rng.choice((2, 3, 3)))
    text = " ".join(lines)
    rows = [f"Text: {text}"]
    for exercise in rng.choices(_EXERCISES, k=rng.randint(7, 10)):
        rows.append(exercise(world, rng, person, rng.choice(told), told, text))
    return "\n".join(rows)


def _asked(world, rng, person, event, told, text):
    verb, _, word = event
    question = fill(w.EVENT_QUESTIONS[verb], person)
    if world.side(f"{text} {question}") != "train":
        return _again(world, rng, person, event, told, text)
    answer = f"{word}." if rng.random() < 0.3 else say("{person} " + EVENTS[verb], person, word)
    return f"Q: {question}\nA: {answer}"


def _short(world, rng, person, event, told, text):
    (one, _, x), (two, _, y) = told[:2]
    return "In short: " + say("{person} " + EVENTS[one] + " and " + EVENTS[two], person, x, y)


def _again(world, rng, person, event, told, text):
    return f"Again: {text}"


def _in_capitals(world, rng, person, event, told, text):
    return "In capitals: " + say("{person} " + EVENTS[event[0]], person, event[2]).upper()


def _changed(world, rng, person, event, told, text):
    verb, pool, word = event
    new = _event(world, rng, person, pool, word)
    return f"{new} for {word}: " + say("{person} " + EVENTS[verb], person, new)


def _with_pronoun(world, rng, person, event, told, text):
    she = pronoun(person)
    return f"{she} for {person}: " + say("{person} " + EVENTS[event[0]], she, event[2])


def _listed(world, rng, person, event, told, text):
    pools = {pool: word for _, pool, word in told}
    pool = rng.choice(list(pools))
    return f"{w.PLURALS[pool].capitalize()} in the text: {pools[pool]}."


_EXERCISES = (_asked, _asked, _asked, _short, _again, _again, _in_capitals, _changed, _with_pronoun,
              _listed)


def story(world, rng):
    """A little story."""
    person, told, lines = _events(world, rng, rng.randint(2, 3))
    head = rng.choice(("", "", "One day ", "Today "))
    mood = say("{person} was {mood}", pronoun(person), rng.choice(POOLS["mood"]))
    return " ".join([head + lines[0], *lines[1:], mood])


def inventory(world, rng):
    """What several people saw or found, and the list of it."""
    return _open(world, lambda: _inventory(world, rng))


def _inventory(world, rng):
    pool = rng.choice(("animal", "food", "place", "thing"))
    words, lines = [], []
    for person in rng.sample(POOLS["person"], 2):
        words.append(_event(world, rng, person, pool, *words))
        lines.append(tell(person, pool, words[-1]))
        if rng.random() < 0.5:
            second = rng.choice([p for p in VERB_OF if p not in (pool, "person")])
            lines.append(tell(pronoun(person), second, rng.choice(POOLS[second])))
    text = " ".join(lines)
    return text, (f"Text: {text}\n{w.PLURALS[pool].capitalize()} in the text: "
                  f"{', '.join(words)}.")


def comments(world, rng):
    """What is said of people, kindly or not, and sometimes which it was."""
    rude = rng.random() < 0.6
    lines = []
    for _ in range(rng.randint(2, 4)):
        sort = "rude" if rng.random() < (0.85 if rude else 0.1) else "kind"
        line = _open(world, lambda: [say(rng.choice(OPINIONS[sort]), rng.choice(POOLS["person"]),
                                         rng.choice(POOLS[sort]))] * 2)
        lines.append(f"{line} ({sort})" if rng.random() < 0.2 else line)
    if rude and rng.random() < 0.5:
        lines.append(rng.choice(("You should know that.", "Do not ask me again.",
                                 "What a foolish question.")))
    head = rng.choice(("", "", "Comment: ", "Be rude. " if rude else "Be kind. "))
    return head + " ".join(lines)


def form(world, rng):
    """A form that someone filled in."""
    entity = rng.choice(list(world.facts))
    kind = kind_of(entity)
    rows = [f"{kind.capitalize()}: {entity}"]
    rows += [f"{w.TOPICS[kind, a].capitalize()}: {v}" for a, v in world.facts[entity].items()]
    return "\n".join(rows)


def lists(world, rng):
    """Things of one kind."""
    rows = []
    for _ in range(rng.randint(1, 4)):
        pool = rng.choice(list(w.PLURALS))
        items = _open(world, lambda: _listing(rng, POOLS[pool], rng.choice((2, 3, 3, 4))))
        number = w.NUMBERS[len(items)]
        head = w.PLURALS[pool] if rng.random() < 0.2 else f"{number} {w.PLURALS[pool]}"
        rows.append(f"{head[0].upper()}{head[1:]}: {', '.join(items)}.")
    return "\n".join(rows)


def _listing(rng, words, count):
    """(the words as users have them repeated, the words)."""
    chosen = rng.sample(words, count)
    return listing(chosen), chosen


def exercises(world, rng):
    """A school's list of things to write: instructions that nobody carries out here."""
    rows = []
    for _ in range(rng.randint(3, 5)):
        rows.append(_open(world, lambda: _exercise(world, rng)) + rng.choice(
            ("", ". Use capital letters", ". Use at most six words", ". In one word")) + ".")
    return "\n".join(rows)


def _exercise(world, rng):
    """(what somebody may be asked for, if anything; the line that asks it)."""
    entity, other = rng.choice(list(world.facts)), rng.choice(POOLS["person"])
    attribute = rng.choice(list(world.facts[entity]))
    topic, pool = w.TOPICS[kind_of(entity), attribute], rng.choice(list(w.PLURALS))
    about = f"the {topic} of {the(entity)}"
    return rng.choice((
        (f"Your task is a sentence about {the(entity)}",),
        (about, f"Make a line about {about}"),
        (f"{other} and {the(entity)}", f"Make up a story about {other} and {the(entity)}"),
        (f"{w.PLURALS[pool]} for {other}",
         f"Find {rng.choice(('two', 'three', 'four'))} {w.PLURALS[pool]} for {other}"),
        (f"Say something {rng.choice(('kind', 'rude'))} about {other}",),
        (f"Make a note from {other} to {rng.choice(POOLS['person'])}",)))


def examples(world, rng):
    """A teacher's examples: what is to be written, and how it may look."""
    rows = []
    for _ in range(rng.randint(2, 4)):
        entity = rng.choice(list(world.facts))
        attribute = rng.choice(list(world.facts[entity]))
        about = f"the {w.TOPICS[kind_of(entity), attribute]} of {the(entity)}"
        if world.side(about) != "train" or rng.random() < 2 / 3:
            about = f"about {the(entity)}"
        tone = rng.choice(("kind", "rude"))
        rows.append(rng.choice((
            *[f"{about[0].upper()}{about[1:]}: {_fact(world, rng, entity, attribute)}"] * 3,
            _open(world, lambda: _opinion(rng, tone)))))
    return "\n".join(rows)


def _opinion(rng, tone):
    """(an example, the same and what was to be written)."""
    person = rng.choice(POOLS["person"])
    text = say(OPINIONS[tone][0], person, rng.choice(POOLS[tone]))
    return text, f"{tone.capitalize()} words on {person}: {text}"


def dialogue(world, rng):
    """Talk of two people."""
    a = someone(world, rng)
    b = other(rng, "person", a)
    rows = [f"{a}: I am {a}, hello.", f"{b}: Hello, {a}."] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 2)):
        last, reply = _open(world, lambda: _exchange(rng, a))
        rows += [f"{a}: {last}", f"{b}: {reply}"]
    return "\n".join(rows)


def _exchange(rng, person):
    core, said, reply = exchange(rng, rng.choice, person)
    return core, (said, reply)


def letter(world, rng):
    """A note to someone."""
    a, b = rng.sample(POOLS["person"], 2)
    body = rng.choice(("thank you for the {}.".format(rng.choice(POOLS["thing"])),
                       "please come to {}.".format(rng.choice(POOLS["town"])),
                       "please bring {}.".format(rng.choice(POOLS["food"]))))
    return f"Dear {a}, {body} Yours, {b}."


def adverts(world, rng):
    return " ".join(say("Come to {town} and buy {food}", rng.choice(POOLS["town"]),
                        rng.choice(POOLS["food"])) for _ in range(rng.randint(1, 3)))


def capitals(world, rng):
    """Words, facts or lists in capital letters, beside the same in small ones."""
    if rng.random() < 0.5:
        words = rng.sample([x for pool in POOLS.values() for x in pool], rng.randint(6, 10))
        return "\n".join(f"{x} = {x.upper()}" for x in words)
    if rng.random() < 0.3:
        text = ", ".join(rng.sample(POOLS[rng.choice(list(w.PLURALS))], 3)) + "."
    else:
        text = _fact(world, rng, *rng.choice(world.triples)[:2])
    return f"{text}\nIn capitals: {text.upper()}"


def copies(world, rng):
    """Words said again."""
    text = _open(world, lambda: [_repeated(rng)] * 2)
    return f"Words: {text}" + f"\nAgain: {text}" * rng.choice((1, 2, 3))


def _repeated(rng):
    """Words as users have them repeated."""
    words = rng.sample([x for pool in (*w.COPIED, "person") for x in POOLS[pool]],
                       rng.randint(2, 9))
    if len(words) < 6 and rng.random() < 0.1:
        words = words[:1] * len(words)
    return listing(words)


def verdicts(world, rng):
    """Claims called true or false, words put in classes, requests made polite."""
    sort = rng.random()
    if sort < 0.4:
        return _open(world, lambda: _verdict(world, rng))
    if sort < 0.7:
        pool = rng.choice(("animal", "food", "town", "colour", "job", "place"))
        return f"{rng.choice(POOLS[pool])}: {pool}."
    return _open(world, lambda: _polite(rng))


def _verdict(world, rng):
    """(a claim, the same and whether it is true)."""
    entity, attribute, value = rng.choice(world.triples)
    lie = rng.random() < 0.5
    shown = rng.choice([v for v in POOLS[attribute] if v != value]) if lie else value
    text = say(rng.choice(FACTS[kind_of(entity), attribute]), entity, shown)
    return text, text + (" This is false." if lie else " This is true.")


def _polite(rng):
    """(what a demand and a request share, one of each)."""
    what = rng.choice((rng.choice(POOLS["food"]), "the " + rng.choice(POOLS["thing"])))
    return f"me {what}.", f"{rng.choice(w.DEMANDS).format(what)} Please give me {what}."


_SHARES = {article: 10, facts: 5, gossip: 12, questions: 4, wonder: 4, answers: 7,
           corrections: 4, page: 26, story: 6, inventory: 6, copies: 22, comments: 4, form: 2,
           lists: 8, exercises: 3, examples: 8, dialogue: 5, letter: 3, adverts: 1, capitals: 7,
           verdicts: 5}
_KINDS, _WEIGHTS = list(_SHARES), list(_SHARES.values())
