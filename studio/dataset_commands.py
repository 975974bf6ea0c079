"""`python -m studio dataset …`: one thin function a command."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.terminal import Json, opened, say, show, show_all

if TYPE_CHECKING:
    from storage.records import DatasetRecord
    from studio.datasets.ingest import Options
    from studio.services import Studio

dataset_app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the dataset, its id, or NAME@VERSION.")]
Form = Annotated[str, typer.Option("--format", help="auto, or a form of docs/datasets.md.")]
Mapping = Annotated[list[str] | None, typer.Option("--map", metavar="ROLE=COLUMN", help="Read a role from another column.")]
System = Annotated[str, typer.Option(help="System prompt for rows that have none.")]
Drop = Annotated[bool, typer.Option("--drop", help="Leave wrong rows out instead of refusing the file.")]
Seed = Annotated[int, typer.Option(help="Draw the same each time.")]


@dataset_app.command("add")
def dataset_add(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files that become one dataset.")],
    name: Annotated[str, typer.Option(help="Name of the dataset.")],
    form: Form = "auto",
    mapping: Mapping = None,
    system: System = "",
    drop: Drop = False,
    errors: Annotated[Path | None, typer.Option(help="Where the table of wrong rows goes, as CSV.")] = None,
    as_json: Json = False,
) -> None:
    """Check files row by row and keep them as a dataset."""
    from studio.datasets.errors import BadRows

    with opened() as studio:
        try:
            record = studio.datasets.add(paths, name, _options(form, mapping, system, drop))
        except BadRows as bad:
            if errors is not None:
                errors.write_text(bad.errors.as_csv(), encoding="utf-8-sig")
            raise
        _show_record(record, as_json)


@dataset_app.command("fetch")
def dataset_fetch(
    repository: Annotated[str, typer.Argument(help="Dataset of the Hugging Face Hub, such as owner/name.")],
    name: Annotated[str, typer.Option(help="Name of the dataset.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    form: Form = "auto",
    mapping: Mapping = None,
    system: System = "",
    drop: Drop = False,
    as_json: Json = False,
) -> None:
    """Fetch a dataset from the Hub, pinned to the commit that it is at."""
    with opened() as studio:
        _show_record(studio.add_from_hub(repository, revision, name, _options(form, mapping, system, drop)), as_json)


@dataset_app.command("look")
def dataset_look(
    path: Annotated[Path, typer.Argument(metavar="FILE")],
    form: Form = "auto",
    mapping: Mapping = None,
    system: System = "",
    as_json: Json = False,
) -> None:
    """Show which forms a file may have and what its first rows become; keep nothing."""
    with opened() as studio:
        found = studio.datasets.inspect([path], _options(form, mapping, system))
        value: dict[str, Any] = {
            "columns": found.columns,
            "forms": [asdict(fit) for fit in found.fits],
            "rows": [{"line": s.line, "conversation": s.conversation, "error": str(s.error) if s.error else ""} for s in found.samples],
            "notices": found.notices,
        }
        show(value, as_json)


@dataset_app.command("list")
def dataset_list(as_json: Json = False) -> None:
    """List the datasets."""
    with opened() as studio:
        values = [asdict(record) for record in studio.datasets.all()]
        show_all("datasets", values, as_json, lambda v: f"{v['name']}  version {v['version']}  {v['rows']:,} rows  {v['form']}")


@dataset_app.command("versions")
def dataset_versions(name: Name, as_json: Json = False) -> None:
    """List the versions of a dataset."""
    with opened() as studio:
        values = [asdict(record) for record in studio.datasets.versions(studio.datasets.get(name).name)]
        show_all("versions", values, as_json, lambda v: f"{v['name']}@{v['version']}  {v['rows']:,} rows  {v['made_by'] or 'added'}")


@dataset_app.command("show")
def dataset_show(
    name: Name,
    rows: Annotated[int, typer.Option(min=0, help="Conversations to print.")] = 3,
    offset: Annotated[int, typer.Option(min=0, help="The first of them, from 0.")] = 0,
    as_json: Json = False,
) -> None:
    """Show a dataset and some of its conversations."""
    with opened() as studio:
        record = studio.datasets.get(name)
        page = studio.datasets.store(record).page(offset, rows)
        show(asdict(record) | {"preview": [row.conversation for row in page], "rows_shown": [row._asdict() for row in page]}, as_json)


@dataset_app.command("report")
def dataset_report(
    name: Name,
    base: Annotated[str, typer.Option(help="Name of the base; the resident one where left out.")] = "",
    preset: Annotated[str, typer.Option(help="quick, balanced or thorough.")] = "balanced",
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an option of the preset.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a base would make of a dataset: lengths, duplicates, personal data, time and memory."""
    from studio.training.config import parse_overrides

    with opened() as studio:
        report = studio.foresight.report(name, base or None, preset, parse_overrides(changes or []))
        lines = [f"{finding.level}: {finding.said} {finding.advice}" for finding in report.found.findings]
        show(report.to_dict(), as_json, "\n".join([*lines, report.expected.sentence]))


