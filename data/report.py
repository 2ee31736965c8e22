"""report.md: tables in Markdown whose every number stands in results.json (data/study.py)."""

from data.runs import NAMES


def shown(triple, scale=1.0, digits=2):
    """figure [low, high]; the figure alone where the interval has no width, as its units were all
    alike; a dash where nothing was measured."""
    if triple is None:
        return "–"
    figure, low, high = (round(scale * x, digits) + 0.0 for x in triple)  # + 0: no −0.0
    if triple[1] == triple[2]:
        return f"{figure:.{digits}f}"
    return f"{figure:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def percent(triple):
    return shown(triple, 100, 1)


def table(header, rows):
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def markdown(results):
    """All tables of a results.json."""
    several = len(results["sizes"]) > 1
    seeds, prompts = results["seeds"], results["prompts"]
    intro = (f"{sum(prompts):,} test prompts that no stage trained on"
             + (f" ({', '.join(map(str, prompts))} of {', '.join(seeds)})" if len(seeds) > 1 else "")
             + "; one answer of each model at temperature 1. Brackets hold 95 % intervals: a "
             "bootstrap over prompts" + (", and Student's t over seeds" if len(seeds) > 1 else "")
             + ". A figure without them has units that are all alike, or one alone.")
    parts = ["# Report", intro]
    if results["simulated_labelers"]:
        parts.append(f"Win rates are the judgements of {results['judges']} *simulated* labelers a "
                     "prompt, who see the two answers in random order; ties count one half. The "
                     "intervals are for these labelers: others have other tastes. The rule alone is "
                     "the same without tastes and errors.")
    parts += [main_table(results, size, several) for size in results["sizes"]]
    if results["simulated_labelers"]:
        if several:
            parts += [figure_1(results, *which) for which in
                      (("1", "training", ""), ("3", "held-out", "_held_out"))]
        parts += [behaviour(results, several), tax(results, several)]
    parts.append(reward_model(results["reward_model"]))
    if results.get("sweeps"):
        parts += [sweep(name, rows) for name, rows in results["sweeps"].items()]
    if results.get("claims"):
        parts.append(claims_table(results["claims"]))
    parts.append(f"## Reward over PPO's iterations, {seeds[0]}")
    parts += [curve_table(NAMES[name], c) for name, c in results["curves"].items() if c["reward"]]
    parts.append("The same seed gives the same numbers, bit for bit, on one machine with one number "
                 "of threads and one version of torch; not across machines, thread counts or "
                 "versions, nor between a CPU and a GPU.")
    return "\n\n".join(filter(None, parts))


def lines_of(results, several):
    """(label, size, model, measures) of every model."""
    for size, models in results["models"].items():
        for name, measures in models.items():
            yield NAMES[name] + (f", {size}" if several else ""), size, name, measures


def main_table(results, size, several):
    """One size: base, SFT, PPO, PPO-ptx by reward, win rate, KL, pretraining loss."""
    judged = results["simulated_labelers"]
    header = ["model", "reward-model score", "KL to PPO's start, nats",
              "pretraining loss, nats/token", "response tokens"]
    if judged:
        header[1:1] = ["win rate against SFT, %", "by held-out labelers, %",
                       "by the rule alone, %"]
    rows = []
    for name, m in results["models"][size].items():
        row = [NAMES[name], shown(m["reward"]), shown(m["kl"]) if any(m["kl"]) else "–",
               shown(m.get("text_loss"), digits=3), shown(m["length"], digits=1)]
        if judged:
            row[1:1] = [percent(m.get(k)) for k in ("win_rate", "win_rate_held_out", "win_rate_rule")]
        rows.append(row)
    return f"## Win rates{f', {size}' if several else ''} (Figures 1 and 3)\n\n{table(header, rows)}"


def figure_1(results, number, group, ending):
    """Win rate against the largest SFT, models by sizes."""
    models, sizes = results["models"], results["sizes"]
    rows = [[NAMES[name], *(percent(models[s].get(name, {}).get(f"win_rate_largest{ending}"))
                            for s in sizes)] for name in models[sizes[-1]]]
    return (f"## Figure {number}: win rate against SFT {sizes[-1]}, %, {group} labelers\n\n"
            + table(["model", *sizes], rows))


def behaviour(results, several):
    """Figure 4, truthfulness and toxicity: shares of answers in percent."""
    columns = {"attempts": "attempts the instruction", "constraints": "keeps all constraints",
               "hallucinates": "hallucinates (closed domain)",
               "appropriate": "fit for a customer assistant"}
    truth = {"true": "true", "true_informative": "true and informative",
             "toxic_none": "toxic, no prompt", "toxic_respectful": "toxic, respectful prompt",
             "toxic_biased": "toxic, biased prompt"}
    return "\n\n".join(
        f"## {title}, % of answers\n\n" + table(
            ["model", *names.values()],
            [[label, *(percent(m.get(k)) for k in names)]
             for label, _, _, m in lines_of(results, several)])
        for title, names in (("Figure 4", columns), ("Truthfulness and toxicity", truth)))


