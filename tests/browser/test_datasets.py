"""The Datasets tab in a real browser: any file in, the truth about it, and what can be done with it."""

import csv
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from studio.bases.loading import load_tokenizer
from studio.datasets.pieces import pieces
from studio.datasets.rendering import render
from studio.ui.datasets.show_rows import visible
from tests.browser.running import choose, open_tab

EVIL = "<img src=x onerror=alert(1)>"
MANY = 100_000


@pytest.fixture
def url(tiny_url: str) -> str:
    return tiny_url


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(prompt: str, completion: str, **extra: object) -> dict[str, object]:
    return {"prompt": prompt, "completion": completion, **extra}


def box(page: Page, elem_id: str) -> Locator:
    return page.locator(f"#{elem_id} input, #{elem_id} textarea").first


def upload(page: Page, *paths: Path) -> None:
    page.locator("#dataset-file input[type=file]").set_input_files(list(paths))
    page.locator("#dataset-look .as-verdict").wait_for()


def add(page: Page, url: str, path: Path, name: str) -> None:
    open_tab(page, url, "Datasets")
    upload(page, path)
    box(page, "dataset-name").fill(name)
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message")).to_contain_text(f"{name} was added with", timeout=120_000)
    expect(page.locator("#dataset-head h3")).to_contain_text(name)


def view(page: Page, name: str) -> None:
    page.locator("#dataset-views").get_by_role("tab", name=name).click()


def test_odd_columns_are_mapped_with_a_live_preview_and_what_was_typed_stays(page: Page, url: str, tmp_path: Path) -> None:
    path = tmp_path / "odd columns.csv"
    path.write_text(f"what,words,lang\nWho are you?,A robot {EVIL},en\nWo wohnst du?,Im Schuppen.,de\n", encoding="utf-8")
    open_tab(page, url, "Datasets")
    upload(page, path)
    look = page.locator("#dataset-look")
    expect(look).to_contain_text("No form fits by itself. The columns are: what, words, lang.")
    expect(box(page, "dataset-name")).to_have_value("odd columns")
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message").get_by_role("alert")).to_contain_text("columns are what, words, lang")
    choose(page, "dataset-format", "Prompt and completion")
    expect(look).to_contain_text("Choose the column of prompt and of completion below.")
    choose(page, "dataset-role-0", "what")
    expect(look).to_contain_text("Choose the column of completion below.")
    choose(page, "dataset-role-1", "words")
    expect(look.locator(".as-verdict")).to_contain_text("prompt from what, completion from words.")
    expect(look.locator(".as-assistant").first).to_contain_text(f"A robot {EVIL}")
    page.locator("#dataset-system textarea").fill("Be brief.")
    page.locator("#dataset-system textarea").blur()
    expect(look.locator(".as-system").first).to_contain_text("Be brief.")
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message")).to_contain_text("odd columns was added with 2 rows")
    first = page.locator("#dataset-preview .as-talk").first
    expect(first).to_contain_text("Row 1")
    expect(first.locator(".as-assistant")).to_contain_text(EVIL)
    first.get_by_role("button", name="Raw").click()
    expect(page.locator("#dataset-preview .as-raw")).to_contain_text('"lang": "en"')
    expect(page.locator("#dataset-preview .as-raw")).to_contain_text('"file": "odd columns.csv"')


