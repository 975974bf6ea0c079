"""Why a job failed, in plain words, and what to do about it: the cause that was found, and the change that mends it."""

from dataclasses import dataclass, field
from typing import Any

from storage.records import JobRecord

SMALLEST_BUDGET, SMALLEST_LENGTH = 256, 128
RETRY = "Retry"


@dataclass(frozen=True)
class Advice:
    """What a failed job's card says beside its reason.

    Attributes:
        title: the cause, a few words. text: what to do. label: of the button that does it; empty where no button can.
        changes: the options that the button's new job has otherwise; none means a retry of this job.
    """

    title: str
    text: str
    label: str = RETRY
    changes: dict[str, Any] = field(default_factory=dict)


PLAIN = {
    "data": Advice("The data or an option does not fit", "Mend what the reason names; then copy the job with the change.", ""),
    "base": Advice("The base model is not usable", "Fetch the base again, then retry."),
    "disk": Advice("The disk is full", "Free some space on the studio's disk; the retry goes on at the last checkpoint."),
    "lost": Advice("Its worker died again and again", "Look at the end of the log, and at what else ran then."),
    "name": Advice("The adapter's name was taken", "Rename the other adapter, then retry."),
    "start": Advice("The process could not be started", "Mend what the reason names, then retry."),
    "error": Advice("An error of the studio itself", "The log has the details; a retry goes on at the last checkpoint."),
}


def advise(job: JobRecord) -> Advice:
    """What to do about a failed job, whose cause is one word that the training or the worker found."""
    if job.cause == "memory":
        return _smaller(job, "Memory ran out")
    if job.cause == "killed":
        return _smaller(job, "The system killed the training, most often for want of memory")
    if job.cause == "diverged":
        rate = float(job.config.get("learning_rate", 0.0)) / 2
        return Advice(
            "The loss stopped being a number", "Learn more slowly.", f"Train again with learning_rate {rate:g}", {"learning_rate": rate}
        )
    return PLAIN.get(job.cause, PLAIN["error"])


def _smaller(job: JobRecord, title: str) -> Advice:
    """Half of what is computed at once; where that is small already, half of the longest row."""
    config = job.config
    for option, smallest in (("token_budget", SMALLEST_BUDGET), ("max_length", SMALLEST_LENGTH)):
        value = int(config.get(option, 0)) // 2
        if value >= smallest:
            text = (
                "Compute fewer tokens at once; the rows of a step stay the same." if option == "token_budget" else "Cut long rows earlier."
            )
            return Advice(title, text, f"Train again with {option} {value:,}", {option: value})
    return Advice(title, "Choose a smaller base, or close other programs and retry.")
