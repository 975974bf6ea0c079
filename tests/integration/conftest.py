"""Fixtures of these tests alone."""

from collections.abc import Iterator

import pytest

from tests.jobs import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What starts training processes without their imports."""
    forks = Forks()
    yield forks
    forks.close()
