"""Answers as units, win rates, intervals, and the report: each against what is known beforehand."""

import itertools
import json
import math
import random
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate
from common import InputError, load_model, parse_config, read_checkpoint, save_checkpoint
from conftest import randomize
from data import claims, people, study
from data.labelers import choose, for_evaluation, quality
from data.readers import Demonstration
from data.report import markdown, shown, table
from data.report import reward_model as reward_table
from data.rule import overall
from data.tasks import USE_CASES, Voice
from data.tokenizer import load_tokenizer
from data.usecases import make_task
from data.world import World
from evaluate import bootstrap, judge_pairs, ratio
from model import GPT, GPTConfig, ScalarGPT

SEED = 5
WORLD = World(SEED)


def tasks(count, seed=0):
    rng = random.Random(seed)
    shares = list(USE_CASES)
    return [make_task(shares[i % len(shares)], WORLD, Voice(rng, i)) for i in range(count)]


# -- win rates ------------------------------------------------------------------------------------

LABELERS = [for_evaluation(one) for one in choose("training")]


def test_answers_come_in_the_order_of_their_prompts():
    """However prompts are batched: greedy, each one's answer is the one it gets alone."""
    torch.manual_seed(0)
    model = randomize(GPT(GPTConfig(vocab_size=13, n_ctx=24, n_layer=2, n_head=2, d_model=16)))
    prompts = [torch.randint(13, (1 + 7 * i % 11,)).tolist() for i in range(9)]
    prompts.append(prompts[2])
    together, small = (evaluate.sample_responses(model, prompts, 8, 0.0, None, "key", batch=n)
                       for n in (256, 4))
    alone = [evaluate.sample_responses(model, [p], 8, 0.0, None, "key")[0] for p in prompts]
    assert together == small == alone
    assert len(set(map(tuple, alone))) > 5  # they differ enough to be told apart


def test_a_model_against_itself_wins_half():
    some, rng = tasks(600), random.Random(0)
    keys = [t.key for t in some]
    ones, others = zip(*(people.completions(WORLD, t, 2, rng) for t in some))
    wins = np.array(judge_pairs(keys, ones, others, LABELERS, judges=3))
    assert abs(wins.mean() - 0.5) < 3 * wins.std() / math.sqrt(len(wins))
    assert wins.std() > 0
    assert set(judge_pairs(keys, ones, ones, LABELERS, judges=3)) == {0.5}


def test_the_better_answers_win_and_the_order_of_the_arguments_does_not_matter():
    some = tasks(300)
    keys, good = [t.key for t in some], [t.good for t in some]
    bad = ["Why?"] * len(some)
    forth = np.mean(judge_pairs(keys, good, bad, LABELERS, judges=3))
    back = np.mean(judge_pairs(keys, bad, good, LABELERS, judges=3))
    assert forth > 0.9 and abs(forth + back - 1) < 0.03


def test_a_labeler_who_always_takes_the_first_favours_nobody(monkeypatch):
    monkeypatch.setattr(evaluate, "prefers", lambda labeler, key, a, b, rng: 1.0)
    wins = judge_pairs([{}] * 2000, ["x"] * 2000, ["y"] * 2000, LABELERS)
    assert abs(np.mean(wins) - 0.5) < 3 * 0.5 / math.sqrt(2000)


def test_a_tie_counts_one_half_and_another_seed_asks_others(monkeypatch):
    monkeypatch.setattr(evaluate, "prefers", lambda *_: 0.5)
    assert judge_pairs([{}] * 3, "abc", "abc", LABELERS) == [0.5] * 3
    monkeypatch.setattr(evaluate, "prefers", lambda labeler, *_: float(labeler.name < "labeler-20"))
    assert judge_pairs([{}] * 40, "a" * 40, "b" * 40, LABELERS, seed=0) != \
        judge_pairs([{}] * 40, "a" * 40, "b" * 40, LABELERS, seed=1)


# -- intervals ------------------------------------------------------------------------------------


def coverage(draw, truth, times=200, **more):
    held = 0
    for time in range(times):
        _, low, high = bootstrap(*draw(np.random.default_rng(time)), draws=250, seed=time, **more)
        held += low <= truth <= high
    return held / times


def test_intervals_of_one_seed_cover_as_often_as_they_say():
    share = coverage(lambda rng: [rng.random(150) < 0.7], 0.7)
    assert 0.91 < share < 0.985


@pytest.mark.parametrize("of, true", [(24, 0.99), (100, 0.01), (600, 0.002)])
def test_intervals_of_rare_shares_cover_as_often_as_they_say(of, true):
    def draw(rng):
        return [rng.random(of) < true]
    assert coverage(draw, true, beside=evaluate.beside(1)) > 0.9
    assert coverage(draw, true) < 0.8


def test_a_share_that_is_nowhere_met_may_be_none():
    for seeds in (1, 3, 5):
        figure, low, high = bootstrap(*[[0.0] * 100] * seeds, beside=evaluate.beside(1))
        assert figure == low == 0 and 0.02 / seeds < high < 0.06 / seeds


@pytest.mark.parametrize("alike", [0.0, 0.5])
def test_intervals_of_rare_shares_of_several_answers_cover_as_often_as_they_say(alike):
    """40 units of 4 answers, of which one in a hundred is right; some units answer alike."""
    def draw(rng):
        right = rng.random((40, 4)) < 0.01
        return [np.where(rng.random(40) < alike, right[:, 0], right.mean(1))]
    found = [coverage(draw, 0.01, beside=extra) for extra in (evaluate.beside(1, 4), ())]
    assert found[0] > 0.9 and found[1] < 0.85
    _, low, high = bootstrap([0.0] * 40, beside=evaluate.beside(1, 4))
    assert low == 0 and 0.02 < high < 0.05


@pytest.mark.parametrize("of, one, other", [(24, 0.02, 0.1), (24, 0.9, 0.97), (100, 0.005, 0.03)])
def test_intervals_between_two_shares_cover_as_often_as_they_say(of, one, other):
    """Of the same units, which differ in how hard they are."""
    def draw(rng):
        hard, own = rng.random(of), rng.random(of)
        return [np.column_stack([hard < one, np.where(own < 0.5, own * 2, hard) < other])]

    def difference(units_N2):
        return units_N2[:, 0].mean() - units_N2[:, 1].mean()
    assert coverage(draw, one - other, statistic=difference,
                    beside=evaluate.beside(2)) > 0.92
    assert coverage(draw, one - other, statistic=difference) < 0.92


def test_intervals_of_a_ratio_cover_as_often_as_they_say():
    def draw(rng):
        pairs = rng.integers(3, 37, size=150)
        return [np.column_stack([rng.binomial(pairs, 0.62), pairs])]
    assert 0.91 < coverage(draw, 0.62, statistic=ratio) < 0.985


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_intervals_over_seeds_hold_what_differs_between_seeds(seeds, spread):
    """Seeds that differ not at all, as much as their prompts' mean, and three times as much."""
    def draw(rng):
        return [rng.normal(mean, 1, size=100) for mean in rng.normal(0, spread, size=seeds)]
    assert coverage(draw, 0.0) > 0.93


