"""A server that is told to end: its job goes back into the queue, its replies break off with a sentence, and it ends well."""

import json
import threading
import time
from pathlib import Path

import httpx

from storage.states import QUEUED
from studio.chat.ticket import CLOSED
from studio.services import Studio
from tests.browser.running import running_app
from tests.conftest import tiny_settings

ASKED = {
    "model": "base",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 480,
    "ignore_eos": True,
    "stream": True,
    "n": 64,
}


def listen(url: str, heard: list[str]) -> None:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=ASKED, timeout=60) as reply:
        for line in reply.iter_lines():
            heard += [line] if line else []


def test_a_server_that_is_told_to_end_gives_its_job_back_and_breaks_off_replies(tmp_path: Path, tiny_base: Path) -> None:
    heard: list[str] = []
    with running_app(tmp_path / "home", STUDIO_BASE=str(tiny_base), STUDIO_QUANTIZATION="fp32") as url:
        other = Studio(tiny_settings(tmp_path / "home"))
        job = other.train("Angry bird", "bird", overrides={"max_steps": 100_000, "quantization": "fp32"})
        while other.queue.get(job.id).progress.get("step", 0) < 2:
            time.sleep(0.1)
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "missing": []}
        assert 'studio_jobs{standing="running"} 1.0' in httpx.get(f"{url}/metrics").text
        listener = threading.Thread(target=listen, args=(url, heard))
        listener.start()
        while len(heard) < 200:  # its answers are under way
            time.sleep(0.05)
        told = time.monotonic()
    print(f"It ended {time.monotonic() - told:.1f} s after it was told to.")  # with status 0, else `running_app` raises
    listener.join()
    assert json.loads(heard[-2].removeprefix("data: "))["error"]["message"] == CLOSED and heard[-1] == "data: [DONE]"
    left = other.queue.get(job.id)
    assert left.state == QUEUED and left.progress["step"] >= 2 and left.losses == 0
    other.close()
