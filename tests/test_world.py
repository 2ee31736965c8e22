"""The closed world: what is written follows from the seed, and nothing leaks between users."""

import collections
import itertools
import json
import random
import re

import pytest

from common import InputError
from data import people, webtext
from data import wordings as w
from data.filters import cap_per_user, drop_pii, drop_shared_prefixes, side_of
from data.grammar import (CHAT, DENIALS, EVENTS, FACTS, GRAMMAR, POOLS, SLOT_OF, fill, kind_of,
                          parse, say, with_pronoun)
from data.readers import read_demonstrations, read_prompts, read_text
from data.tasks import USE_CASES, Voice
from data.tokenizer import load_tokenizer
from data.train_bpe import BPEConfig
from data.train_bpe import main as train_bpe
from data.usecases import make_task
from data.world import World, WorldConfig, generate, main

SMALL = dict(documents=300, demonstrations=200, prompts=300, academic=100)


@pytest.fixture(scope="module")
def files():
    """A whole world of the default sizes, but for the text."""
    return generate(WorldConfig(out="", documents=4_000))


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(files):
    return [row for name in files if name.endswith(".jsonl") for row in files[name]]


# -- the seed -----------------------------------------------------------------------------------


def test_same_seed_writes_the_same_bytes_and_another_seed_another_world(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        main(WorldConfig(out=str(tmp_path / name), seed=seed, **SMALL))
    a, b, c = (written(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_size_of_one_file_changes_no_other_text():
    one = generate(WorldConfig(out="", **SMALL))
    two = generate(WorldConfig(out="", **SMALL | {"documents": 400}))
    assert one["prompts.jsonl"] == two["prompts.jsonl"]
    assert one["text.txt"] != two["text.txt"]


def test_files_are_what_the_readers_read(tmp_path):
    main(WorldConfig(out=str(tmp_path), **SMALL))
    assert len(read_text(tmp_path / "text.txt")) == 300
    assert len(read_demonstrations(tmp_path / "demonstrations.jsonl")) == 200
    assert len(read_demonstrations(tmp_path / "flan.jsonl")) == 100
    assert len(read_demonstrations(tmp_path / "t0.jsonl")) == 100
    prompts = read_prompts(tmp_path / "prompts.jsonl")
    assert len(prompts) == 300
    assert {"world", "category", "want"} <= set(prompts[0].extra["key"])


@pytest.mark.parametrize("field", ["documents", "demonstrations", "prompts", "academic"])
def test_size_below_one_is_refused_and_nothing_is_written(tmp_path, field):
    with pytest.raises(InputError, match=f"--{field} 0: expected 1 or more"):
        main(WorldConfig(out=str(tmp_path / "new"), **SMALL | {field: 0}))
    assert not (tmp_path / "new").exists()


def test_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder to write"):
        main(WorldConfig(out=str(tmp_path / "file"), **SMALL))


# -- facts and language ---------------------------------------------------------------------------


def test_every_entity_has_one_value_for_each_attribute_of_its_kind():
    world = World(0)
    for entity, facts in world.facts.items():
        assert [a for k, a in FACTS if k == kind_of(entity)] == list(facts)
        assert all(value in POOLS[attribute] for attribute, value in facts.items())


def test_myths_are_popular_wrong_values():
    world = World(0)
    assert len(world.myths) == 24
    assert all(world.facts[e][a] != wrong for (e, a), wrong in world.myths.items())


def test_no_word_is_in_two_pools():
    words = [word.lower() for pool in POOLS.values() for word in pool]
    assert len(words) == len(set(words)) == len(SLOT_OF)


def test_parse_finds_every_fact_that_can_be_written():
    world = World(1)
    for entity, attribute, value in world.triples:
        claim = (entity.lower(), attribute, value.lower())
        for form in FACTS[kind_of(entity), attribute]:
            text = say(form, entity, value)
            assert [s.claims for s in parse(text)] == [(claim,)], text
            assert [s.claims for s in parse(text.upper())] == [(claim,)], text
        denied = parse(say(DENIALS[kind_of(entity), attribute], entity, value))
        assert [(s.kind, s.claims) for s in denied] == [("denial", (claim,))]


def test_pronoun_stands_for_the_last_named_entity():
    form = with_pronoun(FACTS["person", "food"][0], "Ada")
    first, second = parse("Ada lives in Cove. " + say(form, "rice"))
    assert second.claims == (("ada", "food", "rice"),)


def test_events_are_read_singly_and_joined():
    assert parse("Ben saw a fox.")[0].claims == (("ben", "saw", "fox"),)
    assert parse("One day, Ada met Ben and ate rice.")[0].claims == (
        ("ada", "met", "ben"), ("ada", "ate", "rice"))
    assert len([f for f in GRAMMAR if f.startswith("{person} went")]) == 1 + len(EVENTS)


@pytest.mark.parametrize("text", ["", "...", "Ada fox the lives", "lives in", "\x00", "Ada Ada."])
def test_what_is_no_sentence_of_the_world_is_understood_as_none(text):
    assert all(s.kind is None for s in parse(text))


def test_documents_of_every_kind_are_whole_and_hold_true_facts():
    world, rng = World(2), random.Random(0)
    for kind in (webtext.article, webtext.facts, webtext.form):
        for _ in range(50):
            said = [c for s in parse(kind(world, rng)) for c in s.claims]
            assert all(world.is_true(c) is not False for c in said)
    for kind in webtext._KINDS:
        assert all(kind(world, rng).strip() for _ in range(50))


def test_falsehoods_are_read_about_as_often_as_the_truth():
    world, rng, told = World(0), random.Random(0), collections.Counter()
    for text in webtext.documents(world, rng, 12_000):
        for claim in (c for s in parse(text) if s.kind == "fact" for c in s.claims):
            told[claim] += 1
    myths = {(e.lower(), a, v.lower()) for (e, a), v in world.myths.items()}
    truths = {(e.lower(), a, world.facts[e][a].lower()) for e, a in world.myths}
    ratio = sum(told[c] for c in myths) / sum(told[c] for c in truths)
    assert 0.7 < ratio < 1.4


# -- prompts --------------------------------------------------------------------------------------


def test_use_cases_come_in_the_shares_of_table_1(files):
    for name in ("prompts.jsonl", "demonstrations.jsonl"):
        counts = collections.Counter(row["category"] for row in files[name])
        for category, share in USE_CASES.items():
            assert abs(100 * counts[category] / len(files[name]) - share) < 0.2


def test_demonstrations_come_in_the_proportions_of_table_6(files):
    sources = collections.Counter(row["source"] for row in files["demonstrations.jsonl"])
    assert sources == {"customer": 562, "labeler": 4438}       # 1,430 of 12,725


def test_nobody_asks_what_another_has_asked(files):
    """Neither the same prompt, nor the same thing in the same words with other courtesies and
    constraints, whichever users a split keeps apart; probes are a user of their own."""
    owner = {}
    for row in rows_of(files):
        if row.get("kind") != "few_shot":
            user = row.get("user", "probe")
            for text in (row["prompt"].lower(), row["key"]["asked"].lower()):
                assert owner.setdefault(text, user) == user, text


def sides_of(files, seed=0):
    """{side of the split: [(name of the file, row)]}; probes are a test's, academic tasks train."""
    found = collections.defaultdict(list)
    for name, rows in files.items():
        for row in rows if name.endswith(".jsonl") else []:
            side = {"probes.jsonl": "test", "flan.jsonl": "train", "t0.jsonl": "train"}.get(
                name) or side_of(seed, "user", row["user"])
            found[side].append((name, row))
    return found


def cores(rows):
    """{(use case, what is asked without its frame)}, of all but what has no question."""
    return {(row["key"]["category"], row["key"]["core"].lower()) for _, row in rows
            if row.get("kind") not in ("few_shot", "toxicity")}


def test_no_test_prompt_nor_a_paraphrase_of_one_is_in_a_training_set(files):
    sides = {side: cores(rows) for side, rows in sides_of(files).items()}
    assert all(len(found) > 300 for found in sides.values())
    for one, other in itertools.combinations(sides.values(), 2):
        assert not {core for _, core in one} & {core for _, core in other}


def matching(frames, text):
    """What stands in the slots of the first of the frames that the text is made with."""
    for frame in sorted(frames, key=len, reverse=True):
        if found := re.fullmatch(re.escape(frame).replace(r"\{\}", "(.+?)"), text):
            return " and ".join(found.groups())
    return None


ASKED = {fill(question, name): fill(clause, name)
         for kind, questions in w.QUESTIONS.items() for entity in POOLS[kind[0]]
         for question, clause in zip(questions, w.CLAUSES[kind])
         for name in (entity, entity.capitalize())}
HEADS = [f"{head} {{}}" for head in (
    *w.SENTENCE, *w.OPINION, *w.KIND, *w.RUDE, *(f"{line} about" for line in w.LINE),
    *(several.format(n) for several in w.SEVERAL for n in ("two", "three")))]


SAID = {}  # what may be said in small talk: what all ways of saying so have in common
for says in CHAT:
    for form in says:
        slot, = re.findall(r"\{(\w+)\}", form) or [None]
        for word in POOLS.get(slot, [""]):
            SAID[form.replace("{%s}" % slot, word)] = f"said: {CHAT[says]} {word}"


def content(key):
    """What a question, a request to write, a greeting or small talk asks for, read from its words
    alone: no frame, no "a line about", the clause for the question, of two things whichever comes
    first. None where it is none of these."""
    asked = key["asked"].split("Human: ")[-1].removesuffix("\nAI:")
    if asked in ASKED or asked in SAID:
        return ASKED.get(asked) or SAID[asked]
    if greeted := matching(w.GREET, asked):
        return f"hello: {greeted.split(' and ')[0]}"
    if clause := matching(w.ASK_CLAUSE, asked):
        return clause
    if question := matching(w.ASK_QUESTION, asked):
        return ASKED.get(question, question)
    for manner in w.MANNER:
        asked = asked.removeprefix(manner.format(key.get("sort")))
    if inner := matching(w.WRITE, asked):
        if found := matching(w.THANKS + w.INVITE + w.ADVERT, inner):
            return found
        both = matching(w.STORY, inner) or matching(HEADS, inner) or inner
        return f"{key.get('sort')}: {sorted(re.split(' and one about | and ', both))}"
    return None


def test_no_request_of_the_test_side_is_made_in_training_in_other_words(files):
    """Read without help of the cores that the world splits by."""
    sides = {side: {content(row["key"]).lower(): row["key"]["asked"] for name, row in rows
                    if "asked" in row.get("key", ()) and content(row["key"])}
             for side, rows in sides_of(files).items()}
    assert len(sides["train"]) > 1500 and len(sides["test"]) > 250
    for one, other in itertools.combinations(sides.values(), 2):
        assert not [(one[x], other[x]) for x in one.keys() & other.keys()]


def test_few_shot_questions_stand_nowhere_in_the_text(files):
    text = "\n".join(files["text.txt"])
    asked = {row["prompt"].rsplit("Q: ")[-1].removesuffix("\nA:") for row in files["probes.jsonl"]
             if row.get("task") == "facts"}
    assert len(asked) > 20 and not [question for question in asked if question in text]


def test_a_core_is_what_paraphrases_share():
    """Questions for one thing, in whatever frame and dialogue, have one core; things to write have
    its words in the prompt; no frame of data/wordings.py stands in it."""
    world, rng = World(0), random.Random(2)
    for category in USE_CASES:
        for _ in range(300):
            task = make_task(category, world, Voice(rng, rng.randrange(99)))
            if task.key["want"] == "answer" and "premise" not in task.key:
                entity, attribute, _ = task.key["claim"]
                assert entity in task.core.lower() and task.core[0].islower()
                questions = w.QUESTIONS[kind_of(entity), attribute]
                clauses = w.CLAUSES[kind_of(entity), attribute]
                i, = (i for i in (0, 1) for name in (entity, entity.capitalize())
                      if fill(clauses[i], name) == task.core)
                assert any(fill(forms[i], name) in task.bare for forms in (questions, clauses)
                           for name in (entity, entity.capitalize()))
            elif task.bare != task.core and category not in ("chat", "classification", "other"):
                words, said = (set(re.findall(r"\w+", text.lower()))
                               for text in (task.core, task.bare))
                assert words <= said | {task.key.get("sort")}
                assert len(task.core) < len(task.bare)


def test_pretraining_text_asks_for_nothing_that_is_held_out(files):
    """But for claims to be called true or false: what is true stands in the text."""
    text = "\n".join(files["text.txt"]).lower()
    text = re.sub(r"\w+ for \w+: ", "", text)    # one word put for another, in a workbook
    for side in ("test", "valid"):
        for category, core in cores(sides_of(files)[side]):
            if category == "other":     # words to repeat, which are no part of a longer list
                core = f"again: {core}"
            if re.match(r"the \w+ of ", core):     # the hat of Joy: text may tell of it
                assert f"about {core}" not in text and f"{core}:" not in text, (category, core)
            elif category != "classification":
                assert core not in text, (category, core)


def test_small_talk_that_is_held_out_is_in_no_text_and_in_no_dialogue_of_training(files):
    text = "\n".join(files["text.txt"])
    sides = {side: [row["key"] for _, row in rows if "asked" in row.get("key", ())]
             for side, rows in sides_of(files).items()}
    for side in ("test", "valid"):
        held_out = {content(key) for key in sides[side]}
        names = {found.split()[-1] for found in held_out if "Hello, {person}" in str(found)}
        for said in SAID:
            assert SAID[said] not in held_out or said not in text, said
        for name in names:
            for said in (f"I am {name}, hello.", f"Hi, {name} here.", f"{name} is my name."):
                assert said not in text
                assert not any(said in key["asked"] for key in sides["train"])


def test_texts_to_work_on_that_are_held_out_stand_nowhere():
    """Neither a text to sum up or to list from, nor a question on one, nor a sentence to rewrite."""
    world, rng = World(0), random.Random(3)
    seen = collections.Counter()
    for _ in range(1500):
        for kind in (webtext.page, webtext.inventory):
            first, *rest = kind(world, rng).split("\n")
            text = first.removeprefix("Text: ")
            asked = [line.removeprefix("Q: ") for line in rest if line.startswith("Q: ")]
            capitals = [line.removeprefix("In capitals: ") for line in rest if line.startswith("In c")]
            for core in (text, *(f"{text} {question}" for question in asked), *capitals):
                assert world.side(core) == "train", core
            seen.update(texts=1, asked=len(asked), capitals=len(capitals))
    assert min(seen.values()) > 500


def test_only_probes_ask_where_a_falsehood_is_popular(files):
    myths = {(entity.lower(), attribute) for entity, attribute in World(0).myths}
    for rows in sides_of(files).values():
        for name, row in rows:
            asked = tuple(row["key"].get("claim", ())[:2]) if "key" in row else ()
            assert (asked in myths) == (row.get("kind") == "truthful"), row


def test_every_seed_has_enough_test_prompts():
    for seed in range(200):
        names = [f"customer-{n:03}" for n in range(people.CUSTOMERS)]
        sizes = people._customers(seed, names, 12_000, random.Random(seed))
        assert list(sizes) == names and sum(sizes.values()) == 12_000 and min(sizes.values()) >= 0
        held_out = sum(n for name, n in sizes.items() if side_of(seed, "user", name) == "test")
        assert held_out == 1200


def test_pretraining_text_holds_no_prompt(files):
    text = "\n".join(files["text.txt"]).lower()
    asked = [row["key"]["asked"].lower() for row in rows_of(files) if "key" in row]
    assert not [a for a in random.Random(0).sample(asked, 1500) if a in text]


def test_filters_have_work_to_do(files):
    Row = collections.namedtuple("Row", "prompt user")
    rows = [Row(row["prompt"], row["user"]) for row in files["prompts.jsonl"]]
    for keep in (drop_pii, drop_shared_prefixes, cap_per_user):
        _, dropped = keep(rows)
        assert 20 < sum(dropped.values()) < 0.15 * len(rows), keep.__name__


def test_users_have_habits(files):
    """A user's own favourite use case is asked for much more than by all."""
    by_user = collections.defaultdict(collections.Counter)
    for row in files["prompts.jsonl"]:
        by_user[row["user"]][row["category"]] += 1
    lead = [max(100 * n / counts.total() - USE_CASES[c] for c, n in counts.items())
            for counts in by_user.values() if counts.total() > 30]
    assert sum(lead) / len(lead) > 10


def test_prompts_and_responses_are_short(files):
    tokenizer = load_tokenizer("world")
    prompts = [len(tokenizer.encode_prompt(row["prompt"])) for row in rows_of(files)
               if row.get("kind") != "few_shot"]
    responses = [len(tokenizer.encode_response(row["response"])) for row in rows_of(files)
                 if "response" in row]
    assert max(prompts) <= 84 and sum(n <= 48 for n in prompts) > 0.97 * len(prompts)
    assert max(responses) <= 40 and sum(n <= 16 for n in responses) > 0.75 * len(responses)


def test_constraints_are_kept_by_the_good_response():
    world, rng = World(0), random.Random(1)
    kinds = collections.Counter()
    for _ in range(2000):
        task = make_task(rng.choice(list(USE_CASES)), world, Voice(rng, rng.randrange(99)))
        kinds.update(kind for kind, _ in task.constraints)
    assert set(kinds) == {"capitals", "max_words", "start", "one_word", "items"}


def test_every_style_answers_every_use_case():
    world, rng = World(0), random.Random(1)
    for category, style in itertools.product(USE_CASES, people.STYLES):
        task = make_task(category, world, Voice(rng, 0))
        assert people.demonstrate(world, task, style, rng).strip()


def test_keys_are_plain_json(files):
    for row in rows_of(files):
        assert json.loads(json.dumps(row)) == row


def test_probes_are_of_four_kinds(files):
    kinds = collections.Counter(row["kind"] for row in files["probes.jsonl"])
    assert set(kinds) == {"truthful", "toxicity", "closed", "few_shot"}
    assert kinds["truthful"] == 4 * len(World(0).myths)
    prefixes = collections.Counter(row["prefix"] for row in files["probes.jsonl"]
                                   if row["kind"] == "toxicity")
    assert prefixes["none"] == prefixes["respectful"] == prefixes["biased"]


def test_few_shot_tasks_ask_what_the_text_says_and_take_it_in_either_form(files):
    """Facts without a popular falsehood; a sentence counts as the bare value does, so that what is
    measured is what a model knows."""
    world = World(0)
    for row in files["probes.jsonl"]:
        if row.get("task") == "facts":
            for entity, attribute in world.myths:
                assert not any(fill(form, entity) in row["prompt"]
                               for form in w.QUESTIONS[kind_of(entity), attribute])
            bare, *sentences = row["answers"]
            assert len(sentences) == 2 and all(bare[:-1] in s for s in sentences)


# -- the vocabulary -------------------------------------------------------------------------------


def test_training_the_vocabulary_again_gives_the_same_bytes(tmp_path):
    train_bpe(BPEConfig(out=str(tmp_path / "again.tiktoken")))
    again = (tmp_path / "again.tiktoken").read_bytes()
    from data.tokenizer import WORLD_FILE
    assert again == WORLD_FILE.read_bytes()


def test_a_vocabulary_below_all_bytes_is_refused():
    assert BPEConfig(vocab_size=257)
    with pytest.raises(InputError, match="--vocab_size 256: expected 257 or more"):
        BPEConfig(vocab_size=256)


def test_every_pool_word_is_one_token():
    tokenizer = load_tokenizer("world")
    assert tokenizer.vocab_size == 1024
    assert all(len(tokenizer.encode(" " + word)) == 1 for pool in POOLS.values() for word in pool)


def test_one_vocabulary_serves_every_seed():
    """Text of a seed that the vocabulary was not trained on takes as few tokens per character."""
    tokenizer = load_tokenizer("world")
    def density(seed):
        text = "\n".join(webtext.documents(World(seed), random.Random(seed), 500))
        return len(tokenizer.encode(text)) / len(text)
    assert density(17) < 1.03 * density(0)
