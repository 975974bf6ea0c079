"""What is wished of a training while it runs: a file beside its checkpoints, which a worker writes and the loop reads after each step.

A file, because it reaches every process of a team and every machine that shares the folder. It is named by the attempt, so
that no later attempt takes an old wish for its own.
"""

from pathlib import Path
from typing import Literal

from storage import files

Wish = Literal["", "pause", "cancel"]
PAUSE: Wish = "pause"
CANCEL: Wish = "cancel"
WISHES: tuple[Wish, ...] = ("", PAUSE, CANCEL)


class Stopped(Exception):
    """The training ended on a wish, after `step` steps."""

    def __init__(self, wish: Wish, step: int) -> None:
        super().__init__(wish, step)
        self.wish, self.step = wish, step


class Control:
    """The wish for one attempt of a job.

    Args:
        folder: of the job. attempt: its number.
    """

    def __init__(self, folder: Path, attempt: int) -> None:
        self.path = folder / f"wish-{attempt}"

    def ask(self, wish: Wish) -> None:
        """Wish something of the attempt; a later wish takes an earlier one's place."""
        files.write_file(self.path, wish.encode())

    def wish(self) -> Wish:
        """What is wished now; empty where nothing is."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        return next((wish for wish in WISHES if wish == text), "")

    def clear(self) -> None:
        """Forget the wish."""
        self.path.unlink(missing_ok=True)
