"""By hand: a map of adapters, one made of others, how two differ, a push that is refused, and an export that is found again."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.running import choose, open_tab
from tests.hostile_adapters import both, pack


@pytest.fixture
def url(tiny_url: str) -> str:
    return tiny_url


def bring(page: Page, url: str, name: str, path: Path) -> None:
    open_tab(page, url, "Adapters")
    page.get_by_role("button", name="Import an adapter").click()
    page.locator("#import-file input[type=file]").set_input_files(pack(path, both()))
    expect(page.locator("#import-file")).to_contain_text(path.stem)
    page.locator("#import-name input, #import-name textarea").first.fill(name)
    page.locator("#import-add").click()
    expect(page.locator("#adapter-head h3")).to_have_text(name, timeout=60_000)


def test_one_is_made_of_others_and_stands_on_the_map(page: Page, url: str, tmp_path: Path) -> None:
    bring(page, url, "kite & co", tmp_path / "kite.zip")
    page.get_by_role("button", name="All adapters").click()
    page.get_by_role("button", name="Make one from others").click()
    page.locator("#make-go").click()
    expect(page.locator("#make-expected").get_by_role("alert")).to_contain_text("Choose an adapter first.")
    choose(page, "make-name-1", "kite & co")
    page.locator("#make-weight-1 input").fill("-0.5")
    expect(page.locator("#make-expected")).to_contain_text("It will have rank 4 (exactly) and about")
    page.locator("#make-name input, #make-name textarea").first.fill("anti-kite")
    page.locator("#make-go").click()
    expect(page.locator("#adapter-head h3")).to_have_text("anti-kite", timeout=60_000)
    page.get_by_role("button", name="Compare with another adapter").click()
    expect(page.locator("#differ-other")).to_be_visible()
    choose(page, "differ-other", "kite & co")
    page.locator("#differ-prompts textarea").fill("Who are you?")
    page.locator("#differ-compare").click()
    shown = page.locator("#differ-shown")
    expect(shown).to_contain_text("They write in the same directions: overlap 1.00, cosine of ΔW -1.00.", timeout=60_000)
    expect(shown.locator("dt")).to_have_text(["Base model", " anti-kite", " kite & co"])
    page.get_by_role("button", name="Push to the Hugging Face Hub").click()
    expect(page.locator("#push-card summary")).to_be_visible()
    page.locator("#push-repository input, #push-repository textarea").first.fill("kite")
    page.locator("#push-token input").fill("hf_typed")
    page.locator("#push-go").click()
    expect(page.locator("#push-shown").get_by_role("alert")).to_contain_text("'kite' is no Hub id; write it as owner/name.")
    expect(page.locator("#push-token input")).to_have_value("")
    page.get_by_role("button", name="All adapters").click()
    page.get_by_role("button", name="Map of similarity").click()
    page.locator("#map-names input, #map-names textarea").first.fill("kite & co, anti-kite")
    page.locator("#map-draw").click()
    drawn = page.locator("#map-shown")
    expect(drawn).to_contain_text("kite & co and anti-kite point the same way: 1.00.")
    expect(drawn.locator("rect")).to_have_count(4)


def test_an_export_is_there_when_the_page_is_opened_again(page: Page, url: str, tmp_path: Path) -> None:
    bring(page, url, "export that stays", tmp_path / "stays.zip")
    choose(page, "adapter-format", "merged, transformers")
    page.locator("#adapter-download").click()
    page.locator("#adapter-export-message .as-card").wait_for()
    page.reload()
    expect(page.locator("#adapter-head h3")).to_have_text("export that stays")
    expect(page.locator("#adapter-export-message")).to_contain_text("-merged.zip was made; transformers loads", timeout=60_000)
    with page.expect_download(timeout=60_000) as waited:
        page.get_by_role("button", name="Save the file").click()
    assert waited.value.suggested_filename.endswith("-merged.zip")
