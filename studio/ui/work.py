"""A long piece of work behind one click: it runs in a thread of its own, says how far it is, and can be stopped."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Generic, NamedTuple, TypeVar

Made = TypeVar("Made")
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

    def is_stopped(self) -> bool:
        """Whether somebody wants it to stop; asked by the work."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to stop."""
        self._stop.set()

    def watch(self) -> Iterator[Told]:
        """How far it is, at a pace for people, until it is over. Work that nobody watches any longer is stopped."""
        try:
            while not wait_for([self._future], timeout=PACE_S).done:
                yield Told(*self._told, time.monotonic() - self._started)
        finally:
            self.stop()

    def result(self) -> Made:
        """What came of it; raises what the work raised."""
        return self._future.result()
