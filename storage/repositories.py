"""Bases, datasets, adapters, their pins and kept prompts: one small repository a record, each with the same few verbs.

Every method is one short transaction. Lookups by name or id are exact.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Generic, TypeVar

from sqlalchemy import and_, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.database import Database
from storage.errors import DuplicateName, RecordNotFound
from storage.records import AdapterRecord, BaseRecord, DatasetRecord, PromptRecord
from storage.shelf import AT_ONCE, shelve
from storage.states import OPEN
from storage.tables import AdapterRow, BaseRow, DatasetRow, FlagRow, JobRow, PinRow, PromptRow, Table
from storage.versions import family, make_room, next_version

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

    def rename(self, record_id: str, name: str) -> DatasetRecord:
        """Change the label; adapters that learned from it are found by the new one. Raises as the general one does."""
        renamed = super().rename(record_id, name)
        with self.database.read() as session:
            ids = list(session.scalars(select(AdapterRow.id).where(AdapterRow.dataset_id == record_id)))
        for start in range(0, len(ids), AT_ONCE):  # others write in between
            with self.database.write() as session:
                shelve(session, ids[start : start + AT_ONCE])
        return renamed

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
    """Finished adapters. Those that were trained are inserted by `Jobs.finish`, in the transaction that ends their job.

    A name stands for the current one of its versions, an id for one version. Every change of an adapter changes the index that it
    is found by, in the same transaction.
    """

    kind, row, record = "adapter", AdapterRow, AdapterRecord

    def add(self, record: AdapterRecord) -> AdapterRecord:
        """Insert.

        Raises:
            DuplicateName: the name is taken.
        """
        try:
            with self.database.write() as session:
                session.add(AdapterRow(**asdict(record)))
                shelve(session, [record.id])
        except IntegrityError:
            raise DuplicateName(record.name) from None
        return record

    def add_version(self, record: AdapterRecord, of: str, current: bool = True) -> AdapterRecord:
        """Insert as the next version of a name.

        Args:
            record: its own name, version and current do not matter. of: id of one of the versions that there are. current: the name
                stands for the new one from now on.

        Raises:
            RecordNotFound: that one is gone.
        """
        with self.database.write() as session:
            place, others = make_room(session, of, current)
            added = replace(record, **place)
            session.add(AdapterRow(**asdict(added)))
            shelve(session, [added.id, *others])
        return added

    def with_content(self, sha256: str) -> list[AdapterRecord]:
        """All adapters of this content, the newest first."""
        query = select(AdapterRow).where(AdapterRow.sha256 == sha256).order_by(AdapterRow.created_at.desc(), AdapterRow.id)
        with self.database.read() as session:
            return [to_record(AdapterRecord, row) for row in session.scalars(query)]

    def find(self, name_or_id: str) -> AdapterRecord | None:
        """The current version of this name, else the version with this id, else None."""
        with self.database.read() as session:
            for condition in (and_(AdapterRow.name == name_or_id, AdapterRow.current), AdapterRow.id == name_or_id):
                found = session.scalar(select(AdapterRow).where(condition))
                if found is not None:
                    return to_record(AdapterRecord, found)
        return None

    def versions(self, name: str) -> list[AdapterRecord]:
        """All versions of a name, newest first."""
        query = select(AdapterRow).where(AdapterRow.name == name).order_by(AdapterRow.version.desc())
        with self.database.read() as session:
            return [to_record(AdapterRecord, row) for row in session.scalars(query)]

    def names(self, most: int | None = None) -> list[str]:
        """Names that are taken, the newest first."""
        query = select(AdapterRow.name).where(AdapterRow.current).order_by(AdapterRow.created_at.desc(), AdapterRow.id)
        with self.database.read() as session:
            return list(session.scalars(query.limit(most)))

    def learned_from(self, dataset_ids: Sequence[str]) -> dict[str, list[str]]:
        """Names of the adapters that learned from each of these versions, newest first."""
        query = select(AdapterRow.dataset_id, AdapterRow.name).where(AdapterRow.dataset_id.in_(dataset_ids))
        names: dict[str, list[str]] = {dataset_id: [] for dataset_id in dataset_ids}
        with self.database.read() as session:
            for dataset_id, name in session.execute(query.order_by(AdapterRow.created_at.desc(), AdapterRow.id)):
                names[dataset_id].append(name)
        return names

    def ids(self) -> set[str]:
        """The ids of all of them, of all versions, archived or not."""
        with self.database.read() as session:
            return set(session.scalars(select(AdapterRow.id)))

    def change(self, adapter_id: str, **values: Any) -> AdapterRecord:
        """Set some of its fields.

        Raises:
            RecordNotFound: it is gone.
        """
        with self.database.write() as session:
            session.execute(update(AdapterRow).where(AdapterRow.id == adapter_id).values(values))
            shelve(session, [adapter_id])
        return self.get(adapter_id)

    def rename(self, record_id: str, name: str) -> AdapterRecord:
        """Change the label, of all its versions.

        Raises:
            DuplicateName: the name is taken. RecordNotFound: the record is gone.
        """
        try:
            with self.database.write() as session:
                rows = family(session, record_id)
                if any(row.name != name for row in rows):
                    session.execute(update(AdapterRow).where(AdapterRow.name == rows[0].name).values(name=name))
                    shelve(session, [row.id for row in rows])
        except IntegrityError:
            raise DuplicateName(name) from None
        return self.get(record_id)

    def follow(self, record_id: str, name: str) -> AdapterRecord:
        """Make it the next version of a name, and the current one.

        Raises:
            RecordNotFound: it is gone, or nothing has the name.
        """
        with self.database.write() as session:
            moved = family(session, record_id)
            head = session.scalar(select(AdapterRow.id).where(AdapterRow.name == name).limit(1))
            if head is None:
                raise RecordNotFound("adapter", name)
            others = [row for row in family(session, head) if row.id != record_id]
            if others:
                session.execute(update(AdapterRow).where(AdapterRow.name == name).values(current=False))
                place = {"name": name, "version": next_version(session, name), "current": True}
                session.execute(update(AdapterRow).where(AdapterRow.id == record_id).values(place))
                left = [] if head in {row.id for row in moved} else [row.id for row in moved if row.id != record_id]
                _keep_one_current(session, left)
                shelve(session, {record_id, *left, *(row.id for row in others)})
        return self.get(record_id)

    def make_current(self, record_id: str) -> AdapterRecord:
        """Let its name stand for this version.

        Raises:
            RecordNotFound: it is gone.
        """
        with self.database.write() as session:
            rows = family(session, record_id)
            session.execute(update(AdapterRow).where(AdapterRow.name == rows[0].name).values(current=False))
            session.execute(update(AdapterRow).where(AdapterRow.id == record_id).values(current=True))
            shelve(session, [row.id for row in rows])
        return self.get(record_id)

    def remove(self, record_id: str) -> None:
        """Delete it, if it is there; its name then stands for the newest version that is left."""
        with self.database.write() as session:
            name = session.scalar(select(AdapterRow.name).where(AdapterRow.id == record_id))
            session.execute(delete(AdapterRow).where(AdapterRow.id == record_id))
            left = list(session.scalars(select(AdapterRow.id).where(AdapterRow.name == name)))
            _keep_one_current(session, left)
            shelve(session, left)


def _keep_one_current(session: Session, ids: list[str]) -> None:
    """Make the newest of these versions of a name current, where none is."""
    versions = select(AdapterRow.id, AdapterRow.current).where(AdapterRow.id.in_(ids)).order_by(AdapterRow.version.desc())
    found = session.execute(versions).all()
    if found and not any(current for _, current in found):
        session.execute(update(AdapterRow).where(AdapterRow.id == found[0][0]).values(current=True))


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
