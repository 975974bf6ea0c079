"""Adapters are found again in a real browser, and each has a page that leads on."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from storage.records import AdapterRecord, JobRecord
from studio.services import Studio
from studio.training.config import make_config
from tests.browser.running import open_tab
from tests.conftest import tiny_settings
from tests.records import ADAPTER

WAIT_MS = 30_000
EVIL = "Pirate <b>& co</b>"  # a name that would be markup if it were not escaped
METRICS = {"eval_loss_before": 4.0, "eval_loss": 1.5, "steps": 10}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose errors fail the test, but for those of requests that a reload cuts off."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    found = [error for error in errors if "AbortError" not in error and "Connection errored out" not in error]
    context.close()
    assert not found


@pytest.fixture(scope="module")
def other(tiny_url: str, tiny_home: Path) -> Iterator[Studio]:
    """A second program on the same home, with thirty adapters and what they were made from."""
    studio = Studio(tiny_settings(tiny_home))
    base, dataset = studio.bases.get("tiny"), studio.datasets.get("Angry bird")
    config = {**make_config("quick", {"seed": 7}).model_dump(), "dataset_name": dataset.name, "dataset_hash": dataset.content_hash}
    job = JobRecord("catalog-job", "done", "cat00", "cat 0", base.id, dataset.id, config, time.time(), finished_at=time.time())
    studio.queue.jobs.add(job)
    for number in range(30):
        studio.adapters.records.add(adapter(number, base.id, base.fingerprint, dataset.id, config))
    parents = [{"id": "cat00", "name": "cat 0", "sha256": "s" * 64, "weight": 0.5}]
    mix = replace(adapter(40, base.id, base.fingerprint, "", {}), name=EVIL, origin="arithmetic", source="cat 0:0.5", parents=parents)
    studio.adapters.records.add(replace(mix, job_id="", metrics={}))
    yield studio
    for record in studio.adapters.all():  # other tests look at the newest
        if record.id.startswith("cat"):
            studio.adapters.records.remove(record.id)
    studio.close()


def adapter(number: int, base: str, fingerprint: str, dataset: str, config: dict[str, object]) -> AdapterRecord:
    return replace(
        ADAPTER,
        id=f"cat{number:02d}",
        name=f"cat {number}",
        sha256=f"{number * 7919 + 1:064x}"[::-1],
        base_id=base,
        base_fingerprint=fingerprint,
        dataset_id=dataset,
        job_id="catalog-job",
        config=config,
        metrics=METRICS,
        rank=4 if number else 64,
        created_at=time.time() + number,
    )


def labels(page: Page, **texts: str) -> None:
    """Write on the adapter whose page is open."""
    page.get_by_role("button", name="Edit card and labels").click()
    for field, text in texts.items():
        page.locator(f"#adapter-{field} input, #adapter-{field} textarea").first.fill(text)
    page.locator("#adapter-save").click()
    expect(page.locator("#adapter-message")).to_contain_text("Saved.")


def test_an_adapter_is_found_labelled_put_aside_and_found_again(page: Page, tiny_url: str, other: Studio) -> None:
    open_tab(page, tiny_url, "Adapters")
    cards = page.locator("#adapter-catalog .as-adapter")
    expect(cards).to_have_count(24)
    page.get_by_role("button", name="Show 24 more").click()
    expect(cards.nth(24)).to_be_visible()
    page.get_by_label("Search adapters").fill("cat 29")
    expect(cards).to_have_count(1)
    page.get_by_role("button", name="Favourite: cat 29").click()
    expect(page.get_by_role("button", name="Favourite: cat 29")).to_have_attribute("aria-pressed", "true")
    cards.first.press("Enter")
    expect(page.locator("#adapter-head h3")).to_have_text("cat 29")
    labels(page, tags=f"Felines, {EVIL}", collections="Best of", licence="mit", **{"card-text": "# Mine\n<script>alert(1)</script> purrs"})
    expect(page.locator("#adapter-card")).to_contain_text("<script>alert(1)</script> purrs")
    page.wait_for_url("**adapter=cat29**")
    page.reload()
    expect(page.locator("#adapter-head")).to_contain_text("#felines")
    page.get_by_role("button", name="#felines").click()
    expect(page.locator("#adapter-filters")).to_contain_text("1 adapter")
    page.get_by_role("button", name="Table").click()
    expect(page.locator("#adapter-catalog tbody tr")).to_have_count(1)
    page.wait_for_url("**find=**felines**")
    page.locator("#adapter-catalog .as-open").click()
    page.get_by_role("button", name="Archive it").click()
    expect(page.locator("#adapter-message")).to_contain_text("cat 29 is in the archive")
    assert other.adapters.get("cat29").licence == "mit" and "cat29" not in {a.id for a in other.adapters_of(other.bases.get("tiny"))}
    page.goto(f"{tiny_url}/?tab=adapters&find=tag%3Dfelines")
    expect(page.locator("#adapter-catalog")).to_contain_text("Nothing is like that")
    page.locator("#adapter-filters").get_by_role("button", name="Archive").click()
    expect(page.locator("#adapter-catalog .as-adapter-name")).to_have_text("cat 29")


def test_the_page_of_one_leads_to_what_it_was_made_of_and_trains_it_again(page: Page, tiny_url: str, other: Studio) -> None:
    page.goto(f"{tiny_url}/?tab=adapters&adapter=cat40")
    expect(page.locator("#adapter-head h3")).to_have_text(EVIL)
    page.locator("#adapter-lineage").get_by_role("link", name="cat 0").click()
    expect(page.locator("#adapter-head h3")).to_have_text("cat 0")
    expect(page.locator("#adapter-lineage")).to_contain_text(EVIL)  # its child
    expect(page.locator("#adapter-card")).to_contain_text("It learned from Angry bird, version 1, 96 rows")
    expect(page.locator("#adapter-facts")).to_contain_text("The quick preset with 1 other value:")
    page.get_by_role("button", name="Reproduce: cat 0").click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#train-message")).to_contain_text("The form holds the configuration of cat 0")
    expect(page.locator("#train-command textarea")).to_have_value(
        "python -m studio train --dataset 'Angry bird' --name 'cat 30' --preset quick --set seed=7"
    )


def test_a_phone_never_scrolls_sideways(page: Page, tiny_url: str, other: Studio) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for view, seen in (("", ".as-adapter-name"), ("&find=view%3Dtable", ".as-named"), ("&adapter=cat00", "#adapter-head h3")):
        page.goto(f"{tiny_url}/?tab=adapters{view}")
        page.locator(seen).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
