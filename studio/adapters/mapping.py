"""A map of how alike adapters are: the overlap of what each two of them write into, base by base."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from storage.records import AdapterRecord
from studio.adapters.catalog import AdapterCatalog
from studio.adapters.merged import Tell
from studio.datasets.reading.limits import megabytes
from studio.errors import InvalidInput

MOST = 40  # adapters in one map
MOST_BYTES = 4 * 2**30  # of all of them; about as much memory is taken
SAME, SOME = 0.5, 0.2  # overlaps from which two are said to point the same way, or partly so


@dataclass(frozen=True)
class Island:
    """Adapters of one base. `overlaps` has a row and a column for each, from 0 to 1."""

    base_id: str
    records: Sequence[AdapterRecord]
    overlaps: Sequence[Sequence[float]]

    @property
    def pairs(self) -> list[tuple[float, AdapterRecord, AdapterRecord]]:
        """(overlap, one, other) of all pairs, the closest first."""
        places = range(len(self.records))
        found = [(self.overlaps[i][j], self.records[i], self.records[j]) for i in places for j in places if i < j]
        return sorted(found, key=lambda pair: -pair[0])

    @property
    def reading(self) -> str:
        """The closest two, in a sentence."""
        overlap, one, other = self.pairs[0]
        names = f"{one.name} and {other.name}"
        if overlap >= SAME:
            return f"{names} point the same way: {overlap:.2f}."
        if overlap >= SOME:
            return f"{names} point partly the same way: {overlap:.2f}."
        return f"No two point the same way; the closest are {names}: {overlap:.2f}."


@dataclass(frozen=True)
class SimilarityMap:
    """`islands` of two adapters or more each; `left_out`: sentences about those that are in none."""

    islands: Sequence[Island]
    left_out: Sequence[str]


class Mapper:
    """Draws maps of a catalog's adapters.

    Args:
        catalog: where they are.
    """

    def __init__(self, catalog: AdapterCatalog) -> None:
        self.catalog = catalog

    def map(self, records: Sequence[AdapterRecord], tell: Tell) -> SimilarityMap:
        """Compare each with each of its base, up to forty.

        Raises:
            NotFound: files of one are gone. InvalidInput: too few, too many, or too large together. Whatever `tell` raises.
        """
        chosen = list({record.id: record for record in records}.values())
        if not 2 <= len(chosen) <= MOST:
            raise InvalidInput(f"A map is of 2 to {MOST} adapters, and these are {len(chosen)}; choose others.")
        if (size := sum(record.size_bytes for record in chosen)) > MOST_BYTES:
            raise InvalidInput(
                f"These adapters take {megabytes(size)} together, and a map reads {megabytes(MOST_BYTES)} at most; choose fewer."
            )
        with ThreadPoolExecutor(1) as thread:  # one that ends: see `Engine`
            return thread.submit(self._map, chosen, tell).result()

    def _map(self, records: Sequence[AdapterRecord], tell: Tell) -> SimilarityMap:
        left_out = [f"{record.name} is a prefix, which changes no weights." for record in records if record.kind == "prefix"]
        groups: dict[str, list[AdapterRecord]] = {}
        for record in records:
            if record.kind != "prefix":
                groups.setdefault(record.base_fingerprint, []).append(record)
        left_out += [f"{group[0].name} is the only one of its base here." for group in groups.values() if len(group) == 1]
        large, done, islands = [group for group in groups.values() if len(group) > 1], 0, list[Island]()
        total = sum(map(len, large))
        for group in large:
            islands.append(self._island(group, _part(tell, done / total, len(group) / total)))
            done += len(group)
        return SimilarityMap(islands, left_out)

    def _island(self, records: Sequence[AdapterRecord], tell: Tell) -> Island:
        from studio.lora.similarity import Directions, overlaps

        many = []
        for number, record in enumerate(records, 1):
            many.append(Directions(self.catalog.read(record)))
            tell(0.8 * number / len(records), f"reading {record.name}")
        return Island(records[0].base_id, records, overlaps(many, _part(tell, 0.8, 0.2)))


def _part(tell: Tell, start: float, share: float) -> Tell:
    """Tells of a part of the work that begins at `start` and is this share of all."""
    return lambda done, what: tell(start + share * done, what)
