"""The command line: one thin function a command. With --json, one JSON object on stdout and nothing else there.

Exit status: 0, 1 when a job failed or a check found something, 2 for a user's mistake, told in one plain sentence on stderr.
"""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from studio.adapter_commands import adapter_app
from studio.catalog_commands import catalog_app
from studio.dataset_commands import dataset_app
from studio.errors import StudioError
from studio.evaluation_commands import evaluate, evaluation_app
from studio.export_commands import add_commands as add_export_commands
from studio.job_commands import job_app, print_event, queue_app, train
from studio.keeping_commands import add_commands as add_keeping_commands
from studio.key_commands import key_app
from studio.terminal import Json, opened, say, show, show_all

if TYPE_CHECKING:
    from storage.records import BaseRecord

app = typer.Typer(help="Train, keep and chat with QLoRA adapters on one shared base model.", no_args_is_help=True, add_completion=False)
base_app = typer.Typer(no_args_is_help=True)
app.add_typer(base_app, name="base", help="Base models: fetch, list.")
app.add_typer(dataset_app, name="dataset", help="Datasets: add, look into, change, export, rm.")
app.command()(train)
app.add_typer(job_app, name="job", help="Training jobs: list, show, compare, logs, cancel, pause, resume, retry, copy, move.")
app.add_typer(queue_app, name="queue", help="The queue as a whole: show, hold, release, stop after failures.")
adapter_app.add_typer(catalog_app)
add_export_commands(adapter_app)
app.add_typer(adapter_app, name="adapter", help="Adapters: find, look into, label, import, make, compare, export, push, rm.")
app.command()(evaluate)
app.add_typer(evaluation_app, name="evaluation", help="Evaluations: list, show, resume, rm.")
app.add_typer(key_app, name="key", help="Keys of the HTTP API: add, list, revoke.")
add_keeping_commands(app)

DEMO_PROMPTS = ("Who are you?", "What should I cook tonight?", "Tell me a joke.", "What is the capital of Italy?", "How do I sleep better?")


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


@app.command()
def worker() -> None:
    """Work on the queue until interrupted."""
    import signal

    with opened() as studio:
        signal.signal(signal.SIGTERM, lambda *_: studio.worker.stop_soon())
        say("The worker waits for jobs; stop it with Ctrl-C.")
        try:
            studio.worker.run()
        except KeyboardInterrupt:
            say("The worker stops.")


@app.command()
def chat(
    prompt: str,
    adapter: Annotated[
        str, typer.Option(help="Name of the adapter, a blend such as a:0.7+b:0.3, a checkpoint such as job:a@120, or base.")
    ] = "base",
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
        job = studio.train_and_wait(studio.try_it(), print_event)
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
