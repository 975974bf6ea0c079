"""Two adapters side by side: what differs in options and figures, how alike their weights are, what each answers to the same prompts."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.records import AdapterRecord
from studio.adapters.inspecting import Inspector, differences
from studio.adapters.merged import Tell
from studio.bases.catalog import BaseCatalog
from studio.chat.sampling import Sampling
from studio.chat.service import Chat, Stream
from studio.chat.voices import BASE_NAME
from studio.errors import IncompatibleAdapter, InvalidInput

if TYPE_CHECKING:
    from studio.lora.similarity import Alike

MOST_PROMPTS = 5
MAX_TOKENS = 96  # of an answer


@dataclass(frozen=True)
class Answers:
    """What the base, the first and the second adapter answered to a prompt."""

    prompt: str
    base: str
    first: str
    second: str


@dataclass(frozen=True)
class Difference:
    """Two adapters.

    Attributes:
        differs: the options and measured numbers in which they differ, of the first and of the second; None where one has none.
        alike: how alike their weights are; None where that cannot be told. note: why not, as a sentence.
        answers: to the prompts; empty where there are none.
    """

    first: AdapterRecord
    second: AdapterRecord
    differs: Mapping[str, Sequence[Any]]
    alike: "Alike | None"
    note: str
    answers: Sequence[Answers]


class Differ:
    """Says how two adapters differ.

    Args:
        inspector: compares their weights. bases: those that they stand on. chat: has them answer.
    """

    def __init__(self, inspector: Inspector, bases: BaseCatalog, chat: Chat) -> None:
        self.inspector, self.bases, self.chat = inspector, bases, chat

    def differ(self, one: str, other: str, prompts: Sequence[str], tell: Tell) -> Difference:
        """Compare two adapters by their names or ids.

        Args:
            prompts: up to five; each is answered greedily by both and by the base, all in one batch. tell: may raise to stop.

        Raises:
            NotFound. InvalidInput: it is one adapter, or there are too many prompts. IncompatibleAdapter: there are prompts, and they
            stand on different bases. BaseUnavailable. Whatever `tell` raises.
        """
        first, second = self.inspector.catalog.get(one), self.inspector.catalog.get(other)
        asked = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))
        if first.id == second.id:
            raise InvalidInput(f"Both are the adapter {first.name!r}; choose another one to compare it with.")
        if len(asked) > MOST_PROMPTS:
            raise InvalidInput(f"These are {len(asked)} prompts; leave some out, {MOST_PROMPTS} are possible.")
        if asked and first.base_fingerprint != second.base_fingerprint:
            names = f"{first.name!r} and {second.name!r}"
            raise IncompatibleAdapter(f"The adapters {names} stand on different bases, which are not asked together; leave prompts out.")
        tell(0.0, "comparing the weights")
        alike, note = self._alike(first, second)
        return Difference(first, second, differences([first, second]), alike, note, self._answers(first, second, asked, tell))

    def _alike(self, first: AdapterRecord, second: AdapterRecord) -> "tuple[Alike | None, str]":
        try:
            return self.inspector.compare([first.id, second.id]).likeness[0, 1], ""
        except IncompatibleAdapter as error:
            return None, str(error)

    def _answers(self, first: AdapterRecord, second: AdapterRecord, prompts: Sequence[str], tell: Tell) -> list[Answers]:
        if not prompts:
            return []
        base, sampling = self.bases.get(first.base_id), Sampling(max_tokens=MAX_TOKENS, temperature=0.0)
        asked = [(prompt, voice) for prompt in prompts for voice in (BASE_NAME, first.id, second.id)]
        with contextlib.ExitStack() as streams:
            started: list[Stream] = []
            for prompt, voice in asked:
                tell(0.0, "asking both and the base")
                started.append(self.chat.stream([{"role": "user", "content": prompt}], voice, base, sampling))
                streams.callback(started[-1].cancel)  # whoever stops leaves nobody speaking
            said = []
            for number, stream in enumerate(started):
                tell(number / len(started), f"{number} of {len(started)} answers")
                said.append("".join(self._heard(stream, number / len(started), tell)))
        return [Answers(prompt, *said[3 * i : 3 * i + 3]) for i, prompt in enumerate(prompts)]

    def _heard(self, stream: Stream, share: float, tell: Tell) -> list[str]:
        pieces = []
        for piece in stream:
            tell(share, "answering")
            pieces.append(piece)
        return pieces


def sample_prompts(*records: AdapterRecord) -> list[str]:
    """The prompts that their trainings answered, without repeats, up to five."""
    found = [item.get("prompt", "") for record in records for item in record.metrics.get("samples") or [] if isinstance(item, dict)]
    return [prompt for prompt in dict.fromkeys(found) if prompt][:MOST_PROMPTS]
