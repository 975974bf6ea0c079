"""Room is refused by numbers; what is shown of findings is text; the command line's sentences."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from studio.errors import OutOfSpace
from studio.keeping.archive import HeldBase
from studio.keeping.disk import KINDS, Item, Use
from studio.keeping.findings import DOABLE, MENDS, Finding
from studio.keeping_commands import _lines, _wanted
from studio.quota import Quota, gigabytes
from studio.ui import keeping, show_keeping

GB = 2**30
USE = Use(
    dict.fromkeys(KINDS, 0) | {"adapters": 3 * GB, "database": GB},
    [Item("adapters", "adapters/a1", "<b>bird", 3 * GB)],
    {"checkpoints": 5 * 2**20, "exports": 0},
    8 * GB,
    20 * GB,
    100 * GB,
)


def test_a_quota_counts_what_is_used_and_what_is_needed(tmp_path: Path) -> None:
    quota = Quota(tmp_path, 10 * GB, lambda: 9 * GB, least_free_bytes=0)
    quota.check("another dataset", GB)
    with pytest.raises(OutOfSpace, match=r"another dataset: the studio uses 9\.0 GB of its quota of 10\.0 GB, and it needs 1\.5 GB\. See"):
        quota.check("another dataset", GB + GB // 2)
    Quota(tmp_path, 0, lambda: 9 * GB, least_free_bytes=0).check("anything", GB)
    with pytest.raises(OutOfSpace, match="STUDIO_QUOTA_BYTES"):
        Quota(tmp_path, 9 * GB, lambda: 9 * GB, least_free_bytes=0).check("another training")


def test_a_disk_that_is_nearly_full_is_told_before_anything_is_begun(tmp_path: Path) -> None:
    with pytest.raises(OutOfSpace, match=r"for another training: the disk has .* free, of which 1,048,576\.0 GB must stay\. See"):
        Quota(tmp_path, 0, lambda: 0, least_free_bytes=2**50).check("another training")


@pytest.mark.parametrize(("size", "said"), [(0, "0.0 MB"), (2**20, "1.0 MB"), (GB - 2**20, "1,023.0 MB"), (3 * GB // 2, "1.5 GB")])
def test_sizes_are_said_in_the_unit_that_fits(size: int, said: str) -> None:
    assert gigabytes(size) == said


def test_every_mend_is_said_and_those_that_can_be_done_have_a_button() -> None:
    found = [Finding("orphan", f"Something <i>{mend}</i>.", "adapters/<x>", mend, size_bytes=2048) for mend in MENDS]
    text = show_keeping.findings(found)
    assert "<i>" not in text and "&lt;x&gt;, 2.0 KB" in text and f"{len(MENDS)} findings" in text
    assert [mend for mend in MENDS if f'data-action="mend" data-id="{mend}"' in text] == list(DOABLE)
    assert "Everything is as it should be." in show_keeping.findings([])
    many = show_keeping.findings([found[0]] * 60)
    assert "and 10 more" in many and many.count("as-kept-finding") == 52


def test_the_overview_escapes_names_and_offers_acts_to_the_own_machine_alone() -> None:
    here, elsewhere = show_keeping.overview(USE, True), show_keeping.overview(USE, False)
    assert "&lt;b&gt;bird" in here and "4.0 GB of a quota of 8.0 GB; 20.0 GB are free on the disk" in here
    assert 'style="width:37.50%"' in here and "Free 5.0 MB: checkpoints of finished trainings" in here and "Free 0 B" not in here
    assert "data-action" not in elsewhere and "made on the studio&#x27;s own machine" in elsewhere
    assert "python -m studio restore FILE" in here


def test_the_command_line_says_what_can_be_freed_and_how() -> None:
    lines = _lines(USE)
    assert lines[0].split() == ["adapters", "3.0", "GB"] and "of a quota of 8.0 GB; 20.0 GB are free" in lines[2]
    assert lines[-1] == "5.0 MB can be freed: python -m studio disk --free checkpoints"


def test_only_a_browser_of_the_own_machine_may_act() -> None:
    asked: list[str] = []
    disk = SimpleNamespace(use=lambda: USE, free=lambda kind: asked.append(kind) or 2**20)
    studio, access = SimpleNamespace(keeper=SimpleNamespace(disk=disk)), SimpleNamespace(is_here=lambda request: request.here)
    events, event = keeping.Events(studio, access), SimpleNamespace(_data={"action": "free", "id": "exports"})  # type: ignore[arg-type]
    refused = list(events.act(SimpleNamespace(here=False, session_hash="s"), event))  # type: ignore[arg-type]
    assert [file for _, file in refused] == [None] and "made on the studio&#x27;s own machine" in refused[0][0] and asked == []
    done = list(events.act(SimpleNamespace(here=True, session_hash="s"), event))  # type: ignore[arg-type]
    assert asked == ["exports"] and "1.0 MB were freed." in done[-1][0]


@pytest.mark.parametrize(
    ("source", "wanted"), [("hub:owner/name@abc", "owner/name"), ("wheel:x==1", "tiny"), ("folder:tiny", "FOLDER/tiny")]
)
def test_a_base_is_fetched_again_from_where_it_was(source: str, wanted: str) -> None:
    assert _wanted(HeldBase("b1", "tiny", source, "f", False)) == wanted
