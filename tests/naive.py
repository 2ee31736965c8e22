"""The mathematics of InstructGPT a second time: slow, in plain loops over numbers, from its
formulas.

Nothing here is imported by the project and nothing here imports it: the two are independent
readings of the same definitions, and the tests hold them against each other. All arithmetic is in float64.
A function that has a gradient worth checking returns it too, worked out by hand.
"""

import itertools
import math

import numpy as np


def log_softmax(logits):
    top = max(logits)
    total = math.log(sum(math.exp(x - top) for x in logits))
    return [x - top - total for x in logits]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def sigmoid(x):
    return math.exp(log_sigmoid(x))


# -- language model ---------------------------------------------------------------------------


def attention(q, k, v):
    """Position t mixes the values of positions 0..t, weighted by softmax(q_t · k_s / √d)."""
    B, H, T, d = q.shape
    out = np.zeros_like(v, dtype=float)
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        scores = [sum(q[b, h, t, i] * k[b, h, s, i] for i in range(d)) / math.sqrt(d)
                  for s in range(t + 1)]
        for s, logweight in enumerate(log_softmax(scores)):
            out[b, h, t] += math.exp(logweight) * v[b, h, s]
    return out


def token_logprobs(logits, tokens, temperature=1.0):
    """out[b, t] = log softmax(logits[b, t] / temperature)[tokens[b, t + 1]]."""
    B, T, _ = logits.shape
    out = np.zeros((B, T - 1))
    for b, t in itertools.product(range(B), range(T - 1)):
        out[b, t] = log_softmax([x / temperature for x in logits[b, t]])[tokens[b, t + 1]]
    return out


def lm_loss(logits, tokens, mask):
    """Mean of −log p(tokens[b, t]) over the targets t ≥ 1 with mask[b, t]; and its gradient."""
    B, T, V = logits.shape
    targets = [(b, t) for b in range(B) for t in range(1, T) if mask[b, t]]
    loss, grad = 0.0, np.zeros(logits.shape)
    for b, t in targets:
        logp = log_softmax(list(logits[b, t - 1]))
        loss -= logp[tokens[b, t]] / len(targets)
        for i in range(V):
            grad[b, t - 1, i] = (math.exp(logp[i]) - (i == tokens[b, t])) / len(targets)
    return loss, grad


# -- reward model (Eq. 1) ---------------------------------------------------------------------


def ranking_loss(scores, ranks, mask):
    """(loss, gradient, right pairs, pairs): the average over a prompt's pairs, then over prompts.

    A pair is two present completions with different ranks; the lower rank is the better one.
    """
    N, K = scores.shape
    pairs = {n: [(i, j) for i in range(K) for j in range(K)
                 if mask[n, i] and mask[n, j] and ranks[n, i] < ranks[n, j]] for n in range(N)}
    pairs = {n: found for n, found in pairs.items() if found}
    loss, grad, right = 0.0, np.zeros((N, K)), 0
    for n, found in pairs.items():
        for better, worse in found:
            gap, weight = scores[n, better] - scores[n, worse], 1 / len(found) / len(pairs)
            loss -= weight * log_sigmoid(gap)
            grad[n, better] -= weight * sigmoid(-gap)
            grad[n, worse] += weight * sigmoid(-gap)
            right += gap > 0
    return loss, grad, right, sum(len(found) for found in pairs.values())


# -- PPO (Eq. 2, App. C.4) --------------------------------------------------------------------


def kl_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    """The KL penalty on every response token; the score once, on the last one."""
    B, R = mask.shape
    rewards = np.zeros((B, R))
    for b in range(B):
        response = [t for t in range(R) if mask[b, t]]
        for t in response:
            rewards[b, t] = -kl_coef * (logprobs[b, t] - ref_logprobs[b, t])
        if response:
            rewards[b, response[-1]] += scores[b]
    return rewards


