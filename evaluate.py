"""Evaluation (§3.6, §4): answers of every model, win rates with intervals, and the report.

    RUN=runs/world-0 PROMPTS=runs/world-0/data/prompts.test.jsonl
    # K = 4 … 9 completions a prompt, for labelers to rank
    python evaluate.py sample --checkpoint $RUN/start.pt --prompts $PROMPTS --max_response 40 \\
        --out $RUN/my-completions.jsonl
    python evaluate.py answers --checkpoint $RUN/ppo.pt --reward $RUN/reward.pt --prompts $PROMPTS \\
        --probes $RUN/world/probes.jsonl --max_response 40 --out $RUN/my-answers/ppo.jsonl
    python evaluate.py best_of --checkpoint $RUN/start.pt --reward $RUN/reward.pt \\
        --prompts $PROMPTS --max_response 40 --out $RUN/my-answers
    python evaluate.py accuracy --reward $RUN/reward.pt --out $RUN/my-accuracy.jsonl \\
        --comparisons $RUN/data/comparisons.valid.jsonl
    python evaluate.py table14 squadv2.csv.gz  # its metrics, of samples that OpenAI published

Every file written here holds units: one line per prompt, per window of text, per comparison.
`data/study.py` makes results of units, always with a 95 % interval: a bootstrap over the
units that were sampled (prompts, say), and Student's t over seeds where there are several.
"""

import math
import random
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from common import (InputError, alone, check_finite, check_output, device_of, load_model,
                    output_file, required, run_verbs, setting)
from data.batching import length_sorted_batches, pad_right, seeded_generator, text_in_order
from data.labelers import prefers
from data.readers import (_list, _read_rows, _string, read_demonstrations, read_fitting_prompts,
                          read_prompts, read_text, write_jsonl)
from data.report import shown, table
from data.samples import TASKS, paper_figure, read_samples
from data.tokenizer import load_tokenizer
from machine import side_by_side
from model import (GPT, ScalarGPT, compute_dtype, generate, response_logprobs, target_logprobs)
from reward import load_rankings, ranking_loss, score_rankings

STAGES = ("base", "sft", "ppo")  # whose checkpoints answer prompts

# -- sampling answers -----------------------------------------------------------------------------


def sample_responses(model, prompts, max_response, temperature, eos, *key, batch=256):
    """One sampled response to each prompt (token lists; end-of-text is part of it), the same for
    the same `key`. Prompts of like length are answered together."""
    responses = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(prompts), batch):
        chosen = order[first:first + batch]
        with compute_dtype(model.decoder.wte.weight.device):
            samples = generate(model, [prompts[i] for i in chosen], max_response, temperature, eos,
                               seeded_generator("answers", *key, first))
        for i, row, p, n in zip(chosen, samples.tokens_BT.tolist(), samples.prompt_lens_B.tolist(),
                                samples.lens_B.tolist()):
            responses[i] = row[p:n]
    return responses


@dataclass(frozen=True)
class SampleConfig:
    checkpoint: tuple = required("one or more policies to sample from, in turn")
    prompts: str = required("prompts, JSON Lines")
    out: str = output_file("file to write: prompt, completions, and the prompt's other keys")
    limit: int = setting(0, "use at most so many prompts, 0 = all")
    least: int = setting(4, "completions of a prompt, at least; paper 4, §3.5")
    most: int = setting(9, "completions of a prompt, at most; paper 9, §3.5")
    max_response: int = setting(1024, "response tokens; paper 1k, App. C")
    temperature: float = setting(1.0, "of sampling; paper 1, App. C.4")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    seed: int = setting(0, "how many completions each prompt gets, and the samples")
    device: str = setting("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")

    def __post_init__(self):
        if not 2 <= self.least <= self.most:
            raise InputError(f"--least {self.least} --most {self.most}: expected 2 <= least <= most")


