"""The fold about keeping, by hand: it is empty until it opens; room, a backup that is downloaded, a check and a mend."""

import os
import time
import zipfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.running import open_tab


def test_a_backup_is_downloaded_and_what_was_forgotten_is_mended(page: Page, tiny_url: str, tiny_home: Path) -> None:
    forgotten = tiny_home / "datasets" / "forgotten"
    forgotten.mkdir()
    os.utime(forgotten, (time.time() - 7200,) * 2)
    open_tab(page, tiny_url, "Adapters")
    fold = page.locator("#keeping")
    assert fold.locator(".as-room").count() == 0
    fold.get_by_role("button", name="Keeping").click()
    expect(fold.get_by_role("img")).to_have_attribute("aria-label", r := fold.locator("p b").first.inner_text())
    assert "are free on the disk" in r
    expect(fold).to_contain_text("python -m studio restore FILE --into FOLDER")
    with page.expect_download() as download:
        fold.get_by_role("button", name="Make a backup").click()
    with zipfile.ZipFile(download.value.path()) as backup:
        assert {"manifest.json", "database.jsonl"} <= set(backup.namelist())
    expect(fold.get_by_role("status")).to_contain_text("was made")
    fold.get_by_role("button", name="Check quickly").click()
    mend = fold.get_by_role("button", name="Move it into lost/ (1)")
    expect(fold.locator(".as-kept-findings").filter(has_text="Move it")).to_contain_text("datasets/forgotten")
    mend.click()
    expect(fold.get_by_role("status").first).to_contain_text("datasets/forgotten was moved to lost/datasets-forgotten-")
    assert not forgotten.exists() and len(list((tiny_home / "lost").iterdir())) == 1
