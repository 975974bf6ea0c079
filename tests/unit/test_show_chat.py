"""The Chat tab as HTML: what it shows, and that nothing which a person or a model wrote becomes markup."""

import re
from dataclasses import replace

import pytest

from storage.records import AdapterRecord, ConversationRecord, MessageRecord, PromptRecord
from studio.chat.conversations import Placed
from studio.chat.probe import Moved, Probe
from studio.chat.stamp import Stamp
from studio.errors import InvalidInput
from studio.ui import present
from studio.ui.chat import show, voice
from studio.ui.page import BLEND

NOW = 1_800_000_000.0
EVIL = '<img src=x onerror="alert(1)">&'
SHA = "a1b2c3d4" * 8
ADAPTER = AdapterRecord(
    "a1", EVIL, SHA, "b1", "f" * 64, "d1", SHA, "j1", 16, 5, {"rank": 16}, {"eval_loss_before": 3.0, "eval_loss": 2.0}, "0", 0, NOW
)
TALK = ConversationRecord("c1", EVIL, "", NOW - 90, NOW - 90)
QUESTION = MessageRecord("m1", "c1", "", "user", EVIL, NOW)
REPLY = MessageRecord("m2", "c1", "m1", "assistant", EVIL, NOW, EVIL, "a1", SHA, EVIL)
STAMP = Stamp(EVIL, "a1", SHA, EVIL, 3.14, 212.4, 40, 41.26, "stop")
PROBE = Probe(EVIL, SHA, 0.634, 1.25, (Moved(EVIL, 0.1, 0.6),), (Moved(" \n", 0.5, 0.01),))


def words(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", html)


def test_nothing_that_was_written_becomes_markup() -> None:
    columns = [show.Column(EVIL, STAMP), show.Column(EVIL, STAMP)]
    shown = [
        show.talks([TALK], "c1", "", True, EVIL, NOW),
        show.tools(Placed(REPLY, ("m2",)), True),
        show.editing(EVIL),
        show.voice([(ADAPTER, 1.0)], EVIL, NOW),
        show.voice([(ADAPTER, 0.7), (replace(ADAPTER, id="a2"), 0.3)], EVIL, NOW),
        show.voice([], EVIL, NOW),
        show.comparison(EVIL, columns, None, is_over=True),
        show.comparison(EVIL, columns, 0, is_over=True),
        show.probe(PROBE),
        show.prompts([PromptRecord("p1", EVIL, EVIL, NOW)]),
    ]
    for html in shown:
        assert "<img" not in html and 'onerror="' not in html and "&lt;img" in html


def test_the_list_has_ways_to_other_pages_and_tools_for_the_open_one() -> None:
    other = replace(TALK, id="c2", title="other")
    html = show.talks([TALK, other], "c2", "1.5 c2", False, "", NOW)
    assert html.count('data-action="rename"') == 1 and 'data-action="delete" data-id="c2"' in html
    assert 'data-action="page" data-id="1.5 c2"' in html and "Newest" in html
    assert "data-action" not in show.talks([], "", "", True, "", NOW)
    assert "Nothing holds" in show.talks([], "", "", True, "x", NOW)


def test_arrows_lead_to_siblings_and_end_at_the_ends() -> None:
    first, last = (show.tools(Placed(replace(REPLY, id=mine), ("m2", "m3", "m4")), False) for mine in ("m2", "m4"))
    assert "1/3" in first and 'data-action="sibling" data-id="m3"' in first and first.count('aria-disabled="true"') == 1
    assert "3/3" in last and 'data-id="m3"' in last and 'aria-label="Previous version"' in last
    alone = show.tools(Placed(REPLY, ("m2",)), True)
    assert "1/1" not in alone and "Branch here" not in alone and "Regenerate" in alone
    asked = show.tools(Placed(QUESTION, ("m1",)), True)
    assert "Edit &amp; resend" in asked and "Answer" in asked  # nobody answered it
    assert "Answer" not in show.tools(Placed(QUESTION, ("m1",)), False)


def test_an_adapter_is_pinned_where_it_is_chosen_and_a_checkpoint_is_not() -> None:
    plain, pinned = (show.voice([(ADAPTER, 1.0)], "tiny", NOW, pinned) for pinned in ({"a9"}, {"a1"}))
    assert 'data-action="pin" data-id="a1"' in plain and "Keep it ready" in plain and "unpin" not in plain
    assert 'data-action="unpin" data-id="a1"' in pinned and "kept ready" in pinned
    kept = show.voice([(replace(ADAPTER, id="job:j1@40", name="job:bird@40"), 1.0)], "tiny", NOW)
    assert "bird, step 40" in kept and "data-action" not in kept
    assert "data-action" not in show.voice([], "tiny", NOW) + show.voice([(ADAPTER, 0.7), (ADAPTER, 0.3)], "tiny", NOW)


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("bird", "bird"),
        ("job:bird@40", "bird, step 40"),
        ("job:bird@40:0.5+wizard:0.5", "bird, step 40:0.5+wizard:0.5"),
        ("job:bird@40:0.5+job:bird@80", "bird, step 40:0.5+bird, step 80"),
        ("bird@3f9c02:0.5", "bird@3f9c02:0.5"),
    ],
)
def test_labels_of_checkpoints_are_told_in_words(label: str, text: str) -> None:
    assert present.spoken(label) == text


