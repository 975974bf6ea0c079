"""What the model reads of a conversation, and streams merged at a reader's pace.

The stamp never goes to the model; `to_model` gives the plain turns alone. Knows nothing of Gradio.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

PACE_S = 0.1  # at twice the pace the browser takes half of a core of two to draw, and the model a third longer to speak


class Said(Protocol):
    """A turn, whatever else is known of it."""

    @property
    def role(self) -> str:
        """Whose it is: user or assistant."""

    @property
    def content(self) -> str:
        """The text."""


@dataclass(frozen=True)
class Turn:
    """What is being said, before it is stored."""

    role: str
    content: str


def to_model(turns: Iterable[Said], system: str = "") -> list[dict[str, str]]:
    """The turns as the model reads them. Questions that nobody answered with a word are left out with their empty replies."""
    messages: list[dict[str, str]] = [{"role": "system", "content": system.strip()}] if system.strip() else []
    for turn in turns:
        if messages and messages[-1]["role"] == "user" and (turn.role == "user" or not turn.content):
            messages.pop()
        if turn.content:
            messages.append({"role": turn.role, "content": turn.content})
    return messages


def paced(streams: Mapping[str, Iterable[str]]) -> Iterator[dict[str, str]]:
    """Merge streams; yield what each said so far, at most every PACE_S and once at the end.

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
