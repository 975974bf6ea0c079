"""The queue's table: leases, attempts and fences.

A worker owns a job while its lease lasts. Every write about a running job is fenced on (lease owner, attempt), so
that a worker that was thought dead can change nothing after another took over.
"""

from dataclasses import asdict
from typing import Any

from sqlalchemy import CursorResult, Update, or_, select, update
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import DuplicateName, LeaseLost, RecordNotFound
from storage.records import AdapterRecord, EventRecord, JobRecord
from storage.repositories import to_record
from storage.tables import AdapterRow, EventRow, JobRow

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
OPEN = (QUEUED, RUNNING)


class Jobs:
    """Jobs, their events, and the moves between their states."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, *records: JobRecord) -> None:
        """Put jobs at the end of the queue, all of them or none."""
        with self.database.write() as session:
            session.add_all(JobRow(**asdict(record)) for record in records)

    def get(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            RecordNotFound: there is none with this id.
        """
        with self.database.read() as session:
            row = session.get(JobRow, job_id)
            if row is None:
                raise RecordNotFound("job", job_id)
            return to_record(JobRecord, row)

    def all(self, states: tuple[str, ...] = (), limit: int | None = 200) -> list[JobRecord]:
        """The newest jobs first, of these states or of all; `limit` None gives every one."""
        query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id).limit(limit)
        if states:
            query = query.where(JobRow.state.in_(states))
        with self.database.read() as session:
            return [to_record(JobRecord, row) for row in session.scalars(query)]

    def of_group(self, group: str) -> list[JobRecord]:
        """The jobs that were submitted together, oldest first."""
        query = select(JobRow).where(JobRow.group == group).order_by(JobRow.created_at, JobRow.id)
        with self.database.read() as session:
            return [to_record(JobRecord, row) for row in session.scalars(query)]

    def claim(self, owner: str, now: float, lease_s: float) -> JobRecord | None:
        """Take the oldest queued job under a lease, or None where the queue is empty. One statement, so no two win."""
        oldest = (
            select(JobRow.id)
            .where(JobRow.state == QUEUED)
            .order_by(JobRow.created_at, JobRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        move = (
            update(JobRow)
            .where(JobRow.id == oldest, JobRow.state == QUEUED)
            .values(
                state=RUNNING,
                attempt=JobRow.attempt + 1,
                lease_owner=owner,
                lease_until=now + lease_s,
                started_at=now,
                progress={},
                reason="",
            )
            .returning(JobRow)
        )
        with self.database.write() as session:
            row = session.scalar(move)
            return None if row is None else to_record(JobRecord, row)

    def renew(self, job: JobRecord, now: float, lease_s: float) -> bool:
        """Extend the lease; returns whether somebody asked to cancel.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        with self.database.write() as session:
            wanted = session.scalar(_fenced(job).values(lease_until=now + lease_s).returning(JobRow.cancel_requested))
        if wanted is None:
            raise LeaseLost(job.id)
        return bool(wanted)

    def record(self, job: JobRecord, events: list[tuple[float, str, dict[str, Any]]], progress: dict[str, Any]) -> None:
        """Store events of the running attempt, and the newest progress.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        with self.database.write() as session:
            if _changed(session.execute(_fenced(job).values(progress=progress))) == 0:
                raise LeaseLost(job.id)
            session.add_all(EventRow(job_id=job.id, attempt=job.attempt, at=at, kind=kind, data=data) for at, kind, data in events)

    def finish(self, job: JobRecord, adapter: AdapterRecord, result: dict[str, Any], now: float) -> None:
        """End the job as done and make its adapter appear, in one transaction.

        Raises:
            LeaseLost: the job is another worker's now. DuplicateName: the adapter's name was taken meanwhile.
        """
        try:
            with self.database.write() as session:
                done = _fenced(job).values(state=DONE, result=result, finished_at=now, lease_owner="")
                if _changed(session.execute(done)) == 0:
                    raise LeaseLost(job.id)
                session.add(AdapterRow(**asdict(adapter)))
        except IntegrityError:
            raise DuplicateName(adapter.name) from None

    def end(self, job: JobRecord, state: str, reason: str, now: float) -> None:
        """End the running attempt as failed or cancelled, or put the job back as queued.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        finished_at = None if state == QUEUED else now
        values = {"state": state, "reason": reason, "finished_at": finished_at, "lease_owner": "", "lease_until": 0.0}
        with self.database.write() as session:
            if _changed(session.execute(_fenced(job).values(values))) == 0:
                raise LeaseLost(job.id)

    def request_cancel(self, job_id: str, now: float) -> JobRecord:
        """Cancel a queued job at once; ask the worker of a running one. Other states stay as they are."""
        with self.database.write() as session:
            # Held from here on: between the two updates a worker could put a running job back into the queue.
            session.execute(select(JobRow.id).where(JobRow.id == job_id).with_for_update())
            at_once = update(JobRow).where(JobRow.id == job_id, JobRow.state == QUEUED)
            session.execute(at_once.values(state=CANCELLED, reason="Cancelled before it started.", finished_at=now))
            ask = update(JobRow).where(JobRow.id == job_id, JobRow.state == RUNNING)
            session.execute(ask.values(cancel_requested=True))
        return self.get(job_id)

    def retry(self, job_id: str, adapter_id: str, now: float) -> bool:
        """Queue a failed or cancelled job again, with a fresh adapter id; False where its state does not allow it."""
        move = update(JobRow).where(JobRow.id == job_id, JobRow.state.in_((FAILED, CANCELLED)))
        values = {
            "state": QUEUED,
            "adapter_id": adapter_id,
            "losses": 0,
            "cancel_requested": False,
            "reason": "",
            "progress": {},
            "finished_at": None,
            "created_at": now,
        }
        with self.database.write() as session:
            return _changed(session.execute(move.values(values))) == 1

    def requeue_lost(self, now: float, dead_owners: list[str], max_losses: int) -> list[JobRecord]:
        """Put back every running job whose lease ended or whose worker is known to be dead; fail those lost too often."""
        lost = or_(JobRow.lease_until < now, JobRow.lease_owner.in_(dead_owners))
        query = select(JobRow).where(JobRow.state == RUNNING, lost)
        with self.database.write() as session:
            rows = session.scalars(query.with_for_update(skip_locked=True)).all()
            for row in rows:
                _requeue(row, now, max_losses)
            session.flush()
            return [to_record(JobRecord, row) for row in rows]

    def running_owners(self) -> list[str]:
        """The workers that hold a lease."""
        with self.database.read() as session:
            return list(session.scalars(select(JobRow.lease_owner).where(JobRow.state == RUNNING).distinct()))

    def events(self, job_id: str, after: int = 0, kinds: tuple[str, ...] = ()) -> list[EventRecord]:
        """Events in order, after an id, of these kinds or of all."""
        query = select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after).order_by(EventRow.id)
        if kinds:
            query = query.where(EventRow.kind.in_(kinds))
        with self.database.read() as session:
            return [to_record(EventRecord, row) for row in session.scalars(query)]


def _fenced(job: JobRecord) -> Update:
    return update(JobRow).where(
        JobRow.id == job.id,
        JobRow.state == RUNNING,
        JobRow.lease_owner == job.lease_owner,
        JobRow.attempt == job.attempt,
    )


def _changed(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount


def _requeue(row: JobRow, now: float, max_losses: int) -> None:
    row.lease_owner, row.lease_until, row.losses = "", 0.0, row.losses + 1
    if row.cancel_requested:
        row.state, row.reason, row.finished_at = CANCELLED, "Cancelled while its worker was gone.", now
    elif row.losses >= max_losses:
        row.state, row.finished_at = FAILED, now
        row.reason = (
            f"The worker died {row.losses} times while it ran this job, most often for want of memory. "
            "Lower token_budget or max_length, or choose a smaller base, then retry."
        )
    else:
        row.state = QUEUED
        row.reason = f"The worker of attempt {row.attempt} died; the job is in the queue again."
