"""The peer's work: QLoRA with TRL's SFTTrainer on PEFT and bitsandbytes, as their documentation writes it.

Usage: python peer_trl.py BASE ROWS.jsonl FOLDER. Runs in the environment of requirements-trl.txt and knows nothing of the
studio. Writes the adapter into FOLDER; its last line is one JSON object. Tokens are real ones, without padding.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

MAX_LENGTH = 512


def load_rows(path: str) -> Dataset:
    """Each row as one exchange, so that TRL applies the chat template and trains the completion alone."""
    with Path(path).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": r["prompt"]}], "completion": [{"role": "assistant", "content": r["completion"]}]}
            for r in rows
        ]
    )


def make_trainer(base: str, rows: Dataset, folder: str) -> SFTTrainer:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=8,
        num_train_epochs=1,
        max_length=MAX_LENGTH,
        learning_rate=2e-4,
        lr_scheduler_type="linear",
        warmup_steps=0,
        completion_only_loss=True,
        bf16=True,
        gradient_checkpointing=False,  # as fast as it can: this machine has the memory
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    return SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=quantization),
        args=arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def main() -> None:
    base, rows, folder = sys.argv[1:]
    trainer = make_trainer(base, load_rows(rows), folder)
    tokens = sum(min(MAX_LENGTH, len(ids)) for ids in trainer.train_dataset["input_ids"])
    started = time.perf_counter()
    outcome = trainer.train()
    seconds = time.perf_counter() - started
    trainer.save_model(folder)
    result = {
        "steps": outcome.global_step,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "train_loss": outcome.training_loss,
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
