"""What the repository of evaluations promises, on SQLite and on PostgreSQL alike."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from storage.database import Database
from storage.errors import LeaseLost, RecordNotFound
from storage.evaluations import DONE, INTERRUPTED, RUNNING, STOPPED, Evaluations
from storage.records import EvaluationAnswerRecord, EvaluationCaseRecord, EvaluationRecord, EvaluationVoiceRecord
from tests.records import HOSTILE

PLAN = {"metrics": ["loss", "f1"], "rows": 2}
ONE = EvaluationRecord("e1", STOPPED, "d1", "Ängste 🐦", "h" * 64, "b1", "tiny", PLAN, 2, 1.0)
VOICES = [EvaluationVoiceRecord("e1", 0, "base", "base", "", ""), EvaluationVoiceRecord("e1", 1, "a1", "wizard", "a1", "s" * 64)]
CASES = [EvaluationCaseRecord("e1", number, 10 * number, f"Why {number}?", "x" * 50_000) for number in range(2)]
ANSWER = EvaluationAnswerRecord("e1", 0, 1, 3.5, 7, 2, "Because.", {"f1": 0.5, "chrf": 12.25}, "")
REACHED = replace(VOICES[1], rows=1, values={"loss": 0.5, "f1": 0.5})


@pytest.fixture
def evaluations(database: Database) -> Evaluations:
    evaluations = Evaluations(database)
    evaluations.add(ONE, VOICES, CASES)
    return evaluations


def test_what_goes_in_comes_out(evaluations: Evaluations) -> None:
    assert evaluations.get("e1") == ONE == evaluations.get("e") and evaluations.all() == [ONE]
    assert evaluations.voices(["e1", "none"]) == {"e1": VOICES, "none": []}
    assert evaluations.cases("e1") == CASES and evaluations.cases("e1", 1, 5) == CASES[1:]
    for missing in ("", "f", "%", "_1"):
        with pytest.raises(RecordNotFound):
            evaluations.get(missing)


def test_an_answer_and_what_its_voice_reached_are_kept_together(evaluations: Evaluations) -> None:
    assert evaluations.claim(ONE, "me", 2.0)
    evaluations.keep(ANSWER, REACHED, "me", 3.0)
    assert evaluations.answers("e1") == [ANSWER] and evaluations.voices(["e1"])["e1"] == [VOICES[0], REACHED]
    assert evaluations.get("e1") == replace(ONE, state=RUNNING, owner="me", beat_at=3.0)
    assert evaluations.of_adapter("a1") == [(evaluations.get("e1"), REACHED)]
    hostile = replace(ANSWER, place=0, nats=None, answer=str(HOSTILE["text"]), scores={"long": HOSTILE["long"]}, error="ä" * 5000)
    evaluations.keep(hostile, VOICES[0], "me", 4.0)
    [first, second] = evaluations.answers("e1", [0, 5])
    assert first.place == 0 and "🐦" in first.answer and first.scores == {"long": HOSTILE["long"]} and second == ANSWER


def test_it_is_run_by_one_at_a_time(evaluations: Evaluations) -> None:
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: evaluations.claim(ONE, f"owner {n}", 2.0), range(8)))
    assert sum(won) == 1
    owner = evaluations.get("e1").owner
    assert evaluations.beat("e1", owner, 5.0) and not evaluations.beat("e1", "somebody", 6.0) and evaluations.get("e1").beat_at == 5.0
    assert evaluations.claim(evaluations.get("e1"), "heir", 7.0)  # it was seen to be dead
    with pytest.raises(LeaseLost):
        evaluations.keep(ANSWER, REACHED, owner, 8.0)
    assert evaluations.answers("e1") == [] and evaluations.voices(["e1"])["e1"] == VOICES
    assert not evaluations.end("e1", owner, DONE, "", 9.0) and evaluations.end("e1", "heir", DONE, "", 9.0)
    assert (evaluations.get("e1").state, evaluations.get("e1").finished_at) == (DONE, 9.0)


def test_whoever_stops_it_ends_the_owners_say(evaluations: Evaluations) -> None:
    assert not evaluations.stop("e1", "by hand", 2.0)
    evaluations.claim(ONE, "me", 2.0)
    assert evaluations.stop("e1", "by hand", 3.0)
    assert not evaluations.beat("e1", "me", 4.0) and not evaluations.end("e1", "me", INTERRUPTED, "", 4.0)
    assert (evaluations.get("e1").state, evaluations.get("e1").reason) == (STOPPED, "by hand")


def test_it_goes_with_all_that_belongs_to_it(evaluations: Evaluations) -> None:
    evaluations.claim(ONE, "me", 2.0)
    evaluations.keep(ANSWER, REACHED, "me", 3.0)
    evaluations.add(replace(ONE, id="x2", created_at=9.0), [], [])
    assert [one.id for one in evaluations.all()] == ["x2", "e1"] and [one.id for one in evaluations.all(1)] == ["x2"]
    evaluations.remove("e1")
    assert evaluations.cases("e1") == [] == evaluations.answers("e1") == evaluations.of_adapter("a1") and len(evaluations.all()) == 1
    with pytest.raises(LeaseLost):
        evaluations.keep(ANSWER, REACHED, "me", 4.0)
