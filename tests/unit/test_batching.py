"""Every row once an epoch, in pieces that fit the budget, with positions and labels as a naive loop finds them."""

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets.rendering import Example
from studio.training.batching import MicroBatch, epoch_steps, micro_batches, split_held_out

lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=60)
masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=20)


def examples_of(trained: list[list[bool]]) -> list[Example]:
    """Rows whose every token is unique and never 0, so that each can be found again."""
    return [Example([1000 * (n + 1) + i for i in range(len(mask))], mask) for n, mask in enumerate(trained)]


def naive_pairs(examples: list[Example]) -> Counter[tuple[int, int]]:
    """(token that is seen, token that is predicted after it) for each trained token but the first."""
    return Counter((e.token_ids[i - 1], e.token_ids[i]) for e in examples for i in range(1, len(e.token_ids)) if e.trained[i])


def pairs_of(batch: MicroBatch) -> Counter[tuple[int, int]]:
    flat = batch.token_ids.flatten()
    return Counter((int(flat[p]), int(label)) for p, label in zip(batch.positions, batch.labels, strict=True))


@settings(deadline=None)
@given(masks, st.integers(1, 200))
def test_pieces_predict_what_a_naive_loop_predicts(trained: list[list[bool]], budget: int) -> None:
    examples = examples_of(trained)
    batches = micro_batches(examples, budget)
    assert sum((pairs_of(batch) for batch in batches), Counter()) == naive_pairs(examples)
    assert sum(batch.tokens for batch in batches) == sum(len(e.token_ids) for e in examples)


@settings(deadline=None)
@given(masks, st.integers(1, 200))
def test_every_row_is_in_one_piece_padded_on_the_right_alone(trained: list[list[bool]], budget: int) -> None:
    examples = examples_of(trained)
    found = []
    for batch in micro_batches(examples, budget):
        for row in batch.token_ids.tolist():
            tokens = [token for token in row if token]
            assert row == tokens + [0] * (len(row) - len(tokens))
            found.append(tokens)
    assert sorted(found) == sorted(e.token_ids for e in examples)


@settings(deadline=None)
@given(masks, st.integers(1, 200))
def test_a_piece_keeps_the_token_budget_unless_it_is_a_single_row(trained: list[list[bool]], budget: int) -> None:
    for batch in micro_batches(examples_of(trained), budget):
        rows, width = batch.token_ids.shape
        assert rows * width <= budget or rows == 1


def test_the_budget_decides_how_many_pieces_there_are() -> None:
    examples = examples_of([[True] * 10] * 12)
    assert [len(micro_batches(examples, budget)) for budget in (1, 10, 30, 60, 119, 120)] == [12, 12, 4, 2, 2, 1]


@given(lengths_of_rows, st.integers(1, 10), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_sees_every_row_once_in_full_steps(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    steps = epoch_steps(lengths, batch_size, seed, epoch)
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    assert len(steps) == math.ceil(len(lengths) / batch_size)
    assert sorted(map(len, steps))[1:] == [batch_size] * (len(steps) - 1)


def test_the_order_is_the_seeds_and_changes_from_epoch_to_epoch() -> None:
    lengths = [5 + n % 13 for n in range(100)]
    first = epoch_steps(lengths, 8, 0, 0)
    assert first == epoch_steps(lengths, 8, 0, 0)
    assert first != epoch_steps(lengths, 8, 0, 1) and first != epoch_steps(lengths, 8, 1, 0)


def test_rows_of_one_step_are_of_like_length() -> None:
    lengths = [n % 64 for n in range(512)]
    spread = [max(lengths[i] for i in step) - min(lengths[i] for i in step) for step in epoch_steps(lengths, 8, 0, 0)]
    assert sum(spread) / len(spread) < 16  # of 63, which rows by chance come close to


@given(st.integers(0, 300), st.floats(0, 0.5), st.integers(0, 1000))
def test_the_split_is_disjoint_whole_and_seeded(count: int, share: float, seed: int) -> None:
    train, held = split_held_out(count, share, seed)
    assert sorted(train + held) == list(range(count)) and not set(train) & set(held)
    assert (train, held) == split_held_out(count, share, seed)
    assert count == 0 or train
    if share > 0 and count > 1:
        assert len(held) == max(1, round(count * share))
    else:
        assert not held


def test_another_seed_holds_other_rows_out() -> None:
    assert len({tuple(split_held_out(100, 0.1, seed)[1]) for seed in range(20)}) > 15
