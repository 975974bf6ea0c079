"""What takes room, and what a check found, as HTML. Pure."""

from collections.abc import Sequence
from html import escape as esc

from studio.keeping.disk import KINDS, Item, Use
from studio.keeping.findings import DOABLE, MENDS, Finding
from studio.ui.present import button, count, hint, size

LEAST_SHARE = 0.004  # of the bar; less cannot be seen
MOST_SHOWN = 50
RESTORE = "Restore one on the command line, into an empty folder: python -m studio restore FILE --into FOLDER."
ELSEWHERE = "Backups and checks are made on the studio's own machine: python -m studio backup FILE.zip, python -m studio check."
FREED = {"checkpoints": "checkpoints of finished trainings", "exports": "exports older than a day"}


def overview(use: Use, here: bool) -> str:
    """The fold as it opens.

    Args:
        here: whether a browser of the studio's own machine asks, which may make backups and mend.
    """
    return f'<div class="as-keeping">{_bar(use)}{_tables(use)}{_acts(use) if here else hint(ELSEWHERE)}{hint(RESTORE)}</div>'


def _bar(use: Use) -> str:
    whole = max(use.quota_bytes, use.used_bytes, 1)
    parts = "".join(
        f'<span class="as-kind as-kind-{kind}" style="width:{100 * of / whole:.2f}%" title="{kind}: {size(of)}"></span>'
        for kind, of in use.kinds.items()
        if of / whole > LEAST_SHARE
    )
    bound = f" of a quota of {size(use.quota_bytes)}" if use.quota_bytes else ""
    said = f"{size(use.used_bytes)}{bound}; {size(use.disk_free_bytes)} are free on the disk"
    return f'<p><b>{said}</b></p><div class="as-room" role="img" aria-label="{said}">{parts}</div>'


def _tables(use: Use) -> str:
    rows = "".join(_kind_row(kind, of) for kind, of in use.kinds.items() if of)
    kinds = f'<table class="as-table as-measures"><thead><tr><th scope="col">kind</th><th scope="col">room</th></tr></thead>{rows}</table>'
    things = "".join(_item_row(item) for item in use.largest)
    head = '<tr><th scope="col">largest</th><th scope="col">room</th></tr>'
    return f'<div class="as-keeping-tables">{kinds}<table class="as-table as-measures"><thead>{head}</thead>{things}</table></div>'


def _kind_row(kind: str, of: int) -> str:
    dot = f'<span class="as-kind as-kind-{kind}" aria-hidden="true"></span>'
    return f'<tr><th scope="row">{dot}{kind} <span class="as-hint">{esc(KINDS[kind])}</span></th><td>{size(of)}</td></tr>'


def _item_row(item: Item) -> str:
    return f'<tr><th scope="row">{esc(item.name)} <span class="as-hint">{item.kind}</span></th><td>{size(item.size_bytes)}</td></tr>'


def _acts(use: Use) -> str:
    buttons = [
        button("Make a backup", "backup"),
        button("Backup with base models", "backup", "bases", look="quiet"),
        button("Check everything", "check"),
        button("Check quickly", "check", "quick", look="quiet"),
    ]
    buttons += [
        button(f"Free {size(of)}: {FREED[kind]}", "free", kind, look="quiet") for kind, of in use.freeable.items() if of and kind in FREED
    ]
    return f'<div class="as-keeping-acts">{"".join(buttons)}</div>'


def findings(found: Sequence[Finding]) -> str:
    """What a check found, by what is offered, with a button for each kind of mend."""
    if not found:
        return '<div class="as-card as-note" role="status"><p>Everything is as it should be.</p></div>'
    groups = {mend: [one for one in found if one.mend == mend] for mend in MENDS}
    told = "".join(_group(mend, ones) for mend, ones in groups.items() if ones)
    return f'<div class="as-card" role="status"><strong>{count(len(found), "finding")}</strong>{told}</div>'


def _group(mend: str, ones: Sequence[Finding]) -> str:
    rows = "".join(
        f'<p class="as-kept-finding">{esc(one.what)} <span class="as-hint">{esc(one.where)}{_size(one)}</span></p>'
        for one in ones[:MOST_SHOWN]
    )
    more = f'<p class="as-kept-finding">and {len(ones) - MOST_SHOWN:,} more</p>' if len(ones) > MOST_SHOWN else ""
    offer = MENDS[mend][:1].upper() + MENDS[mend][1:]
    act = button(f"{offer} ({len(ones)})", "mend", mend) if mend in DOABLE else hint(f"{offer}.")
    return f'<div class="as-kept-findings">{rows}{more}{act}</div>'


def _size(one: Finding) -> str:
    return f", {size(one.size_bytes)}" if one.size_bytes else ""
