"""A base's weights read from its files one at a time, as dense numbers, in the form that they are held in for a training."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from studio.errors import BaseUnavailable

if TYPE_CHECKING:
    from torch import Tensor

STORED = ("F64", "F32", "F16", "BF16")


class DenseBase:
    """The tensors of a base; one of them is in memory at a time.

    Args:
        folder: where config.json and the safetensors are. name: what the base is called where it cannot be read. form: how the base is
            held, as `load_model` reads it; of linear layers, what that form makes of the numbers is given.

    Attributes:
        config: what config.json says. layers: the dotted names of linear layers by their keys in the files; the head is none.
        shapes: of all tensors of weights by key, as the files hold them.

    Raises:
        BaseUnavailable: files are missing or broken.
    """

    def __init__(self, folder: Path, name: str, form: str) -> None:
        from studio.bases.loading import empty_model
        from studio.lora.injection import linear_layers
        from studio.lora.linear import is_stored_transposed

        self.name, self.form = name, form
        found = linear_layers(empty_model(folder))
        self._turned = frozenset(layer for layer, module in found.items() if is_stored_transposed(module))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        try:
            self.config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.safetensors")):
                self._list(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise self._broken(error) from None
        if self.config.get("quantization_config"):
            raise BaseUnavailable(f"The files of the base {name!r} are quantized themselves; fetch the base that they were made of.")
        self.layers = {key: layer for layer in found if (key := self._key(f"{layer}.weight"))}

    def read(self, key: str) -> "Tensor":
        """One tensor, in its shape and, but for quantized layers, in its dtype in the file. Raises as the class does."""
        from studio.lora.merging import through_quantization

        try:
            with safe_open(str(self._files[key]), framework="pt") as file:
                tensor: Tensor = file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise self._broken(error) from None
        if key not in self.layers:
            return tensor
        if self.layers[key] in self._turned:
            return through_quantization(tensor.T, self.form).T
        return through_quantization(tensor, self.form)

    def weight(self, key: str) -> "Tensor":
        """W of a linear layer by its key, (d_out, d_in), however the file holds it. Raises as the class does."""
        tensor = self.read(key)
        return tensor.T if self.is_turned(key) else tensor

    def size(self, key: str) -> int:
        """How many numbers a tensor has."""
        return math.prod(self.shapes[key])

    def is_turned(self, key: str) -> bool:
        """Whether the file holds W of this layer as (d_in, d_out)."""
        return self.layers.get(key, "") in self._turned

    def _list(self, path: Path) -> None:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                part = file.get_slice(key)
                if part.get_dtype() in STORED:  # whole numbers are masks and positions that old files hold; no model needs them
                    self.shapes[key], self._files[key] = tuple(part.get_shape()), path

    def _key(self, name: str) -> str:
        """The key of a weight: files of a model without its head lack the first part of the name."""
        return next((key for key in (name, name.partition(".")[2]) if key in self.shapes), "")

    def _broken(self, error: Exception) -> BaseUnavailable:
        return BaseUnavailable(f"The files of the base {self.name!r} cannot be read: {error}. Mend its files and fetch it again.")
