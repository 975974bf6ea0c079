"""Studio, the composition root: the page, the HTTP routes and the command line call it, and nothing below it."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil

from storage import conversations as talks
from storage import files, repositories
from storage.api_keys import ApiKeys
from storage.catalog import Catalog, Search
from storage.database import Database
from storage.evaluations import Evaluations as EvaluationRecords
from storage.jobs import Jobs
from storage.outbox import Outbox
from storage.records import AdapterRecord, BaseRecord, DatasetRecord, EventRecord, JobRecord
from storage.repositories import Adapters, Bases, Datasets
from storage.states import ACTIVE, OPEN
from storage.watching import Watching
from studio.adapters.catalog import AdapterCatalog, Added, check_version
from studio.adapters.exporting import Exporter, Wish, untold
from studio.adapters.finding import Finder
from studio.adapters.importing import Importer
from studio.adapters.inspecting import Inspector
from studio.adapters.making import Maker, Recipe
from studio.adapters.mapping import MOST, Mapper, SimilarityMap
from studio.adapters.merged import Tell
from studio.adapters.pushing import Pusher
from studio.adapters.sources import Wanted
from studio.bases.catalog import BaseCatalog
from studio.bases.cost import cost_sentence
from studio.bases.loading import device_name
from studio.bases.sources import Say
from studio.chat.backend import backend_of
from studio.chat.conversations import Conversations
from studio.chat.pins import Pins
from studio.chat.probe import Probe
from studio.chat.prompts import Prompts
from studio.chat.sampling import Sampling
from studio.chat.service import Chat, Reply, Stream
from studio.chat.speakers import Speakers
from studio.chat.voices import choose
from studio.chat.votes import Votes
from studio.datasets.changes import Changes
from studio.datasets.hub import fetch_from_hub
from studio.datasets.ingest import Counted, Options, uncounted
from studio.datasets.library import DatasetLibrary
from studio.datasets.pasted import pasted_file
from studio.datasets.reading import Limits
from studio.difference import Differ
from studio.errors import BaseUnavailable, DatabaseUnavailable, Interrupted, InvalidInput, NotFound
from studio.evaluation.service import Evaluations
from studio.foresight import Foresight
from studio.jobs.checkpoints import Checkpoints
from studio.jobs.cluster import RayCluster
from studio.jobs.process import LocalExecutor
from studio.jobs.queue import Queue
from studio.jobs.ray import RayExecutor, RayPlan
from studio.jobs.shared import Shared
from studio.jobs.supervisor import Supervisor, attempt_log
from studio.jobs.sweep import Axes, plan
from studio.jobs.webhook import Webhook
from studio.jobs.worker import Worker
from studio.keeping.keeper import Keeper
from studio.keeping.restore import refuse_half_restored
from studio.quota import Quota
from studio.room import Room
from studio.settings import Settings
from studio.training.config import DEFAULT_PRESET, make_config

if TYPE_CHECKING:
    from studio.datasets.ingest import Inspection

log = logging.getLogger(__name__)
STALE_S = 24 * 3600.0
TRY_IT_DATASET = "Angry bird"
ENDED = 5  # jobs that a page may have missed the end of


@dataclass(frozen=True)
class Status:
    """One glance at the studio. `memory_mb` is of this process, `running` the job that trains the longest, `beside` how many
    others train. `aside` says why the chat's base is put aside, where it is. `held`: the queue starts nothing. `ended`
    are the newest jobs that are over."""

    base: str
    base_loaded: bool
    quantization: str
    quantization_cost: str
    device: str
    memory_mb: int
    running: JobRecord | None
    waiting: int
    aside: str = ""
    beside: int = 0
    held: bool = False
    ended: Sequence[JobRecord] = ()


class Studio:
    """Everything that the studio can do, on one home folder.

    Args:
        settings: where things are and how the base is held.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self._closing = settings, threading.Event()
        home = settings.home
        refuse_half_restored(home)
        home.mkdir(parents=True, exist_ok=True)
        for folder in ("", "datasets", "adapters", "bases", "exports", "lost"):
            files.sweep_partials(home / folder, STALE_S, time.time())
        self._database = Database(settings.url, DatabaseUnavailable)
        jobs, bases, datasets = Jobs(self._database, bool(settings.webhook_url)), Bases(self._database), Datasets(self._database)
        adapters = Adapters(self._database)
        self.keeper = Keeper(self._database, home, settings.quota_bytes)
        has_room = Quota(home, settings.quota_bytes, self.keeper.disk.used).check
        self.watching = Watching(self._database)
        self.bases = BaseCatalog(bases, home / "bases", settings.hub_timeout_s)
        self.datasets = DatasetLibrary(datasets, home / "datasets", home / "exports", Limits(settings.max_upload_bytes), has_room)
        self.changes = Changes(self.datasets)
        self.adapters = AdapterCatalog(adapters, home / "adapters", has_room)
        self.finder = Finder(Catalog(self._database), self.adapters, bases, datasets)
        self.importer = Importer(self.adapters, self.bases, self.datasets.limits, settings.hub_timeout_s)
        self.exporter = Exporter(self.adapters, self.bases, home / "exports", has_room)
        self.pusher = Pusher(self.exporter)
        self.inspector = Inspector(self.adapters, self.bases)
        self.mapper = Mapper(self.adapters)
        self.maker = Maker(self.adapters, self.bases, self.importer.shapes)
        self.conversations = Conversations(talks.Conversations(self._database), home / "exports")
        self.votes, self.prompts = Votes(talks.Votes(self._database)), Prompts(repositories.Prompts(self._database))
        checkpoints = Checkpoints(home / "jobs")
        self.queue = Queue(jobs, adapters, datasets, checkpoints, has_room)
        self.foresight = Foresight(self.bases, self.datasets, self.changes, self.queue, self.default_base)
        self.speakers = Speakers(self.adapters, self.bases, self.queue)
        self.pins = Pins(repositories.Pins(self._database), self.adapters, settings.slots, lambda: self.chat.keep_ready())
        self.chat = Chat(self.bases, self.speakers, backend_of(settings), self.pins.of)
        beside = max(1, settings.max_batch // 2)  # evaluations leave half of the batch to those who chat
        self.evaluations = Evaluations(EvaluationRecords(self._database), self.chat, self.datasets, self.base_of, beside)
        self.differ = Differ(self.inspector, self.bases, self.chat)
        cluster = _cluster(settings) if settings.executor == "ray" else None
        self.supervisor = Supervisor(jobs, bases, checkpoints, cluster or LocalExecutor(), settings)
        room = cluster or Room(self.queue, self.chat, self.foresight.needs_mb, _free_mb, settings.sharing)
        self.outbox, self.api_keys = Outbox(self._database), ApiKeys(self._database)
        webhook = Webhook(self.outbox, settings.webhook_url, settings.webhook_secret.get_secret_value()) if settings.webhook_url else None
        self.worker = Worker(jobs, self.supervisor, settings, cluster.slots if cluster else self.devices, room, webhook)
        self.datasets.add_samples()

    def stop(self) -> None:
        """Stop the worker, exports and the chat: running jobs go back into the queue, replies break off with a plain error. What is asked
        meanwhile and needs neither is still answered."""
        self._closing.set()
        self.worker.stop_soon()
        ending = threading.Thread(target=self._stop_speaking, name="stop-speaking", daemon=True)  # while jobs keep their checkpoints
        ending.start()
        self.worker.stop()
        ending.join()

    def close(self) -> None:
        """Stop, and let go of the database."""
        self.stop()
        self._database.close()

    def _stop_speaking(self) -> None:
        self.evaluations.close()  # before the chat, whose end would be the failure of their rows
        self.chat.close()

    def ensure_base(self, say: Say) -> BaseRecord:
        """The base of the settings, fetched where it is missing.

        In a thread that ends: one that stays and has computed would slow the chat's (see `Engine`).
        """
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self.bases.fetch, self.settings.base, say).result()

    def open_chat(self, base: BaseRecord, say: Say) -> None:
        """Load the base before the page opens where it cannot wait for the first question.

        ZeroGPU moves to its GPUs what was loaded by the main thread until then, and what is wrong with a server is best told at
        the start. Our own engine loads when somebody asks.
        """
        if self.settings.backend == "engine":
            return
        try:
            self.chat.make_resident(base)
        except BaseUnavailable as error:  # it is tried again when somebody asks
            say(str(error))

    def default_base(self) -> BaseRecord:
        """The resident base, or the one that the settings name.

        Raises:
            NotFound: it was not fetched yet.
        """
        return self.chat.base or self.bases.get(self.settings.base.rstrip("/").rpartition("/")[2])

    def train(
        self,
        dataset: str,
        adapter: str,
        base: str | None = None,
        preset: str = DEFAULT_PRESET,
        overrides: dict[str, Any] | None = None,
        *,
        priority: int = 0,
        after: str = "",
        copied_from: str = "",
        as_version_of: str = "",
        current: bool = True,
    ) -> JobRecord:
        """Queue a training job.

        Args:
            dataset, base: names or ids; base None is the default one. adapter: the name that the result will have.
            overrides: fields of `TrainConfig` that differ from the preset. priority, after, copied_from: see
                `Queue.submit`. as_version_of: an adapter of whose name the result will be the next version; `adapter` does not matter
                then, and the base is that one's where none is named. current: the name will stand for it.

        Raises:
            NotFound. NameTaken. InvalidInput: names the option and its range; or the base is another than that of the versions.
        """
        config = make_config(preset, overrides)
        head = self.adapters.get(as_version_of) if as_version_of else None
        chosen = self.foresight.base(base or (head.base_id if head else None))
        placed: dict[str, Any] = {"priority": priority, "after": after, "copied_from": copied_from}
        if head is not None:
            check_version(head.name, chosen.fingerprint, head)
            placed |= {"version_of": head.id, "current": current}
        return self.queue.submit(head.name if head else adapter, chosen, self.datasets.get(dataset), config, **placed)

    def sweep(
        self,
        dataset: str,
        name: str,
        base: str | None = None,
        preset: str = DEFAULT_PRESET,
        overrides: dict[str, Any] | None = None,
        axes: Axes | None = None,
        *,
        priority: int = 0,
        after: str = "",
    ) -> list[JobRecord]:
        """Queue one training for each combination of the axes' values, all of them or none.

        Args:
            name: begins each adapter's name. axes: options with their values, such as {"rank": ["8", "16"]}; the
                others are as in `train`.

        Raises:
            NotFound. NameTaken. InvalidInput: names the option or the adapter that is wrong.
        """
        variants = plan(name, preset, overrides or {}, axes or {})
        chosen = self.foresight.base(base)
        return self.queue.submit_group(name, variants, chosen, self.datasets.get(dataset), priority=priority, after=after)

    def look_at_pasted(self, text: str, options: Options) -> "Inspection":
        """A first look at what was pasted into a box. Raises as `DatasetLibrary.inspect` does."""
        with TemporaryDirectory() as folder:
            return self.datasets.inspect([pasted_file(text, Path(folder))], options)

    def add_pasted(self, text: str, name: str, options: Options, progress: Counted = uncounted) -> DatasetRecord:
        """Add what was pasted into a box. Raises as `DatasetLibrary.add` does."""
        with TemporaryDirectory() as folder:
            return self.datasets.add([pasted_file(text, Path(folder))], name, options, progress=progress)

    def add_from_hub(self, repository: str, revision: str, name: str, options: Options, progress: Counted = uncounted) -> DatasetRecord:
        """Fetch a dataset's files from the Hub at a pinned commit, and add them.

        Raises:
            InvalidInput: it is not there, holds nothing that can be read, or is too large; and as `DatasetLibrary.add`.
        """
        with TemporaryDirectory() as folder:
            limits, notices = self.datasets.limits, list[str]()
            paths, commit = fetch_from_hub(repository, revision, Path(folder), limits, self.settings.hub_timeout_s, notices=notices)
            source = f"fetched from {repository} at {commit}"
            return self.datasets.add(paths, name, options, source=source, progress=progress, notes=notices)

    def devices(self) -> tuple[str, ...]:
        """What this machine trains on: its CUDA devices, or else its CPU."""
        return tuple(f"cuda:{i}" for i in range(self.gpus())) or ("cpu",)

    def gpus(self) -> int:
        """How many CUDA devices this machine has."""
        import torch

        return torch.cuda.device_count()

    def try_it(self) -> JobRecord:
        """Train the angry bird with the quick way to a first result, under a name that is free."""
        return self.train(TRY_IT_DATASET, self.queue.free_name(TRY_IT_DATASET))

    def follow(self, job_id: str, poll_s: float = 0.5) -> Iterator[EventRecord]:
        """Yield a job's events as they come, until the job is over."""
        after = 0
        while True:
            over = self.queue.get(job_id).state not in OPEN
            for event in self.queue.events(job_id, after):
                after = event.id
                yield event
            if over:
                return
            time.sleep(poll_s)

    def train_and_wait(self, job: JobRecord, on_event: Callable[[EventRecord], None]) -> JobRecord:
        """Work on the queue in this process until the job is over."""
        self.worker.start()
        for event in self.follow(job.id):
            on_event(event)
        return self.queue.get(job.id)

    def job_log(self, job_id: str) -> str:
        """The log text of a job, of all its attempts."""
        paths = self.log_files(self.queue.get(job_id))
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.exists())

    def log_files(self, job: JobRecord) -> list[Path]:
        """Where the log of a job's attempts is, the first one first; some may be missing."""
        folder = self.supervisor.job_folder(job.id)
        return [folder / "log.txt", *(attempt_log(folder, number) for number in range(1, job.attempt + 1))]  # log.txt: an older studio's

    def export_log(self, job_id: str) -> Path:
        """Write a job's whole log into one file of the exports; returns its path.

        Raises:
            NotFound: there is no such job. InvalidInput: it has no log yet.
        """
        job = self.queue.get(job_id)
        parts = [path for path in self.log_files(job) if path.exists()]
        if not parts:
            raise InvalidInput(f"The job {job.id} has no log yet; it gets one when it starts.")
        target = self.settings.home / "exports" / f"log-{job.id}.txt"
        with files.publish_file(target) as handle:
            for path in parts:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, handle)
        return target

    def import_adapter(self, wanted: Wanted, name: str, base: str = "", as_version_of: str = "") -> Added:
        """See `Importer.add`."""
        return self.importer.add(wanted, name, base, as_version_of)

    def make_adapter(self, formula: str, name: str, recipe: Recipe | None = None, as_version_of: str = "", tell: Tell = untold) -> Added:
        """See `Maker.add`."""
        return self.maker.add(formula, name, recipe or Recipe(), as_version_of, tell)

    def map_adapters(self, names: Sequence[str], search: Search, tell: Tell = untold) -> SimilarityMap:
        """A map of these adapters, or of the first forty that are looked for where none is named. Raises as `Mapper.map`."""
        found = [self.adapters.get(name) for name in names] if names else self.finder.page(search, MOST).records
        return self.mapper.map(found, tell)

    def export_adapter(self, name: str, wish: Wish | None = None, out: Path | None = None, tell: Tell = untold) -> Path:
        """See `Exporter.write`. It ends with the studio: nothing is kept then."""

        def told(share: float, what: str) -> None:
            if self._closing.is_set():
                raise Interrupted("The studio was stopped; nothing was kept. Export it again.")
            tell(share, what)

        return self.exporter.write(name, wish, out, told)

    def stream(self, messages: list[dict[str, str]], adapter: str, base: str | None = None, user: str = "", **sampling: Any) -> Stream:
        """Start an answer.

        Args:
            messages: turns of {role, content}. adapter: who speaks, as `chat.voices` reads it. base: None for the resident one.
            user: for fairness among many. sampling: fields of `Sampling`.

        Raises:
            StudioError: in words for the user.
        """
        chosen = self.foresight.base(base)
        return self.chat.stream(messages, adapter, chosen, Sampling(**sampling), user)

    def reply(self, messages: list[dict[str, str]], adapter: str, base: str | None = None, **sampling: Any) -> Reply:
        """A whole answer. Raises as `stream` does."""
        chosen = self.foresight.base(base)
        return self.chat.reply(messages, adapter, chosen, Sampling(**sampling))

    def probe(self, messages: list[dict[str, str]], adapter: str, base: str | None = None) -> Probe:
        """What a voice does to the next word, compared with the base. Raises as `stream` does."""
        return self.chat.probe(messages, adapter, self.foresight.base(base))

    def base_of(self, adapter: str) -> BaseRecord:
        """The base that a voice was trained on, the first of a blend's; the default one for "base". Raises as `voices.choose` does."""
        parts = choose(adapter, self.speakers.get).parts
        return self.bases.get(parts[0][0].base_id) if parts else self.default_base()

    def adapters_of(self, base: BaseRecord, most: int | None = None) -> list[AdapterRecord]:
        """Adapters that can speak through this base: favourites first, then the newest; none that is archived."""
        return self.finder.voices(base.fingerprint, most)

    def quantization_cost(self, base: str, quantization: str) -> str:
        """What a form of the weights costs a base, in a sentence; empty where it costs nothing or was not measured."""
        return cost_sentence(self.bases.get(base).quantization_loss, quantization)

    def status(self) -> Status:
        """One glance at everything."""
        running = [job for job in self.queue.open(limit=0) if job.state in ACTIVE]
        is_ours, form = self.settings.backend != "vllm", self.settings.quantization
        try:
            base = self.default_base()
            name, cost = base.name, cost_sentence(base.quantization_loss, form) if is_ours else ""
        except NotFound:
            name, cost = "", ""
        return Status(
            base=name,
            base_loaded=self.chat.base is not None,
            quantization=form if is_ours else "on a vLLM server",
            quantization_cost=cost,
            device=device_name(),
            memory_mb=psutil.Process().memory_info().rss // 2**20,
            running=running[0] if running else None,
            waiting=self.watching.tally().waiting,
            aside=self.chat.aside,
            beside=max(0, len(running) - 1),
            held=self.queue.state().held,
            ended=self.queue.over(limit=ENDED),
        )


def _cluster(settings: Settings) -> RayExecutor:
    plan = RayPlan(settings.ray_gpus, settings.ray_jobs, settings.ray_command, settings.ray_silence_s)
    cluster = RayCluster(settings.ray_address, settings.ray_token.get_secret_value())
    return RayExecutor(cluster, Shared(settings.shared_url), plan)


def _free_mb(devices: Sequence[str]) -> int:
    from studio.training.memory import free_mb

    return free_mb(devices)
