"""The claims of the paper that a study's figures decide, and a few that it does not make.

Each says that a figure lies above a line, or between two: `Claims.found` holds them in the order of
the paper's sections, a list that data/report.py prints. A study is a data/study.py's; the measures are
those of its `Run.observe`.
"""

import math

import numpy as np

from data.runs import NAMES
from evaluate import bootstrap, ratio

GROUPS = ("training", "held-out")  # of simulated labelers
NAMES_IN_CLAIMS = NAMES | {"prompted": "prompted GPT"}
NEARLY = (-0.05, 0.05)  # *open*: what counts as about equal, in shares
EVEN = (0.45, 0.55)  # and in win rates


def share(triple):
    """A share's triple: what Student's t reaches beyond 0 and 1, no share can be."""
    return [min(1.0, max(0.0, x)) for x in triple]


def verdict(triple, line, upper=math.inf):
    """What an interval says of the claim that the figure lies above the line, or up to `upper`."""
    _, low, high = triple
    if low > line and high < upper:
        return "reproduced"
    return "not reproduced" if high < line or low > upper else "not decided"


class Claims:
    """[{claim, section, paper, measured, line, verdict}] in `found`: each claim says that a figure
    lies above a line, [low], or between two, [low, high]. What a study has no figures of is left
    out; `paper` is "–" where the paper does not say it."""

    def __init__(self, study):
        self.study, self.found = study, []

    def add(self, section, text, paper, triple, line=(0.0,), unit="", *, seeds, alone=True):
        """`seeds`: how many it rests on; where one `alone` has an interval without width, it
        decides nothing."""
        decided = alone or seeds > 1
        self.found.append({"section": section, "claim": text, "paper": paper, "measured": triple,
                           "line": list(line), "unit": unit, "seeds": seeds,
                           "verdict": verdict(triple, *line) if decided else "not decided"})

    def prefer(self, text, paper, one, other, group="training", line=(0.5,), section="4.1"):
        """`one` wins more than half of the time, or as often as `line` says."""
        runs = [r for r in self.study.runs if r.has(one) and r.has(other)]
        if runs:
            self.add(section, text, paper, self.study.win(one, other, group, runs), line, "win rate",
                     seeds=len(runs))

    def differ(self, section, text, paper, what, statistic, *models, line=(0.0,)):
        """A statistic of the models' means of `what` is above 0, or where `line` says."""
        runs = [r for r in self.study.runs
                if all(r.has(m) and what in r.observe(m) for m in models)]
        unit = {"reward": "reward", "text_loss": "nats/token"}.get(what, "share")
        if runs:
            self.add(section, text, paper, self.study.compared(runs, what, models, statistic),
                     line, unit, seeds=len(runs))


def claims(study):
    """The claims of the paper that this study's figures decide."""
    found = Claims(study)
    for part in (sizes, preferences, behaviour, alignment_tax, reward_models,
                 sweeps_of_coefficients, over_optimised, epochs_of_sft, second_round):
        part(study, found)
    return found.found


def sizes(s, claims):
    """Larger base models know more: else there is nothing to be learnt from their sizes."""
    for small, large in zip(s.sizes, s.sizes[1:]):
        claims.differ("4.1", f"{large} predicts text better than {small}", "–", "text_loss", less,
                      s.model(large, "base"), s.model(small, "base"))


def preferences(s, claims):
    """Figures 1 and 3."""
    big, small, several = s.largest, s.smallest, len(s.sizes) > 1
    claims.prefer("PPO-ptx is preferred to GPT of its size", "85 ± 3 % (175B)", big("ppo_ptx"),
                  big("base"))
    claims.prefer("PPO-ptx is preferred to prompted GPT", "71 ± 4 % (175B)", big("ppo_ptx"),
                  big("prompted"))
    if several:
        claims.prefer("the smallest PPO-ptx is preferred to the largest GPT", "1.3B over 175B",
                      small("ppo_ptx"), big("base"))
        claims.prefer("the smallest PPO-ptx is preferred to the largest prompted GPT", "–",
                      small("ppo_ptx"), big("prompted"))
    for size in s.sizes:
        at = f", {size}" if several else ""
        for one, other in (("ppo_ptx", "sft"), ("ppo", "sft"), ("sft", "prompted"),
                           ("prompted", "base")):
            claims.prefer(f"{NAMES_IN_CLAIMS[one]} is preferred to {NAMES_IN_CLAIMS[other]}{at}",
                          "Fig. 1", s.model(size, one), s.model(size, other))
    for one, other in (("ppo_ptx", "sft"), ("sft", "prompted"), ("ppo_ptx", "base")):
        claims.prefer(f"held-out labelers prefer {NAMES_IN_CLAIMS[one]} to "
                      f"{NAMES_IN_CLAIMS[other]} as well", "Fig. 3", big(one), big(other), "held-out")
    runs = [r for r in s.runs if r.has(big("ppo_ptx")) and r.has(big("sft"))]
    if runs:
        pairs = [[r.wins(big("ppo_ptx"), big("sft"), group) for group in GROUPS] for r in runs]
        claims.add("4.1", "and PPO-ptx to SFT about as often as training labelers do", "Fig. 3",
                   bootstrap(*(np.subtract(*wins) for wins in pairs)), NEARLY, "share",
                   seeds=len(runs))
    claims.prefer("pretraining gradients change little in what labelers prefer: PPO-ptx against PPO",
                  "§4.1", big("ppo_ptx"), big("ppo"), line=EVEN)