def gae(rewards, values, mask, discount, lam):
    """A_t = Σ_{l ≥ 0} (discount · lam)^l · δ_{t+l}, δ_t = r_t + discount · V_{t+1} − V_t.

    The sum ends with the response, and the value after its last token is 0.
    """
    B, R = mask.shape
    advantages, returns = np.zeros((B, R)), np.zeros((B, R))
    for b in range(B):
        length = sum(bool(m) for m in mask[b])
        V = [values[b, t] for t in range(length)] + [0.0]
        delta = [rewards[b, t] + discount * V[t + 1] - V[t] for t in range(length)]
        for t in range(length):
            advantages[b, t] = sum((discount * lam) ** n * delta[t + n] for n in range(length - t))
            returns[b, t] = advantages[b, t] + V[t]
    return advantages, returns


def whiten(x, mask, eps=1e-8):
    """(x − mean) / √(variance + eps) over the mask, with the biased variance."""
    kept = [float(x[i]) for i in np.ndindex(x.shape) if mask[i]]
    out = np.zeros(x.shape)
    if not kept:
        return out
    mean = sum(kept) / len(kept)
    variance = sum((value - mean) ** 2 for value in kept) / len(kept)
    for i in np.ndindex(x.shape):
        if mask[i]:
            out[i] = (x[i] - mean) / math.sqrt(variance + eps)
    return out


def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """(loss, gradient, share of ratios outside the clip, share of tokens where the clip acts).

    A token's objective is min(ratio · A, clamp(ratio, 1 − clip, 1 + clip) · A); the loss is minus
    its mean. The gradient of a token is that of the smaller one: 0 where the clip acts.
    """
    kept = [i for i in np.ndindex(mask.shape) if mask[i]]
    loss, grad, outside, acting = 0.0, np.zeros(mask.shape), 0, 0
    for i in kept:
        ratio, advantage = math.exp(logprobs[i] - old_logprobs[i]), advantages[i]
        clamped = min(max(ratio, 1 - clip), 1 + clip)
        loss -= min(ratio * advantage, clamped * advantage) / len(kept)
        clipped = clamped * advantage < ratio * advantage
        grad[i] = 0.0 if clipped else -ratio * advantage / len(kept)
        outside += abs(ratio - 1) > clip
        acting += clipped
    return loss, grad, outside / len(kept), acting / len(kept)


def value_loss(values, old_values, returns, mask, clip):
    """(loss, gradient, share of values outside the clip, share of tokens where the clip acts).

    ½ · mean of max((V − return)², (clamp(V, V_old − clip, V_old + clip) − return)²).
    """
    kept = [i for i in np.ndindex(mask.shape) if mask[i]]
    loss, grad, outside, acting = 0.0, np.zeros(mask.shape), 0, 0
    for i in kept:
        clamped = min(max(values[i], old_values[i] - clip), old_values[i] + clip)
        plain, other = (values[i] - returns[i]) ** 2, (clamped - returns[i]) ** 2
        loss += max(plain, other) / 2 / len(kept)
        clipped = other > plain
        grad[i] = 0.0 if clipped else (values[i] - returns[i]) / len(kept)
        outside += clamped != values[i]
        acting += clipped
    return loss, grad, outside / len(kept), acting / len(kept)


# -- training ---------------------------------------------------------------------------------


def ema(history, decay):
    """e_0 = w_0, e_n = decay · e_{n−1} + (1 − decay) · w_n, as one explicit weighted sum."""
    n = len(history) - 1
    return decay ** n * history[0] + sum(
        (1 - decay) * decay ** (n - i) * history[i] for i in range(1, n + 1))


def cosine_rate(step, steps, peak, floor=0.1):
    """From `peak` at step 0 along half a cosine to `floor · peak` at step `steps`; no warm-up."""
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * step / steps)) / 2)


def warmup_rate(iteration, peak, start=0.1, iterations=10):
    """Linear from `start · peak` to `peak` over the first iterations, then constant."""
    return peak * min(1.0, start + (1 - start) * iteration / iterations)


# -- a small world that can be enumerated -----------------------------------------------------


def responses(vocab_size, length, eos):
    """Every response: it ends with its first `eos`, or without one at the length limit."""
    def grow(prefix):
        if len(prefix) == length or (prefix and prefix[-1] == eos):
            return [prefix]
        return [r for token in range(vocab_size) for r in grow(prefix + (token,))]
    return grow(())


