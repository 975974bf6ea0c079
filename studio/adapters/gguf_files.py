"""GGUF files for llama.cpp and Ollama: an adapter beside a base, and a whole model, with or without an adapter inside.

Names, orders of rows and keys are those of llama.cpp, which tests run on what is written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.adapters.merged import Done, Tell, merged_tensor
from studio.bases.dense import DenseBase
from studio.errors import InvalidInput
from studio.lora.files import AdapterWeights

if TYPE_CHECKING:
    from torch import Tensor

    from studio.adapters.gguf_tokens import Vocabulary

LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class Family:
    """What llama.cpp calls a kind of model, and whether it holds the rows of q and k in an order of its own."""

    name: str
    turns_rows: bool


FAMILIES = {"llama": Family("llama", True), "qwen2": Family("qwen2", False), "qwen3": Family("qwen3", False)}


def family_of(config: Mapping[str, Any], base: str) -> Family:
    """The family of a base.

    Raises:
        InvalidInput: it is none of those that are written here.
    """
    kind = str(config.get("model_type", ""))
    if kind not in FAMILIES:
        raise InvalidInput(
            f"The base {base!r} is a {kind!r} model, and GGUF is written for {', '.join(FAMILIES)}; export it as peft or merged."
        )
    return FAMILIES[kind]


def write_adapter(path: Path, adapter: AdapterWeights, config: Mapping[str, Any], base: str, name: str) -> None:
    """Write a LoRA as llama.cpp reads it beside its base, in float32.

    Raises:
        InvalidInput: the base's family is not written here, or a layer has no name there.
    """
    import gguf

    family = family_of(config, base)
    names = _Names(config, family, base)
    writer = gguf.GGUFWriter(path, family.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp divides by the rank, also where the adapter is an rsLoRA.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.scale * adapter.rank)
    for layer in sorted(adapter.pairs):
        a, b = adapter.pairs[layer]
        there = names.of(f"{layer}.weight")
        writer.add_tensor(f"{there}.lora_a", a.float().contiguous().numpy())
        writer.add_tensor(f"{there}.lora_b", names.ordered(layer, b.float()).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path: Path, base: DenseBase, adapter: AdapterWeights, vocabulary: "Vocabulary", name: str, tell: Tell) -> None:
    """Write a whole model: matrices in float16, the others in float32, one tensor in memory at a time.

    Args:
        adapter: what is merged into it; one without pairs leaves it as it is.

    Raises:
        InvalidInput: the base's family is not written here, or it computes something that GGUF has no key for here.
    """
    import gguf
    import numpy as np

    family = family_of(base.config, base.name)
    names = _Names(base.config, family, base.name)
    writer = gguf.GGUFWriter(path, family.name)
    writer.add_name(name)
    _add_sizes(writer, base)
    vocabulary.add_to(writer)
    there = {key: names.of(key) for key in sorted(base.shapes)}
    for key, called in there.items():
        shape = base.shapes[key]
        dtype = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        writer.add_tensor_info(called, shape, dtype, base.size(key) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = Done(base, "writing", tell)
    for key in there:
        numbers = names.ordered(key.removesuffix(".weight").removesuffix(".bias"), merged_tensor(base, adapter, key).float())
        writer.write_tensor_data(_stored(numbers, key))
        done.tick(key)
    writer.close()


class _Names:
    """What a base's tensors are called in GGUF, and in which order their rows are."""

    def __init__(self, config: Mapping[str, Any], family: Family, base: str) -> None:
        import gguf

        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
        self._map = gguf.get_tensor_name_map(arch, int(config["num_hidden_layers"]))
        self._base = base
        heads = int(config["num_attention_heads"])
        self._heads = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)} if family.turns_rows else {}

    def of(self, key: str) -> str:
        """The name of a tensor.

        Raises:
            InvalidInput: it has none.
        """
        name = self._map.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InvalidInput(f"The tensor {key!r} of the base {self._base!r} has no name in GGUF; export it as peft or merged.")
        return str(name)

    def ordered(self, layer: str, rows: "Tensor") -> "Tensor":
        """The rows of a layer's W, bias or B in llama.cpp's order."""
        from studio.lora.merging import rows_by_halves

        heads = self._heads.get(layer.rpartition(".")[2])
        return rows_by_halves(heads)(rows) if heads else rows


def _add_sizes(writer: Any, base: DenseBase) -> None:
    config = base.config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default" or config.get("use_sliding_window"):
        raise InvalidInput(
            f"The base {base.name!r} scales its positions or slides its window, which is not written as GGUF here; export it as merged."
        )
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = int(config.get("head_dim") or width // heads)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_file_type(1)  # most of it is float16


def _stored(numbers: "Tensor", key: str) -> Any:
    import torch

    if numbers.ndim < 2:
        return numbers.contiguous().numpy()
    if float(numbers.abs().max()) > LARGEST_F16:
        raise InvalidInput(f"The tensor {key!r} holds numbers that float16 cannot hold; export it as merged.")
    return numbers.to(torch.float16).contiguous().numpy()
