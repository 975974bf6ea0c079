"""What every command shares: a studio for its time, and how results, progress and mistakes are printed."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from studio.services import Studio

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@contextlib.contextmanager
def opened() -> Iterator["Studio"]:
    """A studio for one command. The heavy imports happen here, not for --help."""
    import logging

    from studio.services import Studio
    from studio.settings import load_settings

    settings = load_settings()
    logging.basicConfig(level=settings.log_level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "alembic", "datasets", "absl"):
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
