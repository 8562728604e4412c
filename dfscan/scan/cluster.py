"""Judge videos on a Ray cluster, as `pipeline.scan_videos` does in one process.

Actors of Ray Core hold one engine each. One loop shares out the paths and collects the results. It keeps a few paths
in progress at every worker, and takes them back if the worker dies. The ledger records every result, so nothing else
needs to survive the driver. Ray Data is not used: it retries a video that kills its worker without end, or ends the
whole job.
"""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from dfscan.config import ScanSettings
from dfscan.errors import ConfigError, DfscanError
from dfscan.extras import require
from dfscan.media.source import FileIdentity
from dfscan.objects import is_url
from dfscan.report.dumps import DumpFolder
from dfscan.report.meta import versions
from dfscan.scan.cluster_worker import Facts, Job, JudgedVideo, Worker, WorkerAnswer
from dfscan.scan.pipeline import ScanListener, failed
from dfscan.scan.setup import MAX_DEFAULT_THREADS
from dfscan.text import display_path
from dfscan.types import Reason

EQUAL_VERSIONS = ("dfscan", "av", "numpy", "opencv", "onnxruntime")
"""Libraries that results depend on; a worker with another version of one of them is refused."""
NUM_WAITING = 8
"""Number of paths that wait at a worker, in addition to two for each of its decoders."""
MAX_DEATHS = 5
"""Maximum number of deaths for each worker without a single result between them."""
TICK_S = 1.0
"""Time after which the loop looks for new nodes even if no worker has answered."""
CONNECT_S = 10.0
"""Time for the cluster to accept a connection."""
START_TRIES = 3
"""Maximum number of tries to start a local cluster; Ray gives up after half a minute, even if the machine is busy."""
PATIENCE_S = 60.0
"""Time without any worker after which a warning is logged."""

log = logging.getLogger("dfscan")


