"""Prefix tuning, with PEFT and transformers' own cache as the oracles."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM

from studio.lora.adapter import AdapterSpec, Attached, attach
from studio.lora.errors import UnsuitableMethod
from studio.lora.files import AdapterWeights, BadAdapter, PrefixWeights, read_adapter
from studio.lora.prefix import Prefix
from tests.oracle import TOKENS, load_in_peft, perturb, write
from tests.tiny import FAMILIES, make_model


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def small(model: nn.Module, **changes: object) -> Attached:
    return attach(model, AdapterSpec(**{"rank": 4, "alpha": 8.0, **changes}))


def with_prefix(model: nn.Module, prefix: Prefix, **options: object) -> Tensor:
    """The logits of transformers with the prefix where it keeps what it has seen."""
    pairs = [prefix.keys_values(i) for i in range(prefix.layers)]
    cache = DynamicCache([(k.expand(len(TOKENS), -1, -1, -1), v.expand(len(TOKENS), -1, -1, -1)) for k, v in pairs])
    return model(TOKENS, past_key_values=cache, use_cache=True, **options).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_our_prefix_and_computes_what_transformers_does(tmp_path: Path, family: str) -> None:
    model = FAMILIES[family]()
    base = model(TOKENS).logits
    attached = small(model, method="prefix", virtual_tokens=5)
    prefix = attached.prefix
    assert prefix is not None and list(attached.parameters) == ["prefix"] and attached.groups() == ([prefix.embedding], [])
    holders = [module for module in model.modules() if getattr(module, "prefix", None) is prefix]
    assert [module.layer_idx for module in holders] == [0, 1]
    assert [p.shape for p in model.parameters() if p.requires_grad] == [prefix.embedding.shape]
    torch.testing.assert_close(model(TOKENS).logits, base)  # not used before the attention reads it
    perturb(attached)
    ours = with_prefix(model, prefix)
    assert (ours - base).abs().max() > 0.1
    theirs = load_in_peft(FAMILIES[family](), write(tmp_path / "a", attached.weights()))
    torch.testing.assert_close(ours, theirs(TOKENS).logits, rtol=0, atol=1e-5)


def test_a_prefix_of_peft_is_read_and_means_the_same(tmp_path: Path) -> None:
    theirs = get_peft_model(make_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)).eval()
    theirs.save_pretrained(str(tmp_path / "peft"))
    weights = read_adapter(tmp_path / "peft")
    assert weights.kind == "prefix" and isinstance(weights.prefix, PrefixWeights) and weights.prefix.heads == 2
    prefix = Prefix(weights.prefix.embedding, weights.prefix.layers, weights.prefix.heads)
    torch.testing.assert_close(with_prefix(make_model(), prefix), theirs(TOKENS).logits, rtol=0, atol=1e-5)


def test_gradients_of_a_prefix_equal_pefts() -> None:
    model = make_model()
    attached = small(model, method="prefix", virtual_tokens=7)
    perturb(attached)
    theirs = get_peft_model(make_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)).eval()
    embedding = theirs.prompt_encoder["default"].embedding.weight
    embedding.data.copy_(attached.parameters["prefix"].data)
    assert attached.prefix is not None
    F.cross_entropy(with_prefix(model, attached.prefix)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    theirs(TOKENS, labels=TOKENS).loss.backward()
    ours = attached.parameters["prefix"].grad
    assert ours is not None and ours.abs().max() > 0
    torch.testing.assert_close(ours, embedding.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_positions_of_a_row_start_after_the_prefix(family: str) -> None:
    model = FAMILIES[family]()
    prefix = small(model, method="prefix", virtual_tokens=5).prefix
    assert prefix is not None and prefix.length == 5
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    torch.testing.assert_close(with_prefix(model, prefix), with_prefix(model, prefix, position_ids=positions + 5))
    assert (with_prefix(model, prefix) - with_prefix(model, prefix, position_ids=positions)).abs().max() > 0.1


def test_a_prefix_starts_as_what_the_model_makes_of_a_text() -> None:
    model = make_model()
    text = torch.randint(0, 600, (6,), generator=generator()).tolist()
    prefix = attach(model, AdapterSpec(method="prefix", virtual_tokens=6), start_ids=text).prefix
    assert prefix is not None
    whole = model(torch.cat((torch.tensor([text, text]), TOKENS), dim=1)).logits[:, 6:]
    torch.testing.assert_close(with_prefix(model, prefix), whole, rtol=0, atol=1e-4)
    short = attach(make_model(), AdapterSpec(method="prefix", virtual_tokens=9), start_ids=text).prefix
    drawn = [small(make_model(), method="prefix", seed=seed).weights().prefix for seed in (1, 1, 2)]
    assert short is not None and short.length == 9
    assert torch.equal(drawn[0].embedding, drawn[1].embedding) and not torch.equal(drawn[0].embedding, drawn[2].embedding)


def test_a_model_without_such_attention_is_refused() -> None:
    config = GPTNeoXConfig(vocab_size=600, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    model = GPTNeoXForCausalLM(config).eval()
    assert small(model, method="prefix").prefix is not None
    model.config.num_hidden_layers = 3
    with pytest.raises(UnsuitableMethod, match="one attention of its own in each layer"):
        small(model, method="prefix")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_virtual_tokens": 6}, r"has the shape \(5, 128\), which is not \(6, 128\)"),
        ({"num_layers": None}, "lacks num_virtual_tokens"),
        ({"num_attention_heads": 3}, "fit no decoder"),
        ({"num_transformer_submodules": 2}, "fit no decoder"),
        ({"num_virtual_tokens": float("inf")}, "fit no decoder"),
    ],
)
def test_a_prefix_file_that_does_not_fit_itself_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = write(tmp_path / "a", small(make_model(), method="prefix", virtual_tokens=5).weights())
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadAdapter, match=message):
        read_adapter(folder)


def test_broken_numbers_are_refused(tmp_path: Path) -> None:
    prefix = small(make_model(), method="prefix", virtual_tokens=5).weights().prefix
    assert prefix is not None
    nan = PrefixWeights(torch.full_like(prefix.embedding, math.nan), 2, 2)
    with pytest.raises(BadAdapter, match="not finite"):
        read_adapter(write(tmp_path / "nan", AdapterWeights(0, 0.0, False, {}, kind="prefix", prefix=nan)))
