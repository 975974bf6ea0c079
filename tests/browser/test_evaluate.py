"""The Evaluate tab: a run from its start to its results, seen again after the page was closed, and deleted."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.running import choose, open_tab
from tests.browser.test_datasets import add


def test_voices_are_held_to_rows_and_the_results_stay(page: Page, tiny_url: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(12)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    add(page, tiny_url, path, "sums <b>of</b> it")
    open_tab(page, tiny_url, "Evaluate")
    expect(page.locator("#evaluate-voices")).to_contain_text("Base model")
    choose(page, "evaluate-dataset", "sums <b>of</b> it")
    page.locator("#evaluate-rows input").fill("6")
    expect(page.locator("#evaluate-command textarea")).to_have_value(re.compile("--dataset 'sums <b>of</b> it' --adapter base.* --rows 6$"))
    page.locator("#evaluate-start").click()
    one = page.locator("#evaluate-one")
    expect(one.locator(".as-evaluation .as-about").first).to_contain_text("done", timeout=90_000)
    expect(one.locator(".as-results tbody th").first).to_contain_text("The base alone")  # other tests' adapters may stand below
    assert float(one.locator(".as-results tbody td").first.inner_text()) > 1
    expect(one.locator("h5").first).to_contain_text("What is ")
    one.get_by_role("button", name="More rows").click()
    expect(one).to_contain_text("Rows 6 to 6 of 6")
    page.reload()
    expect(one).to_contain_text("Rows 1 to 5 of 6")
    one.get_by_role("button", name="Delete").click()
    expect(page.locator("#evaluate-message")).to_contain_text("was deleted.")
    expect(one).to_contain_text("No evaluation yet")
