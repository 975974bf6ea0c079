"""One file to read: where its bytes lie, what it is called, and what is told about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from studio.datasets.reading.limits import Limits
from studio.datasets.reading.places import printable
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

Rows = Iterator[SourceRow | RowError]


@dataclass(frozen=True)
class Document:
    """A file, or a member of an archive that was unpacked under a name of ours.

    Args:
        path: where the bytes lie. file: its name for people. suffix: its ending in small letters, which names its kind.
        notices: sentences about what was adapted are added here.
    """

    path: Path
    file: str
    suffix: str
    limits: Limits
    notices: list[str]

    def refuse(self, why: str) -> InvalidInput:
        """The error that refuses this file as a whole; `why` continues the sentence after the name.

        What cannot be shown is replaced: a library may quote the damaged bytes.
        """
        return InvalidInput(f"The file {self.file!r} {printable(why)}")

    def tell(self, what: str) -> None:
        """Add a notice; `what` continues the sentence after the name."""
        self.notices.append(f"The file {self.file!r} {printable(what)}")
