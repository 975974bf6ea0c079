"""Which workers are gone: a lease is judged by the observer's own clock, and by a file that a living worker holds."""

from pathlib import Path

import pytest

from storage.errors import DatabaseUnavailable
from storage.records import LeaseRecord
from studio.jobs.devices import Slots
from studio.jobs.leases import Leases


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def nothing() -> None:
    """The database takes what is written."""


def lease(until: float, owner: str = "elsewhere:1:a") -> LeaseRecord:
    return LeaseRecord("j1", 1, owner, until)


def watched(leases: Leases, clock: Clock, seconds: float, *held: LeaseRecord) -> list[LeaseRecord]:
    """What is over after so many seconds of looking twice a second."""
    found: list[LeaseRecord] = []
    for _ in range(round(seconds * 2)):
        clock.now += 0.5
        found = leases.over(held)
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(tmp_path: Path, clock: Clock) -> Leases:
    return Leases(tmp_path / "workers", "here:1:b", 4.0, nothing, clock)


def test_a_lease_is_over_when_it_stays_the_same_for_its_time_whatever_it_says(leases: Leases, clock: Clock) -> None:
    for until in (0.0, 1e12):  # a clock far behind, or far ahead
        assert watched(leases, clock, 6.0, lease(until)) == []
        assert watched(leases, clock, 1.5, lease(until)) == [lease(until)]


def test_a_lease_that_changes_is_never_over(leases: Leases, clock: Clock) -> None:
    for number in range(5):
        assert watched(leases, clock, 3.0, lease(-float(number))) == []  # a clock that runs backwards renews as well


def test_time_in_which_nobody_looked_does_not_count(leases: Leases, clock: Clock) -> None:
    assert watched(leases, clock, 3.5, lease(5.0)) == []
    clock.now += 1000.0  # the observer slept, or the database was away for everybody
    assert leases.over([lease(5.0)]) == []
    assert watched(leases, clock, 6.0, lease(5.0)) == []
    assert watched(leases, clock, 1.5, lease(5.0)) == [lease(5.0)]


def test_where_nobody_can_write_nobody_is_silent(leases: Leases, clock: Clock) -> None:
    def refuse() -> None:
        raise DatabaseUnavailable("locked")

    leases.write = refuse
    assert watched(leases, clock, 4.5, lease(5.0)) == []
    for _ in range(20):
        clock.now += 0.5
        with pytest.raises(DatabaseUnavailable):
            leases.over([lease(5.0)])
    leases.write = nothing
    assert watched(leases, clock, 2.0, lease(5.0)) == []  # its worker has some time to renew
    assert watched(leases, clock, 1.0, lease(6.0)) == []  # and did


def test_a_dead_worker_of_this_machine_is_known_at_once(tmp_path: Path, leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    other = Leases(tmp_path / "workers", "here:2:c", 4.0, nothing)
    other.hold([])
    held = [lease(1.0, "here:2:c"), lease(1.0, "elsewhere:2:c"), lease(1.0, "here:3:unknown")]
    assert leases.over(held) == []
    other._lock.release()  # as the system does when it dies
    assert leases.over(held) == held[:1]


def test_files_of_dead_workers_stay_as_long_as_they_hold_a_job(tmp_path: Path, leases: Leases) -> None:
    other = Leases(tmp_path / "workers", "here:2:c", 4.0, nothing)
    other.hold([])
    other._lock.release()
    leases.hold([lease(1.0, "here:2:c")])
    assert len(list((tmp_path / "workers").iterdir())) == 2
    third = Leases(tmp_path / "workers", "here:3:d", 4.0, nothing)
    third.hold([])
    assert sorted(path.name for path in (tmp_path / "workers").iterdir()) == ["here-1-b.alive", "here-3-d.alive"]
    leases.release()
    third.release()
    assert not list((tmp_path / "workers").iterdir())


def test_slots_are_given_back_where_taking_one_of_several_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(tmp_path, ("cuda:0", "cuda:1"))
    take = slots._take

    def take_one(name: str, held: object) -> object:
        if name == "cuda:1":
            raise OSError("no file left")
        return take(name, held)  # type: ignore[arg-type]

    monkeypatch.setattr(slots, "_take", take_one)
    with pytest.raises(OSError, match="no file left"):
        slots.reserve(2)
    monkeypatch.undo()
    both = Slots(tmp_path, ("cuda:0", "cuda:1")).reserve(2)
    assert both is not None and both.names == ("cuda:0", "cuda:1")
    assert slots.reserve() is None
    both.release()
