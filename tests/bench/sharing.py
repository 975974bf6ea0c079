"""The first token of a chat while a training runs on the same CPU, against its time alone; and what the chat costs the training.

Usage: python -m tests.bench.sharing [--requests 12]. Prints one JSON object. Both are real: the chat's engine on the starter base in
NF4, and the training process of a job on the same base. The peer is a training that does not step back, in the same run.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from studio.chat.backend import load_engine
from studio.chat.engine import Capacity, Engine
from studio.chat.sampling import Sampling
from studio.datasets.rendering import prompt_ids
from studio.jobs import process
from studio.jobs.executor import Launch
from studio.services import Studio
from studio.settings import load_settings
from tests.jobs import Job

PROMPT = [{"role": "user", "content": "Describe the city of Paris to a visitor."}]
# The same command without its courtesy.
RUDE = ("-c", "import studio.training.run as r; r.step_back = lambda niceness: None; r.main()")
CONFIG = {"quantization": "nf4", "rank": 16, "batch_size": 2, "max_steps": 100_000, "held_out": 0.0, "checkpoint_every_s": 3600}


def first_tokens(engine: Engine, requests: int) -> list[float]:
    """Milliseconds to the first token of each of some requests, a moment apart."""
    ids, found = prompt_ids(engine.tokenizer, PROMPT), []
    for _ in range(requests):
        ticket = engine.submit(ids, Sampling(max_tokens=16, temperature=0.0, ignore_eos=True))
        list(ticket)
        assert ticket.finished is not None
        found.append(ticket.finished.ttft_ms)
        time.sleep(0.5)
    return found


def beside(engine: Engine, base: Path, folder: Path, requests: int, command: tuple[str, ...]) -> dict[str, Any]:
    """The same while a training runs."""
    text = [[{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i}. " * 30}] for i in range(64)]
    job = Job(folder, base, rows=text, **CONFIG)
    run = process.LocalExecutor(command).submit(Launch("bench", job.spec, folder, folder / "log.txt"))
    try:
        steps: list[dict[str, Any]] = []
        while len(steps) < 3:
            steps += [data for _, kind, data in run.events() if kind == "progress"]
            assert run.status(0.2) is None, (folder / "log.txt").read_text()
        started = time.time()
        found = first_tokens(engine, requests)
        ended = time.time()
        time.sleep(10)
        events = [(at, data["tokens"]) for at, kind, data in run.events() if kind == "progress"]
        during = [tokens for at, tokens in events if started < at < ended]
        after = [(at, tokens) for at, tokens in events if at >= ended]
    finally:
        run.stop()
        run.close()
    alone = (after[-1][1] - after[0][1]) / (after[-1][0] - after[0][0]) if len(after) > 1 else 0.0
    busy = (during[-1] - during[0]) / (ended - started) if len(during) > 1 else 0.0
    return {
        "ttft_ms": round(statistics.median(found)),
        "ttft_worst_ms": round(max(found)),
        "training_tokens_per_s_meanwhile": round(busy, 1),
        "training_tokens_per_s_alone": round(alone, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--base", type=Path)
    arguments = parser.parse_args()
    base = arguments.base
    if base is None:
        studio = Studio(load_settings())
        base = studio.bases.path(studio.ensure_base(lambda text: None))
        studio.close()
    engine = load_engine(base, "nf4", Capacity(slots=1, max_batch=4))
    first_tokens(engine, 3)
    alone = statistics.median(first_tokens(engine, arguments.requests))
    with tempfile.TemporaryDirectory() as folder:
        polite = beside(engine, base, Path(folder) / "polite", arguments.requests, process.TRAINER)
        rude = beside(engine, base, Path(folder) / "rude", arguments.requests, RUDE)
    engine.close()
    ratios = {name: round(found["ttft_ms"] / alone, 2) for name, found in (("ratio", polite), ("ratio_rude", rude))}
    print(json.dumps({"ttft_alone_ms": round(alone), **ratios, "polite": polite, "rude": rude}))


if __name__ == "__main__":
    main()
