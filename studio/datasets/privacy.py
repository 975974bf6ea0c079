"""Personal data and secrets in a text: where they stand, and the text without them.

Patterns are strict, because a report that cries wolf is not read: telephone numbers need a + or the separators of a
known manner of writing, cards their issuer's prefix and check digit (ISO/IEC 7812), IBANs their country's length and check
digits (ISO 13616), addresses of machines a public range. Names and places are not looked for.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

EMAIL, PHONE, CARD, IBAN, IP_ADDRESS, SECRET = "e-mail", "phone", "card", "IBAN", "IP address", "secret"
KINDS = (EMAIL, PHONE, CARD, IBAN, IP_ADDRESS, SECRET)
MIN_DIGITS = 6  # of an IPv4 address or a short telephone number; a text with less needs no look at its numbers


class Span(NamedTuple):
    """`text[start:end]` is of this kind."""

    kind: str
    start: int
    end: int


def find_personal(text: str) -> list[Span]:
    """What is found, in order, without overlap. Cheap, because most texts hold nothing."""
    found: list[Span] = []
    # Looking for one long word is cheaper than looking for every mark.
    if "PRIVATE KEY" in text or max(map(len, text.split()), default=0) >= _LONG_WORD:
        found += _find_secrets(text)
    if "@" in text:
        found += _find_emails(text)
    # Counting digits by translate takes a nanosecond a character, a pattern several.
    if len(text.encode("utf-8", "surrogatepass").translate(None, _NO_DIGITS)) >= MIN_DIGITS:
        windows = [(max(0, match.start() - _BEFORE), match.end() + _BEHIND) for match in _DENSE.finditer(text)]
        found += (span for find in _IN_NUMBERS for window in windows for span in find(text, *window))
    return sorted(_without_overlap(found, len(text)), key=lambda span: span.start) if found else []


def redact(text: str) -> str:
    """The text with `[e-mail]`, `[phone]`, `[card]`, `[IBAN]`, `[IP address]` or `[secret]` in place of what was found.

    Nothing is found in what comes out. Each turn of the loop takes characters away that are no placeholder, so it ends.
    """
    while spans := find_personal(text):
        starts = [0, *(span.end for span in spans)]
        kept = [text[start : span.start] + f"[{span.kind}]" for start, span in zip(starts, spans, strict=False)]
        text = "".join(kept) + text[starts[-1] :]
    return text


def _without_overlap(spans: list[Span], length: int) -> Iterator[Span]:
    """Of spans that overlap, the first in the list."""
    taken = bytearray(length)
    for span in spans:
        if not any(taken[span.start : span.end]):
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
            yield span


_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
# Where digits stand close together; what is found has some of them, and at most so much before and behind.
_DENSE = re.compile(r"[0-9](?:[^0-9]{0,3}[0-9]){5,}")
_BEFORE, _BEHIND = 12, 40
_LONG_WORD = 20  # no secret but a private key is shorter

# How it begins, and the whole of it; where there is a group, the group is the secret.
_SECRETS = [
    (mark, re.compile(pattern))
    for mark, pattern in (
        (
            "-----BEGIN ",  # with its end, or, cut off, with what looks like base64
            r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?:(?!-----)[\s\S])*-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s]*)",
        ),
        ("AKIA", r"AKIA(?<![A-Za-z0-9]AKIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),  # AWS
        ("ASIA", r"ASIA(?<![A-Za-z0-9]ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("ecret", r"[sS]ecret_?[aA]ccess_?[kK]ey[\"']?\s{0,3}[:=]\s{0,3}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])"),
        ("SECRET", r"SECRET_?ACCESS_?KEY[\"']?\s{0,3}[:=]\s{0,3}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])"),
        ("gh", r"gh[opsru]_(?<![A-Za-z0-9]gh._)[A-Za-z0-9]{30,255}"),  # GitHub
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{22,255}"),
        ("glpat-", r"glpat-[A-Za-z0-9_-]{20,255}"),  # GitLab
        (
            "sk-",
            r"sk-(?<![A-Za-z0-9_-]sk-)(?=[A-Za-z_-]*[0-9])(?=[A-Za-z0-9_-]*?[A-Za-z0-9]{16})[A-Za-z0-9_-]{20,255}",
        ),  # OpenAI, Anthropic
        ("k_live_", r"[rs]k_live_[A-Za-z0-9]{16,255}"),  # Stripe
        ("hf_", r"hf_(?<![A-Za-z0-9_]hf_)[A-Za-z0-9]{30,255}(?![A-Za-z0-9_])"),  # Hugging Face
        ("AIza", r"AIza(?<![A-Za-z0-9]AIza)[A-Za-z0-9_-]{35}"),  # Google
        ("xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,255}"),  # Slack
        ("eyJ", r"eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),  # a JSON Web Token
    )
]


def _find_secrets(text: str) -> Iterator[Span]:
    for mark, pattern in _SECRETS:
        if mark in text:
            for match in pattern.finditer(text):
                yield Span(SECRET, *match.span(match.lastindex or 0))


_EMAIL = re.compile(r"(?<![\w.+%-])[^\W_][\w.+%-]{0,63}@((?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24})(?![\w@(])", re.ASCII)
_NO_MAIL = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|pdf|js|ts|css|py|json|html?)$", re.I)  # logo@2x.png is a file


def _find_emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        is_git = match.group().startswith("git@") and text[match.end() : match.end() + 1] in (":", "/")
        if not is_git and not _NO_MAIL.search(match.group(1)):
            yield Span(EMAIL, match.start(), match.end())


_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 "
    "GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 MC27 MD24 ME22 MK19 MR27 MT31 "
    "MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 TN24 TR26 UA29 VA22 VG24 XK20"
)
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split()}
_IBAN = re.compile(r"[A-Z](?<![A-Za-z0-9].)[A-Z][0-9]{2}(?: ?[A-Z0-9]){11,30}")


def _find_ibans(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _IBAN.finditer(text, start, end):
        length = _IBAN_LENGTHS.get(match.group()[:2], 0)
        places = [i for i in range(*match.span()) if text[i] != " "][:length]
        if not length or len(places) < length:
            continue
        code = "".join(text[i] for i in places)
        ends = not text[places[-1] + 1 : places[-1] + 2].isalnum()
        if ends and int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1:
            yield Span(IBAN, match.start(), places[-1] + 1)


# In one piece, or in the groups that are printed on the card.
_CARD = re.compile(
    r"(?<![\w.,+-])(?:[0-9]{14,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})"
    r"(?![\w-]|[.,][0-9])"
)
_ISSUERS = re.compile(
    r"4(?:\d{15}|\d{18})|5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"  # Visa, Mastercard, Amex
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d|35(?:2[89]|[3-8]\d))\d{12,15}|3(?:0[0-5]|[68]\d)\d{11}"  # Discover, UnionPay, JCB; Diners
)


def _find_cards(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _CARD.finditer(text, start, end):
        digits = _digits(match.group())
        if _ISSUERS.fullmatch(digits) and _luhn(digits):
            yield Span(CARD, match.start(), match.end())


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812."""
    doubled = (divmod(2 * int(digit), 10) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(tens + ones for tens, ones in doubled)) % 10 == 0


