"""Annotated copies of videos: boxes, tracks, scores and the verdict, drawn on every frame and encoded as H.264 in MP4.

The picture of the original stays free of text except at the boxes: the verdict, the scores over time and the mark
"annotated by dfscan" are in a band below it. A solid box is a face that was examined. A dashed box is interpolated
between two examined faces of one track, or held for a moment.

FFmpeg's encoder is x264, as in PyAV's wheels. Where it is missing, as in builds without GPL parts, MPEG-4 Part 2 is
written. Only pictures that dfscan has drawn reach the encoder, so it needs no sandbox.
"""

from __future__ import annotations

import bisect
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import cv2
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.files import AtomicFile, writing
from dfscan.types import Frame, Track, VideoResult
from dfscan.version import __version__

ENCODERS: dict[str, dict[str, object]] = {"libx264": {"preset": "veryfast", "crf": "20"}, "mpeg4": {"qscale": "3"}}
"""Encoders by preference, with their options."""
TICKS_PER_S = {"libx264": 90_000, "mpeg4": 60_000}
"""Ticks of the time base; MPEG-4 Part 2 allows at most 65,535."""
MAX_INTERPOLATED_S = 0.75
"""Maximum time between two faces of a track for which boxes are interpolated: the steps within a burst."""
HOLD_S = 0.25
"""Time for which a box stays if the next face of its track is too far away for interpolation."""
SAME_S = 1e-4
"""Two times that differ by less belong to the same frame."""
MARK = f"annotated by dfscan {__version__} - not the original"
"""The version that drew the copy; the comment in the file also has the one that judged the video."""
BAND_PARTS, MIN_BAND_PX = 6, 84
"""The band is a sixth of the height of the frame, but at least this high."""

FAKE, OTHER, PALE, INK = (220, 50, 47), (38, 139, 210), (150, 150, 150), (240, 240, 240)
"""RGB of faces at or above the threshold, of other faces, of lines, and of text."""
FONT = cv2.FONT_HERSHEY_SIMPLEX

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True, eq=False)
class DrawnFace:
    """A face as it is drawn on one frame."""

    track_id: int
    box_xyxy: Float32Array
    score: float
    """Score of the examined face, or of the one before it."""
    is_examined: bool
    """False if the box is interpolated or held."""


def faces_at(tracks: Sequence[Track], time_s: float) -> Iterator[DrawnFace]:
    """Yield the faces to draw on the frame with this time, at most one per track."""
    for track in tracks:
        after = bisect.bisect_right(track.faces, time_s + SAME_S, key=lambda scored: scored.face.time_s)
        if not after:
            continue
        before = track.faces[after - 1]
        box, passed_s = before.face.box_xyxy, time_s - before.face.time_s
        gap_s = track.faces[after].face.time_s - before.face.time_s if after < len(track.faces) else math.inf
        is_examined = passed_s <= SAME_S
        if not is_examined and gap_s <= MAX_INTERPOLATED_S:
            box = box + np.float32(passed_s / gap_s) * (track.faces[after].face.box_xyxy - box)
        elif passed_s > HOLD_S:
            continue
        yield DrawnFace(track.track_id, box, before.score, is_examined)


def encoder_name() -> str:
    """Return the best encoder that this FFmpeg has."""
    for name in ENCODERS:
        with suppress(UnknownCodecError):
            return Codec(name, "w").name
    raise RuntimeError("FFmpeg has no MPEG-4 encoder")  # it is part of FFmpeg itself


class AnnotatedVideo:
    """Writes the annotated copy of one video; a context manager.

    Memory does not depend on the length of the video. If the block ends without `commit`, nothing is left.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, result: VideoResult, *, checkpoint: str, version: str, stream: int) -> None:
        """Prepare the file.

        Args:
            path: the file; it is replaced when the new one is complete.
            result: result of the video; its tracks of `stream` are drawn.
            checkpoint: label of the checkpoint.
            version: version of dfscan that judged the video.
            stream: number of the stream whose frames are added.
        """
        self._path = path
        self._result = result
        self._tracks = [track for track in result.tracks if track.faces[0].face.stream == stream]
        judged = f"judged by dfscan {version}; checkpoint {checkpoint}"
        self._about = f"{judged}; source sha256 {result.info.sha256}; the sound is not copied"
        self._encoder = encoder_name()
        self._file = AtomicFile(path)
        self._container: av.container.OutputContainer | None = None
        self._last_tick = -1

    def add(self, frame: Frame) -> None:
        """Draw and encode the next frame of the stream, in order of time."""
        with writing(self._path):
            if self._container is None:
                self._begin(frame.pixels)
            drawn, faces = frame.pixels.copy(), list(faces_at(self._tracks, frame.time_s))
            for face in faces:
                _draw_face(drawn, face, self._result.verdict.threshold)
            band = self._band.copy()
            x = _plot(band, self._result, frame.time_s, 0.0)[0]
            cv2.line(band, (x, round(44 * _unit(band))), (x, len(band)), INK, 1)
            if any(face.is_examined for face in faces):
                _write(band, "examined frame", 38)
            whole = np.vstack([drawn, _fitted(band, (len(band), drawn.shape[1]))])
            height_px, width_px = whole.shape[:2]
            whole = np.pad(whole, ((0, height_px % 2), (0, width_px % 2), (0, 0)), mode="edge")
            whole = np.ascontiguousarray(_fitted(whole, self._size))
            picture = VideoFrame.from_ndarray(whole, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            self._last_tick = max(self._last_tick + 1, round(frame.time_s * TICKS_PER_S[self._encoder]))
            picture.pts, picture.time_base = self._last_tick, self._tick
            self._mux(picture)

    def _begin(self, pixels: UInt8Image) -> None:
        height_px, width_px = pixels.shape[:2]
        self._band = _band(self._result, self._tracks, width_px, max(MIN_BAND_PX, height_px // BAND_PARTS))
        self._size = height_px + len(self._band) + (height_px + len(self._band)) % 2, width_px + width_px % 2
        self._tick = Fraction(1, TICKS_PER_S[self._encoder])
        self._container = av.open(self._file.stream, "w", format="mp4")
        self._container.metadata.update(title=MARK, comment=f"{_verdict(self._result)}; {self._about}")
        stream = self._container.add_stream(self._encoder, rate=round(self._result.info.fps or 0) or 25)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = self._size
        stream.pix_fmt, stream.time_base, stream.options = "yuv420p", self._tick, ENCODERS[self._encoder]
        context = stream.codec_context
        context.time_base, context.thread_count = self._tick, os.cpu_count() or 1
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709 in ITU-T H.273
        context.color_range = ColorRange.MPEG
        self._stream = stream

    def _mux(self, picture: VideoFrame | None) -> None:
        assert self._container is not None
        self._container.mux(self._stream.encode(picture))

    def commit(self) -> None:
        """Finish the file; only now does it appear under its name."""
        with writing(self._path):
            self._mux(None)
            assert self._container is not None
            self._container.close()
        self._file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Discard the file, unless it has been committed."""
        if self._container is not None:
            with suppress(OSError, ValueError, av.error.FFmpegError):  # closing writes an index, which may fail again
                self._container.close()
        self._file.discard()


