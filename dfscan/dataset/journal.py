"""Record what `prepare` has finished, one line of JSON per source, so that an interrupted run can resume.

Labels, groups and splits are not stored: they may change, and inputs may be added, without cutting any face again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dfscan.errors import ConfigError, DataError, VideoError
from dfscan.files import writing
from dfscan.media.source import FileIdentity, hash_file

JOURNAL_NAME = "progress.jsonl"
RESUME = "Free some space there or choose another --out, then run the same command to resume."
"""Remedy for a file of a data set that cannot be written."""


@dataclass(frozen=True, slots=True)
class CropRecord:
    """One crop that was written; the fields are those of `manifest.Sample`."""

    crop: str
    crop_sha256: str
    fingerprint: str
    time_s: float
    detection_score: float
    box_xyxy: list[float]
    landmarks: list[float]
    """Ten numbers: x and y of each of the five landmarks."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A source that could be decoded, with or without faces."""

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    num_frames: int
    damage: str
    """Description of the part that could not be decoded; empty if everything could."""
    crops: list[CropRecord]
    inode: int | str | None = None
    """None, like `ctime_ns`, in journals from before it was recorded."""
    ctime_ns: int | None = None

    def is_current(self, dataset_dir: Path) -> bool:
        """Check that the source is unchanged and its crops exist; hash the source only if in doubt."""
        identity = FileIdentity.of(self.path)
        if identity is None or (identity.size_bytes, identity.mtime_ns) != (self.size_bytes, self.mtime_ns):
            return False
        if not all((dataset_dir / crop.crop).is_file() for crop in self.crops):
            return False
        if (identity.inode, identity.ctime_ns) == (self.inode, self.ctime_ns):
            return True
        try:
            return hash_file(self.path) == self.sha256
        except VideoError:
            return False  # decoding it again reports why


class Journal:
    """The open journal of a data set: a context manager that also locks out a second run."""

    def __init__(self, dataset_dir: Path, recipe: Mapping[str, Any]) -> None:
        """Open the journal, or create it.

        Args:
            dataset_dir: created with its parents if missing.
            recipe: everything besides the sources that crops depend on.

        Raises:
            DataError: the journal is damaged.
            ConfigError: the folder holds other files, was started with another recipe, or is in use.
            OutputError: the journal cannot be written.
        """
        self._path = dataset_dir / JOURNAL_NAME
        with writing(self._path, remedy=RESUME):
            dataset_dir.mkdir(parents=True, exist_ok=True)
            if not self._path.exists() and any(dataset_dir.iterdir()):
                raise ConfigError(
                    f"{dataset_dir}: is not empty and not a data set of `dfscan prepare`; choose another --out"
                )
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{dataset_dir}: another `dfscan prepare` is running there; wait for it") from None
            self.entries = self._read(dict(recipe))
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self, recipe: dict[str, Any]) -> dict[str, JournalEntry]:
        """Return the latest entry of each source; truncate an incomplete last line left by a killed run."""
        data = self._path.read_bytes()
        length = data.rfind(b"\n") + 1
        os.ftruncate(self._fd, length)
        head, *lines = data[:length].splitlines() or [b""]
        if not head:
            self._append(recipe)
            return {}
        try:
            begun_with = json.loads(head)
            entries = [
                JournalEntry(**{**value, "crops": [CropRecord(**crop) for crop in value["crops"]]})
                for value in map(json.loads, lines)
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self._path}: is damaged ({error}); delete it to start over") from error
        names = sorted({*begun_with, *recipe})
        if changed := [name for name in names if begun_with.get(name) != recipe.get(name)]:
            changes = ", ".join(f"{name} {begun_with.get(name)}, not {recipe.get(name)}" for name in changed)
            raise ConfigError(
                f"{self._path.parent}: was started with {changes}. Use the same settings, choose another --out, or "
                f"delete {self._path} to start over"
            )
        return {entry.path: entry for entry in entries}

    def append(self, entry: JournalEntry) -> None:
        """Record a source as finished.

        Raises:
            OutputError: the journal cannot be written.
        """
        self._append(asdict(entry))
        self.entries[entry.path] = entry

    def _append(self, value: dict[str, Any]) -> None:
        with writing(self._path, remedy=RESUME), os.fdopen(self._fd, "wb", closefd=False) as file:
            file.write(json.dumps(value).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
