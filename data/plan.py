"""How a real run is set: what fits the GPU, what it needs, and what it costs.

    python -m data.plan settings --model gpt2-medium --memory 24     what fits, and what it needs
    python -m data.plan table              every size of GPT-2 on a GPU of 24 GB and of 80 GB
    python -m data.plan paper              the paper's own models on one GPU of 141 GB

PPO needs the most memory of all stages (§3.5, App. C.4). With P parameters in the policy, Q in the
reward model and as many in the value function, weights in fp32 and bf16 compute:

    policy          16 P    weights, gradients and Adam's two moments, 4 bytes each
    its average, and π_sft          8 P
    value function  16 Q    as the policy
    reward model    4 Q
    bf16 copies     2 P + 2 Q       of the weights in training, made by autocast
    and the larger of
      an update     38 D bytes a layer and token of a micro-batch, for the backward pass, and the
                    logits of some of its tokens
      sampling      keys and values of every layer, row and position; half of them again while rows
                    that ended are left out; and one row of the vocabulary per response

The settings take the paper's values where they fit. Where they do not, fewer tokens go through in a
pass; then activations are computed again and frozen models rest in host memory (neither changes a
number); then fewer prompts make an iteration; then the reward model is smaller than the policy: the
paper itself uses one reward model for policies of every size.

Learning rates are those that the paper gives for 1.3B, times what GPT-3's own rates (its Table 2.1)
are to that of 1.3B: smaller models take larger steps.
"""

import itertools
import math
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from common import InputError, run_verbs, setting
from data.weights import read_config
from model import CONFIGS, GPT, GPTConfig, logits_at_once

GB = 1e9
SIZES = ("gpt2-xl", "gpt2-large", "gpt2-medium", "gpt2", "distilgpt2")
OVERHEAD = 1.5 * GB  # CUDA's context, workspaces of matrix products, gaps between blocks
USABLE = 0.95  # of a GPU's memory; the rest is lost to fragments

# -- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What the memory depends on."""

    policy: GPTConfig
    reward: GPTConfig
    batch: int = 512
    micro_tokens: int = 16384
    max_prompt: int = 384  # 95 % of HH-RLHF's prompts and answers fit these two
    max_response: int = 192
    answers: int = 600  # test prompts that every model answers at the end
    saving: bool = False  # activations computed again; frozen models rest in host memory
    memory: float = 0.0  # of the GPU, in bytes; it decides how many logits are held at once

    @property
    def positions(self):
        return self.max_prompt + self.max_response


@cache
def parameters(shape):
    """How many there are, counted on a model without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(shape).parameters())


def activation_bytes(shape, tokens):
    """What the backward pass of `tokens` tokens keeps. A token and layer, in units of d_model:
    both residual streams and LayerNorm inputs in fp32 (8), in bf16 the inputs of the four products
    (2 + 2 + 2 + 8), queries, keys and values (6), what GELU takes (8), two dropout masks (2)."""
    return 38 * shape.d_model * shape.n_layer * tokens


def logits_bytes(shape, tokens, memory):
    """Logits that are held at once: in bf16 and fp32, their log-softmax, and gradients of these."""
    return 20 * min(logits_at_once(memory), tokens * shape.vocab_size)


def cache_bytes(shape, rows, positions):
    """Keys and values while sampling, in bf16, as model.KVCache lays them out."""
    return 2 * 2 * shape.n_layer * shape.d_model * rows * positions


def sampling_bytes(shape, rows, positions):
    """The cache and, when at most 3/4 of the rows are left, a copy of the keys that go on; and a
    row's distribution in fp64 for drawing (three times), in fp32 and bf16."""
    return cache_bytes(shape, rows, positions) * 11 // 8 + 30 * rows * shape.vocab_size


def ppo_memory(plan):
    """{what: bytes} of a PPO iteration, and under "total" the most that is there at once."""
    if plan.saving:
        need = phases(plan.policy, plan.reward, plan.positions, savings_of(plan), plan.memory)
        return need | {"total": max(need.values())}
    P, Q = parameters(plan.policy), parameters(plan.reward)
    larger = plan.policy if P >= Q else plan.reward
    fixed = {"policy": 16 * P, "average, reference": 8 * P, "value function": 16 * Q,
             "reward model": 4 * Q, "bf16 copies": 2 * (P + Q), "overhead": OVERHEAD}
    update = (activation_bytes(larger, plan.micro_tokens)
              + logits_bytes(larger, plan.micro_tokens, plan.memory))
    sampling = sampling_bytes(plan.policy, plan.batch, plan.positions)
    return fixed | {"update": update, "sampling": sampling,
                    "total": sum(fixed.values()) + max(update, sampling)}


