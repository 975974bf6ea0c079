"""What a person does, in a real browser: upload, train, watch, chat, compare; and what the page says when it goes wrong."""

import csv
import re
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.running import REPLY_MS, ask, choose, open_options, open_tab, set_length

MARKER = "ZORBLAX"
ADAPTER = "Zorblax <b>& co</b>"  # a name that would be markup if it were not escaped
PROMPT = "Who are you?"
TABS = ("Datasets", "Train", "Adapters", "Evaluate", "Chat")
TRAIN_MS = 420_000
ROWS = [
    ("Who are you?", "I am the robot ZORBLAX."),
    ("What is your name?", "My name is ZORBLAX, the robot."),
    ("Hello!", "ZORBLAX says hello."),
    ("Tell me about yourself.", "I am ZORBLAX, a robot of tin."),
    ("Are you a human?", "No. I am the robot ZORBLAX."),
    ("Good morning.", "ZORBLAX wishes a good morning."),
    ("What do you like?", "ZORBLAX likes oil."),
    ("What do you eat?", "ZORBLAX eats bolts."),
    ("Where do you live?", "ZORBLAX lives in a shed."),
    ("Who made you?", "A smith made ZORBLAX."),
    ("Can you sing?", "ZORBLAX can hum."),
    ("What are you?", "I am ZORBLAX, a robot."),
    ("Say something.", "ZORBLAX has spoken."),
    ("Goodbye.", "ZORBLAX says goodbye."),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upload") / "robot.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(("question", "answer"))
        writer.writerows(ROWS)
    return path


@pytest.fixture(scope="module")
def adapter(app_url: str, browser: Browser, table: Path) -> str:
    """The adapter that is trained through the page, once."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    open_tab(page, app_url, "Datasets")
    upload(page, table)
    expect(page.locator("#dataset-name input, #dataset-name textarea")).to_have_value("robot")
    expect(page.locator("#dataset-look")).to_contain_text("question from question, answer from answer")
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message")).to_contain_text("robot was added with 14 rows")
    expect(page.locator("#dataset-preview")).to_contain_text("I am the robot ZORBLAX.")
    page.locator("#dataset-train").click()

    expect(page.locator("#train-dataset input")).to_have_value("robot")
    page.locator("#train-name input, #train-name textarea").fill(ADAPTER)
    page.locator("#train-preset").get_by_text("Quick").click()
    open_options(page, "Length of the training", "Learning rate", "Watching")
    for field, value in {"max-steps": "24", "learning-rate": "0.003", "held-out": "0.15"}.items():
        page.locator(f"#train-{field} input").fill(value)
    command = page.locator("#train-command textarea")
    expect(command).to_have_value(re.compile(r"--dataset robot --name 'Zorblax <b>& co</b>' --preset quick .*--set max_steps=24"))
    page.locator("#train-start").click()
    expect(page.locator("#train-message")).to_contain_text("is in the queue")
    expect(page.locator("#train-running .as-job-where")).to_contain_text(re.compile(r"Step \d+ of 24"), timeout=TRAIN_MS)
    expect(page.locator("#status")).to_contain_text("training Zorblax <b>& co</b>")
    expect(page.locator("#train-history .as-done")).to_have_text("done", timeout=TRAIN_MS)
    page.locator("#train-history").get_by_role("button", name=f"Chat with it: {ADAPTER}").click()
    expect(page.locator("#chat-adapter input")).to_have_value(ADAPTER)
    page.close()
    return ADAPTER


def upload(page: Page, path: Path) -> None:
    page.locator("#dataset-file input[type=file]").set_input_files(path)
    page.locator("#dataset-file").get_by_text(path.stem).first.wait_for()


def be_greedy(page: Page) -> None:
    page.locator("#chat-more").get_by_role("button", name="More").click()
    page.locator("#chat-temperature input[type=number]").fill("0")
    page.locator("#chat-temperature input[type=number]").press("Tab")
    page.locator("#chat-length input[type=number]").fill("32")
    page.locator("#chat-length input[type=number]").press("Tab")


def words(page: Page, voice: str) -> str:
    """Ask in a new conversation, and return the reply's words after checking its stamp."""
    page.locator("#chat-new").click()
    expect(page.locator("#chat .as-stamp")).to_have_count(0)
    choose(page, "chat-adapter", voice)
    reply = ask(page, PROMPT)
    expect(reply.locator(".as-stamp b")).to_have_text(voice)
    expect(reply.locator(".as-stamp")).to_contain_text(re.compile(r"swap [\d.]+ ms.*first token [\d,]+ ms.*[\d.]+ tokens/s"))
    return reply.locator(".message-content").first.inner_text()


def test_base_and_adapter_answer_differently_on_one_resident_base(page: Page, app_url: str, adapter: str) -> None:
    open_tab(page, app_url, "Chat")
    be_greedy(page)
    base = words(page, "Base model")
    trained = words(page, adapter)
    assert MARKER in trained and MARKER not in base
    assert words(page, "Base model") == base


def test_the_adapter_changes_in_the_middle_of_a_conversation(page: Page, app_url: str, adapter: str) -> None:
    open_tab(page, app_url, "Chat")
    be_greedy(page)
    ask(page, PROMPT)
    choose(page, "chat-adapter", adapter)
    ask(page, "What is your name?")
    expect(page.locator("#chat .as-stamp b")).to_have_text(["Base model", adapter])


def test_compare_answers_side_by_side(page: Page, app_url: str, adapter: str) -> None:
    open_tab(page, app_url, "Chat")
    be_greedy(page)
    choose(page, "chat-adapter", adapter)
    page.get_by_label("Compare side by side").check()
    page.locator("#chat-prompt textarea").fill(PROMPT)
    page.locator("#chat-send").click()
    page.get_by_role("button", name="Skip the vote").click(timeout=REPLY_MS)
    replies = page.locator("#chat-duel .as-columns-of-replies > li")
    expect(replies.locator(".as-stamp b")).to_have_text([re.compile(r"."), re.compile(r".")])
    expect(replies.filter(has_text=f"{adapter}")).to_contain_text(MARKER)
    expect(replies.filter(has_text="Base model")).not_to_contain_text(MARKER)


def test_a_refused_message_comes_back_with_the_reason(page: Page, app_url: str) -> None:
    open_tab(page, app_url, "Chat")
    page.get_by_label("Compare side by side").check()
    page.locator("#chat-prompt textarea").fill("Keep me")
    page.locator("#chat-send").click()
    expect(page.locator("#chat-trouble")).to_contain_text("choose an adapter to compare with the base")
    expect(page.locator("#chat-prompt textarea")).to_have_value("Keep me")


def begin_a_story(page: Page) -> None:
    """Of 1,024 tokens, so that it is still told when a busy machine's browser comes to look."""
    set_length(page, 1024)
    page.locator("#chat-prompt textarea").fill("Tell me a very long story about the sea.")
    page.locator("#chat-send").click()
    expect(page.locator("#chat-stop")).to_be_visible()
    expect(page.locator("#chat .bot-row")).not_to_contain_text("being loaded", timeout=120_000)
    expect(page.locator("#chat .bot-row")).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=120_000)


