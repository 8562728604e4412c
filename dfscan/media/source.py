"""Identify untrusted files and open them in the parent process; the child reads them only through the descriptor."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dfscan.errors import VideoError
from dfscan.objects import ObjectInfo, ask_all, download, info_of, is_url


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """File attributes that reveal a change without reading the file."""

    size_bytes: int
    mtime_ns: int
    inode: int | str
    """Inode number of a file; version of an object in a store."""
    ctime_ns: int = field(default=0, compare=False)
    """Changes with the content, but also with permissions, names and links, so it is not compared."""

    @classmethod
    def of(cls, path: str) -> FileIdentity | None:
        """Return the identity of the file now at this path or URL, or None if there is none or it is out of reach."""
        if is_url(path):
            try:
                return cls.of_object(info_of(path))
            except VideoError:
                return None
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # a name with a NUL byte is a ValueError
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)

    @classmethod
    def of_object(cls, info: ObjectInfo) -> FileIdentity:
        """Return the identity of an object in a store."""
        return cls(info.size_bytes, info.mtime_ns, info.version)


def identities(paths: Sequence[str]) -> Iterator[FileIdentity | None]:
    """Yield the identity of each file, in order; several threads ask the stores about objects."""
    if not any(map(is_url, paths)):
        yield from map(FileIdentity.of, paths)
        return
    yield from ask_all(FileIdentity.of, paths)


def open_source(path: str) -> int:
    """Open a regular, non-empty file for reading; an object in a store is copied first.

    Returns:
        A descriptor, which the caller must close.

    Raises:
        VideoError: ``not_found``, ``unreadable``, ``not_regular`` or ``empty``; for an object see `objects.download`.
    """
    if is_url(path):
        return download(path)[0]
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
    """Return the sha256 of a regular, non-empty file, or of an object, in lower-case hex.

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
