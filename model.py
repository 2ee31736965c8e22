"""The models of InstructGPT (App. C): a GPT decoder and the same decoder with a scalar head.

Reads top to bottom: sizes, attention as a definition, the decoder, its two heads, log-probabilities
and the language-model loss, sampling with a key/value cache, and the optimizer every stage uses.

Shapes (SPEC key): B batch, P prompt, R response, T = P + R tokens, V vocabulary, D d_model, H heads,
d = D / H, S cached positions, N any flat selection. One layout for every sequence: prompt, response,
padding, from column 0. Causal attention cannot look right, so padding needs no mask in training.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from machine import (Replayed, gpu_memory, in_parts, packed, parts_at_once, positions_at_once,
                     product_dtype, row_length, threads, wide_product)

# -- sizes (App. C; GPT-3, Table 2.1; GPT-2, Table 2) -------------------------------------------


@dataclass(frozen=True)
class GPTConfig:
    """A decoder's shape. Raises ValueError where the heads do not divide the width."""

    vocab_size: int
    n_ctx: int
    n_layer: int
    n_head: int
    d_model: int
    dropout: float = 0.0  # on what each block adds to the residual stream (App. C.1)

    def __post_init__(self):
        for name in ("vocab_size", "n_ctx", "n_layer", "n_head", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def head_size(self):
        return self.d_model // self.n_head


_GPT2 = GPTConfig(vocab_size=50257, n_ctx=1024, n_layer=12, n_head=12, d_model=768)
_GPT3 = GPTConfig(vocab_size=50257, n_ctx=2048, n_layer=24, n_head=16, d_model=2048)
_MINI = GPTConfig(vocab_size=1024, n_ctx=128, n_layer=4, n_head=4, d_model=128)
CONFIGS = {
    # *scaled*: for the embedded world, "1.3B, 6B, 175B" in miniature (0.3, 1 and 4 million)
    "mini-s": replace(_MINI, n_layer=3, d_model=80),
    "mini": _MINI,
    "mini-l": replace(_MINI, n_layer=5, n_head=8, d_model=256),
    "distilgpt2": replace(_GPT2, n_layer=6),
    "gpt2": _GPT2,
    "gpt2-medium": replace(_GPT2, n_layer=24, n_head=16, d_model=1024),
    "gpt2-large": replace(_GPT2, n_layer=36, n_head=20, d_model=1280),
    "gpt2-xl": replace(_GPT2, n_layer=48, n_head=25, d_model=1600),
    # GPT-3's table prints 24 heads of 128 for 1.3B, which do not make 2048: 16 heads (deviation 1)
    "1.3B": _GPT3,
    "6B": replace(_GPT3, n_layer=32, n_head=32, d_model=4096),
    "175B": replace(_GPT3, n_layer=96, n_head=96, d_model=12288),
}

# -- attention ----------------------------------------------------------------------------------


def attention(q_BHTd, k_BHSd, v_BHSd, mask=None):
    """Scaled dot-product attention as it is defined; the oracle for the fused one.

        softmax(q kᵀ / √d) v,   the softmax over the positions s that query t may see

    `mask` (broadcast to B×H×T×S, True = may see) defaults to the causal s ≤ t. Returns B×H×T×d.
    """
    T, S, d = q_BHTd.shape[-2], k_BHSd.shape[-2], q_BHTd.shape[-1]
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q_BHTd.device).tril()
    scores_BHTS = q_BHTd @ k_BHSd.transpose(-2, -1) / math.sqrt(d)
    return scores_BHTS.masked_fill(~mask, float("-inf")).softmax(-1) @ v_BHSd


def fused_attention(q_BHTd, k_BHSd, v_BHSd, mask=None):
    """The same numbers as `attention` from torch's fused kernels, without the T×S matrix."""
    if q_BHTd.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # torch's kernel for a CPU is faster in fp32, its backward pass three times
        with torch.autocast("cpu", enabled=False):
            return fused_attention(q_BHTd.float(), k_BHSd.float(), v_BHSd.float(), mask)
    return F.scaled_dot_product_attention(
        q_BHTd, k_BHSd, v_BHSd, attn_mask=mask, is_causal=mask is None)


def attend_all(q_BTHd, k_BSHd, v_BSHd, mask=None):
    """The same in the order in which a layer's products leave a token's heads."""
    q, k, v = (u.transpose(1, 2) for u in (q_BTHd, k_BSHd, v_BSHd))
    return fused_attention(q, k, v, mask).transpose(1, 2)


