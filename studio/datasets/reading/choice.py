"""Which of the lists in an object holds the rows."""

from studio.datasets.reading.documents import Document

USUAL = ("train", "data", "rows", "examples", "items", "records", "conversations", "dialogues", "instances", "samples")


def choose_list(document: Document, keys: list[str]) -> str:
    """The key of the list that holds the rows; tells where others are left.

    Raises:
        InvalidInput: several lists could be meant.
    """
    keys = list(dict.fromkeys(keys))
    usual = [key for key in USUAL if key in keys]
    if len(keys) > 1 and not usual:
        named = ", ".join(repr(key) for key in keys[:8])
        raise document.refuse(f"holds several lists ({named}); put the rows into one list, or under the name 'data'.")
    chosen = usual[0] if usual else keys[0]
    if len(keys) > 1:
        others = ", ".join(repr(key) for key in keys[:8] if key != chosen)
        document.tell(f"holds several lists; the rows of {chosen!r} were read and {others} left out.")
    return chosen
