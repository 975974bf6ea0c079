"""What app.py does at the door: health, whose pages it answers, a port that is taken, and how it stops."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from studio.training.config import GROUPS
from tests.browser.running import ROOT, choose, open_options, open_tab


def test_health_is_said_beside_the_page(app_url: str) -> None:
    with urllib.request.urlopen(f"{app_url}/healthz") as answer:
        assert json.load(answer)["status"] == "ok"


def test_another_sites_page_gets_nothing(app_url: str) -> None:
    request = urllib.request.Request(f"{app_url}/config", headers={"Origin": "https://elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_files_outside_the_exports_are_not_served(app_url: str) -> None:
    for path in (ROOT / "pyproject.toml", Path("/etc/passwd")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{app_url}/gradio_api/file={path}")


def test_no_event_can_be_called_beside_the_queue(app_url: str) -> None:
    with urllib.request.urlopen(f"{app_url}/gradio_api/info") as answer:
        assert json.load(answer)["named_endpoints"] == {}


def test_an_address_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        started = {host: start_on(tmp_path / host, host, port) for host in ("127.0.0.1", "203.0.113.7")}  # at the same time
        for host, process in started.items():
            out, err = process.communicate(timeout=120)
            assert process.returncode == 2 and out == ""
            assert err.startswith(f"The page cannot be served on {host}:{port} (") and len(err.splitlines()) == 1


def start_on(home: Path, host: str, port: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "STUDIO_HOME": str(home), "STUDIO_HOST": host, "STUDIO_PORT": port}
    return subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_sweep_is_started_from_the_form_and_its_outcome_is_drawn(page: Page, tiny_url: str) -> None:
    open_tab(page, tiny_url, "Train")
    expect(page.locator("#train-memory")).to_contain_text(re.compile(r"Needs about [\d.]+ GB .*; [\d.]+ GB are free"))
    choose(page, "train-dataset", "Angry bird")
    open_options(page, *GROUPS, "Several at once")
    choose(page, "train-method", "prefix")
    expect(page.locator("#train-virtual-tokens")).to_be_visible()
    expect(page.locator("#train-rank")).to_be_hidden()
    choose(page, "train-method", "lora")
    expect(page.locator("#train-rank")).to_be_visible()
    page.locator("#train-max-steps input").fill("3")
    choose(page, "train-quantization", "fp32")
    page.locator("#train-name input, #train-name textarea").fill("Gull")
    sweep = page.locator("#train-sweep input, #train-sweep textarea")
    sweep.fill("seed=0,zero")
    page.locator("#train-start").click()
    expect(page.locator("#train-message").get_by_role("alert")).to_contain_text("The option seed is 'zero'")
    sweep.fill("seed=0,1")
    expect(page.locator("#train-command textarea")).to_have_value(re.compile(r"--sweep seed=0,1$"))
    expect(page.locator("#train-memory")).to_contain_text("2 trainings, one after another.")
    page.locator("#train-start").click()
    expect(page.locator("#train-message")).to_contain_text("2 trainings of Gull are in the queue, to be compared.")
    table = page.locator("#train-history").get_by_role("region", name="Comparison of Gull")
    expect(table.locator("tr")).to_have_count(3, timeout=120_000)
    expect(table.locator(".as-best")).to_contain_text(re.compile(r"done.*best"))
    table.get_by_role("button", name="Look: Gull seed=1").press("Enter")
    for figure in ("Loss by step", "Learning rate by step", "Gradient norm by step", "Speed by step", "Memory by step"):
        expect(page.locator("#job-live").get_by_role("img", name=figure)).to_be_visible()
    expect(page.locator("#job-live .as-measures")).to_contain_text(re.compile(r"held-out loss.*perplexity.*tokens predicted right"))
    page.get_by_role("button", name="All trainings").click()
    page.get_by_role("button", name="Compare curves: Gull").click()
    expect(page.locator("#job-head .as-differ")).to_contain_text(re.compile(r"seed\s*0\s*1"))