def attend_once(q_BHd, k_BHSd, v_BHSd, bias_B11S):
    """The same for one query a row, while sampling; bias_B11S is 0 where it may look, −∞ where
    not. There is no T×S matrix to avoid, and on a CPU three plain operations are the fastest."""
    B, H, S, d = k_BHSd.shape
    if q_BHd.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHd[:, :, None], k_BHSd, v_BHSd,
                                              attn_mask=bias_B11S)[:, :, 0]
    scores = torch.baddbmm(bias_B11S.expand(B, H, 1, S).reshape(B * H, 1, S),
                           q_BHd.reshape(B * H, 1, d), k_BHSd.flatten(0, 1).transpose(1, 2),
                           alpha=1 / math.sqrt(d))
    return (scores.softmax(-1) @ v_BHSd.flatten(0, 1)).view(B, H, d)


class KVCache:
    """Keys and values of every layer, S positions a row; each row writes at its own length.

    Attention looks at all S, and a processor reads them without a gap: with gaps it takes twice as
    long on a CPU. As the longest row grows, so does S, by `block` positions at a time."""

    def __init__(self, block=1):
        self.block, self.keys, self.values = block, [], []

    def room(self, positions):
        return -(-positions // self.block) * self.block

    def prefill(self, q_BPHd, k_BPHd, v_BPHd):
        """Attention of the prompts among themselves, whose keys and values stay: one layer's, after
        those of the layers below."""
        B, P, H, d = k_BPHd.shape
        for kept, new_BPHd in (self.keys, k_BPHd), (self.values, v_BPHd):
            kept.append(new_BPHd.new_zeros(B, H, self.room(P + 1), d))
            kept[-1][:, :, :P] = new_BPHd.transpose(1, 2)
        return attend_all(q_BPHd, k_BPHd, v_BPHd)

    def start(self, lens_B, rows_B=None):
        """Row b goes on at position lens_B[b] after what row rows_B[b] holds so far; None: after its
        own."""
        self.lens_B, self.longest = lens_B.clone(), int(lens_B.max())
        self.lay_out(rows_B)

    def lay_out(self, rows_B=None):
        """Only these rows, with just the room that the longest one's next token needs. Where that
        token's keys and values go is counted through all rows' heads. Beyond its length a row holds
        keys and values of its prompt's padding, and zeros: a bias of −∞ hides them."""
        more = self.room(self.longest + 1) - self.shown
        for kept in self.keys, self.values:
            for layer, old in enumerate(kept):  # one at a time: its memory serves the next
                old = old if rows_B is None else old[rows_B]
                kept[layer] = F.pad(old, (0, 0, 0, more)) if more else old
        (B, H, S, _), device = self.keys[0].shape, self.lens_B.device
        self.at_N = torch.arange(B * H, device=device) * S + self.lens_B.repeat_interleave(H)
        hidden_BS = torch.arange(S, device=device) > self.lens_B[:, None]
        self.bias_BS = self.keys[0].new_zeros(B, S).masked_fill_(hidden_BS, float("-inf"))

    def advance(self):
        """The next token is in, in every layer. Changes its tensors in place, as `decode` may have
        been recorded with them, until there are more positions."""
        self.lens_B += 1
        self.longest += 1
        if self.longest == self.shown:
            self.lay_out()
        else:
            self.at_N += 1
            self.bias_BS.scatter_(1, self.lens_B[:, None], 0.0)

    @property
    def shown(self):
        """Positions that attention looks at: all rows' pasts, the next token, and some hidden."""
        return self.keys[0].shape[2]

    def bias(self):
        """bias_BH1S of the next token's attention, in every layer: 0 on its row's past and itself,
        −∞ beyond. (A CPU's products want it head by head: it is copied once, not in each layer.)"""
        bias_B11S = self.bias_BS[:, None, None]
        if bias_B11S.device.type != "cpu":
            return bias_B11S
        return bias_B11S.expand(-1, self.keys[0].shape[1], -1, -1).contiguous()

    def attend(self, layer, bias_BH1S, q_BHd, k_BHd, v_BHd):
        """Attention of one token a row to its row's past and itself, whose key and value stay."""
        d = k_BHd.shape[-1]
        for kept_BHSd, new_BHd in (self.keys[layer], k_BHd), (self.values[layer], v_BHd):
            kept_BHSd.view(-1, d).index_copy_(0, self.at_N, new_BHd.reshape(-1, d))
        return attend_once(q_BHd, self.keys[layer], self.values[layer], bias_BH1S)

    def keep(self, alive_B):
        """Only the rows that are alive go on."""
        rows_b = alive_B.nonzero()[:, 0]  # once: a GPU waits at each mask that picks rows
        self.start(self.lens_B[rows_b], rows_b)


# -- the decoder (GPT-2: learned positions, pre-LayerNorm, biases, tanh-GELU, 4·D feed-forward) ---


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.d_model, 3 * config.d_model)
        self.c_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x, attend=attend_all):
        """x is B×T×D, or B×D while sampling, when `attend(q, k, v)` is a cache's method; H×d stands
        for D in what it takes and returns."""
        q, k, v = self.c_attn(x).view(*x.shape[:-1], 3, self.n_head, -1).unbind(-3)
        return self.c_proj(attend(q, k, v).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, 4 * config.d_model)
        self.c_proj = nn.Linear(4 * config.d_model, config.d_model)

    def forward(self, x):
        return self.c_proj(self.expand(x))

    def expand(self, x):
        return F.gelu(self.c_fc(x), approximate="tanh")


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.d_model), SelfAttention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.d_model), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, attend=attend_all):
        x = x + self.dropout(self.attn(self.ln_1(x), attend))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class Decoder(nn.Module):
    """Tokens to final hidden states. Modules carry GPT-2's published names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.n_ctx, config.d_model)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model)
        self.recompute = False
        self._init_weights()

    def _init_weights(self):
        """GPT-2's normal weights of deviation 0.02 at its width of 768. *Open*: other widths keep
        the size of each product. Queries, keys and values start with unit variance, so that
        attention is not near uniform at first. Positions are learned, but start as sinusoids of
        the other weights' deviation (Vaswani et al. 2017, §3.5; their base is 10000, here it is
        1000). With both, a small model finds heads that look a fixed distance back, and with them
        how to copy, in less text."""
        std = 0.02 * math.sqrt(768 / self.config.d_model)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # 2L of these add up on the residual stream
                nn.init.normal_(p, std=std / math.sqrt(2 * self.config.n_layer))
            elif name.endswith("c_attn.weight"):
                nn.init.normal_(p, std=self.config.d_model**-0.5)
            elif p.dim() == 2:
                nn.init.normal_(p, std=std)
            elif name.endswith(("c_attn.bias", "c_fc.bias", "c_proj.bias")):
                nn.init.zeros_(p)
        T, D = self.wpe.weight.shape
        angle_TD = torch.arange(T)[:, None] * 1000.0 ** (-torch.arange(0, D, 2) / D)
        waves_TD = torch.cat([angle_TD.sin(), angle_TD.cos()], 1)[:, :D]
        with torch.no_grad():
            self.wpe.weight.copy_(math.sqrt(2) * std * waves_TD)

    def forward(self, tokens_BT):
        """hidden_BTD; raises ValueError where T exceeds the context."""
        T = tokens_BT.shape[1]
        if T > self.config.n_ctx:
            raise ValueError(f"{T} tokens are more than the context of {self.config.n_ctx}")
        x_BTD = self.wte(tokens_BT) + self.wpe.weight[:T]
        for block in self.h:
            x_BTD = self.run(block, x_BTD)
        return self.ln_f(x_BTD)

    def run(self, layer, *args):
        """layer(*args); with `recompute` the backward pass runs it again from its inputs."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def branch(self, prompts_NP, prompt_lens_N, tails_MC, prompt_of_M):
        """hidden_MCD of M tails, tail m as if it stood behind prompt prompt_of_M[m], which goes
        through the model once for all its tails: in every layer they attend to its keys and values
        and, causally, to their own."""
        P, C, start_M1 = prompts_NP.shape[1], tails_MC.shape[1], prompt_lens_N[prompt_of_M, None]
        at_C, at_S = (torch.arange(n, device=tails_MC.device) for n in (C, P + C))
        own_CS = (at_S >= P) & (at_S - P <= at_C[:, None])
        mask_M1CS = ((at_S < start_M1)[:, None] | own_CS)[:, None]

        def both(block, x_NPD, x_MCD):
            kept = []

            def attend_and_keep(q, k, v):
                kept.extend((k, v))
                return attend_all(q, k, v)

            def attend_to_both(q, *own):
                k, v = (torch.cat([u[prompt_of_M], w], 1) for u, w in zip(kept, own))
                return attend_all(q, k, v, mask_M1CS)

            return block.forward(x_NPD, attend_and_keep), block.forward(x_MCD, attend_to_both)

        x_NPD = self.wte(prompts_NP) + self.wpe.weight[:P]
        x_MCD = self.wte(tails_MC) + self.wpe((start_M1 + at_C).clamp(max=self.config.n_ctx - 1))
        for block in self.h:
            x_NPD, x_MCD = self.run(both, block, x_NPD, x_MCD)
        return self.ln_f(x_MCD)

    def prefill(self, tokens_BP, cache):
        """`forward` that leaves its keys and values in an empty cache."""
        x_BPD = self.wte(tokens_BP) + self.wpe.weight[:tokens_BP.shape[1]]
        for block in self.h:
            x_BPD = block.forward(x_BPD, cache.prefill)
        return self.ln_f(x_BPD)

    def decode(self, tokens_B, cache):
        """hidden_BD of each row's next token, at its position cache.lens_B; its keys and values are
        in the cache, which `advance` then makes count."""
        x_BD, bias_BH1S = self.wte(tokens_B) + self.wpe(cache.lens_B), cache.bias()
        for layer, block in enumerate(self.h):
            x_BD = block.forward(x_BD, partial(cache.attend, layer, bias_BH1S))
        return self.ln_f(x_BD)

    def begin(self, prompts_nP, start_b, prompt_of_b=None):
        """The `Past` of rows that begin with prompts. (`machine.packed` may put another way here.)"""
        return Past(self, prompts_nP, start_b, prompt_of_b)


