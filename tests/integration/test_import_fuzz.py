"""Honest adapters that something happened to: each is imported with finite numbers or refused in one sentence, and nothing else stays.

STUDIO_SOAK=1 tries many: `make soak`. STUDIO_FUZZ_CASES=n tries n, and STUDIO_FUZZ_SEED draws others. A case that fails names its seed.
"""

import io
import json
import os
import random
import resource
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.errors import StudioError
from studio.lora.adapter import AdapterSpec, attach
from studio.lora.files import CONFIG_FILE, WEIGHTS_FILE, is_finite
from studio.services import Studio
from tests.conftest import tiny_settings
from tests.hostile_adapters import config, put, weights
from tests.oracle import perturb, write
from tests.tiny import make_model

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
SEED = int(os.environ.get("STUDIO_FUZZ_SEED", "1"))
CASES = int(os.environ.get("STUDIO_FUZZ_CASES", "150"))
MANY = int(os.environ.get("STUDIO_FUZZ_CASES", "20000"))
MOST_MB = 300  # by which all cases together may grow the process
Files = dict[str, bytes]
SPECS = (
    AdapterSpec(rank=4),
    AdapterSpec(rank=2, rslora=True, targets="attention"),
    AdapterSpec(method="dora", rank=4),
    AdapterSpec(method="prefix", virtual_tokens=5),
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        4,
        5,
        64,
        2**31,
        2**63,
        10**400,
        1.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "4",
        "F32",
        "BF16",
    ),
    *(
        "F64",
        "I8",
        "q_proj",
        ".*",
        "all-linear",
        "../../x",
        "\0",
        "\ud800",
        "ä" * 5000,
        [],
        [[]],
        [0, 4],
        [4, 64],
        ["q_proj"],
        {},
        {"q_proj": 2},
    ),
    *({"": {}}, [1] * 100, [2**62, 2**62]),
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Studio]:
    studio = Studio(tiny_settings(tmp_path_factory.mktemp("fuzzed") / "home"))
    studio.bases.fetch(str(tiny_base))
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def honest(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """The files of good adapters of each kind; all of them are imported."""
    folder = tmp_path_factory.mktemp("honest")
    put(folder / "pattern", config(rank_pattern={"k_proj": 4}, alpha_pattern={"k_proj": 2}), weights())
    for seed, spec in enumerate(SPECS):
        attached = attach(make_model(0, 600), spec, start_ids=list(range(30, 60)))
        perturb(attached, seed)
        write(folder / str(seed), attached.weights())
    found = []
    for path in sorted(folder.iterdir()):
        studio.adapters.remove(studio.import_adapter(str(path), "good").record.id)
        found.append({name: (path / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)})
    return found


def scrambled(draw: random.Random, data: bytes) -> bytes:
    """Bytes that were changed, cut out, doubled or lost at the end."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = (
            draw.randrange(len(found) + 1) if draw.random() < 0.5 else draw.randrange(min(len(found), 400) + 1)
        )  # half of them in the header
        width = draw.choice((1, 1, 4, 64))
        how = draw.randrange(4)
        if how == 0:
            found[at : at + width] = draw.randbytes(min(width, len(found) - at))
        elif how == 1:
            del found[at : at + width]
        elif how == 2:
            found[at:at] = found[at : at + width]
        else:
            del found[max(1, at) :]
    return bytes(found)


def bent(draw: random.Random, value: Any) -> Any:
    """JSON with one thing in it changed, anywhere."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        how = draw.randrange(6)
        if how == 0:
            return {name: part for name, part in value.items() if name != key}
        if how == 1:
            return {(name + draw.choice((".x", " ", "_A", "\u0430")) if name == key else name): part for name, part in value.items()}
        if how == 2:
            return {**value, draw.choice(("bias", "use_rslora", "auto_mapping", "init_lora_weights", "r", "x")): draw.choice(ODD)}
        return {**value, key: bent(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], bent(draw, value[at]), *value[at + 1 :]]
    return draw.choice(ODD)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8")


def bent_config(draw: random.Random, files: Files) -> Files:
    return {**files, CONFIG_FILE: as_json(bent(draw, json.loads(files[CONFIG_FILE])))}


def bent_header(draw: random.Random, files: Files) -> Files:
    data = files[WEIGHTS_FILE]
    (length,) = struct.unpack("<Q", data[:8])
    text, body = as_json(bent(draw, json.loads(data[8 : 8 + length]))), data[8 + length :]
    length = len(text) if draw.random() < 0.9 else draw.choice((0, 1, len(text) - 1, len(text) + 1, 2**40, 2**64 - 1))
    return {**files, WEIGHTS_FILE: struct.pack("<Q", length) + text + body}


def broken_numbers(draw: random.Random, files: Files) -> Files:
    """Numbers of a tensor changed to what they may not be, or may."""
    data = bytearray(files[WEIGHTS_FILE])
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(draw.choice((1, 3))):
        at = 8 + length + 4 * draw.randrange((len(data) - 8 - length) // 4)
        data[at : at + 4] = struct.pack("<f", draw.choice((float("nan"), float("inf"), -float("inf"), 3e38, 0.0, 1e-45)))
    return {**files, WEIGHTS_FILE: bytes(data)}


def scrambled_file(draw: random.Random, files: Files) -> Files:
    name = draw.choice((CONFIG_FILE, WEIGHTS_FILE))
    return {**files, name: scrambled(draw, files[name])}


BENDS: tuple[Callable[[random.Random, Files], Files], ...] = (bent_config, bent_header, broken_numbers, scrambled_file)


def zipped(draw: random.Random, files: Files) -> bytes:
    """A zip of the files with names, order, methods and bytes of its own."""
    held, members = io.BytesIO(), list(files.items())
    draw.shuffle(members)
    folder = draw.choice(("", "", "adapter/", "./", "../", "a/b/c/", "/", "C:\\", "\u202e/"))
    members += draw.sample([*members, ("README.md", b"x"), ("x/adapter_config.json", b"{}"), ("evil.bin", b"x")], draw.choice((0, 0, 1, 2)))
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in members:
            archive.writestr(folder + name, data, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    packed = held.getvalue()
    if draw.random() < 0.4:
        return packed
    if draw.random() < 0.5:  # in the directory at its end, which says where all is
        at = packed.rindex(b"PK\x01\x02")
        return packed[:at] + scrambled(draw, packed[at:])
    return scrambled(draw, packed)


def sent(draw: random.Random, honest: list[Files], folder: Path) -> str:
    """What somebody sends: a folder or a zip, in which something happened."""
    files, is_zip = draw.choice(honest), draw.random() < 0.4
    if not is_zip or draw.random() < 0.3:
        files = draw.choice(BENDS)(draw, files)
    if not is_zip:
        return put(folder / "sent", files[CONFIG_FILE], files[WEIGHTS_FILE])
    path = folder / "sent.zip"
    path.write_bytes(zipped(draw, files))
    return str(path)


def tree(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if not path.name.startswith("studio.db")}


def attempt(studio: Studio, wanted: str, tmp_path: Path) -> str:
    """Import it; returns "imported" or the kind of its refusal."""
    try:
        record = studio.import_adapter(wanted, "mine").record
    except StudioError as error:
        said = str(error)
        assert len(said) < 900 and said.isprintable() and said.endswith("."), said
        assert str(tmp_path) not in said and str(studio.settings.home) not in said, said
        return type(error).__name__
    held = studio.adapters.read(record)
    parts = [part for pair in held.pairs.values() for part in pair] + [*held.magnitudes.values()]
    assert all(map(is_finite, [*parts, *([held.prefix.embedding] if held.prefix else [])])) and (parts or held.prefix)
    studio.adapters.remove(record.id)
    return "imported"


def try_many(studio: Studio, honest: list[Files], tmp_path: Path, cases: int) -> Counter[str]:
    before, outcomes = tree(studio.settings.home), Counter[str]()
    at_first = 0
    for case in range(cases):
        if case == cases // 10:
            at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        wanted = sent(random.Random(f"{SEED} {case}"), honest, tmp_path)
        try:
            outcomes[attempt(studio, wanted, tmp_path)] += 1
            assert tree(studio.settings.home) == before and studio.adapters.all() == []
        except BaseException as error:
            error.add_note(f"STUDIO_FUZZ_SEED={SEED}, case {case}: {wanted}")
            raise
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - at_first < MOST_MB
    return outcomes


def test_what_was_mutated_is_imported_or_refused(studio: Studio, honest: list[Files], tmp_path: Path) -> None:
    outcomes = try_many(studio, honest, tmp_path, CASES)
    print(dict(outcomes))
    assert outcomes["InvalidInput"] > CASES // 4 and outcomes["imported"] > CASES // 40


@pytest.mark.soak
@pytest.mark.skipif(not os.environ.get("STUDIO_SOAK"), reason="takes long: make soak")
def test_many_mutations(studio: Studio, honest: list[Files], tmp_path: Path) -> None:
    outcomes = try_many(studio, honest, tmp_path, MANY)
    print(dict(outcomes))
    assert outcomes["InvalidInput"] > MANY // 4 and outcomes["imported"] > MANY // 40
