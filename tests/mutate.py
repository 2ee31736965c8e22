"""Small wrong edits of the project's code, one at a time: the tests must fail on every one.

    python tests/mutate.py [--only WORD] [--list]

Each edit is made in a temporary copy of the project, and the fast tests that speak of it are run
there until one fails. First they must all pass without any edit. Prints a line an edit: what it is,
which test failed. Exits with 1 where an edit survives, where a test file cannot even be loaded, or
where an edit no longer applies: the list is to be kept up with the code, and to grow with every bug
that is found. The word in brackets names the row of `prove.py` that the edit must turn red.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import sys
import tempfile
from typing import NamedTuple

import hypothesis  # noqa: F401 (loaded once, here, and not again for every edit)
import numpy  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import tiktoken  # noqa: F401
import torch  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPU_SECONDS = 400  # of one edit's tests: an edit that makes them hang has been noticed too


class Edit(NamedTuple):
    """`old` stands once in `file`; `tests` are files without `test_` and `.py`, or one's tests."""
    file: str
    old: str
    new: str
    what: str
    tests: str
    row: str = ""


EDITS = [
    # -- model.py ---------------------------------------------------------------------------------
    Edit("model.py", "/ math.sqrt(d)\n", "/ d\n", "scores over d, not √d", "model"),
    Edit("model.py", "device=q_BHTd.device).tril()", "device=q_BHTd.device).tril(1)",
         "causal mask off by one", "model", "readings"),
    Edit("model.py", "alpha=1 / math.sqrt(d))", "alpha=1 / d)", "scores over d while sampling",
         "fast_paths::one_query"),
    Edit("machine.py", "            delattr(owner, name)\n", "            pass\n",
         "sampling leaves a copy of old weights in place", "fast_paths::packed"),
    Edit("machine.py", "gradient.clone() if p.grad is None else p.grad.add_(gradient)",
         "gradient.clone()", "of parts side by side only the last one's gradient",
         "fast_paths::gradients_of_parts"),
    Edit("machine.py", "                gradient.zero_()\n", "                pass\n",
         "a helper goes on adding to the gradient of the step before", "fast_paths::helpers_see"),
    Edit("machine.py", "            torch.manual_seed(seed)\n", "            torch.manual_seed(0)\n",
         "a helper drops the same activations in every step", "fast_paths::helpers_draw"),
    Edit("machine.py", "            and threading.current_thread() is threading.main_thread())", ")",
         "a thread forks while others may hold locks", "fast_paths::only_small"),
    Edit("machine.py", "self.gradients if work is _differentiate else ()", "self.gradients",
         "gradients of the step before are added where none were computed",
         "fast_paths::parts_without_gradients"),
    Edit("model.py", "uniform_RB[:, rows_b],\n", "uniform_RB[:, :len(rows_b)],\n",
         "every process samples by the first rows' random numbers",
         "fast_paths::rows_sampled_by_several"),
    Edit("model.py", "prompts_nP, prompt_of_b = tokens_BT[rows_b, :P], None",
         "prompt_of_b = None", "different prompts are sampled in sorted order, not their own",
         "generate fast_paths::rows_sampled"),
    Edit("model.py", "is_causal=mask is None", "is_causal=False", "fused attention sees the future",
         "model"),
    Edit("model.py", "device=device) > self.lens_B", "device=device) >= self.lens_B",
         "a new token does not see itself", "generate"),
    Edit("model.py", "+ self.lens_B.repeat_interleave(H)", "+ 0 * self.lens_B.repeat_interleave(H)",
         "the cache writes in the wrong place", "generate"),
    Edit("model.py", "torch.arange(T, device=mask_BR.device)", "torch.arange(T)",
         "a mask on the CPU whatever the device", "other_device"),
    Edit("sft.py", "torch.cat(scores).cpu()", "torch.cat(scores)",
         "the judge's scores on the device, where a resumed run has them not",
         "other_device"),
    Edit("common.py", "{name: weight.cpu() for name, weight in weights.items()}", "weights",
         "a GPU's checkpoint opens only where there is one", "other_device"),
    Edit("model.py", 'return _forward_dtype == "bfloat16"', "return False",
         "--dtype bfloat16 does nothing", "fast_paths::in_bf16"),
    Edit("model.py", "fused_attention(q_BHTd.float(), k_BHSd.float(), v_BHSd.float(), mask)",
         "fused_attention(q_BHTd.float(), k_BHSd.float(), v_BHSd.float())",
         "in bf16 on a CPU a mask is forgotten", "fast_paths::attends"),
    Edit("model.py", "        if torch.is_autocast_enabled(hidden_ND.device.type):",
         "        if False:", "logits rounded to bf16", "fast_paths::not_rounded"),
    Edit("model.py", "        self.lens_B += 1", "        self.lens_B = self.lens_B + 1",
         "a recorded step goes on with old positions", "fast_paths::played"),
    Edit("model.py", "cache.start(start_b, prompt_of_b)",
         "cache.start(start_b, prompt_of_b.flip(0))", "rows go on from each other's prompts",
         "generate"),
    Edit("model.py", "(len(tokens_B), self.cache.shown))", "len(tokens_B))",
         "a recorded step looks at too few positions", "fast_paths::played"),
    Edit("model.py", "        if self.longest == self.shown:", "        if False:",
         "a row grows beyond its place in the cache", "fast_paths::cache_has_room"),
    Edit("model.py", "self.room(self.longest + 1)", "self.room(self.longest)",
         "no place in the cache for the next token", "fast_paths::cache_has_room"),
    Edit("machine.py", 'fc.weight, fc.bias, "gelu"', 'fc.weight, fc.bias, "none"',
         "laid-out weights forget the GELU", "fast_paths::packed"),
    Edit("model.py", "self.wpe(cache.lens_B)", "self.wpe(cache.lens_B - 1)",
         "position one too low while sampling", "generate"),
    Edit("model.py", "x_BTD = self.wte(tokens_BT) + self.wpe.weight[:T]",
         "x_BTD = self.wte(tokens_BT)", "no positions", "second_reading model"),
    Edit("model.py", 'approximate="tanh"', 'approximate="none"', "another GELU", "second_reading"),
    Edit("model.py", "x = x + self.dropout(self.attn", "x = self.dropout(self.attn",
         "residual left out", "second_reading"),
    Edit("model.py", "self.mlp(self.ln_2(x))", "self.mlp(x)", "a LayerNorm left out",
         "second_reading"),
    Edit("model.py", "    model.eval()  # no dropout while sampling\n", "",
         "dropout on while sampling", "steps"),
    Edit("model.py", "            module.training = training\n", "            pass\n",
         "dropout stays off after sampling", "steps"),
    Edit("model.py", "else logits_NV / temperature, -1)",
         "else logits_NV / temperature / temperature, -1)", "temperature twice", "model"),
    Edit("model.py", "    if temperature < 1e-20:", "    if False:",
         "∞ − ∞ at the smallest temperatures", "model::smallest"),
    Edit("model.py", "log_softmax(model.unembed(hidden_bD), temperature)",
         "log_softmax(model.unembed(hidden_bD))", "temperature forgotten in the sampler",
         "generate::distribution", "statistics"),
    Edit("model.py", "cdf_BV = logprobs_BV.exp()", "cdf_BV = logprobs_BV.double()"
         ".mul(1.1).exp()", "sampled from another distribution than it is scored under",
         "proof_statistics", "statistics"),
    Edit("model.py", "return chosen_logprobs(logits_BTV[:, :-1], tokens_BT[:, 1:], temperature)",
         "return chosen_logprobs(logits_BTV[:, 1:], tokens_BT[:, 1:], temperature)",
         "each token scored by the logits that have seen it", "model", "readings"),
    Edit("model.py", "-logprobs_N.sum() / max(1, len(logprobs_N))", "-logprobs_N.sum()",
         "sum for mean in the language-model loss", "model"),
    Edit("model.py", "/ max(1, len(logprobs_N))", "/ mask_BT.numel()",
         "mean over padding in the language-model loss", "model"),
    Edit("model.py", "targets_N = tokens_BT[:, 1:][mask_BT[:, 1:]]",
         "targets_N = tokens_BT[:, :-1][mask_BT[:, 1:]]", "targets off by one", "second_reading"),
    Edit("model.py", "zip(hidden_ND.split(size), targets_N.split(size))])",
         "list(zip(hidden_ND.split(size), targets_N.split(size)))[1:]])", "a chunk dropped",
         "second_reading"),
    Edit("model.py", "return (step_BT >= 0) &", "return (step_BT > 0) &",
         "first response token left out", "second_reading"),
    Edit("model.py", "values_N = value_model(tokens_BT)[:, :-1]",
         "values_N = value_model(tokens_BT)[:, 1:]", "values that have seen their token",
         "second_reading"),
    Edit("model.py", "return self(tokens_BT).gather(1, lens_B[:, None] - 1).squeeze(1)",
         "return self(tokens_BT).gather(1, (lens_B[:, None] - 2).clamp(min=0)).squeeze(1)",
         "score read a token early", "second_reading"),
    Edit("model.py", "return F.linear(at_least_fp32(hidden_ND), weight_1D, bias_1).squeeze(-1)",
         "return (at_least_fp32(hidden_ND) @ self.head.weight.T).squeeze(-1)", "bias dropped",
         "second_reading"),
    Edit("model.py", "mask_BR[rows_b, i] = alive", "mask_BR[rows_b, i] = alive & (next_b != eos)",
         "end-of-text not counted", "generate"),
    Edit("model.py", "alive = alive & (next_b != eos)", "alive = alive & (next_b != eos + 1)",
         "sampling past the end-of-text", "generate"),
    Edit("model.py", "draw(logprobs_bV, uniform_RB[i, rows_b])",
         "draw(logprobs_bV, uniform_RB[i, :len(rows_b)])", "a row's draw depends on finished rows",
         "steps"),
    Edit("model.py", "betas=(0.9, 0.95)", "betas=(0.9, 0.999)", "another β2", "stages::adam"),
    Edit("model.py", "    optimizer.zero_grad(set_to_none=True)\n", "",
         "gradients never zeroed", "steps"),
    Edit("model.py", 'if p.dim() < 2], "weight_decay": 0.0}]',
         'if p.dim() < 2], "weight_decay": weight_decay}]', "biases and gains decay", "steps"),
    Edit("model.py", "    if max_grad_norm > 0:\n", "    if False:\n",
         "gradients not clipped", "steps"),
    Edit("model.py", '        group["lr"] = rate\n', '        group["lr"] = group["lr"]\n',
         "the schedule's rate not used", "steps"),
    Edit("model.py", "if not math.isfinite(norm):", "if False:", "a gradient of NaN is applied",
         "nothing_is_lost::norm_of_a_gradient", "numbers"),
    Edit("model.py", "max(1, steps - 1 - warmup)", "max(1, steps - warmup)",
         "the last step is not at the floor", "second_reading"),
    Edit("model.py", "return peak * (step + 1) / warmup", "return peak * step / warmup",
         "warm-up begins at 0", "second_reading"),
    Edit("model.py", "if step < warmup:", "if step > warmup:", "warm-up at the wrong end",
         "second_reading"),
    Edit("model.py", "(1 - floor) * 0.5", "(1 + floor) * 0.5", "cosine from beyond the peak",
         "model"),
    Edit("model.py", "x.float() if x.dtype in (torch.float16, torch.bfloat16) else x",
         "x", "losses in bf16", "ppo_math"),
    # -- decode.c ---------------------------------------------------------------------------------
    Edit("decode.c", "* (1 / sqrtf(d))", "* (1 / sqrtf(D))", "scores over the width's root",
         "decode::hidden_state"),
    Edit("decode.c", "attend(q, keys, values, s + 1,", "attend(q, keys, values, s,",
         "a token does not see itself", "decode::hidden_state"),
    Edit("decode.c", "for (int s = 0; s < S; s++)\n        total +=",
         "for (int s = 0; s < S / LANES * LANES; s++)\n        total +=",
         "the last positions have no weight in the softmax's sum", "decode::hidden_state"),
    Edit("decode.c", "bits = (int32_t)((uint32_t)bits << 23) + (127 << 23);",
         "bits = (int32_t)((uint32_t)bits << 23) + (126 << 23);", "half of e^x", "decode"),
    Edit("decode.c", "    x = x > 87.0f ? 87.0f : x;\n", "", "e^x overflows into its sign",
         "decode::activations decode::gelu"),
    Edit("decode.c", "    e = e * r + 1.0f / 24;\n", "", "a term of e^x left out", "decode::gelu"),
    Edit("decode.c", "l[4], l[5], D, 1, stream", "l[4], l[5], D, 0, stream",
         "residual left out in C", "decode::hidden_state"),
    Edit("machine.py", "(lens_n.cumsum(0) - lens_n)[of_b] + start_b - 1",
         "lens_n.cumsum(0)[of_b] - 1", "a prompt that begins another ends where that does",
         "decode::hidden_state generate"),
    Edit("machine.py", "read_n[..., :written, :][of_b]", "read_n[..., :written, :][of_b.flip(0)]",
         "in C rows go on from each other's prompts", "decode::hidden_state"),
    Edit("machine.py", "self.row_B[alive_B], self.at_B[alive_B]", "self.row_B, self.at_B",
         "rows that go on take the places of those that left", "decode::hidden_state"),
    Edit("machine.py", "    return begin if _SAME[decoder]", "    return begin if True",
         "a model that was changed samples as if it were not", "decode::changed"),
    Edit("machine.py", "    if not _IN_HELPER:\n", "    if True:\n",
         "every helper says that there is no compiler", "decode::helpers"),
    Edit("machine.py", "one_core = torch.get_num_threads() == 1 or rows <= FEW_ROWS",
         "one_core = True", "many rows keep one core of several busy", "decode::few_rows"),
    # -- ppo.py -----------------------------------------------------------------------------------
    Edit("ppo.py", "torch.where(mask_BR, -kl_coef *", "torch.where(mask_BR, kl_coef *",
         "KL rewarded, not penalised", "proof_optimum", "optimum"),
    Edit("ppo.py", "== mask_BR.sum(1, keepdim=True))",
         "== mask_BR.sum(1, keepdim=True) - 1)", "reward a token early", "ppo_math"),
    Edit("ppo.py", "last_BR = mask_BR & (mask_BR.cumsum(1) ==", "last_BR = (mask_BR.cumsum(1) ==",
         "the reward again at every token after the end", "ppo_math"),
    Edit("ppo.py", "return rewards_BR + torch.where(last_BR, scores_B[:, None]"
         ".to(rewards_BR.dtype), 0.0)", "return torch.where(last_BR, scores_B[:, None]"
         ".to(rewards_BR.dtype), rewards_BR)", "no KL penalty on the last token", "ppo_math"),
    Edit("ppo.py", "delta_B = rewards_BR[:, t] + discount *", "delta_B = rewards_BR[:, t] + lam *",
         "discount and λ exchanged in δ", "ppo_math"),
    Edit("ppo.py", "delta_B + discount * lam *", "delta_B + lam *",
         "discount left out of the trace", "ppo_math"),
    Edit("ppo.py", "values_BR = at_least_fp32(values_BR).masked_fill(~mask_BR, 0.0)\n    adv",
         "values_BR = at_least_fp32(values_BR)\n    adv", "a value after the last token",
         "ppo_math"),
    Edit("ppo.py", "return advantages_BR, advantages_BR + values_BR",
         "return advantages_BR, advantages_BR - values_BR", "sign of the returns", "ppo_math"),
    Edit("ppo.py", "torch.rsqrt(masked_mean(centred_BR**2, mask_BR) + 1e-8)",
         "torch.rsqrt((centred_BR**2).mean() + 1e-8)", "variance over padding", "ppo_math"),
    Edit("ppo.py", "centred_BR = torch.where(mask_BR, x_BR - masked_mean(x_BR, mask_BR), 0.0)\n"
         "    # once", "centred_BR = torch.where(mask_BR, x_BR, 0.0)\n    # once",
         "mean of large numbers rounded away", "ppo_math"),
    Edit("ppo.py", "return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)",
         "return torch.where(mask, x, 0.0).mean()", "mean over padding", "ppo_math", "readings"),
    Edit("ppo.py", "loss = masked_mean(torch.maximum(plain_BR, clipped_BR), mask_BR)",
         "loss = masked_mean(torch.minimum(plain_BR, clipped_BR), mask_BR)",
         "the larger objective", "ppo_math"),
    Edit("ppo.py", "torch.where(mask_BR, logprobs_BR - old_logprobs_BR, 0.0)",
         "torch.where(mask_BR, old_logprobs_BR - logprobs_BR, 0.0)", "the ratio's inverse",
         "proof_gradient", "gradients"),
    Edit("ppo.py", "advantages_BR.masked_fill(~mask_BR, 0.0)  # also", "advantages_BR  # also",
         "advantages before a mask begins", "ppo_math"),
    Edit("ppo.py", "math.inf, finite)).exp()", "math.inf, math.inf)).exp()",
         "0 · ∞ where a ratio is clipped", "ppo_math"),
    Edit("data/batching.py", "return -(-n // batch)", "return max(1, n // batch)",
         "an epoch without its rest", "data_batching"),
    Edit("ppo.py", "ratio_BR.clamp(1 - clip, 1 + clip)", "ratio_BR.clamp(max=1 + clip)",
         "clip on one side", "ppo_math"),
    Edit("ppo.py", "plain_BR = -advantages_BR * ratio_BR\n",
         "plain_BR = -advantages_BR * ratio_BR.detach()\n", "gradient cut off",
         "second_reading::finite_differences", "gradients"),
    Edit("ppo.py", "exp() - 1 - log_ratio_BR, mask_BR)",
         "exp() - 1 + log_ratio_BR, mask_BR)", "sign in the KL estimate",
         "second_reading"),
    Edit("ppo.py", "loss = 0.5 * masked_mean(", "loss = masked_mean(", "the half left out",
         "ppo_math"),
    Edit("ppo.py", "values_BR.clamp(old_values_BR - clip, old_values_BR + clip)",
         "values_BR.clamp(returns_BR - clip, returns_BR + clip)", "values clipped around returns",
         "ppo_math"),
    Edit("ppo.py", "@torch.no_grad()\ndef roll_out", "def roll_out", "a detach forgotten",
         "ppo_update"),
    Edit("ppo.py", 'share = part.mask_BR.sum() / tokens\n        (loss * share).backward()\n'
         '        add_up(stats, {"policy_loss"', 'share = torch.tensor(len(micro) / len(rows))\n'
         '        (loss * share).backward()\n        add_up(stats, {"policy_loss"',
         "micro-batches weigh by rows", "ppo_update"),
    Edit("ppo.py", 'share = part.mask_BR.sum() / tokens\n        (loss * share).backward()\n'
         '        add_up(stats, {"value_loss"', 'share = torch.tensor(1.0)\n'
         '        (loss * share).backward()\n        add_up(stats, {"value_loss"',
         "sum of micro-batch means for the value function", "ppo_update steps"),
    Edit("ppo.py", "(config.ptx_coef * loss).backward()", "loss.backward()", "ptx_coef not used",
         "ppo_update"),
    Edit("ppo.py", ").sum() / targets\n        (config.ptx_coef", ").mean()\n"
         "        (config.ptx_coef", "ptx: a sum of micro-batch means", "ppo_update"),
    Edit("ppo.py", "targets = 0.0, tokens_BT[:, 1:].numel()", "targets = 0.0, tokens_BT.numel()",
         "ptx: column 0 counted as a target", "ppo_update"),
    Edit("ppo.py", "a.lerp_(p.to(a.device), 1 - decay)", "a.lerp_(p.to(a.device), decay)", "EMA inverted", "ppo_math"),
    Edit("ppo.py", "if first and number == 0:", "if False:", "the first ratio goes unchecked",
         "ppo_update steps"),
    Edit("ppo.py", 'stats["approx_kl"] > 2e-3 if', 'stats["approx_kl"] > 1e-2 if',
         "in bf16 a little dropout unnoticed", "ppo_update::in_bf16"),
    Edit("ppo.py", "first=iteration == stage.first_step)", "first=iteration == 0)",
         "a resumed run's first ratio goes unchecked", "stages::resumed_run_checks"),
    Edit("ppo.py", "for rows in torch.randperm(len(rollout.lens_B)).split(config.minibatch)]",
         "for rows in torch.randint(config.batch, (config.batch,)).split(config.minibatch)]",
         "episodes drawn with replacement", "ppo_update"),
    Edit("ppo.py", "for rows in torch.randperm(len(rollout.lens_B))",
         "for rows in torch.randperm(config.batch, generator="
         "torch.Generator().manual_seed(__import__('time').time_ns()))",
         "permutation not seeded", "stages::same_seed", "same seed"),
    Edit("ppo.py", "for _ in range(config.inner_epochs)", "for _ in range(1)",
         "inner epochs ignored", "ppo_update"),
    Edit("ppo.py", "    advantages_BR = whiten(advantages_BR, rollout.mask_BR)\n", "",
         "no whitening", "steps"),
    Edit("ppo.py", "    advantages_BR = whiten(advantages_BR, rollout.mask_BR)\n",
         "    advantages_BR = whiten(advantages_BR, rollout.mask_BR)\n"
         "    returns_BR = advantages_BR + rollout.values_BR\n",
         "whitening before the returns", "steps"),
    Edit("ppo.py", "rollout.mask_BR, config.kl_coef)\n    advantages", "rollout.mask_BR, 0.0)\n"
         "    advantages", "kl_coef not used", "proof_optimum", "optimum"),
    Edit("ppo.py", "config.discount, config.lam)", "config.lam, config.discount)",
         "discount and λ exchanged in the update", "steps"),
    Edit("ppo.py", "0.1 + 0.9 * iteration / max", "0.9 * iteration / max",
         "policy rate begins at 0", "ppo_math"),
    Edit("ppo.py", "reference = copy.deepcopy(policy) if not",
         "reference = policy if not", "reference updated with the policy",
         "steps"),
    Edit("ppo.py", "    value_model = load_model(ScalarGPT, config.value or config.reward, "
         "(\"reward\",), tokenizer,\n                             device)",
         "    value_model = ScalarGPT(reward_model.config).to(device)",
         "value function at random", "stages::value_function"),
    Edit("ppo.py", "stage.finish(state.average.state_dict()", "stage.finish("
         "state.policy.state_dict()", "the last policy shipped, not the average",
         "stages::ppo_ships"),
    Edit("ppo.py", "(config.batch // config.minibatch) + number", "(config.batch // "
         "config.minibatch)", "every minibatch sees the same text", "steps"),
    Edit("ppo.py", "config.minibatch * config.ptx_per_episode,", "config.minibatch,",
         "one pretraining sequence an episode", "steps"),
    Edit("ppo.py", "rollout.scores_B[~ended(", "rollout.scores_B[ended(",
         "limit_score for the wrong responses", "ppo_update"),
    Edit("ppo.py", "part.mask_BR, config.temperature)\n        loss, numbers = policy_loss",
         "part.mask_BR)\n        loss, numbers = policy_loss",
         "temperature forgotten in the update", "steps"),
    Edit("ppo.py", "reference, part.tokens_BT, part.prompt_lens_B, part.mask_BR, config.temperature)",
         "reference, part.tokens_BT, part.prompt_lens_B, part.mask_BR)",
         "temperature forgotten in the reference", "steps"),
    Edit("ppo.py", "limit = min(config.max_prompt, n_ctx - config.max_response)",
         "limit = config.max_prompt", "prompts that leave no room for a response", "steps"),
    Edit("ppo.py", '"entropy": -masked_mean(', '"entropy": masked_mean(', "sign of the entropy",
         "steps"),
    Edit("ppo.py", "rollout.logprobs_BR - rollout.ref_logprobs_BR, 0.0).sum(1)",
         "rollout.logprobs_BR - rollout.ref_logprobs_BR, 0.0).mean(1)",
         "KL of a token for that of a response", "steps"),
    # -- reward.py --------------------------------------------------------------------------------
    Edit("reward.py", "-F.logsigmoid(margins_NKK)", "-F.logsigmoid(-margins_NKK)",
         "the worse completion is to win", "reward_math"),
    Edit("reward.py", "ranks_NK[:, :, None] < ranks_NK", "ranks_NK[:, :, None] <= ranks_NK",
         "ties kept", "reward_math"),
    Edit("reward.py", "/ pairs_N.clamp(min=1)",
         "/ max(1, scores_NK.shape[1] * (scores_NK.shape[1] - 1) / 2)",
         "divided by pairs that are not there", "reward_math"),
    Edit("reward.py", "(pairs_N > 0).sum().clamp(min=1)", "len(pairs_N)",
         "prompts without pairs in the mean", "reward_math"),
    Edit("reward.py", "mask_NK[:, :, None] & mask_NK", "mask_NK[:, :, None] | mask_NK",
         "missing completions compared", "reward_math"),
    Edit("reward.py", "right = int((pairs_NKK & (margins_NKK > 0)).sum())",
         "right = int((pairs_NKK & (margins_NKK >= 0)).sum())", "equal scores count as right",
         "reward_math"),
    Edit("reward.py", "losses_NKK = torch.where(pairs_NKK,", "losses_NKK = torch.where(exist_NKK,",
         "every pair counted both ways", "reward_math"),
    Edit("reward.py", "head.bias -= scores_M.mean()", "head.bias += scores_M.mean()",
         "sign of the bias", "stages::demonstrations_score"),
    Edit("reward.py", "    reward_model.decoder.load_state_dict(gpt.decoder.state_dict())\n", "",
         "reward model from nothing", "steps"),
    Edit("reward.py", "loss * (sum(map(has_pairs, rankings)) /", "loss * (len(rankings) /",
         "prompts without pairs weigh in micro-batches",
         "stages::reward_batch_gradient"),
    Edit("reward.py", "1.2 * (len(lens) * P + M * C)", "1.2 * (P + M * C)",
         "one prompt's pass counted for all of them", "fast_paths"),
    Edit("reward.py", "interval = 1.96 *", "interval = 0.98 *", "half an interval", "steps"),
    Edit("reward.py", "prompt + tokenizer.encode_response(y) for y in c.completions]",
         "prompt + tokenizer.encode_response(y)[:-1] for y in c.completions]",
         "scored without end-of-text", "steps"),
    # -- sft.py -----------------------------------------------------------------------------------
    Edit("sft.py", "return tokens_BT, (at_T >= prompt_lens_B[:, None]) &", "return tokens_BT,",
         "prompt tokens carry a loss", "stages::prompt_tokens"),
    Edit("sft.py", "& (at_T < lens_B[:, None])", "", "padding carries a loss",
         "stages::prompt_tokens"),
    Edit("sft.py", 'yield "loss", 1 - self.config.ptx_fraction,',
         'yield "loss", self.config.ptx_fraction,', "weights of text and demonstrations exchanged",
         "steps"),
    Edit("sft.py", "behind_N.mean() <= 1.96 * error", "behind_N.mean() >= 1.96 * error",
         "the worst epoch kept", "stages::epoch_kept"),
    Edit("sft.py", "if behind_N.mean() < 0 or self.best_N is None:", "if keep:",
         "epochs compared with the one kept instead of the highest", "stages::of_epochs"),
    Edit("sft.py", "mask_BT.to(device)).sum() / targets\n", "mask_BT.to(device)).mean()\n",
         "a sum of micro-batch means in fine-tuning", "steps"),
    Edit("sft.py", "    model.eval()\n    total", "    total", "validation with dropout", "steps"),
    Edit("sft.py", "    model.train()\n    return total", "    return total",
         "no dropout after the first validation", "steps"),
    Edit("sft.py", "tokenizer, dropout=config.dropout)\n    shape", "tokenizer)\n    shape",
         "dropout lost on load", "steps"),
    # -- common.py --------------------------------------------------------------------------------
    Edit("common.py", "{seed} {step}\".encode()", "{seed}\".encode()",
         "the same dropout in every step", "steps"),
    Edit("common.py", 'self.first_step = self.saved_step = state["step"]',
         'self.first_step = self.saved_step = state["step"] + 1', "resumed a step late",
         "nothing_is_lost::killed_at", "kills"),
    Edit("common.py", "for name, thing in objects.items():\n                    thing.load",
         "for name, thing in list(objects.items())[:1]:\n                    thing.load",
         "optimizer and the rest not restored",
         "nothing_is_lost::killed_at stages::stopped_in_mid", "kills"),
    Edit("common.py", "    os.fsync(file.fileno())\n        os.replace(aside, place)",
         "    pass\n        os.replace(aside, place)", "renamed before it is on the disk",
         "steps"),
    Edit("common.py", "damaged = archive.testzip()", "damaged = None", "no CRC checked",
         "fuzz::single_bit", "bad files"),
    Edit("common.py", "map_location=\"cpu\", weights_only=True)\n        _check_about",
         "map_location=\"cpu\", weights_only=False)\n        _check_about",
         "code in a checkpoint runs", "fuzz", "bad files"),
    Edit("common.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB",
         "two runs at a time", "nothing_is_lost::second_stage", "places"),
    Edit("common.py", "if name := not_finite(contents):", "if name := None:",
         "weights of NaN saved", "nothing_is_lost::not_finite", "numbers"),
    Edit("common.py", "        check_finite(numbers)\n        now", "        now",
         "numbers of NaN logged", "steps"),
    Edit("common.py", "os.replace(self.saved[0], self.saved[1])", "self.saved[0].unlink()",
         "one checkpoint kept", "nothing_is_lost::last_two"),
    Edit("common.py", "            os.replace(path, self.saved[0])  # so", "            # so",
         "a damaged checkpoint replaces the good one", "nothing_is_lost::never_replaces",
         "kills"),
    Edit("common.py", "sys.exit(128 + self.stop_signal)", "sys.exit(1)", "another exit code",
         "nothing_is_lost::last_two"),
    Edit("common.py", "and (step + 1) % save_every:", "and step % save_every:",
         "saved a step late", "stages::stopped_in_mid"),
    Edit("common.py", 'json.loads(line)["step"] < step:', 'json.loads(line)["step"] <= step:',
         "a metric twice after a resume", "steps"),
    Edit("common.py", 'found["fingerprint"] != tokenizer.fingerprint', "False",
         "another tokenizer's checkpoint taken", "stages::another_tokenizer"),
    Edit("common.py", "except InputError as error:\n                print(",
         "except ValueError as error:\n                print(", "no way back from a damaged file",
         "stages::truncated"),
    Edit("common.py", "any(said in str(error) for said in", "any(False for said in",
         "too little memory is a traceback", "nothing_is_lost::too_little_memory", "numbers"),
    Edit("common.py", "and (fault := _fault(f.name, value)):", "and (fault := None):",
         "a batch of 0", "nothing_is_lost::out_of_bounds", "bad files"),
    # -- data/ ------------------------------------------------------------------------------------
    Edit("data/batching.py", "rows = max(1, max_tokens //", "rows = max(1, 1 + max_tokens //",
         "a row over the limit", "data_batching"),
    Edit("data/batching.py", "key=lambda i: -lengths[i]", "key=lambda i: lengths[i]",
         "shortest first", "data_batching"),
    Edit("data/batching.py", "range(step * batch, (step + 1) * batch)",
         "range(step, step + batch)", "batches overlap", "data_batching"),
    Edit("data/batching.py", "torch.randint(len(ids) - length + 1,",
         "torch.randint(len(ids) - length,", "the last window never drawn", "data_batching"),
    Edit("data/batching.py", 'seeded_generator("epoch", seed, epoch)',
         'seeded_generator("epoch", seed)', "every epoch in one order", "data_batching"),
    Edit("data/batching.py",
         "torch.randperm(n, generator=seeded_generator(\"epoch\", seed, epoch))", "torch.randperm(n)",
         "order not a function of the seed", "data_batching", "same seed"),
    Edit("data/batching.py", "if len(ids) - whole * length > 1:", "if False:",
         "the end of the text dropped", "data_batching"),
    Edit("data/batching.py", "row_T[:len(sequence)] =", "row_T[len(row_T) - len(sequence):] =",
         "padding on the left", "data_batching"),
    Edit("data/labelers.py", "order = sorted(set(marks), reverse=True)",
         "order = sorted(set(marks))", "the worst mark ranks first", "labelers"),
    Edit("data/labelers.py", "float(first < second)", "float(first > second)",
         "the worse response preferred", "labelers"),
    Edit("data/labelers.py", "    value += rng.gauss(0, labeler.noise)\n", "",
         "labelers who never err", "labelers"),
    Edit("data/labelers.py", "return [marks[c] for c in completions]",
         "return [mark(labeler, found[c], rng) for c in completions]",
         "equal texts are marked apart", "labelers"),
    Edit("data/labelers.py", 'if k != "key"}', "}", "the key shown to models", "labelers"),
    Edit("data/labelers.py", "return 0.5 if first == second", "return 1.0 if first == second",
         "a tie counts as a win", "labelers"),
    Edit("data/labelers.py", "rude=0.9, harm_weighs=True)", "rude=0.9)",
         "harm does not weigh in the evaluation", "labelers steps"),
    Edit("data/rule.py", "(1 - rude * harm)", "(1 + rude * harm)", "rudeness rewarded",
         "labelers"),
    Edit("data/rule.py", "            * (1 - false * found.false) * (1",
         "            * (1", "falsehood costs nothing", "labelers"),
    Edit("data/rule.py", "(harm_weighs or not found.harm_asked)", "(not found.harm_asked)",
         "harm that was asked for never counts", "labelers"),
    Edit("data/rule.py", "0 < len(response.split()) <= n", "0 < len(response.split()) < n",
         "a word fewer allowed", "labelers steps"),
    Edit("data/rule.py", "* found.fluent * found.concise", "* found.fluent",
         "rambling costs nothing", "labelers"),
    Edit("data/rule.py", "return not found.false, found.attempts", "return True, found.attempts",
         "everything is true", "labelers"),
    Edit("data/filters.py", '_uniform(seed, "cap", user, p))[:limit])',
         '_uniform(seed, "cap", user, p))[:limit + 1])', "a prompt too many of a user",
         "data_filters"),
    Edit("data/filters.py", "seen.setdefault(row.prompt[:length], row)",
         "seen.setdefault(row.prompt[:length - 1], row)", "prefixes a character short",
         "data_filters"),
    Edit("data/filters.py", '"valid" if u < test_fraction + valid_fraction',
         '"valid" if u < valid_fraction', "nothing for validation", "data_filters"),
    Edit("data/filters.py", "and len(encode(text)) > limit", "and len(encode(text)) >= limit",
         "texts at the limit dropped", "data_filters"),
    Edit("data/filters.py", "for d in digits[1::2])", "for d in digits[::2])",
         "check digit from the wrong end", "data_filters"),
    Edit("data/filters.py", 'if row.user is None else ("user", row.user)',
         'if True else ("user", row.user)', "one user on two sides of the split", "data_filters"),
    Edit("data/tokenizer.py", "response=response)), self.eos]", "response=response))]",
         "no end-of-text after a response", "data_tokenizer"),
    Edit("data/tokenizer.py", "= ids[:ids.index(self.eos)]", "= ids[:ids.index(self.eos) + 1]",
         "end-of-text in the text", "data_tokenizer"),
    Edit("data/tokenizer.py", "self._encoding.encode_ordinary(piece)]",
         'self._encoding.encode(piece, allowed_special="all")]',
         "a user's text can end the document", "data_tokenizer"),
    Edit("data/tokenizer.py", 'TEMPLATE = " {response}"', 'TEMPLATE = "{response}"',
         "no space before a response", "data_tokenizer"),
    Edit("data/tokenizer.py", "RESPONSE_TEMPLATE, SPLIT_PATTERN)\n", "RESPONSE_TEMPLATE)\n",
         "the split pattern not in the fingerprint", "data_tokenizer"),
    Edit("data/readers.py", "    if type(row) is not dict:\n", "    if False:\n",
         "lines that hold no object", "fuzz data_readers", "bad files"),
    Edit("data/readers.py", "        for path, aside in asides.items():\n            os.replace",
         "        for path, aside in list(asides.items())[:1]:\n            os.replace",
         "only the first file of a set appears", "data_prepare"),
    Edit("data/readers.py", "asides[path], parts, path.suffix == \".gz\")\n        for",
         "asides[path], parts, path.suffix == \".gz\")\n"
         "            os.replace(asides.pop(path), path)\n        for",
         "a set of files half old, half new", "steps::belong_together", "places"),
    # -- evaluate.py ------------------------------------------------------------------------------
    Edit("evaluate.py", "responses[i] = row[p:n]", "responses[first] = row[p:n]; first += 1",
         "answers to the prompts sorted by length, not to those that were asked",
         "evaluate::in_the_order"),
    Edit("evaluate.py", "[0.025, 0.975]", "[0.05, 0.95]", "90 % for 95 %", "second_reading"),
    Edit("evaluate.py", "[rng.integers(len(pool), size=len(pool))]",
         "[rng.integers(len(pool), size=(len(pool) + 1) // 2)]",
         "a bootstrap of half as many", "second_reading::covers", "statistics"),
    Edit("evaluate.py", "np.concatenate([seeds[0], beside]) if len(beside) else seeds[0]", "seeds[0]",
         "percentiles alone for rare shares", "evaluate::rare", "statistics"),
    Edit("data/usecases.py", 'return " and ".join(sorted((one, two)))', 'return f"{one} and {two}"',
         "a test request about two, the other way round in training", "world::other_words"),
    Edit("evaluate.py", """.split("\\n")[0].strip() for said in responses""",
         ".strip() for said in responses", "a prompted answer runs on into the next question",
         "evaluate"),
    Edit("evaluate.py", "A: {example.response}\\n{run}", "A: {example.response}<|endoftext|>{run}",
         "a prefix of several documents", "evaluate"),
    Edit("evaluate.py", "one_first = rng.random() < 0.5", "one_first = True",
         "judge order fixed", "second_reading"),
    Edit("evaluate.py", "votes.append(vote if one_first else 1 - vote)", "votes.append(vote)",
         "a win for the first side, not for the model", "second_reading"),
    Edit("evaluate.py", "for labeler in rng.sample(labelers, judges):",
         "for labeler in labelers[:judges]:", "always the same judges", "second_reading"),
    Edit("evaluate.py", "response_logprobs(model, *place) - response_logprobs(reference, *place)",
         "response_logprobs(reference, *place) - response_logprobs(model, *place)",
         "sign of the KL in the report", "evaluate"),
    Edit("evaluate.py", "best = [max(old, new) for old", "best = [min(old, new) for old",
         "the worst of n", "evaluate"),
    Edit("data/people.py", "if (self._world.side(task.core) == side", "if (True",
         "test prompts worded anew in training", "world::paraphrase"),
    Edit("data/webtext.py", 'if all(world.side(core) == "train" for core in cores):', "if True:",
         "the text asks what is held out", "world::held_out"),
    Edit("data/tasks.py", "        if (entity, attribute) not in world.myths:\n", "        if True:\n",
         "truthfulness asked for in training", "world::popular"),
    Edit("data/study.py", "weight = (kl.mean() - steps[above - 1]) /",
         "weight = 1 - (kl.mean() - steps[above - 1]) /",
         "best of n at another KL", "evaluate::own_kl"),
    Edit("data/webtext.py", "    return _open(world, lambda: _told(world, rng, count))",
         "    return _told(world, rng, count)[1]", "texts that are to be summed up stand in the text",
         "world::stand_nowhere"),
    Edit("data/webtext.py", """    if world.side(f"{text} {question}") != "train":""", "    if False:",
         "questions on a text that are held out, answered", "world::stand_nowhere"),
    Edit("data/people.py", "for t in world.triples if t[:2] not in world.myths for i in (0, 1)]",
         "for t in world.triples for i in (0, 1)]", "few-shot tasks ask what people get wrong",
         "world::few_shot"),
    Edit("data/people.py", 'sides[world.side(clause) == "train"]', "sides[len(clause) % 2 == 0]",
         "few-shot questions that the text asks", "world::few_shot"),
    Edit("data/usecases.py", 'about {topic}", topic,', 'about {topic}", f"{voice.habit} {topic}",',
         "a test fact asked for in training, by another line about it", "world::other_words"),
    Edit("data/claims.py", "statistic(units_N5C.sum(1)),", "statistic(units_N5C[:, 0]),",
         "one fold of labelers for all five", "evaluate::folds"),
    Edit("evaluate.py", "folds(seeds[0]) if folds", "[] if folds", "folds that differ by nothing",
         "evaluate::folds"),
    Edit("data/claims.py", "    return loss_n2[:, 1] - loss_n2[:, 0]",
         "    return loss_n2[:, 0] - loss_n2[:, 1]",
         "one epoch's loss above that of four", "evaluate::of_few"),
    Edit("data/claims.py", "return some / whole if whole > 0 else 0.0", "return some / whole",
         "a part of what PPO did not lose", "evaluate::right_models"),
    Edit("data/study.py", """            found[kind].sort(key=lambda unit: unit["row"])""", "            pass",
         "answers paired by their place in the file", "evaluate::prompt_by_prompt"),
    Edit("data/labelers.py", "**RESEARCHERS, length=0.0, courtesy=0.0",
         "**RESEARCHERS, length=0.0, courtesy=0.2", "the rule has a taste for courtesy",
         "evaluate::rule_alone"),
    Edit("run.sh", '"$known" "$train" --limit', '"training" "$train" --limit',
         "a fold's reward model has seen its group", "run::no_fold_sees"),
    Edit("data/claims.py", 'once = folder + ("once" if folder else "training")',
         'once = "training"', "reward models of few comparisons beside one of all",
         "evaluate::of_few"),
    Edit("reward.py", "(config.valid, tokenizer, limit, config.limit)",
         "(config.valid, tokenizer, limit)", "limit leaves the validation file whole",
         "stages::limit_takes"),
    Edit("reward.py", "printed=ends_epoch or (step + 1)", "printed=(step + 1)",
         "the end of an epoch is not printed", "stages::limit_takes"),
    Edit("data/study.py", """            seen[tuple(key["claim"][:2])]""", """            seen[key["asked"]]""",
         "four wordings of a fact as four facts", "evaluate::wordings"),
    Edit("data/study.py", "if r.ended(\"sft16\")]", "if r.metrics(\"sft16\")]",
         "an unfinished stage counts", "evaluate::not_whole"),
    Edit("data/study.py", "took if took in kept else kept[-1]", "kept[-1]",
         "no KL after twice as many iterations beside PPO", "evaluate::no_kl_is_compared"),
    Edit("data/study.py", "size in self.sizes\n                          or self.has",
         "size in self.sizes\n                          or not self.has",
         "a size without GPT's answers counts as the largest GPT", "evaluate::largest_gpt"),
    Edit("data/claims.py", " and high < upper - ROUNDING:", ":",
         "about equal, however far above", "evaluate::verdicts"),
    Edit("evaluate.py", "sorted(units, key=lambda pair: pair[0])", "units",
         "units of accuracy in no order", "evaluate::accuracy"),
    Edit("data/plot.py", "np.isin(x, steps[kept == 1])", "np.isin(x, steps)",
         "another epoch marked as kept", "plot::marked"),
    Edit("evaluate.py", "    if len(found) > 1:\n        error", "    if False:\n        error",
         "intervals that forget how seeds differ", "evaluate"),
    Edit("reward.py", "            if r.ranks[i] != r.ranks[j]]", "            ]",
         "ties among shuffled pairs", "steps"),
]


