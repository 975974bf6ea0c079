"""Which form a file's rows have, tried out on the first of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from studio.datasets.forms.catalog import FORMS, Fit, Form
from studio.datasets.forms.faults import Fault, described, excerpt
from studio.datasets.forms.reader import RowReader
from studio.datasets.forms.shapes import fields_of
from studio.datasets.rows import RowError, SourceRow
from studio.errors import InvalidInput

TRIED = 1000
LISTED = 20


def find_forms(rows: Sequence[Any]) -> list[Fit]:
    """All forms whose required roles have columns, the best first. `rows` are the values of the first rows.

    Forms that read most rows come before others, plain text comes last among them, and forms whose columns have the
    roles' own names come before those that were found by another name.
    """
    return _fits(_objects(rows), list(FORMS.values()), {})


def choose_form(rows: Sequence[Any], wanted: str = "auto", mapping: Mapping[str, str] | None = None) -> Fit:
    """The best form, or the wanted one.

    Args:
        rows: as in `find_forms`. mapping: {role: column}, instead of the columns that would be taken; an empty column
        leaves an optional role out.

    Raises:
        InvalidInput: no form fits, or `wanted`, a role or a column is unknown. The message lists what there is.
    """
    mapping = dict(mapping or {})
    if wanted != "auto" and wanted not in FORMS:
        raise InvalidInput(f"There is no format {wanted!r}; choose auto, {', '.join(FORMS)}.")
    objects = _objects(rows)
    if not objects:
        what = described(rows[0]) if len(rows) else "missing"
        raise InvalidInput(f"The first row is {what}, not an object with named fields; write each row as {{…}}.")
    candidates = [FORMS[wanted]] if wanted != "auto" else list(FORMS.values())
    with_roles = [form for form in candidates if all(role in {r.name for r in form.roles} for role in mapping)]
    if not with_roles:
        roles = "; ".join(f"{form.name} has {', '.join(role.name for role in form.roles)}" for form in candidates)
        raise InvalidInput(f"No form has the role(s) {', '.join(mapping)} together: {roles}. Map the roles of one form.")
    _check_columns(_columns(objects), mapping)
    fits = _fits(objects, with_roles, mapping)
    if not fits:
        needs = ", or ".join(" and ".join(form.required) for form in with_roles)
        raise InvalidInput(
            f"The file's columns are {_listed(_columns(objects))}; it needs {needs}. "
            "Rename columns, or map a role to a column (ROLE=COLUMN)."
        )
    if wanted == "auto" and not mapping and not fits[0].share and not _own_names(fits[0]):
        raise InvalidInput(_guessed_wrong(fits[0], objects))
    return fits[0]


def _guessed_wrong(fit: Fit, objects: Sequence[dict[str, Any] | None]) -> str:
    """Why the only forms whose columns are there under another name are not taken: no row can be read so."""
    guess = ", ".join(f"{role}={column}" for role, column in fit.mapping.items())
    try:
        RowReader(fit)(SourceRow(1, next(fields for fields in objects if fields is not None)))
        why = ""
    except RowError as error:
        why = f": {error.problem}"
    return (
        f"The file's columns are {_listed(_columns(objects))}; as {fit.form} ({guess}) no row can be read{why}. "
        "Choose a form, or map a role to a column (ROLE=COLUMN)."
    )


def _objects(rows: Sequence[Any]) -> list[dict[str, Any] | None]:
    """The rows as named fields, None for one that has none; nothing at all where no row has any."""
    objects: list[dict[str, Any] | None] = []
    for value in rows[:TRIED]:
        try:
            objects.append(fields_of(value))
        except Fault:
            objects.append(None)
    return objects if any(fields is not None for fields in objects) else []


def _columns(objects: Sequence[dict[str, Any] | None]) -> list[str]:
    columns = dict.fromkeys(name for fields in objects for name in fields or () if isinstance(name, str))
    return list(columns)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(excerpt(name, 40) for name in columns[:LISTED])
    return (shown + (", …" if len(columns) > LISTED else "")) or "none"


def _check_columns(columns: Sequence[str], mapping: Mapping[str, str]) -> None:
    by_column: dict[str, str] = {}
    for role, column in mapping.items():
        if not column:
            continue
        if column not in columns:
            raise InvalidInput(
                f"The mapping {role}={column} names no column of the file, which has {_listed(columns)}; choose one of them."
            )
        if column in by_column:
            raise InvalidInput(f"The column {column!r} is mapped to {by_column[column]} and to {role}; give each role a column of its own.")
        by_column[column] = role


def _fits(objects: Sequence[dict[str, Any] | None], forms: Sequence[Form], mapping: Mapping[str, str]) -> list[Fit]:
    columns = _columns(objects)
    mappings = ((form, _resolve(form, columns, mapping)) for form in forms)
    fits = [Fit(form.name, found, _share(form, objects, found)) for form, found in mappings if found is not None]
    return sorted(fits, key=_rank)  # stable: the catalog's order decides between equals


def _rank(fit: Fit) -> tuple[bool, bool, float, float]:
    return fit.share < 0.5, fit.form == "text", -_own_names(fit), -fit.share


def _own_names(fit: Fit) -> float:
    """The share of the required columns that are named as their roles."""
    required = FORMS[fit.form].required
    return sum(_plain_name(fit.mapping[role]) == role for role in required) / len(required)


def _resolve(form: Form, columns: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str] | None:
    """The column of each role, None where a required one has none. A column has one role at most."""
    found = {role: column for role, column in mapping.items() if column}
    names: dict[str, str] = {}
    for column in columns:
        if column not in found.values():
            names.setdefault(_plain_name(column), column)
    names |= {column: column for column in columns if column not in found.values()}
    for role in form.roles:
        if role.name not in mapping:
            free = [names[alias] for alias in role.aliases if alias in names and names[alias] not in found.values()]
            if free:
                found[role.name] = free[0]
    return found if all(role in found for role in form.required) else None


def _plain_name(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _share(form: Form, objects: Sequence[dict[str, Any] | None], mapping: dict[str, str]) -> float:
    read, good = RowReader(Fit(form.name, mapping, 0.0)), 0
    for fields in objects:
        try:
            read(SourceRow(0, fields))
            good += 1
        except RowError:
            continue
    return good / len(objects)
