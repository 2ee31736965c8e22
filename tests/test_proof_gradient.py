"""The policy gradient at ratio 1 is the exact gradient of the objective, found by enumeration.

J(π) = Σ_y π(y) · (r(y) − kl_coef · log(π(y) / π_sft(y))) is a finite sum here, so its gradient
needs no sampling. The gradient through `kl_rewards`, `gae` and `policy_loss` from samples must
equal it on average, whatever the values: a baseline moves no expectation.
"""

import pytest
import torch
from conftest import randomize

from model import generate
from ppo import gae, kl_rewards, policy_loss
from worlds import World, response_logprobs

BATCHES, BATCH = 300, 256


def flat_gradient(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for p, g in zip(model.parameters(), grads, strict=True)]).double()


def exact_gradient(world, policy, kl_coef):
    """The gradient of −J."""
    logp = world.logprobs(policy)
    with torch.no_grad():
        log_ratio = logp - world.logprobs(world.sft)
    # The gradient of Σ π · log(π / π_sft) is that of Σ π · (the log ratio held fixed).
    objective = (logp.exp() * (torch.tensor(world.rewards) - kl_coef * log_ratio)).sum()
    return flat_gradient(-objective, policy)


def sampled_gradient(world, policy, kl_coef, generator, values=None):
    samples = generate(policy, [world.prompt] * BATCH, world.length, eos=world.eos,
                       generator=generator)
    mask = samples.mask_BR
    logprobs = response_logprobs(policy, samples)
    with torch.no_grad():
        rewards = kl_rewards(world.scores(samples), logprobs,
                             response_logprobs(world.sft, samples), mask, kl_coef)
    values = torch.zeros(mask.shape) if values is None else values.expand(mask.shape)
    advantages, _ = gae(rewards, values, mask, discount=1.0, lam=1.0)
    loss, stats = policy_loss(logprobs, samples.logprobs_BR, advantages, mask)
    assert float(stats["clip_fraction"]) == 0
    # The loss is a mean over tokens; J is a mean over responses.
    return flat_gradient(loss * mask.sum() / BATCH, policy)


def z_scores(gradients, exact):
    """How many standard errors the mean is away, along the exact gradient and random directions."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(20, len(exact), generator=generator, dtype=torch.float64)
    directions = torch.cat([directions, exact[None] / exact.norm()])
    errors = (gradients - exact) @ directions.T
    return errors.mean(0) / (errors.std(0) / len(errors) ** 0.5)


@pytest.mark.parametrize("kl_coef, values", [(0.0, None), (0.3, None), (0.3, [0.5, -1.0, 0.3])])
def test_mean_policy_gradient_at_ratio_1_is_the_exact_one(kl_coef, values, record_property):
    world = World(vocab_size=4, length=3, eos=2)
    policy = randomize(world.policy(), std=0.1, seed=5)
    exact = exact_gradient(world, policy, kl_coef)
    generator = torch.Generator().manual_seed(0)
    values = values and torch.tensor(values)
    gradients = torch.stack([sampled_gradient(world, policy, kl_coef, generator, values)
                             for _ in range(BATCHES)])
    z = z_scores(gradients, exact)
    record_property("largest_z", z.abs().max().item())
    record_property("batches", BATCHES)
    # a few directions carry all entries, so that the mean of z² is that of a few numbers, not of all
    assert z.abs().max() < 4 and (z**2).mean() < 5
    # The agreement says something: the standard error is a few percent of the gradient itself.
    along = gradients @ exact / exact.norm()
    assert along.std() / BATCHES**0.5 < 0.1 * exact.norm()


def test_a_wrong_objective_would_be_noticed():
    # Without the KL penalty the gradient is another one, and by more than the noise.
    world = World(vocab_size=4, length=3, eos=2)
    policy = randomize(world.policy(), std=0.1, seed=5)
    generator = torch.Generator().manual_seed(0)
    gradients = torch.stack([sampled_gradient(world, policy, 0.0, generator)
                             for _ in range(BATCHES)])
    assert z_scores(gradients, exact_gradient(world, policy, 0.3)).abs().max() > 6
