"""Rows that say the same, or nearly the same.

Exact duplicates have the same turns but for case and spaces. Near duplicates share at least `NEAR` of their shingles (three
words in a row; Jaccard similarity), the system turn left out. Candidates come from MinHash with banding (Broder 1997;
Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3); each is then held to its real shingles, so no pair is told
that is not near. A pair of a similarity of 0.85 is found with a probability of 0.99.

Kept of a row are 8 bytes for each hash and 256 bytes of sketch; its text is fetched again where it has a candidate.
"""

import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any

from studio.datasets.forms import Conversation
from studio.datasets.passes import Fetch, Watch, slices

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

NEAR = 0.85
SHINGLE_WORDS = 3
BANDS, BAND_ROWS = 16, 8
FULL_BUCKET = 64  # rows that are remembered of one bucket; bounds the work where many rows follow one pattern
TRIES = 8  # candidates that are held to their text, the most alike first
CACHED_BYTES = 64 << 20
GAP = 16  # rows that are fetched in vain rather than fetching twice
# Thai to Khmer, kana, Han: written without spaces, so each character counts as a word.
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def normalised(text: str) -> str:
    """Without case, and with one space wherever there is any white space."""
    return " ".join(text.casefold().split())


def short_hash(text: str) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def exact_groups(count: int, fetch: Fetch, watch: Watch | None = None) -> list[list[int]]:
    """Rows with the same roles and the same normalised text, each group in order; the first is the one to keep.

    Raises:
        Cancelled: `watch` says so.
    """
    prints = Fingerprints(near=False)
    for _, rows in slices(count, fetch, watch or Watch(), "looking for duplicates"):
        prints.add(rows)
    return prints.exact_groups()


def near_groups(count: int, fetch: Fetch, watch: Watch | None = None) -> list[list[int]]:
    """Groups of rows that are near to the first of them, or the same; the first is the one to keep.

    Exact duplicates are in them too, so who drops all but the first of each group needs no other pass.

    Raises:
        Cancelled: `watch` says so.
    """
    watch = watch or Watch()
    prints = Fingerprints()
    for _, rows in slices(count, fetch, watch.part(0, 0.7), "looking for near duplicates"):
        prints.add(rows)
    return prints.near_groups(fetch, watch.part(0.7, 1))


class Fingerprints:
    """Hashes of all rows so far, in the order in which they were added. `near=False` keeps those of exact duplicates alone."""

    def __init__(self, near: bool = True) -> None:
        self.near = near
        self._exact: list[Hashes] = []
        self._words: list[Hashes] = []
        self._bands: list[Hashes] = []
        self._sketches: list[NDArray[np.uint8]] = []

    def add(self, rows: list[Conversation]) -> None:
        """Take the next rows."""
        import numpy as np

        if not rows:
            return
        turns = [[(turn["role"], normalised(turn["content"])) for turn in row] for row in rows]
        # Each turn with its length, so that no text can look like two turns.
        texts = ["".join(f"{role} {len(text)} {text}" for role, text in row) for row in turns]
        self._exact.append(np.array([short_hash(text) for text in texts], dtype=np.uint64))
        if self.near:
            words = [_words(row) for row in turns]
            self._words.append(np.array([short_hash(" ".join(row)) for row in words], dtype=np.uint64))
            sketches, bands = _sketch(*_shingles(words))
            self._sketches.append(sketches)
            self._bands.append(bands)

    def exact_groups(self) -> list[list[int]]:
        """As the function of this name."""
        return _same(self._exact)

    def near_groups(self, fetch: Fetch, watch: Watch) -> list[list[int]]:
        """As the function of this name; `fetch` gets the rows that were added.

        Raises:
            Cancelled: `watch` says so.
        """
        groups = {group[0]: group for group in _same(self._words)}
        copies = {row for group in groups.values() for row in group[1:]}
        index = self._index(fetch, watch)
        rows = [row for row in index.with_company() if row not in copies]
        index.expect(rows)
        for done, row in enumerate(rows):
            if done % 32 == 0:
                watch.at(done / len(rows), "comparing near duplicates")
            first = index.find(row)
            if first is None:
                index.add(row)
            else:
                groups[first] = groups.get(first, [first]) + groups.pop(row, [row])
        return sorted(sorted(group) for group in groups.values())

    def overlap(self, training: Iterable[int], held_out: list[int], fetch: Fetch, watch: Watch) -> list[tuple[int, int]]:
        """Pairs (held-out row, training row that is the same or near).

        Raises:
            Cancelled: `watch` says so.
        """
        import numpy as np

        training = list(training)
        if not training or not held_out:
            return []
        words = np.concatenate(self._words)
        wanted = set(words[held_out].tolist())
        twins: dict[int, int] = {}
        for row, key in zip(training, words[training].tolist(), strict=True):
            if key in wanted:
                twins.setdefault(key, row)
        index = self._index(fetch, watch)
        company = set(index.with_company())
        index.expect([row for row in held_out if row in company])
        index.add_where_wanted([row for row in training if row in company], [row for row in held_out if row in company])
        pairs = []
        for done, row in enumerate(held_out):
            if done % 32 == 0:
                watch.at(done / len(held_out), "comparing held-out rows with training rows")
            twin = twins.get(int(words[row]))
            if twin is None and row in company:
                twin = index.find(row)
            if twin is not None:
                pairs.append((row, twin))
        return pairs

    def _index(self, fetch: Fetch, watch: Watch) -> "_NearIndex":
        import numpy as np

        if not self._bands:
            return _NearIndex(np.zeros((0, BANDS), np.int64), np.zeros((0, BANDS * BAND_ROWS), np.uint8), fetch)
        bands = np.concatenate(self._bands)
        buckets = np.full(bands.shape, -1, np.int64)
        for band in range(BANDS):
            watch.at(0.0, "comparing near duplicates")
            _, inverse, sizes = np.unique(bands[:, band], return_inverse=True, return_counts=True)
            shared = sizes[inverse] > 1
            buckets[shared, band] = inverse[shared] + band * len(bands)
        return _NearIndex(buckets, np.concatenate(self._sketches), fetch)


