"""The pipeline of a scan: decoding processes -> face detection -> crops -> classifier -> tracks -> verdict.

Several videos are in progress at once, and all stages run concurrently. A result is returned as soon as its video is
complete. The pixels of a frame are freed when its faces have been cropped. If dumps are requested, frames with the
highest-scoring faces of their video are kept longer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from dfscan.detector import gradcam
from dfscan.detector.preprocess import Preprocessing
from dfscan.detector.runtime import Runtime
from dfscan.faces.batched import BatchedFaceDetector
from dfscan.faces.crop import alignment, box_to_crop, crop_square_xyxy
from dfscan.faces.detect import FaceDetector
from dfscan.faces.track import link, with_dissolves
from dfscan.media.isolate import Decoded, Ended, Event, Limits, Opened, decode_videos
from dfscan.media.plan import Sampling
from dfscan.media.source import FileIdentity
from dfscan.objects import is_url
from dfscan.report.dumps import DumpFolder, FaceExplanation
from dfscan.scan import second_look
from dfscan.scan.classify import Classifier, ScoreStage
from dfscan.scan.crowd import Crowd
from dfscan.scan.detect import (
    ODD_FRAME_ERRORS,
    BatchedDetectStage,
    DetectedFrames,
    DetectStage,
    FaceCropper,
    SequentialDetectStage,
    detection_failure,
)
from dfscan.scan.pictures import FacePictures, heat_map_jpeg
from dfscan.scan.timing import Timings
from dfscan.scan.verdict import agreed, decide, joined
from dfscan.scan.video import ScoredCrop, VideoState
from dfscan.types import (
    DetectorResult,
    Dissolve,
    FaceScore,
    FileFacts,
    Picture,
    Reason,
    Remarks,
    Track,
    Verdict,
    VideoInfo,
    VideoResult,
)


class ScanListener(Protocol):
    """Receives the progress of a scan."""

    def faces_scored(self, count: int) -> None:
        """Called when `count` more faces have been scored."""

    def video_done(self, result: VideoResult) -> None:
        """Called when the result of a video is complete."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Models and settings, the same for every video of a scan."""

    classifiers: tuple[Classifier, ...]
    """At least one; see `DetectorResult` for several. They share a device and its number of threads."""

    detector: FaceDetector
    batched_detector: BatchedFaceDetector | None
    """Used on a GPU; `detector` is the CPU fallback."""
    sampling: Sampling
    max_faces: int
    """Maximum number of faces scored per frame."""
    num_workers: int
    """Number of videos decoded at once."""
    limits: Limits
    images: bool = False
    """Whether pictures are inputs in their own right, not videos with too few frames."""
    trust_list: str | None = None
    """Certificates of the authorities whose signers are trusted, in PEM; None if C2PA manifests are not read."""

    @property
    def main(self) -> Classifier:
        """The first classifier, whose scores decide which faces are shown."""
        return self.classifiers[0]

    @property
    def runtime(self) -> Runtime:
        """Runtime of the first classifier."""
        return self.main.runtime


def scan_videos(
    paths: Iterable[str],
    engine: Engine,
    *,
    dumps: DumpFolder | None = None,
    num_explained: int = 0,
    keeps_pictures: bool = False,
    listener: ScanListener | None = None,
    timings: Timings | None = None,
) -> Generator[tuple[VideoResult, FileIdentity | None], None, None]:
    """Judge videos, several at a time.

    Args:
        paths: regular files.
        engine: models and settings.
        dumps: folder for Grad-CAM dumps of the `num_explained` highest-scoring faces of each video, if any.
        num_explained: see `dumps`.
        keeps_pictures: whether results hold thumbnails of faces, with heat maps of the `num_explained` highest-scoring.
        listener: called after every batch of faces.
        timings: accumulates the cost of the stages.

    Yields:
        A result for each path, in order of completion, with the file's identity from before it was opened.

    Raises:
        OutputError: a dump cannot be written.
        DfscanError: the classifier's device fails.
    """
    scan = _Scan(engine, dumps, num_explained, keeps_pictures, listener, timings or Timings())
    try:
        yield from scan.run(paths)
    finally:
        scan.close()