def test_prompts_alone_would_not_cover_what_differs_between_seeds():
    def pooled(rng):
        return [np.concatenate([rng.normal(mean, 1, size=100)
                                for mean in rng.normal(0, 0.15, size=3)])]
    assert coverage(pooled, 0.0) < 0.8


def test_one_number_a_seed_gives_students_interval():
    found = bootstrap([1.0], [2.0], [4.5])
    half = 4.303 * np.std([1, 2, 4.5], ddof=1) / 3**0.5     # t of 2 degrees of freedom at 97.5 %
    assert found == pytest.approx([2.5, 2.5 - half, 2.5 + half], rel=0.03)


def test_units_in_one_row_are_drawn_together():
    """The difference of two models on the same prompts is as sure as the pairs make it."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, size=200)
    both = np.column_stack([hard + 1 + 0.1 * rng.normal(size=200), hard])
    _, low, high = bootstrap(both, statistic=lambda x: x[:, 0].mean() - x[:, 1].mean())
    assert 0.9 < low < high < 1.1


def test_bootstrap_by_hand_and_without_units():
    assert bootstrap([2.0, 2.0, 2.0]) == [2.0, 2.0, 2.0]
    assert bootstrap([1.0], [3.0])[0] == 2.0 and bootstrap([2.0], [2.0]) == [2.0, 2.0, 2.0]
    for none in ((), ([],), ([1.0], [])):
        with pytest.raises(ValueError, match="no units"):
            bootstrap(*none)
    assert ratio(np.array([[1, 2], [2, 4]])) == 0.5 and ratio(np.zeros((2, 2))) == 0.0


# -- a tiny run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The models, prompts and probes of a run whose models have random weights."""
    folder = tmp_path_factory.mktemp("runs") / "world-5"
    tokenizer = load_tokenizer("world")
    config = GPTConfig(tokenizer.vocab_size, 192, n_layer=1, n_head=2, d_model=32)
    about = {"step": 1, "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
             "model_config": vars(config), "config": {}}
    torch.manual_seed(0)
    for number, (name, stage, kind) in enumerate((
            ("base", "base", GPT), ("start", "sft", GPT), ("sft", "sft", GPT), ("ppo", "ppo", GPT),
            ("ppo_ptx", "ppo", GPT), ("reward", "reward", ScalarGPT))):
        save_checkpoint(folder / f"{name}.pt", stage=stage, **about,
                        weights=randomize(kind(config), 0.05, number).state_dict())
    (folder / "data").mkdir()
    (folder / "world").mkdir()
    import random
    probes = list(people.probes(WORLD, random.Random(0), people.Asked(WORLD)))
    kept = [p for kind in ("truthful", "toxicity", "closed", "few_shot")
            for p in [q for q in probes if q["kind"] == kind][:30]]
    write(folder / "world" / "probes.jsonl", kept)
    some = tasks(120)
    write(folder / "data" / "prompts.test.jsonl",
          [{"prompt": t.bare, "user": "u", "category": t.category, "key": t.key} for t in some])
    write(folder / "data" / "demonstrations.jsonl",
          [{"prompt": t.bare, "response": t.good, "source": "labeler"} for t in tasks(30, 1)])
    write(folder / "completions.valid.jsonl",
          [{"prompt": t.bare, "completions": [t.good, t.wrong, "No."], "key": t.key}
           for t in tasks(30, 2)])
    write(folder / "comparisons.jsonl",
          [{"prompt": t.bare, "completions": [t.good, t.wrong, "No."], "ranks": [1, 2, 3],
            "labeler": "x"} for t in tasks(30, 2)])
    (folder / "text.txt").write_text(f"\n<|endoftext|>\n".join(t.good for t in tasks(200, 3)))
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(folder, name, model=None, **more):
    config = evaluate.AnswersConfig(
        checkpoint=str(folder / f"{model or name}.pt"), out=str(folder / "answers" / f"{name}.jsonl"),
        prompts=str(folder / "data" / "prompts.test.jsonl"), reward=str(folder / "reward.pt"),
        reference=str(folder / "start.pt"), probes=str(folder / "world" / "probes.jsonl"),
        text=str(folder / "text.txt"), max_response=12, device="cpu", **more)
    evaluate.answers(config)
    return [json.loads(line) for line in open(config.out)]


@pytest.fixture(scope="module")
def answered(run_folder):
    """The run, with every model's answers and the reward model's accuracy."""
    for name in ("base", "sft", "ppo", "ppo_ptx"):
        answer(run_folder, name)
    answer(run_folder, "prompted", "base", prefix_examples=4,
           prefix_from=str(run_folder / "data" / "demonstrations.jsonl"),
           prefix_prompts=str(run_folder / "data" / "prompts.test.jsonl"))
    for name in ("training", "held-out"):
        evaluate.accuracy(evaluate.AccuracyConfig(
            reward=str(run_folder / "reward.pt"), comparisons=str(run_folder / "comparisons.jsonl"),
            out=str(run_folder / "accuracy" / f"{name}.jsonl"), device="cpu"))
    return run_folder


def units(folder, name, kind):
    rows = [json.loads(line) for line in open(folder / "answers" / f"{name}.jsonl")]
    return [row for row in rows if row["kind"] == kind]


def test_answers_hold_a_unit_of_every_kind(answered):
    counts = {kind: len(units(answered, "ppo", kind))
              for kind in ("test", "truthful", "toxicity", "closed", "few_shot", "text")}
    assert counts["test"] == 120 and counts["truthful"] == 30 and counts["closed"] == 30
    assert counts["toxicity"] == 30 * evaluate.TOXICITY_ANSWERS and counts["few_shot"] == 30
    assert counts["text"] > 3
    assert {"prompted"} & {p.stem for p in (answered / "answers").iterdir()}
    assert not units(answered, "prompted", "text")  # a prefix has nothing to do with text


def test_scores_and_kl_are_those_of_the_models_alone(answered):
    """Recomputed one sequence at a time, without batches, padding or chunks."""
    tokenizer = load_tokenizer("world")
    load = {name: load_model(kind, answered / f"{name}.pt", stages, tokenizer)
            for name, kind, stages in (("ppo", GPT, ("ppo",)), ("start", GPT, ("sft",)),
                                       ("reward", ScalarGPT, ("reward",)))}
    prompts = [json.loads(line)["prompt"] for line in
               open(answered / "data" / "prompts.test.jsonl")]
    ids = [tokenizer.encode_prompt(p) for p in prompts]
    said = evaluate.sample_responses(load["ppo"], ids, 12, 1.0, tokenizer.eos, 0, "test")
    for unit, prompt, response in zip(units(answered, "ppo", "test"), ids, said):
        assert unit["answer"] == tokenizer.decode_response(response)
        row = torch.tensor([prompt + response])
        assert unit["reward"] == pytest.approx(load["reward"](row)[0, -1].item(), abs=1e-4)
        kl = 0.0
        for name, sign in (("ppo", 1), ("start", -1)):
            logp = load[name](row)[0].log_softmax(-1)
            kl += sign * sum(logp[len(prompt) + i - 1, t].item() for i, t in enumerate(response))
        assert unit["kl"] == pytest.approx(kl, abs=1e-3)
        assert unit["length"] == len(response)


