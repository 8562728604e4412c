"""The state of a video in progress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfscan.media.isolate import Ended
from dfscan.media.source import FileIdentity
from dfscan.scan.crowd import Crowd
from dfscan.scan.video import ScoredCrop, VideoState
from dfscan.types import Face, FaceCrop, FaceScore, Frame, Reason


def state(path: str = "a.mp4", **fields: object) -> VideoState:
    return VideoState(path, FileIdentity.of(path), 2, 3, Crowd(10), **fields)  # type: ignore[arg-type]


def frame(index: int) -> Frame:
    return Frame(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), index, index / 10, 0)


def crops(frame_index: int, count: int) -> list[FaceCrop]:
    """Return faces that are too unlike and too far apart to be one person."""
    made = []
    for i in range(count):
        box, points = np.array([50 * i, 0, 50 * i + 40, 40], np.float32), np.zeros((5, 2), np.float32)
        descriptor = np.full(4, 100.0 * i, np.float32)
        face = Face(frame_index, frame_index / 10, 0, box, points, 0.99, descriptor, index_in_frame=i)
        made.append(FaceCrop(face, np.zeros((4, 4, 3), np.uint8)))
    return made


def score(video: VideoState, crop: FaceCrop, logit: float) -> None:
    scored = ScoredCrop(crop, None, (logit,), np.zeros((1, 1), np.float32))
    video.add_scores((FaceScore(crop.face, logit),), scored)


def test_a_video_is_complete_when_all_chosen_faces_are_scored() -> None:
    video = state()
    chosen = video.choose_faces(crops(0, 2)) + video.choose_faces(crops(1, 1))
    video.finish_detection()
    for crop, logit in zip(chosen, (0.5, 2.0, 1.0), strict=True):
        assert not video.is_complete
        score(video, crop, logit)
    assert video.is_complete
    assert [found.logit for found, _ in video.best_first()] == [2.0, 1.0]
    assert len({crop.face.key for crop in chosen}) == 3


def test_a_video_without_faces_is_complete_after_detection() -> None:
    video = state()
    assert not video.is_complete
    video.finish_detection()
    assert video.is_complete


def test_frames_are_kept_until_enough_faces_are_found() -> None:
    video = state(turn_deg=180)
    searched = video.add_frame(frame(0))
    assert np.array_equal(searched.pixels, frame(0).pixels[::-1, ::-1])
    assert len(video.kept.frames) == 1
    video.choose_faces(crops(0, 3))
    video.add_frame(frame(1))
    assert (video.num_frames, video.num_found, video.kept.frames) == (2, 3, [])


def test_frames_of_the_second_pass_are_turned_back() -> None:
    upright, turned = state(), state(turn_deg=90)
    upright.add_frame(frame(0))
    turned.add_frame(frame(0))
    upright.set_aside()
    assert upright.kept.frames == []
    upright.take_frames_from(turned)
    assert np.array_equal(upright.kept.frames[0].pixels, frame(0).pixels)


@pytest.mark.parametrize("cause", ["detection", "decoding", "changed"])
def test_a_video_fails_for_any_of_three_reasons(tmp_path: Path, cause: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"1")
    video, reason = state(str(path)), Reason("internal", "it failed")
    assert not video.fails
    if cause == "detection":
        video.fail(reason)
    if cause == "changed":
        path.write_bytes(b"changed")
    video.end(Ended(str(path), None, reason if cause == "decoding" else None, None))
    assert video.fails
