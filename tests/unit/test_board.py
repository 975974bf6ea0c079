"""Jobs on the page: the board, the page of one, several side by side; curves that go on where an attempt resumed."""

import math
import re
import threading
from dataclasses import replace
from typing import Any

import pytest

from storage.records import AttemptRecord, EventRecord, JobRecord, QueueRecord
from storage.watching import Tally
from studio.jobs.logs import LogTail
from studio.jobs.sweep import compare
from studio.training.config import make_config
from studio.ui.curve import MAX_POINTS, REMEMBERED, Curve, Curves, draw, draw_small, scale, thinned
from studio.ui.jobs import overlay, show_board, show_job
from studio.ui.jobs.parts import Beside, actions, spark
from studio.ui.jobs.show_job import preset_of
from studio.ui.jobs.show_sweep import OTHER_ROWS
from studio.ui.jobs.usage import draw_usage
from studio.ui.outcome import evaluation, known, outcome
from tests.records import BASE, DATASET
from tests.unit.test_present import ADAPTER, EVIL, JOB, METRICS, NOW

DONE = replace(JOB, state="done", result=METRICS, finished_at=NOW)
FAILED = replace(JOB, state="failed", reason="The disk is full.", finished_at=NOW)
BEFORE = [{"prompt": EVIL, "text": "I am an assistant."}]
AFTER = [{"prompt": EVIL, "text": EVIL}]
FULL_CONFIG = make_config().model_dump()
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
PAUSED = replace(JOB, state="paused", reason="Paused at step 40.")
WAITING = replace(JOB, id="j2", state="queued", progress={}, attempt=0, started_at=None)
ORIGIN = show_job.Origin(BASE, replace(DATASET, name=EVIL), replace(JOB, id="j0"), replace(JOB, id="j3"), "g1", 4)
QUEUE = QueueRecord(held=True, reason=EVIL, stop_after=7)


def test_what_people_typed_is_escaped_everywhere() -> None:
    beside = Beside({"a1": ADAPTER, "a0": ADAPTER}, frozenset({"a1"}), {}, {"j1": [(1, 3.0), (2, 2.0)]})
    curve = Curve(notices=[EVIL], samples={0: BEFORE, 4: AFTER}, points={"loss": [(1, 3.0), (2, 2.0)]})
    evil = replace(FAILED, reason=EVIL, device=EVIL, config={**FULL_CONFIG, "targets": EVIL, "dataset_name": EVIL})
    other = replace(evil, id="j9", config={**evil.config, "targets": "x"}, base_id="b9")
    shown = [
        show_board.bar(1, 1, Tally(2, 3), QUEUE),
        show_board.running_list([replace(JOB, reason=EVIL, device=EVIL)], {"j1": curve}, beside, NOW),
        show_board.waiting_list([replace(WAITING, reason=EVIL)], 1, beside, NOW),
        show_board.paused_list([PAUSED], beside, NOW),
        show_board.history([evil, DONE, SWEEP], beside, 0, NOW),
        show_board.sweeps_list([SWEEP], beside, NOW),
        show_job.head(evil, beside, None, {}, NOW),
        show_job.head(WAITING, beside, 3, {"j5": EVIL}, NOW),
        show_job.live(JOB, curve, beside, NOW),
        show_job.configuration(evil.config) + show_job.lineage(evil, ORIGIN, beside),
        show_job.attempts([AttemptRecord("j1", 1, "host", EVIL, NOW, NOW, "failed", EVIL)], NOW),
        show_job.log(LogTail([EVIL], False, 1, 9), EVIL),
        show_job.gone(EVIL),
        overlay.overlay([(evil, curve), (other, curve)], beside, {"b1": EVIL}),
    ]
    for html in shown:
        assert "<img" not in html and 'onerror="' not in html and "&lt;img" in html


# The board