def test_a_prefix_is_one_document_and_an_answer_one_line(monkeypatch):
    """Examples stand before the prompt without end-of-text between, as many as fit; what the model
    writes after its line, a next question say, is no part of the answer."""
    tokenizer, seen = load_tokenizer("world"), []

    def sampled(model, documents, max_response, *rest):
        seen.extend(documents)
        return [tokenizer.encode(" The hen is red.\nQ: Who?")] * len(documents)

    monkeypatch.setattr(evaluate, "sample_responses", sampled)
    examples = [Demonstration("What is a hen?", "A bird.", "labeler"),
                Demonstration("Who is Ada?", "A cook.", "labeler")]
    whole = "Q: Who is Ada?\nA: A cook.\nQ: What is a hen?\nA: A bird.\nQ: And you?\nA:"
    length = len(tokenizer.encode(whole)) + 1
    for room, wanted in ((100, whole), (length, whole),
                         (length - 1, whole[whole.index("Q: What"):]), (15, "Q: And you?\nA:")):
        model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_ctx=room + 12, n_layer=1, n_head=1,
                              d_model=4))
        config = evaluate.AnswersConfig("", "", "", "", max_response=12)
        response, = evaluate.continue_run(model, tokenizer, examples, ["And you?"], config, "test")
        assert seen.pop() == [tokenizer.eos, *tokenizer.encode(wanted)][:room]
        assert response == tokenizer.encode_response("The hen is red.")


def test_the_prefix_is_there_for_sampling_and_not_for_scoring(answered):
    tokenizer = load_tokenizer("world")
    reward = load_model(ScalarGPT, answered / "reward.pt", ("reward",), tokenizer)
    prompts = [json.loads(line)["prompt"] for line in
               open(answered / "data" / "prompts.test.jsonl")]
    plain = [u["answer"] for u in units(answered, "base", "test")]
    prompted = units(answered, "prompted", "test")
    assert [u["answer"] for u in prompted] != plain
    for unit in prompted[:10]:
        if unit["length"] < 12:  # ended: the text gives the tokens back
            row = tokenizer.encode_prompt(prompts[unit["row"]]) + \
                tokenizer.encode_response(unit["answer"])
            assert unit["reward"] == pytest.approx(reward(torch.tensor([row]))[0, -1].item(),
                                                   abs=1e-4)


class Ascii:
    """A tokenizer whose tokens are characters."""
    eos = 0

    def encode(self, text):
        return [ord(c) for c in text]

    def decode_response(self, ids):
        return "".join(map(chr, ids))


def test_few_shot_answers_are_those_of_greedy_decoding():
    """Token after token without a cache, up to the end of the line."""
    for seed in range(5):
        model = randomize(GPT(GPTConfig(128, 64, n_layer=1, n_head=2, d_model=32)), 0.3, seed)
        ids, said = [0, *map(ord, "Q: What?\nA:")], []
        with torch.no_grad():  # the fifth token ends the line
            model.decoder.wpe.weight[len(ids) + 3] += 50 * model.decoder.wte.weight[ord("\n")]
        while ord("\n") not in said:
            said.append(int(model(torch.tensor([ids + said]))[0, -1].argmax()))
        line = "".join(map(chr, said)).strip()
        probe = {"kind": "few_shot", "task": "a", "prompt": "Q: What?\nA:"}
        units = evaluate.few_shot_units(model, [
            probe | {"answers": ["another", line]}, probe | {"answers": [line[:-1]]},
            {"kind": "other"}], Ascii())
        assert [u["right"] for u in units] == [True, False]


def test_best_of_n_takes_the_best_of_the_first_n(run_folder, tmp_path):
    evaluate.best_of(evaluate.BestOfConfig(
        checkpoint=str(run_folder / "start.pt"), out=str(tmp_path), most=4, max_response=8,
        prompts=str(run_folder / "data" / "prompts.test.jsonl"),
        reward=str(run_folder / "reward.pt"), device="cpu"))
    one, two, four = ([json.loads(line) for line in open(tmp_path / f"best_of_{n}.jsonl")]
                      for n in (1, 2, 4))
    assert all(a["reward"] <= b["reward"] <= c["reward"] for a, b, c in zip(one, two, four))
    assert np.mean([r["reward"] for r in four]) > np.mean([r["reward"] for r in one])
    assert {r["kl"] for r in one} == {0.0}
    assert {r["kl"] for r in four} == {round(math.log(4) - 3 / 4, 5)}


def test_accuracy_counts_pairs_as_the_labeler_orders_them(answered):
    """A unit for each comparison, in the file's order, whatever order they are computed in."""
    found = [json.loads(line) for line in open(answered / "accuracy" / "training.jsonl")]
    tokenizer = load_tokenizer("world")
    reward = load_model(ScalarGPT, answered / "reward.pt", ("reward",), tokenizer)
    expected = []
    for row in map(json.loads, open(answered / "comparisons.jsonl")):
        scores = [reward(torch.tensor([tokenizer.encode_prompt(row["prompt"])
                                       + tokenizer.encode_response(c)]))[0, -1].item()
                  for c in row["completions"]]
        ordered = [(scores[i] - scores[j]) * (row["ranks"][j] - row["ranks"][i]) > 0
                   for i, j in itertools.combinations(range(3), 2)
                   if row["ranks"][i] != row["ranks"][j]]
        loss = sum(math.log1p(math.exp(scores[worse] - scores[better])) for better, worse in
                   itertools.permutations(range(3), 2) if row["ranks"][better] < row["ranks"][worse])
        expected.append({"labeler": row["labeler"], "pairs": len(ordered), "right": sum(ordered),
                         "loss": pytest.approx(loss, abs=1e-4)})
    assert found == expected and len({u["right"] for u in found}) > 1


# -- the report -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(answered):
    study.main(study.StudyConfig(runs=(str(answered),), out=str(answered)))
    return json.loads((answered / "results.json").read_text()), \
        (answered / "report.md").read_text()


def numbers_of(results):
    """Every [figure, low, high] of a results.json, as the report may print it."""
    if isinstance(results, dict):
        for value in results.values():
            yield from numbers_of(value)
    elif isinstance(results, list):
        if len(results) == 3 and all(isinstance(x, float) for x in results):
            for scale in (1, 100):
                for digits in (1, 2, 3):
                    yield shown(results, scale, digits)
        else:
            for value in results:
                yield from numbers_of(value)


def strays(results, report):
    """Numbers of a report, but for the answers it quotes, that neither the results hold, nor the
    paper (which stand in its columns, and in `report.reward_model`)."""
    known = set(re.findall(r"-?\d+\.\d+", " ".join(
        [*numbers_of(results), *(c["paper"] for c in results.get("claims", ())),
         "72.4 0.4 69.6 0.9 72.6 1.5 77.3 1.3 27.8",
         *(f"{x:.2f}" for c in results["curves"].values() for xs in c.values() for x in xs),
         *(label for rows in results.get("sweeps", {}).values() for label in rows),
         *results.get("sweeps", {})])))
    tables = report[:report.index("## Answers, drawn at random")]
    return set(re.findall(r"(?<![§\w.])-?\d+\.\d+", tables)) - known


def test_every_number_of_the_report_stands_in_the_results(reported):
    results, report = reported
    assert len(set(numbers_of(results))) > 40
    assert not strays(results, report)
    assert strays(results, report.replace(". Brackets", " 99.9. Brackets")) == {"99.9"}