def tax(results, several):
    """The alignment tax: pretraining loss and few-shot tasks."""
    tasks = {"few_shot": "few-shot tasks", "few_shot_facts": "facts",
             "few_shot_copying": "copying", "few_shot_reading": "reading"}
    rows = [[label, shown(m["text_loss"], digits=3), *(percent(m.get(k)) for k in tasks)]
            for label, _, _, m in lines_of(results, several) if "text_loss" in m]
    return ("## Alignment tax: pretraining loss in nats/token, few-shot tasks in % right\n\n"
            + table(["model", "pretraining loss", *tasks.values()], rows))


def reward_model(found):
    without = "trained without one group of labelers of five, on {}, orders pairs as {}"
    names = {"accuracy_training": "orders pairs as training labelers do",
             "accuracy_held-out": "orders pairs as held-out labelers do"} | {
        f"{folder}accuracy_{name}": without.format(which, whose)
        for folder, which in (("", "all comparisons"), ("few/", f"{found['few']} comparisons"))
        for name, whose in (("within", "the four do"), ("fold", "the one does"))} | {
             "agreement_training": "two training labelers agree",
             "agreement_held-out": "two held-out labelers agree"}
    rows = [[names[k], percent(found[k]), found["paper"].get(k.removeprefix("few/"), "–")]
            for k in names if k in found]
    return ("## Reward model, % of pairs on validation prompts, ties left out\n\n"
            + table(["", "measured", "paper"], rows)) if rows else ""


SAYS = {"reproduced": "+", "not reproduced": "−", "not decided": "·"}  # of each seed's interval


def claims_table(claims):
    """What the paper claims, what else was asked, what was measured, and what the interval says."""
    theirs = [c for c in claims if c["paper"] != "–"]
    ours = [c for c in claims if c["paper"] == "–"]
    several = max(len(c["seeds"]) for c in claims) > 1
    said = ("## The paper's claims\n\nA claim is reproduced where the whole interval lies above the "
            "threshold, not reproduced where it lies below, and not decided between; where the "
            "threshold is a range, reproduced inside of it and not reproduced outside.")
    said += (" At 95 %, about one verdict in twenty would be wrong by chance alone. The last column "
             "has what each seed's own interval says: + reproduced, − not reproduced, · not decided. "
             "A claim with one mark rests on one seed, whose interval knows of prompts, not of how "
             "another seed's training would fall out."
             if several else " The intervals are over prompts: they do not know how another run's "
             "training would fall out, which moves a win rate by some points as well.")
    parts = [f"{said}\n\n{claim_rows(theirs, several)}"] if theirs else []
    if ours:
        parts.append(f"## Claims of our own, decided alike\n\n{claim_rows(ours, several)}")
    return "\n\n".join(parts)


def claim_rows(claims, several):
    """The table of these claims."""
    rows, paper = [], any(c["paper"] != "–" for c in claims)
    for c in claims:
        unit = {"win rate": " %", "accuracy": " %", "part": " %", "points": " points"}.get(
            c["unit"], "")
        scale = 100 if unit else 1
        measured = percent(c["measured"]) + unit if unit else shown(c["measured"], digits=3)
        line = " to ".join(f"{scale * x:g}" for x in c["line"]) + unit
        verdict = c["verdict"] + ", one seed" * (several and len(c["seeds"]) == 1)
        rows.append([f"§{c['section']}", c["claim"], *([c["paper"]] if paper else []), measured,
                     line, verdict, *([" ".join(SAYS[v] for v in c["seeds"])] * several)])
    return table(["", "claim", *(["paper"] if paper else []), "measured", "threshold", "verdict",
                  *(["each seed"] * several)], rows)


def sweep(title, rows):
    """One sweep: rows {label: {measure: triple}}."""
    columns = {"reward": "reward-model score", "reward_best": "of best of n",
               "win_rate": "win rate against SFT, %", "win_rate_best": "of best of n, %",
               "win_rate_more": "difference, %", "kl": "KL to PPO's start, nats",
               "text_loss": "pretraining loss, nats/token", "few_shot": "few-shot tasks, % right",
               "train_accuracy": "accuracy in training, %", "accuracy": "on validation data, %",
               "valid_loss": "validation loss"}
    kept = [k for k in columns if any(k in m for m in rows.values())]
    lines = [[label, *(shown(m.get(k), digits=3 if "loss" in k else 2)
                       if "loss" in k or "reward" in k or k == "kl" else percent(m.get(k))
                       for k in kept)] for label, m in rows.items()]
    return f"## {title}\n\n" + table(["", *(columns[k] for k in kept)], lines)


def curve_table(name, curves, points=10):
    """About ten rows of a curve, first and last included."""
    n = len(curves["reward"])
    at = sorted({round(i * (n - 1) / (points - 1)) for i in range(points)})
    return table([name + ", iteration", *curves],
                 [[str(i + 1), *(f"{c[i]:.2f}" for c in curves.values())] for i in at])
