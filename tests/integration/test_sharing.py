"""Chat and training in one memory, with the real chat and the real worker; what is free is told to them."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from studio.errors import BaseUnavailable
from studio.services import Studio
from tests.conftest import tiny_settings

pytestmark = pytest.mark.usefixtures("warm")
TINY = {"quantization": "fp32", "rank": 4, "max_steps": 100_000}
HELLO = [{"role": "user", "content": "Hello"}]


def wait_for(what: Callable[[], object], timeout_s: float = 60) -> None:
    end = time.time() + timeout_s
    while not what():
        assert time.time() < end, "waited in vain"
        time.sleep(0.1)


def on_a_small_machine(home: Path, base: Path, sharing: str) -> Studio:
    """A studio whose chat's base takes the memory that a training needs."""
    studio = Studio(tiny_settings(home, sharing=sharing))
    studio.bases.fetch(str(base))
    studio.worker.room.free_mb = lambda devices: 10 if studio.chat.base is not None else 100_000  # type: ignore[attr-defined]
    return studio


@pytest.fixture
def job_of() -> Callable[[Studio], str]:
    return lambda studio: studio.train("Angry bird", "a", overrides=TINY).id


def test_the_chats_base_is_put_aside_for_a_training_and_comes_back(
    tmp_path: Path, tiny_base: Path, job_of: Callable[[Studio], str]
) -> None:
    studio = on_a_small_machine(tmp_path / "home", tiny_base, "aside")
    before = studio.reply(HELLO, "base", max_tokens=8, temperature=0.0).text
    job = job_of(studio)
    studio.worker.start()
    wait_for(lambda: studio.queue.get(job).state == "running")
    assert studio.chat.base is None and "“a” trains" in studio.status().aside
    with pytest.raises(BaseUnavailable, match="is put aside while “a” trains in the memory that it took; it comes back by itself"):
        studio.reply(HELLO, "base")
    studio.queue.cancel(job)
    wait_for(lambda: studio.chat.base is not None)
    assert studio.status().aside == ""
    assert studio.reply(HELLO, "base", max_tokens=8, temperature=0.0).text == before
    studio.close()


def test_a_training_waits_for_the_chats_base_where_the_rule_says_so(
    tmp_path: Path, tiny_base: Path, job_of: Callable[[Studio], str]
) -> None:
    studio = on_a_small_machine(tmp_path / "home", tiny_base, "wait")
    studio.reply(HELLO, "base", max_tokens=8)
    job = job_of(studio)
    studio.worker.start()
    wait_for(lambda: studio.queue.get(job).state == "waiting")
    assert "10 MB are free beside the chat's base; give its memory back" in studio.queue.get(job).reason
    time.sleep(1)
    assert studio.queue.get(job).state == "waiting" and studio.queue.attempts(job) == []
    assert studio.chat.unload()
    wait_for(lambda: studio.queue.get(job).state == "running")
    assert studio.queue.get(job).reason == ""
    studio.close()


def test_a_base_that_answers_stays(tmp_path: Path, tiny_base: Path) -> None:
    studio = on_a_small_machine(tmp_path / "home", tiny_base, "aside")
    stream = studio.stream(HELLO, "base", max_tokens=400, ignore_eos=True)
    next(iter(stream))
    assert not studio.chat.unload() and not studio.chat.put_aside("x") and studio.chat.aside == ""
    stream.cancel()
    wait_for(studio.chat.unload)
    assert studio.chat.base is None and studio.reply(HELLO, "base", max_tokens=4).text
    studio.close()
