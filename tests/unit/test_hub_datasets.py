"""Datasets of the Hub, fetched from a small Hub on the loopback by the real client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.datasets.hub import choose_files, fetch_from_hub
from studio.datasets.reading import Limits, read_files
from studio.errors import InvalidInput, NotFound
from tests.hub import COMMIT, FakeHub, running_hub

BIG = Limits(1 << 30)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub("datasets", "me/set") as server:
        yield server


def refusal(hub: FakeHub, folder: Path, limits: Limits = BIG, dataset: str = "me/set", revision: str = "main") -> str:
    with pytest.raises((InvalidInput, NotFound)) as caught:
        fetch_from_hub(dataset, revision, folder, limits, 5.0, endpoint=hub.url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_train_files_of_one_commit_are_fetched_and_read(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {
        "README.md": b"# A set",
        "set.py": b"raise SystemExit",
        "data/train-00001.jsonl": b'{"a": 2}\n',
        "data/train-00000.jsonl": b'{"a": 1}\n',
        "data/test-00000.jsonl": b'{"a": 3}\n',
    }
    notices: list[str] = []
    paths, commit = fetch_from_hub("me/set", "main", tmp_path, BIG, 5.0, endpoint=hub.url, notices=notices)
    assert commit == COMMIT and [path.name for path in paths] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert [getattr(row, "value", None) for row in read_files(paths, BIG, [])] == [{"a": 1}, {"a": 2}]
    assert len(notices) == 1 and "train-00001.jsonl; these were not: data/test-00000.jsonl." in notices[0]
    assert not [path for path in hub.asked if path.endswith((".py", ".md"))]
    assert not list(tmp_path.rglob("*.py")) and not (tmp_path / ".cache").exists()


def test_what_the_hub_does_not_give_is_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"a.csv": b"a\n1\n"}
    for status, code, words in (
        (404, "RepoNotFound", "is not on the Hub, or it is private"),
        (403, "GatedRepo", "is gated; accept its terms"),
        (404, "RevisionNotFound", "has no revision 'main'"),
        (500, "", "The Hub gave no dataset 'me/set'"),
    ):
        hub.error = (status, code)
        assert words in refusal(hub, tmp_path)
    hub.error = None
    assert "is not the id of a dataset" in refusal(hub, tmp_path, dataset="a/b/c")
    hub.server_close()
    assert "Check the network" in refusal(hub, tmp_path)


def test_too_much_and_nothing_to_read_are_refused_before_any_file_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"a.csv": b"x" * 2_000_000, "b.csv": b"x" * 2_000_000}
    assert "has 3.8 MB and the limit is 3.0 MB" in refusal(hub, tmp_path, Limits(3 << 20))
    assert "has 2 files and the limit is 1" in refusal(hub, tmp_path, Limits(1 << 30, files=1))
    hub.files = {"script.py": b"x", "photo.png": b"x"}
    assert "it holds photo.png, script.py. Loading scripts are never run" in refusal(hub, tmp_path)
    assert not [path for path in hub.asked if "/resolve/" in path] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "chosen", "told"),
    [
        (["a.csv"], ["a.csv"], False),
        (["README.md", "LICENSE.txt", "a.parquet"], ["a.parquet"], False),
        (["README.md", "story.txt"], ["story.txt"], False),
        (["en/train.jsonl.gz", "de/train.jsonl.gz"], ["de/train.jsonl.gz", "en/train.jsonl.gz"], False),
        (["train.csv", "validation.csv"], ["train.csv"], True),
        (["all.csv", "test.csv"], ["all.csv"], True),
        (["test.csv"], ["test.csv"], False),
        (["a.csv", "a.parquet", "b.parquet"], ["a.parquet", "b.parquet"], True),
        (["../a.csv", "/b.csv", ".c.csv", "constrained.csv"], ["constrained.csv"], False),
    ],
)
def test_which_files_are_taken(names: list[str], chosen: list[str], told: bool) -> None:
    notices: list[str] = []
    assert choose_files("me/set", names, notices) == chosen and bool(notices) is told
