"""The report on a dataset, on chats of two to four turns: seconds by the clock and of the processors, progress, how soon it stops, memory.

Usage: python -m tests.bench.report [--rows 50000] [--without-rendering]. Prints one JSON object. Rows are made from a seed, with exact and
near duplicates, and stored as a dataset's are.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import psutil

from studio.bases.loading import load_tokenizer
from studio.datasets import report
from studio.datasets.forms import Conversation
from studio.datasets.rendering import Example, Renderer
from studio.datasets.store import RowStore, RowWriter
from studio.services import Studio
from studio.settings import load_settings

HELD_OUT = Path(report.__file__).parent.parent / "bases" / "held_out.txt"


class Chats:
    """A stored dataset of `count` chats; one in fifty repeats another, one in fifty nearly so."""

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self.words = HELD_OUT.read_text(encoding="utf-8").split()
        with RowWriter(folder / "rows.arrow") as writer:
            for index in range(count):
                writer.add(self.row(index), {}, index, "chats.jsonl")
        self.fetch = RowStore(folder / "rows.arrow").fetch

    def row(self, index: int) -> Conversation:
        source = index - 40 if index % 50 in (48, 49) else index
        draw = random.Random(source)
        turns = draw.choice((2, 4))
        texts = [" ".join(draw.choices(self.words, k=draw.randint(10, 130 // turns))) for _ in range(turns)]
        if index % 50 == 49:
            texts[-1] += " really"
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def whole(chats: Chats, tokenizer: object) -> dict[str, float]:
    """A report from the first row to the last."""
    told: list[float] = []
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before

    def progress(_: float, __: str) -> None:
        nonlocal peak
        told.append(time.perf_counter())
        peak = max(peak, process.memory_info().rss)

    held_out = random.Random(0).sample(range(chats.count), chats.count // 10)
    started, worked = time.perf_counter(), time.process_time()
    found = report.make_report(chats.count, chats.fetch, tokenizer, held_out=held_out, progress=progress)
    ended = time.perf_counter()
    return {
        "seconds": round(ended - started, 2),
        "cpu_s": round(time.process_time() - worked, 2),
        "longest_silence_s": round(max(b - a for a, b in zip([started, *told], [*told, ended], strict=True)), 3),
        "grown_mb": round((peak - before) / 2**20, 1),
        "tokens": found.tokens,
        "exact_duplicates": found.exact_duplicates,
        "near_duplicates": found.near_duplicates,
        "overlap": found.overlap,
    }


def stopped(chats: Chats, tokenizer: object) -> float:
    """Seconds from the wish to stop, a second after the start, to the end."""
    asked = time.perf_counter() + 1
    try:
        report.make_report(chats.count, chats.fetch, tokenizer, cancelled=lambda: time.perf_counter() > asked)
    except report.Cancelled:
        return round(time.perf_counter() - asked, 3)
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--without-rendering", action="store_true", help="every row is one and the same example")
    arguments = parser.parse_args()
    base = arguments.base
    if base is None:
        studio = Studio(load_settings())
        base = studio.bases.path(studio.ensure_base(lambda text: None))
        studio.close()
    tokenizer = load_tokenizer(base)
    result = {"rows": arguments.rows, "rendered": not arguments.without_rendering}
    with tempfile.TemporaryDirectory() as folder:
        chats = Chats(arguments.rows, Path(folder))
        if arguments.without_rendering:
            same = Example(list(range(120)), [False] * 60 + [True] * 60)
            with patch.object(Renderer, "render_each", lambda renderer, rows: [same for _ in rows]):
                result |= whole(chats, tokenizer)
        else:
            result |= whole(chats, tokenizer) | {"stop_s": stopped(chats, tokenizer)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
