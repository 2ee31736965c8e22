"""The decoder: its size, its attention, its causality, its log-probs, and GPT-2's weights."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import array, randomize, sweep

import naive
from model import (CONFIGS, GPT, GPTConfig, ScalarGPT, attention, cosine_rate, fused_attention,
                   lm_loss, load_gpt2, log_softmax, save_gpt2, token_logprobs)

TINY = GPTConfig(vocab_size=11, n_ctx=16, n_layer=2, n_head=2, d_model=16)


def count(model):
    """Parameters, each tensor once however many names it has."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def config_of(n_layer, d_model):
    found = {c for c in CONFIGS.values() if (c.n_layer, c.d_model) == (n_layer, d_model)}
    assert len(found) == 1, f"{len(found)} configurations of {n_layer} layers and width {d_model}"
    return found.pop()


# -- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layer, d_model, n_head, parameters", [
    (12, 768, 12, 124_439_808),
    (24, 1024, 16, 354_823_168),
    (36, 1280, 20, 774_030_080),
    (48, 1600, 25, 1_557_611_200),
])
def test_gpt2_sizes_have_exactly_the_published_parameter_counts(n_layer, d_model, n_head,
                                                                parameters):
    config = config_of(n_layer, d_model)
    assert (config.vocab_size, config.n_ctx, config.n_head) == (50257, 1024, n_head)
    with torch.device("meta"):
        assert count(GPT(config)) == parameters


@pytest.mark.parametrize("n_layer, d_model, n_head, parameters, unit", [
    (24, 2048, 16, 1.3, 1e8),
    (32, 4096, 32, 6.7, 1e8),
    (96, 12288, 96, 175, 1e9),
])
def test_gpt3_sizes_have_the_parameter_counts_of_its_table(n_layer, d_model, n_head, parameters,
                                                           unit):
    config = config_of(n_layer, d_model)
    assert (config.vocab_size, config.n_ctx, config.n_head) == (50257, 2048, n_head)
    with torch.device("meta"):
        counted = count(GPT(config))
    assert round(counted / unit) == round(parameters * 1e9 / unit)
    # V·D + n_ctx·D embeddings; per layer 12·D² weights and 13·D biases and gains; 2·D at the end.
    D = d_model
    assert counted == (50257 + 2048) * D + n_layer * (12 * D * D + 13 * D) + 2 * D


def test_the_unembedding_is_the_token_embedding_and_counts_once():
    wide = dataclasses.replace(TINY, vocab_size=TINY.vocab_size + 1)
    assert count(GPT(wide)) - count(GPT(TINY)) == TINY.d_model


def test_the_scalar_model_adds_one_projection_to_a_scalar():
    added = count(ScalarGPT(TINY)) - count(GPT(TINY))
    assert TINY.d_model <= added <= TINY.d_model + 2  # the weights, and at most two biases


# -- attention --------------------------------------------------------------------------------


@sweep(25)
def test_attention_is_the_causal_softmax_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        B, H, T, d = rng.integers(1, 4), rng.integers(1, 4), rng.integers(1, 8), rng.integers(1, 6)
        q, k, v = rng.normal(size=(3, B, H, T, d)) * 10 ** rng.uniform(-3, 2)
        got = attention(*map(torch.from_numpy, (q, k, v)))
        np.testing.assert_allclose(array(got), naive.attention(q, k, v), rtol=1e-9, atol=1e-12)


def test_attention_by_hand():
    # One head of width 1 and q = k = ln 2: position 1 sees scores (ln 2)², (ln 2)² and averages.
    x = torch.full((1, 1, 2, 1), 2.0).log()
    v = torch.tensor([10.0, 30.0]).view(1, 1, 2, 1)
    assert attention(x, x, v).flatten().tolist() == pytest.approx([10, 20])
    # q_1 = 1, k_0 = ln 3, k_1 = 0: weights 3/4 and 1/4.
    q = torch.tensor([1.0, 1.0]).view(1, 1, 2, 1)
    k = torch.tensor([3.0, 1.0]).log().view(1, 1, 2, 1)
    assert attention(q, k, v).flatten().tolist() == pytest.approx([10, 15])


