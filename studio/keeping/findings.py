"""What a check can find, and what is offered for each: one table, which the page, the command line and the documentation go by."""

from dataclasses import dataclass

RELIST, ASIDE, DROP, REINDEX, SWEEP, JOIN, FETCH, NOTHING = "relist", "aside", "drop", "reindex", "sweep", "join", "fetch", ""

# What a mend does, as people read it; those that a machine cannot do say what to do.
MENDS = {
    RELIST: "put it back into the catalog",
    ASIDE: "move it into lost/",
    DROP: "drop it from the lists, and keep its record in lost/",
    REINDEX: "write the index anew",
    SWEEP: "remove it",
    JOIN: "join it to what is there",
    FETCH: "fetch it again: python -m studio base fetch",
    NOTHING: "look at it yourself",
}
DOABLE = (RELIST, ASIDE, DROP, REINDEX, SWEEP, JOIN)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: missing, changed, orphan, partial, dangling, database or index. what: a sentence. where: relative to the home, or a
            table. mend: of `MENDS`. subject: what sort of thing it is about, such as adapter. id, name: of it.
        size_bytes: of its files.
    """

    kind: str
    what: str
    where: str
    mend: str
    subject: str = ""
    id: str = ""
    name: str = ""
    size_bytes: int = 0

    @property
    def offer(self) -> str:
        """What is offered, as people read it."""
        return MENDS[self.mend] + (f" {self.name}" if self.mend == FETCH else "")

    @property
    def can_be_mended(self) -> bool:
        """Whether a machine can do it."""
        return self.mend in DOABLE