def test_the_bar_counts_and_says_why_the_queue_is_held() -> None:
    text = plain(show_board.bar(2, 1, Tally(1234, 9), replace(QUEUE, reason="Held by hand.")))
    assert "2 running · 1,234 waiting · 1 paused · 9 over" in text and "Release the queue" in text
    assert "Held by hand. What runs goes on; nothing else starts." in text
    html = show_board.bar(0, 0, Tally(0, 0), QueueRecord(stop_after=7))
    assert '<option value="7" selected>7 failures' in html and "Hold the queue" in html and "paused" not in html


def test_ticked_jobs_can_be_compared_from_two_on() -> None:
    assert show_board.chosen_bar([], 8) == "" and "Tick another one" in show_board.chosen_bar(["a"], 8)
    assert 'data-action="open" data-id="a,b"' in show_board.chosen_bar(["a", "b"], 8)
    assert "At most 2" in show_board.chosen_bar(["a", "b", "c"], 2) and "Compare" not in show_board.chosen_bar(["a", "b", "c"], 2)


def test_a_running_job_shows_step_speed_and_remaining_time() -> None:
    text = plain(show_board.where(JOB, NOW))
    assert text.strip() == "Step 3 of 12 · 25 % · 410 tokens/s · 1 min 15 s left · loss 2.50"
    loading = show_board.running_list([replace(JOB, progress={"state": "loading"})], {}, Beside(), NOW)
    assert "Loading the base, 20 s so far" in plain(loading) and "as-bar-busy" in loading
    assert "attempt 2, resumed at step 45" in show_board.running_list(
        [replace(JOB, attempt=2)], {"j1": Curve(resumed_at=45)}, Beside(), NOW
    )


@pytest.mark.parametrize(
    ("state", "offered"),
    [
        ("queued", ["pause", "cancel"]),
        ("waiting", ["pause", "cancel"]),
        ("starting", ["pause", "cancel"]),
        ("running", ["pause", "cancel"]),
        ("pausing", ["cancel"]),
        ("cancelling", []),
        ("paused", ["resume", "cancel"]),
        ("cancelled", ["retry"]),
        ("failed", ["mend", "retry"]),
        ("done", ["chat"]),
    ],
)
def test_each_state_is_named_and_offers_what_it_allows(state: str, offered: list[str]) -> None:
    job = replace(JOB, state=state, cause="memory", config={**JOB.config, "token_budget": 2048})
    beside = Beside({"a1": ADAPTER}, frozenset({"a1"}))
    assert re.findall(r'data-action="([\w-]+)"', actions(job, beside)) == offered
    assert f'as-badge as-{state}">{"waiting" if state == "queued" else state}<' in show_job.head(job, beside, None, {}, NOW)


def test_a_failure_tells_cause_and_advice_with_the_button_that_does_it() -> None:
    job = replace(FAILED, cause="memory", config={**JOB.config, "token_budget": 2048})
    html = show_board.history([job], Beside(), 0, NOW)
    assert "Memory ran out" in html and "The disk is full." in html and "Compute fewer tokens at once" in html
    assert re.search(r'data-action="mend" data-id="j1"[^>]*>Train again with token_budget 1,024<', html)
    by_hand = show_board.history([replace(FAILED, cause="data")], Beside(), 0, NOW)
    assert 'data-action="copy" data-id="j1"' in by_hand and 'data-action="mend"' not in by_hand
    assert 'data-action="mend"' not in actions(replace(FAILED, cause="disk"), Beside())  # to retry is all that it takes


def test_a_job_with_a_checkpoint_offers_to_resume_or_to_start_over() -> None:
    html = show_board.history([FAILED], Beside(resumes={"j1": 1030}), 0, NOW)
    assert re.search(r'data-action="retry" data-id="j1"[^>]*>Resume at step 1,030<', html)
    assert re.search(r'data-action="restart" data-id="j1"[^>]*>Start over<', html) and ">Retry<" not in html
    assert "Resume at step 40" in show_board.paused_list([PAUSED], Beside(resumes={"j1": 40}), NOW)


