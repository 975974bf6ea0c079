"""Keys of the HTTP API: the table on both databases, the rules, the door, and the command line."""

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import IntegrityError
from starlette.requests import Request

from storage.api_keys import ApiKeys
from storage.database import Database
from storage.errors import RecordNotFound
from storage.records import ApiKeyRecord
from studio.api.access import Access
from studio.api.errors import Refusal
from studio.api.keys import PREFIX, Keys
from studio.errors import InvalidInput, NotFound
from studio.services import Studio
from tests.commands import Shell
from tests.serving import serving

RECORD = ApiKeyRecord("k1", "Ängste 🐦", "a" * 64, "sk-studio-abcd", 60, 1.5)


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(ApiKeys(database))


def test_the_table_keeps_what_it_is_given(database: Database) -> None:
    table = ApiKeys(database)
    assert table.is_empty() and table.all() == []
    assert table.add(RECORD) == RECORD == table.get("k1") and not table.is_empty()
    later = ApiKeyRecord("k2", "later", "b" * 64, RECORD.start, 0, 2.0)
    table.add(later)
    assert table.all() == [later, RECORD] and len(table.starting(RECORD.start)) == 2 and table.starting("sk-studio-") == []
    table.used("k1", 7.25)
    assert table.get("k1").last_used_at == 7.25 and table.get("k2").last_used_at is None
    assert table.revoke("k1", 8.5).revoked_at == table.revoke("k1", 9.5).revoked_at == 8.5
    assert [found.id for found in table.starting(RECORD.start)] == ["k2"] and not table.is_empty()
    with pytest.raises(RecordNotFound):
        table.revoke("nobody", 1.0)
    with pytest.raises(IntegrityError):
        table.add(ApiKeyRecord("k3", "the same key", "a" * 64, RECORD.start, 0, 3.0))


def test_a_key_is_long_random_and_kept_as_a_hash_alone(keys: Keys) -> None:
    made = [keys.make("a program")[0] for _ in range(20)]
    assert len(set(made)) == 20 and all(key.startswith(PREFIX) and len(key) == len(PREFIX) + 43 for key in made)
    key, record = keys.make("  another \n one ", 30)
    assert (record.label, record.per_minute, record.sha256) == ("another one", 30, hashlib.sha256(key.encode()).hexdigest())
    assert record.start == key[:14] and key[14:] not in str(keys.all())
    assert keys.find(key) == record
    for wrong in ("", "x", key[:-1], key + "x", key[:14], key.swapcase(), "ä" * 50, "\udce4"):
        assert keys.find(wrong) is None


def test_a_revoked_key_is_worth_nothing(keys: Keys) -> None:
    assert not keys.exist()
    (key, record), (other, _) = keys.make("one"), keys.make("two")
    assert keys.exist() and keys.revoke(record.id).revoked_at is not None
    assert keys.find(key) is None and keys.find(other) is not None
    assert keys.revoke(other[:14]).label == "two"  # by what the list shows
    assert keys.find(other) is None and keys.exist()
    with pytest.raises(NotFound, match="There is no key 'nobody'; there are none yet"):
        keys.revoke("nobody")


@pytest.mark.parametrize(("label", "limit"), [("", 0), ("x" * 81, 0), ("a\0b", 0), ("fine", -1), ("fine", 10**9)])
def test_labels_and_limits_are_checked(keys: Keys, label: str, limit: int) -> None:
    with pytest.raises(InvalidInput):
        keys.make(label, limit)
    assert keys.all() == []


def test_the_last_use_is_written_once_a_minute(database: Database) -> None:
    time = SimpleNamespace(now=1000.0)
    keys = Keys(ApiKeys(database), now=lambda: time.now)
    key, record = keys.make("a")
    seen = []
    for now in (1000.0, 1030.0, 1059.0, 1061.0, 1200.0):
        time.now = now
        keys.find(key)
        seen.append(keys.all()[0].last_used_at)
    assert seen == [1000.0, 1000.0, 1000.0, 1061.0, 1200.0] and record.last_used_at is None


def test_a_limit_lets_through_what_a_minute_holds_and_then_one_by_one(database: Database) -> None:
    time = SimpleNamespace(now=0.0)
    keys = Keys(ApiKeys(database), clock=lambda: time.now)
    (_, limited), (_, free) = keys.make("limited", 30), keys.make("free")
    assert [keys.wait_s(limited) for _ in range(30)] == [0.0] * 30
    assert keys.wait_s(limited) == pytest.approx(2.0)
    time.now = 1.5
    assert keys.wait_s(limited) == pytest.approx(0.5)
    time.now = 2.001
    assert keys.wait_s(limited) == 0.0 and keys.wait_s(limited) > 1.9
    time.now = 1000.0
    assert [keys.wait_s(limited) for _ in range(30)] == [0.0] * 30 and keys.wait_s(limited) > 0
    assert [keys.wait_s(free) for _ in range(1000)] == [0.0] * 1000


def asked(client: str = "127.0.0.1", **headers: str) -> Request:
    sent = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request({"type": "http", "client": (client, 5), "headers": [(k.encode(), v.encode()) for k, v in sent.items()]})