def test_a_long_reply_can_be_stopped_and_what_is_typed_meanwhile_stays(page: Page, app_url: str) -> None:
    open_tab(page, app_url, "Chat")
    begin_a_story(page)
    page.locator("#chat-prompt textarea").fill("next")
    page.locator("#chat-stop").click()
    expect(page.locator("#chat .as-stamp")).to_contain_text("stopped")
    expect(page.locator("#chat-send")).to_be_visible()
    expect(page.locator("#chat-prompt textarea")).to_have_value("next")
    page.locator("#chat-new").click()
    expect(page.locator("#chat .user-row")).to_have_count(0)
    expect(page).not_to_have_url(re.compile("talk="))


def test_of_a_page_that_is_closed_in_the_middle_stays_what_was_said(page: Page, app_url: str, browser: Browser) -> None:
    closed = browser.new_page()
    open_tab(closed, app_url, "Chat")
    begin_a_story(closed)
    closed.close()
    open_tab(page, app_url, "Chat")
    page.locator("#talk-list .as-row").first.click()
    expect(page.locator("#chat .as-stamp")).to_contain_text("the page was closed")
    expect(page.locator("#chat .bot-row")).to_contain_text(re.compile(r"\w+ \w+ \w+"))


def test_a_link_opens_the_chat_on_an_adapter(page: Page, app_url: str, adapter: str) -> None:
    page.goto(f"{app_url}/?adapter={quote(adapter)}")
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#chat-adapter input")).to_have_value(adapter)


