"""What an adapter's folder says of itself, so that it can be put back into the catalog."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.inventory import Inventory, Kept
from studio.training.run import LINEAGE_FILE

TOO_LARGE = 1 << 24


@dataclass(frozen=True)
class Lineage:
    """A complete adapter without a record, and the base that it stands on. `told` is what its folder says."""

    name: str
    base: Kept
    dataset_id: str
    job_id: str
    made_at: float
    told: dict[str, Any]


def read_lineage(folder: Path, inventory: Inventory) -> Lineage | None:
    """What is known of an adapter that no record names; None where its files are not complete, or no base fits it."""
    told = _told(folder / LINEAGE_FILE)
    if told is None or not all((folder / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors")):
        return None
    base = next((base for base in inventory.bases.values() if base.content == told.get("base_fingerprint")), None)
    if base is None:
        return None
    job = next((job for job in inventory.jobs.values() if job.adapter_id == folder.name), None)
    said = str(told.get("name") or (job.adapter_name if job else ""))
    dataset = next((d.id for d in inventory.datasets.values() if told.get("dataset_hash") and d.content == told["dataset_hash"]), "")
    made_at = (folder / LINEAGE_FILE).stat().st_mtime
    return Lineage(said or f"found {folder.name[:6]}", base, dataset, job.id if job else "", min(made_at, time.time()), told)


def _told(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > TOO_LARGE:
            return None
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) and isinstance(told.get("config"), dict) else None
