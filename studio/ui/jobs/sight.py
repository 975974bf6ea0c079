"""What one browser looks at, and what the Train tab's right side shows of it. Knows nothing of events."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from storage.states import ACTIVE, CANCELLED, DONE, FAILED, OPEN, PAUSED, READY
from studio.errors import NotFound
from studio.jobs.logs import size_of, tail
from studio.ui.curve import Curves, Point
from studio.ui.jobs import overlay, show_board, show_job
from studio.ui.jobs.parts import Beside
from studio.ui.page import only_new

if TYPE_CHECKING:
    from storage.records import AdapterRecord, JobRecord
    from studio.services import Studio

PAGE_JOBS = 25
MOST_JOBS = 500  # on one page; older ones are found with the command line
PAUSED_SHOWN = 50
OTHERS_SHOWN = 100  # jobs that another one may be told to run after
MOST_IDS = 64
KEPT_SPARKS = 1000
PARTS = ("bar", "running", "waiting", "paused", "sweeps", "history", "head", "live", "facts", "log")


@dataclass(frozen=True)
class Sight:
    """What one browser looks at; it keeps that itself, as text, so that a studio that starts anew goes on where it was.

    Attributes:
        view: empty for the board, else ids of jobs, or of a sweep. chosen: ids of the jobs that are ticked. more: pages of the
            waiting and of the earlier jobs, as "1 1". search: what the log is searched for.
    """

    view: str = ""
    chosen: str = ""
    more: str = ""
    search: str = ""

    @property
    def ids(self) -> list[str]:
        """The ids of the view."""
        return [part for part in self.view.split(",") if part][:MOST_IDS]

    @property
    def ticked(self) -> list[str]:
        """The ids that are ticked, in the order of the clicks."""
        return [part for part in self.chosen.split(",") if part][:MOST_IDS]

    @property
    def limits(self) -> tuple[int, int]:
        """How many waiting and how many earlier jobs are shown."""
        pages = [int(part) if part.isdecimal() else 1 for part in self.more.split(" ")] + [1, 1]
        return min(pages[0] * PAGE_JOBS, MOST_JOBS), min(pages[1] * PAGE_JOBS, MOST_JOBS)


class Shown:
    """Makes the parts of the page. One for all browsers: what it remembers is of jobs that do not change any more."""

    def __init__(self, studio: "Studio", curves: Curves) -> None:
        self.studio, self.curves = studio, curves
        self._sparks: dict[tuple[str, int], list[Point]] = {}

    def parts(self, sight: Sight, shown: dict[str, str]) -> list[Any]:
        """Values for the components of `PARTS`, with skips where the browser has them; `shown` is what it has."""
        made = self.board(sight) if not sight.ids else self.page(sight, shown)
        if not sight.ids:
            shown.pop("log of", None)
        return [only_new(shown, part, made[part]) if part in made else gr.skip() for part in PARTS]

    # The board

    def board(self, sight: Sight) -> dict[str, str]:
        """The board's parts as HTML."""
        queue, tally = self.studio.queue, self.studio.watching.tally()
        waiting_limit, over_limit = sight.limits
        jobs = queue.open(waiting_limit)
        running, ready, paused = ([job for job in jobs if job.state in states] for states in (ACTIVE, READY, (PAUSED,)))
        unfinished = {job.group: None for job in jobs if job.group}
        over = queue.over(over_limit)
        groups = {group: queue.compare(group) for group in {**unfinished, **{job.group: None for job in over if job.group}}}
        earlier = show_board.entries((job for job in over if job.group not in unfinished), groups)
        told = [*running, *ready, *paused[:PAUSED_SHOWN], *over, *(job for group in groups.values() for job in group.jobs)]
        beside = self.beside(told, sight.ticked)
        state = queue.state()
        idle = show_board.nothing_runs(tally.waiting, tally.over, self.studio.settings.worker, state.held)
        curves = {job.id: self.curves.of(job.id, job.attempt) for job in running}
        more = tally.over - len(over) if over_limit < MOST_JOBS else 0
        return {
            "bar": show_board.bar(len(running), len(paused), tally, state) + show_board.chosen_bar(sight.ticked, overlay.MOST),
            "running": show_board.running_list(running, curves, beside) or idle,
            "waiting": show_board.waiting_list(ready, tally.waiting if waiting_limit < MOST_JOBS else len(ready), beside),
            "paused": show_board.paused_list(paused[:PAUSED_SHOWN], beside),
            "sweeps": show_board.sweeps_list((groups[group] for group in unfinished), beside),
            "history": show_board.history(earlier, beside, more),
            **dict.fromkeys(("head", "live", "facts", "log"), ""),
        }

    def beside(self, jobs: "Iterable[JobRecord]", ticked: Sequence[str] = ()) -> Beside:
        """What is said beside the jobs."""
        by_id = {job.id: job for job in jobs}
        adapters = self.studio.watching.adapters([job.adapter_id for job in by_id.values() if job.state == DONE])
        stopped = [job for job in by_id.values() if job.state in (FAILED, CANCELLED, PAUSED)]
        steps = {job.id: self.studio.queue.resume_step(job.id) for job in stopped if job.attempt}
        return Beside(
            adapters=adapters,
            chats=self._chats(adapters.values()),
            resumes={job_id: step for job_id, step in steps.items() if step is not None},
            sparks=self._sparks_of([job for job in by_id.values() if job.state not in (*ACTIVE, *READY) and job.attempt]),
            chosen=frozenset(ticked),
        )

    def _chats(self, adapters: "Iterable[AdapterRecord]") -> frozenset[str]:
        """Those that the chat could open now."""
        try:
            fingerprint = self.studio.default_base().fingerprint
        except NotFound:
            return frozenset()
        return frozenset(a.id for a in adapters if a.base_fingerprint == fingerprint)

    def _sparks_of(self, jobs: "Sequence[JobRecord]") -> dict[str, list[Point]]:
        missing = [job for job in jobs if (job.id, job.attempt) not in self._sparks]
        if missing:
            found = self.studio.watching.losses([job.id for job in missing])
            self._sparks |= {(job.id, job.attempt): found.get(job.id, []) for job in missing}
            while len(self._sparks) > max(KEPT_SPARKS, len(jobs)):
                self._sparks.pop(next(iter(self._sparks)), None)
        return {job.id: self._sparks.get((job.id, job.attempt), []) for job in jobs}

    # One job, or several side by side

    def page(self, sight: Sight, shown: dict[str, str]) -> dict[str, str]:
        """The parts of the page of a job; the board's stay as they are."""
        queue = self.studio.queue
        try:
            jobs = [queue.get(job_id) for job_id in sight.ids]
        except NotFound as error:
            jobs = queue.group(sight.view)
            if not jobs:
                return {"head": show_job.gone(error), "live": "", "facts": "", "log": ""}
        if len(jobs) > 1:
            return {"head": self._side_by_side(jobs), "live": "", "facts": "", "log": ""}
        job = jobs[0]
        beside = self.beside([job])
        return {
            "head": show_job.head(job, beside, self._ahead(job), self._others(job)),
            "live": show_job.live(job, self.curves.of(job.id, job.attempt), beside),
            "facts": self._facts(job, beside),
            **self._log(job, sight.search, shown),
        }

    def _side_by_side(self, jobs: "list[JobRecord]") -> str:
        started = [job for job in jobs if job.started_at] or jobs
        runs = [(job, self.curves.of(job.id, job.attempt)) for job in started[: overlay.MOST]]
        bases = {base.id: base.name for base in self.studio.bases.all()}
        return overlay.overlay(runs, self.beside(jobs), bases, len(jobs) - len(runs))

    def _facts(self, job: "JobRecord", beside: Beside) -> str:
        group = self.studio.queue.group(job.group)
        origin = show_job.Origin(
            base=next((base for base in self.studio.bases.all() if base.id == job.base_id), None),
            dataset=self.studio.queue.datasets.find(job.dataset_id),
            copied_from=self._job(job.copied_from),
            after=self._job(job.after),
            group=job.group if len(group) > 1 else "",
            group_size=len(group),
        )
        attempts = show_job.attempts(self.studio.queue.attempts(job.id))
        return show_job.configuration(job.config) + show_job.lineage(job, origin, beside) + attempts

    def _job(self, job_id: str) -> "JobRecord | None":
        try:
            return self.studio.queue.get(job_id) if job_id else None
        except NotFound:
            return None

    def _ahead(self, job: "JobRecord") -> int | None:
        """How many come before it; None where it does not wait, or very far behind."""
        if job.state not in READY:
            return None
        order = [other.id for other in self.studio.queue.open(MOST_JOBS) if other.state in READY]
        return order.index(job.id) if job.id in order else None

    def _others(self, job: "JobRecord") -> dict[str, str]:
        if job.state not in READY:
            return {}
        first = self._job(job.after)
        others = [*self.studio.queue.open(OTHERS_SHOWN), *([first] if first else [])]
        return {other.id: other.adapter_name for other in others if other.id != job.id and (other.state in OPEN or other is first)}

    def _log(self, job: "JobRecord", search: str, shown: dict[str, str]) -> dict[str, str]:
        """The log, where it grew since this browser saw it."""
        paths = self.studio.log_files(job)
        key = f"{job.id} {size_of(paths)} {search}"
        if shown.get("log of") == key:
            return {}
        shown["log of"] = key
        return {"log": show_job.log(tail(paths, search), search)}
