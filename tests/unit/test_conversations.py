"""Conversations as trees, what a reply leaves that breaks off, votes, kept prompts, and what a probe counts."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from storage import repositories
from storage.conversations import Conversations as Records
from storage.conversations import Votes as VoteRecords
from storage.database import Database
from storage.records import MessageRecord
from studio.chat.conversations import FAILED, LEFT, UNTITLED, Conversations, Recorded, title_from
from studio.chat.probe import compare
from studio.chat.prompts import Prompts
from studio.chat.stamp import Stamp, stamp_of
from studio.chat.votes import Rate, Votes
from studio.errors import InvalidInput, NameTaken, NotFound, StudioError

EVIL = '<img src=x onerror="alert(1)"> & \u202e # title'
STAMP = Stamp("bird", "a1", "s" * 64, "tiny", 3.0, 20.0, 12, 41.5, "stop", 30, 5)
BASE = Stamp("base", "", "", "tiny", 0.0, 20.0, 12, 41.5, "stop")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'studio.db'}")
    yield database
    database.close()


@pytest.fixture
def talks(database: Database, tmp_path: Path) -> Conversations:
    return Conversations(Records(database), tmp_path / "exports")


def contents(talks: Conversations, talk: str, leaf: str = "") -> list[str]:
    return [placed.message.content for placed in talks.branch(talk, leaf)]


def exchange(talks: Conversations, talk: str, parent: str, text: str) -> tuple[MessageRecord, MessageRecord]:
    question = talks.ask(talk, parent, text)
    return question, talks.answer(question, f"re: {text}", STAMP)


def test_the_first_message_gives_the_title_and_a_stamp_comes_back_whole(talks: Conversations) -> None:
    talk = talks.make(" Be brief. ")
    assert (talk.title, talk.system, talks.branch(talk.id)) == (UNTITLED, "Be brief.", [])
    _, reply = exchange(talks, talk.id, "", "Who are\n you?")
    assert talks.get(talk.id).title == "Who are you?"
    assert contents(talks, talk.id) == ["Who are\n you?", "re: Who are\n you?"]
    assert stamp_of(talks.branch(talk.id)[1].message) == STAMP and reply.stamp["tokens"] == 12
    assert stamp_of(talks.branch(talk.id)[0].message) is None
    assert len(title_from("word " * 99)) <= 80


def test_edit_and_resend_and_regenerate_are_siblings_and_nothing_is_lost(talks: Conversations) -> None:
    talk = talks.make().id
    first, reply = exchange(talks, talk, "", "one")
    second, _ = exchange(talks, talk, reply.id, "two")
    again = talks.answer(first, "another reply", STAMP)  # regenerate
    edited, _ = exchange(talks, talk, reply.id, "two, edited")
    assert contents(talks, talk) == ["one", "re: one", "two, edited", "re: two, edited"]
    assert contents(talks, talk, again.id) == ["one", "another reply"]
    branch = talks.branch(talk, talks.end_of(talk, second.id))
    assert [placed.message.content for placed in branch] == ["one", "re: one", "two", "re: two"]
    assert branch[1].siblings == (reply.id, again.id) and branch[1].place == 1
    assert branch[2].siblings == (second.id, edited.id) and branch[2].place == 1
    assert talks.end_of(talk, reply.id) == talks.branch(talk)[-1].message.id  # what was said last at each fork
    talks.look(talk, again.id)
    assert contents(talks, talk) == ["one", "another reply"]  # the next time it is opened


def test_the_list_is_searched_renamed_and_emptied(talks: Conversations) -> None:
    first, second = talks.make().id, talks.make().id
    exchange(talks, second, "", "about ducks")
    exchange(talks, first, "", "about geese")
    assert [found.id for found in talks.page(9)] == [first, second]
    assert [found.id for found in talks.page(9, search="  DUCKS ")] == [second]
    newest = talks.page(1)[0]
    assert [found.id for found in talks.page(9, (newest.updated_at, newest.id))] == [second]
    assert talks.rename(first, "  Water  birds ").title == "Water birds"
    for wrong in ("", " \n", "x" * 81):
        with pytest.raises(InvalidInput, match="type one of 1 to 80"):
            talks.rename(first, wrong)
    talks.remove(first)
    with pytest.raises(NotFound, match="begin a new one"):
        talks.branch(first)
    with pytest.raises(NotFound, match="not there any more"):
        talks.branch(second, "gone")
    with pytest.raises(InvalidInput, match="no message"):
        talks.ask(second, "", " \n ")


def test_exports_hold_what_was_said(talks: Conversations) -> None:
    talk = talks.make("Be <b>brief</b>.").id
    _, reply = exchange(talks, talk, "", EVIL)
    exchange(talks, talk, "", "another beginning")
    talks.look(talk, reply.id)
    markdown = talks.export(talk).read_text(encoding="utf-8")
    assert EVIL in markdown and "## bird (tiny)" in markdown and "Be <b>brief</b>." in markdown and "another" not in markdown
    whole = json.loads(talks.export(talk, "json").read_text(encoding="utf-8"))
    assert len(whole["messages"]) == 4 and whole["messages"][0]["content"] == EVIL
    with pytest.raises(InvalidInput, match="markdown or json"):
        talks.export(talk, "pdf")


@dataclass
class FakeStream:
    """A reply without an engine."""

    pieces: list[str]
    error: Exception | None = None
    cancelled: list[bool] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces:
            if self.cancelled:
                return
            yield piece
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled.append(True)

    def stamp_so_far(self, reason: str = "") -> Stamp:
        return Stamp("bird", "a1", "s" * 64, "tiny", 0.0, 0.0, 1, 0.0, reason or "stop")


def recorded(talks: Conversations, stream: FakeStream) -> tuple[str, Recorded]:
    talk = talks.make().id
    return talk, Recorded(talks, talks.ask(talk, "", "Hello"), stream, is_new=True)  # type: ignore[arg-type]


def test_a_reply_is_stored_when_it_ends(talks: Conversations) -> None:
    talk, reply = recorded(talks, FakeStream(["A ", "bird."]))
    assert "".join(reply) == "A bird." and reply.message is not None
    assert contents(talks, talk) == ["Hello", "A bird."] and reply.message.stamp["reason"] == "stop"


def test_of_a_listener_who_goes_away_stays_what_was_said_with_the_reason(talks: Conversations) -> None:
    talk, reply = recorded(talks, FakeStream(["A ", "bird.", "never"]))
    pieces = iter(reply)
    next(pieces)
    reply.leave()
    assert list(pieces) == []
    assert contents(talks, talk) == ["Hello", "A "] and reply.message is not None and reply.message.stamp["reason"] == LEFT


def test_of_a_reply_that_fails_stays_what_was_said_or_nothing_at_all(talks: Conversations) -> None:
    talk, reply = recorded(talks, FakeStream(["A "], StudioError("broken")))
    with pytest.raises(StudioError, match="broken"):
        list(reply)
    assert contents(talks, talk) == ["Hello", "A "] and reply.message is not None and reply.message.stamp["reason"] == FAILED
    talk, reply = recorded(talks, FakeStream([], StudioError("broken")))
    with pytest.raises(StudioError, match="broken"):
        list(reply)
    with pytest.raises(NotFound):
        talks.get(talk)


def test_votes_are_counted_where_voices_differ(database: Database) -> None:
    votes = Votes(VoteRecords(database))
    other = Stamp("cat", "a2", "t" * 64, "tiny", 0.0, 0.0, 1, 1.0, "stop")
    votes.vote("Hello", [BASE, STAMP, other], 1)
    votes.vote("Hello", [STAMP, BASE], 1)
    votes.vote("Hello", [STAMP, STAMP], 0)  # two seeds
    assert votes.rates() == {"a1": Rate(1, 2), "a2": Rate(0, 1)}
    for compared, winner in (([BASE, STAMP], 2), ([BASE], 0), ([BASE, STAMP], -1)):
        with pytest.raises(InvalidInput, match="compare again"):
            votes.vote("Hello", compared, winner)


def test_prompts_are_kept_under_a_name(database: Database) -> None:
    prompts = Prompts(repositories.Prompts(database))
    kept = prompts.keep(" Zoo ", " Which animals\nare there? ")
    prompts.keep("aunt", "Hello")
    assert [prompt.name for prompt in prompts.all()] == ["aunt", "Zoo"] and kept.text == "Which animals\nare there?"
    with pytest.raises(NameTaken, match="'Zoo'"):
        prompts.keep("Zoo", "other")
    for name, text in (("", "x"), ("x", "  "), ("x", "y" * 20_001)):
        with pytest.raises(InvalidInput):
            prompts.keep(name, text)
    prompts.remove(kept.id)
    with pytest.raises(NotFound):
        prompts.get(kept.id)


def test_a_probe_counts_what_moves() -> None:
    base, voice = torch.tensor([0.5, 0.3, 0.2, 0.0]).log(), torch.tensor([0.1, 0.3, 0.2, 0.4]).log()
    variation, divergence, gained, lost = compare(base, base, str)
    assert (variation, divergence, gained, lost) == (0.0, 0.0, (), ())
    variation, divergence, gained, lost = compare(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.1, 0.3, 0.6]).log(), str)
    assert variation == pytest.approx(0.4) and divergence == pytest.approx(0.1 * math.log(0.1 / 0.5) + 0.6 * math.log(3))
    assert [(m.text, round(m.before, 3), round(m.after, 3)) for m in gained] == [("2", 0.2, 0.6)]
    assert [m.text for m in lost] == ["0"]
    assert compare(base, voice, str)[0] == pytest.approx(0.4)