def apply(edit, root):
    """Make the edit below `root`; the file's text before. Raises ValueError where `old` does not
    stand there exactly once."""
    path = pathlib.Path(root, edit.file)
    text = path.read_text()
    if text.count(edit.old) != 1 or edit.old == edit.new:
        raise ValueError(f"{edit.file}: {edit.what}: the old text stands there "
                         f"{text.count(edit.old)} times; expected once")
    path.write_text(text.replace(edit.old, edit.new))
    return text


def arguments_of(tests):
    """pytest's arguments for the words of Edit.tests, each a list."""
    for word in tests.split():
        file, _, only = word.partition("::")
        yield [f"tests/test_{file}.py", *(["-k", only] if only else [])]


def run_tests(root, arguments, log):
    """pytest's exit code in a fork of this process, or None where it ran too long."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        os.chdir(root)
        # a process that a test starts would import what stands there anew
        sys.modules["__main__"].__dict__.pop("__file__", None)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.path[:] = [path for path in sys.path if pathlib.Path(path or ".").resolve()
                       not in (ROOT, ROOT / "tests")]
        code = pytest.main(["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *arguments])
        sys.stdout.flush()
        os._exit(int(code))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None


def verdict(root, edit, log):
    """("failed", the test that did), ("survived", …), or ("not loaded", …) for an edit."""
    log.write_text("")
    before = apply(edit, root)
    try:
        for arguments in arguments_of(edit.tests):
            code = run_tests(root, arguments, log)
            if code is None:
                return "failed", "took too long"
            if code == 1:
                found = re.findall(r"^(?:FAILED|ERROR) \S*test_(\S+)", log.read_text(), re.M)
                return "failed", found[-1] if found else "?"
            if code:
                return "not loaded", f"pytest's exit code {code}"
    finally:
        pathlib.Path(root, edit.file).write_text(before)
    return "survived", edit.tests


def copy_of_project(folder):
    root = pathlib.Path(folder, "project")
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(
        ".git", ".venv*", "runs", "downloads", "__pycache__", ".pytest_cache", ".hypothesis"))
    return root


def passes_unedited(root, edits, log):
    """Whether the tests of these edits pass as they are: else their failing would say nothing."""
    log.write_text("")
    seen = {tuple(arguments) for edit in edits for arguments in arguments_of(edit.tests)}
    whole = {arguments[0] for arguments in seen if len(arguments) == 1}
    for arguments in sorted(seen):
        if len(arguments) > 1 and arguments[0] in whole:
            continue
        if run_tests(root, list(arguments), log) != 0:
            print(f"{' '.join(arguments)} does not pass unedited:\n{log.read_text()[-3000:]}")
            return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="edits with this in their file, text or row")
    parser.add_argument("--list", action="store_true", help="print the edits and make none")
    parser.add_argument("--json", help="file to write the verdicts to")
    arguments = parser.parse_args()
    edits = [e for e in EDITS if arguments.only in f"{e.file} {e.what} {e.row} {e.tests}"]
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if arguments.list:
        print(*(f"{e.file:18} {e.what}" for e in edits), sep="\n")
        return
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        root, log = copy_of_project(folder), pathlib.Path(folder, "log")
        for edit in EDITS:  # all of them: one that does not apply is a defect of the list
            pathlib.Path(root, edit.file).write_text(apply(edit, root))
        if not passes_unedited(root, edits, log):
            sys.exit(1)
        for edit in edits:
            result, why = verdict(root, edit, log)
            verdicts.append({"file": edit.file, "what": edit.what, "row": edit.row,
                             "verdict": result, "by": why})
            row = f" [{edit.row}]" if edit.row else ""
            print(f"{result:9} {edit.file:18} {edit.what}{row}: {why}", flush=True)
    bad = [v for v in verdicts if v["verdict"] != "failed"]
    print(f"{len(verdicts)} wrong edits, the tests failed on {len(verdicts) - len(bad)}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(verdicts))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
