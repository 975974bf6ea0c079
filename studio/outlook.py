"""What a dataset promises on a base with some settings: the report on its rows, and the time and memory of the training."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.records import JobRecord
from storage.states import DONE
from studio.datasets.report import Report, make_report
from studio.datasets.store import RowStore
from studio.training.config import TrainConfig
from studio.training.memory import Estimate, estimate

# Loading, evaluation, samples and saving beside the loop; measured on two CPU cores with the starter base.
AROUND_S = 25.0


@dataclass(frozen=True)
class Expected:
    """What a training is expected to take. `seen_before` says whether the rate is that of an earlier job on the same base."""

    tokens: int
    tokens_per_s: float
    seconds: float
    seen_before: bool
    memory: Estimate

    @property
    def sentence(self) -> str:
        """For people."""
        minutes = self.seconds / 60
        time = f"{minutes:,.0f} min" if minutes >= 2 else f"{self.seconds:,.0f} s"
        source = "as the last training on this base did" if self.seen_before else "judged by a short product of matrices on this machine"
        return f"A training reads {self.tokens:,} tokens at about {self.tokens_per_s:,.0f} a second ({source}) and takes about {time}."


@dataclass(frozen=True)
class Outlook:
    """Report and expectation."""

    found: Report
    expected: Expected

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.found.to_dict(), "expected": {**asdict(self.expected), "sentence": self.expected.sentence}}


def look_at(
    store: RowStore,
    tokenizer: Any,
    config: TrainConfig,
    progress: Callable[[float, str], None],
    cancelled: Callable[[], bool],
) -> Report:
    """The report on a dataset with the settings of a training.

    Args:
        progress: is given a share from 0 to 1 and what is looked at.

    Raises:
        Cancelled: `cancelled()` was true.
    """
    from studio.training.batching import split_held_out

    return make_report(
        len(store),
        store.fetch,
        tokenizer,
        max_length=config.max_length,
        over_length=config.over_length,
        held_out=lambda rows: split_held_out(rows, config.held_out, config.seed)[1],
        progress=progress,
        cancelled=cancelled,
    )


def expect(found: Report, base_path: Path, config: TrainConfig, done: list[JobRecord]) -> Expected:
    """Time and memory of a training on the rows of a report, which must have been made with the same settings.

    Args:
        found: as `look_at` gave it. done: earlier jobs on this base, the newest first.
    """
    from studio.training.speed import machine_tokens_per_s

    tokens = _tokens_read(found.left, config)
    seen = next((job.result["tokens_per_s"] for job in done if job.state == DONE and job.result.get("tokens_per_s")), None)
    rate = float(seen or machine_tokens_per_s(base_path))
    memory = estimate(base_path, config, max(found.left, default=min(found.longest, config.max_length)))
    return Expected(tokens, rate, tokens / rate + AROUND_S, seen is not None, memory)


def _tokens_read(left: list[int], config: TrainConfig) -> int:
    """Tokens of all steps of a training: those of the whole epochs, and of the steps of the broken one behind them.

    Exact, but where both max_steps and batch_tokens are given: then every epoch is taken to have as many steps as the first.
    """
    from studio.training.batching import epoch_steps, split_held_out

    if not left:
        return 0
    lengths = [left[place] for place in split_held_out(len(left), config.held_out, config.seed)[0]]

    def steps_of(epoch: int) -> list[list[int]]:
        return epoch_steps(lengths, config.batch_size, config.batch_tokens, config.seed, epoch)

    if config.max_steps:
        whole, more = divmod(config.max_steps, len(steps_of(0)))
    else:
        whole = int(config.epochs)
        more = max(round(len(steps_of(whole)) * (config.epochs - whole)), 0 if whole else 1)
    return sum(lengths) * whole + sum(lengths[row] for step in steps_of(whole)[:more] for row in step)
