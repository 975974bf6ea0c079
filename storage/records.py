"""Frozen records, as repositories return them. Times are UTC seconds since 1970, sizes are bytes."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BaseRecord:
    """A base model in the file store. `quantization_loss` maps nf4, int8, bf16 to nats a token."""

    id: str
    name: str
    source: str
    fingerprint: str
    size_bytes: int
    created_at: float
    quantization_loss: dict[str, float]


@dataclass(frozen=True)
class DatasetRecord:
    """One version of a dataset of conversations. `content_hash` is SHA-256 over the normalised rows.

    `parent_id` is the version that a change was made to, and `made_by` says the change; both are empty for an upload.
    """

    id: str
    name: str
    form: str
    rows: int
    turns: int
    content_hash: str
    size_bytes: int
    notes: list[str]
    sample: bool
    created_at: float
    version: int = 1
    parent_id: str = ""
    made_by: str = ""


@dataclass(frozen=True)
class JobRecord:
    """One training job with its frozen configuration and the progress of its newest attempt. Jobs of one sweep share `group`.

    Jobs run by priority, the highest first, then by position, the lowest first; one with `after` only when that job is done.
    `cause` is one word on why a job failed, `reason` a sentence on why it is in its state. `device` is where it runs or ran.
    """

    id: str
    state: str
    adapter_id: str
    adapter_name: str
    base_id: str
    dataset_id: str
    config: dict[str, Any]
    created_at: float
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    attempt: int = 0
    losses: int = 0
    lease_owner: str = ""
    lease_until: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    group: str = ""
    priority: int = 0
    position: float = 0.0
    after: str = ""
    copied_from: str = ""
    device: str = ""
    cause: str = ""


@dataclass(frozen=True)
class LeaseRecord:
    """That a worker holds a job for one attempt. `until` is another number after each renewal, and compared with no clock."""

    job_id: str
    attempt: int
    owner: str
    until: float


@dataclass(frozen=True)
class AttemptRecord:
    """One time that a worker held a job. `ended` is the state that it left the job in, or empty while it goes on."""

    job_id: str
    number: int
    owner: str
    device: str
    started_at: float
    finished_at: float | None = None
    ended: str = ""
    reason: str = ""


@dataclass(frozen=True)
class QueueRecord:
    """What holds for the whole queue. A held queue starts nothing; `stop_after` failures in a row hold it, 0 never."""

    held: bool = False
    reason: str = ""
    stop_after: int = 0
    failures: int = 0


@dataclass(frozen=True)
class NotificationRecord:
    """What is told to a webhook: `state` is open, sent or given_up, `error` says what the last try met."""

    id: str
    job_id: str
    event: str
    body: dict[str, Any]
    state: str
    created_at: float
    due_at: float
    tries: int = 0
    lease_owner: str = ""
    ended_at: float | None = None
    error: str = ""


@dataclass(frozen=True)
class EventRecord:
    """One line that a training process wrote: the kinds are those of `studio.training.events`."""

    id: int
    job_id: str
    attempt: int
    at: float
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class AdapterRecord:
    """A finished adapter: where it comes from (lineage) and what its training measured.

    `kind` is lora, dora or prefix, `origin` training, import or arithmetic. `source` says where it is from: a file, a repository at
    its commit, or a formula, whose adapters are the `parents`: id, name, sha256 and weight of each. What was not trained here has no
    dataset and no job.

    Of the versions of one name, one is the `current` one, which the name stands for. `card` is Markdown, or empty where it is made
    from what is known. `archived_at` is None for what is listed.
    """

    id: str
    name: str
    sha256: str
    base_id: str
    base_fingerprint: str
    dataset_id: str
    dataset_hash: str
    job_id: str
    rank: int
    size_bytes: int
    config: dict[str, Any]
    metrics: dict[str, Any]
    code_version: str
    seed: int
    created_at: float
    kind: str = "lora"
    origin: str = "training"
    source: str = ""
    parents: list[dict[str, Any]] = field(default_factory=list)
    version: int = 1
    current: bool = True
    tags: list[str] = field(default_factory=list)
    collections: list[str] = field(default_factory=list)
    favourite: bool = False
    archived_at: float | None = None
    owner: str = ""
    licence: str = ""
    card: str = ""


@dataclass(frozen=True)
class ApiKeyRecord:
    """A key of the HTTP API. `start` are its first characters, `per_minute` the requests that it may make; 0 is no limit."""

    id: str
    label: str
    sha256: str
    start: str
    per_minute: int
    created_at: float
    last_used_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True)
class ConversationRecord:
    """A conversation of the chat. `leaf_id` is the last message of the branch that was looked at last; empty where there is none."""

    id: str
    title: str
    system: str
    created_at: float
    updated_at: float
    leaf_id: str = ""


@dataclass(frozen=True)
class MessageRecord:
    """A turn of a conversation. Those with the same parent are siblings: other ways to go on; `parent_id` is empty for the first.

    Of a reply, `voice` says who wrote it and `stamp` has what was measured, in the fields of `studio.chat.stamp.Stamp`.
    """

    id: str
    conversation_id: str
    parent_id: str
    role: str
    content: str
    created_at: float
    voice: str = ""
    adapter_id: str = ""
    adapter_sha256: str = ""
    base: str = ""
    stamp: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VoteRecord:
    """Which of several replies to a prompt somebody liked best.

    `compared` has voice, adapter_id and sha256 of each; `winner` is a place in it.
    """

    id: str
    prompt: str
    compared: list[dict[str, Any]]
    winner: int
    created_at: float


@dataclass(frozen=True)
class PromptRecord:
    """A message that is kept under a name."""

    id: str
    name: str
    text: str
    created_at: float


@dataclass(frozen=True)
class EvaluationRecord:
    """Voices that are held to the same rows of a dataset. `state` is running, done, stopped, interrupted or failed, `rows` how many
    rows there are for each voice. `owner` is who runs it, `beat_at` when that was last seen to live."""

    id: str
    state: str
    dataset_id: str
    dataset_name: str
    dataset_hash: str
    base_id: str
    base_name: str
    plan: dict[str, Any]
    rows: int
    created_at: float
    owner: str = ""
    beat_at: float = 0.0
    finished_at: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class EvaluationVoiceRecord:
    """What one voice reached: `values` by metric, over `rows` rows, `errors` of which ended in an error.

    `name` finds this very voice again; `adapter_id` is empty for the base and for blends.
    """

    evaluation_id: str
    place: int
    name: str
    label: str
    adapter_id: str
    sha256: str
    rows: int = 0
    errors: int = 0
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationCaseRecord:
    """A row of the dataset that all voices of an evaluation are held to."""

    evaluation_id: str
    number: int
    row: int
    prompt: str
    reference: str


@dataclass(frozen=True)
class EvaluationAnswerRecord:
    """What one voice made of one row: nats over its trained tokens, its answer with its scores by metric, or an error."""

    evaluation_id: str
    number: int
    place: int
    nats: float | None = None
    tokens: int = 0
    hits: int = 0
    answer: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    error: str = ""
