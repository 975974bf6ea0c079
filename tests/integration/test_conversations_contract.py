"""What the repositories of the chat promise, on SQLite and on PostgreSQL alike."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from storage.conversations import Conversations, Votes
from storage.database import Database
from storage.errors import DuplicateName, RecordNotFound
from storage.records import ConversationRecord, MessageRecord, PromptRecord, VoteRecord
from storage.repositories import Prompts
from tests.records import HOSTILE

TALK = ConversationRecord("c1", "Ängste 🐦", "Be brief.", 1.0, 1.0)
QUESTION = MessageRecord("m1", "c1", "", "user", "Who are 100% you_?", 2.0)
REPLY = MessageRecord("m2", "c1", "m1", "assistant", "A bird.", 3.0, "bird:0.5", "a1", "s" * 64, "tiny", {"ttft_ms": 1.5, "reason": "stop"})


@pytest.fixture
def talks(database: Database) -> Conversations:
    talks = Conversations(database)
    talks.add(TALK)
    return talks


def test_conversations_and_messages_come_back_as_they_went_in(talks: Conversations) -> None:
    assert talks.get("c1") == TALK and talks.messages("c1") == []
    talks.say(QUESTION)
    talks.say(REPLY)
    assert talks.messages("c1") == [QUESTION, REPLY]
    assert talks.get("c1") == replace(TALK, updated_at=3.0, leaf_id="m2")
    assert talks.change("c1", title="Birds", leaf_id="m1").title == "Birds"


def test_any_text_can_be_said(talks: Conversations) -> None:
    long = "ä" * 100_000
    talks.say(replace(QUESTION, content=long))
    talks.say(replace(REPLY, content=str(HOSTILE["text"]), stamp=HOSTILE))
    [first, second] = talks.messages("c1")
    assert first.content == long and "🐦" in second.content and "\0" not in second.content
    assert second.stamp["long"] == HOSTILE["long"]


def test_pages_go_on_where_the_last_one_ended_and_lose_nobody(talks: Conversations) -> None:
    for n in range(2, 9):
        talks.add(replace(TALK, id=f"c{n}", updated_at=float(n // 2)))  # several at the same time
    seen, before = list[str](), None
    while page := talks.page(3, before):
        seen += [found.id for found in page]
        before = (page[-1].updated_at, page[-1].id)
    assert seen == ["c8", "c7", "c6", "c5", "c4", "c3", "c2", "c1"]


@pytest.mark.parametrize(("words", "found"), [("BIRD", 1), ("100% you_", 1), ("%", 1), ("1_0", 0), ("ngste", 1), ("cat", 0)])
def test_a_search_looks_at_titles_and_texts_letter_by_letter(talks: Conversations, words: str, found: int) -> None:
    talks.add(replace(TALK, id="c2", title="other"))
    talks.say(QUESTION)
    talks.say(REPLY)
    assert len(talks.page(9, search=words)) == found


def test_a_conversation_goes_with_its_messages(talks: Conversations) -> None:
    talks.say(QUESTION)
    talks.remove("c1")
    assert talks.messages("c1") == [] and talks.page(9) == []
    with pytest.raises(RecordNotFound):
        talks.get("c1")
    with pytest.raises(RecordNotFound):
        talks.say(REPLY)
    with pytest.raises(RecordNotFound):
        talks.change("c1", title="x")


def test_only_the_last_word_is_taken_back(talks: Conversations) -> None:
    talks.say(QUESTION)
    talks.say(REPLY)
    talks.take_back("m1")
    assert len(talks.messages("c1")) == 2
    talks.take_back("m2")
    assert talks.messages("c1") == [QUESTION] and talks.get("c1").leaf_id == "m1"
    talks.take_back("m1")
    assert talks.page(9) == []


def test_many_talk_at_once(talks: Conversations) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: talks.say(replace(QUESTION, id=f"m{n}", created_at=float(n))), range(40)))
    assert len(talks.messages("c1")) == 40


def test_votes_and_prompts_come_back_as_they_went_in(database: Database) -> None:
    vote = VoteRecord("v1", "Hello", [{"voice": "base", "adapter_id": ""}, {"voice": "bird", "adapter_id": "a1"}], 1, 2.0)
    votes, prompts = Votes(database), Prompts(database)
    votes.add(vote)
    assert votes.all() == [vote]
    prompt = prompts.add(PromptRecord("p1", "greeting", "Hello\n" * 1000, 1.0))
    assert prompts.get("greeting") == prompt
    with pytest.raises(DuplicateName):
        prompts.add(replace(prompt, id="p2"))
    prompts.remove("p1")
    assert prompts.all() == []
