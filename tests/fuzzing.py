"""Valid files of every kind, and changes to them as accidents and mischief make them. All is drawn from a seed."""

import copy
import csv
import gzip
import io
import json
import random
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
RAW = "@RAW@"  # around JSON that json.dumps would not write

FORMS: dict[str, Rows] = {
    "messages": [
        {
            "messages": [
                {"role": "system", "content": f"Be brief, {n}."},
                {"role": "user", "content": f"Grüße {n}?"},
                {"role": "assistant", "content": f"Ja, {n} 🐦"},
                {"role": "user", "content": f"More {n}"},
                {"role": "assistant", "content": f"None {n}"},
            ][n % 2 :],
            "source": f"web {n}",
            "score": n / 8,
        }
        for n in range(4)
    ],
    "conversations": [
        {"id": n, "conversations": [{"from": "human", "value": f"Hello {n}"}, {"from": "gpt", "value": f"Good day {n}!"}]} for n in range(4)
    ],
    "prompt-completion": [{"prompt": f"Frage {n}", "completion": f"Antwört {n}", "kind": f"k{n % 2}"} for n in range(5)],
    "instruction": [
        {"instruction": f"Greet {n}", "input": f"in German {n}" if n % 2 else "", "output": f"Guten Tag {n}"} for n in range(4)
    ],
    "question-answer": [{"question": f"When {n}?", "context": f"At {n} o’clock.", "answer": f"At {n}", "split": "dev"} for n in range(4)],
    "summary": [{"document": f"A long text {n}, with commas; and more.", "summary": f"Short {n}"} for n in range(4)],
    "preference": [{"prompt": f"Hi {n}", "chosen": f"Good {n}", "rejected": f"Bad {n}"} for n in range(4)],
    "conversation": [{"conversation": [f"One {n}", f"Two {n}", f"Three {n}", f"Four {n}"], "topic": f"t{n}"} for n in range(4)],
    "text": [{"text": f"A passage {n} — with a dash.", "page": n} for n in range(4)],
}
FLAT = ("prompt-completion", "instruction", "question-answer", "summary", "preference", "text", "messages")
PROSE = {
    "txt": "Ein Absatz.\n\nNoch einer, länger.\nMit zwei Zeilen.\n\nDrei.\n",
    "md": "# A\n\ntext é\n\n```\n# b\n```\n## C\nmore\n\n- x\n",
}
# How often a kind is drawn; those that a process of their own reads are counted apart.
SHARES = {"jsonl": 30, "array": 12, "line": 6, "object": 8, "csv": 16, "tsv": 6, "txt": 4, "md": 4, "yaml": 3, "zip": 4, "gz": 7}
SLOW = ("parquet", "xlsx")
INNER = {"zip": "jsonl", "gz": "jsonl"}  # what an archive holds
ENDINGS = {"array": "json", "line": "json", "object": "json", "gz": "jsonl.gz"}

