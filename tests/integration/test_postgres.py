"""A studio on PostgreSQL: what may be pasted as its URL, what is said where it cannot be used, and a server that comes back."""

import importlib.util
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from storage.database import Database
from storage.errors import DatabaseUnavailable
from storage.repositories import Bases, Datasets
from studio.services import Studio
from tests.commands import Shell
from tests.conftest import tiny_settings
from tests.databases import ESCAPED, PASSWORD, Server
from tests.records import BASE
from tests.trainers import TINY

SECRETS = ("s3cret", PASSWORD, ESCAPED, "signs", "wrong-word")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "home", monkeypatch, capfd)


def refusal(url: str) -> str:
    with pytest.raises(DatabaseUnavailable) as caught:
        Database(url)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 300
    assert not any(secret in sentence for secret in SECRETS)
    return sentence


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_what_people_paste_is_understood(postgres: Server, scheme: str) -> None:
    with postgres.database() as url:
        database = Database(f"  {url.replace('postgresql', scheme, 1)}\n")
        assert Bases(database).add(BASE) == Bases(database).get("tiny")
        assert database.engine.url.drivername == "postgresql+psycopg"
        assert not any(secret in repr(database.engine) for secret in SECRETS)
        database.close()


def test_what_a_url_says_of_the_connection_wins(postgres: Server) -> None:
    with postgres.database() as url:
        database = Database(f"{url}?application_name=mine&connect_timeout=2")
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW application_name").scalar() == "mine"
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
        database.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("{scheme}://studio:wrong-word@127.0.0.1:{port}/postgres", "refuses the user or the password; correct them in"),
        ("{scheme}://nobody:wrong-word@127.0.0.1:{port}/postgres", "refuses the user or the password; correct them in"),
        ("{scheme}://studio@127.0.0.1:{port}/postgres", "refuses the user or the password; correct them in"),
        ("{scheme}://studio:{word}@127.0.0.1:{port}/missing", "has no database of this name; create it with createdb, or"),
        ("{scheme}://studio:wrong-word@127.0.0.1:1/name", "at 127.0.0.1:1 does not answer; start it, or correct host and port in"),
        ("{scheme}://studio:wrong-word@localhost:1/name", "at localhost:1 does not answer; start it"),
        ("{scheme}://studio:wrong-word@no-such-host.invalid/name", "at no-such-host.invalid cannot be found by its name"),
        ("{scheme}:///name?host=/nowhere&password=wrong-word", "at the local socket does not answer"),
        ("{scheme}://studio:wrong-word@127.0.0.1:{port}", "names no database on the server; write it as"),
        ("{scheme}://studio:wrong-word@127.0.0.1:s3cret/name", "is no database's URL; write it as"),
        ("{scheme}://studio:s3cret@signs@127.0.0.1/name", "is no database's URL; write it as"),
        ("wrong-word", "is no database's URL; write it as"),
        ("mysql://studio:wrong-word@127.0.0.1/name", "the studio knows PostgreSQL"),
        ("redis://studio:wrong-word@127.0.0.1/name", "the studio knows PostgreSQL"),
    ],
)
def test_a_url_that_leads_nowhere_is_explained_without_its_password(postgres: Server, url: str, said: str) -> None:
    sentence = refusal(url.format(scheme="postgresql", port=postgres.port, word=ESCAPED))
    assert said in sentence and "STUDIO_DATABASE_URL" in sentence


def test_a_database_in_another_encoding_is_refused(postgres: Server) -> None:
    with postgres.database("ENCODING 'LATIN1' LOCALE 'C'") as url:
        assert "is in LATIN1 and cannot hold every name; create one with: createdb --encoding UTF8" in refusal(url)


def test_a_user_who_may_make_no_tables_is_refused(postgres: Server) -> None:
    with postgres.database() as url:
        postgres.execute("CREATE ROLE guest LOGIN PASSWORD 'wrong-word'")
        guest = url.replace(f"studio:{ESCAPED}", "guest:wrong-word")
        assert "does not let this user make tables; grant it CREATE on the schema" in refusal(guest)
    postgres.execute("DROP ROLE guest")


def test_without_the_driver_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "psycopg" else find(name, *more))
    assert "pip install -r requirements-postgres.txt" in refusal("postgresql://studio:wrong-word@127.0.0.1/name")


