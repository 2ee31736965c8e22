"""Reinforcement learning from human feedback: PPO-ptx (§3.5, Eq. 2; App. C.4).

    python ppo.py --policy runs/world-0/start.pt --reward runs/world-0/reward.pt \\
        --prompts runs/world-0/data/prompts.train.jsonl --max_prompt 48 --max_response 40 \\
        --text runs/world-0/data/text.train.txt --out runs/world-0/my-ppo.pt

with the paper's settings, on what ./run.sh leaves; its own, which are scaled, stand in
runs/world-0/commands.

Maximise over the policy π, with π_sft the model it starts from (Eq. 2):

    E[ r(x, y) − β log( π(y|x) / π_sft(y|x) ) ]  +  γ E_pretrain[ log π(x) ]

β is `kl_coef` and γ is `ptx_coef` below. One iteration of `main`: sample a response to each of 512
prompts, score it, spread KL and score over its tokens, estimate advantages, and take 8 optimizer
steps. `--ptx_coef 0` is PPO, `--kl_coef 0` drops the KL penalty. The paper leaves some of it to its
predecessors: λ and a network of its own for the value function are Stiennon et al. 2020's; clipped
value loss and whitening are as in the code of Ziegler et al. 2019 (lm-human-preferences).

Time runs over the R tokens of a response. Everything a token has stands in its own column: the
log-prob and value were computed one position to its left, where the model had not seen it yet.

    response token      a_0      a_1      …   a_last (end-of-text)
    log π, value        yes      yes      …   yes
    KL penalty          yes      yes      …   yes
    + r(x, y)                                 yes
"""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from common import (InputError, Stage, check_finite, device_of, load_model, neutral, output_file,
                    required, run, setting)
from data.batching import examples_of_step, length_sorted_batches, text_window
from data.readers import read_fitting_prompts, read_text
from data.tokenizer import load_tokenizer
from machine import at_hand, compile_decoder, side_by_side, step_in_backward
from model import (GPT, ScalarGPT, adam, at_least_fp32, compute_dtype, generate,
                   low_precision, response_logprobs, response_values, step_optimizer,
                   target_logprobs)


