"""The commands that keep, as a shell sees them: one JSON object, one sentence, an exit status."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.commands import Shell
from tests.homes import fill_home


def test_backup_restore_check_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    home, new, file = tmp_path / "home", tmp_path / "new", tmp_path / "all.zip"
    fill_home(home).close()
    shutil.rmtree(home / "bases" / "b1")
    shell = Shell(home, monkeypatch, capfd)
    made = shell.run("backup", file, "--json").json
    assert (made["adapters"], made["path"], made["size_bytes"]) == (2, str(file), file.stat().st_size)
    said = shell.refuse("backup", file)
    assert said == "'all.zip' is there already; name another file or folder, or remove that one."
    restored = shell.run("restore", file, "--into", new, "--json")
    assert restored.json["home"] == str(new)
    assert "The base 'tiny' is not in the backup; fetch it with: python -m studio base fetch FOLDER/tiny" in restored.err
    again = shell.run("restore", file, "--into", new)
    assert again.status == 2 and again.err.startswith(f"The folder {new} is not empty") and again.err.count("\n") == 1
    (new / "datasets" / "orphan").mkdir()
    os.utime(new / "datasets" / "orphan", (time.time() - 7200,) * 2)

    shell = Shell(new, monkeypatch, capfd)
    found = shell.run("check", "--quick", "--json")
    assert found.status == 1 and found.out.count("\n") == 1
    plain = shell.run("check", "--quick")
    assert plain.status == 1 and "--mend would move it into lost/" in plain.out and "base fetch tiny" in plain.out
    mended = shell.run("check", "--quick", "--mend")
    assert mended.status == 1 and "datasets/orphan was moved to lost/" in mended.out  # the base is still to be fetched
    assert (new / "lost").is_dir() and not (new / "datasets" / "orphan").exists()
    (new / "bases" / "b1").mkdir()
    (new / "bases" / "b1" / "config.json").write_text("{}")
    whole = shell.run("check", "--quick")
    assert (whole.status, whole.out) == (0, "Everything is as it should be.\n")
    use = shell.run("disk", "--free", "exports", "--json").json
    assert use["freed_bytes"] == 0 and use["kinds"]["adapters"] > 10_000 and use["kinds"]["lost"] == 0
    assert shell.refuse("disk", "--free", "adapters").endswith("choose checkpoints or exports.")
