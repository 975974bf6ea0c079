"""What every form becomes, and how it is written down again."""

from collections.abc import Mapping
from typing import Any

Turn = dict[str, str]
Conversation = list[Turn]
"""An optional system turn, then user and assistant in alternation, ending with the assistant.

Or exactly one turn of the role `text`: a plain passage, which is trained whole and without a chat template.
"""

MESSAGES, TEXT = "messages", "text"


def is_passage(conversation: Conversation) -> bool:
    """Whether this is a plain passage instead of a conversation."""
    return conversation[0]["role"] == TEXT


def to_row(conversation: Conversation, extra: Mapping[str, Any], passages: bool = True) -> dict[str, Any]:
    """The row in OpenAI's form, or with a column `text` for a passage, beside its extra fields.

    Read again as `messages` or `text` it gives the same conversation and the same extra fields. `extra` is what `RowReader`
    gave: it never has a field that is named as the conversation's own column. Without `passages` a passage is written as
    its one turn, so that it can stand in one file with conversations.
    """
    name, value = (TEXT, conversation[0]["content"]) if passages and is_passage(conversation) else (MESSAGES, conversation)
    assert name not in extra, f"an extra field may not be named {name}"
    return {name: value, **extra}
