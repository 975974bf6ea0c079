"""`python -m studio backup|restore|check|disk`: keeping what people made."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.terminal import Json, opened, say, show

if TYPE_CHECKING:
    from studio.keeping.archive import HeldBase
    from studio.keeping.disk import Use
    from studio.keeping.findings import Finding

FETCH = "The base {name!r} is not in the backup; fetch it with: python -m studio base fetch {wanted}"


def add_commands(app: typer.Typer) -> None:
    """Put the commands beside those of the studio itself."""
    for command in (backup, restore, check, disk):
        app.command()(command)


def backup(
    target: Annotated[Path, typer.Argument(help="A zip, or a folder where the name does not end in .zip.")],
    with_bases: Annotated[bool, typer.Option("--with-bases", help="Copy the base models, too, which are large.")] = False,
    as_json: Json = False,
) -> None:
    """Copy the whole studio as it is now, while it runs."""
    with opened() as studio:
        made = studio.keeper.backup(target, with_bases, _Said())
    for note in made.notes:
        say(note)
    value = {**asdict(made), "path": str(made.path)}
    counts = f"{made.adapters} adapters, {made.datasets} datasets, {made.jobs} jobs, {made.size_bytes / 2**20:,.1f} MB"
    show(value, as_json, f"{made.path}: {counts}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="A zip or a folder that `backup` wrote.")],
    into: Annotated[
        Path | None, typer.Option(help="The new home; STUDIO_HOME where left out. It must be empty, or hold bases alone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a studio from a backup, in an empty home."""
    from studio.keeping.restore import restore as restore_from
    from studio.settings import load_settings

    settings = load_settings()
    home = (into or settings.home).expanduser().absolute()
    found = restore_from(source, home, settings.database_url, _Said())
    for text in [*found.notes, *(FETCH.format(name=base.name, wanted=_wanted(base)) for base in found.fetch)]:
        say(text)
    value = {**asdict(found), "home": str(home)}
    show(value, as_json, f"{home}: {found.files:,} files, {found.size_bytes / 2**20:,.1f} MB; jobs that ran are queued again")


def check(
    mend: Annotated[
        bool, typer.Option("--mend", help="Do what is offered for each finding; nothing is deleted but half-written files.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Look at names alone and read no file.")] = False,
    as_json: Json = False,
) -> None:
    """Compare what the database names with what lies in the home. Exit status 1 where something is found that is not mended."""
    with opened() as studio:
        found = studio.keeper.check(quick, _Said())
        done = studio.keeper.mend(found) if mend else []
        left = studio.keeper.check(quick) if done else found
    lines = [*(_line(one) for one in found), *done] or ["Everything is as it should be."]
    value: dict[str, Any] = {"findings": [{**asdict(one), "offer": one.offer} for one in found], "mended": done, "left": len(left)}
    show(value, as_json, "\n".join(lines))
    if left:
        raise typer.Exit(1)


def disk(
    free: Annotated[str, typer.Option(help="Remove what is safe: checkpoints of finished trainings, or exports older than a day.")] = "",
    as_json: Json = False,
) -> None:
    """What takes room, by kind, and what can be given back."""
    with opened() as studio:
        freed = studio.keeper.disk.free(free) if free else 0
        use = studio.keeper.disk.use()
    said = [f"{freed / 2**20:,.1f} MB were freed."] if free else []
    value = {**asdict(use), "used_bytes": use.used_bytes, "freed_bytes": freed}
    show(value, as_json, "\n".join([*said, *_lines(use)]))


class _Said:
    """Progress on stderr: each step once, and on a terminal how far it is."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, share: float, what: str) -> None:
        text = f"{what} ({round(share, 1):.0%})" if sys.stderr.isatty() else what
        if text != self._last:
            self._last = text
            say(text)


def _wanted(base: "HeldBase") -> str:
    """What fetches a base again: its repository, the starter's name, or a folder of this name."""
    kind, _, rest = base.source.partition(":")
    return rest.partition("@")[0] if kind == "hub" else base.name if kind == "wheel" else f"FOLDER/{base.name}"


def _line(finding: "Finding") -> str:
    offer = f"--mend would {finding.offer}" if finding.can_be_mended else finding.offer
    return f"{finding.kind}  {finding.where}  {finding.what} ({offer})"


def _lines(use: "Use") -> list[str]:
    from studio.quota import gigabytes

    lines = [f"{kind:<12}{gigabytes(size):>12}" for kind, size in use.kinds.items() if size]
    bound = f" of a quota of {gigabytes(use.quota_bytes)}" if use.quota_bytes else ""
    lines.append(f"{'all':<12}{gigabytes(use.used_bytes):>12}{bound}; {gigabytes(use.disk_free_bytes)} are free on the disk")
    lines += [f"  {item.where}  {item.name}  {gigabytes(item.size_bytes)}" for item in use.largest]
    lines += [f"{gigabytes(size)} can be freed: python -m studio disk --free {kind}" for kind, size in use.freeable.items() if size]
    return lines
