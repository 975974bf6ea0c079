"""Where an imported adapter's files come from: a folder, a zip, the two files themselves, or a repository of the Hub.

Two files are taken by their names, `adapter_config.json` and `adapter_model.safetensors`, and a third, `studio.json`, which this studio's
own exports carry, is looked at for the base's fingerprint. Nothing else is opened, fetched or unpacked.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from studio.adapters.header import parse_json, shortened
from studio.adapters.schema import MAX_CONFIG_BYTES
from studio.bases.sources import HUB_ID
from studio.datasets.hub import explain
from studio.datasets.reading.archives import ARCHIVES, Budget, open_zip, unpacked
from studio.datasets.reading.documents import Document
from studio.datasets.reading.limits import Limits, megabytes
from studio.datasets.reading.places import printable
from studio.errors import InvalidInput, NotFound
from studio.lora.files import CONFIG_FILE, WEIGHTS_FILE
from studio.names import listed
from studio.training.run import LINEAGE_FILE

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[\w][\w./-]{0,99}", re.ASCII)
PICKLED = (
    "is a pickle, which can run code when it is opened, so it is never read; convert it where you trust it: load the adapter with PEFT and "
    "save it with save_pretrained, which writes safetensors"
)


@dataclass(frozen=True)
class Found:
    """An adapter's files, opened: the text of the configuration, the weights, and the fingerprint of the base where it is known.

    `file` is the weights' name for people, `label` says where all of it is from, to continue "from".
    """

    config: bytes
    weights: BinaryIO
    file: str
    fingerprint: str
    label: str


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, at a branch, tag or commit; an empty revision is the newest."""

    id: str
    revision: str = ""

    @classmethod
    def read(cls, text: str) -> "Repository":
        """From `owner/name` or `owner/name@revision`.

        Raises:
            InvalidInput: it is none.
        """
        name, at, revision = text.strip().partition("@")
        if not HUB_ID.fullmatch(name) or (at and not REVISION.fullmatch(revision)):
            raise InvalidInput(f"{shortened(printable(text))!r} is no Hub id; write it as owner/name or owner/name@revision.")
        return cls(name, revision)


Wanted = str | Sequence[Path] | Repository


@contextmanager
def found_at(wanted: Wanted, staging: Path, limits: Limits, timeout_s: float, endpoint: str | None = None) -> Iterator[Found]:
    """Open the files of an adapter, for as long as the block runs.

    Args:
        wanted: files or one folder, a repository, or a text that is a path of this machine or else a repository. staging: an empty
            folder for what must be unpacked or fetched. limits: of one file, and of what is unpacked. timeout_s: of the Hub.
        endpoint: another Hub.

    Raises:
        NotFound. InvalidInput: what is there is no adapter, or one that is not read; the message says why. OutOfSpace.
    """
    paths = _meant(wanted) if isinstance(wanted, str) else wanted
    if isinstance(paths, Repository):
        with _from_hub(paths, staging, limits, timeout_s, endpoint) as found:
            yield found
    elif len(paths) == 1 and paths[0].is_dir():
        with _from_folder(paths[0], limits) as found:
            yield found
    elif len(paths) == 1 and paths[0].suffix.lower() == ".zip":
        with _from_zip(paths[0], staging, limits) as found:
            yield found
    else:
        with _from_files(paths, limits) as found:
            yield found


def fingerprint_in(text: bytes) -> str:
    """The base's fingerprint in a `studio.json`; nothing else there is believed.

    Raises:
        InvalidInput: the file is none of this studio's.
    """

    def reject(why: str) -> InvalidInput:
        return InvalidInput(f"The adapter's {LINEAGE_FILE} {printable(why)}; leave the file out, or export the adapter again.")

    found = parse_json(text, reject)
    said = found.get("base_fingerprint", "") if isinstance(found, dict) else None
    if not isinstance(said, str) or (said and not FINGERPRINT.fullmatch(said)):
        raise reject("has no fingerprint of a base")
    return said


def _meant(text: str) -> list[Path] | Repository:
    try:
        path = Path(text).expanduser()
        if path.exists() or path.is_symlink():
            return [path]
        return Repository.read(text)
    except (OSError, RuntimeError, InvalidInput):  # too long for a path, or the home of nobody
        shown = shortened(printable(text))
        raise NotFound(f"There is no file or folder {shown!r}, and it is no Hub id like owner/name; check the name.") from None