class _NearIndex:
    """Rows by the buckets that they share with others.

    Args:
        buckets: (N, bands), -1 where no other row has the bucket. sketches: (N, bands · rows of a band), the lowest 8
        bits of each MinHash value. fetch: gives rows for the real comparison.
    """

    def __init__(self, buckets: "NDArray[np.int64]", sketches: "NDArray[np.uint8]", fetch: Fetch) -> None:
        self.buckets, self.sketches = buckets, sketches
        self.shingles = _ShingleCache(fetch)
        self.members: defaultdict[int, list[int]] = defaultdict(list)

    def with_company(self) -> list[int]:
        """Rows that share a bucket."""
        import numpy as np

        found: list[int] = np.flatnonzero(self.buckets.max(axis=1, initial=-1) >= 0).tolist()
        return found

    def expect(self, rows: list[int]) -> None:
        """Say which rows will be looked at, in their order, so that neighbours are fetched together."""
        self.shingles.expected = rows

    def add(self, row: int) -> None:
        """Let the row be found."""
        for bucket in self.buckets[row].tolist():
            if bucket >= 0 and len(self.members[bucket]) < FULL_BUCKET:
                self.members[bucket].append(row)

    def add_where_wanted(self, rows: list[int], by: list[int]) -> None:
        """Let rows be found that share a bucket with one of `by`."""
        import numpy as np

        wanted = np.unique(self.buckets[by])
        among = np.isin(self.buckets[rows], wanted[wanted >= 0]).sum(axis=1)
        for row, shared in zip(rows, among.tolist(), strict=True):
            if shared:
                self.add(row)

    def find(self, row: int) -> int | None:
        """The row that is near, of those that were added: the most alike by sketch, the first of equals."""
        import numpy as np

        found = {other for b in self.buckets[row].tolist() if b >= 0 for other in self.members.get(b, ())}
        if not found:
            return None
        others = np.array(sorted(found))
        alike = (self.sketches[others] == self.sketches[row]).mean(axis=1)
        # 0.1 is three standard deviations of the estimate at 0.85.
        likely = [int(others[i]) for i in np.argsort(-alike, kind="stable")[:TRIES] if alike[i] >= NEAR - 0.1]
        if not likely:
            return None
        own = self.shingles.of(row)
        return next((other for other in likely if _jaccard(own, self.shingles.of(other)) >= NEAR), None)


