"""Cut face crops from labelled videos and images, decoded and detected as in a scan, and record them in a journal."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import cv2
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from dfscan.config import Count, Memory, Probability, Timeout
from dfscan.dataset.crops import CropFormat, LooseCrop, cut, encode
from dfscan.dataset.duplicates import fingerprint
from dfscan.dataset.journal import CropRecord, Entry, Journal, writing
from dfscan.dataset.layouts import Source
from dfscan.dataset.manifest import Label
from dfscan.dataset.sources import SourceOptions
from dfscan.errors import ConfigError
from dfscan.faces.detect import FaceDetector
from dfscan.media.isolate import Ended, Limits, Opened, decode_videos
from dfscan.media.plan import Sampling
from dfscan.media.source import FileIdentity
from dfscan.scan.setup import default_threads, default_workers, limit_threads
from dfscan.types import Frame

CROPS_DIR = "crops"
UNFINISHED_DIR = "crops/.unfinished"
CUTTING = ("num_frames", "detection_threshold", "min_face_px", "max_faces", "margin", "max_crop_px", "crop_format")
"""Settings that the crops depend on."""
CUTTING_VERSION = 2
"""Incremented whenever the same settings produce different crops."""


class PrepareSettings(BaseModel):
    """All settings of `dfscan prepare` besides its inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    out: Path
    # labels
    label: Label | None = None
    path_column: str = SourceOptions().path_column
    label_column: str = SourceOptions().label_column
    group_column: str | None = None
    split_column: str | None = None
    kind_column: str | None = None
    source_column: str | None = None
    fold_column: str | None = None
    # faces
    num_frames: Count = 32
    detection_threshold: Probability = 0.95
    min_face_px: Annotated[int, Field(ge=20)] = 48
    max_faces: Count = 1
    # crops
    margin: Annotated[float, Field(ge=1, le=4)] = 1.8
    max_crop_px: Annotated[int, Field(ge=64)] = 640
    crop_format: CropFormat = "png"
    # splits
    val: Annotated[float, Field(ge=0, lt=1)] = 0.15
    test: Annotated[float, Field(ge=0, lt=1, validate_default=True)] = 0.15
    seed: int = 0
    # behaviour
    workers: Count | None = None
    timeout: Timeout = 300.0
    max_memory: Memory = 2048
    sandbox: bool = True
    quiet: bool = False
    log_file: Path | None = None

    @field_validator("test")
    @classmethod
    def _leave_some_to_train_on(cls, test: float, info: ValidationInfo) -> float:
        if test + info.data.get("val", 0) >= 1:
            raise ValueError("val and test leave nothing to train on; their sum must be below 1")
        return test

    @property
    def source_options(self) -> SourceOptions:
        """Options for reading the inputs."""
        return SourceOptions(**self.model_dump(include={each.name for each in fields(SourceOptions)}))


class Listener(Protocol):
    """Receives the progress of the preparation."""

    def set_total(self, num_sources: int) -> None:
        """Announce the number of sources that this run will process."""

    def source_done(self, path: str, num_crops: int, reason: str) -> None:
        """Report a finished source; `reason` explains missing faces and is empty if there are none missing."""


def recipe(settings: PrepareSettings) -> dict[str, Any]:
    """Return everything besides the sources that crops depend on, in the form that the journal stores."""
    values = settings.model_dump(mode="json", include=set(CUTTING))
    return {**values, "cutting_version": CUTTING_VERSION}


@dataclass(eq=False)
class _Work:
    """A source in progress."""

    number: int
    identity: FileIdentity | None
    num_frames: int = 0
    failure: str = ""
    crops: list[tuple[str, CropRecord]] = field(default_factory=list)
    """Suffix of each crop's name, with its record, whose `crop` is still empty."""