class _Scan:
    def __init__(
        self,
        engine: Engine,
        dumps: DumpFolder | None,
        num_explained: int,
        keeps_pictures: bool,
        listener: ScanListener | None,
        timings: Timings,
    ) -> None:
        self._engine = engine
        self._dumps = dumps
        self._num_explained = num_explained if dumps or keeps_pictures else 0
        self._keeps_pictures = keeps_pictures
        self._listener = listener
        self._timings = timings
        self._pool = self._score_pool = ThreadPoolExecutor(engine.runtime.threads, thread_name_prefix="faces")
        if engine.batched_detector:  # threads mostly wait for the GPU
            self._score_pool = ThreadPoolExecutor(engine.runtime.threads, thread_name_prefix="score")
        cropper = FaceCropper([classifier.preprocessing for classifier in engine.classifiers])
        self._detect: DetectStage
        if engine.batched_detector:
            self._detect = BatchedDetectStage(
                engine.batched_detector, cropper, timings, self._pool, threads=engine.runtime.threads
            )
        else:
            self._detect = SequentialDetectStage(
                engine.detector, cropper, timings, self._pool, threads=engine.runtime.threads
            )
        self._score = ScoreStage(engine.classifiers, timings, self._score_pool)
        self._videos: dict[str, VideoState] = {}
        self._upright: dict[str, VideoState] = {}
        """Videos that need a second pass with rotated frames, with the state of the upright pass."""
        self._turns_deg: dict[str, int] = {}
        """Clockwise rotation for the second pass of each video."""

    def run(self, paths: Iterable[str]) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
        yield from self._go_through(paths)
        yield from self._go_through(list(self._turns_deg))

    def _go_through(self, paths: Iterable[str]) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
        engine = self._engine
        events = decode_videos(
            paths,
            sampling=engine.sampling,
            num_workers=engine.num_workers,
            limits=engine.limits,
            trust_list=engine.trust_list,
        )
        with closing(events):
            for event in events:
                self._take(event)
                yield from self._finished()
        while self._detect.is_busy:
            self._score_faces(self._detect.wait())
        self._score.flush()
        while self._score.is_busy:
            self._keep(self._score.wait())
        yield from self._finished()

    def close(self) -> None:
        """Cancel pending work and wait for running work."""
        for pool in (self._pool, self._score_pool):
            pool.shutdown(wait=True, cancel_futures=True)
        self._timings.gpu_s = self._engine.runtime.clock.seconds

    def _take(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._videos[event.path] = VideoState(
                event.path,
                event.identity,
                self._num_explained,
                self._engine.main.rules.min_faces,
                Crowd(self._engine.max_faces),
                turn_deg=self._turns_deg.get(event.path, 0),
                pictures=FacePictures() if self._keeps_pictures else None,
            )
        elif isinstance(event, Decoded):
            video = self._videos[event.path]
            self._detect.submit(video, video.add_frame(event.frame))
        else:
            video = self._videos[event.path]
            video.end(event)
            self._detect.end(video)
            self._timings.add("open", cpu_s=event.open_cpu_s)
            self._timings.add("decode", cpu_s=event.cpu_s - event.open_cpu_s, count=video.num_frames)
            self._timings.note_child_rss(event.peak_rss_bytes)
            self._timings.video_s += (event.info.duration_s or 0.0) if event.info else 0.0
        while searched := self._detect.next():
            self._score_faces(searched)
        while (scored := self._score.next()) is not None:
            self._keep(scored)

    def _score_faces(self, searched: list[DetectedFrames]) -> None:
        """Submit the faces of searched frames to the classifier."""
        for batch in searched:
            for detected in batch.frames:
                if detected.sketch:
                    batch.video.fingerprinter.add(detected.sketch, detected.frame.stream)
                for crop in batch.video.choose_faces(detected.crops):
                    self._score.submit(batch.video, crop, detected.frame if self._dumps else None)
                    while (scored := self._score.next()) is not None:
                        self._keep(scored)
            if batch.failure:
                batch.video.fail(batch.failure)
            if batch.is_last:
                batch.video.finish_detection()

    def _keep(self, scored: list[tuple[VideoState, ScoredCrop]]) -> None:
        temperatures = [classifier.temperature for classifier in self._engine.classifiers]
        for video, result in scored:
            pairs = zip(result.logits, temperatures, strict=True)
            scores = tuple(FaceScore(result.crop.face, logit / temperature) for logit, temperature in pairs)
            video.add_scores(scores, result)
        if self._listener:
            self._listener.faces_scored(len(scored))

    def _finished(self) -> Iterator[tuple[VideoResult, FileIdentity | None]]:
        for video in [video for video in self._videos.values() if video.is_complete]:
            del self._videos[video.path]
            if self._is_to_be_turned(video):
                continue
            upright = self._upright.pop(video.path, None)
            if upright and (video.fails or video.num_found <= upright.num_found):
                upright.take_frames_from(video)
                video = upright
            yield self._result(video), video.identity

    def _is_to_be_turned(self, video: VideoState) -> bool:
        """If too few faces were found, look for faces that are not upright; schedule a second pass if there are any."""
        if video.turn_deg or video.fails or video.num_found >= self._engine.main.rules.min_faces:
            return False
        try:
            with self._timings.stage("detect", count=0):
                turn_deg = second_look.find_turn(video.kept.frames, self._engine.detector, self._pool)
        except ODD_FRAME_ERRORS as error:
            video.fail(detection_failure(error))
            return False
        if turn_deg:
            self._turns_deg[video.path], self._upright[video.path] = turn_deg, video
            video.set_aside()
        return bool(turn_deg)

    def _result(self, video: VideoState) -> VideoResult:
        ended = video.ended
        assert ended is not None
        failure = ended.failure or video.failure
        if failure is None and video.has_changed:
            failure = Reason("changed", "the file changed while it was read; scan it again")
        if failure is not None:
            info = ended.info or VideoInfo(size_bytes=video.identity.size_bytes if video.identity else None)
            return failed(video.path, failure, info, num_frames=video.num_frames, facts=ended.facts)
        assert ended.info is not None and ended.info.sha256 is not None
        tracks_of = _tracks(video.faces, ended.dissolves, num_classifiers=len(self._engine.classifiers))
        remarks = self._remarks(video, ended)
        opinions = []
        for classifier, tracks in zip(self._engine.classifiers, tracks_of, strict=True):
            used_for = classifier.seen.use_of(ended.info.sha256) if classifier.seen else None
            verdict = decide(tracks, classifier.rules, replace(remarks, used_for=used_for), is_hdr=ended.info.is_hdr)
            opinions.append(DetectorResult(classifier.name, classifier.label, verdict, tracks, used_for))
        main, *others = opinions
        dumps: list[dict[str, object]] = []
        if self._dumps is not None:
            best = video.best_first()
            with self._timings.stage("explain", count=len(best)):
                preprocessing = self._engine.main.preprocessing
                dumps = self._dumps.write(video.path, [_explanation(*face, preprocessing) for face in best])
        return VideoResult(
            path=video.path,
            status="partial" if remarks.damage or remarks.crowd else "ok",
            verdict=agreed(opinions, [each.rules for each in self._engine.classifiers]) if others else main.verdict,
            info=ended.info,
            num_frames=video.num_frames,
            tracks=main.tracks,
            dumps=tuple(dumps),
            pictures=self._pictures(video, main.tracks),
            facts=ended.facts,
            remarks=replace(remarks, used_for=main.used_for),
            fingerprint=video.fingerprinter.fingerprint(),
            detectors=tuple(opinions) if others else (),
        )

    def _remarks(self, video: VideoState, ended: Ended) -> Remarks:
        """Return why only a part of the video was judged, and notes for the report on one that was judged as asked."""
        is_all_streams, max_faces = self._engine.sampling.streams == "all", self._engine.max_faces
        is_picture = self._engine.images and ended.facts is not None and ended.facts.is_picture
        skipped = []
        if ended.skipped:
            text = f"{len(ended.skipped)} not looked at: {', '.join(ended.skipped)}"
            skipped = [Reason("skipped_streams", text)]
        damage = [Reason("damaged", ended.damage)] if ended.damage else []
        if ended.is_cut_short:
            damage.append(Reason("max_frames", "longer than --max-frames reaches at this --every"))
        if is_all_streams:
            damage += skipped
        crowd = None
        if (most := video.crowd.max_faces_per_frame) > max_faces:
            text = f"{most} faces in one frame, of which {most - max_faces} were not judged"
            crowd = Reason("too_many_faces", f"{text}; raise --max-faces, now {max_faces}, to judge them")
        notes = []
        if video.turn_deg:
            text = f"faces were found only after the frames were turned clockwise by {video.turn_deg} degrees"
            notes.append(Reason("turned", f"{text}; positions are those in the turned frames"))
        elif video.kept.frames and not video.num_found:
            with self._timings.stage("detect", count=0):
                small = second_look.find_small_faces(video.kept.frames, self._engine.detector, self._pool)
            notes += [small] if small else []
        if not is_all_streams and not is_picture:
            notes += skipped
        if ended.num_missing and not is_picture:
            frames = f"{video.num_frames} of the {video.num_frames + ended.num_missing} frames"
            notes.append(Reason("few_frames", f"the file gave only {frames} asked for"))
        return Remarks(joined(damage), crowd, is_picture, notes=tuple(notes), turn_deg=video.turn_deg)

    def _pictures(self, video: VideoState, tracks: tuple[Track, ...]) -> tuple[Picture, ...]:
        if video.pictures is None:
            return ()
        if not tracks:
            return second_look.pictures(video.kept.frames)
        track_of = {scored.face.key: track.track_id for track in tracks for scored in track.faces}
        with self._timings.stage("explain", count=0):
            heat_maps = [
                Picture(
                    "heat_map",
                    track_of[score.face.key],
                    score.face.frame_index,
                    score.face.time_s,
                    score.score,
                    heat_map_jpeg(scored.crop.pixels, scored.cam),
                )
                for score, scored in video.best_first()
            ]
            return (*video.pictures.of(tracks), *heat_maps)


def failed(
    path: str,
    reason: Reason,
    info: VideoInfo | None = None,
    *,
    num_frames: int = 0,
    facts: FileFacts | None = None,
) -> VideoResult:
    """Return the result of a video that could not be judged."""
    identity = None if is_url(path) else FileIdentity.of(path)
    info = info or VideoInfo(size_bytes=identity.size_bytes if identity else None)
    return VideoResult(path, "error", Verdict("error", reason=reason), info, num_frames, facts=facts)


def _tracks(
    scored: list[tuple[FaceScore, ...]], dissolves: Sequence[Dissolve], *, num_classifiers: int
) -> list[tuple[Track, ...]]:
    """Link the faces of each stream into tracks; one person in two streams gets two tracks.

    Returns:
        The same tracks for each classifier, with its scores.
    """
    by_key = {scores[0].face.key: scores for scores in scored}
    faces = [with_dissolves(scores[0].face, dissolves) for scores in scored]
    streams = sorted({face.stream for face in faces})
    linked = [track for stream in streams for track in link([face for face in faces if face.stream == stream])]
    return [
        tuple(Track(i, tuple(by_key[face.key][of] for face in faces)) for i, faces in enumerate(linked))
        for of in range(num_classifiers)
    ]


def _explanation(score: FaceScore, scored: ScoredCrop, preprocessing: Preprocessing) -> FaceExplanation:
    face, pixels = score.face, scored.crop.pixels
    x1, y1, x2, y2 = (float(edge) for edge in face.box_xyxy)
    row = {"score": score.score, "time_s": face.time_s, "frame": face.frame_number}
    assert scored.frame is not None
    frame, margin, size_px = scored.frame.pixels, preprocessing.crop_margin, preprocessing.input_size_px
    if preprocessing.crop == "square":
        overlay = gradcam.overlay_on_frame(frame, scored.cam, crop_square_xyxy(face.box_xyxy, margin=margin))
    else:
        if preprocessing.crop == "aligned":
            to_crop = alignment(face.landmarks, margin=margin, size=size_px)
        else:
            height_px, width_px = frame.shape[:2]
            to_crop = box_to_crop(face.box_xyxy, margin=margin, width_px=width_px, height_px=height_px, size=size_px)
        overlay = gradcam.overlay_on_part(frame, scored.cam, to_crop, size_px)
    return FaceExplanation(
        face=pixels,
        heat_map=gradcam.overlay(pixels, gradcam.heat_map(scored.cam, pixels.shape[0])),
        frame=overlay,
        row={**row, "x1": x1, "y1": y1, "x2": x2, "y2": y2},
    )
