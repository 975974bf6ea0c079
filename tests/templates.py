"""Small chat templates in the manner of well-known families, each with a tiny tokenizer that has the family's special tokens."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, HELD_OUT

Chat = list[dict[str, str]]

LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n{{ system }}<|eot_id|>"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25 = (
    "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\nYou are a helpful model.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' or (message['role'] == 'system' and not loop.first)"
    " or message['role'] == 'assistant' %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}\n"
    "{%- set ns = namespace(last=0) %}{%- for message in messages %}"
    "{%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}\n{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\n\n' -%}"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
# v3: the system turn goes into the last user turn. v7 has marks of its own for it.
MISTRAL3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}{{- bos_token }}"
    "{%- set ns = namespace(last=0) %}{%- for message in turns %}{%- if message['role'] == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, conversation roles must alternate user/assistant.') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{%- if loop.index0 == ns.last and system %}"
    "{{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL7 = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}{%- elif message['role'] == 'user' %}"
    "{{- '[INST]' + message['content'] + '[/INST]' }}{%- else %}{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% elif message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small model.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Each answer but the last ends with another mark.
HARMONY = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '<|message|>' + message['content'] }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
OLMO = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MARKED_CHATML = CHATML.replace(
    "{{ message['content'] }}<|im_end|>\n",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ message['content'] }}<|im_end|>{% endif %}\n\n",  # a line break behind a tag is the tag's, so there are two
)
# The marks end before the token that ends the turn.
MARKED_WORDS_LLAMA3 = LLAMA3.replace(
    "{{ message['content'] | trim }}<|eot_id|>",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim }}{% endgeneration %}{% else %}"
    "{{ message['content'] | trim }}{% endif %}<|eot_id|>",
)


def _byte_level(vocabulary: list[str], trims: bool = False, composes: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if composes:  # as Qwen does: a letter and its accent become one character
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trims:  # as Llama 3 does: offsets leave out white space
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(HELD_OUT)], trainer)
    return tokenizer


def _sentencepiece(vocabulary: list[str], scheme: str) -> Tokenizer:
    """Spaces written as ▁, bytes for unknown characters. `scheme`: where a ▁ is put before a text, as in Metaspace, or `legacy`."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if scheme != "never" else steps)
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *byte_tokens], show_progress=False)
    lines = [line + "\n" for line in HELD_OUT.read_text().splitlines()]
    tokenizer.train_from_iterator((" ".join(line.split(" ")[i : i + 3]) for line in lines for i in range(0, 9, 3)), trainer)
    # The trainer knows multi-character tokens only as special ones; in real files the bytes are plain vocabulary.
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] == "<unk>"]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in vocabulary])
    return tokenizer


@dataclass(frozen=True)
class Family:
    """A template, how to make its tokenizer, its special tokens, and what ends an answer."""

    template: str
    make: Callable[[list[str]], Tokenizer]
    special: tuple[str, ...]
    end: str
    eos: str
    bos: str | None = None
    trims: bool = False  # the template trims an answer
    system: bool = True  # it takes a system turn
    middle_end: str | None = None  # what ends an answer that is not the last, if another


CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
INST = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<s>", "</s>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "llama3": Family(LLAMA3, lambda v: _byte_level(v, True), LLAMA3_TOKENS, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", trims=True),
    "qwen2.5": Family(QWEN25, _byte_level, CHATML_TOKENS, "<|im_end|>", "<|im_end|>"),
    "qwen3": Family(QWEN3, lambda v: _byte_level(v, composes=True), CHATML_TOKENS, "<|im_end|>", "<|im_end|>"),
    "gemma3": Family(
        GEMMA3,
        lambda v: _sentencepiece(v, "never"),
        ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
        "<end_of_turn>",
        "<eos>",
        "<bos>",
        trims=True,
    ),
    "mistral3": Family(MISTRAL3, lambda v: _sentencepiece(v, "first"), INST, "</s>", "</s>", "<s>", trims=True),
    "mistral7": Family(MISTRAL7, _byte_level, INST, "</s>", "</s>", "<s>"),
    "llama2": Family(LLAMA2, lambda v: _sentencepiece(v, "legacy"), ("<s>", "</s>"), " </s>", "</s>", "<s>", trims=True, system=False),
    "phi3": Family(
        PHI3,
        lambda v: _sentencepiece(v, "legacy"),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
        "<|endoftext|>",
    ),
    "phi4": Family(PHI4, _byte_level, (*CHATML_TOKENS, "<|im_sep|>"), "<|im_end|>", "<|im_end|>"),
    "smollm2": Family(SMOLLM2, _byte_level, CHATML_TOKENS, "<|im_end|>", "<|im_end|>", "<|im_start|>"),
    "harmony": Family(
        HARMONY,
        _byte_level,
        ("<|start|>", "<|message|>", "<|end|>", "<|return|>"),
        "<|return|>",
        "<|return|>",
        middle_end="<|end|>",
    ),
    "olmo": Family(
        OLMO,
        _byte_level,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"),
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        middle_end="",
    ),
    "marked": Family(MARKED_CHATML, _byte_level, CHATML_TOKENS, "<|im_end|>", "<|im_end|>"),
    "marked words": Family(
        MARKED_WORDS_LLAMA3, lambda v: _byte_level(v, True), LLAMA3_TOKENS, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", trims=True
    ),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, made once."""
    family = FAMILIES[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=family.make(list(family.special)), eos_token=family.eos, bos_token=family.bos)
    tokenizer.chat_template = family.template
    return tokenizer
