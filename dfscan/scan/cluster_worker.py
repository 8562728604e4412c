"""One worker of a cluster: an engine in a process of its own, which takes paths and gives results. See `cluster`."""

from __future__ import annotations

import logging
import os
import platform
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfscan.detector.checkpoint import Checkpoint, read_card
from dfscan.errors import CheckpointError, ConfigError, DfscanError
from dfscan.gpu import device_name
from dfscan.media.source import FileIdentity
from dfscan.objects import is_url
from dfscan.report.dumps import DumpFolder
from dfscan.report.meta import versions
from dfscan.scan.ledger import from_json, to_json
from dfscan.scan.pipeline import ScanListener, scan_videos
from dfscan.scan.setup import ResolvedSettings, load_engine
from dfscan.text import display_path
from dfscan.types import Picture, VideoResult

JudgedVideo = tuple[VideoResult, FileIdentity | None]
JudgeVideos = Callable[[Iterable[str]], Iterator[JudgedVideo]]

MAX_UNFETCHED = 16
"""Maximum number of results that wait for the driver; then judging waits too."""

log = logging.getLogger("dfscan")


@dataclass(frozen=True)
class SentFile:
    """A checkpoint file on its way to a worker."""

    name: str
    data: bytes
    sha256: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> SentFile:
        """Read the file.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return cls(checkpoint.path.name, checkpoint.path.read_bytes(), checkpoint.sha256)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: cannot be read ({error.strerror}); check that it still exists"
            ) from error

    def unpack(self, folder: Path) -> Checkpoint:
        """Write the file into a new folder, under its own name, and read its card.

        Raises:
            CheckpointError: its content is not that of the checkpoint.
        """
        folder.mkdir()
        path = folder / self.name
        path.write_bytes(self.data)
        checkpoint = read_card(path)
        if checkpoint.sha256 != self.sha256:
            raise CheckpointError(f"checkpoint {self.name}: it changed before it was sent; start again")
        return checkpoint


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs. It is sent once to each node."""

    settings: ResolvedSettings
    """Settings as from `setup.resolve`, with the device of a worker."""
    checkpoints: tuple[SentFile, ...]
    folder: str | None
    """Folder that relative paths start from; None if there are none."""
    sample: tuple[str, int] | None
    """A file and its size, which every worker must see; None if all files are objects in a store."""

    @classmethod
    def of(cls, settings: ResolvedSettings, checkpoints: Sequence[Checkpoint], paths: Sequence[str]) -> Job:
        """Prepare the job of judging these files.

        Raises:
            CheckpointError: a checkpoint cannot be read.
        """
        sent = tuple(SentFile.of(checkpoint) for checkpoint in checkpoints)
        files = (path for path in paths if not is_url(path))
        sample = next(((path, found.size_bytes) for path in files if (found := FileIdentity.of(path))), None)
        is_relative = any(not is_url(path) and not os.path.isabs(path) for path in paths)
        folder = os.getcwd() if is_relative else None
        return cls(settings, sent, folder, sample)

    def open(self, threads: int, dumps: Dumps, listener: ScanListener) -> tuple[JudgeVideos, int]:
        """Load the engine; return the function that judges videos, and the number of videos decoded at once.

        Raises:
            DfscanError: the engine cannot be loaded, or this machine does not see the same files.
        """
        self._check_files()
        settings = replace(self.settings, threads=threads)
        with tempfile.TemporaryDirectory(prefix="dfscan-") as folder:
            checkpoints = [sent.unpack(Path(folder) / str(i)) for i, sent in enumerate(self.checkpoints)]
            engine = load_engine(settings, checkpoints)

        def judge(paths: Iterable[str]) -> Iterator[JudgedVideo]:
            return scan_videos(
                paths,
                engine,
                dumps=dumps if settings.explain else None,
                num_explained=settings.explain_top,
                keeps_pictures=settings.keeps_pictures,
                listener=listener,
            )

        return judge, engine.num_workers

    def _check_files(self) -> None:
        if self.folder is not None:
            try:
                os.chdir(self.folder)
            except OSError as error:
                raise ConfigError(
                    f"the folder {self.folder} cannot be opened ({error.strerror}); name the inputs by absolute paths "
                    "on a disk that all nodes share"
                ) from error
        if self.sample is not None:
            path, size_bytes = self.sample
            found = FileIdentity.of(path)
            if found is None or found.size_bytes != size_bytes:
                raise ConfigError(
                    f"{display_path(path)} is missing or differs; mount the disk with the videos on every node, under "
                    "the same path"
                )