def status(access: Access, request: Request) -> int:
    try:
        access.check(request)
    except Refusal as refused:
        assert refused.response.status_code == refused.status
        return refused.status
    return 200


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (asked(), 200),
        (asked(authorization="Bearer none"), 200),
        (asked("::1", host="localhost:7860"), 200),
        (asked(origin="http://localhost:7860"), 200),
        (asked("10.0.0.7"), 401),  # what another machine sends
        (asked(x_forwarded_for="127.0.0.1"), 401),  # what a proxy on this machine passes on
        (asked(forwarded="for=127.0.0.1"), 401),
        (asked(host="evil.example"), 401),  # a name that was bound to this machine
        (asked(origin="https://evil.example"), 401),  # another site's page in a browser of this machine
        (asked(origin="null"), 401),
    ],
)
def test_without_keys_only_this_machine_may_ask(keys: Keys, request_: Request, expected: int) -> None:
    assert status(Access(keys, "127.0.0.1", False), request_) == expected
    assert status(Access(keys, "0.0.0.0", False), request_) == 401
    assert status(Access(keys, "127.0.0.1", True), request_) == 401  # behind Gradio's tunnel all come from here


def test_once_a_key_was_made_all_need_one(keys: Keys) -> None:
    access = Access(keys, "127.0.0.1", False)
    assert status(access, asked()) == 200
    key, record = keys.make("a", 2)
    for header in ("", "Bearer", "Bearer ", "Bearer none", f"Basic {key}", key, f"Bearer {key}x"):
        assert status(access, asked(authorization=header)) == 401
    assert status(access, asked()) == 401
    assert access.check(asked("10.0.0.7", authorization=f"bearer {key}")) == record.id
    assert [status(access, asked(authorization=f"Bearer {key}")) for _ in range(2)] == [200, 429]
    keys.revoke(record.id)
    assert status(access, asked()) == status(access, asked(authorization=f"Bearer {key}")) == 401


SECRET = "a-long-secret-of-the-environment"


def test_the_key_of_the_environment_opens_and_is_kept_nowhere(database: Database) -> None:
    keys = Keys(ApiKeys(database), secret=SECRET)
    record = keys.find(SECRET)
    assert record is not None and (record.label, record.id, record.per_minute) == ("environment", "environment", 0)
    for wrong in ("", SECRET[:-1], SECRET + "x", SECRET.upper(), "environment", record.sha256):
        assert keys.find(wrong) is None
    assert keys.exist() and keys.all() == [] and ApiKeys(database).is_empty()
    assert keys.wait_s(record) == 0 and SECRET not in repr(record)
    with pytest.raises(NotFound):
        keys.revoke("environment")
    made, _ = keys.make("another")
    assert keys.find(made) is not None and Keys(ApiKeys(database)).find(SECRET) is None


def test_with_a_key_in_the_environment_all_need_one(database: Database) -> None:
    access = Access(Keys(ApiKeys(database), secret=SECRET), "127.0.0.1", False)
    assert status(access, asked()) == status(access, asked(authorization="Bearer none")) == 401
    assert access.check(asked("10.0.0.7", authorization=f"Bearer {SECRET}")) == "environment"


@pytest.fixture
def guarded(studio: Studio) -> Iterator[Any]:
    with serving(studio, host="0.0.0.0") as served:
        yield served


def test_the_official_client_opens_with_the_key_of_the_environment(studio: Studio) -> None:
    studio.settings = studio.settings.model_copy(update={"api_key": SecretStr(SECRET)})
    with serving(studio, host="0.0.0.0") as served:
        assert served.client(SECRET).models.list().data
        with pytest.raises(openai.AuthenticationError, match="wrong or was revoked") as refused:
            served.client("sk-studio-wrong").models.list()
    assert SECRET not in str(refused.value) and SECRET not in repr(studio.settings)


def test_the_official_client_is_told_of_wrong_keys_and_limits(guarded: Any) -> None:
    key, _ = guarded.keys.make("a", 2)
    with pytest.raises(openai.AuthenticationError, match="wrong or was revoked") as refused:
        guarded.client("sk-studio-wrong").models.list()
    assert refused.value.code == "invalid_api_key" and key[14:] not in str(refused.value)
    client = guarded.client(key)
    asked: Any = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert client.chat.completions.create(**asked).choices and client.models.list().data
    with pytest.raises(openai.RateLimitError, match="2 requests a minute; try again in") as limited:
        client.chat.completions.create(stream=True, **asked)
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 30
    assert limited.value.code == "rate_limit_exceeded"
    for path in ("models", "models/base"):
        assert httpx.get(f"{guarded.url}/v1/{path}").status_code == 401
    big = httpx.post(f"{guarded.url}/v1/completions", content=b" " * (9 << 20))
    assert big.status_code == 401  # nobody reads what a stranger sends


def test_the_command_line_makes_lists_and_revokes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    shell = Shell(tmp_path / "home", monkeypatch, capfd)
    made = shell.run("key", "add", "my program", "--per-minute", "20", "--json").json
    assert made["key"].startswith("sk-studio-") and (made["label"], made["per_minute"]) == ("my program", 20)
    plain = shell.run("key", "add", "another")
    assert plain.out.startswith("sk-studio-") and plain.out.count("\n") == 1 and "cannot be shown again" in plain.err
    listed = shell.run("key", "list", "--json")
    assert [key["label"] for key in listed.json["keys"]] == ["another", "my program"]
    assert made["key"] not in listed.out and "sha256" not in listed.out
    assert "20 requests a minute  not used yet" in shell.run("key", "list").out
    assert shell.run("key", "revoke", made["id"], "--json").json["revoked_at"] > 0
    assert "revoked" in shell.run("key", "list").out
    assert "There is no key 'nope'" in shell.refuse("key", "revoke", "nope")
    assert "from 0, for none" in shell.refuse("key", "add", "x", "--per-minute", "-1")
    for path in (tmp_path / "home").rglob("*"):
        assert not path.is_file() or made["key"].encode() not in path.read_bytes()
    with sqlite3.connect(tmp_path / "home" / "studio.db") as database:
        assert database.execute("SELECT count(*) FROM api_key").fetchone() == (2,)
