"""The map of similarity and the difference of two adapters as HTML, and work that goes on whoever watches it."""

import threading
from dataclasses import replace

import pytest

from studio.adapters.mapping import Island, SimilarityMap
from studio.difference import Answers, Difference, sample_prompts
from studio.errors import Interrupted, InvalidInput
from studio.lora.similarity import Alike
from studio.ui import form
from studio.ui.adapters import differing, likeness
from studio.ui.work import Runs, Work
from tests.unit.test_present import ADAPTER, EVIL

FEW = [replace(ADAPTER, id=f"a{n}", name=name, sha256=f"{n}" * 64) for n, name in enumerate(("bird", "gull", EVIL))]


def island(overlap: float) -> Island:
    return Island("b1", FEW, [[1.0, overlap, 0.1], [overlap, 1.0, 0.15], [0.1, 0.15, 1.0]])


def test_the_map_reads_the_closest_two() -> None:
    assert island(0.91).reading == "bird and gull point the same way: 0.91."
    assert island(0.3).reading == "bird and gull point partly the same way: 0.30."
    assert island(0.0).reading.startswith("No two point the same way; the closest are gull and ")


def test_the_map_has_a_cell_for_each_two_and_escapes_names() -> None:
    html = likeness.picture(SimilarityMap([island(0.9)], [f"{EVIL} is a prefix."]), {"b1": EVIL})
    assert html.count("<rect") == 9 and "<title>bird and gull: 0.90</title>" in html and html.count("<circle") == 3
    assert "<img" not in html and "&lt;img" in html
    darkness = [likeness._cell(island(value), 0, 1, 40).split("var(--ink) ")[1].split("%")[0] for value in (0.0, 0.5, 1.0)]
    assert sorted(map(float, darkness)) == list(map(float, darkness))
    many = [replace(ADAPTER, id=f"m{n}", name=f"m{n}") for n in range(40)]
    wide = likeness.picture(SimilarityMap([Island("b1", many, [[0.5] * 40] * 40)], []), {})
    assert wide.count("<rect") == 1600 and "0.50</text>" not in wide


def test_a_difference_shows_values_answers_and_why_there_is_no_overlap() -> None:
    found = Difference(
        FEW[0], FEW[2], {"rank": [8, None], "eval_loss": [1.23456, 2.0]}, Alike(-0.001, 0.6, 3), "", [Answers(EVIL, EVIL, EVIL, "")]
    )
    html = differing.shown(found)
    assert "<img" not in html and "&lt;img" in html and "<td>1.235</td><td>2</td>" in html and "<td>8</td><td>–</td>" in html
    assert "They write in the same directions: overlap 0.60, cosine of ΔW 0.00." in html and "<em>nothing</em>" in html
    apart = differing.shown(replace(found, alike=None, note=EVIL, differs={}, answers=[]))
    assert "Options and figures are the same." in apart and "<img" not in apart and "What each answers" not in apart


def test_prompts_of_trainings_are_taken_once_and_five_at_most() -> None:
    samples = [{"prompt": f"{n}?", "text": "x"} for n in range(4)]
    one, other = (
        replace(ADAPTER, metrics={"samples": part}) for part in (samples, [*samples[::-1], *({"prompt": f"{n}!"} for n in range(4))])
    )
    assert sample_prompts(one, other) == ["0?", "1?", "2?", "3?", "0!"] and sample_prompts(replace(ADAPTER, metrics={})) == []


def test_the_command_says_which_name_it_is_a_version_of() -> None:
    shown = form.command_line("birds", "wizard", "", "quick", {}, {}, version=True)
    assert "--as-version-of wizard" in shown and "--name" not in shown


def test_work_goes_on_when_nobody_watches_and_is_found_again() -> None:
    runs, go = Runs[str](), threading.Event()

    def call(work: Work[str]) -> str:
        go.wait(20)
        work.say(0.5, "half")
        return "done"

    work = runs.start("a", call)
    watched = work.watch(goes_on=True)
    next(watched)
    watched.close()  # the browser is gone
    assert runs.start("a", call) is work and runs.find("a") is work and not work.is_stopped() and runs.find("b") is None
    go.set()
    assert work.result() == "done" and list(work.watch(goes_on=True)) == [] and runs.find("a") is work
    assert runs.start("a", call) is not work  # what is over is done again


def test_work_that_is_stopped_or_failed_is_forgotten_when_it_was_told() -> None:
    runs, begun = Runs[str](), threading.Event()

    def call(work: Work[str]) -> str:
        begun.set()
        while True:
            work.say(None, "on")

    work = runs.start("a", call)
    begun.wait(20)
    runs.forget("a", work)
    assert runs.find("a") is work  # it goes on
    work.stop()
    with pytest.raises(Interrupted):
        work.result()
    assert work.failed and runs.find("a") is work
    runs.forget("a", work)
    assert runs.find("a") is None

    def fail(_work: Work[str]) -> str:
        raise InvalidInput("No.")

    for number in range(60):
        with pytest.raises(InvalidInput):
            runs.start(str(number), fail).result()
    assert runs.find("0") is None and runs.find("59") is not None
