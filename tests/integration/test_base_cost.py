"""What quantization costs a base is measured once for its weights, wherever they go."""

import shutil
from pathlib import Path

import orjson
import pytest

from studio.bases import cost
from studio.services import Studio
from tests.conftest import tiny_settings

FILE = "cost.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forms that are measured, in order; each measurement gives another number."""
    forms: list[str] = []

    def counted(folder: Path, form: str, name: str) -> float:
        assert (folder / "config.json").exists() and name
        forms.append(form)
        return float(len(forms))

    monkeypatch.setattr(cost, "held_out_loss", counted)
    return forms


@pytest.fixture
def unmeasured(tiny_base: Path, tmp_path: Path) -> Path:
    """A base that nobody has measured."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns(FILE))
    return folder


def fetched(folder: Path, home: Path) -> dict[str, float]:
    studio = Studio(tiny_settings(home))
    losses = studio.bases.fetch(str(folder)).quantization_loss
    studio.close()
    return losses


def test_a_base_of_another_studio_brings_its_measurement(unmeasured: Path, tmp_path: Path, measured: list[str]) -> None:
    first = fetched(unmeasured, tmp_path / "one")
    assert first == {"bf16": 1.0, "int8": 2.0, "nf4": 3.0}
    (there,) = (tmp_path / "one" / "bases").iterdir()
    assert fetched(there, tmp_path / "two") == first and len(measured) == 3
    assert not (unmeasured / FILE).exists()  # what people own is left as it is


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"no JSON",
        b"[]",
        b'{"of": "x", "losses": {"nf4": 0.1}}',
        b'{"of": KEY, "losses": {"nf4": "small"}}',
        b'{"of": KEY, "losses": 1}',
    ],
)
def test_a_measurement_of_other_weights_or_a_broken_one_is_not_believed(
    unmeasured: Path, tmp_path: Path, measured: list[str], said: bytes
) -> None:
    fetched(unmeasured, tmp_path / "one")
    (there,) = (tmp_path / "one" / "bases").iterdir()
    kept = orjson.loads((there / FILE).read_bytes())
    (there / FILE).write_bytes(said.replace(b"KEY", orjson.dumps(kept["of"])))
    assert fetched(there, tmp_path / "two") == {"bf16": 4.0, "int8": 5.0, "nf4": 6.0}
