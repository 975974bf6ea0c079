"""Adapters in the machine's memory: read from disk once, on a thread of their own, and kept within a budget.

The thread computes with numpy and never with torch: once two threads of a process have used OpenMP, decoding takes 1.6 times as
long (see `Engine`).
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from studio.lora.files import AdapterWeights, PrefixWeights, as_float32, turned

READERS = 2


@dataclass(frozen=True)
class AdapterSource:
    """An adapter that a request names: its content hash, how to read it if it is not in memory, and the folder of its files, for
    those who read it elsewhere."""

    sha256: str
    load: Callable[[], AdapterWeights]
    folder: Path = Path()


@dataclass(frozen=True)
class Loaded:
    """An adapter in memory, as a slot takes it.

    `pairs` maps the name of a layer to Aᵀ, (d_in, r), and Bᵀ, (r, d_out), with the scale folded in, in the dtype of the slots.
    `magnitudes` are a DoRA's, (d_out,). A prefix has `prefix` alone. `load_ms`: what reading took.
    """

    rank: int
    pairs: dict[str, tuple[Tensor, Tensor]]
    magnitudes: dict[str, Tensor]
    prefix: PrefixWeights | None
    size_bytes: int
    load_ms: float


class HostTier:
    """The adapters that are in the machine's memory, the least recently used thrown away first.

    Args:
        budget_bytes: what they may take together; the one that is asked for is kept in any case. dtype: of the slots. ready: called
            on the reading thread whenever something was read, or could not be.
    """

    def __init__(self, budget_bytes: int, dtype: torch.dtype, ready: Callable[[], None]) -> None:
        self.budget_bytes, self.size_bytes, self.dtype = budget_bytes, 0, dtype
        self._ready = ready
        self._lock = threading.Lock()
        self._adapters: OrderedDict[str, Future[Loaded]] = OrderedDict()
        self._pinned: set[str] = set()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="adapter-reader")

    def want(self, source: AdapterSource) -> "Future[Loaded]":
        """The adapter once it is read; whoever asks first sets off the reading. One that could not be read is tried anew next time."""
        with self._lock:
            found = self._adapters.get(source.sha256)
            if found is None or (found.done() and found.exception() is not None):
                found = self._adapters[source.sha256] = self._readers.submit(self._read, source)
                found.add_done_callback(lambda _: self._ready())
            self._adapters.move_to_end(source.sha256)
            return found

    def pin(self, sha256s: set[str]) -> None:
        """These stay in memory once they are there."""
        with self._lock:
            self._pinned = set(sha256s)

    def close(self) -> None:
        """Read nothing more."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, source: AdapterSource) -> Loaded:
        started = time.perf_counter()
        weights = source.load()
        scale = np.float32(weights.scale) if weights.pairs else np.float32(1)
        pairs = {
            name: (turned(as_float32(a), self.dtype), turned(as_float32(b) * scale, self.dtype)) for name, (a, b) in weights.pairs.items()
        }
        size = sum(tensor.nbytes for pair in pairs.values() for tensor in pair)
        size += sum(tensor.nbytes for tensor in weights.magnitudes.values())
        size += weights.prefix.embedding.nbytes if weights.prefix is not None else 0
        loaded = Loaded(weights.rank, pairs, weights.magnitudes, weights.prefix, size, (time.perf_counter() - started) * 1e3)
        with self._lock:
            self.size_bytes += size
            self._make_room(source.sha256)
        return loaded

    def _make_room(self, newest: str) -> None:
        for sha256 in list(self._adapters):
            if self.size_bytes <= self.budget_bytes:
                return
            future = self._adapters[sha256]
            if sha256 == newest or sha256 in self._pinned or not future.done():
                continue
            del self._adapters[sha256]
            if future.exception() is None:
                self.size_bytes -= future.result().size_bytes
