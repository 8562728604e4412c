"""Open untrusted files in the parent process; the child reads them only through the descriptor."""

from __future__ import annotations

import hashlib
import os
import stat

from dfscan.errors import VideoError


def open_source(path: str) -> int:
    """Open a regular, non-empty file for reading.

    Returns:
        A descriptor, which the caller must close.

    Raises:
        VideoError: ``not_found``, ``unreadable``, ``not_regular`` or ``empty``.
    """
    try:
        _require_regular(os.stat(path).st_mode)  # opening a device can have side effects
        # The file may have been replaced by a FIFO since: neither wait for it nor read from it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ValueError) as error:
        raise VideoError("not_found", "there is no such file any more; scan the folder again") from error
    except OSError as error:
        raise VideoError("unreadable", f"cannot be read ({error.strerror}); check its permissions") from error
    try:
        found = os.fstat(descriptor)
        _require_regular(found.st_mode)
        if not found.st_size:
            raise VideoError("empty", "the file is empty")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hash_file(path: str) -> str:
    """Return the sha256 of a regular, non-empty file in lower-case hex.

    Raises:
        VideoError: ``unreadable``, or see `open_source`.
    """
    with os.fdopen(open_source(path), "rb") as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VideoError("unreadable", f"cannot be read ({error.strerror}); check the disk") from error


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise VideoError("not_regular", "not a regular file; pipes and devices are never opened")
