"""How fast this is: the production code on random weights, alone or in turns with others.

    python tests/bench.py ppo        one PPO iteration: ppo.roll_out and ppo.update
    python tests/bench.py rollout    model.generate
    python tests/bench.py train      one step of sft.py, on rows of --prompt + --response tokens
    python tests/bench.py reward     one step of reward.py, --completions to each prompt
    python tests/bench.py cost       tables of time and memory against batch, length and size

The last line is one JSON object: the median seconds of an iteration after the warm-up, tokens a
second (responses' in ppo and rollout), what the first iteration took longer (where torch.compile
is on: its cost), and the settings.

`--peer` runs the peer of tests/peers.py on the same work in turn with ours, an iteration each, and
adds the ratio of the two medians. `--profile` says where the time of an iteration goes, and what
share that is of the matrix products a second and of the memory bandwidth measured just before. For
that the parts run one after another; the line after the table says how long they take as they are,
side by side.
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import machine as cores  # noqa: E402 (its name is a function's here)
import model as models  # noqa: E402
import ppo  # noqa: E402
import reward  # noqa: E402
import sft  # noqa: E402
from machine import compile_decoder  # noqa: E402
from model import GPT, GPTConfig, ScalarGPT, adam, generate  # noqa: E402
from peers import Turns, response_lengths  # noqa: E402


@dataclass(frozen=True)
class Bench:
    vocab: int = 512
    n_layer: int = 4
    d_model: int = 128
    n_head: int = 4
    n_ctx: int = 0  # 0: prompt + response
    batch: int = 64
    prompt: int = 16  # tokens of each
    response: int = 32  # and at most of each response
    minibatches: int = 8
    completions: int = 9  # of a prompt, in the reward batch
    ptx: int = 0  # pretraining sequences an episode; TRL has none
    iters: int = 5
    warmup: int = 2
    eos: bool = False  # responses end at an end-of-text token, 1 in vocab; else at full length
    device: str = "auto"
    dtype: str = "auto"  # of forward passes: float32, bfloat16, or what production chooses
    compile: str = "auto"
    micro_tokens: int = 0  # 0: the stages' own
    recompute: bool = False
    plain: bool = False  # the reward batch without sharing its prompts' passes
    whole: bool = False  # a small model's batch in one piece, whose products all cores share
    threads: int = 0  # 0: torch's own
    seed: int = 0
    peer: bool = False
    peer_python: str = ""  # of the environment that tests/peer_env.sh makes
    peer_eager: bool = False  # the plain training loop without torch.compile
    profile: bool = False
    worker: bool = False  # wait for turns on standard input

    def __post_init__(self):
        fill = {"n_ctx": self.n_ctx or self.prompt + self.response,
                "device": sft.device_of(self.device, self.dtype).type,
                "threads": self.threads or torch.get_num_threads()}
        low = models.low_precision(torch.device(fill["device"]))
        fill["dtype"] = {"auto": "bfloat16" if low else "float32"}.get(self.dtype, self.dtype)
        for name, value in fill.items():
            object.__setattr__(self, name, value)

    @property
    def eos_token(self):
        return self.vocab - 1

    @property
    def shape(self):
        return GPTConfig(self.vocab, self.n_ctx, self.n_layer, self.n_head, self.d_model)


def parse(argv):
    """(verb, Bench) of a command line; booleans may stand alone: `--eos` is `--eos true`."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=(*WORK, "cost", "measure"))
    for field in dataclasses.fields(Bench):
        bare = {"nargs": "?", "const": True} if field.type is bool else {}
        kind = (lambda text: text.lower() == "true") if field.type is bool else field.type
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, **bare)
    values = vars(parser.parse_args(argv))
    return values.pop("verb"), Bench(**values)


# -- the work: each returns step(), which does one iteration and returns its tokens ----------------


def random_prompts(b):
    return torch.randint(b.eos_token, (b.batch, b.prompt)).tolist()


def settings_of(b, config_class, **more):
    """A stage's config with its own defaults, and what the bench sets."""
    if b.micro_tokens:
        more["micro_tokens"] = b.micro_tokens
    return config_class(**{"out": "", "compile": b.compile} | more)


def new_model(kind, b):
    with torch.device(b.device):  # a GPU makes a billion random weights in no time
        model = kind(b.shape)
    model.decoder.recompute = b.recompute
    return model


