"""Files of a dataset on the Hugging Face Hub, fetched as they are. No loading script is ever fetched or run."""

import errno
import re
import shutil
from pathlib import Path, PurePosixPath

from studio.datasets.reading import SUFFIXES, Limits
from studio.datasets.reading.limits import megabytes
from studio.errors import InvalidInput, NotFound, OutOfSpace, StudioError

PROSE = (".txt", ".md")  # beside files of rows these describe them
DESCRIPTIONS = ("readme", "license", "licence", "changelog", "contributing", "notice", "citation", "dataset_infos", "dataset_dict", "state")
TRAIN = re.compile(r"(^|[^a-z])train(ing)?([^a-z]|$)")
HELD_OUT = re.compile(r"(^|[^a-z])(tests?|valid|validation|val|dev|eval)([^a-z]|$)")


def fetch_from_hub(
    dataset_id: str,
    revision: str,
    folder: Path,
    limits: Limits,
    timeout_s: float,
    *,
    endpoint: str | None = None,
    notices: list[str] | None = None,
) -> tuple[list[Path], str]:
    """Fetch the files of a dataset that can be read here, all of one commit.

    Args:
        revision: a branch, tag or commit; empty means the main branch. folder: where the files go, in the folders they have there.
        endpoint: another Hub than the usual one. notices: a sentence is added where only some of the files are taken.

    Returns:
        The files, in the order of their names, and the commit's full hash.

    Raises:
        NotFound: no such dataset or revision, or it is private. OutOfSpace. InvalidInput: it is gated, holds nothing that can be
        read, is too large, or the Hub cannot be reached.
    """
    from httpx2 import HTTPError, InvalidURL  # what huggingface_hub 2 speaks HTTP with
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    client = HfApi(endpoint=endpoint)
    try:
        info = client.dataset_info(dataset_id, revision=revision or None, timeout=timeout_s, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        chosen = choose_files(dataset_id, list(sizes), [] if notices is None else notices)
        _check_size(dataset_id, [sizes[name] for name in chosen], limits)
        commit = str(info.sha)
        paths = [
            Path(client.hf_hub_download(dataset_id, name, repo_type="dataset", revision=commit, local_dir=folder, etag_timeout=timeout_s))
            for name in chosen
        ]
    except (HTTPError, InvalidURL, EntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise explain(error, "dataset", dataset_id, revision) from None
    _check_size(dataset_id, [path.stat().st_size for path in paths], limits)  # the Hub need not have said every size
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return paths, commit


def choose_files(dataset_id: str, names: list[str], notices: list[str]) -> list[str]:
    """The files that hold rows to train on: those of the train split where files are named by splits.

    Raises:
        InvalidInput: nothing can be read; the message lists some of what is there.
    """
    readable = sorted(name for name in names if _is_readable(name))
    rows = [name for name in readable if not name.lower().endswith(PROSE)] or readable
    if not rows:
        there = ", ".join(sorted(names)[:8]) or "nothing"
        raise InvalidInput(
            f"The dataset {dataset_id!r} holds no file that can be read here ({', '.join(SUFFIXES)}); it holds {there}. "
            "Loading scripts are never run: choose a dataset of plain files."
        )
    train = [name for name in rows if TRAIN.search(name.lower())]
    chosen = train or [name for name in rows if not HELD_OUT.search(name.lower())] or rows
    endings = sorted({_ending(name) for name in chosen}, key=lambda ending: (-sum(_ending(n) == ending for n in chosen), ending))
    chosen = [name for name in chosen if _ending(name) == endings[0]]  # several endings mean the same rows twice
    if len(chosen) < len(rows):
        left = [name for name in rows if name not in chosen]
        notices.append(f"Of the dataset {dataset_id!r} these files were taken: {_some(chosen)}; these were not: {_some(left)}.")
    return chosen


def _is_readable(name: str) -> bool:
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return not outside and not hidden and _ending(name) != "" and path.name.lower().split(".")[0] not in DESCRIPTIONS


def _ending(name: str) -> str:
    """The ending of a file that can be read, such as `.parquet` or `.jsonl.gz`; empty for others."""
    suffixes = PurePosixPath(name.lower()).suffixes
    ending = "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    return ending if ending.removesuffix(".gz") in SUFFIXES else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_size(dataset_id: str, sizes: list[int], limits: Limits) -> None:
    if len(sizes) > limits.files:
        raise InvalidInput(f"The dataset {dataset_id!r} has {len(sizes):,} files and the limit is {limits.files:,}; choose a smaller one.")
    if sum(sizes) > limits.upload_bytes:
        limit, got = megabytes(limits.upload_bytes), megabytes(sum(sizes))
        raise InvalidInput(f"The dataset {dataset_id!r} has {got} and the limit is {limit}; choose a smaller one, or upload a part of it.")


def explain(error: Exception, what: str, repository: str, revision: str) -> StudioError:
    """What the Hub, its client or the disk refused, as one sentence; `what` was asked for, such as "dataset"."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace(f"The {what} {repository!r} could not be written: {error.strerror}. Free some space and try again.")
    asked = f"The {what} {repository!r}"
    sentences: tuple[tuple[type[Exception], type[StudioError], str], ...] = (  # a gated one is a kind of missing one: it comes first
        (
            errors.GatedRepoError,
            InvalidInput,
            f"{asked} is gated; accept its terms on the Hub, log in with `hf auth login`, and try again.",
        ),
        (
            errors.RepositoryNotFoundError,
            NotFound,
            f"{asked} is not on the Hub, or it is private; check the id, or log in with `hf auth login`.",
        ),
        (errors.RevisionNotFoundError, NotFound, f"{asked} has no revision {revision!r}; leave it empty for the newest one."),
        (errors.HFValidationError, InvalidInput, f"{repository!r} is not the id of a {what}; write it as owner/name."),
        (
            errors.OfflineModeIsEnabled,
            InvalidInput,
            f"The Hub is switched off here (HF_HUB_OFFLINE); switch it on, or upload the {what}'s files.",
        ),
    )
    for kind, refusal, sentence in sentences:
        if isinstance(error, kind):
            return refusal(sentence)
    named = error.strerror if isinstance(error, OSError) and error.filename else None  # not the path, which is this machine's
    why = (named or str(error)).split("\n")[0].split(". ")[0][:160] or type(error).__name__
    return InvalidInput(f"The Hub gave no {what} {repository!r} ({why}). Check the network, or upload its files.")