def sample(config):
    """Sample 4 to 9 completions of each prompt, for labelers to rank (§3.2)."""
    device, tokenizer = device_of(config.device, config.dtype), load_tokenizer(config.tokenizer)
    models = [load_model(GPT, path, STAGES, tokenizer, device) for path in config.checkpoint]
    pairs, _ = read_fitting_prompts(config.prompts, tokenizer,
                                    min(m.config.n_ctx for m in models) - config.max_response)
    pairs = pairs[:config.limit or None]
    counts = [random.Random(f"{config.seed} {i}").randint(config.least, config.most)
              for i in range(len(pairs))]
    owners = [[i for i, n in enumerate(counts) for k in range(n) if k % len(models) == which]
              for which in range(len(models))]  # completion k of a prompt comes from model k mod M
    responses = side_by_side(
        [partial(sample_responses, model, [pairs[i][1] for i in owners[which]], config.max_response,
                 config.temperature, tokenizer.eos, config.seed, which)
         for which, model in enumerate(models)], device)
    completions = [[] for _ in pairs]
    for i, response in zip(chain(*owners), chain(*responses)):
        completions[i].append(tokenizer.decode_response(response))
    with alone(config.out, is_file=True):
        write_jsonl(config.out, [{"prompt": p.prompt, "completions": c, **p.extra}
                                 for (p, _), c in zip(pairs, completions)])
    print(f"wrote {sum(counts)} completions of {len(pairs)} prompts to {config.out}")


# -- what one model says and knows ----------------------------------------------------------------


@dataclass(frozen=True)
class AnswersConfig:
    checkpoint: str = required("the model that answers")
    out: str = output_file("file of units to write")
    prompts: str = required("test prompts that no stage trained on")
    reward: str = required("the reward model that scores the answers")
    reference: str = setting("", "PPO's start: the KL of the answers to it is estimated")
    probes: str = setting("", "truthfulness, toxicity, closed-domain and few-shot tasks (§4.2)")
    text: str = setting("", "held-out pretraining text, for its loss")
    prefix_from: str = setting("", "demonstrations: a few are put before each prompt (GPT prompted)")
    prefix_prompts: str = setting("", "validation prompts on which the prefix is chosen")
    prefix_examples: int = setting(4, "examples in it, fewer where the context is full; *scaled*")
    limit: int = setting(600, "use at most so many prompts, 0 = all")
    max_response: int = setting(1024, "response tokens; paper 1k, App. C")
    temperature: float = setting(1.0, "of sampling; paper 1, App. C.4")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    seed: int = setting(0, "of the samples")
    device: str = setting("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")

    def __post_init__(self):
        if bool(self.prefix_from) != bool(self.prefix_prompts):
            raise InputError("--prefix_from and --prefix_prompts: expected both or neither")
        if self.reference and not self.temperature:  # it is ∞ from where the two first differ
            raise InputError("--temperature 0 --reference: greedy answers have no KL; expected a "
                             "number above 0, or no --reference")


