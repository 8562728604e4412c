"""One run at a time: the kernel's lock on each file that a run writes. A crash releases it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dfscan.errors import LockedError
from dfscan.report.writers import reported

log = logging.getLogger("dfscan")


class _HeldError(Exception):
    """Another process has the lock."""


@contextmanager
def only_run(outputs: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of all outputs; each is a file ``.NAME.lock`` beside it, removed at the end.

    Args:
        outputs: files that another run must not write meanwhile; they need not exist.

    Raises:
        LockedError: another run holds one of them.
        OutputError: a lock file cannot be made.
    """
    with ExitStack() as stack:
        for path in sorted({os.path.realpath(output) for output in outputs}):
            stack.enter_context(_held(path))
        yield


@contextmanager
def _held(path: str) -> Iterator[None]:
    folder, name = os.path.split(path)
    lock_path = os.path.join(folder, f".{name[:200]}.lock")
    try:
        with reported(path):
            descriptor = _take(lock_path)
    except _HeldError:
        raise LockedError(f"{path}: another run of dfscan writes it; wait for its end, or name another file") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what is left is harmless: the lock is the kernel's, not the file's
            os.unlink(lock_path)
        os.close(descriptor)


def _take(lock_path: str) -> int:
    """A descriptor that holds the lock on the file that has this name."""
    while True:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, lock_path)
            if _is_named(descriptor, lock_path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed it between our open and our lock


def _lock(descriptor: int, lock_path: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _HeldError from None
    except OSError as error:  # some network file systems have no locks
        log.warning("%s: no lock can be had there (%s); see that no two runs write it", lock_path, error.strerror)


def _is_named(descriptor: int, lock_path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock_path))
    except FileNotFoundError:
        return False
