"""How a training steps back from the page and the chat on the same machine."""

import contextlib
import os
from pathlib import Path

STARTING, ON_THE_CPU = 5, 19  # nice values; 19 takes what nobody else wants
AUTOGROUP = Path("/proc/self/autogroup")


def step_back(niceness: int) -> None:
    """Let everything else on this machine go first, where the system knows of that.

    Linux may weigh sessions against each other before the processes within (autogroup), and then a session as a whole must be
    nice: a training is a session of its own, so between it and the chat its processes' own values would change nothing.
    """
    with contextlib.suppress(OSError, AttributeError):  # Windows has no nice
        os.nice(max(0, niceness - os.nice(0)))
        if os.getsid(0) == os.getpid():
            AUTOGROUP.write_text(str(niceness))