@torch.no_grad()
def answers(config):
    """One model's answers to the test prompts and probes, with reward-model scores, and its loss
    on held-out text: a file of units."""
    device, tokenizer = device_of(config.device, config.dtype), load_tokenizer(config.tokenizer)
    model = load_model(GPT, config.checkpoint, STAGES, tokenizer, device)
    reward_model = load_model(ScalarGPT, config.reward, ("reward",), tokenizer, device)
    reference = load_model(GPT, config.reference, STAGES, tokenizer, device) \
        if config.reference else None
    few_shot = few_shot_units(model, read_probes(config.probes), tokenizer) if config.probes else []
    prefix = choose_prefix(model, reward_model, tokenizer, config) if config.prefix_from else []

    units, n_ctx = [], min(m.config.n_ctx for m in (model, reward_model, reference) if m)
    for kind, rows in questions(config).items():
        ids = [tokenizer.encode_prompt(row["prompt"]) for row in rows]
        fits = [i for i, x in enumerate(ids) if len(x) + config.max_response <= n_ctx]
        if kind == "test":
            fits = fits[:config.limit or None]
        prompts = [ids[i] for i in fits]
        if not prompts:
            raise InputError(f"no {kind} prompt leaves room for {config.max_response} response "
                             f"tokens in a context of {n_ctx}")
        if prefix:
            responses = continue_run(model, tokenizer, prefix, [rows[i]["prompt"] for i in fits],
                                     config, kind)
        else:
            responses = sample_responses(model, prompts, config.max_response, config.temperature,
                                         tokenizer.eos, config.seed, kind)
        scores_N, kl_N = measure(prompts, responses, reward_model, model,
                                 None if prefix else reference, config.temperature)
        units += [{"kind": kind, "row": rows[i]["row"], "answer": tokenizer.decode_response(said),
                   "reward": round(score, 5), "kl": round(kl, 5), "length": len(said)}
                  for i, said, score, kl in zip(fits, responses, scores_N, kl_N)]
    units += few_shot
    if config.text and not prefix:
        units += [{"kind": "text", "loss": loss} for loss in
                  losses_of_text(model, tokenizer, config.text)]
    with alone(config.out, is_file=True):
        write_jsonl(config.out, units)
    told = [u for u in units if u["kind"] == "test"]
    print(f"{config.out}: {len(told)} answers to test prompts, mean reward "
          f"{sum(u['reward'] for u in told) / len(told):.3f}", flush=True)


TOXICITY_ANSWERS = 5  # to each of its prompts, which are few


def questions(config):
    """{kind: rows}: the test prompts and the probes that are answered by sampling; `row` is the
    place in their file."""
    found = {"test": [{"row": i, "prompt": p.prompt}
                      for i, p in enumerate(read_prompts(config.prompts))]}
    for i, probe in enumerate(read_probes(config.probes) if config.probes else []):
        if probe["kind"] != "few_shot":
            times = TOXICITY_ANSWERS if probe["kind"] == "toxicity" else 1
            found.setdefault(probe["kind"], []).extend(
                [{"row": i, "prompt": probe["prompt"]}] * times)
    return found


def read_json_lines(path):
    """The objects of a JSON Lines file. Raises InputError for a missing or empty file or a bad
    line."""
    return list(_read_rows(path, dict))


def read_probes(path):
    """The probes of §4.2, as `data.world` writes them. Raises InputError as all readers do."""
    return list(_read_rows(path, _probe))


def _probe(row):
    if _string(row, "kind") in ("test", *UNITS.keys() - {"few_shot"}):
        raise ValueError(f"kind is {row['kind']!r}, as no probe's; expected few_shot or another")
    _string(row, "prompt")
    if row["kind"] == "few_shot":
        _string(row, "task")
        if not _list(row, "answers", str, "strings"):
            raise ValueError("'answers' is empty; expected one or more that are right")
    return row


NUMBER = (int, float)
ANSWER_UNIT = {"row": int, "answer": str, "reward": NUMBER, "kl": NUMBER, "length": int}
UNITS = {"text": {"loss": NUMBER}, "few_shot": {"task": str, "right": bool}}  # others are answers


def read_units(path):
    """The units that `answers` and `best_of` write. Raises InputError where one is none."""
    units = read_json_lines(path)
    for number, unit in enumerate(units, 1):
        kind = unit.get("kind")
        wanted = UNITS.get(kind, ANSWER_UNIT) if isinstance(kind, str) else {"kind": str}
        for key, kinds in wanted.items():
            if not isinstance(unit.get(key), kinds):
                raise InputError(f"{path}:{number}: no {key}; expected a unit of answers")
    return units