class Extraction:
    """Cuts the faces of all sources that are not in the journal yet."""

    def __init__(
        self,
        settings: PrepareSettings,
        journal: Journal,
        sources: Sequence[Source],
        listener: Listener | None,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._listener = listener
        self._sources = {source.path: source for source in sources}
        self._first_with: dict[str, Source] = {}
        self._unfinished_dir = settings.out / UNFINISHED_DIR
        self._under_way: dict[str, _Work] = {}
        self.failures: dict[str, str] = {}
        """Reason why a source could not be decoded, by path; not journalled, so the next run retries it."""

    def run(self) -> None:
        """Process all sources that the journal lacks.

        Raises:
            ConfigError: one file has two labels.
            OutputError: a crop or the journal cannot be written.
        """
        current = [path for path in self._sources if self._is_done(path)]
        for path in current:
            self._refuse_two_labels(path, self._journal.entries[path].sha256)
        paths = [path for path in self._sources if path not in set(current)]
        if self._listener:
            self._listener.set_total(len(paths))
        shutil.rmtree(self._unfinished_dir, ignore_errors=True)
        if not paths:
            return
        with writing(self._unfinished_dir):
            self._unfinished_dir.mkdir(parents=True)
        self._decode(paths)
        shutil.rmtree(self._unfinished_dir, ignore_errors=True)

    def _is_done(self, path: str) -> bool:
        entry = self._journal.entries.get(path)
        return entry is not None and entry.is_current(self._settings.out)

    def _refuse_two_labels(self, path: str, sha256: str) -> None:
        source = self._sources[path]
        first = self._first_with.setdefault(sha256, source)
        if first.label != source.label:
            raise ConfigError(
                f"'{path}' is {source.label}, but the same file is {first.label} as '{first.path}': remove "
                "the wrong one"
            )

    def _decode(self, paths: Sequence[str]) -> None:
        settings = self._settings
        detector = self._load_detector()
        events = decode_videos(
            paths,
            sampling=Sampling(settings.num_frames, streams="main"),
            num_workers=settings.workers or default_workers(default_threads(), "cpu"),
            limits=Limits(settings.timeout, settings.max_memory, settings.sandbox),
        )
        num_opened = 0
        with closing(events):
            for event in events:
                if isinstance(event, Opened):
                    num_opened += 1
                    self._under_way[event.path] = _Work(num_opened, FileIdentity.of(event.path))
                elif isinstance(event, Ended):
                    self._end(self._under_way.pop(event.path), event)
                else:
                    self._look(self._under_way[event.path], event.frame, detector)

    def _load_detector(self) -> FaceDetector:
        settings = self._settings
        detector = FaceDetector(
            threshold=settings.detection_threshold,
            min_face_px=settings.min_face_px,
            max_faces=settings.max_faces,
        )
        limit_threads()
        return detector

    def _look(self, work: _Work, frame: Frame, detector: FaceDetector) -> None:
        work.num_frames += 1
        try:
            detections = detector.detect(frame.pixels)
        except (IndexError, ValueError, cv2.error) as error:  # unusual frames can trigger these in MTCNN and OpenCV
            work.failure = f"internal: face detection failed on a picture ({type(error).__name__})"
            return
        for i, detection in enumerate(detections):
            crop = cut(frame.pixels, detection, margin=self._settings.margin, max_crop_px=self._settings.max_crop_px)
            name = f"{frame.index:04d}_{i}.{self._settings.crop_format}"
            work.crops.append((name, self._keep(work, name, crop, frame.time_s, detection.score)))

    def _keep(self, work: _Work, name: str, crop: LooseCrop, time_s: float, score: float) -> CropRecord:
        data = encode(crop.pixels, self._settings.crop_format)
        path = self._unfinished_dir / f"{work.number}_{name}"
        with writing(path):
            path.write_bytes(data)
        return CropRecord(
            crop="",
            crop_sha256=hashlib.sha256(data).hexdigest(),
            fingerprint=fingerprint(crop.pixels),
            time_s=time_s,
            detection_score=score,
            box_xyxy=crop.box_xyxy.tolist(),
            landmarks=crop.landmarks.ravel().tolist(),
        )

    def _end(self, work: _Work, ended: Ended) -> None:
        path, reason = ended.path, work.failure
        if ended.failure is not None:
            reason = str(ended.failure)
        elif work.identity is None or work.identity != FileIdentity.of(path):
            reason = "changed: the file changed while it was read; run the command again"
        num_crops = 0
        if reason:
            self.failures[path] = reason
            self._discard(work)
        else:
            entry = self._finish(work, ended)
            num_crops, reason = len(entry.crops), note(entry, self._settings)
        if self._listener:
            self._listener.source_done(path, num_crops, reason)

    def _discard(self, work: _Work) -> None:
        for name, _ in work.crops:
            (self._unfinished_dir / f"{work.number}_{name}").unlink(missing_ok=True)

    def _finish(self, work: _Work, ended: Ended) -> Entry:
        """Move the crops to their final names, then record the source in the journal."""
        assert ended.info is not None and ended.info.sha256 is not None and work.identity is not None
        sha256 = ended.info.sha256
        self._refuse_two_labels(ended.path, sha256)
        records = []
        for name, record in work.crops:
            crop = f"{CROPS_DIR}/{sha256[:2]}/{sha256[:16]}_{name}"
            with writing(self._settings.out / crop):
                (self._settings.out / crop).parent.mkdir(exist_ok=True)
                os.replace(self._unfinished_dir / f"{work.number}_{name}", self._settings.out / crop)
            records.append(replace(record, crop=crop))
        identity = work.identity
        entry = Entry(
            path=ended.path,
            size_bytes=identity.size_bytes,
            mtime_ns=identity.mtime_ns,
            sha256=sha256,
            num_frames=work.num_frames,
            damage=ended.damage or "",
            crops=records,
            inode=identity.inode,
            ctime_ns=identity.ctime_ns,
        )
        self._journal.append(entry)
        return entry


def note(entry: Entry, settings: PrepareSettings) -> str:
    """Return why a source gave no crop or only part of its crops, or an empty string."""
    if not entry.crops:
        damage = f"; {entry.damage}" if entry.damage else ""
        return f"no_face: no face of {settings.min_face_px} px or more in {entry.num_frames} frames{damage}"
    return f"partial: {entry.damage}" if entry.damage else ""
