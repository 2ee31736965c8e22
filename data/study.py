"""What runs found: results.json and report.md from the units that `evaluate.py` left (§4).

    python -m data.study --runs runs/world-0 --out runs/world-0            one seed, one size
    python -m data.study --runs runs/world-1 runs/world-2 runs/world-3 \
        --sizes mini-s mini mini-l --out runs/study                        the study

A run's folder holds one seed's world, the reward model and the models of one size, with their
answers in `answers/NAME.jsonl`; models of further sizes lie in folders below it, named after the
size, those of the sweeps among the smallest's. A model is named by its path: "ppo", "mini-l/sft".

Every number is [figure, low, high], a 95 % interval by `evaluate.bootstrap`: prompts drawn anew,
and Student's t over seeds, or over the five folds of labelers where one seed has them. A claim of
the paper is *reproduced* where the whole interval lies on the claim's side of its line, *not
reproduced* where it lies on the other, and *not decided* between. A sweep holds the seeds that have
all of its rows, and says how many; a size that a seed lacks is left out, but for the largest GPT,
which need not have been tuned.
"""

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from common import InputError, alone, read_checkpoint, required, run, setting
from data.claims import ANSWERS, FEW_SHOT, GROUPS, claims, over_folds, pairs_right, share
from data.labelers import (RULE, agreements, check_key, choose, for_evaluation, quality,
                           read_completions, toxic, truthful)
from data.readers import as_row, read_prompts, write_files
from data.report import markdown
from data.runs import NAMES
from evaluate import (UNITS, beside, bootstrap, judge_pairs, ratio, read_json_lines, read_probes,
                      read_units)

BEST_OF = (1, 2, 4, 8, 16, 32, 64)
KL_SWEEP = {"0.08 (PPO)": "ppo"} | {  # PPO's coefficient as run.sh has it, others as study.sh does
    coef: f"kl_{coef}" for coef in ("0.02", "0.2", "0.5", "1", "3", "8")}
NO_SHARES = ("reward", "kl", "length", "text_loss")  # all other measures lie from 0 to 1
PAPER = {"accuracy_within": "72.4 ± 0.4", "accuracy_fold": "69.6 ± 0.9",  # §4.1
         "agreement_training": "72.6 ± 1.5", "agreement_held-out": "77.3 ± 1.3"}  # §3.4
FEW = "few/"  # where reward models of few comparisons lie, which run.sh has time for
ACCURACY = {"train_accuracy": "train_accuracy", "accuracy": "valid_accuracy",
            "valid_loss": "valid_loss"}  # a sweep's column: its name in the metrics


@dataclass(frozen=True)
class StudyConfig:
    runs: tuple = required("folders of runs, one for each seed")
    out: str = required("folder for results.json and report.md")
    sizes: tuple = setting((), "sizes from small to large; the runs' own has no folder of its own")
    own: str = setting("mini", "the size of the models that lie in a run's folder itself")
    judges: int = setting(3, "simulated labelers who see each pair of answers; open")
    samples: int = setting(12, "prompts shown with every model's answer, drawn at random")
    seed: int = setting(0, "who judges which pair in which order; which samples are shown")


# -- one seed -------------------------------------------------------------------------------------


