"""Read and write the manifest of a data set: ``manifest.csv`` beside the face crops, with one row per crop.

``dfscan prepare`` writes it and ``dfscan train`` reads it; any other tool may write the same columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dfscan.arrays import Float32Array
from dfscan.errors import DataError
from dfscan.files import write_bytes
from dfscan.text import first_few

TrueLabel = Literal["real", "fake"]
Split = Literal["train", "val", "test"]

TRUE_LABELS: tuple[TrueLabel, ...] = get_args(TrueLabel)
SPLITS: tuple[Split, ...] = get_args(Split)
MANIFEST_NAME = "manifest.csv"
BOX_COLUMNS = ("x1", "y1", "x2", "y2")
LANDMARK_COLUMNS = tuple(
    f"{part}_{axis}" for part in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right") for axis in "xy"
)
TEXT_COLUMNS = ("crop", "source", "label", "kind", "split", "group", "source_sha256", "crop_sha256", "fingerprint")
OPTIONAL_COLUMNS = ("domain", "fold")
"""Text columns that a manifest may omit."""
NUMBER_COLUMNS = ("time_s", "detection_score", *BOX_COLUMNS, *LANDMARK_COLUMNS)
MIN_BOX_PX = 16
"""Minimum longer side of a face's box; `dfscan prepare` keeps no face below 20 px."""
COLUMNS = (*TEXT_COLUMNS, *NUMBER_COLUMNS, *OPTIONAL_COLUMNS)
"""All columns in the order in which they are written. Boxes and landmarks are in pixels of the crop."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One face crop of a data set; its pixels are read only when needed."""

    crop: str
    """Path of the crop relative to the manifest's folder, with ``/`` separators."""
    source: str
    """Path of the video or image that the crop was cut from, as the user gave it."""
    label: TrueLabel
    kind: str
    """Kind of manipulation, such as ``face swap``; empty for real footage or if unknown."""
    split: Split
    group: str
    """Group that must not cross splits: a person, or a source video together with the fakes made from it."""
    source_sha256: str
    """Lower-case hex digest of the source file; empty if unknown."""
    crop_sha256: str
    """Lower-case hex digest of the crop file."""
    time_s: float
    detection_score: float
    box_xyxy: Float32Array
    """(4,) the detector's box, in pixels of the crop."""
    landmarks: Float32Array
    """(5, 2) left eye, right eye, nose, left and right corner of the mouth, in pixels of the crop."""
    fingerprint: str = ""
    """Hex digits of `duplicates.fingerprint`; if empty, it is computed from the crop when needed."""
    domain: str = ""
    """Origin of the footage, such as a data set or a web page; empty if unknown."""
    fold: str = ""
    """Fold of a cross-validation over origins; empty for crops that every fold trains on."""

    def row(self) -> dict[str, Any]:
        """Return the manifest row, by column."""
        numbers = [self.time_s, self.detection_score, *self.box_xyxy.tolist(), *self.landmarks.ravel().tolist()]
        texts = {name: getattr(self, name) for name in (*TEXT_COLUMNS, *OPTIONAL_COLUMNS)}
        return texts | {name: round(value, 3) for name, value in zip(NUMBER_COLUMNS, numbers, strict=True)}


def read_manifest(path: Path) -> list[Sample]:
    """Read a manifest from its file or from the folder of its data set.

    Raises:
        DataError: the manifest is missing, lacks columns, has no rows, or holds invalid values. The message lists all
            missing columns, or the first few bad rows of each problem.
    """
    import pandas as pd

    path = path / MANIFEST_NAME if path.is_dir() else path
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys((*TEXT_COLUMNS, *OPTIONAL_COLUMNS), str), keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); create it with `dfscan prepare`") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a CSV file of face crops ({error}); create it with `dfscan prepare`") from error
    if "source_sha256" not in table.columns:
        table["source_sha256"] = ""
    if missing := [name for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS) if name not in table.columns]:
        raise DataError(f"{path}: lacks the columns {', '.join(missing)}; recreate it with `dfscan prepare`")
    if table.empty:
        raise DataError(f"{path}: holds no face crop; skipped.csv of `dfscan prepare` gives the reasons")
    numbers = table[list(NUMBER_COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    _check_rows(path, table, numbers)
    return [
        Sample(
            **{name: row[name] for name in TEXT_COLUMNS},
            **{name: row.get(name, "") for name in OPTIONAL_COLUMNS},
            time_s=float(values[0]),
            detection_score=float(values[1]),
            box_xyxy=values[2:6],
            landmarks=values[6:].reshape(5, 2),
        )
        for row, values in zip(table.to_dict("records"), numbers, strict=True)
    ]


def _check_rows(path: Path, table: Any, numbers: Float32Array) -> None:
    sides_px = numbers[:, 4:6] - numbers[:, 2:4]
    problems = {
        f"label is neither {' nor '.join(TRUE_LABELS)}": ~table["label"].isin(TRUE_LABELS),
        f"split is none of {', '.join(SPLITS)}": ~table["split"].isin(SPLITS),
        "group is empty": table["group"] == "",
        "crop is empty or leaves the folder": [
            not crop or Path(crop).is_absolute() or ".." in Path(crop).parts for crop in table["crop"]
        ],
        "crop is listed twice": table["crop"].duplicated(),
        "source_sha256 does not have 64 hex digits": ~table["source_sha256"].str.fullmatch("(?:[0-9a-f]{64})?"),
        "fingerprint does not have 128 hex digits": ~table["fingerprint"].str.fullmatch("(?:[0-9a-f]{128})?"),
        "a number is missing or not finite": ~np.isfinite(numbers).all(axis=1),
        f"the face's box is empty or below {MIN_BOX_PX} px": (
            (sides_px.min(axis=1) <= 0) | (sides_px.max(axis=1) < MIN_BOX_PX)
        ),
    }
    complaints = []
    for problem, is_bad in problems.items():
        if lines := [i + 2 for i in np.flatnonzero(is_bad)]:
            complaints.append(f"{problem} (line {first_few(lines)})")
    if complaints:
        raise DataError(f"{path}: {'; '.join(complaints)}")


def write_manifest(path: Path, samples: Iterable[Sample]) -> None:
    """Write a manifest atomically, by rename.

    Raises:
        OutputError: it cannot be written.
    """
    import pandas as pd

    # dtype=object: pandas' default text type, backed by Arrow, rejects names that are not valid UTF-8.
    table = pd.DataFrame([sample.row() for sample in samples], columns=list(COLUMNS), dtype=object)
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace"))
