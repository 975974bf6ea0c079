"""What may be wrong with a row's fields: a closed set of kinds, and the one exception that names them."""

import re

import orjson

from studio.datasets.rows import RowError

KINDS = {
    "not an object": "the row has no named fields",
    "missing": "a field that the form needs is not there, or is null",
    "empty": "a text has no characters but blanks, or a list has no entries",
    "not text": "a number, a list, an image or another value stands where text is due",
    "not a list": "a list of turns is due, and something else is there",
    "not JSON": "a cell that should hold a list of turns as JSON cannot be read",
    "half a character": "a text holds a lone surrogate, which is no character",
    "unknown role": "a turn's role is none that is known",
    "turn order": "user and assistant do not take turns, or a system turn is not the first",
    "no answer": "the conversation does not end with the assistant",
    "tool calls": "a turn calls a tool, or is what a tool gave back",
    "turn weight": "an answer is marked as not, or only partly, to be trained",
    "extra value": "a further column holds what JSON cannot keep",
}

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Fault(Exception):
    """A field of a row is wrong. Whoever knows the row's place makes a `RowError` of it.

    Args:
        kind: one of `KINDS`. field: the column, or a path such as `messages[2].role`. value: what stands there.
    """

    def __init__(self, kind: str, field: str, problem: str, fix: str, value: object = "") -> None:
        super().__init__(kind, field, problem)
        self.kind, self.field, self.problem, self.fix, self.value = kind, field, problem, fix, value

    def at(self, line: int, file: str) -> RowError:
        """The error with the place of its row."""
        return RowError(line, self.field, self.problem, self.fix, kind=self.kind, excerpt=excerpt(self.value), file=file)


def excerpt(value: object, most: int = RowError.EXCERPT) -> str:
    """The beginning of a value on one line, at most `most` characters; those that cannot be shown are replaced by �."""
    if not isinstance(value, str):
        try:
            value = orjson.dumps(value).decode()
        except TypeError:  # half a character inside, or no JSON at all
            value = repr(value)
    shown = value if len(value) <= most else value[: most - 1] + "…"
    return _UNSEEN.sub("�", shown)


def described(value: object) -> str:
    """What a value is, in words."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), type(value).__name__)
