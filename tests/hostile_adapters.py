"""Adapters as strangers might send them: a good one, and what can be done to it. Each is refused with the words that are given."""

import io
import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from studio.lora.files import CONFIG_FILE, WEIGHTS_FILE

RANK = 4
Q = "model.layers.0.self_attn.q_proj"  # of the tiny base: 64 to 64
K = "model.layers.0.self_attn.k_proj"  # 64 to 32
ROOT = "base_model.model."
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "k_proj"],
    "base_model_name_or_path": "somebody/tiny",
    "bias": "none",
}
Wanted = str | Sequence[Path]
Make = Callable[[Path], Wanted]


def tensors(rank: int = RANK) -> dict[str, Tensor]:
    """A LoRA of two layers whose B is not zero."""
    generator = torch.Generator().manual_seed(0)
    sides = {Q: (64, 64), K: (32, 64)}
    found = {}
    for name, (d_out, d_in) in sides.items():
        found[f"{ROOT}{name}.lora_A.weight"] = torch.randn(rank, d_in, generator=generator)
        found[f"{ROOT}{name}.lora_B.weight"] = torch.randn(d_out, rank, generator=generator)
    return found


def weights(**changes: Tensor | None) -> bytes:
    """The weights, some changed or taken out; names begin after the root, with dots as `__`."""
    found = tensors()
    for key, tensor in changes.items():
        name = ROOT + key.replace("__", ".")
        if tensor is None:
            del found[name]
        else:
            found[name] = tensor
    return save(found, metadata={"format": "pt"})


def config(**changes: Any) -> bytes:
    """The configuration, some of it changed; None takes an option out."""
    return json.dumps({key: value for key, value in {**CONFIG, **changes}.items() if value is not None}).encode()


def put(folder: Path, config_text: bytes | None = None, weights_data: bytes | None = None, **more: bytes) -> str:
    """A folder as PEFT saves one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_bytes(config() if config_text is None else config_text)
    (folder / WEIGHTS_FILE).write_bytes(weights() if weights_data is None else weights_data)
    for name, data in more.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return str(folder)


def pack(path: Path, members: Sequence[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> str:
    """A zip of some members, in order; names may come twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return str(path)


def both() -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    """The two files as members of a zip."""
    return [(CONFIG_FILE, config()), (WEIGHTS_FILE, weights())]


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of one's own making."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def described(**changes: Any) -> dict[str, Any]:
    """The header of a good file, entry by entry; `A`, `B`, `C`, `D` name its tensors, in the order of their bytes."""
    text = weights()
    (length,) = struct.unpack("<Q", text[:8])
    header: dict[str, Any] = json.loads(text[8 : 8 + length])
    header.pop("__metadata__")
    keys = sorted(header, key=lambda key: header[key]["data_offsets"])
    for letter, change in changes.items():
        header[keys["ABCD".index(letter)]] |= change
    return header


def body() -> bytes:
    """The bytes of a good file's tensors."""
    text = weights()
    (length,) = struct.unpack("<Q", text[:8])
    return text[8 + length :]


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def trap(mark: str) -> bytes:
    """A pickle that makes a folder of this name."""
    return pickle.dumps(Trap(Path(mark)))


def pickled(folder: Path, name: str) -> str:
    """An adapter whose weights are a pickle that would make the folder `ran`."""
    folder.mkdir()
    (folder / CONFIG_FILE).write_bytes(config())
    (folder / name).write_bytes(trap(str(folder.parent / "ran")))
    return str(folder)


def linked(folder: Path, name: str) -> str:
    """An adapter of which one file is a link to one that lies elsewhere."""
    put(folder)
    target = folder.parent / f"elsewhere-{name}"
    (folder / name).rename(target)
    (folder / name).symlink_to(target)
    return str(folder)


