"""Pictures of a run, from the numbers that its stages left (Figure 1, App. E.6 and others).

    ./run.sh plot                       all pictures of the newest run, in RUN/plots
    ./run.sh plot --run runs/world-0 --out tests/figures

    stages      loss and accuracy of every stage before PPO
    ppo         reward, KL and entropy over PPO's iterations
    winrate     Figure 1: how often each model's answer is preferred to SFT's
    frontier    the reward that a distance from the start buys
    tax         pretraining loss of every model: the alignment tax

What a run has no numbers for yet is left out, and said. The same numbers give the same bytes on
one machine. A study's results.json holds several sizes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import InputError, run, setting
from data.runs import COLOURS, MODELS, NAMES, newest_run, read_metrics, read_results

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError:
    matplotlib = None

WIDTH, DPI = 5.4, 160       # inches and dots an inch: text is still readable on a phone
INK, SKY, PURPLE = "#222222", "#3a9bd6", "#a3428c"
STYLE = {"font.size": 12, "axes.titlesize": 13, "axes.titleweight": "bold",
         "axes.titlelocation": "left", "axes.titlepad": 9, "axes.labelcolor": "#444444",
         "axes.edgecolor": "#bbbbbb", "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e8e8e8", "axes.axisbelow": True,
         "xtick.color": "#444444", "ytick.color": "#444444", "text.color": INK,
         "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 2,
         "lines.solid_capstyle": "round", "figure.facecolor": "white"}

# -- the numbers ----------------------------------------------------------------------------------


class Run:
    """What a run's folder holds of: {stage: its metrics}, and {size: {model: its results}}."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such run; expected a folder, as ./run.sh makes it")
        self.stages = {path.stem: read_metrics(path) for path in sorted(self.folder.glob("*.jsonl"))
                       if path.stem in (*MODELS, "start", "reward")}
        self.sizes = read_results(self.folder / "results.json")
        if not any(self.stages.values()) and not self.sizes:
            raise InputError(f"{folder}: holds no numbers of any stage; expected files such as "
                             "sft.jsonl, or results.json")


def series(metrics, measure):
    """(steps, values) as arrays, counted from 1; empty where the stage did not measure it."""
    steps, values = metrics.get(measure, ((), ()))
    return np.array(steps, dtype=int) + 1, np.array(values, dtype=float)


def smooth(values, window):
    """Means over `window` neighbours, fewer at the ends; what is NaN does not count."""
    known, ones = np.isfinite(values), np.ones(window)
    count = np.convolve(known, ones, "same")
    total = np.convolve(np.where(known, values, 0.0), ones, "same")
    return np.where(known, total / np.maximum(count, 1), np.nan)


# -- strokes --------------------------------------------------------------------------------------


def figure(height, rows=1, columns=1):
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    made.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return made, made.subplots(rows, columns, squeeze=False).ravel()


def caption(made, title, below=""):
    """What the whole picture shows, on its top left."""
    made.suptitle(title + "\n" * bool(below), x=0.02, ha="left", fontweight="bold", fontsize=14)
    if below:
        made.text(0.02, 1 - 0.42 / made.get_figheight(), below, color="#444444", va="top")


