"""What many adapters add to the layers of one input, by each way of computing it, against the formula."""

import pytest
import torch
from torch import Tensor

from studio.lora import serving
from studio.lora.files import turned
from studio.lora.serving import AdaptedInput, Routing, Share

D_IN, RANK = 12, 8
D_OUTS = {"qkv": [24, 8, 8], "alone": [10], "pair": [16, 16]}
CPU = torch.device("cpu")


def fill(adapted: AdaptedInput, slots: int, dtype: torch.dtype) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Random adapters in all slots but the last, which lacks the first layer, of ranks up to the class; what was installed, as A and B."""
    made = []
    for slot in range(slots):
        used = RANK - slot % 3
        generator = torch.Generator().manual_seed(slot)
        pairs = {
            name: (torch.randn(used, D_IN, generator=generator).to(dtype), torch.randn(d_out, used, generator=generator).to(dtype))
            for name, d_out in zip(adapted.names, adapted.d_outs, strict=True)
            if slot < slots - 1 or name != adapted.names[0] or len(adapted.names) == 1
        }
        turned_pairs = {name: (a.T.contiguous(), b.T.contiguous()) for name, (a, b) in pairs.items()}
        targets, sources, empty = adapted.places(RANK, slots, slot, used, turned_pairs)
        torch._foreach_copy_(targets, sources)
        if empty:
            torch._foreach_zero_(empty)
        made.append(pairs)
    return made


def wanted(adapted: AdaptedInput, made: list[dict[str, tuple[Tensor, Tensor]]], rows: list[list[Share]], x: Tensor, y: Tensor) -> Tensor:
    """The formula, row by row, in float64."""
    result = y.double().clone()
    for row, shares in enumerate(rows):
        at = 0
        for name, d_out in zip(adapted.names, adapted.d_outs, strict=True):
            for share in shares:
                if name in made[share.slot]:
                    a, b = (tensor.double() for tensor in made[share.slot][name])
                    result[row, at : at + d_out] += share.weight * (b @ (a @ x[row].double()))
            at += d_out
    return result


ROWS = {
    "each its own": [[Share(RANK, slot)] for slot in (2, 0, 1, 3)],
    "some share one": [[Share(RANK, slot)] for slot in (1, 1, 3, 1)],
    "the base between": [[], [Share(RANK, 2)], [], [Share(RANK, 0)], []],
    "blends": [
        [Share(RANK, 0, 0.5), Share(RANK, 3, 1.5)],
        [Share(RANK, 1)],
        [],
        [Share(RANK, 2, 0.25), Share(RANK, 0), Share(RANK, 1, 2.0)],
    ],
    "all the same": [[Share(RANK, 1)]] * 3,
    "all one blend": [[Share(RANK, 0, 0.5), Share(RANK, 2, 0.75)]] * 3,
}


@pytest.mark.parametrize("most_in_bags", [16, 0], ids=["bags", "products"])
@pytest.mark.parametrize("layers", D_OUTS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_each_row_gets_what_the_formula_says(
    rows: list[list[Share]], layers: str, most_in_bags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_IN_BAGS", most_in_bags)
    d_outs, routing = D_OUTS[layers], Routing()
    adapted = AdaptedInput([f"l{i}" for i in range(len(d_outs))], D_IN, d_outs, [None] * len(d_outs), routing, torch.float32, CPU)
    made = fill(adapted, 4, torch.float32)
    x, y = torch.randn(len(rows), D_IN), torch.randn(len(rows), sum(d_outs))
    before, expected = y.clone(), wanted(adapted, made, rows, x, y)
    routing.set(rows, CPU, torch.float32)
    adapted.add(x, y)
    assert torch.allclose(y.double(), expected, atol=1e-4)
    assert (expected - before.double()).abs().max() > 1  # the adapters make a difference
    for row, shares in enumerate(rows):
        if not shares:
            assert torch.equal(y[row], before[row])


@pytest.mark.parametrize("most_in_bags", [16, 0], ids=["bags", "products"])
def test_what_is_not_finite_stays_in_its_row(most_in_bags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_IN_BAGS", most_in_bags)
    routing = Routing()
    adapted = AdaptedInput(["q", "k"], D_IN, [24, 8], [None, None], routing, torch.float32, CPU)
    fill(adapted, 3, torch.float32)
    stack = adapted._stacks[RANK]
    stack.a[1], stack.b[1] = torch.nan, torch.inf
    x, y = torch.randn(4, D_IN), torch.zeros(4, 32)
    routing.set([[Share(RANK, 0)], [Share(RANK, 1)], [Share(RANK, 2)], []], CPU, torch.float32)
    adapted.add(x, y)
    assert torch.isfinite(y).all(dim=1).tolist() == [True, False, True, True]


def test_adapters_in_bf16_err_by_what_bf16_rounds() -> None:
    routing, rows = Routing(), ROWS["blends"]
    adapted = AdaptedInput(["q", "k", "v"], D_IN, D_OUTS["qkv"], [None] * 3, routing, torch.bfloat16, CPU)
    made = fill(adapted, 4, torch.bfloat16)
    x, y = torch.randn(4, D_IN).bfloat16(), torch.zeros(4, 40, dtype=torch.bfloat16)
    expected = wanted(adapted, made, rows, x, y)
    routing.set(rows, CPU, torch.bfloat16)
    adapted.add(x, y)
    assert 0 < float((y.double() - expected).norm() / expected.norm()) < 0.01


def test_many_tokens_of_one_row_are_products_with_one_slot() -> None:
    routing = Routing()
    adapted = AdaptedInput(["q", "k", "v"], D_IN, D_OUTS["qkv"], [None] * 3, routing, torch.float32, CPU)
    made = fill(adapted, 4, torch.float32)
    shares = [Share(RANK, 1), Share(RANK, 2, 0.5)]
    x, y = torch.randn(30, D_IN), torch.zeros(30, 40)
    expected = wanted(adapted, made, [shares] * 30, x, y)
    routing.set([shares], CPU, torch.float32)
    adapted.add(x, y)
    assert torch.allclose(y.double(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_turned_array_is_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    numbers = torch.randn(7, 5) * 100
    found = turned(numbers.numpy(), dtype)
    assert found.is_contiguous() and found.dtype == dtype
    assert torch.equal(found, numbers.T.to(dtype))
