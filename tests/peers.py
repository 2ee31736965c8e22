"""The work of tests/bench.py as others do it, one iteration per line on standard input.

Runs in an environment of its own (tests/peer_env.sh makes it), because TRL's last release line with
PPO and what it needs have no place among this project's packages:

    ppo       TRL 1.9.2's PPOTrainer
    rollout   transformers' generate
    train     a plain loop in the manner of nanoGPT, compiled where a compiler is

Models have random weights. What a peer does beyond the work (saving, printing, sampling examples,
recomputing activations) is switched off. bench.py's own workers speak the same protocol.
"""

import json
import math
import os
import sys
import time
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F


class Turns:
    """The protocol: `ready` once, then for each line of standard input one iteration, answered with
    a line: its seconds and its tokens."""

    def __init__(self):
        self.say, sys.stdout = sys.stdout, sys.stderr  # what others print is not an answer

    def wait(self, first=False):
        """Until it is this worker's turn; ends the process when there are no more."""
        if first:
            print("ready", file=self.say, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # at once, whatever loop this was called from
        self.start = time.perf_counter()

    def answer(self, tokens):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.perf_counter() - self.start, int(tokens), file=self.say, flush=True)

    def serve(self, step):
        """`step()` does an iteration and returns its tokens."""
        self.wait(first=True)
        while True:
            self.answer(step())
            self.wait()


def gpt2_config(b, **more):
    from transformers import GPT2Config
    return GPT2Config(vocab_size=b.vocab, n_positions=b.n_ctx, n_embd=b.d_model, n_layer=b.n_layer,
                      n_head=b.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                      bos_token_id=b.eos_token, eos_token_id=b.eos_token,
                      pad_token_id=b.eos_token, **more)


def random_prompts(b):
    """Like bench.py's: random tokens, never end-of-text, all of one length."""
    return torch.randint(b.eos_token, (b.batch, b.prompt))


def response_lengths(b):
    """An iterator: how long each response of an iteration is, the same here and in bench.py. With
    --eos a token in b.vocab ends one, as if the end of text were as likely as any other."""
    draws = torch.Generator().manual_seed(b.seed)
    while True:
        uniform_B = torch.rand(b.batch, generator=draws, dtype=torch.float64).clamp(min=1e-9)
        ends_B = (uniform_B.log() / math.log1p(-1 / b.vocab)).long() + 1
        yield ends_B.clamp(max=b.response) if b.eos else torch.full((b.batch,), b.response)


class Ends:
    """A logits processor: responses end where `response_lengths` says and nowhere else."""

    def __init__(self, b):
        self.b, self.lengths = b, response_lengths(b)

    def __call__(self, tokens_BT, scores_BV):
        number = tokens_BT.shape[1] - self.b.prompt + 1
        if number == 1:
            self.lens_B = next(self.lengths).to(tokens_BT.device)
        if not self.b.eos:
            return scores_BV
        others_V = torch.arange(self.b.vocab, device=tokens_BT.device) != self.b.eos_token
        return scores_BV.masked_fill((self.lens_B == number)[:, None] == others_V, -1e9)


def language_model(b):
    """A random GPT-2, and how it ends what it generates."""
    from transformers import GPT2LMHeadModel
    model, ends = GPT2LMHeadModel(gpt2_config(b)), Ends(b)
    model.generate = partial(model.generate, logits_processor=[ends])
    return model, ends


# -- transformers' generate -----------------------------------------------------------------------


def rollout(b, turns):
    model, ends = language_model(b)
    model.to(b.device, b.torch_dtype).eval()
    model.generation_config.eos_token_id = b.eos_token if b.eos else None

    @torch.no_grad()
    def step():
        prompts_BP = random_prompts(b).to(b.device)
        model.generate(prompts_BP, attention_mask=torch.ones_like(prompts_BP), do_sample=True,
                       top_k=0, top_p=1.0, max_new_tokens=b.response)
        return ends.lens_B.sum()
    turns.serve(step)


# -- TRL's PPOTrainer -----------------------------------------------------------------------------


def ppo(b, turns):
    """train() owns its loop, which waits for its turn in a callback."""
    from transformers import GPT2ForSequenceClassification, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    (policy, ends), (reference, _) = language_model(b), language_model(b)

    class TakeTurns(TrainerCallback):
        def on_train_begin(self, *args, **more):
            turns.wait(first=True)

        def on_step_end(self, *args, **more):
            turns.answer(ends.lens_B.sum())
            turns.wait()

    config = PPOConfig(
        output_dir=os.path.join(b.scratch, "trl"), report_to="none", save_strategy="no",
        use_cpu=b.device == "cpu", bf16=b.torch_dtype == torch.bfloat16,
        gradient_checkpointing=False, disable_tqdm=True, num_sample_generations=0,
        logging_steps=10**9, total_episodes=10**6 * b.batch, per_device_train_batch_size=b.batch,
        gradient_accumulation_steps=1, num_mini_batches=b.minibatches, num_ppo_epochs=1,
        local_rollout_forward_batch_size=b.batch, response_length=b.response, temperature=1.0,
        stop_token_id=b.eos_token if b.eos else None, learning_rate=1e-6, kl_coef=0.02)
    reward, value = (GPT2ForSequenceClassification(gpt2_config(b, num_labels=1)) for _ in range(2))
    prompts = [row for _ in range(4) for row in random_prompts(b)]
    PPOTrainer(
        args=config, model=policy, ref_model=reference, reward_model=reward, value_model=value,
        processing_class=SimpleNamespace(pad_token_id=b.eos_token, eos_token_id=b.eos_token),
        train_dataset=[{"input_ids": row} for row in prompts],
        data_collator=lambda rows: {"input_ids": torch.stack([r["input_ids"] for r in rows])},
        callbacks=[TakeTurns()]).train()


# -- a plain training loop, in the manner of nanoGPT ----------------------------------------------


class PlainBlock(nn.Module):
    def __init__(self, b):
        super().__init__()
        self.n_head, D = b.n_head, b.d_model
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.c_attn, self.c_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.c_fc, self.c_out, self.gelu = nn.Linear(D, 4 * D), nn.Linear(4 * D, D), nn.GELU()

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (u.view(B, T, self.n_head, D // self.n_head).transpose(1, 2)
                   for u in self.c_attn(self.ln_1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.c_out(self.gelu(self.c_fc(self.ln_2(x))))


class PlainGPT(nn.Module):
    def __init__(self, b):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(b.vocab, b.d_model), nn.Embedding(b.n_ctx, b.d_model)
        self.h = nn.ModuleList(PlainBlock(b) for _ in range(b.n_layer))
        self.ln_f, self.head = nn.LayerNorm(b.d_model), nn.Linear(b.d_model, b.vocab, bias=False)
        self.head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def train(b, turns):
    model = PlainGPT(b).to(b.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    forward = model if b.peer_eager else torch.compile(model)
    low = b.torch_dtype == torch.bfloat16

    def step():
        tokens = torch.randint(b.vocab, (b.batch, b.prompt + b.response + 1), device=b.device)
        with torch.autocast(b.device, dtype=torch.bfloat16, enabled=low):
            loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return b.batch * (b.prompt + b.response)
    turns.serve(step)


if __name__ == "__main__":
    settings = SimpleNamespace(**json.loads(sys.argv[2]))
    settings.torch_dtype = getattr(torch, settings.dtype)
    torch.set_num_threads(settings.threads)
    {"ppo": ppo, "rollout": rollout, "train": train}[sys.argv[1]](settings, Turns())