def kl(p, q):
    """KL(p ‖ q) of two finite distributions, in nats."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def optimum(p_sft, rewards, kl_coef):
    """π*(y) ∝ π_sft(y) · exp(r(y) / kl_coef), the maximum of E[r] − kl_coef · KL(π ‖ π_sft)."""
    logits = [math.log(p) + r / kl_coef for p, r in zip(p_sft, rewards, strict=True)]
    return [math.exp(x) for x in log_softmax(logits)]


def chi_squared_pvalue(counts, probabilities):
    """The chance of counts at least this far from their expectation; rare cells are pooled."""
    import torch

    total = sum(counts)
    cells, rare = [], [0.0, 0.0]
    for count, p in zip(counts, probabilities, strict=True):
        if count and not p:
            return 0.0
        if p * total >= 5:
            cells.append((count, p * total))
        else:
            rare = [rare[0] + count, rare[1] + p * total]
    if rare[1] >= 1:
        cells.append(tuple(rare))
    elif rare[0] > 20:
        return 0.0
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


# -- the decoder, from its description alone ----------------------------------------------------


def layer_norm(x, gain, bias):
    """Each position's features shifted and scaled to mean 0 and variance 1, then gain and bias."""
    out = np.zeros(x.shape)
    for i in np.ndindex(x.shape[:-1]):
        mean = sum(x[i]) / len(x[i])
        variance = sum((value - mean) ** 2 for value in x[i]) / len(x[i])
        out[i] = (x[i] - mean) / math.sqrt(variance + 1e-5) * gain + bias
    return out


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def decoder(weights, tokens, n_layer, n_head):
    """GPT-2's hidden states: embeddings, then per layer attention and feed-forward, each on a
    normalised copy and added back, then a last normalisation. `weights` are named as published."""
    w = weights

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x, name):
        return layer_norm(x, w[name + ".weight"], w[name + ".bias"])

    x = np.stack([[w["wte.weight"][token] + w["wpe.weight"][t] for t, token in enumerate(row)]
                  for row in tokens])
    B, T, D = x.shape
    for layer in range(n_layer):
        h = f"h.{layer}."
        qkv = linear(norm(x, h + "ln_1"), h + "attn.c_attn")
        heads = [qkv[:, :, part * D:(part + 1) * D].reshape(B, T, n_head, D // n_head)
                 .transpose(0, 2, 1, 3) for part in range(3)]
        mixed = attention(*heads).transpose(0, 2, 1, 3).reshape(B, T, D)
        x = x + linear(mixed, h + "attn.c_proj")
        x = x + linear(gelu(linear(norm(x, h + "ln_2"), h + "mlp.c_fc")), h + "mlp.c_proj")
    return norm(x, "ln_f")


# -- schedules, averages, intervals --------------------------------------------------------------


def warm_cosine_rate(step, steps, peak, warmup, floor):
    """Linear up to `peak` at step `warmup` − 1, `peak` at step `warmup`, half a cosine down to
    `floor` · peak at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= steps - 1 > warmup:
        return peak * floor
    angle = math.pi * (step - warmup) / max(1, steps - 1 - warmup)
    return peak * floor + peak * (1 - floor) * math.cos(min(angle, math.pi) / 2) ** 2


def masked_mean(x, mask):
    kept = [float(x[i]) for i in np.ndindex(x.shape) if mask[i]]
    return sum(kept) / len(kept) if kept else 0.0


def inverse_cdf(probabilities, uniform):
    """The first token whose cumulative share of the whole exceeds `uniform`."""
    total, so_far = sum(probabilities), 0.0
    for token, p in enumerate(probabilities):
        so_far += p
        if so_far > uniform * total:
            return token
    return len(probabilities) - 1


def bootstrap_interval(values, picks):
    """Mean, and the 2.5 % and 97.5 % points (interpolated) of the means of resampled values."""
    means = sorted(sum(values[i] for i in pick) / len(pick) for pick in picks)

    def point(q):
        place = q * (len(means) - 1)
        low = int(place)
        high = min(low + 1, len(means) - 1)
        return means[low] + (place - low) * (means[high] - means[low])

    return sum(values) / len(values), point(0.025), point(0.975)
