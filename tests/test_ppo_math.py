"""Eq. 2 without its models: per-token rewards, GAE, whitening, and the two clipped losses."""

import math

import numpy as np
import pytest
import torch
from conftest import array, sweep

import naive
from model import GPT, GPTConfig
from ppo import (PPOConfig, gae, kl_rewards, policy_loss, policy_rate, update_ema, value_loss,
                 whiten)

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
GARBAGE = (np.nan, np.inf, -np.inf, 1e30)
FULL = (torch.float32, torch.float64)  # what losses and advantages may come in


def response_mask(rng):
    """Responses of random lengths from column 0: some empty, some of one token, some full."""
    B, R = rng.integers(1, 6), rng.integers(1, 9)
    lens = rng.integers(0, R + 1, size=B)
    lens[rng.integers(B)] = rng.integers(1, R + 1)  # at least one token in the batch
    return torch.from_numpy(np.arange(R) < lens[:, None])


def random_mask(rng):
    """Any elements at all, at least one: losses and whitening know nothing of order."""
    mask = torch.from_numpy(rng.random((rng.integers(1, 6), rng.integers(1, 9))) < rng.random())
    mask[rng.integers(len(mask)), rng.integers(mask.shape[1])] = True
    return mask


def numbers(rng, shape, dtype, low=-6, high=4):
    """Numbers of one random magnitude; now and then all equal, or around a distant mean."""
    x = rng.normal(size=shape) * 10 ** rng.uniform(low, high)
    kind = rng.random()
    x = np.full(shape, x.flat[0]) if kind < 0.1 else x + x.flat[0] if kind < 0.2 else x
    return torch.from_numpy(x).to(dtype)


def spoil(rng, mask, *tensors):
    """Put something that must not matter wherever the mask is False."""
    for x in tensors:
        x[~mask] = float(rng.choice(GARBAGE))


# -- rewards ----------------------------------------------------------------------------------


def test_kl_rewards_by_hand():
    rewards = kl_rewards(torch.tensor([2.0]),
                         torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -3.0, -1.0]]),
                         torch.tensor([[True, True, False]]), 0.1)
    assert rewards.flatten().tolist() == pytest.approx([-0.1 * 0.5, -0.1 * 1.0 + 2.0, 0.0])


def test_the_score_lands_on_the_last_response_token_and_nowhere_else():
    lens = torch.tensor([1, 3, 5])  # at the first token, within the limit, at the limit
    mask = torch.arange(5) < lens[:, None]
    same = torch.randn(3, 5)
    scores = torch.tensor([1.0, -2.0, 3.0])
    expected = torch.zeros(3, 5)
    expected[0, 0], expected[1, 2], expected[2, 4] = 1.0, -2.0, 3.0
    assert torch.equal(kl_rewards(scores, same, same, mask, 0.02), expected)


def test_without_kl_coef_only_the_score_is_left():
    mask = torch.tensor([[True, True, True, False]])
    rewards = kl_rewards(torch.tensor([1.5]), torch.randn(1, 4), torch.randn(1, 4), mask, 0.0)
    assert rewards.tolist() == [[0.0, 0.0, 1.5, 0.0]]


def test_a_token_likelier_than_under_sft_is_penalised():
    rewards = kl_rewards(torch.zeros(1), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.0]]),
                         torch.ones(1, 2, dtype=torch.bool), 0.5)
    assert rewards[0, 0] < 0 == rewards[0, 1]


@pytest.mark.parametrize("scores", [torch.zeros(3, 1), torch.zeros(1), torch.zeros(())])
def test_scores_that_are_not_one_a_row_are_refused(scores):
    zeros = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="3 rows; expected one each"):
        kl_rewards(scores, zeros, zeros, zeros == 0, 0.02)


@pytest.mark.parametrize("B, R", [(3, 0), (0, 4), (0, 0)])
def test_no_tokens_have_empty_rewards_advantages_and_losses(B, R):
    x, mask = torch.zeros(B, R), torch.zeros(B, R, dtype=torch.bool)
    found = kl_rewards(torch.ones(B), x, x, mask, 0.02), *gae(x, x, mask), whiten(x, mask)
    assert [y.shape for y in found] == 4 * [(B, R)]
    assert policy_loss(x, x, x, mask)[0] == value_loss(x, x, x, mask)[0] == 0