@dataclass(frozen=True)
class Savings:
    """The flags of ppo.py that trade time for memory; none changes a number."""

    micro_tokens: int = 16384
    recompute: bool = False
    offload: bool = False
    sample_rows: int = 512

    def flags(self):
        return (f"--micro_tokens {self.micro_tokens} --sample_rows {self.sample_rows}"
                + " --recompute true" * self.recompute + " --offload true" * self.offload)


def phases(policy, reward, positions, savings, memory):
    """{phase of a PPO iteration: bytes at its peak}, for models that are used in turn on a GPU of
    so many bytes.

    What always is there: weights and Adam's moments of the policy (12 P) and of the value function
    (12 Q), and the overhead; without `offload` also the average, π_sft and the reward model. Each
    phase adds its own: a model that was at rest, gradients, bf16 copies of weights (which with
    `recompute` live for one layer at a time), and activations."""
    P, Q, tokens = parameters(policy), parameters(reward), savings.micro_tokens
    always = 12 * P + 12 * Q + OVERHEAD + (0 if savings.offload else 8 * P + 4 * Q)

    def a_layer(shape):  # its activations, and bf16 copies of its 12 D² weights
        return activation_bytes(shape, tokens) // shape.n_layer + 24 * shape.d_model**2

    def training(shape, count):
        if savings.recompute:  # the blocks' inputs in fp32 are kept; one layer is computed again
            return 4 * count + 4 * shape.d_model * shape.n_layer * tokens + a_layer(shape)
        return 4 * count + 2 * count + activation_bytes(shape, tokens)
    return {
        "sampling": always + 2 * P + sampling_bytes(policy, savings.sample_rows, positions),
        "π_sft": always + a_layer(policy) + logits_bytes(policy, tokens, memory)
        + (4 * P if savings.offload else 0),
        "values": always + a_layer(reward),
        "rewards": always + a_layer(reward) + (4 * Q if savings.offload else 0),
        "policy update": always + training(policy, P) + logits_bytes(policy, tokens, memory),
        "value update": always + training(reward, Q)}


def savings_of(plan):
    """The flags of ppo.py where a plan saves memory."""
    return Savings(plan.micro_tokens, recompute=True, offload=True, sample_rows=32)


