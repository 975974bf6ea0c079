"""The webhook: what is told, to whom, how often, and that nothing is lost, on both databases and to a real server."""

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from storage.database import Database
from storage.jobs import Jobs
from storage.outbox import Outbox
from storage.records import JobRecord
from storage.repositories import Bases
from studio.jobs.webhook import DELAYS_S, Webhook
from studio.services import Studio
from tests.conftest import ROOT, tiny_settings
from tests.records import ADAPTER, BASE, job

pytestmark = pytest.mark.usefixtures("warm")
SECRET = "a long random text"


class Receiver:
    """A server on loopback that keeps what it was sent. `answers` gives the status of each request by its number from 0."""

    def __init__(self, answers: Callable[[int], int] = lambda n: 200, delay_s: float = 0.0) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if len(body) < int(self.headers["Content-Length"]):
                    return  # the teller died in the middle
                receiver.got.append((dict(self.headers), body))
                number = len(receiver.got) - 1
                time.sleep(delay_s)
                self.send_response(answers(number))
                if 300 <= answers(number) < 400:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def ids(self) -> list[str]:
        return [headers["X-Studio-Delivery"] for headers, _ in self.got]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*arguments: object, **named: object) -> Receiver:
        made.append(Receiver(*arguments, **named))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def verified(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    """As docs/jobs.md has it."""
    signed = headers["X-Studio-Timestamp"].encode() + b"." + body
    expected = "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    fresh = abs(time.time() - int(headers["X-Studio-Timestamp"])) < 300
    return fresh and hmac.compare_digest(expected, headers["X-Studio-Signature"])


def claimed(jobs: Jobs, number: int = 1) -> JobRecord:
    jobs.add(job(number, float(number)))
    found = jobs.claim("w", 10.0, 5.0, f"j{number}")
    assert found is not None
    return found


def fail(database: Database, *numbers: int) -> None:
    jobs = Jobs(database, notifying=True)
    for number in numbers:
        jobs.end(claimed(jobs, number), "failed", "why", 11.0, "memory")


def test_each_end_of_a_job_is_written_with_it_and_nothing_else(database: Database) -> None:
    jobs, outbox = Jobs(database, notifying=True), Outbox(database)
    jobs.finish(claimed(jobs, 1), ADAPTER, {"loss": 0.5}, 11.0)
    jobs.end(claimed(jobs, 2), "failed", "No memory.", 12.0, "memory")
    jobs.end(claimed(jobs, 3), "queued", "stopped", 13.0)
    running = claimed(jobs, 4)
    jobs.run(running)
    jobs.pause("j4")
    jobs.end(running, "paused", "Paused at step 3.", 14.0)
    jobs.prioritise("j4", 5)
    jobs.cancel("j4", 15.0)
    jobs.cancel("j3", 16.0)
    entries = {(entry.job_id, entry.event): entry for entry in outbox.all()}
    assert sorted(entries) == [
        ("j1", "job.done"),
        ("j2", "job.failed"),
        ("j3", "job.cancelled"),
        ("j4", "job.cancelled"),
        ("j4", "job.paused"),
    ]
    done, failed = entries["j1", "job.done"].body, entries["j2", "job.failed"].body
    assert done["id"] == entries["j1", "job.done"].id and done["at"] == "1970-01-01T00:00:11+00:00"
    assert done["job"] == {
        "id": "j1",
        "adapter": "bird 1",
        "adapter_id": "adapter1",
        "state": "done",
        "reason": "",
        "cause": "",
        "attempt": 1,
        "base": "tiny",
        "dataset": "d1",
        "group": "",
        "metrics": {"loss": 0.5},
    }
    assert (failed["job"]["cause"], failed["job"]["reason"], failed["job"]["adapter_id"]) == ("memory", "No memory.", "")


def test_a_lost_job_is_told_when_it_has_failed_and_nothing_is_written_without_a_webhook(database: Database) -> None:
    jobs, outbox = Jobs(database, notifying=True), Outbox(database)
    claimed(jobs)
    jobs.requeue_lost(20.0, jobs.leases(), 2)
    assert outbox.all() == [] and jobs.claim("w", 21.0, 5.0)
    jobs.requeue_lost(30.0, jobs.leases(), 2)
    assert [entry.event for entry in outbox.all()] == ["job.failed"]
    quiet = Jobs(database)
    quiet.end(claimed(quiet, 2), "failed", "why", 31.0)
    assert outbox.counts() == {"open": 1}


def test_a_move_that_is_refused_writes_nothing(database: Database) -> None:
    jobs = Jobs(database, notifying=True)
    found = claimed(jobs)
    jobs.finish(found, ADAPTER, {}, 11.0)
    second = claimed(jobs, 2)
    with pytest.raises(Exception, match="bird"):  # the name is taken: all of the transaction is undone
        jobs.finish(second, ADAPTER, {}, 12.0)
    assert len(Outbox(database).all()) == 1


def test_of_eight_tellers_one_gets_an_entry_and_a_late_one_changes_nothing(database: Database) -> None:
    fail(database, *range(20))
    outbox = Outbox(database)
    with ThreadPoolExecutor(8) as threads:
        taken = [entry for found in threads.map(lambda n: take_all(outbox, f"o{n}"), range(8)) for entry in found]
    assert len(taken) == len({entry.id for entry in taken}) == 20
    first = taken[0]
    assert outbox.take("other", 129.0, 30.0) is None
    again = outbox.take("other", 131.0, 30.0)
    assert again is not None and again.tries == 2
    late = next(entry for entry in taken if entry.id == again.id)
    assert not outbox.sent(late, 132.0) and not outbox.give_up(late, "late", 132.0) and not outbox.put_off(late, 0.0, "late")
    assert outbox.sent(again, 133.0) and not outbox.sent(again, 134.0)
    assert outbox.counts() == {"open": 19, "sent": 1} and first.tries == 1


def test_what_was_told_or_given_up_goes_after_two_weeks_and_nothing_else(database: Database, receivers: Callable[..., Receiver]) -> None:
    fail(database, *range(4))  # at second 11
    outbox = Outbox(database)
    sent, given_up, late, untold = (outbox.take("o", 20.0, 1e12) for _ in range(4))
    assert sent and given_up and late and untold
    outbox.sent(sent, 30.0)
    outbox.give_up(given_up, "why", 40.0)
    outbox.sent(late, 50.0)
    assert outbox.prune(30.0) == 0 and outbox.prune(50.0) == 2 and outbox.prune(50.0) == 0
    assert {entry.id for entry in outbox.all()} == {late.id, untold.id}
    fail(database, 5)
    webhook = Webhook(outbox, receivers().url, SECRET)
    webhook.start()
    until = time.monotonic() + 20
    while late.id in {entry.id for entry in outbox.all()} and time.monotonic() < until:
        time.sleep(0.05)
    webhook.stop()
    assert {(entry.job_id, entry.state) for entry in outbox.all()} == {("j5", "sent"), (untold.job_id, "open")}


def take_all(outbox: Outbox, owner: str) -> list[object]:
    found = []
    while (entry := outbox.take(owner, 100.0, 30.0)) is not None:
        found.append(entry)
    return found


def test_what_is_sent_can_be_verified_by_somebody_else(database: Database, receivers: Callable[..., Receiver]) -> None:
    receiver = receivers()
    fail(database, 1)
    webhook = Webhook(Outbox(database), receiver.url, SECRET)
    assert webhook.deliver_one() and not webhook.deliver_one()
    [(headers, body)] = receiver.got
    assert verified(headers, body) and not verified(headers, body + b" ") and not verified(headers, body, "another")
    told = json.loads(body)
    assert told["event"] == "job.failed" and told["id"] == headers["X-Studio-Delivery"] and told["job"]["base"] == "tiny"
    assert headers["Content-Type"] == "application/json" and Outbox(database).counts() == {"sent": 1}


def test_a_failure_is_tried_again_later_and_given_up_with_its_error(database: Database, receivers: Callable[..., Receiver]) -> None:
    receiver = receivers(lambda n: 503)
    fail(database, 1)
    outbox = Outbox(database)
    Webhook(outbox, receiver.url, SECRET).deliver_one()
    [entry] = outbox.all()
    assert entry.state == "open" and entry.error == "The webhook at 127.0.0.1 answered 503." and 3 < entry.due_at - time.time() < 6
    eager = Webhook(outbox, receiver.url, SECRET, delays_s=[0.0] * 4)
    outbox.put_off(outbox.take("x", time.time() + 10, 0.0) or entry, 0.0, "")
    while eager.deliver_one():
        pass
    [entry] = outbox.all()
    assert (entry.state, entry.tries, entry.error) == ("given_up", 5, "The webhook at 127.0.0.1 answered 503.")
    assert len(set(receiver.ids)) == 1 and len(receiver.ids) == 4


def test_the_tries_of_an_entry_spread_over_a_day() -> None:
    assert len(DELAYS_S) == 11 and 20 * 3600 < sum(DELAYS_S) < 24 * 3600
    assert all(later > earlier for earlier, later in pairwise(DELAYS_S))


@pytest.mark.parametrize(
    ("status", "state", "says"), [(410, "given_up", "answered 410"), (302, "open", "none is followed"), (204, "sent", "")]
)
def test_gone_ends_it_and_no_redirect_is_followed(
    database: Database, receivers: Callable[..., Receiver], status: int, state: str, says: str
) -> None:
    receiver = receivers(lambda n: status)
    fail(database, 1)
    Webhook(Outbox(database), receiver.url + "/token-in-the-path", SECRET).deliver_one()
    [entry] = Outbox(database).all()
    assert entry.state == state and says in entry.error and "token" not in entry.error and len(receiver.got) == 1


def test_a_server_that_is_not_there_or_too_slow_is_a_sentence(
    database: Database, receivers: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.jobs.webhook.TIMEOUT_S", 1.0)
    slow, gone = receivers(delay_s=3.0), receivers()
    gone.close()
    fail(database, 1, 2)
    outbox = Outbox(database)
    for url in (slow.url, gone.url):
        started = time.monotonic()
        assert Webhook(outbox, url, SECRET).deliver_one() and time.monotonic() - started < 2.5
    problems = sorted(entry.error for entry in outbox.all())
    assert problems[0].startswith("The webhook at 127.0.0.1 could not be reached") and problems[1].endswith("within 1 seconds.")


TELLER = """
import sys, time
from storage.database import Database
from storage.outbox import Outbox
import studio.jobs.webhook as module
module.LEASE_S = 1.0
webhook = module.Webhook(Outbox(Database(sys.argv[1])), sys.argv[2], sys.argv[3], delays_s=[0.1] * 11)
print("ready", flush=True)
webhook.start()
time.sleep(60)
"""


def test_kill_9_between_the_tries_loses_nothing(tmp_path: Path, receivers: Callable[..., Receiver]) -> None:
    database = Database(f"sqlite:///{tmp_path / 'studio.db'}")
    Bases(database).add(BASE)
    receiver = receivers(lambda n: 500 if n % 3 == 0 else 200, delay_s=0.05)
    fail(database, *range(20))
    for killed_after_s in (0.3, 0.5, 0.7, 60.0):
        command = [sys.executable, "-c", TELLER, database.url, receiver.url, SECRET]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            until = time.monotonic() + killed_after_s
            while time.monotonic() < until and Outbox(database).counts() != {"sent": 20}:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
    assert Outbox(database).counts() == {"sent": 20} and len(set(receiver.ids)) == 20
    assert all(verified(*got) for got in receiver.got)
    database.close()


def test_a_training_from_the_queue_is_told_by_the_process_that_works(
    tmp_path: Path, tiny_base: Path, receivers: Callable[..., Receiver], caplog: pytest.LogCaptureFixture
) -> None:
    receiver = receivers()
    settings = tiny_settings(tmp_path / "home", webhook_url=receiver.url, webhook_secret=SECRET)
    assert SECRET not in repr(settings) and receiver.url not in repr(settings)
    studio = Studio(settings)
    studio.bases.fetch(str(tiny_base))
    small = {"quantization": "fp32", "rank": 4, "max_steps": 2}
    first = studio.train_and_wait(studio.train("Angry bird", "told", overrides=small), lambda event: None)
    waiting = studio.train("Angry bird", "unwanted", overrides=small)
    studio.queue.cancel(waiting.id)
    studio.close()
    told = {json.loads(body)["event"]: json.loads(body)["job"] for _, body in receiver.got}
    assert first.state == "done" and sorted(told) == ["job.cancelled", "job.done"]
    assert told["job.done"]["metrics"]["steps"] == 2 and told["job.done"]["dataset"] == "Angry bird" and SECRET not in caplog.text
