"""The columns of the reports, and the rows of a result.

The order is stable: new columns are only added at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dfscan.report.statement import statement
from dfscan.types import FileFacts, Review, VideoInfo, VideoResult

Kind = Literal["path", "text", "int", "score", "time", "pixel", "ratio"]

DIGITS: dict[Kind, int] = {"score": 6, "time": 3, "pixel": 1, "ratio": 6}
"""Number of decimals of each fractional kind."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a report."""

    name: str
    kind: Kind


REPORT_COLUMNS: tuple[Column, ...] = (
    Column("path", "path"),
    Column("verdict", "text"),
    Column("score", "score"),
    Column("threshold", "score"),
    Column("status", "text"),
    Column("reason", "text"),
    Column("num_frames", "int"),
    Column("num_faces", "int"),
    Column("num_tracks", "int"),
    Column("max_face_score", "score"),
    Column("fake_face_ratio", "score"),
    Column("evidence_start_s", "time"),
    Column("evidence_end_s", "time"),
    Column("duration_s", "time"),
    Column("width_px", "int"),
    Column("height_px", "int"),
    Column("fps", "time"),
    Column("codec", "text"),
    Column("size_bytes", "int"),
    Column("sha256", "text"),
    Column("checkpoint", "text"),
    Column("dfscan_version", "text"),
    Column("num_skipped_streams", "int"),
    # What the file states about itself. These columns never affect a score or a verdict.
    Column("container", "text"),
    Column("container_brand", "text"),
    Column("muxer", "text"),
    Column("encoder", "text"),
    Column("device", "text"),
    Column("creation_time", "text"),
    Column("num_edits", "int"),
    Column("hidden_s", "time"),
    Column("bit_rate_bps", "int"),
    Column("gop_frames", "int"),
    Column("rotation_deg", "int"),
    Column("num_audio_streams", "int"),
    Column("sound", "text"),
    Column("origin_signs", "text"),
    Column("provenance", "text"),
    Column("provenance_signer", "text"),
    Column("provenance_generator", "text"),
    Column("provenance_actions", "text"),
    Column("provenance_problem", "text"),
    Column("declared_ai", "text"),
    # What a person says about the content. These columns never affect a score or a verdict either.
    Column("reviewer_verdict", "text"),
    Column("reviewer", "text"),
    Column("reviewed_utc", "text"),
    Column("reviewer_note", "text"),
    Column("statement", "text"),
    Column("likelihood_ratio", "ratio"),
    Column("likelihood_ratio_low", "ratio"),
    Column("likelihood_ratio_high", "ratio"),
    # The same in every row, so that rows of several reports can be put together.
    Column("case", "text"),
    Column("exhibit", "text"),
    Column("examiner", "text"),
    # How good the picture is: of the faces of the track that decided, and of the main video stream.
    Column("face_px", "pixel"),
    Column("sharpness", "score"),
    Column("blockiness", "ratio"),
    Column("bits_per_pixel", "ratio"),
    Column("same_as", "path"),
)
"""Columns of a report, with one row per video."""

NO_CASE: Mapping[str, str | None] = {"case": None, "exhibit": None, "examiner": None}

REPORT_VERSION = 2
"""Version of these columns and their contents; in version 1, `sha256` cells began with ``sha256:``."""

FRAME_COLUMNS: tuple[Column, ...] = (
    Column("path", "path"),
    Column("track", "int"),
    Column("frame", "int"),
    Column("time_s", "time"),
    Column("x1", "pixel"),
    Column("y1", "pixel"),
    Column("x2", "pixel"),
    Column("y2", "pixel"),
    Column("detection_score", "score"),
    Column("logit", "score"),
    Column("score", "score"),
    Column("stream", "int"),
    Column("sharpness", "score"),
    Column("blockiness", "ratio"),
)
"""Columns of ``--frames-out``, with one row per scored face."""


DETECTORS = "detectors"
"""Key of a row that has no column: a list with one dict of `DETECTOR_COLUMNS` per detector. JSON Lines reports contain
it instead of `detector_columns`."""

DETECTOR_COLUMNS: tuple[Column, ...] = (
    Column("name", "text"),
    Column("checkpoint", "text"),
    Column("verdict", "text"),
    Column("score", "score"),
    Column("threshold", "score"),
    Column("reason", "text"),
)
"""Keys of the result of one of several detectors."""


