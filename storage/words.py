"""From text that people typed to words that an index finds, the same for what is stored and for what is asked, on every database.

Databases split, fold and quote text each in its own way. So this module does it, and the index holds words of letters and digits
alone: nothing that a person types is ever read as an operator. What is filtered by, such as a tag, stands in the same index as a
word that no text can hold, since it begins with a sign.
"""

import re
import unicodedata
from collections.abc import Iterable

MOST_WORDS = 5000  # different ones of one adapter
MOST_ASKED = 12
LONGEST = 40  # characters of a word; the rest says nothing
LONGEST_FACT = 1800  # hexadecimal digits; PostgreSQL takes words of up to 2,046 bytes
SIGN = "§"
# Written without spaces, so each character is a word.
ALONE = re.compile("([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
WORD = re.compile(r"[^\W_]+")


def words_of(text: str, most: int = MOST_WORDS) -> list[str]:
    """The different words of a text in their order: without accents, in small letters; symbols such as emoji are words, too."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    marked = "".join(_spaced(char) for char in unicodedata.normalize("NFKD", plain))
    found: dict[str, None] = {}
    for word in marked.split():
        for part in [word] if _is_symbol(word) else WORD.findall(word):
            found[part[:LONGEST]] = None
            if len(found) == most:
                return list(found)
    return list(found)


def folded(text: str) -> str:
    """A name as it is sorted: by its words, whatever their capitals and accents."""
    return " ".join(
        WORD.findall("".join(char for char in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(char)))
    )


def _spaced(char: str) -> str:
    if unicodedata.category(char).startswith("M"):
        return ""
    return f" {char} " if _is_symbol(char) or ALONE.match(char) else char


def _is_symbol(text: str) -> bool:
    return len(text) == 1 and not text.isascii() and unicodedata.category(text).startswith("S")


def facet(state: str, kind: str, value: str = "") -> str:
    """The word that stands for a fact, such as that an adapter which is listed has a tag.

    Args:
        state, kind: a letter each. value: any text.
    """
    return f"{SIGN}{state}{kind}{value.encode('utf-8', 'replace').hex()[:LONGEST_FACT]}"


def value_of(word: str) -> tuple[str, str]:
    """(kind, value) of a facet's word."""
    return word[2:3], bytes.fromhex(word[3:]).decode("utf-8", "replace")


def sqlite_query(facets: Iterable[str], words: Iterable[str]) -> str:
    """FTS5's expression for all of these; words may go on."""
    return " AND ".join([*(f'"{word}"' for word in facets), *(f'"{word}" *' for word in words)])


def postgres_query(facets: Iterable[str], words: Iterable[str]) -> str:
    """The same as a tsquery."""
    return " & ".join([*(f"'{word}'" for word in facets), *(f"'{word}':*" for word in words)])