class Past:
    """What rows of tokens have left behind in a decoder's layers, from where they go on, a token
    each. `hidden_BD` are the final hidden states at the last tokens of their prompts."""

    def __init__(self, decoder, prompts_nP, start_b, prompt_of_b):
        """Row b begins with the first start_b[b] tokens of prompt prompt_of_b[b]; None: of its
        own."""
        device, of_b = prompts_nP.device, prompt_of_b
        if prompt_of_b is None:
            of_b = torch.arange(len(start_b), device=device)
        # of the rows, so many at most are left when leaving the others behind pays: their cache is
        # copied, and a step is recorded anew
        self.worth = 0.75 if device.type == "cpu" else 0.5
        self.cache = KVCache(positions_at_once(device))
        self.decode = Replayed(partial(decoder.decode, cache=self.cache), device)
        self.hidden_BD = decoder.prefill(prompts_nP, self.cache)[of_b, start_b - 1]
        self.cache.start(start_b, prompt_of_b)

    def step(self, tokens_B):
        """hidden_BD of one more token a row."""
        hidden_BD = self.decode(tokens_B, (len(tokens_B), self.cache.shown))
        self.cache.advance()
        return hidden_BD

    def keep(self, alive_B):
        """Only the rows that are alive go on."""
        self.cache.keep(alive_B)


