"""What the repositories promise, on SQLite and on PostgreSQL alike."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import DuplicateName, RecordNotFound
from storage.jobs import Jobs
from storage.repositories import Adapters, Bases, Datasets
from storage.tables import Table
from tests.records import ADAPTER, BASE, DATASET, HOSTILE, job


def test_the_migrations_make_the_tables_that_the_code_has(database: Database) -> None:
    # Alembic cannot compare an index with DESC on SQLite, and what holds an adapter's words is each database's own.
    skipped = ("job_order", "adapter_words")
    options = {"include_object": lambda item, name, *others: not str(name).startswith(skipped), "compare_type": True}
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata) == []


def test_a_write_that_fails_is_rolled_back_whole(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as session:
        session.execute(Table.metadata.tables["flag"].insert().values(name="x", at=1.0))
        raise RuntimeError
    assert Datasets(database).first_time("x", 2.0)


def test_foreign_keys_are_kept(database: Database) -> None:
    with pytest.raises(IntegrityError):
        Jobs(database).add(replace(job(1, 1.0), base_id="nowhere"))


def test_records_come_back_as_they_went_in(database: Database) -> None:
    Jobs(database).add(job(1, 1.0))
    Datasets(database).add(DATASET)
    Adapters(database).add(ADAPTER)
    assert Bases(database).get("tiny") == Bases(database).get("b1") == BASE
    assert Datasets(database).all() == [DATASET] and Adapters(database).find("bird") == ADAPTER
    assert Jobs(database).get("j1") == job(1, 1.0)


def test_a_name_belongs_to_one_record(database: Database) -> None:
    datasets, adapters = Datasets(database), Adapters(database)
    datasets.add(DATASET)
    adapters.add(ADAPTER)
    for add in (
        lambda: datasets.add(replace(DATASET, id="d2")),
        lambda: adapters.add(replace(ADAPTER, id="a2")),
        lambda: Bases(database).add(replace(BASE, id="b2")),
    ):
        with pytest.raises(DuplicateName):
            add()
    adapters.add(replace(ADAPTER, id="a2", name="wizard"))
    with pytest.raises(DuplicateName, match="wizard"):
        adapters.rename("a1", "wizard")
    assert adapters.get("a1").name == "bird"
    assert adapters.rename("a1", "eagle").name == "eagle" and adapters.find("bird") is None
    adapters.remove("a1")
    assert adapters.add(replace(ADAPTER, id="a3", name="eagle"))  # the name is free again


def test_a_name_stands_for_the_newest_version_of_a_dataset(database: Database) -> None:
    datasets = Datasets(database)
    second = replace(DATASET, id="d2", version=2, parent_id=DATASET.id, made_by="sampled 5 rows", created_at=DATASET.created_at + 1)
    other = replace(DATASET, id="d3", name="other")
    for record in (second, other, DATASET):
        datasets.add(record)
    assert datasets.get(DATASET.name) == second and datasets.get(DATASET.id) == DATASET
    assert datasets.versions(DATASET.name) == [second, DATASET] and datasets.versions("nothing") == []
    assert datasets.newest() == [second, other] and len(datasets.all()) == 3
    with pytest.raises(DuplicateName):
        datasets.add(replace(second, id="d4"))
    datasets.remove("d2")
    assert datasets.get(DATASET.name) == DATASET


def test_what_is_not_there_is_told_with_its_kind(database: Database) -> None:
    with pytest.raises(RecordNotFound, match="dataset gone"):
        Datasets(database).get("gone")
    with pytest.raises(RecordNotFound, match="job gone"):
        Jobs(database).get("gone")
    with pytest.raises(RecordNotFound):
        Adapters(database).rename("gone", "x")
    Adapters(database).remove("gone")


def test_a_name_is_found_before_an_id(database: Database) -> None:
    Datasets(database).add(DATASET)
    Datasets(database).add(replace(DATASET, id="d2", name="d1"))
    assert Datasets(database).get("d1").id == "d2"


def test_a_first_time_is_once_even_for_eight_at_a_time(database: Database) -> None:
    datasets = Datasets(database)
    assert not datasets.is_flagged("samples")
    assert sorted(eight(lambda _: datasets.first_time("samples", 1.0))) == [False] * 7 + [True]
    assert datasets.is_flagged("samples") and datasets.first_time("another", 1.0)


def eight(do: Callable[[int], bool]) -> list[bool]:
    """What eight threads are answered that do the same at once."""
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(do, range(8)))


def wins(do: Callable[[], object]) -> bool:
    try:
        do()
    except DuplicateName:
        return False
    return True


def test_of_eight_who_want_a_name_or_a_version_one_gets_it(database: Database) -> None:
    datasets, adapters = Datasets(database), Adapters(database)
    for n in range(8):
        adapters.add(replace(ADAPTER, id=f"a{n}", name=f"bird {n}"))
    assert sum(eight(lambda n: wins(lambda: adapters.rename(f"a{n}", "eagle")))) == 1
    assert sum(eight(lambda n: wins(lambda: datasets.add(replace(DATASET, id=f"d{n}", version=2))))) == 1
    assert len(datasets.versions("birds")) == 1 and adapters.find("eagle") is not None


def test_thirty_threads_add_read_rename_and_remove(database: Database) -> None:
    datasets = Datasets(database)

    def live(n: int) -> None:
        for turn in range(3):
            name = f"{n}.{turn}"
            record = datasets.add(replace(DATASET, id=name, name=name, notes=[name] * 50))
            assert datasets.get(name) == record and record in datasets.all()
            assert datasets.rename(name, f"new {name}").notes == record.notes
            datasets.remove(name)

    with ThreadPoolExecutor(30) as threads:
        list(threads.map(live, range(30)))
    assert datasets.all() == []


def test_names_are_told_apart_character_by_character(database: Database) -> None:
    datasets, names = (
        Datasets(database),
        ["bird", "Bird", "bïrd", "bi\u0308rd", "bird ", "Straße", "STRASSE", "鳥", "🐦", "%", "_", "b_rd", "'"],
    )
    for n, name in enumerate(names):
        datasets.add(replace(DATASET, id=f"d{n}", name=name))
    assert [datasets.get(name).id for name in names] == [f"d{n}" for n in range(len(names))]


def test_records_hold_any_text_and_long_numbers(database: Database) -> None:
    three_gb, notes = 3 * 2**30, ["NUL \0", "half \ud800", "🐦" * 10_000, "\\u0000"]
    base = replace(BASE, id="b2", name="ü" * 200, size_bytes=three_gb, quantization_loss={"nf4": 1e-300, "\0": 0.1 + 0.2})
    dataset = replace(DATASET, rows=2**40, turns=2**41, size_bytes=2**53, notes=notes, created_at=1763895771.1234567)
    adapter = replace(ADAPTER, size_bytes=three_gb, seed=2**31 - 1, config=HOSTILE, metrics=HOSTILE)
    assert Bases(database).add(base) == Bases(database).get("b2")
    assert Datasets(database).add(dataset) == Datasets(database).get("d1")
    assert Adapters(database).add(adapter) == Adapters(database).get("a1")


def test_a_sentence_that_is_too_long_is_cut_and_no_name_is_found_by_text_that_no_name_can_hold(database: Database) -> None:
    Datasets(database).add(replace(DATASET, made_by="x" * 501))
    assert Datasets(database).get("d1").made_by == "x" * 499 + "…"
    for key in ("birds\0", "\ud800", "\0", "x" * 10_000):
        for repository in (Bases(database), Datasets(database), Adapters(database)):
            with pytest.raises(RecordNotFound):
                repository.get(key)
        assert Datasets(database).versions(key) == [] and Jobs(database).of_group(key) == []


def test_the_newest_come_first_and_those_of_one_moment_by_their_ids(database: Database) -> None:
    for id_, at in (("b", 5.0), ("9", 5.0), ("c", 7.5), ("a", 1e9)):
        Datasets(database).add(replace(DATASET, id=id_, name=f"name {id_}", created_at=at))
    assert [record.id for record in Datasets(database).all()] == ["a", "c", "9", "b"]