ODD: list[Any] = [
    *(None, True, False, 0, -1, 3.5, 1e308, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, "", "  ", "x", "\ud83d", "\x00", "\x1b[31m"),
    *(
        "\u2028",
        "=1+1",
        "\ufeff",
        "\u200b",
        "\u00a0",
        "é",
        "user",
        "Line\nline",
        'a "quoted", cell',
        "\\",
        "{}",
        "[]",
        "null",
        "[1]",
        "<|im_end|>",
    ),
    *([], {}, [[]], [None], [{}], {"a": {}}, ["x"], ["x", "y"], [1, 2], [True, "no"], {"text": ["a"]}, {"value": "v"}, {"role": "user"}),
    *({"role": "tool", "content": "x"}, [{"role": "text", "content": "t"}], [{"role": "text", "content": "t", "name": "u"}]),
    *(
        [{"type": "text", "text": "t"}],
        [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": "u"}],
        {"role": "user", "content": None},
    ),
    *([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 0}], {"content": "c", "tool_calls": [{"id": 1}]}),
    *('[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]', "[{'role': 'user'}]", "\n\nHuman: a\n\nAssistant: b"),
    *(
        f"{RAW}1e999{RAW}",
        f"{RAW}NaN{RAW}",
        f"{RAW}{'9' * 400}{RAW}",
        f"{RAW}{'[' * 1100}{']' * 1100}{RAW}",
        f'{RAW}{{"a": 1, "a": 2}}{RAW}',
    ),
]
KEYS = [
    "",
    "text",
    "content",
    "messages",
    "messages_",
    "conversations",
    "prompt",
    "Prompt",
    "completion",
    "answer",
    "question",
    "system",
    "input",
]
KEYS += [
    "chosen",
    "rejected",
    "context",
    "role",
    "from",
    "value",
    "weight",
    "name",
    "tool_calls",
    "a" * 300,
    "=cmd",
    "\u202e",
    "é",
    " prompt ",
]
ROLES = ["user", "assistant", "system", "developer", "tool", "text", "User ", "human", "gpt", "", None, 1]
TOKENS = [
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b";",
    b"\t",
    b"|",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"\xff",
    b"\xc3",
]
TOKENS += [
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"&a *a ",
    b"*b",
    b"- ",
    b": ",
    b"#",
    b"---\n",
    b"!!python/name:os.system ",
    b"%YAML 2.0\n",
    b"null",
    b"1e999",
]
TOKENS += [
    "\u2028".encode(),
    "\u0085".encode(),
    b"```\n",
    b"# ",
    b"sep=;\n",
    b'""',
    b'{"prompt": "p", "completion": "c"}\n',
    b"[" * 1100,
    b"\x1a",
]


@dataclass
class Upload:
    """One file.

    Args:
        texts: the text of the file, or of each member of an archive, by its name for people; nothing where the packed bytes
        themselves are broken. kind: a key of `SHARES`. form: that of the valid rows from which it was made.
    """

    name: str
    data: bytes
    texts: dict[str, bytes] = field(default_factory=dict)
    kind: str = ""
    form: str = ""


def as_json(value: object) -> str:
    """One line of JSON: raw pieces as they are, half characters as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    return re.sub(f'"{RAW}(.*?){RAW}"', lambda found: str(json.loads(f'"{found[1]}"')), text) if RAW in text else text


def as_table(rows: Rows, delimiter: str) -> str:
    """Rows under a header of all their columns; what is no text is written as JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            cell if isinstance(cell, str) else "" if cell is None else as_json(cell) for cell in (row.get(key) for key in columns)
        )
    return text.getvalue()


def as_text(kind: str, rows: Rows) -> bytes:
    """Rows as a text of a kind."""
    lines = [as_json(row) for row in rows] if kind not in ("csv", "tsv", "yaml") else []
    if kind == "jsonl":
        text = "".join(line + "\n" for line in lines)
    elif kind == "array":
        text = "[\n" + ",\n".join(lines) + "\n]\n"
    elif kind == "line":
        text = "[" + ", ".join(lines) + "]"
    elif kind == "object":
        text = '{"version": 1, "data": [\n' + ",\n".join(lines) + "\n]}\n"
    elif kind == "yaml":
        text = _as_yaml(rows)
    else:
        text = as_table(rows, "\t" if kind == "tsv" else ",")
    return text.encode("utf-8", "surrogatepass")


def _as_yaml(rows: Rows) -> str:
    import yaml

    plain: Any = [row["conversation"] if set(row) == {"conversation"} else row for row in rows]
    try:
        text = yaml.dump({"conversations": plain}, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=False)
    except UnicodeEncodeError:
        text = "conversations:\n" + "".join(f"- {as_json(row)}\n" for row in plain)
    return f"categories: [birds]\n{text}"


