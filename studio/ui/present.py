"""From records to what the page shows: sentences, times, glyphs and fragments of HTML. Pure; knows nothing of Gradio.

Everything that a person typed or a file said goes through `esc` before it becomes HTML. Buttons inside fragments
carry `data-action` and `data-id`; the page's script turns a click on them into an event.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from html import escape as esc
from typing import TYPE_CHECKING, Any

from storage.states import STATES

if TYPE_CHECKING:
    from storage.records import AdapterRecord, JobRecord
    from studio.chat.stamp import Stamp
    from studio.chat.votes import Rate
    from studio.services import Status
    from studio.training.memory import Estimate

BASE_LABEL = "Base model"
METHOD_NAMES = {"lora": "LoRA", "dora": "DoRA", "prefix": "prefix"}
STATE_NAMES = {state: state for state in STATES} | {"queued": "waiting"}
METRIC_NAMES = {
    "trained_tokens": "tokens learned from",
    "seconds": "time of the loop",
    "tokens_per_s": "speed",
    "train_loss": "training loss at the end",
    "eval_loss": "held-out loss",
    "best_step": "best step",
    "resumed_from_step": "resumed at step",
    "peak_rss_mb": "peak memory",
    "truncated": "rows cut",
    "dropped": "rows left out",
}
CHECKPOINT = re.compile(r"job:(.+?)@(\d{1,9})(?=[:+]|$)")  # as `chat.voices` writes it, here also inside a blend
CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)

MARK = (
    '<svg class="as-mark" viewBox="0 0 32 32" aria-hidden="true"><path d="M4 15h7a5 5 0 0 0 10 0h7v9a4 4 0 0 1-4 4H8a4 4 0 0 1-4-4z" '
    'fill="currentColor"/><circle cx="16" cy="8" r="5" class="as-mark-piece"/></svg>'
)


# Numbers and times


def ago(at: float, now: float) -> str:
    """How long ago, in words; a date after a week."""
    seconds = max(0.0, now - at)
    if seconds < 45:
        return "just now"
    for limit, unit_s, unit in ((3600, 60, "min"), (86400, 3600, "h"), (7 * 86400, 86400, "day")):
        if seconds < limit:
            count = max(1, round(seconds / unit_s))
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''} ago"
    return datetime.fromtimestamp(at).strftime("%d %b %Y").lstrip("0")


def time_tag(at: float, now: float | None = None) -> str:
    """A relative time with the exact one on hover; the page's script keeps it fresh."""
    moment = datetime.fromtimestamp(at).astimezone()
    exact = moment.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    text = ago(at, time.time() if now is None else now)
    return f'<time datetime="{moment.isoformat()}" data-at="{at:.0f}" title="{esc(exact)}">{text}</time>'


