"""An adapter's X-ray in the page: a map of layers by modules, and what it says about the rank. As HTML and inline SVG."""

from html import escape as esc
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import present
from studio.ui.page import QUIET, html

if TYPE_CHECKING:
    from studio.adapters.inspecting import XRay
    from studio.services import Studio

CELL_W, CELL_H, LEFT, TOP = 44, 13, 34, 22  # pixels
# One hue whose lightness alone says how much: people who see no colours read it too. The least is seen on paper and on ink.
COLOUR = "color-mix(in oklab, var(--ink) {share:.0f}%, var(--paper))"


def build() -> tuple[Any, Any]:
    """The fold of an adapter's detail: (the fold, what is inside)."""
    with gr.Accordion("X-ray: what it does to each layer", open=False, elem_id="adapter-xray") as fold:
        shown = html(elem_id="adapter-xray-shown")
    return fold, shown


def wire(fold: Any, shown: Any, chosen: Any, studio: "Studio") -> None:
    """Look when the fold opens."""
    fold.expand(lambda chosen: look(studio, chosen), chosen, shown, **QUIET)


def look(studio: "Studio", chosen: str) -> str:
    """The picture of an adapter, or why there is none."""
    try:
        return picture(studio.inspector.xray(chosen))
    except StudioError as error:
        return present.error_card(error, "There is no picture")


def picture(found: "XRay") -> str:
    """The reading, and a map whose cells are as dark as ‖ΔW‖ is large beside ‖W‖."""
    said = f"<p>{esc(found.reading)}</p>"
    if not found.views:
        return said
    moved = any(view.lengths for view in found.views.values())
    whole = f"Over all layers ‖ΔW‖ is {found.relative:.2%} of ‖W‖. Darker: more; the darkest is {_most(found):.2%}."
    dora = " ΔW is s · B A, the turn of the rows; how far a DoRA moved their lengths is said in each cell." if moved else ""
    return f'<div class="as-xray">{said}{_map(found)}<p class="as-hint">{whole}{dora}</p></div>'


def _map(found: "XRay") -> str:
    places = {name: _place(name) for name in found.views}
    rows = sorted({row for row, _ in places.values()})
    columns = list(dict.fromkeys(column for _, column in places.values()))
    cells = "".join(_cell(found, name, rows.index(row), columns.index(column)) for name, (row, column) in places.items())
    heads = "".join(_text(LEFT + CELL_W * (i + 0.5), TOP - 8, _short(column), "middle") for i, column in enumerate(columns))
    sides = "".join(_text(LEFT - 6, TOP + CELL_H * (i + 0.75), "–" if row < 0 else str(row), "end") for i, row in enumerate(rows))
    width, height = LEFT + CELL_W * len(columns) + 4, TOP + CELL_H * len(rows) + 4
    label = (
        f"How much {found.record.name} changes each layer: {present.count(len(rows), 'block')} by {present.count(len(columns), 'module')}"
    )
    return (
        f'<svg role="img" aria-label="{esc(label)}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'style="max-width:100%;height:auto" font-size="9" fill="var(--soft)">{heads}{sides}{cells}</svg>'
    )


def _cell(found: "XRay", name: str, row: int, column: int) -> str:
    view = found.views[name]
    share = 6 + 86 * view.relative / _most(found) if _most(found) else 6.0
    told = f"{name}: {view.relative:.2%} of ‖W‖ (‖ΔW‖ {view.norm:.3g}), {view.carries} of {found.record.rank} directions carry 95 %"
    told += f", lengths moved by {view.lengths:.2%}" if view.lengths else ""
    return (
        f'<rect x="{LEFT + CELL_W * column + 1}" y="{TOP + CELL_H * row + 1}" width="{CELL_W - 2}" height="{CELL_H - 2}" rx="2" '
        f'style="fill:{COLOUR.format(share=share)}"><title>{esc(told)}</title></rect>'
    )


def _most(found: "XRay") -> float:
    return max((view.relative for view in found.views.values()), default=0.0)


def _place(name: str) -> tuple[int, str]:
    """(block, module) of a layer: "model.layers.3.self_attn.q_proj" is (3, "self_attn.q_proj"); block -1 where there is none."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return (int(parts[at]), ".".join(parts[at + 1 :])) if at >= 0 else (-1, name)


def _short(column: str) -> str:
    return column.rpartition(".")[2].removesuffix("_proj")[:9]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{esc(text)}</text>'
