"""What a training process says, one JSON object a line on stdout: {"kind": …, "at": …, …}.

Kinds: state (loading, training, saving), notice, progress, eval, samples, checkpoint, usage (of the machine, which the worker
adds), and at the end done, paused, cancelled or failed (with its cause, one word, and its reason, a sentence). Everything else
on stdout or stderr is log text.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

Emit = Callable[..., None]
KINDS = ("state", "notice", "progress", "eval", "samples", "checkpoint", "done", "paused", "cancelled", "failed")


def emit_to_stdout(kind: str, **data: Any) -> None:
    """Write one event and flush it."""
    sys.stdout.buffer.write(orjson.dumps({"kind": kind, "at": time.time(), **data}) + b"\n")
    sys.stdout.buffer.flush()


def logged(emit: Emit, write: Callable[[str], object], clock: Callable[[], float] = time.time) -> Emit:
    """An emit that also writes a line for people into the log; of progress at most one a second."""
    last = 0.0

    def both(kind: str, **data: Any) -> None:
        nonlocal last
        emit(kind, **data)
        line, now = _line(kind, data), clock()
        if line and (kind != "progress" or now - last >= 1.0 or data.get("step") == data.get("steps")):
            last = now if kind == "progress" else last
            write(f"{time.strftime('%H:%M:%S', time.localtime(now))} {line}\n")

    return both


def _line(kind: str, data: dict[str, Any]) -> str:
    """What an event says in a line; empty where the curves or the answers say it better."""
    if kind == "progress":
        return f"step {data['step']}/{data['steps']}  loss {data['loss']:.4f}  {data['tokens_per_s']:.0f} tokens/s"
    if kind == "eval":
        return f"held-out loss {data['loss']:.4f} after step {data['step']}"
    if kind == "checkpoint":
        return f"checkpoint after step {data['step']}"
    if kind in ("paused", "cancelled"):
        return f"{kind} after step {data['step']}"
    return str(data.get("text") or data.get("reason") or data.get("state") or "")


def parse_event(line: bytes) -> tuple[float, str, dict[str, Any]] | None:
    """(at, kind, data) of an event's line, or None for log text."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(event, dict) or event.get("kind") not in KINDS or not isinstance(event.get("at"), int | float):
        return None
    return float(event.pop("at")), event.pop("kind"), event
