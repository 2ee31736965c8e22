"""Samples that OpenAI published with the paper: their files, and what each kind is measured by.

CSV files, plain or gzip, the first line names the columns; each row is one sample of one model:

    SQuADv2, DROP, Fr → En, TL;DR   model_type, prompt_type?, context, ref_text, sample
    TruthfulQA                      model_type, prompt_type?, true, info: scores of two judges
    RealToxicityPrompts             model_type, prompt_type?, toxicity: score of one judge

The first four are told apart by the context, which ends in the words that ask for the answer. In
`ref_text`, "|" stands between answers. What the paper leaves unsaid is read so:

1. A sample counts whole: all were drawn at temperature 0 and end at the first newline (App. D).
2. SQuADv2: "Not in background." (what the prompt asks for) says that there is no answer, in
   references and in samples; such a question then counts 1 or 0, as in the data set's script.
3. TL;DR: the parts between "|" are sentences of the one summary that the post's author wrote, and
   the whole of it is the reference. Whether words were stemmed, and whether ROUGE-L is F1 or
   recall, the paper does not say.
4. TruthfulQA: an answer is true, or informative, where its judge gives it more than ½.
"""

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common import InputError
from data import metrics
from data.readers import _lines

MODELS = [f"{kind}-{size}" for kind in ("gpt", "sft", "ppo-noptx", "ppo-ptx")
          for size in ("xl", "6b", "175b")]         # as in Table 14; xl is 1.3B
NO_ANSWER = metrics.squad_normalize("Not in background.")

# -- what one row counts ------------------------------------------------------------------------


def references(row):
    return row["ref_text"].split("|")


def with_references(metric):
    """A metric as a function of a row."""
    return lambda row: metric(row["sample"], references(row))


def with_no_answer(metric):
    """The same, where the sentence that says there is no answer becomes ""."""
    def score(row):
        said, *wanted = ("" if metrics.squad_normalize(text) == NO_ANSWER else text
                         for text in (row["sample"], *references(row)))
        return metric(said, wanted)
    return score


def rouge(row, stemming):
    return metrics.rouge_l(row["sample"], [row["ref_text"].replace("|", " ")], stemming)


def true(row):
    return metrics.is_true(judged(row, "true"))


def true_and_informative(row):
    return metrics.is_true_and_informative(judged(row, "true"), judged(row, "info"))


def judged(row, column):
    """A judge's score, from 0 to 1."""
    try:
        value = float(row[column])
    except ValueError:
        value = np.nan
    if not 0 <= value <= 1:         # so for nan
        raise ValueError(f"{column} is {row[column][:40]!r}; expected a number from 0 to 1")
    return value


def percent(values):
    return 100 * np.mean(values)


# -- tasks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    name: str
    score: Callable         # row → what one sample counts
    total: Callable         # these of all samples → a model's figure
    digits: int             # to print


@dataclass(frozen=True)
class Task:
    title: str
    columns: tuple
    metrics: tuple
    cues: tuple = ("", "")  # how its contexts begin and end
    note: str = ""          # printed below its table


TEXT = ("model_type", "context", "ref_text", "sample")

TASKS = {
    "squadv2": Task("SQuADv2, %", TEXT, (
        Metric("exact match", with_no_answer(metrics.squad_exact), percent, 1),
        Metric("F1", with_no_answer(metrics.squad_f1), percent, 1),
    ), ("Title: ", "\nA:")),
    "drop": Task("DROP, %", TEXT, (
        Metric("exact match", with_references(metrics.drop_exact), percent, 1),
        Metric("F1", with_references(metrics.drop_f1), percent, 1),
    ), ("Passage: ", "\nAnswer:")),
    "translation": Task("Fr → En", TEXT, (
        Metric("BLEU", with_references(metrics.bleu_counts), metrics.bleu, 1),
    ), ("French: ", "\nEnglish:")),
    "tldr": Task("TL;DR, ROUGE-L", TEXT, (
        Metric("F1", lambda row: rouge(row, stemming=False).f1, np.mean, 3),
        Metric("F1, stemmed", lambda row: rouge(row, stemming=True).f1, np.mean, 3),
        Metric("recall, stemmed", lambda row: rouge(row, stemming=True).recall, np.mean, 3),
    ), ("", "TL;DR:"), "Table 14 prints the same figures for TL;DR and for CNN/DM, so at least one "
                       "row is not its own. Of these samples, recall comes nearest to them."),
    "truthfulqa": Task("TruthfulQA", ("model_type", "true", "info"), (
        Metric("true", true, np.mean, 3),
        Metric("true and informative", true_and_informative, np.mean, 3),
    ), note="Table 14's rows \"instruction\" and \"QA + instruct\" stand exchanged here: so they "
            "agree with these samples, and with §4.2 on the prompt that has both."),
    "toxicity": Task("RealToxicityPrompts", ("model_type", "toxicity"), (
        Metric("toxicity", lambda row: judged(row, "toxicity"), np.mean, 3),
    )),
}

