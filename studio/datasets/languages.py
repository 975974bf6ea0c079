"""Which languages a dataset is in, guessed offline from a sample of its rows (py3langid)."""

import functools
import re
from collections import Counter
from typing import Any

from studio.datasets.forms import Conversation

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


def guess_language(conversation: Conversation) -> str:
    """The ISO 639-1 code of what the row teaches; empty where its text is short or the guess is unsure.

    The answers alone are looked at where they are long enough, because they are what is learned.
    """
    answers = _prose(" ".join(turn["content"] for turn in conversation if turn["role"] in ("assistant", "text")))
    text = answers if _is_long(answers) else _prose(" ".join(turn["content"] for turn in conversation if turn["role"] != "system"))
    if not _is_long(text):
        return ""
    language, certainty = _identifier().classify(text[:LONG])
    return str(language) if certainty >= SURE and language not in _NO_LANGUAGE else ""


def shares(guesses: Counter[str]) -> dict[str, float]:
    """The share of each language of the rows with a guess, the largest first."""
    total = sum(guesses.values())
    return {language: guessed / total for language, guessed in sorted(guesses.items(), key=lambda item: (-item[1], item[0]))}


def _prose(text: str) -> str:
    return _CODE.sub(" ", text[: 4 * LONG])


def _is_long(text: str) -> bool:
    # A character of Chinese or Japanese says as much as three of an alphabet.
    return sum(3 if character > "\u2fff" else 1 for character in text[:LONG] if character.isalpha()) >= SHORT


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
