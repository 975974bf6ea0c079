"""The command line on one home, in this process or in one of its own, and what it left on its three ways out."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage.database import Database
from storage.repositories import Adapters, Bases, Datasets
from tests.conftest import ROOT

ENVIRONMENT = {"STUDIO_BASE": "tiny", "STUDIO_QUANTIZATION": "fp32", "STUDIO_LEASE_S": "4", "STUDIO_HUB_TIMEOUT_S": "0.5"}
FETCH_STEPS = ("copying", "computing", "measuring")  # what a fetch has told before it went wrong
GOOD = '{"prompt": "Hello", "completion": "Good day!"}\n'


def first_word(text: str) -> str:
    return text.partition(" ")[0]


@dataclass(frozen=True)
class Outcome:
    """What a command left on its three ways out."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


class Shell:
    """The command line on one home: `run` in this process, `start` in one of its own."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.home, self.monkeypatch, self.capfd = home, monkeypatch, capfd
        for name in [n for n in os.environ if n.startswith("STUDIO_")]:
            monkeypatch.delenv(name)
        for name, value in {**ENVIRONMENT, "STUDIO_HOME": str(home)}.items():
            monkeypatch.setenv(name, value)

    def run(self, *arguments: str | Path) -> Outcome:
        """As `python -m studio …`, without the seconds that the imports take."""
        from studio.__main__ import main

        self.monkeypatch.setattr(sys, "argv", ["studio", *map(str, arguments)])
        self.capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Outcome(status, *self.capfd.readouterr())

    def start(self, *arguments: str | Path) -> Outcome:
        """As a person types it."""
        command = [sys.executable, "-m", "studio", *map(str, arguments)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        return Outcome(result.returncode, result.stdout, result.stderr)

    def refuse(self, *arguments: str | Path, start: bool = False) -> str:
        """The one sentence with which a command refuses; nothing that is kept has changed."""
        before = self.kept()
        outcome = (self.start if start else self.run)(*arguments, "--json")
        assert (outcome.status, outcome.out) == (2, ""), outcome
        *steps, sentence = outcome.err.strip().splitlines()
        assert "Traceback" not in outcome.err and len(sentence) < 700, outcome.err
        assert all(step in FETCH_STEPS for step in map(first_word, steps)) and (not steps or arguments[0] == "base"), steps
        assert sentence[0].isupper() or sentence[0] in "'\"" or re.match(r"[\w.-]+, line \d+", sentence), sentence
        assert sentence.endswith("."), sentence
        assert ".partial-" not in sentence and str(self.home) not in sentence, sentence
        assert self.kept() == before
        return sentence

    def kept(self) -> dict[str, Any]:
        """All records, all jobs, and every folder of the rooms, half-written ones too."""
        database = Database(f"sqlite:///{self.home / 'studio.db'}")
        records = {kind.__name__: kind(database).all() for kind in (Bases, Datasets, Adapters)}
        with database.read() as session:
            jobs = session.connection().exec_driver_sql("SELECT id, state FROM job ORDER BY id").fetchall()
        database.close()
        rooms = {room: sorted(p.name for p in (self.home / room).iterdir()) for room in ("bases", "datasets", "adapters")}
        return {**records, "jobs": jobs, **rooms}

    def write(self, name: str, content: str | bytes = GOOD) -> Path:
        path = self.home.parent / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
