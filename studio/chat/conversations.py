"""Conversations that last: a tree of turns, of which one reads a branch from the first message to a last one, the leaf.

To say something else at a place, or to have something else answered, is to add a sibling; nothing that was said is changed.
Knows nothing of the engine.
"""

import json
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage import files
from storage.conversations import Conversations as Records
from storage.conversations import Key
from storage.errors import RecordNotFound
from storage.records import ConversationRecord, MessageRecord
from studio.chat.stamp import Stamp, measured
from studio.errors import InvalidInput, NotFound, OutOfSpace
from studio.names import file_stem

if TYPE_CHECKING:
    from studio.chat.service import Stream

UNTITLED = "New conversation"
MAX_TITLE = 80
LEFT = "left"  # why a reply ended whose listener went away
FAILED = "failed"
FORMS = {"markdown": "md", "json": "json"}


@dataclass(frozen=True)
class Placed:
    """A message of a branch, and the ids of its siblings with itself, oldest first."""

    message: MessageRecord
    siblings: tuple[str, ...]

    @property
    def place(self) -> int:
        """Which of the siblings it is, from 1."""
        return self.siblings.index(self.message.id) + 1


class Conversations:
    """The conversations of the studio.

    Args:
        records: the tables. exports: where exported files are written.
    """

    def __init__(self, records: Records, exports: Path) -> None:
        self.records, self.exports = records, exports

    def make(self, system: str = "", title: str = UNTITLED) -> ConversationRecord:
        """An empty conversation. It is named by its first message where it has no title."""
        now = time.time()
        return self.records.add(ConversationRecord(files.new_id(), checked_title(title), system.strip(), now, now))

    def page(self, limit: int, before: Key | None = None, search: str = "") -> list[ConversationRecord]:
        """The newest conversations; see the repository of the same name."""
        return self.records.page(limit, before, " ".join(search.split()))

    def get(self, conversation_id: str) -> ConversationRecord:
        """One conversation.

        Raises:
            NotFound: it was deleted, or never was.
        """
        try:
            return self.records.get(conversation_id)
        except RecordNotFound:
            raise NotFound("This conversation is not there any more; begin a new one, or open another of the list.") from None

    def rename(self, conversation_id: str, title: str) -> ConversationRecord:
        """Give it another title.

        Raises:
            NotFound. InvalidInput: the title is empty or too long.
        """
        self.get(conversation_id)
        return self.records.change(conversation_id, title=checked_title(title))

    def remove(self, conversation_id: str) -> ConversationRecord:
        """Delete it with everything that was said in it. Raises NotFound."""
        record = self.get(conversation_id)
        self.records.remove(conversation_id)
        return record

    def set_system(self, conversation_id: str, system: str) -> None:
        """What the model is told before this conversation, from now on. Raises NotFound."""
        if self.get(conversation_id).system != system.strip():
            self.records.change(conversation_id, system=system.strip())

    def look(self, conversation_id: str, leaf_id: str) -> None:
        """Remember which branch is looked at, for the next time that the conversation is opened. Raises NotFound."""
        if self.get(conversation_id).leaf_id != leaf_id:
            self.records.change(conversation_id, leaf_id=leaf_id)

    def branch(self, conversation_id: str, leaf_id: str = "") -> list[Placed]:
        """The messages from the first one to a leaf; to the one that was looked at last where it is left out.

        Raises:
            NotFound: the conversation, or the message in it.
        """
        record = self.get(conversation_id)
        messages = self.records.messages(conversation_id)
        wanted = leaf_id or record.leaf_id
        if leaf_id and all(message.id != leaf_id for message in messages):
            raise NotFound("This message is not there any more; open its conversation again.")
        return branch_of(messages, wanted)

    def end_of(self, conversation_id: str, message_id: str) -> str:
        """The leaf that one comes to from a message by what was said last at each fork."""
        children: dict[str, str] = {}
        for message in self.records.messages(conversation_id):  # oldest first, so that the newest one stays
            children[message.parent_id] = message.id
        while message_id in children:
            message_id = children[message_id]
        return message_id

    def ask(self, conversation_id: str, parent_id: str, text: str) -> MessageRecord:
        """Store a message of the user behind another one; the first one of all has no parent, and gives the title.

        Raises:
            NotFound. InvalidInput: there is no text.
        """
        if not text.strip():
            raise InvalidInput("There is no message to answer; type one.")
        record = self.get(conversation_id)
        said = self._say(MessageRecord(files.new_id(), conversation_id, parent_id, "user", text.strip(), time.time()))
        if record.title == UNTITLED:
            self.records.change(conversation_id, title=title_from(text))
        return said

    def answer(self, question: MessageRecord, text: str, stamp: Stamp) -> MessageRecord:
        """Store a reply to a message, beside those that it has. Raises NotFound: the conversation was deleted meanwhile."""
        record = MessageRecord(
            id=files.new_id(),
            conversation_id=question.conversation_id,
            parent_id=question.id,
            role="assistant",
            content=text,
            created_at=time.time(),
            voice=stamp.adapter,
            adapter_id=stamp.adapter_id,
            adapter_sha256=stamp.adapter_sha256,
            base=stamp.base,
            stamp=measured(stamp),
        )
        return self._say(record)

    def take_back(self, message: MessageRecord) -> None:
        """Delete a message that nobody could answer, and its conversation where it was the first."""
        self.records.take_back(message.id)

    def export(self, conversation_id: str, form: str = "markdown") -> Path:
        """Write a conversation into a file; returns its path.

        Args:
            form: "markdown" has the branch that was looked at last, "json" all of them.

        Raises:
            NotFound. InvalidInput: another form. OutOfSpace.
        """
        if form not in FORMS:
            raise InvalidInput(f"There is no form {form!r} for conversations; choose {' or '.join(FORMS)}.")
        record = self.get(conversation_id)
        if form == "markdown":
            text = as_markdown(record, [placed.message for placed in self.branch(conversation_id)])
        else:
            text = as_json(record, self.records.messages(conversation_id))
        target = self.exports / f"{file_stem('conversation', record.title, record.id)}.{FORMS[form]}"
        try:
            files.write_file(target, text.encode("utf-8", "replace"))
        except OSError as error:
            raise OutOfSpace(f"The conversation could not be written: {error.strerror or error}. Free some space and try again.") from None
        return target

    def _say(self, record: MessageRecord) -> MessageRecord:
        try:
            return self.records.say(record)
        except RecordNotFound:
            raise NotFound("This conversation was deleted meanwhile; begin a new one.") from None


