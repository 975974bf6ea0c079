"""Adapters as PEFT itself saves them: imported, and then the same logits, in PEFT and in the chat's own layers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from studio.chat.bank import Bank, Part, Voice
from studio.chat.host import AdapterSource, HostTier
from studio.chat.runner import PlainRunner
from studio.errors import IncompatibleAdapter, InvalidInput
from studio.lora.adapter import AdapterSpec, attach
from studio.lora.files import CONFIG_FILE, WEIGHTS_FILE, AdapterWeights, adapter_sha256, encode_adapter, lay_out, write_tensors
from studio.lora.serving import Routing
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.oracle import TOKENS, load_in_peft, perturb, write
from tests.tiny import make_gpt2, make_tokenizer, save_base

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORAS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]},
    "rank 1": {"r": 1, "lora_alpha": 3, "target_modules": ["down_proj"]},
    "all linear": {"r": 16, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.1},
    "rslora": {"r": 9, "lora_alpha": 9, "target_modules": ALL, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "use_dora": True},
    "dora and rslora": {"r": 5, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "use_dora": True, "use_rslora": True},
    "rank pattern": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2}},
    "alpha pattern": {
        "r": 4, "lora_alpha": 8, "target_modules": ALL, "alpha_pattern": {"v_proj": 32, "model.layers.0.self_attn.q_proj": 1},
    },
    "all patterns, rslora": {
        "r": 4, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True,
        "rank_pattern": {"k_proj": 3, "o_proj": 11}, "alpha_pattern": {"^model.layers.0.mlp.up_proj": 32, "gate_proj": 2},
    },
    "all patterns, dora": {
        "r": 6, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "use_dora": True,
        "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 5},
    },
    "some blocks": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "layers_to_transform": [1]},
    "one block": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    "layers by whole names": {"r": 4, "lora_alpha": 8, "target_modules": ["model.layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"]},
    "layers left out": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "exclude_modules": ["layers.0.self_attn.q_proj", "k_proj"]},
    "gaussian": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "negative alpha": {"r": 4, "lora_alpha": -8, "target_modules": ["q_proj"]},
}  # fmt: skip
FOLDED = {"rank pattern", "alpha pattern", "all patterns, rslora", "all patterns, dora"}


@pytest.fixture(scope="module")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny-gpt2"
    make_gpt2().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, gpt2_base: Path) -> Iterator[Studio]:
    """A studio with a Llama and a GPT-2: which of them an adapter is for is told by its layers."""
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("studio") / "home"))
    for folder in (tiny_base, gpt2_base):
        studio.bases.fetch(str(folder))
    yield studio
    studio.close()


def base_model(studio: Studio, name: str = "tiny") -> Any:
    """The base as the studio holds it, in float32."""
    return AutoModelForCausalLM.from_pretrained(str(studio.bases.path(studio.bases.get(name))), dtype=torch.float32).eval()


def save_trained(model: PeftModel, folder: Path) -> Path:
    """Save with PEFT after its weights were moved from their start."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "prompt_encoder" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.eval().save_pretrained(str(folder))
    return folder


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def logits_in_chat(model: nn.Module, weights: AdapterWeights) -> torch.Tensor:
    """As the chat's slots compute them."""
    routing = Routing()
    bank = Bank(
        PlainRunner(model, routing, torch.float32), routing, slots=2, budget_bytes=10**9, host=HostTier(10**9, torch.float32, lambda: None)
    )
    bank.route([bank.acquire(Voice((Part(AdapterSource("x", lambda: weights)),)))])
    return logits_of(model)


