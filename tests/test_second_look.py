"""Videos without upright faces of the minimum size: the second search and its notes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dfscan.faces.detect import FaceDetector
from dfscan.scan.second_look import (
    MAX_KEPT_BYTES,
    MAX_KEPT_FRAMES,
    KeptFrames,
    find_small_faces,
    find_turn,
    pictures,
    turned,
)
from dfscan.types import Frame, VideoResult
from tests.pictures import astronaut, moved, nobody, on_canvas, other_person, two_people
from tests.test_pipeline import engine_for, scan
from tests.videos import write_video


@pytest.fixture(autouse=True)
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))


@pytest.fixture(scope="module")
def detector(session_cache: Path) -> FaceDetector:
    return FaceDetector(threshold=0.95, min_face_px=48, max_faces=10)


def frames(pixels: list[Any]) -> list[Frame]:
    return [Frame(np.ascontiguousarray(each), i, i / 4, 0) for i, each in enumerate(pixels)]


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 32, 100])
def test_a_few_frames_are_kept_spread_evenly(num_frames: int) -> None:
    kept = KeptFrames()
    for frame in frames([np.zeros((2, 2, 3), np.uint8)] * num_frames):
        kept.add(frame)
    indices = [frame.index for frame in kept.frames]
    assert min(num_frames, MAX_KEPT_FRAMES) / 2 < len(indices) <= MAX_KEPT_FRAMES
    assert len(set(np.diff(indices))) <= 1
    assert num_frames - indices[-1] <= max(1, indices[-1] - indices[-2] if len(indices) > 1 else 1)


def test_fewer_large_frames_are_kept() -> None:
    kept = KeptFrames()
    large = np.zeros((1, MAX_KEPT_BYTES // 3 - 1, 3), np.uint8)
    for frame in frames([large] * 4):
        kept.add(frame)
    assert [frame.index for frame in kept.frames] == [0]


@pytest.mark.parametrize("turn_deg", [90, 180, 270])
def test_rotations_are_clockwise_and_invertible(turn_deg: int) -> None:
    (frame,) = frames([np.arange(24, dtype=np.uint8).reshape(2, 4, 3)])
    by_opencv = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
    once = turned(frame, turn_deg)
    np.testing.assert_array_equal(once.pixels, cv2.rotate(frame.pixels, by_opencv[turn_deg]))
    np.testing.assert_array_equal(turned(once, 360 - turn_deg).pixels, frame.pixels)


@pytest.mark.parametrize("turn_deg", [90, 180, 270])
def test_the_rotation_that_shows_faces_is_found(detector: FaceDetector, turn_deg: int) -> None:
    lying = [turned(frame, 360 - turn_deg) for frame in frames([moved(astronaut(), 9 * i) for i in range(4)])]
    with ThreadPoolExecutor(2) as pool:
        assert find_turn(lying, detector, pool) == turn_deg


def test_no_rotation_is_found_without_faces_or_with_a_face_in_one_frame_only(detector: FaceDetector) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert find_turn(frames([nobody()] * 3), detector, pool) == 0
        assert find_turn(frames([astronaut()[::-1, ::-1], nobody(), nobody()]), detector, pool) == 0
        assert find_turn([], detector, pool) == 0


def small(size_px: float) -> Any:
    scale = size_px / 87
    face = cv2.resize(astronaut(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return on_canvas(face, width_px=640, height_px=360, left_px=100, top_px=60)


def test_small_faces_are_noted_with_their_size(detector: FaceDetector) -> None:
    with ThreadPoolExecutor(2) as pool:
        reason = find_small_faces(frames([small(36)] * 3), detector, pool)
        assert find_small_faces(frames([nobody()] * 3), detector, pool) is None
        assert find_small_faces(frames([small(36), nobody(), nobody()]), detector, pool) is None
    assert reason is not None
    assert reason.code == "faces_too_small"
    size_px = int(reason.text.split(" px")[0].split()[-1])
    assert 30 <= size_px <= 42
    assert "at least 48 px" in reason.text


def test_thumbnails_of_frames_are_small_and_keep_their_aspect_ratio() -> None:
    (picture,) = pictures(frames([nobody(width_px=640, height_px=360)]))
    assert (picture.kind, picture.track_id, picture.time_s) == ("frame", -1, 0)
    image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (108, 192, 3)


def judged(path: Path, pictures: list[Any], checkpoint: Path, **more: Any) -> VideoResult:
    write_video(path, pictures, fps=10)
    settings = more.pop("settings", {})
    (result,) = scan([path], engine_for(checkpoint, **settings), **more)
    return result


@pytest.mark.parametrize("turn_deg", [90, 180, 270])
def test_faces_in_rotated_frames_are_scored_and_noted(turn_deg: int, untrained: Path, tmp_path: Path) -> None:
    upright = frames([moved(astronaut(), 6 * i, 2 * i) for i in range(10)])
    result = judged(tmp_path / "a.mp4", [turned(each, 360 - turn_deg).pixels for each in upright], untrained)
    assert [len(track.faces) for track in result.tracks] == [4]
    assert result.verdict.label == "inconclusive"
    assert f"turned: faces were found only after the frames were turned clockwise by {turn_deg} degrees" in str(
        result.verdict.reason
    )


def test_small_faces_are_noted_in_the_row_and_frames_shown_on_the_page(trained: Path, tmp_path: Path) -> None:
    result = judged(tmp_path / "a.mp4", [small(36)] * 10, trained, keeps_pictures=True)
    assert (result.verdict.label, result.status) == ("no_face", "ok")
    assert result.verdict.reason is not None
    assert result.verdict.reason.code == "faces_too_small"
    assert [picture.kind for picture in result.pictures] == ["frame"] * len(result.pictures)
    assert 2 <= len(result.pictures) <= MAX_KEPT_FRAMES


def test_without_any_face_there_is_no_note_but_frames_are_shown(trained: Path, tmp_path: Path) -> None:
    result = judged(tmp_path / "a.mp4", [nobody(width_px=320, height_px=240)] * 10, trained, keeps_pictures=True)
    assert (result.verdict.label, result.verdict.reason) == ("no_face", None)
    assert result.pictures


def test_unscored_people_are_noted_and_the_video_is_never_real(trained: Path, tmp_path: Path) -> None:
    pair = two_people(right=other_person())
    crowd = [moved(pair, 4 * i) for i in range(10)]
    results = [
        judged(tmp_path / "a.mp4", crowd, trained, settings={"threshold": threshold, "max_faces": 1})
        for threshold in (0.999, 0.001)
    ]
    assert [result.verdict.label for result in results] == ["inconclusive", "fake"]
    for result in results:
        assert result.status == "partial"
        assert "2 faces in one frame, of which 1 were not judged" in str(result.verdict.reason)
        assert [len(track.faces) for track in result.tracks] == [4]
    everybody = judged(tmp_path / "a.mp4", crowd, trained, settings={"threshold": 0.999, "max_faces": 2})
    assert everybody.status == "ok"
    assert len(everybody.tracks) == 2