def test_a_file_that_is_no_database_and_a_folder_that_cannot_be_are_explained(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is a letter, and no database at all. " * 100)
    assert "'text.db' cannot be used: file is not a database" in refusal(f"sqlite:///{tmp_path / 'text.db'}")
    assert "folder cannot be made: Not a directory" in refusal(f"sqlite:///{tmp_path / 'text.db' / 'deep' / 'x.db'}")
    assert "cannot be used: unable to open database file" in refusal(f"sqlite:///{tmp_path}")


def test_a_lock_that_another_program_holds_is_told(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    with sqlite3.connect(tmp_path / "x.db") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="held the database's lock for seconds"):
            Datasets(database).first_time("x", 1.0)
    database.close()


def test_the_command_line_refuses_in_one_sentence_and_logs_no_password(shell: Shell, postgres: Server) -> None:
    shell.monkeypatch.setenv("STUDIO_LOG_LEVEL", "DEBUG")
    shell.monkeypatch.setenv("STUDIO_DATABASE_URL", f"postgresql://studio:wrong-word@127.0.0.1:{postgres.port}/postgres")
    outcome = shell.start("dataset", "list", "--json")
    assert (outcome.status, outcome.out) == (2, "") and "Traceback" not in outcome.err
    assert outcome.err.strip().splitlines()[-1].endswith("refuses the user or the password; correct them in STUDIO_DATABASE_URL.")
    assert not any(secret in outcome.err for secret in SECRETS)
    shell.monkeypatch.setenv("STUDIO_DATABASE_URL", postgres.url("missing"))
    outcome = shell.start("dataset", "list")
    assert outcome.status == 2 and "has no database of this name" in outcome.err and "Traceback" not in outcome.err
    assert not any(secret in outcome.err for secret in SECRETS)
    with postgres.database() as url:
        shell.monkeypatch.setenv("STUDIO_DATABASE_URL", url)
        outcome = shell.start("dataset", "list", "--json")
        assert "Angry bird" in {dataset["name"] for dataset in outcome.json["datasets"]}
        assert not any(secret in outcome.err for secret in SECRETS) and not (shell.home / "studio.db").exists()


def test_the_settings_do_not_show_the_url(tmp_path: Path) -> None:
    assert "wrong-word" not in repr(tiny_settings(tmp_path, database_url="postgresql://studio:wrong-word@127.0.0.1/name"))


@pytest.mark.usefixtures("warm")
def test_a_studio_trains_and_lists_on_postgresql(postgres: Server, tmp_path: Path, tiny_base: Path, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    with postgres.database() as url:
        studio = Studio(tiny_settings(tmp_path / "home", database_url=url))
        studio.bases.fetch(str(tiny_base))
        assert len(studio.datasets.all()) == 5
        job = studio.train("Angry bird", "bird", preset="quick", overrides={**TINY, "max_steps": 4})
        assert [found.id for found in studio.queue.all()] == [job.id] and studio.status().waiting == 1
        done = studio.train_and_wait(job, lambda event: None)
        assert done.state == "done", done.reason
        assert studio.queue.events(job.id, kinds=("progress",)) and studio.adapters.get("bird").job_id == job.id
        studio.close()
        again = Studio(tiny_settings(tmp_path / "home", database_url=url))
        assert [found.name for found in again.adapters.all()] == ["bird"] and len(again.datasets.all()) == 5
        again.close()
    assert not (tmp_path / "home" / "studio.db").exists()
    assert not any(secret in caplog.text for secret in SECRETS)


def test_a_server_that_is_restarted_does_not_end_the_studio(postgres: Server) -> None:
    with postgres.database() as url:
        database = Database(url)
        Bases(database).add(BASE)
        postgres.stop()
        with pytest.raises(DatabaseUnavailable, match=r"does not answer; start it, or correct host and port in STUDIO_DATABASE_URL\.$"):
            Bases(database).all()
        postgres.start()
        assert Bases(database).all() == [BASE]
        postgres.stop()
        postgres.start()  # the pool holds a connection that died unseen
        assert Datasets(database).first_time("x", 1.0) and Bases(database).all() == [BASE]
        database.close()
