"""The outbox: what is to be told to a webhook, written with the change that it tells of, and taken by one teller at a time.

A taken entry is due again once its lease ends, so that a teller that died loses none. What a teller says of an entry is
fenced on (owner, tries): one that was thought dead changes nothing.
"""

from datetime import UTC, datetime
from secrets import token_hex
from time import time
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, literal_column, select, update
from sqlalchemy.orm import Session

from storage.database import Database
from storage.records import NotificationRecord
from storage.states import CANCELLED, DONE, FAILED, PAUSED
from storage.tables import IS_UNTOLD, BaseRow, JobRow, NotificationRow

TOLD = (DONE, FAILED, CANCELLED, PAUSED)
OPEN, SENT, GIVEN_UP = "open", "sent", "given_up"


def announce(session: Session, job_id: str, now: float | None = None) -> None:
    """Write what a job has come to into the outbox, where it is over or paused, as a part of the caller's transaction."""
    session.flush()
    job = session.get_one(JobRow, job_id, populate_existing=True)
    if job.state not in TOLD:
        return
    at, event = time() if now is None else now, f"job.{job.state}"
    base = session.scalar(select(BaseRow.name).where(BaseRow.id == job.base_id))
    id_ = token_hex(16)
    body = {"id": id_, "event": event, "at": datetime.fromtimestamp(at, UTC).isoformat(), "job": _told(job, base or "")}
    session.add(NotificationRow(id=id_, job_id=job_id, event=event, body=body, state=OPEN, created_at=at, due_at=at))


class Outbox:
    """Entries of the outbox, for those who tell them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def take(self, owner: str, now: float, lease_s: float) -> NotificationRecord | None:
        """Take the entry that has been due for longest, for `lease_s` seconds; None where none is due.

        One statement finds and takes it, so no two tellers win.
        """
        due = select(NotificationRow.id).where(literal_column(IS_UNTOLD), NotificationRow.due_at <= now)
        first = due.order_by(NotificationRow.due_at, NotificationRow.id).limit(1)
        with self.database.read() as session:
            if session.scalar(first) is None:  # the usual case needs no writer
                return None
        taken = {"lease_owner": owner, "due_at": now + lease_s, "tries": NotificationRow.tries + 1}
        wanted = first.with_for_update(skip_locked=True).scalar_subquery()
        with self.database.write() as session:
            row = session.scalar(update(NotificationRow).where(NotificationRow.id == wanted).values(taken).returning(NotificationRow))
            return None if row is None else _to_record(row)

    def sent(self, entry: NotificationRecord, now: float) -> bool:
        """The webhook took it; False where another teller has the entry now."""
        return self._say(entry, state=SENT, ended_at=now, error="")

    def put_off(self, entry: NotificationRecord, until: float, error: str) -> bool:
        """It is tried again; False as for `sent`."""
        return self._say(entry, due_at=until, error=error)

    def give_up(self, entry: NotificationRecord, error: str, now: float) -> bool:
        """It is not tried again; False as for `sent`."""
        return self._say(entry, state=GIVEN_UP, ended_at=now, error=error)

    def all(self, limit: int = 50) -> list[NotificationRecord]:
        """The newest entries first."""
        query = select(NotificationRow).order_by(NotificationRow.created_at.desc(), NotificationRow.id).limit(limit)
        with self.database.read() as session:
            return [_to_record(row) for row in session.scalars(query)]

    def counts(self) -> dict[str, int]:
        """How many entries are in each state."""
        with self.database.read() as session:
            rows = session.execute(select(NotificationRow.state, func.count()).group_by(NotificationRow.state)).all()
        return {str(state): int(count) for state, count in rows}

    def prune(self, before: float) -> int:
        """Remove the entries that were sent or given up before this time, and say how many; whoever is still to be told stays."""
        row = NotificationRow
        old = and_(row.created_at < before, row.ended_at < before, row.state != OPEN)  # the first of them has an index
        with self.database.read() as session:
            if session.scalar(select(row.id).where(old).limit(1)) is None:  # the usual case needs no writer
                return 0
        with self.database.write() as session:
            return len(session.scalars(delete(row).where(old).returning(row.id)).all())

    def _say(self, entry: NotificationRecord, **values: Any) -> bool:
        with self.database.write() as session:
            said = update(NotificationRow).where(_fence(entry)).values(**values, lease_owner="").returning(NotificationRow.id)
            return session.scalar(said) is not None


def _fence(entry: NotificationRecord) -> ColumnElement[bool]:
    row = NotificationRow
    return and_(row.id == entry.id, row.state == OPEN, row.lease_owner == entry.lease_owner, row.tries == entry.tries)


def _to_record(row: NotificationRow) -> NotificationRecord:
    return NotificationRecord(**{name: getattr(row, name) for name in NotificationRecord.__dataclass_fields__})


def _told(job: JobRow, base: str) -> dict[str, Any]:
    """What a webhook is told of a job."""
    return {
        "id": job.id,
        "adapter": job.adapter_name,
        "adapter_id": job.adapter_id if job.state == DONE else "",
        "state": job.state,
        "reason": job.reason,
        "cause": job.cause,
        "attempt": job.attempt,
        "base": base,
        "dataset": job.config.get("dataset_name", job.dataset_id),
        "group": job.group,
        "metrics": job.result,
    }
