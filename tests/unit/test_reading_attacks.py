"""Files made to do harm: each is refused with a sentence, in bounded memory, before it fills disk or memory."""

import gzip
import io
import os
import random
import subprocess
import sys
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.datasets.reading import SUFFIXES, Limits, passages, read_files
from studio.datasets.reading.limits import KIB, MIB
from studio.datasets.rows import SourceRow
from studio.errors import InvalidInput
from tests.workbooks import write_ods, write_xlsx

BIG = Limits(1 << 34)
ROOT = Path(__file__).parent.parent.parent
# Reads a file, says why it was refused, and the most memory that the process held, in MB.
WITNESS = """
import sys
from pathlib import Path
from studio.datasets.reading import Limits, read_files
rows = 0
try:
    for row in read_files([Path(sys.argv[1])], Limits(1 << 34), []):
        rows += 1
        print(row.line, str(row)[:200]) if rows < 3 else None
except Exception as error:
    print(type(error).__name__, error)
# getrusage would tell the peak of the process that started this one.
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


def refusal(path: Path, limits: Limits = BIG) -> str:
    with pytest.raises(InvalidInput) as caught:
        list(read_files([path], limits, []))
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def witness(path: Path) -> tuple[str, int]:
    result = subprocess.run([sys.executable, "-c", WITNESS, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    *said, peak_mb = result.stdout.splitlines()
    return "\n".join(said), int(peak_mb)


def write_large(path: Path, head: bytes, piece: bytes, size: int) -> Path:
    with path.open("wb") as handle:
        handle.write(head)
        for _ in range(size // len(piece)):
            handle.write(piece)
    return path


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# Large text


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.md", "a.tsv", "a.ndjson"])
def test_a_hundred_megabytes_on_one_line_are_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = write_large(tmp_path / name, b'x\n{"a": "', b"x" * MIB, 100 * MIB)
    said, peak_mb = witness(path)
    assert "has more than 16.0 MB on line 2; break it" in said and peak_mb < 80


def test_one_item_of_a_hundred_megabytes_ends_an_array_in_bounded_memory(tmp_path: Path) -> None:
    said, peak_mb = witness(write_large(tmp_path / "a.json", b'[1,\n"', b"x" * MIB, 100 * MIB))
    assert "line 2: this is not valid JSON (longer than a row may be)" in said and peak_mb < 150


def test_an_array_of_a_hundred_megabytes_on_one_line_is_read_in_bounded_memory(tmp_path: Path) -> None:
    item = b'{"a": "' + b"x" * 1000 + b'"},'
    path = write_large(tmp_path / "a.json", b"[", item * 64, 100 * MIB)
    with path.open("ab") as handle:
        handle.write(b"1]")
    said, peak_mb = witness(path)
    assert said.startswith("1 SourceRow") and peak_mb < 80


def test_a_list_of_a_hundred_megabytes_under_another_key_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    path = write_large(tmp_path / "a.json", b'{"numbers": [', b"[1, 2, {}], " * 4096, 100 * MIB)
    with path.open("ab") as handle:
        handle.write(b'1], "data": [\n{"a": 1}]}')
    said, peak_mb = witness(path)
    assert "line=2, value={'a': 1}" in said and peak_mb < 80


def test_a_quote_that_is_never_closed_does_not_swallow_memory(tmp_path: Path) -> None:
    said, peak_mb = witness(write_large(tmp_path / "a.csv", b'a,b\n1,2\n"', b"x" * 1023 + b"\n", 100 * MIB))
    assert "line 3: the CSV is broken from here on (this row does not end within 16.0 MB)" in said and peak_mb < 150


@pytest.mark.parametrize("newlines", [False, True])
def test_a_header_of_a_billion_columns_is_refused_in_bounded_memory(tmp_path: Path, newlines: bool) -> None:
    path = write_large(tmp_path / "a.csv", b"", b'"\n",' * KIB if newlines else b"," * KIB, 12 * MIB)
    said, peak_mb = witness(path)
    assert said.startswith("InvalidInput") and ("columns" in said or "header" in said) and peak_mb < 200
    path.write_bytes(b"," * 1_000_000)
    assert "1,000,001 columns and the limit is 1,000" in refusal(path)


def test_a_billion_columns_on_one_line_are_refused_while_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_large(path, b"a", b",b" * (MIB // 2), 64 * MIB)
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "on line 1" in message and peak < 16 * MIB


def test_a_text_on_one_line_is_cut_without_being_copied_for_each_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cut copied the rest of the line: 15 MB on one line took most of a minute."""
    looked = 0

    def counted(window: str) -> int:
        nonlocal looked
        looked += len(window)
        return len(window)

    monkeypatch.setattr(passages, "_cut", counted)
    (tmp_path / "a.txt").write_bytes(b"word " * (MIB // 5))
    rows = list(read_files([tmp_path / "a.txt"], BIG, []))
    assert len(rows) > 500 and looked <= 2 * MIB


def test_an_object_of_very_many_lists_is_refused_when_they_are_too_many(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{" + b",".join(b'"k%d":[{}]' % n for n in range(3_000)) + b"}")
    assert "holds more than 1,000 lists" in refusal(tmp_path / "a.json")


def test_brackets_without_end_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.json", b"[" * 3_000_000), ("a.json", b'{"a":' * 1_000_000), ("a.jsonl", b"[" * 3_000_000)):
        (tmp_path / name).write_bytes(text)
        rows = list(read_files([tmp_path / name], BIG, []))
        assert len(rows) == 1 and "nested too deeply" in str(rows[0])


# Archives


def test_a_zip_bomb_is_refused_by_its_ratio_and_by_its_total(tmp_path: Path) -> None:
    zeros = b"0" * (10 * MIB)
    path = pack(tmp_path / "bomb.zip", {"a.jsonl": zeros})
    assert path.stat().st_size < 20 * KIB
    assert "unpacks to more than 250 times its size" in refusal(path)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(zeros))
    assert "unpacks to more than 250 times its size" in refusal(tmp_path / "a.jsonl.gz")
    many = pack(tmp_path / "many.zip", {f"{n}.txt": b"word " * (MIB // 5) for n in range(8)})
    assert "unpacks to more than 5.0 MB" in refusal(many, Limits(1 << 30, expanded_bytes=5 * MIB))
    with pytest.raises(InvalidInput, match="more than 5"):  # all files together
        list(read_files([pack(tmp_path / f"{n}.zip", {"a.txt": b"word " * (MIB // 2)}) for n in range(3)], Limits(1 << 30, 5 * MIB), []))


def test_archives_in_archives_are_refused(tmp_path: Path) -> None:
    inner = pack(tmp_path / "inner.zip", {"a.txt": b"x"}).read_bytes()
    assert "holds another archive, 'b.zip'" in refusal(pack(tmp_path / "outer.zip", {"b.zip": inner}))
    assert "holds another archive" in refusal(pack(tmp_path / "outer.zip", {"b.zip.gz": gzip.compress(inner)}))
    (tmp_path / "b.zip.gz").write_bytes(gzip.compress(inner))
    assert "holds .zip inside gzip" in refusal(tmp_path / "b.zip.gz")


def test_sizes_that_lie_change_nothing(tmp_path: Path) -> None:
    content = "".join(f"{random.Random(n).random()}\n" for n in range(3000)).encode()
    path = pack(tmp_path / "a.zip", {"a.txt": content})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1).to_bytes(4, "little")
    path.write_bytes(data)
    assert "damaged" in refusal(path)
    data[entry + 24 : entry + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(data)
    texts = [row.value["text"] for row in read_files([path], BIG, []) if isinstance(row, SourceRow)]
    assert "\n".join(texts).encode() + b"\n" == content


def test_a_damaged_name_does_not_fill_the_page_with_bytes(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a.txt": random.Random(0).randbytes(30_000)})
    data = bytearray(path.read_bytes())
    data[26:28] = (20_000).to_bytes(2, "little")  # as long is the name in the member's own header
    path.write_bytes(data)
    message = refusal(path)
    assert "is damaged at 'a.txt'" in message and message.endswith("pack it again.") and len(message) < 300


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a.txt": b"x" * 999, "b.txt": b"y" * 999})
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = bytes(4)  # the second one begins where the first does
    path.write_bytes(data)
    assert "zip bomb" in refusal(path)


@pytest.mark.parametrize("name", ["/etc/a.csv", "../a.csv", "x/../../a.csv", "..\\a.csv", "C:\\a.csv", "c:a.csv", "\\\\host\\a.csv"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    message = refusal(pack(tmp_path / "a.zip", {"b.csv": b"a\n1\n", name: b"a\n1\n"}))
    assert "would lie outside it" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_links_and_locked_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("a.csv")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert "'a.csv', which is a link" in refusal(path)
    data = bytearray(pack(path, {"a.csv": b"a\n1\n"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "is encrypted ('a.csv')" in refusal(path)
    assert "in a way that is not read here" in refusal(pack(path, {"a.csv": b"a\n1\n"}, zipfile.ZIP_BZIP2))


def test_more_members_than_allowed_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    members = {f"{n}.txt": b"" for n in range(30)}
    assert "holds 30 files and the limit is 29" in refusal(pack(tmp_path / "a.zip", members), Limits(1 << 30, files=29))
    crowd = pack(tmp_path / "b.zip", {f"{n:0200d}.txt": b"" for n in range(6000)})
    tracemalloc.start()
    assert "holds more than 29 files" in refusal(crowd, Limits(1 << 30, files=29))
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()


def test_an_archive_without_anything_to_read_is_refused(tmp_path: Path) -> None:
    assert "no file that can be read" in refusal(pack(tmp_path / "a.zip", {"a.png": b"x"}))
    assert "no file that can be read" in refusal(pack(tmp_path / "a.zip", {}))
    assert "only empty files" in refusal(pack(tmp_path / "a.zip", {"a.csv": b"\n"}))
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert "is no zip, or a damaged one" in refusal(tmp_path / "a.zip")


# Workbooks and YAML


def test_a_bomb_inside_a_workbook_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_xlsx(tmp_path / "a.xlsx", {1: ["a"], 2: ["x"]})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", b" " * (300 * MIB))

    def parse(*arguments: object, **options: object) -> None:
        raise AssertionError("the parser was started")

    monkeypatch.setattr(subprocess, "Popen", parse)
    assert "unpacks to more than 256.0 MB" in refusal(path)


def test_a_workbook_of_two_far_cells_ends_its_reader_and_not_us(tmp_path: Path) -> None:
    far = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    message = refusal(write_xlsx(tmp_path / "a.xlsx", {1: ["a"]}, cells=far))
    assert "could not be read" in message or "cannot be read" in message or "16,384 columns" in message


def test_a_table_that_repeats_a_cell_a_billion_times_is_refused(tmp_path: Path) -> None:
    message = refusal(write_ods(tmp_path / "a.ods", [["a", "b"], ["x", "y"]], repeat=1_000_000_000))
    assert "read" in message or "columns" in message


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "far larger than it looks"),
        ("a: &a {x: *a}", "holds itself"),
        ("[" * 100_000, "levels deep"),
        ("- " * 100_000 + "x", "levels deep"),
        ("{a: " * 100_000, "levels deep"),
    ],
)
def test_yaml_that_grows_or_has_no_end_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert words in refusal(tmp_path / "a.yaml")


def test_large_yaml_is_refused(tmp_path: Path) -> None:
    assert "YAML of more than 32.0 MB" in refusal(write_large(tmp_path / "a.yaml", b"", b"- x\n" * KIB, 33 * MIB))


@pytest.mark.parametrize("text", ["[" + "a," * 1_000_001 + "]", "- a\n" * 1_000_001, "[" + "[]," * 1_000_001 + "]"])
def test_yaml_of_very_many_values_is_refused_before_it_is_built(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert "YAML of more than 1,000,000 values; write it as JSON Lines" in refusal(tmp_path / "a.yaml")


def test_entities_of_a_workbook_are_not_expanded(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(10))
    path = write_xlsx(tmp_path / "a.xlsx", {1: ["a"], 2: ["x"]})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"].decode().replace("?>", f"?><!DOCTYPE worksheet [{laughs}]>", 1).replace(">x<", ">&l9;<")
    assert "&l9;" in sheet
    pack(path, parts | {"xl/worksheets/sheet1.xml": sheet.encode()})
    try:
        rows = list(read_files([path], BIG, []))
    except InvalidInput as error:
        assert "cannot be read" in str(error) or "could not be read" in str(error)
    else:
        assert len(str(rows)) < 1_000


def test_yaml_makes_nothing_but_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- a: !!python/object/apply:os.system ['exit 1']\n- !!python/name:os.system x\n")
    assert [getattr(row, "value", None) for row in read_files([path], BIG, [])] == [{"a": ["exit 1"]}, "x"]


# Every kind, broken at random: rows, errors or a refusal, and nothing else


def samples(folder: Path) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    jsonl = b"".join(b'{"prompt": "a \\"b\\" [%d]", "n": {"x": [1, null]}}\n' % n for n in range(6))
    array = b"[" + b",\n".join(jsonl.splitlines()) + b"]"
    table = b'a;b;"c"\n' + b'1;"x\ny";z\n' * 5
    yield ".jsonl", jsonl
    yield ".json", array
    yield ".json", b'{"version": 1, "data": ' + array + b"}"
    yield ".csv", table
    yield ".tsv", table.replace(b";", b"\t")
    yield ".csv", table.decode().encode("utf-16")
    yield ".txt", "Ein Absatz.\n\nNoch einer, länger.\n".encode() * 4
    yield ".md", b"# A\n\ntext\n\n```\n# b\n```\n## C\nmore\n" * 3
    yield ".yaml", b"conversations:\n- - 'a'\n  - b\n- [c, d]\n- &x {k: v}\n- *x\n"
    yield ".jsonl.gz", gzip.compress(jsonl)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", jsonl)
        archive.writestr("b.csv", table)
    yield ".zip", packed.getvalue()
    yield ".xlsx", write_xlsx(folder / "s.xlsx", {1: ["a", "b"], 2: ["x", 1], 3: ["y", 2.5]}).read_bytes()
    yield ".ods", write_ods(folder / "s.ods", [["a", "b"], ["x", "y"]]).read_bytes()
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": ["x", "y"] * 9, "b": [[{"k": 1.5}]] * 18}), sink)
    yield ".parquet", sink.getvalue()


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with up to four changes: bytes replaced, taken out, put in or doubled, or its end cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, many = rng.randrange(len(data) + 1), rng.randint(1, 8)
        signs = rng.choice([b'"', b"[", b"}", b"\n", b"\\", b"\xff", b"&a *a ", b"\xef\xbb\xbf", b": ", b"\r", b";"])
        changes = [
            (at, at + 1, bytes([rng.randrange(256)])),
            (at, at + many, b""),
            (at, at, rng.randbytes(many)),
            (at, at, signs),
            (at, at, bytes(data[at : at + 40])),
        ]
        if rng.random() < 0.2:
            changes.append((at, len(data), b""))
        start, end, piece = rng.choice(changes)
        data[start:end] = piece
    return bytes(data)


def test_no_broken_file_of_any_kind_escapes_as_another_error(tmp_path: Path) -> None:
    cases = int(os.environ.get("READING_FUZZ_CASES", "120"))  # of each kind; a tenth of it where a process reads
    limits, rng = Limits(1 << 20, expanded_bytes=1 << 22, row_bytes=1 << 16), random.Random(7)
    seen = refused = wrong = 0
    for suffix, content in samples(tmp_path):
        assert suffix[suffix.rindex(".") :] in SUFFIXES
        slow = suffix in (".xlsx", ".ods", ".parquet")
        for case in range(max(cases // 40, 1) if slow else cases):
            path = tmp_path / f"case{suffix}"
            path.write_bytes(mutated(content, rng) if case else content)
            try:
                rows = list(read_files([path], limits, []))
            except InvalidInput as error:
                assert case and str(error)[0].isupper() and str(tmp_path) not in str(error)
                refused += 1
                continue
            seen += len(rows)
            for row in rows:
                assert row.line >= 1 and row.file.startswith("case")
                if isinstance(row, Exception):
                    wrong += 1
                    assert row.kind != "wrong row" and not [c for c in row.excerpt if unicodedata.category(c)[0] == "C"]
    assert seen and refused and wrong