@dataclass(frozen=True)
class PPOConfig:
    policy: str = required("the checkpoint to start from, an SFT model (§3.5)")
    reward: str = required("the reward model")
    prompts: str = required("training prompts, JSON Lines")
    out: str = output_file("the checkpoint to write: the averaged policy")
    text: str = setting("", "pretraining text; needed unless ptx_coef is 0")
    reference: str = setting("", "π_sft of Eq. 2; default: the model that the policy starts from")
    value: str = setting("", "where the value function starts; default: the reward model (App. C.4)")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    episodes: int = setting(256_000, "responses sampled in all; paper 256k, App. C.4")
    batch: int = setting(512, "prompts in an iteration, one response each; paper 512, App. C.4")
    minibatch: int = setting(64, "episodes in an optimizer step; paper 64, App. C.4")
    inner_epochs: int = setting(1, "passes over an iteration's episodes; paper 1, App. C.4")
    temperature: float = setting(1.0, "of sampling and of π everywhere; paper 1, App. C.4")
    max_prompt: int = setting(1024, "prompt tokens, longer ones are dropped; paper 1k, App. A")
    max_response: int = setting(1024, "response tokens; paper 1k, App. C")
    kl_coef: float = setting(0.02, "weight β of the per-token KL penalty; paper 0.02, App. C.4")
    ptx_coef: float = setting(27.8, "weight γ of the pretraining gradient; paper 27.8, App. C.4")
    ptx_per_episode: int = setting(8, "pretraining sequences per episode; paper 8, App. C.4")
    ptx_tokens: int = setting(0, "length of one of them, 0 = the whole context; open")
    discount: float = setting(1.0, "of GAE; paper 1, App. C.4")
    lam: float = setting(0.95, "λ of GAE; paper 0.95, Stiennon et al. 2020")
    clip: float = setting(0.2, "of the policy's ratio; paper 0.2, App. C.4")
    value_clip: float = setting(0.2, "of the value's move; open: 0.2, code of Ziegler et al. 2019")
    policy_rate: float = setting(8e-6, "peak learning rate of the policy; open: App. E.9 scans "
                                       "2.55e-6 to 2.55e-5; above 8.05e-6 PPO without ptx diverged")
    value_rate: float = setting(9e-6, "of the value function; paper 9e-6 (175B: 5e-6), App. C.4")
    warmup: int = setting(10, "iterations from a tenth to the whole policy rate; paper 10, App. C.4")
    ema_decay: float = setting(0.992, "of the averaged policy; paper 0.992, App. C.4; a step: open")
    max_grad_norm: float = setting(0.0, "clip each gradient to this norm, 0 = off; open")
    limit_score: float = setting(None, "score of a response cut off by max_response; open: its own, "
                                       "read at a last token that is not end-of-text, where no "
                                       "completion of reward training ended")
    micro_tokens: int = neutral(16384, "tokens in one forward pass; changes no number")
    sample_rows: int = neutral(0, "responses sampled together, 0 = all; changes no number")
    recompute: bool = neutral(False, "activations again in the backward pass; saves memory")
    offload: bool = neutral(False, "π_sft, the reward model and the average rest in host memory")
    step_in_backward: bool = neutral(False, "never all gradients at once, where a minibatch is "
                                            "one pass and nothing is clipped")
    show: int = neutral(2, "prompts whose answers are printed as training goes")
    show_every: int = neutral(20, "iterations between them")
    seed: int = setting(0, "order of prompts and minibatches, pretraining text, samples")
    save_every: int = neutral(20, "iterations between checkpoints to resume from")
    keep_every: int = neutral(0, "iterations between averaged policies that are kept; 0 = none")
    compile: str = neutral("auto", "torch.compile training: auto (large models on a GPU), on, off")
    device: str = neutral("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")

    def __post_init__(self):
        if self.batch % self.minibatch:
            raise InputError(f"minibatch {self.minibatch} does not divide batch {self.batch}")
        if self.ptx_coef and not self.text:
            raise InputError("--text is needed for the pretraining gradient (or --ptx_coef 0)")
        if not self.temperature:
            raise InputError("--temperature 0: expected a number above 0; 0 has no gradient")
        if not 1e-3 <= self.clip:
            raise InputError(f"--clip {self.clip}: expected 0.001 or more: 1 is met to rounding")
        if self.ptx_tokens == 1:
            raise InputError("--ptx_tokens 1: expected 2 or more, of which all but the first are "
                             "predicted, or 0 for the whole context")

    @property
    def iterations(self):
        return math.ceil(self.episodes / self.batch)

    @property
    def kept(self):
        """After how many iterations the averaged policy is kept."""
        return range(self.keep_every, self.iterations + 1, self.keep_every) \
            if self.keep_every else ()


# -- the equations ------------------------------------------------------------------------------