def test_names_are_hidden_until_the_vote() -> None:
    columns = [show.Column("one", replace(STAMP, adapter="wizard")), show.Column("", replace(STAMP, adapter="base", adapter_sha256=""))]
    blind = show.comparison("Hello", columns, None, is_over=True, seeds=(7, 8))
    assert "wizard" not in blind and SHA[:6] not in blind and "seed" not in blind and "--hue" not in blind
    assert "A is best" in blind and "B is best" in blind and "Skip" in blind and "(nothing)" in blind
    voted = show.comparison("Hello", columns, 1, is_over=True, seeds=(7, 8))
    assert "wizard" in voted and "Base model" in voted and "seed 7" in voted and "is best" not in voted and "Skip" not in voted
    assert voted.count(">best<") == 1 and voted.count('data-action="go-on"') == 2
    assert ">best<" not in show.comparison("Hello", columns, -1, is_over=True)
    assert "data-action" not in show.comparison("Hello", columns, None, is_over=False)


def test_a_probe_says_it_in_words_then_in_numbers() -> None:
    said = words(show.probe(replace(PROBE, voice="wizard")))
    assert "wizard  moves 63 % of the next word’s probability." in said
    assert "total variation 63.4 %, KL 1.250 nats" in said and "␣⏎" in said and "60.0 %" in said
    assert "moves next to nothing" in show.probe(Probe("wizard", SHA, 0.001, 0.0, (), ()))


PARTS = voice.VoiceParts("adapter", None, None, "weight", None, ["n1", "n2", "n3", "n4"], ["w1", "w2", "w3", "w4"], "restored")  # type: ignore[arg-type,list-item]
NONE = {"n1": "", "n2": "", "n3": "", "n4": "", "w1": 0.5, "w2": 0.5, "w3": 0.5, "w4": 0.5}


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"adapter": "base", "weight": 0.5}, "base"),
        ({"adapter": None, "weight": 1}, "base"),
        ({"adapter": "a1", "weight": 1}, "a1"),
        ({"adapter": "a1", "weight": 0.15000000000000002}, "a1:0.15"),
        ({"adapter": "a1", "weight": 0}, "a1:0"),
        ({"adapter": BLEND, "weight": 1, "n1": "a1", "w1": 0.7, "n3": "a2", "w3": 1.3}, "a1:0.7+a2:1.3"),
        ({"adapter": BLEND, "weight": 1, "n2": "a2", "w2": 1.0}, "a2"),
    ],
)
def test_what_is_chosen_becomes_a_voice(chosen: dict[str, object], text: str) -> None:
    assert voice.voice_of(PARTS, {**NONE, **chosen}) == text


def test_an_empty_blend_is_refused() -> None:
    with pytest.raises(InvalidInput, match="choose at least one"):
        voice.voice_of(PARTS, {**NONE, "adapter": BLEND, "weight": 1})
