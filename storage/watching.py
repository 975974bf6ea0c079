"""What those who watch the queue ask again and again: cheap, however many jobs there are."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, literal_column, select
from sqlalchemy.orm import Session

from storage.database import Database
from storage.records import AdapterRecord
from storage.repositories import to_record
from storage.tables import IS_HELD, IS_OVER, IS_READY, AdapterRow, EvaluationRow, EventRow, JobRow, QueueRow

MARKED = 500  # of the jobs that wait, so many are looked at one by one: as many as a page shows
EVALUATION_PACE_S = 2.0
PROBES = 120  # of a job's events, so many are looked at for a small curve

Point = tuple[int, float]  # (step, loss)


@dataclass(frozen=True)
class Tally:
    """How many jobs wait, and how many are over."""

    waiting: int
    over: int


class Watching:
    """Questions of the page. None of them reads every job."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def mark(self) -> str:
        """A text that is another one after anything that the board shows has changed."""
        waits = select(JobRow.id, JobRow.state, JobRow.priority, JobRow.position, JobRow.after, JobRow.reason)
        held = select(JobRow.id, JobRow.state, JobRow.attempt, JobRow.reason)
        order = (JobRow.priority.desc(), JobRow.position, JobRow.id)
        seen: list[Any] = []
        with self.database.read() as session:
            seen.append(session.scalar(select(func.max(EventRow.id))))
            seen.append(session.scalar(select(func.max(JobRow.finished_at)).where(literal_column(IS_OVER))))
            seen.append(session.scalar(select(func.count()).select_from(JobRow).where(literal_column(IS_READY))))
            seen += sorted(map(tuple, session.execute(held.where(literal_column(IS_HELD)))))  # sorted there, it would read every job
            seen += session.execute(waits.where(literal_column(IS_READY)).order_by(*order).limit(MARKED)).all()
            seen += session.execute(select(QueueRow.held, QueueRow.reason, QueueRow.stop_after, QueueRow.failures)).all()
            seen.append(session.scalar(select(func.count()).select_from(AdapterRow)))
            beat, ended, evaluations = session.execute(
                select(func.max(EvaluationRow.beat_at), func.max(EvaluationRow.finished_at), func.count()).select_from(EvaluationRow)
            ).one()
            seen += [(beat or 0) // EVALUATION_PACE_S, ended, evaluations]  # each of its rows is a change, and a redrawing of the page
        return f"{hash(tuple(map(str, seen))) & 0xFFFF_FFFF_FFFF:x}"

    def tally(self) -> Tally:
        """How many jobs wait, and how many are over."""
        with self.database.read() as session:
            waiting, over = (
                session.scalar(select(func.count()).select_from(JobRow).where(literal_column(states))) for states in (IS_READY, IS_OVER)
            )
        return Tally(int(waiting or 0), int(over or 0))

    def has_adapters(self) -> bool:
        """Whether there is any adapter."""
        with self.database.read() as session:
            return session.scalar(select(AdapterRow.id).limit(1)) is not None

    def adapters(self, ids: Collection[str]) -> dict[str, AdapterRecord]:
        """Those of these adapters that exist, by id."""
        with self.database.read() as session:
            rows = session.scalars(select(AdapterRow).where(AdapterRow.id.in_(ids)))
            return {row.id: to_record(AdapterRecord, row) for row in rows}

    def losses(self, job_ids: Sequence[str]) -> dict[str, list[Point]]:
        """Some points of each job's training loss, evenly over its events, for a small curve; in the order of the steps.

        A job of a million steps costs no more than one of a hundred: events are looked up by their ids, evenly between
        the first and the last of the job. Those of other jobs that ran beside it are not counted.
        """
        with self.database.read() as session:
            return {job_id: points for job_id in job_ids if (points := _probed(session, job_id))}


def _probed(session: Session, job_id: str) -> list[Point]:
    lowest, highest = (select(end(EventRow.id)).where(EventRow.job_id == job_id).scalar_subquery() for end in (func.min, func.max))
    first, last = session.execute(select(lowest, highest)).one()
    if first is None:
        return []
    probes = sorted({first + round(i * (last - first) / (PROBES - 1)) for i in range(PROBES)})
    query = select(EventRow.data).where(EventRow.id.in_(probes), EventRow.job_id == job_id, EventRow.kind == "progress")
    return _as_it_went(session.scalars(query.order_by(EventRow.id)))


def _as_it_went(events: Iterable[dict[str, Any]]) -> list[Point]:
    """The points in the order of the steps; what an attempt did again takes the place of what was."""
    points: list[Point] = []
    for data in events:
        step, loss = int(data["step"]), data.get("loss")
        while points and points[-1][0] >= step:
            points.pop()
        if loss is not None:
            points.append((step, float(loss)))
    return points
