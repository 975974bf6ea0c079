"""The fold on an adapter's page that compares it with another one: options, figures, weights and answers, side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape as esc
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound, StudioError
from studio.ui import present
from studio.ui.datasets.show_report import progress
from studio.ui.page import MOST_VOICES, QUIET, html
from studio.ui.work import Work

if TYPE_CHECKING:
    from storage.records import AdapterRecord
    from studio.difference import Answers, Difference
    from studio.services import Studio

NAMES = {**present.METRIC_NAMES, "eval_loss_before": "held-out loss before"}


@dataclass(frozen=True)
class Differing:
    """Handles of the fold."""

    fold: gr.Accordion
    other: gr.Dropdown
    prompts: gr.Textbox
    compare: gr.Button
    shown: gr.HTML


def build() -> Differing:
    """Lay the fold out."""
    with gr.Accordion("Compare with another adapter", open=False, elem_id="adapter-differ") as fold:
        other = gr.Dropdown([], label="Other adapter", info="Of the same base.", elem_id="differ-other")
        prompts = gr.Textbox(
            "",
            label="Prompts",
            info="One a line, up to five; both and the base answer them. Left empty, nobody is asked.",
            lines=3,
            max_lines=8,
            elem_id="differ-prompts",
        )
        compare = gr.Button("Compare", elem_id="differ-compare", elem_classes="as-do")
        shown = html(elem_id="differ-shown")
    return Differing(fold, other, prompts, compare, shown)


class Events:
    """The fold's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio

    def choices(self, chosen: str) -> tuple[Any, Any]:
        """Whom it can be compared with, and the prompts of its training."""
        from studio.difference import sample_prompts

        try:
            record = self.studio.adapters.get(chosen)
        except NotFound:
            return gr.skip(), gr.skip()
        family = [*self.studio.finder.versions(record), *self.studio.finder.voices(record.base_fingerprint, MOST_VOICES)]
        others = {other.id: _label(other, record) for other in family if other.id != record.id}
        return gr.Dropdown(choices=[(label, key) for key, label in others.items()], value=None), "\n".join(sample_prompts(record))

    def compare(self, chosen: str, other: str | None, prompts: str) -> Iterator[str]:
        """What is told while it is compared, then how they differ."""
        if not other:
            yield present.error_card("Choose the other adapter first.", "There is nothing to compare yet")
            return
        work = Work(lambda work: self.studio.differ.differ(chosen, other, prompts.splitlines(), work.say))
        for told in work.watch():
            yield progress(*told)
        try:
            yield shown(work.result())
        except StudioError as error:
            yield present.error_card(error, "They were not compared")


def wire(fold: Differing, chosen: Any, studio: "Studio") -> None:
    """Bind the fold's events."""
    events = Events(studio)
    fold.fold.expand(events.choices, chosen, [fold.other, fold.prompts], **QUIET)
    fold.compare.click(events.compare, [chosen, fold.other, fold.prompts], fold.shown, **QUIET)


def _label(other: "AdapterRecord", record: "AdapterRecord") -> str:
    return f"{other.name}, version {other.version}" if other.name == record.name or not other.current else other.name


def shown(found: "Difference") -> str:
    """Two adapters as HTML: a table of what differs, a sentence about their weights, their answers."""
    told = _alike(found) if found.alike else f"<p>{esc(found.note)}</p>"
    return f'<div class="as-differ">{_table(found)}{told}{_answers(found)}</div>'


def _table(found: "Difference") -> str:
    if not found.differs:
        return "<p>Options and figures are the same.</p>"
    heads = "".join(f'<th scope="col">{_name(record)}</th>' for record in (found.first, found.second))
    rows = "".join(
        f'<tr><th scope="row">{esc(NAMES.get(key, key.replace("_", " ")))}</th>{"".join(f"<td>{_value(value)}</td>" for value in row)}</tr>'
        for key, row in found.differs.items()
    )
    return (
        '<div class="as-scroll" tabindex="0" role="region" aria-label="What differs"><table class="as-table">'
        f'<thead><tr><th scope="col">what differs</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _name(record: "AdapterRecord") -> str:
    version = f" <small>version {record.version}</small>" if record.version > 1 or not record.current else ""
    return f"{present.glyph(record.sha256)} {esc(record.name)}{version}"


def _value(value: Any) -> str:
    return "–" if value is None else esc(f"{value:.4g}" if isinstance(value, float) else str(value))


def _alike(found: "Difference") -> str:
    from studio.adapters.mapping import SAME, SOME

    assert found.alike is not None
    how = (
        "in the same directions" if found.alike.overlap >= SAME else "partly in the same directions" if found.alike.overlap >= SOME else ""
    )
    said = f"They write {how}" if how else "They write in different directions"
    return f"<p>{said}: overlap {found.alike.overlap:.2f}, cosine of ΔW {round(found.alike.cosine, 2) + 0.0:.2f}.</p>"


def _answers(found: "Difference") -> str:
    blocks = "".join(_block(answers, [found.first, found.second]) for answers in found.answers)
    return f'<h4 class="as-section">What each answers</h4><div class="as-samples">{blocks}</div>' if blocks else ""


def _block(answers: "Answers", records: "Sequence[AdapterRecord]") -> str:
    sides = [(present.BASE_LABEL, answers.base), *zip(map(_name, records), (answers.first, answers.second), strict=True)]
    drawn = "".join(f"<div><dt>{name}</dt><dd>{esc(text) or '<em>nothing</em>'}</dd></div>" for name, text in sides)
    return f'<section><h5>{esc(answers.prompt)}</h5><dl class="as-sides as-three">{drawn}</dl></section>'
