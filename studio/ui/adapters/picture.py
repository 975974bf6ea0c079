"""A picture for each adapter, drawn from what it is: always the same for the same adapter, told apart at a glance. Pure.

Colour and cells come from its content hash, as its small sign does; the cells are squares for LoRA, diamonds for DoRA and dots for a
prefix. Each doubling of the rank is one more strand behind them, and the ring is closed as far as training lowered the held-out loss.
"""

import math
from typing import TYPE_CHECKING

from studio.ui.present import hue

if TYPE_CHECKING:
    from storage.records import AdapterRecord

WIDE, HIGH = 160, 90
CELL = 7.0
RING = 31.0  # its radius
MOST_STRANDS = 10


def picture(record: "AdapterRecord") -> str:
    """An SVG without words; what it shows stands beside it."""
    return (
        f'<svg class="as-picture" style="--hue:{hue(record.sha256)}" viewBox="0 0 {WIDE} {HIGH}" aria-hidden="true" focusable="false">'
        f"{_strands(record)}{_ring(record)}{_cells(record)}</svg>"
    )


def _byte(record: "AdapterRecord", place: int) -> int:
    return int(record.sha256[2 * place : 2 * place + 2] or "0", 16)


def _strands(record: "AdapterRecord") -> str:
    size = record.rank if record.kind != "prefix" else int(record.config.get("virtual_tokens") or 1)
    count = min(MOST_STRANDS, 1 + int(math.log2(max(1, size))))
    lines = []
    for strand in range(count):
        middle = HIGH * (strand + 0.5) / count
        swing = [(_byte(record, 8 + (strand * 3 + i) % 20) - 128) / 128 * 16 for i in range(3)]
        lines.append(
            f'<path d="M0 {middle + swing[0]:.1f} C{WIDE / 3:.1f} {middle + swing[1]:.1f} {2 * WIDE / 3:.1f} {middle - swing[1]:.1f} '
            f'{WIDE} {middle + swing[2]:.1f}"/>'
        )
    return f'<g class="as-strands">{"".join(lines)}</g>'


def _ring(record: "AdapterRecord") -> str:
    before, after = record.metrics.get("eval_loss_before"), record.metrics.get("eval_loss")
    share = 0.0
    if isinstance(before, int | float) and isinstance(after, int | float) and before > 0:
        share = min(1.0, max(0.0, 1 - after / before))
    around = 2 * math.pi * RING
    return (
        f'<circle class="as-ring" cx="{WIDE / 2}" cy="{HIGH / 2}" r="{RING}"/>'
        f'<circle class="as-ring-part" cx="{WIDE / 2}" cy="{HIGH / 2}" r="{RING}" stroke-dasharray="{share * around:.1f} {around:.1f}" '
        f'transform="rotate(-90 {WIDE / 2} {HIGH / 2})"/>'
    )


def _cells(record: "AdapterRecord") -> str:
    bits = int(record.sha256[6:10] or "0", 16)
    filled = [(x, y) for y in range(5) for x in range(3) if bits >> (y * 3 + x) & 1] or [(2, 2)]
    shapes = [_cell(record.kind, x, y) for x, y in sorted({cell for x, y in filled for cell in ((x, y), (4 - x, y))})]
    return f'<g class="as-cells">{"".join(shapes)}</g>'


def _cell(kind: str, x: int, y: int) -> str:
    left, top = WIDE / 2 + (x - 2.5) * CELL, HIGH / 2 + (y - 2.5) * CELL
    middle_x, middle_y, half = left + CELL / 2, top + CELL / 2, CELL / 2
    if kind == "prefix":
        return f'<circle cx="{middle_x:g}" cy="{middle_y:g}" r="{half * 0.8:g}"/>'
    if kind == "dora":
        corners = ((middle_x, top), (left + CELL, middle_y), (middle_x, top + CELL), (left, middle_y))
        return f'<polygon points="{" ".join(f"{a:g},{b:g}" for a, b in corners)}"/>'
    return f'<rect x="{left:g}" y="{top:g}" width="{CELL:g}" height="{CELL:g}"/>'
