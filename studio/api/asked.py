"""What a request asks for: OpenAI's fields, and vLLM's top_k and ignore_eos.

Fields that nobody here knows are left alone, as servers of this kind do. Those that would change the answer and cannot be
done are refused, so that nobody takes an answer for what it is not.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.api.errors import Refusal
from studio.chat.sampling import Sampling
from studio.chat.service import Prompt

SEEDS = 2**63  # others may be negative
MAX_CHOICES = 64  # answers to one request
DEFAULT_TOKENS = 4096  # where a chat does not say, a reply ends itself, or at the end of the context, or here
COMPLETION_TOKENS = 16  # OpenAI's
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Known fields with the values that they may have; None is always as if the field were not there.
INERT: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": ([], ["text"]),
    "audio": (),
    "logit_bias": ({},),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "guided_json": (),
    "guided_regex": (),
    "structured_outputs": (),
}


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool = False


class Asked(BaseModel):
    """What both forms share. Where a field is left out, it is as OpenAI says: temperature and top_p 1."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model: str = Field(min_length=1, max_length=2000)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: str | list[str] = []
    ignore_eos: bool = False
    user: str = ""
    max_tokens: int | None = None

    # Of a reply and of its chunks.
    object_name: ClassVar[str]
    chunk_name: ClassVar[str]
    id_prefix: ClassVar[str]

    @property
    @abstractmethod
    def prompts(self) -> list[Prompt]:
        """What is answered, `n` times each."""

    @property
    def wished_tokens(self) -> int | None:
        """The longest reply, where it was said."""
        return self.max_tokens

    @property
    @abstractmethod
    def default_tokens(self) -> int:
        """The longest reply, where it was not said."""

    @property
    @abstractmethod
    def wished_logprobs(self) -> int | None:
        """Of how many likeliest tokens; None where no log-probability is asked for."""

    @property
    def sampling(self) -> Sampling:
        """How the replies are drawn.

        Raises:
            InvalidInput: a value is out of bounds.
        """
        wished = self.wished_tokens
        return Sampling(
            max_tokens=self.default_tokens if wished is None else wished,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),  # vLLM writes -1 for no limit
            seed=None if self.seed is None else self.seed % SEEDS,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            logprobs=self.wished_logprobs,
            ignore_eos=self.ignore_eos,
        )

    @classmethod
    def read(cls, body: bytes) -> Self:
        """A request's body.

        Raises:
            Refusal: it is no JSON object, or a field has a value that cannot be used.
        """
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"The body is no JSON: {error}. Send one object.") from None
        if not isinstance(fields, dict):
            raise Refusal(400, "The body should be one JSON object, such as one with model and messages.")
        said = {name: value for name, value in fields.items() if value is not None}
        for name, values in INERT.items():
            if name in said and said[name] not in values:
                raise Refusal(400, f"The field {name} cannot be used here; leave it out.", param=name, code="unsupported_value")
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            raise _wrong_field(error) from None


def _wrong_field(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return Refusal(400, f"The field {field} is missing; add it.", param=field, code="missing_required_parameter")
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    return Refusal(400, f"The field {field} is {shown}: {first['msg']}; change it.", param=field, code="invalid_value")


class TextPart(BaseModel):
    """A piece of a message."""

    type: str
    text: str = ""


class Message(BaseModel):
    """One turn."""

    role: str
    content: str | list[TextPart] = ""

    def turn(self, place: int) -> dict[str, str]:
        """As the chat reads it.

        Raises:
            Refusal: the role or a part of the content cannot be used.
        """
        where = f"messages.{place}"
        if self.role not in ROLES:
            text = f"The message {place} has the role {self.role!r}; use one of {', '.join(ROLES)}."
            raise Refusal(400, text, param=f"{where}.role", code="unsupported_value")
        if isinstance(self.content, str):
            return {"role": ROLES[self.role], "content": self.content}
        if other := next((part.type for part in self.content if part.type != "text"), ""):
            text = f"The message {place} holds a part of the type {other!r}, but the bases here read text alone; leave it out."
            raise Refusal(400, text, param=f"{where}.content", code="unsupported_value")
        return {"role": ROLES[self.role], "content": "".join(part.text for part in self.content)}


class AskedChat(Asked):
    """`/v1/chat/completions`."""

    object_name, chunk_name, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def prompts(self) -> list[Prompt]:
        """The one conversation.

        Raises:
            Refusal: a message cannot be used, or the last one is not the user's.
        """
        turns = [message.turn(place) for place, message in enumerate(self.messages)]
        if turns[-1]["role"] != "user":
            raise Refusal(400, "The last message is not the user's; add what is to be answered.", param="messages", code="invalid_value")
        return [turns]

    @property
    def wished_tokens(self) -> int | None:
        """The newer of the two names counts."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def default_tokens(self) -> int:
        """A chat ends itself."""
        return DEFAULT_TOKENS

    @property
    def wished_logprobs(self) -> int | None:
        """A switch and a number.

        Raises:
            Refusal: the number is there without the switch.
        """
        if self.top_logprobs and not self.logprobs:
            raise Refusal(400, "The field top_logprobs needs logprobs; set it to true too.", param="top_logprobs", code="invalid_value")
        return self.top_logprobs if self.logprobs else None


class AskedText(Asked):
    """`/v1/completions`."""

    object_name, chunk_name, id_prefix = "text_completion", "text_completion", "cmpl"

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Literal[False] | int | None = None

    @property
    def prompts(self) -> list[Prompt]:
        """One text or its tokens, or several of either.

        Raises:
            Refusal: there is none, or they ask for too many answers.
        """
        given: Any = self.prompt
        several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
        found: list[Prompt] = given if several else [given]
        if len(found) * self.n > MAX_CHOICES:
            text = f"{len(found)} prompts with {self.n} answers each are too many; ask for at most {MAX_CHOICES} answers at once."
            raise Refusal(400, text, param="n", code="invalid_value")
        if not all(found):
            raise Refusal(400, "The prompt is empty; write what is to be continued.", param="prompt", code="invalid_value")
        return found

    @property
    def default_tokens(self) -> int:
        """A text has no end of its own."""
        return COMPLETION_TOKENS

    @property
    def wished_logprobs(self) -> int | None:
        """A number alone."""
        return None if self.logprobs is False else self.logprobs
