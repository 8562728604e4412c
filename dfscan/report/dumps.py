"""Grad-CAM dumps of the highest-scoring faces of a video: the crop, and the heat map over the crop and the frame.

A heat map shows which regions influenced the network; it is not proof of manipulation.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfscan.arrays import UInt8Image
from dfscan.errors import OutputError
from dfscan.files import make_folder, writing
from dfscan.images import encode
from dfscan.report.formats import open_writer
from dfscan.report.schema import Column

INDEX_COLUMNS: tuple[Column, ...] = (
    Column("path", "path"),
    Column("rank", "int"),
    Column("score", "score"),
    Column("time_s", "time"),
    Column("frame", "int"),
    Column("x1", "pixel"),
    Column("y1", "pixel"),
    Column("x2", "pixel"),
    Column("y2", "pixel"),
    Column("face_file", "text"),
    Column("heat_map_file", "text"),
    Column("frame_file", "text"),
)
"""Columns of the index of a dump folder; file names are relative to that folder."""
FILE_COLUMNS = ("face_file", "heat_map_file", "frame_file")
INDEX_NAME = "index.csv"

MAX_STEM = 60
DUMP_JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True, eq=False)
class FaceExplanation:
    """The images that explain one face, all uint8 RGB."""

    face: UInt8Image
    heat_map: UInt8Image
    frame: UInt8Image
    row: dict[str, Any]
    """Values of `INDEX_COLUMNS`, without path, rank and files."""


class DumpFolder:
    """A folder of dumps with an index, and one subfolder per video, so that file names cannot collide or escape."""

    def __init__(self, folder: Path, *, suffix: str) -> None:
        """Create the folder.

        Args:
            folder: the folder; it is created with its parents if it does not exist.
            suffix: ``png`` or ``jpg``.

        Raises:
            OutputError: the folder cannot be created.
        """
        self._folder = folder
        self._suffix = suffix
        make_folder(folder, remedy="Name another folder.")

    def write(self, video_path: str, explanations: Iterable[FaceExplanation]) -> list[dict[str, Any]]:
        """Write one video's exhibits, best first, and return their index rows.

        Raises:
            OutputError: a file cannot be written.
        """
        folder = video_folder(video_path)
        quality = DUMP_JPEG_QUALITY if self._suffix == "jpg" else None
        rows = []
        for rank, explanation in enumerate(explanations, start=1):
            stem = f"{folder}/{rank:02d}_{explanation.row['time_s']:.3f}s_score{explanation.row['score']:.3f}"
            pictures = {"face": explanation.face, "heat_map": explanation.heat_map, "frame": explanation.frame}
            files = {f"{kind}_file": f"{stem}_{kind}.{self._suffix}" for kind in pictures}
            for name, pixels in zip(files.values(), pictures.values(), strict=True):
                try:
                    data = encode(pixels, f".{self._suffix}", quality=quality)
                except ValueError as error:
                    raise OutputError(f"{name}: {error}; try the other --explain-format") from error
                self.store(name, data)
            rows.append({"path": video_path, "rank": rank, **explanation.row, **files})
        return rows

    def store(self, name: str, data: bytes) -> None:
        """Write one file.

        Args:
            name: its path relative to the folder, as in an index row.
            data: its content.

        Raises:
            OutputError: the file cannot be written.
        """
        path = self._folder / name
        make_folder(path.parent, remedy="Name another folder.")
        with writing(path):
            path.write_bytes(data)

    def write_index(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write ``index.csv`` for all videos, replacing an older one.

        Raises:
            OutputError: the index cannot be written.
        """
        with open_writer(self._folder / INDEX_NAME, INDEX_COLUMNS, format="csv") as writer:
            for row in rows:
                writer.append(row)


def holds_dumps(folder: Path, rows: Iterable[dict[str, Any]]) -> bool:
    """Return True if every file of these index rows exists in the folder."""
    return all((folder / row[column]).is_file() for row in rows for column in FILE_COLUMNS)


def video_folder(video_path: str) -> str:
    """Return a readable and unique folder name: the sanitised file name and a hash of the whole path."""
    digest = hashlib.sha256(os.fsencode(video_path)).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", os.path.basename(video_path)).strip("._-")[:MAX_STEM]
    return f"{stem or 'video'}-{digest}"
