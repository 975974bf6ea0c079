"""The HTTP API of app.py itself, behind everything that Gradio puts in front of it, and its section in the page."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from tests.browser.running import ROOT, open_tab, running_app

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
LONG: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 480, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "home"


@pytest.fixture(scope="module")
def tiny_url(tiny_base: Path, home: Path) -> Iterator[str]:
    with running_app(home, STUDIO_BASE=str(tiny_base), STUDIO_QUANTIZATION="fp32", OMP_NUM_THREADS="1") as url:
        yield url


def test_the_official_client_speaks_to_the_app(tiny_url: str) -> None:
    client = OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["base"]
    whole = client.chat.completions.create(model="base", **LONG)
    started = time.perf_counter()
    came, text = [], ""
    for chunk in client.chat.completions.create(model="base", stream=True, **LONG):
        came.append(time.perf_counter() - started)
        text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content
    assert came[2] < came[-1] / 3  # in pieces, not all at the end
    with pytest.raises(openai.NotFoundError, match="no adapter named 'nobody'"):
        client.chat.completions.create(model="nobody", messages=HELLO)


def test_whoever_hangs_up_leaves_room_for_the_next(tiny_url: str) -> None:
    body = {"model": "base", "messages": HELLO, "max_tokens": 480, "ignore_eos": True, "stream": True, "n": 60}
    with httpx.stream("POST", f"{tiny_url}/v1/chat/completions", json=body, timeout=60) as reply:
        next(reply.iter_text())
    client = OpenAI(base_url=f"{tiny_url}/v1", api_key="none", max_retries=0)
    started = time.perf_counter()
    client.chat.completions.create(model="base", messages=HELLO, max_tokens=2)
    soon = time.perf_counter() - started
    started = time.perf_counter()
    client.chat.completions.create(model="base", n=60, **LONG)
    assert soon < (time.perf_counter() - started) / 2  # 60 long answers would have gone first


def test_another_sites_page_cannot_use_the_api(tiny_url: str) -> None:
    body = json.dumps({"model": "base", "messages": HELLO, "max_tokens": 1})
    tries = {403: {"Origin": "https://elsewhere.example"}, 400: {"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}}
    for status, headers in tries.items():
        reply = httpx.post(f"{tiny_url}/v1/chat/completions", content=body, headers={"Content-Type": "text/plain", **headers})
        assert reply.status_code == status


def test_a_key_is_made_in_the_page_shown_once_and_revoked(page: Page, tiny_url: str, home: Path) -> None:
    open_tab(page, tiny_url, "Chat")
    page.locator("#api").get_by_role("button", name="API").click()
    expect(page.locator("#api-how")).to_contain_text(f"curl {tiny_url}/v1/chat/completions -H 'Content-Type")
    page.get_by_label("New key for").fill("<b>my program</b>")
    page.get_by_label("Requests a minute, 0: no limit").fill("30")
    page.locator("#api-make").click()
    fresh = page.locator("#api-fresh").get_by_role("textbox")
    expect(fresh).to_have_value(re.compile("^sk-studio-.{43}$"))
    key = fresh.input_value()
    expect(page.locator("#api-how")).to_contain_text("Bearer $STUDIO_KEY")
    expect(page.locator("#api-keys li")).to_contain_text("<b>my program</b>")
    expect(page.locator("#api-keys li")).to_contain_text("30 requests a minute")
    assert httpx.get(f"{tiny_url}/v1/models").status_code == 401
    assert httpx.get(f"{tiny_url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    later = page.context.new_page()  # a second look; leaving the first would abort what it still asks for
    open_tab(later, tiny_url, "Chat")
    later.locator("#api").get_by_role("button", name="API").click()
    expect(later.locator("#api-how")).to_contain_text("Bearer $STUDIO_KEY")
    expect(later.locator("#api-keys li")).to_contain_text("just now")
    assert key not in later.content()
    later.get_by_role("button", name="Revoke: <b>my program</b>").click()
    expect(later.locator("#api-keys")).to_contain_text("1 revoked")
    assert httpx.get(f"{tiny_url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    made = subprocess.run(
        [sys.executable, "-m", "studio", "key", "add", "b", "--json"], cwd=ROOT, env=_env(home), capture_output=True, check=True
    )
    other = json.loads(made.stdout)["key"]  # a key that the command line makes counts at once
    assert httpx.get(f"{tiny_url}/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def _env(home: Path) -> dict[str, str]:
    return {**os.environ, "STUDIO_HOME": str(home)}
