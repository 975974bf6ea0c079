"""Names that people give to datasets and adapters: labels, never paths."""

import unicodedata
from collections.abc import Sequence

from studio.errors import InvalidInput

MAX_NAME = 80
RESERVED = frozenset({"base"})
# Letters of other alphabets that a reader takes for Latin ones, beside those that Unicode itself calls compatible.
ALIKE = str.maketrans("авекмнорстухѕіјαβεικμνορτυχɑɡı", "abekmhopctyxsijabeikmvoptuxagi")


def checked_name(kind: str, name: str) -> str:
    """Return the name, trimmed and in Unicode's composed form.

    Raises:
        InvalidInput: it is empty, too long, reserved, or holds characters that cannot be seen.
    """
    clean = " ".join(unicodedata.normalize("NFC", name).split())
    if not clean:
        raise InvalidInput(f"The {kind} has no name; type one of 1 to {MAX_NAME} characters.")
    if len(clean) > MAX_NAME:
        raise InvalidInput(f"The {kind}'s name has {len(clean)} characters; shorten it to at most {MAX_NAME}.")
    if any(unicodedata.category(char).startswith("C") for char in clean):
        raise InvalidInput(f"The {kind}'s name holds a character that cannot be seen; type it again by hand.")
    if looks(clean) in RESERVED:
        raise InvalidInput(f"The name {clean!r} means the base model itself; choose another for the {kind}.")
    return clean


def looks(name: str) -> str:
    """What a name looks like to a hasty reader: two names that look the same here are told from each other by nobody."""
    return unicodedata.normalize("NFKC", name).casefold().translate(ALIKE)


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first of some names, for a message that says what there is instead."""
    shown = ", ".join(repr(name) for name in names[:most])
    return (shown + (", …" if len(names) > most else "")) or "none yet"


def file_stem(kind: str, name: str, record_id: str) -> str:
    """The start of a file name that is safe everywhere: letters and digits of the label, then the id's first."""
    label = "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-").lower()
    return f"{label or kind}-{record_id[:6]}"
