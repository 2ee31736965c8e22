"""Reward modelling (§3.5, Eq. 1; App. C.2): a scalar for a prompt and a completion, from rankings.

    python reward.py --init runs/world-0/start.pt --out runs/world-0/my-reward.pt \\
        --comparisons runs/world-0/data/comparisons.train.jsonl \\
        --demonstrations runs/world-0/data/demonstrations.train.jsonl

A labeler ranks K = 4 … 9 completions of one prompt. All C(K,2) pairs of a prompt are one element of
the batch, and each completion is run once: the paper found that pairs shuffled over the data set
over-fit within one epoch, and K forward passes are cheaper than 2·C(K,2).
"""

import itertools
import math
import os
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from common import (InputError, Stage, check_finite, device_of, load_model, neutral, output_file,
                    required, run, setting)
from data.batching import (batch_of_epoch, even_batches, length_sorted_batches, pad_right,
                           steps_of_epoch)
from data.readers import read_comparisons, read_demonstrations
from data.tokenizer import load_tokenizer
from machine import add_gradients, compile_decoder, parts_at_once, side_by_side
from model import (GPT, ScalarGPT, adam, at_least_fp32, compute_dtype,
                   cosine_rate, step_optimizer)


@dataclass(frozen=True)
class RewardConfig:
    init: str = required("the GPT checkpoint whose decoder the reward model starts from, §3.5 (the "
                         "paper's final one: a 6B GPT-3 tuned on public NLP data sets, App. C.2, "
                         "with similar results)")
    comparisons: str = required("training comparisons, JSON Lines")
    out: str = output_file("the checkpoint to write")
    valid: str = setting("", "validation comparisons; accuracy is reported on them after each epoch")
    demonstrations: str = setting("", "their mean score is set to 0 after training (§3.5)")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    limit: int = setting(0, "use at most so many comparisons of each file, 0 = all")
    epochs: int = setting(1, "passes over the comparisons; paper 1, App. C.2: more over-fits")
    batch: int = setting(64, "distinct prompts in a batch; paper 64, App. C.2")
    rate: float = setting(9e-6, "peak learning rate; paper 9e-6, App. C.2")
    floor: float = setting(0.1, "cosine decay to this part of the peak; paper 0.1, App. C.2")
    weight_decay: float = setting(0.0, "decoupled weight decay; open")
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm, 0 = off; open")
    shuffle_pairs: bool = setting(False, "each pair an element of its own, for comparison: the "
                                         "paper saw it over-fit in one pass, §3.5")
    max_tokens: int = setting(2048, "of prompt and completion; longer comparisons are dropped")
    micro_tokens: int = neutral(16384, "tokens in one forward pass; changes no number")
    recompute: bool = neutral(False, "activations again in the backward pass; saves memory")
    bias_demonstrations: int = setting(1000, "how many demonstrations the bias averages; open")
    seed: int = setting(0, "order of the comparisons and the new head's weights")
    save_every: int = neutral(50, "steps between checkpoints to resume from")
    log_every: int = neutral(10, "steps between printed lines; the metrics file has every step")
    compile: str = neutral("auto", "torch.compile training: auto (large models on a GPU), on, off")
    device: str = neutral("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")


def ranking_loss(scores_NK, ranks_NK, mask_NK):
    """The K-wise loss of Eq. 1, averaged over prompts.

        loss = − 1 / C(K,2) · Σ_{w before l} log σ( r(x, y_w) − r(x, y_l) )

    `ranks_NK`: 1 = best, equal = tie; `mask_NK` is True where a completion exists. Ties have no
    part: the divisor is the number of pairs left (*open*), and a prompt with none left does not
    enter the mean. Returns (loss, {"accuracy": share of pairs in the right order, "pairs": n}).
    """
    scores_NK = at_least_fp32(scores_NK).masked_fill(~mask_NK, 0.0)
    exist_NKK = mask_NK[:, :, None] & mask_NK[:, None, :]
    pairs_NKK = exist_NKK & (ranks_NK[:, :, None] < ranks_NK[:, None, :])  # row w before column l
    margins_NKK = scores_NK[:, :, None] - scores_NK[:, None, :]
    losses_NKK = torch.where(pairs_NKK, -F.logsigmoid(margins_NKK), 0.0)
    pairs_N = pairs_NKK.sum((1, 2))
    loss_N = losses_NKK.sum((1, 2)) / pairs_N.clamp(min=1)
    loss = loss_N.sum() / (pairs_N > 0).sum().clamp(min=1)
    pairs = int(pairs_N.sum())
    right = int((pairs_NKK & (margins_NKK > 0)).sum())
    return loss, {"accuracy": right / max(1, pairs), "pairs": pairs}


