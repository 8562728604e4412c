"""Cut face crops from labelled videos and images, decoded and detected as in a scan, and record them in a journal."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import cv2

from dfscan.dataset.crops import cut, encode_crop
from dfscan.dataset.duplicates import fingerprint
from dfscan.dataset.journal import RESUME, CropRecord, Journal, JournalEntry
from dfscan.dataset.layouts import Source
from dfscan.dataset.settings import PrepareSettings
from dfscan.errors import DataError
from dfscan.faces.detect import FaceDetector
from dfscan.files import writing
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


class PrepareListener(Protocol):
    """Receives the progress of the preparation."""

    def set_total(self, num_sources: int) -> None:
        """Announce the number of sources that this run will process."""

    def source_done(self, path: str, num_crops: int, reason: str) -> None:
        """Report a finished source; `reason` explains missing faces and is empty if there are none missing."""


def crop_recipe(settings: PrepareSettings) -> dict[str, Any]:
    """Return everything besides the sources that crops depend on, in the form that the journal stores."""
    return {**{name: getattr(settings, name) for name in CUTTING}, "cutting_version": CUTTING_VERSION}


@dataclass(eq=False)
class _PendingSource:
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
        listener: PrepareListener | None,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._listener = listener
        self._sources = {source.path: source for source in sources}
        self._first_with: dict[str, Source] = {}
        self._unfinished_dir = settings.out / UNFINISHED_DIR
        self._pending: dict[str, _PendingSource] = {}
        self.failures: dict[str, str] = {}
        """Reason why a source could not be decoded, by path; not journalled, so the next run retries it."""

    def run(self) -> None:
        """Process all sources that the journal lacks.

        Raises:
            DataError: one file has two labels.
            OutputError: a crop or the journal cannot be written.
        """
        settings, entries = self._settings, self._journal.entries
        done = {path for path in self._sources if path in entries and entries[path].is_current(settings.out)}
        paths = []
        for path in self._sources:
            if path in done:
                self._refuse_two_labels(path, entries[path].sha256)
            else:
                paths.append(path)
        if self._listener:
            self._listener.set_total(len(paths))
        shutil.rmtree(self._unfinished_dir, ignore_errors=True)
        if not paths:
            return
        with writing(self._unfinished_dir, remedy=RESUME):
            self._unfinished_dir.mkdir(parents=True)
        detector = FaceDetector(
            threshold=settings.detection_threshold,
            min_face_px=settings.min_face_px,
            max_faces=settings.max_faces,
        )
        limit_threads()
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
                    self._pending[event.path] = _PendingSource(num_opened, FileIdentity.of(event.path))
                elif isinstance(event, Ended):
                    self._end(self._pending.pop(event.path), event)
                else:
                    self._look(self._pending[event.path], event.frame, detector)
        shutil.rmtree(self._unfinished_dir, ignore_errors=True)

    def _refuse_two_labels(self, path: str, sha256: str) -> None:
        source = self._sources[path]
        first = self._first_with.setdefault(sha256, source)
        if first.label != source.label:
            raise DataError(
                f"'{path}' is {source.label}, but the same file is {first.label} as '{first.path}': remove "
                "the wrong one"
            )

    def _look(self, work: _PendingSource, frame: Frame, detector: FaceDetector) -> None:
        """Cut the faces of a frame and write them under temporary names."""
        settings = self._settings
        work.num_frames += 1
        try:
            detections = detector.detect(frame.pixels)
        except (IndexError, ValueError, cv2.error) as error:  # unusual frames can trigger these in MTCNN and OpenCV
            work.failure = f"internal: face detection failed on an image ({type(error).__name__})"
            return
        for i, detection in enumerate(detections):
            crop = cut(frame.pixels, detection, margin=settings.margin, max_crop_px=settings.max_crop_px)
            data = encode_crop(crop.pixels, settings.crop_format)
            name = f"{frame.index:04d}_{i}.{settings.crop_format}"
            path = self._unfinished_dir / f"{work.number}_{name}"
            with writing(path, remedy=RESUME):
                path.write_bytes(data)
            record = CropRecord(
                crop="",
                crop_sha256=hashlib.sha256(data).hexdigest(),
                fingerprint=fingerprint(crop.pixels),
                time_s=frame.time_s,
                detection_score=detection.score,
                box_xyxy=crop.box_xyxy.tolist(),
                landmarks=crop.landmarks.ravel().tolist(),
            )
            work.crops.append((name, record))

    def _end(self, work: _PendingSource, ended: Ended) -> None:
        path, reason = ended.path, work.failure
        if ended.failure is not None:
            reason = str(ended.failure)
        elif work.identity is None or work.identity != FileIdentity.of(path):
            reason = "changed: the file changed while it was read; run the command again"
        num_crops = 0
        if reason:
            self.failures[path] = reason
            for name, _ in work.crops:
                (self._unfinished_dir / f"{work.number}_{name}").unlink(missing_ok=True)
        else:
            entry = self._finish(work, ended)
            num_crops, reason = len(entry.crops), note(entry, self._settings)
        if self._listener:
            self._listener.source_done(path, num_crops, reason)

    def _finish(self, work: _PendingSource, ended: Ended) -> JournalEntry:
        """Move the crops to their final names, then record the source in the journal."""
        assert ended.info is not None and ended.info.sha256 is not None and work.identity is not None
        sha256 = ended.info.sha256
        self._refuse_two_labels(ended.path, sha256)
        records = []
        for name, record in work.crops:
            crop = f"{CROPS_DIR}/{sha256[:2]}/{sha256[:16]}_{name}"
            with writing(self._settings.out / crop, remedy=RESUME):
                (self._settings.out / crop).parent.mkdir(exist_ok=True)
                os.replace(self._unfinished_dir / f"{work.number}_{name}", self._settings.out / crop)
            records.append(replace(record, crop=crop))
        identity = work.identity
        entry = JournalEntry(
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


def note(entry: JournalEntry, settings: PrepareSettings) -> str:
    """Return why a source gave no crop or only part of its crops, or an empty string."""
    if not entry.crops:
        damage = f"; {entry.damage}" if entry.damage else ""
        return f"no_face: no face of {settings.min_face_px} px or more in {entry.num_frames} frames{damage}"
    return f"partial: {entry.damage}" if entry.damage else ""
