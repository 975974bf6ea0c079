"""How much of a file is read, so that no upload fills memory or disk."""

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """Bounds on what is read; a file beyond one of them is refused with a sentence that names it.

    Args:
        upload_bytes: of one file as uploaded. expanded_bytes: of everything unpacked from zip and gzip together.
        row_bytes: of one line, array item or cell. columns: of a table. files: members of a zip.
    """

    upload_bytes: int
    expanded_bytes: int = 4 * GIB
    row_bytes: int = 16 * MIB
    columns: int = 1_000
    files: int = 1_000


def megabytes(size_bytes: int) -> str:
    """A size for people, such as `3.0 MB`."""
    return f"{size_bytes / MIB:,.1f} MB"