class Recorded:
    """A reply on its way that is stored when it ends, whatever ends it; iterate for its pieces.

    What iterates must go on to the end: a listener that goes away calls `leave`, which ends it soon.

    Args:
        stream: the reply. question: the message that it answers; a question whose reply failed before its first word is
            taken back. is_new: whether the question was stored for this reply.
    """

    def __init__(self, conversations: Conversations, question: MessageRecord, stream: "Stream", *, is_new: bool) -> None:
        self._conversations, self._question, self._stream, self._is_new = conversations, question, stream, is_new
        self._why = ""
        self.message: MessageRecord | None = None  # the stored reply, once the iteration has ended

    def __iter__(self) -> Iterator[str]:
        said: list[str] = []
        try:
            for piece in self._stream:
                said.append(piece)
                yield piece
        except BaseException:
            self._why = self._why or FAILED
            raise
        finally:
            self._store("".join(said))

    def cancel(self) -> None:
        """Stop soon; what was said so far is stored."""
        self._stream.cancel()

    def leave(self) -> None:
        """Nobody listens any more: stop soon, and say so in what is stored."""
        if self.message is None:
            self._why = LEFT
        self._stream.cancel()

    def _store(self, text: str) -> None:
        if self._why == FAILED and not text:
            if self._is_new:
                self._conversations.take_back(self._question)
            return
        self.message = self._conversations.answer(self._question, text, self._stream.stamp_so_far(self._why))


def branch_of(messages: Iterable[MessageRecord], leaf_id: str) -> list[Placed]:
    """The messages from the first one to a leaf, each with its siblings."""
    by_id: dict[str, MessageRecord] = {}
    siblings: dict[str, list[str]] = {}
    for message in messages:
        by_id[message.id] = message
        siblings.setdefault(message.parent_id, []).append(message.id)
    branch: list[Placed] = []
    while leaf_id in by_id:
        message = by_id.pop(leaf_id)  # a ring, which nothing here makes, would end
        branch.append(Placed(message, tuple(siblings[message.parent_id])))
        leaf_id = message.parent_id
    return branch[::-1]


def checked_title(title: str) -> str:
    """A title in one line.

    Raises:
        InvalidInput: it is empty or too long.
    """
    clean = " ".join(_seen(title).split())
    if not clean or len(clean) > MAX_TITLE:
        raise InvalidInput(f"The title has {len(clean)} characters; type one of 1 to {MAX_TITLE}.")
    return clean


def title_from(text: str) -> str:
    """The beginning of a message as a title."""
    clean = " ".join(_seen(text).split())
    return clean if len(clean) <= MAX_TITLE else f"{clean[: MAX_TITLE - 1].rstrip()}…"


def _seen(text: str) -> str:
    """Without characters that one cannot see."""
    return "".join(char if not unicodedata.category(char).startswith("C") else " " for char in text) if text.strip() else ""


def as_markdown(record: ConversationRecord, messages: Sequence[MessageRecord]) -> str:
    """A branch as people read it; what was said stands as it was said."""
    parts = [f"# {record.title}"]
    if record.system:
        parts += ["## System prompt", record.system]
    for message in messages:
        who = f"{message.voice or 'base'} ({message.base})" if message.role == "assistant" else "You"
        parts += [f"## {who}", message.content or "*(nothing)*"]
    return "\n\n".join(parts) + "\n"


def as_json(record: ConversationRecord, messages: Sequence[MessageRecord]) -> str:
    """Everything that is known of a conversation, all its branches."""
    whole: dict[str, Any] = {**asdict(record), "messages": [asdict(message) for message in messages]}
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"