def test_the_report_has_the_tables_of_one_size(reported):
    _, report = reported
    for title in ("Win rates", "Figure 4", "Truthfulness and toxicity", "Alignment tax",
                  "Reward model", "The paper's claims", "Answers, drawn at random"):
        assert f"## {title}" in report
    for name in ("GPT, prompted", "SFT", "PPO", "PPO-ptx"):
        assert f"| {name} " in report
    assert "bit for bit" in report  # and what is not promised


def test_results_are_means_of_units(answered, reported):
    results, _ = reported
    for name in ("base", "ppo"):
        rows = units(answered, name, "test")
        found = results["models"]["mini"][name]
        assert found["reward"][0] == pytest.approx(np.mean([u["reward"] for u in rows]))
        assert found["few_shot"][0] == pytest.approx(
            np.mean([u["right"] for u in units(answered, name, "few_shot")]))
        assert found["reward"][1] < found["reward"][0] < found["reward"][2]
    assert "win_rate" not in results["models"]["mini"]["sft"]  # not against itself


def test_the_same_run_gives_the_same_report(answered, reported, tmp_path):
    study.main(study.StudyConfig(runs=(str(answered),), out=str(tmp_path)))
    assert (tmp_path / "report.md").read_text() == reported[1]


SMALL = ["ptx_0.1", "ptx_0.3", "ptx_3", "ptx_10", "ptx_30", "ptx_100", "kl_0.02", "kl_0.2",
         "kl_0.5", "kl_1", "kl_3", "kl_8", "no_kl-4", "no_kl-8", "from_base"]


@pytest.fixture(scope="module")
def whole(answered, tmp_path_factory):
    """Two copies of a run as two seeds, its models also as another size, with all that a study
    adds to them: (results.json, report.md)."""
    folder = tmp_path_factory.mktemp("study")
    for seed in (1, 2):
        home = folder / f"world-{seed}"
        shutil.copytree(answered, home)
        for name in ("flan", "t0", "start"):
            shutil.copy(home / "answers" / "base.jsonl", home / "answers" / f"{name}.jsonl")
        shutil.copytree(home / "answers", home / "mini-s" / "answers")
        test = units(home, "ppo", "test")
        for name in SMALL:
            shutil.copy(home / "answers" / "ppo.jsonl", home / "mini-s" / "answers" / f"{name}.jsonl")
        kl = sum(u["kl"] for u in test) / len(test)
        for k, n in enumerate(study.BEST_OF):   # PPO's KL is a third of the way from 4 to 8
            write(home / "mini-s" / "answers" / f"best_of_{n}.jsonl",
                  [u | {"reward": float(k), "kl": kl + k - 2 - 1 / 3} for u in test])
        write(home / "sft16.jsonl", [{"step": n, "valid_loss": 1 + 0.1 * n, "valid_reward": 0.1 * n}
                                     for n in range(4)])
        (home / "sft16.pt").touch()
    home = folder / "world-1"       # the longest parts are the first seed's only
    shutil.copy(home / "answers" / "ppo.jsonl", home / "answers" / "again.jsonl")
    for name, epochs in (("reward", 1), ("reward-epochs", 2), ("reward-pairs", 1)):
        (home / f"{name}.pt").touch()
        write(home / f"{name}.jsonl",
              [{"step": 2 * n + k, "accuracy": 0.5 + 0.25 * k, "pairs": 10 + 20 * k}
               | ({"valid_accuracy": 0.625, "valid_loss": 0.6} if k else {})
               for n in range(epochs) for k in (0, 1)])
    for name in ("epochs", "pairs", *(f"{part}-{g}" for part in ("fold", "within") for g in "ABCDE")):
        shutil.copy(home / "accuracy" / "training.jsonl", home / "accuracy" / f"{name}.jsonl")
    study.main(study.StudyConfig(
        runs=tuple(str(folder / f"world-{s}") for s in (1, 2)), sizes=("mini-s", "mini"),
        out=str(folder / "study")))
    return json.loads((folder / "study" / "results.json").read_text()), \
        (folder / "study" / "report.md").read_text()


def test_several_seeds_and_sizes(answered, reported, whole):
    results, report = whole
    one, two = (results["models"][size]["sft"]["reward"][0] for size in ("mini-s", "mini"))
    assert one == two == pytest.approx(reported[0]["models"]["mini"]["sft"]["reward"][0])
    for title in ("Figure 1", "Figure 3", "Figure 33", "Figure 34", "Without a KL penalty",
                  "Best of n", "Ablations", "PPO against best of n, n up to 64, at equal KL",
                  "SFT by epochs",
                  "A second round of comparisons (mini), 1 seed of 2", "The paper's claims",
                  "Reward models by epochs and batches, 1 seed of 2"):
        assert f"## {title}" in report, title
    assert "bootstrap over prompts, and Student's t over seeds" in report
    assert not strays(results, report)


def test_a_sweep_has_the_models_that_it_names(answered, whole):
    sweeps = whole[0]["sweeps"]
    ppo = whole[0]["models"]["mini-s"]["ppo"]
    for title, labels in (("Figure 33", ["0 (PPO)", "0.1", "0.3", "1 (PPO-ptx)", "3", "10", "30",
                                         "100"]),
                          ("Figure 34", ["0", "0.02", "0.08 (PPO)", "0.2", "0.5", "1", "3", "8"]),
                          ("Without a KL", ["4", "8"])):
        rows, = (rows for name, rows in sweeps.items() if name.startswith(title))
        assert list(rows) == labels
        for label, row in rows.items():     # all are copies of PPO's answers, but PPO-ptx's
            if "ptx" not in label:
                assert row["reward"] == ppo["reward"] and row["few_shot"] == ppo["few_shot"]


def test_best_of_n_is_compared_at_ppos_own_kl(answered, whole):
    """Rewards of n = 4 and 8 are made 2 and 3 here, and PPO's KL a third of the way between."""
    row = whole[0]["sweeps"][
        "PPO against best of n, n up to 64, at equal KL (mini-s)"]["0.08 (PPO)"]
    assert row["reward_best"][0] == pytest.approx(2 + 1 / 3, abs=1e-4)
    assert row["win_rate_more"] == pytest.approx([0.0] * 3, abs=1e-9)    # they are its own answers
    assert row["reward"] == whole[0]["models"]["mini-s"]["ppo"]["reward"]


def test_a_reward_models_epoch_has_its_batches_accuracy(whole):
    rows = whole[0]["sweeps"]["Reward models by epochs and batches, 1 seed of 2"]
    assert len(rows) == 4
    for row in rows.values():   # 5 of 10 pairs and 22.5 of 30
        assert row["train_accuracy"][0] == pytest.approx(27.5 / 40)
        assert row["accuracy"][0] == 0.625


def test_claims_say_what_each_of_their_seeds_says(whole):
    """The two seeds are copies: what one says, the other does."""
    seeds = {c["claim"]: c["seeds"] for c in whole[0]["claims"]}
    assert len(seeds["mini predicts text better than mini-s"]) == 2
    assert len(seeds["PPO-ptx of a second round is preferred to that of the first"]) == 1
    assert len(seeds["a reward model of four epochs has a higher validation loss than one of one"
                     ]) == 1
    assert all(len(set(each)) == 1 for each in seeds.values())
    assert {c["section"] for c in whole[0]["claims"]} >= {"3.1", "3.4", "3.5", "4.1", "4.2", "C.1",
                                                         "C.2"}
    assert re.search(r"\| reproduced +\| \+ \+ +\|\n", whole[1])