def test_what_waits_stands_in_its_order_with_arrows_that_can_be_used() -> None:
    jobs = [replace(WAITING, id=f"j{i}", priority=(10, 0, -3)[i], reason="It runs after x." * (i == 2)) for i in range(3)]
    html = show_board.waiting_list(jobs, 30, Beside(), NOW)
    rows = re.findall(r"<li.*?</li>", html)
    assert [row.count("aria-disabled") for row in rows] == [1, 0, 1] and "More (27)" in html
    assert "high priority" in rows[0] and "priority" not in rows[1] and "-3 priority" in rows[2] and "It runs after x." in rows[2]


def test_history_offers_the_next_step() -> None:
    chats = Beside(adapters={"a1": ADAPTER}, chats=frozenset({"a1"}))
    done = show_board.history([DONE], chats, 3, NOW)
    assert 'data-action="chat" data-id="a1"' in done and "held-out loss 3.41 → 1.97" in done and "More (3)" in done
    assert 'data-action="chat"' not in show_board.history([DONE], replace(chats, chats=frozenset()), 0, NOW)  # a kind that the chat lacks
    gone = show_board.history([DONE], Beside(), 0, NOW)
    assert "deleted since" in gone and 'data-action="chat"' not in gone


def test_an_empty_board_says_what_comes_next() -> None:
    assert "Start one with the form" in show_board.nothing_runs(0, 0, True, False)
    assert "No worker runs" in show_board.nothing_runs(1, 0, False, False)
    assert "Release it" in show_board.nothing_runs(1, 0, False, True)
    assert "starts in a moment" in show_board.nothing_runs(1, 0, True, False)


def test_a_small_curve_needs_two_points() -> None:
    nan = float("nan")
    assert "<svg" not in spark([(1, 2.0), (2, nan)], "x")
    assert 'aria-label="Training loss of x: 3.00 to 1.00"' in spark([(1, 3.0), (2, nan), (9, 1.0)], "x")
    assert spark([(i, 1.0) for i in range(9000)], "x").count(",") < 100


def test_a_sweep_stands_together_with_its_best_marked() -> None:
    other = replace(JOB, id="other", state="queued")
    assert show_board.entries([SWEEP.jobs[2], other, SWEEP.jobs[3]], {"g1": SWEEP}) == [SWEEP, other]
    html = show_board.sweeps_list([SWEEP], Beside(adapters={f"a{i}": replace(ADAPTER, name=f"gull {i}") for i in range(2)}), NOW)
    rows = [plain(row) for row in re.findall(r"<tr.*?</tr>", html)]
    assert rows[0].strip() == "rank init state held-out loss tokens/s what to do"
    assert "16 pissa done 1.200 best 412" in rows[2] and "best" not in rows[1] and "32 pissa running" in rows[3]
    assert "2 of 4 over" in html and 'data-action="cancel-group" data-id="g1"' in html and 'data-action="open" data-id="g1"' in html
    assert html.count('data-action="cancel"') == 2  # the two that are not over


def test_a_sweep_that_is_over_says_whether_its_losses_compare() -> None:
    over = compare([swept(0, "8", "done", 1.5), swept(1, "16", "failed")])
    html = show_board.history([over], Beside(adapters={"a0": ADAPTER}, resumes={"j1": 7}), 0, NOW)
    assert OTHER_ROWS not in html and OTHER_ROWS in show_board.history([replace(over, same_rows=False)], Beside(), 0, NOW)
    assert "cancel-group" not in html and "best" not in html and "Resume at step 7" in html


# The page of one


def test_the_page_tells_the_place_and_offers_to_change_it() -> None:
    html = show_job.head(replace(WAITING, priority=10), Beside(), 2, {"j5": "gull"}, NOW)
    assert "place 3 in the queue" in html and '<option value="10" selected>high' in html and "To the top" in html
    assert '<option value="" selected>no other job' in html and ">gull<" in html
    assert "next in the queue" in show_job.head(WAITING, Beside(), 0, {}, NOW)
    assert "<select" not in show_job.head(JOB, Beside(), None, {}, NOW)


