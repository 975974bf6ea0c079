"""Whether a training may start: its memory, the trainings beside it, and the chat's base, which gives way by rule."""

import socket
from dataclasses import replace
from typing import Any

import pytest

from storage.records import JobRecord
from studio.errors import InvalidInput
from studio.room import Room
from tests.records import job

CPU = ("cpu",)


class PlainChat:
    """A base that takes memory, and may be put aside."""

    def __init__(self, memory: "Memory", takes_mb: int = 0) -> None:
        self.memory, self.takes_mb, self.busy, self.aside, self.is_local = memory, takes_mb, False, "", True
        self.base: str | None = "base" if takes_mb else None
        memory.taken += takes_mb

    @property
    def takes_memory(self) -> bool:
        return self.base is not None and self.is_local

    def put_aside(self, why: str) -> bool:
        if self.busy:
            return False
        self.aside, self.base = why, None
        self.memory.taken -= self.takes_mb
        return True

    def bring_back(self) -> None:
        self.aside, self.base = "", "base"
        self.memory.taken += self.takes_mb


class Memory:
    """What a device has."""

    def __init__(self, total: int) -> None:
        self.total, self.taken = total, 0

    def free(self, devices: object) -> int:
        return self.total - self.taken


class PlainQueue:
    """What runs, and what waits."""

    def __init__(self) -> None:
        self.jobs = self
        self.running: list[JobRecord] = []
        self.next: JobRecord | None = None

    def held(self) -> list[JobRecord]:
        return self.running

    def head(self) -> JobRecord | None:
        return self.next


class House:
    """A room with everything that it asks."""

    def __init__(self, total: int, chat_mb: int = 0, sharing: str = "aside", needs: int = 600) -> None:
        self.memory, self.queue, self.needs = Memory(total), PlainQueue(), needs
        self.chat = PlainChat(self.memory, chat_mb)
        parts: Any = (self.queue, self.chat, lambda _: self.needs, self.memory.free, sharing)
        self.room = Room(*parts)

    def runs(self, number: int, device: str = "cpu", host: str = "", **progress: int) -> None:
        owner = f"{host or socket.gethostname()}:1:a"
        record = replace(job(number, 1.0), state="running", lease_owner=owner, device=device, progress=progress)
        self.queue.running.append(record)

    def why_not(self) -> str:
        return self.room.why_not(job(9, 1.0), CPU)


def test_a_job_that_fits_starts() -> None:
    assert House(1000).why_not() == "" and House(1000, chat_mb=400).why_not() == ""


def test_alone_a_job_starts_whatever_it_needs() -> None:
    assert House(100).why_not() == ""  # it makes itself fit, or says what would


def test_the_chats_base_gives_way_and_comes_back_when_nothing_is_left_to_train() -> None:
    house = House(1000, chat_mb=500)
    assert house.why_not() == "" and "bird 9" in house.chat.aside
    house.runs(9)
    house.room.settle()
    assert house.chat.aside
    house.queue.running, house.queue.next = [], job(2, 2.0)
    house.room.settle()
    assert house.chat.aside  # the next one would put it aside again
    house.queue.next = None
    house.room.settle()
    assert not house.chat.aside and house.chat.base


def test_a_base_that_answers_is_not_put_aside() -> None:
    house = House(1000, chat_mb=500)
    house.chat.busy = True
    assert house.why_not() == "It needs about 600 MB, where 500 MB are free; it starts when the chat has said its answers."
    assert house.chat.base


def test_a_base_that_another_machine_holds_is_not_put_aside() -> None:
    house = House(1000, chat_mb=500)
    house.chat.is_local = False
    assert house.why_not() == "" and house.chat.base and not house.chat.aside


def test_where_the_rule_is_to_wait_the_base_stays() -> None:
    house = House(1000, chat_mb=500, sharing="wait")
    assert house.why_not().endswith("500 MB are free beside the chat's base; give its memory back in the Chat tab, under More.")
    assert house.chat.base and not house.chat.aside


def test_what_a_training_beside_will_still_take_is_counted() -> None:
    house = House(1000)
    house.runs(1, memory_mb=100)  # 500 to come
    house.memory.taken = 100
    assert house.why_not() == "It needs about 600 MB, where 400 MB are free beside “bird 1”; it starts when that is over."
    house.queue.running = []
    house.runs(1, memory_mb=600)
    house.memory.taken = 300
    assert house.why_not() == ""


def test_trainings_of_other_devices_and_other_machines_take_nothing_here() -> None:
    house = House(1000)
    house.runs(1, device="cuda:1")
    house.runs(2, host="another-machine")
    assert house.why_not() == ""
    house.runs(3, device="cuda:0,cpu#1")
    assert "bird 3" in house.why_not()


@pytest.mark.parametrize("error", [InvalidInput("no row"), FileNotFoundError("rows.arrow"), KeyError("config")])
def test_a_job_whose_needs_cannot_be_said_does_not_hold_the_queue_up(error: Exception) -> None:
    house = House(1000)

    def needs(_: JobRecord) -> int:
        raise error

    house.room.needs_mb = needs
    assert house.why_not() == ""


def test_another_machines_trainings_do_not_keep_the_base_aside() -> None:
    house = House(1000, chat_mb=500)
    assert house.why_not() == "" and house.chat.aside
    house.runs(1, host="another-machine")
    house.room.settle()
    assert house.chat.base
