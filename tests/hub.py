"""A small Hub on the loopback, for the real client."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Answers what the client asks: about a repository, and for files of one commit.

    Args:
        kind: "datasets" or "models". repository: its id, such as me/set.
    """

    def __init__(self, kind: str, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.about = f"/api/{kind}/{repository}"
        self.root = ("/datasets" if kind == "datasets" else "") + f"/{repository}/resolve/{COMMIT}/"
        self.files: dict[str, bytes] = {}
        self.error: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if self.server.error:
            status, code = self.server.error
            self.answer(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no"})
        elif path.startswith(self.server.about):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.server.files.items()]
            self.answer(200, json.dumps({"id": self.server.about.split("/", 3)[3], "sha": COMMIT, "siblings": siblings}).encode(), {})
        elif path.startswith(self.server.root):
            name = path.split(COMMIT + "/")[1]
            self.answer(200, self.server.files[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{name.encode().hex()}"'})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        return None


@contextmanager
def running_hub(kind: str, repository: str) -> Iterator[FakeHub]:
    """A Hub with one repository, for as long as the block runs."""
    with FakeHub(kind, repository) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
