"""The order of the queue: priority first, then a position on one line through all jobs that are not over.

Who changes a job's priority or state keeps its place on that line; what is queued later comes later, whatever the clock says.
"""

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal_column, or_, select
from sqlalchemy.orm import Session

from storage.tables import IS_HELD, IS_READY, JobRow

CLOSEST = 1e-4  # positions are seconds since 1970, of which a float keeps seven digits behind the point


def of(states: str) -> ColumnElement[bool]:
    """One of the conditions on states that an index has, such as IS_READY."""
    return literal_column(states)


def in_order(query: Select[Any], backwards: bool = False) -> Select[Any]:
    """The query in the order of the queue."""
    if backwards:
        return query.order_by(JobRow.priority, JobRow.position.desc(), JobRow.id.desc())
    return query.order_by(JobRow.priority.desc(), JobRow.position, JobRow.id)


def end(session: Session) -> float:
    """The last position of a job that is not over."""
    ends = (session.scalar(select(func.max(JobRow.position)).where(of(states))) for states in (IS_READY, IS_HELD))
    return max((end for end in ends if end is not None), default=0.0)


def between(session: Session, moved: JobRow, other: JobRow) -> float:
    """A position right before another job's."""
    line = select(JobRow).where(or_(of(IS_READY), of(IS_HELD)), JobRow.id != moved.id)
    earlier = or_(JobRow.position < other.position, and_(JobRow.position == other.position, JobRow.id < other.id))
    before = session.scalar(line.where(earlier).order_by(JobRow.position.desc(), JobRow.id.desc()).limit(1))
    if before is None:
        return other.position - 1.0
    if other.position - before.position < CLOSEST:
        _spread(list(session.scalars(line.order_by(JobRow.position, JobRow.id).with_for_update())))
    return (before.position + other.position) / 2


def _spread(rows: list[JobRow]) -> None:
    """Positions a second apart, of which the last stays: what is queued later still comes later."""
    last = rows[-1].position
    for i, row in enumerate(reversed(rows)):
        row.position = last - i
