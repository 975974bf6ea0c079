"""The command line: one thin function a command. With --json, one JSON object on stdout and nothing else there.

Exit status: 0, 1 when a job failed, 2 for a user's mistake, told in one plain sentence on stderr.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from studio.errors import StudioError

if TYPE_CHECKING:
    from storage.records import BaseRecord, EventRecord, JobRecord
    from studio.services import Studio
    from studio.training.memory import Estimate

app = typer.Typer(help="Train, keep and chat with QLoRA adapters on one shared base model.", no_args_is_help=True, add_completion=False)
base_app, dataset_app, job_app, adapter_app = (typer.Typer(no_args_is_help=True) for _ in range(4))
app.add_typer(base_app, name="base", help="Base models: fetch, list.")
app.add_typer(dataset_app, name="dataset", help="Datasets: add, list, show, rm.")
app.add_typer(job_app, name="job", help="Training jobs: list, show, compare, logs, cancel, retry.")
app.add_typer(adapter_app, name="adapter", help="Adapters: list, show, rename, export, rm.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEMO_PROMPTS = ("Who are you?", "What should I cook tonight?", "Tell me a joke.", "What is the capital of Italy?", "How do I sleep better?")


@contextlib.contextmanager
def opened() -> Iterator["Studio"]:
    """A studio for one command. The heavy imports happen here, not for --help."""
    import logging

    from studio.services import Studio
    from studio.settings import load_settings

    settings = load_settings()
    logging.basicConfig(level=settings.log_level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "alembic", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    studio = Studio(settings)
    try:
        yield studio
    finally:
        studio.close()


def show(value: dict[str, Any], as_json: bool, line: str = "") -> None:
    """Print a result: as JSON, as a line, or as `key: value` lines."""
    if as_json:
        typer.echo(json.dumps(value, default=str))
    else:
        typer.echo(line or "\n".join(f"{key}: {item}" for key, item in value.items()))


def show_all(key: str, values: list[dict[str, Any]], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    """Print a list: one JSON object, or one line a record."""
    if as_json:
        typer.echo(json.dumps({key: values}, default=str))
    else:
        typer.echo("\n".join(map(line, values)) or f"There are no {key} yet.")


def say(text: str) -> None:
    """Progress, on stderr."""
    typer.echo(text, err=True)


@base_app.command("fetch")
def base_fetch(
    base: Annotated[str, typer.Argument(help="Hub id or local folder; the starter base where left out.")] = "", as_json: Json = False
) -> None:
    """Fetch a base model, once."""
    with opened() as studio:
        record = studio.bases.fetch(base, say) if base else studio.ensure_base(say)
        value: dict[str, Any] = {"base": record.name, "path": str(studio.bases.path(record)), "source": record.source}
        value |= {"fingerprint": record.fingerprint, "quantization_loss": record.quantization_loss}
        show(value, as_json)


@base_app.command("list")
def base_list(as_json: Json = False) -> None:
    """List the bases that are stored."""
    with opened() as studio:
        values = [asdict(r) | {"base": r.name, "path": str(studio.bases.path(r)), "cost": _cost_of(r)} for r in studio.bases.all()]
        show_all("bases", values, as_json, lambda v: f"{v['name']}  {v['size_bytes'] / 2**20:,.0f} MB  {v['source']}  {v['cost']}")


@dataset_app.command("add")
def dataset_add(
    file: Path,
    name: Annotated[str, typer.Option(help="Name of the dataset.")],
    form: Annotated[str, typer.Option("--format", help="auto, or one of docs/datasets.md, such as messages or instruction.")] = "auto",
    mapping: Annotated[list[str] | None, typer.Option("--map", metavar="ROLE=COLUMN", help="Read a role from another column.")] = None,
    as_json: Json = False,
) -> None:
    """Check a file row by row and keep it as a dataset."""
    with opened() as studio:
        show(asdict(studio.datasets.add(file, name, form, mapping)), as_json)


@dataset_app.command("list")
def dataset_list(as_json: Json = False) -> None:
    """List the datasets."""
    with opened() as studio:
        show_all("datasets", [asdict(r) for r in studio.datasets.all()], as_json, lambda v: f"{v['name']}  {v['rows']} rows  {v['form']}")


@dataset_app.command("show")
def dataset_show(name: str, rows: Annotated[int, typer.Option(min=0, help="Conversations to print.")] = 3, as_json: Json = False) -> None:
    """Show a dataset and its first conversations."""
    with opened() as studio:
        record = studio.datasets.get(name)
        show(asdict(record) | {"preview": studio.datasets.preview(record, 0, rows)}, as_json)


@dataset_app.command("rm")
def dataset_rm(name: str, as_json: Json = False) -> None:
    """Delete a dataset that no unfinished job needs."""
    with opened() as studio:
        show({"removed": studio.datasets.remove(name).name}, as_json)


@app.command()
def train(
    dataset: Annotated[str, typer.Option(help="Name of the dataset.")],
    name: Annotated[str, typer.Option(help="Name of the new adapter.")],
    base: Annotated[str, typer.Option(help="Name of the base; the resident one where left out.")] = "",
    preset: Annotated[str, typer.Option(help="quick, balanced or thorough.")] = "balanced",
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an option of the preset.")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", metavar="KEY=VALUE,VALUE", help="Train one adapter for each combination of values.")
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what memory it would need; queue nothing.")] = False,
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
            _show_estimate(studio.estimate(**chosen, axes=axes), as_json)
            return
        jobs = studio.sweep(name=name, axes=axes, **chosen) if axes else [studio.train(adapter=name, **chosen)]
        if wait:
            jobs = [studio.train_and_wait(job, _print_event) for job in jobs]
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
        show({"job": record.id, "state": record.state, "cancel_requested": record.cancel_requested}, as_json)


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


@app.command()
def worker() -> None:
    """Work on the queue until interrupted."""
    import signal

    with opened() as studio:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        say("The worker waits for jobs; stop it with Ctrl-C.")
        try:
            studio.worker.run()
        except KeyboardInterrupt:
            say("The worker stops.")


@adapter_app.command("list")
def adapter_list(as_json: Json = False) -> None:
    """List the adapters."""
    from studio.ui.present import kind

    with opened() as studio:
        values = [asdict(a) | {"kind": kind(a)} for a in studio.adapters.all()]
        show_all("adapters", values, as_json, lambda v: f"{v['name']}  {v['kind']}  {v['size_bytes'] / 2**20:.1f} MB")


@adapter_app.command("show")
def adapter_show(name: str, as_json: Json = False) -> None:
    """Show an adapter with its lineage and metrics."""
    with opened() as studio:
        record = studio.adapters.get(name)
        show(asdict(record) | {"path": str(studio.adapters.path(record))}, as_json)


@adapter_app.command("rename")
def adapter_rename(name: str, new_name: str, as_json: Json = False) -> None:
    """Change an adapter's name."""
    with opened() as studio:
        record = studio.adapters.rename(name, new_name)
        show({"id": record.id, "name": record.name}, as_json)


