"""Answers: a message is sent, a reply is regenerated, and both are stored whatever becomes of the browser."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from storage.records import MessageRecord
from studio.chat.conversations import Placed, Recorded
from studio.errors import InvalidInput, NotFound, StudioError
from studio.ui import present
from studio.ui.chat.transcript import Looks, messages, on_its_way
from studio.ui.chat.voice import voice_of
from studio.ui.conversation import Turn, paced, to_model
from studio.ui.page import Page, action

if TYPE_CHECKING:
    from studio.chat.service import Stream
    from studio.services import Studio

LOADING = "*The base model is being loaded into memory. This takes some seconds, once.*"
REPLY = "reply"

Values = dict[Any, Any]


def seed_of(page: Page, values: Values) -> int | None:
    """What was typed as the seed; None where nothing was.

    Raises:
        InvalidInput: it is no whole number.
    """
    text = str(values[page.chat.seed] or "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InvalidInput(f"The seed is {text!r}; type a whole number from 0, or leave it empty to draw anew each time.")
    return int(text)


def sampling_of(page: Page, values: Values) -> dict[str, Any]:
    """How a reply is drawn, as the form says. Raises as `seed_of` does."""
    tab = page.chat
    return {
        "temperature": values[tab.temperature],
        "top_p": values[tab.top_p],
        "max_tokens": int(values[tab.length]),
        "seed": seed_of(page, values),
    }


def user_of(session: str) -> str:
    """Who a browser is to the engine, which lets users take turns; no key or program has such a name."""
    return f"page-{hashlib.sha256(session.encode()).hexdigest()[:16]}"


@dataclass
class Hearing:
    """What a browser hears now, for Stop, which may come before the first reply has begun."""

    replies: "list[Recorded | Stream]" = field(default_factory=list)
    is_stopped: bool = False

    def add(self, reply: "Recorded | Stream") -> None:
        """It begins."""
        self.replies.append(reply)
        if self.is_stopped:
            reply.cancel()

    def stop(self) -> None:
        """End them all soon; what was said so far stands."""
        self.is_stopped = True
        for reply in self.replies:
            reply.cancel()


class Speaking:
    """The callbacks."""

    def __init__(self, studio: "Studio", page: Page) -> None:
        self.studio, self.talks, self.page, self.tab = studio, studio.conversations, page, page.chat
        self.looks = Looks(studio, page)
        self.heard: dict[str, Hearing] = {}  # by browser session

    def speak(self, values: Values, session: str) -> Iterator[Values]:
        """Answer what stands in the box; it comes back there where nobody can answer."""
        text, edited = str(values[self.tab.prompt]).strip(), values[self.tab.transcript.edited]
        try:
            if not text:
                raise InvalidInput("There is no message to answer; type one.")
            before = self._before(values, edited)
            yield from self._answer(values, session, before, text)
        except StudioError as error:
            yield {**self._as_it_was(values), self.tab.prompt: text, self.tab.trouble: present.error_card(error, "No reply")}

    def again(self, values: Values, request: gr.Request, event: gr.EventData) -> Iterator[Values]:
        """Another reply to the same message, by whoever is chosen now; the first one stays beside it."""
        talk, message_id = values[self.page.talk], action(event)[1]
        try:
            branch = self.talks.branch(talk, message_id)
            asked = branch[-1] if branch[-1].message.role == "user" else branch[-2]
            before = branch[: branch.index(asked)]
            yield from self._answer(values, str(request.session_hash), before, asked.message)
        except StudioError as error:
            yield {**self._as_it_was(values), self.tab.trouble: present.error_card(error, "No reply")}

    def stop(self, request: gr.Request) -> None:
        """Stop what this browser hears; what was said so far stands."""
        if hearing := self.heard.get(str(request.session_hash)):
            hearing.stop()

    def _before(self, values: Values, edited: str) -> list[Placed]:
        """What stands before the next message: all that is shown, or what stands before the one that is edited."""
        talk = values[self.page.talk]
        if not talk:
            return []
        if not edited:
            return self.talks.branch(talk, values[self.page.leaf])
        branch = self.talks.branch(talk, edited)
        return branch[:-1]

    def _answer(self, values: Values, session: str, before: Sequence[Placed], asked: str | MessageRecord) -> Iterator[Values]:
        """Answer a message that is not stored yet, or one that is."""
        question = Turn("user", asked if isinstance(asked, str) else asked.content)
        first = messages(before, busy=True)
        hearing = self.heard[session] = Hearing()
        waits = Turn("assistant", "" if self.studio.status().base_loaded else LOADING)
        yield {**self.busy(), self.tab.transcript.chat: [*first, *on_its_way([question, waits])], self.tab.trouble: ""}
        try:
            system, voice = values[self.tab.system] or "", voice_of(self.tab.voice, values)
            turns = to_model([*(placed.message for placed in before), question], system)
            stream = self.studio.stream(turns, voice, user=user_of(session), **sampling_of(self.page, values))
            recorded = self._recorded(values, before, asked, stream, system)
            hearing.add(recorded)
            yield from self._listen(recorded, [*first, *on_its_way([question])])
        finally:
            self.heard.pop(session, None)

    def _listen(self, recorded: Recorded, first: list[dict[str, Any]]) -> Iterator[Values]:
        """Show a reply as it comes, then as it was stored."""
        trouble = ""
        try:
            for said in paced({REPLY: recorded}):
                yield {self.tab.transcript.chat: [*first, *on_its_way([Turn("assistant", said[REPLY])])]}
        except StudioError as error:
            if recorded.message is None:
                raise
            trouble = present.error_card(error, "The reply broke off")
        finally:
            recorded.leave()  # of a reply that has ended it changes nothing
        reply = recorded.message
        assert reply is not None  # what failed before its first word has raised
        yield {**self.ready(), **self.looks.shown(reply.conversation_id, reply.id), self.tab.trouble: trouble}

    def _recorded(self, values: Values, before: Sequence[Placed], asked: str | MessageRecord, stream: "Stream", system: str) -> Recorded:
        """Store the message, in a new conversation where none is open, now that somebody answers it."""
        try:
            if isinstance(asked, MessageRecord):
                return Recorded(self.talks, asked, stream, is_new=False)
            talk = values[self.page.talk] or self.talks.make(system).id
            self.talks.set_system(talk, system)
            question = self.talks.ask(talk, before[-1].message.id if before else "", asked)
            return Recorded(self.talks, question, stream, is_new=True)
        except StudioError:
            stream.cancel()
            raise

    def busy(self) -> Values:
        """A reply is on its way."""
        return {
            self.tab.prompt: "",
            self.tab.send: gr.Button(visible=False),
            self.tab.stop: gr.Button(visible=True),
            self.tab.fresh: gr.Button(interactive=False),
            self.tab.transcript.note: "",
        }

    def ready(self) -> Values:
        """The next message can be sent."""
        return {
            self.tab.send: gr.Button(visible=True),
            self.tab.stop: gr.Button(visible=False),
            self.tab.fresh: gr.Button(interactive=True),
        }

    def _as_it_was(self, values: Values) -> Values:
        """What was open before."""
        talk, leaf = values[self.page.talk], values[self.page.leaf]
        try:
            shown = self.looks.shown(talk, leaf)
        except NotFound:
            shown = self.looks.shown("")
        return {**self.ready(), **shown}
