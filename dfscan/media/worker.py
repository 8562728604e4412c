"""Decoding child: reads jobs from a socket and sends frames back. Started by `media.isolate` only.

Every message is one JSON object; a ``frame`` is followed by its raw pixels, height x width x 3 bytes. Pickle is never
used, so that a child compromised by a hostile file cannot run code in the parent.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from functools import partial
from io import BytesIO, FileIO
from multiprocessing.connection import Connection
from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dfscan.errors import VideoError
from dfscan.media import sandbox
from dfscan.media.decode import Decoding
from dfscan.media.plan import Sampling
from dfscan.media.provenance import ManifestReader, unreadable
from dfscan.types import Provenance

MAX_HASH_OF_UNREADABLE_BYTES = 1 << 30
"""Maximum size at which a file that cannot be decoded is still hashed; hashing a larger one could take minutes."""
NO_PART_OF_DECODING = (".__main__", ".datasets")
"""Modules of PyAV that are programs or use the network."""
HASH_BLOCK_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
ALIVE_EVERY_S = 0.5
CHANGED = "the file changed while it was read; scan it again"


class _WorkingTime:
    """Limits working time in seconds, without the time spent waiting for the parent to receive a frame."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._start_s = time.monotonic()
        self._waited_s = 0.0

    def check(self) -> None:
        if time.monotonic() - self._start_s - self._waited_s > self._limit_s:
            text = f"decoding took longer than {self._limit_s:g} s; raise --timeout to allow more"
            raise VideoError("timeout", text)

    def waiting(self, act: Callable[[], None]) -> None:
        before_s = time.monotonic()
        act()
        self._waited_s += time.monotonic() - before_s


class _Content:
    """The content of a file, and whether it is still the same.

    The file is hashed when its first frame has been decoded. It is hashed again only if its size or one of its times
    is different at the end: these also change when a file is renamed, linked or touched.
    """

    def __init__(self, file: FileIO, tell: Callable[[], None]) -> None:
        self._file = file
        self._tell = tell
        self._before = _stamp(file)
        self.sha256: str | None = None
        """Lower-case hex digest; None if the file has not been hashed or has changed."""

    def hash(self) -> None:
        """Hash the file unless that is done.

        Raises:
            VideoError: the file has changed since it was opened.
        """
        if self.sha256 is None:
            if _stamp(self._file) != self._before:
                raise VideoError("changed", CHANGED)
            self.sha256 = _sha256(self._file, self._tell)

    def has_changed(self) -> bool:
        """Return whether the file has changed since it was opened; True also if that is not certain."""
        if _stamp(self._file) == self._before:
            return False
        if self.sha256 is not None and self.sha256 == _sha256(self._file, self._tell):
            return False
        self.sha256 = None
        return True


def _stamp(file: FileIO) -> tuple[int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def main() -> None:
    """Process decoding jobs until the parent closes the socket or dies.

    The last two arguments are the limits, as JSON, and the descriptor of the socket. If manifests are to be read,
    standard input holds the trust list. A job is a JSON message followed by one byte that carries the descriptor of the
    open file.
    """
    if sys.platform == "linux":
        # Make Linux send SIGKILL when the parent exits; a hung decoder would not notice the closed socket.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    limits, descriptor = json.loads(sys.argv[-2]), int(sys.argv[-1])
    status = None
    with suppress(OSError):  # on Linux; opened now, so that it can be read inside the sandbox
        status = FileIO("/proc/self/status")
    if limits["sandbox"] and sys.platform == "linux":
        _rehearse()
    manifests = ManifestReader(sys.stdin.read()) if limits["reads_manifests"] else None
    problem = None
    try:
        sandbox.limit(limits["max_memory_mb"] << 20)
        if limits["sandbox"]:
            sandbox.enter()
    except OSError as error:  # then no file may be decoded
        problem = f"the decoder cannot be sandboxed here ({error.strerror}); if you trust the files, use --no-sandbox"
    gc.freeze()  # existing objects stay for good, so later collections can skip them
    with (
        suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt),
        socket.socket(fileno=descriptor) as stream,
        Connection(os.dup(descriptor)) as parent,
    ):
        while True:
            job = json.loads(parent.recv_bytes())
            _, descriptors, _, _ = socket.recv_fds(stream, 1, 1)
            if not descriptors:
                return
            with FileIO(descriptors[0]) as file:
                decoding = Decoding(file, Sampling(**job["sampling"]))
                read_manifest = partial(_read_manifest, manifests, file, parent, limits, is_retry=job["is_retry"])
                _serve(parent, stream, decoding, limits, status, problem, read_manifest)
            gc.collect()  # PyAV's objects form reference cycles, which keep the frames of the last video alive


