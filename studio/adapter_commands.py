"""`python -m studio adapter …`: what is done with one; what finds and labels them is in `catalog_commands.py`."""

from dataclasses import asdict
from typing import Annotated

import typer

from studio.terminal import Json, opened, say, show

VersionOf = Annotated[str, typer.Option("--as-version-of", metavar="NAME", help="Make it the next version of this adapter's name.")]

adapter_app = typer.Typer(no_args_is_help=True)


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


@adapter_app.command("pin")
def adapter_pin(name: str, as_json: Json = False) -> None:
    """Keep an adapter ready in the chat; a server that runs knows it from its next message on."""
    with opened() as studio:
        show({"pinned": studio.pins.pin(name).name}, as_json)


@adapter_app.command("unpin")
def adapter_unpin(name: str, as_json: Json = False) -> None:
    """Let it make room for others again."""
    with opened() as studio:
        show({"unpinned": studio.pins.unpin(name).name}, as_json)


@adapter_app.command("import")
def adapter_import(
    wanted: Annotated[str, typer.Argument(metavar="PATH|REPO", help="Folder, zip or safetensors file as PEFT saves; or owner/name[@rev].")],
    name: Annotated[str, typer.Option(help="Name of the adapter here.")] = "",
    version_of: VersionOf = "",
    base: Annotated[str, typer.Option(help="The base that it is for; the only one that it fits where left out.")] = "",
    as_json: Json = False,
) -> None:
    """Bring in an adapter that PEFT saved, or this studio exported."""
    with opened() as studio:
        found = studio.import_adapter(wanted, name, base, version_of)
        for notice in found.notices:
            say(notice)
        line = f"{found.record.name} was imported from {found.record.source}."
        show(asdict(found.record) | {"path": str(studio.adapters.path(found.record)), "notices": found.notices}, as_json, line)


@adapter_app.command("make")
def adapter_make(
    formula: Annotated[str, typer.Argument(help="Adapters with weights, such as wizard:0.7+pirate:0.3; below 0 takes away.")],
    name: Annotated[str, typer.Option(help="Name of the adapter that is made.")] = "",
    version_of: VersionOf = "",
    method: Annotated[str, typer.Option(help="sum, ties or dare.")] = "sum",
    rank: Annotated[int, typer.Option(min=0, help="Rank of the result; 0 is the sum of the ranks, of ties and dare the largest.")] = 0,
    density: Annotated[float, typer.Option(help="Share of numbers that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="What dare draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Make an adapter out of others: a weighted sum, or a merge by TIES or DARE."""
    from studio.adapters.making import Recipe

    with opened() as studio:
        made = studio.make_adapter(formula, name, Recipe(method, rank, density, seed), version_of)
        line = f"{made.record.name} was made from {made.record.source}. {' '.join(made.notices)}"
        show(asdict(made.record) | {"path": str(studio.adapters.path(made.record)), "notices": made.notices}, as_json, line.strip())


@adapter_app.command("rm")
def adapter_rm(name: str, as_json: Json = False) -> None:
    """Delete an adapter and its files."""
    with opened() as studio:
        show({"removed": studio.adapters.remove(name).name}, as_json)
