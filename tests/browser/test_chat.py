"""Conversations in a real browser: they last, branch, change their voice in the middle, and are compared blind."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from studio.services import Studio
from tests.browser.running import ask, choose, open_tab, running_app, set_length
from tests.conftest import tiny_settings

WAIT_MS = 30_000
EVIL = "Pirate <b>& co</b>"  # a name that would be markup if it were not escaped
NAMES = ("wizard", EVIL)
SMALL = {"quantization": "fp32", "rank": 2, "batch_size": 1, "max_length": 32, "held_out": 0.05, "max_steps": 12, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A studio's home with two adapters of a tiny base."""
    home = tmp_path_factory.mktemp("chat") / "home"
    studio = Studio(tiny_settings(home))
    studio.bases.fetch(str(tiny_base))
    for seed, name in enumerate(NAMES):
        studio.train_and_wait(studio.train("Angry bird", name, overrides={**SMALL, "seed": seed}), lambda event: None)
    studio.close()
    return home


@pytest.fixture(scope="module")
def chat_url(home: Path, tiny_base: Path) -> Iterator[str]:
    with running_app(home, STUDIO_BASE=str(tiny_base), STUDIO_QUANTIZATION="fp32") as url:
        yield url


@pytest.fixture(scope="module")
def other(chat_url: str, home: Path) -> Iterator[Studio]:
    """A second program on the same home, as the command line is."""
    studio = Studio(tiny_settings(home))
    yield studio
    studio.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose errors fail the test, but for those of requests that a reload cuts off."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    found = [error for error in errors if "AbortError" not in error and "Connection errored out" not in error]
    context.close()
    assert not found


def begin(page: Page, url: str, length: int = 16) -> None:
    """Open the tab with short replies."""
    open_tab(page, url, "Chat")
    set_length(page, length)


def send(page: Page, text: str) -> None:
    page.locator("#chat-prompt textarea").fill(text)
    page.locator("#chat-send").click()


def answered(page: Page, text: str) -> None:
    """Wait until a message stands there and its reply is whole."""
    expect(page.locator("#chat .user-row").last).to_contain_text(text)
    expect(page.locator("#chat .as-turn-tools").last).to_contain_text("Regenerate")
    page.locator("#chat-send").wait_for()


def voices(page: Page) -> list[str]:
    return page.locator("#chat .as-stamp b").all_inner_texts()


def test_the_voice_changes_in_the_middle_and_a_reload_keeps_it_all(page: Page, chat_url: str) -> None:
    begin(page, chat_url)
    ask(page, "Who are you?")
    choose(page, "chat-adapter", EVIL)
    expect(page.locator("#chat-voice")).to_contain_text(re.compile(rf"{EVIL}.*LoRA, rank 2.*held-out loss"))
    ask(page, "And <i>now</i>?")
    assert voices(page) == ["Base model", EVIL]
    expect(page).to_have_url(re.compile(r"talk=[0-9a-f]{16}"))
    said = page.locator("#chat").inner_text()
    page.reload()
    expect(page.locator("#chat .as-stamp")).to_have_count(2)
    assert page.locator("#chat").inner_text() == said
    expect(page.locator("#chat-adapter input")).to_have_value(EVIL)  # who spoke last
    expect(page.locator("#talk-list .as-row[aria-pressed=true]")).to_contain_text("Who are you?")


def test_edit_regenerate_and_branch_keep_what_was_said(page: Page, chat_url: str, other: Studio) -> None:
    begin(page, chat_url)
    ask(page, "first question")
    choose(page, "chat-adapter", "wizard")
    page.locator("#chat").get_by_role("button", name="Regenerate").click()
    expect(page.locator("#chat .as-siblings")).to_have_text(re.compile(r"2/2"))
    assert voices(page) == ["wizard"]
    page.get_by_role("button", name="Previous version").press("Enter")
    expect(page.locator("#chat .as-stamp b")).to_have_text("Base model")
    ask(page, "second question")
    page.locator("#chat").get_by_role("button", name="Edit & resend").last.click()
    expect(page.locator("#chat-prompt textarea")).to_have_value("second question")
    expect(page.locator("#chat-editing")).to_contain_text("another version of “second question”")
    send(page, "another second question")
    answered(page, "another second question")
    expect(page.locator("#chat .as-siblings").last).to_have_text(re.compile(r"2/2"))
    expect(page.locator("#chat-editing .as-card")).to_have_count(0)
    page.locator("#chat").get_by_role("button", name="Branch here").first.click()
    expect(page.locator("#chat .user-row")).to_have_count(1)
    ask(page, "third way")
    expect(page.locator("#chat .as-siblings").last).to_have_text(re.compile(r"3/3"))
    talk = other.conversations.page(1)[0]
    assert len(other.conversations.records.messages(talk.id)) == 9 and len(other.conversations.branch(talk.id)) == 4


