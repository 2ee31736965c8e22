"""Language models: the base model from text, and supervised fine-tuning (§3.5; App. C.1, C.3).

    DATA=runs/world-0/data
    python sft.py --model mini --text $DATA/text.train.txt --epochs 1 --rate 1.5e-3 --batch 8 \\
        --dropout 0 --out runs/world-0/my-base.pt
    python sft.py --init runs/world-0/base.pt --out runs/world-0/my-sft.pt \\
        --demonstrations $DATA/demonstrations.train.jsonl --max_prompt 48 --max_response 40 \\
        --reward runs/world-0/reward.pt --prompts $DATA/prompts.valid.jsonl
    python sft.py --init runs/world-0/base.pt --out runs/world-0/my-start.pt \\
        --demonstrations $DATA/demonstrations.train.jsonl --max_prompt 48 --max_response 40 \\
        --text $DATA/text.train.txt --ptx_fraction 0.1 --epochs 2 --rate 5e-6 --dropout 0

on what ./run.sh leaves. The first trains a base model from a named size (in the paper: GPT-3). The
second is step 1 of InstructGPT: 16 epochs over demonstrations; it over-fits the validation loss
after one epoch, yet goes on improving the reward score, so the epoch to keep is the one whose
answers to validation prompts the reward model likes best. The third is the policy that PPO starts
from: 2 epochs with 10 % pretraining text mixed in (App. C.3). Both take the paper's rates, for its
sizes; ./run.sh takes 1e-3.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from common import (InputError, Stage, check_finite, device_of, load_model, neutral, output_file,
                    run, setting)
from data.batching import (batch_of_epoch, even_batches, length_sorted_batches, pad_right,
                           steps_of_epoch, text_in_order, text_window)
from data.readers import read_demonstrations, read_fitting_prompts, read_text
from data.tokenizer import load_tokenizer
from machine import add_gradients, compile_decoder, parts_at_once
from model import (CONFIGS, GPT, ScalarGPT, adam, compute_dtype, cosine_rate,
                   generate, step_optimizer, target_logprobs)


@dataclass(frozen=True)
class SFTConfig:
    out: str = output_file("the checkpoint to write")
    init: str = setting("", "the checkpoint to start from")
    model: str = setting("", "or the size to start from at random: " + ", ".join(CONFIGS))
    n_ctx: int = setting(0, "context of that size, 0 = its own")
    demonstrations: str = setting("", "training demonstrations, JSON Lines; none: a base model")
    valid: str = setting("", "validation demonstrations: the loss on them after each epoch")
    text: str = setting("", "pretraining text")
    valid_text: str = setting("", "validation text: the loss on it after each epoch")
    ptx_fraction: float = setting(0.0, "text's share of each batch and loss; paper 0.1 for PPO's "
                                       "start, App. C.3")
    reward: str = setting("", "reward model that chooses the epoch to keep, App. C.1")
    prompts: str = setting("", "validation prompts that it judges answers to")
    choose_prompts: int = setting(256, "how many of them; open")
    max_response: int = setting(1024, "tokens of their answers, and of a demonstration; paper 1k")
    max_prompt: int = setting(1024, "prompt tokens, longer ones are dropped; paper 1k, App. A")
    tokenizer: str = setting("world", "world, gpt2, a folder with GPT-2's two files, or *.tiktoken")
    epochs: float = setting(16.0, "passes over the data; paper 16 (PPO's start: 2), App. C.1, C.3")
    batch: int = setting(32, "sequences in a step; paper 32 (175B: 8), App. C.1")
    rate: float = setting(9.65e-6, "peak learning rate; paper 9.65e-6 (175B: 5.03e-6; PPO's start: "
                                   "5e-6, 1.04e-5, 2.45e-6 for 1.3B, 6B, 175B), App. C.1, C.3")
    floor: float = setting(0.1, "cosine decay to this part of the peak; paper 0.1, App. C.1")
    warmup: int = setting(0, "steps of linear warm-up; paper 0, App. C.1")
    dropout: float = setting(0.2, "on the residual stream; paper 0.2, App. C.1")
    weight_decay: float = setting(0.0, "decoupled weight decay; open")
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm, 0 = off; open")
    micro_tokens: int = neutral(16384, "tokens in one forward pass; changes no number but which "
                                       "activations dropout drops")
    recompute: bool = neutral(False, "activations again in the backward pass; saves memory")
    seed: int = setting(0, "first weights, order of the data, dropout")
    log_every: int = neutral(10, "steps between printed lines")
    save_every: int = neutral(200, "steps between checkpoints to resume from")
    compile: str = neutral("auto", "torch.compile training: auto (large models on a GPU), on, off")
    device: str = neutral("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32 or bfloat16 (a GPU's auto; pays on CPUs with AMX)")

    def __post_init__(self):
        if bool(self.init) == bool(self.model):
            raise InputError("expected either --init CHECKPOINT or --model SIZE")
        if self.model and self.model not in CONFIGS:
            raise InputError(f"--model {self.model}: expected one of {', '.join(CONFIGS)}")
        if not self.demonstrations and not self.text:
            raise InputError("expected --demonstrations, --text, or both")
        if self.demonstrations and bool(self.text) != (self.ptx_fraction > 0):
            raise InputError("--text with --demonstrations needs --ptx_fraction, and the other way")
        if self.n_ctx and self.init:
            raise InputError("--n_ctx is of a new --model; a checkpoint keeps the context it has")
        if self.n_ctx and not 2 <= self.n_ctx <= 2**20:
            raise InputError(f"--n_ctx {self.n_ctx}: expected 2 to {2**20}, or 0")
        if not 0 <= self.ptx_fraction < 1:
            raise InputError(f"--ptx_fraction {self.ptx_fraction}: expected 0 up to 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout}: expected 0 up to 1")
        if bool(self.reward) != bool(self.prompts):
            raise InputError("--reward chooses the epoch on --prompts: expected both or neither")


def first_model(config, tokenizer):
    """The model to train, from a checkpoint or with new weights, with dropout."""
    if config.init:
        return load_model(GPT, config.init, ("base", "sft"), tokenizer, dropout=config.dropout)
    shape = replace(CONFIGS[config.model], vocab_size=tokenizer.vocab_size, dropout=config.dropout)
    if config.n_ctx:
        shape = replace(shape, n_ctx=config.n_ctx)
    torch.manual_seed(config.seed)
    return GPT(shape)


def load_demonstrations(path, tokenizer, config, n_ctx):
    """(prompt ids, response ids) of the demonstrations that fit; the others are counted."""
    pairs = [(tokenizer.encode_prompt(d.prompt), tokenizer.encode_response(d.response))
             for d in read_demonstrations(path)]
    kept = [(x, y) for x, y in pairs if len(x) <= config.max_prompt
            and len(y) <= config.max_response and len(x) + len(y) <= n_ctx]
    print(f"{len(kept)} demonstrations in {path}; {len(pairs) - len(kept)} dropped as too long")
    if not kept:
        raise InputError(f"{path}: no demonstration fits")
    return kept


def demonstration_batch(pairs):
    """tokens_BT, and mask_BT that is True on response tokens: prompts carry no loss (*open*)."""
    tokens_BT, lens_B = pad_right([x + y for x, y in pairs])
    prompt_lens_B = torch.tensor([len(x) for x, _ in pairs])
    at_T = torch.arange(tokens_BT.shape[1])
    return tokens_BT, (at_T >= prompt_lens_B[:, None]) & (at_T < lens_B[:, None])


def text_batch(text, step, rows, config, n_ctx):
    """tokens_BT of random windows of text, every token but the first a target."""
    tokens_BT = text_window(text, step, rows, min(n_ctx, len(text)), config.seed)
    return tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool)


def lm_loss(tokens_BT, mask_BT, weight, targets, model):
    """weight times the sum of −log p over the targets, divided by `targets`; that unweighted."""
    device = model.decoder.wte.weight.device
    with compute_dtype(device):
        loss = -target_logprobs(model, tokens_BT.to(device), mask_BT.to(device)).sum() / targets
    return weight * loss, loss.item()


def lm_gradient(model, tokens_BT, mask_BT, weight, micro_tokens):
    """Add weight times the gradient of the mean loss over the batch's targets; returns the loss."""
    targets, parts = mask_BT[:, 1:].sum().item(), []
    lens = (mask_BT * torch.arange(1, mask_BT.shape[1] + 1)).amax(1).tolist()
    for rows in even_batches(lens, micro_tokens, parts_at_once(model)):
        longest = max(lens[i] for i in rows)
        parts.append(partial(lm_loss, tokens_BT[rows, :longest], mask_BT[rows, :longest],
                             weight, targets))
    return sum(add_gradients(parts, model))