_ADDRESS = re.compile(
    r"(?<![\w.:/-])(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-]|\.[0-9])|[23][0-9a-fA-F]{3}:(?:[0-9a-fA-F]{0,4}:){1,6}[0-9a-fA-F]{1,4}(?![\w:]))"
)
_VERSION = re.compile(r"(?:\bv|version|release|section|chapter|§)\.?\s*$", re.I)


def _find_addresses(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _ADDRESS.finditer(text, start, end):
        try:
            address = ipaddress.ip_address(match.group())
        except ValueError:
            continue
        # 8.8.8.8 is a public service, 1.2.3.4 a version or a section.
        is_version = _VERSION.search(text[max(0, match.start() - 12) : match.start()])
        if address.is_global and not is_version and any(len(part) > 1 for part in match.group().split(".")):
            yield Span(IP_ADDRESS, match.start(), match.end())


_INTERNATIONAL = re.compile(r"(?<![\w+.,-])(?<![0-9] )(?:\+ ?|00(?=[1-9][0-9]{0,2}[ /-]))[1-9](?:[ ./()-]{0,3}[0-9]){6,16}(?![\w])")


def _find_international(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _INTERNATIONAL.finditer(text, start, end):
        found = match.group()
        while found and not _is_possible(found):  # a number that stands behind it was taken for a part of it
            found = re.sub(r"[ ./()-]+[0-9]+$", "", found) if re.search(r"[ ./()-]+[0-9]+$", found) else ""
        if found:
            yield Span(PHONE, match.start(), match.start() + len(found))


def _is_possible(number: str) -> bool:
    """Whether country code and length exist, by the tables of the phonenumbers library."""
    import phonenumbers

    number = "+" + _digits(number.replace("(0)", "")).removeprefix("00")
    try:
        parsed = phonenumbers.parse(number, None)
    except phonenumbers.NumberParseException:
        return False
    reason = phonenumbers.is_possible_number_with_reason(parsed)
    return reason == phonenumbers.ValidationResult.IS_POSSIBLE and len(set(_digits(number))) > 2


_NATIONAL = re.compile(
    r"(?<![\w.,:/+-])(?<![0-9] )(?:"
    r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}-)[2-9][0-9]{2}[ -][0-9]{4}"  # North America
    r"|(?:1\.)?[2-9][0-9]{2}\.[2-9][0-9]{2}\.[0-9]{4}"
    r"|0[1-9](?:([ .-])[0-9]{2})(?:\1[0-9]{2}){3}"  # France and others, in pairs
    r"|(?:\(0[1-9][0-9]{0,4}\) ?|0[1-9][0-9]{0,4}[ /-]{1,3})[0-9]{3,8}(?:[ -][0-9]{2,8}){0,3}"  # a trunk prefix, then groups
    r")(?![\w/-]|[.,:][0-9])"
)
_SPOKEN = re.compile(r"[0-9](?<![\w.,].)[0-9 ()./-]{5,16}[0-9](?![\w]|[.,:][0-9])")
_ANNOUNCED = re.compile(
    r"\b(?:tel(?:ephone|efon)?|phone|mobile|mobil|cell|fax|whatsapp|call)(?: (?:me|us|number|no))?(?: (?:at|on|is))?[.:]{0,2} {0,2}$", re.I
)
_DATE = re.compile(r"(?:\d{1,2}[-./ ]\d{1,2}[-./ ]\d{2,4}|\d{4}[-./]\d{1,2}[-./]\d{1,2})(?!\d)")


