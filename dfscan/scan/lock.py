"""Allow one run at a time, with a kernel lock for each output file. A crash releases the lock."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dfscan.errors import LockedError
from dfscan.files import writing

log = logging.getLogger("dfscan")


class _HeldError(Exception):
    """Another process holds the lock."""


@contextmanager
def only_run(outputs: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of all outputs. Each lock is a file ``.NAME.lock`` beside its output, removed at the end.

    Args:
        outputs: files that no other run may write meanwhile; they need not exist.

    Raises:
        LockedError: another run holds one of the locks.
        OutputError: a lock file cannot be created.
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
        with writing(path):
            descriptor = _take(lock_path)
    except _HeldError:
        problem = f"{path}: another run of dfscan is writing it"
        raise LockedError(f"{problem}; wait until it ends, or name another file") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a file left behind is harmless: the kernel holds the lock, not the file
            os.unlink(lock_path)
        os.close(descriptor)


def _take(lock_path: str) -> int:
    """Open and lock the file at this path; return its descriptor."""
    while True:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _HeldError from None
            except OSError as error:  # some network file systems have no locks
                message = "%s: cannot lock this file (%s); make sure that no other run writes to it"
                log.warning(message, lock_path, error.strerror)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock_path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous holder removed the file between our open and our lock
