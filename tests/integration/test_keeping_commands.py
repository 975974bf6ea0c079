"""The commands that keep, as a shell sees them: one JSON object, one sentence, an exit status."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.homes import fill_home


def run(home: Path, *arguments: str) -> tuple[int, dict[str, object], str]:
    """(exit status, what is printed as JSON, stderr) of a command."""
    env = {**os.environ, "STUDIO_HOME": str(home)}
    done = subprocess.run([sys.executable, "-m", "studio", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr


def test_backup_restore_check_and_disk(tmp_path: Path) -> None:
    home, new, file = tmp_path / "home", tmp_path / "new", tmp_path / "all.zip"
    fill_home(home).close()
    shutil.rmtree(home / "bases" / "b1")
    status, made, _ = run(home, "backup", str(file), "--json")
    assert (status, made["adapters"], made["path"]) == (0, 2, str(file)) and file.stat().st_size == made["size_bytes"]
    status, said, told = run(home, "restore", str(file), "--into", str(new), "--json")
    assert (status, said["home"]) == (0, str(new))
    assert "The base 'tiny' is not in the backup; fetch it with: python -m studio base fetch FOLDER/tiny" in told
    status, _, told = run(home, "restore", str(file), "--into", str(new))
    assert status == 2 and told.startswith(f"The folder {new} is not empty") and told.count("\n") == 1
    orphan = new / "datasets" / "orphan"
    orphan.mkdir()
    os.utime(orphan, (time.time() - 7200,) * 2)
    status, found, _ = run(new, "check", "--quick", "--mend", "--json")
    kinds = [(one["kind"], one["where"]) for one in found["findings"]]  # type: ignore[attr-defined]
    assert kinds == [("missing", "bases/b1"), ("orphan", "datasets/orphan")]
    assert (status, found["left"], len(found["mended"])) == (1, 1, 1)  # type: ignore[arg-type]
    status, use, _ = run(new, "disk", "--free", "exports", "--json")
    assert status == 0 and use["freed_bytes"] == 0 and use["kinds"]["adapters"] > 10_000  # type: ignore[index]
    status, _, told = run(new, "disk", "--free", "adapters")
    assert status == 2 and "choose checkpoints or exports" in told
