"""The end of a job's log, a search in the whole of it, and the lines that a training writes into it."""

from pathlib import Path
from typing import Any

from studio.jobs import logs
from studio.training.events import logged


def write(folder: Path, *texts: str) -> list[Path]:
    paths = [folder / f"log-{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return [folder / "missing.txt", *paths]


def test_the_end_goes_over_the_files_of_all_attempts(tmp_path: Path) -> None:
    paths = write(tmp_path, "a\nb\n", "", "c\nd\n")
    assert logs.tail(paths, most=3) == logs.LogTail(["b", "c", "d"], False, None, 8)
    assert logs.tail(paths) == logs.LogTail(["a", "b", "c", "d"], True, None, 8)
    assert logs.tail([tmp_path / "missing.txt"]) == logs.LogTail([], True, None, 0)


def test_a_search_reads_the_whole_log_and_counts(tmp_path: Path) -> None:
    paths = write(tmp_path, "".join(f"Step {i}\nother\n" for i in range(1000)), "a STEP\n")
    found = logs.tail(paths, " step ", most=2)
    assert (found.lines, found.whole, found.matches) == (["Step 999", "a STEP"], False, 1001)
    assert logs.tail(paths, "nowhere").matches == 0


def test_neither_a_long_file_nor_a_long_line_fills_the_page(tmp_path: Path) -> None:
    paths = write(tmp_path, "x" * (2 * logs.TAIL_BYTES) + "\n" + "end\n")
    lines = logs.tail(paths).lines
    assert lines[-1] == "end" and max(map(len, lines)) == logs.LONGEST_LINE
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe broken\n")
    assert "broken" in logs.tail([tmp_path / "bytes.txt"]).lines[0]


def test_what_happens_is_written_into_the_log_and_progress_not_too_often() -> None:
    lines, said, now = list[str](), list[str](), [0.0]
    emit = logged(lambda kind, **data: said.append(kind), lines.append, lambda: now[0])

    def step(at: int, **changes: Any) -> None:
        emit("progress", step=at, steps=9, loss=2.5, tokens_per_s=410.4, **changes)

    now[0] = 10.0
    emit("state", state="training")
    for at in (1, 2, 3):
        step(at)
        now[0] += 0.6
    step(9)
    emit("eval", step=9, loss=1.5)
    emit("checkpoint", step=9)
    emit("samples", step=9, items=[])
    emit("paused", step=9)
    emit("cancelled", step=9)
    emit("failed", cause="error", reason="It broke.")
    assert len(said) == 11
    words = [line.split(" ", 1)[1].rstrip("\n") for line in lines]
    assert words[:3] == ["training", "step 1/9  loss 2.5000  410 tokens/s", "step 3/9  loss 2.5000  410 tokens/s"]
    assert words[3:] == [
        "step 9/9  loss 2.5000  410 tokens/s",
        "held-out loss 1.5000 after step 9",
        "checkpoint after step 9",
        "paused after step 9",
        "cancelled after step 9",
        "It broke.",
    ]
