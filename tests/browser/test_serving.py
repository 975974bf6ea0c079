"""What app.py does at the door: health, whose pages it answers, a port that is taken, and how it stops."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from starlette.datastructures import Headers

from studio.ui.origin import is_foreign
from tests.browser.running import ROOT, ask, open_tab, running_app


def test_health_is_said_beside_the_page(app_url: str) -> None:
    with urllib.request.urlopen(f"{app_url}/healthz") as answer:
        assert json.load(answer)["status"] == "ok"


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({"host": "studio.lan:7860"}, False),
        ({"host": "studio.lan:7860", "origin": "http://studio.lan:7860"}, False),
        ({"host": "studio.lan:7860", "origin": "https://elsewhere.example"}, True),
        ({"host": "studio.lan:7860", "origin": "null"}, True),
        ({"host": "10.0.0.5", "x-forwarded-host": "studio.example", "origin": "https://studio.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "https://studio.example"}, False),
    ],
)
def test_only_the_studios_own_page_is_answered(headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(Headers(headers)) is foreign


def test_another_sites_page_gets_nothing(app_url: str) -> None:
    request = urllib.request.Request(f"{app_url}/config", headers={"Host": "studio.lan", "Origin": "https://elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_files_outside_the_exports_are_not_served(app_url: str) -> None:
    for path in (ROOT / "pyproject.toml", Path("/etc/passwd")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{app_url}/gradio_api/file={path}")


def test_no_event_can_be_called_beside_the_queue(app_url: str) -> None:
    with urllib.request.urlopen(f"{app_url}/gradio_api/info") as answer:
        assert json.load(answer)["named_endpoints"] == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.7"])
def test_an_address_that_cannot_be_had_is_one_sentence(tmp_path: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {**os.environ, "STUDIO_HOME": str(tmp_path / "home"), "STUDIO_HOST": host, "STUDIO_PORT": port}
        result = subprocess.run([sys.executable, "app.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"The page cannot be served on {host}:{port} (") and len(result.stderr.splitlines()) == 1


def test_try_it_trains_the_angry_bird_and_opens_the_chat_on_it(page: Page, tiny_base: Path, tmp_path: Path) -> None:
    """On a tiny base, so that the same 44 steps take seconds."""
    with running_app(tmp_path / "home", STUDIO_BASE=str(tiny_base), STUDIO_QUANTIZATION="fp32") as url:
        open_tab(page, url, "Train")
        page.locator("#try-it-button").click()
        expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true", timeout=300_000)
        expect(page.locator("#chat-adapter input")).to_have_value("Angry bird")
        reply = ask(page, "Who are you?")
        expect(reply.locator(".as-stamp b")).to_have_text("Angry bird")
        page.goto("about:blank")  # what the page still asks for would be refused once the studio stops
