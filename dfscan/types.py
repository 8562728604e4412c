"""The values that flow between the rooms, in the order in which a scan makes them.

``Path -> VideoInfo -> Frame -> FaceCrop -> FaceScore -> Track -> Verdict -> VideoResult -> report row``

Numpy only: importing this module is cheap. Pixels are uint8 RGB, upright (rotation applied); boxes are
``(x1, y1, x2, y2)`` in pixels of the upright frame; times are seconds from the start of the file's timeline.
"""

from __future__ import annotations

import base64
import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Label = Literal["fake", "real", "inconclusive", "no_face", "error"]
Status = Literal["ok", "partial", "error"]
PictureKind = Literal["face", "heat_map", "frame"]

LABELS: tuple[Label, ...] = ("fake", "real", "inconclusive", "no_face", "error")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a row is not simply judged: a stable code for machines and one sentence for people."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts of one video file. What the container does not say, or cannot be trusted on, is None."""

    size_bytes: int | None
    sha256: str | None = None
    """Lower-case hex digest of the whole file."""
    width_px: int | None = None
    """Width of the upright picture in square pixels."""
    height_px: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    """Frames in the video stream as its packets tell, never the header's count."""
    duration_s: float | None = None
    codec: str | None = None
    rotation_deg: int = 0
    """Clockwise turn that was applied to make the picture upright: 0, 90, 180 or 270."""
    is_hdr: bool = False
    num_skipped_streams: int | None = None
    """Video streams, without cover pictures, that were not looked at."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture."""

    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB, upright, square pixels."""
    index: int
    """Running number of this sample within its video, over all streams, from 0."""
    time_s: float
    """True time of this picture, not the time that was asked for."""
    burst: int
    """Number of the run of neighbouring samples that it belongs to; faces move little within one."""
    number: int | None = None
    """Its place among all frames of its stream in order of presentation, from 0; None where that is not known."""
    stream: int = 0
    """Number of its stream in the file."""
    shot: int = 0
    """Number of the shot that it belongs to, see `media.shots`; what was not decoded parts shots too."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"a frame is uint8 (H, W, 3), got {self.pixels.dtype} {self.pixels.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What a whole frame looks like, coarsely; shared by the faces of the frame."""

    cells: NDArray[np.float32]
    """(16, 16, 3) mean L*a*b* of a grid over the frame."""
    cell_px: tuple[float, float]
    """Width and height of a cell."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face found in one frame, without its pixels: cheap to keep."""

    frame_index: int
    time_s: float
    burst: int
    box_xyxy: NDArray[np.float32]
    """(4,) in pixels of the upright frame; may reach over its border."""
    landmarks: NDArray[np.float32]
    """(5, 2) left eye, right eye, nose, left and right corner of the mouth, as seen in the picture."""
    detection_score: float
    """The face detector's own probability, in [0, 1]."""
    appearance: NDArray[np.float32]
    """(D,) likeness descriptor of `faces.appearance`; used only to link faces of one person."""
    scene: Scene | None = None
    """The frame it was found in; used only to tell a cut from a movement. None where it is not known."""
    frame_number: int | None = None
    """`Frame.number` of its frame."""
    stream: int = 0
    """Number of its stream in the file."""
    shot: int = 0
    """Of the frame it was found in; used only to link faces of one person."""


@dataclass(frozen=True, slots=True, eq=False)
class FaceCrop:
    """A face with the pixels that the classifier sees."""

    face: Face
    pixels: NDArray[np.uint8]
    """(S, S, 3) RGB, square, S the checkpoint's input size; black where the crop leaves the frame."""


@dataclass(frozen=True, slots=True, eq=False)
class FaceScore:
    """A judged face."""

    face: Face
    logit: float
    """Calibrated logit: the network's output divided by the checkpoint's temperature."""

    @property
    def score(self) -> float:
        """P(fake) of this one face, in [0, 1]."""
        return sigmoid(self.logit)


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One person through time."""

    track_id: int
    """From 0 in order of first appearance."""
    faces: tuple[FaceScore, ...]
    """In order of time, at most one a frame."""

    @property
    def start_s(self) -> float:
        """Time of the first face."""
        return self.faces[0].face.time_s

    @property
    def end_s(self) -> float:
        """Time of the last face."""
        return self.faces[-1].face.time_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one video."""

    label: Label
    score: float | None = None
    """In [0, 1]; None unless faces were judged."""
    threshold: float | None = None
    """The score from which this video would be called fake; None with an untrained checkpoint."""
    track_id: int | None = None
    """The track that decided."""
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A small picture for people to look at: a judged face, or a whole frame of a video in which none was found."""

    kind: PictureKind
    track_id: int
    """-1 for a frame."""
    frame_index: int
    time_s: float
    score: float
    """Of this face, in [0, 1]; 0 for a frame, which has none."""
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class VideoResult:
    """Everything known of one video after a scan."""

    path: str
    """As given or found; may hold surrogate escapes for bytes that are not UTF-8."""
    status: Status
    verdict: Verdict
    info: VideoInfo
    num_frames: int = 0
    """Frames that were looked at."""
    tracks: tuple[Track, ...] = ()
    dumps: tuple[dict[str, Any], ...] = field(default=())
    """Index rows of the Grad-CAM dumps written for this video, as in `report.dumps`."""
    pictures: tuple[Picture, ...] = field(default=(), compare=False)
    """Where they are wanted: faces of each track in order of time, heat maps of the highest scores, best first."""
    checkpoint: str | None = field(default=None, compare=False)
    """Short text that names the checkpoint; set by `dfscan.Scanner`. Ledgers keep it in their recipes."""
    dfscan_version: str | None = field(default=None, compare=False)
    """As `checkpoint`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values that JSON can hold, without pictures and dumps.

        Every dictionary always has the same keys in the same order, except that ``path_bytes``, the base64 of the
        path's bytes, is there only where they are not UTF-8. Scores are in [0, 1], times in seconds; boxes are
        ``[x1, y1, x2, y2]`` and landmarks five ``[x, y]`` in pixels of the upright frame. What is missing, infinite or
        NaN is None.
        """
        raw_path = os.fsencode(self.path)
        path = raw_path.decode(errors="backslashreplace")
        document = {
            "path": path,
            **({} if path == self.path else {"path_bytes": base64.b64encode(raw_path).decode()}),
            "status": self.status,
            "verdict": asdict(self.verdict),
            "info": asdict(self.info),
            "num_frames": self.num_frames,
            "tracks": [_track_to_dict(track) for track in self.tracks],
            "checkpoint": self.checkpoint,
            "dfscan_version": self.dfscan_version,
        }
        finite: dict[str, Any] = _finite(document)
        return finite


def _track_to_dict(track: Track) -> dict[str, Any]:
    faces = [_face_to_dict(each) for each in track.faces]
    return {"track_id": track.track_id, "start_s": track.start_s, "end_s": track.end_s, "faces": faces}


def _face_to_dict(scored: FaceScore) -> dict[str, Any]:
    face = scored.face
    return {
        "time_s": face.time_s,
        "frame_index": face.frame_index,
        "frame_number": face.frame_number,
        "stream": face.stream,
        "box_xyxy": face.box_xyxy.tolist(),
        "landmarks": face.landmarks.tolist(),
        "detection_score": face.detection_score,
        "logit": scored.logit,
        "score": scored.score,
    }


def _finite(value: Any) -> Any:
    """The value with None in place of every NaN and infinity in it."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sigmoid(logit: float) -> float:
    """The logistic function, without overflow for any finite input."""
    if logit >= 0:
        return 1.0 / (1.0 + float(np.exp(-logit)))
    power = float(np.exp(logit))
    return power / (1.0 + power)
