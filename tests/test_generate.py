"""Sampling: exactly the model's distribution, its own log-probs, and the layout of the result."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from conftest import array, randomize

import naive
from model import GPT, GPTConfig, generate, token_logprobs

TINY = GPTConfig(vocab_size=7, n_ctx=48, n_layer=2, n_head=2, d_model=16)
PROMPTS = [[1], [2, 3, 4, 5, 6], [3, 3], [0, 1, 2, 3, 4, 5, 6, 0, 1], [5, 4, 3]]


@pytest.fixture(scope="module")
def model():
    return randomize(GPT(TINY))


@pytest.fixture(autouse=True, params=["decode.c", "torch"])
def way(request):
    """A small model's step, without torch's operations and with them."""
    if request.param == "torch":
        request.getfixturevalue("by_torch")


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(samples):
    """Each row's prompt and response as lists, by `prompt_lens` and `lens`."""
    for tokens, start, end in zip(samples.tokens_BT.tolist(), samples.prompt_lens_B.tolist(),
                                  samples.lens_B.tolist(), strict=True):
        yield tokens[:start], tokens[start:end]


def next_token_distribution(model, tokens, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0, -1]
    return np.exp(naive.log_softmax([x / temperature for x in logits.tolist()]))


def recomputed_logprobs(model, prompt, response, temperature):
    tokens = prompt + response
    return [float(np.log(next_token_distribution(model, tokens[:i], temperature)[tokens[i]]))
            for i in range(len(prompt), len(tokens))]


# -- layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [None, 6, 0])
def test_every_row_is_prompt_then_response_then_padding(model, eos):
    samples = generate(model, PROMPTS * 5, 12, eos=eos, generator=seeded_generator())
    B, T = samples.tokens_BT.shape
    R = samples.mask_BR.shape[1]
    assert B == len(PROMPTS) * 5 and samples.logprobs_BR.shape == (B, R) and R <= 12
    assert samples.mask_BR.dtype == torch.bool and samples.logprobs_BR.dtype == torch.float32
    assert not samples.logprobs_BR.requires_grad
    assert samples.prompt_lens_B.tolist() == [len(p) for p in PROMPTS] * 5
    lens = samples.lens_B - samples.prompt_lens_B
    assert T >= samples.lens_B.max() and 1 <= lens.min() and lens.max() <= 12
    expected = torch.arange(R) < lens[:, None]
    assert torch.equal(samples.mask_BR, expected)  # exactly the response, from its first token
    for (prompt, response), original in zip(rows(samples), PROMPTS * 5, strict=True):
        assert prompt == original
        assert all(0 <= token < TINY.vocab_size for token in response)


def test_without_eos_every_response_reaches_the_limit(model):
    samples = generate(model, PROMPTS, 9, generator=seeded_generator())
    assert (samples.lens_B - samples.prompt_lens_B).tolist() == [9] * len(PROMPTS)
    assert samples.mask_BR.shape == (len(PROMPTS), 9) and samples.mask_BR.all()


def test_a_response_ends_with_its_first_eos_which_is_part_of_it(model):
    eos = 6  # it stands in some of the prompts too, where it ends nothing
    samples = generate(model, PROMPTS * 40, 8, eos=eos, generator=seeded_generator())
    lengths = set()
    for _, response in rows(samples):
        assert eos not in response[:-1]
        assert response[-1] == eos or len(response) == 8
        lengths.add(len(response))
    assert lengths >= {1, 2, 3, 8}


def test_the_mask_ends_with_the_eos_token_and_its_logprob_is_real(model):
    samples = generate(model, PROMPTS * 40, 8, eos=6, generator=seeded_generator())
    assert torch.isfinite(samples.logprobs_BR).all()
    for b, (prompt, response) in enumerate(rows(samples)):
        if response[-1] == 6:
            expected = recomputed_logprobs(model, prompt, response, 1.0)[-1]
            assert samples.logprobs_BR[b, samples.mask_BR[b]][-1].item() == pytest.approx(
                expected, abs=1e-4)


# -- log-probs --------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [None, 6])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_sampling_logprobs_equal_recomputed_ones(model, temperature, eos):
    samples = generate(model, PROMPTS * 4, 10, temperature=temperature, eos=eos,
                       generator=seeded_generator())
    with torch.no_grad():
        logprobs = token_logprobs(model(samples.tokens_BT), samples.tokens_BT, temperature)
    for b, (prompt, response) in enumerate(rows(samples)):
        got = samples.logprobs_BR[b, samples.mask_BR[b]]
        start = len(prompt) - 1  # the log-prob of token t stands at t − 1
        recomputed = logprobs[b, start:start + len(response)]
        torch.testing.assert_close(got, recomputed, rtol=0, atol=1e-4)
        assert got.tolist() == pytest.approx(
            recomputed_logprobs(model, prompt, response, temperature), abs=1e-4)


# -- greedy -----------------------------------------------------------------------------------


