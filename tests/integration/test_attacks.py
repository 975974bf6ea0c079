"""Attacks on a running studio over plain HTTP, each as somebody would try it; what is refused must leave nothing behind.

STUDIO_SOAK=1 calls every event with nonsense, not one in ten: `make soak`.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from tests.browser.running import ROOT, running_app

SOAK = bool(os.environ.get("STUDIO_SOAK"))
SECRET = "what only this machine's owner may read"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked") / "home"


@pytest.fixture(scope="module")
def url(home: Path, tiny_base: Path) -> Iterator[str]:
    settings = {"STUDIO_QUANTIZATION": "fp32", "STUDIO_WORKER": "0", "STUDIO_MAX_UPLOAD_BYTES": str(1 << 20)}
    with running_app(home, STUDIO_BASE=str(tiny_base), **settings) as url:
        yield url


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the machine that is no business of the studio's."""
    path = tmp_path_factory.mktemp("outside") / "secret.csv"
    path.write_text(f"prompt,completion\n{SECRET},{SECRET}\n", encoding="utf-8")
    return path


def config(url: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/config").json())


def call(url: str, event: int, data: list[Any], **more: Any) -> str:
    """What Gradio's queue answers to a call of an event by its number, all of it."""
    session = uuid.uuid4().hex
    body = {"fn_index": event, "data": data, "session_hash": session, "event_data": None, "trigger_id": None}
    asked = httpx.post(f"{url}/gradio_api/queue/join", json=body, timeout=60, **more)
    if asked.status_code != 200:
        return asked.text
    said = ""
    with httpx.stream("GET", f"{url}/gradio_api/queue/data", params={"session_hash": session}, timeout=60) as answer:
        for line in answer.iter_lines():
            said += line
            if '"process_completed"' in line or '"close_stream"' in line:
                return said
    return said


def file_inputs(found: dict[str, Any]) -> dict[int, int]:
    """Which input of which event is a file."""
    files = {component["id"] for component in found["components"] if component["type"] in ("file", "uploadbutton")}
    return {event["id"]: place for event in found["dependencies"] for place, one in enumerate(event["inputs"]) if one in files}


def test_a_file_that_was_never_uploaded_is_not_read(url: str, outside: Path) -> None:
    found = config(url)
    events = file_inputs(found)
    assert len(events) >= 2
    for event, place in events.items():
        inputs = next(one["inputs"] for one in found["dependencies"] if one["id"] == event)
        for forged in (
            {"path": str(outside), "meta": {"_type": "gradio.FileData"}},
            {"path": f"/tmp/../{outside}", "url": f"file://{outside}"},
        ):
            data: list[Any] = [None] * len(inputs)
            data[place] = [{**forged, "orig_name": "secret.csv", "size": 9}]
            said = call(url, event, data)
            assert SECRET not in said
            assert '"success":true' not in said.replace(" ", ""), (event, said)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={outside}",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file={home}/studio.db",
        "/gradio_api/file={home}/exports/../studio.db",
        "/gradio_api/file={home}/exports/%2e%2e/studio.db",
        "/gradio_api/file={home}/exports/..%2fstudio.db",
        "/gradio_api/file=../../../../{outside}",
        "/gradio_api/file=file://{outside}",
        "/gradio_api/file={root}/studio/settings.py",
        "/file={outside}",
        "/static/../../../../../../{outside}",
        "/static/%2e%2e/%2e%2e/%2e%2e/app.py",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:{port}/healthz",
        "/gradio_api/file=http://127.0.0.1:{port}/healthz",
        "/gradio_api/stream/..%2f..%2fstudio.db",
    ],
)
def test_no_path_leads_to_a_file_or_a_server_that_is_not_the_pages(url: str, home: Path, outside: Path, path: str) -> None:
    target = urlsplit(url)
    filled = path.format(outside=quote(str(outside)), home=quote(str(home)), root=quote(str(ROOT)), port=target.port)
    with socket.create_connection((str(target.hostname), int(target.port or 0)), timeout=20) as raw:  # a client would tidy the path up
        raw.sendall(f"GET {filled} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        said = b""
        while piece := raw.recv(65536):
            said += piece
    status = int(said.split(b" ", 2)[1])
    assert 400 <= status < 500, said[:300]
    assert SECRET.encode() not in said and b"root:" not in said and b"SQLite format" not in said and b'"status":"ok"' not in said


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"host": "evil.example"}, 400),
        ({"host": "evil.example", "origin": "http://evil.example"}, 400),
        ({"host": "evil.example", "x-forwarded-host": "127.0.0.1"}, 400),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload"), ("GET", "/config"), ("POST", "/v1/chat/completions")],
)
def test_another_sites_page_and_a_borrowed_name_get_nothing(url: str, headers: dict[str, str], status: int, method: str, path: str) -> None:
    reply = httpx.request(method, f"{url}{path}", headers=headers, content=b"{}" if method == "POST" else None)
    assert reply.status_code == status


def test_bodies_that_are_too_large_are_refused_before_they_are_kept(url: str, home: Path) -> None:
    before = size_of(home)
    whole = httpx.post(f"{url}/gradio_api/upload", files={"files": ("big.csv", b"x" * (3 << 20))})
    assert whole.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 20)

    try:
        cut = httpx.post(f"{url}/gradio_api/queue/join", content=endless(), headers={"content-type": "application/json"}, timeout=60)
        assert cut.status_code == 413
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        pass  # the server hung up while more came, which it may
    assert size_of(home) - before < 1 << 20
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_body_that_never_comes_holds_up_nobody(url: str) -> None:
    target = urlsplit(url)
    opened = []
    for _ in range(50):
        raw = socket.create_connection((str(target.hostname), int(target.port or 0)), timeout=60)
        raw.sendall(
            b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
        opened.append(raw)
    began = time.monotonic()
    assert httpx.get(f"{url}/healthz", timeout=10).status_code == 200
    said = [raw.recv(4096) for raw in opened]
    assert all(b" 408 " in one.split(b"\r\n")[0] for one in said) and time.monotonic() - began > 10
    for raw in opened:
        raw.close()


def test_a_call_that_makes_no_sense_is_no_traceback_and_harms_nobody(url: str) -> None:
    found = config(url)["dependencies"]
    tried = found if SOAK else found[::10]
    nonsense: list[Any] = ["<script>alert(1)</script>", {"path": "/etc/passwd"}, [["a"]], -1, "\x00", "' OR 1=1 --", "../../etc"]

    def try_one(event: dict[str, Any]) -> str:
        return call(url, event["id"], [nonsense[event["id"] % len(nonsense)]] * len(event["inputs"]))

    with ThreadPoolExecutor(8) as pool:
        for event, said in zip(tried, pool.map(try_one, tried), strict=True):
            assert said and "Traceback" not in said and "root:" not in said, (event["id"], said[:500])
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "missing": []}
    assert json.loads(httpx.get(f"{url}/v1/models").text)["object"] == "list"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
