"""Write files that appear under their names only when they are complete, with one error for all failures."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from dfscan.errors import ConfigError, OutputError
from dfscan.text import printable

_REMEDIES = {
    errno.ENOSPC: "Free some space there or write somewhere else.",
    errno.EDQUOT: "Free some of the quota or write somewhere else.",
    errno.ENOENT: "Create its directory first.",
    errno.EISDIR: "Name a file in it.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], *, remedy: str | None = None) -> Iterator[None]:
    """Convert OSError to OutputError, except BrokenPipeError, which the caller handles quietly.

    Args:
        path: file or folder that the error names.
        remedy: what the user can do, as a sentence; by default it depends on the cause.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        cause, shown = error.strerror or error, printable(os.fspath(path))
        remedy = remedy or _REMEDIES.get(error.errno or 0, "Choose a location with write permission.")
        raise OutputError(f"cannot write '{shown}': {cause}. {remedy}") from error


def make_folder(folder: Path, *, remedy: str | None = None) -> None:
    """Create a folder with its parents if it is missing.

    Raises:
        OutputError: it cannot be created; see `writing` for the remedy.
    """
    with writing(folder, remedy=remedy):
        folder.mkdir(parents=True, exist_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, remedy: str | None = None) -> None:
    """Write a file atomically: readers see either the old file or the complete new one; see `AtomicFile`.

    Raises:
        OutputError: the file cannot be written; see `writing` for the remedy.
    """
    with AtomicFile(path, remedy=remedy) as file:
        file.write(data)


class AtomicFile:
    """A file that appears under its name only when it is complete; as a context manager, when the block ends.

    The directory of `path` must exist. An existing file keeps its permissions, and a symbolic link is kept. Anything
    else at that path, such as a directory or a device, is refused.

    Raises:
        OutputError: the file cannot be created, written or renamed; the old file, if any, is unchanged.
    """

    def __init__(self, path: str | os.PathLike[str], *, remedy: str | None = None) -> None:
        self._shown = os.fspath(path)
        self._remedy = remedy
        self._path = os.path.realpath(path)
        with writing(self._shown, remedy=self._remedy):
            mode = _replaceable_mode(self._path)
            self._temporary_path = f"{_temporary_stem(self._path)}{secrets.token_hex(4)}.partial"
            fd = os.open(self._temporary_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._file = os.fdopen(fd, "wb")
            if mode is not None:
                os.fchmod(self._file.fileno(), mode)

    def write(self, data: bytes) -> None:
        """Write all data; a failure discards the file."""
        with writing(self._shown, remedy=self._remedy), self._discarded_on_error():
            self._file.write(data)

    @property
    def stream(self) -> BinaryIO:
        """The unfinished file, for programs that also seek; they run inside `writing`."""
        return self._file

    def commit(self) -> None:
        """Flush the data to disk and rename the file; a second call does nothing."""
        if self._file.closed:
            return
        with writing(self._shown, remedy=self._remedy), self._discarded_on_error():
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._temporary_path, self._path)
            self._file.close()
        # Some file systems cannot sync a directory; the report is in place anyway, so this is not a failure.
        with contextlib.suppress(OSError):
            fd = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def discard(self) -> None:
        """Remove the temporary file; does nothing after `commit`."""
        if self._file.closed:
            return
        # Closing flushes, which fails on a full disk; the descriptor is released anyway.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary_path)

    @contextlib.contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self.discard()
        else:
            self.commit()


def _replaceable_mode(path: str) -> int | None:
    """Return the permissions of the file to be replaced, or None if there is none."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file, so it cannot be replaced")
    return stat.S_IMODE(mode)


def _temporary_stem(path: str) -> str:
    """Return the prefix that only temporary files of this path have."""
    directory, name = os.path.split(path)
    # The name may use all 255 bytes that file systems allow, so the temporary name is built from a part of it.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return os.path.join(directory, f".{name[:40]}.{digest}.")


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove temporary files of this path left by a killed run; no other run may be writing it."""
    stem = _temporary_stem(os.path.realpath(path))
    for leftover in glob.glob(f"{glob.escape(stem)}????????.partial", include_hidden=True):
        with contextlib.suppress(OSError):
            os.unlink(leftover)


def spare_inputs(named: Iterable[tuple[str, Path]], inputs: Iterable[str | Path]) -> None:
    """Refuse to overwrite an input, even if it has several names.

    Args:
        named: options and the files that they write, such as ``--out``.
        inputs: videos, a checkpoint, a list of videos, ...

    Raises:
        ConfigError: an output is an input; the message names both.
    """
    there = {place: option for option, path in named if (place := file_place(path))}
    for path in inputs if there else ():
        if (place := file_place(path)) in there:
            raise ConfigError(f"{there[place]} would overwrite the input {path}; name another file")


def file_place(path: str | Path) -> tuple[int, int] | None:
    """Return device and inode number of a file, or None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