def for_workers(settings: ScanSettings) -> ScanSettings:
    """Set the device of the workers: a GPU if each gets a share of one, else the CPU.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    require("ray", "--on ray")
    return replace(settings, device="cuda:0" if settings.gpus_per_worker else "cpu")


def cluster_address() -> str:
    """Return the address of the cluster; "local" is a temporary one on this machine."""
    return os.environ.get("RAY_ADDRESS") or "local"


@dataclass(eq=False)
class _WorkerState:
    """A worker as the driver sees it."""

    actor: Any
    call: Any
    """Reference to the answer that is awaited, or None."""
    facts: Facts | None = None
    """None until it has started."""
    paths: dict[str, None] = field(default_factory=dict)
    """Paths without a result so far."""
    is_alone: bool = False
    """True if its only path may have killed a worker; then it gets no other."""


class Cluster:
    """A connection to Ray, and the workers of one scan."""

    def __init__(self, job: Job) -> None:
        """Connect to the cluster in the variable ``RAY_ADDRESS``, or start one on this machine.

        Args:
            job: the job, with settings as from `for_workers` and `setup.resolve`.

        Raises:
            ConfigError: the cluster cannot be reached.
        """
        self._gpus = job.settings.gpus_per_worker
        self._max_workers = job.settings.max_workers
        self._workers: list[_WorkerState] = []
        self._queue: Iterator[str] = iter(())
        self._num_queued = 0
        self._returned: deque[str] = deque()
        """Paths that workers on lost nodes had."""
        self._suspects: deque[str] = deque()
        """Paths that workers had when they died."""
        self._deaths: Counter[str] = Counter()
        """Number of workers that each path may have killed."""
        self._num_deaths = self._num_refused = 0
        self._room: tuple[float, int] = (-math.inf, 0)
        """When the size of the cluster was last looked up, and the number of workers that it has room for."""
        self._warned: set[str] = set()
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._nodes: set[str] = set()
        with ExitStack() as stack:
            self._ray = stack.enter_context(_connected())
            self._threads = job.settings.threads or 0
            if not self._threads:  # as many cores as every node has
                cores = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
                counts = [each for each in cores if each >= 1]
                self._threads = int(min([MAX_DEFAULT_THREADS, *counts])) if any(cores) else 1
            self._job = self._ray.put(job)
            self._actor = self._ray.remote(Worker).options(
                num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0, max_task_retries=0
            )
            self._stack = stack.pop_all()

    def results(
        self, paths: Sequence[str], *, dumps: DumpFolder | None = None, listener: ScanListener | None = None
    ) -> Generator[JudgedVideo, None, None]:
        """Judge videos on all workers, like `pipeline.scan_videos`.

        The paths of a worker that dies are judged again, each alone on a worker. A path with which a second worker dies
        gives the error ``worker_died``.

        Raises:
            OutputError: a dump cannot be written.
            DfscanError: no worker can start, or workers die without any result.
        """
        self._queue, self._num_queued = iter(paths), len(paths)
        start_s = time.monotonic()
        while self._num_left:
            self._request_workers()
            for worker in self._workers:
                self._submit(worker)
            for worker in self._ready():
                yield from self._receive(worker, dumps, listener)
            if not self._nodes and time.monotonic() - start_s > PATIENCE_S:
                gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
                self._warn(f"no worker has started yet; each needs a node with {self._threads} free cores{gpus}")

    def warm_up(self, num_paths: int) -> int:
        """Wait until all workers for this number of paths have started; return how many there are.

        Raises:
            DfscanError: see `results`.
        """
        self._num_queued = num_paths
        while not self._workers or any(worker.facts is None for worker in self._workers):
            self._request_workers()
            for worker in self._ready():
                list(self._receive(worker, None, None))
        return len(self._workers)

    @property
    def _num_left(self) -> int:
        """Number of paths without a result."""
        pending = sum(len(worker.paths) for worker in self._workers)
        return self._num_queued + len(self._returned) + len(self._suspects) + pending

    def facts(self) -> dict[str, Any]:
        """Return what is known about the cluster, for the metadata of a report."""
        kinds = [{"cpu": cpu, "device": device, "started": count} for (cpu, device), count in self._kinds.items()]
        return {"ray": self._ray.__version__, "threads": self._threads, "workers": kinds, "nodes": sorted(self._nodes)}

    def close(self) -> None:
        """End all workers, and disconnect."""
        for worker in self._workers:
            self._stop(worker)
        self._workers.clear()
        self._stack.close()

    # Workers

    def _request_workers(self) -> None:
        """Ask for all workers at once, so that an autoscaler sees the whole demand."""
        for _ in range(len(self._workers), min(self._num_wanted, self._num_left)):
            actor = self._actor.remote()
            self._workers.append(_WorkerState(actor, actor.start.remote(self._job, self._threads)))

    @property
    def _num_wanted(self) -> int:
        """Number of workers that the settings ask for, or that the cluster has room for now; nodes may come and go."""
        now_s = time.monotonic()
        if not self._max_workers and now_s - self._room[0] > TICK_S:
            total = self._ray.cluster_resources()
            by_cpu = total.get("CPU", 0) // self._threads
            self._room = now_s, int(min(by_cpu, total.get("GPU", 0) // self._gpus) if self._gpus else by_cpu)
        return max(1, (self._max_workers or self._room[1]) - self._num_refused)

    def _stop(self, worker: _WorkerState) -> None:
        with suppress(Exception):  # it is dead already, or the connection is
            self._ray.kill(worker.actor)

    def _refuse(self, worker: _WorkerState, error: DfscanError) -> None:
        """Continue without a worker that cannot start; raise its error if no other worker has started."""
        self._stop(worker)
        self._workers.remove(worker)
        if not self._nodes:
            raise error
        self._num_refused += 1
        self._warn(f"continuing without a worker: {error}")

    def _recover(self, worker: _WorkerState, error: Exception) -> Iterator[JudgedVideo]:
        """Take back the paths of a dead worker, and yield the errors of those that have killed two."""
        self._stop(worker)
        self._workers.remove(worker)
        cause = _cause(error)
        if worker.facts and worker.facts.node_id not in {each["NodeID"] for each in self._ray.nodes() if each["Alive"]}:
            log.info("the node %s is gone; its %d videos go to other workers", worker.facts.node, len(worker.paths))
            self._returned.extend(worker.paths)
            return
        pending = ", ".join(map(display_path, worker.paths))
        log.info("a worker died (%s) that had %d videos: %s", cause, len(worker.paths), pending)
        self._num_deaths += 1
        if self._num_deaths > MAX_DEATHS * self._num_wanted:
            raise DfscanError(f"{self._num_deaths} workers died without any result between: {cause}; see Ray's logs")
        for path in worker.paths:
            self._deaths[path] += 1
            if worker.is_alone and self._deaths[path] > 1:
                self._num_deaths = 0
                text = "two workers died while they judged it; look for a crash or a lack of memory in Ray's logs"
                yield failed(path, Reason("worker_died", text)), None if is_url(path) else FileIdentity.of(path)
            else:
                self._suspects.append(path)

    # Work

    def _submit(self, worker: _WorkerState) -> None:
        """Give more paths to a worker that has started and answered, and ask for its results."""
        if worker.facts is None or worker.call is not None:
            return
        given: list[str] = []
        if self._suspects and not worker.paths:
            given.append(self._suspects.popleft())
            worker.is_alone = True
        elif not worker.paths:
            worker.is_alone = False
        limit = 0 if worker.is_alone else 2 * worker.facts.num_decoders + NUM_WAITING
        while len(worker.paths) + len(given) < limit and (self._returned or self._num_queued):
            if self._returned:
                given.append(self._returned.popleft())
            else:
                given.append(next(self._queue))
                self._num_queued -= 1
        worker.paths |= dict.fromkeys(given)
        if worker.paths:
            worker.call = worker.actor.exchange.remote(given)

    def _ready(self) -> list[_WorkerState]:
        """Wait for an answer, at most for `TICK_S`; return all workers that have answered."""
        by_call = {worker.call: worker for worker in self._workers if worker.call is not None}
        if not by_call:
            return []
        self._ray.wait(list(by_call), timeout=TICK_S)
        ready, _ = self._ray.wait(list(by_call), num_returns=len(by_call), timeout=0)
        return [by_call[call] for call in ready]

    def _receive(
        self, worker: _WorkerState, dumps: DumpFolder | None, listener: ScanListener | None
    ) -> Iterator[JudgedVideo]:
        try:
            answer = self._ray.get(worker.call)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if worker.facts is None and isinstance(cause, DfscanError):
                self._refuse(worker, cause)
            else:
                yield from self._recover(worker, error)
            return
        worker.call = None
        if not isinstance(answer, Facts):
            yield from self._unpacked(worker, answer, dumps, listener)
            return
        own, theirs = versions(), answer.versions
        if others := [name for name in EQUAL_VERSIONS if theirs[name] != own[name]]:
            unequal = ", ".join(f"{name} {theirs[name]} instead of {own[name]}" for name in others)
            text = f"worker on {answer.node}: it has {unequal}; install the same versions on every node"
            self._refuse(worker, ConfigError(text))
        else:
            worker.facts = answer
            self._nodes.add(answer.node)
            self._kinds[answer.cpu, answer.device] += 1

    def _unpacked(
        self, worker: _WorkerState, answer: WorkerAnswer, dumps: DumpFolder | None, listener: ScanListener | None
    ) -> Iterator[JudgedVideo]:
        for warning in answer.warnings:
            self._warn(warning)
        if listener and answer.num_faces:
            listener.faces_scored(answer.num_faces)
        self._num_deaths = 0
        for sent in answer.results:
            result, identity = sent.unpack()
            for name, data in sent.files.items():
                assert dumps is not None
                dumps.store(name, data)
            del worker.paths[result.path]
            yield result, identity

    def _warn(self, text: str) -> None:
        """Log a warning, unless another worker has had the same."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)


