"""The stages of a scan, wired: decoding children -> detection -> crops -> classifier -> tracks -> verdict.

Several videos are under way at once. Faces of all of them share the classifier's batches, which run in a thread of
their own while the next frames are searched for faces; a result comes out as soon as its video is complete. A frame's
pixels live until its faces are scored, or as long as it is among the best of its video when dumps are asked for.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dfscan.detector import gradcam
from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.detector.runtime import Runtime
from dfscan.faces.appearance import appearance, scene
from dfscan.faces.crop import crop_face, crop_square_xyxy
from dfscan.faces.detect import Detection, FaceDetector
from dfscan.faces.track import link
from dfscan.media.isolate import Decoded, Ended, Limits, Opened, decode_videos
from dfscan.media.plan import Sampling
from dfscan.report.dumps import DumpFolder, Exhibit
from dfscan.scan.ledger import FileIdentity
from dfscan.scan.timing import Timings
from dfscan.scan.verdict import Rules, decide
from dfscan.types import Face, FaceCrop, FaceScore, Frame, Reason, Scene, Track, Verdict, VideoInfo, VideoResult

MAX_WAITING_BATCHES = 3
"""Batches of faces that may wait for the classifier before the search for more pauses."""

Floats = NDArray[np.float32]

log = logging.getLogger("dfscan")


class Listener(Protocol):
    """Hears how a scan goes on."""

    def faces_scored(self, count: int) -> None:
        """So many more faces have been judged."""

    def video_done(self, result: VideoResult) -> None:
        """One more result is out."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What does the work: models and numbers, the same for every video of a scan."""

    detector: FaceDetector
    runtime: Runtime
    preprocessing: Preprocessing
    temperature: float
    sampling: Sampling
    rules: Rules
    num_workers: int
    limits: Limits


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A judged face with what an explanation needs."""

    scored: FaceScore
    crop: FaceCrop
    frame: Frame | None
    cam: Floats


@dataclass(eq=False)
class _Video:
    """A video under way."""

    path: str
    identity: FileIdentity | None
    num_best: int
    num_frames: int = 0
    num_waiting: int = 0
    ended: Ended | None = None
    has_changed: bool = False
    failure: Reason | None = None
    faces: list[FaceScore] = field(default_factory=list)
    best: list[tuple[float, int, _Scored]] = field(default_factory=list)

    def end(self, ended: Ended) -> None:
        self.ended = ended
        self.has_changed = self.identity != FileIdentity.of(self.path)

    @property
    def is_complete(self) -> bool:
        return self.ended is not None and not self.num_waiting

    def take(self, scored: _Scored) -> None:
        self.num_waiting -= 1
        self.faces.append(scored.scored)
        if not self.num_best:
            return
        entry = (scored.scored.logit, -len(self.faces), scored)
        if len(self.best) < self.num_best:
            heapq.heappush(self.best, entry)
        else:
            heapq.heappushpop(self.best, entry)


def scan_videos(
    paths: Iterable[str],
    engine: Engine,
    *,
    dumps: DumpFolder | None = None,
    num_dumped: int = 0,
    listener: Listener | None = None,
    timings: Timings | None = None,
) -> Generator[tuple[VideoResult, FileIdentity | None], None, None]:
    """Judge videos one after the other, several at a time.

    Args:
        paths: regular files.
        engine: models and settings.
        dumps: where Grad-CAM dumps of the `num_dumped` highest-scoring faces of each video go, if anywhere.
        num_dumped: see `dumps`.
        listener: told of every batch of faces.
        timings: adds up the cost of the stages.

    Yields:
        A result for each path, as they are complete, with the file's identity from before it was opened.

    Raises:
        OutputError: a dump cannot be written.
        DfscanError: the classifier's device fails.
    """
    scan = _Scan(engine, dumps, num_dumped if dumps else 0, listener, timings or Timings())
    try:
        yield from scan.run(paths)
    finally:
        scan.close()


class _Scan:
    def __init__(
        self, engine: Engine, dumps: DumpFolder | None, num_dumped: int, listener: Listener | None, timings: Timings
    ) -> None:
        self._engine = engine
        self._dumps = dumps
        self._num_dumped = num_dumped
        self._timings = timings
        self._queue = _ScoringQueue(engine, listener, timings)
        self._videos: dict[str, _Video] = {}

    def run(self, paths: Iterable[str]) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
        engine = self._engine
        events = decode_videos(paths, sampling=engine.sampling, num_workers=engine.num_workers, limits=engine.limits)
        with closing(events):
            for event in events:
                if isinstance(event, Opened):
                    self._videos[event.path] = _Video(event.path, FileIdentity.of(event.path), self._num_dumped)
                elif isinstance(event, Decoded):
                    self._look(self._videos[event.path], event.frame)
                else:
                    self._videos[event.path].end(event)
                    self._note(event, self._videos[event.path].num_frames)
                self._queue.deliver()
                yield from self._finished()
        self._queue.flush()
        yield from self._finished()

    def close(self) -> None:
        self._queue.close()

    def _note(self, ended: Ended, num_frames: int) -> None:
        self._timings.add("open", cpu_s=ended.open_cpu_s)
        self._timings.add("decode", cpu_s=ended.cpu_s - ended.open_cpu_s, count=num_frames)
        self._timings.note_child_rss(ended.peak_rss_bytes)
        self._timings.video_s += (ended.info.duration_s or 0.0) if ended.info else 0.0

    def _look(self, video: _Video, frame: Frame) -> None:
        video.num_frames += 1
        try:
            crops = self._find(frame)
        except (IndexError, ValueError, cv2.error) as error:  # what odd pictures can do to MTCNN and OpenCV
            log.debug("face detection", exc_info=True)
            video.failure = Reason("internal", f"face detection failed on a picture ({type(error).__name__})")
            return
        for crop in crops:
            video.num_waiting += 1
            self._queue.submit(video, crop, frame if self._num_dumped else None)

    def _find(self, frame: Frame) -> list[FaceCrop]:
        with self._timings.stage("detect"):
            (detections,) = self._engine.detector.detect([frame.pixels])
        with self._timings.stage("crop", count=len(detections)):
            view = scene(frame.pixels) if detections else None
            return [self._crop(frame, detection, view) for detection in detections]

    def _crop(self, frame: Frame, detection: Detection, view: Scene | None) -> FaceCrop:
        preprocessing = self._engine.preprocessing
        face = Face(
            frame_index=frame.index,
            time_s=frame.time_s,
            burst=frame.burst,
            box_xyxy=detection.box_xyxy,
            landmarks=detection.landmarks,
            detection_score=detection.score,
            appearance=appearance(frame.pixels, detection.landmarks),
            scene=view,
        )
        margin, size = preprocessing.crop_margin, preprocessing.input_size_px
        return FaceCrop(face, crop_face(frame.pixels, detection.box_xyxy, margin=margin, size=size))

    def _finished(self) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
        for video in [video for video in self._videos.values() if video.is_complete]:
            del self._videos[video.path]
            yield self._result(video), video.identity

    def _result(self, video: _Video) -> VideoResult:
        ended = video.ended
        assert ended is not None
        failure = ended.failure or video.failure
        if failure is None and video.has_changed:
            failure = Reason("changed", "the file changed while it was read; scan it again")
        if failure is not None:
            return failed(video.path, failure, ended.info, num_frames=video.num_frames)
        assert ended.info is not None
        tracks = _tracks(video.faces)
        damage = _damage(ended)
        verdict = decide(tracks, self._engine.rules, damage=damage, is_hdr=ended.info.is_hdr)
        return VideoResult(
            path=video.path,
            status="partial" if damage else "ok",
            verdict=verdict,
            info=ended.info,
            num_frames=video.num_frames,
            tracks=tracks,
            dumps=self._dump(video),
        )

    def _dump(self, video: _Video) -> tuple[dict[str, object], ...]:
        if self._dumps is None:
            return ()
        best = [scored for _, _, scored in sorted(video.best, key=lambda entry: entry[:2], reverse=True)]
        with self._timings.stage("explain", count=len(best)):
            exhibits = [_exhibit(scored, self._engine.preprocessing.crop_margin) for scored in best]
            return tuple(self._dumps.write(video.path, exhibits))


_Waiting = tuple[_Video, FaceCrop, Frame | None]


class _ScoringQueue:
    """Collects faces of all videos into batches, scores them in one thread, and hands the scores back in order."""

    def __init__(self, engine: Engine, listener: Listener | None, timings: Timings) -> None:
        self._engine = engine
        self._listener = listener
        self._timings = timings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="classify")
        self._batch: list[_Waiting] = []
        self._running: deque[tuple[Future[tuple[Floats, Floats]], list[_Waiting]]] = deque()

    def submit(self, video: _Video, crop: FaceCrop, frame: Frame | None) -> None:
        self._batch.append((video, crop, frame))
        if len(self._batch) >= self._engine.runtime.batch_size:
            self._start()
        while len(self._running) > MAX_WAITING_BATCHES:
            self._take_oldest()

    def _start(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._running.append((self._thread.submit(self._score, [crop for _, crop, _ in batch]), batch))

    def _score(self, crops: list[FaceCrop]) -> tuple[Floats, Floats]:
        with self._timings.stage("classify", count=len(crops)):
            return self._engine.runtime.predict(to_input([crop.pixels for crop in crops], self._engine.preprocessing))

    def _take_oldest(self) -> None:
        future, batch = self._running.popleft()
        logits, cams = future.result()
        for (video, crop, frame), logit, cam in zip(batch, logits, cams, strict=True):
            scored = FaceScore(crop.face, float(logit) / self._engine.temperature)
            video.take(_Scored(scored, crop, frame, cam))
        if self._listener:
            self._listener.faces_scored(len(batch))

    def deliver(self) -> None:
        """Hand back what is ready, without waiting."""
        while self._running and self._running[0][0].done():
            self._take_oldest()

    def flush(self) -> None:
        """Score what has been collected, full batch or not, and wait for all of it."""
        self._start()
        while self._running:
            self._take_oldest()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def failed(path: str, reason: Reason, info: VideoInfo | None = None, *, num_frames: int = 0) -> VideoResult:
    """The result of a video that could not be judged."""
    identity = FileIdentity.of(path)
    info = info or VideoInfo(size_bytes=identity.size_bytes if identity else None)
    return VideoResult(path, "error", Verdict("error", reason=reason), info, num_frames)


def _damage(ended: Ended) -> Reason | None:
    if ended.damage:
        return Reason("damaged", ended.damage)
    if ended.is_cut_short:
        return Reason("max_frames", "longer than --max-frames reaches at this --every")
    return None


def _tracks(scored: list[FaceScore]) -> tuple[Track, ...]:
    by_face = {id(each.face): each for each in scored}
    linked = link([each.face for each in scored])
    return tuple(Track(i, tuple(by_face[id(face)] for face in faces)) for i, faces in enumerate(linked))


def _exhibit(scored: _Scored, margin: float) -> Exhibit:
    face, pixels = scored.crop.face, scored.crop.pixels
    assert scored.frame is not None
    square = crop_square_xyxy(face.box_xyxy, margin=margin)
    x1, y1, x2, y2 = (float(edge) for edge in face.box_xyxy)
    row = {"score": scored.scored.score, "time_s": face.time_s, "frame": face.frame_index}
    return Exhibit(
        face=pixels,
        heat_map=gradcam.overlay(pixels, gradcam.heat_map(scored.cam, pixels.shape[0])),
        frame=gradcam.overlay_on_frame(scored.frame.pixels, scored.cam, square),
        row={**row, "x1": x1, "y1": y1, "x2": x2, "y2": y2},
    )
