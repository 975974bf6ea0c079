"""Which rows of a dataset an evaluation is about, and what is asked and expected in each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.records import AdapterRecord, DatasetRecord
from studio.datasets.forms import Conversation
from studio.datasets.rendering import CHUNK_ROWS, Renderer, is_passage
from studio.datasets.store import RowStore
from studio.errors import InvalidInput
from studio.evaluation.plan import Plan
from studio.training.batching import split_held_out
from studio.training.config import DEFAULT_PRESET, make_config

NO_PROMPT = "The row has no question with an answer; only its loss can be told."


@dataclass(frozen=True)
class Asked:
    """What a row asks and what it expects: the turns before its last answer, and that answer. Nothing is asked of a plain passage."""

    prompt: list[dict[str, str]]
    reference: str

    @property
    def question(self) -> str:
        """The last turn of the prompt, for people."""
        return self.prompt[-1]["content"] if self.prompt else ""


def asked(conversation: Conversation) -> Asked:
    """What is asked in a row."""
    if is_passage(conversation):
        return Asked([], conversation[0]["content"])
    last = max((i for i, turn in enumerate(conversation) if turn["role"] == "assistant"), default=-1)
    if last < 1 or conversation[last - 1]["role"] != "user":
        return Asked([], conversation[last]["content"])
    return Asked([dict(turn) for turn in conversation[:last]], conversation[last]["content"])


def chosen_rows(rows: Sequence[int], plan: Plan) -> list[int]:
    """At most as many as the plan wants, drawn by its seed, in the dataset's order."""
    if not plan.rows or plan.rows >= len(rows):
        return list(rows)
    return sorted(random.Random(plan.seed).sample(list(rows), plan.rows))


def held_out_rows(store: RowStore, dataset: DatasetRecord, adapters: Sequence[AdapterRecord], tokenizer: Any) -> list[int]:
    """The rows that the training of one of the adapters kept for its own evaluation.

    Raises:
        InvalidInput: none of them was trained on this dataset, two kept different rows, or nothing was held out.
    """
    trained = [record for record in adapters if record.origin == "training" and record.dataset_hash == dataset.content_hash]
    if not trained:
        raise InvalidInput(
            f"The option held_out needs an adapter that was trained on {dataset.name!r}; choose one, another dataset, or all rows."
        )
    splits = {record.name: _held_out(store, record, tokenizer) for record in trained}
    first, *others = splits.items()
    if other := next((name for name, rows in others if rows != first[1]), ""):
        raise InvalidInput(
            f"The trainings of {first[0]!r} and {other!r} held out different rows; evaluate them one by one, or on all rows."
        )
    if not first[1]:
        raise InvalidInput(f"The training of {first[0]!r} held nothing out; evaluate on another dataset, or on all rows.")
    return first[1]


def _held_out(store: RowStore, record: AdapterRecord, tokenizer: Any) -> list[int]:
    """As the trainer does it: rows that do not fit are left out first, then the rest is split by the seed."""
    defaults = make_config(DEFAULT_PRESET).model_dump()
    config = {key: record.config.get(key, defaults[key]) for key in ("max_length", "over_length", "held_out", "seed")}
    kept, renderer = [], Renderer(tokenizer)
    for start in range(0, len(store), CHUNK_ROWS):
        for offset, example in enumerate(renderer.render_each(store.fetch(start, CHUNK_ROWS))):
            if isinstance(example, InvalidInput):
                continue
            fits = len(example.token_ids) <= config["max_length"]
            if fits or (config["over_length"] == "truncate" and any(example.trained[1 : config["max_length"]])):
                kept.append(start + offset)
    return [kept[place] for place in split_held_out(len(kept), config["held_out"], config["seed"])[1]]
