"""Trackers: TensorBoard's files read back record by record, and services that are missing, fail or hang.

The services are stand-ins of a few lines that are found in place of the packages; the child process and its pipes are real.
"""

import json
import math
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from studio.errors import InvalidInput
from studio.training import trackers
from studio.training.trackers import SERVICES, open_tracker, reason

CONFIG = {"rank": 16, "learning_rate": 1e-3}


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def emit(notices: list[str]) -> Callable[..., None]:
    return lambda kind, **data: notices.append(f"{kind}: {data['text']}")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a package of this name and text on the path; returns the file that its `write` appends to."""
    (tmp_path / "packages").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    said = tmp_path / "said.jsonl"
    head = f"import json\n\n\ndef write(*said):\n    with open({str(said)!r}, 'a') as file:\n        file.write(json.dumps(said) + '\\n')\n"

    def make(name: str, text: str) -> Path:
        (tmp_path / "packages" / f"{name}.py").write_text(head + text)
        return said

    return make


MLFLOW = """
def set_experiment(name): write("experiment", name)
def start_run(run_name): write("run", run_name)
def log_params(config): write("config", config)
def log_metrics(values, step): write(step, values)
def end_run(): write("end")
"""
TRACKIO = """
def init(project, name, config): write(project, name, config)
def log(values, step): write(step, values)
def finish(): write("end")
"""
WANDB = """
import os, sys
class Settings:
    def __init__(self, console): pass
class init:
    def __init__(self, project, name, config, settings): write(project, name, config, sys.stdin.isatty(), os.environ["WANDB_MODE"])
    def log(self, values, step): write(step, values)
    def finish(self): write("end")
"""
STARTS = {
    "mlflow": (MLFLOW, [["experiment", "adapter-studio"], ["run", "my run"], ["config", CONFIG]]),
    "trackio": (TRACKIO, [["adapter-studio", "my run", CONFIG]]),
    "wandb": (WANDB, [["adapter-studio", "my run", CONFIG, False, "offline"]]),
}


def events(folder: Path) -> list[Event]:
    """The events of every file, oldest first; the length and the content of each record are checked by their sums."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            content = data[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", data, at + 8)[0] == masked(data[at : at + 8])
            assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked(content)
            found.append(Event.FromString(content))
            at += 16 + length
    return found


def masked(data: bytes) -> int:
    rotated = crc32c(data)
    return ((rotated >> 15 | rotated << 17) + 0xA282EAD8) & 0xFFFFFFFF


def curve(found: list[Event], tag: str) -> list[tuple[int, float]]:
    return [(event.step, value.simple_value) for event in found for value in event.summary.value if value.tag == tag]