def ppo_work(b):
    config = settings_of(b, ppo.PPOConfig, policy="", reward="", prompts="", text="-",
                         batch=b.batch, minibatch=b.batch // b.minibatches,
                         max_response=b.response, ptx_per_episode=b.ptx,
                         ptx_coef=27.8 if b.ptx else 0.0, ptx_tokens=b.prompt + b.response)
    policy, value_model, reward_model = (new_model(kind, b) for kind in (GPT, ScalarGPT, ScalarGPT))
    reference, average = copy.deepcopy(policy), copy.deepcopy(policy)
    for frozen in (reference, reward_model, average):
        frozen.requires_grad_(False)
    for model in (policy, value_model, reference, reward_model):
        compile_decoder(model, config.compile, torch.device(b.device))
    state = ppo.State(policy, average, value_model, adam(policy, 1e-6), adam(value_model, 1e-6))

    def text(number):
        return torch.randint(b.vocab, (config.minibatch * b.ptx, config.ptx_tokens),
                             device=b.device)

    def step():
        rollout = ppo.roll_out(policy, reference, reward_model, value_model, random_prompts(b),
                               b.eos_token if b.eos else None, config)
        ppo.update(state, rollout, text, config, 1e-6, first=True)
        return rollout.mask_BR.sum()
    return step


def rollout_work(b):
    model = new_model(GPT, b)

    def step():
        with models.compute_dtype(torch.device(b.device)):
            samples = generate(model, random_prompts(b), b.response,
                               eos=b.eos_token if b.eos else None)
        return samples.mask_BR.sum()
    return step


def train_work(b):
    config = settings_of(b, sft.SFTConfig, model="mini", text="-")
    model = new_model(GPT, b)
    compile_decoder(model, config.compile, torch.device(b.device))
    optimizer = adam(model, 1e-4)

    def step():
        tokens_BT = torch.randint(b.vocab, (b.batch, b.prompt + b.response))
        sft.lm_gradient(model, tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool), 1.0,
                        config.micro_tokens)
        sft.step_optimizer(model, optimizer, 1e-4, config.max_grad_norm)
        return tokens_BT.numel()
    return step


def reward_work(b):
    config = settings_of(b, reward.RewardConfig, init="", comparisons="")
    if b.plain:
        reward.score_branches = reward.score_rows
    model = new_model(ScalarGPT, b)
    compile_decoder(model, config.compile, torch.device(b.device))
    optimizer = adam(model, 1e-5)

    def step():
        rankings = []
        for prompt in random_prompts(b):
            answers = torch.randint(b.vocab, (b.completions, b.response)).tolist()
            rankings.append(reward.Ranking([prompt + y for y in answers],
                                           tuple(range(b.completions)), ""))
        reward.train_step(model, optimizer, rankings, 1e-5, config)
        return b.batch * b.completions * (b.prompt + b.response)
    return step


WORK = {"ppo": ppo_work, "rollout": rollout_work, "train": train_work, "reward": reward_work}


def prepare(verb, b):
    """step() of the verb's work, with the settings that belong to the process."""
    torch.set_num_threads(b.threads)
    torch.manual_seed(b.seed)
    models.set_forward_dtype(b.dtype)
    if b.whole:
        cores.SHARED_BELOW = 0
    step = WORK[verb](b)
    return with_ends(step, b) if b.eos else step


def with_ends(step, b):
    """step() in which `generate` ends responses where `response_lengths` says, ours and the peer's
    alike: the uniform number of that step and row is 2, for which `draw` gives the end of text,
    which it gives for no other."""
    lengths, empty_samples, draw = response_lengths(b), models.empty_samples, models.draw

    def marked(*args):
        samples, uniform_RB = empty_samples(*args)
        lens_B = next(lengths).to(uniform_RB.device)
        return samples, uniform_RB.scatter(0, lens_B[None] - 1, 2.0)

    def draw_or_end(logprobs_bV, uniform_b):
        token_b = draw(logprobs_bV, uniform_b.clamp(max=1.0))
        token_b = torch.where(token_b == b.eos_token, b.eos_token - 1, token_b)
        return torch.where(uniform_b > 1.0, b.eos_token, token_b)

    def ended():
        with patch.multiple(models, empty_samples=marked, draw=draw_or_end):
            return step()
    return ended


