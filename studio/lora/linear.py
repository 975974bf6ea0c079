"""What counts as a linear layer, however it is held: dense, quantized, or GPT-2's Conv1D with its weight transposed.

Everything else in this package asks here for a layer's shape and weight, and sees (d_out, d_in) only.
"""

import torch
from torch import Tensor, nn

from studio.lora.frozen import FrozenQuantizedLinear, dequantize, is_quantized


def is_linear(module: nn.Module) -> bool:
    """Whether this module computes `y = W x + b`."""
    return isinstance(module, nn.Linear | FrozenQuantizedLinear) or is_quantized(module) or _is_conv1d(module)


def shape(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer."""
    names = ("nf", "nx") if _is_conv1d(layer) else ("out_features", "in_features")
    d_out, d_in = (int(getattr(layer, name)) for name in names)
    return d_out, d_in


def dense_weight(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The W that the layer multiplies by, (d_out, d_in), without gradient. A view where nothing has to be converted.

    Raises:
        RuntimeError: see `dequantize`.
    """
    if isinstance(layer, FrozenQuantizedLinear):
        return layer.dense(dtype)
    weight = layer.weight
    if is_quantized(layer):
        return dequantize(weight, dtype)
    assert isinstance(weight, Tensor)
    return (weight.detach().T if _is_conv1d(layer) else weight.detach()).to(dtype)


def is_stored_transposed(layer: nn.Module) -> bool:
    """Whether the base's files hold this weight as (d_in, d_out); PEFT calls that fan_in_fan_out.

    Quantizing a Conv1D turns its weight around in memory, but not in the files.
    """
    kind: type = getattr(layer, "source_cls", None) or type(layer)
    return kind.__name__ == "Conv1D"


def _is_conv1d(module: nn.Module) -> bool:
    # By name: this package knows torch alone, and transformers is not imported here.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")
