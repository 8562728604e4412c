"""Decoding in caged child processes that can be killed: a crash or a hang costs one video, never the batch.

A child is handed an open descriptor, never a name. It gets one video after the other while it is healthy, and a
successor after `MAX_VIDEOS_PER_CHILD`, so that whatever a library leaks or a file has damaged goes with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfscan.errors import VideoError
from dfscan.media import cage
from dfscan.media.plan import Sampling
from dfscan.media.source import open_source
from dfscan.types import Frame, Reason, VideoInfo

GRACE_S = 5.0
"""A child gets this long to notice a time-out itself; then it hangs, and is killed."""
MAX_MESSAGE_BYTES = 1 << 20
MAX_PIXELS = 4 * 8192 * 4352
"""The largest picture that is decoded, its pixels made square."""
MAX_VIDEOS_PER_CHILD = 100
DEATH_S = 1.0
"""A child that closed its end gets this long to die of its own cause, which is then reported."""

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dfscan.media.worker import main; main()"
"""Not ``-m``: that would import from the current folder first, which may be the evidence."""

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True)
class Opened:
    """A child is about to begin with a video: for a second time where the first died of it."""

    path: str


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One picture of a video; those of one video come in order, those of several interleave."""

    path: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Ended:
    """The last word on a video."""

    path: str
    info: VideoInfo | None
    failure: Reason | None
    """Set where the video cannot be judged; pictures that came before it are void."""
    damage: str | None = None
    is_cut_short: bool = False
    cpu_s: float = 0.0
    open_cpu_s: float = 0.0
    """Of `cpu_s`, what it took to open the file and to survey its packets."""
    peak_rss_bytes: int = 0
    num_missing: int = 0
    """Samples that were asked for and that the video has no frames for."""
    skipped: tuple[str, ...] = ()
    """The video streams that were not looked at, each with the reason."""


