"""Datasets: reading 200 MB of chats against 🤗 datasets' own reader, and a page of a million rows. One line of JSON.

`python -m tests.bench.datasets [MEGABYTES …]`; each figure comes from a process of its own, so that its peak memory
is its own; of five runs the fastest counts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WORDS = [
    "the",
    "bird",
    "is",
    "angry",
    "and",
    "says",
    "so",
    "to",
    "all",
    "who",
    "come",
    "near",
    "its",
    "tree",
    "at",
    "noon",
    "über",
    "naïve",
]
MB = 2**20
MILLION = 1_000_000
RUNS = 5


def chats(size_bytes: int) -> Iterator[bytes]:
    """Lines of JSON, each a chat of two to six turns and about a kilobyte."""
    written = number = 0
    while written < size_bytes:
        turns = []
        for turn in range(2 + 2 * (number % 3)):
            text = " ".join(WORDS[(number * 7 + turn * 3 + i * i) % len(WORDS)] for i in range(30 + (number + turn) % 60))
            turns.append({"role": ("user", "assistant")[turn % 2], "content": f"{number}: {text}."})
        line = json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n"
        yield line
        written += len(line)
        number += 1


def ours(source: Path, folder: Path) -> dict[str, float]:
    """Validate, normalise, hash and write Arrow."""
    import pandas  # noqa: F401  Arrow asks for it; libraries are loaded once in the life of a server
    import pyarrow.compute
    import pyarrow.json  # noqa: F401

    from studio.datasets.ingest import Options, ingest
    from studio.datasets.reading import Limits

    began = time.perf_counter()
    found = ingest([source], Options(), Limits(4 * 2**30), folder / "rows.arrow")
    return {"rows": found.rows, "seconds": time.perf_counter() - began}


def theirs(source: Path, folder: Path) -> dict[str, float]:
    """What `load_dataset` does with the same file: no check, but Arrow."""
    from datasets import load_dataset

    began = time.perf_counter()
    found = load_dataset("json", data_files=str(source), cache_dir=str(folder / "cache"), split="train")
    return {"rows": len(found), "seconds": time.perf_counter() - began}


def page(source: Path, folder: Path) -> dict[str, float]:
    """Open a stored set of a million rows, and show three of its pages."""
    from studio.datasets.store import RowStore, RowWriter

    with RowWriter(folder / "rows.arrow") as writer:
        for number in range(MILLION):
            writer.add(
                [{"role": "user", "content": f"Number {number}?"}, {"role": "assistant", "content": "It is odd." * (1 + number % 7)}],
                {},
                number,
                "million.jsonl",
            )
    RowStore(source)  # the library itself is loaded once in the life of a server
    times = []
    for offset in (0, MILLION // 2, MILLION - 10):
        began = time.perf_counter()
        rows = RowStore(folder / "rows.arrow").page(offset, 10)
        times.append(time.perf_counter() - began)
        assert len(rows) == 10 and rows[0].line == offset
    return {"rows": MILLION, "slowest_page_ms": 1000 * max(times)}


WORK = {"ours": ours, "theirs": theirs, "page": page}


def alone(kind: str, source: Path) -> dict[str, float]:
    """One kind of work in a new process: its figures and its peak memory in MiB."""
    command = [sys.executable, "-m", "tests.bench.datasets", "--do", kind, str(source)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def peak_mb() -> float:
    """The most memory that this process held, in MiB; Linux."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main(sizes: list[int]) -> None:
    """Print one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        source, told = Path(folder) / "chats.jsonl", {}
        for size in sizes:
            with source.open("wb") as file:
                file.writelines(chats(size * MB))
            runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            for kind in ("ours", "theirs") * RUNS:  # by turns, since a machine that others use has better and worse minutes
                runs[kind].append(alone(kind, source))
            best = {kind: min(run["seconds"] for run in found) for kind, found in runs.items()}
            told[f"{size} MB"] = {
                "rows": runs["ours"][0]["rows"],
                "ours_s": round(best["ours"], 2),
                "load_dataset_s": round(best["theirs"], 2),
                "ratio": round(best["ours"] / best["theirs"], 2),
                "ours_peak_mb": round(max(run["peak_mb"] for run in runs["ours"])),
                "load_dataset_peak_mb": round(max(run["peak_mb"] for run in runs["theirs"])),
            }
        from tests.uploads import write_rows

        write_rows(source, [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]])
        shown = alone("page", source)
        print(json.dumps({"bench": "datasets", "files": told, "million_rows_page_ms": round(shown["slowest_page_ms"], 1)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--do"]:
        with tempfile.TemporaryDirectory() as own:
            done = WORK[sys.argv[2]](Path(sys.argv[3]), Path(own))
        print(json.dumps({**done, "peak_mb": peak_mb()}))
    else:
        main([int(size) for size in sys.argv[1:]] or [50, 200, 400])
