"""Every fast path against the plain one: scores, losses and gradients to rounding, memory flags
bitwise, and sampling by its distribution (the chi-squared tests stand in test_generate.py)."""

import copy

import pytest
import torch
from conftest import randomize

import reward
from data.batching import pad_right
from model import GPT, GPTConfig, ScalarGPT, attention, adam, fused_attention, generate

SHAPE = GPTConfig(vocab_size=29, n_ctx=80, n_layer=3, n_head=2, d_model=16)


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def random_ids(n):
    return torch.randint(29, (n,)).tolist()


# -- one pass over a shared prompt ----------------------------------------------------------------


def rankings_of(*sizes):
    """(prompt tokens, tokens of each completion) of rankings; no completion begins like another."""
    found = []
    for prompt, completions in sizes:
        start = random_ids(prompt)
        found.append(reward.Ranking([start + [k] + random_ids(n - 1)
                                     for k, n in enumerate(completions)],
                                    tuple(range(len(completions))), ""))
    return found


RAGGED = [(40, [3, 7, 1, 5]), (25, [2, 2, 9]), (61, [19, 4, 4, 4, 6, 1, 2, 3, 8])]


@pytest.mark.parametrize("recompute", [False, True])
def test_completions_that_share_their_prompts_pass_have_the_same_scores_and_gradients(recompute):
    model, rankings, found = randomize(ScalarGPT(SHAPE)), rankings_of(*RAGGED), []
    model.decoder.recompute = recompute
    for score in (reward.score_rows, reward.score_branches):
        model.zero_grad()
        scores_M = score(model, rankings, "cpu")
        weights_M = torch.linspace(-1, 1, len(scores_M))
        (scores_M * weights_M).sum().backward()
        found.append((scores_M.detach(), gradients(model)))
    (rows, row_gradients), (branches, branch_gradients) = found
    torch.testing.assert_close(branches, rows, atol=1e-5, rtol=1e-5)
    assert rows.std() > 0.1
    for a, b in zip(branch_gradients, row_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 * float(b.abs().max() + 1), rtol=1e-4)


def test_each_score_is_that_of_the_completion_alone_behind_its_prompt():
    model, rankings = randomize(ScalarGPT(SHAPE)), rankings_of(*RAGGED)
    with torch.no_grad():
        got = reward.score_branches(model, rankings, "cpu").tolist()
        alone = [model(torch.tensor([s]))[0, -1].item() for r in rankings for s in r.sequences]
    assert got == pytest.approx(alone, abs=1e-4)


def test_equal_completions_keep_their_last_token_to_themselves():
    ranking = reward.Ranking([[1, 2, 3, 4]] * 3, (1, 1, 2), "")
    assert ranking.shared() == 3
    model = randomize(ScalarGPT(SHAPE))
    with torch.no_grad():
        torch.testing.assert_close(reward.score_branches(model, [ranking], "cpu"),
                                   reward.score_rows(model, [ranking], "cpu"))


@pytest.mark.parametrize("prompt, completions, expected", [
    (30, [5, 6], "branch"), (7, [5, 6], "branch"), (6, [5, 6], "rows"), (3, [20, 6], "rows")])
def test_the_prompt_is_shared_where_it_is_longer_than_the_completions(monkeypatch, prompt,
                                                                      completions, expected):
    model, taken = ScalarGPT(SHAPE), []
    for name, original in (("scores", ScalarGPT.scores), ("branch_scores", ScalarGPT.branch_scores)):
        monkeypatch.setattr(ScalarGPT, name, lambda self, *args, name=name, original=original:
                            taken.append(name) or original(self, *args))
    reward.score_rankings(model, rankings_of((prompt, completions)))
    assert taken == [{"branch": "branch_scores", "rows": "scores"}[expected]]


def test_a_long_prompt_costs_a_third_at_most_when_it_is_shared():
    """Floating-point operations of nine completions behind a prompt ten times as long."""
    from torch.utils.flop_counter import FlopCounterMode
    model = ScalarGPT(GPTConfig(vocab_size=29, n_ctx=220, n_layer=2, n_head=2, d_model=64))
    rankings, cost = rankings_of((200, [20] * 9)), []
    for score in (reward.score_rows, reward.score_branches):
        with FlopCounterMode(display=False) as counter:
            score(model, rankings, "cpu").sum().backward()
        cost.append(counter.get_total_flops())
    assert cost[0] > 3 * cost[1]


# -- sampling's attention -------------------------------------------------------------------------


def test_one_query_attends_as_the_definition_says():
    q, k, v = torch.randn(3, 2, 1, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
    mask = (torch.arange(9) <= torch.tensor([[3], [8], [0]]))[:, None, None]
    torch.testing.assert_close(fused_attention(q, k, v, mask), attention(q, k, v, mask))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(fused_attention(q, k, v, mask), theirs)


def test_the_cache_has_the_dtype_of_autocast():
    model, seen = randomize(GPT(SHAPE)), []
    for enabled, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        original = model.decoder.prefill
        model.decoder.prefill = lambda tokens, cache: (
            seen.append(cache.keys[0].dtype) or original(tokens, cache))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            generate(model, [[1, 2], [3]], 3)
        del model.decoder.prefill
        assert seen.pop() == dtype


def test_what_generate_returns_can_take_part_in_training():
    model = randomize(GPT(SHAPE))
    samples = generate(model, [[1, 2], [3]], 3)
    for x in samples:
        assert not x.is_inference()
    loss = (model(samples.tokens_BT).logsumexp(-1)[:, :3] * samples.logprobs_BR)[samples.mask_BR]
    loss.sum().backward()


# -- recomputation --------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_activations_changes_no_bit(dropout):
    model = randomize(GPT(GPTConfig(29, 80, 3, 2, 16, dropout))).train()
    tokens, found = torch.randint(29, (4, 12)), []
    for recompute in (False, True):
        model.decoder.recompute = recompute
        model.zero_grad()
        torch.manual_seed(3)
        loss = model(tokens).logsumexp(-1).sum()
        loss.backward()
        found.append([loss.detach(), *gradients(model)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_recomputing_keeps_only_the_inputs_of_the_blocks():
    kept = []
    for recompute in (False, True):
        model, saved = GPT(GPTConfig(29, 80, 6, 2, 32)), {}
        model.decoder.recompute = recompute

        def pack(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = model.decoder(torch.randint(29, (8, 64)))
        assert output.requires_grad
        kept.append(sum(n for at, n in saved.items() if at not in weights))
    assert kept[1] < kept[0] / 4
