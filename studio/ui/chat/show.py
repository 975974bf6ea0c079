"""The Chat tab as HTML: conversations, what stands under a message, who speaks, replies side by side. Pure; knows nothing of Gradio.

Everything that a person or a model wrote goes through `esc` before it becomes HTML.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape as esc
from typing import TYPE_CHECKING

from studio.ui.present import BASE_LABEL, button, dots, glyph, hue, kind, loss_change, spoken, stamp_line, time_tag

if TYPE_CHECKING:
    from storage.records import AdapterRecord, ConversationRecord, PromptRecord
    from studio.chat.conversations import Placed
    from studio.chat.probe import Moved, Probe
    from studio.chat.stamp import Stamp

LETTERS = "ABCDEF"
EXCERPT = 90
NOTHING = 0.005  # of the probability; below, one sees no difference


# Conversations


def talks(records: "Sequence[ConversationRecord]", chosen: str, older: str, is_newest: bool, search: str, now: float | None = None) -> str:
    """The list.

    Args:
        chosen: the open one. older: the key of what comes behind the last one; empty where nothing does. is_newest:
            whether the list begins with the newest.
    """
    if not records:
        return f'<p class="as-hint">{"Nothing holds these words." if search else "What you say is kept here."}</p>'
    rows = "".join(_talk(record, record.id == chosen, now) for record in records)
    ways = ("" if is_newest else button("← Newest", "page", "", look="quiet")) + (
        button("Older →", "page", older, look="quiet") if older else ""
    )
    return f'<ul class="as-list as-talklist">{rows}</ul>' + (f'<div class="as-choice as-ways">{ways}</div>' if ways else "")


def _talk(record: "ConversationRecord", is_open: bool, now: float | None) -> str:
    acts = (("Rename", "rename"), ("Markdown", "markdown"), ("JSON", "json"), ("Delete", "delete"))
    tools = "".join(button(label, act, record.id, look="small", about=record.title) for label, act in acts)
    return (
        f'<li><button type="button" class="as-row" data-action="talk" data-id="{record.id}" aria-pressed="{str(is_open).lower()}">'
        f'<span class="as-row-name">{esc(record.title)}</span><span class="as-row-about">{time_tag(record.updated_at, now)}</span></button>'
        + (f'<div class="as-talk-tools">{tools}</div>' if is_open else "")
        + "</li>"
    )


# Under a message


def tools(placed: "Placed", is_last: bool) -> str:
    """What one does with a message, and the way to its siblings."""
    message = placed.message
    copy = f'<button type="button" class="as-button as-button-small" data-action="copy" data-text="{esc(message.content)}">Copy</button>'
    if message.role == "user":
        acts = _small("Edit & resend", "edit", message.id) + (_small("Answer", "again", message.id) if is_last else "")
    else:
        acts = _small("Regenerate", "again", message.id) + ("" if is_last else _small("Branch here", "branch", message.id))
    return f'<div class="as-turn-tools as-tools-{message.role}">{_siblings(placed)}{copy if message.content else ""}{acts}</div>'


def _small(label: str, action: str, message_id: str) -> str:
    return button(label, action, message_id, look="small")


def _siblings(placed: "Placed") -> str:
    total, at = len(placed.siblings), placed.place
    if total < 2:
        return ""
    ways = [(placed.siblings[at - 2] if at > 1 else "", "←", "Previous"), (placed.siblings[at] if at < total else "", "→", "Next")]
    back, forth = (
        f'<button type="button" class="as-button as-button-small as-arrow" data-action="sibling" data-id="{to}" '
        f'aria-label="{word} version" aria-disabled="{str(not to).lower()}">{sign}</button>'
        for to, sign, word in ways
    )
    return f'<span class="as-siblings" role="group" aria-label="Versions">{back}<span>{at}/{total}</span>{forth}</span>'


def editing(text: str) -> str:
    """That the next message takes the place of an earlier one."""
    words = f"You are writing another version of “{esc(_excerpt(text))}”; the first one stays, one arrow away."
    return f'<div class="as-card as-editing" role="status"><p>{words}</p>{button("Leave it", "leave", look="quiet")}</div>'


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT - 1].rstrip()}…"


# Who speaks


def voice(
    parts: "Sequence[tuple[AdapterRecord, float]]", base: str, now: float | None = None, pinned: Collection[str] = frozenset()
) -> str:
    """One line about who would answer now: the base, an adapter, or a blend.

    Args:
        pinned: ids of the adapters that are kept ready.
    """
    if not parts:
        told = [f"<b>{BASE_LABEL}</b>", esc(base), "no adapter"]
        return f'<div class="as-voice-line">{glyph("", 3)}<span>{dots(told)}</span></div>'
    if len(parts) == 1:
        [(record, weight)] = parts
        at = "" if weight == 1 else f"weight {weight:g}"
        told = [f"<b>{esc(spoken(record.name))}</b>", at, kind(record), loss_change(record.metrics), time_tag(record.created_at, now)]
        who = f"{glyph(record.sha256, 3)}<span>{dots(told)}</span>{_pin(record, record.id in pinned)}"
        return f'<div class="as-voice-line" style="--hue:{hue(record.sha256)}">{who}</div>'
    names = "".join(
        f'<span class="as-blend-part" style="--hue:{hue(record.sha256)}">{glyph(record.sha256, 3)} '
        f"<b>{esc(spoken(record.name))}</b> {weight:g}</span>"
        for record, weight in parts
    )
    return f'<div class="as-voice-line as-blend-line">{names}</div>'


def _pin(record: "AdapterRecord", is_pinned: bool) -> str:
    """Whether an adapter is kept ready, and the way to change it. A checkpoint is not: the next one takes its place."""
    if record.id.startswith("job:"):
        return ""
    label, act = ("Unpin", "unpin") if is_pinned else ("Keep it ready", "pin")
    badge = '<span class="as-badge as-done">kept ready</span>' if is_pinned else ""
    return f'<span class="as-pin">{badge}{button(label, act, record.id, look="small", about=record.name)}</span>'


# Side by side


@dataclass(frozen=True)
class Column:
    """One of the replies that are compared. `stamp` is there once it is whole."""

    text: str
    stamp: "Stamp | None" = None


def comparison(prompt: str, columns: Sequence[Column], winner: int | None, *, is_over: bool, seeds: Sequence[int | None] = ()) -> str:
    """Replies side by side, without names until somebody has voted.

    Args:
        winner: the place of the best, -1 where the vote was skipped, None before the vote. is_over: all replies are whole.
    """
    shown = "".join(_column(place, column, winner, seeds[place] if seeds else None, is_over) for place, column in enumerate(columns))
    skip = button("Skip the vote, show who is who", "skip", look="quiet") if is_over and winner is None and columns else ""
    return (
        f'<div class="as-duel"><p class="as-duel-prompt">{esc(prompt)}</p><ul class="as-columns-of-replies">{shown}</ul>'
        f'<div class="as-choice as-ways">{skip}</div></div>'
    )


def _column(place: int, column: Column, winner: int | None, seed: int | None, is_over: bool) -> str:
    letter, known = LETTERS[place], winner is not None and column.stamp is not None
    best = ' class="as-best-reply"' if winner == place else ""
    head = f"<b>{letter}</b>" + ('<span class="as-badge as-done">best</span>' if winner == place else "")
    foot = ""
    if known and column.stamp is not None:
        drawn = "" if seed is None else f'<span class="as-hint">seed {seed}</span>'
        foot = stamp_line(column.stamp) + drawn + button("Go on from here", "go-on", str(place), look="small", about=letter)
    elif is_over:
        foot = button(f"{letter} is best", "vote", str(place))
    text = esc(column.text) if column.text else ("<i>(nothing)</i>" if is_over else "…")
    return f'<li{best}><div class="as-duel-head">{head}</div><div class="as-duel-text">{text}</div>{foot}</li>'


# Is it on?


def probe(found: "Probe") -> str:
    """What a voice does to the next word, in plain words, then in numbers."""
    share = found.total_variation
    if share < NOTHING:
        said = "moves next to nothing here: it says the same as the base, or its weight is 0."
    else:
        said = f"moves {100 * share:.0f} % of the next word’s probability."
    numbers = f"total variation {100 * share:.1f} %, KL {found.kl_nats:.3f} nats from the base"
    tables = "".join(_moved(title, rows) for title, rows in (("Gains", found.gained), ("Loses", found.lost)) if rows)
    style = f' style="--hue:{hue(found.sha256)}"' if found.sha256 else ""
    return (
        f'<div class="as-card as-probe" role="status"{style}><p>{glyph(found.sha256, 3)} <b>{esc(spoken(found.voice))}</b> {said}</p>'
        f'<div class="as-probe-bar" aria-hidden="true"><span style="width:{100 * share:.1f}%"></span></div>'
        f'<p class="as-hint">{numbers}</p><div class="as-probe-tables">{tables}</div></div>'
    )


def _moved(title: str, rows: "Sequence[Moved]") -> str:
    body = "".join(
        f"<tr><td><code>{esc(_token(row.text))}</code></td><td>{100 * row.before:.1f} %</td><td>{100 * row.after:.1f} %</td></tr>"
        for row in rows
    )
    return f'<table class="as-table"><thead><tr><th>{title}</th><th>base</th><th>with it</th></tr></thead><tbody>{body}</tbody></table>'


def _token(text: str) -> str:
    """A token whose blanks one can see."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "(end)"


# Kept prompts


def prompts(records: "Sequence[PromptRecord]") -> str:
    """The library."""
    if not records:
        return '<p class="as-hint">Nothing is kept yet.</p>'
    rows = "".join(
        f'<li class="as-line"><div class="as-line-main"><span class="as-row-name">{esc(record.name)}</span>'
        f'<span class="as-row-about">{esc(_excerpt(record.text))}</span></div><div class="as-choice">'
        + button("Insert", "insert", record.id, about=record.name)
        + button("Delete", "forget", record.id, look="quiet", about=record.name)
        + "</div></li>"
        for record in records
    )
    return f'<ul class="as-list">{rows}</ul>'