class Run:
    """What a run left, as units. Methods are cached: many tables ask for the same."""

    def __init__(self, folder, config):
        self.folder, self.config = Path(folder), config
        path = self.folder / "data" / "prompts.test.jsonl"
        self.prompts = [as_row(prompt) for prompt in read_prompts(path)]
        self.judged = any("key" in prompt for prompt in self.prompts)  # are there labelers to ask?
        for number, prompt in enumerate(self.prompts if self.judged else [], 1):
            check_key(path, number, prompt.get("key"))
        self.seed = self.prompts[0]["key"]["world"] if self.judged else None
        path = self.folder / "world" / "probes.jsonl"
        self.probes = read_probes(path) if self.judged else []
        for number, probe in enumerate(self.probes, 1):
            check_probe(path, number, probe)
        self.labelers = {group: [for_evaluation(one) for one in choose(group, self.seed)]
                         for group in GROUPS} if self.judged else {}
        self.labelers["rule"] = [for_evaluation(RULE)] * config.judges
        self.answers, self.wins, self.observe, self.agreement, self.few = map(cache, (
            self.answers, self.wins, self.observe, self.agreement, self.few))

    def path(self, model):
        folder, _, name = model.rpartition("/")
        return self.folder / folder / "answers" / f"{name}.jsonl"

    def has(self, model):
        return self.path(model).exists()

    def answers(self, model):
        """{kind: units} of a model."""
        found = defaultdict(list)
        for number, unit in enumerate(read_units(self.path(model)), 1):
            found[unit["kind"]].append(unit)
            if unit["kind"] in UNITS:  # they have no row
                continue
            of = self.prompts if unit["kind"] == "test" else self.probes
            if not 0 <= unit["row"] < len(of):
                raise InputError(f"{self.path(model)}:{number}: row {unit['row']}; expected one "
                                 f"of {len(of)}")
            if of is self.probes and of[unit["row"]]["kind"] != unit["kind"]:
                raise InputError(f"{self.path(model)}:{number}: row {unit['row']} is a probe of "
                                 f"{of[unit['row']]['kind']}; expected one of {unit['kind']}")
        if not found["test"]:
            raise InputError(f"{self.path(model)}: no answer to a test prompt; expected some")
        for kind in found.keys() - UNITS:  # models are compared prompt by prompt
            found[kind].sort(key=lambda unit: unit["row"])
        return found

    def wins(self, one, other, group="training"):
        """Per test prompt that both answered, the mean vote for `one`."""
        said = [{u["row"]: u["answer"] for u in self.answers(m)["test"]} for m in (one, other)]
        rows = sorted(said[0].keys() & said[1].keys())
        if not rows:
            raise InputError(f"{self.path(one)}: answers no test prompt that {self.path(other)} "
                             "answers; expected some in common")
        return judge_pairs([self.prompts[i]["key"] for i in rows],
                           *([answers[i] for i in rows] for answers in said),
                           self.labelers[group], f"{self.config.seed} {self.seed}",
                           self.config.judges)

    def check_alike(self, models):
        """Raises InputError where models did not do the same, so that their units are no pairs."""
        first, *others = ({kind: len(units) if kind in UNITS else [u["row"] for u in units]
                           for kind, units in self.answers(m).items() if units} for m in models)
        for model, done in zip(models[1:], others):
            for kind in first.keys() & done.keys():
                if first[kind] != done[kind]:
                    raise InputError(f"{self.path(model)}: its units of {kind} are not those of "
                                     f"{self.path(models[0])}; expected the same in both")

    def paired(self, what, models):
        """units_NM of one measure, a row for each thing that all models did."""
        self.check_alike(models)
        return np.stack([self.observe(m)[what] for m in models], 1)

    def observe(self, model):
        """{measure: units} of one model: Tables 3 and 4's questions, truth, toxicity, the tax."""
        found = self.answers(model)
        test = found["test"]
        units = {what: [u[what] for u in test] for what in ("reward", "kl", "length")}
        units["text_loss"] = [u["loss"] for u in found["text"]]
        if self.judged:
            seen = [(self.prompts[u["row"]]["key"], u["answer"]) for u in test]
            read = [(key, quality(key, answer)) for key, answer in seen]
            units["attempts"] = [f.attempts for _, f in read]
            units["appropriate"] = [f.appropriate for _, f in read]
            units["constraints"] = [f.constraints == 1 for key, f in read if key["constraints"]]
            units["hallucinates"] = [quality(self.probes[u["row"]]["key"], u["answer"]).hallucinates
                                     for u in found["closed"]]
            units |= self.truthfulness(found["truthful"]) | self.toxicity(found["toxicity"])
            for task in FEW_SHOT:
                units[f"few_shot_{task}"] = [u["right"] for u in found["few_shot"]
                                             if u["task"] == task]
            units["few_shot"] = [u["right"] for u in found["few_shot"]]
        return {what: np.array(values, dtype=float) for what, values in units.items() if values}

    def truthfulness(self, answers):
        """{true, true_informative}: per fact, the share of the answers to its wordings."""
        seen = defaultdict(list)
        for u in answers:
            key = self.probes[u["row"]]["key"]
            true, informative = truthful(key, u["answer"])
            seen[tuple(key["claim"][:2])].append((true, true and informative))
        shares = [np.mean(votes, 0) for _, votes in sorted(seen.items())]
        return {name: [share[i] for share in shares]
                for i, name in enumerate(("true", "true_informative"))}

    def toxicity(self, answers):
        """{toxic_none, toxic_respectful, toxic_biased}: per sentence begun, the share of its
        answers that denigrate, in one order, so that the three can be compared sentence by
        sentence."""
        votes = defaultdict(list)
        for u in answers:
            probe = self.probes[u["row"]]
            start = probe["prompt"].removeprefix("Be kind. ").removeprefix("Be rude. ")
            votes[f"toxic_{probe['prefix']}", start].append(toxic(u["answer"]))
        found = defaultdict(list)
        for (name, _), said in sorted(votes.items()):
            found[name].append(sum(said) / len(said))
        return found

    def metrics(self, stage):
        """The lines of a stage's metrics file."""
        path = self.folder / f"{stage}.jsonl"
        rows = read_json_lines(path) if path.exists() and path.stat().st_size else []
        for number, row in enumerate(rows, 1):
            for name, value in row.items():
                if not isinstance(value, list if name in ("answers", "prompts") else (int, float)):
                    raise InputError(f"{path}:{number}: {name} is {value!r}; expected a number")
        return rows

    def ended(self, stage):
        """Whether a stage was trained to its end: its checkpoint is written last."""
        return (self.folder / f"{stage}.pt").exists()

    def accuracy(self, name):
        """Per comparison, of a file in `accuracy` or `few/accuracy`: pairs ordered as the labeler
        does, pairs, the loss summed over them. None where there is no such file. Raises InputError
        for figures that no reward model has."""
        folder, _, name = name.rpartition("/")
        path = self.folder / folder / "accuracy" / f"{name}.jsonl"
        if not path.exists():
            return None
        units = read_json_lines(path)
        if not units or not all(isinstance(u.get(k), kind) for u in units for k, kind in
                                (("right", int), ("pairs", int), ("loss", (int, float)))):
            raise InputError(f"{path}: expected right, pairs and loss of comparisons")
        units_N3 = np.array([[u["right"], u["pairs"], u["loss"]] for u in units])
        right_N, pairs_N, _ = units_N3.T
        if not (np.isfinite(units_N3).all() and (right_N >= 0).all() and (right_N <= pairs_N).all()
                and pairs_N.any()):
            raise InputError(f"{path}: expected right from 0 to pairs, and some pairs")
        return units_N3

    def accuracies(self, *names):
        """The same of several, N×M×3. None where one is missing; raises InputError where they are
        not of as many comparisons."""
        units = [self.accuracy(name) for name in names]
        if any(u is None for u in units):
            return None
        for name, one in zip(names, units):
            if len(one) != len(units[0]):
                raise InputError(f"{self.folder}: the accuracy {name} has {len(one)} comparisons; "
                                 f"expected {len(units[0])}, as {names[0]} has")
        return np.stack(units, 1)

    def folds(self, *names):
        """The same of the five folds of labelers, whose completions all have in common, N×5×3; of
        several names side by side in the last dimension."""
        units = self.accuracies(*(f"{name}-{group}" for group in "ABCDE" for name in names))
        return None if units is None else units.reshape(len(units), 5, -1)

    def few(self):
        """How many comparisons the reward models of few were trained on; 0 where there are none."""
        path = self.folder / FEW / "reward-once.pt"
        return read_checkpoint(path)["config"].get("limit", 0) if path.exists() else 0

    def agreement(self, group, items=800):
        """Per comparison prompt of the run, two labelers' (pairs ordered alike, pairs without a
        tie): how often labelers agree on this run's own completions."""
        rows = read_completions(self.folder / "completions.valid.jsonl")[:items]
        return np.array(agreements(choose(group, self.seed),
                                   [(row["key"], row["completions"]) for row in rows],
                                   self.config.seed))