# -- measuring ------------------------------------------------------------------------------------


def timed(step, device):
    """(seconds, tokens) of one iteration."""
    start = time.perf_counter()
    tokens = int(step())
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, tokens


def summary(verb, b, turns, **more):
    """The JSON object: `turns` are (seconds, tokens) of every iteration, warm-up included."""
    seconds = [s for s, _ in turns[b.warmup:]]
    median = statistics.median(seconds)
    return {"verb": verb, "s_per_iter": round(median, 5),
            "tokens_per_s": round(sum(t for _, t in turns[b.warmup:]) / sum(seconds), 1),
            "first_iter_extra_s": round(turns[0][0] - median, 3),
            "iters_s": [round(s, 4) for s in seconds], **more,
            "settings": dataclasses.asdict(b)}


def alone(verb, b):
    step = prepare(verb, b)
    return summary(verb, b, [timed(step, b.device) for _ in range(b.warmup + b.iters)])


class Worker:
    """A process that does one iteration when it is asked to."""

    def __init__(self, command, errors):
        self.command, self.errors = " ".join(command[:3]), pathlib.Path(errors)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=open(errors, "w"), text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.command} failed:\n{self.errors.read_text()[-3000:]}")
        return line

    def turn(self):
        print(file=self.process.stdin, flush=True)
        seconds, tokens = self.answer().split()
        return float(seconds), int(tokens)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def beside_peer(verb, b):
    """Ours and the peer's, an iteration each in turn."""
    if verb not in ("ppo", "rollout", "train"):
        sys.exit(f"{verb} has no peer: expected ppo, rollout or train")
    python = b.peer_python or subprocess.run(
        [str(HERE / "peer_env.sh")], check=True, text=True, stdout=subprocess.PIPE
    ).stdout.split()[-1]
    flags = [f"--{k}={v}" for k, v in dataclasses.asdict(b).items() if k not in ("peer", "worker")]
    with tempfile.TemporaryDirectory() as scratch:
        peer_settings = dataclasses.asdict(b) | {"eos_token": b.eos_token, "scratch": scratch}
        ours = Worker([sys.executable, str(HERE / "bench.py"), verb, *flags, "--worker"],
                      f"{scratch}/ours.txt")
        peer = Worker([python, str(HERE / "peers.py"), verb, json.dumps(peer_settings)],
                      f"{scratch}/peer.txt")
        turns = [(ours.turn(), peer.turn()) for _ in range(b.warmup + b.iters)]
        ours.end()
        peer.end()
    mine, theirs = (summary(verb, b, list(t)) for t in zip(*turns))
    return mine | {"peer_s_per_iter": theirs["s_per_iter"],
                   "peer_tokens_per_s": theirs["tokens_per_s"],
                   "peer_iters_s": theirs["iters_s"],
                   "ratio": round(theirs["s_per_iter"] / mine["s_per_iter"], 3),
                   "settings": mine["settings"]}


# -- where the time goes --------------------------------------------------------------------------


def best_seconds(work, device, repeats=5):
    work()
    return min(timed(lambda: work() is None, device)[0] for _ in range(repeats))


def machine(device, dtype):
    """(floating-point operations a second of a matrix product, bytes a second read from memory)."""
    n = 8192 if device == "cuda" else 1536
    a = torch.randn(n, n, device=device).to(dtype)  # a GPU multiplies ones faster
    out = torch.empty_like(a)
    rate = 2 * n**3 / best_seconds(lambda: torch.mm(a, a, out=out), device)
    x = torch.ones(2**30 if device == "cuda" else 2**26, device=device)
    return rate, x.nbytes / best_seconds(lambda: x.sum(), device)


