"""Find the files to scan: turn paths, URLs and lists of them into one sorted list of regular files and objects.

Only the standard library is imported, so that the command line starts fast. Only regular files are opened, because
opening a FIFO named ``x.mp4`` would block forever.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from dfscan.errors import ConfigError, VideoError
from dfscan.files import file_place
from dfscan.media.content import HEAD_BYTES, UTF_16_MARKS, is_animation, is_text, looks_like_video, picture_kind
from dfscan.media.names import (
    DOWNLOAD_FOLDER_SUFFIX,
    OTHER_SUFFIXES,
    SCANNED_PICTURE_SUFFIXES,
    SHARED_WITH_TEXT,
    SOUND_SUFFIXES,
    VIDEO_SUFFIXES,
    is_deleted_file,
    is_system_folder,
    is_unfinished,
    suffix_of,
)
from dfscan.objects import ask_all, find, is_url, kind_of, open_object, refuse_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfscan.types import Reason


@dataclass(frozen=True, slots=True)
class Discovery:
    """Files to scan, and paths that cannot or need not be scanned.

    `paths` and `problems` have no path in common; together they are the rows of the report.
    """

    paths: list[str]
    """Regular files and objects to open, in code-point order; bytes that are not UTF-8 are surrogate escapes."""
    problems: dict[str, Reason]
    """Paths that get an ``error`` row without being opened: ``not_found``, ``not_regular`` or ``unreadable``."""
    skipped: list[tuple[str, str]]
    """Paths without a row, each with its reason: ``not_video``, ``unfinished``, ``system_file``, ``system_folder``,
    ``excluded``, ``symlink``, ``not_regular``, ``unreadable`` or ``duplicate``."""
    empty: list[str]
    """Input directories, and folders of object stores, without any file for the report."""


def discover(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    listed: Iterable[str | os.PathLike[str]] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    follow_symlinks: bool = False,
    images: bool = False,
) -> Discovery:
    """Find the files to scan.

    A file given explicitly is always scanned, regardless of its suffix and the patterns. A directory is walked: files
    with a video suffix are scanned, and other files if their content is a video or an animation. Unfinished downloads
    and files of the operating system are skipped. System folders are skipped unless they are among the inputs.

    The URL of an object, or of a bucket or folder in an object store, works like a file or directory, with two
    exceptions. Objects with the suffix of another kind of file, such as a picture, are skipped without reading them.
    And each object in a skipped folder is listed as skipped.

    Args:
        inputs: files, directories and URLs from the command line; symbolic links among them are followed.
        listed: entries of ``--files-from``; a missing one becomes a problem, not an exception.
        include: patterns (`fnmatch`, case-sensitive, ``*`` matches ``/``) for the base name or for the path relative to
            the given directory; if there are any, they replace the tests of suffix and content.
        exclude: patterns for files and directories to skip; they take precedence over all other rules.
        follow_symlinks: also follow links inside directories.
        images: also scan pictures in directories: JPEG, PNG, WebP, HEIC and AVIF.

    Raises:
        ConfigError: some `inputs` do not exist; the message names all of them. Or a URL contains credentials, or one of
            `inputs` cannot be reached.
    """
    named = [os.fsdecode(path) for path in inputs]
    others = [os.fsdecode(path) for path in listed]
    refuse_credentials(filter(is_url, (*named, *others)))
    missing = []
    for path in named:
        try:
            if not is_url(path):
                os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            missing.append(repr(path))
        except OSError:
            continue  # it exists but cannot be reached, which gives an error row
    if missing:
        raise ConfigError(
            f"no such file or directory: {', '.join(missing)}. "
            "Check the spelling and the current directory, or leave it out."
        )
    search = _Search(tuple(include), tuple(exclude), follow_symlinks, images)
    for path in named:
        try:
            search.add_named(path)
        except VideoError as error:
            raise ConfigError(f"{path}: {error}") from error
    for path in others:
        try:
            search.add_named(path)
        except VideoError as error:
            search.add_problem(path, error.code, str(error))
    return search.result()


def read_list(stream: BinaryIO, *, null: bool) -> list[str]:
    """Read the entries of ``--files-from``: one per line or, with `null`, each terminated by a NUL byte.

    Lines end in LF or CR LF. A byte order mark, also of UTF-16, may come first. Blank lines are skipped. Names are kept
    exactly, including spaces; a name that ends in a carriage return needs `null`.
    """
    data = stream.read()
    if null:
        return [os.fsdecode(entry) for entry in data.split(b"\0") if entry]
    if data.startswith(UTF_16_MARKS):
        data = data.decode("utf-16", errors="replace").encode()
    lines = [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    return [os.fsdecode(line) for line in lines if line.strip()]


def why_no_video(name: str, path: str) -> str | None:
    """Return the reason why a file gets no row although its suffix may be a video's, or None.

    Args:
        name: name of the file.
        path: path from which the file can be read; a regular file.

    Returns:
        ``unfinished``, ``system_file``, ``not_video`` or None.

    Raises:
        OSError: the file cannot be read.
    """
    if is_unfinished(name):
        return "unfinished"
    if is_deleted_file(name) or _is_apple_double(name, path):
        return "system_file"
    return "not_video" if suffix_of(name) in SHARED_WITH_TEXT and is_text(_read_head(path)) else None


def _is_apple_double(name: str, path: str) -> bool:
    """Return whether a file such as ``._clip.mp4`` holds macOS metadata of ``clip.mp4`` and is not a hidden video."""
    return name.startswith("._") and not _has_video_content(path)


def _resolve(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return path


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if is_url(path):
        with open_object(path) as file:
            yield file
        return
    # The file may have been replaced by a FIFO since it was listed: neither wait for it nor read from it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        yield file if stat.S_ISREG(os.fstat(fd).st_mode) else BytesIO()


def _read_head(path: str) -> bytes:
    with _opened(path) as file:
        return file.read(HEAD_BYTES)


def _has_video_content(path: str) -> bool:
    with _opened(path) as file:
        return looks_like_video(file.read(HEAD_BYTES)) or is_animation(file)


@dataclass(slots=True)
class _Search:
    """One search for files in progress."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    follow_symlinks: bool
    images: bool
    rows: list[tuple[str, str, Reason | None]] = field(default_factory=list)
    """Path, resolved path and problem of each file."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def add_named(self, path: str) -> None:
        """Add a file, or the files of a folder.

        Raises:
            VideoError: a URL cannot be examined.
        """
        if is_url(path):
            return self._add_url(path)
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return self.add_problem(path, "not_found", "there is no such file; check the list it came from")
        except OSError as error:
            return self.add_problem(path, "unreadable", f"it cannot be reached ({error.strerror})")
        if stat.S_ISREG(mode):
            return self.rows.append((path, _resolve(path), None))
        if not stat.S_ISDIR(mode):
            return self.add_problem(path, "not_regular", "a pipe, socket or device; only regular files are read")
        num_before = len(self.rows)
        visited: set[tuple[int, int]] = set()
        pending = [(path, _resolve(path))]
        while pending:
            directory, resolved = pending.pop()
            if self.follow_symlinks and (place := file_place(directory)):
                if place in visited:
                    self.skipped.append((directory, "duplicate"))
                    continue
                visited.add(place)
            found = self._read_directory(directory, resolved, path)
            # The slash sorts directories in the order of the paths below them: "a.b/" before "a/".
            pending.extend(sorted(found, key=lambda pair: pair[0] + "/", reverse=True))
        if len(self.rows) == num_before:
            self.empty.append(path)
        return None

    def result(self) -> Discovery:
        seen: set[str] = set()
        paths: list[str] = []
        problems: dict[str, Reason] = {}
        for path, resolved, problem in sorted(self.rows, key=lambda row: row[:2]):
            if resolved in seen:
                self.skipped.append((path, "duplicate"))
            elif problem:
                problems[path] = problem
            else:
                paths.append(path)
            seen.add(resolved)
        return Discovery(paths, problems, sorted(self.skipped), self.empty)

    def add_problem(self, path: str, code: str, text: str) -> None:
        """Add a path that gets an ``error`` row."""
        from dfscan.types import Reason  # imports numpy, which most scans do not need this early

        self.rows.append((path, _resolve(path), Reason(code, text)))

    def _add_url(self, url: str) -> None:
        if kind_of(url) == "file":
            return self.rows.append((url, url, None))
        num_before = len(self.rows)
        root = url.rstrip("/")
        found = find(url)
        reasons = ask_all(lambda path: self._why_not_object(path, root), found)
        for path, reason in zip(found, reasons, strict=True):
            if isinstance(reason, VideoError):
                self.add_problem(path, reason.code, str(reason))
            elif reason:
                self.skipped.append((path, reason))
            else:
                self.rows.append((path, path, None))
        if len(self.rows) == num_before:
            self.empty.append(url)
        return None

    def _why_not_object(self, url: str, root: str) -> str | VideoError | None:
        """Return the reason to skip an object, the error that prevents an answer, or None."""
        relative = url.removeprefix(root).lstrip("/")
        *folders, name = relative.split("/")
        parents = ["/".join(folders[: i + 1]) for i in range(len(folders))]
        if any(_matches(*each, self.exclude) for each in (*zip(folders, parents, strict=True), (name, relative))):
            return "excluded"
        if any(map(is_system_folder, folders)):
            return "system_folder"
        if any(suffix_of(folder) == DOWNLOAD_FOLDER_SUFFIX for folder in folders):
            return "unfinished"
        if not self.include and suffix_of(name) in OTHER_SUFFIXES:
            return "not_video"
        try:
            return self._why_not(name, url, relative)
        except VideoError as error:
            return error

    def _read_directory(self, directory: str, resolved: str, root: str) -> Iterator[tuple[str, str]]:
        """Add the files of one directory and yield its directories, each with its resolved path."""
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    real = _resolve(entry.path) if entry.is_symlink() else os.path.join(resolved, entry.name)
                    if self._judge(entry, real, entry.path.removeprefix(root).lstrip("/")):
                        yield entry.path, real
        except OSError as error:
            self.add_problem(directory, "unreadable", f"the directory cannot be read ({error.strerror})")

    def _judge(self, entry: os.DirEntry[str], resolved: str, relative: str) -> bool:
        """Add or skip a file; return whether the entry is a directory to walk."""
        kind = "not_regular"
        with suppress(OSError):  # a link that leads to itself
            if entry.is_symlink() and not self.follow_symlinks:
                kind = "symlink"
            elif entry.is_dir():
                kind = "directory"
            elif entry.is_file():
                kind = "file"
        if kind in ("file", "directory") and _matches(entry.name, relative, self.exclude):
            kind = "excluded"
        elif kind == "directory" and is_system_folder(entry.name):
            kind = "system_folder"
        elif kind == "directory" and suffix_of(entry.name) == DOWNLOAD_FOLDER_SUFFIX:
            kind = "unfinished"
        if kind == "directory":
            return True
        reason: str | None = kind
        if kind == "file":
            try:
                reason = self._why_not(entry.name, resolved, relative)
            except OSError as error:
                if self._is_picture_name(entry.name) or suffix_of(entry.name) not in OTHER_SUFFIXES:
                    self.add_problem(entry.path, "unreadable", f"it cannot be opened ({error.strerror})")
                    return False
                reason = "unreadable"  # its suffix is not a video's, so it is not worth an error in every nightly scan
        if reason:
            self.skipped.append((entry.path, reason))
        else:
            self.rows.append((entry.path, resolved, None))
        return False

    def _why_not(self, name: str, resolved: str, relative: str) -> str | None:
        if self.include:
            if not _matches(name, relative, self.include):
                return "excluded"
            return "system_file" if _is_apple_double(name, resolved) else None
        if reason := why_no_video(name, resolved):
            return reason
        suffix = suffix_of(name)
        if suffix in VIDEO_SUFFIXES or (suffix not in SOUND_SUFFIXES and _has_video_content(resolved)):
            return None
        if self._is_picture_name(name):
            return None
        is_picture = self.images and suffix not in OTHER_SUFFIXES and picture_kind(_read_head(resolved)) is not None
        return None if is_picture else "not_video"

    def _is_picture_name(self, name: str) -> bool:
        return self.images and suffix_of(name) in SCANNED_PICTURE_SUFFIXES


def _matches(name: str, relative: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(relative, pattern) for pattern in patterns)