def test_verdicts():
    assert claims.verdict([0.6, 0.51, 0.7], 0.5) == "reproduced"
    assert claims.verdict([0.4, 0.3, 0.49], 0.5) == "not reproduced"
    assert claims.verdict([0.55, 0.45, 0.6], 0.5) == "not decided"
    for line in (0.0, 0.3, 0.5):  # an end on the line, rounded this way or that
        for off in (-1e-17, 0, 1e-16):
            assert claims.verdict([line + 0.1, line + off, line + 0.2], line) == "not decided"
            assert claims.verdict([line - 0.1, line - 0.2, line + off], line) == "not decided"
    assert claims.verdict([0.5, 0.46, 0.54], 0.45, 0.55) == "reproduced"
    assert claims.verdict([0.5, 0.44, 0.54], 0.45, 0.55) == "not decided"
    assert claims.verdict([0.5, 0.46, 0.56], 0.45, 0.55) == "not decided"
    assert claims.verdict([0.6, 0.56, 0.64], 0.45, 0.55) == "not reproduced"
    assert claims.verdict([0.4, 0.36, 0.44], 0.45, 0.55) == "not reproduced"


@pytest.mark.parametrize("seeds, verdict", [(1, "not decided"), (3, "reproduced")])
def test_one_seed_decides_nothing_where_seeds_are_the_units(tmp_path, seeds, verdict):
    for seed in range(seeds):
        (tmp_path / f"{seed}").mkdir()
        (tmp_path / f"{seed}" / "sft16.jsonl").write_text("".join(
            json.dumps({"step": n, "valid_loss": 1 + n + seed, "valid_reward": n}) + "\n"
            for n in range(16)))
    whole = study.Study(study.StudyConfig(runs=(), out=""))
    whole.runs = [SimpleNamespace(ended=lambda stage: stage == "sft16", has=lambda model: False,
                                  metrics=lambda stage, seed=seed: study.read_json_lines(
        tmp_path / f"{seed}" / f"{stage}.jsonl")) for seed in range(seeds)]
    found = claims.Claims(whole)
    claims.epochs_of_sft(whole, found)
    assert [c["measured"] for c in found.found] == [[15.0] * 3] * 2
    assert [c["verdict"] for c in found.found] == [verdict] * 2


def test_claims_look_the_right_way(answered):
    """PPO-ptx that answers everything well and a base model that does not: every claim on what
    they say is reproduced; exchanged, none is."""
    def verdicts(good_name, bad_name):
        run = study.Run(answered, study.StudyConfig(runs=(), out=""))
        prompts = run.prompts

        def fake(model):
            said = {good_name: lambda i: prompts[i]["key"], bad_name: None}.get(model)
            rows = [{"row": i, "answer": GOOD[i] if said else "Why? Why? Why?", "reward": 0.0,
                     "kl": 0.0, "length": 3} for i in range(len(prompts))]
            return {"test": rows, "text": [], "closed": [], "truthful": [], "toxicity": [],
                    "few_shot": []}
        run.answers, run.has = fake, lambda model: model in (good_name, bad_name)
        whole = study.Study(study.StudyConfig(runs=(), out=""))
        whole.runs, whole.judged = [run], True
        return {c["claim"]: c["verdict"] for c in claims.claims(whole)
                if c["unit"] in ("win rate", "points")}
    GOOD = [people.demonstrate(WORLD, t, "plain", None) for t in tasks(120)]
    found = verdicts("ppo_ptx", "base")
    assert len(found) == 5 and set(found.values()) == {"reproduced"}, found
    assert "reproduced" not in set(verdicts("base", "ppo_ptx").values())


def test_coefficients_are_held_against_the_right_models():
    """PPO with γ = 1 against the best of the β, and both against PPO's own way from its start."""
    losses = {"base": 1.0, "start": 1.2, "ppo": 2.0, "ppo_ptx": 1.25, "ptx_30": 1.5, "kl_1": 1.6,
              "kl_8": 1.375}
    rewards = {"start": -1.0, "ppo": 1.0, "ppo_ptx": 0.9, "ptx_30": 0.5}

    def observe(model):
        return {"text_loss": np.full(8, losses[model]), "few_shot": np.full(8, 0.5),
                "reward": np.full(8, rewards.get(model, 0.0))}

    one = SimpleNamespace(
        has=lambda model: model in losses or model == "no_kl-4", wins=lambda *_: np.full(8, 0.75),
        observe=observe, paired=lambda what, models: np.stack([observe(m)[what] for m in models], 1))
    whole = SimpleNamespace(
        runs=[one], smallest=str, largest=str, without_kl=lambda: "no_kl-4",
        kl_sweep=lambda: {"0.08 (PPO)": "ppo", "1": "kl_1", "8": "kl_8"})
    found = claims.Claims(whole)
    claims.sweeps_of_coefficients(whole, found)
    claims.alignment_tax(whole, claims_of_tax := claims.Claims(whole))
    said = {c["claim"]: c for c in found.found + claims_of_tax.found}
    for claim, measured, verdict in (
            ("no KL coefficient spares as much of the pretraining loss as a pretraining coefficient "
             "of 1", 0.125, "reproduced"),
            ("a pretraining coefficient of 1 keeps more than nine tenths of the reward that PPO "
             "gains over its start", 0.95, "reproduced"),
            ("a pretraining coefficient of 30 keeps more than nine tenths of the reward that PPO "
             "gains over its start", 0.75, "not reproduced"),
            ("PPO-ptx spares more than half of the pretraining loss that PPO gives up", 0.75,
             "reproduced")):
        assert said[claim]["measured"] == pytest.approx([measured] * 3), claim
        assert said[claim]["verdict"] == verdict
    losses |= {"ppo": 0.9, "ppo_ptx": 1.2}  # PPO gives up nothing: there is nothing to spare
    rewards |= {"ppo": -2.0, "ppo_ptx": -3.0}
    for part in (claims.sweeps_of_coefficients, claims.alignment_tax):
        part(whole, found := claims.Claims(whole))
        assert {c["verdict"] for c in found.found if c["unit"] == "part"} == {"not reproduced"}


def test_the_rule_alone_has_no_taste(answered):
    """A word of courtesy, which most labelers like, is nothing to it; what is asked for is."""
    run = study.Run(answered, study.StudyConfig(runs=(), out=""))
    keys = [prompt["key"] for prompt in run.prompts]
    good = [people.demonstrate(WORLD, t, "plain", None) for t in tasks(120)]
    polite = [f"{answer} I hope this helps." for answer in good]
    kept = [i for i, key in enumerate(keys) if quality(key, polite[i]).courteous
            and overall(quality(key, polite[i])) == overall(quality(key, good[i]))]
    assert len(kept) > 40
    keys, good, polite = ([x[i] for i in kept] for x in (keys, good, polite))
    votes = {group: np.mean(judge_pairs(keys, polite, good, run.labelers[group], judges=judges))
             for group, judges in (("training", 40), ("rule", 3))}
    assert votes["training"] > 0.55 and votes["rule"] == 0.5
    assert min(judge_pairs(keys, good, ["Why?"] * len(keys), run.labelers["rule"])) == 1