def check_probe(path, number, probe):
    """Raises InputError unless answers to the probe of this line can be judged."""
    if probe["kind"] in ("closed", "truthful"):
        check_key(path, number, probe.get("key"))
    if probe["kind"] == "truthful" and "claim" not in probe["key"]:
        raise InputError(f"{path}:{number}: key has no claim; expected the fact asked for")
    if probe["kind"] == "toxicity" and not isinstance(probe.get("prefix"), str):
        raise InputError(f"{path}:{number}: no prefix; expected none, respectful or biased")


# -- all seeds ------------------------------------------------------------------------------------


class Study:
    """The figures of several runs of the same shape, each a triple."""

    def __init__(self, config):
        self.config = config
        self.runs = [Run(folder, config) for folder in config.runs]
        self.sizes = [size for size in config.sizes or [config.own]
                      if size == config.own or self.has(self.model(size, "sft"))]
        if missing := [size for size in config.sizes if size not in self.sizes]:
            print(f"left out, as not all runs have them: {', '.join(missing)}")
        # one that is there as GPT alone has a part in what is said of GPT's sizes
        self.gpt_sizes = [size for size in config.sizes or [config.own] if size in self.sizes
                          or self.has(*(self.model(size, gpt) for gpt in ("base", "prompted")))]
        self.judged = all(r.judged for r in self.runs)

    def model(self, size, name):
        return name if size == self.config.own else f"{size}/{name}"

    def models(self, size):
        """The models of a size that every run has answers of."""
        found = [m for m in NAMES if all(r.has(self.model(size, m)) for r in self.runs)]
        if not found:
            raise InputError(f"{self.runs[0].path(self.model(size, 'sft'))}: no answers there; "
                             "expected `evaluate.py answers` to have run")
        return found

    def has(self, *models):
        return all(r.has(m) for r in self.runs for m in models)

    def win(self, one, other, group="training", runs=None):
        """The win rate of `one` over `other`, over all runs or over these."""
        return share(bootstrap(*(r.wins(one, other, group) for r in runs or self.runs)))

    def means(self, runs, model):
        """{measure: triple} of a model over some runs, where all of them have the measure."""
        seen = [r.observe(model) for r in runs]
        units = {what: [one[what] for one in seen] for what in seen[0]
                 if all(what in one for one in seen)}
        return {what: bootstrap(*found) if what in NO_SHARES else
                share(bootstrap(*found, beside=beside(1, ANSWERS.get(what, 1))))
                for what, found in units.items()}

    def of(self, size, name):
        """{measure: triple} of one model, its win rates among them (Figures 1 and 3)."""
        model = self.model(size, name)
        found = self.means(self.runs, model)
        for what, other in (("win_rate", self.model(size, "sft")),
                            ("win_rate_largest", self.largest("sft"))):
            if self.judged and other != model:
                found[what] = self.win(model, other)
                found[f"{what}_held_out"] = self.win(model, other, "held-out")
        if "win_rate" in found:
            found["win_rate_rule"] = self.win(model, self.model(size, "sft"), "rule")
        return found

    def largest(self, name):
        return self.model(self.sizes[-1], name)

    def smallest(self, name):
        return self.model(self.sizes[0], name)

    def results(self):
        """Everything that the report shows, and nothing else."""
        found = {"seeds": [r.folder.name for r in self.runs], "sizes": self.sizes,
                 "prompts": [len(r.answers(self.model(self.sizes[0], "sft"))["test"])
                             for r in self.runs],
                 "simulated_labelers": self.judged, "judges": self.config.judges,
                 "models": {s: {m: self.of(s, m) for m in self.models(s)} for s in self.sizes},
                 "reward_model": self.reward_model(), "curves": self.curves()}
        if self.judged:
            found["sweeps"] = self.sweeps()
            found["claims"] = claims(self)
        return found

    def reward_model(self):
        found = {"paper": PAPER, "few": self.few()}
        for name in ("training", "held-out"):
            units = [r.accuracy(name) for r in self.runs]
            if all(u is not None for u in units):
                found[f"accuracy_{name}"] = share(bootstrap(*units, statistic=pairs_right))
        for prefix in ("", FEW):  # five reward models, each without one group of labelers
            for name in ("within", "fold"):
                units = [u for r in self.runs if (u := r.folds(prefix + name)) is not None]
                if units:
                    found[f"{prefix}accuracy_{name}"] = share(bootstrap(
                        *units, **over_folds(pairs_right)))
        for name in GROUPS:
            if self.judged:
                found[f"agreement_{name}"] = bootstrap(
                    *(r.agreement(name) for r in self.runs), statistic=ratio)
        return found

    def sweeps(self):
        """{title: {label: {measure: triple}}} of what was varied, by the seeds that have it."""
        small, own = self.smallest, self.config.own
        no_kl, without = {n: small(f"no_kl-{n}") for n in self.kept()}, self.without_kl()
        coefs = {label: small(f"ptx_{label}") for label in ("0.1", "0.3", "3", "10", "30", "100")}
        wanted = {
            f"Figure 33: the pretraining coefficient ({self.sizes[0]})":
                {"0 (PPO)": small("ppo"), "1 (PPO-ptx)": small("ppo_ptx")} | coefs,
            f"Figure 34: the KL coefficient, no pretraining gradient ({self.sizes[0]})":
                {"0": without} | self.kl_sweep(),
            f"Without a KL penalty, by iterations ({self.sizes[0]})":
                {str(n): model for n, model in no_kl.items()},
            f"Best of n ({self.sizes[0]})":
                {str(n): small(f"best_of_{n}") for n in BEST_OF},
            f"Ablations ({self.sizes[0]})":
                {"PPO-ptx": small("ppo_ptx"), "no pretraining gradient (PPO)": small("ppo"),
                 "no KL penalty": without, "SFT only": small("sft"),
                 "PPO straight from GPT, its KL to GPT": small("from_base")},
            f"A second round of comparisons ({own})":
                {"PPO-ptx": "ppo_ptx", "second round": "again"}}
        found = {}
        for title, models in wanted.items():
            models = {label: m for label, m in models.items() if any(r.has(m) for r in self.runs)}
            runs = [r for r in self.runs if all(map(r.has, models.values()))]
            if runs and any(m.rpartition("/")[2] not in NAMES for m in models.values()):
                rows = {label: self.swept(m, runs) for label, m in models.items()}
                found[self.title(title, runs)] = dict(sorted(rows.items(), key=_by_number))
        return found | self.equal_kl() | self.epochs()

    def few(self):
        """How many comparisons reward models of few have; 0 where no run has any."""
        return max(r.few() for r in self.runs)

    def comparisons(self):
        """{folder of further reward models: what is said of them}."""
        return {"": "", FEW: f", {self.few()} comparisons"}

    def title(self, text, runs):
        """With the number of seeds, where not all of the study's are in it."""
        few = len(runs) < len(self.runs)
        return f"{text}, {len(runs)} seed{'s' * (len(runs) > 1)} of {len(self.runs)}" if few else text

    def kl_sweep(self):
        """{KL coefficient: the model} of those that any run has."""
        return {label: self.smallest(name) for label, name in KL_SWEEP.items()
                if any(r.has(self.smallest(name)) for r in self.runs)}

    def kept(self):
        """The iterations without KL whose policies were kept and have answered."""
        found = {path.stem for r in self.runs
                 for path in r.path(self.smallest("no_kl")).parent.glob("no_kl-*.jsonl")}
        numbers = (name.removeprefix("no_kl-") for name in found)
        return sorted(int(number) for number in numbers if number.isdecimal())

    def without_kl(self):
        """The policy trained without KL for as many iterations as PPO, to compare with it; the last
        that was kept where that was not."""
        took = sum("reward" in row for row in self.runs[0].metrics(self.smallest("ppo")))
        kept = self.kept()
        number = took if took in kept else kept[-1] if kept else None
        return self.smallest(f"no_kl-{number}" if number else "no_kl")

    def swept(self, model, runs):
        """What a sweep shows of a model; the win rate is against SFT of its size."""
        found = {what: triple for what, triple in self.means(runs, model).items()
                 if what in ("reward", "kl", "text_loss", "few_shot")}
        sft = model.rpartition("/")[0] + "/sft" if "/" in model else "sft"
        return found if model == sft else \
            found | {"win_rate": self.win(model, sft, runs=runs)}

    def equal_kl(self):
        """PPO under several KL coefficients against best of n at PPO's own KL: between the two n on
        either side, linear in KL, answer by answer. Where no n goes as far, PPO stands alone. (Best
        of n's KL is at most what `evaluate.best_of` says; it is less where answers repeat.)"""
        small = self.smallest
        names = [small(f"best_of_{n}") for n in BEST_OF]
        models = self.kl_sweep()
        runs = [r for r in self.runs if all(map(r.has, [*models.values(), *names]))]
        rows = {}
        for label, model in models.items() if runs else ():
            units = [self.beside_best_of_n(r, model, names) for r in runs]
            in_all = set.intersection(*map(set, units))
            rows[label] = {what: bootstrap(*(u[what] for u in units)) for what in sorted(in_all)}
        title = f"PPO against best of n, n up to {BEST_OF[-1]}, at equal KL ({self.sizes[0]})"
        return {self.title(title, runs): dict(sorted(rows.items(), key=_by_number))} if rows else {}

    def beside_best_of_n(self, run_, model, names):
        """{measure: units} of a model, and of best of n at its KL where that is within reach."""
        sft, kl = self.smallest("sft"), run_.observe(model)["kl"]
        run_.check_alike([model, sft, *names])
        found = {"kl": kl, "reward": run_.observe(model)["reward"],
                 "win_rate": np.array(run_.wins(model, sft))}
        steps = [run_.observe(m)["kl"].mean() for m in names]
        above = next((i for i, step in enumerate(steps) if i and step >= kl.mean()), None)
        if above is None:
            return found
        weight = (kl.mean() - steps[above - 1]) / (steps[above] - steps[above - 1])
        low, high = names[above - 1:above + 1]
        best = (1 - weight) * np.array(run_.wins(low, sft)) + weight * np.array(run_.wins(high, sft))
        return found | {
            "reward_best": (1 - weight) * run_.observe(low)["reward"]
            + weight * run_.observe(high)["reward"],
            "win_rate_best": best, "win_rate_more": found["win_rate"] - best}

    def epochs(self):
        """SFT epoch by epoch, over the seeds that have the paper's 16, and reward models of four."""
        found = {}
        if kept := self.epochs_of_16():
            found[self.title("SFT by epochs, on validation data", kept)] = self.by_epochs(
                kept, {"reward": "valid_reward", "valid_loss": "valid_loss"})
        for folder, which in self.comparisons().items():
            once = f"{folder}reward-once" if folder else "reward"
            kinds = {"one epoch, K-wise batches": once,
                     "one epoch, shuffled pairs": f"{folder}reward-pairs",
                     "four epochs, K-wise, after": f"{folder}reward-epochs"}
            runs = [r for r in self.runs if all(map(r.ended, kinds.values()))]
            rows = {}
            for label, stage in kinds.items() if runs else ():
                ends = self.by_epochs(self.epochs_of(stage, runs), ACCURACY)
                rows |= {label if len(ends) == 1 else f"{label} {n}": row
                         for n, row in ends.items()}
            if rows:
                found[self.title(f"Reward models by epochs and batches{which}", runs)] = rows
        return found

    def by_epochs(self, kept, measures):
        """{epoch: {measure: triple}} of several seeds' lines; the interval is over seeds, and one of
        them has none."""
        return {str(n + 1): {what: bootstrap(*([rows[n][name]] for rows in kept))
                             for what, name in measures.items()}
                for n in range(min(map(len, kept)))}

    def epochs_of(self, stage, runs):
        """The lines of a reward model's metrics that end an epoch, with the mean training accuracy
        of its batches, of each of the runs. Raises InputError where a number is missing."""
        found = []
        for run_ in runs:
            rows, batches = [], []
            for number, row in enumerate(run_.metrics(stage), 1):
                ends = "valid_accuracy" in row
                for name in ("accuracy", "pairs", *(["valid_loss"] * ends)):
                    if name not in row:
                        raise InputError(f"{run_.folder / stage}.jsonl:{number}: no {name}; expected "
                                         "one in each line of a reward model's")
                batches.append((row["accuracy"], row["pairs"]))
                if ends:
                    right = sum(accuracy * pairs for accuracy, pairs in batches)
                    pairs = max(1, sum(pairs for _, pairs in batches))
                    rows.append(row | {"train_accuracy": right / pairs})
                    batches = []
            found.append(rows)
        return found

    def epochs_of_16(self):
        """The epochs' lines of the paper's 16 (App. C.1), of each seed that has all of them."""
        return [[row for row in r.metrics("sft16") if "valid_reward" in row]
                for r in self.runs if r.ended("sft16")]

    def curves(self):
        """Reward, KL and entropy over the iterations of PPO, the first run's."""
        measures = ("reward", "kl", "entropy")
        rows = {name: [row for row in self.runs[0].metrics(name) if set(measures) <= row.keys()]
                for name in ("ppo", "ppo_ptx")}
        return {name: {what: [round(row[what], 4) for row in kept] for what in measures}
                for name, kept in rows.items()}


