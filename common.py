"""What every stage shares and no paper describes: settings from flags, checkpoints, logging.

No mathematics lives here. A stage is `main(config)` around one frozen dataclass:

    @dataclass(frozen=True)
    class PPOConfig:
        clip: float = setting(0.2, "of the policy's ratio; paper 0.2, App. C.4")

    if __name__ == "__main__":
        run(main, PPOConfig, __doc__)

`run` makes one flag per field, and turns an `InputError` into one line and exit code 2.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import signal
import sys
import time
import typing
import zipfile
from pathlib import Path

import torch

from machine import keep_freed_memory, without_weights
from model import GPTConfig, set_forward_dtype


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


def neutral(default, source):
    """A setting that changes no number, but for rounding: a stopped run may go on with another."""
    return dataclasses.field(default=default, metadata={"source": source, "neutral": True})


def output_file(source):
    """The required field of the one file that a program writes; see `check_output`."""
    return dataclasses.field(metadata={"source": source, "required": True, "output": True})


def check_output(config, *paths):
    """Raises InputError unless each of these files, which a program writes, is new or a plain file
    (or a link to one), and not one that a setting names: a program never writes over its input."""
    for path in map(Path, paths):
        if not path.name or path.exists() and not path.is_file():
            raise InputError(f"--out {config.out}: {path} is not a plain file; expected the name "
                             "of a file to write")
        for name, value in dataclasses.asdict(config).items():
            for given in value if isinstance(value, tuple) else (value,):
                if name != "out" and isinstance(given, str) and _same_file(given, path):
                    raise InputError(f"--out {config.out}: {path} would be written over, which is "
                                     f"--{name} {given}; expected another name")


def _same_file(one, other):
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one is not there, or no path at all
        return False


def through_links(path):
    """Where a file really lies: renaming onto a link would put the file in the link's place."""
    return Path(os.path.realpath(path))


def _parse_bool(text):
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


# Numbers on the command line are finite and at least 0; these are above 0, those at most 1, and
# LIMITLESS ones anything finite. Without this a batch of 0 would divide by zero hours later.
POSITIVE = {"batch", "minibatch", "inner_epochs", "episodes", "epochs", "max_prompt",
            "max_response", "max_tokens", "micro_tokens", "ptx_per_episode", "save_every",
            "show_every", "log_every", "choose_prompts", "bias_demonstrations", "judges", "most",
            "prefix_examples"}
SHARES = {"ema_decay", "discount", "lam", "floor", "dropout"}
LIMITLESS = {"limit_score"}
CHOICES = {"compile": ("auto", "on", "off")}