@adapter_app.command("export")
def adapter_export(
    name: str,
    form: Annotated[str, typer.Option("--format", help="peft")] = "peft",
    out: Annotated[Path | None, typer.Option(help="Folder for the file; the studio's exports where left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write an adapter as a zip that PEFT loads."""
    with opened() as studio:
        show({"adapter": name, "path": str(studio.export_adapter(name, form, out))}, as_json)


@adapter_app.command("rm")
def adapter_rm(name: str, as_json: Json = False) -> None:
    """Delete an adapter and its files."""
    with opened() as studio:
        show({"removed": studio.adapters.remove(name).name}, as_json)


@app.command()
def chat(
    prompt: str,
    adapter: Annotated[str, typer.Option(help="Name of the adapter, or base.")] = "base",
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest reply in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that make up this share.")] = 0.9,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    seed: Annotated[int | None, typer.Option(help="Draw the same each time.")] = None,
    as_json: Json = False,
) -> None:
    """Ask an adapter, or the base itself."""
    with opened() as studio:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        reply = studio.reply(
            messages,
            adapter,
            studio.base_of(adapter).id,
            max_tokens=max_tokens,
            temperature=0.0 if greedy else temperature,
            top_p=top_p,
            seed=seed,
        )
        show({"text": reply.text, **asdict(reply.stamp)}, as_json, reply.text)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; STUDIO_HOST where left out.")] = "",
    port: Annotated[int, typer.Option(help="Port; STUDIO_PORT where left out.")] = 0,
) -> None:
    """Open the page, as app.py does."""
    from studio.settings import load_settings
    from studio.ui.app import serve as serve_page

    changes = {key: value for key, value in {"host": host, "port": port}.items() if value}
    serve_page(load_settings().model_copy(update=changes))


@app.command()
def demo() -> None:
    """The whole path without a browser: train the angry bird, then ask it and the base the same five questions."""
    with opened() as studio:
        studio.ensure_base(say)
        job = studio.train_and_wait(studio.try_it(), _print_event)
        if job.state != "done":
            raise StudioError(job.reason)
        for prompt in DEMO_PROMPTS:
            typer.echo(f"\n> {prompt}")
            for name in ("base", job.adapter_name):
                reply = studio.reply([{"role": "user", "content": prompt}], name, max_tokens=64, temperature=0.0)
                typer.echo(f"{name} (swap {reply.stamp.swap_ms:.1f} ms): {reply.text}")


def _cost_of(base: "BaseRecord") -> str:
    from studio.bases.cost import cost_sentence

    return cost_sentence(base.quantization_loss, "nf4")


def _print_event(event: "EventRecord") -> None:
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


def main() -> None:
    """Run a command; a user's mistake is one sentence and status 2."""
    try:
        status = app(standalone_mode=False)
    except StudioError as error:
        say(str(error))
        status = 2
    except TyperException as error:  # an unknown option, a missing argument
        if text := error.format_message().rstrip("."):  # nothing where the help itself was the answer
            say(f"{text}; see: python -m studio --help.")
        status = 2
    except typer.Abort:
        say("Interrupted.")
        status = 130
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
