"""The states of a job and the moves between them: one table, which every write to the queue goes by.

queued ──► starting ──► running ──► done          waiting: its turn has come, but something is missing (the reason says what)
  ▲  ▲        │            │                      pausing, cancelling: asked of a job that a worker holds
  │  └─ waiting            ├──► pausing ──► paused
  │                        ├──► cancelling ──► cancelled
  └──────── lost ◄─────────┴──► failed            lost: its worker is gone; where it goes from there is decided at once
"""

QUEUED, WAITING = "queued", "waiting"
STARTING, RUNNING, PAUSING, CANCELLING = "starting", "running", "pausing", "cancelling"
PAUSED, LOST = "paused", "lost"
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"

READY = (QUEUED, WAITING)  # a worker may take it
ACTIVE = (STARTING, RUNNING, PAUSING, CANCELLING)  # a worker holds it under a lease
OVER = (DONE, FAILED, CANCELLED)
OPEN = (*READY, *ACTIVE, PAUSED, LOST)
STATES = (*OPEN, *OVER)

MOVES: dict[str, tuple[str, ...]] = {
    QUEUED: (QUEUED, WAITING, STARTING, PAUSED, CANCELLED),
    WAITING: (QUEUED, WAITING, STARTING, PAUSED, CANCELLED),
    # An attempt that finds its adapter complete ends as done at once; a worker that is stopped gives its job back.
    STARTING: (RUNNING, PAUSING, CANCELLING, DONE, FAILED, LOST, QUEUED),
    RUNNING: (PAUSING, CANCELLING, DONE, FAILED, LOST, QUEUED),
    # A job may end before it hears of the wish, but a wish is never forgotten: there is no way back into the queue.
    PAUSING: (PAUSED, CANCELLING, DONE, FAILED, LOST),
    CANCELLING: (CANCELLED, DONE, FAILED, LOST),
    PAUSED: (QUEUED, CANCELLED),
    LOST: (QUEUED, PAUSED, CANCELLED, FAILED),
    FAILED: (QUEUED,),
    CANCELLED: (QUEUED,),
    DONE: (),
}


def sources(target: str) -> tuple[str, ...]:
    """The states from which a job may go to `target`."""
    return tuple(state for state, targets in MOVES.items() if target in targets)
