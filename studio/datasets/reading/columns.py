"""The names of a table's columns."""

from collections import Counter
from collections.abc import Sequence

from studio.datasets.reading.documents import Document


def named_columns(document: Document, cells: Sequence[object], line: int) -> list[str]:
    """The columns that a header names; one without a name gets its number, which is told.

    Raises:
        InvalidInput: too many columns, or two of the same name.
    """
    limit = document.limits.columns
    if len(cells) > limit:
        raise document.refuse(f"has {len(cells):,} columns and the limit is {limit:,}; leave out those that are not needed.")
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    unnamed = [f"column {index}" for index, name in enumerate(names, 1) if not name]
    names = [name or f"column {index}" for index, name in enumerate(names, 1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise document.refuse(f"names the column {repeated[0]!r} twice in its header, line {line}; rename one of the two.")
    if unnamed:
        document.tell(f"has a header without a name for {', '.join(unnamed[:8])}; so they are called here.")
    return names
