"""LoRA with PEFT as the oracle: our files in PEFT, PEFT's files in ours, and the same gradients."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from studio.chat.bank import Bank, Part, Voice
from studio.chat.host import AdapterSource, HostTier
from studio.chat.runner import PlainRunner
from studio.lora.adapter import AdapterSpec, Attached, attach
from studio.lora.errors import UnknownLayers, UnknownTarget, UnsuitableOption
from studio.lora.files import WEIGHTS_FILE, AdapterWeights, BadAdapter, adapter_sha256, read_adapter, read_revision
from studio.lora.injection import find_targets
from studio.lora.serving import Routing
from tests.oracle import TOKENS, adapted_by, assert_same_gradients, copy_into, load_in_peft, perturb, write
from tests.tiny import FAMILIES, make_gpt2, make_model

LINEARS = {"llama": 14, "gpt2": 8, "phi3": 8, "qwen2": 14, "qwen3": 14}


def small(model: nn.Module, **changes: object) -> Attached:
    return attach(model, AdapterSpec(**{"rank": 4, "alpha": 8.0, **changes}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_peft_loads_ours_and_computes_the_same(tmp_path: Path, family: str, method: str) -> None:
    model = FAMILIES[family]()
    base = model(TOKENS).logits
    attached = small(model, method=method)
    assert len(attached.layers) == LINEARS[family]
    torch.testing.assert_close(model(TOKENS).logits, base, rtol=0, atol=0 if method == "lora" else 1e-4)
    perturb(attached)
    ours = model(TOKENS).logits
    assert (ours - base).abs().max() > 0.1
    theirs = load_in_peft(FAMILIES[family](), write(tmp_path / "a", attached.weights()))
    assert adapted_by(theirs) == set(attached.layers)
    torch.testing.assert_close(ours, theirs(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "targets", "layers", "count"),
    [
        ("llama", "attention", "all", 8),
        ("llama", "q_proj,down_proj", "all", 4),
        ("llama", "all-linear", "1", 7),
        ("llama", "q_proj", "last 1", 1),
        ("llama", "all-linear", "0-1", 14),
        ("llama", "all-linear", "0, 1", 14),
        ("gpt2", "attention", "all", 4),
        ("gpt2", "mlp.c_proj", "0", 1),
        ("phi3", "attention", "last 1", 2),
    ],
)
def test_what_is_not_a_target_stays_plain_in_peft_too(tmp_path: Path, family: str, targets: str, layers: str, count: int) -> None:
    model = FAMILIES[family]()
    attached = small(model, targets=targets, layers=layers, rslora=True)
    assert len(attached.layers) == count
    perturb(attached)
    theirs = load_in_peft(FAMILIES[family](), write(tmp_path / "a", attached.weights()))
    assert adapted_by(theirs) == set(attached.layers)
    torch.testing.assert_close(model(TOKENS).logits, theirs(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_ours_loads_pefts_and_computes_the_same(tmp_path: Path, rslora: bool, family: str) -> None:
    config = LoraConfig(r=8, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=rslora)
    config.fan_in_fan_out = family == "gpt2"
    theirs = get_peft_model(FAMILIES[family](), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    theirs.save_pretrained(str(tmp_path / "peft"))
    weights = read_adapter(tmp_path / "peft")
    assert weights.rslora == rslora and len(weights.pairs) == LINEARS[family]
    model = FAMILIES[family]()
    routing = Routing()
    bank = Bank(
        PlainRunner(model, routing, torch.float32), routing, slots=2, budget_bytes=10**9, host=HostTier(10**9, torch.float32, lambda: None)
    )
    lease = bank.acquire(Voice((Part(AdapterSource("x", lambda: weights)),)))
    bank.route([lease])
    torch.testing.assert_close(model(TOKENS).logits, theirs(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_our_gradients_equal_pefts(family: str, method: str) -> None:
    model = FAMILIES[family]()
    attached = small(model, method=method)
    perturb(attached)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=method == "dora")
    config.fan_in_fan_out = family == "gpt2"
    theirs = get_peft_model(FAMILIES[family](), config).eval()
    copy_into(theirs, attached)
    assert_same_gradients(attached, theirs, model)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_falls_where_pefts_does(method: str) -> None:
    model = make_model()
    attached = small(model, method=method, dropout=0.3)
    perturb(attached)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=method == "dora")
    theirs = get_peft_model(make_model(), config)
    copy_into(theirs, attached)
    plain = model(TOKENS).logits
    torch.manual_seed(7)
    ours = model.train()(TOKENS).logits
    torch.manual_seed(7)
    torch.testing.assert_close(ours, theirs.train()(TOKENS).logits, rtol=0, atol=1e-4)
    assert (ours - plain).abs().max() > 0.1  # dropout does something


def test_a_shared_product_is_asked_wherever_no_dropout_is_due() -> None:
    class Shared:
        calls = 0

        def product(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
            Shared.calls += 1
            return layer.base(x)

    model = make_model()
    attached = small(model, dropout=0.3, targets="q_proj")
    for layer in attached.layers.values():
        layer.shared = Shared()
    model.train()(TOKENS)
    assert Shared.calls == 0
    model.eval()(TOKENS)
    assert Shared.calls == 2


def test_a_has_pefts_scale_and_lora_plus_finds_b_alone() -> None:
    attached = small(make_model(), method="dora")
    slow, fast = attached.groups()
    assert len(slow) == 28 and len(fast) == 14 and {id(p) for p in fast} == {id(la.lora_B) for la in attached.layers.values()}
    assert all(layer.scale == 2.0 for layer in attached.layers.values())
    assert small(make_model(), rslora=True).layers["model.layers.0.self_attn.q_proj"].scale == 4.0


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = [
        adapter_sha256(write(tmp_path / str(i), small(make_model(), init="gaussian", seed=seed).weights()))
        for i, seed in enumerate((5, 5, 6))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_changed_file_has_another_hash_though_the_old_one_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a", small(make_model()).weights())
    monkeypatch.setattr("studio.lora.files.SETTLED_NS", 0)
    before = adapter_sha256(folder)
    assert read_revision(folder, before).rank
    read: list[Path] = []
    monkeypatch.setattr("studio.lora.files._sha256", lambda where: read.append(where) or "read again")
    assert adapter_sha256(folder) == before and not read  # remembered
    weights = folder / WEIGHTS_FILE
    data, stat = bytearray(weights.read_bytes()), weights.stat()
    data[-1] ^= 1
    time.sleep(0.02)  # a tick of the clock of files
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as long as before, and of the same time
    assert adapter_sha256(folder) == "read again"
    with pytest.raises(BadAdapter, match="they were changed"):
        read_revision(folder, before)


def test_weights_are_copies_in_float32() -> None:
    attached = small(make_model().bfloat16())
    weights = attached.weights()
    perturb(attached)
    assert all(not b.any() and b.dtype == torch.float32 for _, b in weights.pairs.values())


def test_unknown_targets_name_those_that_there_are() -> None:
    with pytest.raises(UnknownTarget, match="'wq' is no linear layer of this model; there are down_proj, gate_proj"):
        find_targets(make_model(), "q_proj,wq")
    with pytest.raises(UnknownTarget, match="there are c_attn, c_fc, c_proj"):
        find_targets(make_gpt2(), "q_proj")


@pytest.mark.parametrize("layers", ["2", "0-2", "last 3", "last 0", "1-0", "first", "", "-1", "0;1", "last"])
def test_unknown_blocks_say_how_many_there_are(layers: str) -> None:
    model = make_model()
    with pytest.raises(UnknownLayers, match="the model has 2 blocks, 0 to 1; write all, a number"):
        small(model, layers=layers)
    assert all(p.requires_grad for p in model.parameters())


def test_each_refusal_names_its_option() -> None:
    assert {kind.option for kind in UnsuitableOption.__subclasses__()} == {"targets", "layers", "init", "method"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "has lora_A, lora_B alone"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "the kind is IA3"),
        ({"r": 200000}, "rank is 200000"),
        ({"r": float("nan")}, "rank is nan"),
        ({"r": None}, "lacks r or lora_alpha"),
        ({"peft_type": "PREFIX_TUNING"}, "lacks num_virtual_tokens"),
    ],
)
def test_options_that_would_change_the_base_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = write(tmp_path / "a", small(make_model(), targets="q_proj").weights())
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadAdapter, match=message):
        read_adapter(folder)


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    weights = small(make_model(), targets="q_proj").weights()
    name = next(iter(weights.pairs))
    a, b = weights.pairs[name]
    nan = AdapterWeights(4, 8.0, False, {name: (a, torch.full_like(b, float("nan")))})
    with pytest.raises(BadAdapter, match="not finite"):
        read_adapter(write(tmp_path / "nan", nan))
    wrong = AdapterWeights(4, 8.0, False, {name: (a[:2], b)})
    with pytest.raises(BadAdapter, match="not of rank 4"):
        read_adapter(write(tmp_path / "shape", wrong))
    with pytest.raises(BadAdapter, match="holds no weights"):
        read_adapter(write(tmp_path / "none", AdapterWeights(4, 8.0, False, {})))
    cut = write(tmp_path / "cut", weights) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(BadAdapter, match="cannot be read"):
        read_adapter(tmp_path / "cut")