def masked_mean(x, mask):
    """Mean of x where mask is True; 0 where it nowhere is."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def kl_rewards(scores_B, logprobs_BR, ref_logprobs_BR, mask_BR, kl_coef):
    """Per-token rewards of Eq. 2: the KL penalty at every token, the score at the last one.

        reward_t = − β ( log π(a_t|s_t) − log π_sft(a_t|s_t) )  [ + r(x, y)  at the last token ]

    The last token is the last that `mask_BR` keeps: end-of-text, or at the length limit whatever
    stands there. Returns rewards_BR, 0 outside the mask; a row without tokens has none. Raises
    ValueError unless there is one score a row.
    """
    if scores_B.shape != mask_BR.shape[:1]:  # B×1 would give B×B×R rewards
        raise ValueError(f"{tuple(scores_B.shape)} scores, {len(mask_BR)} rows; expected one each")
    logprobs_BR, ref_logprobs_BR = at_least_fp32(logprobs_BR), at_least_fp32(ref_logprobs_BR)
    rewards_BR = torch.where(mask_BR, -kl_coef * (logprobs_BR - ref_logprobs_BR), 0.0)
    last_BR = mask_BR & (mask_BR.cumsum(1) == mask_BR.sum(1, keepdim=True))
    return rewards_BR + torch.where(last_BR, scores_B[:, None].to(rewards_BR.dtype), 0.0)


def gae(rewards_BR, values_BR, mask_BR, discount=1.0, lam=0.95):
    """Generalized advantage estimation (Schulman et al. 2016, Eq. 11 and 16), backwards in time.

        δ_t = reward_t + discount · V(s_{t+1}) − V(s_t),        V after the last token = 0
        A_t = δ_t + discount · lam · A_{t+1},                   returns_t = A_t + V(s_t)

    `mask_BR` keeps each response from column 0 to its last token. Returns (advantages_BR,
    returns_BR), both 0 outside the mask.
    """
    rewards_BR = at_least_fp32(rewards_BR).masked_fill(~mask_BR, 0.0)
    values_BR = at_least_fp32(values_BR).masked_fill(~mask_BR, 0.0)
    advantages_BR = torch.zeros_like(values_BR)
    next_value_B = next_advantage_B = values_BR.new_zeros(len(values_BR))
    for t in reversed(range(rewards_BR.shape[1])):
        delta_B = rewards_BR[:, t] + discount * next_value_B - values_BR[:, t]
        next_advantage_B = delta_B + discount * lam * next_advantage_B
        next_value_B = values_BR[:, t]
        advantages_BR[:, t] = next_advantage_B
    advantages_BR = advantages_BR.masked_fill(~mask_BR, 0.0)  # also before a mask that begins late
    return advantages_BR, advantages_BR + values_BR


def whiten(x_BR, mask_BR):
    """x shifted and scaled to mean 0 and variance 1 over the mask, 0 outside.

    *Open*: the biased variance, plus 1e-8 under the root, as in the code of Ziegler et al. 2019.
    """
    x_BR = at_least_fp32(x_BR)
    centred_BR = torch.where(mask_BR, x_BR - masked_mean(x_BR, mask_BR), 0.0)
    # once more: the mean of large numbers is rounded by more than the 1e-8 under the root
    centred_BR = torch.where(mask_BR, centred_BR - masked_mean(centred_BR, mask_BR), 0.0)
    return centred_BR * torch.rsqrt(masked_mean(centred_BR**2, mask_BR) + 1e-8)


def policy_loss(logprobs_BR, old_logprobs_BR, advantages_BR, mask_BR, clip=0.2):
    """The clipped objective (Schulman et al. 2017, Eq. 7), as a loss.

        ratio_t = π(a_t|s_t) / π_old(a_t|s_t)
        loss = mean over tokens of max( −A_t · ratio_t, −A_t · clamp(ratio_t, 1−clip, 1+clip) )

    Returns (loss, stats): "clip_fraction", the share of tokens where the clamp is what counts;
    "approx_kl", the mean of (ratio − 1) − log ratio, which estimates KL(π_old ‖ π);
    "max_log_ratio", the largest |log ratio|.
    """
    logprobs_BR, old_logprobs_BR = at_least_fp32(logprobs_BR), at_least_fp32(old_logprobs_BR)
    advantages_BR = at_least_fp32(advantages_BR).masked_fill(~mask_BR, 0.0)
    log_ratio_BR = torch.where(mask_BR, logprobs_BR - old_logprobs_BR, 0.0)
    # where A_t ≥ 0 a ratio so large only meets the clamp: were it ∞, 0 · ∞ would be NaN
    finite = math.log(torch.finfo(log_ratio_BR.dtype).max) - 1
    ratio_BR = log_ratio_BR.clamp(max=torch.where(advantages_BR < 0, math.inf, finite)).exp()
    plain_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * ratio_BR.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(plain_BR, clipped_BR), mask_BR)
    with torch.no_grad():
        stats = {"clip_fraction": masked_mean((clipped_BR > plain_BR).float(), mask_BR).item(),
                 "approx_kl": masked_mean(log_ratio_BR.exp() - 1 - log_ratio_BR, mask_BR).item(),
                 "max_log_ratio": log_ratio_BR.abs().max().item() if mask_BR.numel() else 0.0}
    return loss, stats


def value_loss(values_BR, old_values_BR, returns_BR, mask_BR, clip=0.2):
    """Half the squared error of the value function, its move away from old_values clipped.

        loss = mean over tokens of ½ max( (V_t − R_t)²,
                                          (clamp(V_t, V_old,t − clip, V_old,t + clip) − R_t)² )

    Returns (loss, {"clip_fraction": share of tokens where the clamped error is the larger,
    "error": the mean of (V − R)²}).
    """
    values_BR, old_values_BR, returns_BR = (
        at_least_fp32(x).masked_fill(~mask_BR, 0.0)
        for x in (values_BR, old_values_BR, returns_BR))
    near_BR = values_BR.clamp(old_values_BR - clip, old_values_BR + clip)
    plain_BR, clipped_BR = (values_BR - returns_BR) ** 2, (near_BR - returns_BR) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain_BR, clipped_BR), mask_BR)
    with torch.no_grad():
        stats = {"clip_fraction": masked_mean((clipped_BR > plain_BR).float(), mask_BR).item(),
                 "error": masked_mean(plain_BR, mask_BR).item()}
    return loss, stats


# -- one iteration: roll out, then update --------------------------------------------------------


class Rollout(NamedTuple):
    """B episodes under the policy that sampled them; columns are response tokens."""

    tokens_BT: torch.Tensor
    prompt_lens_B: torch.Tensor
    lens_B: torch.Tensor
    mask_BR: torch.Tensor
    logprobs_BR: torch.Tensor  # log π_old
    ref_logprobs_BR: torch.Tensor  # log π_sft
    values_BR: torch.Tensor  # V_old
    scores_B: torch.Tensor  # r(x, y)

    def rows(self, rows):
        """These episodes, cut to the longest sequence and the longest response among them."""
        part = Rollout(*(x[rows] for x in self))
        T, R = int(part.lens_B.max()), int((part.lens_B - part.prompt_lens_B).max())
        cut = {"tokens_BT": part.tokens_BT[:, :T]}
        cut |= {k: getattr(part, k)[:, :R] for k in part._fields if k.endswith("_BR")}
        return part._replace(**cut)

    def micro_batches(self, rows, micro_tokens):
        """`rows`, in groups of like length whose padded size is at most micro_tokens; on a CPU,
        which computes padding as slowly as tokens, of more alike ones."""
        even = 0.6 if rows.device.type == "cpu" else 0.0
        for group in length_sorted_batches(self.lens_B[rows].tolist(), micro_tokens, even):
            yield rows[torch.tensor(group, device=rows.device)]


@torch.no_grad()
def roll_out(policy, reference, reward_model, value_model, prompts, eos, config):
    """Sample a response to each prompt, and what the update must know of it. Returns a Rollout.
    Of the reward model only `scores` is used (and, where it is offloaded, its parameters)."""
    device = policy.decoder.wte.weight.device
    with compute_dtype(device):
        samples = generate(policy, prompts, config.max_response, config.temperature, eos,
                           at_once=config.sample_rows)
    rollout = Rollout(samples.tokens_BT, samples.prompt_lens_B, samples.lens_B, samples.mask_BR,
                      samples.logprobs_BR, ref_logprobs_BR=torch.zeros_like(samples.logprobs_BR),
                      values_BR=torch.zeros_like(samples.logprobs_BR),
                      scores_B=torch.zeros(len(prompts), device=device))
    micro_tokens = config.micro_tokens
    if device.type == "cpu":  # so that its cores end at about one time
        micro_tokens = min(micro_tokens, -(-int(samples.lens_B.sum()) // 4))
    micro = list(rollout.micro_batches(torch.arange(len(prompts), device=device), micro_tokens))

    def fill(column, model, compute):
        """column[rows] = compute(those episodes), for the rows of each micro-batch."""
        def fill_rows(rows):
            part = rollout.rows(rows)
            with compute_dtype(device):
                found = compute(part)
            column[(rows, slice(found.shape[1])) if found.dim() == 2 else rows] = found

        with at_hand(model, device, config.offload and model is not value_model):
            side_by_side([partial(fill_rows, rows) for rows in micro], device)

    fill(rollout.ref_logprobs_BR, reference, lambda part: response_logprobs(
        reference, part.tokens_BT, part.prompt_lens_B, part.mask_BR, config.temperature))
    fill(rollout.values_BR, value_model, lambda part: response_values(
        value_model, part.tokens_BT, part.prompt_lens_B, part.mask_BR))
    fill(rollout.scores_B, reward_model, lambda part: reward_model.scores(
        part.tokens_BT, part.lens_B))
    if config.limit_score is not None:
        rollout.scores_B[~ended(rollout, eos)] = config.limit_score
    return rollout


def ended(rollout, eos):
    """ended_B: True where the response's last token is end-of-text, not just the length limit."""
    return rollout.tokens_BT.gather(1, rollout.lens_B[:, None] - 1).squeeze(1) == eos


