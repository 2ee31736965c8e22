"""Evaluation (§3.6, §4): answers of every model, win rates with intervals, and the report.

    python evaluate.py sample --checkpoint runs/demo/start.pt --prompts prompts.train.jsonl \
        --out runs/demo/completions.jsonl      K = 4 … 9 completions a prompt, for labelers to rank
    python evaluate.py answers --run runs/demo --prompts prompts.test.jsonl --text text.valid.txt
    python evaluate.py report --run runs/demo  results.json and report.md from what the run left
    python evaluate.py samples squadv2.csv.gz  Table 14's metrics of samples that OpenAI published

Win rates come from labelers who see two answers in random order. Intervals are 95 %, by a
bootstrap over prompts: the unit that was sampled, and the one that answers share.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import InputError, alone, device_of, load_model, required, run_verbs, setting
from data.batching import seeded_generator, text_in_order
from data.labelers import check_key, choose, for_evaluation, prefers
from data.readers import (_json_object, as_lines, as_row, read_prompts, read_text, write_files,
                          write_jsonl)
from data.samples import TASKS, paper_figure, read_samples
from data.tokenizer import load_tokenizer, read_utf8
from model import (GPT, ScalarGPT, compute_dtype, generate, response_logprobs, target_logprobs)

MEASURES = ("reward", "kl", "length")  # of each answer
MODELS = {"base": "base (GPT)", "sft": "SFT", "ppo": "PPO", "ppo_ptx": "PPO-ptx"}

# -- sampling answers -----------------------------------------------------------------------------


def sample_texts(model, prompts, tokenizer, max_response, temperature, seed, batch=256):
    """One sampled response per prompt (token lists): texts, and the Samples they came from, batch
    by batch in the prompts' order."""
    device = model.decoder.wte.weight.device
    texts, batches = [], []
    for first in range(0, len(prompts), batch):
        with compute_dtype(device):
            samples = generate(model, prompts[first:first + batch], max_response, temperature,
                               tokenizer.eos, seeded_generator("answers", seed, first))
        rows = zip(samples.tokens_BT.tolist(), samples.prompt_lens_B.tolist(),
                   samples.lens_B.tolist())
        texts += [tokenizer.decode_response(row[p:n]) for row, p, n in rows]
        batches.append(samples)
    return texts, batches


@dataclass(frozen=True)
class SampleConfig:
    checkpoint: tuple = required("one or more policies to sample from, in turn")
    prompts: str = required("prompts, JSON Lines")
    out: str = required("file to write: prompt, completions, and the prompt's other keys")
    limit: int = setting(0, "use at most so many prompts, 0 = all")
    least: int = setting(4, "completions of a prompt, at least; paper 4, §3.5")
    most: int = setting(9, "completions of a prompt, at most; paper 9, §3.5")
    max_response: int = setting(1024, "response tokens; paper 1k, App. C")
    temperature: float = setting(1.0, "of sampling; paper 1, App. C.4")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    seed: int = setting(0, "how many completions each prompt gets, and the samples")
    device: str = setting("auto", "auto, cpu or cuda")

    def __post_init__(self):
        if not 2 <= self.least <= self.most:
            raise InputError(f"--least {self.least} --most {self.most}: expected 2 <= least <= most")


def sample(config):
    """Sample 4 to 9 completions of each prompt, for labelers to rank (§3.2)."""
    device, tokenizer = device_of(config.device), load_tokenizer(config.tokenizer)
    models = [load_model(GPT, path, ("base", "sft", "ppo"), tokenizer, device)
              for path in config.checkpoint]
    prompts, ids = fitting_prompts(config.prompts, tokenizer, config.max_response,
                                   min(m.config.n_ctx for m in models), config.limit)
    counts = [random.Random(f"{config.seed} {i}").randint(config.least, config.most)
              for i in range(len(prompts))]
    completions = [[] for _ in prompts]
    for which, model in enumerate(models):  # completion k of a prompt comes from model k mod M
        owners = [i for i, n in enumerate(counts) for k in range(n) if k % len(models) == which]
        texts, _ = sample_texts(model, [ids[i] for i in owners], tokenizer, config.max_response,
                                config.temperature, f"{config.seed} {which}")
        for i, text in zip(owners, texts):
            completions[i].append(text)
    with alone(config.out, is_file=True):
        write_jsonl(config.out, [{"prompt": p.prompt, "completions": c, **p.extra}
                                 for p, c in zip(prompts, completions)])
    print(f"wrote {sum(counts)} completions of {len(prompts)} prompts to {config.out}")


