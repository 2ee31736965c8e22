"""Batching: micro-batches by length, epoch orders and text windows that depend on seed and step."""

import numpy as np
import pytest
import torch

from common import InputError
from conftest import sweep
from data.batching import (batch_of_epoch, epoch_order, even_batches, examples_of_step,
                           length_sorted_batches, pad_right, steps_of_epoch, text_in_order,
                           text_window)


def test_micro_batches_by_hand():
    """Nine tokens are too many for eight and go alone; 3 + 3 fit; the ones go four by four."""
    assert length_sorted_batches([3, 5, 1, 1, 9, 3], 8) == [[4], [1], [0, 5], [2, 3]]
    assert length_sorted_batches([2, 2, 2, 2, 2], 4) == [[0, 1], [2, 3], [4]]
    assert length_sorted_batches([], 8) == []
    assert length_sorted_batches([0, 0], 8) == [[0, 1]]


@sweep(200)
def test_micro_batches_hold_each_sequence_once_within_the_limit(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 50, random.integers(0, 40)).tolist()
    limit = int(random.integers(1, 200))
    batches = length_sorted_batches(lengths, limit)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch and (len(batch) == 1 or
                          len(batch) * max(lengths[i] for i in batch) <= limit)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_padding_is_on_the_right_and_told_by_lengths():
    tokens_BT, lens_B = pad_right([[5, 0], [], torch.tensor([1, 2, 3]), np.array([7])], pad=9)
    assert tokens_BT.tolist() == [[5, 0, 9], [9, 9, 9], [1, 2, 3], [7, 9, 9]]
    assert lens_B.tolist() == [2, 0, 3, 1]
    assert tokens_BT.dtype == lens_B.dtype == torch.long
    assert pad_right([])[0].shape == (0, 0) and pad_right([])[1].shape == (0,)


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert epoch_order(50, 0, 1) == orders[1]


def test_seed_plus_epoch_does_not_matter_but_each():
    """With seed + epoch as the key, epoch 1 of seed 0 would repeat epoch 0 of seed 1."""
    assert epoch_order(50, 0, 1) != epoch_order(50, 1, 0)
    assert epoch_order(50, -1, 0) != epoch_order(50, 1, 0)


def test_orders_do_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    epoch_order(10, 0, 0)
    text_window(np.arange(100), 0, 2, 5, 0)
    assert torch.equal(before, torch.get_rng_state())


@sweep(50)
def test_steps_walk_through_the_epochs(seed):
    random = np.random.default_rng(seed)
    n, batch = (int(v) for v in random.integers(1, 12, 2))
    walked = [e for step in range(3 * n) for e in examples_of_step(range(n), step, batch, seed)]
    assert len(walked) == 3 * n * batch
    for epoch in range(3 * batch):
        assert walked[epoch * n:(epoch + 1) * n] == epoch_order(n, seed, epoch)


def test_an_epochs_last_batch_is_what_is_left_of_it():
    assert [steps_of_epoch(n, 2) for n in (1, 2, 5, 6)] == [1, 1, 3, 3]
    batches = [batch_of_epoch("abcde", step, 2, 0) for step in range(6)]
    assert list(map(len, batches)) == [2, 2, 1] * 2
    for epoch in (0, 1):
        seen = [x for batch in batches[3 * epoch:3 * epoch + 3] for x in batch]
        assert seen == ["abcde"[i] for i in epoch_order(5, 0, epoch)]
    assert sorted(batch_of_epoch("abc", 4, 10, 0)) == ["a", "b", "c"]


def test_no_examples_is_an_input_error():
    with pytest.raises(InputError, match="no examples"):
        examples_of_step([], 0, 4, 0)


# -- text -------------------------------------------------------------------------------------


def test_windows_are_runs_of_the_text_and_a_function_of_seed_and_step():
    ids = np.arange(1000, dtype=np.int32)
    tokens_BT = text_window(ids, step=3, batch=64, length=10, seed=0)
    assert tokens_BT.shape == (64, 10) and tokens_BT.dtype == torch.long
    assert (tokens_BT.diff(dim=1) == 1).all()
    assert torch.equal(tokens_BT, text_window(ids, 3, 64, 10, 0))
    assert not torch.equal(tokens_BT, text_window(ids, 4, 64, 10, 0))
    assert not torch.equal(tokens_BT, text_window(ids, 3, 64, 10, 1))
    assert torch.equal(tokens_BT, text_window(torch.arange(1000), 3, 64, 10, 0))


def test_windows_reach_the_first_and_the_last_token():
    starts = {int(t) for t in text_window(np.arange(12), 0, 500, 10, 0)[:, 0]}
    assert starts == {0, 1, 2}
    assert text_window(np.arange(10), 0, 2, 10, 0).tolist() == [list(range(10))] * 2


def test_text_shorter_than_a_window_is_an_input_error():
    with pytest.raises(InputError, match="the text has 9 tokens; expected one window of 10"):
        text_window(np.arange(9), 0, 2, 10, 0)


def test_text_in_order_by_hand():
    parts = [t.tolist() for t in text_in_order(np.arange(11), batch=2, length=3)]
    assert parts == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]], [[9, 10]]]
    assert [t.tolist() for t in text_in_order(np.arange(7), 4, 3)] == [[[0, 1, 2], [3, 4, 5]]]
    assert [t.tolist() for t in text_in_order(np.arange(2), 4, 3)] == [[[0, 1]]]
    assert list(text_in_order(np.arange(0), 4, 3)) == []


@sweep(50)
def test_text_in_order_holds_each_token_once(seed):
    random = np.random.default_rng(seed)
    n, batch, length = (int(v) for v in random.integers(1, 40, 3))
    flat = [int(i) for part in text_in_order(np.arange(n), batch, length) for i in part.flatten()]
    lost = 1 if n % length == 1 else 0
    assert flat == list(range(n - lost))


@sweep(100)
def test_batches_computed_at_once_share_the_room_and_are_even(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 60, random.integers(1, 40)).tolist()
    room, at_once = int(random.integers(1, 4000)), int(random.integers(1, 5))
    batches = even_batches(lengths, room, at_once)
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert all(n <= room // at_once or len(batch) == 1 for n, batch in zip(padded, batches))
    if len(lengths) * max(lengths) <= room // at_once:
        assert len(batches) <= at_once  # with room enough, no more passes than run together


def test_even_batches_of_rows_alike_are_equal_parts():
    assert [len(b) for b in even_batches([128] * 8, 16384, 2)] == [4, 4]
    assert [len(b) for b in even_batches([128] * 8, 16384, 1)] == [8]
    assert [len(b) for b in even_batches([128] * 8, 512, 2)] == [2, 2, 2, 2]
    assert even_batches([3], 100, 4) == [[0]]
    assert even_batches([1, 9], 0, 2) == [[1], [0]]


@pytest.mark.parametrize("even", [0.0, 0.3, 0.6, 1.0])
def test_rows_of_a_batch_are_as_even_as_asked_for(even):
    lengths = torch.randint(1, 100, (60,)).tolist()
    batches = length_sorted_batches(lengths, 500, even)
    assert sorted(sum(batches, [])) == list(range(60))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= 500
        assert min(lengths[i] for i in batch) >= even * longest
