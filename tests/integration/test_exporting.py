"""Every export is used by what it is for: PEFT, transformers, and the reader of GGUF. llama.cpp itself: `tests/e2e/test_llama_cpp.py`."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio.adapters import merged
from studio.adapters.exporting import Wish
from studio.bases.dense import DenseBase
from studio.bases.loading import load_model
from studio.errors import Interrupted, InvalidInput
from studio.lora.adapter import AdapterSpec, attach
from studio.lora.files import AdapterWeights
from studio.lora.frozen import freeze_quantized
from studio.lora.injection import linear_layers
from studio.lora.linear import dense_weight
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.oracle import TOKENS, load_in_peft, perturb, write
from tests.tiny import make_gpt2, make_qwen2, make_tokenizer

SPECS = {
    "lora": AdapterSpec(rank=4, alpha=8.0),
    "rslora": AdapterSpec(rank=6, alpha=3.0, rslora=True, targets="attention"),
    "dora": AdapterSpec(method="dora", rank=4, alpha=8.0),
    "prefix": AdapterSpec(method="prefix", virtual_tokens=5),
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Studio]:
    """A studio with an adapter of each kind, none of which leaves the base as it is."""
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("studio") / "home"))
    studio.bases.fetch(str(tiny_base))
    for seed, (name, spec) in enumerate(SPECS.items()):
        attached = attach(base_model(studio), spec, start_ids=list(range(30, 60)))
        perturb(attached, seed)
        studio.import_adapter(str(write(tmp_path_factory.mktemp("made") / name, attached.weights())), name)
    yield studio
    studio.close()


def base_folder(studio: Studio) -> Path:
    return studio.bases.path(studio.bases.get("tiny"))


def base_model(studio: Studio, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(base_folder(studio)), dtype=dtype).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits.float()


def as_trained(studio: Studio, name: str, form: str) -> None:
    """Let the record say in which form the base was held for the training."""
    record = studio.adapters.get(name)
    get = studio.adapters.get
    studio.adapters.get = lambda wanted: replace(record, config={"quantization": form}) if wanted == name else get(wanted)  # type: ignore[method-assign]


@pytest.mark.parametrize("name", SPECS)
def test_peft_loads_what_is_in_the_zip_and_a_card_lies_inside(studio: Studio, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(studio.export_adapter(name, out=tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked")
    found = logits(load_in_peft(base_model(studio), tmp_path / "unpacked"))
    kept = logits(load_in_peft(base_model(studio), studio.adapters.path(studio.adapters.get(name))))
    assert torch.equal(found, kept) and (found - logits(base_model(studio))).abs().max() > 0.1
    card = (tmp_path / "unpacked" / "README.md").read_text()
    assert (
        card.startswith("---\n") and "\nlibrary_name: peft\n" in card and f"# {name}\n" in card and studio.adapters.get(name).sha256 in card
    )


@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_transformers_loads_the_merged_model_and_it_says_the_same(
    studio: Studio, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged.write_merged, "__defaults__", (60_000,))
    told: list[tuple[float, str]] = []
    folder = studio.export_adapter(name, Wish("merged"), tmp_path, lambda share, what: told.append((share, what)))
    assert len(list(folder.glob("*.safetensors"))) > 2 and told[-1][0] == pytest.approx(1)
    model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    assert model.dtype == torch.bfloat16 and AutoTokenizer.from_pretrained(str(folder)).chat_template
    theirs = load_in_peft(base_model(studio), studio.adapters.path(studio.adapters.get(name))).merge_and_unload()
    exact = theirs.state_dict()
    for key, tensor in model.state_dict().items():  # equal but for the last bit where a sum falls between two bf16 numbers
        torch.testing.assert_close(tensor.float(), exact[key].bfloat16().float(), rtol=2**-7, atol=1e-6)
    wanted = logits(theirs)
    error = (logits(model.float()) - wanted).norm()
    rounded = (logits(theirs.bfloat16().float()) - wanted).norm()  # what bf16 costs whoever merges
    assert error < 1.1 * rounded < 0.05 * (wanted - logits(base_model(studio))).norm()


@pytest.mark.parametrize("form", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_base_is_read_as_its_training_held_it(tmp_path: Path, tiny_base: Path, form: str, family: str) -> None:
    """Tensor by tensor, what `load_model` holds, to the bit."""
    folder = tiny_base
    if family == "gpt2":
        folder = tmp_path / "gpt2"
        make_gpt2().save_pretrained(folder)
    base, held = DenseBase(folder, "tiny", form), load_model(folder, form, device="cpu")
    freeze_quantized(held)
    layers = linear_layers(held)
    assert set(base.layers.values()) == set(layers) and layers
    for key, layer in base.layers.items():
        assert torch.equal(base.weight(key).float(), dense_weight(layers[layer])), layer


def test_a_merge_stands_on_the_weights_of_the_training_or_on_the_original_ones(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio.adapters, "get", studio.adapters.get)
    as_trained(studio, "lora", "nf4")
    trained = studio.export_adapter("lora", Wish("merged"), tmp_path / "a")
    original = studio.export_adapter("lora", Wish("merged", weights="original"), tmp_path / "b")
    held = load_model(base_folder(studio), "nf4", device="cpu")
    freeze_quantized(held)
    adapter = studio.adapters.read(studio.adapters.get("lora"))
    key = "model.layers.1.mlp.down_proj"
    for folder, weight in ((trained, dense_weight(held.get_submodule(key))), (original, base_model(studio).get_submodule(key).weight)):
        a, b = adapter.pairs[key]
        found = AutoModelForCausalLM.from_pretrained(str(folder)).get_submodule(key).weight
        torch.testing.assert_close(found.float(), (weight + adapter.scale * b @ a).detach(), rtol=2**-7, atol=1e-6)
    assert "as nf4 holds it" in (trained / "README.md").read_text()
    assert "base's files" in (original / "README.md").read_text()


def test_a_gguf_adapter_holds_the_names_scale_and_order_of_llama_cpp(studio: Studio, tmp_path: Path) -> None:
    folder = studio.export_adapter("rslora", Wish("gguf"), tmp_path)
    reader = gguf.GGUFReader(folder / "adapter.gguf")
    adapter = studio.adapters.read(studio.adapters.get("rslora"))
    field = {key: value.contents() for key, value in reader.fields.items()}
    assert (field["general.architecture"], field["general.type"], field["adapter.type"]) == ("llama", "adapter", "lora")
    assert field["adapter.lora.alpha"] / adapter.rank == pytest.approx(adapter.scale)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert len(tensors) == 2 * len(adapter.pairs) == 16
    a, b = adapter.pairs["model.layers.1.self_attn.o_proj"]
    assert torch.equal(tensors["blk.1.attn_output.weight.lora_a"], a) and torch.equal(tensors["blk.1.attn_output.weight.lora_b"], b)
    b = adapter.pairs["model.layers.0.self_attn.k_proj"][1]
    order = b.reshape(2, 2, 8, 6).transpose(1, 2).reshape(32, 6)
    assert torch.equal(tensors["blk.0.attn_k.weight.lora_b"], order) and not torch.equal(order, b)
    text = (folder / "Modelfile").read_text()
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf" in text and 'PARAMETER stop "<|im_end|>"' in text


def test_a_merged_gguf_is_read_back_by_transformers(studio: Studio, tmp_path: Path) -> None:
    folder = studio.export_adapter("dora", Wish("gguf-merged"), tmp_path)
    reader = gguf.GGUFReader(folder / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(str(base_folder(studio)))
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert reader.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file="model.gguf", dtype=torch.float32).eval()
    theirs = load_in_peft(base_model(studio), studio.adapters.path(studio.adapters.get("dora")))
    torch.testing.assert_close(logits(model), logits(theirs), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("name", "wish", "why"),
    [
        ("prefix", Wish("merged"), "keys and values beside the text"),
        ("prefix", Wish("gguf"), "export it as peft"),
        ("dora", Wish("gguf"), "export it as gguf-merged"),
        ("lora", Wish("onnx"), "choose one of peft, merged, gguf, gguf-merged"),
        ("lora", Wish("merged", weights="best"), "choose trained or original"),
    ],
)
def test_what_a_form_cannot_hold_is_refused_with_a_reason(studio: Studio, tmp_path: Path, name: str, wish: Wish, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        studio.export_adapter(name, wish, tmp_path / "out")
    assert not list(tmp_path.rglob("*.*"))


def test_an_export_that_is_stopped_leaves_nothing(studio: Studio, tmp_path: Path) -> None:
    def stop(share: float, what: str) -> None:
        if share > 0.4:
            raise Interrupted("Stopped.")

    for form in ("merged", "gguf-merged"):
        with pytest.raises(Interrupted):
            studio.export_adapter("lora", Wish(form), tmp_path, stop)
        with pytest.raises(Interrupted):
            studio.export_adapter("lora", Wish(form), None, stop)
    exports = studio.settings.home / "exports"
    assert not list(tmp_path.iterdir()) and not [p for p in exports.iterdir() if "merged" in p.name or p.name.startswith(".")]
    folder = studio.export_adapter("lora", Wish("gguf"), tmp_path)
    with pytest.raises(InvalidInput, match="already"):
        studio.export_adapter("lora", Wish("gguf"), tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["Modelfile", "README.md", "adapter.gguf"]
    packed = studio.export_adapter("lora", Wish("gguf"))
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None and archive.read("adapter.gguf") == (folder / "adapter.gguf").read_bytes()


def test_a_family_without_a_name_in_gguf_is_refused(studio: Studio, tmp_path: Path) -> None:
    from studio.adapters.gguf_files import family_of, write_adapter

    with pytest.raises(InvalidInput, match="'gpt2' model, and GGUF is written for llama, qwen2, qwen3"):
        family_of({"model_type": "gpt2"}, "old")
    attached = attach(make_qwen2(), AdapterSpec(rank=4))
    perturb(attached)
    weights: AdapterWeights = attached.weights()
    config = json.loads(make_qwen2().config.to_json_string())
    write_adapter(tmp_path / "a.gguf", weights, config, "qwen", "bird")
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert torch.equal(tensors["blk.0.attn_q.weight.lora_b"], weights.pairs["model.layers.0.self_attn.q_proj"][1])  # not turned


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused() -> None:
    from tokenizers import pre_tokenizers

    from studio.adapters.gguf_tokens import vocabulary

    tokenizer = make_tokenizer()
    assert vocabulary(tokenizer, 610, "tiny").tokens[-1] == "[PAD609]"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert vocabulary(tokenizer, 600, "tiny").pre == "smollm"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InvalidInput, match="has no GGUF name here"):
        vocabulary(tokenizer, 600, "tiny")