def fitting_prompts(path, tokenizer, max_response, n_ctx, limit=0):
    """The prompts of a file that leave room for a response, and their token lists."""
    pairs = [(p, tokenizer.encode_prompt(p.prompt)) for p in read_prompts(path)]
    pairs = [(p, ids) for p, ids in pairs if len(ids) + max_response <= n_ctx]
    if not pairs:
        raise InputError(f"{path}: no prompt leaves room for {max_response} response tokens in a "
                         f"context of {n_ctx}")
    pairs = pairs[:limit] if limit else pairs
    return [p for p, _ in pairs], [ids for _, ids in pairs]


# -- what each model says -------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswersConfig:
    run: str = required("folder of a run")
    prompts: str = required("test prompts that no stage trained on")
    text: str = setting("", "held-out pretraining text, for its loss")
    limit: int = setting(600, "use at most so many prompts, 0 = all")
    max_response: int = setting(1024, "response tokens; paper 1k, App. C")
    temperature: float = setting(1.0, "of sampling; paper 1, App. C.4")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    seed: int = setting(0, "of the samples")
    device: str = setting("auto", "auto, cpu or cuda")


@torch.no_grad()
def answers(config):
    """Every model's answer to the test prompts, with reward-model score and KL: answers.jsonl."""
    folder, device = Path(config.run), device_of(config.device)
    tokenizer = load_tokenizer(config.tokenizer)
    reward_model = load_model(ScalarGPT, folder / "reward.pt", ("reward",), tokenizer, device)
    reference = load_model(GPT, folder / "start.pt", ("sft",), tokenizer, device)
    prompts, ids = fitting_prompts(config.prompts, tokenizer, config.max_response,
                                   reference.config.n_ctx, config.limit)
    rows = [{"prompt": p.prompt, "category": p.category, **p.extra, "answers": {}, "reward": {},
             "kl": {}, "length": {}} for p in prompts]
    text_loss = {}
    for name in MODELS:
        model = load_model(GPT, folder / f"{name}.pt", ("base", "sft", "ppo"), tokenizer, device)
        texts, batches = sample_texts(model, ids, tokenizer, config.max_response,
                                      config.temperature, f"{config.seed} {name}")
        measured = [row for samples in batches
                    for row in measure(samples, model, reference, reward_model, config)]
        for row, text, (reward, kl, length) in zip(rows, texts, measured):
            row["answers"][name] = text
            row["reward"][name], row["kl"][name], row["length"][name] = reward, kl, length
        if config.text:
            text_loss[name] = losses_of_text(model, tokenizer, config.text)
        print(f"{MODELS[name]}: {len(texts)} answers", flush=True)
    with alone(folder):
        write_files({folder / "text_loss.json": [json.dumps(text_loss) + "\n"],
                     folder / "answers.jsonl": as_lines(rows)})


def measure(samples, model, reference, reward_model, config):
    """(reward-model score, log π − log π_start of the response, its length) of each sample."""
    place = (samples.tokens_BT, samples.prompt_lens_B, samples.mask_BR)
    with compute_dtype(samples.tokens_BT.device):
        scores_B = reward_model.scores(samples.tokens_BT, samples.lens_B)
        kl_B = (response_logprobs(model, *place) - response_logprobs(reference, *place)).sum(1)
    return zip(scores_B.tolist(), kl_B.tolist(), samples.mask_BR.sum(1).tolist())


def losses_of_text(model, tokenizer, path, rows=32):
    """Mean loss of each group of windows of a text, so that a bootstrap has units to draw."""
    device, losses = model.decoder.wte.weight.device, []
    for tokens_BT in text_in_order(tokenizer.encode_documents(read_text(path)), rows,
                                   model.config.n_ctx):
        tokens_BT = tokens_BT.to(device)
        with compute_dtype(device):
            logprobs_N = target_logprobs(model, tokens_BT,
                                         torch.ones_like(tokens_BT, dtype=torch.bool))
        losses += (-logprobs_N.view(len(tokens_BT), -1).mean(1)).tolist()
    return losses


# -- win rates ------------------------------------------------------------------------------------


def bootstrap(values_NM, statistic=np.mean, draws=2000, seed=0):
    """[statistic, low, high]: a 95 % interval by resampling rows (prompts) with replacement."""
    values = np.asarray(values_NM, dtype=float)
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(values), size=(draws, len(values)))
    drawn = np.array([statistic(values[rows]) for rows in picked])
    return [float(statistic(values)), *map(float, np.quantile(drawn, [0.025, 0.975]))]


