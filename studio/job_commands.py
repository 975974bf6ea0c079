"""`python -m studio train`, `job …` and `queue …`: one thin function a command."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.errors import InvalidInput
from studio.terminal import Json, opened, say, show, show_all

if TYPE_CHECKING:
    from storage.records import EventRecord, JobRecord
    from studio.training.memory import Estimate

job_app, queue_app = typer.Typer(no_args_is_help=True), typer.Typer(no_args_is_help=True)


def train(
    dataset: Annotated[str, typer.Option(help="Name of the dataset.")],
    name: Annotated[str, typer.Option(help="Name of the new adapter.")] = "",
    base: Annotated[str, typer.Option(help="Name of the base; the resident one where left out.")] = "",
    preset: Annotated[str, typer.Option(help="quick, balanced or thorough.")] = "balanced",
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an option of the preset.")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", metavar="KEY=VALUE,VALUE", help="Train one adapter for each combination of values.")
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what memory it would need; queue nothing.")] = False,
    priority: Annotated[int, typer.Option(help="Before all jobs of a lower one, -100 to 100; 0 is usual.")] = 0,
    after: Annotated[str, typer.Option("--run-after", metavar="JOB", help="The job that must be done first.")] = "",
    version_of: Annotated[
        str, typer.Option("--as-version-of", metavar="NAME", help="The result is the next version of this adapter's name.")
    ] = "",
    keep_current: Annotated[
        bool, typer.Option("--keep-current", help="With --as-version-of: the name goes on standing for the version that it stands for.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Work on the queue here until the job is over.")] = False,
    as_json: Json = False,
) -> None:
    """Queue a training job, or one for each combination of a sweep; with --wait, run it."""
    from studio.jobs.sweep import parse_axes
    from studio.training.config import parse_overrides

    chosen: dict[str, Any] = {"dataset": dataset, "base": base or None, "preset": preset, "overrides": parse_overrides(changes or [])}
    axes = parse_axes(sweep or [])
    with opened() as studio:
        if estimate:
            _show_estimate(studio.foresight.estimate(**chosen, axes=axes), as_json)
            return
        chosen |= {"priority": priority, "after": after}
        if axes and version_of:
            raise InvalidInput("A sweep makes several adapters, which are no versions of one name; leave out --sweep or --as-version-of.")
        versions: dict[str, Any] = {"as_version_of": version_of, "current": not keep_current}
        jobs = studio.sweep(name=name, axes=axes, **chosen) if axes else [studio.train(adapter=name, **chosen, **versions)]
        if wait:
            jobs = [studio.train_and_wait(job, print_event) for job in jobs]
        results = [_job_result(job) for job in jobs]
        show({"group": jobs[0].group, "jobs": results} if axes else results[0], as_json, _lines_of(jobs) if axes else "")
        _exit_where_failed(jobs)


@job_app.command("list")
def job_list(as_json: Json = False) -> None:
    """List the newest jobs."""
    with opened() as studio:
        show_all(
            "jobs",
            [asdict(j) for j in studio.queue.all()],
            as_json,
            lambda v: f"{v['id']}  {v['state']}  {v['adapter_name']}  {v['reason']}",
        )


@job_app.command("show")
def job_show(job: str, as_json: Json = False) -> None:
    """Show one job."""
    with opened() as studio:
        show(asdict(studio.queue.get(job)), as_json)


@job_app.command("compare")
def job_compare(group: Annotated[str, typer.Argument(help="The group of a sweep.")], as_json: Json = False) -> None:
    """Put the jobs of a sweep side by side."""
    with opened() as studio:
        found = studio.queue.compare(group)
        rows = [_job_result(job) | {"options": job.config["sweep"]["options"], "best": job.id == found.best} for job in found.jobs]
        lines = [f"{_numbers_of(row)}{'  best' if row['best'] else ''}" for row in rows]
        show({"group": group, "name": found.name, "jobs": rows}, as_json, "\n".join(lines))


@job_app.command("logs")
def job_logs(job: str, as_json: Json = False) -> None:
    """Print a job's events and its log."""
    with opened() as studio:
        events = [asdict(e) for e in studio.queue.events(job)]
        text = studio.job_log(job)
        lines = [json.dumps({"kind": e["kind"], "at": e["at"], **e["data"]}) for e in events]
        show({"events": events, "log": text}, as_json, "\n".join([*lines, text]))


@job_app.command("cancel")
def job_cancel(job: str, as_json: Json = False) -> None:
    """Cancel a waiting or running job, or all of a sweep by its group."""
    with opened() as studio:
        if studio.queue.group(job):
            cancelled = [record.id for record in studio.queue.cancel_group(job)]
            show({"group": job, "cancelled": cancelled}, as_json, f"{len(cancelled)} jobs were cancelled.")
            return
        record = studio.queue.cancel(job)
        show({"job": record.id, "state": record.state}, as_json)


@job_app.command("pause")
def job_pause(job: str, as_json: Json = False) -> None:
    """Put a waiting job aside, or let a running one keep a checkpoint and stop."""
    with opened() as studio:
        record = studio.queue.pause(job)
        show({"job": record.id, "state": record.state}, as_json)


@job_app.command("resume")
def job_resume(job: str, as_json: Json = False) -> None:
    """Queue a paused job again; it goes on at its checkpoint."""
    with opened() as studio:
        record = studio.queue.resume(job)
        show({"job": record.id, "state": record.state, "resumes_at_step": studio.queue.resume_step(job)}, as_json)


