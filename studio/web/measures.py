"""What a server's keeper asks it: is it ready, and what does it do. `/readyz` for whoever sends visitors, `/metrics` for Prometheus."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from studio.api.access import Access
from studio.api.errors import Refusal
from studio.errors import DatabaseUnavailable, NotFound

if TYPE_CHECKING:
    from studio.chat.ticket import Ticket
    from studio.services import Studio

FIRST_TOKEN_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # a chat feels quick up to half a second


class Measures:
    """The figures of one server. What is counted begins at its start; how many there are of something is asked when it is read.

    Args:
        studio: whose figures. access: who may read them: whoever may use the API.
    """

    def __init__(self, studio: "Studio", access: Access) -> None:
        self._studio, self._access = studio, access
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(_Standing(studio))
        self._requests = Counter("studio_http_requests", "Requests by method and status.", ("method", "status"), registry=registry)
        self._replies = Counter("studio_chat_replies", "Replies by what ended them.", ("reason",), registry=registry)
        self._tokens = Counter("studio_chat_tokens", "Tokens that the chat wrote.", registry=registry)
        self._read = Counter("studio_chat_prompt_tokens", "Tokens of prompts, reused ones too.", registry=registry)
        self._reused = Counter("studio_chat_reused_tokens", "Tokens of prompts that were known from an earlier turn.", registry=registry)
        self._first = Histogram(
            "studio_chat_first_token_seconds", "From a request to its first token.", buckets=FIRST_TOKEN_S, registry=registry
        )
        studio.chat.watch = self.replied

    def answered(self, method: str, status: int) -> None:
        """An HTTP request was answered. Methods that nobody knows are one: a stranger chooses them."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "OTHER"
        self._requests.labels(known, str(status)).inc()

    def replied(self, ticket: "Ticket") -> None:
        """A request of the chat is over."""
        done = ticket.finished
        self._replies.labels(done.reason if done else "failed").inc()
        if done is None:
            return
        self._tokens.inc(done.tokens)
        self._read.inc(done.prompt_tokens)
        self._reused.inc(done.reused_tokens)
        if done.tokens:
            self._first.observe(done.ttft_ms / 1000)

    def routes(self) -> list[Route]:
        """What is added to a server's routes."""
        return [Route("/readyz", self._ready), Route("/metrics", self._metrics)]

    async def _ready(self, request: Request) -> Response:  # noqa: ARG002
        """Whether visitors can be sent here; what is missing is told in words that say nothing of what is kept."""
        missing = await run_in_threadpool(self._missing)
        status = "not ready" if missing else "ready"
        return JSONResponse({"status": status, "missing": missing}, 503 if missing else 200, {"cache-control": "no-store"})

    def _missing(self) -> list[str]:
        studio = self._studio
        try:
            studio.watching.tally()
        except DatabaseUnavailable:
            return ["The database does not answer."]
        missing = []
        try:
            studio.default_base()
        except NotFound:
            missing.append("The base model is not here yet.")
        if studio.settings.worker and not studio.worker.is_working:
            missing.append("The worker of the queue does not run.")
        return missing

    async def _metrics(self, request: Request) -> Response:
        try:
            await run_in_threadpool(self._access.check, request)
        except Refusal as refused:
            return refused.response
        text = await run_in_threadpool(generate_latest, self._registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


class _Standing:
    """What stands now: jobs, adapters, memory. A database that is away leaves its figures out."""

    def __init__(self, studio: "Studio") -> None:
        self._studio = studio

    def collect(self) -> Iterator[Metric]:
        """As Prometheus' client asks for it."""
        studio = self._studio
        yield GaugeMetricFamily("studio_base_resident", "Whether a base is loaded for the chat.", value=float(studio.chat.base is not None))
        try:
            tally, status = studio.watching.tally(), studio.status()
        except DatabaseUnavailable:
            return
        jobs = GaugeMetricFamily("studio_jobs", "Trainings by where they stand.", labels=("standing",))
        running = (status.running is not None) + status.beside
        for standing, count in (("waiting", tally.waiting), ("running", running), ("over", tally.over)):
            jobs.add_metric((standing,), count)
        yield jobs
        yield GaugeMetricFamily("studio_queue_held", "Whether the queue starts nothing.", value=float(status.held))