def greedy_loop(model, prompt, n, eos):
    """The plain loop: no cache, no batch, no padding."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(next_token_distribution(model, tokens).argmax()))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt):]


@pytest.mark.parametrize("temperature", [1e-5, 0.0])
@pytest.mark.parametrize("eos", [None, 2])
def test_greedy_continuation_depends_on_nothing_else_in_the_batch(model, eos, temperature):
    prompts = PROMPTS + np.random.default_rng(0).integers(0, 7, size=(6, 20)).tolist()
    expected = [greedy_loop(model, prompt, 25, eos) for prompt in prompts]
    together = generate(model, prompts, 25, temperature=temperature, eos=eos)
    assert [response for _, response in rows(together)] == expected
    for prompt, response in zip(prompts, expected, strict=True):
        alone = generate(model, [prompt], 25, temperature=temperature, eos=eos)
        assert [r for _, r in rows(alone)] == [response]


def test_the_whole_context_can_be_filled(model):
    prompt = [1, 2, 3]
    n = TINY.n_ctx - len(prompt)
    samples = generate(model, [prompt, [4]], n, temperature=1e-5)
    assert [r for _, r in rows(samples)] == [greedy_loop(model, p, n, None) for p in (prompt, [4])]


# -- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1.0])
def test_a_temperature_without_a_meaning_is_refused(model, temperature):
    with pytest.raises(ValueError, match="temperature must be at least 0 and finite"):
        generate(model, [[1, 2]], 3, temperature)


def test_the_same_generator_seed_gives_the_same_samples(model):
    first, again, other = (
        generate(model, PROMPTS, 20, generator=seeded_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.tokens_BT, again.tokens_BT)
    assert torch.equal(first.logprobs_BR, again.logprobs_BR)
    assert not torch.equal(first.tokens_BT, other.tokens_BT)


def test_with_a_generator_given_the_global_random_state_is_neither_used_nor_moved(model):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = generate(model, PROMPTS, 20, generator=seeded_generator())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = generate(model, PROMPTS, 20, generator=seeded_generator())
    assert torch.equal(first.tokens_BT, again.tokens_BT)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_and_second_tokens_follow_the_models_distribution(model, temperature,
                                                                 record_property):
    draws, V = 20_000, TINY.vocab_size
    prompt, other = [2, 5, 1], [6]  # rows of another length among them must not matter
    samples = generate(model, [prompt, other] * draws, 2, temperature=temperature,
                       generator=seeded_generator())
    drawn = samples.tokens_BT[::2, 3:5]
    first = next_token_distribution(model, prompt, temperature)
    joint = np.concatenate([
        p * next_token_distribution(model, prompt + [token], temperature)
        for token, p in enumerate(first)])
    for cells, expected, n in ((drawn[:, 0], first, V),
                               (drawn[:, 0] * V + drawn[:, 1], joint, V * V)):
        p_value = naive.chi_squared_pvalue(torch.bincount(cells, minlength=n).tolist(), expected)
        record_property("p_value", p_value)
        assert p_value > 1e-4


def test_whole_responses_with_early_eos_follow_the_models_distribution(record_property):
    model = randomize(GPT(GPTConfig(vocab_size=4, n_ctx=8, n_layer=1, n_head=2, d_model=16)))
    prompt, eos, length, draws = [1, 0], 3, 3, 30_000
    samples = generate(model, [prompt] * draws, length, eos=eos, generator=seeded_generator())
    every = naive.responses(4, length, eos)
    probabilities = [np.exp(sum(recomputed_logprobs(model, prompt, list(r), 1.0))) for r in every]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    drawn = [tuple(response) for _, response in rows(samples)]
    assert set(drawn) <= set(every)
    counts = {r: 0 for r in every}
    for response in drawn:
        counts[response] += 1
    p_value = naive.chi_squared_pvalue([counts[r] for r in every], probabilities)
    record_property("p_value", p_value)
    assert p_value > 1e-4


def test_the_chi_squared_test_itself_rejects_a_wrong_distribution():
    rng = np.random.default_rng(0)
    p, q = [0.1, 0.2, 0.3, 0.4], [0.11, 0.19, 0.32, 0.38]
    right = [naive.chi_squared_pvalue(rng.multinomial(20_000, p).tolist(), p) for _ in range(200)]
    assert min(right) > 1e-4 and 0.4 < np.mean(right) < 0.6
    assert naive.chi_squared_pvalue(rng.multinomial(20_000, q).tolist(), p) < 1e-4


def test_rows_with_the_same_prompt_are_drawn_independently(model):
    samples = generate(model, [[1, 2]] * 200, 6, generator=seeded_generator())
    assert len({tuple(response) for _, response in rows(samples)}) > 100


# -- cost -------------------------------------------------------------------------------------


def positions_computed(model, prompts, new_tokens):
    """How many rows go through the model's linear layers and normalisations, by hooks."""
    seen = []
    hooks = [module.register_forward_hook(
        lambda module, args, output: seen.append(args[0].numel() // args[0].shape[-1]))
        for module in model.modules() if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm))]
    try:
        generate(model, prompts, new_tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(seen)


def test_each_new_token_costs_one_more_position_through_the_model(model):
    counts = [positions_computed(model, [[1, 2, 3]] * 2, n) for n in (10, 20, 40)]
    if not counts[0]:
        pytest.skip("no layer of the model can be hooked")
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    assert second == 2 * first  # twice the tokens, twice the positions: not four times


def test_time_per_token_does_not_grow_with_the_square_of_the_length():
    model = GPT(GPTConfig(vocab_size=64, n_ctx=512, n_layer=2, n_head=4, d_model=128)).eval()
    prompts = [[1, 2, 3]] * 16

    def seconds(new_tokens):
        times = []
        for _ in range(2):
            start = time.process_time()
            generate(model, prompts, new_tokens)
            times.append(time.process_time() - start)
        return min(times) / new_tokens

    seconds(8)
    # 8 times the length: without a cache a token of the longer one costs about 8 times as much.
    assert seconds(384) < 4 * seconds(48)


def test_all_pairs_of_prompt_lengths_agree_with_each_prompt_alone(model):
    for a, b in itertools.combinations(range(1, 8), 2):
        prompts = [[(3 * i + 1) % 7 for i in range(n)] for n in (a, b)]
        samples = generate(model, prompts, 4, temperature=1e-5)
        assert [r for _, r in rows(samples)] == [greedy_loop(model, p, 4, None) for p in prompts]
        assert array(samples.mask_BR).all()
