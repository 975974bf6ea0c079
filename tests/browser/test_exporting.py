"""An adapter leaves by hand in another format, and shows what it does to each layer."""

import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.running import open_tab
from tests.hostile_adapters import both, pack


@pytest.fixture
def url(tiny_url: str) -> str:
    return tiny_url


def test_a_merged_model_is_downloaded_and_the_xray_has_a_cell_for_each_layer(page: Page, url: str, tmp_path: Path) -> None:
    open_tab(page, url, "Adapters")
    page.get_by_role("button", name="Import an adapter").click()
    page.locator("#import-file input[type=file]").set_input_files(pack(tmp_path / "bird.zip", both()))
    expect(page.locator("#import-file")).to_contain_text("bird")
    page.locator("#import-name input, #import-name textarea").first.fill("bird that leaves")
    page.locator("#import-add").click()
    expect(page.locator("#adapter-head h3")).to_have_text("bird that leaves", timeout=60_000)
    page.locator("#adapter-format input").click()
    page.get_by_role("option", name="GGUF, merged").click()
    with page.expect_download(timeout=60_000) as waited:
        page.locator("#adapter-download").click()
    expect(page.locator("#adapter-export-message").get_by_role("status")).to_contain_text(
        "-gguf-merged.zip was made; llama.cpp and Ollama load"
    )
    with zipfile.ZipFile(waited.value.path()) as archive:
        assert {"model.gguf", "Modelfile", "README.md"} == set(archive.namelist())
        assert archive.read("model.gguf")[:4] == b"GGUF"
    expect(page.locator("#adapter-export-stop")).to_be_hidden()
    page.get_by_role("button", name="X-ray: what it does to each layer").click()
    shown = page.locator("#adapter-xray-shown")
    expect(shown.get_by_role("img")).to_have_attribute("aria-label", "How much bird that leaves changes each layer: 1 block by 2 modules")
    expect(shown.locator("svg rect title").first).to_contain_text("of ‖W‖")
    expect(shown).to_contain_text("directions carry 95%")
