"""The header of a safetensors file, read as a stranger's: every claim is checked before a byte of a tensor is read.

The format is 8 bytes with the header's length (little-endian), the header as JSON, and the tensors' bytes without holes. Files are read
by offset and never mapped: one that is cut meanwhile is an error and not a crash. Reading needs no more memory than one tensor.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from studio.datasets.reading.limits import MIB, megabytes
from studio.datasets.reading.places import printable
from studio.errors import InvalidInput

MAX_HEADER_BYTES = 8 * MIB
MAX_TENSORS = 32_768
MAX_KEY = 300
MAX_SIDE = 1 << 31  # of one dimension
DTYPES: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FIELDS = {"dtype", "shape", "data_offsets"}
SAVE_AGAIN = "save the adapter again with PEFT's save_pretrained"


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it; `start` and `end` count bytes from the beginning of the file."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(handle: BinaryIO, file: str) -> dict[str, Entry]:
    """All tensors by their keys.

    Args:
        handle: the file, opened for reading. file: its name for people.

    Raises:
        InvalidInput: it is no safetensors file, or its header claims what cannot be.
    """
    size = os.fstat(handle.fileno()).st_size
    header, data_start = _header_text(handle, size, file)
    # Before it is parsed, which takes twenty times its bytes: every tensor has one place, and every value a comma.
    if header.count(b'"data_offsets"') > MAX_TENSORS or header.count(b",") > 8 * MAX_TENSORS:
        raise refuse(file, f"lists more than {MAX_TENSORS:,} tensors in its header, which are the most that are read")
    described = _parse(header, file)
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse(file, "has a __metadata__ that is not texts by name")
    if not described:
        raise refuse(file, "holds no tensors")
    entries = {key: _entry(key, value, data_start, file) for key, value in described.items()}
    _check_places(list(entries.values()), data_start, size, file)
    return entries


def read_tensor(handle: BinaryIO, entry: Entry, file: str) -> Tensor:
    """The numbers of one tensor, in memory of its own.

    Raises:
        InvalidInput: the file was cut since its header was read.
    """
    handle.seek(entry.start)
    data = bytearray(entry.end - entry.start)
    if handle.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise refuse(file, f"ends within {entry.key!r}: it was changed while it was read")
    return torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)


def refuse(file: str, why: str, mend: str = SAVE_AGAIN) -> InvalidInput:
    """The error that refuses a file; `why` continues the sentence after its name."""
    return InvalidInput(f"The file {printable(file)!r} {printable(why)}; {mend}.")


def parse_json(text: bytes, reject: Callable[[str], InvalidInput]) -> Any:
    """JSON as the standard has it: UTF-8, no key twice, no NaN or Infinity, no depth that exhausts the stack.

    Args:
        reject: makes the error; it is given the rest of a sentence.

    Raises:
        InvalidInput: what `reject` makes.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise reject(f"has the key {shortened(name)!r} twice")
            found[name] = value
        return found

    def constant(name: str) -> Any:
        raise reject(f"holds {name}, which is no number of JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise reject(f"is not JSON ({type(error).__name__})") from None


def shortened(text: str, most: int = 80) -> str:
    """A name from a file, short enough for a sentence."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _header_text(handle: BinaryIO, size: int, file: str) -> tuple[bytes, int]:
    handle.seek(0)
    length = int.from_bytes(handle.read(8), "little")
    if size < 8 + 2 or length > size - 8:
        raise refuse(file, "is no safetensors file: its first 8 bytes give no length of a header that it has")
    if length > MAX_HEADER_BYTES:
        raise refuse(file, f"has a header of {megabytes(length)}, and {megabytes(MAX_HEADER_BYTES)} are the most that is read")
    text = handle.read(length)
    if len(text) != length or text[:1] != b"{":
        raise refuse(file, "is no safetensors file: its header is no JSON object")
    return text, 8 + length


def _parse(text: bytes, file: str) -> dict[str, Any]:
    found = parse_json(text, lambda why: refuse(file, f"has a header that {why}"))
    if not isinstance(found, dict):
        raise refuse(file, "has a header that is no JSON object")
    return found


def _entry(key: str, value: Any, data_start: int, file: str) -> Entry:
    if not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise refuse(file, f"holds a tensor with a name that no layer has, {shortened(key)!r}")
    if not isinstance(value, dict) or set(value) != FIELDS:
        raise refuse(file, f"describes the tensor {key!r} by other fields than dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise refuse(
            file, f"holds {key!r} as {shortened(str(value['dtype']), 20)}, and {', '.join(DTYPES)} are read", "convert it to one of these"
        )
    shape, offsets = value["shape"], value["data_offsets"]
    if not _whole(shape, 1, MAX_SIDE) or not 1 <= len(shape) <= 2:
        raise refuse(file, f"gives {key!r} the shape {shortened(str(shape), 40)}, which no weight of an adapter has")
    if not _whole(offsets, 0, 1 << 62) or len(offsets) != 2:
        raise refuse(file, f"gives {key!r} the place {shortened(str(offsets), 40)}, which is none")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise refuse(file, f"gives {key!r} another number of bytes than its shape {tuple(shape)} takes")
    return Entry(key, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _whole(numbers: Any, least: int, most: int) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and least <= number <= most for number in numbers)


def _check_places(entries: list[Entry], data_start: int, size: int, file: str) -> None:
    """The tensors follow each other without hole or overlap, from the header's end to the file's."""
    at = data_start
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.start != at:
            how = "overlaps with another" if entry.start < at else "leaves a hole before it"
            raise refuse(file, f"is damaged: {entry.key!r} {how}")
        at = entry.end
    if at != size:
        raise refuse(file, f"is damaged: its tensors end at byte {at:,} and the file at {size:,}")