def detector_columns(names: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns at the end of a report for several detectors."""
    return tuple(
        column for name in names for column in (Column(f"score_{name}", "score"), Column(f"verdict_{name}", "text"))
    )


def is_score(name: str) -> bool:
    """Return True for the column of a video's score, also of one of several detectors."""
    return name == "score" or name.startswith("score_")


def face_columns(names: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns at the end of ``--frames-out`` for several detectors."""
    return tuple(Column(f"score_{name}", "score") for name in names)


def report_row(
    result: VideoResult,
    *,
    checkpoint: str | None,
    version: str | None,
    review: Review | None = None,
    case_facts: Mapping[str, str | None] = NO_CASE,
    same_as: str | None = None,
    detectors: Sequence[str] = (),
) -> dict[str, object]:
    """Return the row of one video by column name: typed values, None for missing values, never NaN.

    Args:
        result: result of the video.
        checkpoint: label of the checkpoint.
        version: version of dfscan that judged the video.
        review: the review of its content that counts.
        case_facts: values of `case`, `exhibit` and `examiner`.
        same_as: path of the first row with the same video, see `report.copies`.
        detectors: names of the detectors in the report, if there are several.
    """
    verdict, info = result.verdict, result.info
    scores = [face.score for track in result.tracks for face in track.faces]
    num_fake = None if verdict.threshold is None else sum(score >= verdict.threshold for score in scores)
    decided = result.decided
    ratio = verdict.validation.likelihood_ratio if verdict.validation else None
    return {
        "path": result.path,
        "verdict": verdict.label,
        "score": finite(verdict.score),
        "threshold": finite(verdict.threshold),
        "status": result.status,
        "reason": str(verdict.reason) if verdict.reason else None,
        "num_frames": result.num_frames,
        "num_faces": len(scores),
        "num_tracks": len(result.tracks),
        "max_face_score": finite(max(scores, default=None)),
        "fake_face_ratio": num_fake / len(scores) if scores and num_fake is not None else None,
        "evidence_start_s": finite(decided.start_s) if decided else None,
        "evidence_end_s": finite(decided.end_s) if decided else None,
        "duration_s": finite(info.duration_s),
        "width_px": info.width_px,
        "height_px": info.height_px,
        "fps": finite(info.fps),
        "codec": info.codec,
        "size_bytes": info.size_bytes,
        "sha256": info.sha256,
        "checkpoint": checkpoint,
        "dfscan_version": version,
        "num_skipped_streams": info.num_skipped_streams,
        **_fact_cells(result),
        "reviewer_verdict": review.verdict if review else None,
        "reviewer": review.reviewer if review else None,
        "reviewed_utc": review.time_utc if review else None,
        "reviewer_note": review.note or None if review else None,
        "statement": statement(result),
        "likelihood_ratio": ratio.value if ratio else None,
        "likelihood_ratio_low": ratio.low if ratio else None,
        "likelihood_ratio_high": ratio.high if ratio else None,
        **case_facts,
        "face_px": finite(decided.face_px) if decided else None,
        "sharpness": finite(decided.sharpness) if decided else None,
        "blockiness": finite(decided.blockiness) if decided else None,
        "bits_per_pixel": finite(bits_per_pixel(info, result.facts)),
        "same_as": same_as,
        **(_detector_cells(result, detectors) if detectors else {}),
    }


def frame_rows(result: VideoResult, detectors: Sequence[str] = ()) -> Iterator[dict[str, object]]:
    """Yield a row for every scored face of one video, grouped by track, in order of time.

    Args:
        result: result of the video.
        detectors: names of the detectors in the report, if there are several.
    """
    tracks_of = {each.name: each.tracks for each in result.detectors}
    for i, track in enumerate(result.tracks):
        for j, scored in enumerate(track.faces):
            face = scored.face
            x1, y1, x2, y2 = (finite(edge) for edge in face.box_xyxy.tolist())
            scores = {name: tracks[i].faces[j].score for name, tracks in tracks_of.items()}
            yield {
                "path": result.path,
                "track": track.track_id,
                "frame": face.frame_number,
                "time_s": finite(face.time_s),
                "x1": x1,
                "y1": y1,
                "x2": x2,
                "y2": y2,
                "detection_score": finite(face.detection_score),
                "logit": finite(scored.logit),
                "score": finite(scored.score),
                "stream": face.stream,
                "sharpness": finite(face.sharpness),
                "blockiness": finite(face.blockiness),
                **{f"score_{name}": finite(scores.get(name)) for name in detectors},
            }


def finite(value: float | None) -> float | None:
    """Return the value as a Python float, or None if it is missing, NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None


def _detector_cells(result: VideoResult, names: Sequence[str]) -> dict[str, object]:
    verdicts = {each.name: each.verdict for each in result.detectors}
    listed = [
        {
            "name": each.name,
            "checkpoint": each.checkpoint,
            "verdict": each.verdict.label,
            "score": each.verdict.score,
            "threshold": each.verdict.threshold,
            "reason": each.verdict.reason and str(each.verdict.reason),
        }
        for each in result.detectors
    ]
    cells: dict[str, object] = {DETECTORS: listed}
    for name in names:
        verdict = verdicts.get(name)
        cells[f"score_{name}"] = finite(verdict.score) if verdict else None
        cells[f"verdict_{name}"] = verdict.label if verdict else None
    return cells


def _fact_cells(result: VideoResult) -> dict[str, object]:
    facts = result.facts or FileFacts()
    provenance = facts.provenance
    is_decoded = result.info.width_px is not None
    return {
        "container": facts.container,
        "container_brand": facts.brand,
        "muxer": facts.muxer,
        "encoder": facts.encoder,
        "device": facts.device,
        "creation_time": facts.creation_time,
        "num_edits": facts.num_edits,
        "hidden_s": finite(facts.hidden_s),
        "bit_rate_bps": facts.bit_rate_bps,
        "gop_frames": facts.gop_frames,
        "rotation_deg": result.info.rotation_deg if is_decoded else None,
        "num_audio_streams": facts.num_audio_streams,
        "sound": sound(facts),
        "origin_signs": "; ".join(facts.origin_signs) or None,
        "provenance": provenance.state if provenance else None,
        "provenance_signer": provenance.signer if provenance else None,
        "provenance_generator": provenance.generator if provenance else None,
        "provenance_actions": "; ".join(provenance.actions) or None if provenance else None,
        "provenance_problem": provenance.problem if provenance else None,
        "declared_ai": provenance.declared_ai if provenance else None,
    }


def bits_per_pixel(info: VideoInfo, facts: FileFacts | None) -> float | None:
    """Return the mean number of bits per pixel and frame of the main video stream, or None if something is unknown."""
    if facts is None or not (facts.bit_rate_bps and info.fps and info.width_px and info.height_px):
        return None
    return facts.bit_rate_bps / (info.fps * info.width_px * info.height_px)


def sound(facts: FileFacts) -> str | None:
    """Return ``none`` or ``not examined``: dfscan judges pictures only. None if the file was not opened."""
    if facts.num_audio_streams is None:
        return None
    return "not examined" if facts.num_audio_streams else "none"
