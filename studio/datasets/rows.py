"""What reading hands on: rows with their place, and what is wrong with a row, with its place and its mend."""

from typing import Any, NamedTuple


class SourceRow(NamedTuple):
    """One row as it stands in a file.

    `line` counts from 1: the line of a text file on which the row starts, or the row of a sheet or a Parquet file.
    `value` is a dict where the file is well formed. `file` is its name for people, inside a zip with its path there.
    """

    line: int
    value: Any
    file: str = ""


class RowError(Exception):
    """One row is wrong: where, what, and how to mend it.

    Args:
        line: as in `SourceRow`. field: a column or a path such as `messages[2].role`; empty for the whole row.
        kind: a short name under which such errors are counted, such as "not JSON". column: the character on the line,
        from 1; 0 where it is unknown. excerpt: what stands there, at most `EXCERPT` characters. ends: the rest of the
        file cannot be read.
    """

    EXCERPT = 120

    def __init__(
        self,
        line: int,
        field: str,
        problem: str,
        fix: str,
        *,
        kind: str = "wrong row",
        column: int = 0,
        excerpt: str = "",
        file: str = "",
        ends: bool = False,
    ) -> None:
        super().__init__(line, field, problem, fix)
        self.line, self.field, self.problem, self.fix, self.kind = line, field, problem, fix, kind
        self.column, self.excerpt, self.file, self.ends = column, excerpt[: self.EXCERPT], file, ends

    def __str__(self) -> str:
        where = f"line {self.line}" + (f", field {self.field!r}" if self.field else "")
        return f"{where}: {self.problem}; {self.fix}"
