"""Files in object stores, named by URL: Amazon S3, Google Cloud Storage and Azure, through ``pyarrow.fs``.

Credentials, regions and endpoints come from the environment, as the libraries of the stores define it. Messages name
the URL and the kind of error only, because an answer of a server may repeat parts of a request.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, cast

from dfscan.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3://", "gs://", "abfss://")
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses between attempts to read a file whose connection was lost. The libraries also retry each request."""
GOOGLE_RETRY_S = 10
"""Limits the retries within one request to Google Cloud Storage, which would otherwise take 15 minutes."""
BLOCK_BYTES = 8 << 20
"""Size of one read request."""
NUM_REQUESTS = 32
"""Number of threads for small requests, each of which mostly waits."""
BATCH = 1000
"""Limits the number of small requests that wait for a thread."""

_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION"
    r"|EXPIRED|INVALID_TOKEN|PERMISSION_DENIED|UNAUTHENTICATED|Authenticat|Authoriz|credential|\b40[13]\b",
    re.IGNORECASE,
)
_MISSING = re.compile(r"NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|NOT_FOUND|NotFound|\b404\b")
_STATUS = re.compile(r"\b([45]\d\d)\b")
_CODE = re.compile(r"(?:AWS Error |Status\()([A-Z_]{3,})")
_VERSIONS = ("etag", "versionid", "generation", "md5hash")
"""Names of metadata that change with the content, in lower case."""


Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store tells of an object without reading it."""

    size_bytes: int
    mtime_ns: int
    version: str
    """ETag or generation, which changes with the content."""


class _LostError(VideoError):
    """The store could not be reached, or broke off; another attempt may succeed."""


def is_url(path: str) -> bool:
    """Return whether a path is the URL of an object, or of a folder in an object store."""
    return path.startswith(SCHEMES)


def root_of(url: str) -> str:
    """Return the URL without the key: the scheme, and the bucket or the container and account."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def refuse_credentials(urls: Iterable[str]) -> None:
    """Refuse URLs that contain credentials, because paths appear in reports and logs.

    Raises:
        ConfigError: a URL contains credentials; the message does not repeat them.
    """
    for url in urls:
        user, at, place = root_of(url).partition("://")[2].rpartition("@")
        if at and (":" in user or not url.startswith("abfss://")):
            raise ConfigError(
                f"the URL of {place} contains a user name or a key, which would appear in reports: remove it, and set "
                "the credentials in the environment"
            )


def kind_of(url: str) -> Literal["file", "folder"]:
    """Return whether a URL names an object or a folder with objects.

    Raises:
        VideoError: ``not_found``, or ``unreadable`` if access is denied or the connection fails.
    """
    from pyarrow.fs import FileType

    files, path = _located(url)
    if not _bucket(path):
        raise VideoError("not_found", "the URL names no bucket; check its spelling")
    with _explained(url):
        found = files.get_file_info(path.rstrip("/"))
        if found.type == FileType.NotFound and files.get_file_info(_bucket(path)).type == FileType.NotFound:
            raise VideoError("not_found", f"there is no bucket {_bucket(path)}; check its name")
    if found.type == FileType.NotFound:
        raise VideoError("not_found", "there is no such object or folder; check the URL")
    return "file" if found.type == FileType.File else "folder"


def find(url: str) -> list[str]:
    """Return the URLs of all objects in a folder and its subfolders, unsorted.

    Raises:
        VideoError: see `kind_of`.
    """
    from pyarrow.fs import FileSelector, FileType

    files, path = _located(url)
    bucket = _bucket(path)
    with _explained(url):
        found = files.get_file_info(FileSelector(path.rstrip("/"), recursive=True, allow_not_found=True))
    names = (each.path for each in found if each.type == FileType.File)
    return [root_of(url) + name.removeprefix(bucket) for name in names]


def info_of(url: str) -> ObjectInfo:
    """Return size, modification time and version of an object.

    Raises:
        VideoError: see `kind_of`.
    """
    with open_object(url) as opened:
        file: Any = opened  # one of pyarrow's, with metadata
        facts = {name.lower(): value.decode(errors="replace") for name, value in (file.metadata() or {}).items()}
        size_bytes = file.size()
    name_of = {name.replace("-", "").replace("_", ""): name for name in facts}
    version = next((facts[name_of[name]] for name in _VERSIONS if name in name_of), "")
    changed = next((facts[name] for name in ("last-modified", "updated", "timecreated") if name in facts), "")
    try:
        time_ns = int(datetime.fromisoformat(changed).timestamp()) * 10**9
    except ValueError:
        time_ns = 0  # the version still shows a change
    return ObjectInfo(size_bytes, time_ns, version.strip('"'))


