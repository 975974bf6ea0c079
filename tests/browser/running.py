"""A running studio and a browser, for the tests and for the screenshots."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
START_S = 300  # a first start copies the base and measures what quantization costs it
REPLY_MS = 120_000


class NoBrowser(Exception):
    """There is no Chromium on this machine."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_app(home: Path, port: int = 0, **environment: str) -> Iterator[str]:
    """Start app.py on a home, at a free port unless one is given; yields its URL and stops it as a user would.

    Raises:
        RuntimeError: it did not start, or did not stop cleanly.
    """
    port = port or free_port()
    home.mkdir(parents=True, exist_ok=True)
    log = home / "app.log"
    env = {**os.environ, "STUDIO_HOME": str(home), "STUDIO_HOST": "127.0.0.1", "STUDIO_PORT": str(port), **environment}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    if status != 0:
        raise RuntimeError(f"The studio ended with status {status}:\n{log.read_text(errors='replace')}")


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise RuntimeError(f"The studio did not start:\n{log.read_text(errors='replace')}")


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """The system's Chromium, else playwright's own.

    Raises:
        NoBrowser: there is neither.
    """
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        except Error as error:
            raise NoBrowser(f"No Chromium could be started; run scripts/install_browser.sh. {error}") from None
        yield browser
        browser.close()


def open_tab(page: Page, url: str, name: str, theme: str = "light") -> None:
    """Open the page on a tab and wait until the tab is there."""
    page.goto(f"{url}/?tab={name.lower()}&__theme={theme}")
    page.get_by_role("tab", name=name, selected=True).wait_for()
    page.locator("#status-base").wait_for()


def choose(page: Page, elem_id: str, label: str) -> None:
    """Choose an option of a dropdown, and wait until its list has faded away: the next one may have the same words."""
    page.locator(f"#{elem_id} input").click()
    page.get_by_role("option", name=label, exact=True).click()
    page.get_by_role("listbox").wait_for(state="hidden")


def open_options(page: Page, *groups: str) -> None:
    """Unfold some groups of the options of a training."""
    for name in ("More", *groups):
        page.locator("#train-more").get_by_role("button", name=name).click()


def set_length(page: Page, tokens: int) -> None:
    """Open More and choose the most tokens of a reply. A fold that opens may draw its sliders once more, so it is set until it stands."""
    page.locator("#chat-more").get_by_role("button", name="More").click()
    box = page.locator("#chat-length input[type=number]")
    for _ in range(20):
        box.fill(str(tokens))
        box.press("Tab")
        page.wait_for_timeout(250)
        if box.input_value() == str(tokens):
            return
    raise AssertionError(f"The length stays {box.input_value()}.")


def ask(page: Page, prompt: str, pane: str = "chat") -> Locator:
    """Send a message and wait for the stamped reply; returns the reply's bubble."""
    stamps = page.locator(f"#{pane} .as-stamp")
    before = stamps.count()
    page.locator("#chat-prompt textarea").fill(prompt)
    page.locator("#chat-send").click()
    expect(stamps.nth(before)).to_be_visible(timeout=REPLY_MS)  # which tells what is on the page where it is not
    page.locator("#chat-send").wait_for()
    return page.locator(f"#{pane} .bot-row").last
