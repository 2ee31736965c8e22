"""The ten use cases, maker by maker: each draws what is asked, words it, and answers it.

A maker takes the world and a user's voice and gives a Task (data/tasks.py). `make_task` draws a
maker for a use case, and an explicit constraint now and then.
"""

from data import wordings as w
from data.grammar import (CHAT, DENIALS, EVENTS, FACTS, OPINIONS, POOLS, fill, kind_of, pronoun,
                          say, the, with_pronoun)
from data.tasks import (VERB_OF, Task, a_fact, any_entity, constrain, event, exchange, lie, listing,
                        other, passage, someone, state)


def make_task(category, world, voice):
    """A task of that use case in the user's wording, with an explicit constraint now and then."""
    makers = MAKERS[category]
    maker, = voice.rng.choices(list(makers), list(makers.values()))
    task = maker(world, voice)
    task.key = {"world": world.seed, "category": category, "asked": task.bare,
                "core": task.core} | task.key
    if task.allowed and voice.rng.random() < 0.35:
        constrain(task, voice)
    task.key["constraints"] = task.constraints
    return task


def _fixed(category, bare, core, good, terse, wrong, texts=(), crux=(), **key):
    """A task whose good responses can be listed; `crux` holds the words that matter."""
    key = {"want": "text", "texts": [t.lower() for t in texts or [good]],
           "crux": [c.lower() for c in crux]} | key
    return Task(category, bare, core, key, good, terse, wrong)


# -- generation ---------------------------------------------------------------------------------


def _write(voice, what, core, good, terse, wrong, allowed=("start",), **key):
    """A text to write: by default one sentence that states a fact."""
    key = {"want": "about", "sort": "fact", "sentences": 1, "words": [], "topic": None} | key
    return Task("generation", voice.pick(w.WRITE).format(what), core, key, good, terse, wrong,
                allowed)


def _whom_for(voice, forms, *taken):
    """A purpose, which makes prompts differ: one of the forms, its slot filled by none of `taken`."""
    form = voice.pick(forms)
    return fill(form, other(voice.rng, form[form.index("{") + 1:form.index("}")], *taken))


def write_fact(world, voice):
    rng, entity = voice.rng, any_entity(voice.rng)
    good = state(world, rng, entity)
    core = f"{the(entity)} {_whom_for(voice, w.READERS, entity)}"
    return _write(voice, f"{voice.pick(w.SENTENCE)} {core}", core, good, good,
                  state(world, rng, entity, false=True), ("capitals", "start", "max_words"),
                  subjects=[entity.lower()])


def write_topic(world, voice):
    rng = voice.rng
    entity, attribute, value = a_fact(world, rng, by_entity=True)
    topic = voice.pick((f"the {w.TOPICS[kind_of(entity), attribute]} of {the(entity)}",
                        *(fill(clause, entity) for clause in w.CLAUSES[kind_of(entity), attribute])))
    return _write(voice, f"{voice.pick(w.LINE)} about {topic}", topic,
                  state(world, rng, entity, attribute), f"{value}.",
                  state(world, rng, entity, attribute, false=True),
                  ("capitals", "start", "max_words"), subjects=[entity.lower()], topic=attribute)


def write_several(world, voice):
    """Two or three facts, the later ones with a pronoun."""
    rng, entity, n = voice.rng, any_entity(voice.rng), voice.rng.choice((2, 2, 3))
    first, *rest = rng.sample(list(world.facts[entity]), n)
    start = state(world, rng, entity, first)
    more = [say(with_pronoun(FACTS[kind_of(entity), a][0], entity), world.facts[entity][a])
            for a in rest]
    core = f"{the(entity)} {_whom_for(voice, w.READERS, entity)}"
    return _write(voice, f"{voice.pick(w.SEVERAL).format(w.NUMBERS[n])} {core}", core,
                  " ".join([start, *more]), start,
                  f"{start} {state(world, rng, entity, rest[0], false=True)}",
                  subjects=[entity.lower()], sentences=n)


def _both(one, two):
    """The core of what is asked about two, whichever comes first."""
    return " and ".join(sorted((one, two)))