def size(size_bytes: int) -> str:
    """Bytes in the unit that leaves one to three digits."""
    value = float(size_bytes)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int, word: str) -> str:
    """ "1 row", "2,000 rows"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# Who speaks: a colour and a glyph from a hash


def hue(sha256: str) -> int:
    """An angle of the colour circle, 0 to 359."""
    return int(sha256[:6], 16) % 360


def glyph(sha256: str, cell_px: int = 4) -> str:
    """Five by five cells, mirrored, from the hash; a ring for the base, whose hash is empty."""
    side = 5 * cell_px
    if not sha256:
        return (
            f'<svg class="as-glyph as-glyph-base" viewBox="0 0 20 20" width="{side}" height="{side}" aria-hidden="true">'
            '<circle cx="10" cy="10" r="7" fill="none" stroke="currentColor" stroke-width="4"/></svg>'
        )
    bits = int(sha256[6:10], 16)
    filled = [(x, y) for y in range(5) for x in range(3) if bits >> (y * 3 + x) & 1] or [(2, 2)]
    cells = {cell for x, y in filled for cell in ((x, y), (4 - x, y))}
    rects = "".join(f'<rect x="{4 * x}" y="{4 * y}" width="4" height="4"/>' for x, y in sorted(cells))
    return (
        f'<svg class="as-glyph" style="--hue:{hue(sha256)}" viewBox="0 0 20 20" width="{side}" height="{side}" '
        f'fill="currentColor" shape-rendering="crispEdges" aria-hidden="true">{rects}</svg>'
    )


# Cards and small parts


def button(label: str, action: str, record_id: str = "", *, look: str = "plain", about: str = "") -> str:
    """A button inside a fragment. `about` tells a screen reader what it acts on; looks: plain, quiet, chip."""
    spoken = f' aria-label="{esc(label.rstrip(" →"))}: {esc(about)}"' if about else ""
    return (
        f'<button type="button" class="as-button as-button-{look}" data-action="{action}" data-id="{esc(record_id)}"{spoken}>'
        f"{esc(label)}</button>"
    )


def error_card(error: object, title: str = "That did not work") -> str:
    """What happened, where and what to do, in the words of the error."""
    return f'<div class="as-card as-error" role="alert"><strong>{esc(title)}</strong><p>{esc(str(error))}</p></div>'


def note_card(text: str) -> str:
    """A sentence that says what was done."""
    return f'<div class="as-card as-note" role="status"><p>{esc(text)}</p></div>'


def empty_card(title: str, text: str, *buttons: str) -> str:
    """What is not there yet and how to get it."""
    return f'<div class="as-card as-empty"><div><strong>{esc(title)}</strong><p>{esc(text)}</p></div>{"".join(buttons)}</div>'


def heading(title: str, text: str) -> str:
    """The one thought of a tab."""
    return f'<div class="as-heading"><h2>{esc(title)}</h2><p>{esc(text)}</p></div>'


def brand() -> str:
    """The page's head."""
    return (
        f'<header class="as-brand">{MARK}<div><h1>Adapter Studio</h1>'
        "<p>Train small adapters on one shared base model, and talk to them side by side.</p></div>"
        '<p class="as-lost" id="lost" role="alert"></p></header>'
    )


def hint(text: str) -> str:
    """A line of help, or nothing."""
    return f'<p class="as-hint">{esc(text)}</p>' if text else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and values; the values are HTML."""
    rows = "".join(f"<div><dt>{esc(name)}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="as-facts">{rows}</dl>'


def dots(parts: Iterable[str]) -> str:
    """Fragments in a line, with dots between them."""
    return '<span class="as-sep" aria-hidden="true">·</span>'.join(f"<span>{part}</span>" for part in parts if part)


# The status line


def status_line(status: "Status") -> str:
    """The thin line over every tab."""
    cost, _, detail = status.quantization_cost.partition(" (")
    parts = [
        f'<b id="status-base">{esc(status.base)}</b> {esc(status.quantization)}' if status.base else "<b>no base model yet</b>",
        esc(cost) + (f'<span class="as-wide"> ({esc(detail)}</span>' if detail else ""),
        f"{esc(status.device)}, {size(status.memory_mb * 2**20)} in use",
        f"the chat's base is put aside while {esc(status.aside)}" if status.aside else "",
        status_job(status.running) + (f", and {status.beside} more" if status.beside else ""),
        f"{status.waiting:,} waiting" if status.waiting else "",
        "<b>the queue is held</b>" if status.held else "",
    ]
    # What the page's script needs for its title and for notifications.
    ended = json.dumps([{"id": j.id, "at": j.finished_at, "state": j.state, "name": j.adapter_name, "why": j.reason} for j in status.ended])
    share = "" if status.running is None or "step" not in status.running.progress else f"{_share(status.running):.0f}"
    return f'<div class="as-status" role="status" aria-label="Status" data-share="{share}" data-ended="{esc(ended)}">{dots(parts)}</div>'


def _share(job: "JobRecord") -> float:
    """Per cent of the steps."""
    return 100 * float(job.progress["step"]) / max(1.0, float(job.progress["steps"]))


def status_job(job: "JobRecord | None") -> str:
    """The running job in a few words."""
    if job is None:
        return '<span class="as-idle">nothing is training</span>'
    name = esc(job.adapter_name)
    if "step" not in job.progress:
        return f'<span class="as-live">training <b>{name}</b>, {esc(stage(job))}</span>'
    return f'<span class="as-live">training <b>{name}</b> {_share(job):.0f} %</span>'


# Training


def plain_number(value: Any) -> str:
    """A value of the configuration, as a person types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def memory_sentence(estimate: "Estimate") -> str:
    """What a training would need of the memory and what is free, in GB."""
    parts = ", ".join(f"{name} {mb / 1024:.1f}" for name, mb in estimate.parts.items() if mb >= 51)
    needs = f"Needs about {estimate.total_mb / 1024:.1f} GB" + (f" ({parts})" if parts else "")
    return f"{needs}; {estimate.available_mb / 1024:.1f} GB are free." + (f" {estimate.advice}" if estimate.advice else "")