def measure(prompts, responses, reward_model, model=None, reference=None, temperature=1.0,
            micro_tokens=16384):
    """(scores, KL estimates), a number per episode: the reward-model score of prompt and response,
    and log π(y|x) − log π_ref(y|x), or 0 without a reference. Raises FloatingPointError where one
    is not finite."""
    device = reward_model.head.weight.device
    rows = [x + y for x, y in zip(prompts, responses)]
    scores, kls = [0.0] * len(rows), [0.0] * len(rows)
    for group in length_sorted_batches([len(row) for row in rows], micro_tokens):
        tokens_BT, lens_B = pad_right([rows[i] for i in group])
        prompt_lens_B = torch.tensor([len(prompts[i]) for i in group])
        R = int((lens_B - prompt_lens_B).max())
        mask_BR = torch.arange(R) < (lens_B - prompt_lens_B)[:, None]
        tokens_BT, lens_B, prompt_lens_B, mask_BR = (
            x.to(device) for x in (tokens_BT, lens_B, prompt_lens_B, mask_BR))
        with compute_dtype(device):
            scores_B = reward_model.scores(tokens_BT, lens_B)
            place = (tokens_BT, prompt_lens_B, mask_BR, temperature)
            kl_B = torch.zeros_like(scores_B) if reference is None else (
                response_logprobs(model, *place) - response_logprobs(reference, *place)).sum(1)
        for i, score, kl in zip(group, scores_B.tolist(), kl_B.tolist()):
            check_finite({"the reward of an answer": score, "the KL of an answer": kl})
            scores[i], kls[i] = score, kl
    return scores, kls


def choose_prefix(model, reward_model, tokenizer, config, candidates=8, prompts=128):
    """The few-shot prefix of GPT prompted (§3.5): of several draws of demonstrations, the one after
    which answers to validation prompts score best. The paper's authors held such a competition
    among themselves; *open*: ours is among random draws."""
    shown = [d for d in read_demonstrations(config.prefix_from) if "\n" not in d.response]
    if not shown:
        raise InputError(f"{config.prefix_from}: no response of one line; expected some, as a "
                         "prefix has one a line")
    room = min(model.config.n_ctx, reward_model.config.n_ctx) - config.max_response
    fitting, _ = read_fitting_prompts(config.prefix_prompts, tokenizer, room)
    asked, ids = zip(*fitting[:prompts])
    best = (-math.inf, 0, [])
    for candidate in range(candidates):
        examples = random.Random(f"prefix {config.seed} {candidate}").sample(
            shown, min(config.prefix_examples, len(shown)))
        responses = continue_run(model, tokenizer, examples, [p.prompt for p in asked], config,
                                 "prefix")
        scores_N, _ = measure(ids, responses, reward_model)
        best = max(best, (sum(scores_N) / len(scores_N), -candidate, examples))
    print(f"prefix of GPT prompted: {[(d.prompt, d.response) for d in best[2]]}", flush=True)
    return best[2]


def continue_run(model, tokenizer, examples, prompts, config, key):
    """Responses, as token lists, of a model that has only read text: each prompt stands at the end
    of a run of questions and answers, one document, and the line that follows is the answer."""
    room = model.config.n_ctx - config.max_response
    documents = []
    for prompt in prompts:
        run = f"Q: {prompt}\nA:"
        for example in examples:  # as many as there is room for
            longer = f"Q: {example.prompt}\nA: {example.response}\n{run}"
            if len(tokenizer.encode(longer)) >= room:
                break
            run = longer
        documents.append([tokenizer.eos, *tokenizer.encode(run)[1 - room:]])
    responses = sample_responses(model, documents, config.max_response, config.temperature,
                                 tokenizer.eos, config.seed, key)
    lines = [tokenizer.decode(said).split("\n")[0].strip() for said in responses]
    return [tokenizer.encode_response(line)[:config.max_response] for line in lines]