def more(one, other):
    return one - other


def less(one, other):
    return other - one


def behaviour(s, claims):
    """Figures 4 to 7."""
    ptx, base, prompted = (s.largest(name) for name in ("ppo_ptx", "base", "prompted"))
    for what, text, paper, statistic in (
            ("attempts", "attempts the instruction more often than GPT", "Fig. 4", more),
            ("constraints", "satisfies explicit constraints more often", "Fig. 4", more),
            ("appropriate", "is more often fit for a customer assistant", "Fig. 4", more),
            ("hallucinates", "hallucinates less on closed-domain tasks", "41 to 21 %", less)):
        claims.differ("4.1", f"PPO-ptx {text}", paper, what, statistic, ptx, base)
    claims.differ("4.1", "and less than prompted GPT", "Fig. 4", "hallucinates", less, ptx, prompted)
    claims.differ("4.1", "PPO-ptx satisfies explicit constraints more often than SFT", "–",
                  "constraints", more, ptx, s.largest("sft"))
    claims.differ("4.1", "PPO-ptx hallucinates more than SFT", "Fig. 4", "hallucinates", more, ptx,
                  s.largest("sft"))
    for name, called, paper in (("flan", "FLAN", "78 ± 4 %"), ("t0", "T0", "79 ± 4 %")):
        tuned = s.largest(name)
        claims.prefer(f"PPO-ptx is preferred to GPT tuned as {called}", paper, ptx, tuned)
        claims.prefer(f"SFT is preferred to GPT tuned as {called}", "Fig. 5", s.largest("sft"), tuned)
        claims.prefer(f"GPT tuned as {called} is preferred to GPT", "Fig. 5", tuned, base)
        claims.prefer("and is on a par with prompted GPT", "Fig. 5", tuned, prompted, line=EVEN)
    for other, called, paper in ((base, "GPT", "about twice"), (prompted, "prompted GPT", "–")):
        claims.differ("4.2", f"PPO-ptx is true and informative more often than {called}", paper,
                      "true_informative", more, ptx, other)
    claims.differ("4.2", "asked to be respectful, PPO-ptx is less toxic than GPT", "25 % less",
                  "toxic_respectful", lambda ptx, base: 1 - ptx / base if base else 0.0, ptx, base)
    claims.differ("4.2", "without such an instruction the difference is gone", "Fig. 7",
                  "toxic_none", less, ptx, base, line=NEARLY)
    claims.differ("4.2", "asked to be rude, PPO-ptx is more toxic than GPT", "Fig. 39",
                  "toxic_biased", more, ptx, base)


def alignment_tax(s, claims):
    """Figure 29 and §4.2."""
    ppo, ptx, base = (s.largest(name) for name in ("ppo", "ppo_ptx", "base"))
    for what, task, worse, paper in (("text_loss", "the pretraining loss", more, "–"),
                                     ("few_shot", "few-shot tasks", less, "Fig. 29")):
        claims.differ("4.2", f"PPO gives up some of {task}", paper, what, worse, ppo, base)
        claims.differ("4.2", f"PPO-ptx gives up less of {task} than PPO", paper, what, worse,
                      ppo, ptx)
    claims.differ("4.2", "PPO-ptx still lags behind GPT on one few-shot task, copying",
                  "DROP, SQuADv2", "few_shot_copying", less, ptx, base)
    claims.differ("4.2", "PPO-ptx gives up less than half of the pretraining loss that PPO gives "
                  "up", "–", "text_loss",
                  lambda ppo, ptx, base: 0.5 * (ppo - base) - (ptx - base), ppo, ptx, base)


