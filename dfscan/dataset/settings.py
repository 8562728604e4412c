"""Settings of `dfscan prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from dfscan.config import FACES, INPUT, OUTPUT, Settings, like_scan, setting

CROPS, SPLITTING = "Crops", "Splits"


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(Settings):
    """All settings of `dfscan prepare` besides its inputs."""

    out: Path = setting(MISSING, OUTPUT, "Folder for the data set.", metavar="DATASET", short="-o")

    label: Literal["real", "fake"] | None = setting(None, INPUT, "Label for inputs without one.")
    path_column: str = setting("path", INPUT, "CSV column with the path.", default_text="path, else file")
    label_column: str = setting("label", INPUT, "CSV column with the label: real or 0, fake or 1.")
    group_column: str | None = setting(
        None,
        INPUT,
        "CSV column with the group, such as a person; all files of a group are put in the same split.",
        default_text="group, if present, else each file is a group",
    )
    split_column: str | None = setting(None, INPUT, "CSV column with the split.", default_text="split, if present")
    kind_column: str | None = setting(
        None, INPUT, "CSV column with the kind of manipulation.", default_text="kind or method, if present"
    )
    source_column: str | None = setting(
        None, INPUT, "CSV column with the origin, such as a page or data set.", default_text="domain, if present"
    )
    fold_column: str | None = setting(
        None, INPUT, "CSV column with the cross-validation fold.", default_text="fold, if present"
    )

    num_frames: int = like_scan("num_frames")
    detection_threshold: float = like_scan("detection_threshold")
    min_face_px: int = like_scan("min_face_px")
    max_faces: int = setting(1, FACES, "Maximum number of faces per frame; the largest are kept.", ge=1)

    margin: float = setting(1.8, CROPS, "Ratio of a crop's side to the longer side of the face box.", ge=1, le=4)
    max_crop_px: int = setting(640, CROPS, "Maximum side of a crop in pixels; larger crops are shrunk.", ge=64)
    crop_format: Literal["png", "jpg"] = setting("png", CROPS, "Image format; png is lossless.")

    val: float = setting(0.15, SPLITTING, "Fraction of the groups in the validation split.", ge=0, lt=1)
    test: float = setting(0.15, SPLITTING, "Fraction of the groups in the test split.", ge=0, lt=1)
    seed: int = setting(0, SPLITTING, "Seed of the split.")

    workers: int | None = like_scan("workers")
    timeout: float = like_scan("timeout")
    max_memory: int = like_scan("max_memory")
    sandbox: bool = like_scan("sandbox")
    quiet: bool = like_scan("quiet")
    log_file: Path | None = like_scan("log_file")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the combination of values."""
        if self.val + self.test >= 1:
            yield "test: val and test leave nothing to train on; their sum must be below 1"
