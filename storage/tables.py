"""The tables. Ids are opaque hex strings that the studio makes; names are labels that people may change."""

from typing import Any, ClassVar

from sqlalchemy import JSON, Float, ForeignKey, Index, Integer, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.columns import Long, String
from storage.states import OPEN, OVER, READY

# Spelled out wherever they are asked, since a database uses an index on some rows only where it sees that their condition holds.
IS_READY, IS_HELD, IS_OVER = (
    f"state IN ({', '.join(map(repr, states))})" for states in (READY, tuple(s for s in OPEN if s not in READY), OVER)
)

IS_UNTOLD = "state = 'open'"
IS_CURRENT = "current"
IS_LISTED = "current AND archived_at IS NULL"


def _index_of(states: str, name: str, *columns: Any) -> Index:
    return Index(name, *columns, sqlite_where=text(states), postgresql_where=text(states))


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[str]: JSON,
        dict[str, float]: JSON,
        list[dict[str, Any]]: JSON,
    }


class BaseRow(Table):
    __tablename__ = "base"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    source: Mapped[str] = mapped_column(String(500, cut=True))
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(Long)
    created_at: Mapped[float] = mapped_column(Float)
    quantization_loss: Mapped[dict[str, float]]


class DatasetRow(Table):
    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("name", "version", name="dataset_name_version"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    form: Mapped[str] = mapped_column(String(40))
    rows: Mapped[int] = mapped_column(Long)
    turns: Mapped[int] = mapped_column(Long)
    content_hash: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(Long)
    notes: Mapped[list[str]]
    sample: Mapped[bool]
    created_at: Mapped[float] = mapped_column(Float)
    version: Mapped[int] = mapped_column(Integer, default=1, server_default=text("1"))
    # Neither is a foreign key: a version outlives the one that it was made from.
    parent_id: Mapped[str] = mapped_column(String(32), default="", server_default=text("''"))
    made_by: Mapped[str] = mapped_column(String(500, cut=True), default="", server_default=text("''"))


class JobRow(Table):
    __tablename__ = "job"
    __table_args__ = (
        Index("job_by_age", "created_at"),
        # What a worker takes next is the first entry of an index, however much waits or is over.
        _index_of(IS_READY, "job_order", text("priority DESC"), "position", "id"),
        _index_of(IS_HELD, "job_held", "started_at"),
        _index_of(IS_OVER, "job_over", "finished_at"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    adapter_id: Mapped[str] = mapped_column(String(32), unique=True)
    adapter_name: Mapped[str] = mapped_column(String(200))
    base_id: Mapped[str] = mapped_column(ForeignKey("base.id"))
    # Not a foreign key: a job keeps telling what it used after the dataset is deleted.
    dataset_id: Mapped[str] = mapped_column(String(32), index=True)
    config: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any]]
    reason: Mapped[str] = mapped_column(String(2000, cut=True), default="")
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str] = mapped_column(String(100), default="")
    lease_until: Mapped[float] = mapped_column(Float, default=0.0)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    # Jobs that were submitted together, to be compared; empty where a job stands alone.
    group: Mapped[str] = mapped_column(String(32), default="", server_default=text("''"), index=True)
    # The place in the queue: the highest priority first, then the lowest position.
    priority: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    position: Mapped[float] = mapped_column(Float, default=0.0, server_default=text("0"))
    # Jobs that this one runs after, or was copied from; no foreign keys, they may be gone.
    after: Mapped[str] = mapped_column(String(32), default="", server_default=text("''"))
    copied_from: Mapped[str] = mapped_column(String(32), default="", server_default=text("''"))
    device: Mapped[str] = mapped_column(String(100), default="", server_default=text("''"))
    # Why it failed, as one word; the reason says it in a sentence.
    cause: Mapped[str] = mapped_column(String(20), default="", server_default=text("''"))


class AttemptRow(Table):
    """One time that a worker held a job."""

    __tablename__ = "job_attempt"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    device: Mapped[str] = mapped_column(String(100))
    started_at: Mapped[float] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    # The state that the attempt left the job in; empty while it goes on.
    ended: Mapped[str] = mapped_column(String(20), default="")
    reason: Mapped[str] = mapped_column(String(2000, cut=True), default="")


class QueueRow(Table):
    """The one row of what holds for the whole queue."""

    __tablename__ = "queue"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    held: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str] = mapped_column(String(500, cut=True), default="")
    # Hold the queue after this many failures in a row; 0 never does.
    stop_after: Mapped[int] = mapped_column(Integer, default=0)
    failures: Mapped[int] = mapped_column(Integer, default=0)