@dataset_app.command("deduplicate")
def dataset_deduplicate(
    name: Name, near: Annotated[bool, typer.Option("--near", help="Rows that are nearly equal too.")] = False, as_json: Json = False
) -> None:
    """Make a version without repeated rows."""
    with opened() as studio:
        _show_record(studio.changes.deduplicate(studio.datasets.get(name), near), as_json)


@dataset_app.command("filter")
def dataset_filter(
    name: Name,
    contains: Annotated[str, typer.Option(help="Text that a row must have.")] = "",
    lacks: Annotated[str, typer.Option(help="Text that it must not have.")] = "",
    where: Annotated[str, typer.Option(metavar="COLUMN=VALUE", help="Value of a field beside the conversation.")] = "",
    min_characters: Annotated[int, typer.Option(min=0, help="Shortest row.")] = 0,
    max_characters: Annotated[int, typer.Option(min=0, help="Longest row; 0 is no limit.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a version of the rows for which everything that is given holds."""
    from studio.datasets.changes import Filter

    column, _, equals = where.partition("=")
    with opened() as studio:
        wanted = Filter(contains, lacks, column, equals, min_characters, max_characters)
        _show_record(studio.changes.filter(studio.datasets.get(name), wanted), as_json)


@dataset_app.command("sample")
def dataset_sample(name: Name, rows: Annotated[int, typer.Option(help="Rows to keep.")], seed: Seed = 0, as_json: Json = False) -> None:
    """Make a version of some rows, drawn by chance."""
    with opened() as studio:
        _show_record(studio.changes.sample(studio.datasets.get(name), rows, seed), as_json)


@dataset_app.command("redact")
def dataset_redact(name: Name, as_json: Json = False) -> None:
    """Make a version in which a word such as [e-mail] stands for personal data."""
    with opened() as studio:
        _show_record(studio.changes.redact(studio.datasets.get(name)), as_json)


@dataset_app.command("split")
def dataset_split(
    name: Name,
    share: Annotated[float, typer.Option(help="Share of the rows in the second part.")] = 0.1,
    column: Annotated[str, typer.Option(help="One part for each value of this field instead.")] = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make datasets of their own from the parts of one."""
    with opened() as studio:
        record = studio.datasets.get(name)
        parts = studio.changes.split_by_column(record, column) if column else studio.changes.split(record, share, seed)
        show_all("datasets", [asdict(part) for part in parts], as_json, lambda v: f"{v['name']}  {v['rows']:,} rows")


@dataset_app.command("mix")
def dataset_mix(
    parts: Annotated[list[str], typer.Argument(metavar="NAME[:WEIGHT]…", help="Datasets; without weights they are joined.")],
    name: Annotated[str, typer.Option(help="Name of the mixture.")],
    rows: Annotated[int, typer.Option(min=0, help="Rows of a weighed mixture; 0 for as many as the parts have.")] = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a dataset of its own from several."""
    from studio.datasets.changes import parse_parts

    with opened() as studio:
        names, weights = parse_parts(parts)
        _show_record(studio.changes.mix([studio.datasets.get(part) for part in names], weights, name, rows, seed), as_json)


@dataset_app.command("export")
def dataset_export(
    name: Name,
    out: Annotated[Path | None, typer.Option(help="Folder for the file; the studio's exports where left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write a dataset as JSONL in OpenAI's form."""
    with opened() as studio:
        record = studio.datasets.get(name)
        show({"dataset": record.name, "rows": record.rows, "path": str(studio.datasets.export(record, out))}, as_json)


@dataset_app.command("rm")
def dataset_rm(name: Name, as_json: Json = False) -> None:
    """Delete a dataset with all its versions, or one of them, that no unfinished job needs."""
    with opened() as studio:
        learned = _learned_from(studio, name)
        show({"removed": studio.datasets.remove(name).name, "adapters_that_learned_from_it": learned}, as_json)


def _learned_from(studio: "Studio", name: str) -> list[str]:
    chosen = [record.id for record in studio.datasets.versions(name) or [studio.datasets.get(name)]]
    return [adapter for names in studio.adapters.records.learned_from(chosen).values() for adapter in names]


def _options(form: str, mapping: list[str] | None, system: str, drop: bool = False) -> "Options":
    from studio.datasets.forms import read_mapping
    from studio.datasets.ingest import Options

    return Options(form, read_mapping(mapping or []), system, drop)


def _show_record(record: "DatasetRecord", as_json: bool) -> None:
    for note in record.notes:
        say(note)
    show(asdict(record), as_json)
