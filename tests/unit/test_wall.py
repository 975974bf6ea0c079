"""The wall: names, origins, sizes, paces and headers, each tried as whoever would get through it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from studio.settings import Settings
from studio.web.wall import BODY_GRACE_S, LEAST_BYTES_PER_S, MAX_BODY, UPLOAD, Paces, Rules, Wall, is_foreign, rules_of

STRANGER = ("203.0.113.7", 5000)


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())), headers={"x-frame": "mine", "referrer-policy": "no-referrer"})


def ask(
    rules: Rules, method: str = "GET", path: str = "/", client: tuple[str, int] = STRANGER, wall: Wall | None = None, **more: Any
) -> httpx.Response:
    app = Starlette(routes=[Route("/{rest:path}", echo, methods=["GET", "POST"])])
    transport = httpx.ASGITransport(wall or Wall(app, rules), client=client)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://studio.test") as http:
            return await http.request(method, path, **more)

    return asyncio.run(send())


def walled(rules: Rules, clock: Clock) -> Wall:
    return Wall(Starlette(routes=[Route("/{rest:path}", echo, methods=["GET", "POST"])]), rules, clock=clock)


@pytest.mark.parametrize(
    ("host", "hosts", "status"),
    [
        ("127.0.0.1:7860", (), 200),
        ("localhost", (), 200),
        ("[::1]:7860", (), 200),
        ("rebound.example", (), 400),  # a name of somebody else's that resolves to this machine
        ("127.0.0.1.example", (), 400),
        ("localhost@evil.example", (), 400),
        ("[broken", ("*.example.org",), 400),
        ("", (), 400),
        ("studio.lan", ("studio.lan",), 200),
        ("STUDIO.lan:80", ("studio.lan",), 200),
        ("a.example.org", ("*.example.org",), 200),
        ("example.org", ("*.example.org",), 400),
        ("evilexample.org", ("*.example.org",), 400),
        ("anything", ("*",), 200),
    ],
)
def test_the_studio_answers_to_its_names_alone(host: str, hosts: tuple[str, ...], status: int) -> None:
    reply = ask(Rules(hosts), headers={"host": host})
    assert reply.status_code == status
    assert host not in reply.text or not host
    assert ("STUDIO_HOSTS" in reply.text) == (status == 400)


@pytest.mark.parametrize(
    ("headers", "hosts", "foreign"),
    [
        ({"host": "studio.lan:7860"}, (), False),
        ({"host": "studio.lan:7860", "origin": "http://studio.lan:7860"}, (), False),
        ({"host": "studio.lan:7860", "origin": "http://studio.lan:9999"}, (), True),
        ({"host": "studio.lan:7860", "origin": "https://elsewhere.example"}, (), True),
        ({"host": "studio.lan:7860", "origin": "https://elsewhere.example"}, ("*",), True),
        ({"host": "studio.lan:7860", "origin": "null"}, (), True),
        ({"host": "studio.lan:7860", "origin": "http://[broken"}, (), True),
        ({"host": "10.0.0.5", "x-forwarded-host": "studio.example", "origin": "https://studio.example"}, (), False),
        ({"host": "127.0.0.1:7860", "origin": "https://studio.example"}, (), True),
        ({"host": "127.0.0.1:7860", "origin": "https://studio.example"}, ("studio.example",), False),
        ({"host": "127.0.0.1:7860", "origin": "http://localhost:3000"}, (), True),
    ],
)
def test_only_the_studios_own_page_is_answered(headers: dict[str, str], hosts: tuple[str, ...], foreign: bool) -> None:
    assert is_foreign(Headers(headers), hosts) is foreign
    assert ask(Rules((*hosts, "*")), "POST", headers=headers).status_code == (403 if foreign else 200)


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


def test_a_body_that_says_or_turns_out_to_be_too_large_is_refused() -> None:
    rules = Rules(("*",), max_upload_bytes=1 << 20)
    assert ask(rules, "POST", content=pieces(MAX_BODY)).text == str(MAX_BODY)
    for content in (b"x" * (MAX_BODY + 1), pieces(MAX_BODY, 1)):
        reply = ask(rules, "POST", content=content)
        assert reply.status_code == 413 and "larger than 16 MB" in reply.text
    assert ask(rules, "POST", UPLOAD, content=pieces(MAX_BODY, 1)).text == str(MAX_BODY + 1)
    assert ask(rules, "POST", UPLOAD, content=pieces(*[MAX_BODY] * 2)).status_code == 413
    assert ask(rules, "POST", headers={"content-length": "-1"}, content=pieces(1)).status_code == 400


def test_a_body_that_comes_too_slowly_is_cut_off() -> None:
    clock = Clock()

    async def drip(bytes_each: int) -> AsyncIterator[bytes]:
        for _ in range(4):
            clock.now += BODY_GRACE_S / 3
            yield b"x" * bytes_each

    wall = walled(Rules(("*",)), clock)
    assert ask(wall.rules, "POST", wall=wall, content=drip(1)).status_code == 408
    assert ask(wall.rules, "POST", wall=wall, content=drip(int(BODY_GRACE_S * LEAST_BYTES_PER_S))).status_code == 200


def test_a_request_without_a_body_may_take_as_long_as_it_likes_and_hears_when_its_client_goes() -> None:
    clock, heard = Clock(), list[str]()

    async def receive() -> Any:
        return {"type": "http.disconnect"} if clock.now > 500 else {"type": "http.request", "body": b"", "more_body": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append((await receive())["type"])
        clock.now += 1000  # a stream of events
        heard.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        heard.append(str(message.get("status")))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")], "client": STRANGER}
    asyncio.run(Wall(app, Rules(), clock=clock)(scope, receive, send))
    assert heard == ["http.request", "http.disconnect", "200"]


def test_an_address_that_asks_too_often_waits_and_others_do_not() -> None:
    clock = Clock()
    wall = walled(Rules(("*",), per_minute=3), clock)
    assert [ask(wall.rules, "POST", wall=wall).status_code for _ in range(4)] == [200, 200, 200, 429]
    reply = ask(wall.rules, "POST", wall=wall)
    assert reply.headers["retry-after"] == "20" and reply.text.endswith("try again in 20 s.")
    assert ask(wall.rules, "GET", wall=wall).status_code == 200
    assert ask(wall.rules, "POST", wall=wall, client=("203.0.113.8", 1)).status_code == 200
    clock.now += 20
    assert [ask(wall.rules, "POST", wall=wall).status_code for _ in range(2)] == [200, 429]


def test_a_subscriber_of_ipv6_is_one_address_and_this_machine_is_none() -> None:
    wall = walled(Rules(("*",), per_minute=1), Clock())
    tried = [("2001:db8::1", 200), ("2001:db8::ffff", 429), ("2001:db8:0:1::1", 200), ("127.0.0.1", 200), ("127.0.0.1", 200)]
    assert [ask(wall.rules, "POST", wall=wall, client=(name, 1)).status_code for name, _ in tried] == [status for _, status in tried]
    forwarded = {"x-forwarded-for": "198.51.100.1"}
    assert [ask(wall.rules, "POST", wall=wall, client=("127.0.0.1", 1), headers=forwarded).status_code for _ in range(2)] == [200, 429]


def test_memory_for_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.web.wall.MAX_BUCKETS", 5)
    paces = Paces(1, Clock())
    assert [paces.wait_s(str(number)) for number in range(100)] == [0] * 100
    assert len(paces._left) == 5 and paces.wait_s("99") > 0 and paces.wait_s("0") == 0


def test_each_answer_says_what_a_browser_may_do_with_it() -> None:
    good, bad = ask(Rules(("*",), frames=("https://huggingface.co",))), ask(Rules())
    for reply in (good, bad):
        assert reply.headers["x-content-type-options"] == "nosniff" and "object-src 'none'" in reply.headers["content-security-policy"]
    assert good.headers["content-security-policy"].endswith("frame-ancestors 'self' https://huggingface.co")
    assert bad.headers["content-security-policy"].endswith("frame-ancestors 'self'")
    assert good.headers["referrer-policy"] == "no-referrer"  # what an address says itself stands


def test_the_settings_decide_whom_the_wall_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert rules_of(Settings()).hosts == () and rules_of(Settings()).frames == ()
    assert rules_of(Settings(share=True)).hosts == ("*.gradio.live",)
    assert rules_of(Settings(host="0.0.0.0")).hosts == ("*",)
    assert rules_of(Settings(host="0.0.0.0", hosts=" A.example ,b.example,")).hosts == ("a.example", "b.example")
    monkeypatch.setenv("SPACE_ID", "user/space")
    assert rules_of(Settings()).hosts == ("*",) and rules_of(Settings()).frames[0] == "https://huggingface.co"


def test_a_websocket_is_held_to_the_same_names() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def connect(host: bytes) -> None:
        scope = {"type": "websocket", "path": "/", "headers": [(b"host", host)], "client": STRANGER}
        await Wall(app, Rules())(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(connect(b"localhost"))
    asyncio.run(connect(b"evil.example"))
    assert sent == ["websocket.accept", "websocket.close"]