class Source:
    """Draws valid rows and files, and breaks them.

    Args:
        draw: where all chance comes from.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def broken(self, kind: str) -> Upload:
        """A file with one to three things wrong."""
        draw = self.draw
        if kind in PROSE:
            return Upload(f"case.{kind}", self.bytes_of(PROSE[kind].encode()), kind=kind)
        form = draw.choice(FLAT if kind in ("csv", "tsv") else tuple(FORMS))
        by_value = draw.random() < 0.5
        rows = self.values_of(FORMS[form]) if by_value else FORMS[form]
        text = as_text(INNER.get(kind, kind), rows)
        outer = kind in ("zip", "gz") and not by_value and draw.random() < 0.6
        if not by_value and not outer:
            text = self.bytes_of(text)
        name = f"case.{ENDINGS.get(kind, kind)}"
        if kind == "gz":
            packed = gzip.compress(text, 1)
            return Upload(name, self.bytes_of(packed) if outer else packed, {} if outer else {name: text}, kind, form)
        if kind == "zip":
            members = {"a.jsonl": text, "b.csv": as_text("csv", FORMS["summary"]), "notes.png": b"x"}
            packed = pack(members)
            texts = {f"{name}/{member}": content for member, content in members.items()}
            return Upload(name, self.bytes_of(packed) if outer else packed, {} if outer else texts, kind, form)
        return Upload(name, text, {name: text}, kind, form)

    def values_of(self, rows: Rows) -> Rows:
        """Rows of which one or two have another structure."""
        rows = copy.deepcopy(rows)
        for _ in range(self.draw.choice((1, 1, 2))):
            row = self.draw.randrange(len(rows))
            rows[row] = self._changed(rows[row])
        return rows

    def _changed(self, row: Any) -> Any:
        draw = self.draw
        parent, key = None, None
        value: Any = row
        while isinstance(value, dict | list) and value and (parent is None or draw.random() < 0.7):
            parent, key = value, draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
            value = parent[key]
        if parent is None or key is None:
            return row
        if isinstance(parent, dict):
            self._change_field(parent, key)
        else:
            self._change_item(parent, key)
        return row

    def _change_field(self, fields: dict[str, Any], key: str) -> None:
        draw = self.draw
        how = draw.randrange(6)
        if how == 0:
            del fields[key]
        elif how == 1:
            fields[draw.choice(KEYS)] = self._odd()
        elif how == 2:
            fields[draw.choice(KEYS)] = fields.pop(key)
        elif how == 3 and key in ("role", "from"):
            fields[key] = draw.choice(ROLES)
        elif how == 4 and isinstance(fields[key], str):
            fields[key] = self._text(fields[key])
        else:
            fields[key] = self._odd()

    def _change_item(self, items: list[Any], at: int) -> None:
        draw = self.draw
        how = draw.randrange(6)
        if how == 0:
            del items[at]
        elif how == 1:
            items.insert(at, copy.deepcopy(items[draw.randrange(len(items))]))
        elif how == 2:
            other = draw.randrange(len(items))
            items[at], items[other] = items[other], items[at]
        elif how == 3:
            items.insert(at, self._odd())
        elif how == 4 and isinstance(items[at], str):
            items[at] = self._text(items[at])
        else:
            items[at] = self._odd()

    def _odd(self) -> Any:
        return copy.deepcopy(self.draw.choice(ODD))

    def _text(self, text: str) -> str:
        odd = self.draw.choice([value for value in ODD if isinstance(value, str) and RAW not in value])
        at = self.draw.randrange(len(text) + 1)
        return text[:at] + odd + text[at:]

    def bytes_of(self, content: bytes) -> bytes:
        """The content with one to three changes to its bytes or its lines."""
        data = bytearray(content)
        for _ in range(self.draw.choice((1, 1, 1, 2, 3))):
            self._break(data)
        return bytes(data)

    def _break(self, data: bytearray) -> None:
        draw = self.draw
        at, many, how = draw.randrange(len(data) + 1), draw.randint(1, 8), draw.randrange(9)
        if how == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            del data[at : at + many]
        elif how == 2:
            data[at:at] = draw.randbytes(many)
        elif how == 3:
            data[at:at] = draw.choice(TOKENS)
        elif how == 4:
            data[at : at + many] = draw.choice(TOKENS)
        elif how == 5:
            data[at:at] = data[at : at + draw.randint(1, 80)]
        elif how == 6:
            del data[at:]
        else:
            lines = data.split(b"\n")
            a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
            if how == 7:
                lines[a], lines[b] = lines[b], lines[a]
            else:
                lines.insert(a, lines[b])
            data[:] = b"\n".join(lines)


def pack(members: dict[str, bytes]) -> bytes:
    """A zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def write(folder: Path, upload: Upload) -> Path:
    """The file, in the place of the one before."""
    path = folder / upload.name
    path.write_bytes(upload.data)
    return path
