"""Tiny random models with a tokenizer of their own, made on the spot: the same files a real base has."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HELD_OUT = Path(__file__).parent.parent / "studio" / "bases" / "held_out.txt"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(HELD_OUT)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


def make_model(seed: int = 0, vocab: int = 600) -> LlamaForCausalLM:
    """Two layers, 64 wide, grouped-query attention, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # wide, so that greedy answers differ from prompt to prompt
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


# 64 wide, two layers, float32, as the Llama above.
SHAPE = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def make_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Conv1D layers, learned positions, and c_proj in both halves of a block."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=600, n_embd=64, n_layer=2, n_head=4, n_positions=512, initializer_range=0.2, eos_token_id=1, bos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def make_phi3(seed: int = 0) -> Phi3ForCausalLM:
    """Fused qkv_proj and gate_up_proj."""
    torch.manual_seed(seed)
    return Phi3ForCausalLM(Phi3Config(**SHAPE)).eval()


def make_qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    """Biases on q, k and v."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()


def make_qwen3(seed: int = 0) -> Qwen3ForCausalLM:
    """Norms on q and k, and heads wider than the model divided by their number."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)).eval()


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": make_model,
    "gpt2": make_gpt2,
    "phi3": make_phi3,
    "qwen2": make_qwen2,
    "qwen3": make_qwen3,
}


def save_base(folder: Path, seed: int = 0) -> Path:
    """Write a tiny base as transformers saves one."""
    tokenizer = make_tokenizer()
    make_model(seed, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
