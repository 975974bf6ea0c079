"""The Adapters tab as HTML: what is looked for, cards and rows, the page of one. Every name that a person typed is escaped."""

import re
from dataclasses import replace

import pytest

from storage.catalog import Search
from storage.shelf import ARCHIVED
from studio.chat.votes import Rate
from studio.training.config import make_config
from studio.ui.adapters import show_list, show_page
from studio.ui.adapters.picture import picture
from studio.ui.adapters.show_list import Known
from studio.ui.adapters.show_page import Family
from studio.ui.adapters.sight import MOST_PAGES, PAGE, Sight
from tests.records import BASE, DATASET
from tests.unit.test_present import ADAPTER, EVIL, JOB, METRICS, NOW, SHA

KNOWN = Known({"b1": "tiny", "d1": "birds"}, {"a1": Rate(3, 5)})
BIRD = replace(ADAPTER, name="bird", tags=["talks", "tiny"])
EVERYTHING = replace(
    ADAPTER, tags=[EVIL], collections=[EVIL], source=EVIL, licence=EVIL, owner=EVIL, code_version=EVIL, config={"targets": EVIL}
)


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_what_people_typed_is_escaped_everywhere() -> None:
    evil, parents = Known({"b1": EVIL, "d1": EVIL}), [{"id": "a2", "name": EVIL, "weight": 1}, {"id": "a1", "name": "x", "weight": EVIL}]
    base, dataset = replace(BASE, name=EVIL), replace(DATASET, name=EVIL)
    family = Family(base, dataset, JOB, {"a1": EVERYTHING}, [EVERYTHING], [EVERYTHING, replace(EVERYTHING, version=2)])
    sight = Sight(text=EVIL, tag=EVIL, collection=EVIL, dataset=EVIL, base=EVIL, rank_from=EVIL, sort=EVIL)
    shown = [
        show_list.gallery([EVERYTHING], evil, NOW),
        show_list.table([EVERYTHING], evil, NOW),
        show_list.filters(sight, {"tag": [(EVIL, 2)], "dataset": [(EVIL, 1)], "base": [("b1", 1)]}, evil.names, 3),
        show_page.head(EVERYTHING, None, NOW),
        show_page.gone(EVIL),
        show_page.lineage(EVERYTHING, family),
        show_page.lineage(replace(EVERYTHING, origin="arithmetic", parents=parents), family),
        show_page.lineage(replace(EVERYTHING, origin="import"), Family()),
        show_page.lineage(replace(EVERYTHING, config={"dataset_name": EVIL}), Family()),
        show_page.details(EVERYTHING, family, NOW),
        show_page.details(replace(EVERYTHING, origin="import", kind=EVIL), Family(), NOW),
    ]
    for html in shown:
        assert "<img" not in html and 'onerror="' not in html and "&lt;img" in html
    assert "<img" not in show_page.shown_markdown(EVIL) and show_page.shown_markdown("![x](http://a) `<b>`") == "[x](http://a) `<b>`"


def test_a_card_and_a_row_tell_what_it_is_and_what_came_of_it() -> None:
    card = plain(show_list.card(BIRD, KNOWN, NOW))
    assert card.startswith("bird tiny · birds · LoRA, rank 16 held-out loss 3.41 → 1.97 · 5.0 MB · ") and "talks tiny" in card
    assert "best in 3 of 5 votes (60 %)" in card and "best in" not in show_list.card(BIRD, Known(), NOW)
    row = show_list.table([replace(BIRD, favourite=True)], KNOWN, NOW)
    assert 'href="?tab=adapters&amp;adapter=a1"' in row and "1.970" in row and 'aria-pressed="true" aria-label="Favourite: bird">★' in row
    assert "imported" in show_list.card(replace(BIRD, origin="import"), KNOWN, NOW)


def test_a_picture_is_its_adapters_and_shows_kind_rank_and_loss() -> None:
    assert picture(BIRD) == picture(replace(BIRD, name="other")) != picture(replace(BIRD, sha256="00ff00" + SHA[6:]))
    assert picture(BIRD).count("<path") == 5 and picture(replace(BIRD, rank=256)).count("<path") == 9
    dots, diamonds = picture(replace(BIRD, kind="prefix", config={"virtual_tokens": 20})), picture(replace(BIRD, kind="dora"))
    assert "<rect" not in dots and dots.count("<circle") > 3 and "<polygon" in diamonds and "<polygon" not in picture(BIRD)
    assert 'stroke-dasharray="0.0 ' in picture(replace(BIRD, metrics={})) and 'stroke-dasharray="0.0 ' not in picture(BIRD)
    assert "<rect" in picture(replace(BIRD, sha256="0" * 64))  # never empty


def test_what_is_looked_for_goes_into_the_address_and_back() -> None:
    sight = Sight(
        text='a "b" & c=d', tag="ü", rank_from="8", loss_to="1.5", favourite="1", archived="1", sort="loss", view="table", pages="3"
    )
    assert Sight.read(str(sight)) == sight and str(Sight()) == "" and Sight.read("") == Sight()
    search = Search('a "b" & c=d', ("ü",), favourite=True, ranks=(8, None), losses=(None, 1.5), state=ARCHIVED, sort="loss")
    assert sight.search == search and sight.shown == 3 * PAGE and sight.is_narrow and not Sight(sort="name", view="table").is_narrow