def _find_national(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _NATIONAL.finditer(text, start, end):
        if _is_dialled(match.group(), 9) and "ISBN" not in text[max(0, match.start() - 9) : match.start()]:
            yield Span(PHONE, match.start(), match.end())
    for match in _SPOKEN.finditer(text, start, end):
        if _is_dialled(match.group(), 7) and _ANNOUNCED.search(text[max(0, match.start() - 30) : match.start()]):
            yield Span(PHONE, match.start(), match.end())


def _is_dialled(number: str, least: int) -> bool:
    """Whether these are as many digits as are dialled, and neither a date, a zip code nor a row of counted things."""
    digits, groups = _digits(number), re.findall(r"[0-9]+", number)
    counted = len(groups) > 2 and all(len(group) == 2 and group[0] == "0" for group in groups)
    pairs = len(groups) == 5 and all(len(group) == 2 for group in groups)
    is_date = not pairs and _DATE.match(number) is not None
    is_zip = [len(group) for group in groups] == [5, 4]
    return least <= len(digits) <= 13 and len(set(digits)) > 2 and not (counted or is_date or is_zip)


def _digits(text: str) -> str:
    return re.sub("[^0-9]", "", text)


_IN_NUMBERS = (_find_ibans, _find_cards, _find_addresses, _find_international, _find_national)