@contextmanager
def _from_folder(folder: Path, limits: Limits) -> Iterator[Found]:
    folder = folder.resolve()
    names = sorted(entry.name for entry in folder.iterdir())
    label = f"the folder {folder.name!r}"
    if CONFIG_FILE not in names:
        below = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))]
        if below:
            raise InvalidInput(f"The folder {folder.name!r} holds {len(below)} adapters in folders, {_some(below)}; give one of these.")
    _pick(names, label)
    lineage = folder / LINEAGE_FILE if LINEAGE_FILE in names else None
    with _opened(folder / CONFIG_FILE, folder / WEIGHTS_FILE, lineage, limits, label) as found:
        yield found


@contextmanager
def _from_files(paths: Sequence[Path], limits: Limits) -> Iterator[Found]:
    """A configuration and one safetensors file, whatever it is called; the configuration may lie beside the one that is named."""
    for path in paths:
        if path.suffix.lower() in PICKLES:
            raise InvalidInput(f"The file {path.name!r} {PICKLED}.")
        if path.suffix.lower() in ARCHIVES:
            raise InvalidInput(f"The file {path.name!r} is an archive that is not read here, or not alone; give one zip, or the two files.")
    weights = [path for path in paths if path.suffix.lower() == ".safetensors"]
    configs = [path for path in paths if path.name == CONFIG_FILE]
    if len(paths) == 1 and weights and (paths[0].parent / CONFIG_FILE).is_file():
        configs = [paths[0].parent / CONFIG_FILE]
    others = [path.name for path in paths if path not in (*weights, *configs) and path.name != LINEAGE_FILE]
    if len(weights) != 1 or len(configs) != 1 or others:
        got = _some([path.name for path in paths])
        raise InvalidInput(f"An adapter is one zip, or a safetensors file together with its {CONFIG_FILE}, and what was given is {got}.")
    lineage = next((path for path in paths if path.name == LINEAGE_FILE), None)
    with _opened(configs[0], weights[0], lineage, limits, f"the file {weights[0].name!r}") as found:
        yield found


@contextmanager
def _from_zip(path: Path, staging: Path, limits: Limits) -> Iterator[Found]:
    _open_regular(path, limits.upload_bytes).close()
    document = Document(path, path.name, ".zip", limits, [])
    budget = Budget(limits.upload_bytes + 2 * MAX_CONFIG_BYTES)
    with ExitStack() as stack:
        archive, members = stack.enter_context(open_zip(document))
        _check_names(document, [name for name, _ in members])
        by_name = dict(members)
        chosen = _choose(document, sorted(by_name))
        for name, limit in zip(chosen, (MAX_CONFIG_BYTES, limits.upload_bytes, MAX_CONFIG_BYTES), strict=False):
            if by_name[name].file_size > limit:  # no more than it says is unpacked
                got = megabytes(by_name[name].file_size)
                raise document.refuse(f"holds {shortened(name)!r} of {got}, and the limit is {megabytes(limit)}; give a smaller adapter.")
        out = [stack.enter_context(unpacked(document, archive, by_name[name], budget, staging)) for name in chosen]
        lineage = out[2] if len(out) > 2 else None
        yield stack.enter_context(_opened(out[0], out[1], lineage, limits, f"the file {path.name!r}", PurePosixPath(chosen[1]).name))


def _check_names(document: Document, names: list[str]) -> None:
    """Refuse names that stand for one file twice, and archives in archives."""
    seen: dict[str, str] = {}
    for name in names:
        if PurePosixPath(name.lower()).suffix in ARCHIVES:
            raise document.refuse(f"holds another archive, {shortened(name)!r}; unpack that one and pack its files instead.")
        if other := seen.get(name.lower()):
            how = "twice" if other == name else f"and {shortened(other)!r}, which some systems take for one file"
            raise document.refuse(f"holds {shortened(name)!r} {how}; pack it once.")
        seen[name.lower()] = name


def _choose(document: Document, names: list[str]) -> list[str]:
    """Configuration, weights and, where it is there, the lineage, all of one folder of the zip."""
    configs = [name for name in names if PurePosixPath(name).name == CONFIG_FILE]
    if len(configs) > 1:
        folders = _some([str(PurePosixPath(name).parent) for name in configs])
        raise document.refuse(f"holds {len(configs)} adapters, in {folders}; pack one of them alone.")
    folder = str(PurePosixPath(configs[0]).parent) if configs else "."
    inside = {PurePosixPath(name).name: name for name in names if str(PurePosixPath(name).parent) == folder}
    _pick(list(inside) if configs else [PurePosixPath(name).name for name in names], f"the file {document.file!r}")
    return [inside[name] for name in (CONFIG_FILE, WEIGHTS_FILE, LINEAGE_FILE) if name in inside]


