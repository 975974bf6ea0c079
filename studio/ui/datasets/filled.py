"""What was filled in by somebody who adds a dataset, and how the files are to be read by that."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.datasets.forms import FORMS
from studio.datasets.ingest import Options

FILES, PASTE, HUB = "files", "paste", "hub"
SOURCES = [("Files", FILES), ("Paste", PASTE), ("Hugging Face Hub", HUB)]
MOST_ROLES = max(len(form.roles) for form in FORMS.values())
NOT_THERE = {
    FILES: "Choose a file first.",
    PASTE: "Paste some rows first.",
    HUB: "Name the dataset first, such as owner/name.",
}


@dataclass(frozen=True)
class Filled:
    """What was filled in. `seen` is what the last look found: the form that was taken, and the columns."""

    source: str
    upload: list[str] | None
    paste: str
    repository: str
    revision: str
    name: str
    form: str
    system: str
    seen: dict[str, Any]
    roles: tuple[str | None, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> "Filled":
        """From the values of `Adding.filled`."""
        plain = len(values) - MOST_ROLES
        source, upload, paste, repository, revision, name, form, system, seen = values[:plain]
        return cls(source, upload, paste, repository, revision, name, form, system, seen, tuple(values[plain:]))

    @property
    def paths(self) -> list[Path]:
        """The uploaded files."""
        return [Path(path) for path in self.upload or []]

    @property
    def is_there(self) -> bool:
        """Whether there is anything to add."""
        return bool({FILES: self.upload, PASTE: self.paste.strip(), HUB: self.repository.strip()}[self.source])

    def options(self, drop: bool = False) -> Options:
        """How the files are to be read; columns are named only where a form was chosen."""
        return Options(self.form, self.mapping(self.form), self.system, drop)

    def mapping(self, form: str) -> dict[str, str]:
        """The columns of a form's roles. An optional role without one is left out; a required one is found again."""
        if form not in FORMS or form != self.seen.get("form"):
            return {}
        chosen = zip(FORMS[form].roles, self.roles, strict=False)
        return {role.name: column or "" for role, column in chosen if column or not role.required}

    def label(self) -> str:
        """The name, or the file's or repository's own."""
        first = self.paths[0].name.split(".")[0] if self.paths else ""
        return self.name.strip() or {FILES: first, PASTE: "Pasted rows", HUB: self.repository.rpartition("/")[2]}[self.source]
