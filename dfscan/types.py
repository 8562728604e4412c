"""Data types shared by all packages, in the order in which a scan creates them.

``Path -> VideoInfo -> Frame -> FaceCrop -> FaceScore -> Track -> Verdict -> VideoResult -> report row``

Numpy only: importing this module is cheap. Pixels are uint8 RGB, upright (rotation applied); boxes are
``(x1, y1, x2, y2)`` in pixels of the upright frame; times are seconds from the start of the file's timeline.
"""

from __future__ import annotations

import base64
import functools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dfscan.arrays import Float32Array, UInt8Image

if TYPE_CHECKING:
    from pydantic import TypeAdapter

VerdictLabel = Literal["fake", "real", "inconclusive", "no_face", "error"]
Status = Literal["ok", "partial", "error"]
PictureKind = Literal["face", "heat_map", "frame"]
ProvenanceState = Literal["unknown", "present", "unreadable", "invalid", "valid", "trusted"]
DeclaredAi = Literal["generated", "partly generated"]
ReviewVerdict = Literal["fake", "real", "inconclusive", "withdrawn"]
FaceKey = tuple[int, int]
"""Frame index and index within the frame, which identify a face of a video."""

VERDICT_LABELS: tuple[VerdictLabel, ...] = ("fake", "real", "inconclusive", "no_face", "error")


@dataclass(frozen=True, slots=True)
class Reason:
    """Reason for an error, a warning or a missing verdict: a stable code for programs and one sentence for people."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Properties of one video file. A value that is unknown or unreliable is None."""

    size_bytes: int | None
    sha256: str | None = None
    """Lower-case hex digest of the whole file."""
    width_px: int | None = None
    """Width of the upright frame in square pixels."""
    height_px: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    """Number of frames, counted from the packets of the video stream, never taken from the header."""
    duration_s: float | None = None
    codec: str | None = None
    rotation_deg: int = 0
    """Clockwise rotation that was applied to make the frame upright: 0, 90, 180 or 270."""
    is_hdr: bool = False
    num_skipped_streams: int | None = None
    """Number of video streams that were not scanned; cover art does not count."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the C2PA manifest of a file says, and whether it is valid. It never changes a score or a verdict."""

    state: ProvenanceState
    """``unknown``: no manifest was found, which says nothing. ``present``: one is stored elsewhere. ``unreadable``:
    reading failed. ``invalid``: it is damaged, or it does not belong to this content. ``valid``: it belongs to this
    content and its signature holds, but the signer is not on the trust list. ``trusted``: the signer is."""
    signer: str | None = None
    """Name and organisation in the certificate of the signer."""
    generator: str | None = None
    """Program that made the manifest."""
    actions: tuple[str, ...] = ()
    """Actions in the manifest, such as ``c2pa.created``."""
    declared_ai: DeclaredAi | None = None
    """Whether the manifest says that a trained model made the content, or a part of it. None if it says neither."""
    problem: str | None = None
    """Why the manifest is not valid or was not read."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file states about how it was made. None means that the file states nothing, or that nothing was read.

    The statements are quoted, not verified: anyone can write them. They never change a score or a verdict.
    """

    container: str | None = None
    """Format of the container, such as ``mp4``."""
    brand: str | None = None
    """Major brand of an MP4 or MOV file, and its compatible brands in parentheses."""
    muxer: str | None = None
    """Programs that wrote the container."""
    encoder: str | None = None
    """Programs that encoded the main video stream, from its tags and from the stream itself."""
    device: str | None = None
    """Make and model of the camera."""
    creation_time: str | None = None
    """Time of creation as written."""
    num_edits: int | None = None
    """Number of entries in the edit list of an MP4 or MOV file."""
    hidden_s: float | None = None
    """Seconds of video that the edit list hides."""
    bit_rate_bps: int | None = None
    """Mean bit rate of the main video stream in bits per second, from the sizes of its packets."""
    gop_frames: int | None = None
    """Maximum number of frames from one key frame to the next in the main video stream."""
    num_audio_streams: int | None = None
    origin_signs: tuple[str, ...] = ()
    """Tags that name a screen recorder, an online service or a generator."""
    provenance: Provenance | None = None
    """None if it was not read."""
    is_picture: bool = False
    """True for a still picture in one of the formats of `media.content.picture_kind`."""

    @classmethod
    def from_dict(cls, document: object) -> FileFacts | None:
        """Convert the result of `asdict`, also after JSON, back to facts. Unknown keys are ignored; None gives None.

        Raises:
            ValueError: a value has another type. Documents from a compromised decoder can hold anything.
        """
        return None if document is None else _facts_adapter().validate_python(document)


