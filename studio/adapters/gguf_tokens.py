"""A base's tokenizer as GGUF holds it: byte-level BPE, and the name by which llama.cpp knows how text is cut before it."""

import json
from dataclasses import dataclass
from typing import Any

from studio.errors import InvalidInput

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
# How tokenizers cut text before BPE, as their files say it, by the names that llama.cpp has for it.
WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
SPLITS = {WORDS % r"\p{N}{1,3}": "llama-bpe", WORDS % r"\p{N}": "qwen2"}


@dataclass(frozen=True)
class Vocabulary:
    """All that GGUF says of a tokenizer. `types` are llama.cpp's, `special` ids by their role: bos, eos, unk, pad."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    special: dict[str, int]
    adds_bos: bool
    template: str

    def add_to(self, writer: Any) -> None:
        """Put it into a file's header."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for role, token_id in self.special.items():
            getattr(writer, f"add_{role}_token_id")(token_id)
        writer.add_add_bos_token(self.adds_bos)
        if self.template:
            writer.add_chat_template(self.template)


def vocabulary(tokenizer: Any, size: int, base: str) -> Vocabulary:
    """Read a tokenizer of transformers.

    Args:
        size: rows of the embedding; ids that the tokenizer lacks are filled up.

    Raises:
        InvalidInput: it is no byte-level BPE, or cuts text in a way that has no name here.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    model = told["model"]
    pre = _pre(told.get("pre_tokenizer"), told.get("normalizer")) if model["type"] == "BPE" else ""
    if not pre:
        raise InvalidInput(
            f"The tokenizer of the base {base!r} cuts text in a way that has no GGUF name here; export it as gguf, peft or merged."
        )
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    found = [(token_id, text, NORMAL) for text, token_id in model["vocab"].items()]
    found += [(added["id"], added["content"], CONTROL if added["special"] else USER_DEFINED) for added in told.get("added_tokens", [])]
    for token_id, text, kind in found:
        if token_id < size:  # the model cannot know one beyond
            tokens[token_id], types[token_id] = text, kind
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "pad")}
    special = {role: token_id for role, token_id in roles.items() if token_id is not None and token_id < size}
    adds_bos = tokenizer("a")["input_ids"][:1] == [special.get("bos", -1)]
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    return Vocabulary(tokens, types, merges, pre, special, adds_bos, template)


def _pre(step: Any, normalizer: Any) -> str:
    """llama.cpp's name of what is done before BPE; empty where it is none of those that are known."""
    if normalizer is not None and normalizer.get("type") != "NFC":
        return ""
    steps = step["pretokenizers"] if step and step["type"] == "Sequence" else [step or {"type": ""}]
    if steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space") or len(steps) > 2:
        return ""
    if len(steps) == 1:
        return "gpt-2" if steps[0].get("use_regex", True) else ""
    first, use_regex = steps[0], steps[1].get("use_regex", True)
    if first["type"] == "Digits" and first.get("individual_digits") and use_regex:
        return "smollm"
    if first["type"] == "Split" and not use_regex and first.get("behavior") == "Isolated":
        return SPLITS.get(first["pattern"].get("Regex", ""), "")
    return ""
