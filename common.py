"""What every stage shares and no paper describes: settings from flags, checkpoints, logging.

No mathematics lives here. A stage is `main(config)` around one frozen dataclass:

    @dataclass(frozen=True)
    class PPOConfig:
        clip: float = setting(0.2, "PPO ratio clip; Stiennon et al. 2020")

    if __name__ == "__main__":
        run(main, PPOConfig, __doc__)

`run` makes one flag per field, and turns an `InputError` into one line and exit code 2.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
import typing
import zipfile
from pathlib import Path

import torch

from model import GPTConfig


class InputError(Exception):
    """Something the user gave is wrong. Its text is one line: file, line number, what is wrong,
    what was expected. Programs print it and exit with code 2; nothing is written."""


# -- settings ---------------------------------------------------------------------------------


def setting(default, source, positional=False):
    """A dataclass field with its origin: a section of the paper, *scaled*, or *open*. A positional
    one, of type tuple, has no flag: it takes what stands alone on the command line, if anything."""
    return dataclasses.field(default=default, metadata={"source": source,
                                                        "positional": positional})


def required(source, positional=False):
    """A dataclass field that has no default: its flag must be given. A positional one has no flag:
    its value stands alone on the command line, or one or more values where its type is tuple."""
    return dataclasses.field(metadata={"source": source, "required": True,
                                       "positional": positional})


def _parse_bool(text):
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def parse_config(config_class, description="", argv=None):
    """An instance of `config_class` from command-line flags, one flag per field.

    `--field value`; booleans take true or false. An unknown flag, a missing required flag or a
    value of another type prints one line and exits with code 2. `--help` lists every field with
    its default and its source. Fields typed `tuple` take several values.
    """
    parser = _Parser(description=description, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(config_class)
    for f in dataclasses.fields(config_class):
        kind, needed = hints[f.name], f.metadata.get("required", False)
        if f.metadata.get("positional", False):
            several = {"nargs": "+" if needed else "*"}
            name, options = f.name, several if kind is tuple else {}
        else:
            name, options = f"--{f.name}", {"nargs": "*"} if kind is tuple else {}
            options |= {"required": needed, "default": None if needed else f.default}
        shown = "" if needed else f"[{f.default}] "
        parser.add_argument(name, type={bool: _parse_bool, tuple: str}.get(kind, kind),
                            help=(shown + f.metadata["source"]).replace("%", "%%"), **options)
    values = vars(parser.parse_intermixed_args(argv))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return config_class(**values)


def run(main, config_class, description="", argv=None):
    """Run `main(config)` with the settings of the command line; bad input exits with code 2."""
    try:
        main(parse_config(config_class, description, argv))
    except InputError as error:
        sys.exit(fail(error, 2))
    except FloatingPointError as error:
        sys.exit(fail(f"{error}; what was saved before is good, and nothing after it", 1))
    except torch.OutOfMemoryError:
        sys.exit(fail("out of memory: lower --micro_tokens, which changes no number", 1))


def run_verbs(verbs, description, argv=None):
    """A program of several commands: `verbs` {name: (main, config class)}; the first word of the
    command line names one."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{description.strip()}\n\ncommands: {', '.join(verbs)} (each with --help)")
        sys.exit(0 if argv else 2)
    if argv[0] not in verbs:
        sys.exit(fail(f"{argv[0]}: no such command; expected {', '.join(verbs)}", 2))
    main, config_class = verbs[argv[0]]
    run(main, config_class, main.__doc__ or description, argv[1:])


def fail(error, code):
    """Print an error as one line on standard error; returns the exit code to use."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


# -- checkpoints --------------------------------------------------------------------------------
# A checkpoint is one file of tensors and plain values, written by torch.save (a zip with a CRC of
# every entry) and read without running anything in it:
#   stage, tokenizer {name, fingerprint}, model_config, weights, step, config, and for a run that
#   has not ended: objects {name: state_dict of models, optimizers, …}.


def save_checkpoint(path, **contents):
    """Write `path` whole or not at all: aside, flushed to the disk, then renamed."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: the checkpoint could not be written ({error}); "
                         f"what was saved before is intact") from None
    finally:
        aside.unlink(missing_ok=True)


def read_checkpoint(path, device="cpu"):
    """What `save_checkpoint` wrote. Raises InputError for a missing, truncated or altered file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"its entry {damaged} is damaged")
        contents = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(contents, dict) or "stage" not in contents:
            raise ValueError("it names no stage")
        return contents
    except Exception as error:  # a damaged file can fail anywhere in the zip or pickle reader
        reason = str(error).split("\n")[0][:200]
        raise InputError(f"{path}: not a whole checkpoint of this project ({reason})") from None


def load_checkpoint(path, stages, tokenizer=None, device="cpu"):
    """A checkpoint of one of `stages`, made with `tokenizer` where one is given.

    Raises InputError where the file is not whole, or belongs to another stage or tokenizer.
    """
    contents = read_checkpoint(path, device)
    if contents["stage"] not in stages:
        raise InputError(f"{path}: a checkpoint of stage {contents['stage']!r}; expected "
                         f"{' or '.join(repr(s) for s in stages)}")
    found = contents.get("tokenizer", {})
    if tokenizer is not None and found.get("fingerprint") != tokenizer.fingerprint:
        raise InputError(f"{path}: made with tokenizer {found.get('name')!r} "
                         f"({found.get('fingerprint')}); expected {tokenizer.name!r} "
                         f"({tokenizer.fingerprint})")
    return contents


def load_model(model_class, path, stages, tokenizer, device="cpu", dropout=0.0):
    """The GPT or ScalarGPT of a checkpoint, on `device`; dropout is off unless asked for.

    Raises InputError as `load_checkpoint` does, and where the weights do not fit the shape.
    """
    contents = load_checkpoint(path, stages, tokenizer)
    config = GPTConfig(**contents["model_config"] | {"dropout": dropout})
    model = model_class(config)
    try:
        model.load_state_dict(contents["weights"])
    except RuntimeError as error:
        raise InputError(f"{path}: not the weights of a {model_class.__name__}: {error}") from None
    return model.to(device)


def device_of(name):
    """The torch.device that `auto`, `cpu` or `cuda` means here."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; expected cpu or auto")
    gpu = torch.cuda.is_available() and name != "cpu"
    return torch.device("cuda" if gpu else "cpu")


