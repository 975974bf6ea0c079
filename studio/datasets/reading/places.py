"""What stands at a place of a text, short enough to show and without characters that would disturb a page."""

import unicodedata

WIDTH = 40
WHOLE = 100


def excerpt(text: str, column: int = 0) -> str:
    """About 40 characters around a column (from 1), or the beginning of the text where the column is 0.

    Control characters, invisible ones and halves of characters are replaced.
    """
    start = max(column - 1 - WIDTH // 2, 0)
    return printable(text[start : start + WIDTH] if column else text[:WHOLE])


def printable(text: str) -> str:
    """The text with everything replaced that is control, format, half a character, unassigned or an end of a line."""
    categories = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in categories else c for c in text)
