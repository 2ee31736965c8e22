"""One iteration of PPO-ptx as ppo.py runs it: rollouts, micro-batches, the pretraining gradient,
optimizer steps, the averaged policy, and the check of the first ratio."""

import copy

import pytest
import torch

import model
import ppo
from model import GPT, GPTConfig, ScalarGPT, adam, lm_loss, response_logprobs
from ppo import PPOConfig, State

SHAPE = GPTConfig(vocab_size=23, n_ctx=24, n_layer=2, n_head=2, d_model=16)
EOS = 22


def config(**changes):
    return PPOConfig(**{"policy": "p", "reward": "r", "prompts": "x", "out": "o", "text": "t",
                        "batch": 16, "minibatch": 4, "max_response": 9, "ptx_tokens": 12,
                        "ptx_per_episode": 2, "kl_coef": 0.1, "policy_rate": 1e-3} | changes)


@pytest.fixture
def models():
    """A policy, the reference, a reward model of another size, and a value function of a third."""
    torch.manual_seed(0)
    policy = GPT(SHAPE)
    for p in policy.parameters():
        p.data += 0.1 * torch.randn_like(p)
    other = GPTConfig(vocab_size=23, n_ctx=32, n_layer=1, n_head=1, d_model=8)
    reward_model, value_model = ScalarGPT(other), ScalarGPT(SHAPE)
    return policy, copy.deepcopy(policy), reward_model, value_model


@pytest.fixture
def rollout(models):
    torch.manual_seed(1)
    prompts = [torch.randint(0, 22, (1 + i % 7,)).tolist() for i in range(16)]
    return ppo.roll_out(*models, prompts, EOS, config())


def rows_of_several_lengths(rollout):
    """Five rows, among them the shortest responses: where all are of one length, tokens and rows
    weigh the same."""
    lengths = rollout.mask_BR.sum(1)
    rows = lengths.argsort(stable=True)[torch.tensor([2, 0, 15, 1, 9])]
    assert len(set(lengths[rows].tolist())) >= 3
    return rows


