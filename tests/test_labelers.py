"""The simulated labelers: the rule, its graded judgement of anything, and how they disagree."""

import collections
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import InputError
from data import labelers as lab
from data import people
from data.tasks import USE_CASES, Voice
from data.usecases import make_task
from data.world import World

ROOT = Path(__file__).parents[1]
SEED = 11
WORLD = World(SEED)


def some_tasks(category, count, seed=0):
    rng = random.Random(seed)
    return [make_task(category, WORLD, Voice(rng, rng.randrange(99))) for _ in range(count)]


def marked(task, response):
    return lab.overall(lab.quality(task.key, response))


def mean_mark(category, respond, count=120):
    tasks = some_tasks(category, count)
    return sum(marked(t, respond(t)) for t in tasks) / count


def fact_key(**more):
    entity, attribute, value = WORLD.triples[0]
    return {"world": SEED, "category": "open_qa", "want": "answer", "constraints": [],
            "claim": [entity.lower(), attribute, value.lower()]} | more


# -- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", USE_CASES)
def test_good_responses_get_the_full_mark(category):
    for task in some_tasks(category, 200):
        if task.key.get("sort") != "rude":
            found = lab.quality(task.key, people.demonstrate(WORLD, task, "plain", None))
            assert lab.overall(found) == 1.0, (task, found)
            assert found.attempts and found.appropriate and not found.hallucinates


@pytest.mark.parametrize("category", USE_CASES)
@pytest.mark.parametrize("style", ["wrong", "rambling", "careless", "curt"])
def test_corrupted_responses_score_below_good_ones(category, style):
    rng = random.Random(5)
    corrupted = mean_mark(category, lambda t: people.demonstrate(WORLD, t, style, rng))
    if (category, style) != ("classification", "careless"):    # one word, nothing to leave out
        assert corrupted < 0.75


@pytest.mark.parametrize("category", USE_CASES)
@pytest.mark.parametrize("respond", [
    lambda t: "", lambda t: "Ada the lives of fox ran", lambda t: "qx" * 30,
    lambda t: "Where does Ada live? What does Ben eat?", lambda t: t.bare,
    lambda t: "Ada is nice. Ben is nice. Ada lives in Cove. Ben likes rice."],
    ids=["empty", "salad", "gibberish", "questions", "copy", "stock"])
def test_responses_that_answer_nothing_score_badly(category, respond):
    assert mean_mark(category, respond) < 0.3


@pytest.mark.parametrize("category", ["generation", "open_qa", "rewrite", "closed_qa"])
def test_sentences_with_their_words_in_reverse_score_badly(category):
    assert mean_mark(category, lambda t: " ".join(reversed(t.good.split()))) < 0.3


@pytest.mark.parametrize("category", USE_CASES)
def test_going_on_after_the_answer_costs_more_the_longer_it_is(category):
    more = ("Ben saw a dog.", "Hana found a cup.", "Where is Cove?")
    marks = [mean_mark(category, lambda t: " ".join([t.good, *more[:n]])) for n in (0, 1, 3)]
    assert marks[0] > marks[1] >= marks[2]


@given(text=st.text(max_size=200), seed=st.integers(0, 10_000),
       category=st.sampled_from(list(USE_CASES)))
@settings(max_examples=200, deadline=None)
def test_any_string_has_a_mark_between_0_and_1(text, seed, category):
    task = some_tasks(category, 1, seed)[0]
    for response in (text, task.good + text, task.bare + text):
        assert 0.0 <= marked(task, response) <= 1.0


def test_answer_is_graded_right_wrong_unknown_off_topic():
    entity, attribute, value = WORLD.triples[0]            # where Ada lives
    wrong = next(x for x in ("Arden", "Cove") if x != value)
    texts = [f"{entity} lives in {value}.", "I do not know.", f"{entity} lives in {wrong}.",
             "The the lake."]
    marks = [lab.overall(lab.quality(fact_key(), text)) for text in texts]
    assert marks[0] == 1.0 and marks[0] > marks[1] > marks[2] > marks[3] == 0.0


def test_naming_every_value_is_no_answer():
    everything = "Arden, Brix, Cove, Dune, Elms, Fern, Glen, Hove, Lund, Moor."
    assert lab.overall(lab.quality(fact_key(), everything)) <= 0.1


def test_false_premise_is_to_be_denied():
    entity, attribute, value = WORLD.triples[0]
    wrong = next(x for x in ("Arden", "Cove") if x != value)
    key = fact_key(premise=[entity.lower(), attribute, wrong.lower()])
    denied = f"{entity} does not live in {wrong}. She lives in {value}."
    assert lab.overall(lab.quality(key, denied)) == 1.0
    assert lab.quality(key, f"Because {entity} lives in {wrong}.").false


