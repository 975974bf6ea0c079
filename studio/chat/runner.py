"""The resident model's forward pass, from the next tokens of some rows to the logits of each row's last.

`LeanRunner` is a loop of our own over the parts of a Llama-like model: layers that read one input multiply as one product, and
what stands between the products is kept to few operations. `PlainRunner` is the model as transformers wrote it, for all others.
Both write keys and values into a `KvBatch`, and both ask the adapters that the routing names.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.chat.kv import KvBatch
from studio.lora.frozen import freeze_quantized, is_quantized, replace_module
from studio.lora.injection import linear_layers
from studio.lora.linear import shape
from studio.lora.packed import DenseProduct, ModuleProduct, PackedProduct, Product
from studio.lora.serving import AdaptedInput, BankLinear, Routing

log = logging.getLogger(__name__)
LEAN_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
PROBE = 12  # tokens by which the lean loop is held to the model
MAX_ERROR = {torch.float32: 1e-3}  # of the probe's logits, relative
MAX_ERROR_ROUNDED = 0.06
DENSE_SHARE = 8  # of the machine's memory, the part of it that dense copies may take


class Runner(Protocol):
    """A model that rows of different adapters run on.

    Attributes:
        inputs: where adapters act, by the names of the layers.
        layers: of attention. device, dtype: of what is computed.
    """

    inputs: list[AdaptedInput]
    device: torch.device
    dtype: torch.dtype

    def forward(self, token_ids: Tensor, kv: KvBatch, wanted: Tensor | None = None) -> Tensor:
        """Logits, (rows, V), float or bf16, behind the last of token_ids, (rows, T); `kv` has room and is not advanced.

        Args:
            wanted: places in the flattened token_ids, (n,) in (rows · T,), to have the logits behind those instead, (n, V).
        """

    def product(self, name: str, x: Tensor) -> Tensor:
        """W x of one layer without bias and without adapters: (N, d_in) → (N, d_out)."""

    def tensors(self) -> dict[str, Tensor]:
        """Every weight of the base as it lies in memory, by a stable name."""


class PlainRunner:
    """The model as transformers wrote it, with each linear layer wrapped.

    Args:
        model: in eval mode. routing: shared with the bank. dtype: of the adapters' slots.
    """

    def __init__(self, model: Any, routing: Routing, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self.inputs, self._layers = [], {}
        for name, layer in linear_layers(model).items():
            d_out, d_in = shape(layer)
            adapters = AdaptedInput([name], d_in, [d_out], [getattr(layer, "bias", None)], routing, dtype, model.device)
            replace_module(model, name, BankLinear(layer, adapters))
            self.inputs.append(adapters)
            self._layers[name] = layer

    def forward(self, token_ids: Tensor, kv: KvBatch, wanted: Tensor | None = None) -> Tensor:
        """As of `Runner`."""
        count = token_ids.shape[1]
        kv.reserve(count)
        columns = None if wanted is None else torch.unique(wanted % count)  # sorted
        logits: Tensor = self.model(
            input_ids=token_ids,
            attention_mask=kv.seen(count, self.device).long(),
            position_ids=kv.positions(count, self.device),
            past_key_values=_cache(kv, self.model.config.num_hidden_layers),
            use_cache=True,
            logits_to_keep=1 if columns is None else columns,
        ).logits
        if wanted is None or columns is None:
            return logits[:, -1]
        return logits[wanted // count, torch.searchsorted(columns, wanted % count)]

    def product(self, name: str, x: Tensor) -> Tensor:
        """As of `Runner`."""
        layer = self._layers[name]
        y: Tensor = layer(x)
        bias = getattr(layer, "bias", None)
        return y if bias is None else y - bias.to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """As of `Runner`."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


