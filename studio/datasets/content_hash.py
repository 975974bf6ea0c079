"""What a dataset holds, as one number: the same for the same rows, however they were cut into batches on their way."""

import hashlib
from typing import Any

STREAMS = ("role", "role sizes", "content", "content sizes", "turns", "extra", "extra sizes")


class ContentHash:
    """SHA-256 by columns, so that a batch is hashed from its memory without making its rows.

    Each column has a digest of its own: of the texts' UTF-8 bytes one after another, and of their sizes in bytes (and of the
    number of turns a row) as 32-bit integers. The hash is that of these digests in the order of `STREAMS`.
    """

    def __init__(self) -> None:
        self._streams = {name: hashlib.sha256() for name in STREAMS}

    def update(self, messages: Any, extra: Any) -> None:
        """Add rows.

        Args:
            messages: Arrow's ListArray of structs with role and content, without nulls. extra: StringArray of JSON, as long.
        """
        import numpy as np

        turns = messages.flatten()
        self._update_texts("role", turns.field("role"))
        self._update_texts("content", turns.field("content"))
        self._streams["turns"].update(np.diff(messages.offsets.to_numpy()).astype("<i4").tobytes())
        self._update_texts("extra", extra)

    def _update_texts(self, name: str, texts: Any) -> None:
        import numpy as np

        _, ends, data = texts.buffers()
        offsets = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1] if len(texts) else np.zeros(1, np.int32)
        if offsets[-1] > offsets[0]:
            self._streams[name].update(memoryview(data)[offsets[0] : offsets[-1]])
        self._streams[f"{name} sizes"].update(np.diff(offsets).astype("<i4").tobytes())

    def hexdigest(self) -> str:
        """The hash of the rows so far, 64 hexadecimal digits."""
        return hashlib.sha256(b"".join(stream.digest() for stream in self._streams.values())).hexdigest()
