"""The decoding child: reads jobs from a socket, answers with pictures. Started by `media.isolate` only.

Every message is one JSON object; a ``frame`` is followed by its raw pixels. JSON and bytes, never pickle: a child
taken over by a hostile file must not be able to run code in the parent.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import Any

from dfscan.errors import VideoError
from dfscan.media.decode import Decoding
from dfscan.media.plan import Sampling

MAX_HASH_OF_UNREADABLE_BYTES = 1 << 30
"""A file that cannot be judged is still fingerprinted, unless it is so large that this alone would take minutes."""


HASH_BLOCK_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""
ALIVE_EVERY_S = 0.5


class _BusyClock:
    """Seconds spent working, without those spent waiting for the parent to take a picture."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._waited_s = 0.0

    def seconds(self) -> float:
        return time.monotonic() - self._start_s - self._waited_s

    def waiting(self, act: Callable[[], None]) -> None:
        before_s = time.monotonic()
        act()
        self._waited_s += time.monotonic() - before_s


def main() -> None:
    """Serve decoding jobs until the parent closes the socket or dies."""
    _die_with_parent()
    with Connection(int(sys.argv[-1])) as parent:
        while True:
            try:
                job = json.loads(parent.recv_bytes())
                _serve(parent, job)
            except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
                return


def _die_with_parent() -> None:
    """Ask Linux for a SIGKILL when the parent ends, however: a decoder that hangs would not see the closed socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(parent: Connection, job: dict[str, Any]) -> None:
    clock = _BusyClock()
    cpu_s = time.process_time()
    decoding = None
    try:
        decoding = Decoding(job["path"], Sampling(**job["sampling"]), _limit(clock, job["timeout_s"]))
        _send_samples(parent, decoding, clock)
        end: dict[str, Any] = {"kind": "done", "damage": decoding.damage, "is_cut_short": decoding.is_cut_short}
    except VideoError as error:
        end = {"kind": "failed", "code": error.code, "message": str(error)}
    except (BrokenPipeError, ConnectionResetError):
        raise  # the parent is gone
    except OSError as error:
        end = {"kind": "failed", "code": "unreadable", "message": f"cannot be read ({error.strerror})"}
    except MemoryError:
        end = {"kind": "failed", "code": "too_large", "message": "decoding needs more memory than there is"}
    except Exception as error:
        end = {"kind": "failed", "code": "internal", "message": f"unexpected {type(error).__name__}: {error}"}
        end["traceback"] = traceback.format_exc()
    end["info"] = _info(decoding, is_judged=end["kind"] == "done", tell=lambda: _say_alive(parent))
    end["cpu_s"] = time.process_time() - cpu_s
    end["peak_rss_bytes"] = _peak_rss_bytes()
    parent.send_bytes(json.dumps(end).encode())


def _peak_rss_bytes() -> int:
    """Linux's own high-water mark: `getrusage` starts from the parent's size at the fork."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _limit(clock: _BusyClock, limit_s: float) -> Callable[[], None]:
    def check() -> None:
        if clock.seconds() > limit_s:
            raise VideoError("timeout", f"decoding took longer than {limit_s:g} s; raise --timeout to allow more")

    return check


def _send_samples(parent: Connection, decoding: Decoding, clock: _BusyClock) -> None:
    for frame in decoding.samples():
        head = {"kind": "frame", "index": frame.index, "time_s": frame.time_s, "burst": frame.burst}
        head["shape"] = frame.pixels.shape

        def send(head: dict[str, Any] = head, pixels: memoryview = frame.pixels.data) -> None:
            parent.send_bytes(json.dumps(head).encode())
            parent.send_bytes(pixels.cast("B"))

        clock.waiting(send)


def _info(decoding: Decoding | None, *, is_judged: bool, tell: Callable[[], None]) -> dict[str, Any] | None:
    if decoding is None:
        return None
    info = decoding.info
    is_small = (info.size_bytes or 0) <= MAX_HASH_OF_UNREADABLE_BYTES
    if os.path.isfile(decoding.path) and (is_judged or is_small):
        # The row already says why a file cannot be read, or the parent will see that it changed.
        with suppress(PermissionError, FileNotFoundError, IsADirectoryError):
            info = replace(info, sha256=_sha256(decoding.path, tell))
    return asdict(info)


def _sha256(path: str, tell: Callable[[], None]) -> str:
    """Hash a file of any size, telling the parent now and then that this is work and no hang."""
    digest = hashlib.sha256()
    told_s = time.monotonic()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
            if time.monotonic() - told_s > ALIVE_EVERY_S:
                tell()
                told_s = time.monotonic()
    return digest.hexdigest()


def _say_alive(parent: Connection) -> None:
    parent.send_bytes(json.dumps({"kind": "alive"}).encode())
