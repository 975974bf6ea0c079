"""The catalog on many adapters: milliseconds of the server for a page of each kind, beside a plain LIKE over the same rows.

Usage: python -m tests.bench.catalog [--adapters 100000] [--page 24]. Prints one JSON object. Each time is of a page as it is shown,
records and all; `ratio` says how many times as long the scan takes that a studio without an index would do.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from sqlalchemy import func, insert, or_, select

from storage.catalog import Catalog, Search
from storage.database import Database
from storage.records import AdapterRecord, BaseRecord, DatasetRecord
from storage.repositories import Bases, Datasets
from storage.shelf import ARCHIVED
from storage.tables import AdapterRow
from studio.training.config import make_config

RUNS = 15
AT_ONCE = 2000
SOUNDS = ("ba", "ko", "li", "mu", "ra", "sho", "ti", "vel", "wen", "zu", "dri", "fa", "gol", "hex")
ROLES = ("wizard", "pirate", "chef", "tutor", "poet", "coder", "coach", "critic")
BASE = BaseRecord("b1", "tiny", "folder:tiny", "f" * 64, 10, 1.0, {"nf4": 2.5})


def filled(folder: Path, adapters: int) -> Database:
    """A database with many adapters: names of rare and common words, tags and datasets of uneven size, cards of some sentences."""
    database, draw = Database(f"sqlite:///{folder}/studio.db"), random.Random(3)
    for number in range(3):
        Bases(database).add(replace(BASE, id=f"b{number}", name=f"tiny {number}"))
    for number in range(40):
        Datasets(database).add(DatasetRecord(f"d{number}", f"set {number}", "messages", 2, 4, "h" * 64, 10, [], False, 1.0))
    config = make_config().model_dump()
    for start in range(0, adapters, AT_ONCE):
        rows = [asdict(adapter(number, draw, config)) for number in range(start, min(adapters, start + AT_ONCE))]
        with database.write() as session:
            session.execute(insert(AdapterRow), rows)
    return database


def adapter(number: int, draw: random.Random, config: dict[str, object]) -> AdapterRecord:
    rare = "".join(draw.choices(SOUNDS, k=4))
    sentences = " ".join("".join(draw.choices(SOUNDS, k=3)) for _ in range(40))
    return AdapterRecord(
        f"{number:032x}",
        f"{draw.choice(ROLES)} {rare} {number}",
        f"{number:064x}",
        f"b{min(2, int(draw.expovariate(1.5)))}",
        "f" * 64,
        f"d{min(39, int(draw.expovariate(0.1)))}",
        "h" * 64,
        f"j{number}",
        draw.choice([4, 8, 16, 16, 16, 64]),
        draw.randrange(1_000_000, 50_000_000),
        config,
        {"eval_loss": draw.uniform(0.5, 4.0), "eval_loss_before": 4.0, "steps": 100} if number % 10 else {},
        "0",
        0,
        1.7e9 + number,
        kind="dora" if number % 20 == 0 else "lora",
        tags=[tag for tag, share in (("common", 0.5), ("seldom", 0.01), ("unique", 3 / 100_000)) if draw.random() < share],
        collections=["Best of"] if number % 500 == 0 else [],
        favourite=number % 300 == 0,
        archived_at=1.0 if number % 25 == 0 else None,
        card=f"# Card\nThis one speaks well. {sentences}",
    )


def measure(call: Callable[[], object], runs: int = RUNS) -> dict[str, float]:
    """Milliseconds of the middle one of some calls, and of the slowest."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return {"p50_ms": round(statistics.median(times), 2), "worst_ms": round(max(times), 2)}


def scan(database: Database, word: str, limit: int) -> Callable[[], object]:
    """What one does without an index."""
    columns = (AdapterRow.name, AdapterRow.card, AdapterRow.source, func.cast(AdapterRow.tags, AdapterRow.name.type))
    query = select(AdapterRow).where(or_(*(column.like(f"%{word}%") for column in columns)))

    def call() -> object:
        with database.read() as session:
            return session.scalars(query.order_by(AdapterRow.created_at.desc()).limit(limit)).all()

    return call


def questions(catalog: Catalog) -> dict[str, Search]:
    """What people look for."""
    some = catalog.page(Search(sort="name"), 1).records[0].name.split()[1]
    return {
        "newest": Search(),
        "name_prefix": Search(text="wiz"),
        "long_common_prefix": Search(text="balimu"),
        "common_word": Search(text="speaks"),
        "common_word_by_name": Search(text="speaks", sort="name"),
        "two_common_words": Search(text="wizard speaks", sort="loss"),
        "words_that_never_meet": Search(text="wizard pirate", sort="loss"),
        "rare_word": Search(text=some),
        "no_such_word": Search(text="nowhere"),
        "common_tag": Search(tags=("common",)),
        "seldom_tag": Search(tags=("seldom",), sort="rank"),
        "unique_tag_and_common_word": Search(tags=("unique",), text="speaks"),
        "base": Search(base="b1", sort="loss"),
        "dataset": Search(dataset="set 30", sort="loss"),
        "kind": Search(kind="dora", sort="name"),
        "collection": Search(collection="Best of"),
        "favourites": Search(favourite=True, sort="size"),
        "archived": Search(state=ARCHIVED, sort="name"),
        "rank_range": Search(ranks=(32, None), sort="loss"),
        "loss_range": Search(losses=(None, 0.52)),
        "loss_range_and_word": Search(losses=(None, 0.52), text="speaks", sort="name"),
        **{f"by_{sort}": Search(sort=sort) for sort in ("name", "loss", "rank", "size")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--page", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        database = filled(Path(folder), arguments.adapters)
        catalog = Catalog(database)
        written = time.perf_counter()
        catalog.catch_up()
        indexed = time.perf_counter()
        asked = questions(catalog)
        pages = {name: measure(lambda search=search: catalog.page(search, arguments.page)) for name, search in asked.items()}  # type: ignore[misc]
        counts = {name: measure(lambda search=search: catalog.count(search), 5) for name, search in asked.items()}  # type: ignore[misc]
        after = catalog.page(Search(), arguments.adapters // 2).next
        pages["page_in_the_middle"] = measure(lambda: catalog.page(Search(), arguments.page, after))
        scans = {word: measure(scan(database, word, arguments.page), 3) for word in ("speaks", asked["rare_word"].text, "nowhere")}
        result = {
            "adapters": arguments.adapters,
            "fill_s": round(written - started, 1),
            "index_s": round(indexed - written, 1),
            "pages": pages,
            "counts": counts,
            "facets": measure(catalog.facets),
            "voices": measure(lambda: catalog.with_base("f" * 64, 300)),
            "worst_page_p50_ms": max(page["p50_ms"] for page in pages.values()),
            "like_scan": scans,
            "ratio_rare_word": round(scans[asked["rare_word"].text]["p50_ms"] / pages["rare_word"]["p50_ms"], 1),
            "ratio_no_such_word": round(scans["nowhere"]["p50_ms"] / pages["no_such_word"]["p50_ms"], 1),
        }
        database.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
