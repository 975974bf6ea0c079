"""Messages that people keep under a name, to send them again. Knows nothing of the engine."""

import time

from storage import files
from storage.errors import DuplicateName, RecordNotFound
from storage.records import PromptRecord
from storage.repositories import Prompts as Records
from studio.errors import InvalidInput, NameTaken, NotFound
from studio.names import checked_name

MAX_TEXT = 20_000


class Prompts:
    """The library of prompts.

    Args:
        records: the table.
    """

    def __init__(self, records: Records) -> None:
        self.records = records

    def keep(self, name: str, text: str) -> PromptRecord:
        """Keep a text under a name.

        Raises:
            InvalidInput: the name or the text is not usable. NameTaken.
        """
        clean = checked_name("prompt", name)
        if not 0 < len(text.strip()) <= MAX_TEXT:
            raise InvalidInput(f"The message has {len(text.strip()):,} characters; a prompt that is kept has 1 to {MAX_TEXT:,}.")
        try:
            return self.records.add(PromptRecord(files.new_id(), clean, text.strip(), time.time()))
        except DuplicateName:
            raise NameTaken(f"There is already a prompt named {clean!r}; choose another name, or delete that one first.") from None

    def all(self) -> list[PromptRecord]:
        """All prompts by their names."""
        return sorted(self.records.all(), key=lambda prompt: prompt.name.casefold())

    def get(self, prompt_id: str) -> PromptRecord:
        """One prompt. Raises NotFound."""
        try:
            return self.records.get(prompt_id)
        except RecordNotFound:
            raise NotFound("This prompt is not there any more; choose another of the list.") from None

    def remove(self, prompt_id: str) -> PromptRecord:
        """Delete it. Raises NotFound."""
        record = self.get(prompt_id)
        self.records.remove(record.id)
        return record