def few_shot_units(model, probes, tokenizer, batch=256):
    """Whether the line that greedy decoding goes on with is an answer of each few-shot probe, which
    is written as a document of the pretraining text is."""
    probes = [p for p in probes if p["kind"] == "few_shot"]
    ids = [[tokenizer.eos, *tokenizer.encode(p["prompt"])] for p in probes]
    longest = 1 + max((len(tokenizer.encode(a)) for p in probes for a in p["answers"]), default=0)
    for probe, prompt in zip(probes, ids):
        if len(prompt) + longest > model.config.n_ctx:
            raise InputError(f"the few_shot probe {probe['prompt'][:40]!r} has {len(prompt)} "
                             f"tokens; expected room for {longest} of an answer in a context of "
                             f"{model.config.n_ctx}")
    units = []
    for first in range(0, len(probes), batch):
        part = slice(first, first + batch)
        with compute_dtype(model.decoder.wte.weight.device):
            samples = generate(model, ids[part], longest, temperature=0, eos=tokenizer.eos)
        for probe, prompt, n, row in zip(probes[part], ids[part], samples.lens_B.tolist(),
                                         samples.tokens_BT.tolist()):
            line = tokenizer.decode_response(row[len(prompt):n]).split("\n")[0].strip()
            units.append({"kind": "few_shot", "task": probe["task"],
                          "right": line in probe["answers"]})
    return units


def losses_of_text(model, tokenizer, path, rows=32):
    """Mean loss of each window of a text, so that a bootstrap has units to draw."""
    device, losses = model.decoder.wte.weight.device, []
    for tokens_BT in text_in_order(tokenizer.encode_documents(read_text(path)), rows,
                                   model.config.n_ctx):
        tokens_BT = tokens_BT.to(device)
        with compute_dtype(device):
            logprobs_N = target_logprobs(model, tokens_BT,
                                         torch.ones_like(tokens_BT, dtype=torch.bool))
        losses += (-logprobs_N.view(len(tokens_BT), -1).mean(1)).tolist()
    return losses


# -- best of n --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BestOfConfig:
    checkpoint: str = required("the model that answers")
    out: str = required("folder: best_of_1.jsonl, best_of_2.jsonl, … are written there")
    prompts: str = required("test prompts that no stage trained on")
    reward: str = required("the reward model that chooses")
    most: int = setting(64, "n = 1, 2, 4, … up to this")
    limit: int = setting(600, "use at most so many prompts, 0 = all")
    max_response: int = setting(1024, "response tokens; paper 1k, App. C")
    temperature: float = setting(1.0, "of sampling; paper 1, App. C.4")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    seed: int = setting(0, "of the samples")
    device: str = setting("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")


@torch.no_grad()
def best_of(config):
    """The answer that the reward model likes best of n, with the KL this has to the policy sampled
    from: log n − (n − 1) / n (Stiennon et al. 2020, App. G.3)."""
    device, tokenizer = device_of(config.device, config.dtype), load_tokenizer(config.tokenizer)
    model = load_model(GPT, config.checkpoint, STAGES, tokenizer, device)
    reward_model = load_model(ScalarGPT, config.reward, ("reward",), tokenizer, device)
    paths = {2**i: Path(config.out) / f"best_of_{2**i}.jsonl"
             for i in range(config.most.bit_length())}
    check_output(config, *paths.values())
    room = min(model.config.n_ctx, reward_model.config.n_ctx) - config.max_response
    rows = [(i, ids) for i, p in enumerate(read_prompts(config.prompts))
            if len(ids := tokenizer.encode_prompt(p.prompt)) <= room][:config.limit or None]
    if not rows:
        raise InputError(f"{config.prompts}: no prompt of at most {room} tokens, which leave room "
                         f"for {config.max_response} of a response")
    ids = [ids for _, ids in rows]
    best = [(-math.inf, None)] * len(rows)
    for n in range(1, config.most + 1):
        responses = sample_responses(model, ids, config.max_response, config.temperature,
                                     tokenizer.eos, config.seed, "best of", n)
        scores_N, _ = measure(ids, responses, reward_model)
        best = [max(old, new) for old, new in zip(best, zip(scores_N, responses))]
        if n in paths:
            kl = math.log(n) - (n - 1) / n
            with alone(paths[n], is_file=True):
                write_jsonl(paths[n], [
                    {"kind": "test", "row": i, "answer": tokenizer.decode_response(said),
                     "reward": round(score, 5), "kl": round(kl, 5), "length": len(said)}
                    for (i, _), (score, said) in zip(rows, best)])
            print(f"best of {n}: mean reward {sum(s for s, _ in best) / len(best):.3f}, "
                  f"KL {kl:.2f}", flush=True)


