"""What the page and the command line ask about keeping: one door to backups, checks and room."""

import time
from collections.abc import Iterable
from pathlib import Path

from storage import files
from storage.database import Database
from studio.keeping.backup import Backup, Made, Tell, untold
from studio.keeping.checking import Check
from studio.keeping.disk import BACKUP, Disk
from studio.keeping.findings import Finding
from studio.keeping.mending import Mender


class Keeper:
    """Keeps one home.

    Args:
        database, home: of the studio. quota_bytes: that it may take; 0 is no bound.
    """

    def __init__(self, database: Database, home: Path, quota_bytes: int) -> None:
        self.disk = Disk(database, home, quota_bytes)
        self._database, self._home = database, home
        self._backup, self._mender = Backup(database, home), Mender(database, home)

    def backup(self, target: Path | None = None, with_bases: bool = False, tell: Tell = untold) -> Made:
        """See `Backup.write`; where no target is named, a zip among the exports, whose name nobody can guess."""
        named = self._home / "exports" / f"{BACKUP}{time.strftime('%Y%m%d-%H%M%S')}-{files.new_id()}.zip"
        return self._backup.write(target or named, with_bases, tell)

    def check(self, quick: bool = False, tell: Tell = untold) -> list[Finding]:
        """See `Check.run`."""
        return Check(self._database, self._home).run(quick, tell)

    def mend(self, findings: Iterable[Finding]) -> list[str]:
        """See `Mender.mend`."""
        return self._mender.mend(findings)
