"""The JSON Schema of a row of a JSON Lines report."""

from __future__ import annotations

from typing import Any, get_args

from dfscan.report.schema import DETECTOR_COLUMNS, DETECTORS, REPORT_COLUMNS, REPORT_VERSION, Column, Kind
from dfscan.types import VERDICT_LABELS, DeclaredAi, ProvenanceState, Status

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TYPES: dict[Kind, str] = {"path": "string", "text": "string", "int": "integer"}
"""Types of kinds that are not ``number``."""
_ALWAYS_GIVEN = frozenset("name path verdict status num_frames num_faces num_tracks".split())
_CHOICES: dict[str, tuple[str, ...]] = {
    "verdict": VERDICT_LABELS,
    "status": get_args(Status),
    "sound": ("none", "not examined"),
    "provenance": get_args(ProvenanceState),
    "declared_ai": get_args(DeclaredAi),
    "reviewer_verdict": ("fake", "real", "inconclusive"),
}
DESCRIPTIONS = {
    "name": "name of a detector",
    "path": "path as given or found, with unprintable characters escaped",
    "verdict": "what the detector concludes",
    "score": "probability that the video is manipulated, according to this detector; not proof",
    "threshold": "minimum score of the verdict fake; null if the checkpoint calls no video fake",
    "status": "whether all planned frames were examined",
    "reason": "code and sentence; several are separated by '; '",
    "num_frames": "frames examined, in all video streams",
    "num_faces": "faces scored",
    "num_tracks": "people, each followed over time",
    "max_face_score": "highest score of a single face",
    "fake_face_ratio": "proportion of faces at or above the threshold",
    "evidence_start_s": "first face of the track that decided, in seconds",
    "evidence_end_s": "last face of the track that decided, in seconds",
    "duration_s": "duration of the main video stream in seconds, from its packets",
    "width_px": "width of the upright frame in square pixels",
    "height_px": "height of the upright frame in square pixels",
    "fps": "frames per second of the main video stream, from its packets",
    "codec": "codec of the main video stream",
    "size_bytes": "size of the file",
    "sha256": "hash of the file in lower-case hex",
    "checkpoint": "checkpoint that scored the faces",
    "dfscan_version": "version of dfscan that wrote the result",
    "num_skipped_streams": "video streams that were not examined",
    "container": "format of the file",
    "container_brand": "major brand and compatible brands of an MP4 or MOV file",
    "muxer": "programs that wrote the file, as stated in it",
    "encoder": "programs that encoded the main video stream, as stated in the file",
    "device": "make and model of the camera, as stated in the file",
    "creation_time": "time of creation, as stated in the file",
    "num_edits": "entries in the edit list of an MP4 or MOV file",
    "hidden_s": "seconds of video that the edit list hides",
    "bit_rate_bps": "mean bit rate of the main video stream in bits per second",
    "gop_frames": "maximum number of frames from one key frame to the next",
    "rotation_deg": "clockwise rotation in degrees that makes the frames upright",
    "num_audio_streams": "number of audio streams",
    "sound": "whether the file has sound; dfscan never examines it",
    "origin_signs": "tags that name a screen recorder, an online service or a generator",
    "provenance": "state of the C2PA manifest; unknown says nothing",
    "provenance_signer": "name in the signer's certificate; proof only if provenance is trusted",
    "provenance_generator": "program that made the manifest",
    "provenance_actions": "actions in the manifest",
    "provenance_problem": "why the manifest is invalid or was not read",
    "declared_ai": "whether the manifest says that a trained model made the content or a part of it",
    "reviewer_verdict": "what a person concludes about this content",
    "reviewer": "name of this person",
    "reviewed_utc": "when the review was stored",
    "reviewer_note": "note of this person",
    "statement": "the verdict in sentences to quote, with its measured error rates and what was not examined",
    "likelihood_ratio": "frequency of this verdict among manipulated validation videos, divided by that in real ones",
    "likelihood_ratio_low": "lower bound of its 95 % confidence interval",
    "likelihood_ratio_high": "upper bound of its 95 % confidence interval",
    "case": "number or name of the case, as given",
    "exhibit": "number or name of the exhibit, as given",
    "examiner": "name of the examiner, as given",
    "face_px": "median of the shorter sides of the faces of the track that decided",
    "sharpness": "median contrast of the finest details of these faces, as a fraction of their contrast",
    "blockiness": "median difference across the borders of 8 x 8 blocks in these faces, divided by that elsewhere",
    "bits_per_pixel": "mean bits per pixel and frame of the main video stream",
    "same_as": "path of the first row with the same video; null in that row, and if there is no other",
}
"""Meaning of each column, as in the documentation of reports."""


def row_schema() -> dict[str, Any]:
    """Return the JSON Schema of a row. Later versions of dfscan may add properties."""
    properties = {column.name: _property(column) for column in REPORT_COLUMNS}
    properties["path_bytes"] = {
        "description": "bytes of the path; only if `path` had to be escaped",
        "type": "string",
        "contentEncoding": "base64",
    }
    properties[DETECTORS] = {
        "description": "what each detector concludes; only in scans with several detectors",
        "type": "array",
        "items": {
            "type": "object",
            "properties": {column.name: _property(column) for column in DETECTOR_COLUMNS},
            "required": [column.name for column in DETECTOR_COLUMNS],
        },
    }
    return {
        "$schema": DIALECT,
        "$id": f"urn:dfscan:report-row:{REPORT_VERSION}",
        "title": "Row of a dfscan report",
        "type": "object",
        "properties": properties,
        "required": [column.name for column in REPORT_COLUMNS],
    }


def _property(column: Column) -> dict[str, Any]:
    is_given = column.name in _ALWAYS_GIVEN
    kind = _TYPES.get(column.kind, "number")
    described: dict[str, Any] = {
        "description": DESCRIPTIONS[column.name],
        "type": kind if is_given else [kind, "null"],
    }
    if choices := _CHOICES.get(column.name):
        described["enum"] = [*choices, *([] if is_given else [None])]
    if column.kind == "score":
        described |= {"minimum": 0, "maximum": 1}
    return described
