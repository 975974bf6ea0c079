"""Whose turn it is among those who wait."""

from dataclasses import dataclass

from studio.chat.waiting import in_turn


@dataclass(eq=False)
class One:
    user: str
    voice_key: str
    submitted: float


def order(waiting: list[One], answered: list[One]) -> list[int]:
    return [waiting.index(one) for one in in_turn(waiting, answered)]


def test_who_came_first_is_first_among_equals() -> None:
    assert order([One("", "", 3.0), One("", "", 1.0), One("", "", 2.0)], []) == [1, 2, 0]


def test_one_who_asks_much_gives_way_to_one_who_asks_little() -> None:
    waiting = [One("a", "x", 1.0), One("a", "x", 2.0), One("a", "x", 3.0), One("b", "x", 4.0)]
    assert order(waiting, []) == [0, 3, 1, 2]
    assert order(waiting, [One("a", "y", 0.0)]) == [3, 0, 1, 2]


def test_among_one_users_requests_voices_take_turns() -> None:
    waiting = [One("a", "x", 1.0), One("a", "x", 2.0), One("a", "y", 3.0)]
    assert order(waiting, []) == [0, 2, 1]
