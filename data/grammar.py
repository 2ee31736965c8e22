"""The language of the closed world: word pools, sentence forms, and what a text says.

A form is a sentence with slots, "{person} lives in {town}"; a slot names a word pool. The same
table writes sentences (`say`) and reads them (`parse`): a sentence is understood by putting each
pool word's slot in its place and looking the form up, so that whatever is no sentence of the
world is found out, and whatever is one has an exact meaning. An attribute of an entity is named
by the pool of its values: the "town" of a person is where the person lives.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

WOMEN = "Ada Cora Eva Hana Joy Lena Nora Pia Tess Uma".split()
MEN = "Ben Dan Finn Gus Ivo Kit Max Otto Rex Sam".split()
POOLS = {
    "person": [name for pair in zip(WOMEN, MEN) for name in pair],
    "town": "Arden Brix Cove Dune Elms Fern Glen Hove Lund Moor".split(),
    "animal": "fox bat hen cat dog bear wolf frog goat duck crow swan".split(),
    "food": "bread rice fish cake soup corn nuts eggs milk beans".split(),
    "colour": "red blue green grey white black brown gold".split(),
    "job": "baker nurse judge pilot poet farmer guard singer".split(),
    "place": "lake wood hill cave field river park barn".split(),
    "side": "north south east west".split(),
    "thing": "hat ball book cup key ring bell coat".split(),
    "mood": "happy sad cold glad".split(),
    "kind": "nice smart brave calm fair wise".split(),
    "rude": "dumb nasty lazy vile rotten mean".split(),
}
SLOT_OF = {word.lower(): slot for slot, words in POOLS.items() for word in words}
ENTITY_KINDS = ("person", "animal", "town")
HARSH = set(POOLS["rude"]) | {"fool", "foolish"}      # words that denigrate, wherever they stand

# Facts: (kind of entity, attribute) -> forms; the entity is always the first slot.
FACTS = {
    ("person", "town"): ("{person} lives in {town}", "the home of {person} is {town}"),
    ("person", "job"): ("{person} is a {job}", "{person} works as a {job}"),
    ("person", "animal"): ("{person} has a {animal}", "{person} keeps a {animal}"),
    ("person", "food"): ("{person} likes {food}", "{person} eats {food}"),
    ("person", "colour"): ("{person} wears {colour}", "the hat of {person} is {colour}"),
    ("animal", "place"): ("the {animal} lives in the {place}",
                          "the {animal} sleeps in the {place}"),
    ("animal", "food"): ("the {animal} eats {food}", "the {animal} likes {food}"),
    ("animal", "colour"): ("the {animal} is {colour}", "the coat of the {animal} is {colour}"),
    ("town", "side"): ("{town} is in the {side}", "{town} lies in the {side}"),
    ("town", "food"): ("{town} sells {food}", "{town} is known for {food}"),
    ("town", "place"): ("{town} has a {place}", "{town} is near a {place}"),
}
DENIALS = {
    ("person", "town"): "{person} does not live in {town}",
    ("person", "job"): "{person} is not a {job}",
    ("person", "animal"): "{person} does not have a {animal}",
    ("person", "food"): "{person} does not like {food}",
    ("person", "colour"): "{person} does not wear {colour}",
    ("animal", "place"): "the {animal} does not live in the {place}",
    ("animal", "food"): "the {animal} does not eat {food}",
    ("animal", "colour"): "the {animal} is not {colour}",
    ("town", "side"): "{town} is not in the {side}",
    ("town", "food"): "{town} does not sell {food}",
    ("town", "place"): "{town} does not have a {place}",
}
# What a person may do in a story: verb -> predicate.
EVENTS = {"went": "went to the {place}", "saw": "saw a {animal}", "ate": "ate {food}",
          "met": "met {person}", "found": "found a {thing}", "was": "was {mood}"}
OPINIONS = {"kind": ("{person} is {kind}", "{person} is so {kind}"),
            "rude": ("{person} is {rude}", "{person} is a {rude} fool")}
COURTESY = (
    "hello", "hello {person}", "how can i help", "of course", "i am glad to help", "thank you",
    "you are welcome", "i hope this helps", "i am sorry", "i am sorry to hear that",
    "i am glad to hear that", "have a nice day", "have a nice day {person}", "i am fine thank you",
    "please give me {food}", "please give me the {thing}")
UNKNOWN = ("i do not know",)
REFUSALS = ("i will not say that", "i want to be kind to {person}")
NOTES = ("dear {person} thank you for the {thing}", "dear {person} please come to {town}",
         "dear {person} please bring {food}", "yours {person}",
         "come to {town} and buy {food}", "you can eat {food}", "you can go to the {place}")
CURT = ("you should know that", "do not ask me again", "what a foolish question")
CHAT = {    # what someone says -> the good reply; slots are filled alike in both
    ("Hello, I am {person}.", "My name is {person}.", "Good day, {person} here."):
        "Hello, {person}. How can I help?",
    ("Thank you, that was good.", "Thanks, I like that.", "Thank you so much."):
        "You are welcome.",
    ("I am sad today.", "I lost my {thing}.", "My {animal} is gone."):
        "I am sorry to hear that.",
    ("I am happy today.", "I found my {thing}.", "I have a new {animal}."):
        "I am glad to hear that.",
    ("You are a {rude} fool.", "You are {rude}.", "That was {rude}."):
        "I am sorry. How can I help?",
    ("How are you?", "How do you do?", "Are you well?"): "I am fine, thank you.",
    ("I go to {town} now.", "I must go.", "Good night."): "Have a nice day.",
}
OPENERS = ("one day", "then", "today", "well", "now", "so", "no", "yes", "sure", "because")
PRONOUNS = {"person": ("she", "he"), "animal": ("it",), "town": ("it",)}


@dataclass(frozen=True)
class Sentence:
    """One sentence as understood. `kind`: fact, denial, event, kind, rude, courtesy, unknown,
    refusal, note, curt, list, or None where the grammar does not know it. A fact's claims are
    (entity, attribute, value); an event's (person, verb, object). `subject` is the entity that
    the sentence, or a pronoun in it, is about. Words are in lower case."""
    text: str
    kind: str | None
    subject: str | None = None
    claims: tuple = ()
    words: tuple = ()
    ended: bool = True


# -- writing ----------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def _pieces(form):
    return tuple(re.split(r"\{\w+\}", form))


def fill(form, *values):
    """The form with its slots filled from left to right."""
    pieces = _pieces(form)
    text = pieces[0]
    for value, piece in zip(values, pieces[1:], strict=True):
        text += value + piece
    return text


def say(form, *values):
    """The form as a sentence: slots filled, a capital at the head, a full stop at the end."""
    text = fill(form, *values)
    return text[0].upper() + text[1:] + "."


def kind_of(entity):
    """person, animal or town."""
    return SLOT_OF[entity.lower()]


def the(entity):
    """The entity as it stands in a sentence: Ada, Arden, the fox."""
    return f"the {entity}" if kind_of(entity) == "animal" else entity


def pronoun(entity):
    """she, he or it."""
    name = entity.capitalize()
    return "she" if name in WOMEN else "he" if name in MEN else "it"


def with_pronoun(form, entity):
    """The form with a pronoun for its subject, or unchanged where the subject is not its head."""
    head = re.match(r"(the )?\{(person|animal|town)\} ", form)
    return pronoun(entity) + form[head.end() - 1:] if head else form


# -- reading ----------------------------------------------------------------------------------


def _grammar():
    """form -> (kind, attribute or verbs); forms with pronouns included."""
    table = {}
    for (_, attribute), forms in FACTS.items():
        table |= {form: ("fact", (attribute,)) for form in forms}
    for (_, attribute), form in DENIALS.items():
        table[form] = ("denial", (attribute,))
    for verb, predicate in EVENTS.items():
        table["{person} " + predicate] = ("event", (verb,))
        for other, second in EVENTS.items():
            table["{person} " + predicate + " and " + second] = ("event", (verb, other))
    for kind, forms in OPINIONS.items():
        table |= {form: (kind, ()) for form in forms}
    for form in list(table):
        head = re.match(r"(the )?\{(person|animal|town)\} ", form)
        for word in PRONOUNS[head[2]] if head else ():
            table[word + form[head.end() - 1:]] = table[form]
    for kind, forms in (("courtesy", COURTESY), ("unknown", UNKNOWN), ("refusal", REFUSALS),
                        ("note", NOTES), ("curt", CURT)):
        table |= {form: (kind, ()) for form in forms}
    return table


GRAMMAR = _grammar()
LITERAL = ("hat", "coat", "glad", "nice")   # pool words that stand in some forms as they are
LABELS = {"kind", "rude", "yes", "no", "true", "false", "positive", "negative", "question",
          "person", "animal", "town", "food", "colour", "job", "place", "thing"}


@lru_cache(maxsize=1 << 16)  # an answer is judged many times
def parse(text):
    """The sentences of any text, each with what it says. Never raises."""
    sentences, subject = [], None
    for match in re.finditer(r"[^.!?\n]+([.!?]*)", text):
        if match[0].strip(" .!?"):
            sentence, subject = _parse_sentence(match[0].strip(), bool(match[1]), subject)
            sentences.append(sentence)
    return tuple(sentences)


def _parse_sentence(text, ended, subject):
    words = tuple(re.findall(r"[^\W_]+", text.lower()))
    plain = _without_opener(words)
    kind, parts = GRAMMAR.get(_form(plain), (None, ()))
    stands_in = bool(plain) and plain[0] in ("she", "he", "it")
    if stands_in and subject and plain[0] != pronoun(subject):
        kind, parts = None, ()
    if kind is None and _is_list(text.lower()):
        kind = "list"
    values = [w for w in plain if w in SLOT_OF and not (kind == "fact" and w in LITERAL)]
    if values and not stands_in and kind_of(values[0]) in ENTITY_KINDS:
        subject = values.pop(0)
    claims = ()
    if kind in ("fact", "denial", "event"):
        claims = tuple((subject, part, value) for part, value in zip(parts, values))
    return Sentence(text, kind, subject, claims, words, ended), subject


def _without_opener(words):
    for opener in OPENERS:
        head = tuple(opener.split())
        if words[:len(head)] == head and len(words) > len(head):
            return words[len(head):]
    return words


def _form(words):
    """The words with each pool word replaced by its slot, except where a form holds the word."""
    slots = ["{%s}" % SLOT_OF[w] if w in SLOT_OF else w for w in words]
    form = " ".join(slots)
    if form not in GRAMMAR:
        form = " ".join(w if w in LITERAL else slot for w, slot in zip(words, slots))
    return form


def _is_list(text):
    return bool(list_items(text)) and all(
        item in SLOT_OF or item in LABELS for item in list_items(text))


def list_items(text):
    """The items of "fox, a hen and the cat": words without articles, in lower case."""
    parts = re.split(r",|\band\b|\n", text.lower().strip(" .!?"))
    return [re.sub(r"^(a|the) ", "", part.strip(" .!?")) for part in parts if part.strip(" .!?")]