def _fault(name, value):
    """What is wrong with a value given for the field `name`, or None."""
    if value not in CHOICES.get(name, (value,)):
        return f"expected {' or '.join(CHOICES[name])}"
    if type(value) not in (int, float):
        return None
    if type(value) is int and abs(value) >= 2**62:  # more than a tensor or a seed can hold
        return "expected a number below 2**62"
    if not abs(value) < math.inf:
        return "expected a finite number"
    if abs(value) > torch.finfo(torch.float32).max:
        return "expected a number that fp32 can hold"
    if name not in LIMITLESS and (value < 0 or name in POSITIVE and value == 0):
        return "expected a number above 0" if name in POSITIVE else "expected 0 or more"
    return "expected at most 1" if name in SHARES and value > 1 else None


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(**options)
        # argparse takes -1e3 for a flag, and -1.5 for a number
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf$|nan$)")

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def parse_config(config_class, description="", argv=None):
    """An instance of `config_class` from command-line flags, one flag per field.

    `--field value`; booleans take true or false. An unknown flag, a missing required flag, a value
    of another type or a number out of bounds prints one line and exits with code 2. `--help` lists
    every field with its default and its source. Fields typed `tuple` take several values.
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
    for f in dataclasses.fields(config_class):
        value = values[f.name]
        if f.metadata.get("required", False) and value in ("", ()):
            parser.error(f"--{f.name}: expected a value")
        if value != f.default and (fault := _fault(f.name, value)):
            parser.error(f"--{f.name} {value}: {fault}")
    return config_class(**values)


def run(main, config_class, description="", argv=None):
    """Run `main(config)` with the settings of the command line. What can go wrong without a fault
    in the program ends in one line: bad input and places that cannot be written with exit code 2,
    numbers that are not finite and too little memory with 1, Ctrl-C with 130."""
    if sys.stdout.errors in ("strict", "surrogateescape"):  # else an emoji could end a training
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        config = parse_config(config_class, description, argv)
        check_output(config, *(getattr(config, f.name) for f in dataclasses.fields(config)
                               if f.metadata.get("output")))
        main(config)
        print(end="", flush=True)  # what cannot be written is to be heard of here
    except InputError as error:
        sys.exit(fail(error, 2))
    except FloatingPointError as error:
        sys.exit(fail(f"{error}{Stage.place()}", 1))
    except KeyboardInterrupt:  # before a stage has begun; later it ends its step, see Stage
        sys.exit(fail("stopped; nothing was half written", 130))
    except OSError as error:
        _mute_standard_output()
        sys.exit(fail(f"{error.filename or 'output'}: {error.strerror or error}", 2))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        sys.exit(fail(f"out of memory: lower {_memory_flags(config_class)}{Stage.place()}", 1))


def _mute_standard_output():
    """A full disk behind `> log` would fail once more when Python flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error):
    """On a GPU torch raises a class of its own, on a CPU a RuntimeError that only says so."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or \
        any(said in str(error) for said in ("can't allocate memory", "Storage size calculation"))


def _memory_flags(config_class):
    """The settings that decide how much memory a program takes, the harmless one first."""
    names = {f.name for f in dataclasses.fields(config_class)}
    flags = [f"--{name}" for name in ("micro_tokens", "batch", "max_response", "limit", "documents")
             if name in names]
    if "micro_tokens" in names:
        flags[0] += " (it changes no number)"
    return " or ".join(flags) or "the size of the input"


def run_verbs(verbs, description, argv=None):
    """A program of several commands: `verbs` {name: (main, config class)}; the first word of the
    command line names one."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("-h", "--help"):
        print(f"{description.strip()}\n\ncommands: {', '.join(verbs)} (each with --help)")
        sys.exit(0)
    if not argv or argv[0] not in verbs:
        wrong = f"{argv[0]}: no such command" if argv else "no command"
        sys.exit(fail(f"{wrong}; expected {', '.join(verbs)} (each with --help)", 2))
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


def check_finite(numbers):
    """Raise FloatingPointError, which names it, where one of {name: number} is not finite."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise FloatingPointError(f"{name} is {number}")


def not_finite(contents, name=""):
    """The name of a tensor in nested dicts and lists that holds something not finite, or None."""
    if isinstance(contents, torch.Tensor):
        return name if contents.is_floating_point() and not contents.isfinite().all() else None
    parts = contents.items() if isinstance(contents, dict) else \
        enumerate(contents) if isinstance(contents, (list, tuple)) else ()
    return next(filter(None, (not_finite(part, f"{name}.{key}".lstrip("."))
                              for key, part in parts)), None)


def save_checkpoint(path, **contents):
    """Write `path` whole or not at all: aside, flushed to the disk, then renamed. Raises
    FloatingPointError, and writes nothing, where a tensor holds something not finite."""
    path = Path(path)
    if name := not_finite(contents):
        raise FloatingPointError(f"{path} is not written: {name} holds values that are not finite")
    place = through_links(path)
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: the checkpoint could not be written ({error}); "
                         f"what was saved before is intact") from None
    finally:
        aside.unlink(missing_ok=True)


def read_checkpoint(path):
    """What `save_checkpoint` wrote, in host memory. Raises InputError for a missing, truncated or
    altered file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")  # a small file could unpack to any size
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"its entry {damaged} is damaged")
        contents = torch.load(path, map_location="cpu", weights_only=True)
        _check_about(contents)
        return contents
    except Exception as error:  # a damaged file can fail anywhere in the zip or pickle reader
        reason = " ".join(str(error).split("\n")[0].split())[:200]
        raise InputError(f"{path}: not a whole checkpoint of this project ({reason})") from None


