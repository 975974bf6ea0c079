"""The board of trainings and the page of one, on trainings that really run: live, in order, paused, failed, after a reload, elsewhere."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from sqlalchemy import update

from storage.records import JobRecord
from storage.tables import JobRow
from studio.services import Studio
from tests.browser.running import ask, open_tab
from tests.conftest import tiny_settings

WAIT_MS = 30_000
START_MS = 180_000
CUT_OFF = ("AbortError", "Connection errored out")
SMALL = {"quantization": "fp32", "rank": 2, "batch_size": 1, "max_length": 32, "checkpoint_every_s": 0.2, "held_out": 0.05}
ENDLESS = {**SMALL, "max_steps": 100_000}
# A browser without a window asks nobody and shows nothing: what the page would have said is kept.
NOTIFICATION = """() => {
window.told = [];
window.Notification = class {
  static permission = 'default';
  static async requestPermission() { Notification.permission = 'granted'; }
  constructor(title, {body}) { window.told.push(`${title}: ${body}`); }
};
}"""
# Also what asks for frames with the function as it was when the page began to load.
COUNT_FRAMES = (
    "const ask = requestAnimationFrame; window.asked = 0; requestAnimationFrame = (call) => { window.asked++; return ask(call); };"
)
IDLE_S = 5
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def other(tiny_url: str, tiny_home: Path) -> Iterator[Studio]:
    """A second program on the same home, as the command line is."""
    studio = Studio(tiny_settings(tiny_home))
    yield studio
    studio.close()


@pytest.fixture(autouse=True)
def nothing_left(other: Studio) -> Iterator[None]:
    """A test that fails leaves no training behind that the next one would wait for."""
    yield
    for job in other.queue.open():
        if job.state != "cancelling":
            other.queue.cancel(job.id)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose errors fail the test, but for those of requests that a reload cuts off."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    found = [error for error in errors if not any(words in error for words in CUT_OFF)]
    context.close()
    assert not found


def submit(studio: Studio, name: str, **options: object) -> JobRecord:
    return studio.train("Angry bird", name, overrides={**ENDLESS, **options})


def row(page: Page, job: JobRecord) -> Locator:
    return page.locator(f'#board li[data-job="{job.id}"]')


def step(page: Page, where: str = "#train-running") -> int:
    found = re.search(r"Step ([\d,]+) of", page.locator(f"{where} .as-job-where").first.inner_text())
    return int(found[1].replace(",", "")) if found else -1


def until_it_trains(page: Page, where: str = "#train-running") -> None:
    expect(page.locator(f"{where} .as-job-where").first).to_contain_text(re.compile(r"Step \d+ of"), timeout=START_MS)


def shorten(studio: Studio, job: JobRecord) -> None:
    """Let an endless training end soon after it goes on, by its time limit, which no checkpoint depends on."""
    with studio.queue.jobs.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(config={**job.config, "max_minutes": 0.001}))


def names(page: Page, part: str = "#train-waiting") -> list[str]:
    return page.locator(f"{part} .as-open").all_inner_texts()


@pytest.fixture(scope="module")
def done(other: Studio, tiny_url: str) -> JobRecord:
    """A short training that nobody disturbed."""
    job = submit(other, EVIL, max_steps=6)
    end = time.monotonic() + START_MS / 1000
    while other.queue.get(job.id).state != "done" and time.monotonic() < end:
        time.sleep(0.2)
    return other.queue.get(job.id)


def test_try_it_trains_the_angry_bird_and_opens_the_chat_on_it_for_a_newcomer(page: Page, tiny_url: str) -> None:
    open_tab(page, tiny_url, "Train")
    page.locator("#try-it-button").click()
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true", timeout=300_000)
    expect(page.locator("#chat-adapter input")).to_have_value("Angry bird")
    reply = ask(page, "Who are you?")
    expect(reply.locator(".as-stamp b")).to_have_text("Angry bird")


@pytest.mark.usefixtures("done")
def test_the_order_of_what_waits_is_changed_by_arrows_by_dragging_and_by_priority(page: Page, tiny_url: str, other: Studio) -> None:
    open_tab(page, tiny_url, "Train")
    page.locator("#train-bar").get_by_role("button", name="Hold the queue").click()
    expect(page.locator("#train-bar")).to_contain_text("The queue is held")
    jobs = [submit(other, name) for name in ("Auk", "Bee", "Cow")]
    expect(page.locator("#train-waiting li")).to_have_count(3)  # also what another program submits
    assert names(page) == ["Auk", "Bee", "Cow"]
    up, down = (row(page, jobs[i]).get_by_role("button", name=word) for i, word in ((2, "Earlier"), (0, "Later")))
    up.click()
    expect(page.locator("#train-waiting .as-open")).to_have_text(["Auk", "Cow", "Bee"])
    expect(up).to_be_focused()  # the list was drawn again
    up.press("Enter")
    expect(page.locator("#train-waiting .as-open")).to_have_text(["Cow", "Auk", "Bee"])
    down.click()
    expect(page.locator("#train-waiting .as-open")).to_have_text(["Cow", "Bee", "Auk"])
    row(page, jobs[0]).drag_to(row(page, jobs[2]), target_position={"x": 200, "y": 3})
    expect(page.locator("#train-waiting .as-open")).to_have_text(["Auk", "Cow", "Bee"])
    row(page, jobs[1]).locator(".as-open").click()
    expect(page.locator("#job-head")).to_contain_text("place 3 in the queue")
    page.locator("#job-head").get_by_role("combobox", name="Priority").select_option("high")
    expect(page.locator("#job-head")).to_contain_text("next in the queue")
    page.locator("#job-head").get_by_role("combobox", name="Run after").select_option(label="Auk")
    expect(page.locator("#job-head")).to_contain_text("It runs after Auk.")
    page.get_by_role("button", name="All trainings").click()
    for job in jobs:
        row(page, job).get_by_role("button", name="Cancel").click()
    expect(page.locator("#train-waiting li")).to_have_count(0)
    page.locator("#train-bar select").select_option(label="2 failures")
    expect(page.locator("#board-message")).to_contain_text("The queue is held after 2 failures in a row.")
    page.locator("#train-bar").get_by_role("button", name="Release the queue").click()
    expect(page.locator("#train-bar")).not_to_contain_text("The queue is held")
    assert (other.queue.state().held, other.queue.state().stop_after) == (False, 2)


def test_a_training_is_watched_paused_and_resumed_and_is_the_same_everywhere(
    page: Page, browser: Browser, tiny_url: str, other: Studio
) -> None:
    job = submit(other, "Long", learning_rate=0.002)
    open_tab(page, tiny_url, "Train")
    until_it_trains(page)
    expect(row(page, job)).to_contain_text(re.compile(r"tokens/s.*left.*loss"))
    expect(row(page, job).get_by_role("img", name="Training loss of Long")).to_be_visible()
    before = step(page)
    page.wait_for_timeout(2000)
    assert step(page) > before > 0
    assert re.fullmatch(r"\(\d+ %\) Adapter Studio", page.title())
    row(page, job).locator(".as-open").click()
    expect(page.locator("#job-head h3")).to_have_text("Long")
    page.reload()
    expect(page.locator("#job-head h3")).to_have_text("Long")
    elsewhere = browser.new_context()
    second = elsewhere.new_page()
    second.goto(page.url)
    for seen in (page, second):
        until_it_trains(seen, "#job-page")
        expect(seen.locator("#job-live").get_by_role("img", name="Loss by step")).to_be_visible()
        expect(seen.locator("#job-facts")).to_contain_text(re.compile(r"learning rate\s*0.002\s*0.001"))
    page.locator("#job-head").get_by_role("button", name="Pause").click()
    for seen in (page, second):
        expect(seen.locator("#job-head .as-badge")).to_have_text("paused", timeout=30_000)
        expect(seen.locator("#job-head")).to_contain_text("Paused at step")
    expect(page.locator("#job-live").get_by_role("img", name="Cores over")).to_be_visible()
    shorten(other, job)
    second.locator("#job-head").get_by_role("button", name="Resume at step").click()
    expect(page.locator("#job-head .as-badge")).to_have_text("running", timeout=START_MS)
    elsewhere.close()
    expect(page.locator("#job-head .as-badge")).to_have_text("done", timeout=START_MS)
    expect(page.locator("#job-facts .as-attempts tbody tr")).to_have_count(2)
    assert other.queue.get(job.id).result["resumed_from_step"] > before
    expect(page.locator("#job-head").get_by_role("button", name="Chat with it")).to_be_visible()
    page.go_back()
    expect(row(page, job)).to_contain_text("done")


def test_a_failure_explains_itself_and_its_button_mends_it(page: Page, tiny_url: str, other: Studio, tiny_home: Path) -> None:
    job = submit(other, "Victim")
    open_tab(page, tiny_url, "Train")
    until_it_trains(page, f'li[data-job="{job.id}"]')
    page.evaluate(NOTIFICATION)
    page.locator("#train-bar [data-notify]").click()
    expect(page.locator("#train-bar [data-notify]")).to_have_attribute("aria-pressed", "true")
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    for process in psutil.process_iter(["cmdline"]):
        if job.id in " ".join(process.info["cmdline"] or []) and str(tiny_home) in " ".join(process.info["cmdline"]):
            process.kill()
    failed = page.locator(f'#train-history li[data-job="{job.id}"]')
    expect(failed.locator(".as-fail")).to_contain_text("The system killed the training", timeout=15_000)
    page.wait_for_function("window.told && window.told.some((text) => text.startsWith('Victim: The training failed. '))")
    page.goto(f"{tiny_url}/?tab=train&job={job.id}")
    expect(page.locator("#job-head .as-fail")).to_contain_text("Compute fewer tokens at once")
    expect(page.locator("#job-log pre")).to_contain_text("loss")
    page.locator("#job-search input, #job-search textarea").fill("AFTER STEP 0")
    expect(page.locator("#job-log")).to_contain_text("1 line with “AFTER STEP 0”.")
    expect(page.locator("#job-log pre")).to_have_text(re.compile(r"held-out loss [\d.]+ after step 0$"))
    with page.expect_download() as download:
        page.locator("#job-download").click()
    assert download.value.path().read_text().splitlines() == other.job_log(job.id).splitlines()
    page.locator("#job-head").get_by_role("button", name="Train again with token_budget 1,024").click()
    expect(page.locator("#board-message")).to_contain_text("Victim is in the queue, with token_budget 1024.")
    expect(page.locator("#job-head .as-badge")).to_have_text("running", timeout=START_MS)  # the page is that of the new one
    expect(page.locator("#job-facts")).to_contain_text("copied from")
    page.locator("#job-head").get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-head .as-badge")).to_have_text("cancelled", timeout=30_000)
    page.locator("#job-head").get_by_role("button", name="Duplicate and change").click()
    expect(page.locator("#train-message")).to_contain_text("The form holds the configuration of Victim")
    expect(page.locator("#train-name input, #train-name textarea")).to_have_value("Victim")
    expect(page.locator("#train-command textarea")).to_have_value(re.compile(r"--set max_steps=100000 .*--set token_budget=1024"))


def test_several_runs_are_compared_in_one_picture(page: Page, tiny_url: str, other: Studio, done: JobRecord) -> None:
    rival = next(job for job in other.queue.over() if job.adapter_name == "Victim" and job.attempt)
    open_tab(page, tiny_url, "Train")
    for job in (done, rival):
        row(page, job).get_by_role("checkbox").check()
    page.locator("#train-bar").get_by_role("button", name="Compare 2").click()
    expect(page.locator("#job-head").get_by_role("img", name="Loss by step")).to_be_visible()
    expect(page.locator("#job-head polyline")).to_have_count(2)
    expect(page.locator("#job-head .as-differ thead")).to_contain_text(EVIL)  # as text
    expect(page.locator("#job-head .as-differ")).to_contain_text(re.compile(r"max steps\s*6\s*100000"))
    assert f"job={done.id},{rival.id}" in page.url
    page.reload()
    expect(page.locator("#job-head polyline")).to_have_count(2)
    page.goto(f"{tiny_url}/?tab=train&job=nobody")
    expect(page.locator("#job-head").get_by_role("alert")).to_contain_text("There is no job 'nobody'")


def wakes(url: str) -> int:
    """How often all threads of the studio at this address were woken so far."""
    port = int(url.rpartition(":")[2])
    pid = next(c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port)
    total = 0
    for thread in psutil.Process(pid).threads():
        with contextlib.suppress(psutil.NoSuchProcess):  # a thread of the pool that ended a moment ago
            total += psutil.Process(thread.id).num_ctx_switches().voluntary
    return total


@pytest.mark.parametrize("view", ["board", "job"])
def test_a_page_on_which_nothing_happens_only_asks_once_a_second(page: Page, tiny_url: str, done: JobRecord, view: str) -> None:
    page.add_init_script(COUNT_FRAMES)
    page.goto(f"{tiny_url}/?tab=train&job={done.id if view == 'job' else ''}")
    page.locator("#job-head h3" if view == "job" else "#train-history li").first.wait_for()
    expect(page.locator("#train-bar .as-counts" if view == "board" else "#job-head .as-badge")).to_contain_text(
        re.compile("0 waiting|done")
    )
    page.wait_for_timeout(8000)  # it has drawn twice, and what loading left behind has gone
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def counts() -> dict[str, float]:
        told = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
        return {name: told[name] for name in ("LayoutCount", "RecalcStyleCount")} | {"frames": page.evaluate("window.asked")}

    asked: list[str] = []
    page.on("response", lambda answer: asked.append(f"{answer.url} {len(answer.body())}"))
    before, woken = counts(), wakes(tiny_url)
    page.wait_for_timeout(1000 * IDLE_S)
    after, woken = counts(), wakes(tiny_url) - woken
    assert {name: after[name] - before[name] for name in after if after[name] > before[name] + (name != "frames")} == {}
    assert IDLE_S - 3 <= len(asked) <= IDLE_S + 1 and all(re.fullmatch(r".*/changes \d\d?", line) for line in asked), asked
    assert woken < 200 * IDLE_S  # by fifty looks for events a second, the worker, and the questions


def test_the_board_fits_a_phone(page: Page, tiny_url: str, done: JobRecord) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for view in ("", done.id):
        page.goto(f"{tiny_url}/?tab=train&job={view}")
        page.locator("#job-head h3" if view else "#train-history li").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
