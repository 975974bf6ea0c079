"""The Datasets tab's fragments as values: escaping, numbers, the table of wrong rows, the loss mask, the report."""

import re
import time
from collections import Counter
from dataclasses import replace

import pytest

from storage.records import DatasetRecord
from studio.datasets.errors import BadRows, ErrorLog
from studio.datasets.forms import FORMS, Fit
from studio.datasets.ingest import Inspection, Sample
from studio.datasets.pieces import Piece
from studio.datasets.report import Finding, Report
from studio.datasets.rows import RowError
from studio.datasets.store import StoredRow
from studio.errors import InvalidInput
from studio.outlook import Expected, Outlook
from studio.training.memory import Estimate
from studio.ui.datasets import show_adding, show_library, show_report, show_rows
from studio.ui.datasets.changing import parse_weights
from studio.ui.datasets.filled import MOST_ROLES, Filled
from studio.ui.datasets.rows import parse_turns
from studio.ui.datasets.show_rows import MASK, RAW, ShownRow
from studio.ui.work import Work

NOW = 1_800_000_000.0
EVIL = '<img src=x onerror="alert(1)">&'
TALK = [{"role": "system", "content": EVIL}, {"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]
ROW = StoredRow(TALK, {EVIL: EVIL}, 7, EVIL)
RECORD = DatasetRecord("d2", EVIL, EVIL, 1200, 2400, "0" * 64, 2048, [EVIL], True, NOW - 7200, 2, "d1", EVIL)
PIECES = [
    Piece("<|im_start|>", False, False, True),
    Piece("user", False, False, False),
    Piece("\n", False, False, False),
    Piece(" yes", True, False, False),
    Piece("🙂", True, False, False, 3),
    Piece("<b>", True, False, False),
    Piece(" ", False, True, False),
]
REPORT = Report(
    rows=1200,
    turns=2400,
    tokens=60_000,
    trained_tokens=20_000,
    trained_share=0.4,
    shortest=5,
    median=40,
    p95=90,
    longest=700,
    histogram=[(0, 100, 1100), (100, 200, 80), (200, 800, 20)],
    max_length=500,
    truncated=15,
    dropped=5,
    cut_tokens=900,
    languages={"en": 0.9, "de": 0.1},
    personal={},
    exact_duplicates=3,
    near_duplicates=1,
    overlap=0,
    findings=[Finding(EVIL, "warning", EVIL, EVIL, [4, 1199], "deduplicate")],
    removable={},
)
OUTLOOK = Outlook(REPORT, Expected(60_000, 400.0, 175.0, True, Estimate(600, {"base": 600}, 8000, "")))


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def error(line: int, *, file: str = "a.jsonl", kind: str = "empty", excerpt: str = "") -> RowError:
    return RowError(line, "completion", "this is empty", "write the text", kind=kind, column=3, excerpt=excerpt, file=file)


def bad(*errors: RowError, good: int = 40) -> BadRows:
    log = ErrorLog()
    for one in errors:
        log.add(one)
    return BadRows(log, good)


def test_what_people_and_files_say_is_escaped_everywhere() -> None:
    evil = RowError(3, EVIL, EVIL, EVIL, kind=EVIL, excerpt=EVIL, file=EVIL)
    fit = Fit("text", {"text": EVIL}, 0.5)
    found = Inspection([EVIL], [fit], fit, [Sample(1, {EVIL: EVIL}, TALK, None), Sample(2, EVIL, None, evil)], [EVIL])
    shown = [
        show_library.library_list([RECORD], EVIL, NOW),
        show_library.dataset_head(RECORD, 2, NOW),
        show_library.version_list([RECORD], "d2", {"d2": [EVIL]}, NOW),
        show_library.delete_question(RECORD, 2, [EVIL]),
        show_library.made_note(RECORD, [RECORD]),
        show_library.made_note(replace(RECORD, name="other"), [RECORD]),
        *(show_rows.rows_page([ShownRow(0, ROW, view, [Piece(EVIL, True, True, True)])]) for _, view in show_rows.VIEWS),
        show_rows.rows_page([ShownRow(0, ROW, MASK, trouble=EVIL)]),
        show_adding.look(found, 2),
        show_adding.look(replace(found, chosen=None), 1),
        show_adding.refused(EVIL, found),
        show_adding.asked([EVIL], found),
        show_adding.bad_rows(bad(evil, error(4, file="b"))),
        show_report.outlook(OUTLOOK, EVIL),
        show_report.progress(0.4, EVIL, 3),
    ]
    for html in shown:
        assert "<img" not in html and 'onerror="' not in html and "&lt;img" in html


def test_a_list_names_the_newest_versions_with_rows_form_and_size() -> None:
    records = [replace(RECORD, name="Birds", form="messages + text"), replace(RECORD, id="d3", name="Fish", form="text", version=1)]
    told = words(show_library.library_list(records, "Birds", NOW))
    assert "Birds sample 1,200 rows · version 2 · Messages (OpenAI) + Plain text · 2.0 KB 2 h ago" in told
    assert "version 1" not in told
    assert show_library.library_list(records, "Birds", NOW).count('aria-pressed="true"') == 1
    assert "No dataset yet" in show_library.library_list([], "")


def test_deleting_says_who_learned_from_it_and_what_blocks_it() -> None:
    told = words(show_library.delete_question(replace(RECORD, name="Birds"), 3, ["A", "B"]))
    assert told.startswith("Delete Birds with its 3 versions?") and "2 adapters learned from it and stay: A, B." in told
    assert "unfinished job" in told
    assert "No adapter learned from it." in words(show_library.delete_question(RECORD, 1, []))


def test_a_version_says_what_was_done_and_who_learned() -> None:
    first = replace(RECORD, id="d1", name="Birds", version=1, parent_id="", made_by="")
    second = replace(RECORD, name="Birds", made_by="3 duplicate row(s) removed")
    told = words(show_library.version_list([second, first], "d1", {"d1": ["Polly"]}, NOW))
    assert "Version 2 3 duplicate row(s) removed · 1,200 rows No adapter learned from it" in told
    assert "Version 1 Added from a file · 1,200 rows Learned from by Polly" in told


def test_what_was_made_is_a_version_with_a_way_back_or_sets_with_ways_to_them() -> None:
    before = replace(RECORD, name="Birds", version=1, id="d1")
    assert "Back to version 1" in words(show_library.made_note(before, [replace(RECORD, name="Birds")]))
    parts = [replace(RECORD, name="Birds train", id="t"), replace(RECORD, name="Birds held out", id="h", rows=1)]
    made = show_library.made_note(before, parts)
    assert "Made Birds train (1,200 rows) and Birds held out (1 row)." in words(made) and 'data-id="h"' in made


def test_a_row_says_where_it_came_from_and_offers_its_other_views() -> None:
    row = ShownRow(1233, StoredRow([{"role": "text", "content": "A passage."}], {"lang": "en"}, 1240, "notes.txt"))
    told = words(show_rows.rows_page([row]))
    assert "Row 1,234 line 1,240 of notes.txt Raw Loss mask Edit passage A passage." in told
    raw = words(show_rows.rows_page([replace(row, view=RAW)]))
    assert "Conversation Loss mask Edit" in raw and "&quot;lang&quot;: &quot;en&quot;" in raw and "&quot;line&quot;: 1240" in raw


def test_a_long_text_is_folded_and_what_is_not_there_is_said() -> None:
    some, most = "a" * 5000, "a" * 30_000
    folded = show_rows.bubbles([{"role": "user", "content": some}])
    assert "… show all 5,000 characters" in folded and folded.count("a" * 3800) == 1
    assert "… show 20,000 of 30,000 characters" in (cut := show_rows.bubbles([{"role": "user", "content": most}]))
    assert "… and 10,000 more characters" in cut


def test_the_mask_colours_what_is_trained_strikes_what_is_cut_and_shows_white_space() -> None:
    html = show_rows.mask(PIECES)
    assert "9 tokens, 5 trained, 1 cut off" in html
    assert re.findall(r'<mark class="as-tok as-tok-on">([^<]*)</mark>', html) == [" yes", "🙂", "&lt;b&gt;"]
    assert '<s class="as-tok as-tok-cut">␣</s>' in html
    assert '<span class="as-tok as-tok-special">&lt;|im_start|&gt;</span>' in html and '<span class="as-tok">⏎\n</span>' in html


@pytest.mark.parametrize(("text", "shown"), [(" ", "␣"), ("\t", "⇥"), ("\n", "⏎\n"), (" a", " a"), (".\n", ".⏎\n"), ("<", "&lt;")])
def test_white_space_is_drawn_where_there_is_nothing_else(text: str, shown: str) -> None:
    assert show_rows.visible(text) == shown


def test_a_mask_without_cut_tokens_says_nothing_of_cutting() -> None:
    assert show_rows.mask_counts(PIECES[:4]) == "4 tokens, 1 trained"


def test_the_first_look_says_what_a_file_is_taken_for_and_what_else_it_could_be() -> None:
    fits = [Fit("prompt-completion", {"prompt": "q", "completion": "a"}, 1.0), Fit("text", {"text": "q"}, 0.995)]
    sample = Sample(2, {"q": "Hi", "a": "Ho"}, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], None)
    told = words(show_adding.look(Inspection(["q", "a"], fits, fits[0], [sample], ["Read as Latin-1."]), 3))
    assert "Read as Prompt and completion : prompt from q , completion from a ." in told and "100 % of the first rows fit" in told
    assert "It could also be Plain text (over 99 %)." in told and "Read as Latin-1." in told and "the first of 3 files" in told
    assert show_adding.form_choices(fits)[:3] == [
        ("Find out", "auto"),
        ("Prompt and completion · 100 % fit", "prompt-completion"),
        ("Plain text · over 99 % fit", "text"),
    ]
    assert {key for _, key in show_adding.form_choices(fits)} == {"auto", *FORMS}


def test_where_no_form_fits_the_columns_and_the_rows_are_shown() -> None:
    html = show_adding.look(Inspection(["what", "reply"], [], None, [Sample(2, {"what": "Hi"}, None, None)], []))
    assert "The columns are: what, reply." in html and "&quot;Hi&quot;" in html and "What it becomes" not in html


def test_wrong_rows_are_a_table_with_their_place_and_mend_and_the_kinds_are_counted() -> None:
    html = show_adding.bad_rows(bad(error(2), error(9, kind="not JSON", excerpt="{<b>"), good=1))
    assert "2 rows are wrong, 1 is right" in html and "Nothing was added yet." in html
    assert "empty 1" in words(html) and "not JSON 1" in words(html)
    assert "Line Column Field What is wrong What stands there How to mend it" in words(html)
    assert "9 3 completion this is empty &lt;b write the text" not in html and "<code>{&lt;b&gt;</code>" in html
    assert "File" in words(show_adding.error_table([error(2), error(3, file="b.jsonl")]))


def test_a_long_table_says_how_many_of_how_many_it_shows() -> None:
    log = ErrorLog(250, Counter({"empty": 250}), [error(line) for line in range(1, 251)])
    html = show_adding.bad_rows(BadRows(log, 0))
    assert html.count('<th scope="row">') == 100 and "The first 100 of 250 are shown." in html


def test_errors_come_in_the_order_of_the_file() -> None:
    log = ErrorLog()
    for one in (error(30), error(2), error(7, file="b"), error(1, file="b")):
        log.add(one)
    log.put_in_order()
    assert [(e.file, e.line) for e in log.shown] == [("a.jsonl", 2), ("a.jsonl", 30), ("b", 1), ("b", 7)]
    assert show_adding.leave_out_label(4, 1200) == "Leave these 4 rows out and add the other 1,200"
    assert show_adding.leave_out_label(1, 3) == "Leave this row out and add the other 3"


@pytest.mark.parametrize(("share", "said"), [(1.0, "100 %"), (0.999, "over 99 %"), (0.5, "50 %"), (0.001, "under 1 %"), (0.0, "0 %")])
def test_all_and_nothing_are_said_only_where_they_are_true(share: float, said: str) -> None:
    assert show_adding.percent(share) == said


def test_a_report_says_time_and_memory_first_and_numbers_with_what_they_mean() -> None:
    told = words(show_report.outlook(OUTLOOK, "tiny"))
    assert told.startswith("A training reads 60,000 tokens at about 400 a second")
    assert "trained 20,000 40 % of the tokens" in told and "behind max_length 900 15 cut, 5 left out" in told
    assert "longest row 700 median 40, 95 % up to 90" in told and "English 90 %, German 10 %" in told
    assert "chat template of tiny, at max_length 500" in told


def test_a_finding_offers_what_mends_it_and_names_rows_from_1() -> None:
    finding = Finding("duplicates", "warning", "2 of 9 rows repeat another.", "Deduplicate.", list(range(4, 14)), "deduplicate")
    html = show_report.findings([finding])
    assert 'data-action="mend" data-id="deduplicate"' in html and "Remove the duplicates" in html
    assert 'data-action="row" data-id="4"' in html and "Rows 5 6 7 8 9 10 , …" in words(html)
    assert "data-action" not in show_report.findings([replace(finding, action="", level="good")])


def test_the_histogram_has_a_bar_for_each_bin_and_a_line_where_it_cuts() -> None:
    html = show_report.histogram(REPORT.histogram, 500)
    assert html.count("<rect") == 3 and "max_length 500" in html
    assert float(re.search(r'as-cutoff-left" style="left:([\d.]+)%', html)[1]) == pytest.approx(100 * 2.5 / 3, abs=0.01)
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', html)]
    assert heights[0] > heights[1] > heights[2] > 0 and "from 0 to 799 tokens" in html
    assert "as-cutoff" not in show_report.histogram(REPORT.histogram, 1024)
    assert "all rows fit max_length 1,024" in show_report.histogram(REPORT.histogram, 1024)
    assert show_report.histogram([], 512) == ""
    assert show_report.histogram([(7, 8, 1)], 512).count("<rect") == 1


def test_progress_says_what_how_far_and_how_long() -> None:
    assert words(show_report.progress(0.42, "reading rows", 75)) == "Reading rows 42 %, 1 min 15 s"
    assert "as-bar-busy" in show_report.progress(None, "making it", 2)


def test_work_tells_how_far_it_is_hands_on_what_came_of_it_and_can_be_stopped() -> None:
    def until_stopped(work: Work[str]) -> str:
        work.tell(0.5, "waiting")
        while not work.is_stopped():
            time.sleep(0.01)
        return "made"

    work = Work(until_stopped)
    share, what, seconds = next(told := work.watch())
    assert (share, what) in ((0.5, "waiting"), (None, "starting")) and seconds >= 0
    work.stop()
    list(told)
    assert work.result() == "made"


def test_work_that_nobody_watches_any_longer_stops_and_an_error_is_raised_where_it_is_asked_for() -> None:
    def fail(work: Work[str]) -> str:
        while not work.is_stopped():
            time.sleep(0.01)
        raise InvalidInput("no")

    work = Work(fail)
    watched = work.watch()
    next(watched)
    watched.close()
    with pytest.raises(InvalidInput, match="no"):
        work.result()


def filled(form: str, seen: dict[str, object], *roles: str) -> Filled:
    return Filled.of(("files", ["/x/a.b.jsonl"], "", "", "main", " ", form, "", seen, *roles, *[""] * (MOST_ROLES - len(roles))))


def test_columns_are_handed_on_only_with_the_form_that_they_were_chosen_for() -> None:
    seen = {"form": "prompt-completion", "mapping": {}, "columns": ["q", "a"]}
    assert filled("prompt-completion", seen, "q", "a").mapping("prompt-completion") == {"prompt": "q", "completion": "a", "system": ""}
    assert filled("auto", seen, "q", "a").options().mapping == {}
    assert filled("text", seen, "q").options().mapping == {}
    assert filled("auto", seen).label() == "a"


def test_weights_and_turns_that_cannot_be_read_are_explained() -> None:
    assert parse_weights(" 3, 1.5 ") == [3.0, 1.5] and parse_weights("") == []
    with pytest.raises(InvalidInput, match="write numbers with commas between"):
        parse_weights("3; 1")
    assert parse_turns('[{"role": "user", "content": "a"}]') == [{"role": "user", "content": "a"}]
    with pytest.raises(InvalidInput, match="Line 1, character"):
        parse_turns('[{"role": }]')
    with pytest.raises(InvalidInput, match="no list of objects"):
        parse_turns('{"role": "user"}')