@contextmanager
def clocks(device, spent):
    """Adds to spent[part] what the parts of an iteration take, each the time in no part within."""
    stack, undo = [], []

    def enclose(owner, name, part_of):
        original = getattr(owner, name)

        def enclosed(*args, **more):
            stack.append([part_of(*args, **more), 0.0])
            seconds, result = time.perf_counter(), original(*args, **more)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - seconds
            part, within = stack.pop()
            spent[part] += seconds - within
            if stack:
                stack[-1][1] += seconds
            return result
        undo.append((owner, name, original))
        setattr(owner, name, enclosed)

    for owner, name, part in (
            (ppo, "generate", "sampling"), (ppo, "policy_gradient", "policy update"),
            (ppo, "value_gradient", "value update"), (ppo, "ptx_gradient", "ptx"),
            (ppo, "step_optimizer", "optimizer"), (ppo, "update_ema", "average"),
            (ScalarGPT, "scores", "rewards"), (sft, "lm_gradient", "forward, backward"),
            (sft, "step_optimizer", "optimizer"), (reward, "step_optimizer", "optimizer"),
            (ppo, "gae", "advantages"), (reward, "ranking_loss", "loss")):
        enclose(owner, name, lambda *args, part=part, **more: part)

    # one after another, so that each has a time of its own
    for owner in ppo, cores:
        undo.append((owner, "side_by_side", owner.side_by_side))
        owner.side_by_side = lambda tasks, device: [task() for task in tasks]

    def inside(outer, own):
        return lambda *args, **more: stack[-1][0] if stack and stack[-1][0] == outer else own
    enclose(ppo, "response_logprobs", inside("policy update", "reference"))
    enclose(ppo, "response_values", inside("value update", "values"))
    try:
        yield
    finally:
        for owner, name, original in reversed(undo):
            setattr(owner, name, original)


def flops_by_part(step):
    """{part: floating-point operations} of one iteration's matrix products and attention, and of
    "all" of it."""
    from torch.utils.flop_counter import FlopCounterMode
    counter, spent, before = FlopCounterMode(display=False), defaultdict(float), {}

    class Counted(defaultdict):
        """Reads the counter where `clocks` would read the time."""
    real = time.perf_counter
    time.perf_counter = lambda: float(counter.get_total_flops())
    try:
        with counter, clocks("cpu", spent), patch.object(  # all of it here, none by helpers
                cores, "SHARED_BELOW", 0), patch.object(  # nor by kernels that are not counted
                cores, "PACKED_FROM", math.inf), patch.object(
                models.Replayed, "__call__", lambda replayed, x, key: replayed.step(x)):
            step()
    finally:
        time.perf_counter = real
    return spent | {"all": counter.get_total_flops()}


def decode_bytes(b, lens):
    """Bytes that sampling responses of these lengths must read: the weights for every step of the
    longest, and the keys and values of every row that is still running."""
    width = 2 if b.dtype == "bfloat16" else 4
    with torch.device("meta"):
        weights = sum(p.numel() for p in GPT(b.shape).parameters()) * width
    cache = sum(2 * b.n_layer * b.d_model * width * (b.prompt + i) for n in lens for i in range(n))
    return weights * max(lens) + cache


def needed_flops(b):
    """Of a step of `train`: 6 a weight and token (Kaplan et al. 2020), and attention to what is not
    in the future. torch counts logits that are computed twice, too, and attention to the future on
    a GPU, none on a CPU."""
    T = b.prompt + b.response
    weights = 12 * b.n_layer * b.d_model**2 + b.vocab * b.d_model
    return 6 * b.batch * T * (weights + b.n_layer * T * b.d_model)


def profile(verb, b):
    rate, bandwidth = machine(b.device, getattr(torch, b.dtype))
    print(f"matrix products {rate / 1e9:,.0f} GFLOP/s, memory {bandwidth / 1e9:,.1f} GB/s")
    step = prepare(verb, b)
    for _ in range(b.warmup):
        step()
    together = statistics.median(timed(step, b.device)[0] for _ in range(b.iters))
    spent, total = defaultdict(float), 0.0
    with clocks(b.device, spent):
        for _ in range(b.iters):
            total += timed(step, b.device)[0]
    operations = flops_by_part(step)  # last: what counts them leaves compiled code uncompiled
    if verb != "ppo":
        spent["all"] = total
    spent["rest"] = total - sum(s for part, s in spent.items() if part != "all")
    print(f"{'part':<20}{'s':>9}{'share':>8}{'GFLOP':>10}{'GFLOP/s':>9}{'of rate':>9}")
    for part, seconds in sorted(spent.items(), key=lambda x: -x[1]):
        seconds, flops = seconds / b.iters, operations.get(part, 0)
        print(f"{part:<20}{seconds:>9.4f}{seconds * b.iters / total:>8.1%}{flops / 1e9:>10.2f}"
              f"{flops / seconds / 1e9:>9.1f}{flops / seconds / rate:>9.1%}")
    flops = operations["all"]
    if verb == "rollout" or verb == "ppo":
        read = decode_bytes(b, next(response_lengths(b)).tolist())
        seconds = (spent["sampling"] if verb == "ppo" else total) / b.iters
        print(f"sampling reads {read / 1e9:.2f} GB at least: {read / seconds / 1e9:.1f} GB/s, "
              f"{read / seconds / bandwidth:.0%} of the bandwidth")
    print(f"parts one after another {total / b.iters:.4f} s; as it runs, {together:.4f} s at "
          f"{flops / together / rate:.0%} of the matrix rate")
    more = {}
    if verb == "train":
        needed = needed_flops(b)
        more = {"needed_gflop": round(needed / 1e9, 6),
                "needed_share_of_matrix_rate": round(needed / together / rate, 3)}
        print(f"a step needs {needed / 1e9:.2f} GFLOP: {needed / together / rate:.0%} of the "
              f"matrix rate")
    return {"matrix_gflops": round(rate / 1e9, 1), "memory_gb_s": round(bandwidth / 1e9, 1),
            "s_per_iter": round(together, 4), "gflop": round(flops / 1e9, 6),
            "share_of_matrix_rate": round(flops / together / rate, 3), **more,
            "parts_s": {part: round(s / b.iters, 4) for part, s in spent.items()},
            "settings": dataclasses.asdict(b)}