# -- a stage as a run of steps: resume, log, save, stop -------------------------------------------


class Stage:
    """The files and the manners of one stage that writes `out` (say runs/demo/ppo.pt):

    ppo.pt         the result, written when the stage ends
    ppo.jsonl      one line of numbers per step
    ppo.resume.pt  where to go on from, and ppo.resume-1.pt the one before; gone when it ends
    """

    def __init__(self, stage, config, model_config, tokenizer):
        self.out = Path(config.out)
        self.metrics = self.out.with_suffix(".jsonl")
        self.saved = [self.out.with_suffix(".resume.pt"), self.out.with_suffix(".resume-1.pt")]
        self.about = {
            "stage": stage, "config": dataclasses.asdict(config),
            "model_config": dataclasses.asdict(model_config),
            "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}}
        self.stop_signal, self.first_step = None, 0
        self.started = self.last_step = time.time()
        self._lock()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _lock(self):
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.out.with_suffix(".lock"), "w")
        except OSError as error:
            raise InputError(f"{self.out.parent}: cannot be written to ({error.strerror})") \
                from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{self.out}: another run is writing it") from None

    def _on_signal(self, number, frame):
        self.stop_signal = number  # the step in progress ends first; see `after_step`

    def resume(self, objects):
        """Restore `objects` {name: anything with load_state_dict} from the newest whole resume
        checkpoint of the same settings. Returns the number of steps already done."""
        for path in self.saved:
            if not path.exists():
                continue
            try:
                state = read_checkpoint(path)
            except InputError as error:
                print(f"{error}; trying the one before it", flush=True)
                continue
            if state["config"] != self.about["config"] or \
                    state["tokenizer"] != self.about["tokenizer"]:
                raise InputError(f"{path}: left by a run with other settings; remove it or give "
                                 f"the same ones")
            for name, thing in objects.items():
                thing.load_state_dict(state["objects"][name])
            self.first_step = state["step"]
            print(f"going on after step {self.first_step} of {path}", flush=True)
            break
        self._keep_metrics_before(self.first_step)
        self.started = self.last_step = time.time()
        return self.first_step

    def _keep_metrics_before(self, step):
        lines = []
        if step and self.metrics.exists():
            lines = [line for line in self.metrics.read_text().splitlines(keepends=True)
                     if line.endswith("\n") and json.loads(line)["step"] < step]
        self.metrics.write_text("".join(lines))

    def seed_step(self, step, seed):
        """Make all randomness of a step (dropout, samples, shuffles) a function of seed and step,
        so that a run that goes on draws what the undisturbed one would have drawn."""
        digest = hashlib.sha256(f"{self.about['stage']} {seed} {step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))

    def log(self, step, steps, numbers, tokens, shown):
        """One line of the numbers named in `shown`, and all of them as one line of JSON."""
        now = time.time()
        speed, self.last_step = tokens / (now - self.last_step), now
        left = (now - self.started) / (step + 1 - self.first_step) * (steps - step - 1)
        text = "  ".join(f"{name} {_short(numbers[name])}" for name in shown)
        print(f"{self.out.stem} {step + 1}/{steps}  {text}  {speed:,.0f} tokens/s  "
              f"{_clock(left)} left", flush=True)
        self.note(step, **numbers, tokens_per_s=round(speed, 1))

    def note(self, step, **record):
        """One line of JSON in the metrics file."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step, **record}) + "\n")

    def show(self, step, prompts, answers):
        """Print a few answers, so that one sees the model learn, and keep them in the metrics."""
        for prompt, answer in zip(prompts, answers):
            print(f"    {prompt!r} -> {answer!r}", flush=True)
        self.note(step, answers=list(answers), prompts=list(prompts))

    def after_step(self, step, objects, save_every):
        """Save where it is due; after SIGINT or SIGTERM save, say how to go on, and exit."""
        if self.stop_signal is None and (step + 1) % save_every:
            return
        if self.saved[0].exists():
            os.replace(self.saved[0], self.saved[1])
        save_checkpoint(self.saved[0], step=step + 1, **self.about,
                        objects={k: thing.state_dict() for k, thing in objects.items()})
        if self.stop_signal is not None:
            print(f"stopped after step {step + 1}; the same command goes on from there",
                  file=sys.stderr)
            sys.exit(128 + self.stop_signal)

    def keep(self, weights, step):
        """Write the model as it is after `step` steps beside the result: ppo-10.pt."""
        save_checkpoint(self.out.with_stem(f"{self.out.stem}-{step}"), **self.about, step=step,
                        weights=weights)

    def finish(self, weights, step, **more):
        """Write the result and remove what was only there to resume."""
        save_checkpoint(self.out, **self.about, step=step, weights=weights, **more)
        for path in self.saved:
            path.unlink(missing_ok=True)
        self.lock.close()
        self.out.with_suffix(".lock").unlink(missing_ok=True)
        print(f"wrote {self.out}", flush=True)


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