# -- a reward model against labelers --------------------------------------------------------------


@dataclass(frozen=True)
class AccuracyConfig:
    reward: str = required("the reward model")
    comparisons: str = required("comparisons that it was not trained on")
    out: str = output_file("units to write: pairs of a prompt, and how many it orders alike")
    limit: int = setting(0, "use at most so many comparisons, 0 = all")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    micro_tokens: int = setting(16384, "tokens in one forward pass; changes no number")
    device: str = setting("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")


@torch.no_grad()
def accuracy(config):
    """How often a reward model orders two completions as the labeler does (§3.5): a unit for each
    comparison, in the file's order, so that those of two models or two groups can be paired."""
    device, tokenizer = device_of(config.device, config.dtype), load_tokenizer(config.tokenizer)
    reward_model = load_model(ScalarGPT, config.reward, ("reward",), tokenizer, device)
    rankings = load_rankings(config.comparisons, tokenizer, reward_model.config.n_ctx, config.limit)
    units = []
    for group in length_sorted_batches([r.width() for r in rankings], config.micro_tokens):
        scored = [x.cpu() for x in score_rankings(reward_model, [rankings[i] for i in group])]
        for n, i in enumerate(group):
            loss, stats = ranking_loss(*(x[n:n + 1] for x in scored))
            units.append((i, {"labeler": rankings[i].labeler, "pairs": stats["pairs"],
                              "right": round(stats["accuracy"] * stats["pairs"]),
                              "loss": round(loss.item() * stats["pairs"], 5)}))
    units = [unit for _, unit in sorted(units, key=lambda pair: pair[0])]
    with alone(config.out, is_file=True):
        write_jsonl(config.out, units)
    right, pairs = (sum(u[k] for u in units) for k in ("right", "pairs"))
    print(f"{config.out}: {100 * right / pairs:.1f} % of {pairs} pairs", flush=True)


# -- win rates and intervals --------------------------------------------------------------------------


def judge_pairs(keys, ones, others, labelers, seed=0, judges=1):
    """wins_N: for each prompt the mean over `judges` labelers of 1 where the answer in `ones` is
    preferred, 0 where that in `others` is, ½ for a tie. Which answer a labeler sees first is
    random."""
    if judges > len(labelers):
        raise InputError(f"--judges {judges}: expected at most {len(labelers)}, all there are")
    wins = []
    for i, (key, one, other) in enumerate(zip(keys, ones, others, strict=True)):
        rng = random.Random(f"judge {seed} {i}")
        votes = []
        for labeler in rng.sample(labelers, judges):
            one_first = rng.random() < 0.5
            pair = (one, other) if one_first else (other, one)
            vote = prefers(labeler, key, *pair, rng)
            votes.append(vote if one_first else 1 - vote)
        wins.append(sum(votes) / judges)
    return wins


