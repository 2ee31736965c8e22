"""Estimates from samples are unbiased where they claim to be, and whitening does what it says."""

import functools

import pytest
import torch
from conftest import randomize

import naive
from model import generate
from ppo import gae, kl_rewards, whiten
from worlds import World, entropy, response_logprobs

DRAWS = 40_000


@pytest.fixture(scope="module")
def drawn():
    world = World(vocab_size=4, length=3, eos=2)
    policy = randomize(world.policy(), std=0.1, seed=5)
    samples = generate(policy, [world.prompt] * DRAWS, world.length, eos=world.eos,
                       generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ref = response_logprobs(world.sft, samples)
    return world, policy, samples, ref


def total(x_BR, mask_BR):
    return torch.where(mask_BR, x_BR, torch.zeros(())).sum(1).double()


def assert_within_standard_errors(estimates, exact, record, n=4):
    standard_error = estimates.std() / len(estimates) ** 0.5
    record("largest_z", float(abs(estimates.mean() - exact) / standard_error))
    assert abs(estimates.mean() - exact) < n * standard_error
    assert standard_error < 0.05 * abs(exact)  # so the agreement says something


def test_the_sampled_kl_is_unbiased(drawn, record_property):
    world, policy, samples, ref = drawn
    exact = naive.kl(world.probabilities(policy), world.probabilities(world.sft))
    assert_within_standard_errors(total(samples.logprobs_BR - ref, samples.mask_BR), exact,
                                  record_property)


def test_the_sampled_entropy_is_unbiased(drawn, record_property):
    world, policy, samples, _ = drawn
    exact = entropy(world.probabilities(policy))
    assert_within_standard_errors(total(-samples.logprobs_BR, samples.mask_BR), exact,
                                  record_property)


def test_the_rewards_of_a_response_add_up_to_the_objective(drawn, record_property):
    world, policy, samples, ref = drawn
    rewards = kl_rewards(world.scores(samples), samples.logprobs_BR, ref, samples.mask_BR, 0.5)
    p, p_sft = world.probabilities(policy), world.probabilities(world.sft)
    exact = float(p @ world.rewards) - 0.5 * naive.kl(p, p_sft)
    assert_within_standard_errors(rewards.sum(1).double(), exact, record_property)


def test_advantages_of_the_exact_values_have_mean_0(drawn, record_property):
    # With V(s) the expected rewards still to come, every advantage is 0 on average.
    world, policy, samples, _ = drawn
    p = world.probabilities(policy)
    scores = world.scores(samples)
    no_kl = torch.zeros(samples.mask_BR.shape)
    rewards = kl_rewards(scores, no_kl, no_kl, samples.mask_BR, 0.0)

    @functools.cache
    def expected(prefix):
        inside = [i for i, r in enumerate(world.responses) if r[:len(prefix)] == prefix]
        return sum(p[i] * world.rewards[i] for i in inside) / sum(p[i] for i in inside)

    values = torch.zeros(samples.mask_BR.shape)
    for b, row in enumerate(samples.tokens_BT.tolist()):
        for i in range(int(samples.mask_BR[b].sum())):
            prefix = tuple(row[len(world.prompt):len(world.prompt) + i])
            values[b, i] = expected(prefix)
    advantages, _ = gae(rewards, values, samples.mask_BR)
    for i in range(world.length):
        kept = advantages[samples.mask_BR[:, i], i].double()
        record_property("largest_z", float(abs(kept.mean()) / kept.std() * len(kept) ** 0.5))
        assert abs(kept.mean()) < 4 * kept.std() / len(kept) ** 0.5


def test_whitened_advantages_have_mean_0_and_variance_1_over_response_tokens(drawn):
    world, _, samples, _ = drawn
    noise = torch.randn(samples.mask_BR.shape) * 3 + 5
    white = whiten(noise, samples.mask_BR)
    kept = white[samples.mask_BR].double()
    assert abs(kept.mean()) < 1e-5 and kept.var(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert white[~samples.mask_BR].abs().max() == 0


def test_whitening_keeps_order_and_ratios_of_differences():
    x = torch.randn(4, 6, dtype=torch.float64)
    mask = torch.rand(4, 6) < 0.7
    kept, white = x[mask], whiten(x, mask)[mask]
    slope = (white[1:] - white[0]) / (kept[1:] - kept[0])
    assert (slope > 0).all() and slope.std() < 1e-6 * slope.mean()