@functools.cache
def _facts_adapter() -> TypeAdapter[FileFacts]:
    from pydantic import TypeAdapter

    return TypeAdapter(FileFacts)


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame."""

    pixels: UInt8Image
    """(H, W, 3) RGB, upright, square pixels."""
    index: int
    """Index of this sample within its video, over all streams, from 0."""
    time_s: float
    """Actual presentation time of this frame, not the requested time."""
    burst: int
    """Number of the burst, a run of neighbouring samples. Faces move little within a burst."""
    number: int | None = None
    """Position among all frames of its stream in presentation order, from 0; None if unknown."""
    stream: int = 0
    """Number of its stream in the file."""
    shot: int = 0
    """Number of its shot, see `media.shots`, in which dissolves do not count. A new shot also starts after frames that
    were not decoded."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"a frame is uint8 (H, W, 3), got {self.pixels.dtype} {self.pixels.shape}")


@dataclass(frozen=True, slots=True)
class Dissolve:
    """A gradual change from one shot to the next, as positions in the samples of a video."""

    first: int
    """First sample that shows both shots."""
    middle: int
    """First sample that mainly shows the new shot."""
    end: int
    """First sample that shows only the new shot."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneDescriptor:
    """Coarse colour descriptor of a whole frame, shared by the faces of the frame."""

    cells: Float32Array
    """(16, 16, 3) mean L*a*b* of a grid over the frame."""
    cell_px: tuple[float, float]
    """Width and height of a cell."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face detected in one frame, without its pixels, so that it is cheap to keep."""

    frame_index: int
    time_s: float
    burst: int
    box_xyxy: Float32Array
    """(4,) in pixels of the upright frame; may extend beyond the frame."""
    landmarks: Float32Array
    """(5, 2) left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them."""
    detection_score: float
    """Probability from the face detector, in [0, 1]."""
    descriptor: Float32Array
    """(D,) descriptor from `faces.descriptor`; used only to link faces of one person."""
    scene: SceneDescriptor | None = None
    """Descriptor of its frame; used only to tell a cut from a movement. None if unknown."""
    frame_number: int | None = None
    """`Frame.number` of its frame."""
    stream: int = 0
    """Number of its stream in the file."""
    shot: int = 0
    """`Frame.shot` of its frame; used only to link faces of one person."""
    is_dissolving: bool = False
    """True if its frame shows two shots at once; used only to link faces of one person."""
    sharpness: float | None = None
    """See `faces.quality`; None if it was not measured."""
    blockiness: float | None = None
    """See `faces.quality`; None if it was not measured."""
    index_in_frame: int = 0
    """Position among the faces of its frame, from 0; only a scan needs it, and ledgers do not keep it."""

    @property
    def key(self) -> FaceKey:
        """Identifies this face among those of its video, during a scan."""
        return self.frame_index, self.index_in_frame


@dataclass(frozen=True, slots=True, eq=False)
class FaceCrop:
    """A face with the pixels that are passed to the classifier."""

    face: Face
    pixels: UInt8Image
    """(S, S, 3) RGB, where S is the input size of the checkpoint. Pixels outside the frame are black."""
    others: tuple[UInt8Image, ...] = ()
    """The same for each checkpoint after the first one."""