def _cause(error: Exception) -> str:
    """Return the last sentence of Ray's explanation."""
    lines = str(error).strip().splitlines()
    return lines[-1].partition(". ")[0] if lines else type(error).__name__


class _DebugLog(io.TextIOBase):
    """Takes what Ray prints to standard output, which is for the report only."""

    def write(self, text: str) -> int:
        if text.strip():
            log.debug("ray: %s", text.strip())
        return len(text)


def _unreachable(address: str, cause: str) -> ConfigError:
    if address == "local":
        return ConfigError(f"a local Ray cluster cannot be started: {cause}; try again when this machine is less busy")
    return ConfigError(f"Ray at {address}: {cause}; check RAY_ADDRESS, and that the cluster runs")


@contextmanager
def _connected() -> Iterator[Any]:
    """Connect to Ray, and yield its module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # what is scanned is confidential
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning; workers choose their device
    import ray

    with redirect_stdout(_DebugLog()):
        if ray.is_initialized():
            yield ray
            return
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            _connect(ray, cluster_address())
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)  # Ray has replaced it
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one on this machine.

    Raises:
        ConfigError: the cluster cannot be reached or started.
    """
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    num_tries = START_TRIES if address == "local" else 1
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():  # not local or auto
        try:  # if nobody listens there, Ray would try for ten minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            raise _unreachable(address, error.strerror or "it does not answer") from error
    for i in range(1, num_tries + 1):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
            return
        except Exception as error:  # Ray raises plain ones too
            if i == num_tries:
                raise _unreachable(address, _cause(error)) from error
            ray.shutdown()