class NotificationRow(Table):
    """What is to be told to a webhook. It outlives its job, and is due again when whoever took it has said nothing until `due_at`."""

    __tablename__ = "notification"
    __table_args__ = (Index("notification_by_age", "created_at"), _index_of(IS_UNTOLD, "notification_due", "due_at"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(32))
    event: Mapped[str] = mapped_column(String(20))
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[float] = mapped_column(Float)
    due_at: Mapped[float] = mapped_column(Float)
    tries: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str] = mapped_column(String(100), default="")
    ended_at: Mapped[float | None] = mapped_column(Float)
    error: Mapped[str] = mapped_column(String(500, cut=True), default="")


class EventRow(Table):
    __tablename__ = "job_event"
    __table_args__ = (Index("job_event_by_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(Long, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(20))
    data: Mapped[dict[str, Any]]


class AdapterRow(Table):
    __tablename__ = "adapter"
    __table_args__ = (
        UniqueConstraint("name", "version", name="adapter_name_version"),
        # A name stands for one of its versions.
        Index("adapter_current", "name", unique=True, sqlite_where=text(IS_CURRENT), postgresql_where=text(IS_CURRENT)),
        Index("adapter_by_dataset", "dataset_id"),
        Index("adapter_by_content", "sha256"),
        _index_of(IS_LISTED, "adapter_voices", "base_fingerprint", "favourite", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64))
    base_id: Mapped[str] = mapped_column(ForeignKey("base.id"))
    base_fingerprint: Mapped[str] = mapped_column(String(64))
    dataset_id: Mapped[str] = mapped_column(String(32))
    dataset_hash: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(32))
    rank: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(Long)
    config: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    code_version: Mapped[str] = mapped_column(String(40))
    seed: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(20), default="lora", server_default=text("'lora'"))
    origin: Mapped[str] = mapped_column(String(20), default="training", server_default=text("'training'"))
    # Where it is from, as the rest of a sentence; and what it was made of. Parents are no foreign keys: they may be gone.
    source: Mapped[str] = mapped_column(String(500, cut=True), default="", server_default=text("''"))
    parents: Mapped[list[dict[str, Any]]] = mapped_column(default=list, server_default=text("'[]'"))
    version: Mapped[int] = mapped_column(Integer, default=1, server_default=text("1"))
    current: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    tags: Mapped[list[str]] = mapped_column(default=list, server_default=text("'[]'"))
    collections: Mapped[list[str]] = mapped_column(default=list, server_default=text("'[]'"))
    favourite: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    archived_at: Mapped[float | None] = mapped_column(Float)
    owner: Mapped[str] = mapped_column(String(100), default="", server_default=text("''"))
    licence: Mapped[str] = mapped_column(String(100), default="", server_default=text("''"))
    # Markdown; empty where it is made from what is known.
    card: Mapped[str] = mapped_column(String(None), default="", server_default=text("''"))


class ShelfRow(Table):
    """What adapters are found and sorted by; all of it follows from other tables. Their words are in `adapter_words`, which each
    database has in a form of its own (see migration 0011)."""

    __tablename__ = "shelf"
    __table_args__ = (
        Index("shelf_by_newest", "state", "number"),
        Index("shelf_by_name", "state", "name", "number"),
        Index("shelf_by_loss", "state", "loss", "number"),
        Index("shelf_by_rank", "state", "rank", "number"),
        Index("shelf_by_size", "state", "size_bytes", "number"),
        Index("shelf_by_won", "state", "won", "number"),
        Index("shelf_by_gain", "state", "gain", "number"),
    )

    # In the order in which adapters came.
    number: Mapped[int] = mapped_column(Long, primary_key=True, autoincrement=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), unique=True)
    state: Mapped[str] = mapped_column(String(1))
    name: Mapped[str] = mapped_column(String(400, cut=True))
    # Held-out loss; a number that is larger than any where nothing was held out.
    loss: Mapped[float] = mapped_column(Float)
    rank: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(Long)
    # Share of the votes that it won; -1 where nobody voted. What training took off the held-out loss; far below 0 where that is unknown.
    won: Mapped[float] = mapped_column(Float, default=-1.0, server_default=text("-1"))
    gain: Mapped[float] = mapped_column(Float, default=-1e300, server_default=text("-1e300"))


class TallyRow(Table):
    """How often an adapter was liked best, and voted on; it stays when the adapter is deleted, as the votes do."""

    __tablename__ = "tally"

    adapter_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    wins: Mapped[int] = mapped_column(Integer)
    votes: Mapped[int] = mapped_column(Integer)


