"""The report: what a base would make of a dataset, made on request, with a way to stop, and with what can be mended by a click."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.datasets.report import Cancelled
from studio.errors import StudioError
from studio.training.config import DEFAULT_PRESET, PRESETS
from studio.ui import present
from studio.ui.datasets import show_report
from studio.ui.page import fragment, html
from studio.ui.work import Work

if TYPE_CHECKING:
    from studio.outlook import Outlook
    from studio.services import Studio

INVITE = present.hint(
    "Lengths in tokens, what is cut and what is trained, duplicates, rows in the held-out part too, personal data, languages, and the time "
    "and memory of a training: all before a minute is trained."
)


@dataclass(frozen=True)
class Report:
    """Handles of the view. `made_for` is the id of the dataset whose report is shown."""

    base: gr.Dropdown
    preset: gr.Radio
    start: gr.Button
    cancel: gr.Button
    told: gr.HTML
    result: gr.HTML
    made_for: gr.State


def build() -> Report:
    """Lay the view out."""
    with gr.Row(elem_classes="as-grid as-report-asked"):
        base = gr.Dropdown([], label="Base", elem_id="dataset-report-base")
        preset = gr.Radio(
            [(name.capitalize(), name) for name in PRESETS],
            value=DEFAULT_PRESET,
            label="Preset",
            elem_id="dataset-report-preset",
            elem_classes="as-segments",
        )
    with gr.Row(elem_classes="as-actions"):
        start = gr.Button("Look closely", elem_id="dataset-report-start", min_width=120)
        cancel = gr.Button("Cancel", visible=False, elem_id="dataset-report-cancel", elem_classes="as-quiet", min_width=80)
    told = html(elem_id="dataset-report-told")
    result = fragment(INVITE, elem_id="dataset-report")
    return Report(base=base, preset=preset, start=start, cancel=cancel, told=told, result=result, made_for=gr.State(""))


class Events:
    """The view's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio
        self._running: dict[str, Work[Outlook]] = {}  # by the browser's session

    def start(self, dataset: str, base: str | None, preset: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Make the report; yields (progress, report, its dataset, start button, cancel button)."""
        session = request.session_hash or ""
        work = Work(lambda work: self.studio.foresight.report(dataset, base, preset, progress=work.tell, cancelled=work.is_stopped))
        self._running[session] = work
        busy = gr.Button(interactive=False), gr.Button(visible=True)
        try:
            for told in work.watch():
                yield show_report.progress(*told), gr.skip(), gr.skip(), *busy
        finally:
            self._running.pop(session, None)
        yield *self._result(work, dataset, base), gr.Button(interactive=True), gr.Button(visible=False)

    def _result(self, work: "Work[Outlook]", dataset: str, base: str | None) -> tuple[Any, Any, Any]:
        try:
            found = work.result()
        except Cancelled:
            return present.note_card("Stopped; nothing was kept."), gr.skip(), gr.skip()
        except StudioError as error:
            return present.error_card(error, "There is no report"), gr.skip(), gr.skip()
        name = (self.studio.bases.get(base) if base else self.studio.default_base()).name
        return "", show_report.outlook(found, name), dataset

    def cancel(self, request: gr.Request) -> str:
        """Stop the report that this browser asked for."""
        work = self._running.get(request.session_hash or "")
        if work is not None:
            work.stop()
        return show_report.progress(None, "stopping", 0)

    def shown(self, dataset: str, made_for: str, view: Report) -> dict[Any, Any]:
        """Where another dataset was chosen, its report was not made yet."""
        return {} if dataset == made_for else {view.result: INVITE, view.told: "", view.made_for: ""}