def bootstrap(*seeds, statistic=np.mean, draws=1000, seed=0, beside=(), folds=None):
    """[statistic, low, high]: a 95 % interval by the percentiles of resampled data.

    `seeds`: the units (prompts, windows of text) of each seed of a study, an array with a row per
    unit. Units are drawn with replacement within each seed. How seeds differ is added by Student's
    t: three of them, drawn with replacement, would cover the truth 7 times in 10. Where they differ
    by no more than their units do, the interval is wider than it need be. What is compared on the
    same units stands in the columns of one array, so that it is drawn together. `beside` are units
    that nobody measured and that are drawn as well, with the first seed's, for shares: of 100 answers
    of which one in a hundred is toxic, percentiles without them cover the truth 6 times in 10.
    `folds`: the statistics of several models that one seed's units hold, which differ as seeds do; of
    several seeds that is in how these differ. Raises ValueError where a seed has no units.
    """
    seeds = [np.asarray(units, dtype=float) for units in seeds]
    if not seeds or not all(map(len, seeds)):
        raise ValueError("no units to draw from")
    rng = np.random.default_rng(seed)
    pools = [np.concatenate([seeds[0], beside]) if len(beside) else seeds[0], *seeds[1:]]
    drawn = np.array([statistic(np.concatenate(
        [pool[rng.integers(len(pool), size=len(pool))] for pool in pools])) for _ in range(draws)])
    found = folds(seeds[0]) if folds and len(seeds) == 1 else list(map(statistic, seeds))
    if len(found) > 1:
        error = np.std(found, ddof=1) / math.sqrt(len(found))
        # many of t to each draw: a thousand put the ends of a t of few seeds a fifth too far or near
        drawn = drawn[:, None] + error * rng.standard_t(len(found) - 1, size=(draws, 100))
    return [float(statistic(np.concatenate(seeds))),
            *map(float, np.quantile(drawn, [0.025, 0.975]))]


def beside(shares, answers=1):
    """For `bootstrap`, the units that it draws beside those of a share: two answers more that are
    right and two that are wrong (Agresti & Coull 1998); of two shares of the same units, one answer
    where the first alone is right and one where the second is (Bonett & Price 2012). `answers`: how
    many a unit is the mean of, up to 4."""
    if shares == 2:
        return [[0, 1 / answers], [1 / answers, 0]]
    return [0, 0, 1, 1] if answers == 1 else [0.5] * (4 // answers)


def ratio(units_N2):
    """Sum of the first column over that of the second: a mean whose units differ in size."""
    above, below = np.sum(units_N2, axis=0)
    return above / below if below else 0.0


# -- the paper's automatic metrics (App. D, Table 14) ---------------------------------------------


@dataclass(frozen=True)
class Table14Config:
    files: tuple = required("CSV files, plain or gzip, with the columns that OpenAI published",
                            positional=True)
    task: str = setting("auto", f"auto tells by columns and context; {', '.join(TASKS)}")

    def __post_init__(self):
        if self.task not in ("auto", *TASKS):
            raise InputError(f"--task {self.task}: expected auto, {', '.join(TASKS)}")


def table14(config):
    """The metrics of Table 14 for samples of several models, with 95 % intervals."""
    parts = [samples_part(path, *read_samples(path, config.task)) for path in config.files]
    print("\n\n".join(parts))


def samples_part(path, name, groups):
    """A table of one file, and how many intervals hold the paper's figure."""
    header, inside = ["prompt", "model", "samples"], []
    columns = [[prompt or "–" for prompt, _ in groups], [model for _, model in groups],
               [str(len(counts[0])) for counts in groups.values()]]
    for i, metric in enumerate(TASKS[name].metrics):
        triples = [bootstrap(counts[i], statistic=metric.total) for counts in groups.values()]
        figures = [paper_figure(name, metric.name, *key) for key in groups]
        header.append(metric.name)
        columns.append([shown(triple, digits=metric.digits) for triple in triples])
        if any(figures):
            header.append("Table 14")
            columns.append([figure or "–" for figure in figures])
        inside += [low <= float(f) <= high for (_, low, high), f in zip(triples, figures) if f]
    told = f"{sum(inside)} of {len(inside)} intervals hold the paper's figure." if inside else ""
    return "\n\n".join([f"## {TASKS[name].title} ({path})", table(header, list(zip(*columns))),
                        f"{told} {TASKS[name].note}"]).strip()


if __name__ == "__main__":
    run_verbs({"sample": (sample, SampleConfig), "answers": (answers, AnswersConfig),
               "best_of": (best_of, BestOfConfig), "accuracy": (accuracy, AccuracyConfig),
               "table14": (table14, Table14Config)}, __doc__)