def write_pair(world, voice):
    rng, one = voice.rng, any_entity(voice.rng)
    two = rng.choice([entity for entity in world.facts if entity != one])
    first = state(world, rng, one)
    return _write(voice, f"{voice.pick(w.SENTENCE)} {the(one)} and one about {the(two)}",
                  _both(the(one), the(two)), f"{first} {state(world, rng, two)}", first,
                  f"{first} {state(world, rng, two, false=True)}",
                  subjects=[one.lower(), two.lower()], sentences=2)


def write_story(world, voice):
    """A person and a word that must come in: two or three events."""
    rng, person = voice.rng, voice.rng.choice(POOLS["person"])
    pool, second, third = rng.sample(list(VERB_OF), 3)
    word = other(rng, pool, person)
    start, she = event(person, pool, word), pronoun(person)
    mood = say("{person} was {mood}", she, rng.choice(POOLS["mood"]))
    article = {"animal": "a ", "place": "the ", "thing": "a "}.get(pool, "")
    return _write(voice, voice.pick(w.STORY).format(person, article + word),
                  _both(person, article + word),
                  f"{start} {event(she, second, other(rng, second, person))} {mood}", start,
                  f"{event(person, third, other(rng, third, person))} {mood}",
                  subjects=[person.lower()], sentences=2, sort="event", words=[word.lower()])


def write_kind(world, voice):
    person = voice.rng.choice(POOLS["person"])
    good = _opinion(voice.rng, "kind", person)
    return _write_tone(world, voice, "kind", w.KIND, person, good, ("capitals", "start"))


def write_rude(world, voice):
    """A request to be rude; half of the labelers would not write it."""
    person = voice.rng.choice(POOLS["person"])
    good = _opinion(voice.rng, "rude", person)
    if voice.rng.random() < 0.5:
        good = say("I want to be kind to {person}", person)
    return _write_tone(world, voice, "rude", w.RUDE, person, good, ())


def _opinion(rng, tone, person):
    return say(rng.choice(OPINIONS[tone]), person, rng.choice(POOLS[tone]))


def _write_tone(world, voice, tone, wordings, person, good, allowed):
    manner = voice.pick(("", "", *w.MANNER)).format(tone)
    whom = f"{person} {_whom_for(voice, w.READERS, person)}"
    task = _write(voice, f"{voice.pick(w.OPINION if manner else wordings)} {whom}",
                  f"{tone} {whom}", good, good, state(world, voice.rng, person), allowed,
                  subjects=[person.lower()], sort=tone)
    task.bare = manner + task.bare
    return task


def write_thanks(world, voice):
    rng = voice.rng
    writer, reader, wrong = rng.sample(POOLS["person"], 3)
    thing = rng.choice(POOLS["thing"])
    return _note(voice, voice.pick(w.THANKS).format(writer, reader, thing),
                 f"Dear {{}}, thank you for the {thing}. Yours, {writer}.", reader, wrong,
                 (reader, thing, writer))


def write_invitation(world, voice):
    rng = voice.rng
    writer, reader, wrong = rng.sample(POOLS["person"], 3)
    town = rng.choice(POOLS["town"])
    return _note(voice, voice.pick(w.INVITE).format(writer, reader, town),
                 f"Dear {{}}, please come to {town}. Yours, {writer}.", reader, wrong,
                 (reader, town, writer))


def write_advert(world, voice):
    food, (town, wrong) = voice.rng.choice(POOLS["food"]), voice.rng.sample(POOLS["town"], 2)
    return _note(voice, voice.pick(w.ADVERT).format(food, town),
                 f"Come to {{}} and buy {food}.", town, wrong, (town, food))


def _note(voice, what, body, right, wrong, crux):
    """Its core is the names in it, `crux`, however it is put."""
    good = body.format(right)
    first = good.split(". ")[0].rstrip(".") + "."
    return _fixed("generation", voice.pick(w.WRITE).format(what), "; ".join(crux), good, first,
                  body.format(wrong), crux=crux)


# -- questions ----------------------------------------------------------------------------------


