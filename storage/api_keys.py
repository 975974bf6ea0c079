"""Keys of the HTTP API. A key itself is never written, only its SHA-256 and its first characters."""

from dataclasses import asdict

from sqlalchemy import exists, select, update

from storage.database import Database
from storage.errors import RecordNotFound
from storage.records import ApiKeyRecord
from storage.repositories import to_record
from storage.tables import ApiKeyRow


class ApiKeys:
    """The table of keys. A revoked key stays, so that it is known that keys are needed."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, record: ApiKeyRecord) -> ApiKeyRecord:
        """Insert."""
        with self.database.write() as session:
            session.add(ApiKeyRow(**asdict(record)))
        return record

    def get(self, key_id: str) -> ApiKeyRecord:
        """One key.

        Raises:
            RecordNotFound: there is none with this id.
        """
        with self.database.read() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                raise RecordNotFound("key", key_id)
            return to_record(ApiKeyRecord, row)

    def all(self) -> list[ApiKeyRecord]:
        """All keys, revoked ones too, newest first."""
        with self.database.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id))
            return [to_record(ApiKeyRecord, row) for row in rows]

    def starting(self, start: str) -> list[ApiKeyRecord]:
        """Keys that can be used and begin so."""
        query = select(ApiKeyRow).where(ApiKeyRow.start == start, ApiKeyRow.revoked_at.is_(None))
        with self.database.read() as session:
            return [to_record(ApiKeyRecord, row) for row in session.scalars(query)]

    def is_empty(self) -> bool:
        """Whether no key was ever made."""
        with self.database.read() as session:
            return not session.scalar(select(exists().select_from(ApiKeyRow)))

    def used(self, key_id: str, now: float) -> None:
        """Write down that a key was used."""
        self._update(key_id, last_used_at=now)

    def revoke(self, key_id: str, now: float) -> ApiKeyRecord:
        """From now on the key is worth nothing; one that was revoked before stays as it is.

        Raises:
            RecordNotFound: there is none with this id.
        """
        if self.get(key_id).revoked_at is None:
            self._update(key_id, revoked_at=now)
        return self.get(key_id)

    def _update(self, key_id: str, **values: float) -> None:
        with self.database.write() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(values))
