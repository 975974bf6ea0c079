"""Checkpoints: whole or not there, the newest that can be used, and no more than are to be kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from studio.training.checkpoint import (
    STATE,
    TENSORS,
    CheckpointFolder,
    Snapshot,
    pack_optimizer,
    pack_random,
    unpack_optimizer,
    unpack_random,
)


def snapshot(step: int) -> Snapshot:
    tensors = {"a": torch.full((3, 2), float(step)), "b.c": torch.arange(step, dtype=torch.long), "s": torch.tensor(0.1 * step)}
    return Snapshot(step, tensors, {"at": {"loss": 0.1 + step, "recent": [1e-300, 1 / 3]}, "optimizer": {}})


def folder(tmp_path: Path, keep: int = 2, identity: str = "mine") -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", identity, keep)


def steps(checkpoints: CheckpointFolder) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in checkpoints.folder.iterdir())


def assert_equal(found: Snapshot | None, wanted: Snapshot) -> None:
    assert found is not None and (found.step, found.state) == (wanted.step, wanted.state)
    assert found.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    assert checkpoints.newest() is None
    checkpoints.save(snapshot(7))
    assert_equal(folder(tmp_path).newest(), snapshot(7))


def test_a_view_of_a_larger_tensor_is_saved_as_what_it_shows(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    folder(tmp_path).save(Snapshot(1, {"turned": whole.T, "part": whole[:, 1]}, {}))
    found = folder(tmp_path).newest()
    assert found is not None and torch.equal(found.tensors["turned"], whole.T) and torch.equal(found.tensors["part"], whole[:, 1])


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_no_more_stay_than_are_to_be_kept_and_the_newest_do(tmp_path: Path, keep: int) -> None:
    checkpoints = folder(tmp_path, keep)
    for step in (3, 9, 10, 100):
        checkpoints.save(snapshot(step))
    assert steps(checkpoints) == [3, 9, 10, 100][-keep:]
    assert_equal(checkpoints.newest(), snapshot(100))


def truncated(path: Path) -> None:
    data = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(data[: len(data) // 2])


def without_identity(path: Path) -> None:
    state = json.loads((path / STATE).read_text())
    del state["identity"]
    (path / STATE).write_text(json.dumps(state))


BREAKS: dict[str, Callable[[Path], object]] = {
    "half the tensors": truncated,
    "no tensors": lambda path: (path / TENSORS).unlink(),
    "noise": lambda path: (path / TENSORS).write_bytes(bytes(range(256)) * 4),
    "half a state": lambda path: (path / STATE).write_text((path / STATE).read_text()[:20]),
    "no identity": without_identity,
    "no state": lambda path: (path / STATE).unlink(),
    "an empty folder": lambda path: [child.unlink() for child in path.iterdir()],
    "a file": lambda path: (shutil.rmtree(path), path.write_text("")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_one_is_passed_over_for_an_older_one(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = folder(tmp_path)
    for step in (8, 9):
        checkpoints.save(snapshot(step))
    assert_equal(checkpoints.newest(), snapshot(9))
    BREAKS[name](checkpoints.folder / "step-000000009")
    assert_equal(checkpoints.newest(), snapshot(8))
    assert "step-000000009 cannot be read" in caplog.text
    BREAKS[name](checkpoints.folder / "step-000000008")
    assert checkpoints.newest() is None


def test_one_of_another_job_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path).save(snapshot(4))
    folder(tmp_path, identity="other").save(snapshot(9))
    assert_equal(folder(tmp_path).newest(), snapshot(4))
    assert "step-000000009 is of another configuration" in caplog.text


@pytest.mark.parametrize("step", [9, 10])
def test_one_that_cannot_be_used_does_not_take_the_place_of_a_good_one(tmp_path: Path, step: int) -> None:
    """Neither the place of its own step nor that of an older one that is gone on from."""
    checkpoints = folder(tmp_path, keep=1)
    checkpoints.save(snapshot(10))
    truncated(checkpoints.folder / "step-000000010")
    checkpoints.save(snapshot(step))
    assert_equal(checkpoints.newest(), snapshot(step))
    assert steps(checkpoints) == [step]


def test_a_half_written_one_is_none(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(snapshot(4))
    shutil.copytree(checkpoints.folder / "step-000000004", checkpoints.folder / ".partial-step-000000005-1234")
    assert_equal(checkpoints.newest(), snapshot(4))


def test_a_disk_that_is_full_is_an_os_error_and_leaves_the_older_ones(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    checkpoints = folder(tmp_path)
    checkpoints.save(snapshot(4))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(Snapshot(5, {"a": torch.zeros(10_000)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_equal(checkpoints.newest(), snapshot(4))
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000000004"]


def trained(optimizer: torch.optim.Optimizer, parameters: list[Tensor], count: int) -> None:
    for step in range(count):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.sin(parameter.detach() * (index + step + 1))
        optimizer.step()


def adam(values: list[Tensor]) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    parameters = [torch.nn.Parameter(value.clone()) for value in values]
    groups = [{"params": parameters[:1], "factor": 1.0}, {"params": parameters[1:], "factor": 4.0}]
    return torch.optim.AdamW(groups, lr=0.1, fused=True), parameters


def test_an_optimizer_goes_on_with_its_moments_and_its_groups() -> None:
    first, parameters = adam([torch.ones(3), torch.ones(2, 2), torch.zeros(1)])
    trained(first, parameters, 3)
    tensors, plain = pack_optimizer(first)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    assert {name.rpartition(".")[2] for name in tensors} == {"exp_avg", "exp_avg_sq", "step"} and not plain
    second, copies = adam([p.detach() for p in parameters])
    unpack_optimizer(second, {**tensors, **plain, "adapter.x": torch.zeros(1)})
    assert [group["factor"] for group in second.param_groups] == [1.0, 4.0]
    fresh, forgetful = adam([p.detach() for p in parameters])
    for optimizer, values in ((first, parameters), (second, copies), (fresh, forgetful)):
        trained(optimizer, values, 3)
    assert all(torch.equal(x, y) for x, y in zip(parameters, copies, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(parameters[:2], forgetful[:2], strict=True))


def test_random_numbers_go_on_where_they_were() -> None:
    packed = pack_random()
    wanted = torch.rand(5)
    assert not torch.equal(torch.rand(5), wanted)
    unpack_random(packed)
    assert torch.equal(torch.rand(5), wanted)
