"""The tables. Ids are opaque hex strings that the studio makes; names are labels that people may change."""

from typing import Any, ClassVar

from sqlalchemy import JSON, Float, ForeignKey, Index, Integer, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.columns import Long, String


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, list[str]: JSON, dict[str, float]: JSON}


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
    __table_args__ = (Index("job_queue", "state", "created_at"),)

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
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    # Jobs that were submitted together, to be compared; empty where a job stands alone.
    group: Mapped[str] = mapped_column(String(32), default="", server_default=text("''"), index=True)


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
    __table_args__ = (UniqueConstraint("name"),)

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


class FlagRow(Table):
    """A fact about the studio itself, such as that the sample datasets were added once."""

    __tablename__ = "flag"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    at: Mapped[float] = mapped_column(Float)
