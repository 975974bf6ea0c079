"""One studio with the real starter base and one with a tiny base for all browser tests, and a fresh browser page for each.

They end with these tests: a browser's events run in a loop of the main thread, in which no other test can run one of its own.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.running import NoBrowser, running_app, running_browser

expect.set_options(timeout=30_000)  # two of these tests may run beside each other, and what is never there is waited for once


@pytest.fixture(scope="package")
def app_url(starter_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a studio with a home of its own."""
    named = tmp_path_factory.mktemp("base") / "SmolLM2-135M-Instruct"  # a base is named by its folder
    named.symlink_to(starter_base, target_is_directory=True)
    with running_app(tmp_path_factory.mktemp("home"), STUDIO_BASE=str(named)) as url:
        yield url


@pytest.fixture(scope="package")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the studio on a tiny base."""
    return tmp_path_factory.mktemp("tiny") / "home"


@pytest.fixture(scope="package")
def tiny_url(tiny_home: Path, tiny_base: Path) -> Iterator[str]:
    """The address of a studio on a tiny base, where a training takes seconds."""
    with running_app(tiny_home, STUDIO_BASE=str(tiny_base), STUDIO_QUANTIZATION="fp32") as url:
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    try:
        with running_browser() as browser:
            yield browser
    except NoBrowser as error:
        pytest.fail(str(error))


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of 1280 pixels. Errors that the browser reports fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    found = list(errors)  # leaving a page aborts what it still asked for
    context.close()
    assert not found