class Ranking(NamedTuple):
    """One comparison as tokens."""

    sequences: list  # K lists of ids: prompt, completion, end-of-text
    ranks: tuple
    labeler: str

    def longest(self):
        return max(map(len, self.sequences))

    def width(self):
        """Tokens of its K rows, padded."""
        return len(self.sequences) * self.longest()

    def shared(self):
        """How many first tokens its completions share, each keeping at least one of its own."""
        return min(len(os.path.commonprefix(self.sequences)), min(map(len, self.sequences)) - 1)


def load_rankings(path, tokenizer, limit, most=0):
    """Comparisons as tokens; those with a sequence over `limit` tokens are dropped and counted. The
    first `most` that fit, 0 = all. Raises InputError where none fits, or none says which of two
    completions is better."""
    kept, dropped = [], 0
    for c in read_comparisons(path):
        if most and len(kept) == most:
            break
        prompt = tokenizer.encode_prompt(c.prompt)
        ranking = Ranking([prompt + tokenizer.encode_response(y) for y in c.completions],
                          c.ranks, c.labeler)
        if ranking.longest() <= limit:
            kept.append(ranking)
        else:
            dropped += 1
    print(f"{len(kept)} comparisons {'from' if most else 'in'} {path}; {dropped} dropped, longer than "
          f"{limit} tokens")
    if not kept:
        raise InputError(f"{path}: no comparison of at most {limit} tokens")
    if not any(map(has_pairs, kept)):
        first = f" of the first {most}" if most else ""
        raise InputError(f"{path}: no two completions{first} differ in rank")
    return kept


def split_pairs(rankings):
    """Every pair without a tie as a comparison of its own, as other reward models are trained."""
    return [Ranking([r.sequences[i], r.sequences[j]], (r.ranks[i], r.ranks[j]), r.labeler)
            for r in rankings for i, j in itertools.combinations(range(len(r.ranks)), 2)
            if r.ranks[i] != r.ranks[j]]


def score_rankings(reward_model, rankings):
    """scores_NK, ranks_NK and mask_NK of N prompts, K the most completions any has. Each completion
    is one row of one forward pass, or, where that is less work, a branch from its prompt's pass."""
    device = reward_model.head.weight.device
    score = score_branches if cheaper_as_branches(rankings) else score_rows
    with compute_dtype(device):
        scores_M = score(reward_model, rankings, device)
    ranks_NK, counts_N = pad_right([r.ranks for r in rankings])
    mask_NK = (torch.arange(ranks_NK.shape[1]) < counts_N[:, None]).to(device)
    scores_NK = torch.zeros(mask_NK.shape, device=device).masked_scatter(mask_NK, scores_M)
    return scores_NK, ranks_NK.to(device), mask_NK


def cheaper_as_branches(rankings):
    """By positions, padding included; attention to prompt and tail apart makes one a fifth dearer."""
    lens = [r.shared() for r in rankings]
    P, C = max(lens), max(r.longest() - p for r, p in zip(rankings, lens))
    M = sum(len(r.sequences) for r in rankings)
    return 1.2 * (len(lens) * P + M * C) < M * max(r.longest() for r in rankings)