def test_conversations_are_found_renamed_exported_and_deleted(page: Page, chat_url: str) -> None:
    begin(page, chat_url)
    ask(page, f"About {EVIL} zebras")
    listed = page.locator("#talk-list .as-row")
    expect(listed.first).to_contain_text(f"About {EVIL} zebras")
    page.locator("#talk-search input, #talk-search textarea").fill("ZEBRAS")
    expect(listed).to_have_count(1)
    page.locator("#talk-list").get_by_role("button", name="Rename").click()
    page.locator("#talk-title input, #talk-title textarea").fill(f"Stripes {EVIL}")
    page.locator("#talk-rename-yes").click()
    expect(listed).to_contain_text(f"Stripes {EVIL}")  # still found, by what was said
    for form in ("Markdown", "JSON"):
        with page.expect_download() as download:
            page.locator("#talk-list").get_by_role("button", name=form).click()
        text = Path(download.value.path()).read_text(encoding="utf-8")
        title = json.loads(text)["title"] if form == "JSON" else text.splitlines()[0].removeprefix("# ")
        assert title == f"Stripes {EVIL}"
    page.locator("#talk-list").get_by_role("button", name="Delete").click()
    page.locator("#talk-delete-yes").click()
    expect(page.locator("#talk-message")).to_contain_text("was deleted.")
    expect(page.locator("#talk-list")).to_contain_text("Nothing holds these words.")
    expect(page.locator("#chat .user-row")).to_have_count(0)


def test_a_blend_and_a_weight_answer_at_once(page: Page, chat_url: str) -> None:
    begin(page, chat_url)
    choose(page, "chat-adapter", "wizard")
    page.locator("#chat-weight input[type=number]").fill("0.5")
    page.locator("#chat-weight input[type=number]").press("Tab")
    expect(page.locator("#chat-voice")).to_contain_text("weight 0.5")
    ask(page, "Half of you?")
    choose(page, "chat-adapter", "Blend…")
    choose(page, "chat-blend-name-1", "wizard")
    choose(page, "chat-blend-name-2", EVIL)
    page.locator("#chat-blend-weight-1 input[type=number]").fill("1.25")
    page.locator("#chat-blend-weight-1 input[type=number]").press("Tab")
    expect(page.locator("#chat-voice")).to_contain_text(re.compile(rf"wizard\s+1.25\s*{EVIL}\s+0.5"))
    ask(page, "Both of you?")
    assert voices(page) == ["wizard:0.5", f"wizard:1.25+{EVIL}:0.5"]
    choose(page, "chat-blend-name-2", "wizard")
    send(page, "Twice?")
    expect(page.locator("#chat-trouble")).to_contain_text("stands in the blend twice")
    expect(page.locator("#chat-prompt textarea")).to_have_value("Twice?")
    expect(page.locator("#chat .as-stamp")).to_have_count(2)


def test_a_reload_sets_the_sliders_of_a_blend_again(page: Page, chat_url: str) -> None:
    begin(page, chat_url)
    choose(page, "chat-adapter", "Blend…")
    expect(page.locator("#chat-voice")).to_contain_text(re.compile(rf"{EVIL}\s+0.5\s*wizard\s+0.5"))  # the two newest
    page.locator("#chat-blend-weight-2 input[type=number]").fill("1.35")
    page.locator("#chat-blend-weight-2 input[type=number]").press("Tab")
    expect(page.locator("#chat-voice")).to_contain_text(re.compile(r"wizard\s+1.35"))
    ask(page, "Both of you again?")
    expect(page).to_have_url(re.compile("talk="))  # it follows within a second
    page.reload()
    expect(page.locator("#chat-adapter input")).to_have_value("Blend…")
    expect(page.locator("#chat-voice")).to_contain_text(re.compile(rf"{EVIL}\s+0.5\s*wizard\s+1.35"))
    expect(page.locator("#chat-blend-name-1 input")).to_have_value(EVIL)
    expect(page.locator("#chat-blend-weight-2 input[type=number]")).to_have_value("1.35")
    choose(page, "chat-adapter", "wizard")
    expect(page.locator("#chat-voice")).to_contain_text("rank 2")
    expect(page.locator("#chat-weight input[type=number]")).to_have_value("1")


def test_an_adapter_is_kept_ready_and_let_go(page: Page, chat_url: str, other: Studio) -> None:
    begin(page, chat_url)
    choose(page, "chat-adapter", EVIL)
    page.get_by_role("button", name=f"Keep it ready: {EVIL}").click()
    expect(page.locator("#chat-voice")).to_contain_text("kept ready")
    assert [record.name for record in other.pins.all()] == [EVIL]
    page.reload()
    choose(page, "chat-adapter", EVIL)
    page.get_by_role("button", name=f"Unpin: {EVIL}").click()
    expect(page.locator("#chat-voice")).to_contain_text("Keep it ready")
    assert other.pins.all() == []