def judge_pairs(rows, one, other, labelers, seed=0, judges=1):
    """wins_N: for each prompt the mean over `judges` labelers of 1 where `one` is preferred, 0
    where `other` is, ½ for a tie. Which answer a labeler sees first is random."""
    if judges > len(labelers):
        raise InputError(f"--judges {judges}: expected at most {len(labelers)}, all there are")
    wins = []
    for i, row in enumerate(rows):
        rng = random.Random(f"judge {seed} {one} {other} {i}")
        votes = []
        for labeler in rng.sample(labelers, judges):
            first, second = (one, other) if rng.random() < 0.5 else (other, one)
            vote = prefers(labeler, row["key"], row["answers"][first], row["answers"][second], rng)
            votes.append(vote if first == one else 1 - vote)
        wins.append(sum(votes) / judges)
    return wins


# -- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportConfig:
    run: str = required("folder of a run")
    judges: int = setting(3, "simulated labelers who see each pair of answers; open")
    samples: int = setting(12, "prompts shown with every model's answer, drawn at random")
    seed: int = setting(0, "which labelers judge which pair in which order; which samples are shown")


def report(config):
    """results.json and report.md from the answers, metrics and losses that a run left."""
    folder = Path(config.run)
    rows = read_rows(folder / "answers.jsonl")
    text_loss = read_text_loss(folder / "text_loss.json")
    results = {"models": {name: model_results(name, rows, text_loss, config) for name in MODELS},
               "reward_model": reward_model_results(folder / "reward.jsonl"),
               "curves": {name: curve(folder / f"{name}.jsonl") for name in ("ppo", "ppo_ptx")},
               "prompts": len(rows), "simulated_labelers": "key" in rows[0]}
    text = markdown(results, rows, config)
    with alone(folder):
        write_files({folder / "results.json": [json.dumps(results, indent=1) + "\n"],
                     folder / "report.md": [text]})
    print(text.split("\n## Answers")[0])
    print(f"wrote {folder / 'report.md'} and {folder / 'results.json'}")


def read_rows(path):
    """The rows that `answers` wrote. Raises InputError where they are not whole."""
    if not path.exists():
        raise InputError(f"{path}: not there; expected `evaluate.py answers` to have run")
    rows = [as_row(prompt) for prompt in read_prompts(path)]
    for number, row in enumerate(rows, 1):
        for what, kinds in (("answers", str), *((w, (int, float)) for w in MEASURES)):
            values = row.get(what)
            if type(values) is not dict or not all(isinstance(values.get(name), kinds)
                                                   for name in MODELS):
                raise InputError(f"{path}:{number}: {what}; expected one of each model")
        if "key" in rows[0]:
            check_key(row.get("key"), f"{path}:{number}")
    return rows


def read_text_loss(path):
    """{model: losses} that `answers` wrote. Raises InputError where it is not whole."""
    try:
        losses = _json_object(read_utf8(path))
        if not all(type(v) is list and all(type(x) is float for x in v) for v in losses.values()):
            raise ValueError("expected lists of numbers")
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return losses


def read_records(path, names):
    """The records of a stage's metrics file that hold a number for each of `names`."""
    found = []
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        try:
            record = _json_object(line) if line else {}
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        if all(isinstance(record.get(name), (int, float)) for name in names):
            found.append(record)
    return found


def model_results(name, rows, text_loss, config):
    """{measure: [mean, low, high]} of one model."""
    found = {what: bootstrap([row[what][name] for row in rows])
             for what in MEASURES}
    if text_loss.get(name):
        found["text_loss"] = bootstrap(text_loss[name])
    if "key" in rows[0] and name != "sft":
        for measure_name, group in (("win_rate", "training"), ("win_rate_held_out", "held-out")):
            labelers = [for_evaluation(labeler) for labeler in choose(group, config.seed)]
            found[measure_name] = bootstrap(judge_pairs(rows, name, "sft", labelers, config.seed,
                                                        config.judges))
    return found


def reward_model_results(path):
    """The last measured pair accuracy on validation prompts, with its interval."""
    records = read_records(path, ("valid_accuracy", "valid_interval", "valid_pairs"))
    if not records:
        return {}
    last = records[-1]
    accuracy, half = last["valid_accuracy"], last["valid_interval"]
    return {"accuracy": [accuracy, accuracy - half, accuracy + half], "pairs": last["valid_pairs"]}