def test_models_are_compared_prompt_by_prompt(answered, tmp_path):
    """Whatever the order of a file; where one has other prompts, more windows or fewer tasks, a line
    says so instead."""
    home = tmp_path / "world-1"
    shutil.copytree(answered, home)
    path = home / "answers" / "ppo_ptx.jsonl"
    lines = (home / "answers" / "base.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))

    def run():
        return study.Run(home, study.StudyConfig(runs=(), out=""))
    for what in ("reward", "toxic_none", "true"):
        base, ptx = run().paired(what, ["base", "ppo_ptx"]).T
        assert base.tolist() == ptx.tolist(), what
    whole = study.Study(study.StudyConfig(runs=(str(home),), out=""))
    for at, kind in ((0, "test"), (-1, "text")):
        path.write_text("".join(lines[1:] if at == 0 else lines[:-1]))
        assert json.loads(lines[at])["kind"] == kind
        with pytest.raises(InputError, match=f"ppo_ptx.jsonl: its units of {kind} are not those of"):
            run().paired("reward", ["base", "ppo_ptx"])
        whole.runs = [run()]
        with pytest.raises(InputError, match="expected the same in both"):
            claims.claims(whole)


def test_an_interval_over_folds_covers():
    """Groups and models that differ, prompts that all folds share, pairs within a prompt alike."""
    rng, inside = np.random.default_rng(0), 0
    how = claims.over_folds(claims.pairs_right)
    for _ in range(200):
        of_N, of_5 = rng.normal(0, 0.15, 100), rng.normal(0, 0.02, 5)
        right = rng.binomial(12, np.clip(0.65 + of_N[:, None] + of_5, 0, 1))
        units = np.stack([right, np.full_like(right, 12), np.zeros_like(right)], 2)
        _, low, high = bootstrap(units, draws=200, **how)
        inside += low <= 0.65 <= high
    assert inside >= 186


def test_folds_are_five_and_differ_as_seeds_do(tmp_path):
    """Five labelers who rank the same completions are no five times as many prompts: groups and
    models that differ widen the interval, and any claim rests on five."""
    one = study.Run.__new__(study.Run)
    one.folder = tmp_path
    (tmp_path / "accuracy").mkdir()
    for n, group in enumerate("ABCDE"):
        assert one.folds("fold") is None
        write(tmp_path / "accuracy" / f"fold-{group}.jsonl",
              [{"right": n, "pairs": 6, "loss": 4.0}, {"right": 1, "pairs": 1, "loss": 0.5}])
    units = one.folds("fold")
    assert units.shape == (2, 5, 3) and units[:, :, 0].tolist() == [[0, 1, 2, 3, 4], [1] * 5]
    shares = [(n + 1) / 7 for n in range(5)]
    how = claims.over_folds(claims.pairs_right)
    figure, low, high = bootstrap(units, **how)
    assert figure == pytest.approx(15 / 35)
    assert high - low > 2 * 2.7 * np.std(shares, ddof=1) / math.sqrt(5)  # t of 4: 2.776
    spread = bootstrap(units, statistic=how["statistic"])
    assert high - low > spread[2] - spread[1]
    assert bootstrap(units, units, **how) == bootstrap(units, units, statistic=how["statistic"])
    write(tmp_path / "accuracy" / "fold-C.jsonl", [{"right": 1, "pairs": 6, "loss": 4}])
    with pytest.raises(InputError, match="fold-C has 1 comparisons; expected 2, as fold-A has"):
        one.folds("fold")
    for group in "ABCDE":
        for name, rows in (("fold", 2), ("within", 3)):
            write(tmp_path / "accuracy" / f"{name}-{group}.jsonl",
                  [{"right": 1, "pairs": 6, "loss": 4.0}] * rows)
    with pytest.raises(InputError, match="fold-A has 2 comparisons; expected 3, as within-A has"):
        one.folds("within", "fold")


def test_reward_models_of_few_comparisons_stand_beside_those_of_all(answered, tmp_path):
    """Two seeds have those of few, one of them those of all: each row and claim rests on its own."""
    for seed in (1, 2):
        home = tmp_path / f"world-{seed}"
        shutil.copytree(answered, home)
        for place, shift in (("few", 0), ("", 1))[:seed]:
            folder = home / place
            (folder / "accuracy").mkdir(parents=True, exist_ok=True)
            for name, right in (("once", 4), ("epochs", 3), ("pairs", 2),
                                *((f"{x}-{g}", 3 - (x == "fold")) for x in ("within", "fold")
                                  for g in "ABCDE")):
                write(folder / "accuracy" / f"{name}.jsonl",
                      [{"right": right + shift, "pairs": 5, "loss": 5.0 - right},
                       {"right": 0, "pairs": 0, "loss": 0.0}] * 3)
            for kind, losses in (("reward-epochs", (1.75, 2.5)), ("reward-pairs", (1.5,)),
                                 ("reward-once" if place else "reward", (1.25,))):
                write(folder / f"{kind}.jsonl", [row for n, loss in enumerate(losses) for row in (
                    {"step": 2 * n, "accuracy": 0.5, "pairs": 4},
                    {"step": 2 * n + 1, "accuracy": 0.8, "pairs": 8, "valid_accuracy": 0.25,
                     "valid_loss": loss})])
                if kind != "reward":
                    (folder / f"{kind}.pt").touch()
        once = read_checkpoint(home / "reward.pt")
        save_checkpoint(home / "few" / "reward-once.pt", **once | {"config": {"limit": 70}})
    write(tmp_path / "world-2" / "accuracy" / "training.jsonl",
          [{"right": 5, "pairs": 5, "loss": 1.5}, {"right": 0, "pairs": 0, "loss": 0.0}] * 3)
    whole = study.Study(study.StudyConfig(runs=tuple(
        str(tmp_path / f"world-{seed}") for seed in (1, 2)), out=""))
    found = whole.reward_model()
    assert found["few"] == 70
    for name, share in (("few/accuracy_within", 0.6), ("few/accuracy_fold", 0.4),
                        ("accuracy_within", 0.8), ("accuracy_fold", 0.6)):
        assert found[name][0] == pytest.approx(share), name
    tables = whole.epochs()
    assert list(tables) == [f"Reward models by epochs and batches{which}"
                            for which in (", 1 seed of 2", ", 70 comparisons")]
    for rows in tables.values():
        assert list(rows) == ["one epoch, K-wise batches", "one epoch, shuffled pairs",
                              "four epochs, K-wise, after 1", "four epochs, K-wise, after 2"]
        assert rows["one epoch, shuffled pairs"]["train_accuracy"][0] == pytest.approx(0.7)
        assert [row["valid_loss"][0] for row in rows.values()] == [1.25, 1.5, 1.75, 2.5]
    text = reward_table(found)
    assert "five, on 70 comparisons, orders" in text and text.count("72.4 ± 0.4") == 2
    said = {c["claim"]: c for c in claims.claims(whole)}
    unseen = "it predicts a group of labelers that it has not seen a little less well"
    over_fits = "a reward model of four epochs has a higher validation loss than one of one"
    shuffled = "one of shuffled pairs has a higher validation loss than one of K-wise batches"
    pairs = "K-wise batches predict better than shuffled pairs"
    for claim, measured, seeds in (
            (unseen, 0.2, 1), (f"{unseen}, 70 comparisons", 0.2, 2),
            (over_fits, 0.1, 1), (f"{over_fits}, 70 comparisons", 0.2, 2),
            (shuffled, 0.3, 1), (f"{shuffled}, 70 comparisons", 0.4, 2),
            (pairs, 0.4, 1), (f"{pairs}, 70 comparisons", 0.4, 2)):
        assert said[claim]["measured"][0] == pytest.approx(measured), claim
        assert len(said[claim]["seeds"]) == seeds, claim


def test_wordings_of_one_fact_are_one_unit(answered):
    found = study.Run(answered, study.StudyConfig(runs=(), out="")).observe("ppo")
    probes = evaluate.read_json_lines(answered / "world" / "probes.jsonl")
    asked = {tuple(p["key"]["claim"][:2]) for p in probes if p["kind"] == "truthful"}
    assert len(found["true"]) == len(found["true_informative"]) == len(asked)
    assert all(t >= i for t, i in zip(found["true"], found["true_informative"]))


def test_no_kl_is_compared_with_ppo_after_as_many_iterations(answered, tmp_path):
    home = tmp_path / "world-1"
    shutil.copytree(answered, home)
    for n in (2, 4, 6):
        shutil.copy(home / "answers" / "ppo.jsonl", home / "answers" / f"no_kl-{n}.jsonl")
    for iterations, number in ((4, 4), (5, 6), (2, 2)):
        write(home / "ppo.jsonl", [{"step": n, "reward": 0.0, "kl": 0.0, "entropy": 0.0}
                                   for n in range(iterations)] + [{"step": 0, "answers": []}])
        found = study.Study(study.StudyConfig(runs=(str(home),), out=""))
        assert found.without_kl() == f"no_kl-{number}" and found.kept() == [2, 4, 6]


def test_the_largest_gpt_need_not_have_been_tuned(answered, tmp_path, capsys):
    for seed in (1, 2):
        home = tmp_path / f"world-{seed}"
        shutil.copytree(answered, home)
        (home / "mini-l" / "answers").mkdir(parents=True)
        for name in ("base", "prompted"):
            shutil.copy(home / "answers" / f"{name}.jsonl", home / "mini-l" / "answers")
    config = study.StudyConfig(runs=tuple(str(tmp_path / f"world-{s}") for s in (1, 2)), out="",
                               sizes=("mini", "mini-l"))
    whole = study.Study(config)
    assert whole.sizes == ["mini"] and "mini-l" in capsys.readouterr().out
    said = {c["claim"]: c["measured"] for c in whole.results()["claims"]}
    for gpt in ("GPT", "prompted GPT"):
        assert said[f"the smallest PPO-ptx, mini, is preferred to the largest {gpt}, mini-l"] == \
            said[f"PPO-ptx is preferred to {gpt}" + " of its size" * (gpt == "GPT")]
    assert "mini-l predicts text better than mini" in said
    (tmp_path / "world-2" / "mini-l" / "answers" / "prompted.jsonl").unlink()
    assert not any("largest" in c["claim"] for c in study.Study(config).results()["claims"])


def test_what_is_not_whole_is_left_out(answered, tmp_path, capsys):
    """A size that one of the runs lacks, with a line; epochs of a stage that has not ended; and a
    claim rests on the seeds that have its models."""
    for seed in (1, 2):
        shutil.copytree(answered, tmp_path / f"world-{seed}")
    home = tmp_path / "world-1"
    shutil.copytree(home / "answers", home / "mini-l" / "answers")
    (tmp_path / "world-2" / "answers" / "prompted.jsonl").unlink()
    write(home / "sft16.jsonl", [{"step": n, "valid_loss": 1.0, "valid_reward": 1.0}
                                 for n in range(7)])
    config = study.StudyConfig(runs=tuple(str(tmp_path / f"world-{s}") for s in (1, 2)), out="",
                               sizes=("mini", "mini-l"))
    whole = study.Study(config)
    assert whole.sizes == ["mini"] and "mini-l" in capsys.readouterr().out
    assert whole.epochs_of_16() == []
    (home / "sft16.pt").touch()
    assert [len(rows) for rows in whole.epochs_of_16()] == [7]
    seeds = {c["claim"]: c["seeds"] for c in claims.claims(whole)}
    assert len(seeds["PPO-ptx is preferred to prompted GPT"]) == 1
    assert len(seeds["PPO-ptx is preferred to SFT"]) == 2


def test_a_share_stays_one():
    assert claims.share([0.01, -0.02, 0.05]) == [0.01, 0.0, 0.05]
    assert claims.share([0.99, 0.9, 1.1]) == [0.99, 0.9, 1.0]


def test_tables_line_up():
    lines = table(["a", "bb"], [["1", "2"], ["333", "4"]]).split("\n")
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    assert shown([1.0, 1.0, 1.0], 100, 1) == "100.0"  # its units were all alike
    assert shown(None) == "–" and shown([0.5, 0.25, 1], 100, 0) == "50 [25, 100]"


# -- bad input ------------------------------------------------------------------------------------


def test_a_run_without_answers_and_a_damaged_file_are_one_line(answered, tmp_path):
    with pytest.raises(InputError, match="prompts.test.jsonl"):
        study.main(study.StudyConfig(runs=(str(tmp_path),), out=str(tmp_path)))
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(InputError, match=r"x.jsonl:2: not JSON"):
        evaluate.read_json_lines(path)
    path.write_text("[1]\n")
    with pytest.raises(InputError, match="x.jsonl:1: .* is not an object"):
        evaluate.read_json_lines(path)
    with pytest.raises(InputError, match="both or neither"):
        evaluate.AnswersConfig(checkpoint="", out="", prompts="", reward="", prefix_from="x")
    with pytest.raises(InputError, match="--temperature 0 --reference: greedy answers have no KL"):
        evaluate.AnswersConfig(checkpoint="", out="", prompts="", reward="", reference="x",
                               temperature=0.0)
    with pytest.raises(InputError, match="expected one of --sizes"):
        study.main(study.StudyConfig(runs=(str(answered),), out="", sizes=("a", "b"), own="c"))


FEW = {"kind": "few_shot", "task": "facts", "prompt": "Q: a\nA:", "answers": ["b"]}


@pytest.mark.parametrize("rows, reason", [
    ([], "empty"), ([{}], ":1: key 'kind' is missing"), ([{"kind": "closed"}], ":1: key 'prompt'"),
    ([FEW, {k: v for k, v in FEW.items() if k != "answers"}], ":2: key 'answers' is missing"),
    ([FEW | {"answers": []}], ":1: 'answers' is empty"), ([FEW | {"kind": "test"}], ":1: kind is"),
    ([FEW | {"prompt": "a " * 300}], "expected room for 2 of an answer in a context of 192")])
def test_probes_that_are_none_are_one_line(run_folder, tmp_path, rows, reason):
    write(tmp_path / "probes.jsonl", rows)
    with pytest.raises(InputError, match=reason):
        evaluate.answers(evaluate.AnswersConfig(
            checkpoint=str(run_folder / "ppo.pt"), out=str(tmp_path / "none.jsonl"),
            prompts=str(run_folder / "data" / "prompts.test.jsonl"), max_response=12, device="cpu",
            reward=str(run_folder / "reward.pt"), probes=str(tmp_path / "probes.jsonl")))
    assert not (tmp_path / "none.jsonl").exists()


def test_probes_need_no_few_shot_ones_and_may_begin_with_a_mark_of_their_encoding(tmp_path):
    probe = {"kind": "closed", "prompt": "a"}
    (tmp_path / "probes.jsonl").write_text("\ufeff" + json.dumps(probe) + "\n")
    assert evaluate.read_probes(tmp_path / "probes.jsonl") == [probe]
    model = GPT(GPTConfig(128, 64, n_layer=1, n_head=2, d_model=32))
    assert evaluate.few_shot_units(model, [probe], Ascii()) == []


def test_without_a_demonstration_of_one_line_there_is_no_prompted_gpt(run_folder, tmp_path, capsys):
    write(tmp_path / "d.jsonl", [{"prompt": "a", "response": "b\nc", "source": "labeler"}])
    with pytest.raises(InputError, match="d.jsonl: no response of one line"):
        answer(run_folder, "prompted", "base", prefix_from=str(tmp_path / "d.jsonl"),
               prefix_prompts=str(run_folder / "data" / "prompts.test.jsonl"))
    with pytest.raises(SystemExit):
        parse_config(evaluate.AnswersConfig, "", (
            "--checkpoint x --out x --prompts x --reward x --prefix_examples 0").split())
    assert "--prefix_examples 0: expected a number above 0" in capsys.readouterr().err


def test_best_of_n_without_room_for_a_response_writes_nothing(run_folder, tmp_path):
    with pytest.raises(InputError, match="no prompt of at most 0 tokens"):
        evaluate.best_of(evaluate.BestOfConfig(
            checkpoint=str(run_folder / "sft.pt"), out=str(tmp_path / "answers"), device="cpu",
            prompts=str(run_folder / "data" / "prompts.test.jsonl"), max_response=192,
            reward=str(run_folder / "reward.pt")))
    assert not list(tmp_path.iterdir())


def without(row, name):
    return {k: v for k, v in row.items() if k != name}


@pytest.mark.parametrize("name, change, look, reason", [
    ("data/prompts.test.jsonl", lambda rows: [], None, "empty"),
    ("data/prompts.test.jsonl", lambda rows: [*rows, without(rows[0], "prompt")], None,
     ":121: key 'prompt' is missing"),
    ("data/prompts.test.jsonl", lambda rows: [rows[0] | {"key": {}}], None, ":1: key does not say"),
    ("data/prompts.test.jsonl", lambda rows: [rows[0] | {"key": None}], None, ":1: key does not"),
    ("data/prompts.test.jsonl", lambda rows: [*rows, without(rows[0], "key")], None, ":121: key"),
    ("answers/ppo.jsonl", lambda rows: [row for row in rows if row["kind"] != "test"],
     lambda whole: whole.win("ppo", "sft"), "no answer to a test prompt"),
    ("answers/ppo.jsonl", lambda rows: [row | {"row": 0} if row["kind"] == "closed" else row
                                        for row in rows],
     lambda whole: whole.runs[0].observe("ppo"), "row 0 is a probe of truthful; expected one of"),
    ("world/probes.jsonl", lambda rows: [without(rows[0], "kind")], None, ":1: key 'kind' is miss"),
    ("world/probes.jsonl", lambda rows: [without(rows[0], "key")], None, ":1: key does not say"),
    ("world/probes.jsonl", lambda rows: [row | {"key": without(row["key"], "claim")
                                                | {"want": "list", "n": 1, "items": ["a"]}}
                                         for row in rows if row["kind"] == "truthful"], None,
     ":1: key has no claim"),
    ("world/probes.jsonl", lambda rows: [without(row, "prefix") for row in rows
                                         if row["kind"] == "toxicity"], None, ":1: no prefix"),
    ("ppo.jsonl", lambda _: [{"step": 0, "reward": [1], "kl": 1.0, "entropy": 1.0}],
     study.Study.curves, r":1: reward is \[1\]; expected a number"),
    ("ppo.jsonl", lambda _: [{"step": 0, "reward": None, "kl": 1.0, "entropy": 1.0}],
     study.Study.curves, ":1: reward is None; expected a number"),
    ("ppo.jsonl", lambda _: [{"step": 0, "reward": "a", "kl": 1.0, "entropy": 1.0}],
     study.Study.curves, ":1: reward is 'a'; expected a number"),
    ("completions.valid.jsonl", lambda rows: [], study.Study.reward_model, "empty"),
    ("completions.valid.jsonl", lambda rows: [without(rows[0], "key")], study.Study.reward_model,
     ":1: key does not say")])
def test_one_fault_in_a_run_is_one_line_of_the_study(answered, tmp_path, name, change, look,
                                                     reason):
    shutil.copytree(answered, tmp_path / "run")
    path = tmp_path / "run" / name
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    write(path, change(rows))
    with pytest.raises(InputError, match=f"{path.name}:? ?.*{reason}"):
        look(study.Study(study.StudyConfig(runs=(str(tmp_path / "run"),), out="")))


def test_two_models_without_a_prompt_in_common_are_one_line(answered, tmp_path):
    shutil.copytree(answered, tmp_path / "run")
    for name, rows in ("ppo", units(answered, "ppo", "test")[:3]), ("sft", units(
            answered, "sft", "test")[3:]):
        write(tmp_path / "run" / "answers" / f"{name}.jsonl", rows)
    run = study.Run(tmp_path / "run", study.StudyConfig(runs=(), out=""))
    with pytest.raises(InputError, match="ppo.jsonl: answers no test prompt that .*sft.jsonl ans"):
        run.wins("ppo", "sft")


def test_a_score_or_kl_beyond_all_numbers_stops_before_anything_is_written(run_folder):
    models = [load_model(kind, run_folder / name, stages, load_tokenizer("world"))
              for kind, name, stages in ((ScalarGPT, "reward.pt", ("reward",)),
                                         (GPT, "ppo.pt", ("ppo",)), (GPT, "base.pt", ("base",)))]
    with pytest.raises(FloatingPointError, match="the KL of an answer is nan"):
        evaluate.measure([[1, 2]], [[3, 4]], *models, temperature=0.0)
    models[0].head.bias.data.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="the reward of an answer is inf"):
        evaluate.measure([[1, 2]], [[3, 4]], models[0])


def test_a_context_without_room_for_an_answer_is_one_line(run_folder):
    with pytest.raises(InputError, match="leaves room for 190 response"):
        evaluate.answers(evaluate.AnswersConfig(
            checkpoint=str(run_folder / "ppo.pt"), out=str(run_folder / "none.jsonl"),
            prompts=str(run_folder / "data" / "prompts.test.jsonl"),
            reward=str(run_folder / "reward.pt"), max_response=190, device="cpu"))
    assert not (run_folder / "none.jsonl").exists()
