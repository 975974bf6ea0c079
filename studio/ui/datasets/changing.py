"""Change a dataset: each change has a line of help and a button, and makes a new version or datasets of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.datasets.changes import Filter
from studio.errors import InvalidInput, StudioError
from studio.ui.page import html
from studio.ui.present import hint

if TYPE_CHECKING:
    from storage.records import DatasetRecord
    from studio.services import Studio

HELP = {
    "split": "Two datasets of their own: one to train on, one to keep aside; or one for each value of a column.",
    "sample": "Keep some rows, drawn by chance; the same seed draws the same rows.",
    "filter": "Keep the rows for which everything holds that you fill in.",
    "deduplicate": "Keep the first of rows that are the same word for word, or nearly so.",
    "redact": "Put a word such as [e-mail] in the place of addresses, numbers, cards and keys.",
    "mix": "A dataset of its own from this one and others. Weights are the parts' shares; without them everything is taken once.",
}
LOOKED_AT = 50  # rows whose further fields are offered as columns


@dataclass(frozen=True)
class Changing:
    """Handles of the view: inputs and buttons by the change's name."""

    inputs: dict[str, list[Any]]
    buttons: dict[str, gr.Button]
    columns: list[gr.Dropdown]
    others: gr.Dropdown


def build() -> Changing:
    """Lay the view out."""
    inputs: dict[str, list[Any]] = {}
    buttons: dict[str, gr.Button] = {}
    inputs["deduplicate"] = inputs["near-deduplicate"] = inputs["redact"] = []
    with _section("Deduplicate", "deduplicate", open_=True), gr.Row(elem_classes="as-actions"):
        buttons["deduplicate"] = _button("Remove equal rows", "deduplicate")
        buttons["near-deduplicate"] = _button("Remove near duplicates too", "near-deduplicate")
    with _section("Filter", "filter"):
        inputs["filter"], column = _filter()
        buttons["filter"] = _button("Keep these rows", "filter")
    with _section("Sample", "sample"):
        with gr.Row(elem_classes="as-grid"):
            inputs["sample"] = [_number("Rows", 100, "dataset-sample-rows"), _number("Seed", 0, "dataset-sample-seed", 0)]
        buttons["sample"] = _button("Draw them", "sample")
    with _section("Split", "split"):
        share = gr.Slider(0.01, 0.5, 0.1, step=0.01, label="Share of the second part", elem_id="dataset-split-share")
        by = gr.Dropdown(
            [], label="Or by a column", info="One dataset for each of its values.", allow_custom_value=True, elem_id="dataset-split-column"
        )
        inputs["split"] = [share, by]
        buttons["split"] = _button("Split it", "split")
    with _section("Redact", "redact"):
        buttons["redact"] = _button("Redact personal data", "redact")
    with _section("Mix", "mix"):
        others, inputs["mix"] = _mix()
        buttons["mix"] = _button("Mix them", "mix")
    return Changing(inputs=inputs, buttons=buttons, columns=[by, column], others=others)


def _section(title: str, name: str, open_: bool = False) -> Any:
    section = gr.Accordion(title, open=open_, elem_id=f"dataset-change-{name}", elem_classes="as-fold")
    with section:
        html(hint(HELP[name]))
    return section


def _button(label: str, name: str) -> gr.Button:
    return gr.Button(label, elem_id=f"dataset-{name}", elem_classes="as-do", min_width=120, scale=0)


def _number(label: str, value: int, elem_id: str, minimum: int = 1, info: str | None = None) -> gr.Number:
    return gr.Number(value, label=label, precision=0, minimum=minimum, info=info, elem_id=elem_id, min_width=120)


def _filter() -> tuple[list[Any], gr.Dropdown]:
    with gr.Row(elem_classes="as-grid"):
        contains = gr.Textbox("", label="Contains", max_lines=1, elem_id="dataset-filter-contains")
        lacks = gr.Textbox("", label="Lacks", max_lines=1, elem_id="dataset-filter-lacks")
        column = gr.Dropdown([], label="Column", allow_custom_value=True, elem_id="dataset-filter-column")
        equals = gr.Textbox("", label="Has the value", max_lines=1, elem_id="dataset-filter-equals")
        least = _number("Characters at least", 0, "dataset-filter-least", 0)
        most = _number("Characters at most", 0, "dataset-filter-most", 0, "0 is no limit.")
    return [contains, lacks, column, equals, least, most], column