class WideProduct(torch.autograd.Function):
    """x_ND · w_VDᵀ, N×V in fp32, of factors in autocast's dtype; gradients likewise."""

    @staticmethod
    def forward(ctx, x_ND, w_VD):
        ctx.dtypes, low = (x_ND.dtype, w_VD.dtype), product_dtype(w_VD)
        x_ND, w_VD = x_ND.to(low), w_VD.to(low)
        ctx.save_for_backward(x_ND, w_VD)
        return wide_product(x_ND, w_VD.t())

    @staticmethod
    def backward(ctx, grad_NV):
        x_ND, w_VD = ctx.saved_tensors
        (N, V), (x_dtype, w_dtype) = grad_NV.shape, ctx.dtypes
        W, grad_NW, w_WD = row_length(V, grad_NV.device), grad_NV, w_VD
        if W > V:  # zeros behind: in the copy that rounds
            grad_NW = grad_NV.new_empty(N, W, dtype=x_ND.dtype)
            grad_NW[:, :V], grad_NW[:, V:] = grad_NV, 0
            w_WD = F.pad(w_VD, (0, 0, 0, W - V))
        grad_NW = grad_NW.to(x_ND.dtype)
        return (wide_product(grad_NW, w_WD).to(x_dtype),
                wide_product(grad_NW.t(), x_ND)[:V].to(w_dtype))