def link_member(name: str) -> zipfile.ZipInfo:
    """A member that a zip stores as a link, to what its bytes say."""
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def bomb(path: Path, name: str = WEIGHTS_FILE, size: int = 64 << 20) -> str:
    """A zip in which one file of zeros takes a thousandth of its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        other = CONFIG_FILE if name == WEIGHTS_FILE else WEIGHTS_FILE
        archive.writestr(other, config() if other == CONFIG_FILE else weights())
        with archive.open(name, "w", force_zip64=True) as stream:
            for _ in range(size >> 20):
                stream.write(bytes(1 << 20))
    return str(path)


def nested(depth: int) -> bytes:
    """JSON that exhausts the stack of a reader that recurses."""
    return b'{"peft_type": ' + b"[" * depth + b"]" * depth + b"}"


def written(path: Path, data: bytes) -> str:
    """A file of these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def exported(folder: Path, fingerprint: str) -> str:
    """A folder as this studio exports one, with a fingerprint of one's own choice."""
    return put(folder / "a", studio__json=json.dumps({"base_fingerprint": fingerprint}).encode())


def pipe(folder: Path) -> str:
    """An adapter whose weights are a pipe that nobody writes to."""
    put(folder)
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)
    return str(folder)


def inner_zip() -> bytes:
    """A zip with an adapter, to be packed once more."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, data in both():
            archive.writestr(name, data)
    return memory.getvalue()


@dataclass(frozen=True)
class Attack:
    """One adapter that must be refused: `make` writes it below a folder, and all `words` stand in the sentence."""

    name: str
    make: Make
    words: tuple[str, ...]
    asked: str = "mine"


def _config(name: str, words: Sequence[str], **changes: Any) -> Attack:
    return Attack(f"config: {name}", lambda folder: put(folder / "a", config(**changes)), tuple(words))


def _text(name: str, text: bytes, *words: str) -> Attack:
    return Attack(f"config: {name}", lambda folder: put(folder / "a", text), words)


def _header(name: str, data: bytes, *words: str) -> Attack:
    return Attack(f"weights: {name}", lambda folder: put(folder / "a", None, data), words)


def _zip(name: str, make: Callable[[Path], str], *words: str) -> Attack:
    return Attack(f"zip: {name}", lambda folder: make(folder / "a.zip"), words)


def _files(name: str, make: Make, *words: str) -> Attack:
    return Attack(f"files: {name}", make, words)


def _named(name: str, *words: str) -> Attack:
    return Attack(f"name: {name!r}", lambda folder: put(folder / "a"), words, name)


HUGE = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}
ONE = {f"{ROOT}{Q}.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}

ATTACKS: list[Attack] = [
    _config("code to import", ["auto_mapping", "names Python code"], auto_mapping={"base_model_class": "X", "parent_library": "os"}),
    _config("layers copied", ["layer_replication", "copies of the base's layers"], layer_replication=[[0, 2]]),
    _config("whole layers", ["modules_to_save", "replaces whole layers"], modules_to_save=["lm_head"]),
    _config("regex targets", ["target_modules as a regular expression", "as a list"], target_modules="(a+)+$"),
    _config("regex exclusion", ["exclude_modules as a regular expression"], exclude_modules="(a|a)*b"),
    _config("regex alpha", ["regular expression in alpha_pattern"], alpha_pattern={"(.*)*q_proj": 3}),
    _config("megatron", ["megatron_config", "plain LoRA"], megatron_config={"tensor_model_parallel_size": 2}),
    _config("lora bias", ["lora_bias"], lora_bias=True),
    _config("bias", ["bias 'all'", "bias none"], bias="all"),
    _config("token rows", ["trainable_token_indices"], trainable_token_indices=[1, 2]),
    _config("bare parameters", ["target_parameters"], target_parameters=["experts.gate"]),
    _config("pissa", ["init_lora_weights 'pissa'", "path_initial_model_for_weight_conversion"], init_lora_weights="pissa"),
    *[
        _config(init, [f"init_lora_weights {init!r}"], init_lora_weights=init)
        for init in ("olora", "corda", "eva", "loftq", "pissa_niter_4", "mica")
    ],
    _config("another kind", ["peft_type 'IA3'", "LORA and PREFIX_TUNING are read"], peft_type="IA3"),
    _config("no kind", ["does not say its peft_type"], peft_type=None),
    _config("another task", ["the task 'SEQ_CLS'", "CAUSAL_LM"], task_type="SEQ_CLS"),
    _config("an option of tomorrow", ["uses use_warp, which the studio does not know"], use_warp=True),
    _config("rank zero", ["has r 0"], r=0),
    _config("rank of 200,000", ["has r 200000"], r=200_000),
    _config("rank as text", ["has r '4'"], r="4"),
    _config("alpha of text", ["lora_alpha 'x'"], lora_alpha="x"),
    _config("no alpha", ["lacks lora_alpha"], lora_alpha=None),
    _config("rank that is not the tensors'", ["has the rank 4", "says 8"], r=8),
    _config("targets that are not the tensors'", ["'model.layers.0.self_attn.k_proj'", "leave out"], target_modules=["q_proj"]),
    _config("4,096 targets", ["leave out"], target_modules=[f"x{i}" for i in range(4096)]),
    _config("5,000 targets", ["target_modules", "at most 4096 items"], target_modules=[f"x{i}" for i in range(5000)]),
    _config("blocks that are not the tensors'", ["leave out"], layers_to_transform=[1]),
    _config("layers excluded", ["leave out"], exclude_modules=["k_proj"]),
    _config("dora without lengths", ["lacks lora_magnitude_vector"], use_dora=True),
    _config("rslora as text", ["use_rslora 'false'"], use_rslora="false"),
    _text("cut", b'{"peft_type": "LORA"', "is not JSON"),
    _text("a list", b"[]", "is no JSON object"),
    _text("empty", b"", "is not JSON"),
    _text("a key twice", b'{"peft_type": "LORA", "r": 4, "r": 8, "lora_alpha": 8}', "the key 'r' twice"),
    _text("not a number", config().replace(b'"lora_alpha": 8', b'"lora_alpha": NaN'), "holds NaN"),
    _text("infinite", config().replace(b'"lora_alpha": 8', b'"lora_alpha": 1e999'), "lora_alpha inf"),
    _text("another encoding", config().decode().encode("utf-16"), "is not JSON"),
    _text("endlessly deep", nested(100_000), "is not JSON"),
    _text("a megabyte", config(revision="x" * (1 << 20)), "has 1.0 MB and the limit is 1.0 MB"),
    _header("a length beyond the file", raw(b"{}", length=1 << 40), "is no safetensors file"),
    _header("a header of 9 MB", raw(b"{" + b" " * (9 << 20) + b"}"), "has a header of 9.0 MB"),
    _header("a header that is text", raw(b"hello there"), "its header is no JSON object"),
    _header("a header cut off", raw(b'{"a": '), "is not JSON"),
    _header("empty", b"", "is no safetensors file"),
    _header("7 bytes", b"1234567", "is no safetensors file"),
    _header("700,000 keys", raw(b"{" + b",".join(b'"%x":0' % i for i in range(700_000)) + b"}"), "more than 32,768 tensors"),
    _header("200,000 keys, one of them twice", raw(b"{" + b",".join(b'"%x":0' % (i % 200_000) for i in range(200_001)) + b"}"), "twice"),
    _header("no tensors", raw({}), "holds no tensors"),
    _header("a key twice", raw(json.dumps(ONE).encode()[:-1] + b"," + json.dumps(ONE).encode()[1:], bytes(4)), "twice"),
    _header("100,000 tensors", raw({f"t{i}": ONE[next(iter(ONE))] for i in range(100_000)}, bytes(4)), "more than 32,768 tensors"),
    _header("four terabytes", raw({"a": HUGE}, bytes(64)), "is damaged: its tensors end at byte 4,398,"),
    _header("an offset of 2^80", raw(described(D={"data_offsets": [1 << 80, 1 << 81]}), body()), "which is none"),
    _header("an offset below zero", raw(described(A={"data_offsets": [-4, 1020]}), body()), "which is none"),
    _header("a shape below zero", raw(described(A={"shape": [-32, -4]}), body()), "no weight of an adapter"),
    _header("a shape of truth", raw(described(A={"shape": [True, 256]}), body()), "no weight of an adapter"),
    _header("a shape of nothing", raw(described(A={"shape": [0, 4]}), body()), "no weight of an adapter"),
    _header("a shape of many sides", raw(described(A={"shape": [1] * 64}), body()), "no weight of an adapter"),
    _header("another shape than bytes", raw(described(A={"shape": [4, 65]}), body()), "another number of bytes"),
    _header("doubles", raw(described(A={"dtype": "F64"}), body()), "as F64, and F32, F16, BF16 are read"),
    _header("a dtype that is none", raw(described(A={"dtype": ["F32"]}), body()), "are read"),
    _header("an overlap", raw(described(B={"data_offsets": [0, 512]}), body()), "overlaps with another"),
    _header("a hole", raw(described(), bytes(0)), "its tensors end at byte"),
    _header("bytes behind the end", raw(described(), body() + b"PK\3\4"), "its tensors end at byte"),
    _header("fields of its own", raw(described(A={"loader": "os.system"}), body()), "other fields"),
    _header("metadata that are no texts", raw({"__metadata__": {"a": [1]}, **described()}, body()), "__metadata__"),
    _header("a name of tricks", save({f"{ROOT}{Q}\u202e.lora_A.weight": torch.zeros(4, 64)}), "a name that no layer has"),
    _header("not a number", weights(model__layers__0__self_attn__q_proj__lora_B__weight=torch.full((64, 4), float("nan"))), "not finite"),
    _header("infinite", weights(model__layers__0__self_attn__k_proj__lora_A__weight=torch.full((4, 64), float("inf"))), "not finite"),
    _header("half a pair", weights(model__layers__0__self_attn__q_proj__lora_B__weight=None), "lacks lora_B of the layer"),
    _header("no pair", weights(model__layers__0__self_attn__q_proj__lora_B__weight=torch.zeros(64, 3)), "no pair of one rank"),
    _header("a bias", weights(model__layers__0__self_attn__q_proj__lora_B__bias=torch.zeros(64)), "is no lora_A or lora_B"),
    _header("an embedding", weights(model__embed_tokens__lora_embedding_A=torch.zeros(4, 64)), "is no lora_A or lora_B"),
    _header("a whole layer", weights(lm_head__weight=torch.zeros(600, 64)), "is no lora_A or lora_B"),
    _header(
        "a layer that is not there",
        save({key.replace("layers.0", "layers.7"): tensor for key, tensor in tensors().items()}),
        "fits no base that is here",
        "'model.layers.7.self_attn.k_proj'",
        "'somebody/tiny'",
    ),
    _header(
        "a layer of another size",
        weights(model__layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(4, 96)),
        "of (64, 96), and that layer is (64, 64)",
    ),
    _zip("a path outside", lambda path: pack(path, [("../../evil.json", b"{}"), *both()]), "lie outside it"),
    _zip("a path from the root", lambda path: pack(path, [("/etc/evil.json", b"{}"), *both()]), "lie outside it"),
    _zip("a path of Windows", lambda path: pack(path, [("C:\\evil.json", b"{}"), *both()]), "lie outside it"),
    _zip("a link", lambda path: pack(path, [(CONFIG_FILE, config()), (link_member(WEIGHTS_FILE), b"/etc/passwd")]), "a link"),
    _zip("a bomb", bomb, "as a zip bomb does"),
    _zip("a bomb as configuration", lambda path: bomb(path, CONFIG_FILE), "of 64.0 MB, and the limit is 1.0 MB"),
    _zip("a zip in a zip", lambda path: pack(path, [("more.zip", inner_zip()), *both()]), "another archive, 'more.zip'"),
    _zip("only a zip in a zip", lambda path: pack(path, [("adapter.zip", inner_zip())]), "another archive"),
    _zip(
        "two adapters",
        lambda path: pack(path, [(f"{one}/{name}", data) for one in ("bird", "fish") for name, data in both()]),
        "holds 2 adapters, in 'bird', 'fish'",
    ),
    _zip("a path outside, endlessly long", lambda path: pack(path, [("../" * 20_000 + "x.json", b"{}"), *both()]), "lie outside it"),
    _zip(
        "two adapters in endless folders",
        lambda path: pack(path, [(f"{one * 30_000}/{name}", data) for one in "ab" for name, data in both()]),
        "holds 2 adapters",
    ),
    _zip("a file twice", lambda path: pack(path, [*both(), (WEIGHTS_FILE, weights())]), "twice"),
    _zip("names of one file", lambda path: pack(path, [*both(), (WEIGHTS_FILE.upper(), weights())]), "some systems take for one file"),
    _zip("a pickle", lambda path: pack(path, [(CONFIG_FILE, config()), ("adapter_model.bin", trap("ran"))]), "is a pickle"),
    _zip("nothing", lambda path: pack(path, []), "There is no adapter_config.json"),
    _zip("no weights", lambda path: pack(path, both()[:1]), "There is no adapter_model.safetensors"),
    _zip("10,000 files", lambda path: pack(path, [(f"{i}.txt", b"") for i in range(10_000)]), "the limit is 1,000"),
    _zip("no zip at all", lambda path: written(path, b"hello"), "is no zip"),
    _files("a pickle in a folder", lambda folder: pickled(folder / "a", "adapter_model.bin"), "is a pickle", "save_pretrained"),
    _files("a pickle by its name", lambda folder: f"{pickled(folder / 'a', 'adapter_model.pt')}/adapter_model.pt", "is a pickle"),
    _files("a pickle called safetensors", lambda folder: pickled(folder / "a", WEIGHTS_FILE), "is no safetensors file"),
    _files("weights that are a link", lambda folder: linked(folder / "a", WEIGHTS_FILE), "is a link"),
    _files("a configuration that is a link", lambda folder: linked(folder / "a", CONFIG_FILE), "is a link"),
    _files("weights that are a pipe", lambda folder: pipe(folder / "a"), "no plain file"),
    _files("an empty folder", lambda folder: str(folder), "There is no adapter_config.json in the folder"),
    _files("adapters in folders", lambda folder: put(folder / "run" / "checkpoint-5") and str(folder / "run"), "'checkpoint-5'"),
    _files("nothing", lambda folder: "no-such-thing", "There is no file or folder 'no-such-thing'"),
    _files("a path as a repository", lambda folder: "../../no-such-thing", "no Hub id"),
    _files("a revision of tricks", lambda folder: "owner/name@../../x y", "no Hub id"),
    _files("weights alone", lambda folder: [Path(put(folder / "a"), WEIGHTS_FILE).rename(folder / "w.safetensors")], "together with its"),
    _files("a photo", lambda folder: [folder / "bird.png"], "'bird.png'"),
    _files("a fingerprint of another base", lambda folder: exported(folder, "ab" * 32), "abababab"),
    _files("a lineage that is none", lambda folder: exported(folder, "../.."), "studio.json has no fingerprint"),
    _named("", "has no name"),
    _named("bird\u202egnp", "cannot be seen"),
    _named("bi\u200brd", "cannot be seen"),
    _named("bird\x1b[31m", "cannot be seen"),
    _named("b\u0430se", "means the base model itself"),
    _named("\uff42\uff41\uff53\uff45", "means the base model itself"),
    _named("x" * 81, "81 characters"),
]  # fmt: skip
