"""What stands between the equations and a run: the steps of optimizers and stages.

Most of these were written because a wrong edit of the code went unnoticed (see mutate.py).
"""

import dataclasses
import os

import numpy as np
import pytest
import torch
from conftest import array, randomize

import common
import evaluate
import model as M
import naive
import ppo
import reward
import sft
from common import InputError
from data import labelers, readers, rule
from data.tokenizer import load_tokenizer
from model import GPT, GPTConfig, ScalarGPT, adam, generate, step_optimizer, token_logprobs
from test_ppo_update import (EOS, SHAPE, config, models, rollout, state_of,  # noqa: F401 (fixture)
                             text_of)
from test_stages import (base_settings, files, ppo_settings, reward_settings,  # noqa: F401
                         sft_settings, write)

TINY = GPTConfig(vocab_size=7, n_ctx=24, n_layer=2, n_head=2, d_model=16)

# -- sampling -------------------------------------------------------------------------------------


def test_sampling_uses_no_dropout_and_leaves_the_model_as_it_was():
    model = randomize(GPT(dataclasses.replace(TINY, dropout=0.5))).train()
    generator = torch.Generator().manual_seed(0)
    samples = generate(model, [[1, 2], [3]] * 8, 12, generator=generator)
    assert model.training and model.decoder.h[0].dropout.training
    with torch.no_grad():
        logprobs = token_logprobs(model.eval()(samples.tokens_BT), samples.tokens_BT)
    for b, start in enumerate(samples.prompt_lens_B.tolist()):
        torch.testing.assert_close(samples.logprobs_BR[b], logprobs[b, start - 1:start + 11],
                                   rtol=0, atol=1e-4)
    generate(model, [[1]], 2)
    assert not model.training
    model.train().decoder.h[0].eval()  # a block that someone froze
    modes = [module.training for module in model.modules()]
    generate(model, [[1]], 2)
    assert [module.training for module in model.modules()] == modes


def test_a_rows_draws_do_not_depend_on_which_rows_are_still_running():
    model, prompts = randomize(GPT(TINY)), [[1, 2], [3], [4, 5, 6]] * 10
    ended, endless = (generate(model, prompts, 15, eos=eos, generator=torch.Generator()
                               .manual_seed(3)) for eos in (6, None))
    lens = (ended.lens_B - ended.prompt_lens_B).tolist()
    assert min(lens) < 4 and max(lens) > 8  # rows leave the batch at many times
    for b, end in enumerate(ended.lens_B.tolist()):
        assert torch.equal(ended.tokens_BT[b, :end], endless.tokens_BT[b, :end])


# -- the optimizer's step -------------------------------------------------------------------------


def with_gradients(value=1.0):
    model = GPT(TINY)
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    return model


