"""`python -m studio key …`: keys of the HTTP API."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.terminal import Json, opened, say, show, show_all

if TYPE_CHECKING:
    from storage.records import ApiKeyRecord

key_app = typer.Typer(no_args_is_help=True)


@key_app.command("add")
def key_add(
    label: Annotated[str, typer.Argument(help="Who has it, such as the name of a program.")],
    per_minute: Annotated[int, typer.Option("--per-minute", help="Requests that it may make a minute; 0 is no limit.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown this once and kept nowhere."""
    from studio.api.keys import Keys

    with opened() as studio:
        key, record = Keys(studio.api_keys).make(label, per_minute)
        say("Copy the key now; it cannot be shown again.")
        show({"key": key, **_shown(record)}, as_json, key)


@key_app.command("list")
def key_list(as_json: Json = False) -> None:
    """List the keys by their first characters."""
    from studio.api.keys import Keys

    with opened() as studio:
        values = [_shown(record) for record in Keys(studio.api_keys).all()]
        show_all("keys", values, as_json, _line)


@key_app.command("revoke")
def key_revoke(
    key: Annotated[str, typer.Argument(help="Its id, or the first characters that the list shows.")], as_json: Json = False
) -> None:
    """End a key; whoever sends it is refused from now on."""
    from studio.api.keys import Keys

    with opened() as studio:
        show(_shown(Keys(studio.api_keys).revoke(key)), as_json)


def _shown(record: "ApiKeyRecord") -> dict[str, Any]:
    """What is told of a key: everything but its hash."""
    return {name: value for name, value in asdict(record).items() if name != "sha256"}


def _line(value: dict[str, Any]) -> str:
    limit = f"{value['per_minute']} requests a minute" if value["per_minute"] else "no limit"
    state = "revoked" if value["revoked_at"] else "used" if value["last_used_at"] else "not used yet"
    return f"{value['id']}  {value['start']}…  {value['label']}  {limit}  {state}"
