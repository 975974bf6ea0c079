"""Which languages a dataset is in, guessed offline from a sample of its rows (py3langid)."""

import functools
import re
import threading
from typing import Any

from studio.datasets.forms import Conversation
from studio.datasets.passes import Watch

SAMPLE_ROWS = 1000
SHORT = 60  # letters; the guess is often wrong below that
LONG = 600
SURE = 0.8
_NAMED = (
    "ar=Arabic bg=Bulgarian bn=Bengali ca=Catalan cs=Czech da=Danish de=German el=Greek en=English es=Spanish et=Estonian fa=Persian "
    "fi=Finnish fr=French he=Hebrew hi=Hindi hr=Croatian hu=Hungarian id=Indonesian it=Italian ja=Japanese ko=Korean lt=Lithuanian "
    "lv=Latvian nl=Dutch no=Norwegian nb=Norwegian pl=Polish pt=Portuguese ro=Romanian ru=Russian sk=Slovak sl=Slovenian sr=Serbian "
    "sv=Swedish sw=Swahili ta=Tamil th=Thai tr=Turkish uk=Ukrainian ur=Urdu vi=Vietnamese zh=Chinese"
)
_NAMES = dict(entry.split("=") for entry in _NAMED.split())
_NO_LANGUAGE = ("zxx", "und", "mul")  # ISO 639-2: nothing linguistic, undetermined, several
_CODE = re.compile(r"```.*?(?:```|$)", re.S)


def language_name(code: str) -> str:
    """The English name of an ISO 639-1 code, or the code itself."""
    return _NAMES.get(code, code)


def in_sample(row: int, count: int) -> bool:
    """Whether a row is one of the at most `SAMPLE_ROWS` that are looked at: evenly spaced, the same each time."""
    return count <= SAMPLE_ROWS or row * SAMPLE_ROWS // count != (row - 1) * SAMPLE_ROWS // count


def telling_text(conversation: Conversation) -> str:
    """What to guess the language of a row from; empty where it has too few letters.

    The answers alone where they are long enough, because they are what is learned.
    """
    answers = _prose(" ".join(turn["content"] for turn in conversation if turn["role"] in ("assistant", "text")))
    text = answers if _is_long(answers) else _prose(" ".join(turn["content"] for turn in conversation if turn["role"] != "system"))
    return text[:LONG] if _is_long(text) else ""


def guess_languages(texts: list[tuple[int, str]], watch: Watch) -> dict[str, list[int]]:
    """The rows of each language, by ISO 639-1 code; those with an unsure guess are in none. `texts` are (row, text).

    Raises:
        Cancelled: `watch` says so.
    """
    rows: dict[str, list[int]] = {}
    if not texts:
        return rows
    identifier = _load(watch)
    for done, (row, text) in enumerate(texts):
        if done % 100 == 0:
            watch.at(done / len(texts), "guessing languages")
        language, certainty = identifier.classify(text)
        if certainty >= SURE and language not in _NO_LANGUAGE:
            rows.setdefault(str(language), []).append(row)
    return rows


def shares(rows: dict[str, list[int]]) -> dict[str, float]:
    """The share of each language of the rows with a guess, the largest first."""
    total = sum(map(len, rows.values()))
    return {language: len(rows[language]) / total for language in sorted(rows, key=lambda name: (-len(rows[name]), name))}


def _prose(text: str) -> str:
    return _CODE.sub(" ", text[: 4 * LONG])


def _is_long(text: str) -> bool:
    # A character of Chinese or Japanese says as much as three of an alphabet.
    return sum(3 if character > "\u2fff" else 1 for character in text[:LONG] if character.isalpha()) >= SHORT


def _load(watch: Watch) -> Any:
    """The first time takes half a second: in a thread, so that progress goes on."""
    loader = threading.Thread(target=_identifier, daemon=True)
    loader.start()
    while loader.is_alive():
        watch.at(0.0, "guessing languages")
        loader.join(0.1)
    return _identifier()


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