def test_a_step_uses_its_rate_and_clears_the_gradients():
    model = with_gradients()
    before = model.decoder.wte.weight.detach().clone()
    step_optimizer(model, adam(model, 123.0), rate=1e-2)
    # Adam's first step moves every weight by the rate, against the sign of its gradient
    torch.testing.assert_close(before - model.decoder.wte.weight, torch.full_like(before, 1e-2),
                               rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_clipped_to_a_global_norm_where_one_is_given():
    n = sum(p.numel() for p in GPT(TINY).parameters())
    for limit, scale in ((0.0, 1.0), (2.0, 2.0 / (3 * n**0.5)), (1e9, 1.0)):
        model, seen = with_gradients(3.0), []
        optimizer = adam(model, 1e-3)
        optimizer.step = lambda: seen.extend(p.grad.clone() for p in model.parameters())
        assert step_optimizer(model, optimizer, 1e-3, limit) == pytest.approx(3 * n**0.5, rel=1e-4)
        for grad in seen:
            torch.testing.assert_close(grad, torch.full_like(grad, 3 * scale), rtol=1e-4, atol=0)


def test_weight_decay_acts_on_matrices_alone():
    model = with_gradients(0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step_optimizer(model, adam(model, 1.0, weight_decay=0.5), rate=0.1)
    for name, p in model.named_parameters():
        decayed = before[name] * (1 - 0.1 * 0.5) if p.dim() >= 2 else before[name]
        torch.testing.assert_close(p.detach(), decayed)


# -- PPO's update ---------------------------------------------------------------------------------


def captured(monkeypatch, state, rollout, cfg):  # noqa: F811
    """The advantages and returns that the gradients of an update are given."""
    found = {}

    def policy_gradient(policy, rollout, advantages, rows, config):
        found["advantages"] = array(advantages)
        return {"max_log_ratio": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0}

    def value_gradient(value_model, rollout, returns, rows, config):
        found["returns"] = array(returns)
        return {}

    monkeypatch.setattr(ppo, "policy_gradient", policy_gradient)
    monkeypatch.setattr(ppo, "value_gradient", value_gradient)
    monkeypatch.setattr(ppo, "step_optimizer", lambda *args: 0.0)
    ppo.update(state, rollout, None, cfg, 1e-3, first=True)
    return found


def test_an_update_whitens_advantages_and_not_the_returns(models, rollout,  # noqa: F811
                                                          monkeypatch):
    cfg = config(ptx_coef=0.0, kl_coef=0.3, discount=0.9, lam=0.6, batch=16, minibatch=16)
    moved = rollout._replace(ref_logprobs_BR=rollout.ref_logprobs_BR * 0.7)
    found = captured(monkeypatch, state_of(models[0], models[3]), moved, cfg)
    mask = array(moved.mask_BR)
    rewards = naive.kl_rewards(array(moved.scores_B), array(moved.logprobs_BR),
                               array(moved.ref_logprobs_BR), mask, 0.3)
    advantages, returns = naive.gae(rewards, array(moved.values_BR), mask, 0.9, 0.6)
    np.testing.assert_allclose(found["returns"], returns, atol=1e-5)
    np.testing.assert_allclose(found["advantages"], naive.whiten(advantages, mask), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_one_temperature_stands_everywhere(models, temperature):  # noqa: F811
    """The reference starts as the policy: at any temperature their log-probs are the sampler's,
    and the first ratio is 1."""
    cfg = config(temperature=temperature, ptx_coef=0.0)
    out = ppo.roll_out(*models, [[1, 2, 3]] * 16, EOS, cfg)
    torch.testing.assert_close(out.ref_logprobs_BR, out.logprobs_BR, rtol=0, atol=1e-4)
    stats = ppo.policy_gradient(models[0], out, torch.ones_like(out.values_BR), torch.arange(16),
                                cfg)
    assert stats["max_log_ratio"] < 1e-4


def test_the_value_gradient_is_that_of_a_mean_over_all_tokens(models, rollout):  # noqa: F811
    value_model, rows = models[3], torch.tensor([1, 4, 6])
    value_model.zero_grad()
    ppo.value_gradient(value_model, rollout, rollout.values_BR + 1, rows, config(micro_tokens=1))
    # values are the old ones, returns one more: the loss is ½ · mean 1², its slope −1 a token
    found = value_model.head.bias.grad.item()
    assert found == pytest.approx(-1.0, abs=1e-5)


def test_the_text_of_minibatches_differs_and_is_as_much_as_asked(models):  # noqa: F811
    cfg, text = config(inner_epochs=2, ptx_per_episode=3), np.arange(5000, dtype=np.int32)
    state = state_of(models[0], models[3])
    drawn = [ppo.draw_text(text, state, cfg, iteration, number)
             for iteration in range(3) for number in range(8)]
    assert all(t.shape == (4 * 3, 12) for t in drawn)
    assert len({tuple(t[:, 0].tolist()) for t in drawn}) == 24
    assert torch.equal(drawn[9], ppo.draw_text(text, state, cfg, 1, 1))
    assert ppo.draw_text(text, state, config(ptx_tokens=0), 0, 0).shape[1] == SHAPE.n_ctx


def test_the_numbers_of_an_iteration_by_hand():
    mask = torch.tensor([[True, True], [True, False]])
    out = ppo.Rollout(
        tokens_BT=torch.tensor([[5, 1, EOS], [5, 2, 0]]), prompt_lens_B=torch.tensor([1, 1]),
        lens_B=torch.tensor([3, 2]), mask_BR=mask,
        logprobs_BR=torch.tensor([[-1.0, -2.0], [-3.0, 9.0]]),
        ref_logprobs_BR=torch.tensor([[-2.0, -2.5], [-3.0, 7.0]]), values_BR=torch.zeros(2, 2),
        scores_B=torch.tensor([4.0, 1.0]))
    assert ppo.summary(out, EOS) == pytest.approx(
        {"reward": 2.5, "kl": 0.75, "entropy": 2.0, "length": 1.5, "ended": 0.5})


def test_the_reference_is_frozen_and_no_part_of_the_policy(files):  # noqa: F811
    settings = ppo.PPOConfig(**ppo_settings(files) | {"out": "unused"})
    reference, reward_model, state = ppo.load(settings, load_tokenizer("world"),
                                              torch.device("cpu"))
    theirs = {id(p) for m in (reference, reward_model, state.average) for p in m.parameters()}
    ours = [p for m in (state.policy, state.value_model) for p in m.parameters()]
    assert all(p.requires_grad and id(p) not in theirs for p in ours)
    assert not any(p.requires_grad for m in (reference, reward_model, state.average)
                   for p in m.parameters())


def test_prompts_leave_room_for_a_response_in_the_context(files, tmp_path):  # noqa: F811
    long = write(tmp_path / "p.jsonl", [{"prompt": "red " * n} for n in (2, 8, 20, 40)])
    cfg = ppo.PPOConfig(**ppo_settings(files) | {"out": "x", "prompts": long, "max_prompt": 30,
                                                 "max_response": 20})
    kept = ppo.load_prompts(cfg, load_tokenizer("world"), 32)
    assert len(kept) == 2 and max(map(len, kept)) <= 12 < len(
        load_tokenizer("world").encode_prompt("red " * 20)) <= 30


# -- the reward model -----------------------------------------------------------------------------


def test_a_reward_model_starts_from_the_decoder_of_its_gpt(files):  # noqa: F811
    cfg = reward.RewardConfig(**reward_settings(files) | {"out": "unused"})
    weights = torch.load(files["base"], weights_only=True)["weights"]
    started = reward.from_gpt(files["base"], load_tokenizer("world"), cfg).decoder.state_dict()
    assert all(torch.equal(started[name.removeprefix("decoder.")], w)
               for name, w in weights.items())


def test_completions_are_scored_with_their_end_of_text(files):  # noqa: F811
    tokenizer = load_tokenizer("world")
    ranking = reward.load_rankings(files["comparisons"], tokenizer, 32)[0]
    assert all(s[-1] == tokenizer.eos and s[:-1].count(tokenizer.eos) == 0
               for s in ranking.sequences)


def test_shuffled_pairs_are_those_without_a_tie():
    one = reward.Ranking([[1], [2], [3]], (2, 1, 2), "a")
    pairs = reward.split_pairs([one, reward.Ranking([[4], [5]], (1, 1), "b")])
    assert pairs == [reward.Ranking([[1], [2]], (2, 1), "a"),
                     reward.Ranking([[2], [3]], (1, 2), "a")]


def test_the_interval_of_pair_accuracy_by_hand(monkeypatch):
    """Four prompts of one pair, three right: 3/4 ± 1.96 · √(3/16 · 4/3) / √4."""
    scores = iter([1.0, 2.0, 0.5, -1.0])
    rankings = [reward.Ranking([[1], [2]], (1, 2), "a")] * 4
    monkeypatch.setattr(reward, "score_rankings", lambda model, part: (
        torch.tensor([[next(scores), 0.0] for _ in part]), torch.tensor([[1, 2]] * len(part)),
        torch.ones(len(part), 2, dtype=torch.bool)))
    cfg = reward.RewardConfig(init="", comparisons="", out="")
    found = reward.evaluate(ScalarGPT(TINY), rankings, cfg)
    assert found["valid_accuracy"] == 0.75 and found["valid_pairs"] == 4
    assert found["valid_interval"] == pytest.approx(1.96 * (3 / 16 * 4 / 3) ** 0.5 / 2)


# -- fine-tuning ----------------------------------------------------------------------------------


def test_text_has_its_share_of_the_batch_and_of_the_loss(files):  # noqa: F811
    cfg = sft.SFTConfig(**sft_settings(files) | {"out": "unused"})  # ptx_fraction 0.25, batch 8
    data = sft.Data(cfg, load_tokenizer("world"), 32)
    parts = {name: (weight, len(tokens)) for name, weight, tokens, _ in data.parts(0)}
    assert parts == {"loss": (0.75, 6), "text_loss": (0.25, 2)}


def test_a_fine_tuning_gradient_does_not_depend_on_how_it_is_cut():
    model = randomize(GPT(TINY))
    tokens, mask = sft.demonstration_batch([([1, 2], [3, 4, 6]), ([1], [6]), ([5, 5, 5], [1, 6])])
    grads = []
    for micro_tokens, threads in (10**6, 1), (1, 1), (10, 1), (10**6, 2), (1, 3):
        model.zero_grad()
        torch.set_num_threads(threads)
        try:
            loss = sft.lm_gradient(model, tokens, mask, 2.0, micro_tokens)
        finally:
            torch.set_num_threads(1)
        grads.append([p.grad.clone() for p in model.parameters()])
        assert loss == pytest.approx(M.lm_loss(model(tokens), tokens, mask).item(), rel=1e-5)
    model.zero_grad()
    (2.0 * M.lm_loss(model(tokens), tokens, mask)).backward()
    for a, *others in zip([p.grad for p in model.parameters()], *grads):
        for b in others:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


def test_validation_is_without_dropout_and_training_goes_on_with_it():
    model = randomize(GPT(dataclasses.replace(TINY, dropout=0.5))).train()
    tokens = torch.randint(7, (3, 9))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    found = sft.mean_loss(model, [(tokens, mask)], torch.device("cpu"))
    assert model.training
    assert found == pytest.approx(M.lm_loss(model.eval()(tokens), tokens, mask).item(), rel=1e-5)


def test_a_loaded_model_gets_the_dropout_that_was_asked_for(files):  # noqa: F811
    cfg = sft.SFTConfig(**sft_settings(files) | {"out": "unused", "dropout": 0.3})
    model = sft.first_model(cfg, load_tokenizer("world"))
    assert {b.dropout.p for b in model.decoder.h} == {0.3}


# -- the manners of a stage -----------------------------------------------------------------------


class Settings:
    """Enough of a stage's config for common.Stage."""


def a_stage(tmp_path):
    @dataclasses.dataclass
    class Config:
        out: str

    stage = common.Stage("base", Config(str(tmp_path / "o.pt")), TINY, load_tokenizer("world"))
    return stage


def test_every_step_of_every_seed_draws_numbers_of_its_own(tmp_path):
    stage, seen = a_stage(tmp_path), set()
    for seed in range(3):
        for step in range(5):
            stage.seed_step(step, seed)
            seen.add(torch.rand(()).item())
    stage.seed_step(4, 2)
    assert len(seen) == 15 and torch.rand(()).item() in seen
    stage.lock.close()


def test_metrics_of_steps_that_a_resumed_run_makes_again_are_left_out(tmp_path):
    stage = a_stage(tmp_path)
    for step in range(5):
        stage.note(step, loss=1.0)
    stage._keep_metrics_before(3)
    assert [line["step"] for line in evaluate.read_json_lines(stage.metrics)] == [0, 1, 2]
    stage._keep_metrics_before(0)
    assert stage.metrics.read_text() == ""
    stage.lock.close()


def test_numbers_that_are_not_finite_are_not_logged(tmp_path):
    stage = a_stage(tmp_path)
    with pytest.raises(FloatingPointError, match="reward is nan"):
        stage.log(0, 1, {"loss": 1.0, "reward": float("nan")}, 5, ["loss"])
    assert not stage.metrics.exists()
    stage.lock.close()


@pytest.mark.parametrize("write_something", [
    lambda path: common.save_checkpoint(path, stage="x"),
    lambda path: readers.write_jsonl(path, [{"prompt": "p"}])])
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, write_something):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *a: order.append("replace") or replace(*a))
    write_something(tmp_path / "file")
    assert order == ["fsync", "replace"]


def test_of_files_that_belong_together_none_changes_where_one_cannot_be_written(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    readers.write_files({one: ["old"], two: ["old"]})
    with pytest.raises(InputError, match="two/x: "):
        readers.write_files({one: ["new"], two / "x": ["new"]})

    def breaks():
        yield "new"
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="two: No space left"):
        readers.write_files({one: ["new"], two: breaks()})
    assert one.read_text() == two.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


# -- the report and the rule ----------------------------------------------------------------------


def unit(**changes):
    return {"kind": "test", "row": 0, "answer": "a", "reward": 0.5, "kl": 0, "length": 3} | changes


def test_answers_with_odd_line_ends_are_read_again(tmp_path):
    """A model may write any character: some of them end a line for str.splitlines."""
    units = [unit(answer="a\u2028b\x85c\x0bd\x1ce"), unit()]
    readers.write_jsonl(tmp_path / "answers.jsonl", units)
    assert evaluate.read_units(tmp_path / "answers.jsonl") == units


@pytest.mark.parametrize("change", [
    {"answer": 1}, {"reward": None}, {"kl": [1]}, {"row": "x"}, {"kind": None}, {"length": 0.5},
    {"kind": "text"}, {"kind": "few_shot"}])
def test_damaged_answers_are_named_with_their_line(tmp_path, change):
    path = tmp_path / "answers.jsonl"
    readers.write_jsonl(path, [unit(), unit(**change)])
    with pytest.raises(InputError, match="answers.jsonl:2: no .*; expected a unit"):
        evaluate.read_units(path)


@pytest.mark.parametrize("kind, value, kept, broken", [
    ("max_words", 3, ["a", "a b c"], ["", "a b c d"]), ("one_word", True, ["a"], ["", "a b"]),
    ("capitals", True, ["AB C"], ["Ab", ""]), ("start", "well", ["Well, yes", "well"], ["a", ""])])
def test_what_keeps_a_constraint(kind, value, kept, broken):
    assert all(rule.KEEPS[kind](value, text) for text in kept)
    assert not any(rule.KEEPS[kind](value, text) for text in broken)


def test_in_the_evaluation_truth_and_harmlessness_come_first():
    for one in labelers.training_labelers():
        asked = labelers.for_evaluation(one)
        assert asked.harm_weighs and not one.harm_weighs
        assert asked.false >= 0.8 > one.false and asked.rude >= 0.9 > one.rude
