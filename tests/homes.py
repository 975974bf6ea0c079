"""A home without weights: records, and folders of the shape that they name."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from storage.database import Database
from storage.jobs import Jobs
from storage.records import AdapterRecord
from storage.repositories import Adapters, Bases, Datasets
from tests.records import ADAPTER, BASE, DATASET, job
from tests.uploads import write_rows

ROWS = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}] for n in range(3)]
LINEAGE = {"name": "bird", "base_fingerprint": BASE.fingerprint, "dataset_hash": "", "config": {"rank": 8, "seed": 3}, "code_version": "1"}


def add_adapter(database: Database, home: Path, adapter_id: str, name: str) -> AdapterRecord:
    """An adapter with files and a record."""
    folder = home / "adapters" / adapter_id
    folder.mkdir(parents=True)
    contents = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": adapter_id.encode() * 5000}
    for file, data in contents.items():
        (folder / file).write_bytes(data)
    (folder / "studio.json").write_text(json.dumps({**LINEAGE, "name": name}))
    size = sum(path.stat().st_size for path in folder.iterdir())
    sha = hashlib.sha256(b"".join(contents.values())).hexdigest()
    return Adapters(database).add(replace(ADAPTER, id=adapter_id, name=name, sha256=sha, size_bytes=size, config={"rank": 8}))


def fill_home(home: Path, url: str = "") -> Database:
    """A base, a dataset, two adapters, a job that waits and one that runs with a checkpoint."""
    database = Database(url or f"sqlite:///{home / 'studio.db'}")
    Bases(database).add(BASE)
    (home / "bases" / "b1").mkdir(parents=True)
    (home / "bases" / "b1" / "config.json").write_text("{}")
    (home / "datasets" / "d1").mkdir(parents=True)
    content = write_rows(home / "datasets" / "d1" / "rows.arrow", ROWS)
    Datasets(database).add(replace(DATASET, content_hash=content))
    for adapter_id, name in (("a1", "bird"), ("a2", "gull")):
        add_adapter(database, home, adapter_id, name)
    jobs = Jobs(database)
    jobs.add(job(1, 1.0), job(2, 2.0))
    jobs.claim("somebody", 1.0, 5.0)
    checkpoint = home / "jobs" / "j1" / "checkpoints" / "step-000000007"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (home / "jobs" / "j1" / "checkpoints" / ".partial-step-000000008").mkdir()
    (home / "jobs" / "j1" / "log-1.txt").write_text("it began\n")
    (home / "jobs" / "j1" / "wish-1").write_text("pause")
    return database


def contents(home: Path) -> dict[str, bytes]:
    """Every file of datasets, adapters and jobs that a backup holds."""
    paths = [path for kind in ("datasets", "adapters", "jobs") for path in (home / kind).rglob("*") if path.is_file()]
    kept = [path for path in paths if not any(part.startswith((".", "wish")) for part in path.relative_to(home).parts)]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in kept}
