"""The fold on an adapter's page that pushes it to the Hugging Face Hub. A token that is typed is used once and kept nowhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape as esc
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import present
from studio.ui.datasets.show_report import progress
from studio.ui.exporting import FORMS
from studio.ui.page import QUIET, html
from studio.ui.work import Work

if TYPE_CHECKING:
    from studio.services import Studio

PRIVATE, PUBLIC = "private", "public"


@dataclass(frozen=True)
class Pushing:
    """Handles of the fold."""

    fold: gr.Accordion
    repository: gr.Textbox
    form: gr.Dropdown
    seen: gr.Radio
    token: gr.Textbox
    push: gr.Button
    card: gr.HTML
    shown: gr.HTML


def build() -> Pushing:
    """Lay the fold out."""
    with gr.Accordion("Push to the Hugging Face Hub", open=False, elem_id="adapter-push") as fold:
        with gr.Row(elem_classes="as-grid"):
            repository = gr.Textbox("", label="Repository", placeholder="owner/name", max_lines=1, elem_id="push-repository")
            form = gr.Dropdown(FORMS, value="peft", label="What", elem_id="push-format")
            seen = gr.Radio(
                [("private", PRIVATE), ("public", PUBLIC)],
                value=PRIVATE,
                label="If it is made",
                info="One that is there stays as it is.",
                elem_id="push-seen",
            )
            token = gr.Textbox(
                "",
                label="Token",
                type="password",
                info="That of HF_TOKEN where left empty. Used once, kept nowhere.",
                max_lines=1,
                elem_id="push-token",
            )
        card = html(elem_id="push-card")
        push = gr.Button("Push it", elem_id="push-go", elem_classes="as-do")
        shown = html(elem_id="push-shown")
    return Pushing(fold, repository, form, seen, token, push, card, shown)


class Events:
    """The fold's callbacks."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio

    def card(self, chosen: str, form: str) -> str:
        """The card that will be sent, as text."""
        from studio.adapters.exporting import Wish

        try:
            text = self.studio.exporter.card(chosen, Wish(form))
        except StudioError as error:
            return present.error_card(error, "There is no card")
        shown = f'<pre tabindex="0" role="region" aria-label="Card">{esc(text)}</pre>'
        return f'<details class="as-log"><summary>The card that is sent</summary>{shown}</details>'

    def push(self, chosen: str, repository: str, form: str, seen: str, token: str) -> Iterator[tuple[Any, Any]]:
        """(what is told, the token's box, which is emptied at once)."""
        from studio.adapters.exporting import Wish

        def send(work: "Work[str]") -> str:
            wish = {"public": seen == PUBLIC, "wish": Wish(form), "tell": work.say, "token": token.strip()}
            return self.studio.pusher.push(chosen, repository.strip(), **wish)  # type: ignore[arg-type]

        work = Work(send)
        yield progress(None, "beginning", 0.0), ""
        for told in work.watch():
            yield progress(*told), gr.skip()
        try:
            yield _sent(work.result(), repository.strip()), gr.skip()
        except StudioError as error:
            yield present.error_card(error, "It was not pushed"), gr.skip()


def _sent(address: str, repository: str) -> str:
    to = esc(repository)
    if address.startswith("https://"):
        to = f'<a href="{esc(address)}" target="_blank" rel="noopener noreferrer">{to}</a>'
    return f'<div class="as-card as-note" role="status"><p>It was pushed to {to}.</p></div>'


def wire(fold: Pushing, chosen: Any, studio: "Studio") -> None:
    """Bind the fold's events."""
    events = Events(studio)
    gr.on([fold.fold.expand, fold.form.input], events.card, [chosen, fold.form], fold.card, **QUIET)
    filled = [chosen, fold.repository, fold.form, fold.seen, fold.token]
    fold.push.click(events.push, filled, [fold.shown, fold.token], **QUIET)
