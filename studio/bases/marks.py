"""Where a chat template's own `{% generation %}` marks say that the assistant speaks.

transformers' tokenizers hand these marks out as masks of tokens only, and such a mask is wrong where the first or last character of
a mark is white space that the tokenizer leaves out of its offsets. The characters themselves are what is exact.
"""

import re
import threading
from typing import Any

from studio.bases.loading import import_transformers

_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# The marks are collected in the compiled template, which all threads share.
_COLLECTING = threading.Lock()


def has_marks(template: str) -> bool:
    """Whether the template says itself what the assistant writes."""
    return bool(_MARK.search(template))


def marked_text(tokenizer: Any, conversation: list[dict[str, str]], prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """The text that the template writes, and the (start, end) characters of what it marks, in order.

    Args:
        prompt: write up to where the next answer begins.

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
    """
    import_transformers()
    from transformers.utils.chat_template_utils import render_jinja_template

    with _COLLECTING:
        texts, marks = render_jinja_template(
            [conversation],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            **tokenizer.special_tokens_map,
        )
    return texts[0], [(start, end) for start, end in marks[0]]
