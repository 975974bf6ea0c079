"""What was pasted into a box, as a file that can be read."""

from pathlib import Path

from studio.datasets.reading import pasted_suffix
from studio.errors import InvalidInput


def pasted_file(text: str, folder: Path) -> Path:
    """Write a text as a file with the ending that it needs; returns its path.

    Raises:
        InvalidInput: it cannot be written as UTF-8.
    """
    path = folder / f"pasted{pasted_suffix(text)}"
    try:
        path.write_bytes(text.encode())
    except UnicodeEncodeError:
        raise InvalidInput("The pasted text holds half of a character (a lone surrogate); write the whole character.") from None
    return path
