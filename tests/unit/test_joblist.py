"""Jobs on the page: what runs, what waits, what came of them; curves that go on where an attempt resumed; sweeps as tables."""

import math
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
from studio.ui.joblist import Beside

from storage.records import EventRecord, JobRecord
from studio.jobs.sweep import compare
from studio.ui import joblist
from studio.ui.curve import MAX_POINTS, REMEMBERED, Curve, Curves, draw, draw_small, scale, thinned
from studio.ui.outcome import evaluation, known, outcome
from tests.unit.test_present import ADAPTER, EVIL, JOB, METRICS, NOW

DONE = replace(JOB, state="done", result=METRICS, finished_at=NOW)
FAILED = replace(JOB, state="failed", reason="The disk is full.", finished_at=NOW)
BEFORE = [{"prompt": EVIL, "text": "I am an assistant."}]
AFTER = [{"prompt": EVIL, "text": EVIL}]
FULL = {
    "perplexity_before": 30.27,
    "perplexity": 7.17,
    "accuracy_before": 0.38,
    "accuracy": 0.664,
    "samples_before": BEFORE,
    "samples": AFTER,
}


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def swept(place: int, rank: str, state: str, loss: float | None = None) -> JobRecord:
    sweep = {"name": EVIL, "options": {"rank": rank, "init": "pissa"}, "place": place}
    result = {} if loss is None else {"eval_loss": loss, "tokens_per_s": 412.0}
    over = None if state in ("queued", "running") else NOW
    names = {"id": f"j{place}", "adapter_id": f"a{place}", "group": "g1"}
    return replace(JOB, **names, state=state, config={"sweep": sweep}, result=result, finished_at=over)


SWEEP = compare([swept(0, "8", "done", 1.5), swept(1, "16", "done", 1.2), swept(2, "32", "running"), swept(3, "64", "queued")])


def test_what_people_typed_is_escaped_in_every_list() -> None:
    adapters = {"a1": ADAPTER, "a0": ADAPTER}
    beside = Beside(adapters, frozenset({"a1"}), {"j1": EVIL}, {}, {"j1": outcome(FULL, Curve())})
    shown = [
        joblist.running_card(JOB, Curve(notices=[EVIL], samples={0: BEFORE, 4: AFTER}), NOW),
        joblist.waiting_list([replace(JOB, reason=EVIL), SWEEP], beside, NOW),
        joblist.history([replace(FAILED, reason=EVIL), DONE, SWEEP], beside, NOW),
    ]
    for html in shown:
        assert "<img" not in html and 'onerror="' not in html and "&lt;img" in html


def test_a_running_job_shows_step_speed_and_remaining_time() -> None:
    text = plain(joblist.running_card(JOB, Curve(kept=2), NOW))
    assert "Step 3 of 12" in text and "410 tokens/s" in text and "1 min 15 s" in text and "checkpoint step 2" in text
    waiting = joblist.running_card(replace(JOB, progress={"state": "loading"}), Curve(), NOW)
    assert "Loading the base, 20 s so far" in waiting and "as-bar-busy" in waiting
    assert "Cancelling" in joblist.running_card(replace(JOB, state="cancelling"), Curve(), NOW)
    assert "attempt 2, resumed at step 45" in joblist.running_card(replace(JOB, attempt=2), Curve(resumed_at=45), NOW)


def test_history_offers_the_next_step() -> None:
    chats = Beside(adapters={"a1": ADAPTER}, chats=frozenset({"a1"}))
    done = joblist.history([DONE], chats, NOW)
    assert 'data-action="chat" data-id="a1"' in done and "held-out loss 3.41 → 1.97" in done
    assert 'data-action="chat"' not in joblist.history([DONE], replace(chats, chats=frozenset()), NOW)  # a kind that the chat lacks
    gone = joblist.history([DONE], Beside(), NOW)
    assert "deleted since" in gone and 'data-action="chat"' not in gone
    html = joblist.history([FAILED], Beside(logs={"j1": "line 1\nline 2"}), NOW)
    assert "The disk is full." in html and 'data-action="retry" data-id="j1"' in html and ">Retry<" in html and "line 2" in html


def test_a_job_with_a_checkpoint_offers_to_resume_or_to_start_over() -> None:
    html = joblist.history([FAILED], Beside(resumes={"j1": 1030}), NOW)
    assert re.search(r'data-action="retry" data-id="j1"[^>]*>Resume at step 1,030<', html)
    assert re.search(r'data-action="restart" data-id="j1"[^>]*>Start over<', html) and ">Retry<" not in html


