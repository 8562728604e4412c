"""Decode in sandboxed child processes that can be killed, so that a crash or a hang affects one video, not the batch.

A child receives an open descriptor, never a file name. It decodes one video after another as long as it is healthy. It
is replaced after `MAX_VIDEOS_PER_CHILD` videos, to discard leaked memory and other effects of damaged files.
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
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from dfscan.arrays import UInt8Image
from dfscan.config import ScanSettings
from dfscan.errors import VideoError
from dfscan.media import sandbox
from dfscan.media.plan import Sampling
from dfscan.media.source import FileIdentity
from dfscan.media.staging import Staging
from dfscan.types import Dissolve, FileFacts, Frame, Reason, VideoInfo

GRACE_S = 5.0
"""Time for a child to notice a timeout itself; after that it counts as hung and is killed."""
MAX_MESSAGE_BYTES = 1 << 20
MAX_PIXELS = 4 * 8192 * 4352
"""Pixels of the largest frame that is decoded, after its pixels were made square."""
MAX_VIDEOS_PER_CHILD = 100
STAGING_POLL_S = 0.05
"""Time after which idle children ask again for an object that is being copied."""
DEATH_S = 1.0
"""Time for a child that closed its socket to exit, so that the cause can be reported."""

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dfscan.media.worker import main; main()"
"""Replaces ``-m``, which would import from the current folder first; that folder may contain untrusted files."""

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True)
class Opened:
    """A child is about to start a video; sent a second time if the first child failed and the video is retried."""

    path: str
    identity: FileIdentity | None
    """Identity of the file before it is opened; None if there is no such file."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One frame of a video. Frames of one video come in order; those of different videos interleave."""

    path: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a video."""

    path: str
    info: VideoInfo | None
    failure: Reason | None
    """Set if the video cannot be judged; its earlier frames must be discarded."""
    damage: str | None = None
    is_cut_short: bool = False
    cpu_s: float = 0.0
    open_cpu_s: float = 0.0
    """The part of `cpu_s` spent on opening the file and surveying its packets."""
    peak_rss_bytes: int = 0
    num_missing: int = 0
    """Number of requested samples for which the video has no frame."""
    skipped: tuple[str, ...] = ()
    """The video streams that were not scanned, each with the reason."""
    facts: FileFacts | None = None
    """None if the container could not be opened."""
    dissolves: tuple[Dissolve, ...] = ()
    """The dissolves between its samples."""


Event = Opened | Decoded | Ended


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a decoding child."""

    timeout_s: float = ScanSettings.timeout
    """Maximum working time per video, in seconds; waiting for the caller does not count."""
    max_memory_mb: int = ScanSettings.max_memory
    """Maximum address space of a child, in MiB."""
    sandbox: bool = ScanSettings.sandbox
    """Deny access to files, the network and other processes; see `media.sandbox`."""


def decode_videos(
    paths: Iterable[str], *, sampling: Sampling, num_workers: int, limits: Limits, trust_list: str | None = None
) -> Generator[Event, None, None]:
    """Decode videos in up to `num_workers` child processes and yield their events as they arrive.

    Args:
        paths: files, consumed one by one as children become free, and URLs, consumed a few earlier to be copied.
        sampling: selects the frames of each video.
        num_workers: maximum number of children at the same time.
        limits: limits of each child.
        trust_list: certificates, in PEM, of the authorities whose signers of C2PA manifests are trusted; may be empty.
            None: manifests are not read.

    Yields:
        For each path `Opened`, then `Decoded` for each frame, then one `Ended`. If the child dies, hangs or violates
        the protocol, the video is retried once in a new child. Then `Opened` is sent again, and callers must discard
        all earlier events of this video. A file that is empty or cannot be opened needs no child.
    """
    for lack in sandbox.missing() if limits.sandbox else ():
        log.warning("%s; to accept this and decode without a sandbox, use --no-sandbox", lack)
    retried: set[str] = set()
    workers = [_Worker(sampling, limits, trust_list) for _ in range(num_workers)]
    staging = Staging(paths, num_ahead=num_workers + 1)
    try:
        while True:
            is_copying = False
            for worker in workers:
                while worker.path is None and not is_copying and (path := next(staging, "")) != "":
                    is_copying = path is None
                    if path is not None:
                        yield from _begin(worker, path, staging)
            busy = [worker for worker in workers if worker.path is not None]
            if not busy and not is_copying:
                return
            # Wait until a child has sent a message or reached its deadline.
            soonest_s = min((worker.deadline_s for worker in busy), default=math.inf)
            pause_s = min(STAGING_POLL_S if is_copying else math.inf, max(0.0, soonest_s - time.monotonic()))
            sent = wait([worker.connection for worker in busy], timeout=pause_s)
            now_s = time.monotonic()
            ready = [worker for worker in busy if worker.connection in sent or worker.deadline_s <= now_s]
            for worker in ready:
                event = worker.receive()
                if isinstance(event, Ended) and worker.is_lost and event.path not in retried:
                    log.debug("decoder: %s; retrying in a new process", event.failure)
                    retried.add(event.path)
                    yield from _begin(worker, event.path, staging, is_retry=True)
                elif event is not None:
                    if isinstance(event, Ended):
                        staging.release(event.path)
                    yield event
    finally:
        for worker in workers:
            worker.kill()
        staging.close()


