"""Build the page and serve it until it is told to stop."""

import contextlib
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from studio import __version__, logs
from studio.api.access import Access
from studio.api.keys import Keys
from studio.errors import StudioError
from studio.ui import keeping, present, show_api
from studio.ui.adapters.sight import Sight
from studio.ui.curve import Curves
from studio.ui.page import ADAPTERS, CHAT, DATASETS, EVALUATE, QUIET, TABS, TRAIN, WATCH, Page, html, kept, voices
from studio.ui.tabs import adapters, chat, datasets, evaluate, train
from studio.ui.theme import CSS, HEAD, make_theme
from studio.web.measures import Measures
from studio.web.wall import Wall, rules_of

if TYPE_CHECKING:
    from studio.services import Studio
    from studio.settings import Settings

KEEP_FILES_S = 24 * 3600
FRESH_S = 0.4
STOP_S = 5.0  # whoever ends a server, such as a container's or a Space's keeper, kills it soon after
# Gradio looks a thousand times a second for events that wait, and a hundred times for progress, of which nothing here speaks.
QUEUE_POLL_S, PROGRESS_POLL_S = 0.02, 1.0
LINKED = "yes"  # the link that opened the page was followed
MOST_VIEW = 300  # characters of a link's ids


def serve(settings: "Settings") -> None:
    """Open the studio's page and stay until SIGTERM or SIGINT; a running job goes back into the queue.

    Raises:
        StudioError: the address cannot be listened on, or the base cannot be had.
    """
    from studio.api.routes import routes
    from studio.services import Studio

    check_address(settings.host, settings.port)
    logs.set_up(settings)
    exit_on_signals()
    studio = Studio(settings)
    try:
        studio.open_chat(studio.ensure_base(say), say)
        if settings.worker:
            studio.worker.start()
        demo = build_page(studio)
        try:
            access = _door(studio)
            launch(demo, settings, Changes(studio.watching.mark), Measures(studio, access), routes(studio, access))
            threading.Event().wait()
        finally:
            studio.stop()  # first, so that the server does not wait for replies that are being written
            demo.close(verbose=False)
    finally:
        studio.close()


def build_page(studio: "Studio") -> gr.Blocks:
    """Lay everything out, then bind the events."""
    with gr.Blocks(title="Adapter Studio", analytics_enabled=False, fill_width=True, delete_cache=(KEEP_FILES_S, KEEP_FILES_S)) as demo:
        html(present.brand(), elem_id="brand")
        states: dict[str, Any] = {name: kept(name) for name in ("linked", "trying", "view", "chosen", "more", "copying", "talk", "leaf")}
        status, link = html(elem_id="status"), html(elem_id="link-message")
        with gr.Tabs(elem_id="tabs") as tabs:
            built = (datasets.build(), train.build(studio.gpus() > 1), adapters.build(), evaluate.build(), chat.build())
            with built[-1].tab:
                api = show_api.build()
            with built[2].listed:
                kept_fold = keeping.build()
        states["pulse"] = html(js_on_load=WATCH, elem_id="pulse")
        page = Page(demo, tabs, status=status, link=link, curves=Curves(studio.queue.events), **_named(built), **states)
        for tab in (datasets, train, adapters, evaluate, chat):
            tab.wire(page, studio)
        show_api.wire(api, _door(studio))
        keeping.wire(kept_fold, studio, _door(studio))
        wire(page, studio)
    return demo


def _door(studio: "Studio") -> Access:
    keys = Keys(studio.api_keys, secret=studio.settings.api_key.get_secret_value())
    return Access(keys, studio.settings.host, studio.settings.share)


def _named(built: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(TABS, built, strict=True))


