"""Conversations as the chat tab keeps them: plain turns with a stamp each, and streams merged at a reader's pace.

The stamp never goes to the model; `to_model` gives the plain turns alone. Knows nothing of Gradio.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studio.chat.service import Stamp

PACE_S = 0.05  # a browser cannot draw faster than this
SINGLE, LEFT, RIGHT = "single", "left", "right"  # panes: a conversation of its own in each


@dataclass(frozen=True)
class Turn:
    """What was said, and who wrote it where it is a finished reply."""

    role: str
    content: str
    stamp: "Stamp | None" = None


Talk = dict[str, list[Turn]]


def empty_talk() -> Talk:
    """No conversation in any pane."""
    return {SINGLE: [], LEFT: [], RIGHT: []}


def to_model(turns: Iterable[Turn], system: str = "") -> list[dict[str, str]]:
    """The turns as the model reads them. Replies that were stopped before their first word are left out with their question."""
    messages: list[dict[str, str]] = [{"role": "system", "content": system.strip()}] if system.strip() else []
    for turn in turns:
        if turn.role == "assistant" and not turn.content:
            messages.pop()
        else:
            messages.append({"role": turn.role, "content": turn.content})
    return messages


def paced(streams: Mapping[str, Iterable[str]]) -> Iterator[dict[str, str]]:
    """Merge streams; yield what each said so far, at most every 50 ms and once at the end.

    Raises:
        Exception: the first that one of the streams raised.
    """
    pieces: SimpleQueue[tuple[str, str | Exception | None]] = SimpleQueue()
    for key, stream in streams.items():
        threading.Thread(target=_pump, args=(key, stream, pieces), name=f"chat-{key}", daemon=True).start()
    said, running, shown = dict.fromkeys(streams, ""), len(streams), 0.0
    changed = False
    while running:
        try:
            key, piece = pieces.get(timeout=PACE_S if changed else None)
        except Empty:
            piece = ""
        if isinstance(piece, Exception):
            raise piece
        if piece is None:
            running -= 1
        elif piece:
            said[key] += piece
            changed = True
        if changed and time.monotonic() - shown >= PACE_S:
            yield dict(said)
            shown, changed = time.monotonic(), False
    yield dict(said)


def _pump(key: str, stream: Iterable[str], pieces: "SimpleQueue[tuple[str, str | Exception | None]]") -> None:
    try:
        for piece in stream:
            pieces.put((key, piece))
    except Exception as error:  # noqa: BLE001  # it is raised again where the stream is read
        pieces.put((key, error))
    else:
        pieces.put((key, None))
