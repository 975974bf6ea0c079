"""What a base's chat template writes for a conversation of plain turns."""

from collections.abc import Callable
from typing import Any

from studio.bases.loading import import_transformers

Turns = list[dict[str, str]]


def text_writer(tokenizer: Any) -> Callable[[Turns, bool], str]:
    """A function that writes the text of a conversation, as the tokenizer's `apply_chat_template` does, errors included.

    The turns must be plain dicts of a role and a content that are strings. With that, all that `apply_chat_template` does before
    it asks the template changes nothing, but costs half of the time; so the compiled template of transformers is asked
    at once. Where transformers has no such name any more, `apply_chat_template` is called. The function's second argument: write up to
    where the next answer begins.
    """
    import_transformers()
    from transformers.utils import chat_template_utils

    compiled: Callable[[str], Any] | None = getattr(chat_template_utils, "_compile_jinja_template", None)
    source = tokenizer.get_chat_template()

    def write(conversation: Turns, prompt: bool) -> str:
        if compiled is None or not conversation:  # what there is to say of an empty one, transformers says
            return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt))
        template, special = compiled(source), tokenizer.special_tokens_map  # compiled once: transformers remembers it
        return str(template.render(messages=conversation, tools=None, documents=None, add_generation_prompt=prompt, **special))

    return write