@DTYPES
@sweep(12)
def test_kl_rewards_equal_a_loop_over_tokens(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        mask = response_mask(rng)
        logprobs, ref = (-numbers(rng, mask.shape, dtype).abs() for _ in range(2))
        scores = numbers(rng, len(mask), dtype)
        kl_coef = float(rng.choice([0.0, 0.02, 1.0]))
        expected = naive.kl_rewards(array(scores), array(logprobs), array(ref), mask.numpy(),
                                    kl_coef)
        total = array(scores) * mask.any(1).numpy() - kl_coef * np.where(
            mask.numpy(), array(logprobs) - array(ref), 0).sum(1)
        scale = abs(array(scores)).max() + kl_coef * max(
            abs(array(x[mask])).max() for x in (logprobs, ref))
        spoil(rng, mask, logprobs, ref)
        rewards = kl_rewards(scores, logprobs, ref, mask, kl_coef)
        assert rewards.dtype in FULL and not array(rewards)[~mask.numpy()].any()
        np.testing.assert_allclose(array(rewards), expected, rtol=1e-5, atol=1e-6 * scale)
        # A response's rewards add up to its score less kl_coef times its log ratio.
        np.testing.assert_allclose(array(rewards).sum(1), total, rtol=1e-5, atol=1e-5 * scale)


# -- generalised advantage estimation ---------------------------------------------------------


def test_gae_by_hand():
    # δ = (0 + 0.9·0.25 − 0.5, 0 + 0.9·0.75 − 0.25, 1 − 0.75) = (−0.275, 0.425, 0.25);
    # A_2 = 0.25, A_1 = 0.425 + 0.45·0.25, A_0 = −0.275 + 0.45·A_1.
    values = torch.tensor([[0.5, 0.25, 0.75, 9.0]])
    advantages, returns = gae(torch.tensor([[0.0, 0.0, 1.0, 9.0]]), values,
                              torch.tensor([[True, True, True, False]]), discount=0.9, lam=0.5)
    expected = [-0.275 + 0.45 * 0.5375, 0.5375, 0.25, 0.0]
    assert advantages.flatten().tolist() == pytest.approx(expected)
    assert returns.flatten().tolist() == pytest.approx(
        [expected[0] + 0.5, 0.5375 + 0.25, 0.25 + 0.75, 0.0])


def test_gae_is_0_outside_a_mask_that_begins_late():
    rewards, values = torch.tensor([[1.0, 2, 3, 4]]), torch.full((1, 4), 0.5)
    mask = torch.tensor([[False, True, True, False]])
    advantages, returns = gae(rewards, values, mask)
    assert advantages[~mask].tolist() == returns[~mask].tolist() == [0, 0]
    alone = gae(rewards[:, 1:], values[:, 1:], mask[:, 1:])
    assert torch.equal(advantages[:, 1:], alone[0]) and torch.equal(returns[:, 1:], alone[1])


def test_discount_and_lam_are_not_exchanged():
    # With one reward at the end and values 1: lam 0 leaves the one-step error alone.
    rewards, values = torch.tensor([[0.0, 3.0]]), torch.ones(1, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, _ = gae(rewards, values, mask, discount=0.5, lam=0.0)
    assert advantages.tolist() == [[0.5 * 1 - 1, 3.0 - 1]]
    advantages, _ = gae(rewards, values, mask, discount=0.0, lam=0.5)
    assert advantages.tolist() == [[0.0 - 1, 3.0 - 1]]


def test_the_default_is_discount_1_and_lam_095():
    rewards, values = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    expected, _ = naive.gae(array(rewards), array(values), mask.numpy(), 1.0, 0.95)
    np.testing.assert_allclose(array(gae(rewards, values, mask)[0]), expected, atol=1e-6)


def test_with_lam_1_the_return_is_the_sum_of_rewards_still_to_come():
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
    _, returns = gae(rewards, values, mask, discount=1.0, lam=1.0)
    kept = torch.where(mask, rewards, torch.zeros(()))
    to_come = kept.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, to_come, torch.zeros(())))


def test_the_value_after_the_last_token_is_0():
    # A response of one token: its advantage is its reward less its value, whatever comes after.
    advantages, returns = gae(torch.tensor([[2.0, 50.0]]), torch.tensor([[0.5, 70.0]]),
                              torch.tensor([[True, False]]))
    assert advantages.tolist() == [[1.5, 0.0]] and returns.tolist() == [[2.0, 0.0]]


