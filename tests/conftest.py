"""Fixtures: a tiny base and a studio on it; the real starter base; tests are marked by their folder."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.services import Studio
from studio.settings import Settings

ROOT = Path(__file__).parent.parent
# What fails soonest comes first; then files that take minutes, so that at the end no worker has long to do alone.
ORDER = ("unit", "gpu", "e2e", "browser", "integration")
MARKED = ("integration", "e2e", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        if folder in MARKED:
            item.add_marker(folder)
    items.sort(key=lambda item: ORDER.index(item.path.parent.name))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later collection of garbage: it is millions of objects, and none of it is."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random base, named tiny, measured once for all the studios that fetch it."""
    from studio.bases.cost import measure_cost
    from studio.bases.fingerprint import fingerprint
    from tests.tiny import save_base

    folder = save_base(tmp_path_factory.mktemp("bases") / "tiny")
    measure_cost(folder, "tiny", fingerprint(folder, "tiny"))
    return folder


@pytest.fixture(scope="session")
def starter_base() -> Path:
    """The folder of the real starter base, fetched where it is missing, and measured once for all the studios that fetch it."""
    from studio.bases.cost import measure_cost
    from studio.bases.fingerprint import fingerprint

    command = [sys.executable, "-m", "studio", "base", "fetch", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"The starter base cannot be had: {result.stderr}"
    folder = Path(json.loads(result.stdout)["path"])
    measure_cost(folder, folder.name, fingerprint(folder, folder.name))  # one that an older studio fetched was never measured
    return folder


def tiny_settings(home: Path, **changes: object) -> Settings:
    """Settings for a studio on the tiny base, in float32."""
    return Settings(home=home, base="tiny", quantization="fp32", lease_s=4, **changes)


@pytest.fixture
def studio(tmp_path: Path, tiny_base: Path) -> Iterator[Studio]:
    """A fresh studio with the tiny base; nothing works on its queue until a test says so."""
    studio = Studio(tiny_settings(tmp_path / "home"))
    studio.bases.fetch(str(tiny_base))
    yield studio
    studio.close()
