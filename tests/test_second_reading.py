"""The functions that the other tests of equations leave out, against a second reading of them.

Expected values come from naive.py: plain loops in float64, written from the definitions alone.
"""

import math

import numpy as np
import pytest
import torch
from conftest import array, randomize, sweep

import evaluate
import model as M
import naive
import ppo
import reward
from model import GPT, GPTConfig, ScalarGPT


def small_shape(rng):
    heads = int(rng.integers(1, 4))
    return GPTConfig(vocab_size=int(rng.integers(2, 9)), n_ctx=int(rng.integers(2, 8)),
                     n_layer=int(rng.integers(1, 4)), n_head=heads,
                     d_model=heads * int(rng.integers(1, 5)))


def weights_of(model):
    return {name: array(w) for name, w in model.decoder.state_dict().items()}


def random_rows(rng, config):
    return rng.integers(config.vocab_size, size=(rng.integers(1, 4),
                                                 rng.integers(1, config.n_ctx + 1)))


@sweep(100)
def test_logits_and_scalars_are_those_of_the_decoder_written_out(seed):
    rng = np.random.default_rng(seed)
    config = small_shape(rng)
    gpt, scalar = (randomize(kind(config), seed=seed % 997).double() for kind in (GPT, ScalarGPT))
    tokens = random_rows(rng, config)
    with torch.no_grad():
        logits, scalars = gpt(torch.from_numpy(tokens)), scalar(torch.from_numpy(tokens))
    hidden = naive.decoder(weights_of(gpt), tokens, config.n_layer, config.n_head)
    np.testing.assert_allclose(array(logits), hidden @ weights_of(gpt)["wte.weight"].T,
                               rtol=1e-6, atol=1e-8)
    hidden = naive.decoder(weights_of(scalar), tokens, config.n_layer, config.n_head)
    expected = hidden @ array(scalar.head.weight)[0] + scalar.head.bias.item()
    np.testing.assert_allclose(array(scalars), expected, rtol=1e-6, atol=1e-8)
    lens = rng.integers(1, tokens.shape[1] + 1, size=len(tokens))
    with torch.no_grad():
        scores = scalar.scores(torch.from_numpy(tokens), torch.from_numpy(lens))
    np.testing.assert_allclose(array(scores), [row[n - 1] for row, n in zip(expected, lens)],
                               rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@sweep(12)
def test_log_softmax_at_every_temperature(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        logits = torch.from_numpy(rng.normal(size=(rng.integers(1, 4), rng.integers(1, 8)))
                                  * 10 ** rng.uniform(-6, 4)).to(dtype)
        temperature = float(10 ** rng.uniform(-2, 2))
        got = M.log_softmax(logits, temperature)
        expected = [naive.log_softmax([x / temperature for x in row]) for row in array(logits)]
        scale = 1 + abs(array(logits)).max() / temperature
        np.testing.assert_allclose(array(got), expected, rtol=1e-5, atol=1e-6 * scale)
        greedy = array(M.log_softmax(logits, 0.0))
        for row, best in zip(greedy, array(logits)):
            first = list(best).index(max(best))
            assert [x == (0 if i == first else -math.inf) for i, x in enumerate(row)] == \
                [True] * len(row)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        M.log_softmax(torch.zeros(2), -1.0)


@sweep(100)
def test_logprobs_and_values_of_responses_stand_in_their_own_columns(seed):
    """Each against a softmax over one row alone, unpadded, in whatever chunks it is unembedded."""
    rng = np.random.default_rng(seed)
    config = small_shape(rng)
    gpt, value = (randomize(kind(config), seed=seed % 997).double() for kind in (GPT, ScalarGPT))
    T = config.n_ctx
    prompt_lens = rng.integers(1, T, size=3)
    counts = [int(rng.integers(0, T - p + 1)) for p in prompt_lens]
    R = max(1, *counts)
    tokens = rng.integers(config.vocab_size, size=(3, T))
    mask = np.arange(R) < np.array(counts)[:, None]
    temperature = float(rng.choice([1.0, 0.5, 2.0]))
    place = [torch.from_numpy(x) for x in (tokens, prompt_lens, mask)]
    before, M.LOGITS_AT_ONCE = M.LOGITS_AT_ONCE, int(rng.choice([1, 3 * config.vocab_size, 2**26]))
    try:
        logprobs = array(M.response_logprobs(gpt, *place, temperature))
        values = array(M.response_values(value, *place))
    finally:
        M.LOGITS_AT_ONCE = before
    for b, (p, n) in enumerate(zip(prompt_lens, counts)):
        if not n:
            continue
        row = tokens[b:b + 1, :p + n]
        hidden = naive.decoder(weights_of(gpt), row, config.n_layer, config.n_head)[0]
        seen = naive.decoder(weights_of(value), row, config.n_layer, config.n_head)[0]
        for i in range(n):
            logits = hidden[p + i - 1] @ weights_of(gpt)["wte.weight"].T / temperature
            assert logprobs[b, i] == pytest.approx(naive.log_softmax(logits)[row[0, p + i]],
                                                   rel=1e-5, abs=1e-7)
            assert values[b, i] == pytest.approx(
                seen[p + i - 1] @ array(value.head.weight)[0] + value.head.bias.item(),
                rel=1e-5, abs=1e-7)
    assert not logprobs[~mask].any() and not values[~mask].any()


def test_logits_in_chunks_give_the_gradient_of_logits_at_once(monkeypatch):
    gpt = randomize(GPT(GPTConfig(7, 9, 2, 2, 8))).double()
    tokens = torch.randint(7, (3, 9))
    mask = torch.rand(3, 9) < 0.8
    grads = []
    for at_once in (2**26, 7, 21):
        monkeypatch.setattr(M, "LOGITS_AT_ONCE", at_once)
        gpt.zero_grad()
        (-M.target_logprobs(gpt, tokens, mask, 0.7).square().sum()).backward()
        grads.append([p.grad.clone() for p in gpt.parameters()])
    for a, b, c in zip(*grads):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


@sweep(12)
def test_a_masked_mean_is_the_mean_of_what_counts(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        x = torch.from_numpy(rng.normal(size=rng.integers(1, 6, size=2)))
        mask = torch.from_numpy(rng.random(x.shape) < rng.choice([0.0, 0.5, 1.0]))
        expected = naive.masked_mean(array(x), mask.numpy())
        x[~mask] = float(rng.choice([np.nan, np.inf, 1e30]))
        assert ppo.masked_mean(x, mask).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@sweep(12)
def test_the_draw_is_the_inverse_of_the_distribution_function(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        B, V = rng.integers(1, 5), rng.integers(1, 9)
        logits = torch.from_numpy(rng.normal(size=(B, V)) * 10 ** rng.uniform(-2, 2))
        uniform = torch.from_numpy(rng.choice([rng.random(B), np.zeros(B), np.full(B, 1 - 1e-16)]))
        logprobs = torch.log_softmax(logits, -1)
        got = M.draw(logprobs, uniform).tolist()
        p = array(logprobs.exp())
        assert got == [naive.inverse_cdf(row, u) for row, u in zip(p, uniform.tolist())]


@sweep(12)
def test_averages_of_weights_follow_their_recurrence_at_every_decay(seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        decay, steps = float(rng.choice([0.0, 0.5, 0.992, 1.0])), int(rng.integers(1, 6))
        average, model = torch.nn.Linear(2, 3).double(), torch.nn.Linear(2, 3).double()
        history = [array(average.weight).copy()]
        for _ in range(steps):
            with torch.no_grad():
                model.weight += torch.from_numpy(rng.normal(size=(3, 2)))
            ppo.update_ema(average, model, decay)
            history.append(array(model.weight).copy())
        np.testing.assert_allclose(array(average.weight), naive.ema(history, decay), atol=1e-9)


@sweep(12)
def test_rates_at_every_length_warm_up_and_floor(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        steps, peak, floor = int(rng.integers(1, 50)), float(rng.uniform(0.1, 5)), rng.random()
        warmup = int(rng.integers(0, steps + 1))
        for step in range(steps):
            assert M.cosine_rate(step, steps, peak, warmup, floor) == pytest.approx(
                naive.warm_cosine_rate(step, steps, peak, warmup, floor), abs=1e-9)
        config = ppo.PPOConfig(policy="", reward="", prompts="", out="", ptx_coef=0.0,
                               policy_rate=peak, warmup=warmup)
        for iteration in range(steps):
            assert ppo.policy_rate(iteration, config) == pytest.approx(
                naive.warmup_rate(iteration, peak, iterations=max(1, warmup)))


def test_a_warm_up_ends_at_the_peak_and_the_last_step_is_the_floor():
    rates = [M.cosine_rate(step, 20, 2.0, warmup=5, floor=0.25) for step in range(20)]
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0]) and rates[-1] == 0.5


def test_the_statistics_of_the_policy_loss_by_hand():
    # Ratios 4 and 1/2: (4 − 1 − 2 ln 2 + 1/2 − 1 + ln 2) / 2 estimates a divergence.
    log_ratio = torch.tensor([[math.log(4), -math.log(2), 9.0]])
    mask = torch.tensor([[True, True, False]])
    _, stats = ppo.policy_loss(log_ratio, torch.zeros(1, 3), torch.ones(1, 3), mask)
    assert stats["approx_kl"] == pytest.approx((2.5 - math.log(2)) / 2)
    assert stats["max_log_ratio"] == pytest.approx(math.log(4))
    _, stats = ppo.value_loss(torch.tensor([[1.0, 3.0, 9.0]]), torch.zeros(1, 3),
                              torch.zeros(1, 3), mask)
    assert stats["error"] == pytest.approx(5.0)


# -- finite differences -------------------------------------------------------------------------


def scores_of(gpt, tokens):
    return gpt.scores(tokens, torch.tensor([5, 3, 4, 5])).view(2, 2)


def through_models():
    """Losses as functions of every weight of a tiny model, in float64."""
    tokens, mask = torch.randint(6, (4, 5)), torch.rand(4, 5) < 0.7
    ranks, pairs = torch.tensor([[1, 2], [2, 1]]), torch.ones(2, 2, dtype=torch.bool)
    places = torch.tensor([2, 1, 3, 2]), torch.arange(2) < torch.tensor([[2], [1], [2], [2]])
    old, other = torch.randn(2, 4, 2, dtype=torch.float64)
    gpt, scalar = (randomize(kind(GPTConfig(6, 5, 1, 2, 4))).double() for kind in (GPT, ScalarGPT))
    yield gpt, lambda: M.lm_loss(gpt(tokens), tokens, mask)
    yield gpt, lambda: M.target_logprobs(gpt, tokens, mask, 0.7).sum()
    yield gpt, lambda: ppo.policy_loss(M.response_logprobs(gpt, tokens, *places), old * 0.1 - 2,
                                       other, places[1], clip=5.0)[0]
    yield scalar, lambda: reward.ranking_loss(scores_of(scalar, tokens), ranks, pairs)[0]
    yield scalar, lambda: ppo.value_loss(M.response_values(scalar, tokens, *places), old, other,
                                         places[1], clip=9.0)[0]


def pure_losses():
    """Every loss as a function of one tensor, away from the edges of clips."""
    def of(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    tokens, mask, full = torch.randint(5, (3, 6)), torch.rand(3, 6) < 0.7, torch.rand(3, 5) < 0.8
    ranks, q, k, v = torch.randint(1, 4, (3, 5)), *of(3, 1, 2, 4, 3)
    old, returns, advantages = of(3, 5), of(3, 5), of(3, 5)
    weights = of(3, 5)
    change = torch.linspace(-1, 1, 15, dtype=torch.float64).view(3, 5) * 0.9
    yield of(3, 6, 5), lambda x: M.lm_loss(x, tokens, mask)
    yield of(3, 6, 5), lambda x: (M.token_logprobs(x, tokens, 0.7) * weights).sum()
    yield of(3, 5), lambda x: reward.ranking_loss(x, ranks, full)[0]
    yield old + change, lambda x: ppo.policy_loss(x, old, advantages, full)[0]
    yield old + change, lambda x: ppo.value_loss(x, old, returns, full)[0]
    yield q, lambda x: (M.attention(x, k, v) * v).sum()
    yield k, lambda x: (M.attention(q, x, v) * v).sum()
    yield v, lambda x: (M.attention(q, k, x) * q).sum()


def difference(function, numbers, analytic, h=1e-6):
    """The largest deviation of a gradient from central differences, over its largest element."""
    flat, analytic = numbers.view(-1), analytic.reshape(-1)
    found = torch.zeros_like(analytic)
    for i in range(len(flat)):
        values = []
        for sign in (1, -1):
            kept = flat[i].item()
            flat[i] = kept + sign * h
            values.append(function().item())
            flat[i] = kept
        found[i] = (values[0] - values[1]) / (2 * h)
    return ((found - analytic).abs().max() / analytic.abs().max()).item()


def test_every_loss_agrees_with_finite_differences_in_float64(record_property):
    worst, losses = 0.0, 0
    for x, loss in pure_losses():
        x = x.clone().requires_grad_()
        grad, = torch.autograd.grad(loss(x), x)
        with torch.no_grad():
            worst, losses = max(worst, difference(lambda: loss(x), x, grad)), losses + 1
    for model, loss in through_models():
        grads = torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True)
        largest = max(g.abs().max() for g in grads if g is not None)
        with torch.no_grad():
            for p, grad in zip(model.parameters(), grads):
                if grad is not None and grad.abs().max() > 1e-3 * largest:
                    worst = max(worst, difference(loss, p, grad))
        losses += 1
    record_property("finite_differences", worst)
    record_property("losses", losses)
    assert losses == 13 and worst < 1e-6


# -- intervals and judgements of the evaluation --------------------------------------------------


@sweep(30)
def test_the_bootstrap_is_that_of_resampled_prompts(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=rng.integers(1, 30)).tolist()
    draws = np.random.default_rng(seed)
    picks = [draws.integers(len(values), size=len(values)).tolist() for _ in range(200)]
    assert evaluate.bootstrap(values, draws=200, seed=seed) == pytest.approx(
        naive.bootstrap_interval(values, picks))


def test_a_bootstrap_interval_covers_the_truth_as_often_as_it_says(record_property):
    rng = np.random.default_rng(0)
    found = [evaluate.bootstrap(rng.exponential(size=80), draws=300, seed=i) for i in range(400)]
    covered = sum(low <= 1.0 <= high for _, low, high in found) / len(found)
    record_property("coverage", covered)
    assert 0.90 < covered < 0.98
    width = np.mean([high - low for _, low, high in found])
    assert width == pytest.approx(2 * 1.96 / math.sqrt(80), rel=0.08)


def judged(count, judges=1, labelers="x"):
    return evaluate.judge_pairs(range(count), [f"good {i}" for i in range(count)],
                                [f"bad {i}" for i in range(count)], list(labelers), judges=judges)


def test_the_judge_sees_each_side_first_about_half_of_the_time(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "prefers", lambda labeler, key, a, b, rng: seen.append(a) or 0.5)
    assert judged(400) == judged(400) == [0.5] * 400
    assert 0.42 < sum(a.startswith("good") for a in seen) / len(seen) < 0.58


@pytest.mark.parametrize("taste, share", [("good", 1.0), ("bad", 0.0)])
def test_a_win_counts_for_the_model_whatever_its_side(monkeypatch, taste, share):
    monkeypatch.setattr(evaluate, "prefers",
                        lambda labeler, key, a, b, rng: float(a.startswith(taste)))
    assert judged(50, 3, "xyz") == [share] * 50


def test_several_judges_of_a_pair_are_different_labelers(monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "prefers", lambda labeler, *args: asked.append(labeler) or 1.0)
    judged(20, 3, "abcde")
    assert all(len(set(asked[i:i + 3])) == 3 for i in range(0, 60, 3)) and len(set(asked)) == 5
    with pytest.raises(evaluate.InputError, match="--judges 9: expected at most 5"):
        judged(1, 9, "abcde")