Event = Opened | Decoded | Ended


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoding child may cost, and whether it is caged."""

    timeout_s: float = 300.0
    """Seconds of work on one video; waiting for the caller does not count."""
    max_memory_mb: int = 2048
    """Address space of a child, in MiB."""
    sandbox: bool = True
    """Whether it is kept from files, network and other processes; see `media.cage`."""


def decode_videos(
    paths: Iterable[str], *, sampling: Sampling, num_workers: int, limits: Limits
) -> Generator[Event, None, None]:
    """Decode videos in up to `num_workers` child processes and yield what they give as it comes.

    Args:
        paths: the files; taken one by one as children become free.
        sampling: which pictures of each.
        num_workers: children at work at once.
        limits: of each child.

    Yields:
        For each path `Opened`, then `Decoded` for each picture, then one `Ended`. Where the child dies, hangs or talks
        nonsense, a fresh one gets one more try: then `Opened` comes again, and what came before it is void. A file
        that is empty or cannot be opened needs no child.
    """
    for lack in cage.missing() if limits.sandbox else ():
        log.warning("%s; --no-sandbox accepts it", lack)
    queue = iter(paths)
    retried: set[str] = set()
    workers = [_Worker(sampling, limits) for _ in range(num_workers)]
    try:
        while True:
            for worker in workers:
                while worker.path is None and (path := next(queue, None)) is not None:
                    yield from _begin(worker, path)
            if not (busy := [worker for worker in workers if worker.path is not None]):
                return
            for worker in _ready(busy):
                event = worker.receive()
                if isinstance(event, Ended) and worker.is_lost and event.path not in retried:
                    log.debug("decoder: %s; once more in a fresh process", event.failure)
                    retried.add(event.path)
                    yield from _begin(worker, event.path)
                elif event is not None:
                    yield event
    finally:
        for worker in workers:
            worker.kill()


def _begin(worker: _Worker, path: str) -> Iterator[Event]:
    """Hand a file to a child, unless it needs none."""
    yield Opened(path)
    try:
        descriptor = open_source(path)
    except VideoError as error:
        info = VideoInfo(size_bytes=0, sha256=hashlib.sha256().hexdigest()) if error.code == "empty" else None
        yield Ended(path, info, Reason(error.code, str(error)))
        return
    try:
        worker.begin(path, descriptor)
    finally:
        os.close(descriptor)


def _ready(busy: list[_Worker]) -> list[_Worker]:
    """Wait until at least one child has something to say or has been silent for too long."""
    soonest_s = min(worker.deadline_s for worker in busy)
    ready = wait([worker.connection for worker in busy], timeout=max(0.0, soonest_s - time.monotonic()))
    now_s = time.monotonic()
    return [worker for worker in busy if worker.connection in ready or worker.deadline_s <= now_s]


class _Worker:
    """One child process, or its successors, and the video it is at work on."""

    def __init__(self, sampling: Sampling, limits: Limits) -> None:
        self._sampling = sampling
        self._limits = limits
        self._hang_s = limits.timeout_s + GRACE_S
        self._process: subprocess.Popen[bytes] | None = None
        self._num_videos = 0
        self.path: str | None = None
        self.is_lost = False
        """Whether the child of the last video did not live to its end."""
        self.deadline_s = 0.0

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        # A child that stops halfway through a picture must not hold the parent for ever.
        limit = struct.pack("ll", math.ceil(self._hang_s), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.connection = Connection(os.dup(self._socket.fileno()))
        limits = json.dumps(asdict(self._limits))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path), limits, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
        self._num_videos = 0

    def begin(self, path: str, descriptor: int) -> None:
        """Hand an open video to the child, or to a new one if there is none or it has served its time."""
        if self._process is None or self._process.poll() is not None or self._num_videos >= MAX_VIDEOS_PER_CHILD:
            self.kill()
            self._start()
        self._num_videos += 1
        self.path, self.is_lost = path, False
        self._expect()
        with suppress(OSError):  # it died just now: receive() meets the closed socket and says so
            self.connection.send_bytes(json.dumps({"sampling": asdict(self._sampling)}).encode())
            socket.send_fds(self._socket, [b"."], [descriptor])

    def _expect(self) -> None:
        self.deadline_s = time.monotonic() + self._hang_s

    def receive(self) -> Event | None:
        """Take one message; a dead or hanging child gives an `Ended` with a failure."""
        if time.monotonic() >= self.deadline_s and not self.connection.poll():
            return self._hung()
        try:
            event = self._parse(json.loads(self.connection.recv_bytes(MAX_MESSAGE_BYTES)))
        except BlockingIOError:
            return self._hung()
        except (EOFError, OSError):
            return self._lost(None)
        except (ValueError, KeyError, TypeError) as error:
            return self._lost(Reason("crashed", f"the decoder sent nonsense ({type(error).__name__})"))
        self._expect()
        return event

    def _parse(self, message: dict[str, Any]) -> Event | None:
        assert self.path is not None
        if message["kind"] == "alive":
            return None
        if message["kind"] == "frame":
            pixels = self._receive_pixels(*message["shape"])
            fields = ("index", "time_s", "burst", "number", "stream", "shot")
            return Decoded(self.path, Frame(pixels, **{name: message[name] for name in fields}))
        if "traceback" in message:
            log.debug("decoder: %s", message["traceback"])
        failure = Reason(message["code"], message["message"]) if message["kind"] == "failed" else None
        info = VideoInfo(**message["info"]) if message["info"] else None
        ended = Ended(
            self.path,
            info,
            failure,
            message.get("damage"),
            message.get("is_cut_short", False),
            message["cpu_s"],
            message["open_cpu_s"],
            message["peak_rss_bytes"],
            message.get("num_missing", 0),
            tuple(message.get("skipped", ())),
        )
        self.path = None
        return ended

    def _receive_pixels(self, height: int, width: int) -> NDArray[np.uint8]:
        """Straight into their array: what `Connection` gathers bytes in would be a second copy, left in pieces."""
        if min(height, width) <= 0 or height * width > MAX_PIXELS:
            raise ValueError("no picture that is ever sent")
        pixels = np.empty((height, width, 3), np.uint8)
        rest = pixels.data.cast("B")
        while rest:
            if not (num_read := self._socket.recv_into(rest)):
                raise EOFError
            rest = rest[num_read:]
        return pixels

    def _hung(self) -> Ended:
        return self._lost(Reason("timeout", f"the decoder hung for {self._hang_s:g} s and was stopped"))

    def _lost(self, reason: Reason | None) -> Ended:
        path, self.path = self.path, None
        process = self._process
        assert path is not None and process is not None
        self.is_lost = True
        if reason is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(DEATH_S)
        self.kill()
        return Ended(path, None, reason or Reason("crashed", f"the decoder died of {_exit_text(process.returncode)}"))

    def kill(self) -> None:
        """End the child at once, if there is one, and take its remains."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        self.connection.close()
        self._socket.close()


def _exit_text(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    except ValueError:
        return f"signal {-code}"


def _environment() -> dict[str, str]:
    """One thread per library: pools of several processes fight over the cores."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **single}
