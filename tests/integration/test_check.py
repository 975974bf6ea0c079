"""Each kind of damage is made on purpose, found, told and mended, and nothing of it is lost."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.jobs import Jobs
from storage.repositories import Adapters, Datasets
from storage.shelf import missing
from studio.keeping.checking import Check
from studio.keeping.disk import Disk
from studio.keeping.findings import Finding
from studio.keeping.keeper import Keeper
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.homes import add_adapter, fill_home
from tests.records import job
from tests.serving import add_adapters

HOURS_AGO = time.time() - 3 * 3600


class Place:
    """A home with a database of either kind, and what keeps it."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.database = home, fill_home(home, url)
        self.keeper = Keeper(self.database, home, 0)

    def found(self, quick: bool = False) -> list[Finding]:
        """What a check finds, but for the base, whose files are no model's."""
        return [one for one in self.keeper.check(quick) if one.subject != "base"]

    def mend(self) -> list[str]:
        done = self.keeper.mend(self.found())
        assert self.found() == []
        return done

    def age(self, where: str) -> None:
        path = self.home / where
        for one in [path, *path.rglob("*")]:
            os.utime(one, (HOURS_AGO, HOURS_AGO))

    def lost(self) -> dict[str, Path]:
        """What lies in lost/, by how its name begins."""
        return {path.name.rsplit("-", 3)[0]: path for path in (self.home / "lost").iterdir()}


@pytest.fixture
def place(tmp_path: Path, database_url: str) -> Iterator[Place]:
    place = Place(tmp_path / "home", database_url)
    yield place
    place.database.close()


def test_a_whole_home_has_no_findings(place: Place) -> None:
    assert place.found() == [] and place.found(quick=True) == []


def test_missing_files_drop_a_record_that_is_kept(place: Place) -> None:
    shutil.rmtree(place.home / "adapters" / "a1")
    (place.home / "adapters" / "a2" / "adapter_config.json").unlink()
    first, second = place.found(quick=True)
    assert (first.kind, first.where, first.what) == ("missing", "adapters/a1", "The files of the adapter 'bird' are gone.")
    assert second.id == "a2" and "drop it from the lists" in second.offer
    done = place.mend()
    assert done[0].startswith("The adapter 'bird' is not listed any more; what was left of it is in lost/adapters-a1-")
    assert Adapters(place.database).all() == []
    lost = place.lost()
    assert json.loads((lost["adapters-a1"] / "record.json").read_text())["name"] == "bird"
    assert (lost["adapters-a2"] / "files" / "adapter_model.safetensors").exists()


def test_changed_files_are_put_aside_with_their_record(place: Place) -> None:
    jobs = Jobs(place.database)
    jobs.cancel("j2", 1.0)
    with (place.home / "adapters" / "a1" / "adapter_model.safetensors").open("r+b") as handle:
        handle.write(b"x")
    rows = place.home / "datasets" / "d1" / "rows.arrow"
    rows.write_bytes(rows.read_bytes()[:-40])
    assert place.found(quick=True) == []  # hashes are not looked at
    changed, dataset = place.found()
    assert (changed.kind, changed.id, dataset.kind, dataset.id) == ("changed", "a1", "changed", "d1")
    assert "Restore them from a backup" in changed.what and changed.size_bytes > 10_000
    done = place.keeper.mend([changed, dataset])
    assert "is needed by 1 unfinished job(s); cancel them first" in done[1]
    assert [one.id for one in place.found()] == ["d1"] and len(Datasets(place.database).all()) == 1
    held = jobs.get("j1")
    jobs.end(held, "failed", "", 2.0)
    place.mend()
    lost = place.lost()
    assert (lost["adapters-a1"] / "files" / "adapter_model.safetensors").read_bytes()[:1] == b"x"
    assert (lost["datasets-d1"] / "files" / "rows.arrow").exists() and Datasets(place.database).all() == []


