"""A backup taken while the studio trains and chats restores to one that answers as before; a hostile or broken one leaves nothing."""

import hashlib
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import files
from storage.database import Database, revisions
from storage.jobs import Jobs
from storage.repositories import Adapters
from studio.errors import InvalidInput, OutOfSpace, StudioError
from studio.keeping import archive, backup
from studio.keeping import restore as restoring
from studio.keeping.backup import Backup
from studio.keeping.restore import MARK, restore
from studio.services import Studio
from tests.conftest import ROOT, tiny_settings
from tests.databases import Server
from tests.homes import contents, fill_home
from tests.integration.test_queue import is_training, submit, wait_for
from tests.serving import VOICES, add_adapters

LONG = {"quantization": "fp32", "rank": 4, "max_steps": 100_000, "checkpoint_every_s": 0}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home without weights that nobody has open."""
    fill_home(tmp_path / "home").close()
    yield tmp_path / "home"


def take(home: Path, target: Path, **how: Any) -> backup.Made:
    database = Database(f"sqlite:///{home / 'studio.db'}")
    try:
        return Backup(database, home).write(target, **how)
    finally:
        database.close()


def is_untouched(home: Path) -> bool:
    """Nothing is there, or nothing but what was."""
    return not home.exists() or not list(home.iterdir())


@pytest.mark.usefixtures("warm")
def test_a_backup_during_training_and_chat_restores_to_a_studio_that_answers_as_before(studio: Studio, tmp_path: Path) -> None:
    add_adapters(studio)
    job = submit(studio, "trainee", LONG)
    studio.worker.start()
    wait_for(lambda: is_training(studio, job) and studio.queue.resume_step(job.id))
    names = ["base", *VOICES, "wizard:0.5+pirate:0.5"]

    def ask(of: Studio, name: str) -> str:
        return of.reply([{"role": "user", "content": "Who are you?"}], name, "tiny", max_tokens=12, temperature=0.0).text

    before = {name: ask(studio, name) for name in names}
    stream = studio.stream([{"role": "user", "content": "Tell me."}], "wizard", "tiny", max_tokens=40, temperature=0.0)
    made = studio.keeper.backup(tmp_path / "all.zip", with_bases=True)
    assert "".join(stream)  # the chat went on beside it
    assert made.notes == [] and made.adapters == len(VOICES) and is_training(studio, job)
    reached = studio.queue.get(job.id).progress["step"]
    studio.queue.cancel(job.id)

    restored = restore(tmp_path / "all.zip", tmp_path / "new")
    assert restored.fetch == [] and restored.notes == []
    new = Studio(tiny_settings(tmp_path / "new"))
    try:
        assert {name: ask(new, name) for name in names} == before and len(set(before.values())) == len(names)
        assert {a.name: a.sha256 for a in new.adapters.all()} == {a.name: a.sha256 for a in studio.adapters.all()}
        assert new.keeper.check() == []
        again, step = new.queue.get(job.id), new.queue.resume_step(job.id)
        assert again.state == "queued" and step and step <= reached + 50
        new.worker.start()
        wait_for(lambda: new.queue.events(job.id, kinds=("notice",)))  # it may have been further than its checkpoint
        told = [event.data["text"] for event in new.queue.events(job.id, kinds=("notice",))]
        assert f"The training goes on from step {step}" in " ".join(told).replace(",", "")
        new.queue.cancel(job.id)
    finally:
        new.close()


@pytest.mark.parametrize("target", ["all.zip", "all"])
def test_what_a_backup_holds(home: Path, tmp_path: Path, target: str) -> None:
    made = take(home, tmp_path / target)
    before = contents(home)
    restored = restore(tmp_path / target, tmp_path / "new")
    assert contents(tmp_path / "new") == before and len(before) == 9
    assert [base.name for base in restored.fetch] == ["tiny"] and not made.bases[0].included
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["adapters", "bases", "datasets", "exports", "jobs", "studio.db"]
    database = Database(f"sqlite:///{tmp_path / 'new' / 'studio.db'}")
    assert {job.id: job.state for job in Jobs(database).all()} == {"j1": "queued", "j2": "queued"}
    database.close()
    with pytest.raises(InvalidInput, match="is there already; name another"):
        take(home, tmp_path / target)
    assert not list((home / "exports").iterdir())


def test_a_backup_goes_from_sqlite_to_postgres_and_back(home: Path, tmp_path: Path, postgres: Server) -> None:
    take(home, tmp_path / "first.zip")
    with postgres.database() as url:
        restore(tmp_path / "first.zip", tmp_path / "second", url)
        assert not (tmp_path / "second" / "studio.db").exists()
        database = Database(url)
        assert sorted(a.name for a in Adapters(database).all()) == ["bird", "gull"]
        Backup(database, tmp_path / "second").write(tmp_path / "second.zip")
        database.close()
        with pytest.raises(InvalidInput, match="STUDIO_DATABASE_URL names is not empty"):
            restore(tmp_path / "second.zip", tmp_path / "fourth", url)
        assert is_untouched(tmp_path / "fourth")
    restore(tmp_path / "second.zip", tmp_path / "third")
    assert contents(tmp_path / "third") == contents(home)
    database = Database(f"sqlite:///{tmp_path / 'third' / 'studio.db'}")
    assert sorted(a.name for a in Adapters(database).all()) == ["bird", "gull"]
    database.close()


def test_what_is_deleted_meanwhile_is_whole_in_the_backup_or_not_in_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{home / 'studio.db'}")
    hold, times = backup._hold, []

    def hold_late(*arguments: Any) -> Any:
        if not times:  # right behind the first moment
            Adapters(database).remove("a1")
            files.remove_folder(home / "adapters" / "a1")
        times.append(1)
        return hold(*arguments)

    def delete_gull(_share: float, what: str) -> None:
        if what == "copying adapters" and (home / "adapters" / "a2").exists():
            Adapters(database).remove("a2")
            files.remove_folder(home / "adapters" / "a2")

    monkeypatch.setattr(backup, "_hold", hold_late)
    made = Backup(database, home).write(tmp_path / "all.zip", tell=delete_gull)
    assert (len(times), made.adapters, made.notes) == (2, 1, [])
    restore(tmp_path / "all.zip", tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new" / "adapters").iterdir()) == ["a2"]
    database.close()


def test_files_that_were_gone_before_are_told(home: Path, tmp_path: Path) -> None:
    files.remove_folder(home / "adapters" / "a1")
    made = take(home, tmp_path / "all.zip", with_bases=True)
    assert made.notes == ["The files of the adapter 'bird' were gone already; its record alone is in the backup."]
    assert restore(tmp_path / "all.zip", tmp_path / "new").notes == made.notes
    assert made.bases[0].included and (tmp_path / "new" / "bases" / "b1" / "config.json").exists()


def test_a_backup_that_is_stopped_or_finds_no_room_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(share: float, _what: str) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    for target in ("all.zip", "all"):
        with pytest.raises(KeyboardInterrupt):
            take(home, tmp_path / "out" / target, tell=stop)
        assert list((tmp_path / "out").iterdir()) == [] and list((home / "exports").iterdir()) == []
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda _path: type("Use", (), {"free": 10})())
    with pytest.raises(OutOfSpace, match="and 0 MB are free there"):
        take(home, tmp_path / "out" / "all.zip")


def test_a_home_that_is_not_empty_is_refused_and_bases_are_used(home: Path, tmp_path: Path, tiny_base: Path) -> None:
    take(home, tmp_path / "all.zip")
    with pytest.raises(InvalidInput, match=r"is not empty \(adapters, datasets, exports, …\); name another one"):
        restore(tmp_path / "all.zip", home)
    assert len(contents(home)) == 9
    (tmp_path / "new" / "bases" / "b1").mkdir(parents=True)
    assert restore(tmp_path / "all.zip", tmp_path / "new").fetch == []


def test_a_base_that_lies_under_another_id_is_found_by_its_content(studio: Studio, tmp_path: Path) -> None:
    import shutil

    studio.keeper.backup(tmp_path / "all.zip")
    base = studio.bases.get("tiny")
    shutil.copytree(studio.bases.path(base), tmp_path / "new" / "bases" / "another")
    assert restore(tmp_path / "all.zip", tmp_path / "new").fetch == []
    assert (tmp_path / "new" / "bases" / base.id / "config.json").stat().st_nlink == 2
    missing = restore(tmp_path / "all.zip", tmp_path / "third").fetch
    assert [(one.name, one.fingerprint) for one in missing] == [("tiny", base.fingerprint)]


# kill -9

KILLED = """
import sys, os, signal
from pathlib import Path
from studio.keeping import restore as r, backup as b
from storage.database import Database
work, at, home, file = sys.argv[1:]
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
if work == "backup":
    database = Database(f"sqlite:///{home}/studio.db")
    b.Backup(database, Path(home)).write(Path(file), tell=lambda share, what: die() if what == at else None)
