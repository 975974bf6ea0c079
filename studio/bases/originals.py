"""The weights of a base as its files hold them, one at a time, without loading the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from studio.errors import BaseUnavailable


def original_weights(folder: Path) -> Callable[[str], Any]:
    """A reader of a layer's weight by the layer's dotted name.

    Raises (the reader):
        BaseUnavailable: the files know no weight of that name, as where a model joins weights while it loads.
    """
    where = {key: path for path in sorted(folder.glob("*.safetensors")) for key in _keys(path)}

    def read(layer: str) -> Any:
        key = f"{layer}.weight"
        found = next((name for name in (key, key.partition(".")[2]) if name in where), None)  # files of the model without its head
        if found is None:
            raise BaseUnavailable(f"The base's files hold no weight named {key!r}, so init loftq cannot be used; choose kaiming or pissa.")
        with safe_open(str(where[found]), framework="pt") as file:
            return file.get_tensor(found)

    return read


def _keys(path: Path) -> list[str]:
    with safe_open(str(path), framework="pt") as file:
        return list(file.keys())