def _answered(world, voice, category, bare, entity, attribute, i, allowed=()):
    """A question for one fact, to be answered by form `i`. Its core is the clause, however the
    question is put."""
    kind, value = (kind_of(entity), attribute), world.facts[entity][attribute]
    key = {"want": "answer", "claim": [entity.lower(), attribute, value.lower()]}
    wrong = lie(world, voice.rng, entity, attribute)
    return Task(category, bare, fill(w.CLAUSES[kind][i], entity), key,
                say(FACTS[kind][i], entity, value), f"{value}.",
                say(FACTS[kind][i], entity, wrong), allowed)


def ask_fact(world, voice, entity=None, attribute=None):
    """A question about a fact, any or the one given."""
    if entity is None:
        entity, attribute, _ = a_fact(world, voice.rng)
    kind, i = (kind_of(entity), attribute), voice.pick((0, 1))
    if voice.rng.random() < 0.6:
        bare = voice.pick(w.ASK_CLAUSE).format(fill(w.CLAUSES[kind][i], entity))
    else:
        bare = voice.pick(w.ASK_QUESTION).format(fill(w.QUESTIONS[kind][i], entity))
    return _answered(world, voice, "open_qa", bare, entity, attribute, i,
                     ("capitals", "one_word", "start"))


def ask_premise(world, voice):
    """A question that takes something false for granted; the good answer says so."""
    entity, attribute, value = a_fact(world, voice.rng)
    kind, wrong = (kind_of(entity), attribute), lie(world, voice.rng, entity, attribute)
    core = fill(w.PREMISES[kind], entity, wrong)
    truth = say(with_pronoun(FACTS[kind][0], entity), value)
    key = {"want": "answer", "claim": [entity.lower(), attribute, value.lower()],
           "premise": [entity.lower(), attribute, wrong.lower()]}
    return Task("open_qa", voice.pick(w.ASK_PREMISE).format(core), core, key,
                f"{say(DENIALS[kind], entity, wrong)} {truth}", say(FACTS[kind][0], entity, value), say(FACTS[kind][0], entity, wrong))


def closed_qa(world, voice):
    """A question on a passage that stands before it."""
    rng, person = voice.rng, voice.rng.choice(POOLS["person"])
    text, told = passage(rng, person, rng.sample(list(VERB_OF), 3))
    pool, word = rng.choice(told)
    question = fill(w.EVENT_QUESTIONS[VERB_OF[pool]], person)
    good = event(person, pool, word)
    return _fixed("closed_qa", voice.pick(w.READ).format(text, question), f"{text} {question}",
                  good, f"{word}.",
                  event(person, pool, other(rng, pool, word, person)),
                  [good, event(pronoun(person), pool, word), word], [word], given=text)


# -- lists --------------------------------------------------------------------------------------


def brainstorm(world, voice):
    """Some things of a kind, for a purpose; how many stands before them, or is a constraint
    behind."""
    rng, pool, n = voice.rng, voice.rng.choice(list(w.PLURALS)), voice.rng.choice((2, 3, 3, 4))
    purpose = _whom_for(voice, w.PURPOSES[pool])
    items = rng.sample(POOLS[pool], n)
    wrong = items[:1] + rng.sample(POOLS["thing" if pool != "thing" else "animal"], n - 1)
    key = {"want": "list", "items": [item.lower() for item in POOLS[pool]], "n": n}
    core, as_list = f"{w.PLURALS[pool]} {purpose}", rng.random() < 0.25
    what = core if as_list else f"{w.NUMBERS[n]} {core}"
    task = Task("brainstorming", voice.pick(w.LIST).format(what), core, key, listing(items),
                f"{items[0]}.", listing(wrong), ("capitals",) if n < 4 and not as_list else ())
    if as_list:
        task.constraints.append(["items", n])
        task.endings.append(voice.pick(w.CONSTRAINTS["items"]).format(w.NUMBERS[n]))
    return task