@torch.no_grad()
def mean_loss(model, batches, device):
    """Mean −log p a target over (tokens_BT, mask_BT) batches, without dropout."""
    model.eval()
    total, targets = 0.0, 0
    for tokens_BT, mask_BT in batches:
        with compute_dtype(device):
            logprobs_N = target_logprobs(model, tokens_BT.to(device), mask_BT.to(device))
        total, targets = total - logprobs_N.double().sum().item(), targets + len(logprobs_N)
    model.train()
    return total / max(1, targets)


@torch.no_grad()
def reward_of_answers(model, reward_model, prompts, tokenizer, config):
    """scores_N, on the CPU: the reward model's of one sampled answer to each prompt."""
    device, scores = model.decoder.wte.weight.device, []
    for first in range(0, len(prompts), 64):
        with compute_dtype(device):
            samples = generate(model, prompts[first:first + 64], config.max_response,
                               eos=tokenizer.eos)
            scores.append(reward_model.scores(samples.tokens_BT, samples.lens_B))
    return torch.cat(scores).cpu()  # kept in checkpoints, which are loaded there


class Judge:
    """Chooses the epoch to keep: the one with the highest reward-model score (App. C.1), or the
    last where there is no reward model. *Open*: of epochs that cannot be told from the highest,
    since the 95 % interval of the difference holds 0, the last, as more epochs help (App. C.1).
    Part of what a resumed run restores."""

    def __init__(self):
        self.best_N, self.reward, self.weights = None, None, None

    def see(self, scores_N, model):
        """True where this epoch is the one to keep so far. scores_N: of its answers to the same N
        prompts each time; None without a reward model."""
        behind_N = torch.zeros(1) if self.best_N is None else self.best_N - scores_N
        error = behind_N.std(correction=0) / math.sqrt(len(behind_N))
        keep = bool(behind_N.mean() <= 1.96 * error)
        if keep:
            self.reward = None if scores_N is None else scores_N.mean().item()
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if behind_N.mean() < 0 or self.best_N is None:
            self.best_N = scores_N
        return keep

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class Data:
    """What the stage trains on and how its steps and epochs count."""

    def __init__(self, config, tokenizer, n_ctx):
        self.config, self.n_ctx = config, n_ctx
        self.text = tokenizer.encode_documents(read_text(config.text)) if config.text else None
        self.pairs = load_demonstrations(config.demonstrations, tokenizer, config, n_ctx) \
            if config.demonstrations else []
        self.text_rows = config.batch if not self.pairs else \
            max(1, round(config.batch * config.ptx_fraction)) if config.text else 0
        self.pair_rows = min(config.batch - self.text_rows, len(self.pairs))
        if self.pairs and not self.pair_rows:
            raise InputError(f"--batch {config.batch} leaves no room for demonstrations beside text")

    @property
    def steps_per_epoch(self):
        if self.pairs:
            return steps_of_epoch(len(self.pairs), self.pair_rows)
        return max(1, len(self.text) // (self.text_rows * self.n_ctx))

    def parts(self, step):
        """(name, weight in the loss, tokens_BT, mask_BT) of one step's batch."""
        if self.pairs:
            chosen = batch_of_epoch(self.pairs, step, self.pair_rows, self.config.seed)
            yield "loss", 1 - self.config.ptx_fraction, *demonstration_batch(chosen)
        if self.text is not None:
            weight = self.config.ptx_fraction if self.pairs else 1.0
            yield ("text_loss" if self.pairs else "loss", weight,
                   *text_batch(self.text, step, self.text_rows, self.config, self.n_ctx))


class Validation:
    """What is measured after each epoch: losses, and the reward of sampled answers."""

    def __init__(self, config, tokenizer, device, n_ctx):
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.pairs = load_demonstrations(config.valid, tokenizer, config, n_ctx) \
            if config.valid else []
        text = tokenizer.encode_documents(read_text(config.valid_text)) \
            if config.valid_text else []
        self.text = list(text_in_order(text, config.micro_tokens // n_ctx or 1, n_ctx))
        self.reward_model, self.prompts = None, []
        if config.reward:
            self.reward_model = load_model(ScalarGPT, config.reward, ("reward",), tokenizer, device)
            n_ctx = min(n_ctx, self.reward_model.config.n_ctx)
            fitting, _ = read_fitting_prompts(
                config.prompts, tokenizer, min(config.max_prompt, n_ctx - config.max_response))
            # those of like length are answered together
            self.prompts = sorted((ids for _, ids in fitting[:config.choose_prompts]), key=len)

    def measure(self, model):
        """{name: number}, and the answers' scores_N, None without a reward model."""
        numbers, scores_N = {}, None
        if self.pairs:
            groups = length_sorted_batches([len(x) + len(y) for x, y in self.pairs],
                                           self.config.micro_tokens)
            numbers["valid_loss"] = mean_loss(
                model, (demonstration_batch([self.pairs[i] for i in g]) for g in groups),
                self.device)
        if self.text:
            numbers["valid_text_loss"] = mean_loss(
                model, ((t, torch.ones_like(t, dtype=torch.bool)) for t in self.text), self.device)
        if self.reward_model is not None:
            scores_N = reward_of_answers(
                model, self.reward_model, self.prompts, self.tokenizer, self.config)
            numbers["valid_reward"] = scores_N.mean().item()
        return numbers, scores_N


SHOWN = ("loss", "text_loss", "rate", "valid_loss", "valid_text_loss", "valid_reward")


def main(config):
    device = device_of(config.device, config.dtype)
    tokenizer = load_tokenizer(config.tokenizer)
    model = first_model(config, tokenizer).to(device).train()
    model.decoder.recompute = config.recompute
    compile_decoder(model, config.compile, device)
    data = Data(config, tokenizer, model.config.n_ctx)
    validation = Validation(config, tokenizer, device, model.config.n_ctx)
    optimizer = adam(model, config.rate, config.weight_decay)
    judge = Judge()
    stage = Stage("sft" if data.pairs else "base", config, model.config, tokenizer)

    steps = max(1, round(config.epochs * data.steps_per_epoch))
    objects, tokens = {"model": model, "optimizer": optimizer, "judge": judge}, 0
    for step in range(stage.resume(objects, steps), steps):
        stage.seed_step(step, config.seed)
        rate = cosine_rate(step, steps, config.rate, config.warmup, config.floor)
        numbers = {"rate": rate}
        for name, weight, tokens_BT, mask_BT in data.parts(step):
            numbers[name] = lm_gradient(model, tokens_BT, mask_BT, weight, config.micro_tokens)
            tokens += tokens_BT.numel()
        check_finite(numbers)
        numbers["grad_norm"] = step_optimizer(model, optimizer, rate, config.max_grad_norm)
        ends_epoch = (step + 1) % data.steps_per_epoch == 0 or step + 1 == steps
        if ends_epoch:
            measured, scores_N = validation.measure(model)
            numbers |= measured | {"kept": judge.see(scores_N, model)}
        if ends_epoch or (step + 1) % config.log_every == 0:
            stage.log(step, steps, numbers, tokens, [name for name in SHOWN if name in numbers])
            tokens = 0
        stage.after_step(step, objects, config.save_every)
    stage.finish(judge.weights, steps, valid_reward=judge.reward)


if __name__ == "__main__":
    run(main, SFTConfig, __doc__)
