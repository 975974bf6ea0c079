"""The file store: nothing is half-written."""

from pathlib import Path

import pytest

from storage import files


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "room" / "id"
    with files.publish_folder(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a").write_bytes(b"a")
        assert not target.exists() and partial.name.startswith(files.PARTIAL)
    assert (target / "deep" / "a").read_bytes() == b"a"
    assert list(target.parent.iterdir()) == [target] and files.size_of(target) == 1


@pytest.mark.parametrize("error", [ValueError("broken"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_whose_block_raises_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), files.publish_folder(tmp_path / "id") as partial:
        (partial / "a").write_bytes(b"a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    with files.publish_folder(tmp_path / "id") as partial:
        (partial / "a").write_bytes(b"first")
    with pytest.raises(FileExistsError), files.publish_folder(tmp_path / "id") as partial:
        (partial / "a").write_bytes(b"second")
    assert (tmp_path / "id" / "a").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_replaced_whole_and_a_failed_one_leaves_the_old(tmp_path: Path) -> None:
    target = tmp_path / "room" / "a.json"
    files.write_file(target, b"first")
    files.write_file(target, b"second")
    assert target.read_bytes() == b"second"
    with pytest.raises(TypeError):
        files.write_file(target, "no bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"second" and list(target.parent.iterdir()) == [target]


def test_removing_a_folder_is_silent_where_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "id").mkdir()
    (tmp_path / "id" / "a").write_bytes(b"a")
    files.remove_folder(tmp_path / "id")
    files.remove_folder(tmp_path / "id")
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_takes_old_leftovers_and_nothing_else(tmp_path: Path) -> None:
    for name in ("id", f"{files.PARTIAL}old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"a")
    (tmp_path / f"{files.PARTIAL}file").write_bytes(b"a")
    now = (tmp_path / "id").stat().st_mtime
    assert files.sweep_partials(tmp_path, older_than_s=60, now=now + 30) == 0
    assert files.sweep_partials(tmp_path, older_than_s=60, now=now + 90) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["id"]
    assert files.sweep_partials(tmp_path / "nowhere", 60, now) == 0


def test_ids_are_opaque_and_never_repeat() -> None:
    ids = {files.new_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(len(i) == 16 and set(i) <= set("0123456789abcdef") for i in ids)
