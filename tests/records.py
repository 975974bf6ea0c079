"""Records to fill a database with."""

from storage.records import AdapterRecord, BaseRecord, DatasetRecord, JobRecord

BASE = BaseRecord("b1", "tiny", "folder:tiny", "f" * 64, 10, 1.0, {"nf4": 2.5})
DATASET = DatasetRecord("d1", "birds", "messages", 2, 4, "h" * 64, 10, ["a note"], False, 1.0)
ADAPTER = AdapterRecord("a1", "bird", "s" * 64, "b1", "f" * 64, "d1", "h" * 64, "j1", 8, 10, {"rank": 8}, {"steps": 2}, "0", 0, 1.0)

HOSTILE = {
    "text": "NUL \0, half \ud800 of a pair, \u202e backwards, 🐦, \\u0000, ' \" ; DROP TABLE job; --\r\n\x7f\x1b",
    "key \0": [1e308, 5e-324, -(2**70), True, None, {"deep": {"er": []}}],
    "long": "ä" * 100_000,
}


def job(number: int, created_at: float) -> JobRecord:
    return JobRecord(
        id=f"j{number}",
        state="queued",
        adapter_id=f"adapter{number}",
        adapter_name=f"bird {number}",
        base_id="b1",
        dataset_id="d1",
        config={"rank": 8},
        created_at=created_at,
        position=created_at,
    )