@dataclass(frozen=True, slots=True, eq=False)
class FaceScore:
    """A face and its score."""

    face: Face
    logit: float
    """Calibrated logit: the network's output divided by the checkpoint's temperature."""

    @property
    def score(self) -> float:
        """P(fake) of this face, in [0, 1]."""
        return sigmoid(self.logit)


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One person through time."""

    track_id: int
    """Counts from 0 in order of first appearance."""
    faces: tuple[FaceScore, ...]
    """Faces in order of time, at most one per frame."""

    @property
    def start_s(self) -> float:
        """Time of the first face."""
        return self.faces[0].face.time_s

    @property
    def end_s(self) -> float:
        """Time of the last face."""
        return self.faces[-1].face.time_s

    @property
    def face_px(self) -> float:
        """Median of the shorter sides of the faces' boxes."""
        boxes = np.array([scored.face.box_xyxy for scored in self.faces])
        return float(np.median((boxes[:, 2:] - boxes[:, :2]).min(axis=1)))

    @property
    def sharpness(self) -> float | None:
        """Median over the faces; None if it was not measured."""
        return _median(scored.face.sharpness for scored in self.faces)

    @property
    def blockiness(self) -> float | None:
        """Median over the faces; None if it was not measured."""
        return _median(scored.face.blockiness for scored in self.faces)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


@dataclass(frozen=True, slots=True)
class Bounded:
    """A measured value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Validation:
    """How often validation videos got the same verdict, with the same settings."""

    error_rate: Bounded | None = None
    """Proportion of the videos of the other class that got it: genuine ones for `fake`, manipulated ones for `real`."""
    num_videos: int | None = None
    """Number of videos of that class; of groups, if the rate counts groups."""
    counts_groups: bool = False
    is_own_footage: bool = False
    """True if these are the user's own videos, see `Calibration.own_footage`."""
    quality: str | None = None
    """The range of sharpness of these videos, in words; None if their quality was not distinguished."""
    likelihood_ratio: Bounded | None = None
    """How many times as frequent the verdict is among manipulated videos as among genuine ones."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on one video."""

    label: VerdictLabel
    score: float | None = None
    """In [0, 1]; None if no face was scored."""
    threshold: float | None = None
    """Minimum score at which this video is labelled fake; None with an untrained checkpoint."""
    track_id: int | None = None
    """The track that determined the verdict."""
    reason: Reason | None = None
    validation: Validation | None = None
    """None if nothing that was measured applies: other settings were used, or the video was examined in part."""


@dataclass(frozen=True, slots=True)
class Review:
    """What a person says about the content of a file. It stands beside the verdict and never changes it."""

    verdict: ReviewVerdict
    """``withdrawn`` cancels the earlier reviews of this content."""
    reviewer: str
    """Name of the person."""
    note: str
    """Free text; may be empty."""
    time_utc: str
    """Time at which it was stored, such as ``2026-11-25T14:30:00Z``."""


def standing(reviews: Sequence[Review]) -> Review | None:
    """Return the review that counts, of all reviews of one content in order of time: the last, unless withdrawn."""
    return reviews[-1] if reviews and reviews[-1].verdict != "withdrawn" else None


@dataclass(frozen=True, slots=True)
class Remarks:
    """What `scan.verdict.decide` takes into account besides scores and thresholds; kept for judging a video again."""

    damage: Reason | None = None
    """Why only a part of the video was scanned."""
    crowd: Reason | None = None
    """Why some faces were not scored."""
    is_picture: bool = False
    """True for a picture that is an input of its own, see `ScanSettings.images`."""
    used_for: Literal["training", "validation"] | None = None
    """What the checkpoint used this file for."""
    notes: tuple[Reason, ...] = ()
    """Other remarks on the sampling of frames and the search for faces."""
    turn_deg: int = 0
    """Clockwise rotation of the frames before faces were searched for."""


def _decided(tracks: Sequence[Track], verdict: Verdict) -> Track | None:
    return next((track for track in tracks if track.track_id == verdict.track_id), None)


