"""Import an adapter that was made elsewhere. All of it is a stranger's until it was checked, and nothing of a refused one stays.

The order is the defence: names, then the configuration, then the weights' header, then whether it fits a base, and only then the
numbers, one tensor at a time, which are written anew in the studio's own form.
"""

import errno
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage import files
from storage.records import AdapterRecord, BaseRecord
from studio import __version__
from studio.adapters.catalog import AdapterCatalog, Added
from studio.adapters.fitting import BaseShape, BaseShapes, choose_base, misfit_of_pairs, misfit_of_prompt, read_pairs, read_prompt
from studio.adapters.header import read_header
from studio.adapters.normalising import Plan, plan_lora, plan_prefix
from studio.adapters.schema import LoraOptions, Options, base_label, read_options
from studio.adapters.sources import Found, Wanted, found_at
from studio.bases.catalog import BaseCatalog
from studio.datasets.reading.limits import Limits, megabytes
from studio.errors import InvalidInput, OutOfSpace
from studio.lora.files import CONFIG_FILE, WEIGHTS_FILE, lay_out, write_tensors


@dataclass(frozen=True)
class _Checked:
    """An adapter that fits a base, and what it was told by."""

    base: BaseRecord
    options: Options
    named: str
    plan: Plan


class Importer:
    """Brings adapters into a catalog.

    Args:
        catalog: where they go. bases: those that an adapter may stand on. limits: of an upload. hub_timeout_s: how long the Hub may
            take to answer. endpoint: another Hub than the usual one.
    """

    def __init__(
        self, catalog: AdapterCatalog, bases: BaseCatalog, limits: Limits, hub_timeout_s: float, endpoint: str | None = None
    ) -> None:
        self.catalog, self.bases, self.limits, self.shapes = catalog, bases, limits, BaseShapes(bases)
        self.hub_timeout_s, self.endpoint = hub_timeout_s, endpoint

    def add(self, wanted: Wanted, name: str, base: str = "", as_version_of: str = "") -> Added:
        """Import one adapter.

        Args:
            wanted: files, a repository, or a text that is a path or a repository (see `found_at`). name: its name here.
            base: name or id of the base that it is for; the only one that it fits where left out. as_version_of: an adapter of whose
            name it will be the next version; `name` does not matter then.

        Raises:
            NotFound. NameTaken. InvalidInput: what is there cannot be used; the message says why. IncompatibleAdapter: it fits no base, or
            not this one. OutOfSpace.
        """
        # In a thread that ends: one that stays and has computed would slow the chat's (see `Engine`).
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._add, wanted, name, base, as_version_of).result()

    def _add(self, wanted: Wanted, name: str, base: str, as_version_of: str) -> Added:
        name, head = self.catalog.place(name, as_version_of)
        self.catalog.has_room("another adapter", 0)
        try:
            with (
                files.staging_folder(self.catalog.folder) as staging,
                found_at(wanted, staging, self.limits, self.hub_timeout_s, self.endpoint) as found,
            ):
                checked = self._check(found, base or (head.base_id if head else ""))
                record = self.catalog.add(_draft(name, found, checked), partial(self._write, found, checked), head)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfSpace(f"The adapter could not be imported: {error.strerror}. Free some space and try again.") from None
            raise InvalidInput(
                f"The adapter could not be imported: {error.strerror or error}. Give files that the studio can read."
            ) from None
        return Added(record, self._notices(found, checked, record))

    def _check(self, found: Found, wanted: str) -> _Checked:
        options, named = read_options(found.config)
        entries = read_header(found.weights, found.file)
        make: Callable[[BaseShape], Plan]
        if isinstance(options, LoraOptions):
            pairs = read_pairs(entries, options)
            misfit, make = partial(misfit_of_pairs, pairs), partial(plan_lora, pairs, options)
        else:
            prompt = read_prompt(entries, options)
            misfit, make = partial(misfit_of_prompt, options), lambda _: plan_prefix(prompt, options)
        base = choose_base(self.bases, wanted, named, found.fingerprint, lambda record: misfit(self.shapes.of(record)))
        plan = make(self.shapes.of(base))
        if plan.size_bytes > self.limits.upload_bytes:
            raise InvalidInput(
                f"The adapter's layers have different ranks, and at one rank they take {megabytes(plan.size_bytes)}, where the limit is "
                f"{megabytes(self.limits.upload_bytes)}; train it with one rank."
            )
        return _Checked(base, options, named, plan)

    def _write(self, found: Found, checked: _Checked, folder: Path) -> None:
        dropout = checked.options.lora_dropout if isinstance(checked.options, LoraOptions) else 0.0
        config, tensors = lay_out(checked.plan.weights, checked.base.name, dropout)
        (folder / CONFIG_FILE).write_bytes(config)
        write_tensors(folder / WEIGHTS_FILE, tensors, partial(checked.plan.numbers, found.weights, found.file))

    def _notices(self, found: Found, checked: _Checked, record: AdapterRecord) -> list[str]:
        notices, base = [], checked.base.name
        if not found.fingerprint:
            said = f", and call it {checked.named!r}" if checked.named and base_label(checked.named) != base else ""
            notices.append(f"Its files do not prove which base it was trained on{said}; its layers fit {base!r}.")
        if checked.plan.scales:
            notices.append(
                f"Its layers have ranks or alphas of their own: each scale was folded into B, and all were filled with zeros to rank "
                f"{record.rank}, which computes the same."
            )
        same = next((other.name for other in self.catalog.records.with_content(record.sha256) if other.id != record.id), "")
        return [*notices, f"Its content is that of the adapter {same!r}, which was here before."] if same else notices


def _draft(name: str, found: Found, checked: _Checked) -> AdapterRecord:
    weights, options = checked.plan.weights, checked.options
    config: dict[str, object] = {"method": weights.kind}
    if isinstance(options, LoraOptions):
        config |= {"rank": weights.rank, "alpha": weights.alpha, "rslora": weights.rslora, "dropout": options.lora_dropout}
        config |= {"targets": ",".join(sorted({target.rpartition(".")[2] for target in weights.targets}))}
    else:
        config |= {"virtual_tokens": options.num_virtual_tokens}
    return AdapterRecord(
        id=files.new_id(),
        name=name,
        sha256="",
        base_id=checked.base.id,
        base_fingerprint=checked.base.fingerprint,
        dataset_id="",
        dataset_hash="",
        job_id="",
        rank=weights.rank,
        size_bytes=0,
        config=config,
        metrics={},
        code_version=__version__,
        seed=0,
        created_at=time.time(),
        kind=weights.kind,
        origin="import",
        source=found.label,
    )
