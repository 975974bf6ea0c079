"""What can go wrong below the features. Callers turn these into sentences for people."""


class DuplicateName(Exception):
    """Another record has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class RecordNotFound(Exception):
    """No record has this name or id."""

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(f"{kind} {key}")
        self.kind, self.key = kind, key


class LeaseLost(Exception):
    """Another worker has taken the job over, so this one may write nothing more about it."""


class DatabaseUnavailable(Exception):
    """The database cannot be used. The message is one sentence for people, with what to do next and without a password."""


class BadDump(Exception):
    """A copy of a database cannot be read. The message continues "It cannot be restored, since …"."""
