"""What the board asks of the database, on SQLite and PostgreSQL; and its parts and buttons on a studio in which nothing trains."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from storage.database import Database
from storage.jobs import Jobs
from storage.records import JobRecord
from storage.repositories import Adapters
from storage.watching import PROBES, Tally, Watching
from studio.errors import InvalidInput
from studio.services import Studio
from studio.ui.curve import Curves
from studio.ui.jobs import board
from studio.ui.jobs.acts import Acts
from studio.ui.jobs.sight import MOST_JOBS, PAGE_JOBS, PARTS, Shown, Sight
from studio.ui.page import TRAIN
from tests.commands import Shell
from tests.records import ADAPTER, job


def claim(jobs: Jobs) -> JobRecord:
    found = jobs.claim("here:1:2:x", time.time(), 60.0, device="cpu")
    assert found is not None
    return found


def test_the_mark_is_another_one_after_each_change_and_the_same_in_between(database: Database) -> None:
    jobs, watching = Jobs(database), Watching(database)
    changes: list[Callable[[], object]] = [
        lambda: jobs.add(job(1, 1.0), job(2, 2.0), job(3, 3.0)),
        lambda: jobs.place("j3", "j1"),
        lambda: jobs.prioritise("j2", 5),
        lambda: jobs.run_after("j1", "j2", "It runs after bird 2."),
        lambda: jobs.wait("j2", "No room."),
        lambda: jobs.cancel("j1", 9.0),
        lambda: jobs.retry("j1", "again", 10.0),
        lambda: jobs.hold("By hand."),
        jobs.release,
        lambda: jobs.stop_after(3),
        lambda: claim(jobs),
        lambda: jobs.record(jobs.held()[0], [(1.0, "progress", {"step": 1})], {"step": 1}),
        lambda: jobs.pause(jobs.held()[0].id),
        lambda: Adapters(database).add(ADAPTER),
        lambda: Adapters(database).remove("a1"),
    ]
    seen = [watching.mark()]
    for i, change in enumerate(changes):
        change()
        seen.append(watching.mark())
        assert seen[-1] != seen[-2], f"change {i}"
        assert watching.mark() == seen[-1]


def test_the_mark_is_another_one_wherever_a_page_can_show_the_change(database: Database) -> None:
    jobs, watching = Jobs(database), Watching(database)
    jobs.add(*(job(i, float(i)) for i in range(MOST_JOBS)))
    last, one_before = f"j{MOST_JOBS - 1}", f"j{MOST_JOBS - 2}"
    for change in (lambda: jobs.place(last, one_before), lambda: jobs.run_after(last, "j0", "It runs after bird 0.")):
        before = watching.mark()
        change()
        assert watching.mark() != before


def test_waiting_and_ended_jobs_are_counted(database: Database) -> None:
    jobs, watching = Jobs(database), Watching(database)
    assert watching.tally() == Tally(0, 0) and not watching.has_adapters()
    jobs.add(*(job(i, float(i)) for i in range(5)))
    jobs.cancel("j0", 9.0)
    jobs.pause("j1")
    assert watching.tally() == Tally(3, 1)
    Adapters(database).add(ADAPTER)
    assert watching.has_adapters() and watching.adapters(["a1", "gone"]) == {"a1": ADAPTER}


def test_small_curves_are_spread_over_all_steps_and_go_back_where_an_attempt_did(database: Database) -> None:
    jobs, watching = Jobs(database), Watching(database)
    jobs.add(*(job(i, float(i)) for i in range(3)))
    held = claim(jobs)
    steps = [(float(i), "progress", {"step": i, "loss": 1 / i}) for i in range(1, 1001)]
    jobs.record(held, [(0.0, "state", {"state": "training"}), *steps], {})
    again = [(float(i), "progress", {"step": i, "loss": 9.0}) for i in range(501, 801)]
    jobs.record(held, again, {})
    short = claim(jobs)
    jobs.record(short, [(1.0, "progress", {"step": 1, "loss": 2.0}), (2.0, "usage", {}), (3.0, "progress", {"step": 2})], {})
    found = watching.losses([held.id, short.id, "j2", "nobody"])
    assert set(found) == {held.id, short.id} and found[short.id] == [(1, 2.0)]
    at = [step for step, _ in found[held.id]]
    assert at == sorted(at) and len(at) == len(set(at)) and 40 < len(at) <= PROBES and at[-1] == 800
    near = 2 * 1300 // PROBES  # where the second attempt began, the probes may have missed its first steps
    assert all((loss == 9.0) == (step > 500) for step, loss in found[held.id] if not 500 < step < 500 + near)


# The parts, on a studio in which nothing trains

TINY = {"quantization": "fp32", "max_steps": 4}


def submit(studio: Studio, *names: str) -> list[JobRecord]:
    return [studio.train("Angry bird", name, overrides=TINY) for name in names]


def parts(studio: Studio, sight: Sight) -> dict[str, str]:
    shown: dict[str, str] = {}
    made = Shown(studio, Curves(studio.queue.events)).parts(sight, shown)
    return {part: str(value) for part, value in zip(PARTS, made, strict=True)}


def order(studio: Studio) -> list[str]:
    return [job.adapter_name for job in studio.queue.open()]


def test_the_board_shows_each_job_once_in_its_part(studio: Studio) -> None:
    a, b, c, d = submit(studio, "a", "b", "c", "d")
    studio.queue.cancel(a.id)
    studio.queue.pause(b.id)
    claimed = studio.queue.jobs.claim("here:1:2:x", time.time(), 60.0, c.id, "cpu")
    assert claimed is not None
    made = parts(studio, Sight())
    for job_, part in ((a, "history"), (b, "paused"), (c, "running"), (d, "waiting")):
        assert [name for name, html in made.items() if f'data-job="{job_.id}"' in html] == [part]
    assert "1 running" in made["bar"] and made["head"] == made["log"] == ""


def test_only_what_is_new_is_sent_again(studio: Studio) -> None:
    [job_] = submit(studio, "a")
    page, shown = Shown(studio, Curves(studio.queue.events)), dict[str, str]()
    for sight in (Sight(), Sight(view=job_.id)):
        assert [value for value in page.parts(sight, shown) if isinstance(value, str)]
        assert not [value for value in page.parts(sight, shown) if isinstance(value, str)]
    studio.queue.cancel(job_.id)
    changed = dict(zip(PARTS, page.parts(Sight(view=job_.id), shown), strict=True))
    assert "cancelled" in changed["head"] and not isinstance(changed["facts"], str)


def test_clicks_that_come_before_the_answer_to_the_last_one_add_up(studio: Studio) -> None:
    one, two = submit(studio, "a", "b")
    events, shown = board._Events(studio, SimpleNamespace(curves=Curves(studio.queue.events))), dict[str, str]()  # type: ignore[arg-type]

    def click(kind: str, record_id: str) -> list[Any]:
        """As a browser does that still has what it had at first."""
        return events.act("", "", "0 0", "", shown, SimpleNamespace(_data={"action": kind, "id": record_id}))  # type: ignore[arg-type]

    click("tick", one.id)
    assert click("tick", two.id)[1].split(",") == [one.id, two.id]
    drawn = events.tick("", "", "", "0 0", "", shown, SimpleNamespace(_data={"tab": TRAIN}))  # type: ignore[arg-type]
    assert all(value == gr.skip() for value in drawn[: len(PARTS)])  # what was asked before the click does not undo it


def test_long_lists_are_paged(studio: Studio) -> None:
    submit(studio, *(f"bird {i}" for i in range(PAGE_JOBS + 5)))
    acts, first = Acts(studio), parts(studio, Sight())
    assert first["waiting"].count("<li") == PAGE_JOBS and "More (5)" in first["waiting"]
    more = acts.act(Sight(), "more-waiting", "", "").sight
    assert parts(studio, more)["waiting"].count("<li") == PAGE_JOBS + 5 and more.limits == (2 * PAGE_JOBS, PAGE_JOBS)


def test_a_view_that_is_no_job_says_so(studio: Studio) -> None:
    made = parts(studio, Sight(view="<b>nobody"))
    assert "There is no job &#x27;&lt;b&gt;nobody" in made["head"]


def test_a_sweep_opens_side_by_side(studio: Studio) -> None:
    jobs = studio.sweep("Angry bird", "gull", overrides=TINY, axes={"seed": ["0", "1"]}, priority=10)
    assert {job_.priority for job_ in jobs} == {10}
    assert "2 trainings side by side" in parts(studio, Sight(view=jobs[0].group))["head"]
    assert "Comparison of gull" in parts(studio, Sight())["sweeps"]


# The buttons


def test_jobs_change_places_by_arrows_and_by_dropping(studio: Studio) -> None:
    a, b, c = submit(studio, "a", "b", "c")
    acts = Acts(studio)
    for kind, moved, value, expected in (
        ("up", c, "", "acb"),
        ("down", a, "", "cab"),
        ("down", a, "", "cba"),
        ("down", a, "", "cba"),  # it is the last
        ("up", c, "", "cba"),  # it is the first
        ("top", a, "", "acb"),
        ("place", b, a.id, "bac"),
        ("place", b, "", "acb"),  # behind all
    ):
        acts.act(Sight(), kind, moved.id, value)
        assert "".join(order(studio)) == expected, kind


def test_a_drop_behind_the_last_row_that_is_shown_is_not_the_end_of_the_queue(studio: Studio) -> None:
    jobs = submit(studio, *(f"bird {i}" for i in range(PAGE_JOBS + 2)))
    Acts(studio).act(Sight(), "place", jobs[0].id, "")
    assert order(studio)[PAGE_JOBS - 1 : PAGE_JOBS + 1] == ["bird 0", f"bird {PAGE_JOBS}"]


def test_each_button_does_its_thing_and_says_it(studio: Studio) -> None:
    a, b = submit(studio, "a", "b")
    acts = Acts(studio)

    def click(kind: str, record_id: str = "", value: str = "") -> str:
        return re.sub(r"<[^>]+>", "", unescape(str(acts.act(Sight(), kind, record_id, value).said)))

    assert click("pause", a.id) == "a is put aside; Resume lets it wait again at its old place."
    assert click("resume", a.id) == "a is in the queue again."
    assert click("priority", b.id, "10") == "b has priority 10 now; the highest runs first, 0 is usual." and order(studio) == ["b", "a"]
    assert click("after", b.id, a.id) == "b runs after a." and click("after", b.id) == "b waits for no other."
    assert "cannot run after" in click("after", b.id, b.id)
    assert "is held" in click("hold") and studio.queue.state().held
    assert click("release") == "The queue goes on." and click("stop-after", "", "2") == "The queue is held after 2 failures in a row."
    assert click("stop-after", "", "0") == "No failure holds the queue." and "is no whole number" in click("stop-after", "", "x")
    assert click("cancel", a.id) == "The training of a was cancelled." and "cancelled already" in click("cancel", a.id)
    assert click("retry", a.id) == "a is in the queue again." and "only a failed or cancelled" in click("restart", a.id)
    assert "There is no job 'x'" in click("up", "x") and "There is no job 'x'" in click("mend", "x")


def test_the_advice_of_a_failure_is_done(studio: Studio) -> None:
    submit(studio, "a")
    held = claim(studio.queue.jobs)
    studio.queue.jobs.end(held, "failed", "Memory ran out.", time.time(), "memory")
    done = Acts(studio).act(Sight(view=held.id), "mend", held.id, "")
    new = studio.queue.get(done.sight.view)
    assert "with token_budget 1024" in str(done.said) and new.config["token_budget"] == 1024 and new.copied_from == held.id
    assert Acts(studio).act(Sight(), "mend", held.id, "").sight.view == ""  # on the board one stays there
    other = replace(held, id="x", adapter_id="y", adapter_name="z", state="failed", cause="disk", lease_owner="", finished_at=1.0)
    studio.queue.jobs.add(other)
    assert "is in the queue again" in str(Acts(studio).act(Sight(), "mend", "x", "").said)


def test_ticks_collect_what_is_compared(studio: Studio) -> None:
    acts, sight = Acts(studio), Sight()
    for job_id in "aba":
        sight = acts.act(sight, "tick", job_id, "").sight
    assert sight.ticked == ["b"] and acts.act(sight, "untick", "", "").sight.ticked == []
    assert acts.act(sight, "open", "a,b", "").sight.ids == ["a", "b"]


def test_a_log_is_exported_whole(studio: Studio) -> None:
    [job_] = submit(studio, "../../evil")
    with pytest.raises(InvalidInput, match="has no log yet"):
        studio.export_log(job_.id)
    folder = studio.supervisor.job_folder(job_.id)
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("one\n")
    studio.queue.jobs.claim("here:1:2:x", time.time(), 60.0, job_.id)
    (folder / "log-1.txt").write_text("two\n")
    path = studio.export_log(job_.id)
    assert path.parent == studio.settings.home / "exports" and path.name == f"log-{job_.id}.txt"
    assert path.read_text() == studio.job_log(job_.id) == "one\ntwo\n"


def test_a_training_is_placed_from_the_command_line(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(studio.settings.home, monkeypatch, capfd)
    [first] = submit(studio, "a")
    words = ("train", "--dataset", "Angry bird", "--set", "quantization=fp32")
    urgent = shell.run(*words, "--name", "b", "--priority=10", "--json").json["job"]
    late = shell.run(*words, "--name", "c", "--priority=-10", "--run-after", first.id, "--json").json["job"]
    assert order(studio) == ["b", "a", "c"] and studio.queue.get(urgent).priority == 10
    assert (studio.queue.get(late).after, studio.queue.get(late).reason) == (first.id, "It runs after a.")
    assert "should be -100 to 100" in shell.refuse(*words, "--name", "d", "--priority", "101")
    assert "There is no job 'x'" in shell.refuse(*words, "--name", "d", "--run-after", "x")