def policy_gradient(policy, rollout, advantages_BR, rows, config):
    """Add to the policy's gradients that of `policy_loss` over the minibatch `rows`. Micro-batches
    weigh by their tokens, so that the mean runs over the minibatch however it is cut. Returns stats.
    """
    tokens = rollout.mask_BR[rows].sum()
    stats = {}
    for micro in rollout.micro_batches(rows, config.micro_tokens):
        part = rollout.rows(micro)
        with compute_dtype(part.tokens_BT.device):
            logprobs_BR = response_logprobs(policy, part.tokens_BT, part.prompt_lens_B,
                                            part.mask_BR, config.temperature)
        loss, numbers = policy_loss(logprobs_BR, part.logprobs_BR,
                                    advantages_BR[micro, :part.mask_BR.shape[1]], part.mask_BR,
                                    config.clip)
        share = part.mask_BR.sum() / tokens
        (loss * share).backward()
        add_up(stats, {"policy_loss": loss.item(), **numbers}, share.item())
    return stats


def value_gradient(value_model, rollout, returns_BR, rows, config):
    """The same for `value_loss` and the value function."""
    tokens = rollout.mask_BR[rows].sum()
    stats = {}
    for micro in rollout.micro_batches(rows, config.micro_tokens):
        part = rollout.rows(micro)
        with compute_dtype(part.tokens_BT.device):
            values_BR = response_values(value_model, part.tokens_BT, part.prompt_lens_B,
                                        part.mask_BR)
        loss, numbers = value_loss(values_BR, part.values_BR,
                                   returns_BR[micro, :part.mask_BR.shape[1]], part.mask_BR,
                                   config.value_clip)
        share = part.mask_BR.sum() / tokens
        (loss * share).backward()
        add_up(stats, {"value_loss": loss.item(), "value_error": numbers["error"],
                       "value_clip_fraction": numbers["clip_fraction"]}, share.item())
    return stats