def score_rows(reward_model, rankings, device):
    """scores_M of all completions, each a row with its prompt before it."""
    tokens_MT, lens_M = pad_right([s for r in rankings for s in r.sequences])
    return reward_model.scores(tokens_MT.to(device), lens_M.to(device))


def score_branches(reward_model, rankings, device):
    """The same scores, with each prompt computed once: K completions of C tokens behind a prompt of
    P cost P + K·C tokens instead of K·(P + C)."""
    lens = [r.shared() for r in rankings]
    prompts_NP, prompt_lens_N = pad_right([r.sequences[0][:p] for r, p in zip(rankings, lens)])
    tails_MC, tail_lens_M = pad_right([s[p:] for r, p in zip(rankings, lens) for s in r.sequences])
    prompt_of_M = torch.arange(len(lens)).repeat_interleave(
        torch.tensor([len(r.sequences) for r in rankings]))
    return reward_model.branch_scores(*(x.to(device) for x in (
        prompts_NP, prompt_lens_N, tails_MC, tail_lens_M, prompt_of_M)))


def micro_batches(rankings, micro_tokens, at_once=1):
    """The rankings in groups of like width; a prompt's completions always stay together, as the
    loss compares them."""
    for group in even_batches([r.width() for r in rankings], micro_tokens, at_once):
        yield [rankings[i] for i in group]


def has_pairs(ranking):
    return len(set(ranking.ranks)) > 1


def loss_of_part(rankings, counted, reward_model):
    """The share of some of a batch's rankings in its loss, the mean over `counted` prompts; and
    (that as a number, accuracy, pairs)."""
    loss, stats = ranking_loss(*score_rankings(reward_model, rankings))
    loss = loss * (sum(map(has_pairs, rankings)) / max(1, counted))
    return loss, (loss.item(), stats["accuracy"], stats["pairs"])


def train_step(reward_model, optimizer, rankings, rate, config):
    """One optimizer step on a batch of prompts; returns its numbers."""
    counted = sum(map(has_pairs, rankings))
    losses, accuracies, pairs = zip(*add_gradients(
        [partial(loss_of_part, part, counted) for part in micro_batches(
            rankings, config.micro_tokens, parts_at_once(reward_model))], reward_model))
    numbers = {"loss": sum(losses), "pairs": sum(pairs), "accuracy": sum(
        a * n for a, n in zip(accuracies, pairs)) / max(1, sum(pairs))}
    check_finite(numbers)
    numbers["grad_norm"] = step_optimizer(reward_model, optimizer, rate, config.max_grad_norm)
    return numbers


@torch.no_grad()
def evaluate(reward_model, rankings, config):
    """Loss, pair accuracy, half the width of its 95 % interval, and the number of pairs. The
    interval is that of a mean over prompts (a prompt's pairs are not independent), pairs weighing
    equally."""
    loss, right_N, pairs_N = 0.0, [], []
    parts = list(micro_batches(rankings, config.micro_tokens))
    for scored in side_by_side([partial(score_rankings, reward_model, part) for part in parts],
                               reward_model.head.weight.device):
        scores_NK, ranks_NK, mask_NK = (x.cpu() for x in scored)
        for row in range(len(scores_NK)):  # which read numbers: a GPU would be waited for in each
            one, stats = ranking_loss(*(x[row:row + 1] for x in (scores_NK, ranks_NK, mask_NK)))
            if stats["pairs"]:
                loss += one.item()
                right_N.append(stats["accuracy"] * stats["pairs"])
                pairs_N.append(stats["pairs"])
    n, pairs = len(pairs_N), sum(pairs_N)
    accuracy = sum(right_N) / max(1, pairs)
    spread = sum((r - accuracy * p) ** 2 for r, p in zip(right_N, pairs_N))
    interval = 1.96 * math.sqrt(spread * n / max(1, n - 1)) / max(1, pairs)
    return {"valid_loss": loss / max(1, n), "valid_accuracy": accuracy,
            "valid_interval": interval, "valid_pairs": pairs}