def _check_about(contents):
    """Raises ValueError or TypeError unless stage, tokenizer, shape and settings are there."""
    if not isinstance(contents, dict) or not isinstance(contents.get("stage"), str):
        raise ValueError("it names no stage")
    for key in ("tokenizer", "model_config", "config"):
        if not isinstance(contents.get(key), dict):
            raise ValueError(f"it has no {key}")
    if not all(isinstance(contents["tokenizer"].get(k), str) for k in ("name", "fingerprint")):
        raise ValueError("it names no tokenizer")
    if any(type(n) is not int for k, n in contents["model_config"].items() if k != "dropout"):
        raise ValueError("its model_config is none")
    GPTConfig(**contents["model_config"])


def load_checkpoint(path, stages, tokenizer=None):
    """A checkpoint of one of `stages`, made with `tokenizer` where one is given.

    Raises InputError where the file is not whole, or belongs to another stage or tokenizer.
    """
    contents = read_checkpoint(path)
    if contents["stage"] not in stages:
        raise InputError(f"{path}: a checkpoint of stage {contents['stage']!r}; expected "
                         f"{' or '.join(repr(s) for s in stages)}")
    found = contents["tokenizer"]
    if tokenizer is not None and found["fingerprint"] != tokenizer.fingerprint:
        raise InputError(f"{path}: made with tokenizer {found['name']!r} "
                         f"({found['fingerprint']}); expected {tokenizer.name!r} "
                         f"({tokenizer.fingerprint})")
    return contents


def load_model(model_class, path, stages, tokenizer, device="cpu", dropout=0.0):
    """The GPT or ScalarGPT of a checkpoint, on `device`; dropout is off unless asked for.

    Raises InputError as `load_checkpoint` does, and where the weights do not fit the shape.
    """
    contents = load_checkpoint(path, stages, tokenizer)
    config = GPTConfig(**contents["model_config"] | {"dropout": dropout})
    try:
        _check_size(config, contents.get("weights"))
        with torch.device(device), without_weights():
            model = model_class(config)
        _check_weights(model.state_dict(), contents["weights"])
        model.load_state_dict(contents["weights"])
    except ValueError as error:
        raise InputError(f"{path}: not the weights of a {model_class.__name__}: {error}") from None
    return model


def _check_size(config, weights):
    """Raises ValueError unless these are tensors with as many numbers as the model's matrices, so
    that a shape which a file made up takes no memory."""
    if not isinstance(weights, dict) or not all(isinstance(w, torch.Tensor)
                                                for w in weights.values()):
        raise ValueError("there are none")
    if config.n_layer > len(weights):
        raise ValueError(f"{len(weights)} tensors are too few for {config.n_layer} layers")
    D, found = config.d_model, sum(w.numel() for w in weights.values())
    if (config.vocab_size + config.n_ctx) * D + 12 * config.n_layer * D**2 > found:
        raise ValueError(f"{found:,} numbers are too few for its shape")


def _check_weights(expected, weights):
    """Raises ValueError where a name is in one only, the shapes of two tensors differ, or one is
    not of finite floating-point numbers."""
    for name in expected.keys() | weights.keys():
        if name not in expected or name not in weights or \
                expected[name].shape != weights[name].shape:
            raise ValueError(f"{name} is missing, extra or of another shape")
        if weights[name].layout is not torch.strided or not weights[name].is_floating_point():
            raise ValueError(f"{name} is no plain tensor of floating-point numbers")
    if name := not_finite(weights):
        raise ValueError(f"{name} holds values that are not finite")


