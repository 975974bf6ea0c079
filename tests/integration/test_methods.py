"""Other starts than random ones, DoRA, and other forms of the base: PiSSA, LoftQ; NF4, FP4, int8."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from studio.bases.loading import load_model
from studio.lora.adapter import AdapterSpec, Attached, attach
from studio.lora.errors import UnsuitableStart
from studio.lora.files import AdapterWeights, BadAdapter, read_adapter
from studio.lora.frozen import dequantize, freeze_quantized
from studio.lora.injection import linear_layers
from studio.lora.layers import DoraLinear, LoraLinear
from studio.lora.linear import dense_weight, shape
from studio.lora.starts import loftq_start, pissa_start
from tests.oracle import TOKENS, adapted_by, assert_same_gradients, copy_into, load_in_peft, perturb, write
from tests.tiny import FAMILIES, make_gpt2, make_model

METHODS = ("lora", "dora")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def small(model: nn.Module, original: Callable[[str], Tensor] | None = None, **changes: object) -> Attached:
    return attach(model, AdapterSpec(**{"rank": 4, "alpha": 8.0, **changes}), original)


# PiSSA


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_pissa_begins_at_the_base_learns_and_is_a_plain_file_of_twice_the_rank(tmp_path: Path, method: str, rslora: bool) -> None:
    model = make_model()
    base = model(TOKENS).logits
    attached = small(model, init="pissa", method=method, rslora=rslora)
    assert all(layer.lora_B.abs().max() > 0 for layer in attached.layers.values())
    torch.testing.assert_close(model(TOKENS).logits, base, rtol=0, atol=0 if method == "lora" else 1e-4)
    perturb(attached)
    ours = model(TOKENS).logits
    assert (ours - base).abs().max() > 0.1
    weights = attached.weights()
    assert weights.rank == 8 and weights.scale == pytest.approx(8.0 / (2.0 if rslora else 4.0))
    folder = write(tmp_path / "a", weights)
    torch.testing.assert_close(ours, load_in_peft(make_model(), folder)(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pissa_has_pefts_gradients_though_peft_changes_its_base(family: str) -> None:
    model = FAMILIES[family]()
    attached = small(model, init="pissa")
    perturb(attached)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights="pissa")
    config.fan_in_fan_out = family == "gpt2"
    theirs = get_peft_model(FAMILIES[family](), config).eval()
    copy_into(theirs, attached)
    assert_same_gradients(attached, theirs, model, tolerance=1e-4)


def test_pissa_takes_the_main_directions_exactly_or_nearly(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(300, 200, generator=generator()) * torch.linspace(3, 0, 200)
    before = torch.get_rng_state()
    start = pissa_start(weight, 16, 0.5, generator())
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers are touched
    u, s, vh = torch.linalg.svd(weight)
    best = u[:, :16] @ torch.diag(s[:16]) @ vh[:16]
    near = (0.5 * start.b @ start.a - weight).norm() / (best - weight).norm()
    assert near == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(start.a.norm(dim=1), start.b.norm(dim=0))  # the singular values are split evenly
    monkeypatch.setattr("studio.lora.starts.EXACT_UP_TO", 200)
    exact = pissa_start(weight, 16, 0.5, generator())
    torch.testing.assert_close(0.5 * exact.b @ exact.a, best, rtol=0, atol=1e-3)


def test_a_rank_above_the_layers_own_still_learns_everywhere() -> None:
    start = pissa_start(torch.randn(6, 10, generator=generator()), 8, 1.0, generator())
    assert start.a.shape == (8, 10) and start.b.shape == (6, 8)
    assert start.a.abs().sum(dim=1).min() > 0 and not start.b[:, 6:].any()


def test_pissa_keeps_small_changes_of_a_bfloat16_base() -> None:
    layer = nn.Linear(64, 64, bias=False)
    lora = LoraLinear(layer, pissa_start(layer.weight.detach(), 8, 1.0, generator()), 1.0, 0.0)
    x = torch.randn(32, 64, generator=generator())
    lora.lora_B.data += 1e-3 * torch.randn(64, 8, generator=generator())
    a, b = lora.factors()
    wanted = x @ (b @ a).T
    low = F.linear(F.linear(x.bfloat16(), a.bfloat16()), b.bfloat16())
    start_a, start_b = lora.get_buffer("start_A"), lora.get_buffer("start_B")
    terms = torch.cat((lora.lora_A, start_a)).bfloat16(), torch.cat((lora.lora_B, -start_b), dim=1).bfloat16()
    naive = F.linear(F.linear(x.bfloat16(), terms[0]), terms[1])
    assert (low - wanted).norm() / wanted.norm() < 0.01 < (naive - wanted).norm() / wanted.norm()


# LoftQ


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_loftq_brings_a_quantized_base_nearer_to_the_original(tmp_path: Path, tiny_base: Path, quantization: str) -> None:
    plain = load_model(tiny_base, "fp32")
    originals = {name: layer.weight.detach() for name, layer in linear_layers(plain).items()}
    model = load_model(tiny_base, quantization)
    freeze_quantized(model)
    quantized = {name: dense_weight(layer) for name, layer in linear_layers(model).items()}
    wanted, without = plain(TOKENS).logits, model(TOKENS).logits.float()
    attached = small(model, originals.__getitem__, init="loftq", rank=16)
    for name, layer in attached.layers.items():
        a, b = (factor.detach() for factor in layer.factors())
        lost = originals[name] - quantized[name]
        left = float((lost - layer.scale * b @ a).norm())
        s = torch.linalg.svdvals(lost)
        assert left < 0.85 * lost.norm()
        assert left == pytest.approx(float(s[16:].norm()), rel=1e-3)  # no rank-16 matrix leaves less
    with_loftq = model(TOKENS).logits.float()
    assert (with_loftq - wanted).norm() < 0.85 * (without - wanted).norm()
    losses = [float(F.cross_entropy(x.detach()[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())) for x in (wanted, without, with_loftq)]
    assert abs(losses[2] - losses[0]) < abs(losses[1] - losses[0])
    weights = read_adapter(write(tmp_path / "a", attached.weights()))
    assert weights.rank == 16 and all(b.any() for _, b in weights.pairs.values())


def test_large_quantization_errors_are_approximated_nearly_as_well_as_can_be() -> None:
    weight = torch.randn(256, 320, generator=generator())
    noise = 0.1 * torch.randn(256, 320, generator=generator())
    start = loftq_start(weight, weight + noise, 16, 2.0, generator())
    best = torch.linalg.svdvals(noise)[16:].norm()
    assert best <= (noise - 2.0 * start.b @ start.a).norm() < 1.02 * best < noise.norm()


def test_loftq_says_what_it_lacks(tiny_base: Path) -> None:
    with pytest.raises(UnsuitableStart, match="this base is not quantized"):
        small(make_model(), lambda name: torch.zeros(1), init="loftq")
    model = load_model(tiny_base, "nf4")
    freeze_quantized(model)
    with pytest.raises(UnsuitableStart, match="weights from before quantization"):
        small(model, init="loftq")
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


# The forms of a base


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_an_adapter_on_a_quantized_layer_is_one_on_what_it_dequantizes_to(tiny_base: Path, quantization: str, method: str) -> None:
    model = load_model(tiny_base, quantization)
    assert freeze_quantized(model) == 14
    dense = load_model(tiny_base, "fp32")
    for name, layer in linear_layers(dense).items():
        original = layer.weight.clone()
        layer.weight.data = dense_weight(model.get_submodule(name))
        error = (layer.weight - original).norm() / original.norm()
        assert 0 < error < {"nf4": 0.12, "fp4": 0.16, "int8": 0.02}[quantization]
    for name, parameter in model.named_parameters():  # what is not quantized was rounded to bf16
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
            dense.get_parameter(name).data = parameter.data
    pair = [small(net, method=method) for net in (model, dense)]
    for attached, net in zip(pair, (model, dense), strict=True):
        perturb(attached)
        net(TOKENS, labels=TOKENS).loss.backward()
    torch.testing.assert_close(model(TOKENS).logits, dense(TOKENS).logits, rtol=0, atol=1e-4)
    for name, parameter in pair[0].parameters.items():
        torch.testing.assert_close(parameter.grad, pair[1].parameters[name].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_gpt2_keeps_its_shapes_and_its_files_orientation(tmp_path: Path, quantization: str) -> None:
    original = make_gpt2()
    original.save_pretrained(tmp_path / "gpt2")
    model = load_model(tmp_path / "gpt2", quantization)
    assert freeze_quantized(model) == 8
    plain = linear_layers(original)
    for name, layer in linear_layers(model).items():
        assert shape(layer) == shape(plain[name])
        error = (dense_weight(layer) - dense_weight(plain[name])).norm() / dense_weight(plain[name]).norm()
        assert error < 0.12
    originals = {name: layer.weight.detach() for name, layer in plain.items()}
    attached = small(model, originals.__getitem__, init="loftq")
    for name, layer in attached.layers.items():
        a, b = (factor.detach() for factor in layer.factors())
        lost = originals[name].T - dense_weight(layer.base)
        assert (lost - layer.scale * b @ a).norm() < 0.95 * lost.norm()
    weights = attached.weights()
    assert weights.fan_in_fan_out
    theirs = load_in_peft(make_gpt2(), write(tmp_path / "a", weights))
    assert adapted_by(theirs) == set(attached.layers)


def test_a_repacked_weight_is_refused_and_not_read_as_garbage(tiny_base: Path) -> None:
    weight = copy.deepcopy(next(iter(linear_layers(load_model(tiny_base, "nf4")).values())).weight)
    assert torch.isfinite(dequantize(weight, torch.float32)).all()
    weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(RuntimeError, match="repacked"):
        dequantize(weight, torch.float32)


# DoRA (its numbers against PEFT stand beside LoRA's)


def test_row_norms_need_no_product_of_b_and_a() -> None:
    base = nn.Linear(48, 32)
    layer = DoraLinear(base, pissa_start(torch.randn(32, 48, generator=generator()), 4, 1.0, generator()), 0.7, 0.0)
    layer.lora_B.data.normal_(0, 0.5, generator=generator())
    a, b = layer.factors()
    torch.testing.assert_close(layer.row_norms(), (base.weight + 0.7 * b @ a).norm(dim=1))


def test_a_row_of_zeros_stays_zero() -> None:
    base = nn.Linear(8, 3)
    base.weight.data[1] = 0
    layer = DoraLinear(base, pissa_start(torch.zeros(3, 8), 2, 1.0, generator()), 1.0, 0.0)
    y = layer(torch.ones(1, 8))
    torch.testing.assert_close(y, base(torch.ones(1, 8)))


def test_a_bfloat16_base_feels_small_changes_of_the_magnitude() -> None:
    base = nn.Linear(64, 64, bias=False).bfloat16()
    layer = small_dora(base)
    x = torch.randn(64, 64, generator=generator()).bfloat16()
    layer.magnitude.data *= 1.0055  # 1.0055 in bf16 is 1.0078
    y, moved = base(x).float(), layer(x).float()
    assert float((moved.detach() * y).sum() / (y * y).sum()) == pytest.approx(1.0055, abs=0.0004)


def small_dora(base: nn.Linear) -> DoraLinear:
    return DoraLinear(base, pissa_start(base.weight.detach().float(), 4, 1.0, generator()), 1.0, 0.0)


def test_broken_magnitudes_are_refused(tmp_path: Path) -> None:
    dora = small(make_model(), method="dora", targets="q_proj").weights()
    name = next(iter(dora.pairs))
    for case, magnitude, message in (
        ("shape", torch.ones(3), r"magnitude of shape \(3,\), which is not \(64,\)"),
        ("inf", torch.full((64,), math.inf), "not finite"),
    ):
        broken = AdapterWeights(4, 8.0, False, dora.pairs, kind="dora", magnitudes={**dora.magnitudes, name: magnitude})
        with pytest.raises(BadAdapter, match=message):
            read_adapter(write(tmp_path / case, broken))
    plain = AdapterWeights(4, 8.0, False, dora.pairs, magnitudes=dora.magnitudes)
    with pytest.raises(BadAdapter, match="not a weight of a linear layer of its kind"):
        read_adapter(write(tmp_path / "plain", plain))


@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_dora_files_go_both_ways(tmp_path: Path, init: str) -> None:
    attached = small(make_model(), method="dora", init=init, layers="1", rslora=True)
    perturb(attached)
    first = attached.weights()
    again = read_adapter(write(tmp_path / "a", first))
    assert (again.kind, again.rank, again.alpha, again.rslora, again.blocks) == ("dora", first.rank, first.alpha, True, (1,))
    assert again.targets == first.targets and again.scale == first.scale
    for name, magnitude in first.magnitudes.items():
        assert torch.equal(again.magnitudes[name], magnitude)
    theirs = PeftModel.from_pretrained(make_model(), str(tmp_path / "a"))
    theirs.save_pretrained(str(tmp_path / "b"), save_embedding_layers=False)
    assert set(read_adapter(tmp_path / "b").magnitudes) == set(first.magnitudes)
