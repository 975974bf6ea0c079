"""Rows join and leave one batch of keys and values, against each row written out by hand; and what is kept between turns."""

import random

import pytest
import torch

from studio.chat.kv import Kept, KvBatch, KvStore

LAYERS, HEADS, DIM = 2, 3, 4
CPU = torch.device("cpu")
Row = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values a layer, (heads, T, head_dim)


def add_tokens(batch: KvBatch, rows: list[Row], count: int) -> None:
    """What a forward pass does: new keys and values for each row and layer."""
    batch.reserve(count)
    for layer in range(LAYERS):
        keys, values = torch.randn(len(rows), HEADS, count, DIM), torch.randn(len(rows), HEADS, count, DIM)
        batch.append(layer, keys, values)
        for index, row in enumerate(rows):
            row[layer] = (torch.cat([row[layer][0], keys[index]], dim=1), torch.cat([row[layer][1], values[index]], dim=1))
    batch.advance(count)


def make_row(length: int) -> tuple[KvBatch, Row]:
    batch, row = KvBatch.starting(), [(torch.zeros(HEADS, 0, DIM), torch.zeros(HEADS, 0, DIM)) for _ in range(LAYERS)]
    add_tokens(batch, [row], length)
    return batch, row


def check(batch: KvBatch, rows: list[Row]) -> None:
    """Each row has its own tokens, and mask and positions agree with them."""
    lengths = [row[0][0].shape[1] for row in rows]
    assert batch.lengths == lengths
    for index, row in enumerate(rows):
        kept = batch.keep(index)
        for layer in range(LAYERS):
            assert torch.equal(kept.keys[layer], row[layer][0]) and torch.equal(kept.values[layer], row[layer][1])
    if rows:
        assert batch.positions(2, CPU).tolist() == [[length, length + 1] for length in lengths]
        assert batch.seen(0, CPU).tolist() == [[False] * (max(lengths) - n) + [True] * n for n in lengths]


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_join_and_leave_keep_their_own_tokens(seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    batch, rows = KvBatch(), list[Row]()
    for _ in range(150):
        act = chance.random()
        if act < 0.25 and len(rows) < 6:
            other, row = make_row(chance.choice([1, 3, 30, 130]))
            batch.join(other)
            rows.append(row)
        elif act < 0.4 and rows:
            index = chance.randrange(len(rows))
            batch.leave(index, is_spoiled=chance.random() < 0.5)
            rows[index] = rows[-1]
            rows.pop()
        elif rows:
            add_tokens(batch, rows, 1)
        check(batch, rows)


def test_what_a_layer_is_given_is_what_the_mask_allows() -> None:
    (batch, one), (other, two) = make_row(5), make_row(2)
    batch.join(other)
    batch.reserve(1)
    keys, _ = batch.append(0, torch.ones(2, HEADS, 1, DIM), torch.ones(2, HEADS, 1, DIM))
    assert keys.shape == (2, HEADS, 6, DIM)
    mask = batch.mask(1, torch.float32, CPU)
    assert mask is not None and mask.shape == (2, 1, 1, 6)
    assert (mask[1, 0, 0] == 0).tolist() == [False, False, False, True, True, True]
    assert torch.equal(keys[0, :, :5], one[0][0]) and torch.equal(keys[1, :, 3:5], two[0][0])
    assert make_row(5)[0].mask(1, torch.float32, CPU) is None  # one row may see all of itself
    causal = make_row(2)[0].mask(3, torch.float32, CPU)
    assert causal is not None and (causal[0, 0] == 0).sum(dim=1).tolist() == [3, 4, 5]


def test_prompts_of_several_lengths_stand_at_the_right_end_and_go_on_alone() -> None:
    batch = KvBatch.prompts([2, 4])
    assert batch.positions(4, CPU).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    mask = batch.mask(4, torch.float32, CPU)
    assert mask is not None
    allowed = (mask[:, 0] == 0).tolist()
    assert allowed[1] == torch.ones(4, 4).tril().bool().tolist()
    assert allowed[0][2:] == [[False, False, True, False], [False, False, True, True]]
    assert all(any(row) for row in allowed[0])  # who looks at nothing gets NaN
    keys = torch.randn(2, HEADS, 4, DIM)
    for layer in range(LAYERS):
        batch.append(layer, keys, keys)
    batch.advance(4)
    running, row = make_row(7)
    rows = [row, *([(keys[index, :, start:], keys[index, :, start:])] * LAYERS for index, start in ((0, 2), (1, 0)))]
    for index in (0, 1):
        running.join(batch.alone(index))
    check(running, rows)
    add_tokens(running, rows, 1)
    check(running, rows)


def test_a_row_tried_alone_writes_where_it_stands() -> None:
    batch, one = make_row(4)
    other, two = make_row(2)
    batch.join(other)
    batch.reserve(1)
    alone = batch.alone(1)
    for layer in range(LAYERS):
        alone.append(layer, torch.full((1, HEADS, 1, DIM), 7.0), torch.full((1, HEADS, 1, DIM), 7.0))
    check(batch, [one, two])  # nothing was advanced
    batch.advance(1)
    assert batch.keep(1).keys[0][:, -1].eq(7).all() and torch.equal(batch.keep(1).keys[0][:, :-1], two[0][0])


def test_a_spoiled_row_leaves_no_nan_behind() -> None:
    batch, one = make_row(4)
    bad, _ = make_row(6)
    batch.join(bad)
    batch.reserve(1)
    nan = torch.zeros(2, HEADS, 1, DIM)
    nan[1] = float("nan")
    for layer in range(LAYERS):
        batch.append(layer, nan, nan)
    batch.advance(1)
    batch.leave(1, is_spoiled=True)
    late, _ = make_row(1)
    batch.join(late)
    batch.reserve(1)
    keys, values = batch.append(0, torch.zeros(2, HEADS, 1, DIM), torch.zeros(2, HEADS, 1, DIM))
    assert torch.isfinite(keys).all() and torch.isfinite(values).all()
    assert torch.equal(batch.keep(0).keys[0][:, :4], one[0][0])


def kept(length: int, value: float = 1.0) -> Kept:
    return Kept([torch.full((1, length, 2), value)], [torch.full((1, length, 2), value)])


def test_the_longest_common_beginning_is_found_for_its_speaker_alone() -> None:
    store = KvStore(10**6)
    store.put("a", [1, 2, 3, 4], kept(4, 4.0))
    store.put("a", [1, 2, 9], kept(3, 3.0))
    store.put("b", [1, 2, 3, 4, 5, 6], kept(6, 6.0))
    found, length = store.find("a", [1, 2, 3, 4, 5, 6])
    assert found is not None and length == 4 and found.keys[0][0, 0, 0] == 4
    assert store.find("a", [1, 2, 3, 4])[1] == 3  # one token is left to compute
    assert store.find("a", [1, 2, 9, 9])[1] == 3
    assert store.find("c", [1, 2, 3]) == (None, 0) and store.find("a", [2, 1]) == (None, 0)


def test_a_later_turn_takes_the_place_of_an_earlier_one_and_the_budget_holds() -> None:
    store = KvStore(kept(10).size_bytes)
    store.put("a", [1, 2, 3], kept(3))
    store.put("a", [1, 2, 3, 4], kept(4))
    assert store.size_bytes == kept(4).size_bytes
    store.put("b", [1] * 5, kept(5))
    assert store.find("a", [1, 2, 3, 4, 5])[1] == 4  # used just now
    store.put("c", [1] * 6, kept(6))
    assert store.find("b", [1] * 9)[1] == 0 and store.find("a", [1, 2, 3, 4, 5])[1] == 4 and store.size_bytes == kept(10).size_bytes
    store.put("d", [1] * 11, kept(11))  # more than all that there may be
    assert store.find("d", [1] * 20)[1] == 0
    store.clear()
    assert store.size_bytes == 0 and store.find("a", [1, 2, 3])[1] == 0
