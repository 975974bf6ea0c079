"""Bases, datasets, adapters, their pins and kept prompts: one small repository a record, each with the same few verbs.

Every method is one short transaction. Lookups by name or id are exact.
"""

from dataclasses import asdict, fields
from typing import Any, Generic, TypeVar

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import DuplicateName, RecordNotFound
from storage.records import AdapterRecord, BaseRecord, DatasetRecord, PromptRecord
from storage.states import OPEN
from storage.tables import AdapterRow, BaseRow, DatasetRow, FlagRow, JobRow, PinRow, PromptRow, Table

R = TypeVar("R")
Named = TypeVar("Named", BaseRecord, DatasetRecord, AdapterRecord, PromptRecord)


def to_record(record: type[R], row: Table) -> R:
    """Copy a row into its frozen record of the same field names."""
    return record(**{field.name: getattr(row, field.name) for field in fields(record)})  # type: ignore[arg-type]


class NamedRepository(Generic[Named]):
    """What bases, datasets, adapters and prompts share: they have an opaque id and a unique name."""

    kind: str
    row: type[BaseRow] | type[DatasetRow] | type[AdapterRow] | type[PromptRow]
    record: type[Named]

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, record: Named) -> Named:
        """Insert.

        Raises:
            DuplicateName: the name is taken.
        """
        try:
            with self.database.write() as session:
                session.add(self.row(**asdict(record)))
        except IntegrityError:
            raise DuplicateName(record.name) from None
        return record

    def find(self, name_or_id: str) -> Named | None:
        """The record with this name, else with this id, else None."""
        with self.database.read() as session:
            for column in (self.row.name, self.row.id):
                found = session.scalar(select(self.row).where(column == name_or_id))
                if found is not None:
                    return to_record(self.record, found)
        return None

    def get(self, name_or_id: str) -> Named:
        """Like `find`.

        Raises:
            RecordNotFound: there is none.
        """
        found = self.find(name_or_id)
        if found is None:
            raise RecordNotFound(self.kind, name_or_id)
        return found

    def all(self) -> list[Named]:
        """All records, newest first."""
        query = select(self.row).order_by(self.row.created_at.desc(), self.row.id)
        with self.database.read() as session:
            return [to_record(self.record, row) for row in session.scalars(query)]

    def rename(self, record_id: str, name: str) -> Named:
        """Change the label.

        Raises:
            DuplicateName: the name is taken. RecordNotFound: the record is gone.
        """
        try:
            self._update(record_id, {"name": name})
        except IntegrityError:
            raise DuplicateName(name) from None
        return self.get(record_id)

    def remove(self, record_id: str) -> None:
        """Delete the record, if it is there."""
        with self.database.write() as session:
            session.execute(delete(self.row).where(self.row.id == record_id))

    def _update(self, record_id: str, values: dict[str, Any]) -> None:
        with self.database.write() as session:
            session.execute(update(self.row).where(self.row.id == record_id).values(values))


class Bases(NamedRepository[BaseRecord]):
    """Base models in the file store."""

    kind, row, record = "base", BaseRow, BaseRecord


class Datasets(NamedRepository[DatasetRecord]):
    """Datasets in the library. A name stands for its newest version; an id for one version."""

    kind, row, record = "dataset", DatasetRow, DatasetRecord

    def find(self, name_or_id: str) -> DatasetRecord | None:
        """The newest version of this name, else the version with this id, else None."""
        versions = self.versions(name_or_id)
        return versions[0] if versions else super().find(name_or_id)

    def versions(self, name: str) -> list[DatasetRecord]:
        """All versions of a name, newest first."""
        query = select(DatasetRow).where(DatasetRow.name == name).order_by(DatasetRow.version.desc())
        with self.database.read() as session:
            return [to_record(DatasetRecord, row) for row in session.scalars(query)]

    def newest(self) -> list[DatasetRecord]:
        """The newest version of every name, newest first."""
        records, highest = self.all(), dict[str, int]()
        for record in records:
            highest[record.name] = max(record.version, highest.get(record.name, 0))
        return [record for record in records if record.version == highest[record.name]]

    def needed_by(self, dataset_id: str) -> int:
        """How many unfinished jobs will still read this dataset."""
        query = select(JobRow.id).where(JobRow.dataset_id == dataset_id, JobRow.state.in_(OPEN))
        with self.database.read() as session:
            return len(session.scalars(query).all())

    def is_flagged(self, flag: str) -> bool:
        """Whether `first_time` was called with this flag."""
        with self.database.read() as session:
            return session.get(FlagRow, flag) is not None

    def first_time(self, flag: str, now: float) -> bool:
        """True exactly once for each flag, in the life of the database."""
        try:
            with self.database.write() as session:
                session.add(FlagRow(name=flag, at=now))
        except IntegrityError:
            return False
        return True


class Adapters(NamedRepository[AdapterRecord]):
    """Finished adapters. They are inserted by `Jobs.finish`, in the transaction that ends their job."""

    kind, row, record = "adapter", AdapterRow, AdapterRecord


class Pins:
    """Adapters that the chat keeps ready. A pin goes with its adapter."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, adapter_id: str, now: float) -> None:
        """Pin an adapter; one that is pinned stays so.

        Raises:
            RecordNotFound: there is no such adapter.
        """
        try:
            with self.database.write() as session:
                if session.get(PinRow, adapter_id) is None:
                    session.add(PinRow(adapter_id=adapter_id, at=now))
        except IntegrityError:
            if adapter_id not in {record.id for record in self.all()}:  # else another program was quicker
                raise RecordNotFound("adapter", adapter_id) from None

    def remove(self, adapter_id: str) -> None:
        """Unpin an adapter, if it is pinned."""
        with self.database.write() as session:
            session.execute(delete(PinRow).where(PinRow.adapter_id == adapter_id))

    def all(self) -> list[AdapterRecord]:
        """Whatever is pinned, the first pin first."""
        query = select(AdapterRow).join(PinRow, PinRow.adapter_id == AdapterRow.id).order_by(PinRow.at, AdapterRow.id)
        with self.database.read() as session:
            return [to_record(AdapterRecord, row) for row in session.scalars(query)]


class Prompts(NamedRepository[PromptRecord]):
    """Messages that people keep to send them again."""

    kind, row, record = "prompt", PromptRow, PromptRecord