def test_repeating_a_sentence_counts_once():
    task = next(t for t in some_tasks("generation", 400) if t.key.get("sentences") == 3)
    one = task.good.split(". ")[0] + "."
    assert marked(task, f"{one} {one} {one}") < 0.5 * marked(task, task.good)


def test_closed_domain_hallucination_is_what_the_text_does_not_say():
    for task in some_tasks("closed_qa", 50) + some_tasks("extract", 50):
        assert not lab.quality(task.key, task.good).hallucinates
        assert lab.quality(task.key, task.wrong).hallucinates


def test_rudeness_that_was_asked_for_counts_in_the_evaluation_only():
    rng = random.Random(0)
    task = next(t for t in some_tasks("generation", 600) if t.key.get("sort") == "rude")
    person = task.key["subjects"][0].capitalize()
    rude = lab.quality(task.key, f"{person} is dumb.")
    kind = lab.quality(task.key, f"I want to be kind to {person}.")
    assert rude.rude and not rude.appropriate and kind.appropriate
    assert lab.overall(rude) > lab.overall(kind)
    one = lab.for_evaluation(lab.training_labelers()[0])
    marks = [sum(lab.mark(one, found, rng) for _ in range(300)) for found in (rude, kind)]
    assert marks[0] < marks[1]


def test_truthfulness_and_toxicity_of_probes():
    entity, attribute, value = WORLD.triples[0]
    wrong = next(x for x in ("Arden", "Cove") if x != value)
    assert lab.truthful(fact_key(), f"{entity} lives in {value}.") == (True, True)
    assert lab.truthful(fact_key(), "I do not know.") == (True, False)
    assert lab.truthful(fact_key(), f"{wrong}.")[0] is False
    assert lab.toxic("Ben is a dumb fool.") and not lab.toxic("Ben is wise.")


# -- ranks ----------------------------------------------------------------------------------------


@given(marks=st.lists(st.integers(1, 7), min_size=4, max_size=9))
def test_ranks_are_dense_order_marks_and_tie_equal_ones(marks):
    ranks = lab.ranks_of(marks)
    assert set(ranks) == set(range(1, max(ranks) + 1))
    assert all((a > b) == (x < y) for a, x in zip(marks, ranks) for b, y in zip(marks, ranks))


def test_equal_texts_share_a_rank():
    """A labeler who sees the same words twice gives them the same mark, whatever their noise."""
    key, (one, other, *_) = next(iter(lab.examples(0, 1)))
    for labeler in lab.training_labelers():
        ranks = lab.rank(labeler, key, [one, "No.", one, other, one], random.Random(0))
        assert ranks[0] == ranks[2] == ranks[4]
        assert lab.prefers(labeler, key, one, one, random.Random(1)) == 0.5
    assert lab.agreements(lab.training_labelers(), [(key, [one] * 5)]) == [(0, 0)]


def test_the_better_response_is_preferred_on_either_side():
    quiet = lab.Labeler("rule", "", 0.5, 0.5, 0.6, 0, 0, 0, noise=0.0)
    for task in some_tasks("closed_qa", 20):
        rng = random.Random(0)
        assert lab.quality(task.key, "Green green.").attempts is False
        assert lab.prefers(quiet, task.key, task.good, "Green green.", rng) == 1.0
        assert lab.prefers(quiet, task.key, "Green green.", task.good, rng) == 0.0


def test_preference_has_no_side():
    """Between two equally good answers either side wins as often; swapping sides swaps wins."""
    one = lab.training_labelers()[0]
    task = next(t for t in some_tasks("brainstorming", 50)
                if not t.constraints and t.good.count(", ") > 1)
    first, *rest = task.good.rstrip(".").split(", ")
    moved = ", ".join([*rest, first]) + "."
    assert moved != task.good and lab.quality(task.key, moved) == lab.quality(task.key, task.good)
    rng = random.Random(0)
    votes = [lab.prefers(one, task.key, task.good, moved, rng) for _ in range(4000)]
    assert set(votes) == {0.0, 0.5, 1.0} and abs(sum(votes) / 4000 - 0.5) < 0.03


@pytest.fixture(scope="module")
def items():
    return list(lab.examples(SEED, 1000))


def test_training_labelers_agree_as_often_as_people_did(items):
    """The paper: 72.6 ± 1.5 % of training labelers' comparisons."""
    for seed in (0, 1, 2):
        assert 0.70 <= lab.agreement(lab.training_labelers(seed), items) <= 0.76


def test_held_out_labelers_agree_about_as_often(items):
    assert 0.68 <= lab.agreement(lab.held_out_labelers(), items) <= 0.80


def test_labelers_agree_with_the_rule_more_than_with_one_another(items):
    """Whoever follows the rule knows best what any labeler will say."""
    quiet = lab.Labeler("rule", "", 0.5, 0.5, 0.6, 0, 0, 0, noise=0.0)
    agree = [lab.agreement([quiet, one], items[:150]) for one in lab.training_labelers()[:10]]
    assert sum(agree) / 10 > lab.agreement(lab.training_labelers(), items) + 0.04


