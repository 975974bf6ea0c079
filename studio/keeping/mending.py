"""What a check found, mended: nothing is deleted but half-written files.

What cannot stay where it is goes into `lost/`, with its record.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from storage import files
from storage.database import Database
from storage.dump import snapshot
from storage.errors import DuplicateName, RecordNotFound
from storage.inventory import mend_dangling, read_inventory
from storage.records import AdapterRecord
from storage.repositories import Adapters, Datasets
from storage.soundness import BrokenRow, rebuild_index, take_rows
from studio.errors import StudioError
from studio.keeping.checking import adapter_hash
from studio.keeping.findings import ASIDE, DROP, JOIN, REINDEX, RELIST, SWEEP, Finding
from studio.keeping.lineage import Lineage, read_lineage

LOST, RECORD = "lost", "record.json"


class CannotMend(StudioError):
    """One finding could not be mended; the sentence says why."""


class Mender:
    """Mends what a check of the same home found.

    Args:
        database, home: of the studio.
    """

    def __init__(self, database: Database, home: Path) -> None:
        self._database, self._home = database, home
        self._adapters, self._datasets = Adapters(database), Datasets(database)
        self._mends: dict[str, Callable[[Finding], str]] = {
            RELIST: self._relist,
            ASIDE: self._put_aside,
            DROP: self._drop,
            REINDEX: self._reindex,
            SWEEP: self._sweep,
            JOIN: self._join,
        }

    def mend(self, findings: Iterable[Finding]) -> list[str]:
        """Do what is offered for each; returns a sentence on each. One that fails says why, and the others go on."""
        return [self._one(finding) for finding in findings if finding.can_be_mended]

    def _one(self, finding: Finding) -> str:
        try:
            return self._mends[finding.mend](finding)
        except StudioError as error:
            return str(error)
        except OSError as error:
            return f"{finding.where} could not be mended: {error.strerror or error}."

    def _relist(self, finding: Finding) -> str:
        folder = self._home / finding.where
        with snapshot(self._database) as connection:
            lineage = read_lineage(folder, read_inventory(connection))
        if lineage is None or finding.id in self._adapters.ids():
            raise CannotMend(f"{finding.where} is listed by now, or not complete any more; check again.")
        for number in range(1, 100):
            name = lineage.name if number == 1 else f"{lineage.name} {number}"
            try:
                record = self._adapters.add(_record(folder, lineage, name))
                return f"The adapter {record.name!r} is in the catalog again."
            except DuplicateName:
                continue
        raise CannotMend(f"Every name like {lineage.name!r} is taken; rename those adapters first.")

    def _put_aside(self, finding: Finding) -> str:
        if finding.kind == "changed":
            return self._drop(finding)
        place = self._lost(finding.where)
        (self._home / finding.where).rename(place)
        return f"{finding.where} was moved to {place.relative_to(self._home)}."

    def _drop(self, finding: Finding) -> str:
        """Take a record out of its list, and keep it with what is left of its files."""
        if finding.subject == "row":
            return self._take_row(finding)
        records = self._adapters if finding.subject == "adapter" else self._datasets
        try:
            record = records.get(finding.id)
        except RecordNotFound:
            raise CannotMend(f"The {finding.subject} {finding.name!r} is gone by now.") from None
        if finding.subject == "dataset" and (waiting := self._datasets.needed_by(finding.id)):
            raise CannotMend(f"The dataset {finding.name!r} is needed by {waiting} unfinished job(s); cancel them first, then mend it.")
        place = self._lost(finding.where)
        with files.publish_folder(place) as partial:
            (partial / RECORD).write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        records.remove(finding.id)
        folder = self._home / finding.where
        if folder.is_dir():
            folder.rename(place / "files")
        return f"The {finding.subject} {finding.name!r} is not listed any more; what was left of it is in {place.relative_to(self._home)}."

    def _take_row(self, finding: Finding) -> str:
        table, rowid, parent = finding.id.split(":")
        taken = take_rows(self._database, [BrokenRow(table, int(rowid), parent)])
        place = self._lost(f"rows/{table}-{rowid}")
        with files.publish_folder(place) as partial:
            (partial / RECORD).write_text(json.dumps(taken, indent=1, default=str), encoding="utf-8")
        return f"A row of {table!r} was moved to {place.relative_to(self._home)}."

    def _reindex(self, _finding: Finding) -> str:
        return f"The index was written anew, with {rebuild_index(self._database):,} adapters."

    def _sweep(self, finding: Finding) -> str:
        path = self._home / finding.where
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return f"{finding.where} was removed."

    def _join(self, finding: Finding) -> str:
        mend_dangling(self._database, finding.subject, [finding.id])
        return f"The {finding.subject} {finding.name!r} was joined to what is there."

    def _lost(self, where: str) -> Path:
        """A new place for something, named by what it was and when."""
        parent = self._home / LOST
        parent.mkdir(exist_ok=True)
        day = time.strftime("%Y%m%d-%H%M%S")
        return parent / f"{where.replace('/', '-')}-{day}-{files.new_id()[:4]}"


def _record(folder: Path, lineage: Lineage, name: str) -> AdapterRecord:
    told, config = lineage.told, lineage.told["config"]
    parents = told.get("parents")
    return AdapterRecord(
        id=folder.name,
        name=name,
        sha256=adapter_hash(folder),
        base_id=lineage.base.id,
        base_fingerprint=lineage.base.content,
        dataset_id=lineage.dataset_id,
        dataset_hash=str(told.get("dataset_hash", "")),
        job_id=lineage.job_id,
        rank=_rank(folder, config),
        size_bytes=files.size_of(folder),
        config=config,
        metrics=told["metrics"] if isinstance(told.get("metrics"), dict) else {},
        code_version=str(told.get("code_version", ""))[:40],
        seed=int(config.get("seed", 0)),
        created_at=lineage.made_at,
        kind=str(config.get("method", "lora")),
        origin=str(told.get("origin", "training")),
        source=str(told.get("source", "")),
        parents=parents if isinstance(parents, list) else [],
    )


def _rank(folder: Path, config: dict[str, object]) -> int:
    """As the lineage says it, or else PEFT's file."""
    said = config.get("rank")
    if isinstance(said, int):
        return said
    stored = json.loads((folder / "adapter_config.json").read_bytes())
    return int(stored.get("r") or stored.get("num_virtual_tokens") or 0)
