"""Write annotated copies of scanned videos from their results in a ledger. Nothing is judged again.

Each video is decoded once more, completely and in the sandbox, and checked against the hash of the scan: boxes must
never appear on other pictures than those they were measured on.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from dfscan.config import ScanSettings
from dfscan.files import make_folder, remove_leftovers
from dfscan.media.isolate import Decoded, Limits, Opened, decode_videos
from dfscan.media.plan import Sampling
from dfscan.report.annotated import ENCODERS, AnnotatedVideo, encoder_name
from dfscan.report.dumps import video_folder
from dfscan.scan.ledger import Recipe, file_key
from dfscan.scan.second_look import turned
from dfscan.text import display_path
from dfscan.types import Reason, Remarks, VideoResult

ALL_FRAMES = 1 << 40
"""More samples than a stream has frames."""

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A video that may be annotated."""

    path: str
    """Path or URL to read it from."""
    score: float | None
    """Score of the video; None if no face was scored."""
    result: Callable[[], VideoResult]
    """Loads its result, with the path as in the report."""
    recipe: Recipe


def annotate_videos(candidates: Sequence[Candidate], settings: ScanSettings) -> int:
    """Annotate the videos in which faces were scored, or only the `settings.annotate_top` highest-scoring ones.

    A video that cannot be read or has changed is logged and skipped.

    Returns:
        The number of videos that were written to the folder `settings.annotate`.

    Raises:
        OutputError: the folder or a file in it cannot be written.
    """
    assert settings.annotate is not None
    make_folder(settings.annotate, remedy="Name another folder.")
    if encoder_name() != next(iter(ENCODERS)):
        log.warning("this FFmpeg has no H.264 encoder; annotated videos are MPEG-4 Part 2. Use a wheel of PyAV")
    limits = Limits(settings.timeout, settings.max_memory, settings.sandbox)
    # The highest scores, ties by position; annotated in the order given.
    scored = [(each.score, -i) for i, each in enumerate(candidates) if each.score is not None]
    kept = scored if settings.annotate_top is None else heapq.nlargest(settings.annotate_top, scored)
    num_written = 0
    for candidate in (candidates[i] for i in sorted(-at for _, at in kept)):
        result = candidate.result()
        problem = _annotate(candidate, result, settings.annotate, limits)
        num_written += problem is None
        if problem is not None:
            log.warning("%s: not annotated: %s", display_path(result.path), problem)
    return num_written


def _annotate(candidate: Candidate, result: VideoResult, folder: Path, limits: Limits) -> Reason | str | None:
    """Write one video; return why this is impossible, or None."""
    # Not by the path in the report: two ledgers may know different videos by one relative path.
    target = folder / f"{video_folder(os.fsdecode(file_key(candidate.path)))}.mp4"
    if os.path.realpath(target) == os.path.realpath(candidate.path):
        return "it is the annotated video itself; name another folder"
    remarks = result.remarks or Remarks()
    if not remarks.turn_deg and any(note.code == "turned" for note in remarks.notes):
        return "the ledger does not say how its frames were turned; scan it again"
    remove_leftovers(target)
    recipe, deciding = candidate.recipe, result.decided or result.tracks[0]
    stream = deciding.faces[0].face.stream
    sampling = Sampling(num_frames=ALL_FRAMES, streams=stream)
    with (
        closing(decode_videos([candidate.path], sampling=sampling, num_workers=1, limits=limits)) as events,
        ExitStack() as opened,
    ):
        for event in events:
            if isinstance(event, Opened):
                opened.close()  # a first decoder has died: discard what it gave
                video = opened.enter_context(
                    AnnotatedVideo(target, result, checkpoint=recipe.checkpoint, version=recipe.version, stream=stream)
                )
            elif isinstance(event, Decoded):
                video.add(turned(event.frame, remarks.turn_deg) if remarks.turn_deg else event.frame)
            elif event.failure:
                return event.failure
            elif event.info is None or event.info.sha256 != result.info.sha256:
                return Reason("changed", "the file has changed since the scan; scan it again")
            else:
                if event.damage:
                    log.warning("%s: annotated only in part: %s", display_path(result.path), event.damage)
                video.commit()
    return None
