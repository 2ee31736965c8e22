"""Cutting sequences into batches: by length, in a new order each epoch, and windows of text.

Every order and every window is a function of the seed and of the epoch or step alone. Nothing is
carried from one call to the next, so a run that was killed goes on as if it had not been.
"""

import hashlib

import numpy as np
import torch

from common import InputError


def length_sorted_batches(lengths, max_tokens, even=0.0):
    """Micro-batches: lists of indices into `lengths`, longest sequences first, each index once.

    A micro-batch padded to its longest row holds at most `max_tokens` tokens, unless it is one
    row that is longer by itself. Neighbours in length share a batch, so little is padding; the
    largest batch comes first, so that memory that does not suffice fails at once. A row of less
    than `even` times the longest begins another batch: less padding for more batches.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches, first = [], 0
    while first < len(order):
        longest = lengths[order[first]]
        rows = max(1, max_tokens // max(1, longest))
        batches.append([i for i in order[first:first + rows] if lengths[i] >= even * longest])
        first += len(batches[-1])
    return batches


def even_batches(lengths, max_tokens, at_once):
    """The same for who computes several at once, `max_tokens` for all of them; where that is room
    enough, about equal parts, one for each."""
    limit, budget = max_tokens // at_once, sum(lengths) // at_once
    while budget < limit:
        batches = length_sorted_batches(lengths, budget)
        if len(batches) <= at_once:
            return batches
        budget += budget // 16 + 1
    return length_sorted_batches(lengths, limit)


def pad_right(sequences, pad=0):
    """(tokens_BT, lens_B) of lists of ids, both torch.long; `pad` fills each row's end.

    What counts is told by the lengths, never by the value of `pad`: that may be a real token.
    """
    lens_B = torch.tensor([len(s) for s in sequences], dtype=torch.long)
    T = max(map(len, sequences), default=0)
    tokens_BT = torch.full((len(sequences), T), pad, dtype=torch.long)
    for row_T, sequence in zip(tokens_BT, sequences):
        row_T[:len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
    return tokens_BT, lens_B


def seeded_generator(*key):
    """A torch.Generator whose state depends on the key alone: strings and integers that name what
    is drawn, and when. Keys that differ anywhere give unrelated streams, unlike seed + step."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def epoch_order(n, seed, epoch):
    """A list: the order in which epoch `epoch` visits n examples."""
    return torch.randperm(n, generator=seeded_generator("epoch", seed, epoch)).tolist()


def examples_of_step(examples, step, batch, seed):
    """The `batch` examples of step `step`: epochs follow one another, each in an order of its own,
    and a batch may end one and begin the next. Raises InputError when there are none."""
    if not examples:
        raise InputError("no examples are left to train on")
    n, orders, chosen = len(examples), {}, []
    for at in range(step * batch, (step + 1) * batch):
        epoch = at // n
        if epoch not in orders:
            orders[epoch] = epoch_order(n, seed, epoch)
        chosen.append(examples[orders[epoch][at % n]])
    return chosen


def steps_of_epoch(n, batch):
    """How many batches an epoch over n examples has, its last one the smaller rest."""
    return -(-n // batch)


def batch_of_epoch(examples, step, batch, seed):
    """The examples of step `step`, where no batch goes beyond its epoch: each epoch visits every
    example once, and its last batch is what is left of it."""
    epoch, at = divmod(step, steps_of_epoch(len(examples), batch))
    order = epoch_order(len(examples), seed, epoch)
    return [examples[i] for i in order[at * batch:(at + 1) * batch]]


def text_window(ids, step, batch, length, seed):
    """tokens_BT of step `step`: `batch` windows of `length` tokens, each from a place drawn
    uniformly from the token stream `ids`, across document ends, as GPT-3 was trained.

    Raises InputError when the stream is shorter than one window.
    """
    if len(ids) < length:
        raise InputError(f"the text has {len(ids)} tokens; expected one window of {length} or more")
    start_B = torch.randint(len(ids) - length + 1, (batch,),
                            generator=seeded_generator("text", seed, step)).numpy()
    return _long(np.asarray(ids)[start_B[:, None] + np.arange(length)])


def text_in_order(ids, batch, length):
    """Yield tokens_BT that together hold the stream once, in order: windows of `length` tokens,
    `batch` at a time, then what is left over as one shorter row (unless that is a single token,
    which predicts nothing). Average losses by tokens, not by batches."""
    ids = np.asarray(ids)
    whole = len(ids) // length
    for first in range(0, whole, batch):
        rows = min(batch, whole - first)
        yield _long(ids[first * length:(first + rows) * length].reshape(rows, length))
    if len(ids) - whole * length > 1:
        yield _long(ids[None, whole * length:])


def _long(ids):
    return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64))