def test_an_orphan_adapter_goes_back_into_the_catalog(place: Place) -> None:
    before = Adapters(place.database).get("a1")
    Adapters(place.database).remove("a1")
    assert place.found() == []  # it is young: somebody may be about to list it
    place.age("adapters/a1")
    (found,) = place.found()
    assert (found.kind, found.mend, found.name) == ("orphan", "relist", "bird") and found.size_bytes == before.size_bytes
    add_adapter(place.database, place.home, "a3", "bird")  # the name was taken meanwhile
    assert place.mend() == ["The adapter 'bird 2' is in the catalog again."]
    after = Adapters(place.database).get("a1")
    assert (after.sha256, after.rank, after.base_id, after.seed) == (before.sha256, 8, "b1", 3)
    with place.database.read() as session:
        assert missing(session, 9) == []  # it can be found


def test_an_adapter_that_a_job_may_still_register_is_nobodys_orphan(place: Place) -> None:
    shutil.copytree(place.home / "adapters" / "a1", place.home / "adapters" / "adapter1")  # of the job that runs
    place.age("adapters/adapter1")
    assert place.found() == []


def test_orphans_that_say_nothing_are_moved_and_half_written_ones_removed(place: Place) -> None:
    for where in ("datasets/d9", "jobs/j9", "adapters/a9", "adapters/.partial-a8-1234", "exports/.partial-x"):
        (place.home / where).mkdir(parents=True)
        (place.home / where / "file").write_bytes(b"x" * 100)
    assert place.found() == []
    for where in ("datasets/d9", "jobs/j9", "adapters/a9", "adapters/.partial-a8-1234", "exports/.partial-x"):
        place.age(where)
    (place.home / "jobs" / "workers").mkdir()
    place.age("jobs/workers")
    kinds = sorted((one.kind, one.where, one.size_bytes) for one in place.found())
    assert kinds == [
        *(("orphan", where, 100) for where in ("adapters/a9", "datasets/d9", "jobs/j9")),
        *(("partial", where, 100) for where in ("adapters/.partial-a8-1234", "exports/.partial-x")),
    ]
    place.mend()
    assert {name: (path / "file").exists() for name, path in place.lost().items()} == dict.fromkeys(
        ("adapters-a9", "datasets-d9", "jobs-j9"), True
    )
    assert not list((place.home / "exports").iterdir())


def test_what_leads_nowhere_is_told_and_joined(place: Place) -> None:
    with place.database.write() as session:
        row = "INSERT INTO conversation (id, title, system, leaf_id, created_at, updated_at) VALUES ('c1', 'A <b>talk', '', 'm9', 1, 1)"
        session.execute(text(row))
        for message, parent, at in (("m1", "", 1), ("m2", "m8", 2)):
            values = f"('{message}', 'c1', '{parent}', 'user', 'hi', '', '', '', '', '{{}}', {at})"
            columns = "(id, conversation_id, parent_id, role, content, voice, adapter_id, adapter_sha256, base, stamp, created_at)"
            session.execute(text(f"INSERT INTO message {columns} VALUES {values}"))
        session.execute(text("DELETE FROM dataset"))
    told = {one.subject: one for one in place.found() if one.kind == "dangling"}
    assert told["job"].mend == "" and "waits for a dataset that is gone. Cancel it" in told["job"].what
    assert "is open at a message that is gone" in told["conversation"].what
    place.keeper.mend(place.found())
    with place.database.read() as session:
        assert session.execute(text("SELECT leaf_id FROM conversation")).scalar() == "m2"
        assert set(session.execute(text("SELECT parent_id FROM message")).scalars()) == {""}
    assert {one.subject for one in place.found() if one.kind == "dangling"} == {"job"}


