"""What a report tells in sentences: from what was counted to what it means and what to do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from studio.datasets.languages import language_name
from studio.datasets.privacy import IP_ADDRESS, KINDS, SECRET

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Level = Literal["good", "notice", "warning", "error"]
Action = Literal["", "deduplicate", "near-deduplicate", "redact", "drop-overlap", "drop-untrained"]
LEVELS: tuple[Level, ...] = ("error", "warning", "notice", "good")
EXAMPLES = 20
FEW_ROWS = 20
MANY = 0.05  # a share of rows from which on a notice becomes a warning
MAIN_LANGUAGE = 0.05
SAME_ANSWER = 0.2
LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 131072)
KEPT, CUT, LEFT_OUT, BEHIND, UNTRAINED, HOLLOW, NOT_RENDERED = range(7)


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know.

    `said` is what, how many and of how many; `advice` what to do, empty where nothing is to be done. `rows` are at most 20
    examples, counted from 0. `action` is what the page may offer as a button.
    """

    kind: str
    level: Level
    said: str
    advice: str
    rows: list[int]
    action: Action = ""


@dataclass
class Facts:
    """What was counted. Arrays have one place for each row.

    `lengths` in tokens, before anything is cut; `trained` tokens in the loss of what is left; `state` is KEPT, CUT, LEFT_OUT
    (over max_length), BEHIND (left out because the cut takes all that is trained), UNTRAINED (kept in vain), HOLLOW (nothing
    trained and over max_length, so left out either way), NOT_RENDERED.
    `longest_context` is the largest max_length that may be advised. `personal` are the rows with each kind.
    """

    max_length: int
    longest_context: int
    lengths: "NDArray[np.int64]"
    trained: "NDArray[np.int64]"
    state: "NDArray[np.uint8]"
    refusal: str = ""
    exact: list[list[int]] = field(default_factory=list)
    near: list[list[int]] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)
    overlap: list[tuple[int, int]] = field(default_factory=list)
    personal: dict[str, list[int]] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)
    by_language: dict[str, list[int]] = field(default_factory=dict)
    answers: int = 0
    same_answer: str = ""
    same_answer_rows: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Rows of the dataset."""
        return len(self.state)

    def rows_in(self, *states: int) -> list[int]:
        """The rows in one of these states, in order."""
        import numpy as np

        rows: list[int] = np.flatnonzero(np.isin(self.state, states)).tolist()
        return rows


def all_findings(facts: Facts) -> list[Finding]:
    """Everything there is to say, the worst first."""
    found = [finding for tell in _TELLERS for finding in tell(facts)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def repeated(groups: list[list[int]]) -> list[int]:
    """All rows but the first of each group, in order."""
    return sorted(row for group in groups for row in group[1:])


def advised_length(lengths: "NDArray[np.int64]", longest_context: int) -> int:
    """The smallest usual max_length that under 1 % of the rows exceed, or the longest that there is."""
    usual = [length for length in LENGTHS if length <= longest_context]
    return next((length for length in usual if (lengths > length).mean() < 0.01), max([*usual, longest_context][-1:]))


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{share * 100:.0f} %"


def _of(part: int, whole: int, one: str, many: str, noun: str = "rows") -> str:
    """ "3 of 20 rows are …": the verb follows the number."""
    return f"{part:,} of {whole:,} {noun} {one if part == 1 else many}"


def _tell_broken(facts: Facts) -> list[Finding]:
    rows = facts.rows_in(NOT_RENDERED)
    found = []
    if rows:
        said = f"{_of(len(rows), facts.count, 'cannot', 'cannot')} be written with this base's chat template: {facts.refusal}"
        found.append(Finding("not rendered", "error", said, "Mend or delete these rows, or choose another base.", rows[:EXAMPLES]))
    if facts.count and not facts.rows_in(KEPT, CUT, UNTRAINED):
        found.append(Finding("no rows left", "error", "No row is left to train on.", "Raise max_length or add examples.", []))
    if not facts.count:
        found.append(Finding("no rows left", "error", "The dataset has no rows.", "Add examples.", []))
    return found


def _tell_length(facts: Facts) -> list[Finding]:
    over = facts.lengths > facts.max_length
    if not over.any():
        return (
            [Finding("truncated", "good", f"All {facts.count:,} rows fit max_length {facts.max_length:,}.", "", [])] if facts.count else []
        )
    found = []
    level: Level = "warning" if int(over.sum()) >= MANY * facts.count else "notice"
    longer = f"longer than max_length {facts.max_length:,} and"
    cut, left_out, behind = facts.rows_in(CUT), facts.rows_in(LEFT_OUT), facts.rows_in(BEHIND)
    if cut:
        lost = float((facts.lengths[cut] - facts.max_length).sum() / facts.lengths[cut].sum())
        loses = f"loses {_percent(lost)} of its tokens" if len(cut) == 1 else f"lose {_percent(lost)} of their tokens"
        said = f"{_of(len(cut), facts.count, 'is', 'are')} {longer} {loses}."
        found.append(Finding("truncated", level, said, _raise_it(facts), cut[:EXAMPLES]))
    if left_out:
        said = f"{_of(len(left_out), facts.count, 'is', 'are')} {longer} {'is' if len(left_out) == 1 else 'are'} left out."
        found.append(Finding("left out", level, said, _raise_it(facts), left_out[:EXAMPLES]))
    if behind:
        theirs = _of(len(behind), facts.count, "has its", "have their")
        said = f"{theirs} whole answer behind max_length {facts.max_length:,} and {'is' if len(behind) == 1 else 'are'} left out."
        found.append(Finding("answer behind max_length", "warning", said, _raise_it(facts), behind[:EXAMPLES]))
    return found


def _raise_it(facts: Facts) -> str:
    if facts.longest_context <= facts.max_length:
        return f"Shorten or split these rows; the base takes at most {facts.longest_context:,} tokens."
    length = advised_length(facts.lengths, facts.longest_context)
    if length <= facts.max_length:  # under 1 % are cut as it is
        length = next((usual for usual in LENGTHS if usual >= facts.lengths.max()), facts.longest_context)
    length = min(length, facts.longest_context)
    left = int((facts.lengths > length).sum())
    return f"Raise max_length to {length:,}, which {f'would cut {left:,}' if left else 'all rows fit'}."


def _tell_trained(facts: Facts) -> list[Finding]:
    found = []
    rows = facts.rows_in(UNTRAINED, HOLLOW)
    if rows:
        theirs = _of(len(rows), facts.count, "has", "have")
        said = f"{theirs} no token that is trained, so nothing is learned from {'it' if len(rows) == 1 else 'them'}."
        found.append(
            Finding("nothing trained", "warning", said, "Drop these rows, or give them an answer.", rows[:EXAMPLES], "drop-untrained")
        )
    seen = int(facts.lengths.clip(max=facts.max_length)[(facts.state == KEPT) | (facts.state == CUT)].sum())
    share = float(facts.trained.sum() / seen) if seen else 1.0
    if share < 0.05:
        said = f"Only {share * 100:.1f} % of the tokens are trained; the rest are prompts and marks of the template."
        advice = "Shorten the prompts and system turns, or put more of the text into the answers."
        found.append(Finding("trained share", "warning" if share < 0.02 else "notice", said, advice, []))
    return found


def _tell_size(facts: Facts) -> list[Finding]:
    found = []
    if 0 < facts.count < FEW_ROWS:
        said = f"There {'is' if facts.count == 1 else 'are'} only {facts.count} row{'s' * (facts.count != 1)}."
        advice = "Add examples: a manner of speaking takes about 50, a task some hundreds."
        found.append(Finding("few rows", "warning", said, advice, []))
    sizes = facts.lengths.clip(max=facts.max_length)
    longest = max(facts.count // 100, 1)
    tail = sizes.argsort(kind="stable")[::-1][:longest]
    share = float(sizes[tail].sum() / sizes.sum()) if sizes.sum() else 0.0
    if facts.count >= 100 and share > 0.15:
        said = f"The longest 1 % of the rows hold {_percent(share)} of the tokens."
        advice = "Split these rows, or lower max_length, so that they do not outweigh the others."
        found.append(Finding("long tail", "notice", said, advice, tail.tolist()[:EXAMPLES]))
    return found


def _tell_answers(facts: Facts) -> list[Finding]:
    same = len(facts.same_answer_rows)
    if facts.answers < 10 or same <= SAME_ANSWER * facts.answers:
        return []
    quoted = facts.same_answer if len(facts.same_answer) <= 60 else facts.same_answer[:59] + "…"
    said = f"{_of(same, facts.answers, 'is', 'are', 'answers')} the same: “{quoted}”."
    advice = "Add other answers or remove some of these rows, unless this is one class of a few; otherwise the adapter says it everywhere."
    return [Finding("same answer", "notice", said, advice, sorted(set(facts.same_answer_rows))[:EXAMPLES])]


def _tell_duplicates(facts: Facts) -> list[Finding]:
    exact, near = repeated(facts.exact), repeated(facts.near)
    found = []
    if exact:
        level: Level = "warning" if len(exact) >= MANY * facts.count else "notice"
        said = f"{_of(len(exact), facts.count, 'repeats', 'repeat')} another row word for word."
        found.append(
            Finding("duplicates", level, said, "Deduplicate the dataset; the first of each stays.", exact[:EXAMPLES], "deduplicate")
        )
    alone = sorted(set(near) - set(exact))
    number = len(near) - len(exact)
    if number > 0:
        said = f"{_of(number, facts.count, 'is', 'are')} nearly the same as another row."
        advice = "Look at some, and near-deduplicate the dataset if they add nothing; the first of each stays."
        found.append(Finding("near duplicates", "notice", said, advice, alone[:EXAMPLES], "near-deduplicate"))
    if not found and facts.count > 1:
        found.append(Finding("duplicates", "good", f"None of {facts.count:,} rows repeats another.", "", []))
    return found


def _tell_held_out(facts: Facts) -> list[Finding]:
    if not facts.held_out:
        said = "No row is held out, so nothing will show whether the adapter learns or only remembers."
        advice = "Set held_out to 0.1." if facts.count > 1 else "Add examples and set held_out to 0.1."
        return [Finding("no held-out rows", "notice", said, advice, [])] if facts.count else []
    if not facts.overlap:
        said = f"None of {len(facts.held_out):,} held-out rows is in the training rows too."
        return [Finding("overlap", "good", said, "", [])]
    rows = [held for held, _ in facts.overlap]
    said = _of(len(rows), len(facts.held_out), "is", "are", "held-out rows")
    said += " in the training rows too, word for word or nearly, which flatters the evaluation."
    advice = "Drop the overlap, or near-deduplicate the dataset."
    return [Finding("overlap", "warning", said, advice, rows[:EXAMPLES], "drop-overlap")]


def _tell_personal(facts: Facts) -> list[Finding]:
    found = []
    secret, addresses = facts.personal.get(SECRET, []), facts.personal.get(IP_ADDRESS, [])
    persons = {kind: facts.personal[kind] for kind in KINDS if kind in facts.personal and kind not in (SECRET, IP_ADDRESS)}
    if secret:
        said = f"{_of(len(secret), facts.count, 'holds', 'hold')} a key, a token or another secret, which an adapter can repeat to anybody."
        found.append(Finding("secrets", "warning", said, "Redact them, and revoke those that are real.", secret[:EXAMPLES], "redact"))
    if persons:
        rows = sorted({row for some in persons.values() for row in some})
        kinds = ", ".join(f"{kind} in {len(some):,}" for kind, some in persons.items())
        said = f"{_of(len(rows), facts.count, 'holds', 'hold')} what looks like personal data ({kinds})."
        advice = "Look at some, and redact them unless they are invented or meant to be learned."
        found.append(Finding("personal data", "warning", said, advice, rows[:EXAMPLES], "redact"))
    if addresses:
        said = f"{_of(len(addresses), facts.count, 'holds', 'hold')} a public IP address."
        found.append(Finding("IP addresses", "notice", said, "Redact them if they are somebody's.", addresses[:EXAMPLES], "redact"))
    if not found and facts.count:
        said = f"No e-mail address, telephone number, card, IBAN or secret was found in {facts.count:,} rows."
        found.append(Finding("personal data", "good", said, "", []))
    return found


def _tell_languages(facts: Facts) -> list[Finding]:
    main = [(language, share) for language, share in facts.languages.items() if share >= MAIN_LANGUAGE]
    if len(main) < 2:
        return []
    said = (
        "The rows are in several languages: " + ", ".join(f"{language_name(language)} {_percent(share)}" for language, share in main) + "."
    )
    advice = "Leave it so if the adapter shall speak all of them; otherwise keep one, or split the dataset."
    others = sorted(row for language, _ in main[1:] for row in facts.by_language[language])
    return [Finding("languages", "notice", said, advice, others[:EXAMPLES])]


_TELLERS: tuple[Callable[[Facts], list[Finding]], ...] = (
    _tell_broken,
    _tell_length,
    _tell_trained,
    _tell_size,
    _tell_answers,
    _tell_duplicates,
    _tell_held_out,
    _tell_personal,
    _tell_languages,
)