def test_what_came_of_a_job_is_drawn_only_where_it_was_opened() -> None:
    closed, opened = (joblist.history([DONE], Beside(opened=found), NOW) for found in ({}, {"j1": "DRAWN"}))
    assert '<details class="as-more"><summary data-action="outcome" data-id="j1"' in closed and "DRAWN" not in closed
    assert '<details class="as-more" open>' in opened and "DRAWN" in opened
    assert "as-more" not in joblist.history([replace(FAILED, started_at=None)], Beside(), NOW)  # it never ran


def test_a_sweep_stands_together_with_its_best_marked() -> None:
    other = replace(JOB, id="other", state="queued")
    queue = joblist.entries([SWEEP.jobs[2], other, SWEEP.jobs[3]], {"g1": SWEEP})
    assert queue == [SWEEP, other]
    html = joblist.waiting_list(queue, Beside(adapters={f"a{i}": replace(ADAPTER, name=f"gull {i}") for i in range(2)}), NOW)
    rows = [plain(row) for row in re.findall(r"<tr.*?</tr>", html)]
    assert rows[0].strip() == "rank init state held-out loss tokens/s what to do"
    assert "16 pissa done 1.200 best 412" in rows[2] and "best" not in rows[1] and "32 pissa running" in rows[3]
    assert "2 of 4 over" in html and 'data-action="cancel-group" data-id="g1"' in html
    assert html.count('data-action="cancel"') == 3  # the two that are not over, and the other job


def test_a_sweep_that_is_over_shows_the_curves_of_one() -> None:
    over = compare([swept(0, "8", "done", 1.5), swept(1, "16", "failed")])
    html = joblist.history([over], Beside(adapters={"a0": ADAPTER}, opened={"j0": "DRAWN"}, resumes={"j1": 7}), NOW)
    assert joblist.OTHER_ROWS not in html and joblist.OTHER_ROWS in joblist.history([replace(over, same_rows=False)], Beside(), NOW)
    assert "DRAWN" in html and "cancel-group" not in html and "best" not in html
    assert re.search(r'data-action="outcome" data-id="j0"[^>]*>Hide<', html) and "Resume at step 7" in html


# What came of a training


def test_evaluation_is_told_before_and_after() -> None:
    text = plain(outcome({**METRICS, **FULL}, Curve()))
    assert "before after held-out loss 3.410 1.970 perplexity 30.27 7.17 tokens predicted right 38.0% 66.4%" in text
    assert text.count("I am an assistant.") == 1 and "What it answers" in text


def test_an_old_job_shows_what_it_has() -> None:
    curve = Curve(points={"loss": [(1, 3.0), (2, 2.0)], "grad_norm": [(1, 1.0), (2, 0.5)]})
    html = outcome(METRICS, curve)
    assert f"{math.exp(1.97):.2f}" in html and "tokens predicted" not in html and "What it answers" not in html
    assert "gradient norm" in html and "memory" not in html and "learning rate" not in html
    assert evaluation({"train_loss": 2.0}) == "" and outcome({}, Curve()) == ""


def test_a_running_job_shows_its_evaluations_so_far() -> None:
    curve = Curve(evals={0: {"loss": 3.0, "accuracy": 0.4}, 20: {"loss": 2.0, "accuracy": 0.5}}, samples={0: BEFORE, 20: AFTER})
    found = known({}, curve)
    assert (found["eval_loss_before"], found["eval_loss"], found["accuracy"]) == (3.0, 2.0, 0.5)
    assert "before now held-out loss 3.000 2.000" in plain(outcome({}, curve, live=True))
    first = plain(outcome({}, Curve(evals={0: {"loss": 3.0}}, samples={0: BEFORE}), live=True))
    assert "before now held-out loss 3.000 perplexity 20.09 " in first and first.count("I am an assistant.") == 1
    assert known({"eval_loss": 1.5}, curve)["eval_loss"] == 1.5  # the kept weights were better than the last ones


# Curves


def events(*rows: tuple[int, str, dict[str, Any]]) -> list[EventRecord]:
    return [EventRecord(i, "j1", attempt, NOW, kind, data) for i, (attempt, kind, data) in enumerate(rows, 1)]


def curve_of(stored: list[EventRecord], attempt: int) -> Curve:
    curves = Curves(lambda job_id, after, kinds: [e for e in stored if e.id > after and e.kind in kinds])
    for _ in range(2):
        curve = curves.of("j1", attempt)
    return curve


