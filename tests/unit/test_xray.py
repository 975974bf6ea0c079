"""X-ray, similarity and merging of adapters, with dense matrices as the oracle."""

import math

import pytest
import torch

from studio.lora.adapter import AdapterSpec, attach
from studio.lora.files import AdapterWeights
from studio.lora.linear import dense_weight
from studio.lora.merging import merged_weight, rows_by_halves
from studio.lora.similarity import alike
from studio.lora.xray import effective_ranks, reading, xray
from tests.oracle import TOKENS, perturb
from tests.tiny import FAMILIES


def made(spec: AdapterSpec, seed: int, family: str = "llama") -> AdapterWeights:
    attached = attach(FAMILIES[family](), spec)
    perturb(attached, seed)
    return attached.weights()


def dense(adapter: AdapterWeights, name: str) -> torch.Tensor:
    a, b = adapter.pairs[name]
    return adapter.scale * (b.double() @ a.double())


def rows_of(family: str) -> dict[str, torch.Tensor]:
    model = FAMILIES[family]()
    return {name: dense_weight(model.get_submodule(name)).norm(dim=1) for name in made(AdapterSpec(rank=2), 0, family).pairs}


SPECS = [AdapterSpec(rank=5, alpha=7), AdapterSpec(rank=9, alpha=3, rslora=True, targets="attention"), AdapterSpec(method="dora", rank=4)]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_figure_is_that_of_the_dense_matrix(spec: AdapterSpec, family: str) -> None:
    adapter, rows, model = made(spec, 1, family), rows_of(family), FAMILIES[family]()
    views = xray(adapter, rows)
    assert list(views) == sorted(adapter.pairs) and views
    for name, view in views.items():
        delta, weight = dense(adapter, name), dense_weight(model.get_submodule(name)).double()
        singular = torch.linalg.svdvals(delta)
        assert view.norm == pytest.approx(float(delta.norm()), rel=1e-9)
        assert view.relative == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
        torch.testing.assert_close(torch.tensor(view.singular, dtype=torch.float64), singular[: spec.rank], rtol=1e-7, atol=1e-9)
        energy = singular.square() / singular.square().sum()
        assert view.carries == int((energy.cumsum(0) < 0.95).sum()) + 1
        kept = energy[: spec.rank]
        assert view.entropy_rank == pytest.approx(math.exp(-float((kept * kept.log()).sum())), rel=1e-6)
        if spec.method == "dora":
            moved = (adapter.magnitudes[name].double() - weight.norm(dim=1)).norm() / weight.norm()
            assert view.lengths == pytest.approx(float(moved), rel=1e-5) and view.lengths > 0
        else:
            assert view.lengths == 0


def test_the_reading_says_what_the_rank_was_used_for() -> None:
    low, b = torch.randn(16, 64), torch.zeros(64, 16)
    b[:, :3] = torch.randn(64, 3)
    adapter = AdapterWeights(16, 16.0, False, {"layers.0.q_proj": (low, b)})
    [view] = xray(adapter, {"layers.0.q_proj": torch.ones(64)}).values()
    assert view.carries <= 3 and view.entropy_rank <= 3.0001
    assert reading({"x": view}, 16).startswith(f"Rank 16 is more than it used: {view.carries} of 16 directions carry 95%")
    assert effective_ranks([1.0, 1.0, 1.0, 1.0]) == (4, pytest.approx(4))
    assert effective_ranks([0.0, 0.0]) == (0, 0.0)
    still = AdapterWeights(4, 4.0, False, {"x": (torch.randn(4, 8), torch.zeros(8, 4))})
    assert "changes nothing" in reading(xray(still, {"x": torch.ones(8)}), 4)
    assert "no layer" in reading({}, 0)


def test_similarity_is_that_of_the_dense_matrices() -> None:
    one, other = made(SPECS[0], 1), made(SPECS[1], 2)
    found = alike(one, other)
    common = sorted(one.pairs.keys() & other.pairs.keys())
    assert found.layers == len(common) == 8 < len(one.pairs)
    inner = sum(float((dense(one, n) * dense(other, n)).sum()) for n in common)
    sizes = [math.sqrt(sum(float(dense(each, n).square().sum()) for n in each.pairs)) for each in (one, other)]
    assert found.cosine == pytest.approx(inner / sizes[0] / sizes[1], abs=1e-12)
    overlaps = []
    for name in common:
        u = torch.linalg.svd(dense(one, name)).U[:, :5]
        v = torch.linalg.svd(dense(other, name)).U[:, :9]
        overlaps.append(float(((u @ u.T) @ (v @ v.T)).trace()) / 5)  # Σ cos² θ, by projectors
    assert found.overlap == pytest.approx(sum(overlaps) / len(overlaps), abs=1e-9)


def test_an_adapter_is_like_itself_whatever_its_size_or_sign() -> None:
    adapter = made(SPECS[0], 1)
    same = alike(adapter, adapter)
    assert (same.cosine, same.overlap) == (pytest.approx(1), pytest.approx(1))
    turned = AdapterWeights(5, -21.0, False, {name: (a, 2 * b) for name, (a, b) in adapter.pairs.items()})
    assert alike(adapter, turned).cosine == pytest.approx(-1) and alike(adapter, turned).overlap == pytest.approx(1)
    nothing = AdapterWeights(5, 5.0, False, {name: (a, 0 * b) for name, (a, b) in adapter.pairs.items()})
    assert (alike(adapter, nothing).cosine, alike(adapter, nothing).overlap) == (0, 0)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "qwen2"])
def test_a_merged_weight_computes_what_the_layers_computed(spec: AdapterSpec, family: str) -> None:
    model = FAMILIES[family]()
    attached = attach(model, spec)
    perturb(attached, 4)
    plain, adapter = FAMILIES[family](), attached.weights()
    with torch.no_grad():
        before = plain(TOKENS).logits
        for name in adapter.pairs:
            layer = plain.get_submodule(name)
            merged = merged_weight(dense_weight(layer), adapter, name)
            layer.weight.copy_(merged.T if family == "gpt2" else merged)
        wanted, said = model.eval()(TOKENS).logits, plain(TOKENS).logits
    assert (wanted - before).abs().max() > 0.05
    torch.testing.assert_close(said, wanted, rtol=0, atol=2e-4)


def test_the_order_of_rows_is_that_of_llama_cpp() -> None:
    rows = torch.arange(16)
    assert rows_by_halves(2)(rows).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
