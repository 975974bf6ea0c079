"""The page of one adapter as HTML: who it is, where it comes from and what came of it, how it was made, its files. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as esc
from typing import TYPE_CHECKING, Any

from studio.ui.adapters.picture import picture
from studio.ui.adapters.show_list import KIND_NAMES, link
from studio.ui.jobs.show_job import configuration
from studio.ui.outcome import MEASURES
from studio.ui.present import (
    CODE,
    METRIC_FORMS,
    METRIC_NAMES,
    ORIGINS,
    button,
    dots,
    facts,
    glyph,
    hue,
    kind,
    loss_change,
    plain_number,
    size,
    time_tag,
    won,
)

if TYPE_CHECKING:
    from storage.records import AdapterRecord, BaseRecord, DatasetRecord, JobRecord
    from studio.chat.votes import Rate


@dataclass(frozen=True)
class Family:
    """What an adapter is tied to; None or empty for what is gone or never was. `parents` are those that still exist, by id."""

    base: "BaseRecord | None" = None
    dataset: "DatasetRecord | None" = None
    job: "JobRecord | None" = None
    parents: "Mapping[str, AdapterRecord]" = field(default_factory=dict)
    children: "Sequence[AdapterRecord]" = ()
    versions: "Sequence[AdapterRecord]" = ()


# Head


def head(record: "AdapterRecord", rate: "Rate | None", now: float | None = None) -> str:
    """Who it is, and what may be done with it beside the main buttons."""
    badges = [f"version {record.version}" if record.version > 1 or not record.current else ""]
    badges += ["an older version" if not record.current else "", "archived" if record.archived_at is not None else ""]
    shown = "".join(f'<span class="as-badge">{badge}</span>' for badge in badges if badge)
    about = [kind(record), loss_change(record.metrics), size(record.size_bytes), won(rate), time_tag(record.created_at, now)]
    return (
        f'<div class="as-adapter-head" style="--hue:{hue(record.sha256)}" data-adapter="{esc(record.id)}">'
        f"{button('← All adapters', 'show', '', look='quiet')}"
        f'<div class="as-with-picture">{picture(record)}<div class="as-detail-head"><h3 tabindex="-1">{esc(record.name)}{shown}</h3>'
        f"<p>{dots(about)}</p>{_labels(record)}{_tools(record)}</div></div></div>"
    )


def _labels(record: "AdapterRecord") -> str:
    """Tags and collections; each leads to all that have it."""
    found = [button(f"#{tag}", "tag", tag, look="tag", about=f"all adapters with the tag {tag}") for tag in record.tags]
    found += [button(name, "collection", name, look="tag", about=f"all adapters of the collection {name}") for name in record.collections]
    return f'<div class="as-tags">{"".join(found)}</div>' if found else ""


def _tools(record: "AdapterRecord") -> str:
    starred = "★ Favourite" if record.favourite else "☆ Make it a favourite"
    found = [_toggle(starred, "star", record, record.favourite)]
    found.append(
        _toggle("In the archive" if record.archived_at is not None else "Archive it", "archive", record, record.archived_at is not None)
    )
    if record.origin == "training" and record.job_id:
        found.append(button("Reproduce", "reproduce", record.job_id, look="quiet", about=record.name))
    if not record.current:
        found.append(button("Make this version the current one", "current", record.id, look="quiet"))
    return f'<div class="as-tools">{"".join(found)}</div>'


def _toggle(label: str, action: str, record: "AdapterRecord", on: bool) -> str:
    return (
        f'<button type="button" class="as-button as-button-quiet" data-action="{action}" data-id="{esc(record.id)}" '
        f'aria-pressed="{str(on).lower()}">{label}</button>'
    )


def gone(error: object) -> str:
    """An adapter that is not there."""
    return (
        f'<div class="as-adapter-head">{button("← All adapters", "show", "", look="quiet")}'
        f'<div class="as-card as-error" role="alert"><strong>There is no such adapter</strong><p>{esc(str(error))}</p></div></div>'
    )


# Card


def shown_markdown(text: str) -> str:
    """Markdown whose tags are shown instead of obeyed, and whose pictures are links: a page fetches nothing from outside."""
    parts = CODE.split(text)
    return "".join(part if i % 2 else part.replace("<", "&lt;").replace("![", "[") for i, part in enumerate(parts))


# Lineage


def lineage(record: "AdapterRecord", family: Family) -> str:
    """From the base to what was made of it: steps in a line, each a list of things that open."""
    steps = [("base", [_base(record, family)])]
    if record.origin == "training":
        steps += [("learned from", [_dataset(record, family)]), ("training", [_job(record, family)])]
    elif record.parents:
        steps.append(("made of", [_parent(parent, family) for parent in record.parents]))
    else:
        steps.append((ORIGINS.get(record.origin, record.origin), [_node(esc(record.source) or "elsewhere")]))
    steps.append(("this adapter", [f'<li class="as-node as-node-self" aria-current="true">{glyph(record.sha256)} {esc(record.name)}</li>']))
    if family.children:
        steps.append(("made of it", [_adapter(child) for child in family.children]))
    drawn = "".join(f"<li><span>{esc(title)}</span><ul>{''.join(nodes)}</ul></li>" for title, nodes in steps)
    return f'<h4 class="as-section">Where it comes from</h4><ol class="as-lineage" style="--hue:{hue(record.sha256)}">{drawn}</ol>'


def _node(content: str) -> str:
    return f'<li class="as-node">{content}</li>'


def _base(record: "AdapterRecord", family: Family) -> str:
    name = family.base.name if family.base else "deleted since"
    return _node(f'{esc(name)}<small title="{esc(record.base_fingerprint)}">{esc(record.base_fingerprint[:12])}…</small>')


def _dataset(record: "AdapterRecord", family: Family) -> str:
    if family.dataset is None:
        told = str((family.job.config if family.job else record.config).get("dataset_name", "a dataset"))
        return _node(f"{esc(told)}<small>deleted since</small>")
    found = family.dataset
    opened = f'<a class="as-open" href="?tab=datasets" data-action="dataset" data-id="{esc(found.id)}">{esc(found.name)}</a>'
    return _node(f"{opened}<small>version {found.version}, {found.rows:,} rows</small>")


def _job(record: "AdapterRecord", family: Family) -> str:
    if family.job is None:
        return _node(f"<code>{esc(record.job_id[:12])}</code><small>deleted since</small>")
    href = f"?tab=train&amp;job={esc(record.job_id)}"
    opened = f'<a class="as-open" href="{href}" data-action="job" data-id="{esc(record.job_id)}">its training</a>'
    return _node(f"{opened}<small>seed {record.seed}, {esc(family.job.device)}</small>")


def _parent(parent: Mapping[str, Any], family: Family) -> str:
    found = family.parents.get(str(parent.get("id", "")))
    weight = f"<small>× {esc(plain_number(parent.get('weight', 1)))}</small>"
    return _adapter(found, weight) if found else _node(f"{esc(str(parent.get('name', '')))}{weight}<small>deleted since</small>")


def _adapter(record: "AdapterRecord", more: str = "") -> str:
    opened = link(record.id, record.name, inside=glyph(record.sha256) + " ")
    return f'<li class="as-node" style="--hue:{hue(record.sha256)}">{opened}{more}</li>'


def versions(record: "AdapterRecord", family: Family, now: float | None = None) -> str:
    """The versions of its name; empty where there is one."""
    if len(family.versions) < 2:
        return ""
    rows = "".join(
        f'<tr{" class=as-changed" if other.id == record.id else ""}><th scope="row">{link(other.id, f"version {other.version}")}</th>'
        f"<td>{'current' if other.current else ''}</td><td>{esc(loss_change(other.metrics))}</td><td>{time_tag(other.created_at, now)}</td>"
        f"<td><code>{esc(other.sha256[:12])}</code></td></tr>"
        for other in family.versions
    )
    drawn = f'<div class="as-scroll"><table class="as-table"><tbody>{rows}</tbody></table></div>'
    return f'<h4 class="as-section">Versions of {esc(record.name)}</h4>{drawn}'


# Configuration, measurements, files


def details(record: "AdapterRecord", family: Family, now: float | None = None) -> str:
    """How it was made, what was measured beside the evaluation, and its files."""
    how = configuration(record.config) if record.origin == "training" else _options(record)
    told = [(METRIC_NAMES.get(key, key.replace("_", " ")), _metric(key, value)) for key, value in _unsaid(record.metrics)]
    measured = f'<h4 class="as-section">What training measured</h4>{facts(told)}' if told else ""
    pairs = [
        ("size", f"{record.size_bytes:,} bytes"),
        ("adapter SHA-256", digest(record.sha256)),
        ("base fingerprint", digest(record.base_fingerprint)),
        ("dataset hash", digest(record.dataset_hash) if record.dataset_hash else ""),
        ("licence", esc(record.licence)),
        (ORIGINS.get(record.origin, "trained"), time_tag(record.created_at, now)),
        ("from", esc(record.source)),
        ("studio version", esc(record.code_version)),
        ("owner", esc(record.owner)),
    ]
    files = f'<h4 class="as-section">Its files</h4>{facts(pair for pair in pairs if pair[1])}'
    return how + measured + versions(record, family, now) + files


def _options(record: "AdapterRecord") -> str:
    pairs = [(key.replace("_", " "), esc(plain_number(value))) for key, value in record.config.items()]
    return f'<h4 class="as-section">What it is</h4>{facts([("kind", KIND_NAMES.get(record.kind, esc(record.kind))), *pairs])}'


def _unsaid(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The metrics that the table of the evaluation does not show already."""
    if metrics.get("eval_loss", ...) is None:
        return [("eval_loss", None), *_unsaid({key: value for key, value in metrics.items() if key != "eval_loss"})]
    return [(k, v) for k, v in metrics.items() if v is not None and not isinstance(v, list) and k.removesuffix("_before") not in MEASURES]


def digest(text: str) -> str:
    """The start of a hash; all of it on hover."""
    return f'<code title="{esc(text)}">{esc(text[:12])}…</code>' if text else "unknown"


def _metric(key: str, value: Any) -> str:
    if value is None:
        return "nothing was held out"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in METRIC_FORMS:
        return METRIC_FORMS[key](value)
    return f"{value:.3f} nats" if isinstance(value, float) else esc(f"{value:,}" if isinstance(value, int) else str(value))
