"""Ray's REST interface for jobs: the five calls that are needed, each with a limit on its time.

Ray's own Python client has no such limits, and would bring all of Ray onto the studio's machine.
"""

import time
from collections.abc import Callable
from typing import Any

import httpx

from studio.jobs.executor import Lost

TIMEOUT_S = 5.0
SUBMIT_S = 60.0  # Ray answers when it has found a machine that is to start the job
KNOWN_S = 3.0  # how long an answer about the cluster as a whole is believed
NO_JOB = "/api/jobs/studio-none"
REFUSED = (401, 403)
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


class ClusterAway(Lost):
    """The cluster does not answer, or does not take us."""


class RayCluster:
    """The jobs of one cluster.

    Args:
        address: of its dashboard, such as http://10.0.0.5:8265. token: what RAY_AUTH_MODE=token asks for.
    """

    def __init__(self, address: str, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.address, self._token, self._clock = address.rstrip("/"), token, clock
        self._asked, self._why_not = float("-inf"), ""

    def why_not(self) -> str:
        """Why the cluster takes no job of ours now, in a sentence; empty where it does."""
        if self._clock() - self._asked > KNOWN_S:
            self._why_not = self._look()
            self._asked = self._clock()
        return self._why_not

    def doubt(self) -> None:
        """Something went wrong there: look again when next asked."""
        self._asked = float("-inf")

    def submit(self, name: str, command: str, gpus: int) -> None:
        """Let a command run where `gpus` GPUs are free. Raises ClusterAway; Lost: it was refused."""
        wanted = {"entrypoint": command, "submission_id": name, "entrypoint_num_gpus": gpus, "runtime_env": {}}
        answer = self._ask("POST", "/api/jobs/", json=wanted, timeout=SUBMIT_S)
        if answer.status_code != 200:
            raise Lost(f"Ray refused the job with status {answer.status_code}")

    def info(self, name: str) -> dict[str, Any] | None:
        """What Ray's table says of a job, or None where it is not in it. Raises ClusterAway."""
        answer = self._ask("GET", f"/api/jobs/{name}")
        return dict(answer.json()) if answer.status_code == 200 else None

    def names(self, prefix: str) -> list[str]:
        """The jobs that have not ended whose names begin so. Raises ClusterAway."""
        found = [job for job in self._ask("GET", "/api/jobs/").json() if job["status"] not in ENDED]
        return [job["submission_id"] for job in found if (job["submission_id"] or "").startswith(prefix)]

    def stop(self, name: str, wait_s: float) -> bool:
        """End a job's processes; whether they ended within `wait_s`. Raises ClusterAway."""
        until = self._clock() + wait_s
        self._ask("POST", f"/api/jobs/{name}/stop")
        while (job := self.info(name)) is not None and job["status"] not in ENDED:
            if self._clock() > until:
                return False
            time.sleep(0.2)
        return True

    def logs(self, name: str) -> str:
        """What a job wrote to stdout and stderr. Raises ClusterAway."""
        answer = self._ask("GET", f"/api/jobs/{name}/logs")
        return str(answer.json().get("logs") or "") if answer.status_code == 200 else ""

    def _look(self) -> str:
        try:
            self._ask("GET", NO_JOB)
            open_to_all = self._ask("GET", NO_JOB, token="").status_code not in REFUSED
        except ClusterAway as away:
            return f"{away}; the job waits for it."
        if open_to_all:
            return f"The Ray cluster at {self.address} takes jobs from anybody; start it with RAY_AUTH_MODE=token."
        return ""

    def _ask(self, method: str, path: str, token: str | None = None, **more: Any) -> httpx.Response:
        key = self._token if token is None else token
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = httpx.request(method, self.address + path, headers=headers, **{"timeout": TIMEOUT_S, **more})
        except (httpx.HTTPError, OSError):
            raise ClusterAway(f"The Ray cluster at {self.address} does not answer") from None
        if key and answer.status_code in REFUSED:
            raise ClusterAway(f"The Ray cluster at {self.address} refuses the token of STUDIO_RAY_TOKEN")
        if answer.status_code >= 500:
            raise ClusterAway(f"The Ray cluster at {self.address} answers with an error ({answer.status_code})")
        return answer
