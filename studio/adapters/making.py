"""Adapters made of others, by a formula such as `wizard:0.7+pirate:0.3`."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from storage import files
from storage.records import AdapterRecord
from studio import __version__
from studio.adapters.catalog import AdapterCatalog, Added, check_version
from studio.adapters.exporting import untold
from studio.adapters.fitting import BaseShapes
from studio.adapters.merged import Tell
from studio.bases.catalog import BaseCatalog
from studio.datasets.reading.limits import megabytes
from studio.errors import IncompatibleAdapter, InvalidInput, NotFound, OutOfSpace
from studio.lora.arithmetic import Dare, Merge, Reduced, Term, add, merge, reduce_rank, ties
from studio.lora.files import MAX_RANK, AdapterWeights, encode_adapter
from studio.lora.injection import shortest_ends

MAX_PARTS = 8
MAX_WEIGHT = 10.0
METHODS = ("sum", "ties", "dare")


@dataclass(frozen=True)
class Recipe:
    """How adapters become one.

    Args:
        method: sum, ties or dare. rank: of the result; 0 is the sum of all ranks, of ties and dare the largest.
        density: the share of numbers that ties and dare keep. seed: what dare draws.
    """

    method: str = "sum"
    rank: int = 0
    density: float = 0.5
    seed: int = 0


class Maker:
    """Makes adapters out of those of a catalog.

    Args:
        catalog: where they are and go. bases: those that they stand on. shapes: of the bases.
    """

    def __init__(self, catalog: AdapterCatalog, bases: BaseCatalog, shapes: BaseShapes) -> None:
        self.catalog, self.bases, self.shapes = catalog, bases, shapes

    def add(self, formula: str, name: str, recipe: Recipe, as_version_of: str = "", tell: Tell = untold) -> Added:
        """Make one adapter.

        Args:
            formula: names or ids with weights, `wizard:0.7+pirate:-0.3`; a weight is 1 where left out. name: of the result.
            as_version_of: an adapter of whose name it will be the next version; `name` does not matter then. tell: is told how far it is,
            and may raise to stop it.

        Raises:
            NotFound. NameTaken. InvalidInput: the formula or the recipe cannot be; the message says what. IncompatibleAdapter: the adapters
            stand on different bases, or are no LoRAs. OutOfSpace. Whatever `tell` raises.
        """
        # In a thread that ends: one that stays and has computed would slow the chat's (see `Engine`).
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._add, formula, name, recipe, as_version_of, tell).result()

    def expected(self, formula: str, recipe: Recipe) -> str:
        """What `add` would make, in a sentence: its rank and about its size. Raises as `add` does of the formula and the recipe."""
        parts = self._parts(formula, recipe)
        ranks = [record.rank for record, _ in parts]
        total = sum(ranks) if recipe.method == "sum" else max(ranks)
        is_exact = recipe.method == "sum" and not 0 < recipe.rank < total
        rank = total if is_exact else recipe.rank or total
        check_total(rank if is_exact else 1)
        size = max(record.size_bytes / max(1, record.rank) for record, _ in parts) * rank
        how = "exactly" if is_exact else "the nearest of that rank"
        return f"It will have rank {rank:,} ({how}) and about {megabytes(round(size))}."

    def _parts(self, formula: str, recipe: Recipe) -> list[tuple[AdapterRecord, float]]:
        _check_recipe(recipe)
        parts = read_formula(formula, self.catalog.get)
        _check_parts([record for record, _ in parts])
        return parts

    def _add(self, formula: str, name: str, recipe: Recipe, as_version_of: str, tell: Tell) -> Added:
        name, head = self.catalog.place(name, as_version_of)
        self.catalog.has_room("another adapter", 0)
        parts = self._parts(formula, recipe)
        if head is not None:
            check_version(parts[0][0].name, parts[0][0].base_fingerprint, head)
        try:
            made, notice = compute([Term(self.catalog.read(record), weight) for record, weight in parts], recipe, tell)
        except LinAlgError:  # what came of it is not finite
            raise InvalidInput("The adapters' numbers are too large to be combined at a smaller rank; leave the largest one out.") from None
        base = self.bases.get(parts[0][0].base_id)
        others = [module for module in self.shapes.of(base).modules if module not in made.adapter.pairs]
        weights = replace(made.adapter, targets=tuple(shortest_ends(made.adapter.pairs, others)))
        draft = _draft(name, parts, recipe, made)
        try:
            tell(1.0, "writing it")
            record = self.catalog.add(draft, partial(_write, weights, base.name), head)
        except OSError as error:
            raise OutOfSpace(f"The adapter could not be written: {error.strerror or error}. Free some space and try again.") from None
        return Added(record, [notice])


def read_formula(text: str, get: Callable[[str], AdapterRecord]) -> list[tuple[AdapterRecord, float]]:
    """The adapters of a formula with their weights.

    Raises:
        NotFound. InvalidInput: a weight is out of bounds, or an adapter stands twice.
    """
    try:
        return [(get(text), 1.0)]  # a name may hold any sign
    except NotFound:
        if "+" not in text and ":" not in text:
            raise
    parts = [_part(term.strip(), get) for term in text.split("+")]
    if len(parts) > MAX_PARTS:
        raise InvalidInput(f"The formula holds {len(parts)} adapters; leave some out, {MAX_PARTS} are possible.")
    ids = [record.id for record, _ in parts]
    if twice := next((record.name for record, _ in parts if ids.count(record.id) > 1), ""):
        raise InvalidInput(f"The adapter {twice!r} stands in the formula twice; write it once, with the sum of its weights.")
    return parts


def check_total(total: int) -> None:
    """Make sure that an exact sum can be served.

    Raises:
        InvalidInput: the ranks add up to too much.
    """
    if total > MAX_RANK:
        raise InvalidInput(f"The ranks add up to {total:,}, and {MAX_RANK:,} is the most that is served; ask for a smaller --rank.")


def compute(terms: list[Term], recipe: Recipe, tell: Tell = untold) -> tuple[Reduced, str]:
    """The adapter, and a sentence on how exact it is.

    Raises:
        InvalidInput: the ranks add up to more than is served.
    """
    ranks = [term.adapter.rank for term in terms]
    if recipe.method != "sum":
        rank = recipe.rank or max(ranks)
        rule: Merge = Dare(recipe.density, recipe.seed) if recipe.method == "dare" else partial(ties, density=recipe.density)
        made = merge(terms, rule, rank, tell)
        return made, f"At rank {rank} it differs from the merge by {made.error:.2%} (of ‖ΔW‖, over all layers)."
    total = sum(ranks)
    if not recipe.rank:
        check_total(total)
    exact = add(terms)
    if not 0 < recipe.rank < total:
        return Reduced(exact, 0.0), f"It is the exact sum, at rank {total}."
    made = reduce_rank(exact, recipe.rank, tell)
    return made, f"At rank {recipe.rank} it differs from the exact sum by {made.error:.2%} (of ‖ΔW‖, over all layers)."


def _part(term: str, get: Callable[[str], AdapterRecord]) -> tuple[AdapterRecord, float]:
    try:
        return get(term), 1.0
    except NotFound:
        name, colon, number = term.rpartition(":")
        if not colon:
            raise
    try:
        weight = float(number)
    except ValueError:
        raise InvalidInput(f"The weight in {term!r} is no number; write it as in wizard:0.7.") from None
    if not (math.isfinite(weight) and 0 < abs(weight) <= MAX_WEIGHT):
        raise InvalidInput(f"The weight in {term!r} should be from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, and not 0.")
    return get(name.strip()), weight


def _check_recipe(recipe: Recipe) -> None:
    if recipe.method not in METHODS:
        raise InvalidInput(f"There is no method {recipe.method!r}; choose one of {', '.join(METHODS)}.")
    if not 0 <= recipe.rank <= MAX_RANK:
        raise InvalidInput(f"The rank {recipe.rank:,} cannot be; choose 1 to {MAX_RANK:,}, or 0 for the usual one.")
    if not 0 < recipe.density <= 1:
        raise InvalidInput(f"The density {recipe.density:g} cannot be; it is a share of numbers, more than 0 and at most 1.")


def _check_parts(records: list[AdapterRecord]) -> None:
    first = records[0]
    for record in records:
        if record.kind != "lora":
            why = "its lengths of rows do not add up" if record.kind == "dora" else "its keys and values do not add up"
            raise IncompatibleAdapter(f"The adapter {record.name!r} is a {record.kind}, and {why}; only LoRA adapters can be combined.")
        if record.base_fingerprint != first.base_fingerprint:
            raise IncompatibleAdapter(
                f"The adapters {first.name!r} and {record.name!r} stand on different bases; combine those of one base."
            )


def _write(weights: AdapterWeights, base: str, folder: Path) -> None:
    for file, data in encode_adapter(weights, base, 0.0).items():
        (folder / file).write_bytes(data)


def _draft(name: str, parts: list[tuple[AdapterRecord, float]], recipe: Recipe, made: Reduced) -> AdapterRecord:
    first, rank = parts[0][0], made.adapter.rank
    config: dict[str, object] = {"method": "lora", "rank": rank, "alpha": float(rank), "combined_by": recipe.method}
    if recipe.method != "sum":
        config |= {"density": recipe.density}
    config |= {"relative_error": round(made.error, 6)}
    formula = " + ".join(f"{weight:g} · {record.name}" for record, weight in parts).replace("+ -", "− ")
    return AdapterRecord(
        id=files.new_id(),
        name=name,
        sha256="",
        base_id=first.base_id,
        base_fingerprint=first.base_fingerprint,
        dataset_id="",
        dataset_hash="",
        job_id="",
        rank=rank,
        size_bytes=0,
        config=config,
        metrics={},
        code_version=__version__,
        seed=recipe.seed,
        created_at=time.time(),
        origin="arithmetic",
        source=formula + ("" if recipe.method == "sum" else f", merged by {recipe.method.upper()}"),
        parents=[{"id": record.id, "name": record.name, "sha256": record.sha256, "weight": weight} for record, weight in parts],
    )
