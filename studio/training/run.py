"""The training subprocess: `python -m studio.training.run JOB.json`.

Says everything as events on stdout, writes the adapter's folder complete or not at all, and ends when its parent
does: stdin is a pipe that the parent holds, and its end means that the parent is gone.
"""

import argparse
import contextlib
import errno
import hashlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from storage import files
from studio import __version__
from studio.errors import OutOfSpace, StudioError
from studio.training.config import TrainConfig
from studio.training.control import CANCEL, Control, Stopped
from studio.training.courtesy import ON_THE_CPU, STARTING, step_back
from studio.training.events import Emit, emit_to_stdout, logged
from studio.training.progress import CHECKPOINTS

LINEAGE_FILE = "studio.json"
# Options that no step depends on: a checkpoint stays of use where they change.
WATCHING = ("tracker", "sample_prompts", "sample_tokens", "checkpoint_every_s", "keep_checkpoints", "max_minutes")
TRACKED: dict[str, tuple[str, tuple[str, ...]]] = {
    "progress": ("train", ("loss", "grad_norm", "learning_rate", "tokens_per_s", "memory_mb")),
    "eval": ("eval", ("loss", "perplexity", "accuracy")),
}


@dataclass(frozen=True)
class JobSpec:
    """All that a training process needs, as the worker writes it into JOB.json.

    `job_folder` takes checkpoints, event files and what is wished of the `attempt`; `memory_limit_mb` 0 leaves the training what is free.
    """

    base_path: str
    base_name: str
    base_fingerprint: str
    dataset_path: str
    dataset_name: str
    dataset_hash: str
    adapter_folder: str
    adapter_name: str
    job_folder: str
    config: dict[str, Any]
    memory_limit_mb: int = 0
    attempt: int = 0


def train(spec: JobSpec, emit: Emit) -> None:
    """Train one adapter and publish its folder.

    Raises:
        StudioError: in words for the user. Stopped: somebody wished it. MemoryError, RuntimeError: from torch.
    """
    from studio.bases.loading import load_model, load_tokenizer
    from studio.bases.originals import original_weights
    from studio.datasets.rendering import render_all
    from studio.datasets.store import RowStore
    from studio.training import memory
    from studio.training.checkpoint import CheckpointFolder
    from studio.training.loop import Trainer
    from studio.training.sharding import is_spread
    from studio.training.team import join_team
    from studio.training.trackers import check_installed, open_tracker

    config = TrainConfig(**spec.config)
    check_installed(config.tracker)
    team = join_team(config.devices)
    if team.device.type == "cpu":  # on a GPU a training that waits for the processor would waste the GPU
        step_back(ON_THE_CPU)
    emit = emit if team.leads else _say_nothing
    emit("state", state="loading")
    tokenizer = load_tokenizer(Path(spec.base_path), spec.base_name)
    rendered = render_all(tokenizer, RowStore(Path(spec.dataset_path)).conversations(), config.max_length, config.over_length)
    for text in rendered.notices:
        emit("notice", text=text)
    limit = spec.memory_limit_mb or team.least(memory.free_mb())  # one for all: pieces must be cut alike
    memory.limit_memory(limit)
    config = _made_to_fit(spec, config, max((len(row.token_ids) for row in rendered.examples), default=0), limit, emit)
    tracker = open_tracker(config.tracker, Path(spec.job_folder), spec.adapter_name, spec.config, emit) if team.leads else None
    trainer = Trainer(
        load_model(Path(spec.base_path), config.quantization, spec.base_name, "cpu" if is_spread(config, team) else team.device),
        rendered.examples,
        config,
        emit if tracker is None else tracked(emit, tracker.log),
        tokenizer=tokenizer,
        original=original_weights(Path(spec.base_path)) if config.init == "loftq" else None,
        checkpoints=CheckpointFolder(Path(spec.job_folder) / CHECKPOINTS, identity(spec), config.keep_checkpoints),
        team=team,
        control=Control(Path(spec.job_folder), spec.attempt),
        base_name=spec.base_name,
    )
    emit("state", state="training")
    try:
        outcome = trainer.fit()
    except Stopped:
        if team.leads:  # one speaks for all
            raise
        return
    finally:
        if tracker is not None:
            tracker.close()
    if not team.leads:
        return
    emit("state", state="saving")
    metrics = {**asdict(outcome), "peak_rss_mb": peak_rss_mb(), "truncated": rendered.truncated, "dropped": rendered.dropped}
    save(spec, trainer, metrics)
    emit("done", **metrics)


def identity(spec: JobSpec) -> str:
    """SHA-256 of all that decides which adapter comes out: a checkpoint of another identity is not taken up."""
    config = {key: value for key, value in spec.config.items() if key not in WATCHING}
    parts = [spec.base_fingerprint, spec.dataset_hash, config]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def tracked(emit: Emit, log: Callable[[int, dict[str, float]], None]) -> Emit:
    """An emit that hands curves to a tracker as well."""

    def both(kind: str, **data: Any) -> None:
        emit(kind, **data)
        if kind in TRACKED:
            group, keys = TRACKED[kind]
            log(int(data["step"]), {f"{group}/{key}": float(data[key]) for key in keys})

    return both


