"""What the page shows, as values: words, numbers, escaping, the curve, and the plain conversation behind the stamps."""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from storage.records import AdapterRecord, DatasetRecord, EventRecord, JobRecord
from studio.chat.service import Stamp
from studio.services import Status
from studio.ui import present
from studio.ui.conversation import PACE_S, Turn, paced, to_model
from studio.ui.curve import MAX_POINTS, Curve, Curves, draw, scale, thinned

NOW = 1_800_000_000.0
EVIL = '<img src=x onerror="alert(1)">&'
SHA = "a1b2c3d4" * 8

JOB = JobRecord(
    id="j1",
    state="running",
    adapter_id="a1",
    adapter_name=EVIL,
    base_id="b1",
    dataset_id="d1",
    config={"dataset_name": EVIL},
    progress={"state": "training", "step": 3, "steps": 12, "loss": 2.5, "tokens_per_s": 410.4, "elapsed_s": 9, "remaining_s": 75},
    result={},
    reason="",
    attempt=1,
    losses=0,
    lease_owner="",
    lease_until=0,
    cancel_requested=False,
    created_at=NOW - 60,
    started_at=NOW - 20,
    finished_at=None,
)
DATASET = DatasetRecord("d1", EVIL, "messages", 12, 24, SHA, 2048, [], True, NOW - 7200)
METRICS = {"steps": 12, "eval_loss_before": 3.41, "eval_loss": 1.97, "tokens_per_s": 410.4, "seconds": 75.0}
ADAPTER = AdapterRecord("a1", EVIL, SHA, "b1", "f" * 64, "d1", SHA, "j1", 16, 5 * 2**20, {"rank": 16}, METRICS, "0.1.0", 0, NOW - 90)
STAMP = Stamp(EVIL, "a1", SHA, "SmolLM2", 3.14, 212.4, 40, 41.26, "stop")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"),
        (-5, "just now"),
        (50, "1 min ago"),
        (3500, "58 min ago"),
        (7200, "2 h ago"),
        (86400, "1 day ago"),
        (3 * 86400, "3 days ago"),
    ],
)
def test_times_are_relative(seconds: float, words: str) -> None:
    assert present.ago(NOW - seconds, NOW) == words


def test_a_week_ago_is_a_date_and_the_exact_time_is_on_hover() -> None:
    assert re.fullmatch(r"\d{1,2} \w{3} 20\d\d", present.ago(NOW - 30 * 86400, NOW))
    assert re.search(r'title="20\d\d-\d\d-\d\d \d\d:\d\d:\d\d', present.time_tag(NOW, NOW))


@pytest.mark.parametrize(
    ("size", "words"), [(12, "12 B"), (2048, "2.0 KB"), (5 * 2**20, "5.0 MB"), (300 * 2**20, "300 MB"), (3 * 2**30, "3.0 GB")]
)
def test_sizes_carry_units(size: int, words: str) -> None:
    assert present.size(size) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (75, "1 min 15 s"), (3700, "1 h 1 min")])
def test_durations(seconds: float, words: str) -> None:
    assert present.duration(seconds) == words


def test_what_people_typed_is_escaped_everywhere() -> None:
    status = Status(EVIL, True, "nf4", EVIL, "cpu", 900, JOB, 2)
    failed = replace(JOB, state="failed", reason=EVIL, finished_at=NOW)
    shown = [
        present.status_line(status),
        present.error_card(EVIL, EVIL),
        present.note_card(EVIL),
        present.empty_card(EVIL, EVIL, present.button("Go", "go", EVIL, about=EVIL)),
        present.dataset_list([DATASET], "d1", NOW),
        present.dataset_head(DATASET, NOW),
        present.conversations([[{"role": "user", "content": EVIL}]], 0),
        present.running_card(JOB, Curve(notices=[EVIL]), NOW),
        present.waiting_list([replace(JOB, reason=EVIL)], NOW),
        present.history([failed], {"a1": ADAPTER}, {"j1": EVIL}, NOW),
        present.adapter_cards([ADAPTER], "a1", {"b1": EVIL, "d1": EVIL}, NOW),
        present.adapter_head(ADAPTER),
        present.adapter_detail(replace(ADAPTER, config={"targets": EVIL}, code_version=EVIL), EVIL, EVIL, "", NOW),
        present.stamp_line(STAMP),
        present.voice_label(EVIL, SHA),
    ]
    for html in shown:
        assert "<img" not in html and 'onerror="' not in html and "&lt;img" in html


def test_a_glyph_is_its_hash_and_mirrored() -> None:
    glyph = present.glyph(SHA)
    assert glyph == present.glyph(SHA) != present.glyph("00ff00" + SHA[6:])
    cells = {(int(x), int(y)) for x, y in re.findall(r'<rect x="(\d+)" y="(\d+)"', glyph)}
    assert cells and cells == {(16 - x, y) for x, y in cells}
    assert "<circle" in present.glyph("") and 0 <= present.hue(SHA) < 360
    assert "<rect" in present.glyph("0" * 64)  # never empty


def test_the_stamp_says_who_and_how_fast() -> None:
    line = re.sub(r"<[^>]+>", "", present.stamp_line(replace(STAMP, adapter="Angry bird")))
    assert line == "Angry bird·swap 3.1 ms·first token 212 ms·41.3 tokens/s"
    assert present.speaker(replace(STAMP, adapter="base", adapter_sha256="")) == "Base model"
    assert "stopped" in present.stamp_line(replace(STAMP, reason="cancelled"))