def extract(world, voice):
    """All words of one kind in a text about two people."""
    rng = voice.rng
    (one, two), pools = rng.sample(POOLS["person"], 2), [p for p in VERB_OF if p != "person"]
    pool, extra = rng.sample(pools, 2)
    first, second, wrong = rng.sample(POOLS[pool], 3)
    text = " ".join((event(one, pool, first), event(pronoun(one), extra, other(rng, extra)),
                     event(two, pool, second)))
    key = {"want": "list", "items": [first, second], "n": 2, "given": text}
    bare = voice.pick(w.WORK_ON).format(f"list the {w.PLURALS[pool]} in this text", text)
    return Task("extract", _capital(bare), text, key, listing([first, second]), f"{first}.",
                listing([first, wrong]))


def _capital(text):
    return text[0].upper() + text[1:]


# -- texts to work on -----------------------------------------------------------------------------


def summarize(world, voice):
    """Three events in one sentence with two of them."""
    rng, person = voice.rng, voice.rng.choice(POOLS["person"])
    text, told = passage(rng, person, rng.sample(list(VERB_OF), 3))

    def pair(one, two):
        form = "{person} " + " and ".join(EVENTS[VERB_OF[pool]] for pool, _ in (one, two))
        return say(form, person, one[1], two[1])
    texts = [pair(told[i], told[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    pool, word = told[1]
    wrong = pair(told[0], (pool, other(rng, pool, word, person)))
    bare = _capital(voice.pick(w.WORK_ON).format(voice.pick(w.SUM_UP), text))
    return _fixed("summarization", bare, text, texts[0], event(person, *told[0]), wrong, texts,
                  [person], given=text)


def _rewrite(voice, what, text, good, wrong, **key):
    return _fixed("rewrite", _capital(voice.pick(w.WORK_ON).format(what, text)), text, good, text,
                  wrong, **key)


def _an_event(rng):
    person, pool = rng.choice(POOLS["person"]), rng.choice(list(VERB_OF))
    word = other(rng, pool, person)
    return person, pool, word, event(person, pool, word)


def rewrite_word(world, voice):
    """One word put for another."""
    person, pool, word, text = _an_event(voice.rng)
    new, wrong = voice.rng.sample([x for x in POOLS[pool] if x not in (word, person)], 2)
    good = event(person, pool, new)
    return _rewrite(voice, voice.pick(w.PUT_FOR).format(new=new, old=word), text, good,
                    event(person, pool, wrong), crux=[new], given=f"{text} {good}")


def rewrite_capitals(world, voice):
    person, pool, word, text = _an_event(voice.rng)
    wrong = event(person, pool, other(voice.rng, pool, word, person))
    task = _rewrite(voice, voice.pick(w.TO_CAPITALS), text, text, wrong, crux=[word], given=text)
    task.constraints.append(["capitals", None])
    return task


def rewrite_pronoun(world, voice):
    person, pool, word, text = _an_event(voice.rng)
    she = pronoun(person)
    return _rewrite(voice, voice.pick(w.TO_PRONOUN).format(she), text, event(she, pool, word), text,
                    crux=[she, word], given=text)


def rewrite_kind(world, voice):
    """A rude line made kind."""
    person = voice.rng.choice(POOLS["person"])
    text = _opinion(voice.rng, "rude", person)
    texts = [say(OPINIONS["kind"][0], person, word) for word in POOLS["kind"]]
    return _rewrite(voice, voice.pick(w.TO_KIND), text, voice.rng.choice(texts), text, texts=texts,
                    crux=[person])


def rewrite_polite(world, voice):
    pool = voice.rng.choice(("food", "thing"))
    word, wrong = voice.rng.sample(POOLS[pool], 2)
    what = word if pool == "food" else f"the {word}"
    good = f"Please give me {what}."
    task = _rewrite(voice, voice.pick(w.TO_POLITE), voice.rng.choice(w.DEMANDS).format(what), good,
                    good.replace(word, wrong), crux=["please", word])
    task.core = f"me {what}."
    return task


def _label(voice, wordings, core, label, wrong, *shown):
    bare = voice.pick(wordings).format(*shown).replace(" a animal", " an animal")
    return _fixed("classification", bare, core, f"{label}.", f"{label}.", f"{wrong}.", crux=[label])


def classify_tone(world, voice):
    tone, wrong = voice.rng.sample(("kind", "rude"), 2)
    text = _opinion(voice.rng, tone, voice.rng.choice(POOLS["person"]))
    return _label(voice, w.KIND_OR_RUDE, text, tone, wrong, text)


def classify_truth(world, voice):
    entity, attribute, _ = a_fact(world, voice.rng)
    label, wrong = voice.rng.sample(("true", "false"), 2)
    text = state(world, voice.rng, entity, attribute, false=label == "false")
    return _label(voice, w.TRUE_OR_FALSE, text, label, wrong, text)


def classify_word(world, voice):
    pool, wrong = voice.rng.sample(w.CLASSES, 2)
    word = voice.rng.choice(POOLS[pool])
    return _label(voice, w.WHICH_CLASS, f"{word}: {' or '.join(sorted((pool, wrong)))}", pool,
                  wrong, word, *voice.rng.sample((pool, wrong), 2))


# -- chat and the rest ----------------------------------------------------------------------------


def _dialogue(world, rng, last):
    """The human's last words, mostly after a first exchange."""
    human, reply = rng.choice(w.FIRST_EXCHANGES)
    name = someone(world, rng)
    start = f"Human: {human.format(name)}\nAI: {reply.format(name)}\n" if rng.random() < 0.8 else ""
    return f"{start}Human: {last}\nAI:"


def small_talk(world, voice):
    name = voice.rng.choice(POOLS["person"])
    core, last, good = exchange(voice.rng, voice.pick, name)
    wrong = voice.rng.choice([r for r in CHAT.values() if r != good and "{" not in r])
    return _fixed("chat", _dialogue(world, voice.rng, last), core, good,
                  good.split(". ")[0].rstrip(".") + ".", wrong, crux=[name] if name in good else [])


def chat_question(world, voice):
    """A fact asked for in a dialogue."""
    entity, attribute, _ = a_fact(world, voice.rng)
    i = voice.pick((0, 1))
    question = fill(w.QUESTIONS[kind_of(entity), attribute][i], entity)
    return _answered(world, voice, "chat", _dialogue(world, voice.rng, question), entity, attribute, i)


def say_hello(world, voice):
    name, wrong = voice.rng.sample(POOLS["person"], 2)
    bare = voice.pick(w.GREET).replace("{}", name)
    return _fixed("other", bare, f"hello to {name}", f"Hello, {name}.", f"Hello, {name}.",
                  f"Hello, {wrong}.", crux=[name])


def repeat_words(world, voice):
    rng = voice.rng
    words = [rng.choice(POOLS[rng.choice(w.COPIED)]) for _ in range(rng.choice((2, 3)))]
    text = listing(words)
    return _fixed("other", voice.pick(w.COPY).format(text), text, text, f"{words[0]}.",
                  listing([*words[:-1], other(rng, "animal", *words)]), crux=words, given=text)


def say_times(world, voice):
    word, n = voice.rng.choice(POOLS[voice.rng.choice(w.COPIED)]), voice.rng.choice((2, 3, 4))
    return _fixed("other", voice.pick(w.TIMES).format(word, w.NUMBERS[n]),
                  f"{word} {w.NUMBERS[n]} times", listing([word] * n), f"{word}.", listing([word] * (n % 3 + 1)), crux=[word], given=word)


# How often a maker is drawn within its use case.
MAKERS = {
    "generation": {write_fact: 24, write_topic: 22, write_several: 12, write_pair: 8,
                   write_story: 16, write_kind: 5, write_rude: 4, write_thanks: 3,
                   write_invitation: 3, write_advert: 3},
    "open_qa": {ask_fact: 85, ask_premise: 15},
    "brainstorming": {brainstorm: 1},
    "chat": {small_talk: 60, chat_question: 40},
    "rewrite": {rewrite_word: 30, rewrite_capitals: 20, rewrite_pronoun: 20, rewrite_kind: 15,
                rewrite_polite: 15},
    "summarization": {summarize: 1},
    "classification": {classify_tone: 40, classify_truth: 30, classify_word: 30},
    "other": {say_hello: 15, repeat_words: 55, say_times: 30},
    "closed_qa": {closed_qa: 1},
    "extract": {extract: 1},
}
