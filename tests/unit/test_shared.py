"""The shared place: whole or not at all, whatever the storage does."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from studio.errors import InvalidInput
from studio.jobs.shared import BLOCK, Halted, Shared, SharedUnavailable


class Faulty(MemoryFileSystem):
    """Storage in memory that fails on request, as a library of some cloud would."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failing: tuple[str, ...] = ()

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        if any(word in path for word in self.failing):
            raise RuntimeError("503 SlowDown: key AKIA-secret")
        return super()._open(path, *arguments, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        if any(word in path for word in self.failing):
            raise RuntimeError("503 SlowDown: key AKIA-secret")
        return bytes(super().cat_file(path, *arguments, **options))


fsspec.register_implementation("faulty", Faulty, clobber=True)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    Faulty.store.clear()
    Faulty.failing = ()


@pytest.fixture(params=["folder", "file://", "faulty://"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Shared:
    return Shared(
        {"folder": str(tmp_path / "a" / "place"), "file://": f"file://{tmp_path}/place"}.get(request.param, "faulty://bucket/place")
    )


def filled(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "big").write_bytes(bytes(BLOCK + 5))
    (folder / "deep" / "empty").write_bytes(b"")
    return folder


def test_a_small_object_is_there_whole_or_not_at_all(shared: Shared) -> None:
    assert shared.read("jobs/a/beat") is None
    shared.write("jobs/a/beat", {"count": 1, "text": "ü"})
    assert shared.read("jobs/a/beat") == {"count": 1, "text": "ü"}
    data = shared.fs.cat_file(shared._at("jobs/a/beat"))
    for cut in (data[:-1], data[:10], b"", data[:40] + b"x" + data[41:]):
        shared.fs.pipe_file(shared._at("jobs/a/beat"), cut)
        assert shared.read("jobs/a/beat") is None


def test_a_folder_comes_back_as_it_went(shared: Shared, tmp_path: Path) -> None:
    source = filled(tmp_path / "source")
    assert not shared.has("bases/f") and not shared.take("bases/f", tmp_path / "copy")
    shared.send(source, "bases/f")
    assert shared.has("bases/f") and shared.take("bases/f", tmp_path / "copy")
    assert (tmp_path / "copy" / "big").read_bytes() == (source / "big").read_bytes() and (tmp_path / "copy" / "deep" / "empty").exists()
    assert shared.take("bases/f", tmp_path / "copy")  # another one was faster
    shared.remove("bases/f")
    assert not shared.has("bases/f") and not shared.fs.exists(shared._at("bases/f"))
    shared.remove("bases/f")


def test_a_copy_that_is_broken_or_given_up_leaves_nothing(shared: Shared, tmp_path: Path) -> None:
    source = filled(tmp_path / "source")

    def halt() -> None:
        raise Halted

    with pytest.raises(Halted):
        shared.send(source, "bases/g", halt)
    assert not shared.has("bases/g")
    shared.send(source, "bases/f")
    with pytest.raises(Halted):
        shared.take("bases/f", tmp_path / "copy", halt)
    shared.fs.pipe_file(shared._at("bases/f/big"), b"other")
    with pytest.raises(SharedUnavailable, match="broken copy of big"):
        shared.take("bases/f", tmp_path / "copy")
    shared.fs.rm(shared._at("bases/f/big"))
    with pytest.raises(SharedUnavailable):
        shared.take("bases/f", tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("a", "place")) == ["source"]


def test_storage_that_fails_is_a_sentence_without_its_secrets(tmp_path: Path) -> None:
    shared = Shared("faulty://bucket/place")
    source = filled(tmp_path / "source")
    Faulty.failing = ("big", "beat")
    for do in (lambda: shared.write("beat", 1), lambda: shared.read("beat"), lambda: shared.send(source, "bases/f")):
        with pytest.raises(SharedUnavailable) as caught:
            do()
        assert str(caught.value) == "The shared place of STUDIO_SHARED_URL cannot be used (RuntimeError)."
    assert not shared.has("bases/f")
    Faulty.failing = ()
    shared.send(source, "bases/f")
    assert shared.take("bases/f", tmp_path / "copy")


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", "..", ""])
def test_a_list_that_names_other_places_is_refused(tmp_path: Path, name: str) -> None:
    shared = Shared(str(tmp_path / "place"))
    shared.write("bases/f.manifest", {name: hashlib.sha256(b"").hexdigest()})
    with pytest.raises(SharedUnavailable, match="is not used"):
        shared.take("bases/f", tmp_path / "deep" / "copy")
    assert not (tmp_path / "deep" / "copy").exists()


def test_a_kind_of_storage_that_is_not_installed_is_a_sentence() -> None:
    with pytest.raises(InvalidInput, match="STUDIO_SHARED_URL cannot be used"):
        Shared("nowhere://bucket/x")
