"""Linear layers that read one input as one product, with the weights in the form that decodes fastest.

Decoding one row or a few is bound by reading weights, so the CPU reads them as int8, one scale a row: against the weight in NF4 that
it stands for, an output errs by 0.9 %, a tenth of what NF4 itself errs by. More rows are bound by computing and want bf16, in the
blocks that oneDNN computes with: laid out once and not for each product: 12 ms instead of 19 for 8
rows of the starter base, 44 instead of 65 for 64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.lora.linear import dense_weight

# Up to so many rows int8 is the faster, by measurement on two cores with AVX512: than a bf16 copy, and than making one for the product.
FEW_ROWS, FEW_ROWS_WITHOUT = 3, 48


class Bf16Matrix:
    """A matrix that many products are made with, (d_out, d_in).

    Args:
        weight: bf16. On CPUs that compute in bf16 it is copied into oneDNN's own layout; elsewhere it stays as it is.
    """

    def __init__(self, weight: Tensor) -> None:
        has_onednn = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # not in every build
        self._is_blocked = has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._is_blocked else weight

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x Wᵀ + b` for x, (N, d_in), bf16."""
        if not self._is_blocked:
            return F.linear(x, self.weight, bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return y

    def plain(self) -> Tensor:
        """The matrix row by row."""
        return self.weight.to_dense() if self._is_blocked else self.weight


class DenseProduct:
    """`y = x Wᵀ + b` with the weights of all layers below each other.

    Args:
        layers: dense ones. Their own weights become views, so that nothing is held twice.
        blocked: hold a second copy, see `Bf16Matrix`.
    """

    def __init__(self, layers: list[nn.Module], blocked: bool = False) -> None:
        weights = [dense_weight(layer, layer.weight.dtype) for layer in layers]  # type: ignore[arg-type]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = _biases(layers)
        self._blocked = Bf16Matrix(self.weight) if blocked and self.weight.dtype == torch.bfloat16 else None
        at = 0
        for layer, weight in zip(layers, weights, strict=True):
            if isinstance(layer, nn.Linear) and len(layers) > 1:
                layer.weight = nn.Parameter(self.weight[at : at + len(weight)], requires_grad=False)
            at += len(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """x is (N, d_in); returns (N, Σ d_out)."""
        return F.linear(x, self.weight, self.bias) if self._blocked is None else self._blocked(x, self.bias)

    def tensors(self) -> list[Tensor]:
        """What it multiplies by."""
        return [self.weight if self._blocked is None else self._blocked.plain()]


class ModuleProduct:
    """The layers as they are, one after another: quantized ones that have a kernel of their own."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        """x is (N, d_in); returns (N, Σ d_out)."""
        outputs = [layer(x) for layer in self.layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def tensors(self) -> list[Tensor]:
        """What it multiplies by."""
        return [layer.weight for layer in self.layers]  # type: ignore[misc]


class PackedProduct:
    """int8 by row for few rows; for many a bf16 copy, or, without `keep_dense`, one that is made for the product.

    Args:
        layers: quantized or dense ones, readable. keep_dense: whether memory is spent on the copy.
    """

    def __init__(self, layers: list[nn.Module], keep_dense: bool) -> None:
        weight = torch.cat([dense_weight(layer) for layer in layers])
        largest = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        self.scales = (largest / 127).to(torch.bfloat16)
        self.weight = (weight / self.scales.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8)
        self.dense = Bf16Matrix(weight.to(torch.bfloat16)) if keep_dense else None
        self.bias = _biases(layers)

    def __call__(self, x: Tensor) -> Tensor:
        """x is (N, d_in), bf16; returns (N, Σ d_out)."""
        if x.shape[0] <= (FEW_ROWS_WITHOUT if self.dense is None else FEW_ROWS):
            y = torch._weight_int8pack_mm(x, self.weight, self.scales)
            return y if self.bias is None else y + self.bias
        if self.dense is not None:
            return self.dense(x, self.bias)
        return F.linear(x, self.weight.to(torch.bfloat16) * self.scales.unsqueeze(1), self.bias)

    def tensors(self) -> list[Tensor]:
        """What it multiplies by."""
        return [self.weight, self.scales] + ([] if self.dense is None else [self.dense.plain()])


Product = DenseProduct | ModuleProduct | PackedProduct


def _biases(layers: list[nn.Module]) -> Tensor | None:
    found = [getattr(layer, "bias", None) for layer in layers]
    if all(bias is None for bias in found):
        return None
    some = next(bias for bias in found if bias is not None)
    sizes = [int(layer.out_features) for layer in layers]  # type: ignore[arg-type]
    return torch.cat([some.new_zeros(size) if bias is None else bias.detach() for bias, size in zip(found, sizes, strict=True)])
