"""Take screenshots of the page: every tab, light and dark, wide and narrow; with --readme the picture of the README.

    python scripts/screenshots.py [--url URL | --home FOLDER] [--out FOLDER] [--readme]

Without --url it starts the studio itself, on --home (STUDIO_HOME where left out). The README's picture shows the
base and an adapter in a real conversation; where there is no adapter yet, the angry bird is trained first.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Page  # noqa: E402

from tests.browser.running import REPLY_MS, choose, open_tab, running_app, running_browser  # noqa: E402

TABS = ("Datasets", "Train", "Adapters", "Evaluate", "Chat")
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
README_PROMPT = "What should I cook tonight?"
SETTLE_MS = 1500
TRAIN_MS = 1_800_000
REPORT_MS = 120_000


def take_all(browser: Browser, url: str, out: Path) -> None:
    """Every tab in both themes and both widths, as whole pages."""
    for size, (width, height) in SIZES.items():
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height})
            for name in TABS:
                open_tab(page, url, name, theme)
                if name == "Datasets":
                    take_datasets(page, out, f"{size}-{theme}")
                page.wait_for_timeout(SETTLE_MS)
                path = out / f"{name.lower()}-{size}-{theme}.png"
                page.screenshot(path=path, full_page=True)
                print(path)
            page.close()


def take_datasets(page: Page, out: Path, kind: str) -> None:
    """The views of the Datasets tab but the report, which is left open."""
    page.locator("#dataset-library .as-row").first.wait_for()
    page.screenshot(path=out / f"datasets-add-{kind}.png", full_page=True)
    page.locator("#dataset-library .as-row").first.click()
    page.locator("#dataset-view").get_by_text("Loss mask").click()
    page.locator("#dataset-preview .as-tokens").first.wait_for()
    page.screenshot(path=out / f"datasets-mask-{kind}.png", full_page=True)
    for view in ("Change", "Versions"):
        page.locator("#dataset-views").get_by_role("tab", name=view).click()
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=out / f"datasets-{view.lower()}-{kind}.png", full_page=True)
    page.locator("#dataset-views").get_by_role("tab", name="Report").click()
    page.locator("#dataset-report-start").click()
    page.locator("#dataset-report .as-report").wait_for(timeout=REPORT_MS)


def take_readme(browser: Browser, url: str) -> None:
    """The Chat tab: the base and an adapter answer the same question."""
    page = browser.new_page(viewport={"width": 1280, "height": 858}, device_scale_factor=1.5)
    name = first_adapter(page, url)
    open_tab(page, url, "Chat")
    page.locator("#chat-more").get_by_role("button", name="More").click()
    for box, value in {"#chat-length input[type=number]": "96", "#chat-seed :is(input, textarea)": "5"}.items():
        page.locator(box).fill(value)
        page.locator(box).press("Tab")
    page.locator("#chat-more").get_by_role("button", name="More").click()
    choose(page, "chat-adapter", name)
    page.get_by_label("Compare side by side").check()
    page.locator("#chat-prompt textarea").fill(README_PROMPT)
    page.locator("#chat-send").click()
    page.get_by_role("button", name="Skip the vote").click(timeout=REPLY_MS)
    page.mouse.move(0, 0)
    page.wait_for_timeout(SETTLE_MS)
    path = ROOT / "docs" / "images" / "studio.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    print(path)
    page.close()


def first_adapter(page: Page, url: str) -> str:
    """The newest adapter's name; trains the angry bird through the page where there is none."""
    open_tab(page, url, "Adapters")
    page.wait_for_timeout(SETTLE_MS)
    names = page.locator("#adapter-catalog .as-adapter-name")
    if names.count():
        return names.first.inner_text()
    open_tab(page, url, "Train")
    page.locator("#try-it-button").click()
    page.locator("#chat-adapter").wait_for(timeout=TRAIN_MS)  # the chat opens by itself
    return page.locator("#chat-adapter input").input_value()


@contextlib.contextmanager
def address(url: str, home: Path) -> Iterator[str]:
    """The given studio, or one that runs for the pictures."""
    if url:
        yield url.rstrip("/")
    else:
        with running_app(home.absolute()) as started:
            yield started


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="a studio that runs already")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("STUDIO_HOME", "var")), help="home of the studio to start")
    parser.add_argument("--out", type=Path, default=Path("screenshots"), help="folder of the pictures")
    parser.add_argument("--readme", action="store_true", help="take docs/images/studio.png alone")
    arguments = parser.parse_args()
    with address(arguments.url, arguments.home) as url, running_browser() as browser:
        if arguments.readme:
            take_readme(browser, url)
        else:
            arguments.out.mkdir(parents=True, exist_ok=True)
            take_all(browser, url, arguments.out)


if __name__ == "__main__":
    main()