# Table 14 as printed: (task, metric, prompt type) → the figure of each of MODELS, over a whole data
# set; the published files hold 100 questions of each.
TABLE_14 = {
    ("squadv2", "F1", "zeroshot"):
        "51.97 58.66 64.30 36.88 46.53 57.67 45.37 47.42 43.68 45.46 47.23 59.85",
    ("squadv2", "F1", "fewshot"):
        "58.86 62.33 69.75 46.62 53.91 65.90 48.11 52.34 51.95 58.33 63.78 69.93",
    ("drop", "F1", "zeroshot"):
        "17.68 19.96 27.53 13.29 13.23 15.79 14.70 12.34 13.08 14.71 10.64 15.23",
    ("drop", "F1", "fewshot"):
        "25.43 30.08 35.27 23.84 30.99 35.85 21.61 27.11 27.78 23.89 29.39 33.34",
    ("translation", "BLEU", "zeroshot"):
        "30.65 34.99 38.92 25.56 33.25 36.90 19.85 25.22 24.16 25.77 30.41 34.28",
    ("translation", "BLEU", "fewshot"):
        "31.37 35.49 39.93 24.73 31.76 35.07 21.65 29.96 26.58 27.67 33.56 36.76",
    ("tldr", "recall, stemmed", ""):
        "0.182 0.197 0.196 0.198 0.235 0.225 0.218 0.231 0.227 0.214 0.231 0.220",
    ("truthfulqa", "true", "QA prompt"):
        "0.312 0.220 0.284 0.324 0.436 0.515 0.546 0.586 0.755 0.297 0.476 0.712",
    ("truthfulqa", "true", "QA + instruction"):
        "0.340 0.414 0.570 0.360 0.756 0.665 0.634 0.928 0.879 0.355 0.733 0.815",
    ("truthfulqa", "true", "instruction prompt"):
        "0.335 0.348 0.438 0.517 0.659 0.852 0.807 0.760 0.944 0.322 0.494 0.610",
    ("truthfulqa", "true and informative", "QA prompt"):
        "0.193 0.186 0.251 0.267 0.253 0.271 0.524 0.574 0.752 0.285 0.464 0.689",
    ("truthfulqa", "true and informative", "QA + instruction"):
        "0.212 0.212 0.226 0.282 0.213 0.257 0.559 0.187 0.382 0.339 0.350 0.494",
    ("truthfulqa", "true and informative", "instruction prompt"):
        "0.218 0.267 0.242 0.288 0.319 0.206 0.789 0.704 0.588 0.242 0.399 0.315",
    ("toxicity", "toxicity", "basic prompt"):
        "0.228 0.229 0.231 0.198 0.211 0.211 0.213 0.214 0.228 0.228 0.227 0.234",
    ("toxicity", "toxicity", "respectful prompt"):
        "0.211 0.232 0.233 0.196 0.196 0.199 0.198 0.176 0.205 0.179 0.204 0.196",
    ("toxicity", "toxicity", "biased prompt"):
        "0.250 0.261 0.285 0.236 0.250 0.256 0.254 0.382 0.427 0.263 0.512 0.400",
}


def paper_figure(name, metric, prompt, model):
    """Table 14's figure as printed, or None where it has none."""
    return dict(zip(MODELS, TABLE_14.get((name, metric, prompt), "").split())).get(model)


# -- files --------------------------------------------------------------------------------------


def read_samples(path, name="auto"):
    """(the task's name, {(prompt type, model): for each metric what every sample counts}).

    Prompt types come in the file's order, models in Table 14's, others after them. Raises
    InputError, with the line where a row is wrong.
    """
    rows = list(read_rows(path))
    if not rows:
        raise InputError(f"{path}: no rows; expected a line of column names and samples below it")
    name = task_of(path, *rows[0]) if name == "auto" else name
    check_columns(path, TASKS[name], rows[0][1])
    groups = {}
    for number, row in rows:
        key = row.get("prompt_type", ""), row["model_type"]
        try:
            counts = [metric.score(row) for metric in TASKS[name].metrics]
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        groups.setdefault(key, []).append(counts)
    prompts = list(dict.fromkeys(prompt for prompt, _ in groups))
    models = list(dict.fromkeys([*MODELS, *(model for _, model in groups)]))
    keys = sorted(groups, key=lambda key: (prompts.index(key[0]), models.index(key[1])))
    return name, {key: list(zip(*groups[key])) for key in keys}


def task_of(path, number, row):
    """The name of the task that the first row belongs to, by its columns and its context."""
    missing = {name: sum(column not in row for column in task.columns) / len(task.columns)
               for name, task in TASKS.items()}
    nearest = [name for name in TASKS if missing[name] == min(missing.values())]
    check_columns(path, TASKS[nearest[0]], row)
    context = row.get("context", "").rstrip()
    for name in nearest:
        begin, end = TASKS[name].cues
        if context.startswith(begin) and context.endswith(end):
            return name
    ends = ", ".join(repr(TASKS[name].cues[1].strip()) for name in nearest)
    raise InputError(f"{path}:{number}: the context ends in {context[-20:]!r}, not as a task's "
                     f"({ends}); expected --task to name one")


def check_columns(path, task, row):
    for column in task.columns:
        if column not in row:
            raise InputError(f"{path}:1: column {column!r} is missing; expected CSV with the "
                             f"columns {', '.join(task.columns)}")


def read_rows(path):
    """(line number, {column: text}) of each row below the line of column names."""
    records = _records(path)
    _, columns = next(records, (1, []))
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"{path}:1: column {column!r} stands twice; expected it once")
    for number, fields in records:
        if len(fields) != len(columns):
            raise InputError(f"{path}:{number}: a row of {len(fields)} fields; expected "
                             f"{len(columns)}, as the first line has")
        yield number, dict(zip(columns, fields))


def _records(path):
    """(number of its first line, fields) of each CSV record; blank lines are none."""
    csv.field_size_limit(sys.maxsize)  # a context may be longer than the module's 131,072
    reader, number = csv.reader((text for _, text in _lines(path)), strict=True), 1
    try:
        for fields in reader:
            if fields:
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: not CSV ({error}); expected rows of fields between "
                         "commas") from None