def curve(path):
    """Reward and KL over the iterations of a PPO run."""
    records = read_records(path, ("reward", "kl", "entropy"))
    return {what: [round(r[what], 4) for r in records] for what in ("reward", "kl", "entropy")}


def shown(triple, scale=1.0, digits=2):
    """mean [low, high], or a dash where nothing was measured."""
    if triple is None:
        return "–"
    mean, low, high = (scale * x for x in triple)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(header, rows):
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


PROMISE = """The same seed, settings and files give these numbers again, bit for bit, on the same
machine with the same number of threads and the same versions of Python, torch and numpy. Not
promised: the same numbers on another machine or GPU, with another number of threads
(`OMP_NUM_THREADS`), on a GPU from run to run, or with other versions; there sums are rounded in
another order, and training makes small differences large. Speeds and times are never the same."""


def markdown(results, rows, config):
    """report.md: every number in it stands in results.json."""
    header = ["model", "reward-model score", "KL to SFT (PPO's start), nats",
              "pretraining loss, nats/token", "response tokens"]
    cells = [[MODELS[name], shown(m["reward"]), shown(m["kl"]), shown(m.get("text_loss"), digits=3),
              shown(m["length"], digits=1)] for name, m in results["models"].items()]
    if results["simulated_labelers"]:
        header[2:2] = ["win rate against SFT, %", "the same, held-out labelers, %"]
        for line, m in zip(cells, results["models"].values()):
            line[2:2] = [shown(m.get(k), 100, 1) for k in ("win_rate", "win_rate_held_out")]
    parts = [f"# Report\n\n{results['prompts']} test prompts that no stage trained on; one answer "
             "of each model at temperature 1. Brackets hold 95 % intervals (bootstrap over "
             "prompts).", table(header, cells)]
    if results["simulated_labelers"]:
        parts.append(f"Win rates are the judgements of {config.judges} simulated labelers a "
                     "prompt, who see the two answers in random order; ties count one half.")
    if results["reward_model"]:
        accuracy, pairs = results["reward_model"]["accuracy"], results["reward_model"]["pairs"]
        parts.append(f"Reward model: {shown(accuracy, 100, 1)} % of {pairs} pairs on validation "
                     "prompts in the labelers' order.")
    parts.append(PROMISE)
    parts.append("## Reward over PPO's iterations")
    parts += [curve_table(MODELS[name], c) for name, c in results["curves"].items()]
    return "\n\n".join([*parts, "## Answers, drawn at random", sample_page(rows, config)]) + "\n"


def curve_table(name, curves, points=10):
    """About ten rows of a curve, first and last included."""
    n = len(curves["reward"])
    at = sorted({round(i * (n - 1) / (points - 1)) for i in range(points)}) if n else []
    return table([name + ", iteration", *curves],
                 [[str(i + 1), *(f"{c[i]:.2f}" for c in curves.values())] for i in at])


def sample_page(rows, config):
    """Prompts with every model's answer below one another, as quoted text."""
    parts = []
    for row in random.Random(config.seed).sample(rows, min(config.samples, len(rows))):
        said = [f"{MODELS[name]}: {row['answers'][name]}" for name in MODELS]
        parts.append("\n".join("    " + line for text in [f"prompt: {row['prompt']}", *said]
                               for line in text.split("\n")))
    return "\n\n---\n\n".join(parts)


# -- the paper's automatic metrics (App. D, Table 14) ---------------------------------------------


@dataclass(frozen=True)
class SamplesConfig:
    files: tuple = required("CSV files, plain or gzip, with the columns that OpenAI published",
                            positional=True)
    task: str = setting("auto", f"auto tells by columns and context; {', '.join(TASKS)}")

    def __post_init__(self):
        if self.task not in ("auto", *TASKS):
            raise InputError(f"--task {self.task}: expected auto, {', '.join(TASKS)}")


def samples(config):
    """The metrics of Table 14 for samples of several models, with 95 % intervals."""
    parts = [samples_part(path, *read_samples(path, config.task)) for path in config.files]
    print("\n\n".join(parts))


def samples_part(path, name, groups):
    """A table of one file, and how many intervals hold the paper's figure."""
    header, inside = ["prompt", "model", "samples"], []
    columns = [[prompt or "–" for prompt, _ in groups], [model for _, model in groups],
               [str(len(counts[0])) for counts in groups.values()]]
    for i, metric in enumerate(TASKS[name].metrics):
        triples = [bootstrap(counts[i], metric.total) for counts in groups.values()]
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
               "report": (report, ReportConfig), "samples": (samples, SamplesConfig)}, __doc__)