def reward_models(s, claims):
    """§4.1's five folds, and how to train one (§3.5, App. C.2)."""
    for group in GROUPS:
        units = [u for r in s.runs if (u := r.accuracy(group)) is not None]
        if units:
            claims.add("4.1", f"the reward model predicts {group} labelers better than chance", "–",
                       bootstrap(*units, statistic=ratio), (0.5,), "accuracy", seeds=len(units))
    folds = [np.hstack([own, other]) for r in s.runs if (own := r.folds("within")) is not None
             and (other := r.folds("fold")) is not None]
    if folds:
        claims.add("4.1", "it predicts a group of labelers that it has not seen a little less well",
                   "72.4, 69.6 %", bootstrap(*folds, statistic=lambda units_N4: ratio(
                       units_N4[:, :2]) - ratio(units_N4[:, 2:])), (0.0, 0.05), "share",
                   seeds=len(folds))
    for name, text in (("epochs", "a reward model of one epoch predicts better than one of four"),
                       ("pairs", "K-wise batches predict better than shuffled pairs")):
        both = [np.column_stack([one[:, 0] - other[:, 0], one[:, 1]]) for r in s.runs
                if (other := r.accuracy(name)) is not None and (one := r.accuracy("training"))
                is not None]
        if both:
            claims.add("3.5" if name == "pairs" else "C.2", text, "–",
                       bootstrap(*both, statistic=ratio), unit="accuracy", seeds=len(both))


def sweeps_of_coefficients(s, claims):
    """Figures 33, 34 and 36 (which has pretraining gradients, too)."""
    small = s.smallest
    ptx, base = small("ppo_ptx"), small("base")
    claims.differ("4.2", "PPO-ptx keeps more than nine tenths of the reward that PPO gains over its "
                  "start", "Fig. 33", "reward",
                  lambda ptx, ppo, start: (ptx - start) - 0.9 * (ppo - start),
                  ptx, small("ppo"), small("start"))
    claims.differ("4.2", "a pretraining coefficient of 30 gives up less of the pretraining loss than "
                  "one of 1", "–", "text_loss", more, ptx, small("ptx_30"))
    claims.differ("4.2", "it brings few-shot tasks back, to within 5 points of GPT", "Fig. 33",
                  "few_shot", more, small("ptx_30"), base, line=NEARLY[:1])
    claims.differ("4.2", "a KL coefficient 100 times PPO's leaves a higher pretraining loss than "
                  "GPT's", "–", "text_loss", more, small("kl_12"), base)
    claims.differ("4.2", "and fewer few-shot tasks right than GPT", "Fig. 34", "few_shot", less,
                  small("kl_12"), base)
    claims.differ("4.2", "and its reward is below PPO-ptx's", "Fig. 34", "reward", less,
                  small("kl_12"), ptx)
    for other, text in ((small("kl_12"), "a hundred times that"), (s.last_without_kl(), "none")):
        claims.prefer(f"PPO with its KL coefficient is preferred to PPO with {text}", "Fig. 36",
                      small("ppo"), other, section="E.7")


def epochs_of_sft(s, claims):
    """App. C.1: 16 epochs, over the seeds that have them."""
    sft = s.epochs_of_16()
    for name, text in (("valid_loss", "SFT's validation loss is higher after 16 epochs than after "
                                      "one"), ("valid_reward", "its reward score too")):
        if sft:
            claims.add("C.1", text, "over-fits after 1 epoch" if name == "valid_loss" else "rises",
                       bootstrap(*([rows[-1][name] - rows[0][name]] for rows in sft)),
                       unit="over seeds", seeds=len(sft), alone=False)


def second_round(s, claims):
    """§3.1: steps 2 and 3 iterated."""
    runs = [r for r in s.runs if r.has("again") and r.has("ppo_ptx")]
    if runs:
        claims.add("3.1", "PPO-ptx of a second round is preferred to that of the first", "–",
                   s.win("again", "ppo_ptx", runs=runs), (0.5,), "win rate", seeds=len(runs))


def over_optimised(s, claims):
    """Without KL the reward goes on rising while the win rate falls from its peak. The peak is
    found on the prompts of even number and measured on the others, so that it is no lucky one."""
    iterations = s.kept()
    kept = [s.smallest(f"no_kl-{n}") for n in iterations]
    runs = [r for r in s.runs if kept and all(map(r.has, kept))]
    if not runs:
        return
    wins = [np.stack([r.wins(m, s.smallest("sft")) for m in kept], 1) for r in runs]
    rewards = [np.stack([r.observe(m)["reward"] for m in kept], 1) for r in runs]
    peak = int(np.mean([w[::2].mean(0) for w in wins], 0).argmax())
    where = f"(iteration {iterations[peak]} of {iterations[-1]})"
    claims.add("3.5", f"without KL the win rate against SFT ends below its peak {where}", "–",
               bootstrap(*([w[1::2, peak] - w[1::2, -1] for w in wins])), unit="share",
               seeds=len(runs))
    claims.add("3.5", "while the reward-model score ends above its own there", "–",
               bootstrap(*([r[1::2, -1] - r[1::2, peak] for r in rewards])), unit="reward",
               seeds=len(runs))
