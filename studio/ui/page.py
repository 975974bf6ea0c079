"""What the tabs share: the page's handles, the manner of quiet events, and the script of clicks inside fragments."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import NotFound
from studio.ui import present
from studio.ui.curve import Curves

if TYPE_CHECKING:
    from studio.services import Studio
    from studio.ui.tabs.adapters import AdaptersTab
    from studio.ui.tabs.chat import ChatTab
    from studio.ui.tabs.datasets import DatasetsTab
    from studio.ui.tabs.train import TrainTab

DATASETS, TRAIN, ADAPTERS, CHAT = "datasets", "train", "adapters", "chat"
TABS = (DATASETS, TRAIN, ADAPTERS, CHAT)

# No event is part of an API, and the page itself shows what it waits for.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

# One listener on the fragment, so that its buttons keep working when it is drawn again. What was activated has the
# focus again after that drawing, so that the keyboard goes on where it was.
CLICKS = """
let last = '', at = 0;
element.addEventListener('click', (event) => {
  const hit = event.target.closest('[data-action]');
  if (!hit || !element.contains(hit)) return;
  last = `[data-action="${hit.dataset.action}"][data-id="${CSS.escape(hit.dataset.id || '')}"]`;
  at = Date.now();
  trigger('act', {action: hit.dataset.action, id: hit.dataset.id || ''});
});
new MutationObserver(() => {
  if (Date.now() - at < 4000 && document.activeElement === document.body) element.querySelector(last)?.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""
RELATIVE_TIME = re.compile(r"(<time [^>]*>)[^<]*")  # the page's script keeps the words inside fresh


@dataclass(frozen=True)
class Page:
    """Every handle that one tab may need of another."""

    demo: gr.Blocks
    tabs: gr.Tabs
    opened: gr.State
    trying: gr.State
    pulse: gr.Timer
    status: gr.HTML
    link: gr.HTML
    curves: Curves
    datasets: "DatasetsTab"
    train: "TrainTab"
    adapters: "AdaptersTab"
    chat: "ChatTab"


def html(value: str = "", **props: Any) -> Any:
    """A fragment in the page's own style instead of Gradio's prose."""
    return gr.HTML(value, apply_default_css=False, **props)


def fragment(value: str = "", **props: Any) -> Any:
    """A fragment whose `data-action` buttons raise the event `act`."""
    return html(value, js_on_load=CLICKS, **props)


def action(event: gr.EventData) -> tuple[str, str]:
    """(action, id) of a click inside a fragment."""
    data: dict[str, Any] = event._data or {}
    return str(data.get("action", "")), str(data.get("id", ""))


def only_new(shown: dict[str, str], key: str, value: str) -> Any:
    """The value, or a skip where the browser has it already, so that nobody's focus is lost to a poll."""
    lasting = RELATIVE_TIME.sub(r"\1", value)
    if shown.get(key) == lasting:
        return gr.skip()
    shown[key] = lasting
    return value


def open_chat(studio: "Studio", adapter_id: str) -> tuple[Any, Any]:
    """Updates that open Chat on an adapter: of the tabs, and of Chat's choice."""
    return gr.Tabs(selected=CHAT), gr.Dropdown(choices=voices(studio), value=adapter_id)


def names_of(studio: "Studio") -> dict[str, str]:
    """Names of bases and datasets by their ids; of a version that is not the newest, NAME@VERSION."""
    return {base.id: base.name for base in studio.bases.all()} | studio.datasets.labels()


def dataset_choices(studio: "Studio", chosen: str | None) -> list[tuple[str, str]]:
    """(label, id) of the newest version of each dataset, and of the chosen version where it is another."""
    newest = [(record.name, record.id) for record in studio.datasets.all()]
    label = studio.datasets.labels().get(chosen or "")
    return newest if label is None or chosen in {record_id for _, record_id in newest} else [(label, chosen or ""), *newest]


def voices(studio: "Studio") -> list[tuple[str, str]]:
    """Who can speak through the resident base: (name, id), the base itself first."""
    try:
        adapters = studio.adapters_of(studio.default_base())
    except NotFound:
        adapters = []
    return [(present.BASE_LABEL, "base"), *((a.name, a.id) for a in adapters)]