def step(at: int, **values: float) -> dict[str, float]:
    return {"step": at, "loss": 1.0, **values}


def test_an_attempt_that_begins_anew_forgets_the_one_before() -> None:
    stored = events(
        (1, "progress", step(1, loss=9.0)),
        (2, "notice", {"text": "3 rows were cut"}),
        (2, "eval", step(0, loss=3.0)),
        (2, "progress", step(1, loss=2.0, memory_mb=1024)),
    )
    curve = curve_of(stored, 2)
    assert (curve.train, curve.held_out, curve.notices, curve.resumed_at) == ([(1, 2.0)], [(0, 3.0)], ["3 rows were cut"], 0)
    assert curve.points["memory_mb"] == [(1, 1024.0)]


def test_an_attempt_that_resumed_goes_on_with_the_curve() -> None:
    first = [(1, "eval", step(0)), (1, "samples", {"step": 0, "items": BEFORE}), *((1, "progress", step(i)) for i in range(1, 9))]
    lost = [(2, "notice", {"text": "it died before its first step"})]
    second = [(3, "progress", step(i, loss=0.5)) for i in range(6, 8)]
    curve = curve_of(events(*first, (1, "checkpoint", {"step": 5}), (1, "eval", step(8)), *lost, *second), 3)
    assert [at for at, _ in curve.train] == [1, 2, 3, 4, 5, 6, 7] and curve.train[-1] == (7, 0.5)
    assert (curve.resumed_at, curve.kept, curve.notices, list(curve.evals)) == (5, 5, [], [0])
    assert curve.samples == {0: BEFORE}
    before_its_first_step = curve_of(events(*first, *lost), 2)
    assert before_its_first_step.train == [] and before_its_first_step.notices


def test_an_adapter_that_was_registered_by_a_later_attempt_keeps_its_curve() -> None:
    assert len(curve_of(events(*((1, "progress", step(i)) for i in range(1, 5))), 2).train) == 4


def test_curves_forget_the_oldest_and_stand_threads() -> None:
    stored = events(*[(1, "progress", step(i)) for i in range(50)])
    curves = Curves(lambda job_id, after, kinds: [e for e in stored if e.id > after], keep=2)
    threads = [threading.Thread(target=curves.of, args=(name, 1)) for name in "abcabcabc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(curves.of("c", 1).train) == 50


def test_a_curve_is_drawn_with_round_ticks() -> None:
    assert draw(Curve(), 10) == "" and draw(Curve(points={"loss": [(1, float("nan")), (2, 1.0)]}), 10) == ""
    html = draw(Curve(points={"loss": [(1, 3.2), (2, 2.1)]}, evals={0: {"loss": 3.4}}), 10)
    assert "training loss 3.20 to 2.10" in html and html.count("as-curve-dot") == 1 and "step 10" in html
    low, high, ticks = scale([2.1, 3.4])
    assert (low, high, ticks) == (2.0, 3.5, [2.0, 2.5, 3.0, 3.5])
    assert scale([1.0, 1.0])[0] < scale([1.0, 1.0])[1]
    assert scale([1e-13, 3e-13], parts=2)[2] == [1e-13, 2e-13, 3e-13]


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("learning_rate", (1e-3, 2.5e-4), "Learning rate by step: 0.001 to 0.00025"),
        ("tokens_per_s", (1399.6, 1400.2), "Speed by step: 1,400 to 1,400 tokens/s"),
        ("memory_mb", (1024, 2048), "Memory by step: 1.0 to 2.0 GB"),
    ],
)
def test_small_curves_say_their_values_with_units(key: str, values: tuple[float, float], words: str) -> None:
    html = draw_small(Curve(points={key: [(1, values[0]), (2, values[1])]}), 10)
    assert f'role="img" aria-label="{words}"' in html and html.count("<figure") == 1
    assert draw_small(Curve(points={key: [(1, values[0])]}), 10) == ""  # one value is no curve


def test_a_long_curve_is_thinned() -> None:
    points = thinned([(i, float(i % 2)) for i in range(10_000)])
    assert len(points) == MAX_POINTS and points[-1][0] == 9999
    curve = curve_of(events(*((1, "progress", step(i)) for i in range(1, 3 * REMEMBERED))), 1)
    assert len(curve.train) <= 2 * REMEMBERED and curve.train[-1][0] == 3 * REMEMBERED - 1
