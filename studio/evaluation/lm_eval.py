"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness) on adapters, for those who installed it: pip install lm-eval.

The harness asks for log-likelihoods and for answers; both come from the chat's engine, which scores and decodes beside those who chat.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.records import BaseRecord
from studio.chat.sampling import MAX_STOPS, Sampling
from studio.chat.service import Chat
from studio.datasets.rendering import Example
from studio.errors import ContextTooLong, InvalidInput

MISSING = "lm-eval is not installed; install it beside the studio with: pip install lm-eval."
USER = "evaluation"
ANSWER_TOKENS = 256  # where a task names no limit
AT_ONCE = 16


def run_tasks(chat: Chat, base: BaseRecord, voice: str, tasks: Sequence[str], limit: int, folder: Path | None) -> dict[str, float]:
    """Run tasks on one voice.

    Args:
        limit: examples of each task; 0 for all. folder: with tasks of one's own, as YAML.

    Returns:
        Each number by "task metric".

    Raises:
        InvalidInput: lm-eval is not installed, or knows no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InvalidInput(MISSING) from None
    manager = TaskManager(include_path=str(folder) if folder else None)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise InvalidInput(f"lm-eval knows no task {unknown[0]!r}; see: lm_eval ls tasks.")
    found = simple_evaluate(
        model=make_model(chat, base, voice),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit or None,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    return numbers(found["results"])


def numbers(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What lm-eval reports, flat; standard errors and names are left out."""
    found = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, _, kept_by = key.partition(",")
            if isinstance(value, int | float) and not isinstance(value, bool) and "stderr" not in key and kept_by:
                found[f"{task} {metric}" + ("" if kept_by == "none" else f" ({kept_by})")] = float(value)
    return found


def make_model(chat: Chat, base: BaseRecord, voice: str) -> Any:
    """A voice as lm-eval asks for a model."""
    from lm_eval.api.model import TemplateLM

    class StudioModel(TemplateLM):  # type: ignore[misc]
        """A voice of the studio."""

        def __init__(self) -> None:
            super().__init__()
            self.backend = chat.make_resident(base)
            self.tokenizer = self.backend.tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def tokenizer_name(self) -> str:
            return base.name

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, add_generation_prompt=add_generation_prompt))

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
            return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_kwargs: Any) -> list[tuple[float, bool]]:
            rows = [_row(context, wanted, self.backend.context) for _, context, wanted in requests]
            return [(-score.nats, score.hits == score.tokens) for score in scored(chat, base, voice, rows)]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_kwargs: Any) -> list[float]:
            return [-sum(score.nats for score in scored(chat, base, voice, _windows(self, request.args[0]))) for request in requests]

        def generate_until(self, requests: Sequence[Any], **_kwargs: Any) -> list[str]:
            return _answers(chat, base, voice, self, [request.args for request in requests])

    return StudioModel()


def scored(chat: Chat, base: BaseRecord, voice: str, rows: Sequence[Example]) -> list[Any]:
    """Scores of many rows, some at a time, so that whoever else scores has turns."""
    pieces = [chat.score(rows[start : start + AT_ONCE], voice, base) for start in range(0, len(rows), AT_ONCE)]
    return [score for piece in pieces for score in piece.result()]


def _row(context: Sequence[int], wanted: Sequence[int], most: int) -> Example:
    """A continuation behind its context, whose beginning is cut where both do not fit."""
    if len(wanted) >= most:
        raise ContextTooLong(f"A task asks for {len(wanted)} tokens at once, but this base's context is {most}; leave that task out.")
    before = list(context)[-(most - len(wanted)) :]
    return Example([*before, *wanted], [False] * len(before) + [True] * len(wanted))


def _windows(model: Any, text: str) -> list[Example]:
    """A whole text in pieces that fit the context, each token of which counts once."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ids, most = model.tok_encode(text), model.backend.context
    windows = get_rolling_token_windows(ids, prefix_token=model.eot_token_id, max_seq_len=most - 1, context_len=1)
    return [_row(context, wanted, most) for context, wanted in map(make_disjoint_window, windows)]


def _answers(chat: Chat, base: BaseRecord, voice: str, model: Any, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    said: list[str] = []
    for start in range(0, len(asked), AT_ONCE):
        streams = [_stream(chat, base, voice, model, *one) for one in asked[start : start + AT_ONCE]]
        said += ["".join(stream) for stream in streams]
    return said


def _stream(chat: Chat, base: BaseRecord, voice: str, model: Any, prompt: str, asked: dict[str, Any]) -> Any:
    until = asked.get("until") or []
    stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)[:MAX_STOPS]
    tokens = min(int(asked.get("max_gen_toks", ANSWER_TOKENS)), model.backend.context // 2)
    warmth = float(asked.get("temperature", 0.0)) if asked.get("do_sample") else 0.0
    ids = model.tok_encode(prompt)[-(model.backend.context - tokens) :]
    [stream] = chat.answers(ids, voice, base, Sampling(max_tokens=tokens, temperature=warmth, stop=stops, seed=0), USER)
    return stream
