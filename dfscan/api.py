"""Scan videos from Python: `Scanner`, `scan_video` and `to_frame`.

Nothing is written and nothing is read but the videos and the checkpoint: no report, no ledger, no ``DFSCAN_*``
variable and no configuration file. Problems are the exceptions of `dfscan.errors`; a video that cannot be judged is
not one of them, but a result with the label ``error``.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypedDict, Unpack
from weakref import WeakSet

from dfscan.config import ScanSettings, build_settings, rows
from dfscan.errors import ConfigError, DfscanError
from dfscan.extras import require
from dfscan.media.discover import Discovery, discover
from dfscan.report.copies import CopyFinder
from dfscan.report.schema import REPORT_COLUMNS, Kind, detector_columns, report_row
from dfscan.report.writers import typed_cell
from dfscan.scan.pipeline import Engine, failed, scan_videos
from dfscan.scan.setup import load_engine, resolve
from dfscan.text import report_order
from dfscan.types import VideoResult
from dfscan.version import __version__

if TYPE_CHECKING:
    import pandas as pd

AnyPath = str | os.PathLike[str]

DTYPES: dict[Kind, Literal["string", "Int64"]] = {"path": "string", "text": "string", "int": "Int64"}
"""Types of columns in a DataFrame; all other kinds are float64."""


class ScannerOptions(TypedDict, total=False):
    """Keyword arguments of a `Scanner`: the flags of ``dfscan scan`` by their names, with their defaults."""

    include: Sequence[str]
    exclude: Sequence[str]
    follow_symlinks: bool
    images: bool
    num_frames: int | None
    every: float | None
    max_frames: int | None
    stream: Literal["all", "main"] | int
    detection_threshold: float | None
    min_face_px: int | None
    max_faces: int | None
    device: str
    batch_size: int | None
    threshold: float | None
    min_faces: int | None
    provenance: bool | None
    trust_list: AnyPath | None
    workers: int | None
    threads: int | None
    timeout: float
    max_memory: int
    sandbox: bool


class Scanner:
    """Loads a checkpoint once and judges any number of videos with it.

    Also a context manager, which ends scans that are still in progress::

        with dfscan.Scanner(num_frames=16) as scanner:
            for result in scanner.scan("videos"):
                print(result.path, result.verdict.label, result.verdict.score)

    Loading limits OpenCV, and PyTorch if it is imported, to one thread for each call in the whole process.
    """

    def __init__(
        self, checkpoint: AnyPath | Sequence[AnyPath] | None = None, **options: Unpack[ScannerOptions]
    ) -> None:
        """Load the models.

        Args:
            checkpoint: trained detector, a ``.safetensors`` file or a name on the Hugging Face Hub, or several of them;
                None takes the one that is built in.
            **options: see `ScannerOptions`. None, or an option left out, takes the checkpoint's own value.

        Raises:
            ConfigError: an option is unknown or out of range, or the device does not exist.
            CheckpointError: the checkpoint is missing, damaged, or no longer gives the scores it promises.
            DfscanError: the network cannot be exported or does not fit into the device.
        """
        if others := sorted(options.keys() & rows(ScanSettings).keys() - ScannerOptions.__annotations__.keys()):
            raise ConfigError(f"{', '.join(others)}: an option of `dfscan scan` that a Scanner does not take")
        several = [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
        names = None if several is None else [os.fspath(each) for each in several]
        self._settings, loaded = resolve(build_settings(ScanSettings, {**options, "checkpoint": names}))
        self._checkpoint = "; ".join(each.label for each in loaded)
        self._engine: Engine | None = load_engine(self._settings, loaded)
        self._scans: WeakSet[Generator[VideoResult, None, None]] = WeakSet()

    def scan(self, paths: AnyPath | Iterable[AnyPath]) -> Generator[VideoResult, None, None]:
        """Judge videos, several at a time.

        Memory does not grow with the number of videos. Closing the iterator, or dropping it as ``break`` does, ends
        the decoding processes.

        Args:
            paths: one or several files and folders. Folders are searched with all their subfolders. A file that is
                reached twice is judged once.

        Returns:
            An iterator over one result for each video, in the order in which they are complete.

        Raises:
            ConfigError: a path does not exist.
            DfscanError: this scanner is closed. Also raised by the iterator, when the device fails.
        """
        if self._engine is None:
            raise DfscanError("this Scanner is closed; make a new one")
        settings = self._settings
        discovery = discover(
            [paths] if isinstance(paths, (str, os.PathLike)) else paths,
            include=settings.include,
            exclude=settings.exclude,
            follow_symlinks=settings.follow_symlinks,
            images=settings.images,
        )
        results = self._results_of(discovery, self._engine)
        self._scans.add(results)
        return results

    def scan_video(self, path: AnyPath) -> VideoResult:
        """Judge one video.

        Raises:
            ConfigError: the file does not exist, or is a folder.
            DfscanError: this scanner is closed, or the device fails.
        """
        if os.path.isdir(path):
            raise ConfigError(f"{os.fspath(path)} is a folder; give it to Scanner.scan")
        (result,) = self.scan(path)
        return result

    def close(self) -> None:
        """End scans that are in progress, and release the models."""
        for results in list(self._scans):
            results.close()
        self._engine = None

    def _results_of(self, discovery: Discovery, engine: Engine) -> Generator[VideoResult, None, None]:
        for path, reason in discovery.problems.items():
            yield self._signed(failed(path, reason))
        with closing(scan_videos(discovery.paths, engine)) as scanned:
            for result, _ in scanned:
                yield self._signed(result)

    def _signed(self, result: VideoResult) -> VideoResult:
        return replace(result, checkpoint=self._checkpoint, dfscan_version=__version__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def scan_video(
    path: AnyPath, checkpoint: AnyPath | Sequence[AnyPath] | None = None, **options: Unpack[ScannerOptions]
) -> VideoResult:
    """Load a checkpoint and judge one video; for several videos make one `Scanner`, which loads it once.

    Args:
        path: the video.
        checkpoint: see `Scanner`.
        **options: see `ScannerOptions`.

    Raises:
        ConfigError, CheckpointError, DfscanError: as `Scanner` and `Scanner.scan_video`.
    """
    with Scanner(checkpoint, **options) as scanner:
        return scanner.scan_video(path)


def to_frame(results: Iterable[VideoResult]) -> pd.DataFrame:
    """Put results into a DataFrame, with the columns, values and order of rows of a report.

    Args:
        results: of `Scanner.scan` or `scan_video`. An iterator is read to its end; only the rows are kept.

    Returns:
        One row for each result, sorted by path. Text is ``string``, whole numbers are ``Int64``, all other numbers
        ``float64``. Missing values are ``<NA>`` or NaN.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    require("pandas", "dfscan.to_frame")
    import pandas as pd

    kept, names = list[tuple[dict[str, object], VideoResult]](), dict[str, None]()
    for result in results:
        detectors = [each.name for each in result.detectors]
        names |= dict.fromkeys(detectors)
        row = report_row(result, checkpoint=result.checkpoint, version=result.dfscan_version, detectors=detectors)
        kept.append((row, replace(result, tracks=(), detectors=())))
    kept.sort(key=lambda pair: report_order(pair[1].path))
    copies = CopyFinder()
    rows = [{**row, "same_as": first.path if (first := copies.find(result)) else None} for row, result in kept]
    return pd.DataFrame(
        {
            column.name: pd.Series(
                [typed_cell(column, row.get(column.name)) for row in rows], dtype=DTYPES.get(column.kind, "float64")
            )
            for column in (*REPORT_COLUMNS, *detector_columns(list(names)))
        }
    )
