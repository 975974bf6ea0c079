"""The forms by name: which columns they have, under which other names, and one row of each."""

from dataclasses import dataclass

from studio.errors import InvalidInput


@dataclass(frozen=True)
class Role:
    """What a column may mean. `aliases` are the column names that are taken for it, the likeliest first."""

    name: str
    required: bool
    help: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """A form: its name, its name for people, its roles, and one row as a line of JSON."""

    name: str
    label: str
    roles: tuple[Role, ...]
    example: str

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the roles without which there is nothing to read."""
        return tuple(role.name for role in self.roles if role.required)


@dataclass(frozen=True)
class Fit:
    """A form, its columns as {role: column}, and the share of the rows tried that it reads without an error."""

    form: str
    mapping: dict[str, str]
    share: float


SYSTEM = Role("system", False, "the system prompt of this row", ("system", "system_prompt", "system_message"))
PROMPT = Role("prompt", True, "what the person says: text, or a list of turns", ("prompt", "input", "question", "query", "instruction"))

_ALL = (
    Form(
        "messages",
        "Messages (OpenAI)",
        (Role("messages", True, "a list of turns with role and content", ("messages", "chat")),),
        '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day!"}]}',
    ),
    Form(
        "conversations",
        "Conversations (ShareGPT)",
        (
            Role(
                "conversations",
                True,
                "a list of turns with from and value",
                ("conversations", "conversation", "messages", "dialogue", "dialog"),
            ),
            SYSTEM,
        ),
        '{"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day!"}]}',
    ),
    Form(
        "prompt-completion",
        "Prompt and completion",
        (
            PROMPT,
            Role(
                "completion",
                True,
                "what is learned: text, or a list of turns",
                ("completion", "response", "output", "answer", "target", "reply"),
            ),
            SYSTEM,
        ),
        '{"prompt": "Hello", "completion": "Good day!"}',
    ),
    Form(
        "instruction",
        "Instruction (Alpaca)",
        (
            Role("instruction", True, "what is to be done", ("instruction",)),
            Role("input", False, "what it is to be done with; a blank line before it", ("input", "context")),
            Role("output", True, "what is learned", ("output", "response", "completion", "answer")),
            SYSTEM,
        ),
        '{"instruction": "Greet me in German.", "input": "", "output": "Guten Tag!"}',
    ),
    Form(
        "question-answer",
        "Question and answer",
        (
            Role("question", True, "what is asked", ("question", "query", "problem")),
            Role(
                "answer",
                True,
                "what is learned: text, or a list whose first entry is taken",
                ("answer", "best_answer", "correct_answer", "answers", "correct_answers", "response", "solution"),
            ),
            Role("context", False, "the passage that is asked about; it follows the question", ("context", "passage")),
            SYSTEM,
        ),
        '{"question": "When does the ferry leave?", "context": "The ferry leaves at 10.05.", "answer": "At 10.05"}',
    ),
    Form(
        "summary",
        "Document and summary",
        (
            Role(
                "document",
                True,
                "the long text",
                ("document", "article", "text_to_summarise", "text_to_summarize", "dialogue", "dialog", "report", "source", "text"),
            ),
            Role("summary", True, "what is learned", ("summary", "highlights", "abstract", "tldr")),
            SYSTEM,
        ),
        '{"document": "The footbridge at Callow was closed after rust was found in it.", "summary": "Rust closed a bridge."}',
    ),
    Form(
        "preference",
        "Chosen and rejected",
        (
            Role("prompt", False, PROMPT.help, (*PROMPT.aliases, "conversations")),
            Role("chosen", True, "the better side, which is learned: text, or a list of turns", ("chosen", "preferred")),
            Role("rejected", True, "the worse side, which is kept but not trained", ("rejected", "dispreferred")),
            SYSTEM,
        ),
        '{"prompt": "Hello", "chosen": "Good day!", "rejected": "What?"}',
    ),
    Form(
        "conversation",
        "Lines that take turns",
        (
            Role(
                "conversation",
                True,
                "a list of texts: user, assistant, user, assistant, …",
                ("conversation", "conversations", "dialogue", "dialog", "utterances"),
            ),
            SYSTEM,
        ),
        '{"conversation": ["Hello", "Good day!"]}',
    ),
    Form(
        "text",
        "Plain text",
        (Role("text", True, "a passage that is learned whole", ("text", "content")),),
        '{"text": "Call me Ishmael."}',
    ),
)
FORMS: dict[str, Form] = {form.name: form for form in _ALL}


def read_mapping(pairs: list[str]) -> dict[str, str]:
    """Parse `ROLE=COLUMN` pairs into {role: column}.

    Raises:
        InvalidInput: a pair has another shape or an unknown role, or a role is given twice.
    """
    roles = sorted({role.name for form in FORMS.values() for role in form.roles})
    mapping: dict[str, str] = {}
    for pair in pairs:
        role, equals, column = pair.partition("=")
        if not equals or not column or role not in roles:
            raise InvalidInput(f"The mapping {pair!r} is not ROLE=COLUMN with a role among {', '.join(roles)}.")
        if role in mapping:
            raise InvalidInput(f"The role {role} is mapped to {mapping[role]!r} and to {column!r}; give it one column.")
        mapping[role] = column
    return mapping