def device_of(name, dtype="auto"):
    """The torch.device that `auto`, `cpu` or `cuda` means here, and this process made ready for it:
    forward passes compute in `dtype` (auto, float32 or bfloat16)."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu or cuda")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise InputError(f"--dtype {dtype}: expected auto, float32 or bfloat16")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; expected cpu or auto")
    set_forward_dtype(dtype)
    gpu = torch.cuda.is_available() and name != "cpu"
    if gpu:  # cuDNN's attention plans anew for each shape, and nearly every batch has its own
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        keep_freed_memory()
    return torch.device("cuda" if gpu else "cpu")


# -- one writer at a time -------------------------------------------------------------------------


def lock(out, path):
    """The open file `path`, locked until it is closed or the process ends, however that happens.
    Raises InputError where another process, which writes `out`, holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    except OSError as error:
        raise InputError(f"{path.parent}: {error.strerror}; expected a folder to write into") \
            from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(f"{out}: another run is writing it") from None
    return file


@contextlib.contextmanager
def alone(out, is_file=False):
    """Nobody else writes the folder `out`, or the file, by `alone` meanwhile. Raises InputError
    if somebody does, or if it cannot be written."""
    out = Path(out)
    path = out.with_name(f".{out.name}.lock") if is_file else out / ".lock"
    file = lock(out, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


# -- a stage as a run of steps: resume, log, save, stop -------------------------------------------


class Stage:
    """The files and the manners of one stage that writes `out` (say runs/world-0/ppo.pt):

    ppo.pt         the result, written when the stage ends
    ppo.jsonl      one line of numbers per step
    ppo.resume.pt  where to go on from, and ppo.resume-1.pt the one before; gone when it ends

    `kept`: the steps after which `keep` will be called.
    """

    running = None  # the stage of this process, for `run` to say where it stopped

    def __init__(self, stage, config, model_config, tokenizer, kept=()):
        self.out = Path(config.out)
        check_output(config, self.out)
        self.name = self.out.name.removesuffix(".pt")
        self.metrics, locked = self._beside(".jsonl"), self._beside(".lock")
        self.saved = [self._beside(".resume.pt"), self._beside(".resume-1.pt")]
        check_output(config, self.metrics, *self.saved, locked,
                     *(self._beside(f"-{step}.pt") for step in kept))
        self.about = {
            "stage": stage, "config": dataclasses.asdict(config),
            "model_config": dataclasses.asdict(model_config),
            "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}}
        self.neutral = {f.name for f in dataclasses.fields(config) if f.metadata.get("neutral")}
        self.stop_signal, self.first_step, self.step, self.saved_step = None, 0, 0, 0
        self.started = self.last_step = time.time()
        self.lock = lock(self.out, locked)
        self._remove_what_a_kill_left()
        Stage.running = self
        if self.out.exists():
            print(f"{self.out} is there; it will be replaced when this run ends", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _beside(self, end):
        """ppo.pt, ".jsonl" -> ppo.jsonl; of another name nothing is cut off, as in kl0.02.jsonl."""
        return self.out.with_name(self.name + end)

    def _remove_what_a_kill_left(self):
        """Half a checkpoint, each time that a run was killed while it wrote one."""
        for path in map(through_links, (self.out, *self.saved)):
            for half in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*"):
                half.unlink(missing_ok=True)

    @classmethod
    def place(cls):
        """Where the running stage is and what it can go on from, to follow an error."""
        if cls.running is None:
            return ""
        self, place = cls.running, f"; in step {cls.running.step + 1} of {cls.running.out}"
        if not self.saved_step:
            return place + "; nothing was saved before"
        good = next(path for path in self.saved if path.exists())
        return place + f"; the last good checkpoint is {good}, after step {self.saved_step}"

    def _on_signal(self, number, frame):
        self.stop_signal = number  # the step in progress ends first; see `after_step`
        if number == signal.SIGINT:  # the next one kills, which leaves the last saved state whole
            signal.signal(number, signal.SIG_DFL)
            os.write(2, f"{self.name}: finishing this step, then saving "  # print may be what
                        f"(again: stop at once)\n".encode())                    # was interrupted

    def resume(self, objects, steps):
        """Restore `objects` {name: anything with load_state_dict} from the newest whole resume
        checkpoint of the same settings. Returns how many of the `steps` are already done."""
        for path in self.saved:
            if not path.exists():
                continue
            try:
                state = read_checkpoint(path)
            except InputError as error:
                print(f"{error}; trying the one before it", flush=True)
                continue
            if self._decisive(state) != self._decisive(self.about):
                raise InputError(f"{path}: left by a run with other settings; remove it or give "
                                 f"the same ones")
            try:
                if type(state["step"]) is not int or not 0 < state["step"] <= steps:
                    raise ValueError(f"it was left in step {state['step']!r} of {steps}")
                for name, thing in objects.items():
                    thing.load_state_dict(state["objects"][name])
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise InputError(f"{path}: does not fit this run ({error}); remove it") from None
            os.replace(path, self.saved[0])  # so that the next save keeps it, not a damaged one
            self.first_step = self.saved_step = state["step"]
            print(f"going on after step {self.first_step} of {path}", flush=True)
            break
        self._keep_metrics_before(self.first_step)
        self.started = self.last_step = time.time()
        return self.first_step

    def _decisive(self, about):
        """What two runs must have in common for one to go on where the other stopped."""
        config = {k: v for k, v in about["config"].items() if k not in self.neutral}
        return {key: about[key] for key in self.about} | {"config": config}

    def _keep_metrics_before(self, step):
        """A metrics file's lines before `step`; what a crash garbled is left out."""
        lines = []
        if step and self.metrics.exists():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the rest is later still
                for line in self.metrics.read_text(errors="replace").splitlines(keepends=True):
                    if line.endswith("\n") and json.loads(line)["step"] < step:
                        lines.append(line)
        with self._writing_metrics():
            place = through_links(self.metrics)
            aside = place.with_name(f".{place.name}.partial")
            aside.write_text("".join(lines))
            os.replace(aside, place)

    @contextlib.contextmanager
    def _writing_metrics(self):
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.metrics}: {error.strerror or error}; what was saved before is "
                             f"intact") from None

    def seed_step(self, step, seed):
        """Make all randomness of a step (dropout, samples, shuffles) a function of seed and step,
        so that a run that goes on draws what the undisturbed one would have drawn."""
        self.step = step
        digest = hashlib.sha256(f"{self.about['stage']} {seed} {step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))

    def log(self, step, steps, numbers, tokens, shown, printed=True):
        """One printed line of the numbers named in `shown`, unless `printed` is False, and all of
        them as one line of JSON. Raises FloatingPointError where one is not finite."""
        check_finite(numbers)
        now = time.time()
        speed, self.last_step = tokens / (now - self.last_step), now
        left = (now - self.started) / (step + 1 - self.first_step) * (steps - step - 1)
        text = "  ".join(f"{name} {_short(numbers[name])}" for name in shown)
        if printed:
            print(f"{self.name} {step + 1}/{steps}  {text}  {speed:,.0f} tokens/s  "
                  f"{_clock(left)} left", flush=True)
        self.note(step, **numbers, tokens_per_s=round(speed, 1))

    def note(self, step, **record):
        """One line of JSON in the metrics file."""
        with self._writing_metrics(), open(self.metrics, "a") as file:
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
        self.saved_step = step + 1
        if self.stop_signal is not None:
            print(f"stopped after step {step + 1}; the same command goes on from there",
                  file=sys.stderr)
            sys.exit(128 + self.stop_signal)

    def keep(self, weights, step):
        """Write the model as it is after `step` steps beside the result: ppo-10.pt."""
        self._save_model(self._beside(f"-{step}.pt"), weights, step=step)

    def _save_model(self, path, weights, **more):
        """From host memory, so that what a GPU made opens where there is none."""
        save_checkpoint(path, **self.about, **more,
                        weights={name: weight.cpu() for name, weight in weights.items()})

    def finish(self, weights, step, **more):
        """Write the result and remove what was only there to resume."""
        self._save_model(self.out, weights, step=step, **more)
        for path in self.saved:
            path.unlink(missing_ok=True)
        self._beside(".lock").unlink(missing_ok=True)
        self.lock.close()
        Stage.running = None
        print(f"wrote {self.out}", flush=True)


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