@dataclass(frozen=True)
class _Projection:
    """A product and the adapters on its input."""

    product: Product
    adapters: AdaptedInput

    def __call__(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return self.adapters.add(x, y) if self.adapters.routing.routes else y


@dataclass(frozen=True)
class _Block:
    """One layer of the model."""

    norm: nn.Module
    qkv: _Projection
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    out: _Projection
    mlp_norm: nn.Module
    gate_up: _Projection
    down: _Projection


class LeanRunner:
    """The loop for Llama-like models: RMS norms, rotated positions, grouped heads, a gated MLP.

    Args:
        model: in eval mode. routing, dtype: as of `PlainRunner`.
        packed: hold the weights as int8 by row for few rows. Else they stay as they are, to the bit.
    """

    def __init__(self, model: Any, routing: Routing, dtype: torch.dtype, packed: bool) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        config = model.config
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._dense = packed and _fits_dense(model)
        self._packed, self.routing, self._adapter_dtype = packed, routing, dtype
        self.inputs: list[AdaptedInput] = []
        self._where: dict[str, tuple[_Projection, int, int]] = {}  # layer → its part of a product
        names = {module: name for name, module in model.named_modules()}
        self.blocks = [self._block(block, names) for block in model.model.layers]
        # The head stays as it is: as int8 it alone would move the starter base's held-out loss by 0.12 %, all others together by 0.03 %.
        self._head = _exact_product([model.lm_head], blocked=self._dense)
        self._act = (
            model.model.layers[0].mlp.act_fn if hasattr(model.model.layers[0].mlp, "act_fn") else model.model.layers[0].mlp.activation_fn
        )

    def _block(self, block: Any, names: dict[nn.Module, str]) -> _Block:
        attention, mlp = block.self_attn, block.mlp
        qkv = [attention.qkv_proj] if hasattr(attention, "qkv_proj") else [attention.q_proj, attention.k_proj, attention.v_proj]
        gate_up = [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
        return _Block(
            block.input_layernorm,
            self._projection(qkv, names),
            getattr(attention, "q_norm", None),
            getattr(attention, "k_norm", None),
            self._projection([attention.o_proj], names),
            block.post_attention_layernorm,
            self._projection(gate_up, names),
            self._projection([mlp.down_proj], names),
        )

    def _projection(self, layers: list[Any], names: dict[nn.Module, str]) -> _Projection:
        shapes = [shape(layer) for layer in layers]
        adapters = AdaptedInput(
            [names[layer] for layer in layers],
            shapes[0][1],
            [d_out for d_out, _ in shapes],
            [getattr(layer, "bias", None) for layer in layers],
            self.routing,
            self._adapter_dtype,
            self.device,
        )
        product = PackedProduct(layers, self._dense) if self._packed else _exact_product(layers)
        projection = _Projection(product, adapters)
        self.inputs.append(adapters)
        at = 0
        for layer, (d_out, _) in zip(layers, shapes, strict=True):
            self._where[names[layer]] = (projection, at, at + d_out)
            at += d_out
        return projection

    def forward(self, token_ids: Tensor, kv: KvBatch, wanted: Tensor | None = None) -> Tensor:
        """As of `Runner`."""
        count = token_ids.shape[1]
        kv.reserve(count)
        mask = kv.mask(count, self.dtype, self.device)
        return self.compute(token_ids, kv.positions(count, self.device), mask, kv.append, wanted)

    def compute(
        self,
        token_ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        write: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """What `forward` does once it is known where things lie.

        Args:
            token_ids, positions: (rows, T). mask: 0 or −inf, (rows, 1, T, columns); None where all is seen.
            write: keeps the new keys and values of a layer, (rows, H, T, D), and gives all that its rows have, (rows, H, columns, D).
            wanted: as of `forward`.
        """
        rows, count = token_ids.shape
        model = self.model.model
        x = model.embed_tokens(token_ids).flatten(0, 1)  # (N, d), N = rows · T
        cos, sin = model.rotary_emb(x, positions)  # (rows, T, D)
        half = self.head_dim // 2
        cos, sin = cos.unsqueeze(1), torch.cat([-sin[..., :half], sin[..., half:]], dim=-1).unsqueeze(1)
        groups = self.heads // self.kv_heads
        if mask is not None and count > 1:  # the heads of a group stand as further queries, so that keys are not copied for each
            mask = mask.expand(-1, 1, -1, -1).repeat(1, 1, groups, 1)
        for index, block in enumerate(self.blocks):
            qkv = block.qkv(block.norm(x)).view(rows, count, -1, self.head_dim)
            if block.q_norm is not None and block.k_norm is not None:
                parts = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], dim=2)
                qkv = torch.cat([block.q_norm(parts[0]), block.k_norm(parts[1]), parts[2]], dim=2)
            qkv = qkv.transpose(1, 2)  # (rows, heads, T, D)
            turned = qkv[:, : self.heads + self.kv_heads]
            turned = torch.addcmul(turned * cos, turned.roll(half, -1), sin)
            keys, values = write(index, turned[:, self.heads :], qkv[:, self.heads + self.kv_heads :])
            q = turned[:, : self.heads].reshape(rows, self.kv_heads, groups * count, self.head_dim)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            out = out.view(rows, self.heads, count, self.head_dim).transpose(1, 2).reshape(rows * count, -1)
            x = x + block.out(out)
            gate, up = block.gate_up(block.mlp_norm(x)).chunk(2, dim=-1)
            x = x + block.down(self._act(gate) * up)
        shown = x.view(rows, count, -1)[:, -1] if wanted is None else x[wanted]
        return self._head(model.norm(shown))

    def product(self, name: str, x: Tensor) -> Tensor:
        """As of `Runner`."""
        projection, first, end = self._where[name]
        y = projection.product(x.to(self.dtype))[:, first:end]
        bias = projection.product.bias if not isinstance(projection.product, ModuleProduct) else None
        return y if bias is None else y - bias[first:end]

    def drop_layers(self) -> None:
        """Give back the memory of the model's own linear layers, which are packed by now."""
        for name in self._where:
            replace_module(self.model, name, nn.Identity())

    def tensors(self) -> dict[str, Tensor]:
        """As of `Runner`."""
        found = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        products = [
            (f"product.{number}", p)
            for number, p in enumerate([*dict.fromkeys(where[0].product for where in self._where.values()), self._head])
        ]
        return found | {f"{name}.{i}": tensor for name, product in products for i, tensor in enumerate(product.tensors())}


def make_runner(model: Any, routing: Routing, dtype: torch.dtype, packed: bool) -> Runner:
    """The fastest runner that gives this model's own answers.

    Args:
        model: as it was loaded; its layers are replaced. packed: whether int8 may stand for quantized weights, on the CPU.
    """
    quantized = any(is_quantized(module) for module in model.modules())
    packed = packed and quantized and model.device.type == "cpu"
    if not _is_lean(model.config):
        freeze_quantized(model, kinds=("Linear8bitLt",))
        return PlainRunner(model, routing, dtype)
    if packed:
        freeze_quantized(model)  # readable, so that they can be packed; and the reference below is exact
    else:
        freeze_quantized(model, kinds=("Linear8bitLt",))
    probe = _probe(int(model.config.vocab_size)).to(model.device)
    wanted = model(input_ids=probe, use_cache=False).logits[:, -1].float()
    try:
        lean = LeanRunner(model, routing, dtype, packed)
        got = lean.forward(probe, KvBatch.starting()).float()
        error = float((got - wanted).norm() / wanted.norm())
    except Exception as trouble:  # noqa: BLE001 - a variant that the loop was not written for; the model itself knows how it is run
        log.warning("The fast loop cannot run this base (%s); it is run as transformers wrote it.", trouble)
        return PlainRunner(model, routing, dtype)
    if not error <= MAX_ERROR.get(model.dtype, MAX_ERROR_ROUNDED):
        log.warning("The fast loop errs by %.3f on this base; it is run as transformers wrote it.", error)
        return PlainRunner(model, routing, dtype)
    if packed:
        lean.drop_layers()
    return lean


def _probe(vocabulary: int) -> Tensor:
    """(1, PROBE) tokens from all over the vocabulary: the first ones are special, and a row of those is far from any text."""
    return torch.randint(vocabulary // 4, vocabulary, (1, PROBE), generator=torch.Generator().manual_seed(0))


def _exact_product(layers: list[Any], blocked: bool = False) -> Product:
    return DenseProduct(layers, blocked) if all(type(layer) is nn.Linear for layer in layers) else ModuleProduct(layers)


def _is_lean(config: Any) -> bool:
    """Whether a model is of a kind that the loop was written for; whether it computes the same is tried."""
    windows = getattr(config, "layer_types", None) or []
    return (
        config.model_type in LEAN_TYPES
        and all(kind == "full_attention" for kind in windows)
        and not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
    )


def _fits_dense(model: Any) -> bool:
    """Whether bf16 copies of all weights take at most a small part of the machine's memory."""
    import psutil

    weights = sum(shape(layer)[0] * shape(layer)[1] for layer in linear_layers(model).values())
    return bool(2 * weights <= psutil.virtual_memory().total // DENSE_SHARE)


def _cache(kv: KvBatch, layers: int) -> Any:
    """The batch as transformers asks for it."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    class Layer(CacheLayerMixin):  # type: ignore[misc]
        """One layer of the batch."""

        is_sliding = False

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index, self.is_initialized = index, True

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """Nothing: the batch makes its buffers itself."""

        def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
            return kv.append(self.index, key_states, value_states)

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return kv.width + query_length, 0

        def get_seq_length(self) -> int:
            return kv.width

        def get_max_length(self) -> int:
            return -1

    return Cache(layers=[Layer(index) for index in range(layers)])