def draw_curve(axes, x, y, colour):
    """A line; where there are many points, their running mean over what was measured."""
    window = 2 * (len(y) // 20) + 1
    if window > 1:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
    mean = smooth(y, window)
    axes.plot(x, mean, color=colour, marker="o" if len(y) < 3 else None)
    return mean


def label_ends(axes, ends, apart=0.13):
    """Names right of the axes, each at the height y where its line ends; neighbours move apart."""
    low, high = axes.get_ylim()
    ends = sorted(e for e in ends if math.isfinite(e[0]))
    heights = [(y - low) / (high - low) for y, _, _ in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    for height, (_, text, colour) in zip(heights, ends):
        axes.annotate(text, (1, height), (6, 0), "axes fraction", "offset points", color=colour,
                      va="center", fontweight="bold", annotation_clip=False)


def bars_of(run, *measures):
    """{size: {model: intervals of the measures}} of the models that have the first of them."""
    found = {size: {name: [m[what] for what in measures if what in m] for name, m in models.items()
                    if name in NAMES and measures[0] in m} for size, models in run.sizes.items()}
    return {size: models for size, models in found.items() if models}


def draw_bars(axes, models, text, zero):
    """Horizontal bars of {model: [[mean, low, high], a second one, drawn hollow]}, the first model
    on top; text(model, bar's number, mean) stands at a bar's end; dashed: what to compare with."""
    for row, (name, triples) in enumerate(models.items()):
        colour, height = COLOURS[name], 0.7 / len(triples)
        for i, (mean, low, high) in enumerate(triples):
            y = -row - (i - (len(triples) - 1) / 2) * height
            axes.barh(y, mean, height * 0.86, edgecolor=colour, color=colour if i == 0 else "white",
                      linewidth=1.3)
            axes.plot([low, high], [y, y], color=INK, linewidth=1.6, solid_capstyle="butt")
            axes.annotate(text(name, i, mean), (max(high, mean), y), (6, 0), fontsize=11,
                          textcoords="offset points", va="center", zorder=4,
                          bbox={"color": "white", "pad": 1})
    axes.set_yticks([-row for row in range(len(models))], [NAMES[name] for name in models])
    for tick, name in zip(axes.get_yticklabels(), models):
        tick.set(color=COLOURS[name], fontweight="bold")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.axvline(zero, color=INK, linewidth=1, linestyle=(0, (4, 3)))


# -- the pictures ---------------------------------------------------------------------------------
# Each takes a Run and returns a Figure, or None where the run has no numbers for it.

PANELS = (  # title, stage, colour, measures (of training, of validation), what they are
    ("Base model", "base", COLOURS["base"], ("loss", "valid_text_loss"), "loss, nats/token"),
    ("PPO's start", "start", SKY, ("loss", "valid_loss"), "loss, nats/token"),
    ("SFT", "sft", COLOURS["sft"], ("loss", "valid_loss"), "loss, nats/token"),
    ("SFT", "sft", COLOURS["sft"], (None, "valid_reward"), "reward-model score"),
    ("Reward model", "reward", PURPLE, ("loss", "valid_loss"), "loss, nats/pair"),
    ("Reward model", "reward", PURPLE, ("accuracy", "valid_accuracy"), "accuracy, % of pairs"))


def plot_stages(run):
    panels = [p for p in PANELS if any(m in run.stages.get(p[1], {}) for m in p[3])]
    if not panels:
        return None
    made, grid = figure(0.8 + 2.3 * math.ceil(len(panels) / 2), math.ceil(len(panels) / 2), 2)
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    for axes, (title, stage, colour, (train, valid), unit) in zip(grid, panels):
        draw_stage(axes, run.stages[stage], colour, train, valid, 100 if "%" in unit else 1)
        axes.set(title=title, ylabel=unit, xlabel="step")
    caption(made, "Every stage before PPO", "colour: training batches; black: validation")
    return made


def draw_stage(axes, metrics, colour, train, valid, scale):
    x, y = series(metrics, train)
    if len(y):
        draw_curve(axes, x, scale * y, colour)
    x, y = series(metrics, valid)
    if len(y):
        _, half = series(metrics, "valid_interval")
        axes.errorbar(x, scale * y, scale * half if scale > 1 and len(half) == len(y) else None,
                      color=INK, marker="o", markersize=5, linewidth=1.4)
    if valid == "valid_reward":
        steps, kept = series(metrics, "kept")  # 1 after an epoch that `sft.Judge` would keep so far
        for i in np.flatnonzero(np.isin(x, steps[kept == 1]))[-1:]:
            axes.annotate("kept", (x[i], y[i]), (0, 8), textcoords="offset points", ha="center")
            axes.margins(y=0.25)


def plot_ppo(run):
    curves = ppo_curves(run, "reward", "kl", "entropy")
    if not curves:
        return None
    made, grid = figure(6.6, 3)
    for axes, (title, unit, i) in zip(grid, (
            ("Reward: what the reward model says", "score", 0),
            ("Distance: KL to where PPO started", "nats/response", 1),
            ("Entropy of what is sampled", "nats/token", 2))):
        ends = [(draw_curve(axes, x, values[i], COLOURS[name])[-1], NAMES[name], COLOURS[name])
                for name, (x, values) in curves.items()]
        axes.set(title=title, ylabel=unit)
        label_ends(axes, ends)
    grid[-1].set_xlabel("PPO iteration")
    return made


def ppo_curves(run, *measures):
    """{model: (iterations, values of each measure)} of the PPO stages that measured something."""
    found = {name: [series(run.stages.get(name, {}), what) for what in measures]
             for name in ("ppo", "ppo_ptx")}
    return {name: (of[0][0], [y for _, y in of]) for name, of in found.items()
            if len({len(y) for _, y in of}) == 1 and all(np.isfinite(y).any() for _, y in of)}


def plot_winrate(run):
    sizes = bars_of(run, "win_rate", "win_rate_held_out")
    if not sizes:
        return None
    made, grid = figure(1.3 + 0.62 * sum(map(len, sizes.values())) + 0.4 * len(sizes), len(sizes))
    win, best = max((m[0][0], name) for models in sizes.values() for name, m in models.items())
    caption(made, f"{NAMES[best]} wins against SFT in {100 * win:.0f} % of cases")
    for axes, (size, models) in zip(grid, sizes.items()):
        models = {name: [[100 * x for x in of] for of in m] for name, m in models.items()}
        roomy = min(models, key=lambda name: models[name][0])   # the shortest bar: words go there
        draw_bars(axes, models, lambda name, i, mean: f"{mean:.0f}" + (
            ("  by labelers of training", "  by held-out labelers")[i] if name == roomy else ""),
            zero=50)
        axes.set(title=size, xlim=(0, 100), xticks=range(0, 101, 25))
    grid[-1].set_xlabel("simulated labelers' win rate, %, 95 % intervals")
    return made


def plot_frontier(run):
    curves = ppo_curves(run, "kl", "reward")
    if not curves:
        return None
    made, (axes,) = figure(4)
    ends = []
    for name, (_, (kl, reward)) in curves.items():
        order = np.argsort(kl)      # iterations come and go; what is asked is reward at a distance
        mean = smooth(reward[order], 2 * (len(kl) // 8) + 1)
        axes.plot(kl, reward, "o", color=COLOURS[name], alpha=0.3, markersize=4, linewidth=0)
        axes.plot(kl[order], mean, color=COLOURS[name])
        ends.append((mean[np.isfinite(mean)][-1], NAMES[name], COLOURS[name]))
    axes.set(title="Reward against distance from the start",
             ylabel="reward-model score of an iteration",
             xlabel="KL to where PPO started, nats/response")
    label_ends(axes, ends, apart=0.08)
    return made


def plot_tax(run):
    sizes = {size: of for size, of in bars_of(run, "text_loss").items() if "base" in of}
    if not sizes:
        return None
    made, grid = figure(1.5 + 0.5 * sum(map(len, sizes.values())) + 0.4 * len(sizes), len(sizes))
    caption(made, "The alignment tax", "in brackets: above the base model")
    for axes, (size, models) in zip(grid, sizes.items()):
        before = models["base"][0][0]
        draw_bars(axes, models, lambda name, i, mean: f"{mean:.2f}" + (
            f"  ({mean - before:+.2f})" if name != "base" else ""), zero=before)
        axes.set(title=size, xlim=(0, 1.3 * max(m[0][2] for m in models.values())))
    grid[-1].set_xlabel("pretraining loss, nats/token, with 95 % intervals")
    return made


PICTURES = {"stages": plot_stages, "ppo": plot_ppo, "winrate": plot_winrate,
            "frontier": plot_frontier, "tax": plot_tax}

# -- the command ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlotConfig:
    run: str = setting("", "folder of a run; the newest in runs/ that is complete")
    out: str = setting("", "folder for the pictures; RUN/plots")


def main(config):
    """Draw what the run has numbers for."""
    if matplotlib is None:
        raise InputError("pictures need matplotlib: pip install matplotlib")
    found = Run(config.run or newest_run())
    out = Path(config.out or found.folder / "plots")
    matplotlib.rcdefaults()     # and nothing of the user's own: the same bytes
    for name, plot in PICTURES.items():
        with matplotlib.rc_context(STYLE):
            made = plot(found)
            if made is None:
                print(f"{name}: no numbers for it yet")
                continue
            try:
                out.mkdir(parents=True, exist_ok=True)
                made.savefig(out / f"{name}.png", dpi=DPI, metadata={"Software": None})
            except OSError as error:
                raise InputError(f"{out}: cannot be written to ({error.strerror})") from None
            print(f"wrote {out / name}.png")


if __name__ == "__main__":
    run(main, PlotConfig, __doc__)
