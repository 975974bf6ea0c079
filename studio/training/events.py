"""What a training process says, one JSON object a line on stdout: {"kind": …, "at": …, …}.

Kinds: state (loading, training, saving), notice, progress, eval, samples, checkpoint, usage (of the machine, which the worker
adds), and at the end done, paused or failed (with its cause, one word, and its reason, a sentence). Everything else
on stdout or stderr is log text.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

Emit = Callable[..., None]
KINDS = ("state", "notice", "progress", "eval", "samples", "checkpoint", "done", "paused", "failed")


def emit_to_stdout(kind: str, **data: Any) -> None:
    """Write one event and flush it."""
    sys.stdout.buffer.write(orjson.dumps({"kind": kind, "at": time.time(), **data}) + b"\n")
    sys.stdout.buffer.flush()


def parse_event(line: bytes) -> tuple[float, str, dict[str, Any]] | None:
    """(at, kind, data) of an event's line, or None for log text."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(event, dict) or event.get("kind") not in KINDS or not isinstance(event.get("at"), int | float):
        return None
    return float(event.pop("at")), event.pop("kind"), event