elif at == "moving":
    move, count = Path.rename, []
    def rename(self, target):
        count.append(1)
        return die() if len(count) == 4 else move(self, target)
    Path.rename = rename
    r.restore(Path(file), Path(home))
else:
    r.restore(Path(file), Path(home), tell=lambda share, what: die() if what == at else None)
"""


def kill_at(work: str, at: str, home: Path, file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, work, at, str(home), str(file)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_backup_that_is_killed_is_not_there(home: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    kill_at("backup", "copying adapters", home, tmp_path / "out" / "all.zip")
    assert [p.name.startswith(".partial-all.zip") for p in (tmp_path / "out").iterdir()] == [True]
    assert take(home, tmp_path / "out" / "all.zip").notes == []
    files.sweep_partials(home / "exports", -1, time.time())
    assert list((home / "exports").iterdir()) == [] and len(contents(home)) == 9  # what was held is given back


@pytest.mark.parametrize("at", ["unpacking adapters", "filling the database", "moving"])
def test_a_restore_that_is_killed_leaves_nothing_half_restored(home: Path, tmp_path: Path, at: str) -> None:
    take(home, tmp_path / "all.zip")
    new = tmp_path / "new"
    kill_at("restore", at, new, tmp_path / "all.zip")
    assert not (new / "studio.db").exists() and (new / MARK).exists() == (at == "moving")
    if at == "moving":
        with pytest.raises(InvalidInput, match="was interrupted; run it again"):
            Studio(tiny_settings(new))
    restore(tmp_path / "all.zip", new)
    assert contents(new) == contents(home)
    assert sorted(p.name for p in new.iterdir()) == ["adapters", "bases", "datasets", "exports", "jobs", "studio.db"]


# Hostile and damaged

Change = Callable[[dict[str, bytes], dict[str, Any]], None]


def packed(home: Path, target: Path, change: Change) -> Path:
    """A backup whose members and manifest were changed by hand; hashes are made anew where they were not."""
    take(home, target.with_suffix(".orig.zip"))
    with zipfile.ZipFile(target.with_suffix(".orig.zip")) as archive_file:
        members = {name: archive_file.read(name) for name in archive_file.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    change(members, manifest)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)
        out.writestr("manifest.json", json.dumps(manifest))
    return target


def put(members: dict[str, bytes], manifest: dict[str, Any], path: str, data: bytes) -> None:
    members[path] = data
    manifest["files"] = [one for one in manifest["files"] if one["path"] != path]
    manifest["files"].append({"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})


WEIGHTS = "home/adapters/a1/adapter_model.safetensors"
HOSTILE: dict[str, tuple[Change, str]] = {
    "traversal": (lambda members, m: put(members, m, "home/adapters/../../../x", b"x"), "would lie outside it"),
    "traversal in the manifest": (lambda members, m: m["files"][1].update(path="home/adapters/../../x"), "which no backup holds"),
    "absolute": (lambda members, m: put(members, m, "/tmp/x/y/z", b"x"), "would lie outside it"),
    "another place": (lambda members, m: put(members, m, "home/.ssh/a/b", b"x"), "which no backup holds"),
    "a file of the home": (lambda members, m: put(members, m, "home/studio.db", b"x"), "which no backup holds"),
    "twice": (
        lambda members, m: m["files"].append({**m["files"][1], "path": m["files"][1]["path"].upper().replace("HOME", "home")}),
        "twice",
    ),
    "wrong hash": (
        lambda members, m: members.update({WEIGHTS: members[WEIGHTS][:-1] + b"!"}),
        "is not as it was when the backup was taken",
    ),
    "wrong size": (lambda members, m: members.update({WEIGHTS: b"a"}), "is not as it was when the backup was taken"),
    "missing": (lambda members, m: members.pop(WEIGHTS) and None, "is missing"),
    "no database": (lambda members, m: m.update(files=m["files"][1:]), "it holds no database"),
    "bomb": (lambda members, m: put(members, m, WEIGHTS, b"\0" * 2**23), "as a zip bomb does"),
    "newer format": (lambda members, m: m.update(format=2, studio="9.0"), r"was taken by a newer version of the studio \(9.0\)"),
    "newer schema": (lambda members, m: m.update(schema="0999"), "was taken by a newer version"),
    "no manifest of ours": (lambda members, m: m.update(files="x"), "is none of the studio's"),
    "a base elsewhere": (lambda members, m: m["bases"][0].update(id="../../x"), "names a base by an id"),
    "database of another": (lambda members, m: put(members, m, "database.jsonl", b'{"schema": "0011"}\n{"x": 1}\n'), "does not have"),
    "ids that lead out": (
        lambda members, m: put(members, m, "database.jsonl", members["database.jsonl"].replace(b'"a1"', b'"../a1"')),
        "none of the studio's",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_backup_is_refused_in_a_sentence_and_leaves_nothing(home: Path, tmp_path: Path, name: str) -> None:
    change, said = HOSTILE[name]
    path = packed(home, tmp_path / "bad.zip", change)
    with pytest.raises(StudioError, match=said) as refused:
        restore(path, tmp_path / "deep" / "new")
    assert len(str(refused.value)) < 400 and str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert is_untouched(tmp_path / "deep" / "new") and not (tmp_path / "x").exists()


def test_links_in_backups_are_not_followed(home: Path, tmp_path: Path) -> None:
    take(home, tmp_path / "folder")
    weights = tmp_path / "folder" / WEIGHTS
    (tmp_path / "elsewhere").write_bytes(weights.read_bytes())
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="holds a link"):
        restore(tmp_path / "folder", tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as out:
        about = zipfile.ZipInfo(WEIGHTS)
        about.external_attr = 0o120777 << 16
        out.writestr(about, "/etc/passwd")
    with pytest.raises(InvalidInput, match="which is a link or a device"):
        restore(tmp_path / "link.zip", tmp_path / "new")
    assert is_untouched(tmp_path / "new")


def test_a_backup_that_is_cut_anywhere_is_refused(home: Path, tmp_path: Path) -> None:
    take(home, tmp_path / "all.zip")
    whole = (tmp_path / "all.zip").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.zip").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InvalidInput, match="is no zip, or a damaged one"):
            restore(tmp_path / "cut.zip", tmp_path / "new")
    for place in range(100, len(whole), len(whole) // 12):  # one byte is another
        (tmp_path / "cut.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            restore(tmp_path / "cut.zip", tmp_path / f"new{place}")
        except InvalidInput:
            assert is_untouched(tmp_path / f"new{place}")
        else:  # it was a byte that says nothing, such as of a time
            assert contents(tmp_path / f"new{place}") == contents(home)
    with pytest.raises(InvalidInput, match="There is no backup"):
        restore(tmp_path / "nowhere.zip", tmp_path / "new")
    assert is_untouched(tmp_path / "new")


def test_a_restore_that_finds_no_room_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(home, tmp_path / "all.zip")
    monkeypatch.setattr(restoring.shutil, "disk_usage", lambda _path: type("Use", (), {"free": 10})())
    with pytest.raises(OutOfSpace, match="and 0 MB are free"):
        restore(tmp_path / "all.zip", tmp_path / "new")
    assert is_untouched(tmp_path / "new")


def test_the_manifest_names_every_file_with_its_hash(home: Path, tmp_path: Path) -> None:
    take(home, tmp_path / "all.zip")
    with archive.opened(tmp_path / "all.zip") as source:
        manifest = archive.read_manifest(source, revisions())
        for entry in manifest.files:
            with source.open(entry.path) as handle:
                data = handle.read()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size_bytes, entry.sha256)
    with zipfile.ZipFile(tmp_path / "all.zip") as zipped:
        assert {i.compress_type for i in zipped.infolist() if i.filename.endswith(".safetensors")} == {zipfile.ZIP_STORED}
        assert len(zipped.namelist()) == len(manifest.files) + 1