class GPT(nn.Module):
    """A language model: the decoder, unembedded by its own token embedding."""

    def __init__(self, config):
        super().__init__()
        self.config, self.decoder = config, Decoder(config)

    def unembed(self, hidden_ND):
        """logits_NV; any leading shape N. Under autocast only the factors are rounded: GPT-2's
        logits lie around −60, where bf16 has steps of a quarter."""
        weight_VD = self.decoder.wte.weight
        if torch.is_autocast_enabled(hidden_ND.device.type):
            return WideProduct.apply(hidden_ND.flatten(0, -2), weight_VD).unflatten(
                0, hidden_ND.shape[:-1])
        return F.linear(hidden_ND, weight_VD)

    def forward(self, tokens_BT):
        """logits_BTV; raises ValueError where T exceeds the context."""
        return self.unembed(self.decoder(tokens_BT))


class ScalarGPT(nn.Module):
    """Reward model and value function: the unembedding replaced by one projection to a scalar
    (§3.5). The reward is the scalar at a completion's last token; the value function gives one
    per position."""

    def __init__(self, config):
        super().__init__()
        self.config, self.decoder = config, Decoder(config)
        self.head = nn.Linear(config.d_model, 1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(config.d_model + 1))  # Stiennon et al.
        nn.init.zeros_(self.head.bias)

    def project(self, hidden_ND):
        """One scalar for each hidden state, in fp32; any leading shape N."""
        weight_1D, bias_1 = at_least_fp32(self.head.weight), at_least_fp32(self.head.bias)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return F.linear(at_least_fp32(hidden_ND), weight_1D, bias_1).squeeze(-1)

    def forward(self, tokens_BT):
        """scalars_BT in fp32, bias included."""
        return self.project(self.decoder(tokens_BT))

    def scores(self, tokens_BT, lens_B):
        """scores_B: the scalar at each row's last token, position lens_B − 1."""
        return self(tokens_BT).gather(1, lens_B[:, None] - 1).squeeze(1)

    def branch_scores(self, prompts_NP, prompt_lens_N, tails_MC, tail_lens_M, prompt_of_M):
        """scores_M of prompts followed by tails; see `Decoder.branch`."""
        hidden_MCD = self.decoder.branch(prompts_NP, prompt_lens_N, tails_MC, prompt_of_M)
        return self.project(hidden_MCD[torch.arange(len(tail_lens_M)), tail_lens_M - 1])


# -- log-probabilities and the language-model loss ------------------------------------------------


def at_least_fp32(x):
    """Losses and log-probs are never computed below fp32; float64 stays as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def log_softmax(logits_NV, temperature=1.0):
    """log p of softmax(logits / temperature), the only place where a temperature is applied.

    Temperature 0 is the limit: log-prob 0 on the first of the largest logits, −∞ elsewhere.
    Raises ValueError where the temperature is negative or not finite.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, not {temperature}")
    logits_NV = at_least_fp32(logits_NV)
    if temperature == 0:
        best_N1 = logits_NV.argmax(-1, keepdim=True)
        return torch.full_like(logits_NV, float("-inf")).scatter(-1, best_N1, 0.0)
    if temperature < 1e-20:  # logits / temperature could be ∞, and ∞ − ∞ is no number
        logits_NV = logits_NV - logits_NV.amax(-1, keepdim=True)
        temperature = max(temperature, torch.finfo(logits_NV.dtype).tiny)
    return F.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, -1)


def chosen_logprobs(logits_NV, tokens_N, temperature=1.0):
    """log p(token) under each row's distribution; any leading shape N, at least fp32."""
    return log_softmax(logits_NV, temperature).gather(-1, tokens_N[..., None]).squeeze(-1)


def token_logprobs(logits_BTV, tokens_BT, temperature=1.0):
    """log p(tokens[:, t + 1] | tokens up to t) for t = 0 … T−2: B×(T−1), fp32.

        column:     0    1    2    3            logits at column t predict
        tokens:     a    b    c    d            the token in column t + 1
        logprobs:   b|a  c|ab d|abc
    """
    return chosen_logprobs(logits_BTV[:, :-1], tokens_BT[:, 1:], temperature)


def lm_loss(logits_BTV, tokens_BT, mask_BT):
    """Mean −log p over the targets whose mask is True (column 0 predicts nothing and never
    counts); 0 where there are none."""
    kept_BT = mask_BT[:, 1:].bool()  # zeros and ones would be taken for row numbers
    logprobs_N = chosen_logprobs(logits_BTV[:, :-1][kept_BT], tokens_BT[:, 1:][kept_BT])
    return -logprobs_N.sum() / max(1, len(logprobs_N))


