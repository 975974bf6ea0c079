"""The studio is stopped and started again under a page that stays open: what it says meanwhile, and what it shows afterwards."""

import contextlib
from pathlib import Path

from playwright.sync_api import Browser, Page, expect
from sqlalchemy import update

from storage.records import JobRecord
from storage.tables import JobRow
from studio.services import Studio
from tests.browser.running import free_port, running_app
from tests.browser.test_board import START_MS, WAIT_MS, step, submit, until_it_trains
from tests.conftest import tiny_settings

GOES_ON_MIN = 0.25  # of training after the restart
IS_BEYOND = r"""(reached) => {
const said = /Step ([\d,]+) of/.exec(document.querySelector('#job-page .as-job-where')?.textContent);
return said && Number(said[1].replaceAll(',', '')) > reached;
}"""


def end_soon(studio: Studio, job: JobRecord) -> None:
    """Let an endless training end some seconds after it goes on, by its time limit, which counts all attempts together."""
    took_s = sum(attempt.finished_at - attempt.started_at for attempt in studio.queue.attempts(job.id) if attempt.finished_at)
    limit = took_s / 60 + GOES_ON_MIN
    with studio.queue.jobs.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(config={**job.config, "max_minutes": limit}))


def shown(page: Page) -> list[str]:
    """What the page of a job that is over says of it, but for times that go by."""
    parts = ("#job-head h3", "#job-head .as-badge", "#job-live .as-measures", "#job-facts .as-changed")
    ended = page.locator("#job-facts .as-attempts tbody tr").evaluate_all("rows => rows.map((row) => row.cells[4].innerText)")
    return [*(page.locator(part).first.inner_text() for part in parts), *ended]


def test_an_open_page_goes_on_after_a_restart_and_a_new_one_shows_the_same(browser: Browser, tiny_base: Path, tmp_path: Path) -> None:
    home, port, errors = tmp_path / "home", free_port(), list[str]()
    tiny = {"STUDIO_BASE": str(tiny_base), "STUDIO_QUANTIZATION": "fp32"}
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(WAIT_MS)
        with running_app(home, port, **tiny) as url:
            other = Studio(tiny_settings(home))
            stack.callback(other.close)
            job = submit(other, "Long")
            page.goto(f"{url}/?tab=train&job={job.id}")
            until_it_trains(page, "#job-page")
            expect(page.locator("#lost")).to_be_hidden()
            reached = step(page, "#job-page")
        expect(page.locator("#lost")).to_contain_text("The studio does not answer since", timeout=WAIT_MS)
        assert other.queue.get(job.id).state == "queued"
        end_soon(other, job)
        with running_app(home, port, **tiny):
            expect(page.locator("#lost")).to_be_hidden(timeout=WAIT_MS)
            expect(page.locator("#job-facts .as-attempts tbody tr")).to_have_count(2, timeout=START_MS)
            page.wait_for_function(IS_BEYOND, arg=reached, timeout=START_MS)
            expect(page.locator("#job-head .as-badge")).to_have_text("running")
            expect(page.locator("#job-head .as-badge")).to_have_text("done", timeout=START_MS)
            assert not errors
            second = stack.enter_context(browser.new_context()).new_page()
            second.goto(page.url)
            expect(second.locator("#job-facts .as-attempts tbody tr")).to_have_count(2, timeout=START_MS)
            assert shown(page) == shown(second)
            second.get_by_role("button", name="All trainings").click()
            expect(second.locator("#train-history")).to_contain_text("Long", timeout=WAIT_MS)
        assert [attempt.ended for attempt in other.queue.attempts(job.id)] == ["queued", "done"]
        assert other.queue.get(job.id).result["resumed_from_step"] >= reached