def _begin(worker: _Worker, path: str, staging: Staging, *, is_retry: bool = False) -> Iterator[Event]:
    """Pass a file to a child, unless it is empty or cannot be opened."""
    yield Opened(path, staging.identity(path))
    try:
        descriptor = staging.open(path)
    except VideoError as error:
        staging.release(path)
        info = VideoInfo(size_bytes=0, sha256=hashlib.sha256().hexdigest()) if error.code == "empty" else None
        yield Ended(path, info, Reason(error.code, str(error)))
        return
    try:
        worker.begin(path, descriptor, is_retry=is_retry)
    finally:
        os.close(descriptor)


class _Worker:
    """One child process, replaced when necessary, and the video that it is decoding."""

    def __init__(self, sampling: Sampling, limits: Limits, trust_list: str | None) -> None:
        self._sampling = sampling
        self._limits = limits
        self._trust_list = trust_list
        self._hang_s = limits.timeout_s + GRACE_S
        self._process: subprocess.Popen[bytes] | None = None
        self._num_videos = 0
        self.path: str | None = None
        self.is_lost = False
        """True if the child died or was killed before it finished the last video."""
        self.deadline_s = 0.0

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        # A child that stops halfway through a frame must not block the parent forever.
        limit = struct.pack("ll", math.ceil(self._hang_s), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.connection = Connection(os.dup(self._socket.fileno()))
        limits = json.dumps({**asdict(self._limits), "reads_manifests": self._trust_list is not None})
        # Several processes share the cores, so each library gets one thread.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # A file, because a pipe might not hold the whole list.
        with theirs, tempfile.TemporaryFile() if self._trust_list else nullcontext() as trust_list:
            if trust_list and self._trust_list:
                trust_list.write(self._trust_list.encode())
                trust_list.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path), limits, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=trust_list or subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **threads},
            )
        self._num_videos = 0

    def begin(self, path: str, descriptor: int, *, is_retry: bool) -> None:
        """Pass an open video to the child. Start a new child if there is none or it has decoded enough videos."""
        if self._process is None or self._process.poll() is not None or self._num_videos >= MAX_VIDEOS_PER_CHILD:
            self.kill()
            self._start()
        self._num_videos += 1
        self.path, self.is_lost = path, False
        self._expect()
        with suppress(OSError):  # the child died just now; receive() will find the closed socket and report it
            job = {"sampling": asdict(self._sampling), "is_retry": is_retry}
            self.connection.send_bytes(json.dumps(job).encode())
            socket.send_fds(self._socket, [b"."], [descriptor])

    def _expect(self) -> None:
        self.deadline_s = time.monotonic() + self._hang_s

    def receive(self) -> Event | None:
        """Receive one message. Return an `Ended` with a failure if the child is dead or hung."""
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
            FileFacts.from_dict(message.get("facts")),
            tuple(Dissolve(*each) for each in message.get("dissolves", ())),
        )
        self.path = None
        return ended

    def _receive_pixels(self, height: int, width: int) -> UInt8Image:
        """Receive pixels directly into their array; `Connection` would make a second copy and fragment memory."""
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
        if reason is None:
            code, names = process.returncode, {number.value: number.name for number in signal.Signals}
            cause = f"signal {names.get(-code, -code)}" if code < 0 else f"exit status {code}"
            reason = Reason("crashed", f"the decoder died of {cause}")
        return Ended(path, None, reason)

    def kill(self) -> None:
        """Kill and reap the child process, if any."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        self.connection.close()
        self._socket.close()
