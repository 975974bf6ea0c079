"""What goes wrong, as OpenAI's clients read it: a status, and a sentence with its kind in JSON."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from studio.errors import BaseUnavailable, ContextTooLong, DatabaseUnavailable, IncompatibleAdapter, InvalidInput, NotFound, StudioError

RETRY_S = 5  # what is not there now, such as a base that a training has put aside
KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error"}
KINDS |= {413: "invalid_request_error", 429: "rate_limit_error", 503: "service_unavailable"}
STATUSES: tuple[tuple[type[StudioError], int, str], ...] = (
    (ContextTooLong, 400, "context_length_exceeded"),
    (InvalidInput, 400, ""),
    (IncompatibleAdapter, 400, "adapter_of_another_base"),
    (NotFound, 404, "model_not_found"),
    (BaseUnavailable, 503, "base_unavailable"),
    (DatabaseUnavailable, 503, "database_unavailable"),
)


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP. text: one sentence. param: the field that is wrong. code: one word for programs. retry_s: when to try again.
    """

    def __init__(self, status: int, text: str, *, param: str = "", code: str = "", retry_s: int = 0) -> None:
        super().__init__(text)
        self.status, self.param, self.code, self.retry_s = status, param, code, retry_s

    @property
    def body(self) -> dict[str, object]:
        """As OpenAI's clients read it, in a reply or in a stream."""
        kind = KINDS.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param or None, "code": self.code or None}}

    @property
    def response(self) -> JSONResponse:
        """The whole reply."""
        headers: Mapping[str, str] = {"retry-after": str(self.retry_s)} if self.retry_s else {}
        return JSONResponse(self.body, self.status, headers)


def refusal(error: StudioError) -> Refusal:
    """What an error of the studio is to a client."""
    for kind, status, code in STATUSES:
        if isinstance(error, kind):
            return Refusal(status, str(error), param="model" if status == 404 else "", code=code, retry_s=RETRY_S if status == 503 else 0)
    return Refusal(500, str(error), code="server_error")
