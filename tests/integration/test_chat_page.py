"""The Chat tab's own callbacks, without a browser: who is whose user, and what a conversation remembers of its voice."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.records import MessageRecord
from studio.services import Studio
from studio.ui import app as page_app
from studio.ui.chat.speaking import user_of
from studio.ui.chat.voice import BASE, as_said
from studio.ui.page import BLEND, Page
from studio.ui.tabs import chat
from tests.conftest import tiny_settings
from tests.serving import add_adapters


@pytest.fixture(scope="module")
def studio(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("page") / "home", max_batch=2))
    studio.bases.fetch(str(tiny_base))
    add_adapters(studio)
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def tab(studio: Studio) -> tuple[Page, Any]:
    """The page, and what its Send button calls."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        wired = chat._wire_speaking
        patch.setattr(chat, "_wire_speaking", lambda page, events, draw: (seen.extend([page, events]), wired(page, events, draw)))
        page_app.build_page(studio)
    return seen[0], seen[1]


def values_of(page: Page, **changes: Any) -> dict[Any, Any]:
    """What the browser would send of the tab: everything as it is at first, but for the changes."""
    known = {part: part.value for part in page.chat.__dict__.values() if hasattr(part, "value")}
    known |= {part: part.value for part in [*page.chat.voice.inputs, page.talk, page.leaf, page.chat.transcript.edited]}
    compare = page.chat.compare
    known |= {compare.on: False, compare.who: [], compare.each: 1, page.talk: "", page.leaf: ""}
    names = {"prompt": page.chat.prompt, "length": page.chat.length, "on": compare.on, "who": compare.who, "each": compare.each}
    return {**known, **{names[name]: value for name, value in changes.items()}}


def test_one_browser_that_compares_much_does_not_starve_another(studio: Studio, tab: tuple[Page, Any]) -> None:
    page, events = tab
    engine = studio.chat.make_resident(studio.default_base())
    users: list[str] = []
    submit, order = engine.submit, list[str]()

    def watched(*args: Any, **rest: Any) -> Any:
        users.append(args[3])
        return submit(*args, **rest)

    def listen(name: str, **changes: Any) -> None:
        for _ in (
            events.comparing.run(values_of(page, **changes), name)
            if "who" in changes
            else events.speaking.speak(values_of(page, **changes), name)
        ):
            pass
        order.append(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "submit", watched)
        greedy = threading.Thread(target=listen, args=("greedy",), kwargs={"prompt": "Hi", "length": 200, "who": [BASE, "id1"], "each": 3})
        greedy.start()
        while len(users) < 6:
            threading.Event().wait(0.005)
        listen("modest", prompt="Hello", length=16)
        greedy.join()
    assert order == ["modest", "greedy"]
    assert users == [user_of("greedy")] * 6 + [user_of("modest")]
    assert len(set(users)) == 2 and not any("greedy" in user or "modest" in user for user in users)


def said(label: str, adapter_id: str = "") -> MessageRecord:
    return MessageRecord("m", "c", "", "assistant", "Yes.", 1.0, label, adapter_id, "", "tiny")


def shown(updates: dict[Any, Any], part: Any) -> Any:
    return getattr(updates[part], "value", updates[part])


def test_a_conversation_remembers_weights_and_blends(studio: Studio, tab: tuple[Page, Any]) -> None:
    parts = tab[0].chat.voice
    blend = as_said(studio, parts, said("wizard:1.25+Bird of 2 words:0.5"))
    assert shown(blend, parts.adapter) == BLEND == blend[parts.restored]
    assert [shown(blend, name) for name in parts.names] == ["id1", "id3", "", ""]
    assert [blend[weight] for weight in parts.weights] == [1.25, 0.5, 0.5, 0.5]
    alone = as_said(studio, parts, said("wizard:0.35", "id1"))
    assert (shown(alone, parts.adapter), alone[parts.weight], alone[parts.restored]) == ("id1", 0.35, "id1")
    renamed = as_said(studio, parts, said("another name:0.35", "id2"))
    assert (shown(renamed, parts.adapter), renamed[parts.weight]) == ("id2", 1.0)
    base = as_said(studio, parts, said("base"))
    assert shown(base, parts.adapter) == BASE
    for gone in (said("nobody", "id9"), said("wizard:0.5+nobody:0.5"), said("job:wizard@7", "job:j@7")):
        assert as_said(studio, parts, gone) == {}


def test_what_was_restored_stays_and_what_is_chosen_by_hand_begins_as_trained(studio: Studio, tab: tuple[Page, Any]) -> None:
    page, events = tab
    parts = page.chat.voice
    values = {**values_of(page), parts.adapter: "id1", parts.weight: 0.35, parts.restored: "id1"}
    assert parts.weight not in events.voices.change(values)
    other = events.voices.change({**values, parts.adapter: "id2"})
    assert (other[parts.weight], other[parts.restored]) == (1.0, "")
    fresh = events.voices.change({**values, parts.adapter: BLEND})
    assert [shown(fresh, name) for name in parts.names[:2]] == ["id3", "id2"]  # the two newest
    kept = events.voices.change({**values, parts.adapter: BLEND, parts.restored: BLEND, parts.names[3]: "id1"})
    assert not set(parts.names) & set(kept)


def test_looking_at_the_tab_again_leaves_what_is_chosen(studio: Studio, tab: tuple[Page, Any]) -> None:
    page, events = tab
    parts = page.chat.voice
    for changes in ({parts.adapter: BLEND, parts.names[0]: "id1"}, {parts.adapter: "id2"}):
        updates = events.voices.refresh({**values_of(page), **changes})
        assert all("value" not in updates[part].constructor_args for part in [parts.adapter, *parts.names])
    gone = events.voices.refresh({**values_of(page), parts.adapter: "id9", parts.names[1]: "id9"})
    assert (shown(gone, parts.adapter), shown(gone, parts.names[1])) == (BASE, "")