def test_the_index_is_written_anew(place: Place) -> None:
    with place.database.write() as session:
        session.execute(text("DELETE FROM shelf WHERE adapter_id = 'a1'"))
        session.execute(text("UPDATE shelf SET rank = 9 WHERE adapter_id = 'a2'"))
    (found,) = place.found(quick=True)
    assert (found.kind, found.mend, found.what.split()[0]) == ("index", "reindex", "2")
    assert place.mend() == ["The index was written anew, with 2 adapters."]


def test_rows_whose_foreign_keys_lead_nowhere_are_kept_aside(tmp_path: Path) -> None:
    place = Place(tmp_path / "home", "")
    with sqlite3.connect(tmp_path / "home" / "studio.db") as connection:  # a program that does not ask for foreign keys
        connection.execute("INSERT INTO pin (adapter_id, at) VALUES ('nowhere', 1.0)")
    (found,) = place.found()
    assert (found.kind, found.where, found.what) == ("dangling", "pin", "A row of 'pin' points at a row of 'adapter' that is gone.")
    place.mend()
    (kept,) = place.lost().values()
    assert json.loads((kept / "record.json").read_text()) == [{"table": "pin", "adapter_id": "nowhere", "at": 1.0}]
    place.database.close()


def test_a_damaged_database_is_told_and_never_mended(tmp_path: Path) -> None:
    place = Place(tmp_path / "home", "")
    Jobs(place.database).add(*(job(number, 1.0) for number in range(10, 900)))
    place.database.close()
    path = tmp_path / "home" / "studio.db"
    with path.open("r+b") as handle:
        handle.seek(path.stat().st_size - 8 * 4096)  # of the jobs that came last
        handle.write(b"\xff" * 4096)
    database = Database(f"sqlite:///{path}")
    found = [one for one in Check(database, tmp_path / "home").run(quick=True) if one.kind == "database"]
    assert found and found[0].what.startswith("The database is damaged: ") and not found[0].can_be_mended
    database.close()