@job_app.command("copy")
def job_copy(
    job: str,
    name: Annotated[str, typer.Option(help="Name of the new adapter; left out, the old one with a number.")] = "",
    sets: Annotated[list[str] | None, typer.Option("--set", help="Option of the training as key=value; repeat it.")] = None,
    as_json: Json = False,
) -> None:
    """Queue a new job with the configuration of another one, and some options changed."""
    from studio.training.config import parse_overrides

    with opened() as studio:
        record = studio.queue.copy(job, name, parse_overrides(sets or []))
        show({"job": record.id, "state": record.state, "adapter": record.adapter_name}, as_json)


@job_app.command("move")
def job_move(
    job: str,
    before: Annotated[str, typer.Option(help="The job that it comes before; left out, it goes to the end.")] = "",
    priority: Annotated[int | None, typer.Option(help="Before all jobs of a lower one; 0 is usual.")] = None,
    after: Annotated[str | None, typer.Option("--run-after", help="The job that must be done first; empty for none.")] = None,
    as_json: Json = False,
) -> None:
    """Give a waiting job another place in the queue."""
    with opened() as studio:
        if priority is not None:
            record = studio.queue.prioritise(job, priority)
        elif after is not None:
            record = studio.queue.run_after(job, after)
        else:
            record = studio.queue.place(job, before)
        show({"job": record.id, "state": record.state, "priority": record.priority, "after": record.after}, as_json)


@queue_app.command("show")
def queue_show(as_json: Json = False) -> None:
    """Say whether the queue is held, and how many jobs are in each state."""
    with opened() as studio:
        show({**asdict(studio.queue.state()), "jobs": studio.queue.counts()}, as_json)


@queue_app.command("hold")
def queue_hold(as_json: Json = False) -> None:
    """Start nothing more; what runs goes on."""
    with opened() as studio:
        studio.queue.hold()
        show(asdict(studio.queue.state()), as_json)


@queue_app.command("release")
def queue_release(as_json: Json = False) -> None:
    """Start jobs again."""
    with opened() as studio:
        studio.queue.release()
        show(asdict(studio.queue.state()), as_json)


@queue_app.command("stop-after")
def queue_stop_after(failures: int, as_json: Json = False) -> None:
    """Hold the queue after so many failures in a row; 0 never does."""
    with opened() as studio:
        studio.queue.stop_after(failures)
        show(asdict(studio.queue.state()), as_json)


@queue_app.command("notifications")
def queue_notifications(as_json: Json = False) -> None:
    """List what the webhook was told or is to be told, the newest first."""
    with opened() as studio:
        values = [asdict(entry) for entry in studio.outbox.all()]
        show_all(
            "notifications",
            values,
            as_json,
            lambda v: f"{v['id']}  {v['event']}  {v['job_id']}  {v['state']}  {v['tries']} tries  {v['error']}",
        )


@job_app.command("retry")
def job_retry(
    job: str,
    from_start: Annotated[bool, typer.Option("--from-start", help="Forget its checkpoints and begin at the first step.")] = False,
    as_json: Json = False,
) -> None:
    """Queue a failed or cancelled job again; it goes on at its newest checkpoint."""
    with opened() as studio:
        record = studio.queue.retry(job, from_start)
        show({"job": record.id, "state": record.state, "resumes_at_step": studio.queue.resume_step(job)}, as_json)


def print_event(event: "EventRecord") -> None:
    """What a training says, on stderr."""
    data = event.data
    if event.kind == "progress":
        left = f"{data['tokens_per_s']:.0f} tokens/s, {data['remaining_s']:.0f} s left"
        say(f"step {data['step']}/{data['steps']}  loss {data['loss']:.3f}  {left}")
    elif event.kind == "eval":
        say(f"held-out loss {data['loss']:.3f} at step {data['step']}")
    elif event.kind == "samples":
        for item in data["items"]:
            say(f"> {item['prompt']}\n{item['text']}")
    elif event.kind in ("notice", "state"):
        say(data.get("text") or data["state"])


def _show_estimate(estimate: "Estimate", as_json: bool) -> None:
    from studio.ui.present import memory_sentence

    show(asdict(estimate), as_json, memory_sentence(estimate))


def _numbers_of(row: dict[str, Any]) -> str:
    options = " ".join(f"{key}={value}" for key, value in row["options"].items())
    loss, rate = row["eval_loss"], row["tokens_per_s"]
    measured = [f"held-out loss {loss:.3f}" if loss is not None else "", f"{rate:.0f} tokens/s" if rate is not None else ""]
    return "  ".join([row["job"], row["state"], options, *filter(None, measured)])


def _lines_of(jobs: list["JobRecord"]) -> str:
    lines = [f"{job.id}  {job.state}  {job.adapter_name}" for job in jobs]
    return "\n".join([*lines, f"Compare them: python -m studio job compare {jobs[0].group}"])


def _exit_where_failed(jobs: list["JobRecord"]) -> None:
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        say(job.reason)
    if failed:
        raise typer.Exit(1)


def _job_result(job: "JobRecord") -> dict[str, Any]:
    keys = ("tokens", "seconds", "tokens_per_s", "peak_rss_mb", "train_loss", "eval_loss", "steps")
    return {"job": job.id, "state": job.state, "adapter": job.adapter_name, **{key: job.result.get(key) for key in keys}}
