"""Prefix tuning: learned keys and values before the first token of every row, in every attention layer.

Source: Li and Liang 2021, arXiv 2101.00190; without their reparametrisation, and laid out as PEFT lays it out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.lora.errors import UnsuitableMethod

# Children by which attention modules are known: the layer that makes the keys, alone or fused.
KEY_LAYERS = ("k_proj", "qkv_proj", "c_attn", "query_key_value", "Wqkv", "W_pack")


class Prefix(nn.Module):
    """Keys and values of n virtual tokens for each of L layers with H key-value heads of size D.

    They are used as they are, after the rotation of positions, as if they lay in the cache: every token of a row sees
    all of them, and **the row's own positions start at n**, as transformers and PEFT count them.

    Args:
        embedding: the start, (n, L·2·H·D), float32, PEFT's order. layers: L. heads: H.

    Attributes:
        length: n.
    """

    def __init__(self, embedding: Tensor, layers: int, heads: int) -> None:
        super().__init__()
        self.length, self.layers, self.heads = embedding.shape[0], layers, heads
        self.embedding = nn.Parameter(embedding)

    def keys_values(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """The keys and the values of a layer, (H, n, D) each, float32, differentiable."""
        by_layer = self.embedding.view(self.length, self.layers, 2, self.heads, -1)
        keys, values = by_layer[:, layer_index].permute(1, 2, 0, 3)  # (2, H, n, D)
        return keys, values


def attention_modules(model: Any) -> dict[str, nn.Module]:
    """The attention modules by name: those that know their `layer_idx` and make keys, one for each of the model's layers.

    Raises:
        UnsuitableMethod: the model is built in another way.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "layer_idx", None), int) and any(hasattr(module, child) for child in KEY_LAYERS)
    }
    indices = sorted(int(module.layer_idx) for module in found.values())
    if not indices or indices != list(range(model.config.num_hidden_layers)):
        raise UnsuitableMethod("a prefix needs a model with one attention of its own in each layer; choose lora or dora")
    return found


@torch.no_grad()
def make_prefix(model: Any, length: int, token_ids: Sequence[int], seed: int) -> Prefix:
    """A prefix that starts as the keys and values that the model itself makes of `length` tokens.

    Real activations and not random numbers, as the paper found too (section 7.4): those of random tokens left the loss of a
    135M base where it was (3.9 nats), numbers from N(0, 1), PEFT's start, doubled it.

    Args:
        token_ids: a text in the language of the task; where it is shorter than `length` it is repeated, and where it is
            empty tokens are drawn by the seed.

    Raises:
        UnsuitableMethod: the model keeps something else than one key and one value a token and layer.
    """
    embeddings = model.get_input_embeddings().weight
    ids = torch.tensor(_tokens(token_ids, length, embeddings.shape[0], seed), device=embeddings.device)
    cache = model(input_ids=ids.unsqueeze(0), use_cache=True).past_key_values
    pairs = [(layer.keys, layer.values) for layer in getattr(cache, "layers", [])]
    shapes = {tuple(tensor.shape) for pair in pairs for tensor in pair}
    if len(pairs) != model.config.num_hidden_layers or len(shapes) != 1 or next(iter(shapes))[2] != length:
        raise UnsuitableMethod("a prefix needs keys and values of one shape in every layer; choose lora or dora")
    flat = torch.stack([tensor[0].float() for pair in pairs for tensor in pair])  # (2L, H, n, D)
    heads = flat.shape[1]
    return Prefix(flat.permute(2, 0, 1, 3).reshape(length, -1).contiguous(), len(pairs), heads)


def _tokens(token_ids: Sequence[int], length: int, vocabulary: int, seed: int) -> list[int]:
    if token_ids:
        return [token_ids[i % len(token_ids)] for i in range(length)]
    drawn: list[int] = torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn
