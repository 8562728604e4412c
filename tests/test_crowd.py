"""In a crowd, the same people are scored in every frame."""

from __future__ import annotations

import numpy as np

from dfscan.faces.descriptor import NUM_VALUES
from dfscan.scan.crowd import Crowd
from dfscan.types import Face, FaceCrop

PIXELS = np.zeros((8, 8, 3), np.uint8)


def crop(who: int, frame_index: int, *, size_px: float = 50, shot: int = 0) -> FaceCrop:
    """Return a crop of person number `who`, at x = 100 * who, with a unique descriptor."""
    box_xyxy = np.array([100 * who, 0, 100 * who + size_px, size_px], np.float32)
    looks = np.full(NUM_VALUES, 30 * who, np.float32)
    face = Face(frame_index, frame_index / 4, 0, box_xyxy, np.zeros((5, 2), np.float32), 0.99, looks, shot=shot)
    return FaceCrop(face, PIXELS)


def chosen(crowd: Crowd, crops: list[FaceCrop]) -> set[int]:
    largest_first = sorted(crops, key=lambda each: -float(each.face.box_xyxy[3]))
    return {round(float(each.face.box_xyxy[0]) / 100) for each in crowd.choose(largest_first)}


def test_the_same_people_are_scored_even_if_others_become_larger() -> None:
    crowd = Crowd(3)
    assert chosen(crowd, [crop(i, 0, size_px=60 - i) for i in range(6)]) == {0, 1, 2}
    for index in range(1, 8):
        assert chosen(crowd, [crop(i, index, size_px=60 + (i * index) % 7) for i in range(6)]) == {0, 1, 2}
    assert crowd.max_faces_per_frame == 6


def test_a_free_place_goes_to_the_largest_new_face() -> None:
    crowd = Crowd(2)
    assert chosen(crowd, [crop(i, 0, size_px=60 - i) for i in range(3)]) == {0, 1}
    assert chosen(crowd, [crop(1, 1), crop(2, 1, size_px=70), crop(3, 1, size_px=80)]) == {1, 3}


def test_people_are_recognised_by_their_descriptors_after_a_cut() -> None:
    crowd = Crowd(2)
    chosen(crowd, [crop(i, 0, size_px=60 - i) for i in range(4)])
    assert chosen(crowd, [crop(7, 1, shot=1), crop(8, 1, shot=1)]) == {7, 8}
    assert chosen(crowd, [crop(i, 2, size_px=60 + i, shot=2) for i in range(4)]) == {0, 1}


def test_everyone_in_a_small_group_is_scored() -> None:
    crowd = Crowd(3)
    assert chosen(crowd, [crop(i, 0) for i in range(3)]) == {0, 1, 2}
    assert chosen(crowd, []) == set()
    assert crowd.max_faces_per_frame == 3
