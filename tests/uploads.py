"""Files as people upload them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studio.datasets.forms import Conversation
from studio.datasets.store import RowWriter


def pair(number: int) -> dict[str, Any]:
    """A row of the form prompt-completion."""
    return {"prompt": f"Question {number}", "completion": f"Answer {number}"}


def jsonl(path: Path, rows: Iterable[object]) -> Path:
    """Write rows, one JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rows(path: Path, conversations: list[Conversation]) -> str:
    """Store conversations with nothing beside them; returns their content hash."""
    with RowWriter(path) as writer:
        for number, conversation in enumerate(conversations, 1):
            writer.add(conversation, {}, number, "")
    return writer.content_hash