def _pick(names: list[str], label: str) -> None:
    """Make sure that both files are there.

    Raises:
        InvalidInput: one is missing; where a pickle lies in its place the message says how to convert it.
    """
    for wanted in (CONFIG_FILE, WEIGHTS_FILE):
        if wanted in names:
            continue
        pickles = sorted(name for name in names if name.lower().endswith(PICKLES) and "adapter" in name.lower())
        if wanted == WEIGHTS_FILE and pickles:
            raise InvalidInput(f"The file {printable(pickles[0])!r} of {printable(label)} {PICKLED}.")
        there = _some(names) if names else "nothing"
        raise InvalidInput(
            f"There is no {wanted} in {printable(label)}, which holds {there}; give a folder or zip as PEFT saves an adapter."
        )


def _some(names: list[str]) -> str:
    return listed([shortened(printable(name), 60) for name in names], 5)


@contextmanager
def _from_hub(wanted: Repository, staging: Path, limits: Limits, timeout_s: float, endpoint: str | None) -> Iterator[Found]:
    config, weights, commit = _fetch(wanted.id, wanted.revision, staging, limits, timeout_s, endpoint)
    with _opened(config, weights, None, limits, f"{wanted.id}@{commit[:12]} on the Hub") as found:
        yield found


def _fetch(repository: str, revision: str, staging: Path, limits: Limits, timeout_s: float, endpoint: str | None) -> tuple[Path, Path, str]:
    """Fetch the two files of one commit, and nothing else; returns their paths and the commit's full hash."""
    from httpx2 import HTTPError, InvalidURL  # what huggingface_hub 2 speaks HTTP with
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    client = HfApi(endpoint=endpoint)
    try:
        info = client.model_info(repository, revision=revision or None, timeout=timeout_s, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        _pick(sorted(sizes), f"the repository {repository!r}")
        _check_sizes(repository, sizes, limits)
        commit = str(info.sha)
        if not COMMIT.fullmatch(commit):
            raise InvalidInput(f"The Hub names no commit of the repository {repository!r}; try again later, or upload its files.")
        names = (CONFIG_FILE, WEIGHTS_FILE)
        paths = [client.hf_hub_download(repository, name, revision=commit, local_dir=staging, etag_timeout=timeout_s) for name in names]
    except (HTTPError, InvalidURL, EntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise explain(error, "repository", repository, revision) from None
    return Path(paths[0]), Path(paths[1]), commit


def _check_sizes(repository: str, sizes: dict[str, int], limits: Limits) -> None:
    for name, limit in ((CONFIG_FILE, MAX_CONFIG_BYTES), (WEIGHTS_FILE, limits.upload_bytes)):
        if sizes[name] > limit:
            raise InvalidInput(f"The {name} of {repository!r} has {megabytes(sizes[name])} and the limit is {megabytes(limit)}.")


@contextmanager
def _opened(config: Path, weights: Path, lineage: Path | None, limits: Limits, label: str, file: str = "") -> Iterator[Found]:
    text = _read(config)
    fingerprint = fingerprint_in(_read(lineage)) if lineage else ""
    with _open_regular(weights, limits.upload_bytes) as handle:
        yield Found(text, handle, file or weights.name, fingerprint, label)


def _read(path: Path) -> bytes:
    with _open_regular(path, MAX_CONFIG_BYTES) as handle:
        return handle.read(MAX_CONFIG_BYTES + 1)


def _open_regular(path: Path, limit: int) -> BinaryIO:
    """Open a file that is no link, device or pipe, and not larger than a limit."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    name = printable(path.name)
    if path.is_symlink():
        raise InvalidInput(f"The file {name!r} is a link; give the file that it stands for.")
    try:
        handle = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        raise InvalidInput(f"There is no file {name!r}; check the name and give it again.") from None
    except OSError as error:
        raise InvalidInput(f"The file {name!r} cannot be opened ({error.strerror}); give a file that can be read.") from None
    state = os.fstat(handle.fileno())
    if not stat.S_ISREG(state.st_mode):
        handle.close()
        raise InvalidInput(f"{name!r} is no plain file; give the file itself.")
    if state.st_size > limit:
        handle.close()
        raise InvalidInput(f"The file {name!r} has {megabytes(state.st_size)} and the limit is {megabytes(limit)}; give a smaller adapter.")
    return handle
