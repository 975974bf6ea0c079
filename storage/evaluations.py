"""Evaluations with their voices, rows and answers. Every method is one short transaction.

Who runs one writes its sign of life, and whoever else takes it over or stops it ends that: what is kept is fenced by the owner.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Update, delete, insert, select, update
from sqlalchemy.orm import Session

from storage.database import Database
from storage.errors import LeaseLost, RecordNotFound
from storage.records import EvaluationAnswerRecord, EvaluationCaseRecord, EvaluationRecord, EvaluationVoiceRecord
from storage.repositories import to_record
from storage.tables import EvaluationAnswerRow, EvaluationCaseRow, EvaluationRow, EvaluationVoiceRow

RUNNING, DONE, STOPPED, INTERRUPTED, FAILED = "running", "done", "stopped", "interrupted", "failed"
INSERTED = 500  # rows of one statement


class Evaluations:
    """The tables of evaluations."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(
        self, record: EvaluationRecord, voices: Sequence[EvaluationVoiceRecord], cases: Sequence[EvaluationCaseRecord]
    ) -> EvaluationRecord:
        """Insert an evaluation with all that it is about."""
        with self.database.write() as session:
            session.add(EvaluationRow(**asdict(record)))
            session.flush()
            session.add_all(EvaluationVoiceRow(**asdict(voice)) for voice in voices)
            for start in range(0, len(cases), INSERTED):
                session.execute(insert(EvaluationCaseRow), [asdict(case) for case in cases[start : start + INSERTED]])
        return record

    def get(self, evaluation_id: str) -> EvaluationRecord:
        """One evaluation, by its id or a beginning of it that no other has.

        Raises:
            RecordNotFound: there is none.
        """
        starts = EvaluationRow.id.startswith(evaluation_id, autoescape=True)
        with self.database.read() as session:
            found = session.scalars(select(EvaluationRow).where(starts).limit(2)).all() if evaluation_id else []
            if len(found) != 1:
                raise RecordNotFound("evaluation", evaluation_id)
            return to_record(EvaluationRecord, found[0])

    def all(self, limit: int = 100) -> list[EvaluationRecord]:
        """The newest ones, the newest first."""
        query = select(EvaluationRow).order_by(EvaluationRow.created_at.desc(), EvaluationRow.id.desc()).limit(limit)
        with self.database.read() as session:
            return [to_record(EvaluationRecord, row) for row in session.scalars(query)]

    def voices(self, evaluation_ids: Sequence[str]) -> dict[str, list[EvaluationVoiceRecord]]:
        """The voices of some evaluations with what they reached, in their order."""
        query = select(EvaluationVoiceRow).where(EvaluationVoiceRow.evaluation_id.in_(evaluation_ids)).order_by(EvaluationVoiceRow.place)
        found: dict[str, list[EvaluationVoiceRecord]] = {key: [] for key in evaluation_ids}
        with self.database.read() as session:
            for row in session.scalars(query):
                found[row.evaluation_id].append(to_record(EvaluationVoiceRecord, row))
        return found

    def of_adapter(self, adapter_id: str, limit: int = 20) -> list[tuple[EvaluationRecord, EvaluationVoiceRecord]]:
        """What one adapter reached in the newest evaluations that it had a part in."""
        query = select(EvaluationRow, EvaluationVoiceRow).join(EvaluationVoiceRow, EvaluationVoiceRow.evaluation_id == EvaluationRow.id)
        query = query.where(EvaluationVoiceRow.adapter_id == adapter_id)
        with self.database.read() as session:
            rows = session.execute(query.order_by(EvaluationRow.created_at.desc()).limit(limit)).all()
            return [(to_record(EvaluationRecord, one), to_record(EvaluationVoiceRecord, voice)) for one, voice in rows]

    def cases(self, evaluation_id: str, offset: int = 0, limit: int | None = None) -> list[EvaluationCaseRecord]:
        """Its rows, in their order."""
        query = select(EvaluationCaseRow).where(EvaluationCaseRow.evaluation_id == evaluation_id).order_by(EvaluationCaseRow.number)
        with self.database.read() as session:
            return [to_record(EvaluationCaseRecord, row) for row in session.scalars(query.offset(offset).limit(limit))]

    def answers(self, evaluation_id: str, numbers: Sequence[int] | None = None) -> list[EvaluationAnswerRecord]:
        """What the voices made of some rows, or of all."""
        query = select(EvaluationAnswerRow).where(EvaluationAnswerRow.evaluation_id == evaluation_id)
        if numbers is not None:
            query = query.where(EvaluationAnswerRow.number.in_(numbers))
        query = query.order_by(EvaluationAnswerRow.number, EvaluationAnswerRow.place)
        with self.database.read() as session:
            return [to_record(EvaluationAnswerRecord, row) for row in session.scalars(query)]

    def claim(self, record: EvaluationRecord, owner: str, now: float) -> bool:
        """Run what nobody runs, as it was seen; False where somebody else was quicker."""
        as_seen = (EvaluationRow.id == record.id, EvaluationRow.state == record.state, EvaluationRow.owner == record.owner)
        values = {"state": RUNNING, "owner": owner, "beat_at": now, "finished_at": None, "reason": ""}
        with self.database.write() as session:
            return _changed(session, update(EvaluationRow).where(*as_seen).values(values))

    def beat(self, evaluation_id: str, owner: str, now: float) -> bool:
        """The owner lives; False where it is to stop, since it owns this no more."""
        with self.database.write() as session:
            return _changed(session, _owned(evaluation_id, owner).values(beat_at=now))

    def keep(self, answer: EvaluationAnswerRecord, voice: EvaluationVoiceRecord, owner: str, now: float) -> None:
        """Insert an answer, with what its voice has reached by it.

        Raises:
            LeaseLost: the evaluation was stopped, taken over or deleted.
        """
        mine = (EvaluationVoiceRow.evaluation_id == voice.evaluation_id, EvaluationVoiceRow.place == voice.place)
        reached = {"rows": voice.rows, "errors": voice.errors, "values": voice.values}
        with self.database.write() as session:
            if not _changed(session, _owned(answer.evaluation_id, owner).values(beat_at=now)):
                raise LeaseLost
            session.add(EvaluationAnswerRow(**asdict(answer)))
            session.execute(update(EvaluationVoiceRow).where(*mine).values(reached))

    def end(self, evaluation_id: str, owner: str, state: str, reason: str, now: float) -> bool:
        """The owner is done with it; False where it owns this no more."""
        values = {"state": state, "reason": reason, "finished_at": now, "beat_at": now}
        with self.database.write() as session:
            return _changed(session, _owned(evaluation_id, owner).values(values))

    def stop(self, evaluation_id: str, reason: str, now: float) -> bool:
        """Whoever runs it is to stop; False where nobody does."""
        running = update(EvaluationRow).where(EvaluationRow.id == evaluation_id, EvaluationRow.state == RUNNING)
        with self.database.write() as session:
            return _changed(session, running.values(state=STOPPED, reason=reason, finished_at=now))

    def remove(self, evaluation_id: str) -> None:
        """Delete it with its rows and answers, if it is there."""
        with self.database.write() as session:
            session.execute(delete(EvaluationRow).where(EvaluationRow.id == evaluation_id))


def _owned(evaluation_id: str, owner: str) -> Update:
    return update(EvaluationRow).where(EvaluationRow.id == evaluation_id, EvaluationRow.owner == owner, EvaluationRow.state == RUNNING)


def _changed(session: Session, statement: Update) -> bool:
    result: Any = session.execute(statement)
    return bool(result.rowcount)
