"""Adapters go out: for PEFT, inside a whole model, and for llama.cpp and Ollama. What is written appears complete or not at all."""

import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storage import files
from storage.records import AdapterRecord, BaseRecord
from studio.adapters.card import CARD_FILE, export_card
from studio.adapters.catalog import AdapterCatalog, check_base
from studio.adapters.merged import Tell
from studio.bases.catalog import BaseCatalog
from studio.errors import BaseUnavailable, InvalidInput, OutOfSpace
from studio.names import file_stem
from studio.quota import Room, unlimited

if TYPE_CHECKING:
    from studio.bases.dense import DenseBase
    from studio.lora.files import AdapterWeights

FORMS = {
    "peft": "for PEFT: the adapter alone",
    "merged": "for transformers: the whole model with the adapter inside, bf16",
    "gguf": "for llama.cpp and Ollama: the adapter alone",
    "gguf-merged": "for llama.cpp and Ollama: the whole model with the adapter inside, f16",
}
WEIGHTS = ("trained", "original")
ADAPTER_GGUF, BASE_GGUF, MODEL_GGUF = "adapter.gguf", "base.gguf", "model.gguf"


def untold(_share: float, _what: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Wish:
    """How an adapter is exported.

    Args:
        form: one of `FORMS`. weights: what a merge stands on: "trained", the base as the training saw it, quantized and read again; or
            "original", as its files hold it. with_base: gguf writes the base beside the adapter, too.
    """

    form: str = "peft"
    weights: str = "trained"
    with_base: bool = False


class Exporter:
    """Writes adapters of a catalog.

    Args:
        catalog: where they are. bases: those that they stand on. folder: where files go that nobody named a folder for. has_room: is asked
            before a file is written there.
    """

    def __init__(self, catalog: AdapterCatalog, bases: BaseCatalog, folder: Path, has_room: Room = unlimited) -> None:
        self.catalog, self.bases, self.folder, self._has_room = catalog, bases, folder, has_room

    def write(self, name_or_id: str, wish: Wish | None = None, out: Path | None = None, tell: Tell = untold) -> Path:
        """Write an adapter; returns the path of a zip, or of a folder where it is not peft and `out` is named.

        Args:
            out: a folder to put it into; the studio's exports where it is None. tell: is told how far it is, and may raise to stop it.

        Raises:
            NotFound. InvalidInput: the form cannot hold such an adapter. IncompatibleAdapter. BaseUnavailable. OutOfSpace. Whatever
            `tell` raises; nothing is left of the export then.
        """
        wish = wish or Wish()
        if wish.form not in FORMS:
            raise InvalidInput(f"There is no export format {wish.form!r}; choose one of {', '.join(FORMS)}.")
        if wish.weights not in WEIGHTS:
            raise InvalidInput(f"There are no weights {wish.weights!r} to merge into; choose {' or '.join(WEIGHTS)}.")
        record = self.catalog.get(name_or_id)
        if out is None:
            self._has_room("another export", record.size_bytes)
        try:
            # In a thread that ends: one that stays and has computed would slow the chat's (see `Engine`).
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(self._write, record, wish, out, tell).result()
        except OSError as error:
            if isinstance(error, FileExistsError) and out is not None and (out / _stem(record, wish)).exists():
                raise InvalidInput(f"{_stem(record, wish)!r} is in {out} already; remove it, or name another folder.") from None
            raise OutOfSpace(f"The export could not be written: {error.strerror or error}. Free some space and try again.") from None

    def fill(self, record: AdapterRecord, wish: Wish, target: Path, tell: Tell) -> None:
        """Write an export's files into an empty folder. Raises as `write` does, and OSError."""
        base = self.bases.get(record.base_id)
        if wish.form == "peft":
            self.catalog.read(record)
            for path in sorted(self.catalog.path(record).iterdir()):
                shutil.copyfile(path, target / path.name)
        else:
            self._fill_from_base(record, base, wish, target, tell)
        (target / CARD_FILE).write_text(self._card(record, wish), encoding="utf-8")

    def card(self, name_or_id: str, wish: Wish) -> str:
        """The card that goes out with an export. Raises NotFound."""
        return self._card(self.catalog.get(name_or_id), wish)

    def _card(self, record: AdapterRecord, wish: Wish) -> str:
        return export_card(record, self.bases.get(record.base_id), wish.form, _weights_sentence(record, wish))

    def _write(self, record: AdapterRecord, wish: Wish, out: Path | None, tell: Tell) -> Path:
        folder = out or self.folder
        if wish.form != "peft" and out is not None:
            with files.publish_folder(folder / _stem(record, wish)) as partial:
                self.fill(record, wish, partial, tell)
            return folder / _stem(record, wish)
        target = folder / f"{_stem(record, wish)}.zip"
        with files.staging_folder(folder) as staging:
            self.fill(record, wish, staging, tell)
            with files.publish_file(target) as handle:
                _pack(staging, handle, zipfile.ZIP_DEFLATED if wish.form == "peft" else zipfile.ZIP_STORED, tell)
        return target

    def _fill_from_base(self, record: AdapterRecord, base: BaseRecord, wish: Wish, target: Path, tell: Tell) -> None:
        from studio.bases.dense import DenseBase

        check_base(record, base)
        _check_kind(record, wish.form)
        folder = self.bases.path(base)
        if not folder.is_dir():
            raise BaseUnavailable(f"The files of the base {base.name!r} are gone; fetch it again: python -m studio base fetch {base.name}.")
        adapter = self.catalog.read(record)
        dense = DenseBase(folder, base.name, _quantization(record) if wish.weights == "trained" else "")
        if missing := next((layer for layer in adapter.pairs if layer not in dense.layers.values()), ""):
            raise InvalidInput(
                f"The files of the base {base.name!r} hold no weight of the layer {missing!r} of its own; export it as peft."
            )
        if wish.form == "merged":
            from studio.adapters.merged import write_merged

            _check_room(dense, target, 2)
            write_merged(dense, folder, adapter, target, tell)
        else:
            self._fill_gguf(record, dense, folder, adapter, wish, target, tell)

    def _fill_gguf(
        self, record: AdapterRecord, dense: "DenseBase", folder: Path, adapter: "AdapterWeights", wish: Wish, target: Path, tell: Tell
    ) -> None:
        from studio.adapters import gguf_files
        from studio.adapters.gguf_tokens import vocabulary
        from studio.adapters.ollama import MODELFILE, modelfile
        from studio.bases.loading import load_tokenizer
        from studio.lora.files import AdapterWeights

        gguf_files.family_of(dense.config, dense.name)
        tokenizer = load_tokenizer(folder, dense.name)
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        if wish.form == "gguf-merged" or wish.with_base:
            _check_room(dense, target, 2)
            words = vocabulary(tokenizer, int(dense.config["vocab_size"]), dense.name)
        if wish.form == "gguf-merged":
            gguf_files.write_model(target / MODEL_GGUF, dense, adapter, words, record.name, tell)
            (target / MODELFILE).write_text(modelfile(MODEL_GGUF, template), encoding="utf-8")
            return
        gguf_files.write_adapter(target / ADAPTER_GGUF, adapter, dense.config, dense.name, record.name)
        if wish.with_base:
            nothing = AdapterWeights(1, 1.0, False, {})
            gguf_files.write_model(target / BASE_GGUF, dense, nothing, words, dense.name, tell)
        note = "" if wish.with_base else f"FROM names the base {' '.join(dense.name.split())} as a GGUF of your own; --with-base writes it."
        (target / MODELFILE).write_text(modelfile(BASE_GGUF, template, ADAPTER_GGUF, note), encoding="utf-8")


def _check_kind(record: AdapterRecord, form: str) -> None:
    if record.kind == "prefix":
        why = "keys and values beside the text, which are no part of a weight"
        raise InvalidInput(f"The adapter {record.name!r} is a prefix: {why}, so it cannot be exported as {form}; export it as peft.")
    if record.kind == "dora" and form == "gguf":
        why = "llama.cpp's adapters have no lengths of rows"
        raise InvalidInput(f"The adapter {record.name!r} is a DoRA, and {why}; export it as gguf-merged, or as peft.")


def _quantization(record: AdapterRecord) -> str:
    """The form in which the base was held for its training; empty where that is not known, as of imported ones."""
    return str(record.config.get("quantization", ""))


def _weights_sentence(record: AdapterRecord, wish: Wish) -> str:
    if "merged" not in wish.form:
        return ""
    form = _quantization(record)
    if wish.weights == "trained" and form in ("nf4", "fp4", "int8"):
        return f"those that it was trained on, the base as {form} holds it, written out in full"
    return "those of the base's files"


def _check_room(dense: "DenseBase", target: Path, bytes_each: int) -> None:
    need = bytes_each * sum(map(dense.size, dense.shapes))
    free = shutil.disk_usage(target).free
    if free < need:
        raise OutOfSpace(
            f"The export needs {need / 2**20:,.0f} MB on the disk, and {free / 2**20:,.0f} MB are free. Free some space and try again."
        )


def _stem(record: AdapterRecord, wish: Wish) -> str:
    stem = file_stem("adapter", record.name, record.id)
    return stem if wish.form == "peft" else f"{stem}-{wish.form}"


def _pack(folder: Path, handle: BinaryIO, method: int, tell: Tell) -> None:
    with zipfile.ZipFile(handle, "w", method) as archive:
        for path in sorted(folder.iterdir()):
            # A fixed time, so that the same adapter gives the same zip.
            about = zipfile.ZipInfo(path.name)
            about.compress_type = method
            with path.open("rb") as source, archive.open(about, "w", force_zip64=True) as sink:
                while block := source.read(1 << 22):
                    sink.write(block)
                    tell(1.0, f"packing {path.name}")
