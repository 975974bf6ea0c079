"""The library of datasets: add files, look into them, change them, export and remove them.

A version is a folder named by its id and is never changed: a change makes a new version, and a job keeps the one that
it was given.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import orjson

from storage import files
from storage.errors import DuplicateName, RecordNotFound
from storage.records import DatasetRecord
from storage.repositories import Datasets
from studio.datasets.errors import ErrorLog
from studio.datasets.forms import to_row
from studio.datasets.forms.conversation import TEXT
from studio.datasets.ingest import Counted, Ingested, Inspection, Options, ingest, inspect, uncounted
from studio.datasets.reading import Limits
from studio.datasets.store import ROWS_FILE, RowStore, RowWriter, StoredRow
from studio.errors import InvalidInput, NameTaken, NotFound, OutOfSpace
from studio.names import checked_name, file_stem, listed
from studio.quota import Room, unlimited

SAMPLES = Path(__file__).parent / "samples"
SAMPLE_NAMES = {
    "angry_bird": "Angry bird",
    "boy_wizard": "Boy wizard",
    "football_star": "Football star",
    "question_answering": "Question answering",
    "summarisation": "Summarisation",
}
ERRORS_FILE = "left-out.csv"
OPEN_STORES = 16
Made = TypeVar("Made")


class DatasetLibrary:
    """Datasets under one folder, each version in a folder named by its id.

    Args:
        records: the table. folder: where rows are kept. exports: where exported files go. limits: what an upload may hold.
        has_room: is asked before one is added, and before a file is written to the exports.
    """

    def __init__(self, records: Datasets, folder: Path, exports: Path, limits: Limits, has_room: Room = unlimited) -> None:
        self.records, self.folder, self.exports, self.limits = records, folder, exports, limits
        self._has_room = has_room
        folder.mkdir(parents=True, exist_ok=True)
        self._open = lru_cache(OPEN_STORES)(RowStore)

    def inspect(self, paths: Sequence[Path], options: Options | None = None) -> Inspection:
        """A first look at files, before anything is kept. Raises as `ingest.inspect` does."""
        return inspect(paths, options or Options(), self.limits)

    def add(
        self,
        paths: Sequence[Path],
        name: str,
        options: Options | None = None,
        sample: bool = False,
        source: str = "",
        notes: Sequence[str] = (),
        progress: Counted = uncounted,
    ) -> DatasetRecord:
        """Check every row of some files and keep them as one dataset.

        Args:
            source: where the files come from, where that is not this machine. notes: what is told beside what the files
                give reason to tell.

        Raises:
            BadRows: rows are wrong; nothing is kept. InvalidInput: a file is. NameTaken. OutOfSpace.
        """
        name = self._free_name(name)
        if not sample:  # these come with the studio, which must start on a full disk, too
            self._has_room("another dataset", sum(path.stat().st_size for path in paths if path.is_file()))

        def fill(folder: Path) -> Ingested:
            found = ingest(paths, options or Options(), self.limits, folder / ROWS_FILE, progress)
            if found.errors.total:
                (folder / ERRORS_FILE).write_text(found.errors.as_csv(), encoding="utf-8-sig")
            return found

        dataset_id = files.new_id()
        found = self._publish(dataset_id, fill)
        told = [*notes, *found.notices, *_left_out(found.errors)]
        return self._record(
            DatasetRecord(
                id=dataset_id,
                name=name,
                form=found.form,
                rows=found.rows,
                turns=found.turns,
                content_hash=found.content_hash,
                size_bytes=files.size_of(self.folder / dataset_id),
                notes=told,
                sample=sample,
                created_at=time.time(),
                made_by=source,
            )
        )

    def keep(self, rows: Iterable[StoredRow], parent: DatasetRecord, made_by: str, name: str = "", form: str = "") -> DatasetRecord:
        """Keep rows that were made from a dataset, as its next version or under a name of their own.

        Args:
            made_by: what was done to the parent, for people. name: empty for a version. form: empty for the parent's.

        Raises:
            InvalidInput: there are no rows. NameTaken. OutOfSpace.
        """
        if name:
            name = self._free_name(name)
        self._has_room("another dataset", 0)

        def fill(folder: Path) -> RowWriter:
            with RowWriter(folder / ROWS_FILE) as writer:
                for row in rows:
                    writer.add(*row)
            if not writer.rows:
                raise InvalidInput(f"No row of {parent.name!r} would be left; nothing was changed.")
            return writer

        dataset_id = files.new_id()
        written = self._publish(dataset_id, fill)
        return self._record(
            DatasetRecord(
                id=dataset_id,
                name=name or parent.name,
                form=form or parent.form,
                rows=written.rows,
                turns=written.turns,
                content_hash=written.content_hash,
                size_bytes=files.size_of(self.folder / dataset_id),
                notes=[],
                sample=False,
                created_at=time.time(),
                version=1 if name else self.versions(parent.name)[0].version + 1,
                parent_id=parent.id,
                made_by=made_by,
            )
        )

    def _free_name(self, name: str) -> str:
        name = checked_name("dataset", name)
        if self.records.versions(name):
            raise NameTaken(f"There is already a dataset named {name!r}; choose another name or delete that one first.")
        return name

    def _publish(self, dataset_id: str, fill: Callable[[Path], Made]) -> Made:
        try:
            with files.publish_folder(self.folder / dataset_id) as partial:
                return fill(partial)
        except OSError as error:
            raise OutOfSpace(f"The dataset could not be written: {error.strerror or error}. Free some space and try again.") from None

    def _record(self, record: DatasetRecord) -> DatasetRecord:
        try:
            return self.records.add(record)
        except DuplicateName:  # somebody was quicker
            files.remove_folder(self.folder / record.id)
            raise NameTaken(f"There is already a dataset named {record.name!r}; choose another name, or try again.") from None

    def add_samples(self) -> None:
        """Put the sample sets that ship with the studio into a fresh library, once in its life."""
        if self.records.is_flagged("samples"):
            return
        for stem, name in reversed(SAMPLE_NAMES.items()):
            with contextlib.suppress(NameTaken):  # an earlier start was killed in the middle, or another one adds them too
                self.add([SAMPLES / f"{stem}.jsonl"], name, sample=True)
        self.records.first_time("samples", time.time())

    def all(self) -> list[DatasetRecord]:
        """The newest version of every dataset, newest first."""
        return self.records.newest()

    def versions(self, name: str) -> list[DatasetRecord]:
        """All versions of a name, newest first."""
        return self.records.versions(name)

    def get(self, name_or_id: str) -> DatasetRecord:
        """The newest version of a name, or the version with an id, or `NAME@VERSION`.

        Raises:
            NotFound: with the names that there are.
        """
        name, at, number = name_or_id.rpartition("@")
        if at and number.isdecimal():
            found = next((record for record in self.versions(name) if record.version == int(number)), None)
            if found is not None:
                return found
        try:
            return self.records.get(name_or_id)
        except RecordNotFound:
            names = listed([record.name for record in self.all()])
            raise NotFound(f"There is no dataset named {name_or_id!r}; there are {names}.") from None

    def store(self, record: DatasetRecord) -> RowStore:
        """The rows of a version.

        Raises:
            NotFound: its file is gone, or is no Arrow.
        """
        try:
            return self._open(self.folder / record.id / ROWS_FILE)
        except (OSError, ValueError):  # pyarrow's errors are both
            raise NotFound(f"The rows of the dataset {record.name!r} are gone; delete it and add its files again.") from None

    def errors_path(self, record: DatasetRecord) -> Path | None:
        """The table of rows that were left out, or None where there were none."""
        path = self.folder / record.id / ERRORS_FILE
        return path if path.exists() else None

    def labels(self) -> dict[str, str]:
        """What each version is called, by its id: by its name while it is the newest, else NAME@VERSION."""
        newest = {record.id for record in self.all()}
        return {r.id: r.name if r.id in newest else f"{r.name}@{r.version}" for r in self.records.all()}

    def export_errors(self, errors: ErrorLog) -> Path:
        """Write the table of wrong rows as CSV, to be downloaded.

        Raises:
            OutOfSpace.
        """
        data = errors.as_csv().encode("utf-8-sig", "replace")
        return self._exported(f"wrong-rows-{sha256(data).hexdigest()[:8]}.csv", data)

    def export_left_out(self, record: DatasetRecord) -> Path:
        """The table of the rows that were left out of a version, to be downloaded.

        Raises:
            NotFound: none were left out. OutOfSpace.
        """
        path = self.errors_path(record)
        if path is None:
            raise NotFound(f"No row was left out of {record.name!r}.")
        return self._exported(f"{file_stem('dataset', record.name, record.id)}-left-out.csv", path.read_bytes())

    def _exported(self, name: str, data: bytes) -> Path:
        try:
            files.write_file(self.exports / name, data)
        except OSError as error:
            raise OutOfSpace(f"The table could not be written: {error.strerror or error}. Free some space and try again.") from None
        return self.exports / name

    def export(self, record: DatasetRecord, out: Path | None = None) -> Path:
        """Write a version as JSONL in OpenAI's form; uploaded again it has the same content hash.

        Args:
            out: the folder; None for the studio's own.

        Raises:
            OutOfSpace.
        """
        target = (out or self.exports) / f"{file_stem('dataset', record.name, record.id)}.jsonl"
        # Beside a conversation, which a mixture or an edit may have brought in, a passage is written as its one turn.
        if out is None:
            self._has_room("another export", record.size_bytes)
        passages = record.form == TEXT and self.store(record).has_passages_alone()
        try:
            with files.publish_file(target) as handle:
                for row in self.store(record):
                    handle.write(orjson.dumps(to_row(row.conversation, row.extra, passages)) + b"\n")
        except OSError as error:
            raise OutOfSpace(f"The dataset could not be exported: {error.strerror or error}. Free some space and try again.") from None
        return target

    def remove(self, name_or_id: str) -> DatasetRecord:
        """Delete what no unfinished job needs: all versions of a name, or one by its id or as `NAME@VERSION`.

        Returns:
            The newest of those that were deleted.

        Raises:
            NotFound. InvalidInput: a queued or running job still reads it.
        """
        records = self.versions(name_or_id) or [self.get(name_or_id)]
        for record in records:
            if waiting := self.records.needed_by(record.id):
                raise InvalidInput(f"The dataset {record.name!r} is needed by {waiting} unfinished job(s); cancel them first or wait.")
        for record in records:
            self.records.remove(record.id)
            files.remove_folder(self.folder / record.id)
        self._open.cache_clear()
        return records[0]


def _left_out(errors: ErrorLog) -> list[str]:
    if not errors.total:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in errors.kinds.most_common())
    return [f"{errors.total:,} wrong row(s) were left out: {kinds}."]
