"""What the page shows, as values: words, numbers, escaping, and the plain conversation behind the stamps."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from storage.records import AdapterRecord, JobRecord, MessageRecord
from studio.chat.stamp import Stamp
from studio.chat.votes import Rate
from studio.services import Status
from studio.ui import present
from studio.ui.conversation import PACE_S, Turn, paced, to_model

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
    attempt=1,
    created_at=NOW - 60,
    started_at=NOW - 20,
)
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
    shown = [
        present.status_line(status),
        present.error_card(EVIL, EVIL),
        present.note_card(EVIL),
        present.empty_card(EVIL, EVIL, present.button("Go", "go", EVIL, about=EVIL)),
        present.stamp_line(STAMP),
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
    assert "the page was closed" in present.stamp_line(replace(STAMP, reason="left"))


def test_the_kind_of_an_adapter_is_said_and_an_old_one_is_lora() -> None:
    assert present.kind(ADAPTER) == "LoRA, rank 16" and present.won(Rate(1, 1)) == "best in 1 of 1 vote (100 %)"
    assert present.kind(replace(ADAPTER, config={"method": "dora"})) == "DoRA, rank 16"
    assert present.kind(replace(ADAPTER, config={"method": "prefix", "virtual_tokens": 20})) == "prefix, 20 tokens"


@dataclass(frozen=True)
class Needs:
    """What `studio.training.memory` estimates."""

    total_mb: int
    parts: dict[str, int]
    available_mb: int
    advice: str


def test_the_memory_that_a_training_needs_is_a_line_or_a_warning() -> None:
    fits = Needs(1945, {"base": 307, "adapter": 8, "activations": 922}, 21504, "")
    assert present.memory_sentence(fits) == "Needs about 1.9 GB (base 0.3, activations 0.9); 21.0 GB are free."
    assert present.memory_line(fits, 1) == present.hint(present.memory_sentence(fits))
    assert "4 trainings, one after another. The largest: needs about 1.9 GB" in present.memory_line(fits, 4)
    card = present.memory_line(replace(fits, available_mb=1024, advice="Lower token_budget to 512."), 1)
    assert "as-warning" in card and "1.0 GB are free. Lower token_budget to 512." in card


def test_tags_in_replies_are_shown_and_code_is_left_alone() -> None:
    assert present.safe_markdown("a <b>x</b> & `<i>`") == "a &lt;b>x&lt;/b> &amp; `<i>`"
    assert present.safe_markdown("```html\n<b>\n```\n<b>") == "```html\n<b>\n```\n&lt;b>"
    assert present.safe_markdown("```\n<b> still open") == "```\n<b> still open"


def test_the_stamp_never_reaches_the_model() -> None:
    reply = MessageRecord("m1", "c1", "m0", "assistant", "SQUAWK!", NOW, EVIL, "a1", SHA, "SmolLM2", {"reason": "stop"})
    turns = [Turn("user", "hi"), reply, Turn("user", "again")]
    assert to_model(turns, " Be brief. ") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "SQUAWK!"},
        {"role": "user", "content": "again"},
    ]


@pytest.mark.parametrize("unanswered", [[Turn("user", "hi"), Turn("assistant", "")], [Turn("user", "hi")]])
def test_a_question_that_nobody_answered_with_a_word_is_left_out(unanswered: list[Turn]) -> None:
    again = {"role": "user", "content": "again"}
    assert to_model([*unanswered, Turn("user", "again")]) == [again]
    assert to_model([*unanswered, Turn("user", "again")], "Be brief.") == [{"role": "system", "content": "Be brief."}, again]


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
