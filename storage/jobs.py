"""The queue's table: order, leases, attempts and fences.

A worker owns a job while its lease lasts. Every write about a job that a worker holds is fenced on (lease owner, attempt),
so that a worker that was thought dead can change nothing after another took over. Every change of a state goes by the table
in `storage.states`: a move that is not in it changes nothing.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Select,
    Update,
    and_,
    case,
    exists,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import order
from storage import statements as sql
from storage.database import Database
from storage.errors import DuplicateName, LeaseLost, RecordNotFound
from storage.outbox import announce
from storage.records import AdapterRecord, AttemptRecord, EventRecord, JobRecord, LeaseRecord, QueueRecord
from storage.repositories import to_record
from storage.shelf import shelve
from storage.states import (
    ACTIVE,
    CANCELLED,
    CANCELLING,
    DONE,
    FAILED,
    LOST,
    PAUSED,
    PAUSING,
    QUEUED,
    READY,
    WAITING,
    sources,
)
from storage.tables import IS_HELD, IS_OVER, IS_READY, AdapterRow, AttemptRow, EventRow, JobRow, QueueRow
from storage.versions import make_room

Event = tuple[float, str, dict[str, Any]]


class Jobs:
    """Jobs, their attempts and events, and the moves between their states.

    Args:
        notifying: write what ends or is paused into the outbox, in the same transaction.
    """

    def __init__(self, database: Database, notifying: bool = False) -> None:
        self.database, self.notifying = database, notifying

    def add(self, *records: JobRecord) -> list[JobRecord]:
        """Put jobs into the queue at their positions, or at the end where they have none; all of them or none.

        Returns:
            The jobs with their positions.
        """
        with self.database.write() as session:
            placed = []
            end = order.end(session)
            for record in records:
                # Not the time alone: a clock that was set back would put what comes now before what waits.
                end = max(end, record.position or max(record.created_at, end + 1.0))
                placed.append(replace(record, position=record.position or end))
            session.add_all(JobRow(**asdict(record)) for record in placed)
        return placed

    # Reading

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

    def all(self, limit: int | None = 200) -> list[JobRecord]:
        """The newest jobs first; `limit` None gives every one."""
        return self._records(select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id).limit(limit))

    def held(self) -> list[JobRecord]:
        """What runs, the longest first, and what is paused."""
        return self._records(select(JobRow).where(order.of(IS_HELD)).order_by(JobRow.started_at, JobRow.id))

    def over(self, limit: int, before: float | None = None) -> list[JobRecord]:
        """What ended last first; with `before`, what ended before this time."""
        query = select(JobRow).where(order.of(IS_OVER)).order_by(JobRow.finished_at.desc(), JobRow.id).limit(limit)
        return self._records(query if before is None else query.where(JobRow.finished_at < before))

    def ready(self, limit: int | None = 200) -> list[JobRecord]:
        """What no worker has taken yet, in the order of the queue."""
        return self._records(order.in_order(select(JobRow).where(order.of(IS_READY))).limit(limit))

    def of_group(self, group: str) -> list[JobRecord]:
        """The jobs that were submitted together, oldest first."""
        return self._records(select(JobRow).where(JobRow.group == group).order_by(JobRow.created_at, JobRow.id))

    def of(self, job_ids: Collection[str]) -> list[JobRecord]:
        """Those of these jobs that there are, the newest first."""
        return self._records(select(JobRow).where(JobRow.id.in_(job_ids)).order_by(JobRow.created_at.desc(), JobRow.id))

    def named(self, adapter_name: str, states: tuple[str, ...]) -> JobRecord | None:
        """A job in one of these states that makes an adapter of this name."""
        found = self._records(select(JobRow).where(JobRow.state.in_(states), JobRow.adapter_name == adapter_name).limit(1))
        return found[0] if found else None

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self.database.read() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
        return {str(state): int(count) for state, count in rows}

    def state(self, job: JobRecord) -> str:
        """The state of a job that a worker holds, which tells it what is wished.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        with self.database.read() as session:
            found = session.connection().scalar(sql.STATE, _held(job))
        if found is None:
            raise LeaseLost(job.id)
        return str(found)

    def attempts(self, job_id: str) -> list[AttemptRecord]:
        """Every time that a worker held the job, the first one first."""
        query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
        with self.database.read() as session:
            return [to_record(AttemptRecord, row) for row in session.scalars(query)]

    def events(self, job_id: str, after: int = 0, kinds: tuple[str, ...] = ()) -> list[EventRecord]:
        """Events in order, after an id, of these kinds or of all."""
        query = select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after).order_by(EventRow.id)
        if kinds:
            query = query.where(EventRow.kind.in_(kinds))
        with self.database.read() as session:
            return [to_record(EventRecord, row) for row in session.scalars(query)]

    def leases(self) -> list[LeaseRecord]:
        """What workers hold."""
        with self.database.read() as session:
            return [LeaseRecord(*row) for row in session.connection().execute(sql.LEASES)]

    def abandoned(self, adapter_ids: Collection[str]) -> list[str]:
        """Those adapters of jobs that failed or were cancelled which are no records."""
        recorded = exists().where(AdapterRow.id == JobRow.adapter_id)
        query = select(JobRow.adapter_id).where(JobRow.adapter_id.in_(adapter_ids), JobRow.state.in_((FAILED, CANCELLED)), ~recorded)
        with self.database.read() as session:
            return list(session.scalars(query))

    def done(self, job_ids: Collection[str]) -> list[str]:
        """Those of the jobs that are done."""
        with self.database.read() as session:
            return list(session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.state == DONE)))

    def _records(self, query: Select[Any]) -> list[JobRecord]:
        with self.database.read() as session:
            return [to_record(JobRecord, row) for row in session.scalars(query)]

    # What a worker does

    def head(self) -> JobRecord | None:
        """The job whose turn it is: the first in order that waits for no other; None also where the queue is held."""
        with self.database.read() as session:
            row = session.connection().execute(sql.HEAD).first()
        return _job(row) if row is not None else None

    def claim(self, owner: str, now: float, lease_s: float, job_id: str = "", device: str = "") -> JobRecord | None:
        """Take a job under a lease, the first in order where none is named; None where there is none to take.

        One statement finds and takes it, so no two workers win.
        """
        taken = {"owner": owner, "until": now + lease_s, "now": now, "on_device": device}
        with self.database.write() as session:
            connection = session.connection()
            row = connection.execute(sql.CLAIM if job_id else sql.CLAIM_FIRST, taken | ({"of_job": job_id} if job_id else {})).first()
            if row is None:
                return None
            job = _job(row)
            attempt = AttemptRecord(job.id, job.attempt, owner, device, now)
            connection.execute(sql.BEGIN_ATTEMPT, vars(attempt))
        return job

    def wait(self, job_id: str, reason: str) -> None:
        """Say why a job does not start though its turn has come; it stays first in order."""
        with self.database.write() as session:
            session.execute(_move(WAITING, JobRow.id == job_id).values(reason=reason))

    def run(self, job: JobRecord) -> None:
        """The job's process works. Where something was wished of it meanwhile, it stays in that state.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        with self.database.write() as session:
            connection = session.connection()
            connection.execute(sql.RUN, _held(job))
            if connection.scalar(sql.STATE, _held(job)) is None:
                raise LeaseLost(job.id)

    def renew(self, job: JobRecord, now: float, lease_s: float) -> None:
        """Extend the lease.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        with self.database.write() as session:
            _demand(session.connection().execute(sql.RENEW, _held(job) | {"until": now + lease_s}), job)

    def record(self, job: JobRecord, events: list[Event], progress: dict[str, Any]) -> None:
        """Store events of the attempt, and the newest progress.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        with self.database.write() as session:
            connection = session.connection()
            _demand(connection.execute(sql.RECORD, _held(job) | {"newest": progress}), job)
            rows = [{"job_id": job.id, "attempt": job.attempt, "at": at, "kind": kind, "data": data} for at, kind, data in events]
            if rows:
                connection.execute(sql.ADD_EVENT, rows)

    def finish(self, job: JobRecord, adapter: AdapterRecord, result: dict[str, Any], now: float) -> None:
        """End the job as done and make its adapter appear, in one transaction: under its name, or, where the job's configuration has a
        `version_of` that is still there, as the next version of that one's name.

        Raises:
            LeaseLost: the job is another worker's now. DuplicateName: the adapter's name was taken meanwhile.
        """
        try:
            with self.database.write() as session:
                connection, held = session.connection(), _held(job)
                _demand(connection.execute(sql.FINISH, held | {"measured": result, "now": now}), job)
                connection.execute(sql.END_ATTEMPT, held | {"state": DONE, "why": "", "now": now})
                connection.execute(sql.FORGET_FAILURES)
                place, others = _place(session, job)
                connection.execute(sql.ADD_ADAPTER, vars(adapter) | place)
                shelve(session, [adapter.id, *others])
                self._announce(session, job.id, now)
        except IntegrityError:
            raise DuplicateName(adapter.name) from None

    def end(self, job: JobRecord, state: str, reason: str, now: float, cause: str = "") -> None:
        """End the attempt: the job is failed, cancelled or paused now, or queued again.

        Args:
            cause: of a failure, one word.

        Raises:
            LeaseLost: the job is another worker's now, or may not go to this state.
        """
        values = {"reason": reason, "cause": cause, "finished_at": _finished(state, now), "lease_owner": "", "lease_until": 0.0}
        with self.database.write() as session:
            _demand(session.execute(_move(state, _fence(job)).values(values)), job)
            _end_attempt(session, job.id, job.attempt, state, reason, now)
            if state == FAILED:
                _count_failure(session)
            self._announce(session, job.id, now)

    def write_nothing(self) -> None:
        """Take the writer's place and give it back. Raises the database's absence, also where others write for too long."""
        with self.database.write() as session:
            session.connection()

    def requeue_lost(self, now: float, gone: Sequence[LeaseRecord], max_losses: int) -> list[JobRecord]:
        """Take jobs from workers that are gone, and decide where each goes. A lease that was renewed meanwhile stays.

        What was being cancelled is cancelled and what was being paused is paused; the others are queued again where they
        were, or fail when they were lost `max_losses` times.
        """
        if not gone:  # the usual case needs no writer
            return []
        lease = tuple_(JobRow.id, JobRow.attempt, JobRow.lease_owner, JobRow.lease_until)
        same = lease.in_([astuple(one) for one in gone])
        query = select(JobRow).where(order.of(IS_HELD), JobRow.state.in_(ACTIVE), same).with_for_update(skip_locked=True)
        with self.database.write() as session:
            lost = [_lose(session, row, now, max_losses) for row in session.scalars(query).all()]
            for job in lost:
                self._announce(session, job.id, now)
            return lost

    def lose(self, job: JobRecord, what: str, now: float, max_losses: int) -> JobRecord:
        """Give up an attempt that is gone though its worker is not: the job goes where `requeue_lost` would send it.

        Args:
            what: is lost, as the beginning of a sentence.

        Raises:
            LeaseLost: the job is another worker's now.
        """
        with self.database.write() as session:
            row = session.scalar(select(JobRow).where(_fence(job)).with_for_update())
            if row is None:
                raise LeaseLost(job.id)
            lost = _lose(session, row, now, max_losses, what)
            self._announce(session, job.id, now)
            return lost

    def _announce(self, session: Session, job_id: str, now: float | None = None) -> None:
        if self.notifying:
            announce(session, job_id, now)

    # What people do. Each returns the job as it is afterwards, or None where its state does not allow the move.

    def cancel(self, job_id: str, now: float) -> JobRecord | None:
        """Cancel a job that no worker holds at once; ask the worker of another."""
        at_once = {"reason": "Cancelled before it started.", "finished_at": now}
        stopped = {"reason": "Cancelled while it was paused.", "finished_at": now}
        return self._first_of(
            job_id,
            _move(CANCELLED, JobRow.state.in_(READY)).values(at_once),
            _move(CANCELLED, JobRow.state == PAUSED).values(stopped),
            _move(CANCELLING),
        )

    def pause(self, job_id: str) -> JobRecord | None:
        """Put a waiting job aside at once; ask the worker of a running one to keep a checkpoint and stop."""
        return self._first_of(job_id, _move(PAUSED, JobRow.state.in_(READY)).values(reason="Paused before it started."), _move(PAUSING))

    def resume(self, job_id: str) -> JobRecord | None:
        """Queue a paused job again, at the place that it had."""
        return self._first_of(job_id, _move(QUEUED, JobRow.state == PAUSED).values(reason=""))

    def retry(self, job_id: str, adapter_id: str, now: float) -> JobRecord | None:
        """Queue a failed or cancelled job again, at the end, with a fresh adapter id."""
        fresh = {
            "adapter_id": adapter_id,
            "losses": 0,
            "reason": "",
            "cause": "",
            "progress": {},
            "finished_at": None,
        }
        with self.database.write() as session:
            again = _move(QUEUED, JobRow.id == job_id, JobRow.state.in_((FAILED, CANCELLED)))
            row = session.scalar(again.values(fresh | {"position": max(now, order.end(session) + 1.0)}).returning(JobRow))
            return to_record(JobRecord, row) if row is not None else None

    def _first_of(self, job_id: str, *moves: Update) -> JobRecord | None:
        with self.database.write() as session:
            # Held from here on: between two of the moves its worker could change the state.
            before = session.scalar(select(JobRow.state).where(JobRow.id == job_id).with_for_update())
            for move in moves:
                row = session.scalar(move.where(JobRow.id == job_id).returning(JobRow))
                if row is not None:
                    if row.state != before:
                        self._announce(session, job_id)
                    return to_record(JobRecord, row)
        return None

    # The order of the queue

    def prioritise(self, job_id: str, priority: int) -> JobRecord | None:
        """Change the priority of a job that is not over."""
        return self._first_of(job_id, update(JobRow).where(JobRow.state.in_((*READY, PAUSED))).values(priority=priority))

    def place(self, job_id: str, before: str = "") -> JobRecord | None:
        """Put a job that nobody has taken before another one, or at the end; it takes over that one's priority, or the last one's."""
        with self.database.write() as session:
            ready = select(JobRow).where(order.of(IS_READY))
            pair = ready.where(JobRow.id.in_((job_id, before))).order_by(JobRow.id)  # two people lock them in one order
            rows = {row.id: row for row in session.scalars(pair.with_for_update())}
            moved, other = rows.pop(job_id, None), rows.get(before)
            if not before:
                other = session.scalar(order.in_order(ready.where(JobRow.id != job_id), backwards=True).limit(1))
            if moved is None or (other is None and before):
                return None
            if other is not None:
                moved.priority = other.priority
                moved.position = order.between(session, moved, other) if before else order.end(session) + 1.0
            session.flush()
            return to_record(JobRecord, moved)

    def run_after(self, job_id: str, other: str, reason: str) -> JobRecord | None:
        """Let a job that nobody has taken wait until another is done, and say so; an empty id lets it go."""
        change = _move(WAITING if other else QUEUED, JobRow.state.in_(READY)).values(after=other, reason=reason)
        return self._first_of(job_id, change)

    # The whole queue

    def queue(self) -> QueueRecord:
        """Whether the queue is held, and why."""
        with self.database.read() as session:
            return to_record(QueueRecord, session.scalars(select(QueueRow)).one())

    def hold(self, reason: str) -> None:
        """Start nothing until `release`; what runs goes on."""
        with self.database.write() as session:
            session.execute(update(QueueRow).values(held=True, reason=reason))

    def release(self) -> None:
        """Go on, with no failure counted."""
        with self.database.write() as session:
            session.execute(update(QueueRow).values(held=False, reason="", failures=0))

    def stop_after(self, failures: int) -> None:
        """Hold the queue after this many failures in a row; 0 never does."""
        with self.database.write() as session:
            session.execute(update(QueueRow).values(stop_after=failures, failures=0))


def _move(state: str, *where: ColumnElement[bool]) -> Update:
    """An update that brings jobs to a state, of those that may go there."""
    return update(JobRow).where(JobRow.state.in_(sources(state)), *where).values(state=state)


def _job(row: Any) -> JobRecord:
    return JobRecord(**row._mapping)


def _held(job: JobRecord) -> dict[str, Any]:
    """The parameters of the fence."""
    return {"of_job": job.id, "of_owner": job.lease_owner, "of_attempt": job.attempt}


def _fence(job: JobRecord) -> ColumnElement[bool]:
    return and_(JobRow.id == job.id, JobRow.state.in_(ACTIVE), JobRow.lease_owner == job.lease_owner, JobRow.attempt == job.attempt)


def _demand(result: Any, job: JobRecord) -> None:
    assert isinstance(result, CursorResult)
    if result.rowcount == 0:
        raise LeaseLost(job.id)


def _finished(state: str, now: float) -> float | None:
    return now if state in (FAILED, CANCELLED) else None


def _end_attempt(session: Session, job_id: str, number: int, ended: str, reason: str, now: float) -> None:
    values = {"of_job": job_id, "of_attempt": number, "state": ended, "why": reason, "now": now}
    session.connection().execute(sql.END_ATTEMPT, values)


def _count_failure(session: Session) -> None:
    reached = and_(QueueRow.stop_after > 0, QueueRow.failures + 1 >= QueueRow.stop_after, ~QueueRow.held)
    why = "Trainings failed one after the other; look at them, then release the queue."
    session.execute(
        update(QueueRow).values(
            failures=QueueRow.failures + 1,
            held=case((reached, True), else_=QueueRow.held),
            reason=case((reached, why), else_=QueueRow.reason),
        )
    )


def _lose(session: Session, row: JobRow, now: float, max_losses: int, what: str = "") -> JobRecord:
    """The job is lost, and goes on from there at once."""
    was, gone = row.state, what or f"The worker of attempt {row.attempt} died"
    _end_attempt(session, row.id, row.attempt, LOST, f"{gone}.", now)
    row.state, row.lease_owner, row.lease_until, row.losses = LOST, "", 0.0, row.losses + 1
    session.flush()
    if was == CANCELLING:
        row.state, row.reason = CANCELLED, "Cancelled while its worker was gone."
    elif was == PAUSING:
        row.state, row.reason = PAUSED, f"{gone}; the job is paused, as was wished."
    elif row.losses >= max_losses:
        row.state, row.cause = FAILED, "lost"
        row.reason = (
            f"The job was lost {row.losses} times. The last time: {what}. Mend that, then retry."
            if what
            else f"The worker died {row.losses} times while it ran this job, most often for want of memory. "
            "Lower token_budget or max_length, or choose a smaller base, then retry."
        )
        _count_failure(session)
    else:
        row.state, row.reason = QUEUED, f"{gone}; the job is in the queue again."
    row.finished_at = _finished(row.state, now)
    session.flush()
    return to_record(JobRecord, row)


def _place(session: Session, job: JobRecord) -> tuple[dict[str, Any], list[str]]:
    """The place of a job's adapter among the versions of a name, and the ids of the others; nothing where it has a name of its own."""
    of = str(job.config.get("version_of") or "")
    if not of:
        return {}, []
    try:
        return make_room(session, of, bool(job.config.get("version_current", True)))
    except RecordNotFound:  # deleted while this one trained: its own name is free, or another version has it
        heir = session.scalar(select(AdapterRow.id).where(AdapterRow.name == job.adapter_name).limit(1))
        return make_room(session, heir, True) if heir else ({}, [])