def test_a_real_base_that_was_changed_or_lost_is_told(studio: Studio) -> None:
    add_adapters(studio)
    assert studio.keeper.check() == []
    base = studio.bases.path(studio.bases.get("tiny"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    (found,) = studio.keeper.check()
    assert (found.kind, found.subject, found.can_be_mended) == ("changed", "base", False)
    shutil.rmtree(base)
    (found,) = studio.keeper.check()
    assert found.offer == "fetch it again: python -m studio base fetch tiny" and not studio.keeper.mend([found])


def test_a_complete_folder_without_a_record_outlives_a_start_and_speaks_again(studio: Studio) -> None:
    add_adapters(studio)
    made = studio.make_adapter("wizard:0.5+pirate:0.5", "mixed").record
    ask = [{"role": "user", "content": "Who are you?"}]
    before = studio.reply(ask, "mixed", "tiny", max_tokens=8, temperature=0.0).text
    studio.adapters.records.remove(made.id)  # as after a crash between the folder and the record
    folder = studio.adapters.path(made)
    for path in (folder, *folder.iterdir()):
        os.utime(path, (time.time() - 10 * 86400,) * 2)
    again = Studio(tiny_settings(studio.settings.home))
    assert folder.is_dir()
    assert again.keeper.mend(again.keeper.check()) == ["The adapter 'mixed' is in the catalog again."]
    record = again.adapters.get("mixed")
    assert (record.sha256, record.origin, record.source, record.parents) == (made.sha256, made.origin, made.source, made.parents)
    assert again.reply(ask, "mixed", "tiny", max_tokens=8, temperature=0.0).text == before
    again.close()


# Room


def test_room_is_told_by_kind_and_only_what_is_safe_is_freed(place: Place) -> None:
    home, disk = place.home, Disk(place.database, place.home)
    (home / "exports").mkdir(exist_ok=True)
    for name in ("old.zip", "new.zip", "studio-backup-1.zip"):
        (home / "exports" / name).write_bytes(b"x" * 1000)
    for name in ("old.zip", "studio-backup-1.zip"):
        os.utime(home / "exports" / name, (time.time() - 2 * 86400,) * 2)
    done = home / "jobs" / "j2" / "checkpoints" / "step-1"
    done.mkdir(parents=True)
    (done / "tensors").write_bytes(b"x" * 500)
    use = disk.use()
    assert use.kinds["exports"] == 2000 and use.kinds["backups"] == 1000 and use.kinds["checkpoints"] == 502
    assert use.kinds["logs"] == len("it began\n") + len("pause") and use.kinds["database"] > 10_000
    assert use.kinds["adapters"] == sum(a.size_bytes for a in Adapters(place.database).all())
    assert use.freeable == {"checkpoints": 0, "exports": 1000} and use.largest[0].size_bytes == max(i.size_bytes for i in use.largest)
    with place.database.write() as session:  # the second job is done, its adapter there; the first one runs
        session.execute(text("UPDATE job SET state = 'done', adapter_id = 'a1' WHERE id = 'j2'"))
    assert disk.use().freeable["checkpoints"] == 500
    assert (disk.free("checkpoints"), disk.free("exports"), disk.free("exports")) == (500, 1000, 0)
    assert not done.exists() and (home / "jobs" / "j1" / "checkpoints" / "step-000000007").is_dir()
    assert sorted(p.name for p in (home / "exports").iterdir()) == ["new.zip", "studio-backup-1.zip"]
    shutil.rmtree(home / "adapters" / "a1")
    done.mkdir(parents=True)
    (done / "tensors").write_bytes(b"x")
    assert disk.free("checkpoints") == 0  # the adapter is gone, so they are all that is left of it


def test_the_measurement_is_cached_and_reads_unchanging_folders_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.keeping import disk as disk_module

    now, walked, size = [0.0], list[str](), disk_module._size
    monkeypatch.setattr(disk_module, "_size", lambda path: walked.append(path.name) or size(path))
    disk = Disk(place.database, place.home, clock=lambda: now[0])
    first = disk.used()
    assert "a1" in walked and disk.used() == first
    (place.home / "exports").mkdir(exist_ok=True)
    (place.home / "exports" / "x").write_bytes(b"x" * 10_000)
    walked.clear()
    assert disk.used() == first and walked == []
    now[0] = 31.0
    assert disk.used() >= first + 10_000 and "a1" not in walked and "j1" in walked


def test_a_quota_refuses_in_one_sentence_and_loses_nothing(studio: Studio, tmp_path: Path) -> None:
    from studio.adapters.exporting import Wish
    from studio.errors import OutOfSpace

    add_adapters(studio)
    home = studio.settings.home
    studio.close()
    full = Studio(tiny_settings(home, quota_bytes=100_000))
    upload = tmp_path / "more.jsonl"
    upload.write_text('{"prompt": "a", "completion": "b"}\n')
    before = sorted(p for p in home.rglob("*") if not p.name.startswith("studio.db"))
    attempts = {
        "another dataset": lambda: full.datasets.add([upload], "more"),
        "another training": lambda: full.train("Angry bird", "more"),
        "more trainings": lambda: full.sweep("Angry bird", "more", axes={"seed": ["1", "2"]}),
        "another adapter": lambda: full.make_adapter("wizard+pirate", "more"),
        "another export": lambda: full.export_adapter("wizard", Wish()),
    }
    for what, attempt in attempts.items():
        said = rf"^There is no room for {what}: the studio uses 1\.\d MB of its quota of 0\.1 MB.* python -m studio disk"
        with pytest.raises(OutOfSpace, match=said):
            attempt()
    with pytest.raises(OutOfSpace, match="There is no room for another adapter"):
        full.import_adapter([studio.adapters.path(studio.adapters.get("wizard"))], "more")
    assert sorted(p for p in home.rglob("*") if not p.name.startswith("studio.db")) == before
    assert full.export_adapter("wizard", Wish(), tmp_path / "out").exists()  # elsewhere it takes no room of the studio's
    assert full.queue.all() == []
    full.close()
