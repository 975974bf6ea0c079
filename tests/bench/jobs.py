"""The queue: how many jobs a second four processes claim and finish, ours against huey in the same run.

Usage: python -m tests.bench.jobs [--jobs 2000] [--backlog 10000] [--processes 4]. Prints one JSON object.

Each job of ours is found, claimed under a lease, and ended with its adapter's record, in three transactions; a task of huey's is taken
from its SQLite file and its result stored, in two, without waiting for the disk. huey is compared where it can be imported (pip install
huey), PostgreSQL where its programs are.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from storage.database import Database
from storage.jobs import Jobs
from storage.repositories import Bases
from tests.conftest import ROOT
from tests.records import ADAPTER, BASE, job


def ours(place: str, number: int, count: int) -> float:
    """Claim and finish jobs as a worker does; returns when it was through, in seconds since 1970."""
    database = Database(place)
    jobs, owner, left = Jobs(database), f"host:{number}:bench", count
    begin()
    while left:
        head = jobs.head()
        record = jobs.claim(owner, time.time(), 15.0, head.id, "cpu") if head else None
        if record is not None:
            adapter = replace(ADAPTER, id=record.adapter_id, name=record.adapter_name, job_id=record.id)
            jobs.finish(record, adapter, {"steps": 2}, time.time())
            left -= 1
    return time.time()


def huey(place: str, number: int, count: int) -> float:
    """Take tasks and store their results, as one of huey's workers does around the work itself."""
    from huey.storage import SqliteStorage

    storage = SqliteStorage("bench", filename=place)
    begin()
    for index in range(count):
        while storage.dequeue() is None:
            continue
        storage.put_data(f"{number}-{index}", b"{}")
    return time.time()


def begin() -> None:
    """Wait until all processes are ready."""
    print("ready", flush=True)
    sys.stdin.readline()


def race(kind: str, place: str, processes: int, count: int) -> float:
    """Jobs a second of several processes that each do `count`."""
    command = [sys.executable, "-m", "tests.bench.jobs", "--kind", kind, "--place", place, "--jobs", str(count)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    started = [subprocess.Popen([*command, "--number", str(number)], **pipes) for number in range(processes)]
    for process in started:
        process.stdout.readline()
    began = time.time()
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [float(process.communicate()[0]) for process in started]
    return processes * count / (max(ended) - began)


def fill(url: str, backlog: int) -> None:
    """A database with jobs that wait."""
    database = Database(url)
    Bases(database).add(BASE)
    Jobs(database).add(*(job(number, float(number)) for number in range(1, backlog + 1)))
    database.close()


def fill_huey(path: str, backlog: int) -> None:
    """The same for huey, with messages as long as a job's configuration."""
    from huey.storage import SqliteStorage

    storage = SqliteStorage("bench", filename=path)
    storage.enqueue(b"x")
    with sqlite3.connect(path) as connection:
        columns = "(queue, data, priority)"
        rows = (("bench", b"x" * 500, 0) for _ in range(backlog))
        connection.executemany(f"INSERT INTO task {columns} VALUES (?, ?, ?)", rows)


def on_postgres(backlog: int, processes: int, each: int) -> float | None:
    """Jobs a second on a server of our own; None where its programs are missing."""
    from tests import databases

    if databases._find() is None:
        return None
    server = databases.Server()
    try:
        with server.database() as url:
            fill(url, backlog)
            return race("ours", url, processes, each)
    finally:
        server.close()


def measure(backlog: int, processes: int, each: int) -> dict[str, Any]:
    """Every number of the benchmark."""
    found: dict[str, Any] = {"benchmark": "jobs", "cores": os.cpu_count(), "backlog": backlog, "processes": processes}
    with tempfile.TemporaryDirectory() as folder:
        url, peer = f"sqlite:///{Path(folder, 'ours.db')}", str(Path(folder, "huey.db"))
        fill(url, backlog)
        found["sqlite_jobs_per_s"] = race("ours", url, processes, each)
        if find_spec("huey"):
            fill_huey(peer, backlog)
            found["huey_tasks_per_s"] = race("huey", peer, processes, each)
            found["share_of_huey"] = found["sqlite_jobs_per_s"] / found["huey_tasks_per_s"]
        else:
            found["note"] = "huey is not installed, so nothing is compared: pip install huey"
    found["postgres_jobs_per_s"] = on_postgres(backlog, processes, each)
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in found.items()}


def main() -> None:
    """The command, and each of its processes."""
    parser = argparse.ArgumentParser(description="Claim and finish jobs by several processes.")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--backlog", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kind", choices=["ours", "huey"], help="be one of the processes")
    parser.add_argument("--place")
    parser.add_argument("--number", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.kind:
        print((ours if arguments.kind == "ours" else huey)(arguments.place, arguments.number, arguments.jobs))
        return
    print(json.dumps(measure(arguments.backlog, arguments.processes, arguments.jobs // arguments.processes)))


if __name__ == "__main__":
    main()