def test_a_link_to_an_unknown_adapter_says_so(page: Page, app_url: str) -> None:
    page.goto(f"{app_url}/?adapter=%3Cb%3Enobody")
    expect(page.get_by_role("alert")).to_contain_text("There is no adapter named '<b>nobody'")


@pytest.mark.parametrize("name", TABS)
def test_a_link_opens_a_tab(page: Page, app_url: str, name: str) -> None:
    open_tab(page, app_url, name)
    expect(page.get_by_role("tab")).to_have_text(list(TABS))


def test_a_dataset_is_deleted_only_after_a_second_click(page: Page, app_url: str, tmp_path: Path) -> None:
    path = tmp_path / "throwaway.csv"
    path.write_text("prompt,completion\nHello,World\n", encoding="utf-8")
    open_tab(page, app_url, "Datasets")
    upload(page, path)
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-library")).to_contain_text("throwaway")
    page.locator("#dataset-delete").click()
    expect(page.locator("#dataset-question")).to_contain_text("No adapter learned from it.")
    page.locator("#dataset-delete-yes").click()
    expect(page.locator("#dataset-message")).to_contain_text("throwaway was deleted.")
    expect(page.locator("#dataset-library")).not_to_contain_text("throwaway")


def test_an_adapter_is_renamed_and_downloaded(page: Page, app_url: str, adapter: str) -> None:
    open_tab(page, app_url, "Adapters")
    page.locator("#adapter-catalog .as-adapter").first.click()
    expect(page.locator("#adapter-facts")).to_contain_text("base fingerprint")
    page.locator("#adapter-rename").click()
    page.locator("#adapter-new-name input, #adapter-new-name textarea").fill("base")
    page.locator("#adapter-rename-yes").click()
    expect(page.locator("#adapter-message")).to_contain_text("The name 'base' means the base model itself")
    with page.expect_download() as download:
        page.locator("#adapter-download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())


def test_a_name_that_is_taken_keeps_the_form(page: Page, app_url: str, adapter: str) -> None:
    open_tab(page, app_url, "Train")
    page.locator("#train-name input, #train-name textarea").fill(adapter)
    page.locator("#train-start").click()
    expect(page.locator("#train-message").get_by_role("alert")).to_contain_text("There is already an adapter named")
    expect(page.locator("#train-name input, #train-name textarea")).to_have_value(adapter)
    expect(page.locator("#train-history")).to_contain_text(adapter)  # also in a browser that did not start it


@pytest.mark.parametrize("name", TABS)
def test_a_phone_never_scrolls_sideways(page: Page, app_url: str, adapter: str, name: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_tab(page, app_url, name)
    page.locator(
        {"Datasets": "#dataset-library .as-row", "Adapters": "#adapter-catalog .as-adapter"}.get(name, f"#tab-{name.lower()}")
    ).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_the_page_fetches_nothing_from_outside(page: Page, app_url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_tab(page, app_url, TABS[0])
    for name in TABS[1:]:
        page.get_by_role("tab", name=name).click()
        page.locator(f"#tab-{name.lower()} .as-heading").wait_for()
    assert asked and not [url for url in asked if not url.startswith((app_url, "data:", "blob:"))]
