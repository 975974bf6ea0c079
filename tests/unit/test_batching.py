"""Every row once an epoch, in pieces without padding that fit the budget, predicting what a naive loop predicts."""

import math
from collections import Counter
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets.rendering import Example
from studio.training.batching import MicroBatch, epoch_steps, micro_batches, plan_steps, split_held_out

lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=60)
masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=20)


def examples_of(trained: list[list[bool]]) -> list[Example]:
    """Rows whose every token is unique and never 0, so that each can be found again."""
    return [Example([1000 * (n + 1) + i for i in range(len(mask))], mask) for n, mask in enumerate(trained)]


def naive_pairs(examples: list[Example]) -> Counter[tuple[int, int]]:
    """(token that is seen, token that is predicted after it) for each trained token but the first."""
    return Counter((e.token_ids[i - 1], e.token_ids[i]) for e in examples for i in range(1, len(e.token_ids)) if e.trained[i])


def pairs_of(batch: MicroBatch) -> Counter[tuple[int, int]]:
    return Counter((int(batch.token_ids[p]), int(label)) for p, label in zip(batch.positions, batch.labels, strict=True))


def rows_in(batch: MicroBatch) -> list[list[int]]:
    return [row.tolist() for row in batch.token_ids.split(batch.lengths)]


@settings(deadline=None)
@given(masks, st.integers(1, 200))
def test_pieces_predict_what_a_naive_loop_predicts(trained: list[list[bool]], budget: int) -> None:
    examples = examples_of(trained)
    batches = micro_batches(examples, budget)
    assert sum((pairs_of(batch) for batch in batches), Counter()) == naive_pairs(examples)
    assert sum(batch.tokens for batch in batches) == sum(len(e.token_ids) for e in examples)


@settings(deadline=None)
@given(masks, st.integers(1, 200))
def test_every_row_is_whole_in_one_piece_and_nothing_else_is(trained: list[list[bool]], budget: int) -> None:
    examples = examples_of(trained)
    batches = micro_batches(examples, budget)
    assert sorted(row for batch in batches for row in rows_in(batch)) == sorted(e.token_ids for e in examples)
    assert all(sum(batch.lengths) == batch.tokens for batch in batches)


@settings(deadline=None)
@given(masks, st.integers(1, 200))
def test_a_piece_keeps_the_token_budget_unless_it_is_a_single_row(trained: list[list[bool]], budget: int) -> None:
    batches = micro_batches(examples_of(trained), budget)
    assert all(batch.tokens <= budget or len(batch.lengths) == 1 for batch in batches)
    # No two could have been one: so there are fewer than twice as many as the tokens alone would ask for.
    sizes = sorted(batch.tokens for batch in batches)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget


@settings(deadline=None)
@given(masks)
def test_rows_keep_their_order_in_a_piece(trained: list[list[bool]]) -> None:
    examples = examples_of(trained)
    (batch,) = micro_batches(examples, 10_000)
    assert rows_in(batch) == [e.token_ids for e in examples]


def test_the_budget_decides_how_many_pieces_there_are() -> None:
    examples = examples_of([[True] * 10] * 12)
    assert [len(micro_batches(examples, budget)) for budget in (1, 10, 30, 60, 119, 120)] == [12, 12, 4, 2, 2, 1]


@settings(deadline=None)
@given(lengths_of_rows, st.integers(1, 10), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_sees_every_row_once_in_full_steps(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    steps = epoch_steps(lengths, batch_size, 0, seed, epoch)
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    assert len(steps) == math.ceil(len(lengths) / batch_size)
    assert sorted(map(len, steps))[1:] == [batch_size] * (len(steps) - 1)


@settings(deadline=None)
@given(lengths_of_rows, st.integers(1, 100), st.integers(0, 5), st.integers(0, 3))
def test_a_step_of_tokens_takes_the_next_row_where_it_still_fits(lengths: list[int], batch_tokens: int, seed: int, epoch: int) -> None:
    steps = epoch_steps(lengths, 3, batch_tokens, seed, epoch)
    assert [row for step in steps for row in step] == [row for step in epoch_steps(lengths, 1, 0, seed, epoch) for row in step]
    sizes = [sum(lengths[row] for row in step) for step in steps]
    assert all(size <= batch_tokens or len(step) == 1 for size, step in zip(sizes, steps, strict=True))
    assert all(size + lengths[after[0]] > batch_tokens for size, after in zip(sizes, steps[1:], strict=False))


def test_the_order_is_the_seeds_and_changes_from_epoch_to_epoch() -> None:
    lengths = [5 + n % 13 for n in range(100)]
    for batch_tokens in (0, 50):
        first = epoch_steps(lengths, 8, batch_tokens, 0, 0)
        assert first == epoch_steps(lengths, 8, batch_tokens, 0, 0)
        assert first != epoch_steps(lengths, 8, batch_tokens, 0, 1) and first != epoch_steps(lengths, 8, batch_tokens, 1, 0)


@settings(deadline=None)
@given(lengths_of_rows, st.integers(1, 10), st.sampled_from([0, 30, 90]), st.integers(1, 12))
def test_a_plan_is_whole_epochs_one_after_the_other(lengths: list[int], batch_size: int, batch_tokens: int, quarters: int) -> None:
    epochs = quarters / 4
    plan = plan_steps(lengths, batch_size, batch_tokens, 7, epochs, 0)
    whole = [epoch_steps(lengths, batch_size, batch_tokens, 7, epoch) for epoch in range(math.ceil(epochs))]
    rest = epochs - int(epochs)
    if rest:
        least = 1 if len(whole) == 1 else 0
        whole[-1] = whole[-1][: max(round(len(whole[-1]) * rest), least)]
    assert [rows for rows, _ in plan] == [rows for steps in whole for rows in steps]
    assert [index for index, (_, ends) in enumerate(plan, 1) if ends] == sorted({n for n in accumulate(map(len, whole)) if n})


@settings(deadline=None)
@given(lengths_of_rows, st.integers(1, 10), st.sampled_from([0, 30, 90]), st.integers(1, 40))
def test_a_number_of_steps_decides_alone(lengths: list[int], batch_size: int, batch_tokens: int, max_steps: int) -> None:
    plans = [plan_steps(lengths, batch_size, batch_tokens, 7, epochs, max_steps) for epochs in (0.5, 3.0)]
    assert plans[0] == plans[1] and len(plans[0]) == max_steps
    longer = plan_steps(lengths, batch_size, batch_tokens, 7, 1.0, max_steps + 1)
    assert longer[:-1] == plans[0]


@settings(deadline=None)
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
