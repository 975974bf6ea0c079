"""What can be known of a training before it starts: what its rows are made into, what it needs, how long it will take."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from storage.records import BaseRecord, DatasetRecord, JobRecord
from studio.bases.catalog import BaseCatalog
from studio.bases.loading import load_tokenizer
from studio.datasets.changes import Changes
from studio.datasets.library import DatasetLibrary
from studio.datasets.passes import Progress, never, unwatched
from studio.datasets.rendering import render
from studio.errors import InvalidInput
from studio.jobs.queue import Queue, training_config
from studio.jobs.sweep import Axes, plan
from studio.training.config import DEFAULT_PRESET, make_config

if TYPE_CHECKING:
    from studio.datasets.pieces import Piece
    from studio.datasets.report import Report
    from studio.outlook import Outlook
    from studio.training.memory import Estimate

KEPT_REPORTS = 16  # one on 50,000 rows takes about 2 MB
LONGEST_ROWS = 8  # the row with the most tokens is among the few with the most bytes


class Foresight:
    """Reports, estimates and views of rows as a base would see them.

    Args:
        bases, datasets, changes, queue: as the studio has them. default_base: the base where none is named; may raise NotFound.
    """

    def __init__(
        self, bases: BaseCatalog, datasets: DatasetLibrary, changes: Changes, queue: Queue, default_base: Callable[[], BaseRecord]
    ) -> None:
        self.bases, self.datasets, self.changes, self.queue, self._default_base = bases, datasets, changes, queue, default_base
        self._longest_rows: dict[tuple[str, str], int] = {}
        self._reports: dict[tuple[object, ...], Report] = {}

    def base(self, name_or_id: str | None) -> BaseRecord:
        """The base of this name; None for the default one. Raises NotFound."""
        return self.bases.get(name_or_id) if name_or_id else self._default_base()

    def estimate(
        self,
        dataset: str | None,
        base: str | None = None,
        preset: str = DEFAULT_PRESET,
        overrides: dict[str, Any] | None = None,
        axes: Axes | None = None,
    ) -> "Estimate":
        """What a training would need of this machine's memory, before it is queued; of a sweep, its largest one.

        Args:
            dataset: None counts rows as long as max_length. The others are as in `Studio.sweep`.

        Raises:
            NotFound. InvalidInput: names the option and its range.
        """
        from studio.training.memory import estimate

        changes = overrides or {}
        configs = [variant.config for variant in plan("", preset, changes, axes)] if axes else [make_config(preset, changes)]
        chosen = self.base(base)
        longest = self._longest_row(self.datasets.get(dataset), chosen) if dataset else None
        return max((estimate(self.bases.path(chosen), config, longest) for config in configs), key=lambda found: found.total_mb)

    def report(
        self,
        dataset: str,
        base: str | None = None,
        preset: str = DEFAULT_PRESET,
        overrides: dict[str, Any] | None = None,
        progress: Progress = unwatched,
        cancelled: Callable[[], bool] = never,
    ) -> "Outlook":
        """What a base would make of a dataset, and what a training would take. Made once for the same question.

        Args:
            progress: is given a share from 0 to 1 and what is looked at. The others are as in `Studio.train`.

        Raises:
            NotFound. InvalidInput: names the option and its range. Cancelled: `cancelled()` was true.
        """
        from studio.outlook import Outlook, expect, look_at

        config, record = make_config(preset, overrides), self.datasets.get(dataset)
        chosen = self.base(base)
        # What the report depends on; the expectation is cheap, and changes with every job that is done.
        key = (record.content_hash, chosen.fingerprint, config.max_length, config.over_length, config.held_out, config.seed)
        path = self.bases.path(chosen)
        if key not in self._reports:
            tokenizer = load_tokenizer(path, chosen.name)
            self._reports[key] = look_at(self.datasets.store(record), tokenizer, config, progress, cancelled)
            if len(self._reports) > KEPT_REPORTS:
                self._reports.pop(next(iter(self._reports)), None)
        done = [job for job in self.queue.all() if job.base_id == chosen.id]
        found = self._reports[key]
        return Outlook(found, expect(found, path, config, done))

    def mend(self, dataset: str, action: str, base: str | None = None, preset: str = DEFAULT_PRESET) -> DatasetRecord:
        """Make a version in which a finding of the report is mended.

        Args:
            action: of a `Finding`. The others are those of the report.

        Raises:
            NotFound. InvalidInput: there is nothing to mend, or no such action.
        """
        record = self.datasets.get(dataset)
        whole: dict[str, Callable[[DatasetRecord], DatasetRecord]] = {
            "deduplicate": self.changes.deduplicate,
            "near-deduplicate": partial(self.changes.deduplicate, near=True),
            "redact": self.changes.redact,
        }
        if action in whole:
            return whole[action](record)
        rows = self.report(dataset, base, preset).found.removable.get(action)
        if not rows:
            raise InvalidInput(f"The report on {record.name!r} offers nothing that is called {action!r}; look at it again.")
        return self.changes.remove_rows(record, rows)

    def pieces(self, dataset: str, row: int, base: str | None = None, max_length: int = 0) -> "list[Piece]":
        """The tokens of one row as a base's template writes them, and which of them are trained or cut off.

        Args:
            row: its number from 0. max_length: 0 for the default's. The others are as in `Studio.train`.

        Raises:
            NotFound. InvalidInput: there is no such row, or the base's template refuses it.
        """
        from studio.datasets.pieces import pieces

        record = self.datasets.get(dataset)
        if not 0 <= row < record.rows:
            raise InvalidInput(f"The dataset {record.name!r} has no row {row}; its rows are 0 to {record.rows - 1}.")
        chosen = self.base(base)
        tokenizer = load_tokenizer(self.bases.path(chosen), chosen.name)
        [found] = self.datasets.store(record).page(row, 1)
        return pieces(tokenizer, render(tokenizer, found.conversation), max_length or make_config(DEFAULT_PRESET).max_length)

    def needs_mb(self, job: JobRecord) -> int:
        """What a queued job takes of memory at its peak."""
        from studio.training.config import TrainConfig
        from studio.training.memory import estimate

        dataset, base = self.datasets.get(job.dataset_id), self.bases.get(job.base_id)
        return estimate(self.bases.path(base), TrainConfig(**training_config(job)), self._longest_row(dataset, base)).total_mb

    def _longest_row(self, dataset: DatasetRecord, base: BaseRecord) -> int:
        """Tokens of the longest row, measured once on the few that have the most text."""
        key = (dataset.content_hash, base.fingerprint)
        if key not in self._longest_rows:
            tokenizer = load_tokenizer(self.bases.path(base), base.name)
            rows = self.datasets.store(dataset).longest(LONGEST_ROWS)
            self._longest_rows[key] = max(len(render(tokenizer, row).token_ids) for row in rows)
        return self._longest_rows[key]