class Dumps(DumpFolder):
    """Keeps the files of dumps in memory until they are sent to the driver."""

    def __init__(self, *, suffix: str) -> None:
        self._suffix = suffix
        self._files: dict[str, bytes] = {}

    def store(self, name: str, data: bytes) -> None:
        """See `DumpFolder.store`."""
        self._files[name] = data

    def take(self) -> dict[str, bytes]:
        """Return the files since the last call, by name."""
        files, self._files = self._files, {}
        return files


@dataclass(frozen=True, slots=True)
class Facts:
    """Describes a worker: its node, its device and its versions."""

    node: str
    """Name of its machine."""
    node_id: str
    """Ray's name of its machine."""
    cpu: str
    device: str
    versions: dict[str, str]
    num_decoders: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A result on its way to the driver."""

    document: dict[str, Any]
    pictures: tuple[Picture, ...]
    identity: FileIdentity | None
    files: dict[str, bytes]
    """Files of dumps, by name."""

    def unpack(self) -> JudgedVideo:
        """Return the result and the identity of its file."""
        return replace(from_json(self.document), pictures=self.pictures), self.identity


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What a worker has to report since its last answer."""

    results: list[Sent] = field(default_factory=list)
    num_faces: int = 0
    warnings: list[str] = field(default_factory=list)


class Worker:
    """The actor. A thread judges the given paths; results wait until they are fetched."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._done: queue.Queue[Sent | BaseException] = queue.Queue(MAX_UNFETCHED)
        self._faces = _Faces()
        self._num_told = 0
        self._warnings = _Warnings()

    def start(self, job: Job, threads: int) -> Facts:
        """Load the engine.

        Raises:
            DfscanError: see `Job.open`.
        """
        import ray

        log.addHandler(self._warnings)
        self._dumps = Dumps(suffix=job.settings.explain_format)
        try:
            self._judge, num_decoders = job.open(threads, self._dumps, self._faces)
        except DfscanError as error:
            raise type(error)(f"worker on {platform.node()}: {error}") from error
        # Linux kills decoders when the thread that started them ends, so one thread starts all.
        threading.Thread(target=self._work, daemon=True).start()
        cpu = ""
        with suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            cpu = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        node_id = ray.get_runtime_context().get_node_id()
        return Facts(
            platform.node(),
            node_id,
            cpu or platform.processor() or platform.machine(),
            device_name(job.settings.device),
            versions(),
            num_decoders,
        )

    def exchange(self, paths: Sequence[str]) -> WorkerAnswer:
        """Take more paths, wait until a result is ready, and return all that are.

        Raises:
            Exception: any error that ended the thread.
        """
        for path in paths:
            self._given.put(path)
        results = [self._fetch()]
        while not self._done.empty():
            results.append(self._fetch())
        num_faces = self._faces.count - self._num_told
        self._num_told += num_faces
        return WorkerAnswer(results, num_faces, self._warnings.take())

    def _fetch(self) -> Sent:
        done = self._done.get()
        if isinstance(done, BaseException):
            raise done
        return done

    def _work(self) -> None:
        try:
            while True:
                for result, identity in self._judge(self._waiting()):
                    self._done.put(Sent(to_json(result), result.pictures, identity, self._dumps.take()))
        except BaseException as error:
            self._done.put(error)

    def _waiting(self) -> Iterator[str]:
        """Yield paths while there are some. At the end, the pipeline finishes all videos, also those held back."""
        yield self._given.get()
        while not self._given.empty():
            yield self._given.get()


class _Faces:
    """Counts scored faces; a scan listener."""

    def __init__(self) -> None:
        self.count = 0

    def faces_scored(self, count: int) -> None:
        self.count += count

    def video_done(self, result: VideoResult) -> None:
        pass


class _Warnings(logging.Handler):
    """Keeps warnings for the driver."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: queue.SimpleQueue[str] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.put(record.getMessage())

    def take(self) -> list[str]:
        """Return the warnings since the last call."""
        return [self._kept.get() for _ in range(self._kept.qsize())]
