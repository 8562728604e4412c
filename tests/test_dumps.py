from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dfscan.errors import OutputError
from dfscan.report.dumps import DumpFolder, FaceExplanation, video_folder


def explanation(level: int = 200) -> FaceExplanation:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = level  # red, to detect swapped channels
    row = {"score": 0.75, "time_s": 1.5, "frame": 3, "x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}
    return FaceExplanation(pixels[:, :40], pixels[:, :40], pixels, row)


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0), ("jpg", 6)])
def test_images_keep_their_colours(tmp_path: Path, suffix: str, tolerance: int) -> None:
    (row,) = DumpFolder(tmp_path, suffix=suffix).write("a.mp4", [explanation()])
    picture = cv2.imread(str(tmp_path / row["frame_file"]))
    assert picture is not None
    assert np.abs(picture[20, 30].astype(int) - [0, 0, 200]).max() <= tolerance


HOSTILE = [
    "../../etc/x.mp4",
    "/",
    "..",
    "a/b.mp4",
    "c/b.mp4",
    "b.mp4",
    "B.mp4",
    "\udcff.mp4",
    "x" * 300,
    "a\nb",
    ".mp4",
]


def test_names_neither_collide_nor_escape_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    dumps = DumpFolder(folder, suffix="png")
    rows = [row for path in HOSTILE for row in dumps.write(path, [explanation(), explanation()])]
    files = [folder / row[f"{kind}_file"] for row in rows for kind in ("face", "heat_map", "frame")]
    assert len(set(files)) == len(files) == len(HOSTILE) * 6
    assert all(folder.resolve() in file.resolve().parents and file.is_file() for file in files)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(files)
    assert len({video_folder(path).lower() for path in HOSTILE}) == len(HOSTILE)


def test_index_lists_every_dump(tmp_path: Path) -> None:
    dumps = DumpFolder(tmp_path, suffix="png")
    rows = dumps.write("one.mp4", [explanation(), explanation()])
    dumps.write_index(rows)
    index = pd.read_csv(tmp_path / "index.csv")
    assert list(index["rank"]) == [1, 2]
    assert list(index.path) == ["./one.mp4"] * 2
    assert list(index.score) == [0.75, 0.75]
    assert all((tmp_path / file).is_file() for file in index.heat_map_file)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        DumpFolder(tmp_path / "file" / "dumps", suffix="png")


def test_failed_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    dumps = DumpFolder(tmp_path, suffix="png")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        dumps.write("a.mp4", [explanation()])