# -- how the cost grows ---------------------------------------------------------------------------


def peak_bytes(device):
    """The most memory this process has held so far, and what its helpers hold for themselves (who
    keep what they have freed)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    helpers = [pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
               for listed in pathlib.Path("/proc/self/task").glob("*/children")
               for pid in listed.read_text().split()]
    theirs = sum(int(line.split()[1]) for lines in helpers for line in lines
                 if line.startswith("Private_"))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + theirs) * 1024


def one_cost(b):
    """(seconds, peak bytes beyond the process's own) of a PPO iteration, in a fresh process."""
    flags = [f"--{k}={v}" for k, v in dataclasses.asdict(b).items()]
    done = subprocess.run([sys.executable, str(HERE / "bench.py"), "measure", *flags], check=True,
                          text=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["s_per_iter"], found["peak_bytes"]


def measure(b):
    torch.ones(256, 256) @ torch.ones(256, 256)  # what libraries take for themselves
    before = peak_bytes(b.device)
    step = prepare("ppo", b)
    found = summary("ppo", b, [timed(step, b.device) for _ in range(b.warmup + b.iters)])
    return found | {"peak_bytes": peak_bytes(b.device) - before}  # while there are helpers


def cost(b):
    """Tables of time and memory of a PPO iteration against batch, response length and size."""
    rows = {"batch": [dataclasses.replace(b, batch=n) for n in (32, 64, 128, 256)],
            "response": [dataclasses.replace(b, response=n, n_ctx=b.prompt + 256)
                         for n in (32, 64, 128, 256)],
            "d_model": [dataclasses.replace(b, d_model=n, n_head=n // 32)
                        for n in (128, 256, 512)]}
    found = {}
    for name, settings in rows.items():
        print(f"\n| {name} | s per iteration | peak, MB |\n|---|---|---|")
        sizes, costs = [getattr(s, name) for s in settings], []
        for size, setting in zip(sizes, settings):
            costs.append(one_cost(setting))
            print(f"| {size} | {costs[-1][0]:.3f} | {costs[-1][1] / 1e6:.0f} |", flush=True)
        exponents = [slope(sizes, column) for column in zip(*costs)]
        print(f"| exponent | {exponents[0]:.2f} | {exponents[1]:.2f} |")
        found[name] = {"sizes": sizes, "costs": costs, "exponents": exponents}
    return found


def slope(x, y):
    """Of the least-squares line through the logarithms."""
    x, y = ([math.log(v) for v in values] for values in (x, y))
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return (sum((a - mean_x) * (c - mean_y) for a, c in zip(x, y))
            / sum((a - mean_x) ** 2 for a in x))


def main(argv=None):
    verb, b = parse(argv)
    if verb in ("cost", "measure"):
        print(json.dumps(cost(b) if verb == "cost" else measure(b)))
        return
    if b.worker:
        turns = Turns()
        turns.serve(prepare(verb, b))
    result = profile(verb, b) if b.profile else (beside_peer if b.peer else alone)(verb, b)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