@dataclass(frozen=True, slots=True)
class DetectorResult:
    """What one of several detectors concludes on a video, as if it had scanned the video alone."""

    name: str
    """Unique name of the detector in this scan."""
    checkpoint: str
    """Short text that names its checkpoint."""
    verdict: Verdict
    tracks: tuple[Track, ...] = ()
    """The tracks of the video, with the scores of this detector."""
    used_for: Literal["training", "validation"] | None = None
    """What this checkpoint used the file for."""

    @property
    def decided(self) -> Track | None:
        """The track that decided the verdict, if a face was found."""
        return _decided(self.tracks, self.verdict)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A small picture for the report: a scored face, or a whole frame of a video in which no face was found."""

    kind: PictureKind
    track_id: int
    """-1 for a frame."""
    frame_index: int
    time_s: float
    score: float
    """Score of this face, in [0, 1]; 0 for a whole frame, which has no score."""
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a video looks like and how it moves, by which copies of it are found; see `dfscan.fingerprint`."""

    mean_jpeg: bytes
    """Mean picture, (64, 64), grey, as JPEG."""
    changes: bytes
    """(12, 8, 8) int8: differences of 12 frames from their mean, scaled to the range; unused frames are 0."""
    face_png: bytes | None = None
    """Mean of the largest face of each frame, (32, 32), grey, as PNG; None if there are few faces."""


@dataclass(frozen=True, slots=True)
class VideoResult:
    """Complete result of scanning one video."""

    path: str
    """Path as given or found; may contain surrogate escapes for bytes that are not UTF-8."""
    status: Status
    verdict: Verdict
    info: VideoInfo
    num_frames: int = 0
    """Number of frames that were searched for faces."""
    tracks: tuple[Track, ...] = ()
    dumps: tuple[dict[str, Any], ...] = field(default=())
    """Index rows of the Grad-CAM dumps written for this video, see `report.dumps`."""
    pictures: tuple[Picture, ...] = field(default=(), compare=False)
    """Faces of each track in order of time and heat maps by descending score; empty unless requested."""
    remarks: Remarks | None = None
    """None if nothing could be judged, and in ledgers of 0.1."""
    checkpoint: str | None = field(default=None, compare=False)
    """Short text that names the checkpoint; set by `dfscan.Scanner`. Ledgers keep it in their recipes."""
    dfscan_version: str | None = field(default=None, compare=False)
    """Set like `checkpoint`."""
    facts: FileFacts | None = None
    """None if the file could not be opened, or if the result is from before facts were read."""
    fingerprint: Fingerprint | None = None
    """None if the video is too short, too dark or does not move, and in results from before fingerprints."""
    detectors: tuple[DetectorResult, ...] = ()
    """One result for each of several detectors; empty with one detector, and without a face search. The verdict then
    combines theirs; its score, its threshold and all other scores are those of the first one."""

    @property
    def decided(self) -> Track | None:
        """The track that decided the verdict, if a face was found."""
        return _decided(self.tracks, self.verdict)

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
            "tracks": [
                {
                    "track_id": track.track_id,
                    "start_s": track.start_s,
                    "end_s": track.end_s,
                    "faces": [
                        {
                            "time_s": scored.face.time_s,
                            "frame_index": scored.face.frame_index,
                            "frame_number": scored.face.frame_number,
                            "stream": scored.face.stream,
                            "box_xyxy": scored.face.box_xyxy.tolist(),
                            "landmarks": scored.face.landmarks.tolist(),
                            "detection_score": scored.face.detection_score,
                            "logit": scored.logit,
                            "score": scored.score,
                            "sharpness": scored.face.sharpness,
                            "blockiness": scored.face.blockiness,
                        }
                        for scored in track.faces
                    ],
                }
                for track in self.tracks
            ],
            "checkpoint": self.checkpoint,
            "dfscan_version": self.dfscan_version,
            "facts": asdict(self.facts) if self.facts else None,
            "detectors": [
                {
                    "name": each.name,
                    "checkpoint": each.checkpoint,
                    "verdict": asdict(each.verdict),
                    "logits": [[scored.logit for scored in track.faces] for track in each.tracks],
                }
                for each in self.detectors
            ],
        }
        finite: dict[str, Any] = _finite(document)
        return finite


def _finite(value: Any) -> Any:
    """The value with None in place of every NaN and infinity in it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sigmoid(logit: float) -> float:
    """Return the logistic function of `logit`, without overflow for any finite input."""
    if logit >= 0:
        return 1.0 / (1.0 + float(np.exp(-logit)))
    power = float(np.exp(logit))
    return power / (1.0 + power)