def test_the_configuration_marks_what_differs_from_the_nearest_preset() -> None:
    assert preset_of(make_config("quick").model_dump()) == ("quick", {})
    assert preset_of(make_config().model_dump()) == ("balanced", {})
    assert preset_of(make_config("thorough", {"seed": 3}).model_dump()) == ("thorough", {"seed": 3})
    text = plain(show_job.configuration(make_config("quick", {"max_steps": 7}).model_dump()))
    assert "The quick preset with 1 other value:" in text and "max steps 7 0" in text
    assert "unchanged" in show_job.configuration(FULL_CONFIG)


def test_lineage_names_what_is_left_of_it() -> None:
    tied = replace(DONE, copied_from="j0", after="j3")
    html = show_job.lineage(tied, ORIGIN, Beside(adapters={"a1": ADAPTER}))
    assert 'data-id="j0"' in html and 'data-id="j3"' in html and 'data-action="adapter" data-id="a1"' in html and "its 4 trainings" in html
    gone = plain(show_job.lineage(tied, show_job.Origin(), Beside()))
    assert gone.count("deleted since") == 3 and gone.count("a job that is gone") == 2
    assert "copied from" not in show_job.lineage(JOB, ORIGIN, Beside())


def test_attempts_stand_in_a_table() -> None:
    first = AttemptRecord("j1", 1, "host", "cuda:0", NOW - 90, NOW - 30, "paused", "Paused at step 4.")
    text = plain(show_job.attempts([first, AttemptRecord("j1", 2, "host", "cuda:1", NOW)], NOW))
    assert "1 cuda:0 2 min ago 1 min 0 s paused Paused at step 4." in text and "2 cuda:1 just now goes on" in text
    assert show_job.attempts([]) == ""


def test_the_log_says_what_of_it_is_shown() -> None:
    assert "whole" in show_job.log(LogTail(["a"], True, None, 1))
    assert "The last 2 lines of 5.0 KB" in show_job.log(LogTail(["a", "b"], False, None, 5120))
    assert "1 line with “x”." in show_job.log(LogTail(["x"], True, 1, 1), " x ")
    assert "5 lines with “x”; the last 1 are shown." in show_job.log(LogTail(["x"], False, 5, 1), "x")
    assert "0 lines" in show_job.log(LogTail([], True, 0, 1), "x") and show_job.NO_LOG in show_job.log(LogTail([], True, None, 0))


def test_what_a_job_took_is_drawn_over_its_running_time() -> None:
    assert draw_usage([(0, 1, 1)], True) == ""
    html = draw_usage([(0, 0.5, 1024), (10, 1.5, 2048), (9999, 2.0, 1024)], False)
    assert "over 1 min 10 s" in html and "2.0 at last" in html and "1.0 GB at last, at most 2.0" in html


# Several side by side


def test_runs_are_compared_by_what_differs() -> None:
    one = replace(DONE, config={**FULL_CONFIG, "rank": 8, "dataset_name": "gulls"})
    two = replace(JOB, id="j2", base_id="b2", config={**FULL_CONFIG, "rank": 16, "dataset_name": "gulls"})
    assert overlay.differences([one, two], {"b1": "tiny"}) == {"base": ["tiny", "deleted since"], "rank": ["8", "16"]}
    curves = [Curve(points={"loss": [(1, 3.0), (2, 2.0)]}, evals={0: {"loss": 3.4}}), Curve(points={"loss": [(1, 2.9), (5, 1.0)]})]
    html = overlay.overlay([(one, curves[0]), (two, curves[1])], Beside(), {"b1": "tiny"}, 3)
    assert html.count("<polyline") == 2 and 'class="as-run as-run-1"' in html and html.count("as-curve-dot") == 1
    assert "step 5" in html and "3 trainings more" in html
    rows = [plain(row).strip() for row in re.findall(r"<tr.*?</tr>", html)]
    assert "held-out loss 1.970" in rows and "training loss 2.000 1.000" in rows and "time of the loop 1 min 15 s 9 s so far" in rows
    same = overlay.table([(one, Curve()), (one, Curve())], Beside(), {})
    assert "Their configurations are the same." in same
    assert "None of them has measured a loss yet." in overlay.picture([(one, Curve()), (two, Curve())], Beside())


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