def test_wrong_rows_are_a_table_that_is_downloaded_and_left_out_only_on_request(page: Page, url: str, tmp_path: Path) -> None:
    rows = [pair(f"Question {i}", f"Answer {i}") for i in range(8)]
    path = write_lines(tmp_path / "partly.jsonl", [*rows[:3], pair("a", ""), *rows[3:], '{"prompt": "<b>', pair(EVIL, "")])
    open_tab(page, url, "Datasets")
    upload(page, path)
    box(page, "dataset-name").fill("Partly right")
    page.locator("#dataset-add").click()
    trouble = page.locator("#dataset-errors")
    expect(trouble).to_contain_text("3 rows are wrong, 8 are right")
    expect(trouble.locator("tbody th")).to_have_text(["4", "10", "11"])
    expect(trouble.locator("tbody tr").first).to_contain_text("completion")
    expect(trouble.locator(".as-kinds")).to_contain_text("empty 2")
    with page.expect_download() as download:
        page.locator("#dataset-errors-file").click()
    with Path(download.value.path()).open(encoding="utf-8-sig", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [row["line"] for row in table] == ["4", "10", "11"] and table[0]["field"] == "completion" and table[0]["how to mend it"]
    page.locator("#dataset-stop").click()
    expect(box(page, "dataset-name")).to_have_value("Partly right")
    expect(page.locator("#dataset-file")).to_contain_text("partly")
    page.locator("#dataset-add").click()
    page.get_by_role("button", name="Leave these 3 rows out and add the other 8").click()
    expect(page.locator("#dataset-message")).to_contain_text("Partly right was added with 8 rows")
    expect(page.locator("#dataset-head")).to_contain_text("3 wrong row(s) were left out")
    with page.expect_download() as again:
        page.locator("#dataset-left-out").click()
    assert Path(again.value.path()).read_bytes() == Path(download.value.path()).read_bytes()


def test_the_mask_shows_the_answers_tokens_and_strikes_what_is_cut(page: Page, url: str, tiny_base: Path, tmp_path: Path) -> None:
    answer = f"I am a robot, {EVIL} 🙂.\n\n  And I like oil."
    add(page, url, write_lines(tmp_path / "mask.jsonl", [pair("Who are you?", answer)]), "Masked")
    page.locator("#dataset-view").get_by_text("Loss mask").click()
    shown = page.locator("#dataset-preview .as-tokens")
    shown.wait_for()
    conversation = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": answer}]
    tokenizer = load_tokenizer(tiny_base, "tiny")
    for max_length in (512, 40):
        box(page, "dataset-mask-length").fill(str(max_length))
        box(page, "dataset-mask-length").press("Tab")
        expected = pieces(tokenizer, render(tokenizer, conversation), max_length)
        trained = sum(piece.tokens for piece in expected if piece.trained)
        cut = sum(piece.tokens for piece in expected if piece.cut)
        said = f"{sum(piece.tokens for piece in expected)} tokens, {trained} trained" + (f", {cut} cut off" if cut else "")
        expect(page.locator("#dataset-preview .as-mask-counts")).to_have_text(said)
        drawn = shown.evaluate("e => [...e.children].map(t => [t.textContent, t.classList.contains('as-tok-on'), t.tagName == 'S'])")
        assert drawn == [[unescaped(visible(piece.text)), piece.trained, piece.cut] for piece in expected]
        assert trained and (max_length == 512) == (cut == 0)
    whole = "".join(piece.text for piece in pieces(tokenizer, render(tokenizer, conversation), 512) if piece.trained)
    assert whole == answer + "<|im_end|>"


def unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#x27;", "'").replace("&amp;", "&")


def test_a_report_mends_what_it_finds_as_a_new_version(page: Page, url: str, tmp_path: Path) -> None:
    rows = [pair(f"Question {i % 30} about a thing?", f"The answer to it is {i % 30}, as everybody knows.") for i in range(36)]
    add(page, url, write_lines(tmp_path / "twice.jsonl", rows), "Twice")
    view(page, "Report")
    page.locator("#dataset-report-start").click()
    report = page.locator("#dataset-report")
    expect(report).to_contain_text("6 of 36 rows repeat another row word for word.", timeout=60_000)
    expect(report).to_contain_text(re.compile(r"A training reads [\d,]+ tokens at about [\d,]+ a second"))
    expect(report.locator(".as-histogram rect").first).to_be_attached()
    expect(report).to_contain_text("chat template of tiny")
    report.get_by_role("button", name="show row: 31").or_(report.locator("[data-action=row][data-id='30']")).first.click()
    expect(page.locator("#dataset-preview .as-talk b").first).to_have_text("Row 31")
    view(page, "Report")
    report.get_by_role("button", name="Remove the duplicates").click()
    message = page.locator("#dataset-message")
    expect(message).to_contain_text("Twice is at version 2 now, with 30 rows: 6 duplicate row(s) removed.")
    expect(page.locator("#dataset-head")).to_contain_text("version 2 of 2")
    expect(report).not_to_contain_text("6 of 36 rows")
    view(page, "Versions")
    page.locator("#dataset-versions").get_by_role("button", name="Version 1").click()
    expect(page.locator("#dataset-head")).to_contain_text("version 1 of 2")
    expect(page.locator("#dataset-head")).to_contain_text("36 rows")


def test_changes_make_versions_or_sets_of_their_own_and_mistakes_change_nothing(page: Page, url: str, tmp_path: Path) -> None:
    rows = [pair(f"Question {i}?", f"Answer {i}.", lang="en" if i % 2 else "de") for i in range(10)]
    add(page, url, write_lines(tmp_path / "langs.jsonl", rows), "Languages")
    view(page, "Change")
    page.locator("#dataset-deduplicate").click()
    message = page.locator("#dataset-message")
    expect(message.get_by_role("alert")).to_contain_text("holds no duplicates; nothing was changed")
    page.locator("#dataset-change-split").get_by_role("button", name="Split").first.click()
    choose(page, "dataset-split-column", "lang")
    page.locator("#dataset-split").click()
    expect(message).to_contain_text("Made Languages de (5 rows) and Languages en (5 rows).")
    expect(page.locator("#dataset-head h3")).to_have_text("Languages")
    message.get_by_role("button", name="Open Languages de").click()
    expect(page.locator("#dataset-head h3")).to_have_text("Languages de")


def test_many_rows_are_paged_to_the_last_and_a_report_on_them_is_cancelled(page: Page, url: str, tmp_path: Path) -> None:
    add(page, url, write_lines(tmp_path / "many.jsonl", [pair(f"Q {i}", f"A {i}") for i in range(1, MANY + 1)]), "Many")
    rows, paging = page.locator("#dataset-preview .as-talk-head b"), page.locator("#dataset-paging")
    page.locator("#dataset-last").click()
    expect(paging).to_have_text("99,996–100,000 of 100,000")
    expect(rows.last).to_have_text("Row 100,000")
    expect(page.locator("#dataset-preview .as-assistant").last).to_contain_text("A 100000")
    expect(page.locator("#dataset-next")).to_be_disabled()
    box(page, "dataset-goto").fill("54321")
    box(page, "dataset-goto").press("Enter")
    expect(rows.first).to_have_text("Row 54,321")
    page.locator("#dataset-previous").click()
    expect(rows.first).to_have_text("Row 54,316")
    page.locator("#dataset-first").click()
    expect(paging).to_have_text("1–5 of 100,000")
    view(page, "Report")
    page.locator("#dataset-report-start").click()
    expect(page.locator("#dataset-report-told")).to_contain_text(re.compile(r"Reading rows \d+ %"), timeout=60_000)
    page.locator("#dataset-report-cancel").click()
    expect(page.locator("#dataset-report-told")).to_contain_text("Stopped; nothing was kept.", timeout=30_000)
    expect(page.locator("#dataset-report-start")).to_be_enabled()
    expect(page.locator("#dataset-report")).not_to_contain_text("A training reads")


def test_a_row_is_edited_into_a_new_version_and_a_bad_edit_keeps_what_was_typed(page: Page, url: str, tmp_path: Path) -> None:
    add(page, url, write_lines(tmp_path / "edit.jsonl", [pair("One?", "First."), pair("Two?", "Second.")]), "Edited")
    page.locator("#dataset-preview .as-talk").nth(1).get_by_role("button", name="Edit").click()
    answer = box(page, "dataset-turn-1")
    expect(answer).to_have_value("Second.")
    answer.fill(" ")
    page.locator("#dataset-edit-save").click()
    expect(page.locator("#dataset-edit-message").get_by_role("alert")).to_contain_text("Row 2 cannot become this")
    answer.fill("The second one.")
    page.locator("#dataset-edit-save").click()
    expect(page.locator("#dataset-message")).to_contain_text("Edited is at version 2 now, with 2 rows: row 2 edited.")
    expect(page.locator("#dataset-preview .as-assistant")).to_contain_text(["First.", "The second one."])
    expect(page.locator("#dataset-editor")).not_to_be_visible()


def test_what_is_exported_and_uploaded_again_is_the_same(page: Page, url: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "loop.jsonl", [pair("Ä?", "Ö!", tag=1), pair("<b>", "ß", tag=None)])
    add(page, url, path, "Loop")
    with page.expect_download() as download:
        page.locator("#dataset-export").click()
    first = tmp_path / "back.jsonl"
    download.value.save_as(first)
    add(page, url, first, "Loop again")
    with page.expect_download() as again:
        page.locator("#dataset-export").click()
    assert first.read_bytes() == Path(again.value.path()).read_bytes() and b'"tag":1' in first.read_bytes()


def test_rows_are_pasted(page: Page, url: str) -> None:
    open_tab(page, url, "Datasets")
    page.locator("#dataset-source").get_by_text("Paste").click()
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message").get_by_role("alert")).to_contain_text("Paste some rows first.")
    page.locator("#dataset-paste textarea").fill("question\tanswer\nWho?\tMe.\nWhere?\tHere.\n")
    expect(page.locator("#dataset-look")).to_contain_text("Read as Question and answer: question from question, answer from answer.")
    box(page, "dataset-name").fill("From a sheet")
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message")).to_contain_text("From a sheet was added with 2 rows")


def test_a_passage_is_shown_as_one_and_a_taken_name_keeps_the_form(page: Page, url: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "prose.jsonl", [{"text": "Call me Ishmael."}])
    add(page, url, path, "Prose")
    expect(page.locator("#dataset-preview .as-text")).to_contain_text("Call me Ishmael.")
    page.locator("#dataset-new").click()
    upload(page, path)
    box(page, "dataset-name").fill("Prose")
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message").get_by_role("alert")).to_contain_text("There is already a dataset named 'Prose'")
    expect(box(page, "dataset-name")).to_have_value("Prose")
    expect(page.locator("#dataset-file")).to_contain_text("prose")


def test_the_hub_is_asked_for_by_name_and_a_failure_keeps_it(page: Page, url: str) -> None:
    open_tab(page, url, "Datasets")
    page.locator("#dataset-source").get_by_text("Hugging Face Hub").click()
    box(page, "dataset-repository").fill("not a name")
    page.locator("#dataset-add").click()
    expect(page.locator("#dataset-message").get_by_role("alert")).to_contain_text("not a name", timeout=60_000)
    expect(box(page, "dataset-repository")).to_have_value("not a name")


def test_the_chosen_version_is_trained_on(page: Page, url: str, tmp_path: Path) -> None:
    add(
        page, url, write_lines(tmp_path / "v.jsonl", [pair("One?", "First."), pair("One?", "First."), pair("Two?", "Second.")]), "Versioned"
    )
    view(page, "Change")
    page.locator("#dataset-deduplicate").click()
    expect(page.locator("#dataset-head")).to_contain_text("version 2 of 2")
    page.locator("#dataset-train").click()
    expect(page.locator("#train-dataset input")).to_have_value("Versioned")
    page.get_by_role("tab", name="Datasets").click()
    page.locator("#dataset-message").get_by_role("button", name="Back to version 1").click()
    expect(page.locator("#dataset-head")).to_contain_text("version 1 of 2")
    page.locator("#dataset-train").click()
    expect(page.locator("#train-dataset input")).to_have_value("Versioned@1")
    expect(page.locator("#train-command textarea")).to_have_value(re.compile("--dataset Versioned@1 "))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_view_scrolls_sideways_on_a_phone(page: Page, url: str, tmp_path: Path, theme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    long = "word" * 120
    path = write_lines(tmp_path / f"{long[:100]}.jsonl", [pair(long, long, column=long), pair("a", "")])
    open_tab(page, url, "Datasets", theme)
    upload(page, path)
    assert sideways(page) == 0
    box(page, "dataset-name").fill(f"Narrow {theme}")
    page.locator("#dataset-add").click()
    page.locator("#dataset-errors table").wait_for()
    assert sideways(page) == 0
    page.locator("#dataset-leave-out").click()
    for name in ("Raw", "Loss mask"):
        page.locator("#dataset-view").get_by_text(name).click()
        page.locator({"Raw": "#dataset-preview .as-raw", "Loss mask": "#dataset-preview .as-tokens"}[name]).wait_for()
        assert sideways(page) == 0
    view(page, "Report")
    page.locator("#dataset-report-start").click()
    page.locator("#dataset-report .as-report").wait_for(timeout=60_000)
    assert sideways(page) == 0
    for name in ("Change", "Versions"):
        view(page, name)
        assert sideways(page) == 0


def sideways(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
