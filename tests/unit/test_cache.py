"""Rows join and leave one left-padded cache, against a padding that is written out by hand."""

import random

import torch
from transformers import DynamicCache

from studio.chat.cache import BatchCache

LAYERS, HEADS, DIM = 2, 3, 4
CPU = torch.device("cpu")
Row = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values a layer, (heads, T, head_dim)


def make_row(length: int) -> Row:
    return [(torch.randn(HEADS, length, DIM), torch.randn(HEADS, length, DIM)) for _ in range(LAYERS)]


def as_cache(row: Row) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(row):
        cache.update(keys.unsqueeze(0).clone(), values.unsqueeze(0).clone(), layer)
    return cache


def naive_padding(tensors: list[torch.Tensor]) -> torch.Tensor:
    """(rows, heads, T, head_dim) with zeros on the left."""
    width = max(t.shape[1] for t in tensors)
    padded = torch.zeros(len(tensors), HEADS, width, DIM)
    for index, tensor in enumerate(tensors):
        padded[index, :, width - tensor.shape[1] :] = tensor
    return padded


def append_token(cache: BatchCache, rows: list[Row]) -> None:
    """What a forward pass does: one new key and value a row and a layer."""
    for layer in range(LAYERS):
        keys, values = torch.randn(len(rows), HEADS, 1, DIM), torch.randn(len(rows), HEADS, 1, DIM)
        cache.cache.update(keys, values, layer)
        for index, row in enumerate(rows):
            row[layer] = (torch.cat([row[layer][0], keys[index]], dim=1), torch.cat([row[layer][1], values[index]], dim=1))
    cache.appended()


def check(cache: BatchCache, rows: list[Row]) -> None:
    """Each row's own tokens stand at the right end, and mask and positions agree with them."""
    lengths = [row[0][0].shape[1] for row in rows]
    assert cache.lengths == lengths and cache.width == max(lengths, default=0)
    for layer in range(LAYERS if rows else 0):
        keys, values = cache.cache.layers[layer].keys, cache.cache.layers[layer].values
        wanted = cache.mask(CPU)[:, :-1].bool()
        for mine, naive in ((keys, [r[layer][0] for r in rows]), (values, [r[layer][1] for r in rows])):
            padded = naive_padding(naive)
            assert mine.shape == padded.shape
            own = wanted[:, None, :, None].expand_as(padded)
            assert torch.equal(mine[own], padded[own])  # what is behind the mask may be anything
    if rows:
        expected = torch.tensor([[0] * (max(lengths) - n) + [1] * (n + 1) for n in lengths])
        assert torch.equal(cache.mask(CPU), expected)
        assert cache.positions(CPU).tolist() == [[n] for n in lengths]


def test_a_shorter_and_a_longer_row_join_a_running_one() -> None:
    cache, rows = BatchCache(), []
    for length in (4, 2, 7, 1):
        rows.append(make_row(length))
        cache.join(as_cache(rows[-1]), length)
        check(cache, rows)
    append_token(cache, rows)
    check(cache, rows)


def test_the_padding_that_only_a_leaving_row_needed_leaves_with_it() -> None:
    cache, rows = BatchCache(), [make_row(9), make_row(3), make_row(5)]
    for row in rows:
        cache.join(as_cache(row), row[0][0].shape[1])
    cache.keep([1, 2])
    check(cache, rows[1:])
    assert cache.cache.layers[0].keys.shape == (2, HEADS, 5, DIM)


def test_an_empty_cache_starts_again_without_a_trace() -> None:
    cache, first, second = BatchCache(), make_row(6), make_row(2)
    cache.join(as_cache(first), 6)
    cache.keep([])
    assert cache.cache is None and cache.width == 0
    cache.join(as_cache(second), 2)
    check(cache, [second])


def test_hundred_moves_in_any_order_keep_every_row() -> None:
    source = random.Random(0)
    cache, rows = BatchCache(), []
    for _ in range(100):
        move = source.choice(("join", "append", "append", "leave"))
        if move == "join" or not rows:
            rows.append(make_row(source.randint(1, 12)))
            cache.join(as_cache(rows[-1]), rows[-1][0][0].shape[1])
        elif move == "append":
            append_token(cache, rows)
        else:
            kept = sorted(source.sample(range(len(rows)), source.randint(0, len(rows) - 1)))
            cache.keep(kept)
            rows = [rows[i] for i in kept]
        check(cache, rows)
