"""Logs, to stderr: lines of text for people or of JSON for programs, with every secret of the settings blotted out."""

import logging
import sys
from collections.abc import Sequence

from studio.settings import Settings

FORM = "%(levelname)s %(name)s: %(message)s"
FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"
BLOT = "[secret]"
NOISY = ("httpx", "httpx2", "alembic", "datasets", "absl")


class Blotting(logging.Formatter):
    """What another formatter writes, tracebacks too, without the secrets.

    Args:
        inner: writes a record. secrets: texts that must not be read.
    """

    def __init__(self, inner: logging.Formatter, secrets: Sequence[str]) -> None:
        super().__init__()
        self._inner, self._secrets = inner, sorted(secrets, key=len, reverse=True)  # one may be a part of another

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        text = self._inner.format(record)
        for secret in self._secrets:
            text = text.replace(secret, BLOT)
        return text


def set_up(settings: Settings) -> None:
    """Log as the settings say; once a program."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Blotting(_formatter(settings.log_form), settings.secrets()))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _formatter(form: str) -> logging.Formatter:
    if form == "text":
        return logging.Formatter(FORM)
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(FIELDS, rename_fields={"asctime": "at", "levelname": "level", "name": "logger"})