def test_attention_gradient_is_the_definitions():
    q, k, v = torch.randn(3, 2, 2, 4, 3, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(attention, inputs)


def test_the_future_does_not_reach_attention_even_when_it_is_enormous():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    before = attention(q, k, v)
    k[:, :, 3:], v[:, :, 3:] = 1e4, 1e30
    assert torch.equal(attention(q, k, v)[:, :, :3], before[:, :, :3])


def test_fused_attention_is_the_definition_in_value_and_gradient():
    leaves = [torch.randn(2, 3, 6, 4).requires_grad_() for _ in range(3)]
    seen = torch.ones(6, 6, dtype=torch.bool).tril() & (torch.rand(6, 6) < 0.7)
    for mask in (None, seen | torch.eye(6, dtype=torch.bool)):
        plain, fused = attention(*leaves, mask), fused_attention(*leaves, mask)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
        weights = torch.randn(plain.shape)
        for a, b in zip(torch.autograd.grad((plain * weights).sum(), leaves),
                        torch.autograd.grad((fused * weights).sum(), leaves), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


# -- the decoder ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GPT, ScalarGPT])
def test_changing_a_token_changes_nothing_before_it(kind):
    model = randomize(kind(TINY))
    tokens = torch.randint(TINY.vocab_size, (3, 12))
    with torch.no_grad():
        before = model(tokens)
        for t in range(1, 12):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % TINY.vocab_size
            after = model(changed)
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-5, atol=1e-5)
            assert not torch.allclose(after[:, t], before[:, t], atol=1e-3)


@pytest.mark.parametrize("kind", [GPT, ScalarGPT])
def test_padding_on_the_right_does_not_reach_a_real_token(kind):
    model = randomize(kind(TINY))
    row = torch.randint(TINY.vocab_size, (1, 6))
    with torch.no_grad():
        alone = model(row)
        for filler in range(TINY.vocab_size):
            padded = torch.cat([row, torch.full((1, 9), filler)], dim=1)
            torch.testing.assert_close(model(padded)[:, :6], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [GPT, ScalarGPT])
def test_a_row_does_not_reach_another_row(kind):
    model = randomize(kind(TINY))
    tokens = torch.randint(TINY.vocab_size, (4, 10))
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in tokens])
        torch.testing.assert_close(model(tokens), alone, rtol=1e-5, atol=1e-5)


def test_shapes_of_logits_and_scalars():
    tokens = torch.randint(TINY.vocab_size, (3, 5))
    assert GPT(TINY)(tokens).shape == (3, 5, TINY.vocab_size)
    assert ScalarGPT(TINY)(tokens).shape == (3, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scalars_of_weights_in_any_dtype_are_computed_in_fp32_at_least(dtype):
    config = GPTConfig(11, 12, 2, 2, 8)
    model, tokens = ScalarGPT(config), torch.tensor([[1, 2, 3]])
    expected = model(tokens)
    scalars = model.to(dtype)(tokens)
    assert scalars.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(scalars.float(), expected, atol=0.05, rtol=0.05)


def test_positions_matter():
    model = randomize(GPT(TINY))
    with torch.no_grad():
        logits = model(torch.full((1, 8), 3))
    assert (logits[0, 1:] - logits[0, :1]).abs().amax(-1).min() > 1e-3


def test_dropout_acts_in_training_and_only_there():
    model = randomize(GPT(dataclasses.replace(TINY, dropout=0.5)))
    plain = GPT(TINY).eval()
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(TINY.vocab_size, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tokens), plain(tokens))
        model.train()
        assert not torch.allclose(model(tokens), model(tokens), atol=1e-3)


# -- log-probs and the language-model loss ----------------------------------------------------


def test_token_logprobs_by_hand():
    # After token 0 the odds are 1 : 3, after token 1 they are 1 : 1.
    logits = torch.tensor([[[0.0, 3.0], [2.0, 2.0], [9.0, 9.0]]])
    logits[0, 0, 1] = np.log(3)
    tokens = torch.tensor([[0, 1, 0]])
    got = token_logprobs(logits, tokens)
    assert got.shape == (1, 2) and got.dtype == torch.float32
    assert got.exp().flatten().tolist() == pytest.approx([3 / 4, 1 / 2])
    # At temperature 1/2 odds of 1 : 3 become 1 : 9.
    assert token_logprobs(logits, tokens, 0.5).exp()[0, 0].item() == pytest.approx(9 / 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-40, 1e-46, 5e-324])
def test_at_the_smallest_temperatures_log_probs_are_those_of_the_limit(temperature, dtype):
    logits = torch.tensor([[-60.0, -61.5, -60.0], [7.0, 0.0, 7.5]], dtype=dtype)
    got = log_softmax(logits, temperature)
    assert got[0, [0, 2]].exp().tolist() == pytest.approx([0.5, 0.5]) and got[1, 2] == 0
    assert (got[[0, 1, 1], [1, 0, 1]] < -1e29).all()


