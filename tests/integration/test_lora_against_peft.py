"""PEFT as the oracle: our files in PEFT, PEFT's files in ours, and the same gradients."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from studio.chat.bank import Bank
from studio.lora.files import AdapterWeights, BadAdapter, adapter_sha256, encode_adapter, lora_scale, read_adapter
from studio.lora.injection import UnknownTarget, find_targets, inject
from studio.lora.layers import LoraLinear
from tests.tiny import make_model

TOKENS = torch.randint(0, 600, (2, 17), generator=torch.Generator().manual_seed(1))


def randomize(layers: dict[str, LoraLinear], seed: int = 3) -> None:
    """Give B numbers that are not zero: an adapter whose B is zero changes nothing and proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        layer.lora_B.data.normal_(0, 0.1, generator=generator)


def write(folder: Path, weights: AdapterWeights) -> Path:
    folder.mkdir()
    for name, data in encode_adapter(weights, "tiny", 0.0).items():
        (folder / name).write_bytes(data)
    return folder


def weights_of(layers: dict[str, LoraLinear], rank: int, alpha: float) -> AdapterWeights:
    return AdapterWeights(rank, alpha, False, {n: (la.lora_A.detach(), la.lora_B.detach()) for n, la in layers.items()})


@pytest.mark.parametrize("targets", ["all-linear", "attention", "q_proj,down_proj"])
def test_peft_loads_ours_and_computes_the_same(tmp_path: Path, targets: str) -> None:
    model = make_model()
    base = model(TOKENS).logits
    layers = inject(model, targets, rank=4, scale=lora_scale(8.0, 4), dropout=0.0, init="kaiming", seed=0)
    assert torch.equal(model(TOKENS).logits, base)  # B is zero: training begins exactly at the base
    randomize(layers)
    ours = model(TOKENS).logits
    assert (ours - base).abs().max() > 0.1
    folder = write(tmp_path / "a", weights_of(layers, 4, 8.0))
    theirs = PeftModel.from_pretrained(make_model(), str(folder)).eval()(TOKENS).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_ours_loads_pefts_and_computes_the_same(tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(r=8, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=rslora)
    theirs = get_peft_model(make_model(), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    theirs.save_pretrained(str(tmp_path / "peft"))
    weights = read_adapter(tmp_path / "peft")
    assert weights.rslora == rslora and len(weights.pairs) == 14
    model = make_model()
    bank = Bank(model, slots=2)
    slot, _ = bank.acquire("x", lambda: weights)
    bank.route([slot, slot])
    torch.testing.assert_close(model(TOKENS).logits, theirs(TOKENS).logits, rtol=0, atol=1e-4)


def test_our_gradients_equal_pefts() -> None:
    model = make_model()
    layers = inject(model, "all-linear", rank=4, scale=2.0, dropout=0.0, init="kaiming", seed=0)
    randomize(layers)
    theirs = get_peft_model(make_model(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            layer = layers[name.removeprefix("base_model.model.").split(".lora_")[0]]
            parameter.data.copy_(layer.lora_A if "lora_A" in name else layer.lora_B)
    model(TOKENS, labels=TOKENS).loss.backward()
    theirs(TOKENS, labels=TOKENS).loss.backward()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            layer = layers[name.removeprefix("base_model.model.").split(".lora_")[0]]
            grad = (layer.lora_A if "lora_A" in name else layer.lora_B).grad
            assert grad is not None and grad.abs().max() > 0
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-5)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    layers = inject(make_model(), "all-linear", rank=4, scale=2.0, dropout=0.0, init="gaussian", seed=5)
    weights = weights_of(layers, 4, 8.0)
    first, second = write(tmp_path / "a", weights), write(tmp_path / "b", weights)
    assert adapter_sha256(first) == adapter_sha256(second)


def test_unknown_targets_name_those_that_there_are() -> None:
    with pytest.raises(UnknownTarget, match="'wq' is no linear layer of this model; there are down_proj, gate_proj"):
        find_targets(make_model(), "q_proj,wq")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "the kind is IA3"),
        ({"r": 200000}, "rank is 200000"),
        ({"r": None}, "lacks peft_type, r or lora_alpha"),
    ],
)
def test_options_that_would_change_the_base_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    import json

    layers = inject(make_model(), "q_proj", rank=4, scale=2.0, dropout=0.0, init="kaiming", seed=0)
    folder = write(tmp_path / "a", weights_of(layers, 4, 8.0))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadAdapter, match=message):
        read_adapter(folder)


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    layers = inject(make_model(), "q_proj", rank=4, scale=2.0, dropout=0.0, init="kaiming", seed=0)
    weights = weights_of(layers, 4, 8.0)
    name = next(iter(weights.pairs))
    a, b = weights.pairs[name]
    nan = AdapterWeights(4, 8.0, False, {name: (a, torch.full_like(b, float("nan")))})
    with pytest.raises(BadAdapter, match="not finite"):
        read_adapter(write(tmp_path / "nan", nan))
    wrong = AdapterWeights(4, 8.0, False, {name: (a[:2], b)})
    with pytest.raises(BadAdapter, match="not of rank 4"):
        read_adapter(write(tmp_path / "shape", wrong))
    cut = write(tmp_path / "cut", weights) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(BadAdapter, match="cannot be read"):
        read_adapter(tmp_path / "cut")