def _by_number(item):
    """Labels that begin with a number in its order, the others as they come."""
    try:
        return float(item[0].split()[0])
    except ValueError:
        return 0.0


# -- the command ------------------------------------------------------------------------------------


def main(config):
    """Write results.json, and report.md whose every number stands in it; print the tables."""
    if config.sizes and config.own not in config.sizes:
        raise InputError(f"--own {config.own}: expected one of --sizes {' '.join(config.sizes)}")
    if twice := [run_ for run_ in config.runs if config.runs.count(run_) > 1]:
        raise InputError(f"--runs: {twice[0]} stands twice; expected a folder for each seed")
    study, out = Study(config), Path(config.out)
    results = study.results()
    text, pages = markdown(results), sample_page(study)
    with alone(out):
        write_files({out / "results.json": [json.dumps(results, indent=1) + "\n"],
                     out / "report.md": [text + "\n\n" + pages + "\n"]})
    print(text)
    print(f"\nwrote {out / 'report.md'} and {out / 'results.json'}")


def sample_page(study):
    """Test prompts drawn at random with the answers of the first run's largest models, quoted."""
    run_, size = study.runs[0], study.sizes[-1]
    names = study.models(size)
    said = {m: {u["row"]: u["answer"] for u in run_.answers(study.model(size, m))["test"]}
            for m in names}
    rows = sorted(set.intersection(*(set(x) for x in said.values())))
    chosen = random.Random(study.config.seed).sample(rows, min(study.config.samples, len(rows)))
    parts = [f"## Answers, drawn at random ({run_.folder.name}, {size})"]
    for i in chosen:
        lines = [f"prompt: {run_.prompts[i]['prompt']}", *(f"{m}: {said[m][i]}" for m in names)]
        parts.append("\n".join("    " + line for text in lines for line in text.split("\n")))
    return "\n\n---\n\n".join(parts)


if __name__ == "__main__":
    run(main, StudyConfig, __doc__)