def _made_to_fit(spec: JobSpec, config: TrainConfig, longest_row: int, limit_mb: int, emit: Emit) -> TrainConfig:
    """The configuration with a token budget that this machine's memory allows; says so where it had to be changed."""
    from studio.training.memory import fitting

    fits = fitting(Path(spec.base_path), config, longest_row, limit_mb)
    if fits != config:
        twice = ", with activations computed twice" if fits.activation_checkpointing == "on" else ""
        emit(
            "notice", text=f"With {limit_mb:,} MB of memory, token_budget is {fits.token_budget}{twice}; the rows of a step stay the same."
        )
    return fits


def _say_nothing(kind: str, **data: Any) -> None:
    """What the other processes of a team say: the first one speaks for all."""


def save(spec: JobSpec, trainer: Any, metrics: dict[str, Any]) -> None:
    """Write the adapter in PEFT's format with its lineage beside it.

    Raises:
        OutOfSpace: the disk is full; nothing of the adapter is there.
    """
    from studio.lora.files import encode_adapter

    lineage = {
        "name": spec.adapter_name,
        "base": spec.base_name,
        "base_fingerprint": spec.base_fingerprint,
        "dataset": spec.dataset_name,
        "dataset_hash": spec.dataset_hash,
        "config": spec.config,
        "code_version": __version__,
        "metrics": metrics,
    }
    contents = encode_adapter(trainer.weights(), spec.base_name, trainer.config.dropout)
    contents[LINEAGE_FILE] = orjson.dumps(lineage, option=orjson.OPT_INDENT_2) + b"\n"
    try:
        with files.publish_folder(Path(spec.adapter_folder)) as partial:
            for name, data in contents.items():
                (partial / name).write_bytes(data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OutOfSpace(
            f"The adapter could not be saved: {error.strerror}. Free some space on the studio's disk and retry the job."
        ) from None


def peak_rss_mb() -> int:
    """The largest resident memory of this process so far, in MiB."""
    with contextlib.suppress(OSError):
        # Linux hands what `getrusage` counts on from a parent to what it starts; this is of the process's own memory alone.
        own = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(own.partition("VmHWM:")[2].split()[0]) // 1024
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset // 2**20)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20)


def explain(error: BaseException, config: dict[str, Any]) -> tuple[str, str]:
    """The cause, one word, and the reason, one sentence, for whoever submitted the job."""
    if isinstance(error, StudioError):
        return error.cause, str(error)
    from studio.training.memory import is_out_of_memory

    if is_out_of_memory(error):
        budget, length = config.get("token_budget"), config.get("max_length")
        return (
            "memory",
            f"Memory ran out. Halve token_budget (now {budget}) or max_length (now {length}), or choose a smaller base; then retry.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk", "The disk is full. Free some space and retry the job."
    return "error", f"The training stopped on an error of the studio itself ({type(error).__name__}); the job's log has the details."


def die_with_parent() -> None:
    """End this process as soon as stdin ends, that is, when the parent is gone however it went.

    A worker starts it at the head of a process group; what it started itself ends with it then.
    """

    def wait() -> None:
        # os.read and not sys.stdin: a buffered reader's lock would abort the interpreter's own shutdown.
        while os.read(0, 1):
            continue
        with contextlib.suppress(AttributeError, OSError):
            if os.getpgrp() == os.getpid() == os.getsid(0):
                os.killpg(0, signal.SIGKILL)
        os._exit(3)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def run(path: Path, emit: Emit, work: Callable[[JobSpec, Emit], None] = train) -> int:
    """Do the job in a file; returns the exit status, 0 when the adapter is there or the training ended on a wish."""
    spec = JobSpec(**orjson.loads(path.read_bytes()))
    try:
        work(spec, emit)
    except Stopped as stopped:
        emit("cancelled" if stopped.wish == CANCEL else "paused", step=stopped.step)
    except Exception as error:  # noqa: BLE001 - the border of the process: one sentence and a log
        traceback.print_exc()
        cause, reason = explain(error, spec.config)
        emit("failed", cause=cause, reason=reason)
        return 1
    return 0


def main(work: Callable[[JobSpec, Emit], None] = train) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Train one adapter, as the studio's worker does.")
    parser.add_argument("job", type=Path, help="JSON file of a JobSpec")
    parser.add_argument("--with-log", action="store_true", help="write what happens to stderr as well, in lines for people")
    arguments = parser.parse_args()
    die_with_parent()
    step_back(STARTING)
    return run(arguments.job, logged(emit_to_stdout, _to_log) if arguments.with_log else emit_to_stdout, work)


def _to_log(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
