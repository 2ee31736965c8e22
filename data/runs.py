"""What lies in a run's folder: its models, by the names and colours that every page uses, and the
numbers of its stages."""

import collections
import json
import math
from pathlib import Path

from common import InputError
from data.readers import HH_TURN
from data.tokenizer import read_utf8

MODELS = ("base", "sft", "ppo", "ppo_ptx")  # whose checkpoints a run ends with
NAMES = {  # all that answer test prompts
    "base": "GPT", "prompted": "GPT, prompted", "flan": "GPT, tuned as FLAN",
    "t0": "GPT, tuned as T0", "sft": "SFT", "start": "PPO's start", "ppo": "PPO",
    "ppo_ptx": "PPO-ptx"}
# Okabe and Ito's, which colour-blind readers tell apart; the blue is dark enough for text
COLOURS = {"base": "#6f6f6f", "prompted": "#8c8c8c", "flan": "#a0618c", "t0": "#bb8fae",
           "sft": "#0072b2", "start": "#3f8fb5", "ppo": "#d55e00", "ppo_ptx": "#00845f"}


def newest_run(parent="runs", models=MODELS):
    """The folder in `parent` with checkpoints of all `models` that was last added to.
    Raises InputError where there is none."""
    whole = [folder for folder in Path(parent).glob("*")
             if all((folder / f"{name}.pt").exists() for name in models)]
    if not whole:
        raise InputError(f"{parent}: no run in it has {', '.join(f'{n}.pt' for n in models)}; "
                         "expected one, as ./run.sh makes it, or --run FOLDER")
    return max(whole, key=lambda folder: max(p.stat().st_mtime for p in folder.glob("*.pt")))


def checkpoints(run, models):
    """{model: its checkpoint's path} of a run. Raises InputError where one is missing."""
    folder = Path(run) if run else newest_run(models=models)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run; expected a folder, as ./run.sh makes it")
    for name in models:
        if not (folder / f"{name}.pt").exists():
            there = [m for m in (*MODELS, "start") if (folder / f"{m}.pt").exists()]
            raise InputError(f"{folder}: has no {name}.pt; expected --models with some of "
                             f"{', '.join(there) or '… nothing: no stage has ended here'}")
    return {name: folder / f"{name}.pt" for name in models}


def in_turns(folder):
    """True where a run's prompts are HH-RLHF's dialogues, which end with the assistant's turn."""
    try:
        with open(folder / "data" / "prompts.train.jsonl", encoding="utf-8") as file:
            return json.loads(file.readline())["prompt"].endswith(HH_TURN)
    except (OSError, ValueError, KeyError):     # a run copied without its data
        return False


def read_metrics(path):
    """{measure: (steps, values)} of a stage's JSON Lines; what is not finite becomes NaN. {} where
    the file is not there. Raises InputError at the first damaged line; one that has no end yet,
    which the stage is writing or was stopped in, is left out."""
    found = collections.defaultdict(lambda: ([], []))
    text = read_utf8(path) if Path(path).exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            step = record.pop("step")
            if not 0 <= step < 2**53:
                raise ValueError
            for measure, value in record.items():
                if not isinstance(value, list):     # prompts and answers are lists
                    found[measure][0].append(int(step))
                    found[measure][1].append(value if math.isfinite(value) else math.nan)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            raise InputError(f"{path}:{number}: {line[:60]!r} is damaged; expected an object with "
                             "a step and numbers") from None
    return dict(found)


def read_results(path):
    """{size: {model: {measure: [mean, low, high]}}} of results.json, {} where it is not there;
    intervals that are not finite are left out. Raises InputError where it is damaged."""
    if not path.exists():
        return {}
    try:
        results = json.loads(read_utf8(path))
        return {size: {name: {what: [float(x) for x in triple] for what, triple in found.items()
                              if len(triple) == 3 and all(map(math.isfinite, triple))}
                       for name, found in models.items() if name in NAMES}
                for size, models in results["models"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error!r}); expected models, each with measures of "
                         "[mean, low, high]") from None
