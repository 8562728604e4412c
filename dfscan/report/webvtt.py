"""Suspicious spans of a video as WebVTT, which players show as subtitles and editors import as markers.

A span is a run of examined faces of one track that are at or above the threshold. https://www.w3.org/TR/webvtt1/
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from dfscan.files import make_folder, write_bytes
from dfscan.report.dumps import video_folder
from dfscan.text import display_path, printable
from dfscan.types import VideoResult

MIN_CUE_S = 0.5
"""Minimum time that a span is shown; a shorter one would only flash by."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive faces of a track, all at or above the threshold."""

    track_id: int
    start_s: float
    end_s: float
    num_faces: int
    max_score: float


def spans(result: VideoResult) -> list[Span]:
    """Return the suspicious spans of a video in order of time; none if the checkpoint calls no video fake."""
    threshold = result.verdict.threshold
    if threshold is None:
        return []
    found = []
    for track in result.tracks:
        for is_suspicious, run in itertools.groupby(track.faces, lambda face: face.score >= threshold):
            if is_suspicious:
                faces = list(run)
                times_s, highest = [face.face.time_s for face in faces], max(face.score for face in faces)
                found.append(Span(track.track_id, times_s[0], times_s[-1], len(faces), highest))
    return sorted(found, key=lambda span: (span.start_s, span.track_id))


def write_webvtt(folder: Path, result: VideoResult) -> Path:
    """Write the file of one video into a folder, replacing an older one, and return its path.

    A video without suspicious spans gets a file without cues, so that no file of an earlier scan stays.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    make_folder(folder)
    verdict = result.verdict
    score = "" if verdict.score is None else f", score {verdict.score:.4f}"
    threshold = "no threshold" if verdict.threshold is None else f"threshold {verdict.threshold:.4f}"
    about = [
        f"File: {display_path(result.path)}",
        f"Verdict: {verdict.label}{score}, {threshold}",
        "Spans: examined faces at or above the threshold. Nothing between the sampled frames was examined.",
    ]
    note = "\n".join(printable(line).replace("-->", "-- >") for line in about)
    blocks = ["WEBVTT", f"NOTE\n{note}"]
    for span in spans(result):
        times = f"{_time(span.start_s)} --> {_time(max(span.end_s, span.start_s + MIN_CUE_S))}"
        faces = "1 face" if span.num_faces == 1 else f"{span.num_faces} faces"
        blocks.append(f"{times}\ntrack {span.track_id}: {faces}, score up to {span.max_score:.4f}")
    path = folder / f"{video_folder(result.path)}.vtt"
    write_bytes(path, ("\n\n".join(blocks) + "\n").encode())
    return path


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