def _mix() -> tuple[gr.Dropdown, list[Any]]:
    others = gr.Dropdown([], label="Other datasets", multiselect=True, elem_id="dataset-mix-others")
    with gr.Row(elem_classes="as-grid"):
        weights = gr.Textbox(
            "",
            label="Weights",
            info="This one's first, with commas between.",
            placeholder="3, 1",
            max_lines=1,
            elem_id="dataset-mix-weights",
        )
        name = gr.Textbox("", label="Name of the mixture", max_lines=1, elem_id="dataset-mix-name")
        rows = _number("Rows", 0, "dataset-mix-rows", 0, "0 for as many as all have.")
    return others, [others, weights, name, rows]


class Events:
    """What the buttons do. Each returns what was made, the first of which is shown next.

    Each raises StudioError where nothing was made.
    """

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio
        self.calls: dict[str, Callable[..., list[DatasetRecord]]] = {
            "deduplicate": self.deduplicate,
            "near-deduplicate": self.near_deduplicate,
            "redact": self.redact,
            "filter": self.filter,
            "sample": self.sample,
            "split": self.split,
            "mix": self.mix,
        }

    def deduplicate(self, record: "DatasetRecord") -> "list[DatasetRecord]":
        """Without rows that repeat another."""
        return [self.studio.changes.deduplicate(record)]

    def near_deduplicate(self, record: "DatasetRecord") -> "list[DatasetRecord]":
        """Without rows that nearly repeat another, too."""
        return [self.studio.changes.deduplicate(record, near=True)]

    def redact(self, record: "DatasetRecord") -> "list[DatasetRecord]":
        """Without personal data."""
        return [self.studio.changes.redact(record)]

    def filter(
        self, record: "DatasetRecord", contains: str, lacks: str, column: str | None, equals: str, least: int | None, most: int | None
    ) -> "list[DatasetRecord]":
        """Of the rows that pass."""
        return [self.studio.changes.filter(record, Filter(contains, lacks, column or "", equals, int(least or 0), int(most or 0)))]

    def sample(self, record: "DatasetRecord", rows: int | None, seed: int | None) -> "list[DatasetRecord]":
        """Of some rows."""
        return [self.studio.changes.sample(record, int(rows or 0), int(seed or 0))]

    def split(self, record: "DatasetRecord", share: float, column: str | None) -> "list[DatasetRecord]":
        """Datasets of their own."""
        if column:
            return self.studio.changes.split_by_column(record, column)
        return self.studio.changes.split(record, share)

    def mix(self, record: "DatasetRecord", others: list[str], weights: str, name: str, rows: int | None) -> "list[DatasetRecord]":
        """A dataset of its own."""
        parts = [record, *(self.studio.datasets.get(other) for other in others or [])]
        return [self.studio.changes.mix(parts, parse_weights(weights), name.strip() or f"{record.name} mixed", int(rows or 0))]

    def shown(self, record: "DatasetRecord", view: Changing) -> dict[Any, Any]:
        """The columns and the other datasets that there are to choose from."""
        try:
            rows = self.studio.datasets.store(record).page(0, LOOKED_AT)
        except StudioError:  # the view of the rows says why
            rows = []
        columns = list(dict.fromkeys(key for row in rows for key in row.extra))
        others = [(other.name, other.id) for other in self.studio.datasets.all() if other.name != record.name]
        choices: dict[Any, Any] = {dropdown: gr.Dropdown(choices=columns, value=None) for dropdown in view.columns}
        return {**choices, view.others: gr.Dropdown(choices=others, value=[])}


def parse_weights(text: str) -> list[float]:
    """Numbers with commas between; none where nothing was written.

    Raises:
        InvalidInput: one of them is no number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise InvalidInput(f"The weights are {text!r}; write numbers with commas between, such as 3, 1.") from None
