"""Arithmetic of adapters against dense matrices."""

from dataclasses import replace

import pytest
import torch

from studio.lora.arithmetic import Dare, Term, add, merge, reduce_rank, ties
from studio.lora.files import AdapterWeights

SIDES = {"l1": (12, 20), "l2": (30, 10)}


def adapter(rank: int, seed: int, layers: tuple[str, ...] = ("l1", "l2"), **options: object) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: (torch.randn(rank, SIDES[name][1], generator=generator), torch.randn(SIDES[name][0], rank, generator=generator))
        for name in layers
    }
    return AdapterWeights(rank, **{"alpha": 6.0, "rslora": False, "pairs": pairs, **options})  # type: ignore[arg-type]


def dense(weights: AdapterWeights, name: str) -> torch.Tensor:
    if name not in weights.pairs:
        return torch.zeros(SIDES[name])
    a, b = weights.pairs[name]
    return weights.scale * (b.double() @ a.double()).float()


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


TERMS = [Term(adapter(3, 1), 0.7), Term(adapter(2, 2, rslora=True), -1.3), Term(adapter(4, 3, ("l2",), alpha=1.0), 2.0)]


def wanted(name: str) -> torch.Tensor:
    return sum((term.weight * dense(term.adapter, name) for term in TERMS), torch.zeros(SIDES[name]))


def test_a_sum_is_exact_and_its_rank_is_the_sum_of_ranks() -> None:
    made = add(TERMS)
    assert (made.rank, made.scale) == (9, 1.0)
    for name in SIDES:
        assert [tensor.shape for tensor in made.pairs[name]] == [(9, SIDES[name][1]), (SIDES[name][0], 9)]
        close(dense(made, name), wanted(name))


def test_what_is_taken_away_from_itself_is_nothing() -> None:
    one = adapter(3, 1)
    made = add([Term(one, 1.0), Term(one, -1.0)])
    assert all(dense(made, name).abs().max() < 1e-5 for name in SIDES)
    assert reduce_rank(replace(made, pairs={n: (a, torch.zeros_like(b)) for n, (a, b) in made.pairs.items()}), 2).error == 0.0


@pytest.mark.parametrize("rank", [1, 2, 5, 8, 9, 11])
def test_a_smaller_rank_is_the_nearest_one_and_its_error_is_the_true_one(rank: int) -> None:
    exact = add(TERMS)
    made = reduce_rank(exact, rank)
    lost = whole = 0.0
    for name in SIDES:
        full = wanted(name)
        u, s, vh = torch.linalg.svd(full.double(), full_matrices=False)
        best = ((u[:, :rank] * s[:rank]) @ vh[:rank]).float()
        close(dense(made.adapter, name), best)
        lost, whole = lost + float((full - best).double().square().sum()), whole + float(full.double().square().sum())
        assert made.adapter.pairs[name][0].shape[0] == rank
    assert made.error == pytest.approx((lost / whole) ** 0.5, abs=1e-4)
    assert (made.error > 1e-3) == (rank < 9)


def test_thin_layers_and_high_ranks_are_reduced_too() -> None:
    wide = adapter(25, 4)  # a higher rank than either side of a layer
    made = reduce_rank(wide, 24)
    assert made.error < 1e-5
    for name in SIDES:
        close(dense(made.adapter, name), dense(wide, name))


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    deltas = [torch.tensor([[4.0, -3.0, 0.1, 2.0]]), torch.tensor([[2.0, 5.0, 0.2, -0.1]])]
    # kept: (4, -3), (2, 5); elected: +, +, and each number is the mean of those with that sign
    assert ties(deltas, [1.0, 1.0], 0.5).tolist() == [[3.0, 5.0, 0.0, 0.0]]
    assert ties(deltas, [1.0, 0.5], 0.5).tolist() == [[2.5, 2.5, 0.0, 0.0]]
    assert ties(deltas, [1.0, 1.0], 1.0).tolist() == [[3.0, 5.0, pytest.approx(0.15), 2.0]]


def test_dare_keeps_a_share_and_the_sum_in_the_mean() -> None:
    ones = torch.ones(200, 200)
    drawn = Dare(0.25, 0)([ones, 2 * ones], [1.0, 0.5])
    assert set(drawn.unique().tolist()) == {0.0, 4.0, 8.0}
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.05)
    assert torch.equal(drawn, Dare(0.25, 0)([ones, 2 * ones], [1.0, 0.5]))
    assert not torch.equal(drawn, Dare(0.25, 1)([ones, 2 * ones], [1.0, 0.5]))


def test_a_merge_with_nothing_dropped_is_the_sum_and_tells_what_its_rank_loses() -> None:
    whole = merge(TERMS, Dare(1.0, 0), 9)
    assert whole.error < 1e-5
    for name in SIDES:
        close(dense(whole.adapter, name), wanted(name))
    assert merge(TERMS, Dare(1.0, 0), 3).error == pytest.approx(reduce_rank(add(TERMS), 3).error, abs=1e-4)
