"""The statements of the queue that every worker runs all the time, built once.

Building one costs twenty times what the database takes to run it, and so does a session's bookkeeping about rows that nobody
changes; so these are plain statements on the tables, which a session's connection runs with their parameters.
"""

from typing import Any

from sqlalchemy import ColumnElement, Select, Table, Update, and_, bindparam, exists, insert, literal_column, or_, select, update

from storage.states import ACTIVE, DONE, RUNNING, STARTING, sources
from storage.tables import IS_HELD, IS_READY, AdapterRow, AttemptRow, EventRow, JobRow, QueueRow


def _table(row: Any) -> Table:
    table = row.__table__
    assert isinstance(table, Table)
    return table


JOB, ATTEMPT, EVENT, ADAPTER, QUEUE = (_table(row) for row in (JobRow, AttemptRow, EventRow, AdapterRow, QueueRow))
OTHER = JOB.alias("other")

# The queue is not held, and the job that this one runs after is done (or gone).
IS_FREE = and_(
    ~exists().where(QUEUE.c.held),
    or_(JOB.c.after == "", ~exists().where(OTHER.c.id == JOB.c.after, OTHER.c.state != DONE)),
)
# The job is held by this owner for this attempt.
FENCE = and_(
    JOB.c.id == bindparam("of_job"),
    JOB.c.state.in_(ACTIVE),
    JOB.c.lease_owner == bindparam("of_owner"),
    JOB.c.attempt == bindparam("of_attempt"),
)


def _first(*columns: Any) -> Select[Any]:
    ready = select(*columns).where(literal_column(IS_READY), IS_FREE)
    return ready.order_by(JOB.c.priority.desc(), JOB.c.position, JOB.c.id).limit(1)


def _move(state: str, *where: ColumnElement[bool]) -> Update:
    return update(JOB).where(JOB.c.state.in_(sources(state)), *where)


def _claim(wanted: Any) -> Update:
    taken: dict[str, Any] = {
        "state": STARTING,
        "attempt": JOB.c.attempt + 1,
        "lease_owner": bindparam("owner"),
        "lease_until": bindparam("until"),
        "started_at": bindparam("now"),
        "finished_at": None,
        "progress": {},
        "reason": "",
        "cause": "",
        "device": bindparam("on_device"),
    }
    return _move(STARTING, JOB.c.id == wanted, IS_FREE).values(taken).returning(*JOB.c)


HEAD = _first(*JOB.c)
CLAIM = _claim(bindparam("of_job"))
CLAIM_FIRST = _claim(_first(JOB.c.id).with_for_update(skip_locked=True).scalar_subquery())
LEASES = select(JOB.c.id, JOB.c.attempt, JOB.c.lease_owner, JOB.c.lease_until).where(literal_column(IS_HELD), JOB.c.state.in_(ACTIVE))
STATE = select(JOB.c.state).where(FENCE)
RUN = _move(RUNNING, FENCE).values(state=RUNNING)
RENEW = update(JOB).where(FENCE).values(lease_until=bindparam("until"))
RECORD = update(JOB).where(FENCE).values(progress=bindparam("newest"))
FINISH = _move(DONE, FENCE).values(
    state=DONE, result=bindparam("measured"), finished_at=bindparam("now"), lease_owner="", lease_until=0.0, reason=""
)
BEGIN_ATTEMPT, ADD_EVENT, ADD_ADAPTER = insert(ATTEMPT), insert(EVENT), insert(ADAPTER)
END_ATTEMPT = (
    update(ATTEMPT)
    .where(ATTEMPT.c.job_id == bindparam("of_job"), ATTEMPT.c.number == bindparam("of_attempt"))
    .values(ended=bindparam("state"), reason=bindparam("why"), finished_at=bindparam("now"))
)
FORGET_FAILURES = update(QUEUE).where(QUEUE.c.failures > 0).values(failures=0)
