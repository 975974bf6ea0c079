"""`python -m studio adapter …`: what finds adapters and writes on them; the others are in `adapter_commands.py`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.terminal import Json, opened, show, show_all

catalog_app = typer.Typer(no_args_is_help=True)
MOST = 1000


@catalog_app.command("list")
def adapter_list(
    search: Annotated[str, typer.Option(help="Words that begin so, in name, tags, card, source, base or dataset.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Only those with this tag; may be repeated.")] = None,
    collection: Annotated[str, typer.Option(help="Only those of this collection.")] = "",
    base: Annotated[str, typer.Option(help="Only those of this base.")] = "",
    dataset: Annotated[str, typer.Option(help="Only those that learned from this dataset, in any version.")] = "",
    kind: Annotated[str, typer.Option(help="lora, dora or prefix.")] = "",
    favourites: Annotated[bool, typer.Option("--favourites", help="Only favourites.")] = False,
    archived: Annotated[bool, typer.Option("--archived", help="Those in the archive instead.")] = False,
    sort: Annotated[str, typer.Option(help="newest, name, loss, rank, size, won (share of votes) or gain (of held-out loss).")] = "newest",
    max_loss: Annotated[float | None, typer.Option("--max-loss", help="Only those whose held-out loss is at most this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = MOST,
    as_json: Json = False,
) -> None:
    """List adapters: all, or those that are looked for."""
    from storage.catalog import Search
    from storage.shelf import ARCHIVED, LISTED
    from studio.ui.present import kind as told

    with opened() as studio:
        wanted = Search(
            text=search,
            tags=tuple(word.casefold() for word in tag or ()),
            collection=collection,
            base=studio.bases.get(base).id if base else "",
            dataset=dataset,
            kind=kind,
            favourite=favourites,
            state=ARCHIVED if archived else LISTED,
            losses=(None, max_loss),
            sort=sort,
        )
        records = studio.finder.page(wanted, limit).records
        pinned = {record.id for record in studio.pins.all()}
        values = [asdict(record) | {"told": told(record), "pinned": record.id in pinned} for record in records]
        show_all("adapters", values, as_json, _line)


def _line(value: dict[str, Any]) -> str:
    tags = "".join(f"  #{tag}" for tag in value["tags"])
    star = "  ★" if value["favourite"] else ""
    return f"{value['name']}  {value['told']}  {value['size_bytes'] / 2**20:.1f} MB{star}{'  pinned' if value['pinned'] else ''}{tags}"


@catalog_app.command("tag")
def adapter_tag(
    name: str,
    tags: Annotated[list[str] | None, typer.Argument(help="Tags to put on it.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to take off; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Put tags on an adapter, and take others off."""
    with opened() as studio:
        record = studio.finder.tag(name, tags or (), remove or ())
        show({"adapter": record.name, "tags": record.tags}, as_json)


@catalog_app.command("collect")
def adapter_collect(
    name: str,
    collections: Annotated[list[str] | None, typer.Argument(help="All collections that it is to be in.")] = None,
    as_json: Json = False,
) -> None:
    """Put an adapter into collections; out of all that are not named."""
    with opened() as studio:
        record = studio.finder.collect(name, collections or ())
        show({"adapter": record.name, "collections": record.collections}, as_json)


@catalog_app.command("favourite")
def adapter_favourite(
    name: str, off: Annotated[bool, typer.Option("--off", help="No favourite any more.")] = False, as_json: Json = False
) -> None:
    """Make an adapter a favourite."""
    with opened() as studio:
        record = studio.finder.favourite(name, not off)
        show({"adapter": record.name, "favourite": record.favourite}, as_json)


@catalog_app.command("archive")
def adapter_archive(
    name: str, off: Annotated[bool, typer.Option("--off", help="Out of the archive.")] = False, as_json: Json = False
) -> None:
    """Take an adapter out of the lists; it can still be asked by its name."""
    with opened() as studio:
        record = studio.finder.archive(name, not off)
        show({"adapter": record.name, "archived_at": record.archived_at}, as_json)


@catalog_app.command("card")
def adapter_card(
    name: str,
    edit: Annotated[
        Path | None, typer.Option(help="A file in Markdown to keep as its card; an empty one goes back to what is known.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, such as apache-2.0.")] = None,
    as_json: Json = False,
) -> None:
    """Show an adapter's card with the Hub's metadata, or keep another one."""
    from studio.adapters.finding import read_card

    with opened() as studio:
        if edit is not None or licence is not None:
            text = read_card(edit) if edit is not None else studio.adapters.get(name).card
            studio.finder.write_card(name, text, licence)
        card = studio.finder.card(name)
        show({"adapter": studio.adapters.get(name).name, "card": card}, as_json, card)


@catalog_app.command("version")
def adapter_version(
    name: str,
    of: Annotated[str, typer.Option(help="Make it the next version of this name.")] = "",
    current: Annotated[bool, typer.Option("--current", help="Let its name stand for it; say which as NAME@SHA.")] = False,
    as_json: Json = False,
) -> None:
    """Show the versions of an adapter's name, add one, or choose which one the name stands for."""
    with opened() as studio:
        record = studio.finder.make_version(name, of) if of else studio.adapters.get(name)
        record = studio.finder.make_current(record.id) if current else record
        values = [{"name": r.name, "version": r.version, "current": r.current, "sha256": r.sha256} for r in studio.finder.versions(record)]
        show_all(
            "versions", values, as_json, lambda v: f"{v['name']}@{v['sha256'][:12]}  version {v['version']}{'  current' * v['current']}"
        )
