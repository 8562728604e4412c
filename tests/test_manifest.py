from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dfscan.dataset.manifest import COLUMNS, Sample, read_manifest, write_manifest
from dfscan.errors import DataError, OutputError

SAMPLE = Sample(
    crop="crops/ab/ab_0000_0.png",
    source="videos/a, b.mp4",
    label="fake",
    kind="face swap",
    split="val",
    group="NA",
    source_sha256="ab" * 32,
    crop_sha256="cd" * 32,
    time_s=1.25,
    detection_score=0.999,
    box_xyxy=np.array([1.5, -2.25, 30, 40], np.float32),
    landmarks=np.arange(10, dtype=np.float32).reshape(5, 2),
    fingerprint="0f" * 64,
)


def write_table(folder: Path, **changes: object) -> Path:
    path = folder / "manifest.csv"
    pd.DataFrame([SAMPLE.row() | changes]).to_csv(path, index=False)
    return path


def test_round_trip(tmp_path: Path) -> None:
    other = replace(SAMPLE, crop="crops/b.png", kind="", fingerprint="", source='"\udcff".mp4')
    write_manifest(tmp_path / "manifest.csv", [SAMPLE, other])
    first, second = read_manifest(tmp_path)
    assert first.row() == SAMPLE.row()
    assert first.box_xyxy.dtype == first.landmarks.dtype == np.float32
    assert first.landmarks.shape == (5, 2)
    assert second.row() == other.row() | {"source": '"\\udcff".mp4'}
    header = (tmp_path / "manifest.csv").read_text().splitlines()[0]
    assert header == ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"label": "odd"}, r"label is neither real nor fake \(line 2\)"),
        ({"split": ""}, "split is none of train, val, test"),
        ({"group": ""}, "group is empty"),
        ({"crop": "../a.png"}, "leaves the folder"),
        ({"crop": "/a.png"}, "leaves the folder"),
        ({"x1": "wide"}, "a number is missing or not finite"),
        ({"x1": 50, "y1": 50, "x2": 50, "y2": 50}, "box is empty"),
        ({"x1": 50, "y1": 50, "x2": 60, "y2": 60}, "below 16 px"),
        ({"nose_y": np.inf}, "a number is missing or not finite"),
        ({"fingerprint": "0F" * 64}, "fingerprint does not have 128 hex digits"),
        ({"label": "odd", "split": "odd"}, "label is .*; split is "),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_manifest(write_table(tmp_path, **changes))


def test_a_crop_listed_twice_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.csv", [SAMPLE, SAMPLE])
    with pytest.raises(DataError, match=r"crop is listed twice \(line 3\)"):
        read_manifest(tmp_path)


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(",".join(COLUMNS[2:]) + "\n")
    with pytest.raises(DataError, match="lacks the columns crop, source; recreate it"):
        read_manifest(tmp_path)


def test_a_manifest_without_rows_or_table_or_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    with pytest.raises(DataError, match=r"cannot be read .*create it with `dfscan prepare`"):
        read_manifest(path)
    path.write_text("")
    with pytest.raises(DataError, match="not a CSV file"):
        read_manifest(path)
    path.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(DataError, match="holds no face crop"):
        read_manifest(path)


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Create its directory first"):
        write_manifest(tmp_path / "gone" / "manifest.csv", [SAMPLE])
