"""The board on a database of many jobs: milliseconds of the server for its queries and its HTML, and for asking whether anything changed.

Usage: python -m tests.bench.board [--jobs 10000] [--waiting 2000] [--steps 500]. Prints one JSON object. Most jobs are over, with their
adapters; the newest fifty have the events of a training.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from storage.records import AdapterRecord, BaseRecord, JobRecord
from storage.tables import AdapterRow, EventRow
from studio.services import Studio
from studio.settings import Settings
from studio.training.config import make_config
from studio.ui import present
from studio.ui.curve import Curves
from studio.ui.jobs.sight import PAGE_JOBS, Shown, Sight

RUNS = 20
WITH_EVENTS = 50
BASE = BaseRecord("b1", "tiny", "folder:tiny", "f" * 64, 10, 1.0, {"nf4": 2.5})
RESULT = {"steps": 100, "train_loss": 1.2, "eval_loss_before": 3.1, "eval_loss": 1.4, "tokens_per_s": 400.0, "seconds": 80.0}


def job(number: int, **changes: object) -> JobRecord:
    """A job that waits, with a whole configuration."""
    config = {**make_config().model_dump(), "dataset_name": "birds", "dataset_hash": "h" * 64}
    at = 1_700_000_000.0 + number
    record = JobRecord(f"{number:016x}", "queued", f"a{number:015x}", f"bird {number}", "b1", "d1", config, at, position=at)
    return replace(record, **changes)  # type: ignore[arg-type]


def adapter(of: JobRecord) -> AdapterRecord:
    """What a job made."""
    return AdapterRecord(
        of.adapter_id, of.adapter_name, f"{of.id}" * 4, "b1", "f" * 64, "d1", "h" * 64, of.id, 16, 10, {}, RESULT, "0", 0, of.created_at
    )


def fill(studio: Studio, jobs: int, waiting: int, steps: int) -> None:
    """Put the jobs into the database, most of them over and every tenth of those failed."""
    ended = {"attempt": 1, "started_at": 1.7e9, "result": RESULT, "device": "cpu"}
    over = [job(i, state="done", finished_at=1.7e9 + i, **ended) for i in range(jobs - waiting)]
    over[::10] = [replace(j, state="failed", cause="memory", reason="Memory ran out.", result={}) for j in over[::10]]
    studio.bases.records.add(BASE)
    studio.queue.jobs.add(*over, *(job(jobs + i) for i in range(waiting)))
    with studio.queue.jobs.database.write() as session:
        session.add_all(AdapterRow(**asdict(adapter(j))) for j in over if j.state == "done")
        session.add_all(
            EventRow(job_id=j.id, attempt=1, at=float(i), kind="progress", data={"step": i, "loss": 1 + 2 * math.exp(-i / 99)})
            for j in over[-WITH_EVENTS:]
            for i in range(1, steps + 1)
        )


def measure(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of the first call, of the middle one of many, and of the processor for one of them."""
    times, worked = [], time.process_time()
    for _ in range(RUNS):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    cpu_ms = 1000 * (time.process_time() - worked) / RUNS
    return {"first_ms": round(times[0], 1), "median_ms": round(statistics.median(times), 1), "cpu_ms": round(cpu_ms, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--waiting", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Settings(home=Path(folder), base="tiny", quantization="fp32"))
        fill(studio, arguments.jobs, arguments.waiting, arguments.steps)
        board = Shown(studio, Curves(studio.queue.events))
        newest = studio.queue.over(1)[0].id
        result = {
            "jobs": arguments.jobs,
            "waiting": arguments.waiting,
            "shown": 2 * PAGE_JOBS,
            "board": measure(lambda: board.parts(Sight(), {})),
            "page_of_one": measure(lambda: board.parts(Sight(view=newest), {})),
            "status_line": measure(lambda: present.status_line(studio.status())),
            "did_anything_change": measure(studio.watching.mark),
            "html_kb": round(sum(len(text) for text in board.board(Sight()).values()) / 1024, 1),
        }
        studio.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
