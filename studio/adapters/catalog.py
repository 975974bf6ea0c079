"""Finished adapters. They appear when their files are complete, and leave with their files."""

import io
import zipfile
from pathlib import Path

from storage import files
from storage.errors import DuplicateName, RecordNotFound
from storage.records import AdapterRecord, BaseRecord
from storage.repositories import Adapters
from studio.errors import IncompatibleAdapter, InvalidInput, NameTaken, NotFound, OutOfSpace
from studio.lora.files import AdapterWeights, BadAdapter, read_revision
from studio.names import checked_name, file_stem, listed


class AdapterCatalog:
    """Adapters under one folder, each in a folder named by its id.

    Args:
        records: the table. folder: where adapters are kept. exports: where zips are written.
    """

    def __init__(self, records: Adapters, folder: Path, exports: Path) -> None:
        self.records, self.folder, self.exports = records, folder, exports
        folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[AdapterRecord]:
        """All adapters, newest first."""
        return self.records.all()

    def get(self, name_or_id: str) -> AdapterRecord:
        """One adapter.

        Raises:
            NotFound: with the names that there are.
        """
        try:
            return self.records.get(name_or_id)
        except RecordNotFound:
            names = listed([record.name for record in self.all()])
            raise NotFound(f"There is no adapter named {name_or_id!r}; there are {names}.") from None

    def path(self, record: AdapterRecord) -> Path:
        """The folder with PEFT's two files."""
        return self.folder / record.id

    def read(self, record: AdapterRecord) -> AdapterWeights:
        """The adapter's weights, of the very content that its record names.

        Raises:
            NotFound: its files are gone, broken, or others by now; the record stays, so that they can be restored from a backup.
        """
        try:
            return read_revision(self.path(record), record.sha256)
        except BadAdapter as error:
            how = "Restore them from a backup, or delete it and train it again."
            raise NotFound(f"The files of adapter {record.name!r} cannot be used: {error}. {how}") from None

    def rename(self, name_or_id: str, new_name: str) -> AdapterRecord:
        """Change an adapter's name; its files stay where they are.

        Raises:
            NotFound. NameTaken. InvalidInput: the new name is not usable.
        """
        record, name = self.get(name_or_id), checked_name("adapter", new_name)
        try:
            return self.records.rename(record.id, name)
        except DuplicateName:
            raise NameTaken(f"There is already an adapter named {name!r}; choose another name.") from None

    def remove(self, name_or_id: str) -> AdapterRecord:
        """Delete an adapter: first it is not listed any more, then its files go."""
        record = self.get(name_or_id)
        self.records.remove(record.id)
        files.remove_folder(self.path(record))
        return record

    def export(self, name_or_id: str, form: str = "peft", out: Path | None = None) -> Path:
        """Write a zip that PEFT loads once it is unpacked; returns its path.

        Args:
            form: "peft". out: a folder; the studio's exports where it is None.

        Raises:
            NotFound. InvalidInput: another form. OutOfSpace.
        """
        if form != "peft":
            raise InvalidInput(f"There is no export format {form!r} yet; choose peft.")
        record = self.get(name_or_id)
        target = (out or self.exports) / f"{file_stem('adapter', record.name, record.id)}.zip"
        try:
            files.write_file(target, _zip(self.path(record)))
        except FileNotFoundError:
            raise NotFound(f"The files of adapter {record.name!r} are gone; delete it and train it again.") from None
        except OSError as error:
            raise OutOfSpace(f"The zip could not be written to {target.parent}: {error.strerror or error}.") from None
        return target


def check_base(record: AdapterRecord, base: BaseRecord) -> None:
    """Make sure that the adapter was trained on this very base.

    Raises:
        IncompatibleAdapter: its fingerprint is another's.
    """
    if record.base_fingerprint != base.fingerprint:
        raise IncompatibleAdapter(
            f"The adapter {record.name!r} was trained on another base than the resident {base.name!r}; "
            "make its own base resident, or choose an adapter of this one."
        )


def _zip(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            # A fixed time, so that the same adapter gives the same zip.
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