class PinRow(Table):
    """An adapter that the chat keeps ready."""

    __tablename__ = "pin"

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[float] = mapped_column(Float)


class ConversationRow(Table):
    __tablename__ = "conversation"
    __table_args__ = (Index("conversation_by_age", "updated_at", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    title: Mapped[str] = mapped_column(String(200, cut=True))
    system: Mapped[str] = mapped_column(String(None))
    leaf_id: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)


class MessageRow(Table):
    """A turn. Those of a conversation are a tree: the first ones have no parent, and several may have the same."""

    __tablename__ = "message"
    __table_args__ = (Index("message_by_conversation", "conversation_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversation.id", ondelete="CASCADE"))
    parent_id: Mapped[str] = mapped_column(String(32))
    role: Mapped[str] = mapped_column(String(20))
    content: Mapped[str] = mapped_column(String(None))
    voice: Mapped[str] = mapped_column(String(1000, cut=True))
    # Not a foreign key: a reply keeps telling who wrote it after the adapter is deleted.
    adapter_id: Mapped[str] = mapped_column(String(32))
    adapter_sha256: Mapped[str] = mapped_column(String(64))
    base: Mapped[str] = mapped_column(String(200, cut=True))
    stamp: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float)


class VoteRow(Table):
    __tablename__ = "vote"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    prompt: Mapped[str] = mapped_column(String(None))
    compared: Mapped[list[dict[str, Any]]]
    winner: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Float)


class PromptRow(Table):
    __tablename__ = "prompt"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    text: Mapped[str] = mapped_column(String(None))
    created_at: Mapped[float] = mapped_column(Float)


class FlagRow(Table):
    """A fact about the studio itself, such as that the sample datasets were added once."""

    __tablename__ = "flag"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    at: Mapped[float] = mapped_column(Float)


class ApiKeyRow(Table):
    """A key of the HTTP API; the key itself is kept nowhere."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    label: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    # Its first characters, to find and to show it.
    start: Mapped[str] = mapped_column(String(20), index=True)
    # Requests; 0 is no limit.
    per_minute: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class EvaluationRow(Table):
    """Voices that are held to the same rows of a dataset. Nothing here is a foreign key: it stays readable when those are gone."""

    __tablename__ = "evaluation"
    __table_args__ = (Index("evaluation_by_age", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    dataset_id: Mapped[str] = mapped_column(String(32))
    dataset_name: Mapped[str] = mapped_column(String(300, cut=True))
    dataset_hash: Mapped[str] = mapped_column(String(64))
    base_id: Mapped[str] = mapped_column(String(32))
    base_name: Mapped[str] = mapped_column(String(200, cut=True))
    # What was asked for, in the fields of `studio.evaluation.plan.Plan`.
    plan: Mapped[dict[str, Any]]
    rows: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Float)
    # Who runs it, and when that was last seen to live.
    owner: Mapped[str] = mapped_column(String(100), default="")
    beat_at: Mapped[float] = mapped_column(Float, default=0.0)
    finished_at: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str] = mapped_column(String(1000, cut=True), default="")


class EvaluationVoiceRow(Table):
    """What one voice reached."""

    __tablename__ = "evaluation_voice"
    __table_args__ = (Index("evaluation_by_adapter", "adapter_id"),)

    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(2000))
    label: Mapped[str] = mapped_column(String(1000, cut=True))
    adapter_id: Mapped[str] = mapped_column(String(32))
    sha256: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int] = mapped_column(Integer, default=0)
    errors: Mapped[int] = mapped_column(Integer, default=0)
    values: Mapped[dict[str, Any]] = mapped_column(default=dict)


class EvaluationCaseRow(Table):
    """A row of the dataset that all voices are held to."""

    __tablename__ = "evaluation_case"

    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    row: Mapped[int] = mapped_column(Long)
    prompt: Mapped[str] = mapped_column(String(None))
    reference: Mapped[str] = mapped_column(String(None))


class EvaluationAnswerRow(Table):
    """What one voice made of one row."""

    __tablename__ = "evaluation_answer"

    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    # Nats over the trained tokens, and of how many of these the likeliest token was right; None where the loss was not asked.
    nats: Mapped[float | None] = mapped_column(Float)
    tokens: Mapped[int] = mapped_column(Integer, default=0)
    hits: Mapped[int] = mapped_column(Integer, default=0)
    answer: Mapped[str] = mapped_column(String(None), default="")
    scores: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[str] = mapped_column(String(1000, cut=True), default="")