def _rehearse() -> None:
    """Decode a tiny video and raise one error, to import all modules now: the sandbox forbids later imports."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(NO_PART_OF_DECODING):
            importlib.import_module(module.name)
    data = BytesIO()
    with av.open(data, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for _ in range(2):
            container.mux(stream.encode(VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    with FileIO(os.memfd_create("rehearsal"), "r+") as file:
        file.write(data.getvalue())
        list(Decoding(file, Sampling(1)).samples())
    try:
        raise ValueError
    except ValueError:
        traceback.format_exc()


def _serve(
    parent: Connection,
    stream: socket.socket,
    decoding: Decoding,
    limits: dict[str, Any],
    status: FileIO | None,
    problem: str | None,
    read_manifest: Callable[[], Provenance | None],
) -> None:
    clock = _WorkingTime(limits["timeout_s"])
    cpu_s = time.process_time()
    content = _Content(decoding.file, lambda: _say_alive(parent))
    decoding.check_time = clock.check
    end: dict[str, Any]
    try:
        if problem:
            raise VideoError("sandbox", problem)
        _send_samples(parent, stream, decoding, clock, content)
        end = {
            "kind": "done",
            "damage": decoding.damage,
            "is_cut_short": decoding.is_cut_short,
            "num_missing": decoding.num_missing,
            "skipped": decoding.skipped,
            "dissolves": [astuple(each) for each in decoding.dissolves],
        }
    except VideoError as error:
        end = _failed(error.code, str(error))
    except (BrokenPipeError, ConnectionResetError):
        raise  # the parent is gone
    except MemoryError:
        end = _failed("too_large", f"decoding needs more memory than --max-memory {limits['max_memory_mb']} allows")
    except OSError as error:
        end = _failed("unreadable", f"cannot be read ({error.strerror})")
    except Exception as error:
        end = _failed("internal", f"unexpected {type(error).__name__}: {error}")
        end["traceback"] = traceback.format_exc()
    try:
        if content.has_changed():
            end = _failed("changed", CHANGED) if end["kind"] == "done" else end
        elif end["kind"] == "done" or (decoding.info.size_bytes or 0) <= MAX_HASH_OF_UNREADABLE_BYTES:
            content.hash()
    except OSError as error:
        end = _failed("unreadable", f"cannot be read ({error.strerror})")
    end["info"] = asdict(replace(decoding.info, sha256=content.sha256))
    end["facts"] = asdict(replace(decoding.facts, provenance=read_manifest())) if decoding.facts else None
    end["cpu_s"] = time.process_time() - cpu_s
    end["open_cpu_s"] = max(0.0, decoding.surveyed_cpu_s - cpu_s)
    if status is None:
        unit = 1 if sys.platform == "darwin" else 1024
        end["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    else:  # `getrusage` would include the parent's size at the fork
        status.seek(0)
        lines = status.readall().decode("ascii", errors="replace").splitlines()
        end["peak_rss_bytes"] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    parent.send_bytes(json.dumps(end).encode())


def _read_manifest(
    manifests: ManifestReader | None, file: FileIO, parent: Connection, limits: dict[str, Any], *, is_retry: bool
) -> Provenance | None:
    """Read the manifest, unless a decoder has already failed on this file: the library must not cost it its verdict."""
    if manifests is None:
        return None
    if is_retry:
        return unreadable("not read, because the first attempt to read this file failed")
    start_s = told_s = time.monotonic()

    def check() -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - start_s > limits["timeout_s"]:
            raise VideoError("timeout", f"reading the manifest took longer than {limits['timeout_s']:g} s")
        if now_s - told_s > ALIVE_EVERY_S:
            _say_alive(parent)
            told_s = now_s

    return manifests.read(file, check)


def _failed(code: str, message: str) -> dict[str, Any]:
    return {"kind": "failed", "code": code, "message": message}


def _send_samples(
    parent: Connection, stream: socket.socket, decoding: Decoding, clock: _WorkingTime, content: _Content
) -> None:
    for frame in decoding.samples():
        clock.waiting(content.hash)
        head = {
            "kind": "frame",
            "shape": frame.pixels.shape[:2],
            "index": frame.index,
            "time_s": max(0.0, frame.time_s - decoding.start_s),
            "burst": frame.burst,
            "number": frame.number,
            "stream": frame.stream,
            "shot": frame.shot,
        }

        def send(head: dict[str, Any] = head, pixels: memoryview = frame.pixels.data) -> None:
            parent.send_bytes(json.dumps(head).encode())
            stream.sendall(pixels)

        clock.waiting(send)
        gc.collect()  # as in main: otherwise each sent frame would stay in memory, 12 MB at 2160p


def _sha256(file: FileIO, tell: Callable[[], None]) -> str:
    """Hash a file of any size. Call `tell` regularly, so that the parent does not take long work for a hang.

    The position of the file stays, because FFmpeg may be reading from the same descriptor.
    """
    digest = hashlib.sha256()
    sent_s = time.monotonic()
    position = 0
    while block := os.pread(file.fileno(), HASH_BLOCK_BYTES, position):
        position += len(block)
        digest.update(block)
        if time.monotonic() - sent_s > ALIVE_EVERY_S:
            tell()
            sent_s = time.monotonic()
    return digest.hexdigest()


def _say_alive(parent: Connection) -> None:
    parent.send_bytes(json.dumps({"kind": "alive"}).encode())
