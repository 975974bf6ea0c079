"""A private Ray cluster of one machine, with a token and GPUs that it only says it has."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from studio.jobs.cluster import RayCluster
from tests.conftest import ROOT

START_S = 90.0
GPUS = 2


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Head:
    """The head of a cluster; it ends with us. `home` is STUDIO_HOME on its machine."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(24)  # also what its processes are known by
        self.folder = Path(tempfile.mkdtemp(prefix="sr-", dir="/tmp"))  # sockets lie there, whose paths must be short
        self.home = self.folder / "home"
        self.dashboard, *self._ports = free_ports(6)
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes jobs."""
        gcs, agent, client, first, last = self._ports
        options = {
            "--num-gpus": GPUS,
            "--num-cpus": 2,
            "--port": gcs,
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": self.dashboard,
            "--dashboard-agent-listen-port": agent,
            "--ray-client-server-port": client,
            "--worker-port-list": ",".join(map(str, [first, last, *free_ports(8)])),
            "--temp-dir": str(self.folder / "ray"),
            "--object-store-memory": 80_000_000,
        }
        words = [f"{name}={value}" for name, value in options.items()]
        alive = [shutil.which("setpriv") or "", "--pdeathsig=TERM"] if shutil.which("setpriv") else []
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("STUDIO_", "RAY_"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "STUDIO_HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = [*alive, str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats", *words]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while RayCluster(self.address, self.token).why_not():
            assert self.process.poll() is None and time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.3)

    def processes(self, words: str = "") -> list[psutil.Process]:
        """The processes of this cluster and of what it runs, of those with such words in their command."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("RAY_AUTH_TOKEN") == self.token and words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def trainers(self) -> list[psutil.Process]:
        """The training processes on its machine."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.home) in " ".join(process.cmdline()) and "studio.training.run" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """kill -9 of everything at once, as when a machine loses its power."""
        for process in [*self.processes(), *self.trainers()]:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        time.sleep(0.2)
        shutil.rmtree(self.folder, ignore_errors=True)
