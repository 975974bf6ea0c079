"""Which rows of a dataset are the longest, without reading the others into Python."""

import json
from pathlib import Path

from storage.database import Database
from storage.repositories import Datasets
from studio.datasets.library import BATCH_ROWS, DatasetLibrary


def test_the_longest_rows_are_found_across_the_batches_of_the_file(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'studio.db'}")
    library = DatasetLibrary(Datasets(database), tmp_path / "datasets", 2**30)
    texts = ["x" * n for n in range(1, BATCH_ROWS + 300)]
    texts[700], texts[-1] = texts[-1], texts[700]
    texts[BATCH_ROWS + 7] = "ö" * BATCH_ROWS  # the longest in bytes alone
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "completion": text}) + "\n" for text in texts), encoding="utf-8")
    record = library.add(path, "long")
    found = [row[1]["content"] for row in library.longest(record, 2)]
    assert found == ["ö" * BATCH_ROWS, texts[700]] and len(texts[700]) == BATCH_ROWS + 299
    assert len(library.longest(record, 5000)) == len(texts)
    database.close()