def test_the_command_line_is_quoted_for_a_shell() -> None:
    line = present.command_line(
        "it's mine", "bird; rm -rf /", "", "quick", {"learning_rate": 0.003, "max_steps": 12, "targets": "q_proj,v proj"}
    )
    assert line == (
        "python -m studio train --dataset 'it'\"'\"'s mine' --name 'bird; rm -rf /' --preset quick "
        "--set learning_rate=0.003 --set max_steps=12 --set 'targets=q_proj,v proj'"
    )
    assert "--base Smol" in present.command_line("a", "b", "Smol", "quick", {})


def test_a_running_job_shows_step_speed_and_remaining_time() -> None:
    text = re.sub(r"<[^>]+>", " ", present.running_card(JOB, Curve(), NOW))
    assert "Step 3 of 12" in text and "410 tokens/s" in text and "1 min 15 s" in text
    waiting = present.running_card(replace(JOB, progress={"state": "loading"}), Curve(), NOW)
    assert "Loading the base, 20 s so far" in waiting and "as-bar-busy" in waiting
    assert "Cancelling" in present.running_card(replace(JOB, cancel_requested=True), Curve(), NOW)


def test_history_offers_the_next_step() -> None:
    done = replace(JOB, state="done", result=METRICS, finished_at=NOW)
    assert 'data-action="chat" data-id="a1"' in present.history([done], {"a1": ADAPTER}, {}, NOW)
    assert "held-out loss 3.41 → 1.97" in present.history([done], {"a1": ADAPTER}, {}, NOW)
    assert "data-action" not in present.history([done], {}, {}, NOW)  # its adapter is gone
    failed = replace(JOB, state="failed", reason="The disk is full.", finished_at=NOW)
    html = present.history([failed], {}, {"j1": "line 1\nline 2"}, NOW)
    assert "The disk is full." in html and 'data-action="retry" data-id="j1"' in html and "line 2" in html


def test_tags_in_replies_are_shown_and_code_is_left_alone() -> None:
    assert present.safe_markdown("a <b>x</b> & `<i>`") == "a &lt;b>x&lt;/b> &amp; `<i>`"
    assert present.safe_markdown("```html\n<b>\n```\n<b>") == "```html\n<b>\n```\n&lt;b>"
    assert present.safe_markdown("```\n<b> still open") == "```\n<b> still open"


def test_the_stamp_never_reaches_the_model() -> None:
    turns = [Turn("user", "hi"), Turn("assistant", "SQUAWK!", STAMP), Turn("user", "again")]
    assert to_model(turns, " Be brief. ") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "SQUAWK!"},
        {"role": "user", "content": "again"},
    ]


def test_a_reply_that_was_stopped_before_its_first_word_is_left_out() -> None:
    turns = [Turn("user", "hi"), Turn("assistant", "", STAMP), Turn("user", "again")]
    assert to_model(turns) == [{"role": "user", "content": "again"}]


def test_streams_are_merged_at_a_readers_pace() -> None:
    def talk(word: str) -> Iterator[str]:
        for _ in range(40):
            time.sleep(0.005)
            yield word

    started = time.monotonic()
    frames = list(paced({"left": talk("a"), "right": talk("b")}))
    assert frames[-1] == {"left": "a" * 40, "right": "b" * 40}
    assert 2 <= len(frames) <= (time.monotonic() - started) / PACE_S + 2
    assert list(paced({"single": iter(())})) == [{"single": ""}]


def test_a_streams_error_reaches_the_reader() -> None:
    def broken() -> Iterator[str]:
        yield "a"
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        list(paced({"single": broken()}))


def events(*rows: tuple[int, str, dict[str, object]]) -> list[EventRecord]:
    return [EventRecord(i, "j1", attempt, NOW, kind, data) for i, (attempt, kind, data) in enumerate(rows, 1)]


def test_a_curve_reads_each_event_once_and_one_attempt_alone() -> None:
    stored = events(
        (1, "progress", {"step": 1, "loss": 9.0}),
        (2, "notice", {"text": "3 rows were cut"}),
        (2, "eval", {"step": 0, "loss": 3.0}),
        (2, "progress", {"step": 1, "loss": 2.0}),
    )
    curves = Curves(lambda job_id, after, kinds: [e for e in stored if e.id > after and e.kind in kinds])
    for _ in range(2):
        curve = curves.of("j1", 2)
        assert (curve.train, curve.held_out, curve.notices) == ([(1, 2.0)], [(0, 3.0)], ["3 rows were cut"])


def test_curves_forget_the_oldest_and_stand_threads() -> None:
    stored = events(*[(1, "progress", {"step": i, "loss": 1.0}) for i in range(50)])
    curves = Curves(lambda job_id, after, kinds: [e for e in stored if e.id > after], keep=2)
    threads = [threading.Thread(target=curves.of, args=(name, 1)) for name in "abcabcabc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(curves.of("c", 1).train) == 50


def test_a_curve_is_drawn_with_round_ticks() -> None:
    assert draw(Curve(), 10) == "" and draw(Curve(train=[(1, float("nan")), (2, 1.0)]), 10) == ""
    html = draw(Curve(train=[(1, 3.2), (2, 2.1)], held_out=[(0, 3.4)]), 10)
    assert "training loss 3.20 to 2.10" in html and html.count("as-curve-dot") == 1 and "step 10" in html
    low, high, ticks = scale([2.1, 3.4])
    assert (low, high, ticks) == (2.0, 3.5, [2.0, 2.5, 3.0, 3.5])
    assert scale([1.0, 1.0])[0] < scale([1.0, 1.0])[1]


def test_a_long_curve_is_thinned() -> None:
    points = thinned([(i, float(i % 2)) for i in range(10_000)])
    assert len(points) == MAX_POINTS and points[-1][0] == 9999