class _ShingleCache:
    """The shingles of rows that are compared, fetched where they are needed; bounded in bytes."""

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch
        self.expected: list[int] = []
        self.next = 0
        self.size_bytes = 0
        self.kept: OrderedDict[int, Hashes] = OrderedDict()

    def of(self, row: int) -> "Hashes":
        """Sorted hashes, each once."""
        if row not in self.kept:
            self._load(self._neighbours(row))
        self.kept.move_to_end(row)
        return self.kept[row]

    def _neighbours(self, row: int) -> list[int]:
        """The row, and those expected soon behind it."""
        while self.next < len(self.expected) and self.expected[self.next] < row:
            self.next += 1
        rows = [row]
        for other in self.expected[self.next : self.next + 32]:
            if other - rows[-1] > GAP or other < row:
                break
            if other > row:
                rows.append(other)
        return rows

    def _load(self, rows: list[int]) -> None:
        import numpy as np

        rows = [row for row in rows if row not in self.kept]
        fetched = self.fetch(rows[0], rows[-1] - rows[0] + 1)
        turns = [[(turn["role"], normalised(turn["content"])) for turn in fetched[row - rows[0]]] for row in rows]
        flat, ends = _shingles([_words(row) for row in turns])
        for row, start, end in zip(rows, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            self.kept[row] = np.unique(flat[start:end])
            self.size_bytes += self.kept[row].nbytes
        while self.size_bytes > CACHED_BYTES and len(self.kept) > len(rows) + 1:
            self.size_bytes -= self.kept.popitem(last=False)[1].nbytes


def _same(parts: "list[Hashes]") -> list[list[int]]:
    """Indices of equal hashes, groups of two or more, in order."""
    import numpy as np

    if not parts:
        return []
    hashes = np.concatenate(parts)
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order])) + 1
    return sorted(group.tolist() for group in np.split(order, starts) if len(group) > 1)


def _words(turns: list[tuple[str, str]]) -> list[str]:
    """The words of a row but for its system turn, at least as many as a shingle has."""
    text = " ".join(text for role, text in turns if role != "system")
    if not text.isascii():
        text = _UNSPACED.sub(r" \1 ", text)
    words = text.split()
    return words + [""] * (SHINGLE_WORDS - len(words))


def _shingles(rows: list[list[str]]) -> "tuple[Hashes, NDArray[np.uint64]]":
    """Hashes of all shingles of all rows, one row behind the other, and where each row begins and the last ends."""
    import numpy as np
    from rensa import RMinHash

    lengths = np.array([len(row) for row in rows])
    words = np.array(RMinHash.hash_token_sets([list(chain.from_iterable(rows))])[0], dtype=np.uint64)
    mixed = _mixed(words)
    pairs = _mixed(mixed[:-2] * np.uint64(3) + mixed[1:-1])
    triples = _mixed(pairs * np.uint64(3) + mixed[2:])
    ends = np.cumsum(lengths)
    whole = np.ones(len(words), dtype=bool)
    whole[np.concatenate([ends - 1, ends - 2])] = False  # what starts there runs into the next row
    starts = np.concatenate([[0], np.cumsum(lengths - (SHINGLE_WORDS - 1))]).astype(np.uint64)
    return triples[whole[:-2]], starts


def _mixed(hashes: "Hashes") -> "Hashes":
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input changes every bit of the output."""
    import numpy as np

    mixed = hashes ^ (hashes >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _sketch(shingles: "Hashes", starts: "NDArray[np.uint64]") -> "tuple[NDArray[np.uint8], Hashes]":
    """MinHash of each row: the lowest 8 bits of each value (N, bands · rows), and one hash for each band (N, bands)."""
    import numpy as np
    from rensa import RMinHash

    matrix: Any = RMinHash.digest_matrix_from_flat_token_hashes(shingles, starts, BANDS * BAND_ROWS, 0)
    values = np.array(matrix.to_rows(), dtype=np.uint32)
    by_band = values.reshape(len(values), BANDS, BAND_ROWS).astype(np.uint64)
    bands = np.zeros(by_band.shape[:2], np.uint64)
    for column in range(BAND_ROWS):
        bands = _mixed(bands * np.uint64(3) + by_band[:, :, column])
    return values.astype(np.uint8), bands


def _jaccard(left: "Hashes", right: "Hashes") -> float:
    import numpy as np

    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)