def memory_line(estimate: "Estimate", trainings: int) -> str:
    """The same under the form: a line of help, or a warning where it does not fit."""
    text = memory_sentence(estimate)
    if trainings > 1:
        text = f"{count(trainings, 'training')}, one after another. The largest: {text[0].lower()}{text[1:]}"
    if not estimate.advice:
        return hint(text)
    return f'<div class="as-card as-warning" role="status"><strong>This will not fit the memory</strong><p>{esc(text)}</p></div>'


def stage(job: "JobRecord") -> str:
    """What a running job is at, where it has no step to show."""
    if job.state in ("pausing", "cancelling"):
        return job.state
    waits = {"loading": "loading the base", "training": "measuring the loss before the first step", "saving": "saving the adapter"}
    return waits.get(job.progress.get("state", ""), "starting")


def loss_change(metrics: Mapping[str, Any]) -> str:
    """ "held-out loss 3.41 → 1.97", or the training loss where nothing was held out."""
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss")
    if before is not None and after is not None:
        return f"held-out loss {before:.2f} → {after:.2f}"
    loss = metrics.get("train_loss")
    return f"training loss {loss:.2f}" if loss is not None else ""


METRIC_FORMS: dict[str, Callable[[Any], str]] = {
    "seconds": duration,
    "tokens_per_s": "{:,.0f} tokens/s".format,
    "peak_rss_mb": "{:,} MB".format,
}
ORIGINS = {"import": "imported", "arithmetic": "made of others"}  # of what was not trained here


# Adapters


def won(rate: "Rate | None") -> str:
    """ "best in 3 of 5 votes (60 %)"; empty before the first vote."""
    return f"best in {rate.wins:,} of {count(rate.votes, 'vote')} ({100 * rate.wins / rate.votes:.0f} %)" if rate and rate.votes else ""


def kind(record: "AdapterRecord") -> str:
    """ "LoRA, rank 16" or "prefix, 20 tokens"."""
    method = str(record.config.get("method", "lora"))
    if method == "prefix":
        return f"prefix, {count(int(record.config.get('virtual_tokens', 0)), 'token')}"
    return f"{METHOD_NAMES.get(method, esc(method))}, rank {record.rank}"


# Chat


def speaker(stamp: "Stamp") -> str:
    """The name that a stamp shows."""
    return spoken(stamp.adapter) if stamp.adapter_sha256 else BASE_LABEL


def spoken(label: str) -> str:
    """A voice's label as people read it: "job:wizard@120" is "wizard, step 120"."""
    return CHECKPOINT.sub(r"\1, step \2", label)


def stamp_line(stamp: "Stamp") -> str:
    """The small line under a reply: who wrote it and how fast."""
    ends = {"length": "cut at the length", "cancelled": "stopped", "left": "the page was closed", "failed": "broke off"}
    parts = [
        f"<b>{esc(speaker(stamp))}</b>",
        f"swap {stamp.swap_ms:.1f} ms",
        f"first token {stamp.ttft_ms:,.0f} ms",
        f"{stamp.tokens_per_s:.1f} tokens/s",
        ends.get(stamp.reason, ""),
    ]
    style = f' style="--hue:{hue(stamp.adapter_sha256)}"' if stamp.adapter_sha256 else ""
    return f'<div class="as-stamp"{style}>{glyph(stamp.adapter_sha256, 3)}{dots(parts)}</div>'


def chips(label: str, prompts: Iterable[str]) -> str:
    """Messages to begin with."""
    buttons = "".join(button(prompt, "ask", prompt, look="chip") for prompt in prompts)
    return f'<div class="as-chips" role="group" aria-label="{esc(label)}">{buttons}</div>'


def safe_markdown(text: str) -> str:
    """Markdown whose tags are shown instead of obeyed; code stays as it is, since Markdown shows tags there itself."""
    parts = CODE.split(text)
    return "".join(part if i % 2 else part.replace("&", "&amp;").replace("<", "&lt;") for i, part in enumerate(parts))
