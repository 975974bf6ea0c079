"""The rows that every part of the training benchmark works on, as one file of {prompt, completion} a line."""

import json
from pathlib import Path

from studio.bases.loading import load_tokenizer
from studio.datasets.rendering import Example, render_all

BATCH_SIZE = 8
MAX_LENGTH = 512


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def render_rows(base: Path, path: Path) -> list[Example]:
    """As the studio trains them: with the base's chat template, cut at `MAX_LENGTH`, the completion trained."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    turns = [[{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}] for r in rows]
    return render_all(load_tokenizer(base), turns, MAX_LENGTH, "truncate").examples