class _Events:
    """What belongs to no tab: the status line, the pulse, and links into the page."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio

    def tick(self) -> str:
        """The status line."""
        return present.status_line(self.studio.status())

    def follow_link(self, request: gr.Request) -> tuple[Any, ...]:
        """`?tab=NAME` opens a tab, with `job=ID` a training, with `talk=ID` a conversation; `?adapter=NAME` opens Chat on an adapter.

        With `tab=adapters`, `adapter=ID` opens its page, and `find` is what is looked for (see `Sight`).
        """
        asked = request.query_params
        name, tab = asked.get("adapter"), asked.get("tab")
        talk = asked.get("talk", "")[:MOST_VIEW]
        sight = Sight.read(asked.get("find", ""))
        found = (name or "")[:MOST_VIEW] if tab == ADAPTERS else "", str(sight), sight.text
        if name is None or tab in (DATASETS, TRAIN, ADAPTERS, EVALUATE):
            opened = gr.Tabs(selected=tab) if tab in TABS else gr.skip()
            return opened, gr.skip(), gr.skip(), LINKED, asked.get("job", "")[:MOST_VIEW], talk, *found
        try:
            record = self.studio.speakers.get(name)
        except StudioError as error:
            return gr.Tabs(selected=CHAT), gr.skip(), present.error_card(error, "There is no such adapter"), LINKED, "", talk, *found
        choices = gr.Dropdown(choices=voices(self.studio, record.id), value=record.id)
        return gr.Tabs(selected=CHAT), choices, "", LINKED, "", talk, *found


def wire(page: Page, studio: "Studio") -> None:
    """Bind the events that belong to no tab."""
    events = _Events(studio)
    tick: dict[str, Any] = {"fn": events.tick, "inputs": None, "outputs": page.status, **QUIET}
    for tab in (page.datasets.tab, page.train.tab, page.adapters.tab, page.evaluate.tab, page.chat.tab):
        tab.select(**tick)
    page.pulse.act(**tick)
    page.leaf.change(**tick)  # the first reply loads the base
    found = [page.adapters.chosen, page.adapters.sought, page.adapters.search]
    linked = [page.tabs, page.chat.adapter, page.link, page.linked, page.view, page.talk, *found]
    page.demo.load(events.follow_link, None, linked, **QUIET)
    page.demo.load(**tick)


class Changes:
    """Answers each page's question whether anything changed; many pages ask the database once.

    Args:
        mark: a text that is another one after a change.
    """

    def __init__(self, mark: Callable[[], str]) -> None:
        self._mark, self._lock = mark, threading.Lock()
        self._text, self._until = "", 0.0

    def answer(self, request: Request) -> PlainTextResponse:  # noqa: ARG002
        """The mark of now, or of up to half a second ago."""
        with self._lock:
            if time.monotonic() > self._until:
                self._text, self._until = self._mark(), time.monotonic() + FRESH_S
            return PlainTextResponse(self._text, headers={"cache-control": "no-store"})


def launch(demo: gr.Blocks, settings: "Settings", changes: Changes, measures: Measures, more: Sequence[Route] = ()) -> None:
    """Listen, and say where.

    Args:
        changes: what pages ask every second. measures: what the server's keeper asks. more: routes beside the page's.

    Raises:
        StudioError: the server did not start.
    """
    demo.queue(api_open=False, default_concurrency_limit=16)
    demo._queue.sleep_when_free = QUEUE_POLL_S
    demo._queue.progress_update_sleep_when_free = PROGRESS_POLL_S
    said = io.StringIO()  # Gradio prints why it has no public link, and goes on
    try:
        with contextlib.redirect_stdout(said):
            _, local_url, public_url = demo.launch(
                server_name=settings.host,
                server_port=settings.port,
                share=settings.share,
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                max_file_size=settings.max_upload_bytes,
                allowed_paths=[str(settings.home / "exports")],
                app_kwargs={
                    "routes": [Route("/healthz", health), Route("/changes", changes.answer), *measures.routes(), *more],
                    "middleware": [Middleware(Wall, rules=rules_of(settings), seen=measures.answered)],
                },
                theme=make_theme(),
                css=CSS,
                head=HEAD,
            )
    except (OSError, ValueError) as error:
        raise StudioError(f"The page could not be opened on {settings.host}:{settings.port}: {error}.") from None
    announce(local_url, public_url, settings.share, said.getvalue())


def announce(local_url: str, public_url: str | None, wanted_public: bool, gradio_said: str) -> None:
    """Print where the studio is."""
    local = local_url.rstrip("/")
    if public_url:
        say(f"Public link: {public_url}")
    elif wanted_public:
        reason = " ".join(gradio_said.split()).partition(" This can happen")[0].rstrip(".") or "Gradio gave no reason"
        say(f"No public link could be had ({reason}); the studio runs on {local}")
        return
    say(f"The studio runs on {local}")


async def health(request: Request) -> JSONResponse:  # noqa: ARG001
    """Answers as soon as the page is served."""
    return JSONResponse({"status": "ok", "version": __version__})


def check_address(host: str, port: int) -> None:
    """Find out before anything is loaded whether the page can be served there.

    Raises:
        StudioError: another program listens there, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name != "nt":  # there it would let two programs share a port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        why = error.strerror or str(error)
        raise StudioError(f"The page cannot be served on {host}:{port} ({why}); choose another with STUDIO_PORT or STUDIO_HOST.") from None


def exit_on_signals() -> None:
    """Let SIGTERM and SIGINT leave the program through its `finally` blocks, at whatever point it is."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        leave_within(STOP_S)
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def leave_within(seconds: float) -> None:
    """End the program at the latest then, whatever is not done, such as the loading of a base: jobs were given back first, and one
    that could not be is found by the next worker."""
    last = threading.Timer(seconds, os._exit, (0,))
    last.daemon = True
    last.start()


def say(text: str) -> None:
    """Progress and addresses, for whoever started the program."""
    print(text, flush=True)  # noqa: T201
