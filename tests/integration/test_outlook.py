"""What is promised before a training, held to what the training then reads."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from studio.datasets.passes import Cancelled
from studio.errors import InvalidInput
from studio.services import Studio

pytestmark = pytest.mark.usefixtures("warm")
WORDS = ["river", "bird", "stone", "light", "winter", "garden", "harbour", "letter", "copper", "window"]


def add_set(studio: Studio, folder: Path, count: int = 37) -> None:
    """Rows of very different lengths, named words."""
    draw = random.Random(5)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}"},
                {"role": "assistant", "content": " ".join(draw.choices(WORDS, k=2 + 2 * i))},
            ]
        }
        for i in range(count)
    ]
    path = folder / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    studio.datasets.add([path], "words")


@pytest.mark.parametrize(
    "overrides",
    [
        {"max_steps": 5, "batch_tokens": 300, "max_length": 64},
        {"epochs": 1.6, "over_length": "drop", "max_length": 96, "held_out": 0.3},
    ],
)
def test_a_training_reads_the_tokens_that_were_promised(studio: Studio, tmp_path: Path, overrides: dict[str, Any]) -> None:
    add_set(studio, tmp_path)
    promised = studio.foresight.report("words", preset="quick", overrides=overrides).expected
    assert promised.memory.total_mb > 0 and promised.seconds > promised.tokens / promised.tokens_per_s and not promised.seen_before
    job = studio.train_and_wait(studio.train("words", "a", preset="quick", overrides=overrides), lambda event: None)
    assert job.state == "done", job.reason
    assert promised.tokens == pytest.approx(job.result["tokens"], rel=0.02)
    again = studio.foresight.report("words", preset="quick", overrides=overrides).expected
    assert (
        again.seen_before and again.tokens_per_s == job.result["tokens_per_s"] and "as the last training on this base did" in again.sentence
    )


def test_a_report_is_made_once_for_what_it_depends_on(studio: Studio, tmp_path: Path) -> None:
    add_set(studio, tmp_path)
    told: list[float] = []

    def ask(**overrides: Any) -> Any:
        told.clear()
        return studio.foresight.report("words", overrides=overrides, progress=lambda share, what: told.append(share))

    first = ask()
    assert told[0] == 0 and told[-1] == 1
    assert ask().found is first.found and told == []
    longer = ask(epochs=8)
    assert longer.found is first.found and told == [] and longer.expected.tokens == 4 * first.expected.tokens
    assert ask(max_length=40).found.truncated > 0 and told[-1] == 1
    as_json = first.to_dict()
    assert json.loads(json.dumps(as_json))["expected"]["sentence"] == first.expected.sentence and "left" not in as_json


def test_a_report_that_is_stopped_is_made_anew_when_asked_again(studio: Studio, tmp_path: Path) -> None:
    add_set(studio, tmp_path)
    with pytest.raises(Cancelled):
        studio.foresight.report("words", cancelled=lambda: True)
    assert studio.foresight.report("words").found.rows == 37


def test_no_row_that_is_left_promises_no_token(studio: Studio, tmp_path: Path) -> None:
    add_set(studio, tmp_path)
    nothing = studio.foresight.report("words", overrides={"max_length": 16, "over_length": "drop"})
    assert nothing.expected.tokens == 0 and nothing.found.dropped == 37 and nothing.expected.memory.total_mb > 0


def test_the_pieces_of_a_row_are_its_text_and_the_trained_ones_its_answer(studio: Studio, tmp_path: Path) -> None:
    add_set(studio, tmp_path)
    found = studio.foresight.pieces("words", 3)
    answer = studio.datasets.store(studio.datasets.get("words")).fetch(3, 1)[0][1]["content"]
    assert "".join(piece.text for piece in found) == f"<|im_start|>user\nSay 3<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert "".join(piece.text for piece in found if piece.trained) == f"{answer}<|im_end|>"
    cut = studio.foresight.pieces("words", 3, max_length=20)
    assert sum(piece.tokens for piece in cut if not piece.cut) == 20 and not any(piece.trained for piece in cut if piece.cut)
    for row in (37, -1):
        with pytest.raises(InvalidInput, match=f"has no row {row}; its rows are 0 to 36"):
            studio.foresight.pieces("words", row)
