"""An adapter comes in by hand: it is in the catalog, the chat speaks with it, and a refused one says why."""

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.running import ask, open_tab
from tests.hostile_adapters import both, config, pack, pickled, put


@pytest.fixture
def url(tiny_url: str) -> str:
    return tiny_url


def fill(page: Page, name: str, *paths: Path) -> None:
    page.locator("#import-file input[type=file]").set_input_files(list(paths))
    expect(page.locator("#import-file")).to_contain_text(paths[0].name.split(".")[0])
    page.locator("#import-name input, #import-name textarea").first.fill(name)


def unfold(page: Page, url: str) -> None:
    open_tab(page, url, "Adapters")
    page.get_by_role("button", name="Import an adapter").click()


def refusal(page: Page) -> Locator:
    page.locator("#import-add").click()
    return page.locator("#import-message").get_by_role("alert")


def test_a_refused_adapter_says_why_and_what_was_filled_in_stays(page: Page, url: str, tmp_path: Path) -> None:
    unfold(page, url)
    expect(refusal(page)).to_contain_text("Choose a zip, or the two files, first.")
    put(tmp_path / "a", config(target_modules=".*_proj"))
    fill(page, "wizard", tmp_path / "a" / "adapter_model.safetensors", tmp_path / "a" / "adapter_config.json")
    refused = refusal(page)
    expect(refused).to_contain_text("target_modules as a regular expression, which is never evaluated here; write the names of the layers")
    expect(refused).to_contain_text("The adapter was not imported")
    expect(page.locator("#import-name input, #import-name textarea").first).to_have_value("wizard")


def test_a_pickle_is_refused_with_the_way_to_convert_it(page: Page, url: str, tmp_path: Path) -> None:
    unfold(page, url)
    folder = Path(pickled(tmp_path / "pickled", "adapter_model.bin"))
    fill(page, "wizard", folder / "adapter_model.bin", folder / "adapter_config.json")
    expect(refusal(page)).to_contain_text("is a pickle, which can run code when it is opened")
    assert not (tmp_path / "ran").exists()


def test_a_zip_is_imported_by_hand_and_speaks(page: Page, url: str, tmp_path: Path) -> None:
    unfold(page, url)
    fill(page, "imported wizard", Path(pack(tmp_path / "wizard.zip", both())))
    page.locator("#import-add").click()
    message = page.locator("#adapter-message").get_by_role("status")
    expect(message).to_contain_text("imported wizard was imported from the file 'wizard.zip'.", timeout=60_000)
    expect(message).to_contain_text("Its files do not prove which base it was trained on")
    expect(page.locator("#adapter-head h3")).to_have_text("imported wizard")
    expect(page.locator("#adapter-facts")).to_contain_text("the file 'wizard.zip'")
    page.get_by_role("button", name="All adapters").click()
    card = page.locator("#adapter-catalog .as-adapter", has_text="imported wizard")
    expect(card).to_contain_text("imported")
    card.click()
    page.locator("#adapter-chat").click()
    ask(page, "Hello")
    expect(page.locator("#chat .as-stamp").last).to_contain_text("imported wizard")
