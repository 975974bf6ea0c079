"""Conversations with their trees of messages, and votes between replies. Every method is one short transaction."""

from dataclasses import asdict

from sqlalchemy import delete, func, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import RecordNotFound
from storage.records import ConversationRecord, MessageRecord, VoteRecord
from storage.repositories import to_record
from storage.shelf import count_vote
from storage.tables import ConversationRow, MessageRow, VoteRow

Key = tuple[float, str]  # (updated_at, id) of the last conversation of a page


class Conversations:
    """Conversations and what was said in them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, record: ConversationRecord) -> ConversationRecord:
        """Insert."""
        with self.database.write() as session:
            session.add(ConversationRow(**asdict(record)))
        return record

    def get(self, conversation_id: str) -> ConversationRecord:
        """One conversation.

        Raises:
            RecordNotFound: there is none.
        """
        with self.database.read() as session:
            row = session.get(ConversationRow, conversation_id)
            if row is None:
                raise RecordNotFound("conversation", conversation_id)
            return to_record(ConversationRecord, row)

    def page(self, limit: int, before: Key | None = None, search: str = "") -> list[ConversationRecord]:
        """Some conversations, the one with the newest message first.

        Args:
            before: where the page before ended. search: words that stand in the title or in a message, in small or in
                capital letters (SQLite tells them apart outside a to z).
        """
        query = select(ConversationRow).order_by(ConversationRow.updated_at.desc(), ConversationRow.id.desc()).limit(limit)
        if before is not None:
            query = query.where(tuple_(ConversationRow.updated_at, ConversationRow.id) < before)
        if search:
            said = select(MessageRow.id).where(
                MessageRow.conversation_id == ConversationRow.id, MessageRow.content.icontains(search, autoescape=True)
            )
            query = query.where(or_(ConversationRow.title.icontains(search, autoescape=True), said.exists()))
        with self.database.read() as session:
            return [to_record(ConversationRecord, row) for row in session.scalars(query)]

    def change(self, conversation_id: str, **values: str) -> ConversationRecord:
        """Set its title, system prompt or leaf.

        Raises:
            RecordNotFound: it is gone.
        """
        with self.database.write() as session:
            session.execute(update(ConversationRow).where(ConversationRow.id == conversation_id).values(values))
        return self.get(conversation_id)

    def remove(self, conversation_id: str) -> None:
        """Delete it with all its messages, if it is there."""
        with self.database.write() as session:
            session.execute(delete(ConversationRow).where(ConversationRow.id == conversation_id))

    def messages(self, conversation_id: str) -> list[MessageRecord]:
        """All messages of all its branches, oldest first."""
        query = select(MessageRow).where(MessageRow.conversation_id == conversation_id)
        with self.database.read() as session:
            return [to_record(MessageRecord, row) for row in session.scalars(query.order_by(MessageRow.created_at, MessageRow.id))]

    def say(self, record: MessageRecord) -> MessageRecord:
        """Insert a message; its conversation is the newest one now, and looks at the message's branch.

        Raises:
            RecordNotFound: the conversation is gone.
        """
        talk = update(ConversationRow).where(ConversationRow.id == record.conversation_id)
        try:
            with self.database.write() as session:
                session.execute(talk.values(updated_at=record.created_at, leaf_id=record.id))
                session.add(MessageRow(**asdict(record)))
        except IntegrityError:
            raise RecordNotFound("conversation", record.conversation_id) from None
        return record

    def take_back(self, message_id: str) -> None:
        """Delete a message that nothing follows, and a conversation in which nothing else was said."""
        with self.database.write() as session:
            row = session.get(MessageRow, message_id)
            if row is None or session.scalar(select(MessageRow.id).where(MessageRow.parent_id == message_id).limit(1)):
                return
            session.delete(row)
            session.flush()
            talk = ConversationRow.id == row.conversation_id
            others = select(func.count()).select_from(MessageRow).where(MessageRow.conversation_id == row.conversation_id)
            if session.scalar(others):
                session.execute(update(ConversationRow).where(talk).values(leaf_id=row.parent_id))
            else:
                session.execute(delete(ConversationRow).where(talk))


class Votes:
    """What people liked best."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, record: VoteRecord) -> VoteRecord:
        """Insert, and count it for the adapters in it."""
        with self.database.write() as session:
            session.add(VoteRow(**asdict(record)))
            session.flush()
            count_vote(session, record.compared, record.winner)
        return record

    def all(self) -> list[VoteRecord]:
        """All votes, oldest first."""
        with self.database.read() as session:
            return [to_record(VoteRecord, row) for row in session.scalars(select(VoteRow).order_by(VoteRow.created_at, VoteRow.id))]