def assert_same(studio: Studio, theirs: torch.Tensor, name: str, base: str = "tiny") -> None:
    """The imported adapter computes what the original did, and something that the base does not."""
    record = studio.adapters.get(name)
    plain = base_model(studio, base)
    assert (theirs - logits_of(plain)).abs().max() > 0.1
    folder = studio.adapters.path(record)
    torch.testing.assert_close(logits_of(load_in_peft(base_model(studio, base), folder)), theirs, rtol=0, atol=1e-4)
    if record.kind != "prefix":
        torch.testing.assert_close(logits_in_chat(plain, studio.adapters.read(record)), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", LORAS)
def test_what_peft_saved_computes_the_same_here(studio: Studio, tmp_path: Path, case: str) -> None:
    model = get_peft_model(base_model(studio), LoraConfig(task_type="CAUSAL_LM", **LORAS[case]))
    folder = save_trained(model, tmp_path / "peft")
    found = studio.import_adapter(str(folder), case)
    assert_same(studio, logits_of(model), case)
    record = found.record
    assert (record.origin, record.kind) == ("import", "dora" if LORAS[case].get("use_dora") else "lora")
    assert record.source == "the folder 'peft'" and record.base_id == studio.bases.get("tiny").id
    assert [("folded into B" in notice) for notice in found.notices] == [False] + [True] * (case in FOLDED)
    assert found.notices[0].startswith("Its files do not prove which base it was trained on")
    if case not in FOLDED:  # the numbers themselves are as they were
        theirs, ours = (load_file(path / WEIGHTS_FILE) for path in (folder, studio.adapters.path(record)))
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    studio.adapters.remove(record.id)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", [{}, {"q_proj": 2}])
def test_half_the_digits_are_kept_as_they_are(studio: Studio, tmp_path: Path, dtype: torch.dtype, pattern: dict[str, int]) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=ALL, task_type="CAUSAL_LM", rank_pattern=pattern)
    folder = save_trained(get_peft_model(base_model(studio), config), tmp_path / "peft")
    path = folder / WEIGHTS_FILE
    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    theirs = logits_of(load_in_peft(base_model(studio), folder))
    record = studio.import_adapter(str(folder), "half").record
    assert_same(studio, theirs, "half")
    kept = {tensor.dtype for tensor in load_file(studio.adapters.path(record) / WEIGHTS_FILE).values()}
    assert kept == {torch.float32 if pattern else dtype}
    studio.adapters.remove(record.id)


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_of_pefts_computes_the_same_here(studio: Studio, tmp_path: Path, projection: bool) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=projection, encoder_hidden_size=32)
    model = get_peft_model(base_model(studio), config)
    folder = save_trained(model, tmp_path / "peft")
    record = studio.import_adapter(str(folder), "prefix").record
    assert_same(studio, logits_of(load_in_peft(base_model(studio), folder)), "prefix")
    weights = studio.adapters.read(record)
    assert (record.kind, record.rank, record.config["virtual_tokens"]) == ("prefix", 0, 5)
    assert weights.prefix is not None and (weights.prefix.layers, weights.prefix.heads) == (2, 2)
    assert torch.equal(weights.prefix.embedding, load_file(folder / WEIGHTS_FILE)["prompt_embeddings"])
    reply = studio.reply([{"role": "user", "content": "Hello"}], "prefix", "tiny", max_tokens=4, temperature=0.0)
    assert reply.stamp.adapter_sha256 == record.sha256
    studio.adapters.remove(record.id)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_gpt2_is_told_by_its_layers_and_turned_as_its_files_are(studio: Studio, tmp_path: Path, dora: bool, turned: bool) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", use_dora=dora, fan_in_fan_out=True)
    model = get_peft_model(base_model(studio, "tiny-gpt2"), config)
    folder = save_trained(model, tmp_path / "peft")
    if not turned:  # as files that PEFT corrects with a warning when it loads them
        text = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**text, "fan_in_fan_out": False}))
    record = studio.import_adapter(str(folder), "turned").record
    assert record.base_id == studio.bases.get("tiny-gpt2").id
    assert_same(studio, logits_of(model), "turned", "tiny-gpt2")
    with pytest.raises(IncompatibleAdapter, match=r"does not fit the base 'tiny': it has weights for 'transformer.h.0.attn.c_attn'"):
        studio.import_adapter(str(folder), "another", "tiny")
    studio.adapters.remove(record.id)


