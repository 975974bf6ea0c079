"""Column types that mean the same on SQLite and on PostgreSQL.

SQLite takes any text into any column; PostgreSQL counts characters and refuses NUL. Both refuse half of a surrogate pair.
JSON columns need no such care: they are written in ASCII, where these characters are escapes, and PostgreSQL's `json` keeps
what it is given.
"""

import json
import math
from typing import Any

from sqlalchemy import BigInteger, Dialect, Integer, TypeDecorator
from sqlalchemy import String as PlainString

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# 64 bits on both: SQLite's INTEGER is so already, and only a column of that very type numbers itself.
Long = BigInteger().with_variant(Integer(), "sqlite")


class String(TypeDecorator[str]):
    """Text; a character that a database cannot hold becomes U+FFFD.

    Args:
        length: in characters; None for text of any length. cut: text for people, of which the rest is left out where
            it is longer.
    """

    impl = PlainString
    cache_ok = True

    def __init__(self, length: int | None, cut: bool = False) -> None:
        super().__init__(length)
        self.length, self.cut = length, cut

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is sent to the database."""
        del dialect
        if value is None:
            return None
        clean = value.replace("\0", REPLACEMENT)
        if not clean.isascii():
            clean = "".join(REPLACEMENT if "\ud800" <= char <= "\udfff" else char for char in clean)
        return clean[: self.length - 1] + "…" if self.cut and self.length and len(clean) > self.length else clean


def dump_json(value: Any) -> str:
    """JSON in ASCII; what is not a finite number becomes null, since NaN is no JSON and PostgreSQL refuses it."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