LOGITS_AT_ONCE = 2**26  # elements of N×V held at a time: 256 MiB in fp32


def logits_at_once(memory):
    """The same where a GPU has so many bytes: an eighth of them, at the 20 that an element takes in
    training (data/plan.py). Chunks are computed twice, a pass that is one chunk is not."""
    return max(LOGITS_AT_ONCE, int(memory) // 160)


def target_logprobs(model, tokens_BT, mask_BT, temperature=1.0):
    """`token_logprobs` of the N targets whose mask is True, row by row: N, fp32.

    Only their positions are unembedded, in chunks that are recomputed in the backward pass, so
    that memory does not grow with T×V.
    """
    hidden_ND = model.decoder(tokens_BT)[:, :-1][mask_BT[:, 1:]]
    targets_N = tokens_BT[:, 1:][mask_BT[:, 1:]]

    def logprobs(hidden_nD, targets_n):
        return chosen_logprobs(model.unembed(hidden_nD), targets_n, temperature)

    size = max(1, logits_at_once(gpu_memory(hidden_ND.device)) // model.config.vocab_size)
    if len(targets_N) <= size:
        return logprobs(hidden_ND, targets_N)
    return torch.cat([checkpoint(logprobs, h, t, use_reentrant=False)
                      for h, t in zip(hidden_ND.split(size), targets_N.split(size))])


def response_positions(prompt_lens_B, mask_BR, T):
    """mask_BT, True on the response tokens that mask_BR counts, which start at prompt_lens_B."""
    step_BT = torch.arange(T, device=mask_BR.device) - prompt_lens_B[:, None]
    return (step_BT >= 0) & (step_BT < mask_BR.sum(1, keepdim=True))


def response_logprobs(model, tokens_BT, prompt_lens_B, mask_BR, temperature=1.0):
    """log π(a_t | s_t) of every response token: B×R in fp32, 0 outside the mask."""
    mask_BT = response_positions(prompt_lens_B, mask_BR, tokens_BT.shape[1])
    logprobs_N = target_logprobs(model, tokens_BT, mask_BT, temperature)
    return torch.zeros(mask_BR.shape, device=mask_BR.device, dtype=logprobs_N.dtype
                       ).masked_scatter(mask_BR, logprobs_N)


def response_values(value_model, tokens_BT, prompt_lens_B, mask_BR):
    """V(s_t) for every response token: B×R, 0 outside the mask. The state s_t is all that stands
    before token t, so its value is read one position earlier, where its logits are too."""
    mask_BT = response_positions(prompt_lens_B, mask_BR, tokens_BT.shape[1])
    values_N = value_model(tokens_BT)[:, :-1][mask_BT[:, 1:]]
    return torch.zeros(mask_BR.shape, device=mask_BR.device, dtype=values_N.dtype
                       ).masked_scatter(mask_BR, values_N)


# -- sampling -----------------------------------------------------------------------------------


class Samples(NamedTuple):
    """What `generate` returns; T = longest prompt + R, R = max_new_tokens."""

    tokens_BT: torch.Tensor  # prompt, response, then zeros
    prompt_lens_B: torch.Tensor
    lens_B: torch.Tensor  # prompt and response, the end-of-text token included
    logprobs_BR: torch.Tensor  # of response token i under the distribution it was drawn from
    mask_BR: torch.Tensor  # True where response token i was sampled


def pad_prompts(prompts, width, device):
    """tokens_BT of `width` columns, zeros after each prompt, and prompt_lens_B."""
    lens_B = torch.tensor([len(p) for p in prompts], device=device)
    rows = [list(p) + [0] * (width - len(p)) for p in prompts]
    return torch.tensor(rows, dtype=torch.long, device=device), lens_B


def draw(logprobs_BV, uniform_B):
    """One token a row by the inverse of its distribution function: the first token whose
    cumulative probability exceeds a uniform number."""
    cdf_BV = logprobs_BV.exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf_BV, uniform_B[:, None] * cdf_BV[:, -1:], right=True
                              ).squeeze(1).clamp(max=logprobs_BV.shape[1] - 1)


def generate(model, prompts, max_new_tokens, temperature=1.0, eos=None, generator=None, at_once=0):
    """Sample one response to each prompt from the model's whole distribution at `temperature`.

    `prompts` is a list of token lists of any lengths. Temperature 0 is greedy: the likeliest token,
    whose log-prob is then 0. A response ends with the first `eos`, which is part of it; nothing
    after it is sampled. Random numbers come from `generator`, a torch.Generator of any device, or
    torch's own where there is none. `at_once` bounds the rows sampled together, 0 = all. A small
    model on a CPU samples by a process a core (machine.in_parts), the same rows. Returns `Samples`.
    Raises ValueError for no prompt, an empty one, a negative temperature, or too much for the
    context.
    """
    samples, uniform_RB = empty_samples(model, prompts, max_new_tokens, generator)
    (B, R), device = samples.mask_BR.shape, uniform_RB.device
    parts = parts_at_once(model) if B * R >= IN_PARTS_FROM else 1
    rows = torch.arange(B, device=device).split(-(-B // parts))
    low = torch.is_autocast_enabled(device.type)
    work = [partial(sample_part, Samples(*(x[rows_b] for x in samples)), uniform_RB[:, rows_b],
                    temperature, eos, -(-at_once // parts), low) for rows_b in rows]
    modes = {module: module.training for module in model.modules()}
    model.eval()  # no dropout while sampling
    try:
        found = in_parts(work, model) if parts > 1 else [work[0](model)]
    finally:
        for module, training in modes.items():
            module.training = training
    return Samples(*map(torch.cat, zip(*found)))


IN_PARTS_FROM = 1024  # response tokens: fewer are not worth another process's while


def sample_part(samples, uniform_RB, temperature, eos, at_once, low, model):
    """These samples, filled, at most `at_once` rows at a time; `low`: under autocast."""
    device, B = uniform_RB.device, len(samples.lens_B)
    # the faster inference mode has no cache, and would convert the weights anew at every step
    with (torch.no_grad() if low else torch.inference_mode(), packed(model, at_once or B),
          torch.autocast(device.type, enabled=low, cache_enabled=True)):
        for rows_b in torch.arange(B, device=device).split(at_once or B):
            for _ in sample_rows(model, samples, rows_b, uniform_RB, temperature, eos):
                pass
    return samples


@torch.no_grad()
def sample_steps(model, prompts, max_new_tokens, temperature=1.0, eos=None, generator=None):
    """The steps of `generate`, for who wants to watch: yields its `Samples` after each token a row,
    the same tensors, filled so far. Dropout is as the model has it."""
    samples, uniform_RB = empty_samples(model, prompts, max_new_tokens, generator)
    rows_b = torch.arange(len(prompts), device=samples.tokens_BT.device)
    for _ in sample_rows(model, samples, rows_b, uniform_RB, temperature, eos):
        yield samples


def empty_samples(model, prompts, max_new_tokens, generator):
    """Samples of the prompts and no response yet, and uniform_RB: one number a step and row, so
    that a row's draw does not depend on which rows still run."""
    if not prompts or min(map(len, prompts)) == 0:
        raise ValueError("generate needs at least one prompt, each of at least one token")
    B, P, R = len(prompts), max(map(len, prompts)), max_new_tokens
    if R < 1 or P + R > model.config.n_ctx:
        raise ValueError(f"a prompt of {P} tokens and {R} new ones do not fit the context of "
                         f"{model.config.n_ctx}")
    device = model.decoder.wte.weight.device
    tokens_BT, prompt_lens_B = pad_prompts(prompts, P + R, device)
    samples = Samples(tokens_BT, prompt_lens_B, prompt_lens_B.clone(),
                      torch.zeros(B, R, device=device), tokens_BT.new_zeros(B, R, dtype=torch.bool))
    return samples, torch.rand(R, B, dtype=torch.float64, generator=generator,
                               device=generator.device if generator else device).to(device)


def sample_rows(model, samples, rows_b, uniform_RB, temperature, eos):
    """Sample the responses of these rows into `samples`, a token each from one yield to the next;
    finished rows leave. (Made outside of inference mode, the tensors of `samples` stay ordinary
    ones, which training may use.)"""
    tokens_BT, prompt_lens_B, lens_B, logprobs_BR, mask_BR = samples
    start_b = prompt_lens_B[rows_b]
    P, R = int(start_b.max()), mask_BR.shape[1]
    alive = torch.ones_like(rows_b, dtype=torch.bool)  # which of the rows have not ended
    look_every = 1 if rows_b.device.type == "cpu" else 8  # steps; to look makes a GPU wait
    # a prompt that several rows have goes through the model once
    prompts_nP, prompt_of_b = tokens_BT[rows_b, :P].unique(dim=0, return_inverse=True)
    if len(prompts_nP) == len(rows_b):  # as most often: in their own order nothing needs copying
        prompts_nP, prompt_of_b = tokens_BT[rows_b, :P], None
    past = model.decoder.begin(prompts_nP, start_b, prompt_of_b)
    hidden_bD = past.hidden_BD
    for i in range(R):
        logprobs_bV = log_softmax(model.unembed(hidden_bD), temperature)
        next_b = draw(logprobs_bV, uniform_RB[i, rows_b])
        chosen_b = logprobs_bV.gather(1, next_b[:, None]).squeeze(1).float()
        tokens_BT[rows_b, lens_B[rows_b]] = torch.where(alive, next_b, 0)
        logprobs_BR[rows_b, i] = torch.where(alive, chosen_b, 0.0)
        mask_BR[rows_b, i] = alive
        lens_B[rows_b] += alive
        yield
        if i + 1 == R:
            break
        if eos is not None:
            alive = alive & (next_b != eos)
            left = int(alive.sum()) if i % look_every == 0 else len(rows_b)
            if left == 0:
                break
            if left <= past.worth * len(rows_b):
                past.keep(alive)
                rows_b, next_b, alive = rows_b[alive], next_b[alive], alive[alive]
        hidden_bD = past.step(next_b)


# -- optimization, the same in every stage (App. C) -----------------------------------------------


def adam(model, rate, weight_decay=0.0):
    """Adam with β1 0.9, β2 0.95 (App. C) and decoupled weight decay on matrices (*open*)."""
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2],
               "weight_decay": weight_decay},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def step_optimizer(model, optimizer, rate, max_grad_norm=0.0):
    """One optimizer step on the gradients accumulated so far, at `rate`, clipped to a global norm
    where max_grad_norm > 0 (*open*); clears them. Returns the norm before clipping.
    Raises FloatingPointError, leaving the weights as they were, if it is not finite."""
    # where helpers have computed gradients, they are awake on the other cores
    with threads(torch.get_num_threads() // parts_at_once(model)):
        total = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        norm = total.item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the norm of the {type(model).__name__}'s gradient is {norm}")
        if max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def cosine_rate(step, steps, peak, warmup=0, floor=0.1):
    """Rate of step 0 … steps−1: linear warm-up, then a cosine from `peak` down to `floor`·peak
    (App. C.1: to 10 %, no warm-up)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


_forward_dtype = "auto"  # one for all of a program's passes: its --dtype


def set_forward_dtype(name):
    """auto, float32 or bfloat16, for the passes of this process from now on."""
    global _forward_dtype
    _forward_dtype = name


def compute_dtype(device):
    """A context for forward passes: bf16 compute over fp32 weights, or fp32; see `low_precision`.
    (The paper: fp16 with fp32 master copies.)"""
    # no cache: a weight's copy in bf16 lives while the backward pass needs it, and no longer
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=low_precision(device),
                          cache_enabled=False)


def low_precision(device):
    """True where forward passes compute in bf16: what `set_forward_dtype` said; auto: on a GPU that
    has it."""
    if _forward_dtype != "auto":
        return _forward_dtype == "bfloat16"
    # emulated, as on a GPU older than Ampere, it would be slower than fp32
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


# -- GPT-2's published weights (data/weights.py, which imports this module) -------------------------


def load_gpt2(path):
    """A GPT with the weights of a folder as the hub serves it: config.json beside
    model.safetensors or pytorch_model.bin, with or without the `transformer.` prefix.

    Raises InputError where a file is missing or damaged, or names missing, extra or misshapen
    tensors.
    """
    from data.weights import read_gpt2
    return read_gpt2(path)


def save_gpt2(model, folder, tokenizer=None):
    """Write a GPT as a folder that `transformers` loads as GPT2LMHeadModel, with the tokenizer's
    files where one is given."""
    from data.weights import write_gpt2
    write_gpt2(model, folder, tokenizer)


def save_reward(model, folder, tokenizer=None):
    """Write a ScalarGPT as a folder that `transformers` loads as GPT2ForSequenceClassification:
    its one logit is the score at the last token, bias included."""
    from data.weights import write_reward
    write_reward(model, folder, tokenizer)