@pytest.mark.parametrize("case", ["lora", "dora", "prefix", "blocks"])
def test_what_was_exported_here_comes_back_with_the_same_bytes(studio: Studio, tmp_path: Path, case: str) -> None:
    spec = {
        "lora": AdapterSpec(rank=4, alpha=8.0, dropout=0.1),
        "dora": AdapterSpec(method="dora", rank=4, alpha=8.0, targets="attention", rslora=True),
        "prefix": AdapterSpec(method="prefix", virtual_tokens=5),
        "blocks": AdapterSpec(rank=4, alpha=8.0, targets="q_proj,up_proj", layers="last 1"),
    }[case]
    attached = attach(base_model(studio), spec, start_ids=list(range(30, 60)))
    perturb(attached)
    folder = write(tmp_path / "ours", attached.weights(), spec.dropout)
    first = studio.import_adapter(str(folder), "first").record
    assert first.sha256 == adapter_sha256(folder)
    second = studio.import_adapter(str(studio.export_adapter("first", out=tmp_path)), "second")
    assert second.record.sha256 == first.sha256 and second.record.base_fingerprint == first.base_fingerprint
    assert second.notices == ["Its content is that of the adapter 'first', which was here before."]
    for name in ("first", "second"):
        studio.adapters.remove(name)


def test_tensors_are_written_one_by_one_as_safetensors_writes_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = [torch.float32, torch.bfloat16, torch.float16]
    pairs = {f"l{i}": tuple(torch.randn(3, 3 + i, generator=generator).to(kinds[(i + j) % 3]) for j in (0, 1)) for i in range(7)}
    weights = AdapterWeights(3, 6.0, False, {name: (a, b.T) for name, (a, b) in pairs.items()})
    _, tensors = lay_out(weights, "tiny", 0.0)
    write_tensors(tmp_path / "a", {key: tensor.to("meta") for key, tensor in tensors.items()}, tensors.__getitem__)
    assert (tmp_path / "a").read_bytes() == encode_adapter(weights, "tiny", 0.0)[WEIGHTS_FILE]
    with pytest.raises(ValueError, match="which was not said"):
        write_tensors(tmp_path / "b", tensors, lambda key: tensors[key].double())


def test_an_adapter_that_fits_two_bases_asks_which(studio: Studio, tmp_path: Path) -> None:
    twin = studio.bases.fetch(str(save_base(tmp_path / "twin", seed=3)))
    model = get_peft_model(base_model(studio), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    folder = save_trained(model, tmp_path / "peft")
    try:
        with pytest.raises(InvalidInput, match="fits several bases, 'twin', 'tiny', and its files do not say which; say it with --base"):
            studio.import_adapter(str(folder), "mine")
        assert studio.import_adapter(str(folder), "asked", "tiny").record.base_id == studio.bases.get("tiny").id
        text = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**text, "base_model_name_or_path": "somebody/twin"}))
        assert studio.import_adapter(str(folder), "named").record.base_id == twin.id
        exported = studio.export_adapter("asked", out=tmp_path)  # carries the fingerprint
        again = studio.import_adapter(str(exported), "again")
        assert again.record.base_id == studio.bases.get("tiny").id
        with pytest.raises(IncompatibleAdapter, match=r"trained on another base than 'twin': the fingerprint in its studio.json"):
            studio.import_adapter(str(exported), "wrong", "twin")
    finally:
        for name in ("asked", "named", "again"):
            studio.adapters.remove(name)
        studio.bases.records.remove(twin.id)
        shutil.rmtree(studio.bases.path(twin))


def test_the_two_files_may_come_alone_under_another_name(studio: Studio, tmp_path: Path) -> None:
    model = get_peft_model(base_model(studio), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    folder = save_trained(model, tmp_path / "peft")
    weights = (folder / WEIGHTS_FILE).rename(folder / "bird.safetensors")
    for wanted in ([weights, folder / CONFIG_FILE], str(weights)):
        record = studio.import_adapter(wanted, "pair").record
        assert record.source == "the file 'bird.safetensors'"
        assert_same(studio, logits_of(model), "pair")
        studio.adapters.remove(record.id)