def _draw_face(picture: UInt8Image, face: DrawnFace, threshold: float | None) -> None:
    colour = FAKE if threshold is not None and face.score >= threshold else OTHER
    x1, y1, x2, y2 = (int(edge) for edge in np.clip(face.box_xyxy, -9999, 99999).round())
    width_px = max(2, min(picture.shape[:2]) // 240)
    if face.is_examined:
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, width_px)
    else:
        thin_px, dash_px = max(1, width_px // 2), max(4, (x2 - x1 + y2 - y1) // 24)
        for start in range(x1, x2, 2 * dash_px):
            for y in (y1, y2):
                cv2.line(picture, (start, y), (min(start + dash_px, x2), y), colour, thin_px)
        for start in range(y1, y2, 2 * dash_px):
            for x in (x1, x2):
                cv2.line(picture, (x, start), (x, min(start + dash_px, y2)), colour, thin_px)
    text = f"track {face.track_id}  {face.score:.3f}" if face.is_examined else f"track {face.track_id}"
    scale = max(0.4, min(picture.shape[:2]) / 1000)
    (text_px, up_px), down_px = cv2.getTextSize(text, FONT, scale, 1)
    left = int(np.clip(x1, 0, max(0, picture.shape[1] - text_px - 4)))
    top = int(np.clip(y1 - up_px - down_px - 4, 0, picture.shape[0]))
    cv2.rectangle(picture, (left, top), (left + text_px + 4, top + up_px + down_px + 4), colour, cv2.FILLED)
    cv2.putText(picture, text, (left + 2, top + up_px + 2), FONT, scale, INK, 1, cv2.LINE_AA)


def _band(result: VideoResult, tracks: Sequence[Track], width_px: int, height_px: int) -> UInt8Image:
    """Draw what is the same on every frame: the mark, the verdict and the scores of the tracks over time."""
    band = np.full((height_px, width_px, 3), 24, np.uint8)
    _write(band, f"{MARK} - {_verdict(result)}", 18)
    threshold = result.verdict.threshold
    if threshold is not None:
        y = _plot(band, result, 0.0, threshold)[1]
        cv2.line(band, (0, y), (width_px, y), FAKE, 1)
    for track in tracks:
        points = [_plot(band, result, scored.face.time_s, scored.score) for scored in track.faces]
        cv2.polylines(band, [np.array(points, np.int32)], False, PALE, 1, cv2.LINE_AA)
        for point, scored in zip(points, track.faces, strict=True):
            colour = FAKE if threshold is not None and scored.score >= threshold else OTHER
            cv2.circle(band, point, 2, colour, cv2.FILLED)
    return band


def _plot(band: UInt8Image, result: VideoResult, time_s: float, score: float) -> tuple[int, int]:
    """Return the position of a time and a score in the band, which shows scores from 0 to 1 below its text."""
    height_px, width_px = band.shape[:2]
    last_s = max((track.end_s for track in result.tracks), default=0.0)
    duration_s = max(result.info.duration_s or 0.0, last_s) or 1.0
    top, bottom = round(46 * _unit(band)), height_px - 5
    return round(min(time_s / duration_s, 1.0) * (width_px - 1)), round(bottom - score * (bottom - top))


def _verdict(result: VideoResult) -> str:
    verdict = result.verdict
    score = "" if verdict.score is None else f", score {verdict.score:.3f}"
    threshold = "" if verdict.threshold is None else f", threshold {verdict.threshold:.3f}"
    return f"{verdict.label}{score}{threshold}"


def _write(band: UInt8Image, text: str, down: int) -> None:
    """Write one line with its foot `down` units from the top, smaller if it is too long for the band."""
    unit = _unit(band)
    (text_px, _), _ = cv2.getTextSize(text, FONT, 0.45 * unit, 1)
    scale = 0.45 * unit * min(1.0, (band.shape[1] - 16) / text_px)
    cv2.putText(band, text, (8, round(down * unit)), FONT, scale, INK, 1, cv2.LINE_AA)


def _unit(band: UInt8Image) -> float:
    """Return the size of the text of a band, 1 in bands of up to 160 px."""
    return max(1.0, len(band) / 160)


def _fitted(picture: UInt8Image, size: tuple[int, int]) -> UInt8Image:
    """Resize to (height, width) if the stream has changed its size since the first frame."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
