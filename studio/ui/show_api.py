"""The API in the page: its address, a line to try, and the keys, which only a browser of the studio's own machine may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as esc
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.api.access import Access
from studio.errors import StudioError
from studio.ui.page import QUIET, action, fragment, html
from studio.ui.present import button, dots, error_card, hint, note_card, time_tag

if TYPE_CHECKING:
    from storage.records import ApiKeyRecord

ELSEWHERE = "Keys are made on the studio's own machine with: python -m studio key add LABEL, or set as STUDIO_API_KEY where it is started."
OPEN = "Programs of this machine need no key as long as none was ever made; from the first one on, all do."
BODY = '{"model": "base", "messages": [{"role": "user", "content": "Hello"}]}'


@dataclass(frozen=True)
class ApiCard:
    """Handles of the section."""

    fold: gr.Accordion
    how: gr.HTML
    form: gr.Row
    label: gr.Textbox
    limit: gr.Number
    make: gr.Button
    fresh: gr.Textbox
    keys: gr.HTML
    trouble: gr.HTML


def build() -> ApiCard:
    """Lay the section out, folded."""
    with gr.Accordion("API", open=False, elem_id="api", elem_classes="as-fold") as fold:
        how = html(elem_id="api-how")
        with gr.Row(elem_classes="as-grid", visible=False) as form:
            label = gr.Textbox("", label="New key for", placeholder="Name of a program", max_lines=1, elem_id="api-label")
            limit = gr.Number(0, label="Requests a minute, 0: no limit", precision=0, minimum=0, elem_id="api-limit")
            make = gr.Button("Make a key", elem_id="api-make", scale=0, min_width=120)
        trouble = html(elem_id="api-trouble")
        fresh = gr.Textbox(
            "",
            label="The new key, shown this once",
            buttons=["copy"],
            visible=False,
            interactive=False,
            elem_id="api-fresh",
        )
        keys = fragment(elem_id="api-keys")
    return ApiCard(fold=fold, how=how, form=form, label=label, limit=limit, make=make, fresh=fresh, keys=keys, trouble=trouble)


class _Events:
    """The section's callbacks. Each asks again who asks."""

    def __init__(self, access: Access) -> None:
        self.access = access

    def unfold(self, request: gr.Request) -> tuple[Any, ...]:
        """How to ask, and the keys where they may be seen."""
        here = self.access.is_here(request)
        return self._how(request, here), gr.Row(visible=here), self._keys(here), "", gr.Textbox("", visible=False)

    def make(self, label: str, limit: float | None, request: gr.Request) -> tuple[Any, ...]:
        """Show a new key, this once."""
        if not self.access.is_here(request):
            return gr.skip(), gr.skip(), self._keys(False), error_card(ELSEWHERE), gr.skip()
        try:
            key, _ = self.access.keys.make(label, int(limit or 0))
        except StudioError as error:
            return gr.skip(), gr.skip(), gr.skip(), error_card(error, "No key"), gr.skip()
        return self._how(request, True), "", self._keys(True), "", gr.Textbox(key, visible=True)

    def revoke(self, request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        """End a key."""
        if not self.access.is_here(request):
            return self._keys(False), error_card(ELSEWHERE), gr.skip()
        try:
            record = self.access.keys.revoke(action(event)[1])
        except StudioError as error:
            return self._keys(True), error_card(error), gr.skip()
        return self._keys(True), note_card(f"The key {record.label!r} is revoked."), gr.Textbox("", visible=False)

    def _how(self, request: gr.Request, here: bool) -> str:
        return how(_address(request), not here or self.access.keys.exist(), here)

    def _keys(self, here: bool) -> str:
        return key_list(self.access.keys.all()) if here else ""


def how(address: str, needs_key: bool, here: bool) -> str:
    """Where to ask and a line to try; `here`: whether keys can be made in this page."""
    key = ' -H "Authorization: Bearer $STUDIO_KEY"' if needs_key else ""
    line = f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{BODY}'"
    said = hint(OPEN if here else ELSEWHERE)
    about = f"<p>OpenAI's clients reach this studio at <code>{esc(address)}/v1</code>; the model is an adapter's name, or base.</p>"
    return f'<div class="as-examples">{about}<pre>{esc(line)}</pre>{said}</div>'


def key_list(records: "Sequence[ApiKeyRecord]", now: float | None = None) -> str:
    """The keys that can be used, and how many were revoked."""
    usable = [record for record in records if record.revoked_at is None]
    revoked = len(records) - len(usable)
    listed = f'<ul class="as-list">{"".join(_key(record, now) for record in usable)}</ul>' if usable else ""
    return listed + hint(f"{revoked} revoked" if revoked else "")


def _key(record: "ApiKeyRecord", now: float | None) -> str:
    limit = f"{record.per_minute} requests a minute" if record.per_minute else ""
    used = f"used {time_tag(record.last_used_at, now)}" if record.last_used_at else "not used yet"
    about = dots([f"<code>{esc(record.start)}…</code>", limit, f"made {time_tag(record.created_at, now)}", used])
    revoke = button("Revoke", "revoke", record.id, look="quiet", about=record.label)
    return (
        f'<li class="as-line"><span class="as-line-main"><span class="as-row-name">{esc(record.label)}</span>'
        f'<span class="as-row-about">{about}</span></span><span class="as-row-tools">{revoke}</span></li>'
    )


def _address(request: gr.Request) -> str:
    """Of this studio, as the browser reached it."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", "http").split(",")[0].strip()
    host = (headers.get("x-forwarded-host") or headers.get("host", "127.0.0.1")).split(",")[0].strip()
    return f"{scheme}://{host}"


def wire(card: ApiCard, access: Access) -> None:
    """Bind the section's events."""
    events = _Events(access)
    card.fold.expand(events.unfold, None, [card.how, card.form, card.keys, card.trouble, card.fresh], **QUIET)
    made: dict[str, Any] = {
        "inputs": [card.label, card.limit],
        "outputs": [card.how, card.label, card.keys, card.trouble, card.fresh],
        **QUIET,
    }
    gr.on([card.make.click, card.label.submit], events.make, **made)
    card.keys.act(events.revoke, None, [card.keys, card.trouble, card.fresh], **QUIET)