def state_of(policy, value_model):
    return State(policy, copy.deepcopy(policy), value_model, adam(policy, 1e-3),
                 adam(value_model, 1e-3))


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def text_of(cfg, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return lambda number: torch.randint(0, 23, (cfg.minibatch * cfg.ptx_per_episode,
                                                cfg.ptx_tokens), generator=generator)


def test_the_rollout_holds_what_a_forward_pass_over_each_single_row_says(models, rollout):
    policy, reference, reward_model, value_model = models
    with torch.no_grad():
        for b in range(16):
            p, n = rollout.prompt_lens_B[b], rollout.lens_B[b]
            row = rollout.tokens_BT[b:b + 1, :n]
            logprobs = torch.log_softmax(policy(row)[0].double(), -1)
            expected = [logprobs[t - 1, row[0, t]] for t in range(p, n)]
            r = int(n - p)
            torch.testing.assert_close(rollout.logprobs_BR[b, :r].double(),
                                       torch.stack(expected), atol=1e-4, rtol=0)
            torch.testing.assert_close(rollout.ref_logprobs_BR[b, :r].double(),
                                       torch.stack(expected), atol=1e-4, rtol=0)
            torch.testing.assert_close(rollout.values_BR[b, :r], value_model(row)[0, p - 1:n - 1],
                                       atol=1e-4, rtol=0)
            torch.testing.assert_close(rollout.scores_B[b], reward_model(row)[0, n - 1],
                                       atol=1e-4, rtol=0)
            for x in (rollout.logprobs_BR, rollout.ref_logprobs_BR, rollout.values_BR):
                assert not x[b, r:].any()


def test_a_response_cut_off_at_the_limit_can_be_given_a_score_of_its_own(models):
    torch.manual_seed(1)
    prompts = [[1, 2, 3]] * 16
    rollout = ppo.roll_out(*models, prompts, EOS, config(max_response=3, limit_score=-7.0))
    cut = ~ppo.ended(rollout, EOS)
    assert cut.any() and (rollout.scores_B[cut] == -7).all()
    assert (rollout.tokens_BT[cut, rollout.lens_B[cut] - 1] != EOS).all()


def test_before_the_first_step_every_ratio_is_one_and_nothing_is_clipped(models, rollout):
    stats = ppo.policy_gradient(models[0], rollout, torch.ones_like(rollout.values_BR),
                                torch.arange(4), config())
    assert stats["max_log_ratio"] < 1e-5 and stats["clip_fraction"] == 0
    ppo.check_first_ratio(stats, rounded=False)


def test_a_policy_with_dropout_is_refused_at_the_first_minibatch(models, rollout):
    cfg = config(ptx_coef=0.0)
    policy = models[0].train()
    for block in policy.decoder.h:
        block.dropout.p = 0.3
    with pytest.raises(RuntimeError, match="ratio 1"):
        ppo.update(state_of(policy, models[3]), rollout, None, cfg, 1e-3, first=True)


@pytest.mark.parametrize("gain", [1.0, 8.0])  # of the logits: flat and sharp distributions
def test_in_bf16_rounding_is_let_pass_and_a_dropout_of_2_percent_is_not(monkeypatch, gain):
    monkeypatch.setattr(model, "_forward_dtype", "bfloat16")
    shape, cfg = GPTConfig(101, 64, n_layer=4, n_head=4, d_model=64), config(max_response=40)
    policy, value_model = GPT(shape), ScalarGPT(shape)
    policy.decoder.ln_f.weight.data *= gain
    torch.manual_seed(0)
    prompts = [[1, 2], [3] * 12] * 16
    rollout = ppo.roll_out(policy, policy, value_model, value_model, prompts, EOS, cfg)
    advantages = ppo.whiten(torch.randn_like(rollout.values_BR), rollout.mask_BR)

    def stats(dropout):
        for block in policy.train().decoder.h:
            block.dropout.p = dropout
        return ppo.policy_gradient(policy, rollout, advantages, torch.arange(32), cfg)

    ppo.check_first_ratio(stats(0.0), rounded=True)
    with pytest.raises(RuntimeError, match="ratio 1"):
        ppo.check_first_ratio(stats(0.02), rounded=True)


@pytest.mark.parametrize("micro_tokens", [1, 40, 100])
def test_the_gradient_of_a_minibatch_does_not_depend_on_how_it_is_cut(models, rollout,
                                                                      micro_tokens):
    policy, _, _, value_model = models
    rows, found = rows_of_several_lengths(rollout), []
    advantages = torch.randn_like(rollout.values_BR)
    for tokens in (10**6, micro_tokens):
        cfg = config(micro_tokens=tokens)
        policy.zero_grad()
        value_model.zero_grad()
        stats = ppo.policy_gradient(policy, rollout, advantages, rows, cfg)
        stats |= ppo.value_gradient(value_model, rollout, advantages, rows, cfg)
        stats["ptx"] = ppo.ptx_gradient(policy, text_of(cfg)(0), cfg)
        found.append((gradients(policy) + gradients(value_model), stats))
    (whole, stats), (cut, cut_stats) = found
    for a, b in zip(whole, cut):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)
    assert stats == pytest.approx(cut_stats, rel=1e-4, abs=1e-6)


