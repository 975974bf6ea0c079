"""What the catalog of adapters promises, on SQLite and on PostgreSQL alike."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text as sql

from storage import catalog as catalog_module
from storage.catalog import SORTS, Catalog, Found, Search
from storage.conversations import Votes
from storage.database import Database
from storage.errors import DuplicateName, RecordNotFound
from storage.jobs import Jobs
from storage.records import AdapterRecord, JobRecord, VoteRecord
from storage.repositories import Adapters, Bases, Datasets
from storage.shelf import ARCHIVED, OLD, UNMEASURED, state_of
from storage.words import folded, words_of
from studio.chat.votes import Votes as Rates
from tests.records import ADAPTER, BASE, DATASET, job

WORDS = ("wizard", "pirate", "bïrd", "Größe", "鳥", "🐦", "wizardry", "a1", "and", "or", "near", "not", "x" * 60)
HOSTILE = (
    *[
        '"',
        "'",
        '""',
        '"wizard',
        "wizard*",
        "*",
        "wizard AND",
        "NOT wizard",
        "NEAR(wizard pirate)",
        "words:wizard",
        "^wizard",
        "-",
        "(",
        ")",
    ],
    *[
        "{wizard}",
        "§l",
        "§lt",
        "' OR 1=1 --",
        "\0",
        "\ud800",
        "wizard\0pirate",
        "%",
        "_",
        "\\",
        ":*",
        "!wizard",
        "wizard & | pirate",
        "<->",
        "\u202e",
    ],
    *["", "   ", "\n\t", "🏴\u200d☠️", "e\u0301", "x" * 10_000, "wizard " * 500],
)


def found(catalog: Catalog, search: Search) -> list[str]:
    return [record.id for record in catalog.page(search, 1000).records]


def adapter(number: int, draw: random.Random) -> AdapterRecord:
    """An adapter of which everything that one can look for is drawn."""
    loss = draw.choice([None, 0.5, 1.25, 3.0, float("nan"), float("inf")])
    return replace(
        ADAPTER,
        id=f"a{number:03d}",
        name=f"{draw.choice(WORDS)} {draw.choice(WORDS)} {number}",
        base_id=draw.choice(["b1", "b2"]),
        dataset_id=draw.choice(["d1", "d2", ""]),
        rank=draw.choice([4, 8, 64]),
        size_bytes=draw.randrange(5),
        metrics={} if loss is None else {"eval_loss": loss},
        created_at=float(number),
        kind=draw.choice(["lora", "dora"]),
        origin=draw.choice(["training", "import"]),
        source=draw.choice(["", "owner/pirate-ship"]),
        tags=draw.sample(["talks", "tiny one", "ü"], draw.randrange(3)),
        collections=draw.sample(["Best of", "Shelf 9"], draw.randrange(2)),
        favourite=draw.random() < 0.3,
        archived_at=1.0 if draw.random() < 0.2 else None,
        owner=draw.choice(["", "ada"]),
        card=draw.choice(["", "# A card\nthat tells of ships"]),
    )


@pytest.fixture
def filled(database: Database) -> tuple[Catalog, list[AdapterRecord]]:
    """A catalog of sixty adapters of two bases and two datasets."""
    Bases(database).add(replace(BASE, id="b2", name="gigantic"))
    for number, name in ((1, "birds"), (2, "Ängste")):
        Datasets(database).add(replace(DATASET, id=f"d{number}", name=name))
    draw = random.Random(7)
    records = [adapter(number, draw) for number in range(60)]
    for record in records:
        Adapters(database).add(record)
    return Catalog(database), records


def is_meant(record: AdapterRecord, search: Search) -> bool:
    """The same question, asked of one record in plain Python."""
    base, dataset = {"b1": "tiny", "b2": "gigantic"}[record.base_id], {"d1": "birds", "d2": "Ängste", "": ""}[record.dataset_id]
    told = words_of(" ".join([record.name, *record.tags, *record.collections, record.source, base, dataset, record.card]))
    loss = record.metrics.get("eval_loss", UNMEASURED)
    measured = loss < UNMEASURED
    bounds = [(record.rank, search.ranks)] + ([(loss, search.losses)] if measured else [])
    equal = [(search.base, record.base_id), (search.dataset, dataset), (search.kind, record.kind)]
    equal += [(search.origin, record.origin), (search.owner, record.owner)]
    return (
        state_of(record) == search.state
        and all(any(word.startswith(asked) for word in told) for asked in words_of(search.text, 12))
        and all(not asked or asked == known for asked, known in equal)
        and all((low is None or low <= value) and (high is None or value <= high) for value, (low, high) in bounds)
        and (measured or search.losses == (None, None))
        and set(search.tags) <= set(record.tags)
        and (not search.collection or search.collection in record.collections)
        and (record.favourite or not search.favourite)
    )


def in_order(records: list[AdapterRecord], sort: str) -> list[str]:
    def key(record: AdapterRecord) -> float | str:
        loss = record.metrics.get("eval_loss", UNMEASURED)
        known = {"name": folded(record.name), "loss": min(loss, UNMEASURED) if loss == loss else UNMEASURED, "rank": record.rank}
        before = record.metrics.get("eval_loss_before")
        gain = -UNMEASURED if before is None or not loss < UNMEASURED else before - loss
        return {**known, "size": record.size_bytes, "newest": 0, "won": -1, "gain": gain}[sort]

    falls = SORTS[sort][1]
    return [record.id for record in sorted(records, key=lambda r: (key(r), r.created_at), reverse=falls)]


@pytest.mark.parametrize("few", [0, catalog_module.FEW])
def test_every_mixture_of_questions_is_answered_like_a_plain_loop(
    filled: tuple[Catalog, list[AdapterRecord]], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "FEW", few)  # both ways to an answer: what is found is sorted, or the order is walked
    catalog, records = filled
    draw, answers = random.Random(few), 0
    for _ in range(150):
        search = Search(
            text=draw.choice(["", "", "wiz", "wizard pir", "BIRD", "grosse", "鳥", "🐦", "ship", "giga", "angste", "nowhere", "x" * 50]),
            tags=tuple(draw.sample(["talks", "tiny one", "ü"], draw.choice([0, 0, 1, 2]))),
            base=draw.choice(["", "", "b1", "b2"]),
            dataset=draw.choice(["", "", "birds", "Ängste"]),
            kind=draw.choice(["", "", "lora", "dora"]),
            origin=draw.choice(["", "", "import"]),
            owner=draw.choice(["", "", "ada"]),
            collection=draw.choice(["", "", "Best of"]),
            favourite=draw.random() < 0.2,
            ranks=draw.choice([(None, None), (None, None), (8, None), (None, 8), (5, 9)]),
            losses=draw.choice([(None, None), (None, None), (1.0, None), (None, 1.25)]),
            state=draw.choice(["l", "l", ARCHIVED]),
            sort=draw.choice(list(SORTS)),
        )
        wanted = in_order([record for record in records if is_meant(record, search)], search.sort)
        assert found(catalog, search) == wanted, search
        assert catalog.count(search) == len(wanted) and catalog.count(search, 1) == min(1, len(wanted))
        answers += bool(wanted)
    assert answers > 25


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("text", ["", "wiz"])
def test_pages_go_on_where_the_one_before_ended(filled: tuple[Catalog, list[AdapterRecord]], sort: str, text: str) -> None:
    catalog, _ = filled
    search, seen, page = Search(sort=sort, text=text), list[str](), Found([], ("", 0))
    after = None
    while page.next is not None:
        page = catalog.page(search, 7, after)
        after = page.next
        seen += [record.id for record in page.records]
    assert seen == found(catalog, search) and len(seen) == len(set(seen)) > 7


def test_what_a_person_types_is_never_an_operator(filled: tuple[Catalog, list[AdapterRecord]], database: Database) -> None:
    catalog, records = filled
    listed = len([record for record in records if state_of(record) == "l"])
    for text in HOSTILE:
        assert len(found(catalog, Search(text=text))) <= listed
        assert found(catalog, Search(tags=(text or "none",), dataset=text, collection=text, owner=text)) == []
        assert len(found(catalog, Search(text="wizard", kind="lora", sort="loss"))) < listed
    for text in ('"', "*", "§", "", " - "):
        assert len(found(catalog, Search(text=text))) == listed  # signs ask for nothing
    Adapters(database).add(replace(ADAPTER, id="evil", name='\'; DROP TABLE "x" * AND', tags=HOSTILE[:8], card="\0".join(HOSTILE)))  # type: ignore[arg-type]
    assert found(catalog, Search(text='drop "table')) == ["evil"] == found(catalog, Search(tags=('"wizard',)))


def test_facets_count_what_is_listed(filled: tuple[Catalog, list[AdapterRecord]]) -> None:
    catalog, records = filled
    for state in ("l", ARCHIVED):
        known = [record for record in records if state_of(record) == state]
        facets = catalog.facets(state)
        for tag, count in facets["tag"]:
            assert count == sum(tag in record.tags for record in known)
        assert dict(facets["base"]) == {base: sum(r.base_id == base for r in known) for base in {r.base_id for r in known}}
        assert {name for name, _ in facets["dataset"]} == {"birds", "Ängste"} and sum(dict(facets["kind"]).values()) == len(known)
        assert [count for _, count in facets["kind"]] == sorted((count for _, count in facets["kind"]), reverse=True)
        assert dict(facets["collection"]) and dict(facets["owner"]) and dict(facets["origin"])
    assert catalog.facets(OLD)["kind"] == []


def test_the_index_follows_every_change(database: Database) -> None:
    catalog, adapters = Catalog(database), Adapters(database)
    Datasets(database).add(DATASET)
    adapters.add(ADAPTER)
    adapters.rename("a1", "Eagle")
    assert found(catalog, Search(text="eagle")) == ["a1"] and found(catalog, Search(text="bird eagle")) == ["a1"]  # birds, its dataset
    adapters.change("a1", tags=["talks"], favourite=True, card="About owls.", licence="mit")
    assert found(catalog, Search(text="owl", tags=("talks",), favourite=True)) == ["a1"]
    assert adapters.get("a1").licence == "mit" and adapters.get("a1").card == "About owls."
    assert adapters.learned_from(["d1", "d2"]) == {"d1": ["Eagle"], "d2": []}
    Datasets(database).rename("d1", "falcons")
    assert found(catalog, Search(text="falcons", dataset="falcons")) == ["a1"] and found(catalog, Search(text="birds")) == []
    adapters.change("a1", archived_at=5.0, tags=[])
    assert found(catalog, Search()) == [] == found(catalog, Search(tags=("talks",), state=ARCHIVED))
    assert found(catalog, Search(text="owl", state=ARCHIVED)) == ["a1"] and adapters.find("Eagle") is not None
    made = replace(ADAPTER, id="a2", name="mix", parents=[{"id": "a1", "name": "Eagle"}], archived_at=1.0)
    adapters.add(made)
    assert found(catalog, Search(parent="a1")) == ["a2"]
    adapters.remove("a1")
    assert found(catalog, Search(text="owl", state=ARCHIVED)) == [] and catalog.count(Search(state=ARCHIVED)) == 1
    with pytest.raises(RecordNotFound):
        adapters.change("a1", tags=[])
    assert adapters.names() == ["mix"] and adapters.ids() == {"a2"} and catalog.catch_up() == 0


def test_what_a_job_made_is_found_at_once(database: Database) -> None:
    jobs = Jobs(database)
    jobs.add(job(1, 1.0))
    claimed = jobs.claim("w", 10.0, 5.0)
    assert claimed is not None
    jobs.finish(claimed, replace(ADAPTER, metrics={"eval_loss": 1.5}), {}, 11.0)
    assert found(Catalog(database), Search(text="bird", losses=(1.4, 1.6))) == ["a1"]


def test_a_deleted_dataset_is_still_known_by_the_job_that_learned_from_it(database: Database) -> None:
    adapters = Adapters(database)
    Jobs(database).add(replace(job(1, 1.0), config={"dataset_name": "owls"}))
    adapters.add(replace(ADAPTER, dataset_id="gone"))
    adapters.change("a1", tags=["talks"])
    assert found(Catalog(database), Search(text="owls", dataset="owls")) == ["a1"]


def test_a_name_stands_for_one_version_which_moves(database: Database) -> None:
    adapters, catalog = Adapters(database), Catalog(database)
    for number, name in ((1, "bird"), (2, "eagle"), (3, "falcon")):
        adapters.add(replace(ADAPTER, id=f"a{number}", name=name, created_at=float(number)))
    second = adapters.follow("a2", "bird")
    assert (second.name, second.version, second.current) == ("bird", 2, True)
    assert adapters.find("bird") == second and adapters.find("eagle") is None and not adapters.get("a1").current
    assert adapters.follow("a3", "bird").version == 3
    assert [record.id for record in adapters.versions("bird")] == ["a3", "a2", "a1"]
    assert found(catalog, Search()) == ["a3"] and set(found(catalog, Search(state=OLD))) == {"a1", "a2"}
    assert adapters.make_current("a1").current and adapters.get("bird").id == "a1" and found(catalog, Search()) == ["a1"]
    with pytest.raises(DuplicateName):
        adapters.add(replace(ADAPTER, id="a4"))
    with pytest.raises(RecordNotFound):
        adapters.follow("a1", "nobody")
    with pytest.raises(RecordNotFound):
        adapters.make_current("gone")
    assert adapters.follow("a1", "bird").version == 4 and adapters.get("bird").id == "a1"  # again the newest
    adapters.rename("a2", "kite")
    assert {record.name for record in adapters.all()} == {"kite"} and adapters.get("kite").id == "a1"
    adapters.remove("a1")
    assert adapters.get("kite").id == "a3" and found(catalog, Search()) == ["a3"]
    adapters.add(replace(ADAPTER, id="a5", name="owl"))
    adapters.follow("a3", "owl")  # the current one leaves; its name stands for the newest that is left
    assert adapters.get("kite").id == "a2" and adapters.get("owl").id == "a3"


def test_voices_of_a_base_leave_out_what_is_archived_or_old_and_begin_with_favourites(database: Database) -> None:
    adapters, catalog = Adapters(database), Catalog(database)
    for number in range(1, 6):
        adapters.add(replace(ADAPTER, id=f"a{number}", name=f"bird {number}", created_at=float(number)))
    adapters.change("a1", favourite=True)
    adapters.change("a2", archived_at=9.0)
    adapters.follow("a3", "bird 4")
    assert [record.id for record in catalog.with_base(ADAPTER.base_fingerprint, 9)] == ["a1", "a5", "a3"]
    assert catalog.with_base("other", 9) == [] and len(catalog.with_base(ADAPTER.base_fingerprint, 2)) == 2


def vote(number: int, winner: int, *adapter_ids: str) -> VoteRecord:
    who = [{"voice": one or "base", "adapter_id": one, "sha256": one and one * 8} for one in adapter_ids]
    return VoteRecord(f"v{number}", "Who?", who, winner, float(number))


def test_the_order_by_votes_and_by_gain_is_that_of_the_votes_and_losses(database: Database) -> None:
    adapters, catalog, votes = Adapters(database), Catalog(database), Votes(database)
    losses = {"a": (3.0, 2.5), "b": (3.0, 1.0), "c": (None, 1.0), "d": (2.0, 2.2)}
    for key, (before, after) in losses.items():
        adapters.add(replace(ADAPTER, id=key, name=key, metrics={"eval_loss_before": before, "eval_loss": after}))
    assert found(catalog, Search(sort="gain")) == ["b", "a", "d", "c"]
    assert found(catalog, Search(sort="gain", losses=(None, 2.3))) == ["b", "d", "c"]
    shuffled = random.Random(0)
    for number in range(60):
        pair = shuffled.sample(["a", "b", "c", ""], 2)
        votes.add(vote(number, shuffled.randrange(2), *pair))
    votes.add(vote(99, 0, "d", "d"))  # one voice alone says nothing
    rates = counted(votes)
    assert found(catalog, Search(sort="won")) == [*sorted("abc", key=lambda key: (-rates[key][0] / rates[key][1], -"abc".index(key))), "d"]
    adapters.change("a", tags=["loud"])  # its entry is written anew and keeps the votes
    with database.write() as session:
        session.execute(sql("DELETE FROM shelf WHERE adapter_id = 'b'"))
    catalog.catch_up()
    with database.read() as session:
        won = dict(session.execute(sql("SELECT adapter_id, won FROM shelf")).tuples().all())
        tally = {row[0]: (row[1], row[2]) for row in session.execute(sql("SELECT adapter_id, wins, votes FROM tally"))}
    assert won == {**{key: wins / count for key, (wins, count) in rates.items()}, "d": -1} and tally == rates


def counted(votes: Votes) -> dict[str, tuple[int, int]]:
    return {key: (rate.wins, rate.votes) for key, rate in Rates(votes).rates().items()}


def test_votes_that_are_cast_at_once_are_all_counted(database: Database) -> None:
    adapters, votes = Adapters(database), Votes(database)
    for key in ("a", "b"):
        adapters.add(replace(ADAPTER, id=key, name=key))
    with ThreadPoolExecutor(6) as pool:
        pairs = [("a", "b") if number % 2 else ("b", "a") for number in range(30)]
        list(pool.map(lambda given: votes.add(vote(given[0], 0, *given[1])), enumerate(pairs)))
    with database.read() as session:
        assert session.execute(sql("SELECT adapter_id, wins, votes FROM tally ORDER BY adapter_id")).all() == [
            ("a", 15, 30),
            ("b", 15, 30),
        ]
        assert {row[0] for row in session.execute(sql("SELECT won FROM shelf"))} == {0.5}


def test_versions_that_come_at_once_have_numbers_of_their_own(database: Database) -> None:
    adapters = Adapters(database)
    adapters.add(replace(ADAPTER, id="first", name="bird"))
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: adapters.add_version(replace(ADAPTER, id=f"next{n}", name="x"), "first"), range(12)))
    assert sorted(record.version for record in made) == list(range(2, 14)) and {record.name for record in made} == {"bird"}
    family = adapters.versions("bird")
    assert [record.version for record in family if record.current] == [13] and len(family) == 13
    assert found(Catalog(database), Search()) == [family[0].id]  # the others are of an older state
    quiet = adapters.add_version(replace(ADAPTER, id="quiet", name="x"), "first", current=False)
    assert (quiet.version, adapters.get("bird").version) == (14, 13)
    with pytest.raises(RecordNotFound):
        adapters.add_version(replace(ADAPTER, id="late"), "nobody")
    assert len(adapters.with_content(ADAPTER.sha256)) == 14
    assert adapters.with_content("0" * 64) == []


def test_two_jobs_that_end_at_once_make_two_versions(database: Database) -> None:
    jobs, adapters = Jobs(database), Adapters(database)
    Datasets(database).add(DATASET)
    adapters.add(replace(ADAPTER, id="first", name="bird"))
    queued = [replace(job(n, float(n)), adapter_name="bird", config={"version_of": "first"}) for n in range(6)]
    jobs.add(*queued)
    held = [taken for n in range(6) if (taken := jobs.claim(f"w{n}", 10.0, 60.0)) is not None]

    def finish(record: JobRecord) -> None:
        jobs.finish(record, replace(ADAPTER, id=record.adapter_id, name=record.adapter_name, job_id=record.id), {}, 9.0)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(finish, held))
    family = adapters.versions("bird")
    assert [record.version for record in family] == [7, 6, 5, 4, 3, 2, 1] and [record.current for record in family] == [True, *[False] * 6]
    assert {jobs.get(record.id).state for record in held} == {"done"}
