"""Fixtures of these tests alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from storage.database import Database
from storage.repositories import Bases
from tests.databases import Server
from tests.jobs import Forks
from tests.records import BASE
from tests.warm import Parent


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, here and in what is started: a second one only waits where the models are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parent() -> Iterator[Parent]:
    """What forks training processes."""
    parent = Parent()
    yield parent
    parent.close()


@pytest.fixture(scope="module")
def warm(parent: Parent) -> Iterator[None]:
    """Training processes that a studio of this module's tests starts are forked, without their imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("studio.jobs.process.subprocess", parent.subprocess)
        yield


@pytest.fixture
def forks(parent: Parent) -> Forks:
    """What starts training processes without their imports."""
    return Forks(parent)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of these tests alone."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'deep' / 'studio.db'}"
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database of each kind with one base in it."""
    database = Database(database_url)
    Bases(database).add(BASE)
    yield database
    database.close()
