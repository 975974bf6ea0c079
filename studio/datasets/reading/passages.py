"""Plain text and Markdown as passages: whole paragraphs, joined up to a length, each with the line it starts on."""

import re
from collections.abc import Iterator

import orjson

from studio.datasets.reading.documents import Rows
from studio.datasets.reading.text import Text
from studio.datasets.rows import SourceRow

PASSAGE_CHARACTERS = 2_000
HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
FENCE = re.compile(r" {0,3}(```|~~~)")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*\s+")

Piece = tuple[int, str, bool]  # line, text with its ends, whether a heading begins here


def read_passages(text: Text) -> Rows:
    """Passages of about `PASSAGE_CHARACTERS` as `{"text": passage}`; nothing but white space around them is lost.

    Raises:
        InvalidInput: a line is too long.
    """
    text.check_lines()
    markdown = text.document.suffix == ".md"
    passage, start = "", 0
    _tell_json_lines(text)
    for line, piece, heading in _paragraphs(text, markdown):
        if passage.strip() and (heading or len(passage) + len(piece) > PASSAGE_CHARACTERS):
            yield SourceRow(start, {"text": passage.rstrip().lstrip("\n")}, text.document.file)
            passage = ""
        if not passage.strip():
            passage, start = "", line
        passage += piece
    if passage.strip():
        yield SourceRow(start, {"text": passage.rstrip().lstrip("\n")}, text.document.file)


def _tell_json_lines(text: Text) -> None:
    """Rows of JSON in a file with the wrong ending would be trained with their brackets."""
    first = next((line for _, line in _lines(text) if line.strip()), "")
    try:
        rows = first.lstrip().startswith("{") and isinstance(orjson.loads(first), dict)
    except orjson.JSONDecodeError:
        return
    if rows:
        text.document.tell("looks like JSON Lines and was read as plain text; rename it to .jsonl if its lines are rows.")


def _paragraphs(text: Text, markdown: bool) -> Iterator[Piece]:
    """Paragraphs with the blank lines behind them; one that is longer than a passage comes in parts."""
    paragraph, start, ended, heading, fenced = "", 0, False, False, False
    for number, line in _lines(text):
        blank = not line.strip()
        opens = markdown and not fenced and bool(HEADING.match(line))
        if paragraph and not blank and (ended or opens or len(paragraph) + len(line) > PASSAGE_CHARACTERS):
            yield start, paragraph, heading
            paragraph, heading = "", False
        if not paragraph:
            if blank:
                continue
            start, heading = number, opens
        paragraph += "\n" if blank else line
        fenced ^= markdown and bool(FENCE.match(line))
        ended = blank and not fenced
        at = 0  # cutting the paragraph itself again and again would copy a long one thousands of times
        while len(paragraph) - at > PASSAGE_CHARACTERS and not blank:
            cut = at + _cut(paragraph[at : at + PASSAGE_CHARACTERS])
            yield start, paragraph[at:cut], heading
            at, start, heading = cut, number, False
        paragraph = paragraph[at:]
    if paragraph:
        yield start, paragraph, heading


def _cut(window: str) -> int:
    """Where a passage of one long line is cut: behind a sentence, else behind a word, else at its end."""
    ends = [match.end() for match in SENTENCE_END.finditer(window)]
    if ends and ends[-1] > PASSAGE_CHARACTERS // 2:
        return ends[-1]
    space = window.rfind(" ")
    return space + 1 if space > PASSAGE_CHARACTERS // 2 else PASSAGE_CHARACTERS


def _lines(text: Text) -> Iterator[tuple[int, str]]:
    """Each line with its number, its end written as LF."""
    limit = text.document.limits.row_bytes + 1
    with text.open_text() as stream:
        for number, line in enumerate(iter(lambda: stream.readline(limit), ""), 1):
            yield number, line.rstrip("\r\n") + "\n"
