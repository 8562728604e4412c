"""Re-detection from frame to frame: the detected faces, and the frames that are searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from dfscan.faces.detect import Detection, FaceDetector
from dfscan.faces.keyframes import DETECT_EVERY, FrameDetections, KeyframeDetector
from dfscan.types import Frame
from tests.pictures import astronaut, moved, nobody, other_person, two_people
from tests.test_mtcnn_numpy import overlap


class Stub:
    """Detects persons 0 to 7 according to the bits of a frame's only pixel."""

    def __init__(self) -> None:
        self.num_searches = 0

    def detect(self, pixels: Any, *, known: Sequence[Detection] = ()) -> list[Detection]:
        self.num_searches += 1
        return [*known, *(person(i) for i in present(pixels) if i not in named(known))]

    def redetect(self, pixels: Any, near: Sequence[Detection], *, known: Sequence[Detection] = ()) -> list[Detection]:
        return [*known, *(person(i) for i in sorted(named(near) & present(pixels) - named(known)))]


def person(i: int) -> Detection:
    return Detection(np.full(4, i, np.float32), np.zeros((5, 2), np.float32), 1.0)


def named(faces: Sequence[Detection]) -> set[int]:
    return {int(face.box_xyxy[0]) for face in faces}


def present(pixels: Any) -> set[int]:
    return {i for i in range(8) if int(pixels[0, 0, 0]) >> i & 1}


def frames(bits: Sequence[int], bursts: Sequence[int] | None = None) -> list[Frame]:
    bursts = bursts or [0] * len(bits)
    return [
        Frame(np.full((1, 1, 3), value, np.uint8), i, i / 4, burst)
        for i, (value, burst) in enumerate(zip(bits, bursts, strict=True))
    ]


def looks(detector: Any, given: Sequence[Frame]) -> list[FrameDetections]:
    follower = KeyframeDetector(cast(FaceDetector, detector))
    settled: list[FrameDetections] = []
    for i, frame in enumerate(given):
        settled += follower.add(frame)
        assert i + 1 - len(settled) <= DETECT_EVERY - 1
    settled += follower.finish()
    assert [look.frame for look in settled] == list(given)
    return settled


def seen(detector: Any, given: Sequence[Frame]) -> list[set[int]]:
    found = [look.faces for look in looks(detector, given)]
    assert all(len(faces) == len(named(faces)) for faces in found), "a face was detected twice"
    return [named(faces) for faces in found]


@pytest.mark.parametrize("length", range(10))
def test_one_person_is_detected_in_every_frame_with_a_search_every_third(length: int) -> None:
    stub = Stub()
    assert seen(stub, frames([1] * length)) == [{0}] * length
    assert stub.num_searches == (length + 1) // 3 + (length == 1)


def test_a_single_person_is_detected_however_briefly() -> None:
    for pattern in range(1 << 9):
        bits = [pattern >> i & 1 for i in range(9)]
        assert seen(Stub(), frames(bits)) == [{0} if bit else set() for bit in bits]


def test_a_person_who_joins_others_for_three_frames_is_detected_in_all_of_them() -> None:
    for start in range(10):
        for length in range(3, 11 - start):
            bits = [1 | 2 * (start <= i < start + length) for i in range(10)]
            assert seen(Stub(), frames(bits)) == [{0, 1} if bit & 2 else {0} for bit in bits], (start, length)


def test_few_random_appearances_are_missed_and_none_is_invented() -> None:
    chance = np.random.default_rng(4)
    num_found = num_present = 0
    for _ in range(300):
        bits = chance.integers(0, 8, 14).tolist()
        for found, frame in zip(seen(Stub(), frames(bits)), frames(bits), strict=True):
            assert found <= present(frame.pixels)
            num_found += len(found)
            num_present += len(present(frame.pixels))
    assert num_found >= 0.85 * num_present


def test_each_burst_starts_with_a_search() -> None:
    stub = Stub()
    assert seen(stub, frames([1, 1, 1, 1, 3, 3, 3, 3, 1], [0] * 4 + [1] * 4 + [2])) == [{0}] * 4 + [{0, 1}] * 4 + [{0}]
    assert stub.num_searches == 3


def test_a_change_of_frame_size_starts_with_a_search() -> None:
    given = frames([1] * 4)
    other = [Frame(np.full((2, 1, 3), 3, np.uint8), 4 + i, 1 + i / 4, 0) for i in range(2)]
    assert seen(Stub(), [*given, *other]) == [{0}] * 4 + [{0, 1}] * 2


def test_a_lost_face_causes_an_immediate_search() -> None:
    stub = Stub()
    assert seen(stub, frames([3, 3, 1, 3, 3, 3])) == [{0, 1}, {0, 1}, {0}, {0, 1}, {0, 1}, {0, 1}]
    assert stub.num_searches == 3  # in the second, in the third (where one face is lost), and in the sixth frame


def test_real_faces_equal_those_of_a_search_in_each_frame() -> None:
    detector = FaceDetector(threshold=0.95, min_face_px=48, max_faces=10)
    pictures = [moved(two_people(), 9 * i, 4 * i) for i in range(4)]
    pictures += [moved(two_people(right=nobody()), 9 * i, 4 * i) for i in range(4, 8)]
    pictures += [nobody(width_px=1024), moved(two_people(left=nobody()), -30)]
    pictures += [moved(two_people(), -30 + 5 * i) for i in range(3)]
    given = [Frame(picture, i, i / 4, 0) for i, picture in enumerate(pictures)]
    for look, picture in zip(looks(detector, given), pictures, strict=True):
        expected = detector.detect(picture)
        assert len(look.faces) == len(expected)
        for face in expected:
            best = max(look.faces, key=lambda other: overlap(face.box_xyxy, other.box_xyxy))
            assert overlap(face.box_xyxy, best.box_xyxy) > 0.8
            assert np.abs(face.landmarks - best.landmarks).max() < 6


def test_a_face_at_the_border_is_redetected_unless_its_area_is_outside() -> None:
    detector = FaceDetector(threshold=0.9, min_face_px=48, max_faces=10)
    (face,) = detector.detect(moved(astronaut(), -150))
    (again,) = detector.redetect(moved(astronaut(), -158), [face])
    assert overlap(again.box_xyxy, face.box_xyxy - np.array([8, 0, 8, 0], np.float32)) > 0.8
    gone = Detection(face.box_xyxy - 1000, face.landmarks - 1000, 1.0)
    assert detector.redetect(astronaut(), [gone]) == []


@pytest.mark.parametrize("min_copy_side_px", [512, 256])
def test_faces_are_redetected_in_a_part_of_a_shrunk_frame(min_copy_side_px: int) -> None:
    detector = FaceDetector(threshold=0.95, min_face_px=48, max_faces=10, min_copy_side_px=min_copy_side_px)
    picture = two_people(right=other_person())
    left, right = sorted(detector.detect(picture), key=lambda face: float(face.box_xyxy[0]))
    (again,) = detector.redetect(picture, [right])
    assert overlap(again.box_xyxy, right.box_xyxy) > 0.8
    assert np.abs(again.landmarks - right.landmarks).max() < 5
    assert detector.redetect(picture, [left], known=[left]) == [left]
