"""Keys and values: of the running rows, as one batch that rows join and leave, and of conversations that may go on.

Each row's tokens stand at the right end of the batch's columns, so that all rows append at the same place; a mask hides what
stands left of a shorter row. The buffers have room to grow into, so that a step writes one column and copies nothing.

What is kept of a conversation belongs to its tokens and to who speaks, always both: another adapter's keys and values are others.
"""

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studio.lora.files import PrefixWeights

ROOM = 64  # columns by which buffers grow at least
_ids = itertools.count()


@dataclass(frozen=True)
class Kept:
    """Keys and values of one row: a list of (H, T, D) each, one a layer."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def length(self) -> int:
        """T."""
        return self.keys[0].shape[1] if self.keys else 0

    @property
    def size_bytes(self) -> int:
        """What the tensors take."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class KvBatch:
    """Keys and values of some rows, (rows, H, T, D) a layer, whatever H and D each layer has.

    Attributes:
        lengths: tokens of each row. end: the column behind the newest token of every row.
        buffers_id: of the tensors that hold it all; others have another one, for good.
    """

    def __init__(self) -> None:
        self.buffers_id = next(_ids)
        self.lengths: list[int] = []
        self.end = 0
        self._keys: list[Tensor] = []  # (rows that fit, H, columns, D)
        self._values: list[Tensor] = []

    @classmethod
    def starting(cls, kept: Kept | None = None, length: int = 0, columns: int = 0) -> "KvBatch":
        """One row that begins with the first `length` tokens of what was kept, with room for `columns` in all."""
        batch = cls()
        batch.lengths = [length]
        if kept is not None and length:
            columns = max(columns, length)
            batch._keys = [_roomy(tensor, length, columns) for tensor in kept.keys]
            batch._values = [_roomy(tensor, length, columns) for tensor in kept.values]
            batch.end = length
        return batch

    @classmethod
    def prompts(cls, lengths: list[int]) -> "KvBatch":
        """Rows of which nothing is known, and that get so many tokens with their first pass, at the right end of its columns."""
        batch = cls()
        batch.lengths = [length - max(lengths) for length in lengths]  # what stands left of a shorter one counts as before its beginning
        return batch

    @property
    def rows(self) -> int:
        """Rows that run."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Columns that are looked at: as many as the longest row has tokens."""
        return max(self.lengths, default=0)

    def reserve(self, count: int) -> None:
        """Make sure that `count` more columns fit behind the end."""
        if not self._keys or self.end + count <= self._keys[0].shape[2]:
            return
        width = self.width
        self._resize(self._keys[0].shape[0], _rounded(2 * width + count))

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of T new tokens a row, (rows, H, T, D), behind the end, which `advance` moves.

        Returns all that the rows have in this layer, (rows, H, width + T, D), as views.
        """
        count = keys.shape[2]
        if layer == len(self._keys):  # the first tokens that this layer sees
            columns = self._keys[0].shape[2] if self._keys else _rounded(self.end + count)
            for mine, new in ((self._keys, keys), (self._values, values)):
                mine.append(new.new_zeros(self.rows, new.shape[1], columns, new.shape[3]))
        first, end = self.end - self.width, self.end + count
        k, v = self._keys[layer], self._values[layer]
        k[: self.rows, :, self.end : end] = keys
        v[: self.rows, :, self.end : end] = values
        return k[: self.rows, :, first:end], v[: self.rows, :, first:end]

    def buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (rows, H, columns, D), with all columns there are."""
        return [(k[: self.rows], v[: self.rows]) for k, v in zip(self._keys, self._values, strict=True)]

    def advance(self, count: int) -> None:
        """Every row has `count` tokens more."""
        self.end += count
        self.lengths = [length + count for length in self.lengths]

    def positions(self, count: int, device: torch.device) -> Tensor:
        """(rows, count): the positions of each row's next tokens; 0 for what fills a shorter prompt up."""
        positions = torch.tensor(self.lengths, device=device).unsqueeze(1) + torch.arange(count, device=device)
        return positions.clamp_min_(0)

    def seen(self, count: int, device: torch.device) -> Tensor:
        """(rows, width + count): where a row has a token, once it has its next ones."""
        lengths = torch.tensor(self.lengths, device=device).unsqueeze(1)
        return torch.arange(self.width, -count, -1, device=device) <= lengths

    def mask(self, count: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What `count` new tokens a row may look at: 0 or −inf, (rows, 1, count, width + count); None where that is everything."""
        if count == 1 and min(self.lengths) == self.width:
            return None
        allowed = self.seen(count, device)[:, None, :].expand(self.rows, count, -1)
        if count > 1:
            columns = torch.arange(self.width + count, device=device)
            own = self.width + torch.arange(count, device=device).unsqueeze(1)
            allowed = allowed & (columns <= own) | (columns == own)  # itself in any case: who looks at nothing gets NaN
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf")).unsqueeze(1)

    def join(self, other: "KvBatch") -> None:
        """Add the one row of another batch."""
        if not self.rows:
            self.lengths, self.end, self._keys, self._values = list(other.lengths), other.end, other._keys, other._values
            self.buffers_id = next(_ids)
            return
        length, row = other.lengths[0], self.rows
        fits, columns = self._keys[0].shape[0], self._keys[0].shape[2]
        if length > self.end or row == fits:
            self._resize(max(fits, 1 << row.bit_length()) if row == fits else fits, max(columns, _rounded(max(self.width, length) + ROOM)))
        if length > self.end:
            self._shift(length)
        for mine, theirs in zip(self._keys + self._values, other._keys + other._values, strict=True):
            mine[row, :, self.end - length : self.end] = theirs[0, :, other.end - length : other.end]
        self.lengths.append(length)

    def keep(self, row: int) -> Kept:
        """A copy of what a row has."""
        columns = slice(self.end - self.lengths[row], self.end)
        return Kept([k[row, :, columns].clone() for k in self._keys], [v[row, :, columns].clone() for v in self._values])

    def leave(self, row: int, is_spoiled: bool = False) -> None:
        """A row is gone; the last one takes its place.

        Args:
            is_spoiled: it may hold NaN, which would reach whoever has its columns later: a masked 0 · NaN is NaN.
        """
        last = self.rows - 1
        columns = slice(self.end - self.lengths[last], self.end)
        for tensor in self._keys + self._values:
            if is_spoiled:
                tensor[row].zero_()
            if row != last:
                tensor[row, :, columns] = tensor[last, :, columns]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self._keys, self._values, self.end = [], [], 0

    def alone(self, row: int) -> "KvBatch":
        """A batch of one row that reads and writes where this row does, so that it can be tried without its neighbours."""
        batch = KvBatch()
        batch.lengths, batch.end = [self.lengths[row]], self.end
        batch._keys, batch._values = [k[row : row + 1] for k in self._keys], [v[row : row + 1] for v in self._values]
        return batch

    def _shift(self, end: int) -> None:
        """Move all that is there to the right, to a later end; there is room."""
        width = self.width
        for tensor in self._keys + self._values:
            tensor[: self.rows, :, end - width : end] = tensor[: self.rows, :, self.end - width : self.end].clone()
        self.end = end

    def _resize(self, rows: int, columns: int) -> None:
        """Take other buffers, with what is looked at at their beginning."""
        self.buffers_id = next(_ids)
        width, first = self.width, self.end - self.width
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
                new[: self.rows, :, :width] = old[: self.rows, :, first : self.end]
                tensors[index] = new
        self.end = width


class KvStore:
    """Keys and values of conversations that may go on, the least recently used thrown away first.

    Args:
        budget_bytes: what they may take together.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes, self.size_bytes = budget_bytes, 0
        self._entries: OrderedDict[tuple[str, bytes], Kept] = OrderedDict()  # by speaker and tokens

    def put(self, speaker: str, token_ids: list[int], kept: Kept) -> None:
        """Keep what a row had of these tokens; earlier turns of the same conversation make room for it."""
        tokens = np.asarray(token_ids, dtype=np.int32).tobytes()
        for key in [key for key in self._entries if key[0] == speaker and tokens.startswith(key[1])]:
            self._drop(key)
        if kept.size_bytes > self.budget_bytes:
            return
        self._entries[speaker, tokens] = kept
        self.size_bytes += kept.size_bytes
        while self.size_bytes > self.budget_bytes:
            self._drop(next(iter(self._entries)))

    def find(self, speaker: str, token_ids: list[int]) -> tuple[Kept | None, int]:
        """What is kept of the longest common beginning, and how many tokens that is; at least one token is left to compute."""
        wanted = np.asarray(token_ids[:-1], dtype=np.int32)
        best: tuple[tuple[str, bytes] | None, int] = (None, 0)
        for key in self._entries:
            if key[0] == speaker:
                common = _common(np.frombuffer(key[1], dtype=np.int32), wanted)
                best = (key, common) if common > best[1] else best
        if best[0] is None:
            return None, 0
        self._entries.move_to_end(best[0])
        return self._entries[best[0]], best[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size_bytes = 0

    def _drop(self, key: tuple[str, bytes]) -> None:
        self.size_bytes -= self._entries.pop(key).size_bytes


def _common(one: Any, other: Any) -> int:
    """How many numbers two arrays have in common from their beginning on."""
    count = min(len(one), len(other))
    differs = np.flatnonzero(one[:count] != other[:count])
    return int(differs[0]) if len(differs) else count


def _roomy(tensor: Tensor, length: int, columns: int) -> Tensor:
    """(1, H, columns, D) that begins with the first `length` tokens of (H, T, D)."""
    new = tensor.new_zeros(1, tensor.shape[0], columns, tensor.shape[2])
    new[0, :, :length] = tensor[:, :length]
    return new


def _rounded(columns: int) -> int:
    return -(-columns // ROOM) * ROOM


def kept_prefix(prefix: PrefixWeights, device: torch.device, dtype: torch.dtype) -> Kept:
    """A prefix as keys and values of every layer, (H, n, D) each, in the model's dtype."""
    by_layer = prefix.embedding.view(prefix.embedding.shape[0], prefix.layers, 2, prefix.heads, -1)  # (n, L, 2, H, D)
    by_layer = by_layer.to(device=device, dtype=dtype).permute(1, 2, 3, 0, 4)  # (L, 2, H, n, D)
    return Kept([layer[0] for layer in by_layer], [layer[1] for layer in by_layer])