def test_a_blind_vote_counts_and_tells_who_it_was(page: Page, chat_url: str, other: Studio) -> None:
    begin(page, chat_url)
    choose(page, "chat-adapter", "wizard")
    page.get_by_label("Compare side by side").check()
    send(page, "Which of you?")
    duel = page.locator("#chat-duel")
    duel.get_by_role("button", name="A is best").wait_for()
    assert "wizard" not in duel.inner_text() and duel.locator(".as-glyph").count() == 0
    duel.get_by_role("button", name="B is best").click()
    expect(duel.locator(".as-stamp")).to_have_count(2)
    won = duel.locator(".as-best-reply .as-stamp b").inner_text()
    vote = other.votes.records.all()[-1]
    assert vote.prompt == "Which of you?" and vote.winner == 1
    assert vote.compared[1]["voice"] == {"Base model": "base"}.get(won, won)
    duel.get_by_role("button", name="Go on from here: A").click()
    expect(page.locator("#chat .as-siblings")).to_have_text(re.compile(r"1/2"))
    ask(page, "And then?")
    page.get_by_role("tab", name="Adapters").click()
    expect(page.locator("#adapter-catalog")).to_contain_text(re.compile(r"best in [01] of 1 vote"))


def test_seeds_are_compared_and_a_vote_can_be_skipped(page: Page, chat_url: str, other: Studio) -> None:
    votes = len(other.votes.records.all())
    begin(page, chat_url)
    page.get_by_label("Compare side by side").check()
    send(page, "Keep me")
    expect(page.locator("#chat-trouble")).to_contain_text("choose an adapter to compare with the base")
    expect(page.locator("#chat-prompt textarea")).to_have_value("Keep me")
    page.locator("#chat-compare-who").get_by_role("button", name="Remove").last.click()
    page.locator("#chat-compare-each input[type=number]").fill("6")
    page.locator("#chat-compare-each input[type=number]").press("Tab")
    send(page, "Six of you?")
    page.get_by_role("button", name="Skip the vote").click()
    expect(page.locator("#chat-duel .as-stamp b")).to_have_text(["Base model"] * 6)
    assert len(set(re.findall(r"seed (\d+)", page.locator("#chat-duel").inner_text()))) == 6
    assert len(other.votes.records.all()) == votes


def test_a_probe_says_how_much_is_moved(page: Page, chat_url: str) -> None:
    begin(page, chat_url)
    page.locator("#chat-prompt textarea").fill("Who are you?")
    page.locator("#chat-probe").click()
    expect(page.locator("#chat-probed")).to_contain_text("choose an adapter")
    choose(page, "chat-adapter", EVIL)
    expect(page.locator("#chat-probed .as-card")).to_have_count(0)
    page.locator("#chat-probe").click()
    expect(page.locator("#chat-probed")).to_contain_text(
        re.compile(rf"{EVIL} moves \d+ % of the next word’s probability.*KL [\d.]+ nats", re.DOTALL)
    )


def test_prompts_are_kept_inserted_and_deleted(page: Page, chat_url: str) -> None:
    begin(page, chat_url)
    page.locator("#chat-library").get_by_role("button", name="Kept prompts").click()
    page.locator("#chat-prompt textarea").fill("A question\nof two lines")
    name = page.locator("#chat-library-name input, #chat-library-name textarea")
    name.fill(EVIL)
    page.locator("#chat-library-keep").click()
    rows = page.locator("#chat-library-rows")
    expect(rows).to_contain_text(EVIL)
    name.fill(EVIL)
    page.locator("#chat-library-keep").click()
    expect(page.locator("#chat-library-message")).to_contain_text("There is already a prompt named")
    page.locator("#chat-prompt textarea").fill("")
    rows.get_by_role("button", name="Insert").click()
    expect(page.locator("#chat-prompt textarea")).to_have_value("A question\nof two lines")
    rows.get_by_role("button", name="Delete").click()
    expect(rows).to_contain_text("Nothing is kept yet.")


def test_a_reply_is_copied_as_it_was_written(page: Page, chat_url: str, other: Studio) -> None:
    begin(page, chat_url)
    ask(page, "Copy <b>me</b>\n* as I am")
    page.locator("#chat .user-row").get_by_role("button", name="Copy").click()
    expect(page.locator("#chat .user-row")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "Copy <b>me</b>\n* as I am"


def test_a_link_to_a_conversation_that_is_gone_says_so(page: Page, chat_url: str) -> None:
    page.goto(f"{chat_url}/?tab=chat&talk=%3Cb%3Egone")
    expect(page.locator("#talk-message")).to_contain_text("This conversation is not there any more")


@pytest.mark.parametrize("width", [390, 700, 1280])
def test_the_tab_never_scrolls_sideways(page: Page, chat_url: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    begin(page, chat_url)
    choose(page, "chat-adapter", "Blend…")
    expect(page.locator("#chat-voice")).to_contain_text("wizard")  # the blend's places are filled
    ask(page, "x" * 300)
    page.get_by_label("Compare side by side").check()
    page.locator("#chat-compare-options").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
