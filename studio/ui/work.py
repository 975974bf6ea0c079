"""A long piece of work behind one click: it runs in a thread of its own, says how far it is, and can be stopped."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Generic, NamedTuple, TypeVar

from studio.errors import Interrupted

Made = TypeVar("Made")
MOST_OVER = 50
PACE_S = 0.25  # the browser has to draw each word on the progress


class Told(NamedTuple):
    """How far the work is: a share from 0 to 1 where it is known, what is done, and the seconds so far."""

    share: float | None
    what: str
    seconds: float


class Work(Generic[Made]):
    """Work that has begun.

    Its thread ends with it: one that stays and has computed would slow the chat's (see `Engine`).

    Args:
        call: the work; it is handed this object, to `tell` and to ask whether it `is_stopped`.
    """

    def __init__(self, call: "Callable[[Work[Made]], Made]") -> None:
        self._told: tuple[float | None, str] = (None, "starting")
        self._stop = threading.Event()
        self._started = time.monotonic()
        thread = ThreadPoolExecutor(1)
        self._future: Future[Made] = thread.submit(call, self)
        thread.shutdown(wait=False)

    def tell(self, share: float | None, what: str) -> None:
        """Say how far it is; called by the work."""
        self._told = (share, what)

    def say(self, share: float | None, what: str) -> None:
        """Like `tell`, and the work's own way to stop.

        Raises:
            Interrupted: somebody wants it to stop.
        """
        if self.is_stopped():
            raise Interrupted("Stopped; nothing was kept.")
        self.tell(share, what)

    def is_stopped(self) -> bool:
        """Whether somebody wants it to stop; asked by the work."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to stop."""
        self._stop.set()

    def watch(self, *, goes_on: bool = False) -> Iterator[Told]:
        """How far it is, at a pace for people, until it is over. Work that nobody watches any longer is stopped, unless it `goes_on`."""
        try:
            while not wait_for([self._future], timeout=PACE_S).done:
                yield Told(*self._told, time.monotonic() - self._started)
        finally:
            if not goes_on:
                self.stop()

    @property
    def is_over(self) -> bool:
        """Whether it is done, however it ended."""
        return self._future.done()

    @property
    def failed(self) -> bool:
        """Whether it is over and nothing came of it."""
        return self._future.done() and self._future.exception() is not None

    def result(self) -> Made:
        """What came of it; raises what the work raised."""
        return self._future.result()


class Runs(Generic[Made]):
    """Work that goes on in this process whoever watches it, by what it is of. What is over stays to be asked for, the newest of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: dict[str, Work[Made]] = {}

    def start(self, key: str, call: "Callable[[Work[Made]], Made]") -> "Work[Made]":
        """The work of this key that goes on, or a new one."""
        with self._lock:
            work = self._works.get(key)
            if work is None or work.is_over:
                self._works.pop(key, None)
                work = self._works[key] = Work(call)
                over = [other for other, found in self._works.items() if found.is_over]
                for other in over[: max(0, len(over) - MOST_OVER)]:
                    del self._works[other]
            return work

    def find(self, key: str) -> "Work[Made] | None":
        """The work of this key, if it goes on or ended lately."""
        with self._lock:
            return self._works.get(key)

    def forget(self, key: str, work: "Work[Made]") -> None:
        """What came of it was told."""
        with self._lock:
            if self._works.get(key) is work and work.is_over:
                del self._works[key]