def test_exact_values_leave_no_advantage():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    values = torch.tensor([[7.0, 6.0, 4.0]])  # the sums of rewards still to come
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool))
    assert advantages.abs().max() == 0 and torch.equal(returns, values)


@DTYPES
@sweep(12)
def test_gae_equals_the_double_sum(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        mask = response_mask(rng)
        rewards, values = (numbers(rng, mask.shape, dtype) for _ in range(2))
        discount, lam = rng.choice([0.0, 0.5, 0.9, 0.95, 0.99, 1.0], size=2).tolist()
        expected, expected_returns = naive.gae(
            array(rewards), array(values), mask.numpy(), discount, lam)
        scale = max(abs(array(x[mask])).max() for x in (rewards, values))
        spoil(rng, mask, rewards, values)
        advantages, returns = gae(rewards, values, mask, discount=discount, lam=lam)
        for got, want in ((advantages, expected), (returns, expected_returns)):
            assert got.dtype in FULL and not array(got)[~mask.numpy()].any()
            np.testing.assert_allclose(array(got), want, rtol=1e-5, atol=1e-5 * scale)


# -- whitening --------------------------------------------------------------------------------


def test_whiten_by_hand():
    # 1, 3, 5, 7 have mean 4 and biased variance (9 + 1 + 1 + 9) / 4 = 5.
    x = torch.tensor([[1.0, 3.0, 100.0], [5.0, -100.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    expected = torch.tensor([[-3.0, -1.0, 0.0], [1.0, 0.0, 3.0]]) / math.sqrt(5)
    torch.testing.assert_close(whiten(x, mask), expected)


def test_whitening_ignores_padding():
    x = torch.randn(4, 6)
    mask = torch.rand(4, 6) < 0.6
    wider = torch.cat([x, torch.full((4, 3), 1e6)], dim=1)
    wider_mask = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(whiten(wider, wider_mask)[:, :6], whiten(x, mask))


def test_whitening_equal_values_gives_0():
    mask = torch.rand(5, 7) < 0.7
    for value in (0.0, 1.0, -3.5, 0.1, 1e-6, 1e4 / 3):  # fp32 cannot hold the mean of the last
        assert whiten(torch.full((5, 7), value), mask).abs().max() < 1e-2
    alone = torch.zeros(5, 7, dtype=torch.bool)
    alone[2, 3] = True
    assert whiten(torch.randn(5, 7), alone).abs().max() == 0


@DTYPES
@sweep(12)
def test_whiten_has_mean_0_and_variance_1_over_the_mask_and_0_outside(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        mask = random_mask(rng)
        x = numbers(rng, mask.shape, dtype)
        kept = array(x[mask])
        expected = naive.whiten(array(x), mask.numpy())
        spoil(rng, mask, x)
        got = whiten(x, mask)
        assert got.dtype in FULL and torch.isfinite(got).all()
        assert not array(got)[~mask.numpy()].any()
        # Below this spread eps and rounding take part, and the result is only not too large.
        if kept.std() < 1e-2 + 1e-3 * abs(kept.mean()):
            assert array(got).std() < 1.01
            continue
        rounding = 1e-3 + 1e-6 * abs(kept).max() / kept.std()
        np.testing.assert_allclose(array(got), expected, rtol=rounding, atol=rounding)
        assert abs(array(got[mask]).mean()) < rounding
        assert abs(array(got[mask]).var() - 1) < rounding


def test_whiten_uses_the_biased_variance_and_eps_1e_8():
    # Two elements ±a: the variance is a², so the result is ±1 but for eps = 1e-8.
    a = 1e-4
    got = whiten(torch.tensor([[a, -a]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool))
    assert got[0, 0].item() == pytest.approx(a / math.sqrt(a * a + 1e-8), rel=1e-4)


# -- policy loss ------------------------------------------------------------------------------


def policy(logprobs, old_logprobs, advantages, mask, clip=0.2):
    logprobs = logprobs.detach().clone().requires_grad_()
    loss, stats = policy_loss(logprobs, old_logprobs, advantages, mask, clip=clip)
    loss.backward()
    return loss, logprobs.grad, stats


def test_policy_loss_by_hand():
    # Ratio 1.5 and advantage 1: the clip caps the gain at 1.2. Ratio 1.5 and advantage −1: the
    # loss stays 1.5. Ratio 0.5 and advantage 1: −0.5. Ratio 0.5 and advantage −1: 0.8, clipped.
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    old = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    loss, grad, _ = policy(old + ratios.log(), old, advantages, torch.ones(1, 4, dtype=torch.bool))
    assert loss.item() == pytest.approx((-1.2 + 1.5 - 0.5 + 0.8) / 4)
    assert grad.flatten().tolist() == pytest.approx([0.0, 1.5 / 4, -0.5 / 4, 0.0])


def test_within_the_clip_the_loss_is_the_plain_ratio():
    ratios = torch.tensor([[1.1, 0.9]])
    loss, grad, stats = policy(ratios.log(), torch.zeros(1, 2), torch.tensor([[2.0, -4.0]]),
                               torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx((-1.1 * 2 + 0.9 * 4) / 2)
    assert grad.flatten().tolist() == pytest.approx([-1.1 * 2 / 2, 0.9 * 4 / 2])
    assert float(stats["clip_fraction"]) == 0


def test_ratio_1_gives_minus_the_mean_advantage_and_clip_fraction_0():
    logprobs, advantages = -torch.rand(3, 5), torch.randn(3, 5)
    mask = torch.rand(3, 5) < 0.7
    loss, grad, stats = policy(logprobs, logprobs, advantages, mask)
    assert loss.item() == pytest.approx(-advantages[mask].mean().item(), abs=1e-6)
    torch.testing.assert_close(grad, torch.where(mask, -advantages / mask.sum(), torch.zeros(())))
    assert float(stats["clip_fraction"]) == 0
    assert float(stats["approx_kl"]) == pytest.approx(0, abs=1e-7)


def test_the_default_clip_is_02():
    args = (torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    loss, _ = policy_loss(torch.full((1, 1), 9.0), *args)
    assert loss.item() == pytest.approx(-1.2)


def test_clip_fraction_counts_clipped_tokens_of_the_mask():
    # Ratios 2, 2, 1, 1 with advantage 1: half of the tokens are clipped, and none of the padding.
    ratios = torch.tensor([[2.0, 2.0, 1.0, 1.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, True, True, False, False]])
    _, _, stats = policy(ratios.log(), torch.zeros(1, 6), torch.ones(1, 6), mask)
    assert float(stats["clip_fraction"]) == pytest.approx(0.5)


def test_the_mean_runs_over_all_tokens_and_not_over_rows():
    # Rows of 1 and 3 tokens: −(4 + 0 + 0 + 0) / 4, not −(4 + 0) / 2.
    mask = torch.tensor([[True, False, False], [True, True, True]])
    advantages = torch.tensor([[4.0, 7.0, 7.0], [0.0, 0.0, 0.0]])
    loss, _, _ = policy(torch.zeros(2, 3), torch.zeros(2, 3), advantages, mask)
    assert loss.item() == pytest.approx(-1.0)


@DTYPES
@sweep(12)
def test_policy_loss_and_its_gradient_equal_a_loop_over_tokens(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        mask, clip = random_mask(rng), float(rng.choice([0.0, 0.1, 0.2, 0.5]))
        old = -numbers(rng, mask.shape, torch.float64, high=1).abs()
        change = numbers(rng, mask.shape, torch.float64, high=0.5).clamp(-20, 20)
        old, logprobs = old.to(dtype), (old + change).to(dtype)
        advantages = numbers(rng, mask.shape, dtype)
        expected, expected_grad, outside, acting = naive.policy_loss(
            array(logprobs), array(old), array(advantages), mask.numpy(), clip)
        edge = abs(abs(np.expm1(array(logprobs[mask]) - array(old[mask]))) - clip).min() < 1e-5
        ratios = np.exp(array(logprobs[mask]) - array(old[mask]))
        scale = (np.maximum(ratios, 1) * abs(array(advantages[mask]))).max()
        spoil(rng, mask, logprobs, old, advantages)
        loss, grad, stats = policy(logprobs, old, advantages, mask, clip)

        assert loss.shape == () and loss.dtype in FULL
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-5, atol=1e-5 * scale)
        assert not array(grad)[~mask.numpy()].any()
        assert all(math.isfinite(float(value)) for value in stats.values())
        if edge:  # at the very edge of the clip rounding decides which side a token is on
            continue
        rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5
        np.testing.assert_allclose(array(grad), expected_grad, rtol=rounding,
                                   atol=rounding * scale / mask.sum().item())
        # A token counts as clipped when its ratio is outside, or when the clip also decides.
        fraction = float(stats["clip_fraction"])
        assert min(abs(fraction - outside), abs(fraction - acting)) < 1e-6


def away_from(x, edges, distance=0.05):
    return all(abs(x - edge).min() > distance for edge in edges)


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("advantage, loss", [(1.0, -1.2), (0.0, 0.0)])
def test_a_ratio_beyond_all_numbers_that_the_clamp_cuts_off_has_no_gradient(dtype, advantage, loss):
    new = torch.zeros(1, 2, dtype=dtype, requires_grad=True)
    old = torch.tensor([[-2000.0, 0.0]], dtype=dtype)  # ratios e^2000 and 1
    advantages = torch.tensor([[advantage, 0.0]], dtype=dtype)
    found, _ = policy_loss(new, old, advantages, torch.ones(1, 2, dtype=torch.bool))
    found.backward()
    assert found.item() == pytest.approx(loss / 2) and new.grad.tolist() == [[0, 0]]


def test_a_ratio_beyond_all_numbers_is_told_where_it_counts():
    ones = torch.ones(1, 1)
    loss, stats = policy_loss(0 * ones, -200 * ones, -ones, ones.bool())
    assert loss.item() == stats["approx_kl"] == math.inf


def test_policy_loss_gradient_equals_finite_differences():
    old = -torch.rand(3, 4, dtype=torch.float64)
    ratios = torch.tensor([0.3, 0.7, 0.9, 1.0, 1.1, 1.3, 2.0, 0.5, 0.95, 1.5, 1.05, 3.0]).view(3, 4)
    assert away_from(ratios, (0.8, 1.2))
    advantages, mask = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 4) < 0.8
    logprobs = (old + ratios.log()).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, mask)[0], logprobs)


# -- value loss -------------------------------------------------------------------------------


def value(values, old_values, returns, mask, clip=0.2):
    values = values.detach().clone().requires_grad_()
    loss, stats = value_loss(values, old_values, returns, mask, clip=clip)
    loss.backward()
    return loss, values.grad, stats


def test_value_loss_by_hand():
    # V = 1, V_old = 0.5, clipped to 0.7. Return 2: max(1², 1.3²), the clip acts. Return 0:
    # max(1², 0.7²), it does not. V = 0.6 is within the clip: (0.6 − 1)² either way.
    values, old = torch.tensor([[1.0, 1.0, 0.6]]), torch.full((1, 3), 0.5)
    returns = torch.tensor([[2.0, 0.0, 1.0]])
    loss, grad, _ = value(values, old, returns, torch.ones(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx((1.69 + 1.0 + 0.16) / 3 / 2)
    assert grad.flatten().tolist() == pytest.approx([0.0, 1.0 / 3, -0.4 / 3])


def test_unchanged_values_give_half_the_mean_squared_error():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    returns = torch.tensor([[0.0, 4.0], [0.0, 4.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss, grad, stats = value(values, values, returns, mask)
    assert loss.item() == pytest.approx((1 + 4 + 9) / 3 / 2)
    assert grad.flatten().tolist() == pytest.approx([1 / 3, -2 / 3, 3 / 3, 0.0])
    assert float(stats["clip_fraction"]) == 0


def test_a_value_within_the_clip_does_not_count_as_clipped():
    # Not even by the rounding of V_old + (V − V_old).
    old, values, returns = (size * torch.randn(50, 20) for size in (0.03, 0.01, 0.001))
    assert (values - old).abs().max() < 0.19
    _, _, stats = value(values, old, returns, torch.ones(50, 20, dtype=torch.bool))
    assert float(stats["clip_fraction"]) == 0


def test_the_default_value_clip_is_02():
    # V = 0, V_old = 1, return 1: the clipped value 0.8 is nearer, so the plain error 1 counts;
    # return −1: the plain error is 1, the clipped one 1.8.
    ones, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    loss, _ = value_loss(torch.zeros(1, 1), ones, ones, mask)
    assert loss.item() == pytest.approx(0.5)
    loss, _ = value_loss(torch.zeros(1, 1), ones, -ones, mask)
    assert loss.item() == pytest.approx(1.8 ** 2 / 2)


@DTYPES
@sweep(12)
def test_value_loss_and_its_gradient_equal_a_loop_over_tokens(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        mask, clip = random_mask(rng), float(rng.choice([0.1, 0.2, 0.5, 10.0]))
        old = numbers(rng, mask.shape, torch.float64)
        values = (old + numbers(rng, mask.shape, torch.float64, high=1)).to(dtype)
        old, returns = old.to(dtype), numbers(rng, mask.shape, dtype)
        expected, expected_grad, outside, acting = naive.value_loss(
            array(values), array(old), array(returns), mask.numpy(), clip)
        size = max(abs(array(x[mask])).max() for x in (values, old, returns))
        edge = abs(abs(array(values[mask]) - array(old[mask])) - clip).min() < 1e-5 * (1 + size)
        spoil(rng, mask, values, old, returns)
        loss, grad, stats = value(values, old, returns, mask, clip)

        assert loss.shape == () and loss.dtype in FULL
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-4, atol=1e-6 * size**2)
        assert not array(grad)[~mask.numpy()].any()
        assert all(math.isfinite(float(value)) for value in stats.values())
        if edge:
            continue
        # Where both errors agree but for rounding, either may be the larger one.
        v, o, r = (array(x[mask]) for x in (values, old, returns))
        errors = (v - r) ** 2, (np.clip(v, o - clip, o + clip) - r) ** 2
        if ((errors[0] != errors[1]) & (abs(errors[0] - errors[1]) < 1e-5 * size**2)).any():
            continue
        rounding = 1e-2 if dtype == torch.bfloat16 else 1e-4
        np.testing.assert_allclose(array(grad), expected_grad, rtol=rounding,
                                   atol=rounding * size / mask.sum().item())
        fraction = float(stats["clip_fraction"])
        assert min(abs(fraction - outside), abs(fraction - acting)) < 1e-6


def test_value_loss_gradient_equals_finite_differences():
    old = torch.randn(3, 4, dtype=torch.float64)
    change = torch.tensor([-0.9, -0.5, -0.3, -0.1, 0.0, 0.05, 0.1, 0.15, 0.3, 0.5, 0.7, 1.0])
    values = (old + change.view(3, 4)).requires_grad_()
    returns, mask = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 4) < 0.8
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, returns, mask)[0], values)


# -- schedules --------------------------------------------------------------------------------


def test_the_average_of_weights_is_the_explicit_weighted_sum():
    model, average = (GPT(GPTConfig(vocab_size=3, n_ctx=2, n_layer=1, n_head=1, d_model=2))
                      for _ in range(2))
    history = [torch.cat([p.detach().flatten() for p in average.parameters()]).double()]
    for _ in range(30):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape))
        history.append(torch.cat([p.detach().flatten() for p in model.parameters()]).double())
        update_ema(average, model, 0.992)
    got = torch.cat([p.detach().flatten() for p in average.parameters()]).double()
    torch.testing.assert_close(got, naive.ema(history, 0.992), rtol=1e-5, atol=1e-6)


def test_the_policy_rate_rises_from_a_tenth_over_10_iterations_and_stays():
    config = PPOConfig(policy="", reward="", prompts="", out="", ptx_coef=0.0, policy_rate=2.0)
    got = [policy_rate(i, config) for i in range(30)]
    assert got == pytest.approx([naive.warmup_rate(i, 2.0) for i in range(30)])
    assert got[0] == pytest.approx(0.2) and got[5] == pytest.approx(1.1)
    assert got[10:] == [2.0] * 20


# -- the parts together -----------------------------------------------------------------------


def test_a_batch_cut_by_tokens_gives_the_gradient_of_the_whole():
    # Weighted by their tokens, the losses of two parts add up to the loss of the minibatch.
    logprobs, old, advantages = torch.randn(3, 6, 5, dtype=torch.float64) * 0.3
    mask = torch.arange(5) < torch.tensor([[1], [5], [2], [4], [3], [5]])
    whole, _ = policy_loss(logprobs, old, advantages, mask)
    parts = [policy_loss(logprobs[i], old[i], advantages[i], mask[i])[0] * mask[i].sum()
             for i in (slice(0, 2), slice(2, 6))]
    assert (sum(parts) / mask.sum()).item() == pytest.approx(whole.item(), rel=1e-9)


def test_losses_of_an_empty_row_are_those_without_it():
    logprobs, old, advantages = torch.randn(3, 4, 5)
    mask = torch.rand(4, 5) < 0.7
    mask[2] = False
    kept = [0, 1, 3]
    for function in (policy_loss, value_loss):
        whole, _ = function(logprobs, old, advantages, mask)
        without, _ = function(logprobs[kept], old[kept], advantages[kept], mask[kept])
        torch.testing.assert_close(whole, without)