def test_event_files_are_written_whichever_tracker_is_chosen(tmp_path: Path, emit: Callable[..., None], notices: list[str]) -> None:
    for name in ("none", "tensorboard"):
        tracker = open_tracker(name, tmp_path / name, "my run", CONFIG, emit)
        for step in range(1, 4):
            tracker.log(step, {"train/loss": 1.0 / step, "memory_mb": 1000.0})
        tracker.log(3, {"eval/loss": math.inf})
        tracker.close()
        found = events(tmp_path / name)
        assert found[0].file_version == "brain.Event:2"
        assert json.loads(found[1].summary.value[0].tensor.string_val[0].decode().strip("`\n")) == CONFIG
        assert curve(found, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        assert curve(found, "memory_mb") == [(1, 1000.0), (2, 1000.0), (3, 1000.0)] and curve(found, "eval/loss") == [(3, math.inf)]
    assert notices == []


def test_values_are_on_the_disk_before_the_end(tmp_path: Path, emit: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "FLUSH_S", 0.0)
    tracker = open_tracker("none", tmp_path, "my run", CONFIG, emit)
    tracker.log(1, {"train/loss": 1.0})
    assert curve(events(tmp_path), "train/loss") == [(1, 1.0)]
    tracker.close()


def test_a_second_attempt_tells_tensorboard_where_it_starts(tmp_path: Path, emit: Callable[..., None]) -> None:
    for attempt, steps in enumerate([(1, 2, 3), (2, 3, 4)]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.getpid", lambda attempt=attempt: attempt)
            tracker = open_tracker("none", tmp_path, "my run", CONFIG, emit)
            for step in steps:
                tracker.log(step, {"train/loss": 1.0})
            tracker.close()
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [1, 2] and len(list((tmp_path / "tensorboard").iterdir())) == 2


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_is_not_installed_is_refused_in_one_sentence(
    name: str, tmp_path: Path, emit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput) as raised:
        open_tracker(name, tmp_path, "my run", CONFIG, emit)
    assert str(raised.value) == f"The option tracker is {name!r}, but {name} is not installed; run pip install {name}, or choose none."
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_every_value_in_its_own_words(
    name: str,
    tmp_path: Path,
    emit: Callable[..., None],
    notices: list[str],
    stand_in: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    text, start = STARTS[name]
    said = stand_in(name, text)
    tracker = open_tracker(name, tmp_path, "my run", CONFIG, emit)
    tracker.log(1, {"train/loss": 0.1})
    tracker.log(2, {"train/loss": 0.2, "eval/loss": 0.3})
    tracker.close()
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert lines == [*start, [1, {"train/loss": 0.1}], [2, {"train/loss": 0.2, "eval/loss": 0.3}], ["end"]]
    assert notices == [] and len(curve(events(tmp_path), "train/loss")) == 2


FAILURES = {
    "raise ValueError('no key at https://me:secret@host/x.\\nmore')": "ValueError: no key at https://…@host/x",
    MLFLOW.replace("write(step, values)", "open('/nowhere/x')"): "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/x'",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "its process ended with status -9",
    "import sys; print('x' * 100_000, flush=True); sys.exit('Log in first.')": "SystemExit: Log in first",
}


@pytest.mark.parametrize(("text", "why"), FAILURES.items())
def test_a_service_that_fails_is_left_with_one_notice(
    text: str, why: str, tmp_path: Path, emit: Callable[..., None], notices: list[str], stand_in: Callable[[str, str], Path]
) -> None:
    stand_in("mlflow", text)
    tracker = open_tracker("mlflow", tmp_path, "my run", CONFIG, emit)
    step, deadline = 0, time.monotonic() + 20
    while not notices and time.monotonic() < deadline:
        step += 1
        tracker.log(step, {"train/loss": 1.0})
        time.sleep(0.02)
    tracker.log(step + 1, {"train/loss": 1.0})
    tracker.close()
    assert notices == [f"notice: The tracker mlflow has stopped and the training goes on without it: {why}."]
    assert len(curve(events(tmp_path), "train/loss")) == step + 1


def test_a_service_that_hangs_holds_nothing_up(
    tmp_path: Path,
    emit: Callable[..., None],
    notices: list[str],
    stand_in: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "FINISH_S", 0.3)
    stand_in("trackio", "import time; time.sleep(600)")
    tracker = open_tracker("trackio", tmp_path, "my run", CONFIG, emit)
    many: dict[str, Any] = {f"value {i}": 1.0 for i in range(100)}
    for step in range(300):  # far more than a pipe holds
        tracker.log(step, many)
    tracker.close()
    assert notices == ["notice: The tracker trackio has stopped and the training goes on without it: it did not finish within 0.3 s."]


def test_a_folder_that_cannot_be_written_ends_the_files_alone(tmp_path: Path, emit: Callable[..., None], notices: list[str]) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    tracker = open_tracker("none", tmp_path, "my run", CONFIG, emit)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    assert len(notices) == 1 and "The tracker tensorboard has stopped" in notices[0]


def test_a_reason_is_one_short_line() -> None:
    assert reason(ValueError("a" * 900 + "\nb")) == "ValueError: " + "a" * 200
    assert reason(KeyError()) == "KeyError"
