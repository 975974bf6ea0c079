"""Metrics of answers against what the packages and SQuAD's own script say, and by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest

from storage.records import EvaluationAnswerRecord, EvaluationCaseRecord, EvaluationRecord, EvaluationVoiceRecord
from studio.errors import InvalidInput
from studio.evaluation.cases import asked, chosen_rows
from studio.evaluation.metrics import Tally, chrf, exact_match, measure, normalised, rouge, token_f1
from studio.evaluation.plan import FAMILIES, METRICS, Plan, checked, parse_metrics
from studio.evaluation.service import Result
from studio.ui.evaluation import show


def test_words_are_those_that_squad_compares() -> None:
    assert normalised("The  Cat, (an animal) sat—on a MAT!") == ["cat", "animal", "sat—on", "mat"]


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The cat.", "cat", 1, 1),
        ("a cat sat", "the cat ran", 0, 0.5),  # of two words each, one in common
        ("cat cat dog", "cat", 0, 0.5),  # precision 1/3, recall 1
        ("", "", 1, 1),
        ("the", "an", 1, 1),  # both say nothing
        ("", "cat", 0, 0),
        ("dog", "cat", 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(answer: str, reference: str, exact: float, f1: float) -> None:
    assert (exact_match(answer, reference), token_f1(answer, reference)) == (exact, pytest.approx(f1))


def test_rouge_is_what_its_package_documents() -> None:
    # The README of rouge_score: "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    found = rouge("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    assert found["rouge1"] == pytest.approx(2 * (6 / 8) * (6 / 9) / (6 / 8 + 6 / 9))
    assert found["rougeL"] == pytest.approx(2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9))
    assert found["rouge2"] == pytest.approx(2 * (2 / 7) * (2 / 8) / (2 / 7 + 2 / 8))


def test_chrf_is_from_nothing_to_all() -> None:
    assert chrf("The cat sat.", "The cat sat.") == pytest.approx(100) and chrf("xyz", "The cat sat.") == 0
    assert 0 < chrf("The cat sits.", "The cat sat.") < 100


def test_a_tally_weighs_tokens_in_the_loss_and_rows_in_all_else() -> None:
    tally = Tally()
    tally.add(2.0, 1, 1, {"f1": 1.0}, "")
    tally.add(1.0, 3, 0, {"f1": 0.0}, "")
    tally.add(None, 0, 0, {}, "too long")
    assert (tally.rows, tally.errors) == (3, 1)
    assert tally.values == pytest.approx({"loss": 0.75, "perplexity": math.exp(0.75), "accuracy": 0.25, "f1": 0.5})


def test_metrics_are_named_in_any_order_and_by_their_parts() -> None:
    assert parse_metrics(["f1", " Perplexity ", "rougeL"]) == ("loss", "rouge", "f1") and parse_metrics([""]) == tuple(FAMILIES)
    with pytest.raises(InvalidInput, match="There is no metric 'bleu'; choose among loss, rouge"):
        parse_metrics(["bleu"])
    assert {key for family in FAMILIES.values() for key in family} == set(METRICS)
    assert set(measure(list(FAMILIES), "a b", "b c")) | set(FAMILIES["loss"]) == set(METRICS)


def test_a_plan_is_held_to_its_bounds() -> None:
    with pytest.raises(InvalidInput, match="at most 16"):
        checked(Plan(), [str(i) for i in range(17)])
    with pytest.raises(InvalidInput, match="max_tokens is 0"):
        checked(Plan(max_tokens=0), ["base"])


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_what_is_asked_is_what_stands_before_the_last_answer() -> None:
    row = [turn("system", "Be brief."), turn("user", "1"), turn("assistant", "one"), turn("user", "2"), turn("assistant", "two")]
    found = asked(row)
    assert (found.prompt, found.reference, found.question) == (row[:4], "two", "2")
    assert asked([turn("text", "A passage.")]).prompt == [] == asked([turn("assistant", "Hi")]).prompt


def test_rows_are_drawn_without_repetition() -> None:
    assert chosen_rows(range(5), Plan()) == [0, 1, 2, 3, 4] == chosen_rows(range(5), Plan(rows=9))
    drawn = chosen_rows(range(100), Plan(rows=10, seed=3))
    assert len(set(drawn)) == 10 and drawn == sorted(drawn) and drawn != chosen_rows(range(100), Plan(rows=10, seed=4))


def result(**values: Any) -> Result:
    record = EvaluationRecord("e1", "done", "d", "<b>birds", "h", "b", "tiny", {}, 1, 1.0)
    voices = [
        EvaluationVoiceRecord("e1", 0, "base", "base", "", "", 1, 0, {"loss": 3.0, "f1": 0.5}),
        EvaluationVoiceRecord("e1", 1, "a1", "<i>wizard", "a1", "a" * 64, 1, 1, {"loss": 2.0, "f1": 0.25, **values}),
    ]
    return Result(record, voices)


def test_the_table_marks_the_best_and_escapes_names() -> None:
    drawn = show.one(result(chrf=41.0), [], 0, now=2.0)
    assert "<b>birds" not in drawn and "<i>wizard" not in drawn and "&lt;i&gt;wizard" in drawn
    best = [cell.split("</strong>")[0].rpartition(">")[2] for cell in drawn.split("<strong")[1:]]
    assert best == ["50.0%", "2.0000"]  # nobody is better than nobody: chrF has one number
    assert "1 error" in drawn and 'aria-label="Loss by voice: base 3.0000, &lt;i&gt;wizard 2.0000"' in drawn
    assert "Go on with it" not in drawn and "Stop" not in drawn


def test_answers_are_shown_as_text_with_their_errors() -> None:
    case = EvaluationCaseRecord("e1", 0, 4, "<u>Why?", "Because.")
    said = [EvaluationAnswerRecord("e1", 0, 0, 4.0, 2, 1, "<script>", {"f1": 0.5}), EvaluationAnswerRecord("e1", 0, 1, error="Too <long>.")]
    drawn = show.one(result(), [(case, said)], 0, now=2.0)
    assert "<script>" not in drawn and "<u>" not in drawn and "<em>Too &lt;long&gt;.</em>" in drawn and "loss 2.00, F1 50.0%" in drawn


def test_one_that_was_interrupted_can_be_gone_on_with() -> None:
    found = result()
    left = Result(replace(found.record, state="interrupted", rows=4, reason="It <ended>."), found.voices)
    drawn = show.one(left, [], 0, now=2.0)
    assert "Go on with it" in drawn and "2 of 8 answers" in drawn and "It &lt;ended&gt;." in drawn
    assert "interrupted, 25 %" in show.listed([left], "e1", now=2.0)
    assert show.of_adapter([]) == "" and "2.0000" in show.of_adapter([(found.record, found.voices[1])], now=2.0)