def random_text(rng, dtype):
    B, T, V = rng.integers(1, 4), rng.integers(2, 7), rng.integers(1, 7)
    logits = torch.from_numpy(rng.normal(size=(B, T, V)) * 10 ** rng.uniform(-6, 4)).to(dtype)
    if rng.random() < 0.2:
        logits[:] = logits[0, 0, 0]
    return logits, torch.from_numpy(rng.integers(V, size=(B, T)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@sweep(12)
def test_token_logprobs_equal_a_loop_over_tokens(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        logits, tokens = random_text(rng, dtype)
        temperature = 10 ** rng.uniform(-1, 1)
        got = token_logprobs(logits, tokens, temperature)
        assert got.dtype in (torch.float32, torch.float64)
        expected = naive.token_logprobs(array(logits), tokens.numpy(), temperature)
        scale = 1 + abs(array(logits)).max() / temperature
        np.testing.assert_allclose(array(got), expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@sweep(12)
def test_lm_loss_and_its_gradient_equal_a_loop_over_targets(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        logits, tokens = random_text(rng, dtype)
        mask = torch.from_numpy(rng.random(tokens.shape) < rng.random())
        mask[rng.integers(len(mask)), rng.integers(1, mask.shape[1])] = True
        # What no counted target reads may hold anything at all.
        unread = ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        expected, grad = naive.lm_loss(array(logits), tokens.numpy(), mask.numpy())
        logits[unread] = float(rng.choice([np.nan, np.inf, -np.inf, 0.0]))
        logits.requires_grad_()
        loss = lm_loss(logits, tokens, mask)
        loss.backward()
        assert loss.shape == () and loss.dtype in (torch.float32, torch.float64)
        scale = 1 + abs(array(logits[~unread])).max()
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-5, atol=1e-6 * scale)
        rounding = 1e-2 if dtype == torch.bfloat16 else 1e-6 * scale
        np.testing.assert_allclose(array(logits.grad), grad, rtol=1e-2, atol=rounding)


def test_lm_loss_gradient_equals_finite_differences():
    logits = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(5, (2, 4))
    mask = torch.tensor([[True, True, False, True], [False, False, True, False]])
    assert torch.autograd.gradcheck(lambda x: lm_loss(x, tokens, mask), logits)


def test_lm_loss_by_hand():
    logits = torch.tensor([[[0.0, np.log(3)], [0.0, 0.0], [5.0, 0.0]]])
    tokens = torch.tensor([[0, 1, 0]])
    both = lm_loss(logits, tokens, torch.tensor([[True, True, True]]))
    assert both.item() == pytest.approx((np.log(4 / 3) + np.log(2)) / 2)
    first = lm_loss(logits, tokens, torch.tensor([[False, True, False]]))
    assert first.item() == pytest.approx(np.log(4 / 3))


def test_a_mask_of_zeros_and_ones_means_the_same():
    logits, tokens = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0]])
    assert torch.equal(lm_loss(logits, tokens, mask), lm_loss(logits, tokens, mask.bool()))


# -- the learning rate ------------------------------------------------------------------------


def test_the_rate_falls_along_half_a_cosine_to_a_tenth():
    rates = [cosine_rate(step, 2000, 5.0) for step in range(2000)]
    expected = [naive.cosine_rate(step, 2000, 5.0) for step in range(2000)]
    assert rates == pytest.approx(expected, abs=5.0 / 1000)
    assert rates[0] == 5.0 and rates[-1] == pytest.approx(0.5, rel=1e-3)
    assert all(a > b for a, b in zip(rates, rates[1:]))


# -- GPT-2's weights --------------------------------------------------------------------------


def reference_gpt2():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=97, n_positions=24, n_embd=32, n_layer=3, n_head=4,
                                     resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                     bos_token_id=0, eos_token_id=0)
    return randomize(transformers.GPT2LMHeadModel(config), std=0.1)


def test_logits_equal_those_of_transformers_gpt2_with_the_same_weights(tmp_path):
    theirs = reference_gpt2()
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path).eval()
    tokens = torch.randint(97, (3, 24))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.3
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-4)
    assert count(ours) == count(theirs)


def test_transformers_loads_what_save_gpt2_wrote(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = GPTConfig(vocab_size=53, n_ctx=20, n_layer=2, n_head=2, d_model=24)
    ours = randomize(GPT(config), std=0.1)
    save_gpt2(ours, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokens = torch.randint(53, (2, 20))
    with torch.no_grad():
        expected = ours(tokens)
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(load_gpt2(tmp_path).eval()(tokens), expected)
    assert load_gpt2(tmp_path).config == config
