"""What adapters do to their base, layer by layer, and how alike several are."""

import io
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage import files
from storage.records import AdapterRecord, BaseRecord
from studio.adapters.catalog import AdapterCatalog, check_base
from studio.bases.catalog import BaseCatalog
from studio.errors import BaseUnavailable, IncompatibleAdapter, InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

    from studio.adapters.merged import Tell
    from studio.lora.files import AdapterWeights
    from studio.lora.similarity import Alike
    from studio.lora.xray import LayerView

MOST = 12  # adapters in one comparison
COMPARED = ("method", "rank", "alpha", "rslora", "targets", "layers", "init", "quantization", "epochs", "learning_rate", "dropout", "seed")


@dataclass(frozen=True)
class XRay:
    """What an adapter does to its base: `views` by layer, and a plain `reading`. `norm` is ‖ΔW‖ over all layers, `relative` that over
    ‖W‖ of the layers that it acts on; both 0 for a prefix, which has no views."""

    record: AdapterRecord
    views: Mapping[str, "LayerView"]
    reading: str
    norm: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """Several adapters of one base. `differences` has the options and measured numbers in which they differ, a value for each adapter,
    None where it has none. `likeness` is by pairs of positions, the smaller first."""

    records: Sequence[AdapterRecord]
    differences: Mapping[str, list[Any]]
    likeness: Mapping[tuple[int, int], "Alike"]


class Inspector:
    """Looks at adapters of a catalog.

    Args:
        catalog: where they are. bases: those that they stand on.
    """

    def __init__(self, catalog: AdapterCatalog, bases: BaseCatalog) -> None:
        self.catalog, self.bases = catalog, bases

    def xray(self, name_or_id: str, tell: "Tell | None" = None) -> XRay:
        """Look at one adapter. The lengths of the base's rows are measured once for each form of it and kept beside the base.

        Raises:
            NotFound. BaseUnavailable. IncompatibleAdapter. Whatever `tell` raises.
        """
        record = self.catalog.get(name_or_id)
        with ThreadPoolExecutor(1) as thread:  # one that ends: see `Engine`
            return thread.submit(self._xray, record, tell).result()

    def compare(self, names: Sequence[str]) -> Comparison:
        """Compare two to twelve LoRAs or DoRAs of one base.

        Raises:
            NotFound. InvalidInput: too few or too many. IncompatibleAdapter: they stand on different bases, or one is a prefix.
        """
        records = [self.catalog.get(name) for name in names]
        if not 2 <= len(set(names)) == len(names) <= MOST:
            raise InvalidInput(f"Name two to {MOST} different adapters; there are {len(set(names))}.")
        for record in records:
            if record.base_fingerprint != records[0].base_fingerprint:
                raise IncompatibleAdapter(
                    f"The adapters {records[0].name!r} and {record.name!r} stand on different bases; compare those of one."
                )
            if record.kind == "prefix":
                raise IncompatibleAdapter(f"The adapter {record.name!r} is a prefix, which changes no weights; compare LoRAs and DoRAs.")
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._compare, records).result()

    def _xray(self, record: AdapterRecord, tell: "Tell | None") -> XRay:
        from studio.lora.xray import reading, xray

        adapter = self.catalog.read(record)
        if record.kind == "prefix":
            return XRay(
                record, {}, "A prefix changes no weights: it puts keys and values before the text, so there is no picture of layers.", 0, 0
            )
        base = self.bases.get(record.base_id)
        check_base(record, base)
        rows = self._rows(base, str(record.config.get("quantization", "")), adapter, tell)
        views = xray(adapter, rows)
        norm = sum(view.norm**2 for view in views.values()) ** 0.5
        whole = sum(float(rows[name].double().square().sum()) for name in views) ** 0.5
        return XRay(record, views, reading(views, adapter.rank), norm, norm / whole if whole else 0.0)

    def _rows(self, base: BaseRecord, form: str, adapter: "AdapterWeights", tell: "Tell | None") -> "dict[str, Tensor]":
        import torch

        folder = self.bases.path(base)
        kept = folder / f"row-lengths-{form or 'files'}-{base.fingerprint[:16]}.npz"
        rows = {name: torch.from_numpy(lengths) for name, lengths in (_read(kept) or _measure(folder, base.name, form, kept, tell)).items()}
        if missing := next((name for name in adapter.pairs if name not in rows), ""):
            raise BaseUnavailable(f"The files of the base {base.name!r} hold no weight of the layer {missing!r} of its own.")
        return rows

    def _compare(self, records: Sequence[AdapterRecord]) -> Comparison:
        from studio.lora.similarity import alike

        weights = [self.catalog.read(record) for record in records]
        pairs = itertools.combinations(range(len(records)), 2)
        return Comparison(records, differences(records), {(i, j): alike(weights[i], weights[j]) for i, j in pairs})


def differences(records: Sequence[AdapterRecord]) -> dict[str, list[Any]]:
    """The kinds, options and measured numbers in which adapters differ, with the value of each; None where it has none."""
    told: list[dict[str, Any]] = [
        {"kind": record.kind, "rank": record.rank, "dataset": record.dataset_hash[:12] or None} for record in records
    ]
    for values, record in zip(told, records, strict=True):
        values |= {key: record.config[key] for key in COMPARED if key in record.config and key != "rank"}
        values |= {key: value for key, value in record.metrics.items() if isinstance(value, int | float)}
    keys = dict.fromkeys(key for values in told for key in values)
    rows = {key: [values.get(key) for values in told] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _read(path: Path) -> dict[str, Any]:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, zipfile.BadZipFile):  # it is measured again
        return {}


def _measure(folder: Path, name: str, form: str, kept: Path, tell: "Tell | None") -> dict[str, Any]:
    """The lengths of the rows of every linear layer, (d_out,) each, by the layer's name."""
    import numpy as np

    from studio.bases.dense import DenseBase

    if not folder.is_dir():
        raise BaseUnavailable(f"The files of the base {name!r} are gone; fetch it again: python -m studio base fetch {name}.")
    base = DenseBase(folder, name, form)
    rows = {}
    for number, (key, layer) in enumerate(base.layers.items(), 1):
        rows[layer] = base.weight(key).float().norm(dim=1).numpy()
        if tell is not None:
            tell(number / len(base.layers), f"measuring {layer}")
    buffer = io.BytesIO()
    np.savez(buffer, **rows)
    files.write_file(kept, buffer.getvalue())
    return rows