@contextmanager
def open_object(url: str) -> Iterator[BinaryIO]:
    """Open an object for reading and seeking.

    Raises:
        VideoError: see `kind_of`; errors of reading are converted too.
    """
    files, path = _located(url)
    with _explained(url), files.open_input_file(path) as file:
        yield cast(BinaryIO, file)


def download(
    url: str, *, admit: Callable[[int], None] = lambda _: None, stop: Event | None = None
) -> tuple[int, ObjectInfo]:
    """Copy an object to a temporary file without a name, which vanishes with its last descriptor.

    If the connection is lost, reading continues where it stopped, unless the object has changed meanwhile.

    Args:
        url: the object.
        admit: called with the size in bytes before the copy; may wait for space.
        stop: ends the attempts when set.

    Returns:
        A descriptor, which the caller must close, and the information on the copied version.

    Raises:
        VideoError: ``not_found``, ``unreadable``, ``empty``, ``changed`` if the object changes during every attempt,
            or ``no_space``.
    """
    stop = stop or Event()
    known: ObjectInfo | None = None
    try:
        opened = tempfile.TemporaryFile(prefix="dfscan-")  # noqa: SIM115 - closed below
    except OSError as error:
        raise VideoError("no_space", f"there is no temporary folder ({error.strerror}); set TMPDIR") from error
    with opened:
        file = cast(BinaryIO, opened)
        for pause_s in (*PAUSES_S, None):
            try:
                found = info_of(url)
                if not found.size_bytes:
                    raise VideoError("empty", "the file is empty")
                if known is None:
                    admit(found.size_bytes)
                if found != known:
                    known = found
                    file.seek(0)
                    file.truncate()
                _copy(url, file, known.size_bytes, stop)
                if info_of(url) == known:
                    file.seek(0)
                    return os.dup(file.fileno()), known
                problem = VideoError("changed", "the object changes while it is read; scan it again")
            except _LostError as error:
                problem = error
            if pause_s is None or stop.wait(pause_s):
                raise problem
    raise AssertionError


def _copy(url: str, file: BinaryIO, size_bytes: int, stop: Event) -> None:
    """Append the rest of an object to a file that has its first bytes."""
    with open_object(url) as source:
        source.seek(file.tell())
        while file.tell() < size_bytes:
            block = source.read(min(BLOCK_BYTES, size_bytes - file.tell()))
            if not block or stop.is_set():
                raise _LostError("unreadable", "reading stopped before the end; scan it again")
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise VideoError(
                    "no_space",
                    f"it cannot be copied to {tempfile.gettempdir()} ({error.strerror}); free some space or set TMPDIR",
                ) from error


def _located(url: str) -> tuple[FileSystem, str]:
    """Return the file system of a URL, and the path in it: the bucket or container, then the key."""
    root = root_of(url)
    files, bucket = _file_system(root)
    return files, bucket + url.removeprefix(root)


def ask_all(question: Callable[[str], Answer], urls: Sequence[str]) -> Iterator[Answer]:
    """Yield the answer to a question about each object, in order; several threads ask."""
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        for start in range(0, len(urls), BATCH):
            yield from pool.map(question, urls[start : start + BATCH])


@functools.cache
def _file_system(root: str) -> tuple[FileSystem, str]:
    """Connect to the store of a bucket; keys are not part of `root`, because they need not be valid in a URL.

    Raises:
        VideoError: see `kind_of`.
    """
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem

    options = f"?retry_limit_seconds={GOOGLE_RETRY_S}" if root.startswith("gs://") else ""
    try:
        files, bucket = FileSystem.from_uri(root + options)
    except ArrowInvalid as error:
        raise VideoError("not_found", "this is not the URL of a bucket; check its spelling") from error
    except OSError as error:
        raise _problem(root, error) from error
    return files, str(bucket).rstrip("/")


def _bucket(path: str) -> str:
    return path.partition("/")[0]


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's own errors are among them
        raise _problem(url, error) from error


def _problem(url: str, error: Exception) -> VideoError:
    root = root_of(url)
    text = str(error).replace(url.removeprefix(f"{root}/"), "")  # a key may contain anything
    if isinstance(error, FileNotFoundError) or _MISSING.search(text):
        return VideoError("not_found", "there is no such object any more, or no such bucket; list the folder again")
    if isinstance(error, PermissionError) or _DENIED.search(text):
        return VideoError("unreadable", "access is denied; check the credentials in the environment and their rights")
    if isinstance(error, ValueError):
        return VideoError(
            "unreadable", "this name cannot be read, because a folder in it has no name; rename the object"
        )
    code = _STATUS.search(text) or _CODE.search(text)
    cause = f" ({code[1]})" if code else ""
    return _LostError("unreadable", f"the connection to {root} failed{cause}; check the network and the endpoint")