def add_up(stats, numbers, share):
    """Means over micro-batches weigh by share; a name that begins with max_ takes the largest."""
    for name, number in numbers.items():
        if name.startswith("max_"):
            stats[name] = max(stats.get(name, number), number)
        else:
            stats[name] = stats.get(name, 0.0) + share * number


def ptx_gradient(policy, tokens_BT, config):
    """Add ptx_coef times the gradient of the mean pretraining loss over these sequences (Eq. 2's
    second term; the mean over tokens is our reading, *open*). Returns that loss."""
    total, targets = 0.0, tokens_BT[:, 1:].numel()
    for part_BT in tokens_BT.split(max(1, config.micro_tokens // tokens_BT.shape[1])):
        with compute_dtype(part_BT.device):
            loss = -target_logprobs(policy, part_BT, torch.ones_like(part_BT, dtype=torch.bool)
                                    ).sum() / targets
        (config.ptx_coef * loss).backward()
        total += loss.item()
    return total


def update_ema(average, model, decay):
    """average ← decay · average + (1 − decay) · model, weight by weight."""
    with torch.no_grad():
        for a, p in zip(average.parameters(), model.parameters()):
            a.lerp_(p.to(a.device), 1 - decay)


def check_first_ratio(stats, rounded):
    """The policy that sampled is the policy being updated: before the first step every ratio is 1.
    It is not where dropout is on, or where sampling and training compute differently. Raises
    RuntimeError. (bf16 rounds the two differently: there only the mean is held to a bound. On a CPU
    rounding alone gave 5e-5 at most in trained models, 2e-4 in any; a dropout of 0.02 from 3e-3.)
    """
    wrong = stats["approx_kl"] > 2e-3 if rounded else (
        stats["max_log_ratio"] > 1e-3 or stats["clip_fraction"] > 0)
    if wrong:
        raise RuntimeError(
            f"the first minibatch should have ratio 1 and clip fraction 0, but has |log ratio| up "
            f"to {stats['max_log_ratio']:.2g} and clip fraction {stats['clip_fraction']:.2g}: the "
            f"sampler and the update disagree about the policy")


def update(state, rollout, next_text, config, rate, first):
    """Estimate advantages, then take one optimizer step of policy and value function per minibatch.
    The policy's is along the sum of two gradients, its own and that of `next_text(minibatch number)`
    (Eq. 2). `first`: check that its ratios begin at 1. Returns the mean of each number over
    minibatches."""
    rewards_BR = kl_rewards(rollout.scores_B, rollout.logprobs_BR, rollout.ref_logprobs_BR,
                            rollout.mask_BR, config.kl_coef)
    advantages_BR, returns_BR = gae(rewards_BR, rollout.values_BR, rollout.mask_BR,
                                    config.discount, config.lam)
    # *open*: over the whole iteration; the code of Ziegler et al. 2019 whitens each minibatch
    advantages_BR = whiten(advantages_BR, rollout.mask_BR)
    minibatches = [rows.to(rollout.mask_BR.device) for _ in range(config.inner_epochs)
                   for rows in torch.randperm(len(rollout.lens_B)).split(config.minibatch)]
    in_backward = config.step_in_backward and not config.max_grad_norm and all(
        len(list(rollout.micro_batches(rows, config.micro_tokens))) == 1 for rows in minibatches)

    def policy_step(number, rows):
        policy, optimizer = state.policy, state.policy_optimizer
        with step_in_backward(policy, optimizer, rate, in_backward and not config.ptx_coef):
            stats = policy_gradient(policy, rollout, advantages_BR, rows, config)
        if first and number == 0:
            check_first_ratio(stats, low_precision(rows.device))
        if config.ptx_coef:
            stats["ptx_loss"] = ptx_gradient(policy, next_text(number), config)
        check_finite(stats)
        stats["grad_norm"] = step_optimizer(policy, optimizer, rate, config.max_grad_norm)
        update_ema(state.average, policy, config.ema_decay)
        return stats

    def value_step(number, rows):
        value_model, optimizer = state.value_model, state.value_optimizer
        with step_in_backward(value_model, optimizer, config.value_rate, in_backward):
            stats = value_gradient(value_model, rollout, returns_BR, rows, config)
        check_finite(stats)
        step_optimizer(value_model, optimizer, config.value_rate, config.max_grad_norm)
        return stats

    def on_each_minibatch(step):
        totals = {}
        for number, rows in enumerate(minibatches):
            add_up(totals, step(number, rows), 1 / len(minibatches))
        return totals

    # with advantages and returns fixed, neither of the two looks at the other
    policy_stats, value_stats = side_by_side(
        [partial(on_each_minibatch, step) for step in (policy_step, value_step)],
        rollout.mask_BR.device)
    return policy_stats | value_stats


# -- the run --------------------------------------------------------------------------------------


class State(NamedTuple):
    """The models that training changes, and their optimizers; all that a resumed run restores."""

    policy: GPT
    average: GPT  # the exponential moving average of the policy's weights: what is shipped
    value_model: ScalarGPT
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer


def load(config, tokenizer, device):
    """The frozen reward model and π_sft, and a State. Policy and reward model may differ in size;
    the value function starts from the reward model (App. C.4)."""
    policy = load_model(GPT, config.policy, ("base", "sft", "ppo"), tokenizer, device)
    reward_model = load_model(ScalarGPT, config.reward, ("reward",), tokenizer, device)
    value_model = load_model(ScalarGPT, config.value or config.reward, ("reward",), tokenizer,
                             device)
    average = copy.deepcopy(policy)
    reference = copy.deepcopy(policy) if not config.reference else load_model(
        GPT, config.reference, ("base", "sft", "ppo"), tokenizer, device)
    for frozen in (reference, reward_model, average):
        frozen.requires_grad_(False).to("cpu" if config.offload else device)
    policy.decoder.recompute = value_model.decoder.recompute = config.recompute
    for model in (policy, value_model, reference, reward_model):
        # a compiled pass gives back all its gradients together, which step_in_backward is to avoid
        trained = model in (policy, value_model)
        compile_decoder(model, "off" if config.step_in_backward and trained else config.compile,
                        device)
    return reference, reward_model, State(policy, average, value_model,
                                          adam(policy, config.policy_rate),
                                          adam(value_model, config.value_rate))


def load_prompts(config, tokenizer, n_ctx):
    """Token lists of the training prompts that fit; says how many do not (App. A)."""
    limit = min(config.max_prompt, n_ctx - config.max_response)
    fitting, dropped = read_fitting_prompts(config.prompts, tokenizer, limit)
    print(f"{len(fitting)} prompts; {dropped} dropped, longer than {limit} tokens")
    return [ids for _, ids in fitting]


def load_text(config, tokenizer, n_ctx):
    """The pretraining text's tokens, one window of it at least; None where it has no part."""
    if not config.ptx_coef:
        return None
    length = config.ptx_tokens or n_ctx
    if length > n_ctx:
        raise InputError(f"--ptx_tokens {length}: expected at most the context of {n_ctx}")
    text = tokenizer.encode_documents(read_text(config.text))
    if len(text) < length:
        raise InputError(f"{config.text}: {len(text)} tokens; expected a window of {length} or "
                         "more (--ptx_tokens)")
    return text


def policy_rate(iteration, config):
    """Linear from a tenth of the rate to all of it over `warmup` iterations, then constant."""
    return config.policy_rate * min(1.0, 0.1 + 0.9 * iteration / max(1, config.warmup))


def draw_text(text, state, config, iteration, number):
    """tokens_BT of pretraining text for one minibatch, a function of seed, iteration and number."""
    step = iteration * config.inner_epochs * (config.batch // config.minibatch) + number
    return text_window(text, step, config.minibatch * config.ptx_per_episode,
                       config.ptx_tokens or state.policy.config.n_ctx, config.seed
                       ).to(state.policy.decoder.wte.weight.device)


def texts(rollout, tokenizer, count):
    """The first `count` prompts and responses as text."""
    rows = [row[:n].tolist() for row, n in zip(rollout.tokens_BT[:count], rollout.lens_B)]
    starts = rollout.prompt_lens_B[:count].tolist()
    return ([tokenizer.decode(row[:p]) for row, p in zip(rows, starts)],
            [tokenizer.decode_response(row[p:]) for row, p in zip(rows, starts)])


def summary(rollout, eos):
    """What one wants to see of an iteration's episodes: the mean score, without the KL penalty
    ("reward"); nats of KL to π_sft a response ("kl") and of entropy a token ("entropy"), both
    estimated from the sampled log-probs; tokens a response ("length"); the share that ends by itself
    ("ended")."""
    kl_B = torch.where(rollout.mask_BR, rollout.logprobs_BR - rollout.ref_logprobs_BR, 0.0).sum(1)
    return {"reward": rollout.scores_B.mean().item(), "kl": kl_B.mean().item(),
            "entropy": -masked_mean(rollout.logprobs_BR, rollout.mask_BR).item(),
            "length": rollout.mask_BR.sum(1).float().mean().item(),
            "ended": ended(rollout, eos).float().mean().item()}


SHOWN = ("reward", "kl", "length", "ended", "clip_fraction", "value_loss")


def main(config):
    device = device_of(config.device, config.dtype)
    tokenizer = load_tokenizer(config.tokenizer)
    reference, reward_model, state = load(config, tokenizer, device)
    prompts = load_prompts(config, tokenizer, min(
        m.config.n_ctx for m in (state.policy, reference, reward_model, state.value_model)))
    text = load_text(config, tokenizer, state.policy.config.n_ctx)
    stage = Stage("ppo", config, state.policy.config, tokenizer, config.kept)

    for iteration in range(stage.resume(state._asdict(), config.iterations), config.iterations):
        stage.seed_step(iteration, config.seed)
        batch = examples_of_step(prompts, iteration, config.batch, config.seed)
        rollout = roll_out(state.policy, reference, reward_model, state.value_model, batch,
                           tokenizer.eos, config)
        stats = update(state, rollout, partial(draw_text, text, state, config, iteration), config,
                       policy_rate(iteration, config), first=iteration == stage.first_step)
        stats |= summary(rollout, tokenizer.eos)
        stage.log(iteration, config.iterations, stats, int(rollout.mask_BR.sum()), SHOWN)
        if iteration % config.show_every == 0:
            stage.show(iteration, *texts(rollout, tokenizer, config.show))
        if iteration + 1 in config.kept:
            stage.keep(state.average.state_dict(), iteration + 1)
        stage.after_step(iteration, state._asdict(), config.save_every)
    stage.finish(state.average.state_dict(), config.iterations)


if __name__ == "__main__":
    run(main, PPOConfig, __doc__)
