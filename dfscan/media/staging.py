"""Copy the next files of object stores to temporary space while others are decoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Event

from dfscan.media.source import FileIdentity, open_source
from dfscan.objects import ObjectInfo, download, is_url

MAX_STAGED_BYTES = 8 << 30
"""Maximum size of all copies of one process; a larger file is copied while there is no other."""

StagedCopy = tuple[int, ObjectInfo]


class Staging:
    """An iterator over paths that are ready to be opened.

    The path of a local file is ready at once. Objects are copied in the background, at most `num_ahead` at a time, to
    files without a name, which vanish when this process ends in any way.
    """

    def __init__(self, paths: Iterable[str], *, num_ahead: int) -> None:
        self._paths = iter(paths)
        self._num_ahead = num_ahead
        self._local: deque[str] = deque()
        self._coming: dict[str, Future[StagedCopy]] = {}
        self._copies: dict[str, Future[StagedCopy]] = {}
        self._pool = ThreadPoolExecutor(num_ahead, thread_name_prefix="copy")
        self._stop = Event()
        self._space = Condition()
        self._num_bytes = 0
        self._is_exhausted = False

    def __iter__(self) -> Iterator[str | None]:
        return self

    def __next__(self) -> str | None:
        """Return the next path that is ready, or None if all are still being copied."""
        while not self._local and not self._is_exhausted and len(self._coming) < self._num_ahead:
            path = next(self._paths, None)
            if path is None:
                self._is_exhausted = True
            elif is_url(path):
                self._coming[path] = self._pool.submit(self._copy, path)
            else:
                self._local.append(path)
        if self._local:
            return self._local.popleft()
        for path, copy in self._coming.items():
            if copy.done():
                self._copies[path] = self._coming.pop(path)
                return path
        if self._coming:
            return None
        raise StopIteration

    def identity(self, path: str) -> FileIdentity | None:
        """Return the identity of a ready file; None if it cannot be opened."""
        copy = self._copies.get(path)
        if copy is None:
            return FileIdentity.of(path)
        return None if copy.exception() else FileIdentity.of_object(copy.result()[1])

    def open(self, path: str) -> int:
        """Open a ready file; returns and raises as `open_source`."""
        copy = self._copies.get(path)
        return open_source(path) if copy is None else os.dup(copy.result()[0])

    def release(self, path: str) -> None:
        """Delete the copy of a file that is not needed any more."""
        copy = self._copies.pop(path, None)
        if copy and not copy.exception():
            descriptor, info = copy.result()
            os.close(descriptor)
            with self._space:
                self._num_bytes -= info.size_bytes
                self._space.notify_all()

    def _copy(self, url: str) -> StagedCopy:
        admitted = 0

        def admit(size_bytes: int) -> None:
            nonlocal admitted
            with self._space:
                while self._num_bytes and self._num_bytes + size_bytes > MAX_STAGED_BYTES and not self._stop.is_set():
                    self._space.wait()
                self._num_bytes += size_bytes
            admitted = size_bytes

        num_kept = 0
        try:
            descriptor, info = download(url, admit=admit, stop=self._stop)
            num_kept = info.size_bytes
            return descriptor, info
        finally:
            with self._space:
                self._num_bytes += num_kept - admitted
                self._space.notify_all()

    def close(self) -> None:
        """End all copies and delete them."""
        self._stop.set()
        with self._space:
            self._space.notify_all()
        self._pool.shutdown(cancel_futures=True)
        self._copies |= {path: copy for path, copy in self._coming.items() if not copy.cancelled()}
        self._coming.clear()
        for path in list(self._copies):
            self.release(path)
