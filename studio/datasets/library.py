"""The library of datasets: add a file, list, show rows, remove. Rows lie in Arrow with a content hash."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from storage import files
from storage.errors import DuplicateName, RecordNotFound
from storage.records import DatasetRecord
from storage.repositories import Datasets
from studio.datasets.forms import Conversation, RowReader, choose_form, read_mapping
from studio.datasets.reading import read_rows
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput, NameTaken, NotFound, OutOfSpace
from studio.names import checked_name, listed

ROWS_FILE = "rows.arrow"
SAMPLES = Path(__file__).parent / "samples"
SAMPLE_NAMES = {
    "angry_bird": "Angry bird",
    "boy_wizard": "Boy wizard",
    "football_star": "Football star",
    "question_answering": "Question answering",
    "summarisation": "Summarisation",
}
BATCH_ROWS = 1000
MAX_ERRORS = 100
TRIED_ROWS = 1000


@dataclass(frozen=True)
class Parsed:
    """A file that passed every check."""

    form: str
    conversations: list[Conversation]


class DatasetLibrary:
    """Datasets under one folder, each in a folder named by its id.

    Args:
        records: the table. folder: where rows are kept. max_upload_bytes: larger files are refused unread.
    """

    def __init__(self, records: Datasets, folder: Path, max_upload_bytes: int) -> None:
        self.records, self.folder, self.max_upload_bytes = records, folder, max_upload_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, path: Path, name: str, form: str = "auto", mapping: list[str] | None = None, sample: bool = False) -> DatasetRecord:
        """Validate every row of a file and keep it under a name.

        Args:
            mapping: `ROLE=COLUMN` pairs for columns that are named otherwise.

        Raises:
            InvalidInput: a row or the file is wrong; nothing is kept. NameTaken. OutOfSpace.
        """
        name = checked_name("dataset", name)
        if self.records.find(name):
            raise NameTaken(f"There is already a dataset named {name!r}; choose another name or delete that one first.")
        parsed = parse(path, self.max_upload_bytes, form, read_mapping(mapping or []))
        dataset_id = files.new_id()
        target = self.folder / dataset_id
        try:
            with files.publish_folder(target) as partial:
                content_hash = write_arrow(partial / ROWS_FILE, parsed.conversations)
        except OSError as error:
            raise OutOfSpace(f"The dataset could not be written: {error.strerror or error}. Free some space and upload it again.") from None
        record = DatasetRecord(
            id=dataset_id,
            name=name,
            form=parsed.form,
            rows=len(parsed.conversations),
            turns=sum(len(c) for c in parsed.conversations),
            content_hash=content_hash,
            size_bytes=files.size_of(target),
            notes=[],
            sample=sample,
            created_at=time.time(),
        )
        try:
            return self.records.add(record)
        except DuplicateName:
            files.remove_folder(target)
            raise NameTaken(f"There is already a dataset named {name!r}; choose another name.") from None

    def add_samples(self) -> None:
        """Put the sample sets that ship with the studio into a fresh library, once in its life."""
        if self.records.is_flagged("samples"):
            return
        for stem, name in reversed(SAMPLE_NAMES.items()):
            with contextlib.suppress(NameTaken):  # an earlier start was killed in the middle, or another one adds them too
                self.add(SAMPLES / f"{stem}.jsonl", name, sample=True)
        self.records.first_time("samples", time.time())

    def all(self) -> list[DatasetRecord]:
        """All datasets, newest first."""
        return self.records.all()

    def get(self, name_or_id: str) -> DatasetRecord:
        """One dataset.

        Raises:
            NotFound: with the names that there are.
        """
        try:
            return self.records.get(name_or_id)
        except RecordNotFound:
            names = listed([record.name for record in self.all()])
            raise NotFound(f"There is no dataset named {name_or_id!r}; there are {names}.") from None

    def rows_path(self, record: DatasetRecord) -> Path:
        """The Arrow file of a dataset."""
        return self.folder / record.id / ROWS_FILE

    def preview(self, record: DatasetRecord, offset: int = 0, limit: int = 5) -> list[Conversation]:
        """Some conversations, without loading the others."""
        rows = open_arrow(self.rows_path(record))
        return [_plain(rows[i]["messages"]) for i in range(offset, min(offset + limit, len(rows)))]

    def longest(self, record: DatasetRecord, count: int) -> list[Conversation]:
        """The conversations with the most bytes of text, without reading the others into Python."""
        import numpy as np
        import pyarrow.compute as pc

        rows = open_arrow(self.rows_path(record))
        sizes = []
        for chunk in rows.data.column("messages").chunks:  # lists of turns; offsets say where each begins
            ends = np.concatenate(([0], np.cumsum(pc.binary_length(chunk.flatten().field("content")).to_numpy())))
            offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
            sizes.append(ends[offsets[1:]] - ends[offsets[:-1]])
        order = np.argsort(np.concatenate(sizes))[::-1][:count]
        return [_plain(rows[int(i)]["messages"]) for i in order]

    def remove(self, name_or_id: str) -> DatasetRecord:
        """Delete a dataset that no unfinished job needs.

        Raises:
            NotFound. InvalidInput: a queued or running job still reads it.
        """
        record = self.get(name_or_id)
        waiting = self.records.needed_by(record.id)
        if waiting:
            raise InvalidInput(f"The dataset {record.name!r} is needed by {waiting} unfinished job(s); cancel them first or wait.")
        self.records.remove(record.id)
        files.remove_folder(self.folder / record.id)
        return record


def parse(path: Path, max_bytes: int, form: str, mapping: dict[str, str]) -> Parsed:
    """Read and check a whole file.

    Raises:
        InvalidInput: names the first wrong line, its field and the mend, and says how many more there are.
    """
    rows, broken = _source_rows(path, max_bytes)
    if not rows and broken:
        raise InvalidInput(_sentence(path, broken))
    if not rows:
        raise InvalidInput(f"The file {path.name!r} has a header but no rows; add at least one example.")
    fit = choose_form([row.value for row in rows[:TRIED_ROWS]], form, mapping)
    read = RowReader(fit)
    conversations: list[Conversation] = []
    errors: list[RowError] = []
    for row in rows:
        try:
            conversations.append(read(row)[0])
        except RowError as error:
            errors.append(error)
            if len(errors) >= MAX_ERRORS:
                break
    else:
        errors += broken
    if errors:
        raise InvalidInput(_sentence(path, errors))
    return Parsed(fit.form, conversations)


def _source_rows(path: Path, max_bytes: int) -> tuple[list[SourceRow], list[RowError]]:
    """All rows up to where the text itself is broken, and the error there: nothing behind that line can be trusted."""
    rows: list[SourceRow] = []
    try:
        for row in read_rows(path, max_bytes):
            rows.append(row)
    except RowError as error:
        return rows, [error]
    return rows, []


def _sentence(path: Path, errors: list[RowError]) -> str:
    others = [str(error.line) for error in errors[1:]]
    more = ""
    if others:
        at_least = "at least " if len(errors) >= MAX_ERRORS else ""
        shown = ", ".join(others[:8]) + (", …" if len(others) > 8 else "")
        more = f" {at_least}{len(others)} more row(s) are wrong, on line(s) {shown}."
    return f"{path.name}, {errors[0]}.{more} Nothing was added."


def write_arrow(path: Path, conversations: list[Conversation]) -> str:
    """Write conversations as an Arrow stream; returns the SHA-256 of their canonical JSON, one row a line."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("messages", pa.list_(turn))])
    digest = hashlib.sha256()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for rows in _batches(conversations):
            for row in rows:
                digest.update(orjson.dumps(row) + b"\n")
            writer.write_batch(pa.record_batch([pa.array(rows, schema.field(0).type)], schema=schema))
    return digest.hexdigest()


def open_arrow(path: Path) -> Any:
    """A memory-mapped 🤗 `Dataset` with the column `messages`."""
    from datasets import Dataset

    return Dataset.from_file(str(path))


def _batches(rows: list[Conversation]) -> Iterator[list[Conversation]]:
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def _plain(messages: Any) -> Conversation:
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]
