"""Training processes that start at once: a parent that has imported everything forks them.

What comes of it is, to whoever asked for the process, what `subprocess.Popen` gives: its own child, in a session of its own, with pipes of
its own, and with the command and the environment that the system tells of it. It runs what the command runs, `studio.training.run.main`.
Only Linux can do that; elsewhere, and for any other command, the real one starts.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from studio.settings import command_environment
from tests.conftest import ROOT

TRAINER = ["-m", "studio.training.run"]
ROOM = "-" * 4000, "-" * 30_000  # where the command and the environment of a fork are written: no fork has more than its parent had
NUMBER = 8  # bytes of a process number on its way
ADOPTS = 36  # PR_SET_CHILD_SUBREAPER: who inherits a process whose parent has ended


class Parent:
    """The process that forks, once it has imported everything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", "from tests.warm import serve; serve()", ROOM[0]]
        with theirs:
            self.process = subprocess.Popen(command, cwd=ROOT, env={**command_environment(), "ROOM": ROOM[1]}, stdin=theirs)
        assert self._channel.recv(NUMBER), "the parent of warm processes did not start"
        popen = type("WarmPopen", (Warm,), {"parent": self})
        # Stands for the module `subprocess` in `studio.jobs.process`.
        self.subprocess = SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)

    def fork(self, arguments: list[str], env: dict[str, str], cwd: str, streams: list[int]) -> int:
        """Start a process on three open files; returns its number once it leads its session and is our child."""
        adopt = ctypes.CDLL(None).prctl
        with self._lock:
            adopt(ADOPTS, 1, 0, 0, 0)
            try:
                socket.send_fds(self._channel, [json.dumps([arguments, env, cwd]).encode()], streams)
                answer = self._channel.recv(NUMBER)
            finally:
                adopt(ADOPTS, 0, 0, 0, 0)
        assert answer, "the parent of warm processes could not fork"
        return int.from_bytes(answer, "little")

    def close(self) -> None:
        """End it; what it forked goes on."""
        self._channel.close()
        self.process.kill()
        self.process.wait()


class Warm(subprocess.Popen[Any]):
    """A process of a command, forked where that is the training's."""

    parent: Parent

    def _execute_child(self, args: Any, *rest: Any) -> None:
        """What `Popen` does between making the pipes and keeping our ends of them."""
        cwd, env, files = rest[4], rest[5], rest[9:15]
        if sys.platform != "linux" or args[1:3] != TRAINER:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        streams = [theirs if theirs >= 0 else own for own, theirs in enumerate((files[0], files[3], files[5]))]
        try:
            self.pid = self.parent.fork(args, dict(os.environ if env is None else env), str(cwd or Path.cwd()), streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*files)  # type: ignore[attr-defined]


def serve() -> None:
    """The parent's loop: stdin is its channel. It ends with whoever started it."""
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import studio.bases.loading
    import studio.training.loop
    import studio.training.memory
    import studio.training.trackers  # noqa: F401
    from studio.lora import files  # noqa: F401

    channel = socket.socket(fileno=os.dup(0))
    channel.send(b"ready")
    while True:
        asked, streams, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not asked:
            return
        read, write = os.pipe()
        between = os.fork()
        if between == 0:  # ends at once, and whoever asked becomes the parent of the next one
            if os.fork() == 0:
                os.close(read)
                _become(*json.loads(asked), streams, channel.detach(), write)
            os._exit(0)
        os.close(write)
        number = os.read(read, NUMBER)
        os.waitpid(between, 0)
        channel.send(number)
        for file in (read, *streams):
            os.close(file)


def _become(arguments: list[str], env: dict[str, str], cwd: str, streams: list[int], channel: int, told: int) -> NoReturn:
    import torch

    from studio.training.run import main

    status = 70
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.close(channel)
        os.chdir(cwd)
        _show(arguments, env)
        os.environ.clear()
        os.environ.update(env)
        if "OMP_NUM_THREADS" in env:  # the library has read it long ago
            torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
        os.write(told, os.getpid().to_bytes(NUMBER, "little"))
        os.close(told)
        sys.argv = arguments[2:]
        status = main()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _show(arguments: list[str], env: dict[str, str]) -> None:
    """Let the system tell this command and this environment of the process: it reads them where they lay at the start."""
    first, last, env_first, env_last = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:49])
    named = [f"{name}={value}" for name, value in env.items()]
    for at, end, texts in ((first, last, arguments), (env_first, env_last, named)):
        data = b"".join(os.fsencode(text) + b"\0" for text in texts)
        assert len(data) <= end - at, "no room"
        ctypes.memmove(at, data.ljust(end - at, b"\0"), end - at)
