"""Errors that a person reads. Each message is one plain sentence: what, got, expected, next step.

Raise a `StudioError` for everything that a user, a file or a machine can cause; let programming errors stay
ordinary exceptions. The page shows `str(error)` as a card, the command line prints it and exits with 2.
"""

import storage.errors


class StudioError(Exception):
    """Base of every failure that is explained to a person instead of traced. `cause` names its kind where a job fails with it."""

    cause = "error"


class InvalidInput(StudioError):
    """An option or a file is wrong, and the message says where and how to mend it."""

    cause = "data"


class ContextTooLong(InvalidInput):
    """Prompt and reply have more tokens together than the base can look back on."""


class NotFound(StudioError):
    """Nothing has this name or id."""


class NameTaken(StudioError):
    """Another record already carries this name."""


class IncompatibleAdapter(StudioError):
    """The adapter was trained on another base, or its files do not fit the base."""


class BaseUnavailable(StudioError):
    """The base model could not be found, fetched or loaded."""

    cause = "base"


class DatabaseUnavailable(StudioError, storage.errors.DatabaseUnavailable):
    """The database cannot be reached, opened or brought up to date."""


class OutOfSpace(StudioError):
    """The disk is full; nothing half-written was left behind."""

    cause = "disk"


class TrainingFailed(StudioError):
    """A training job cannot go on."""


class Diverged(TrainingFailed):
    """The loss is not a number any more."""

    cause = "diverged"


class OutOfMemory(TrainingFailed):
    """Memory does not suffice for this training."""

    cause = "memory"


class Interrupted(StudioError):
    """The work was stopped on request."""
