"""Parquet, Excel and OpenDocument tables, by way of a process of their own.

The libraries that read them are not written in Python: a file made for it could end the process that reads it or take all its
memory. So `table_process.py` reads it, under limits, and hands rows over as lines of JSON.
"""

import contextlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from studio.datasets.reading.archives import DAMAGE, short
from studio.datasets.reading.columns import named_columns
from studio.datasets.reading.documents import Document, Rows
from studio.datasets.reading.limits import GIB, MIB, megabytes
from studio.datasets.rows import SourceRow

PROCESS = Path(__file__).with_name("table_process.py")
MEMORY_BYTES = 4 * GIB  # address space of the process, where the platform can bound it
CPU_SECONDS = 600
SHEET_BYTES = 256 * MIB  # of a workbook's XML; it is held as a whole, as some times its size
CHUNK = 1 << 18


def read_table(document: Document) -> Rows:
    """The rows of a table as objects; `line` is the row of the sheet (the header has one too) or of the Parquet file.

    Raises:
        InvalidInput: the file is damaged, not what its ending says, or too large.
    """
    if document.suffix in (".xlsx", ".ods"):
        _check_unpacked_size(document)
    columns: list[str] = []
    with _messages(document) as messages:
        for message in messages:
            if isinstance(message, list):
                line, cells = message
                if len(cells) != len(columns):  # a damaged workbook can hold rows that are wider than its header
                    raise document.refuse(
                        f"is damaged: row {line} has {len(cells)} cells and the header has {len(columns)}; save it again."
                    )
                yield SourceRow(line, dict(zip(columns, cells, strict=True)), document.file)
            elif "columns" in message:
                columns = named_columns(document, message["columns"], message["line"])
            elif "notice" in message:
                document.tell(message["notice"])
            elif "refused" in message:
                raise document.refuse(message["refused"])
            else:
                return
    raise document.refuse(
        f"could not be read: it is damaged, or needs more than {megabytes(MEMORY_BYTES)} or {CPU_SECONDS} s; save it as CSV or JSON Lines."
    )


@contextlib.contextmanager
def _messages(document: Document) -> Iterator[Iterator[Any]]:
    """What the process says, line by line; the process is gone afterwards."""
    from studio.settings import command_environment

    arguments = [document.suffix, str(document.path), str(document.limits.columns), str(MEMORY_BYTES), str(CPU_SECONDS)]
    with tempfile.TemporaryFile() as errors:
        # -P: the modules beside the program are ours and must not stand in for others of their name.
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=command_environment(),
        )
        assert process.stdout is not None
        try:
            yield _decoded(document, process.stdout)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _decoded(document: Document, stream: IO[bytes]) -> Iterator[Any]:
    limit = document.limits.row_bytes
    while line := stream.readline(limit + 1):
        if len(line) > limit:
            raise document.refuse(f"has a row of more than {megabytes(limit)}; split it into parts.")
        if not line.endswith(b"\n"):  # it died in the middle of a line
            return
        yield orjson.loads(line)


def _check_unpacked_size(document: Document) -> None:
    """Unpack a workbook's parts to nowhere and count, whatever sizes it claims.

    Raises:
        InvalidInput: it is no zip, encrypted, or a bomb.
    """
    limit = min(SHEET_BYTES, document.limits.expanded_bytes)
    total = 0
    try:
        with zipfile.ZipFile(document.path) as workbook:
            for member in workbook.infolist():
                with workbook.open(member) as part:
                    while chunk := part.read(CHUNK):
                        total += len(chunk)
                        if total > limit:
                            raise document.refuse(f"unpacks to more than {megabytes(limit)}; save it as CSV, or split it into parts.")
    except DAMAGE as error:
        hint = "it may be locked with a password, or of another kind than its ending says"
        raise document.refuse(f"cannot be opened as a workbook ({short(error)}): {hint}; save it again as .xlsx or CSV.") from None
