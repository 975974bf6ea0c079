"""Which folders the database says there should be, and what of it leads nowhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, cast, exists, func, or_, select, update
from sqlalchemy.orm import aliased

from storage.database import Database
from storage.states import OPEN, OVER
from storage.tables import AdapterRow, BaseRow, ConversationRow, DatasetRow, JobRow, MessageRow


@dataclass(frozen=True)
class Kept:
    """Something with a folder of its own. `content` is the hash of what is in it: of an adapter its SHA-256, of a dataset that of its
    rows, of a base its fingerprint. `source` says where a base is from."""

    id: str
    name: str
    content: str
    size_bytes: int
    source: str = ""


@dataclass(frozen=True)
class KeptJob:
    """A job, as far as files belong to it."""

    id: str
    state: str
    adapter_id: str
    adapter_name: str
    dataset_id: str

    @property
    def is_open(self) -> bool:
        """Whether it may still make its adapter."""
        return self.state in OPEN

    @property
    def is_over(self) -> bool:
        """Whether it ended."""
        return self.state in OVER


@dataclass(frozen=True)
class Inventory:
    """Everything that has files, by its id."""

    bases: dict[str, Kept]
    datasets: dict[str, Kept]
    adapters: dict[str, Kept]
    jobs: dict[str, KeptJob]


def read_inventory(connection: Connection) -> Inventory:
    """What a connection sees; of a snapshot, what there was at its moment."""
    label = DatasetRow.name + "@" + cast(DatasetRow.version, DatasetRow.name.type)
    adapters = select(AdapterRow.id, AdapterRow.name, AdapterRow.sha256, AdapterRow.size_bytes)
    jobs = select(JobRow.id, JobRow.state, JobRow.adapter_id, JobRow.adapter_name, JobRow.dataset_id)
    return Inventory(
        _kept(connection, select(BaseRow.id, BaseRow.name, BaseRow.fingerprint, BaseRow.size_bytes, BaseRow.source)),
        _kept(connection, select(DatasetRow.id, label, DatasetRow.content_hash, DatasetRow.size_bytes)),
        _kept(connection, adapters),
        {row[0]: KeptJob(*row) for row in connection.execute(jobs)},
    )


def _kept(connection: Connection, query: Any) -> dict[str, Kept]:
    return {row[0]: Kept(*row) for row in connection.execute(query)}


@dataclass(frozen=True)
class Dangling:
    """A record that points at nothing. `table` and `id` name it; `what` continues a sentence after it."""

    table: str
    id: str
    name: str
    what: str


PARENT = aliased(MessageRow)
LOST_LEAF = ConversationRow.leaf_id != "", ~exists().where(MessageRow.id == ConversationRow.leaf_id)
LOST_PARENT = MessageRow.parent_id != "", ~exists().where(PARENT.id == MessageRow.parent_id)
NO_DATASET = JobRow.state.in_(OPEN), ~exists().where(DatasetRow.id == JobRow.dataset_id)


def dangling(database: Database) -> list[Dangling]:
    """References that no foreign key holds, and that lead nowhere though something depends on them."""
    with database.read() as session:
        jobs = session.execute(select(JobRow.id, JobRow.adapter_name).where(*NO_DATASET)).all()
        talks = session.execute(select(ConversationRow.id, ConversationRow.title).where(*LOST_LEAF)).all()
        turns = session.execute(select(MessageRow.id, MessageRow.role).where(*LOST_PARENT)).all()
    return [
        *(Dangling("job", *row, "waits for a dataset that is gone") for row in jobs),
        *(Dangling("conversation", *row, "is open at a message that is gone") for row in talks),
        *(Dangling("message", *row, "answers a message that is gone") for row in turns),
    ]


def mend_dangling(database: Database, table: str, ids: Sequence[str]) -> None:
    """Let conversations open at their newest message, and messages without a parent begin their conversation."""
    newest = select(MessageRow.id).where(MessageRow.conversation_id == ConversationRow.id)
    newest = newest.order_by(MessageRow.created_at.desc(), MessageRow.id.desc()).limit(1)
    with database.write() as session:
        if table == "message":
            session.execute(update(MessageRow).where(MessageRow.id.in_(ids), or_(*LOST_PARENT)).values(parent_id=""))
        elif table == "conversation":
            leaf = func.coalesce(newest.scalar_subquery(), "")
            session.execute(update(ConversationRow).where(ConversationRow.id.in_(ids)).values(leaf_id=leaf))
