"""Talk to a run: its models' answers side by side, as they are sampled, with reward-model scores.

    ./run.sh ask "What can you tell me about Ada?"      one question
    ./run.sh ask                                        a chat: a question a line, Ctrl-D ends it
    ./run.sh ask "..." --run runs/world-0 --models sft ppo_ptx --temperature 0.7 --seed 3

Each question stands alone, as in training: no model sees what was asked before. All models draw by
the same random numbers, which --seed and the number of the question decide. On a terminal the
answers grow in columns, or below one another where it is narrow; elsewhere they are printed whole.
"""

import contextlib
import math
import os
import sys
import termios
from dataclasses import dataclass
from typing import NamedTuple

import torch

from common import InputError, device_of, fail, load_model, read_checkpoint, run, setting
from data.batching import seeded_generator
from data.readers import HH_TURN
from data.runs import MODELS, checkpoints, in_turns
from data.terminal import Screen, plain, visible
from data.tokenizer import load_tokenizer
from model import GPT, ScalarGPT, compute_dtype, sample_steps

# -- the models -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskConfig:
    words: tuple = setting((), "the question; without one, a chat", positional=True)
    run: str = setting("", "folder of a run; the newest in runs/ that is complete")
    models: tuple = setting(MODELS, "checkpoints of the run, in this order")
    temperature: float = setting(1.0, "of sampling, 0 = the likeliest token; paper 1, App. C.4")
    max_response: int = setting(0, "response tokens, 0 = as many as the run trained with")
    seed: int = setting(0, "of the samples")
    tokenizer: str = setting("", "where the tokenizer lies now, if not where the run found it")
    device: str = setting("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: expected 0 or more")
        if self.max_response < 0:
            raise InputError(f"--max_response {self.max_response}: expected 1 or more")
        if not self.models:
            raise InputError("--models: expected one or more checkpoints of the run, as sft")


class Answer(NamedTuple):
    """What a model has said so far."""

    name: str
    text: str = ""
    ended: bool = False
    note: str = ""          # why it ended, if not by itself
    score: float = None     # the reward model's, once it has ended


class Models:
    """The models of a run, loaded once."""

    def __init__(self, config):
        paths = checkpoints(config.run, config.models)
        self.folder, self.config = next(iter(paths.values())).parent, config
        known = read_checkpoint(paths[config.models[-1]])
        self.device = device_of(config.device, config.dtype)
        self.tokenizer = load_tokenizer(config.tokenizer or known["tokenizer"]["name"])
        self.policies = {name: load_model(GPT, path, ("base", "sft", "ppo"), self.tokenizer,
                                          self.device).eval() for name, path in paths.items()}
        reward = self.folder / "reward.pt"
        self.reward_model = load_model(ScalarGPT, reward, ("reward",), self.tokenizer,
                                       self.device).eval() if reward.exists() else None
        n_ctx = min(m.config.n_ctx for m in (*self.policies.values(), self.reward_model) if m)
        self.max_response = config.max_response or \
            min(known["config"].get("max_response", 1024), n_ctx // 2)
        self.max_prompt = n_ctx - self.max_response
        if self.max_prompt < 1:
            raise InputError(f"--max_response {config.max_response}: expected fewer than the "
                             f"{n_ctx} tokens of the context")
        self.in_turns = in_turns(self.folder)

    def encode(self, question):
        """Tokens of a question as the run's prompts are. Raises InputError where it is too long."""
        ids = self.tokenizer.encode_prompt(
            f"\n\nHuman: {question}{HH_TURN}" if self.in_turns else question)
        if len(ids) > self.max_prompt:
            raise InputError(f"the question has {len(ids)} tokens; expected at most "
                             f"{self.max_prompt}, which leave room for {self.max_response} of an "
                             f"answer")
        return ids

    def answers(self, question, number=0):
        """Yields a list of Answers, one a model, each time that all have grown by a token."""
        ids, config = self.encode(question), self.config
        steps = {name: sample_steps(model, [ids], self.max_response, config.temperature,
                                    self.tokenizer.eos,
                                    seeded_generator("ask", config.seed, number))
                 for name, model in self.policies.items()}
        answers, last = {name: Answer(name) for name in steps}, {}
        while steps:
            for name in list(steps):
                with compute_dtype(self.device):    # its state must not outlive the step
                    samples = next(steps[name], None)
                if samples is None:
                    del steps[name]
                last[name] = samples or last[name]
                answers[name] = self.said(name, last[name], ended=samples is None)
            yield list(answers.values())

    @torch.no_grad()
    def said(self, name, samples, ended):
        """The Answer that the samples of one prompt hold."""
        start, end = samples.prompt_lens_B.item(), samples.lens_B.item()
        ids = samples.tokens_BT[0, start:end].tolist()
        text = self.tokenizer.decode_response(ids)
        if not ended:   # the rest of a character that is begun may come with the next token
            return Answer(name, text.rstrip("\ufffd"))
        note = "" if ids[-1] == self.tokenizer.eos else f"[cut off at {len(ids)} tokens]"
        if self.reward_model is None:
            return Answer(name, text, True, note)
        with compute_dtype(self.device):
            score_1 = self.reward_model.scores(samples.tokens_BT[:, :end], samples.lens_B)
        return Answer(name, text, True, note, score_1.item())


# -- the command ----------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet():
    """No cursor and no echo of keys while the page is drawn: either would move what is drawn."""
    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    sys.stdout.write("\x1b[?25l")
    try:
        if before:
            without = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, without)
        yield
    finally:
        sys.stdout.write("\x1b[?25h")
        sys.stdout.flush()
        if before:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def show(models, question, number, terminal):
    """Print the answers to a question. Ctrl-C stops them: True where it came."""
    answers, stopped, screen = [], False, Screen()
    with quiet() if terminal else contextlib.nullcontext():
        try:
            for answers in models.answers(question, number):
                if terminal:
                    screen.draw(answers)
        except KeyboardInterrupt:
            stopped = True
            answers = [a if a.ended else a._replace(note="[stopped]") for a in answers]
        if terminal:
            screen.draw(answers, whole=True)
        else:
            print(plain(answers), flush=True)
    return stopped


def chat(models, terminal):
    """Answer each line of the standard input until it ends."""
    typed = terminal and sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401: gives `input` its editing and its history
        print(f"{models.folder}: a question a line, of at most {models.max_prompt} tokens; "
              f"answers of at most {models.max_response}. Ctrl-D ends it.")
    number = 0
    while True:
        try:
            question = input("> " if typed else "").strip()
        except EOFError:
            return print() if typed else None
        if not question:
            continue
        if not typed:
            print(f"> {visible(question)}")
        try:
            show(models, question, number, terminal)
            number += 1
        except InputError as error:
            fail(error, 2)


def main(config):
    """Answer the question of the command line, or many."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    question = " ".join(config.words).strip()
    try:
        if config.words and not question:
            raise InputError("the question is empty; expected some words, or none for a chat")
        models = Models(config)
        if not question:
            chat(models, terminal)
        elif show(models, question, 0, terminal):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        print()
        sys.exit(130)
    except BrokenPipeError:     # the reader has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout):  # one column for what the terminal cannot show
        stream.reconfigure(errors="replace")
    run(main, AskConfig, __doc__)