@pytest.mark.parametrize(
    "text", ["pages=-1", "pages=x", "pages=9999999", "rank_from=nan&loss_to=1e999", "sort=none", "what=ever&=&%%%", "view=<b>"]
)
def test_an_address_that_nobody_made_is_read_all_the_same(text: str) -> None:
    sight = Sight.read(text)
    assert PAGE <= sight.shown <= PAGE * MOST_PAGES and sight.search == Search()


def test_a_click_turns_one_thing_and_begins_at_the_first_page() -> None:
    sight = Sight(text="bird", pages="4", sort="name", view="table")
    assert sight.turned("tag", "talks") == replace(sight, tag="talks", pages="")
    assert sight.turned("more", "").pages == "5" and sight.turned("favourites", "").turned("favourites", "") == replace(sight, pages="")
    assert sight.turned("clear", "") == Sight(sort="name", view="table") and sight.turned("gallery", "").view == ""
    assert sight.turned("__class__", "x") == sight


def test_the_filters_count_and_keep_what_is_chosen() -> None:
    html = show_list.filters(Sight(tag="gone", kind="lora"), {"tag": [("talks", 1200)], "kind": [("lora", 3)]}, {}, 10_000)
    assert (
        '<option value="gone" selected>gone (0)' in html
        and "talks (1,200)" in html
        and "over 10,000 adapters" in html
        and "LoRA (3)" in html
    )
    assert "Collection" not in html and "Clear all" in html and "Clear all" not in show_list.filters(Sight(), {}, {}, 1)


def test_an_empty_list_says_what_to_do() -> None:
    assert "Train one" in show_list.catalog([], Sight(), KNOWN, False)
    assert "Show all adapters" in show_list.catalog([], Sight(text="x"), KNOWN, False)
    assert "Show 24 more" in show_list.catalog([BIRD], Sight(), KNOWN, True)
    assert "search or filter" in show_list.catalog([BIRD], Sight(pages=str(MOST_PAGES)), KNOWN, True)


def test_the_page_says_where_it_comes_from_and_opens_each_thing() -> None:
    html = show_page.lineage(BIRD, Family(BASE, replace(DATASET, version=3), JOB, children=[replace(BIRD, id="a9", name="mix")]))
    assert plain(html).startswith("Where it comes from base tiny ffffffffffff… learned from birds version 3, 2 rows training its training")
    for opened in ('data-action="dataset" data-id="d1"', 'data-action="job" data-id="j1"', 'data-action="show" data-id="a9"'):
        assert opened in html
    made = replace(
        BIRD, origin="arithmetic", parents=[{"id": "a2", "name": "owl", "weight": 0.7}, {"id": "a3", "name": "gone", "weight": -0.5}]
    )
    text = plain(show_page.lineage(made, Family(parents={"a2": replace(BIRD, id="a2", name="owl")})))
    assert "made of owl × 0.7 gone × -0.5 deleted since this adapter bird" in text and "base deleted since" in text


def test_the_page_marks_what_differs_from_the_preset_and_says_each_measure_once() -> None:
    config = make_config("quick", {"max_steps": 7}).model_dump()
    text = plain(show_page.details(replace(BIRD, config=config, metrics={**METRICS, "stopped_early": True, "samples": []}), Family(), NOW))
    assert "The quick preset with 1 other value:" in text and "max steps 7 0" in text and "Every option" in text
    assert "stopped early yes" in text and "held-out loss" not in text and "samples" not in text
    unmeasured = plain(show_page.details(replace(BIRD, metrics={"steps": 3, "eval_loss_before": None, "eval_loss": None}), Family(), NOW))
    assert unmeasured.count("nothing was held out") == 1
    record = replace(BIRD, origin="import", source="the file 'a.zip'", dataset_hash="", job_id="", metrics={}, config={"rank": 16})
    imported = plain(show_page.details(record, Family(), NOW))
    assert "from the file &#x27;a.zip&#x27;" in imported and "trained" not in imported and "preset" not in imported
    assert "Reproduce" in show_page.head(BIRD, None, NOW) and "Reproduce" not in show_page.head(record, None, NOW)


def test_an_older_version_says_so_and_can_be_made_the_current_one() -> None:
    old = replace(BIRD, current=False)
    head = show_page.head(old, None, NOW)
    assert "version 1" in head and "an older version" in head and "Make this version the current one" in head
    table = plain(show_page.versions(old, Family(versions=[replace(BIRD, id="a2", version=2), old]), NOW))
    assert table.startswith("Versions of bird version 2 current") and show_page.versions(BIRD, Family(versions=[BIRD]), NOW) == ""
    assert "archived" in show_page.head(replace(BIRD, archived_at=1.0), None, NOW)