def test_the_policy_gradient_is_that_of_a_mean_over_all_tokens_of_the_minibatch(models, rollout):
    policy, rows = models[0], rows_of_several_lengths(rollout)
    advantages = torch.randn_like(rollout.values_BR)
    policy.zero_grad()
    ppo.policy_gradient(policy, rollout, advantages, rows, config(micro_tokens=1))
    found = gradients(policy)
    policy.zero_grad()
    total, tokens = 0.0, 0
    for b in rows:  # at ratio 1 the gradient is −A ∇ log π, averaged over tokens
        one = response_logprobs(policy, rollout.tokens_BT[b:b + 1], rollout.prompt_lens_B[b:b + 1],
                                rollout.mask_BR[b:b + 1])
        total, tokens = total - (one * advantages[b]).sum(), tokens + rollout.mask_BR[b].sum()
    (total / tokens).backward()
    for a, b in zip(found, gradients(policy)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_the_pretraining_gradient_is_ptx_coef_times_the_plain_language_model_gradient(models):
    policy, cfg = models[0], config(ptx_coef=27.8, micro_tokens=30)
    tokens = text_of(cfg)(0)
    policy.zero_grad()
    loss = ppo.ptx_gradient(policy, tokens, cfg)
    found = gradients(policy)
    policy.zero_grad()
    plain = lm_loss(policy(tokens), tokens, torch.ones_like(tokens, dtype=torch.bool))
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    for a, b in zip(found, gradients(policy)):
        torch.testing.assert_close(a, 27.8 * b, atol=1e-5, rtol=1e-4)


def test_the_pretraining_gradient_goes_into_the_same_step_as_the_policy_gradient(models, rollout):
    cfg = config(batch=16, minibatch=16, ptx_coef=2.0)
    state = state_of(models[0], models[3])
    steps = []
    state.policy_optimizer.step = lambda: steps.append(gradients(state.policy))
    torch.manual_seed(0)
    ppo.update(state, rollout, text_of(cfg), cfg, 1e-3, first=True)
    with_text = steps[0]
    steps.clear()
    torch.manual_seed(0)
    ppo.update(state, rollout, None, config(batch=16, minibatch=16, ptx_coef=0.0), 1e-3, first=True)
    ppo.ptx_gradient(state.policy, text_of(cfg)(0), cfg)
    for a, b, c in zip(with_text, steps[0], gradients(state.policy)):
        torch.testing.assert_close(a, b + c, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_an_iteration_takes_exactly_batch_over_minibatch_steps_per_inner_epoch(models, rollout,
                                                                               inner_epochs):
    cfg = config(inner_epochs=inner_epochs)
    state = state_of(models[0], models[3])
    ppo.update(state, rollout, text_of(cfg), cfg, 1e-3, first=True)
    for optimizer in (state.policy_optimizer, state.value_optimizer):
        assert {int(s["step"]) for s in optimizer.state.values()} == {4 * inner_epochs}


def test_minibatches_visit_every_episode_once_an_inner_epoch(models, rollout, monkeypatch):
    seen = []
    monkeypatch.setattr(ppo, "policy_gradient", lambda policy, rollout, advantages, rows, cfg:
                        seen.append(rows.tolist()) or {"max_log_ratio": 0.0, "clip_fraction": 0.0})
    cfg = config(ptx_coef=0.0)
    ppo.update(state_of(models[0], models[3]), rollout, None, cfg, 1e-3, first=True)
    assert sorted(sum(seen, [])) == list(range(16)) and [len(rows) for rows in seen] == [4] * 4


def test_the_average_follows_its_recurrence_after_every_step(models):
    policy = models[0]
    average = copy.deepcopy(policy)
    expected = [p.detach().double().clone() for p in policy.parameters()]
    for step in range(3):
        for p in policy.parameters():
            p.data += 0.5 * torch.randn_like(p)
        ppo.update_ema(average, policy, 0.992)
        expected = [0.992 * e + 0.008 * p.double() for e, p in zip(expected, policy.parameters())]
    for a, e in zip(average.parameters(), expected):
        torch.testing.assert_close(a.double(), e, atol=1e-6, rtol=1e-5)


def test_the_policy_rate_warms_up_from_a_tenth_over_ten_iterations_then_stays():
    cfg = config(policy_rate=1.0)
    rates = [ppo.policy_rate(i, cfg) for i in range(15)]
    assert rates[0] == pytest.approx(0.1) and rates[5] == pytest.approx(0.55)
    assert rates[10:] == [1.0] * 5 and rates == sorted(rates)


def test_only_the_policy_and_the_value_function_change(models, rollout):
    policy, reference, reward_model, value_model = models
    before = [copy.deepcopy(m.state_dict()) for m in models]
    cfg = config()
    ppo.update(state_of(policy, value_model), rollout, text_of(cfg), cfg, 1e-3, first=True)
    changed = [any(not torch.equal(a, b) for a, b in zip(old.values(), m.state_dict().values()))
               for old, m in zip(before, models)]
    assert changed == [True, False, False, True]
