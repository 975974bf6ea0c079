"""Rows for the training benchmark: functions of Python's standard library and what their docstrings say of them."""

import importlib
import inspect
import random

MODULES = (
    "argparse", "ast", "asyncio", "base64", "bisect", "calendar", "cmd", "codecs", "collections", "configparser", "contextlib", "copy",
    "csv", "datetime", "decimal", "difflib", "dis", "doctest", "email.message", "email.utils", "enum", "fractions", "ftplib", "functools",
    "glob", "gzip", "heapq", "html.parser", "http.client", "imaplib", "inspect", "ipaddress", "json", "logging", "mailbox", "mimetypes",
    "multiprocessing.pool", "os", "pathlib", "pickle", "pickletools", "platform", "pprint", "queue", "random", "sched", "selectors",
    "shelve", "shlex", "shutil", "smtplib", "socket", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "timeit", "tokenize", "traceback", "types", "unittest", "urllib.parse", "urllib.request", "uuid", "warnings", "zipfile",
)  # fmt: skip


def docstring_rows(count: int, skip: int = 0) -> list[dict[str, str]]:
    """`count` rows of {prompt, completion} of varied length, after the first `skip`; the same on the same Python."""
    found: dict[str, str] = {}
    for name in MODULES:
        for owner in [module := importlib.import_module(name), *(c for _, c in inspect.getmembers(module, inspect.isclass))]:
            if not getattr(owner, "__module__", name).startswith(name.partition(".")[0]):
                continue
            for _, function in inspect.getmembers(owner, inspect.isroutine):
                text = inspect.getdoc(function) or ""
                title = f"{name}.{getattr(function, '__qualname__', '')}"
                if 300 <= len(text) <= 6000 and "_" not in title.rpartition(".")[2][:1]:
                    found.setdefault(text, title)
    rows = [{"prompt": f"What does `{title}` of Python do?", "completion": text} for text, title in found.items()]
    random.Random(0).shuffle(rows)
    return rows[skip : skip + count]
