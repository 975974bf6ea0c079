"""Reads one Parquet file or workbook and prints it as lines of JSON: the program behind `tables.py`.

Usage: table_process.py SUFFIX PATH COLUMNS MEMORY_BYTES CPU_SECONDS. It prints {"columns": […], "line": n}, then a line
[row, [cell, …]] each, and at last {"done": true}; where it stops for a reason {"refused": "…"}, and {"notice": "…"} between.
It imports nothing of the studio.
"""

import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

BATCH_ROWS = 256
OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS


class Refused(Exception):
    """The file as a whole cannot be used; the text continues a sentence that begins with its name."""


class Printer:
    """Writes messages, and makes cells of every type what JSON can say."""

    def __init__(self, out: BinaryIO) -> None:
        self.out, self.bytes_left_out = out, False

    def say(self, message: Any) -> None:
        """Write one message."""
        try:
            self.out.write(orjson.dumps(message, default=self._plain, option=OPTIONS))
        except orjson.JSONEncodeError as error:
            raise Refused(f"holds a cell that is neither text nor number ({error}); leave that column out.") from None

    def _plain(self, value: Any) -> Any:
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                self.bytes_left_out = True
                return None
        return value.isoformat() if hasattr(value, "isoformat") else str(value)  # times, durations, decimals


def read_parquet(path: str, max_columns: int, printer: Printer) -> None:
    """Row groups in small batches; each batch is checked before its cells are made Python objects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    file = pq.ParquetFile(path, page_checksum_verification=True)
    names = file.schema_arrow.names
    check_columns(names, max_columns)
    printer.say({"columns": names, "line": 1})
    line = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
        batch.validate(full=True)
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            line += 1
            printer.say([line, cells])


def read_sheet(path: str, max_columns: int, printer: Printer) -> None:
    """The first sheet; its header is the first row that is not empty."""
    import fastexcel
    import pyarrow as pa

    pa.set_cpu_count(1)
    book = fastexcel.read_excel(path)
    if not book.sheet_names:
        raise Refused("has no sheet; save it again as .xlsx.")
    if len(book.sheet_names) > 1:
        others = ", ".join(repr(name) for name in book.sheet_names[1:9])
        printer.say({"notice": f"has {len(book.sheet_names)} sheets; {book.sheet_names[0]!r} was read and {others} left out."})
    top = book.load_sheet(0, header_row=None, skip_rows=0, dtypes="string", n_rows=100, eager=False)
    check_columns(range(top.width), max_columns)
    header = next(((line, cells) for line, cells in rows_of(top) if any(cells)), None)
    if header is None:
        return
    line, names = header
    printer.say({"columns": names, "line": line})
    # Types are found from all rows: from some, a text further down in a column of numbers would come out empty.
    sheet = book.load_sheet(0, header_row=None, skip_rows=line, schema_sample_rows=None)
    for number, cells in rows_of(sheet, line + 1):
        if any(cell is not None for cell in cells):
            printer.say([number, cells])


def rows_of(sheet: Any, first: int = 1) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The rows of a sheet with their numbers, some at a time."""
    batch = sheet.to_arrow()
    columns = [without_midnights(column) for column in batch.columns]
    number = first
    for start in range(0, batch.num_rows, BATCH_ROWS):
        for cells in zip(*(column.slice(start, BATCH_ROWS).to_pylist() for column in columns), strict=True):
            yield number, cells
            number += 1


def without_midnights(column: Any) -> Any:
    """A column of times that are all midnight as dates, which is what a workbook shows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_timestamp(column.type):
        return column
    days = column.cast(pa.date32(), safe=False)
    return days if pc.all(pc.equal(days.cast(column.type), column)).as_py() else column


def check_columns(names: Any, limit: int) -> None:
    """Refuse too many before their names are handed over."""
    if len(names) > limit:
        raise Refused(f"has {len(names):,} columns and the limit is {limit:,}; leave out those that are not needed.")


def limit_process(memory_bytes: int, cpu_s: int) -> None:
    """Bound this process where the platform can (Windows cannot)."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(suffix: str, path: str, max_columns: int, out: BinaryIO) -> None:
    """Read and print one file to its end, or to the reason why not."""
    printer = Printer(out)
    try:
        (read_parquet if suffix == ".parquet" else read_sheet)(path, max_columns, printer)
        if printer.bytes_left_out:
            printer.say({"notice": "holds bytes that are no text, such as images; those cells were left empty."})
        printer.say({"done": True})
    except Refused as reason:
        printer.say({"refused": str(reason)})
    except BrokenPipeError:
        raise
    except BaseException as error:  # noqa: BLE001  (the readers are not Python's; their panics are no Exception)
        what = " ".join(str(error).split("Context:")[0].replace(path, "the file").split())[:200] or type(error).__name__
        printer.say({"refused": f"cannot be read as {suffix} ({what}); it is damaged or of another kind. Save it again, or as CSV."})


if __name__ == "__main__":
    limit_process(int(sys.argv[4]), int(sys.argv[5]))
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.stdout.buffer)