def test_screening_keeps_the_better_candidates():
    training, outside = lab.hire(0)
    noise = [sum(p.noise for p in group) / len(group) for group in (training, outside)]
    assert noise[0] < sum(lab.NOISE) / 2
    assert len(training) == 40
    assert collections.Counter(p.group for p in training) == dict.fromkeys("ABCDE", 8)
    assert {p.group for p in outside} == {"held-out"}


# -- the command ----------------------------------------------------------------------------------


def command(tmp_path, rows, *flags):
    source = tmp_path / "completions.jsonl"
    source.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    out = tmp_path / "comparisons.jsonl"
    lab.main(lab.LabelersConfig(completions=str(source), out=str(out), **dict(flags)))
    return [json.loads(line) for line in out.read_text().splitlines()]


def good_row(n=4):
    task = some_tasks("open_qa", 1)[0]
    return {"prompt": task.bare, "completions": [task.good, "", "Fox.", task.terse][:n],
            "key": task.key, "user": "customer-001"}


def test_command_ranks_every_prompt_and_keeps_the_key_out(tmp_path):
    rows = command(tmp_path, [good_row()] * 20)
    assert len(rows) == 20 and len({row["labeler"] for row in rows}) > 5
    for row in rows:
        assert set(row) == {"prompt", "completions", "ranks", "labeler", "user"}
        assert len(row["ranks"]) == 4 and min(row["ranks"]) == 1


def test_command_is_deterministic_and_its_seed_matters(tmp_path):
    rows = [good_row()] * 30
    assert command(tmp_path, rows) == command(tmp_path, rows)
    assert command(tmp_path, rows) != command(tmp_path, rows, ("seed", 1))


def test_command_ranks_the_first_prompts_as_it_does_among_all(tmp_path):
    rows = [good_row()] * 9
    assert command(tmp_path, rows, ("limit", 4)) == command(tmp_path, rows)[:4]
    assert len(command(tmp_path, rows, ("limit", 0))) == 9


def test_command_draws_labelers_of_the_group(tmp_path):
    of = {p.name: p.group for p in (*lab.training_labelers(), *lab.held_out_labelers())}
    for group in ("held-out", "B", "ACDE"):
        rows = command(tmp_path, [good_row()] * 20, ("group", group))
        assert all(of[row["labeler"]] in (group if group != "held-out" else [group])
                   for row in rows)


@pytest.mark.parametrize("bad, expected", [
    ("not json", ":2: not JSON"),
    ({"completions": ["a", "b"]}, ":2: key 'prompt' is missing"),
    (good_row() | {"completions": "a"}, ":2: completions; expected a list of 2 to 9 strings"),
    (good_row(1), ":2: completions; expected a list of 2 to 9 strings"),
    (good_row() | {"completions": ["a", 3]}, ":2: completions; expected a list"),
    ({"prompt": "a", "completions": ["a", "b"]}, ":2: key does not say what was asked"),
    (good_row() | {"key": {"want": "answer"}}, ":2: key does not say what was asked"),
    (good_row() | {"key": {"want": "x", "constraints": []}}, ":2: key does not say"),
    (good_row() | {"key": good_row()["key"] | {"want": "list", "items": [], "n": -1}}, ":2: key"),
    (good_row() | {"key": good_row()["key"] | {"world": "x"}}, ":2: key does not say")])
def test_bad_input_is_one_line_with_file_and_number_and_nothing_is_written(
        tmp_path, bad, expected):
    with pytest.raises(InputError) as error:
        command(tmp_path, [good_row(), bad])
    assert f"completions.jsonl{expected}" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["completions.jsonl"]


@pytest.mark.parametrize("name, value, named", [
    ("subjects", "fox", "'subjects'"), ("subjects", [["fox"]], "'subjects'"),
    ("words", [1], "'words'"), ("sentences", True, "'sentences'"), ("world", True, "'world'"),
    ("given", ["a"], ""), ("constraints", [["max_words", "3"]], "'max_words'"),
    ("constraints", [["items", None]], "'items'"), ("constraints", [["start", 1]], "'start'")])
def test_a_key_whose_values_are_of_another_kind_is_refused(name, value, named):
    lab.check_key("x.jsonl", 3, fact_key())
    with pytest.raises(InputError, match=f"^x.jsonl:3: key does not say what was asked .*{named}"):
        lab.check_key("x.jsonl", 3, fact_key() | {name: value})


def test_unknown_group_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected training, held-out, or some of ABCDE"):
        command(tmp_path, [good_row()], ("group", "AX"))


def test_bad_input_exits_with_code_2(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    done = subprocess.run([sys.executable, "-m", "data.labelers", "--completions",
                           str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "out.jsonl")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
