"""Rows of a dataset as HTML: bubbles, the stored row as JSON, and the tokens with what is trained. Pure; all text is escaped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as esc
from typing import TYPE_CHECKING, Any

from studio.ui.present import button, count, hint

if TYPE_CHECKING:
    from studio.datasets.pieces import Piece
    from studio.datasets.store import StoredRow

TALK, RAW, MASK = "conversation", "raw", "mask"
VIEWS = [("Conversation", TALK), ("Raw", RAW), ("Loss mask", MASK)]
SHOWN_AT_ONCE, MOST_CHARACTERS = 1_200, 20_000  # of one turn: at first, and after unfolding
MOST_PIECES = 6_000
ROLES = {"text": "passage"}
# What stands for a token that is white space alone; a line break breaks the line too.
BLANKS = str.maketrans({" ": "␣", "\t": "⇥", "\r": "␍", "\n": "⏎\n", "\xa0": "⍽"})


@dataclass(frozen=True)
class ShownRow:
    """One row as it is to be seen. `number` counts from 0; `tokens` is filled in the view `MASK`, or `trouble` says why not."""

    number: int
    row: "StoredRow"
    view: str = TALK
    tokens: "Sequence[Piece]" = ()
    trouble: str = ""


def rows_page(rows: Sequence[ShownRow]) -> str:
    """A page of rows."""
    return f'<div class="as-talks">{"".join(map(_row, rows))}</div>'


def _row(shown: ShownRow) -> str:
    number = shown.number + 1
    others = [button(label, view, str(shown.number), look="small", about=f"row {number:,}") for label, view in VIEWS if view != shown.view]
    edit = button("Edit", "edit", str(shown.number), look="small", about=f"row {number:,}")
    head = f'<b>Row {number:,}</b><span class="as-place">{esc(_place(shown.row))}</span><span class="as-row-tools">{"".join(others)}{edit}</span>'
    body = {TALK: _talk, RAW: _raw, MASK: _mask}[shown.view](shown)
    return f'<section class="as-talk" aria-label="row {number}"><div class="as-talk-head">{head}</div>{body}</section>'


def _place(row: "StoredRow") -> str:
    if not row.line:
        return ""
    return f"line {row.line:,} of {row.file}" if row.file else f"line {row.line:,}"


def _talk(shown: ShownRow) -> str:
    return bubbles(shown.row.conversation)


def bubbles(conversation: Sequence[dict[str, str]]) -> str:
    """A conversation, or a passage, the way it will be learned."""
    return f'<div class="as-bubbles">{"".join(map(_bubble, conversation))}</div>'


def _bubble(turn: dict[str, str]) -> str:
    role = turn["role"] if turn["role"] in ("system", "user", "assistant", "text") else "text"
    spoken = ROLES.get(turn["role"], turn["role"])
    label = f'<span class="as-role">{esc(spoken)}</span>' if role in ("system", "text") else f'<span class="as-sr">{esc(spoken)}: </span>'
    return f'<div class="as-bubble as-{role}">{label}{_folded(turn["content"])}</div>'


def _folded(text: str) -> str:
    """The whole text, what is long folded away; a text longer than `MOST_CHARACTERS` says how much of it is not there."""
    if len(text) <= SHOWN_AT_ONCE:
        return esc(text)
    rest, left = text[SHOWN_AT_ONCE:MOST_CHARACTERS], max(0, len(text) - MOST_CHARACTERS)
    more = f'<span class="as-hint">… and {left:,} more characters; export the dataset to read them all.</span>' if left else ""
    summary = (
        f"<summary>… show all {len(text):,} characters</summary>"
        if not left
        else f"<summary>… show {MOST_CHARACTERS:,} of {len(text):,} characters</summary>"
    )
    return f'{esc(text[:SHOWN_AT_ONCE])}<details class="as-rest">{summary}{esc(rest)}{more}</details>'


def _raw(shown: ShownRow) -> str:
    row = shown.row
    told = {"messages": row.conversation, **({"extra": dict(row.extra)} if row.extra else {}), "line": row.line, "file": row.file}
    return raw_json(told)


def raw_json(value: Any) -> str:
    """A value as JSON, indented; values that JSON does not have as text."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    return f'<pre class="as-raw" tabindex="0">{_folded(text)}</pre>'


def _mask(shown: ShownRow) -> str:
    if shown.trouble:
        return hint(shown.trouble)
    return mask(shown.tokens)


def mask_counts(tokens: "Sequence[Piece]") -> str:
    """ "213 tokens, 41 trained, 12 cut off"."""
    total = sum(piece.tokens for piece in tokens)
    trained = sum(piece.tokens for piece in tokens if piece.trained)
    cut = sum(piece.tokens for piece in tokens if piece.cut)
    return f"{count(total, 'token')}, {trained:,} trained" + (f", {cut:,} cut off" if cut else "")


def mask(tokens: "Sequence[Piece]") -> str:
    """All tokens as the base reads them: trained ones coloured, special ones framed, those behind max_length struck."""
    shown = "".join(map(_piece, tokens[:MOST_PIECES]))
    left = len(tokens) - MOST_PIECES
    more = hint(f"… and {count(left, 'token')} more, which are not drawn here.") if left > 0 else ""
    return f'<p class="as-mask-counts">{mask_counts(tokens)}</p><div class="as-tokens">{shown}</div>{more}'


def _piece(piece: "Piece") -> str:
    kinds = [("as-tok-on", piece.trained), ("as-tok-special", piece.special), ("as-tok-cut", piece.cut)]
    classes = " ".join(["as-tok", *(name for name, holds in kinds if holds)])
    tag = "s" if piece.cut else "mark" if piece.trained else "span"
    return f'<{tag} class="{classes}">{visible(piece.text)}</{tag}>'


def visible(text: str) -> str:
    """A token's text, escaped; white space is drawn where there is nothing else, and line breaks always."""
    shown = text.translate(BLANKS) if not text.strip() else text.replace("\n", "⏎\n")
    return esc(shown)


def mask_legend() -> str:
    """What the colours of the loss mask mean."""
    keys = (
        '<mark class="as-tok as-tok-on">trained</mark>',
        '<span class="as-tok">read only</span>',
        '<span class="as-tok as-tok-special">special</span>',
        '<s class="as-tok as-tok-cut">behind max_length</s>',
    )
    return f'<p class="as-legend">{"".join(keys)}</p>'


def page_of(offset: int, shown: int, rows: int) -> str:
    """ "1–3 of 96"."""
    return f'<span class="as-paging">{offset + 1:,}–{offset + shown:,} of {rows:,}</span>'