def load_demonstrations(path, tokenizer, limit, most):
    """Token lists of prompt and response, of those of the first `most` demonstrations that fit."""
    rows = [tokenizer.encode_prompt(d.prompt) + tokenizer.encode_response(d.response)
            for d in read_demonstrations(path)[:most]]
    kept = [row for row in rows if len(row) <= limit]
    if not kept:
        raise InputError(f"{path}: of the first {len(rows)} demonstrations none has at most "
                         f"{limit} tokens; expected some, whose mean score is set to 0")
    return kept


@torch.no_grad()
def demonstration_scores(reward_model, rows, config):
    """scores_M of demonstrations as token lists."""
    device, scores = reward_model.head.weight.device, []
    for group in length_sorted_batches([len(r) for r in rows], config.micro_tokens):
        tokens_MT, lens_M = pad_right([rows[i] for i in group])
        with compute_dtype(device):
            scores.append(reward_model.scores(tokens_MT.to(device), lens_M.to(device)))
    return torch.cat(scores)


def set_bias(reward_model, scores_M):
    """Shift the head's bias so that these scores would have mean 0: the loss fixes rewards only up
    to a constant (§3.5). The bias is a weight, saved and loaded with the others."""
    with torch.no_grad():
        reward_model.head.bias -= scores_M.mean()


def from_gpt(path, tokenizer, config):
    """A ScalarGPT with the decoder of a GPT checkpoint and a new head."""
    gpt = load_model(GPT, path, ("base", "sft"), tokenizer)
    torch.manual_seed(config.seed)
    reward_model = ScalarGPT(gpt.config)
    reward_model.decoder.load_state_dict(gpt.decoder.state_dict())
    return reward_model.to(device_of(config.device, config.dtype))


SHOWN = ("loss", "accuracy", "pairs", "valid_accuracy", "valid_interval")


def main(config):
    tokenizer = load_tokenizer(config.tokenizer)
    reward_model = from_gpt(config.init, tokenizer, config)
    reward_model.decoder.recompute = config.recompute
    compile_decoder(reward_model, config.compile, reward_model.head.weight.device)
    limit = min(config.max_tokens, reward_model.config.n_ctx)
    rankings = load_rankings(config.comparisons, tokenizer, limit, config.limit)
    valid = load_rankings(config.valid, tokenizer, limit, config.limit) if config.valid else []
    demonstrations = load_demonstrations(
        config.demonstrations, tokenizer, limit, config.bias_demonstrations) \
        if config.demonstrations else []
    optimizer = adam(reward_model, config.rate, config.weight_decay)
    stage = Stage("reward", config, reward_model.config, tokenizer)

    batch = config.batch
    if config.shuffle_pairs:  # about as many steps, as many pairs in each
        pairs = split_pairs(rankings)
        rankings, batch = pairs, math.ceil(len(pairs) / steps_of_epoch(len(rankings), batch))
    an_epoch = steps_of_epoch(len(rankings), batch)
    steps = config.epochs * an_epoch
    objects = {"model": reward_model, "optimizer": optimizer}
    for step in range(stage.resume(objects, steps), steps):
        stage.seed_step(step, config.seed)
        rate = cosine_rate(step, steps, config.rate, floor=config.floor)
        chosen = batch_of_epoch(rankings, step, batch, config.seed)
        numbers = train_step(reward_model, optimizer, chosen, rate, config)
        ends_epoch = (step + 1) % an_epoch == 0
        if valid and ends_epoch:
            numbers |= evaluate(reward_model, valid, config)
        stage.log(step, steps, numbers, sum(r.width() for r in chosen),
                  [name for name in SHOWN if name in numbers],
                  printed=ends_epoch or (step + 1) % config.log_every == 0)
        stage.after_step(step, objects, config.save_every)
    if demonstrations:
        set_bias(reward_model, demonstration_scores(reward_model, demonstrations, config))
    stage.finish(reward_model.state_dict(), steps)


if __name__ == "__main__":
    run(main, RewardConfig, __doc__)