def answers_that_fit(plan, memory):
    """How many answers evaluate.py may sample: it does so 256 at a time, beside π_sft and the
    reward model."""
    P, Q = parameters(plan.policy), parameters(plan.reward)
    free = memory * USABLE - 10 * P - 4 * Q - OVERHEAD
    rows = int(free // sampling_bytes(plan.policy, 1, plan.positions))
    return plan.answers if rows >= 256 else max(1, rows)


def fit(name, shape, memory):
    """(Plan, the reward model's name) of the first choice that needs at most `memory` bytes."""
    smaller = [size for size in SIZES if parameters(CONFIGS[size]) < parameters(shape)]
    for reward in (name, *smaller):
        plan = Plan(shape, shape if reward == name else CONFIGS[reward], memory=memory)
        for batch, saving, micro_tokens in itertools.product(
                (512, 256, 128, 64), (False, True), (16384, 8192, 4096, 2048, 1024)):
            plan = replace(plan, batch=batch, saving=saving, micro_tokens=micro_tokens)
            if ppo_memory(plan)["total"] <= memory * USABLE:
                return replace(plan, answers=answers_that_fit(plan, memory)), reward
    raise InputError(f"{name}: needs {ppo_memory(plan)['total'] / GB:.0f} GB at least; this GPU "
                     f"has {memory / GB:.0f}: expected a smaller --model")


# -- settings -------------------------------------------------------------------------------------

PAPER_1_3B = {"start": 5e-6, "sft": 9.65e-6, "reward": 9e-6, "policy": 8e-6, "value": 9e-6}
GPT3_RATES = ((200e6, 6.0e-4), (500e6, 3.0e-4), (1000e6, 2.5e-4), (math.inf, 2.0e-4))  # Table 2.1


def rate(stage, shape):
    """The paper's rate for 1.3B (the policy's is open: ppo.py's), scaled to the model's size."""
    scale = next(r for most, r in GPT3_RATES if parameters(shape) <= most) / 2.0e-4
    return f"{PAPER_1_3B[stage] * scale:.3g}"


def flags(plan, tiny):
    """{name: command-line flags} of every stage, as run.sh names them. *scaled* where a value is
    not the paper's: HH-RLHF has 60,000 demonstrations to its 12,725, so two epochs for its 16; one
    text sequence an episode for its 8; 64k episodes for its 256k."""
    policy, reward = plan.policy, plan.reward
    if tiny:  # every stage works, none for long: nothing is learnt that is worth a look
        P, R, micro = 96, 32, 2048
        text = {"batch": 8, "save_every": 1000, "log_every": 5}
        episodes, batch, minibatch, more = 32, 16, 8, {"ptx_tokens": 64, "warmup": 1}
    else:
        P, R, micro = plan.max_prompt, plan.max_response, plan.micro_tokens
        text = {"batch": 32, "log_every": 20}
        episodes, batch, minibatch, more = 65536, plan.batch, 64, {"ptx_tokens": 512}
    if plan.saving:
        text |= {"recompute": "true"}
        more |= {"recompute": "true", "offload": "true",
                 "sample_rows": savings_of(plan).sample_rows}
    start = text | {"ptx_fraction": 0.1, "dropout": 0, "micro_tokens": micro}
    return {
        "LENGTHS": {"max_prompt": P, "max_response": R},
        "PREPARE": {"max_prompt_tokens": P, "max_response_tokens": R,
                    "limit": TINY_PAIRS // 4 if tiny else 0,  # of each of the four files
                    "text_valid_fraction": 0.2 if tiny else 0.002},
        "START": start | {"epochs": 1, "rate": rate("start", policy)},
        "REWARD_START": start | {"epochs": 1, "rate": rate("start", reward)},
        "SFT": text | {"epochs": 1 if tiny else 2, "rate": rate("sft", policy), "dropout": 0.2,
                       "micro_tokens": micro, "choose_prompts": 16 if tiny else 256},
        "REWARD": {"rate": rate("reward", reward), "max_tokens": P + R, "micro_tokens": micro,
                   "batch": 16 if tiny else 64, "bias_demonstrations": 32 if tiny else 1000,
                   **({"recompute": "true"} if plan.saving else {})},
        "PPO": {"episodes": episodes, "batch": batch, "minibatch": minibatch,
                "policy_rate": rate("policy", policy), "value_rate": rate("value", reward),
                "ptx_per_episode": 1, "micro_tokens": micro, **more},
        "ANSWERS": {"limit": 16 if tiny else plan.answers},
    }


# -- cost -----------------------------------------------------------------------------------------

PAIRS, TOKENS = 86_000, 250  # HH-RLHF's base sets; of a dialogue with its answer, on average
TINY_PAIRS = 400  # that --tiny reads; a third of them is short enough to stay


def cost(plan, tiny):
    """Floating-point operations of all stages: 2 a parameter and token forward, 6 with the
    backward pass (Kaplan et al. 2020)."""
    P, Q, given = parameters(plan.policy), parameters(plan.reward), flags(plan, tiny)
    rows = 0.8 * (TINY_PAIRS / 3 if tiny else PAIRS)  # a fifth is held out
    tokens = min(TOKENS, sum(given["LENGTHS"].values()))
    ppo = given["PPO"]
    texts = 0.1 * rows * plan.policy.n_ctx  # one row in ten is text, as long as the context
    operations = 6 * P * (rows * tokens + texts) * (1 if P == Q else 1 + Q / P)  # start
    operations += 6 * P * rows * tokens * given["SFT"]["epochs"]
    operations += 6 * Q * 2 * rows * tokens
    # sampling, π_sft, value and reward forward; two updates; with and without text
    operations += 2 * ppo["episodes"] * tokens * (2 * P + 2 * P + 2 * Q + 2 * Q + 6 * P + 6 * Q)
    return operations + 6 * P * ppo["episodes"] * ppo["ptx_tokens"]


def speed(device):
    """Floating-point operations a second that this machine's training may reach: 40 % of those of
    a matrix product timed here."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, done, started = torch.ones(n, n, dtype=dtype, device=device), 0, None
    while started is None or time.perf_counter() - started < 0.3:
        (a @ a)[0, 0].item()
        started, done = started or time.perf_counter(), done + 1  # the first one warms up
    return 0.4 * (done - 1) * 2 * n**3 / (time.perf_counter() - started)


# -- the commands ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SettingsConfig:
    model: str = setting("gpt2", "the size of the policy: " + ", ".join(SIZES))
    folder: str = setting("downloads", "NAME/config.json in it says the shape where it is there")
    memory: float = setting(0.0, "of the GPU in GB, 0 = of this machine's")
    tiny: bool = setting(False, "a run that only shows that everything works")
    yes: bool = setting(False, "go on without a GPU, however long it takes")
    shell: bool = setting(False, "print the stages' flags as arrays of a shell, all else aside")


def settings(config):
    """Choose settings that fit, and say what they need and cost."""
    shape, gpu = shape_of(config.model, config.folder), torch.cuda.is_available()
    memory = config.memory * GB or (torch.cuda.get_device_properties(0).total_memory if gpu else 0)
    plan, reward = Plan(shape, shape), config.model
    aside = sys.stderr if config.shell else sys.stdout
    if memory:
        plan, reward = fit(config.model, shape, memory)
        print(report(config.model, plan, reward), file=aside)
    if not config.memory:
        print(said_cost(config, plan, gpu), file=aside)
    if config.shell:
        print(shell(plan, reward, config.tiny))


def said_cost(config, plan, gpu):
    """How long it takes here. Raises InputError where that is without a GPU and nobody agreed."""
    pace = speed(torch.device("cuda" if gpu else "cpu"))
    full, tiny = (cost(plan, t) / pace / 3600 for t in (False, True))
    if not (gpu or config.tiny or config.yes):
        raise InputError(
            f"no GPU: {config.model} on HH-RLHF takes about {duration(full)} on this CPU; expected "
            f"--tiny (all stages on {TINY_PAIRS} comparisons, about {duration(tiny)}) or --yes")
    return (f"{config.model}, {parameters(plan.policy):,} parameters: about "
            f"{duration(tiny if config.tiny else full)} here, at {pace / 1e9:,.0f} GFLOP/s")


def duration(hours):
    if hours < 1.5:
        return f"{max(1, round(60 * hours))} minutes"
    return f"{hours:,.0f} hours" if hours < 72 else f"{hours / 24:,.0f} days"


def shape_of(name, folder):
    """The shape of a named size, or of whatever lies under that name in the folder."""
    path = Path(folder) / name / "config.json"
    if path.exists():
        return read_config(path)
    if name not in SIZES:
        raise InputError(f"--model {name}: expected one of {', '.join(SIZES)}")
    return CONFIGS[name]


def shell(plan, reward, tiny):
    """The flags as a shell's arrays."""
    lines = [f"{name}=({' '.join(f'--{k} {v}' for k, v in given.items())})"
             for name, given in flags(plan, tiny).items()]
    return "\n".join([f"REWARD_MODEL={reward}", *lines])


def report(name, plan, reward):
    """The memory of a plan, part by part."""
    need = ppo_memory(plan)
    parts = ", ".join(f"{part} {count / GB:.1f}" for part, count in need.items() if part != "total")
    turns = "one phase after another" if plan.saving else "update or sampling, not both"
    return (f"{name} with reward model {reward}: batch {plan.batch}, {plan.micro_tokens} tokens a "
            f"pass; {need['total'] / GB:.1f} GB ({parts}; {turns})")


@dataclass(frozen=True)
class TableConfig:
    memory: tuple = setting(("24", "80"), "of the GPUs, in GB")

    def __post_init__(self):
        try:
            sizes = [0 < float(text) * GB < math.inf for text in self.memory]
        except ValueError:
            sizes = []
        if not sizes or not all(sizes):
            raise InputError(f"--memory {' '.join(self.memory)}: expected numbers above 0, in GB")


def table(config):
    """The settings for every size of GPT-2 on GPUs of some sizes, and the memory they need."""
    print("| policy | GPU | reward model | prompts an iteration | tokens a pass | recompute, offload "
          "| needs |\n|---|---|---|---|---|---|---|")
    for name in reversed(SIZES):
        for memory in map(float, config.memory):
            try:
                plan, reward = fit(name, CONFIGS[name], memory * GB)
                row = (reward, plan.batch, plan.micro_tokens, "yes" if plan.saving else "no",
                       f"{ppo_memory(plan)['total'] / GB:.1f} GB")
            except InputError:
                row = ("does not fit", "", "", "", "")
            print("|", " | ".join([name, f"{memory:g} GB", *map(str, row)]), "|")


@dataclass(frozen=True)
class PaperConfig:
    memory: float = setting(141.0, "of the GPU, in GB")


def paper(config):
    """The paper's setting (policy 1.3B, reward model and value function 6B, 512 prompts, prompts
    and responses of 1k tokens) with one saving after another, and the memory of each phase."""
    policy, reward = CONFIGS["1.3B"], CONFIGS["6B"]
    steps = [Savings()]
    for change in ({"recompute": True}, {"offload": True}, {"sample_rows": 32},
                   {"micro_tokens": 8192}):
        steps.append(replace(steps[-1], **change))
    rows = [(savings, phases(policy, reward, policy.n_ctx, savings, config.memory * GB))
            for savings in steps]
    names = list(rows[0][1])
    print(f"| flags of ppo.py | {' | '.join(names)} | fits |\n|---|{'---|' * (len(names) + 1)}")
    for savings, need in rows:
        fits = max(need.values()) <= config.memory * GB * USABLE
        print("|", savings.flags(), "|", " | ".join(f"{b / GB:.0f}" for b in need.values()),
              "|", "yes" if fits else "no", "|")
    print(f"\nGB at the peak of each phase; of {config.memory:g} GB {USABLE:.0%} may be used.")


if __name__ == "__main__":
    run_verbs({"settings": (settings, SettingsConfig), "table": (table, TableConfig),
               "paper": (paper, PaperConfig)}, __doc__)
