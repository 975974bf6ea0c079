"""What an adapter acts on, as its tensors tell it, and the bases that have such layers.

Bases are those that the studio has. A name in an adapter's configuration is a text for people: nothing is looked up or fetched by it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.records import BaseRecord
from studio.adapters.header import Entry, shortened
from studio.adapters.schema import LoraOptions, PrefixOptions, base_label
from studio.bases.catalog import BaseCatalog
from studio.errors import BaseUnavailable, IncompatibleAdapter, InvalidInput
from studio.lora.files import CONFIG_FILE, LORA_A, LORA_B, MAGNITUDE, MAX_RANK, PROMPT, ROOT
from studio.lora.injection import block_of
from studio.names import listed

PARTS = {f".{LORA_A}.weight": LORA_A, f".{LORA_B}.weight": LORA_B, f".{MAGNITUDE}": MAGNITUDE, f".{MAGNITUDE}.weight": MAGNITUDE}
AGAIN = "save the adapter again with PEFT's save_pretrained"


@dataclass(frozen=True)
class Pair:
    """The tensors of one layer: A (r, d_in), B (d_out, r), and a DoRA's magnitude (d_out,)."""

    a: Entry
    b: Entry
    magnitude: Entry | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the layer."""
        return self.b.shape[0], self.a.shape[1]


class Targets:
    """Which linear layers PEFT would adapt by a configuration. Names are looked up, never searched for: there may be thousands."""

    def __init__(self, options: LoraOptions) -> None:
        targets, excluded, blocks = options.target_modules, options.exclude_modules, options.layers_to_transform
        self._targets = frozenset(targets) if isinstance(targets, list) else None
        self._excluded = frozenset(excluded) if isinstance(excluded, list) else frozenset()
        self._blocks = frozenset([blocks] if isinstance(blocks, int) else blocks or [])

    def has(self, name: str) -> bool:
        """Whether a layer of this name is one."""
        ends = name_ends(name)
        if self._targets is not None and self._targets.isdisjoint(ends):
            return False
        return self._excluded.isdisjoint(ends) and (not self._blocks or block_of(name) in self._blocks)


def name_ends(name: str) -> list[str]:
    """All that names a layer as PEFT compares names: "a.b.c", "b.c" and "c"."""
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


@dataclass(frozen=True)
class BaseShape:
    """What of a base an adapter must fit.

    `layers` has (d_out, d_in) of every linear layer, `turned` those whose files hold W transposed, `modules` the names of all modules.
    A prefix needs `blocks`, key-value `heads` and their common `width`; they are 0 where the base can have none. `longest` is the
    number of positions, 0 where it is not known.
    """

    layers: Mapping[str, tuple[int, int]]
    turned: frozenset[str]
    modules: tuple[str, ...]
    blocks: int
    heads: int
    width: int
    longest: int


def read_pairs(entries: Mapping[str, Entry], options: LoraOptions) -> dict[str, Pair]:
    """The tensors by the layer that each belongs to, in the order of names.

    Raises:
        InvalidInput: a tensor is none of a LoRA's, one is missing, or its shape is not what the configuration says.
    """
    wanted = (LORA_A, LORA_B, MAGNITUDE) if options.use_dora else (LORA_A, LORA_B)
    parts: dict[str, dict[str, Entry]] = {}
    for key, entry in entries.items():
        ending = next((ending for ending in PARTS if key.endswith(ending)), None)
        if not key.startswith(ROOT) or ending is None or PARTS[ending] not in wanted:
            raise InvalidInput(f"The adapter holds the tensor {key!r}, which is no {' or '.join(wanted)} of a linear layer; {AGAIN}.")
        layer = parts.setdefault(key.removeprefix(ROOT).removesuffix(ending), {})
        if PARTS[ending] in layer:
            raise InvalidInput(f"The adapter holds {key!r} under two names; {AGAIN}.")
        layer[PARTS[ending]] = entry
    for name, layer in parts.items():
        if missing := [part for part in wanted if part not in layer]:
            raise InvalidInput(f"The adapter lacks {', '.join(missing)} of the layer {name!r}; {AGAIN}.")
    pairs = {name: Pair(parts[name][LORA_A], parts[name][LORA_B], parts[name].get(MAGNITUDE)) for name in sorted(parts)}
    ranks, targets = {options.r, *(options.rank_pattern or {}).values()}, Targets(options)
    for name, pair in pairs.items():
        _check_pair(name, pair, ranks, targets)
    return pairs


def read_prompt(entries: Mapping[str, Entry], options: PrefixOptions) -> Entry:
    """The one tensor of a prefix.

    Raises:
        InvalidInput: it holds others, or its shape is not what the configuration says.
    """
    if set(entries) != {PROMPT}:
        other = next(key for key in sorted(entries) if key != PROMPT)
        raise InvalidInput(f"The adapter holds the tensor {other!r}, and a prefix is {PROMPT} alone; {AGAIN}.")
    shape = (options.num_virtual_tokens, 2 * options.num_layers * options.token_dim)
    if entries[PROMPT].shape != shape:
        raise InvalidInput(
            f"The adapter's {PROMPT} has the shape {entries[PROMPT].shape}, and its {CONFIG_FILE} describes {shape}; give files that "
            "belong together."
        )
    return entries[PROMPT]


def measure_base(path: Path) -> BaseShape:
    """The shapes of a base, from its configuration alone.

    Raises:
        BaseUnavailable: its files are gone or broken.
    """
    from studio.bases.loading import empty_model
    from studio.lora.errors import UnsuitableMethod
    from studio.lora.injection import linear_layers
    from studio.lora.linear import is_stored_transposed, shape
    from studio.lora.prefix import attention_modules

    model = empty_model(path)
    found, config = linear_layers(model), model.config.get_text_config()
    try:
        blocks = len(attention_modules(model))
    except UnsuitableMethod:
        blocks = 0
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return BaseShape(
        layers={name: shape(layer) for name, layer in found.items()},
        turned=frozenset(name for name, layer in found.items() if is_stored_transposed(layer)),
        modules=tuple(name for name, _ in model.named_modules() if name),
        blocks=blocks,
        heads=heads,
        width=heads * head_dim,
        longest=int(getattr(config, "max_position_embeddings", 0) or 0),
    )


class BaseShapes:
    """The shapes of bases, each measured once."""

    def __init__(self, bases: BaseCatalog) -> None:
        self._bases = bases
        self._known: dict[str, BaseShape] = {}

    def of(self, base: BaseRecord) -> BaseShape:
        """Raises as `measure_base` does."""
        if base.fingerprint not in self._known:
            self._known[base.fingerprint] = measure_base(self._bases.path(base))
        return self._known[base.fingerprint]


def misfit_of_pairs(pairs: Mapping[str, Pair], base: BaseShape) -> str:
    """Why a LoRA does not fit a base, to continue "it"; empty where it fits."""
    for name, pair in pairs.items():
        if name not in base.layers:
            return f"has weights for {shortened(name)!r}, which is no linear layer there that an adapter can act on"
        if pair.shape != base.layers[name]:
            return f"has weights for {shortened(name)!r} of {pair.shape}, and that layer is {base.layers[name]} there"
    return ""


def misfit_of_prompt(options: PrefixOptions, base: BaseShape) -> str:
    """Why a prefix does not fit a base, to continue "it"; empty where it fits."""
    got = (options.num_layers, options.num_attention_heads, options.token_dim)
    if not base.blocks:
        return "is a prefix, and this base has no attention of its own in each layer"
    if got != (base.blocks, base.heads, base.width):
        have = (base.blocks, base.heads, base.width)
        return f"is a prefix for {got} layers, heads and numbers of a key, and there are {have}"
    if base.longest and options.num_virtual_tokens >= base.longest:
        return f"is a prefix of {options.num_virtual_tokens:,} tokens, and {base.longest:,} are all that it can look back on"
    return ""


def choose_base(bases: BaseCatalog, wanted: str, named: str, fingerprint: str, misfit: Callable[[BaseRecord], str]) -> BaseRecord:
    """The base that an adapter is for: the one that is asked for, else the only one that fits.

    Args:
        wanted: name or id; empty for none. named: what the adapter's files call their base. fingerprint: of the base that the files say
            they were trained on, empty where they do not. misfit: why the adapter does not fit a base.

    Raises:
        NotFound. IncompatibleAdapter: it does not fit. InvalidInput: it fits several; the message names them.
    """
    if wanted:
        record = bases.get(wanted)
        _check_fingerprint(record, fingerprint, named)
        if why := misfit(record):
            raise IncompatibleAdapter(f"The adapter does not fit the base {record.name!r}: it {why}. {_advice(named)}")
        return record
    there = [record for record in bases.all() if bases.path(record).is_dir()]
    candidates = [record for record in there if fingerprint and record.fingerprint == fingerprint] or there
    reasons = {record.id: _reason(record, misfit) for record in candidates}
    fits = [record for record in candidates if not reasons[record.id]]
    if len(fits) > 1:
        fits = [record for record in fits if record.name == base_label(named)] or fits
    if len(fits) == 1:
        _check_fingerprint(fits[0], fingerprint, named)
        return fits[0]
    if fits:
        names = listed([record.name for record in fits])
        raise InvalidInput(f"The adapter fits several bases, {names}, and its files do not say which; say it with --base, or choose it.")
    if not there:
        raise IncompatibleAdapter(f"There is no base yet that the adapter could stand on. {_advice(named)}")
    raise IncompatibleAdapter(
        f"The adapter fits no base that is here; on {candidates[0].name!r} it {reasons[candidates[0].id]}. {_advice(named)}"
    )


def _reason(record: BaseRecord, misfit: Callable[[BaseRecord], str]) -> str:
    try:
        return misfit(record)
    except BaseUnavailable:
        return "cannot be tried, since that base's files are broken"


def _check_fingerprint(record: BaseRecord, fingerprint: str, named: str) -> None:
    if fingerprint and fingerprint != record.fingerprint:
        raise IncompatibleAdapter(
            f"The adapter was trained on another base than {record.name!r}: the fingerprint in its studio.json begins with "
            f"{fingerprint[:8]}, and this base's with {record.fingerprint[:8]}. {_advice(named)}"
        )


def _advice(named: str) -> str:
    said = f" Its files call that base {named!r}." if named else ""
    return f"Fetch the base that it was trained on first: python -m studio base fetch ID.{said}"


def _check_pair(name: str, pair: Pair, ranks: set[int], targets: Targets) -> None:
    a, b = pair.a, pair.b
    shown = shortened(name)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InvalidInput(f"The layer {shown!r} has A of {a.shape} and B of {b.shape}, which are no pair of one rank; {AGAIN}.")
    if not 1 <= pair.rank <= MAX_RANK:
        raise InvalidInput(f"The layer {shown!r} has the rank {pair.rank:,}, and 1 to {MAX_RANK} are served; make it smaller first.")
    if pair.rank not in ranks:
        raise InvalidInput(
            f"The layer {shown!r} has the rank {pair.rank}, and {CONFIG_FILE} says {_some_of(ranks)}; give files that belong together."
        )
    if pair.magnitude is not None and pair.magnitude.shape != b.shape[:1]:
        raise InvalidInput(f"The layer {shown!r} has a magnitude of {pair.magnitude.shape}, and {b.shape[:1]} fits its B; {AGAIN}.")
    if not targets.has(name):
        raise InvalidInput(
            f"The adapter holds weights for {shown!r}, which the targets in {CONFIG_FILE} leave out; give files that belong together."
        )


def _some_of(numbers: Iterable[int]) -> str:
    """The first of some numbers, in order."""
    inorder = sorted(numbers)
    return ", ".join(map(str, inorder[:5])) + (", …" if len(inorder) > 5 else "")
