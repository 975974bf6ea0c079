"""Versions of a name: who shares it, and the place of the next one. Used inside the transaction of whatever changes them.

PostgreSQL lets many write at once. Whoever adds a version locks those that there are, and only then asks for the highest number: one
that was waited for is seen by the next statement, not by the one that waited.
"""

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from storage.errors import RecordNotFound
from storage.tables import AdapterRow


def family(session: Session, record_id: str) -> list[AdapterRow]:
    """All versions of an adapter's name, locked.

    Raises:
        RecordNotFound: it is gone.
    """
    name = session.scalar(select(AdapterRow.name).where(AdapterRow.id == record_id))
    if name is None:
        raise RecordNotFound("adapter", record_id)
    query = select(AdapterRow).where(AdapterRow.name == name).order_by(AdapterRow.version).with_for_update()
    found = list(session.scalars(query))
    if all(row.id != record_id for row in found):  # it was given another name, or deleted, while we waited for the lock
        raise RecordNotFound("adapter", record_id)
    return found


def next_version(session: Session, name: str) -> int:
    """The number of the next version of a name whose versions are locked."""
    return int(session.scalar(select(func.max(AdapterRow.version)).where(AdapterRow.name == name)) or 0) + 1


def make_room(session: Session, of: str, current: bool) -> tuple[dict[str, Any], list[str]]:
    """Lock the versions that an adapter is one of, for another one.

    Args:
        of: id of any of them. current: the name is to stand for the new one.

    Returns:
        The new one's name, version and whether it is current; the ids of the others, whose entries in the index follow.

    Raises:
        RecordNotFound: it is gone.
    """
    name = family(session, of)[0].name
    place = {"name": name, "version": next_version(session, name), "current": current}
    if current:
        session.execute(update(AdapterRow).where(AdapterRow.name == name, AdapterRow.current).values(current=False))
    return place, list(session.scalars(select(AdapterRow.id).where(AdapterRow.name == name)))
