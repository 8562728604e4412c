"""Descriptors keep through size, turn and place, and differ between people."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dfscan.faces.appearance import NUM_VALUES, appearance, likeness
from dfscan.faces.track import LOOKS_OTHER, LOOKS_SAME
from tests.pictures import astronaut, moved, other_person

LANDMARKS = np.array([[204, 107], [242, 107], [221, 133], [207, 147], [242, 147]], np.float32)


def test_shape_and_range():
    looks = appearance(astronaut(), LANDMARKS)
    assert looks.shape == (NUM_VALUES,)
    assert looks.dtype == np.float32
    lightness = looks.reshape(-1, 3)[:, 0]
    assert lightness.min() >= 0
    assert lightness.max() <= 100


def test_a_face_is_like_itself_and_likeness_has_no_sides():
    first, second = appearance(astronaut(), LANDMARKS), appearance(astronaut(), LANDMARKS + 9)
    assert likeness(first, first) == 1
    assert likeness(first, second) == likeness(second, first)
    assert 0 <= likeness(first, second) < 1


@pytest.mark.parametrize(("dx_px", "zoom"), [(0, 0.6), (40, 1), (-30, 1.4)])
def test_place_and_size_do_not_matter(dx_px, zoom):
    picture = moved(astronaut(), dx_px, 100, zoom)
    landmarks = (LANDMARKS - 256) * np.float32(zoom) + np.float32([256 + dx_px, 256 + 100])
    assert likeness(appearance(astronaut(), LANDMARKS), appearance(picture, landmarks)) > 0.8


def test_a_tilted_head_is_put_upright():
    turn = cv2.getRotationMatrix2D((222, 120), 25, 1)
    picture = cv2.warpAffine(astronaut(), turn, (512, 512))
    landmarks = (np.hstack([LANDMARKS, np.ones((5, 1))]) @ turn.T).astype(np.float32)
    assert likeness(appearance(astronaut(), LANDMARKS), appearance(picture, landmarks)) > 0.8


def test_the_other_person_differs():
    mirrored = LANDMARKS.copy()
    mirrored[:, 0] = 511 - mirrored[:, 0]
    mirrored = mirrored[[1, 0, 2, 4, 3]]
    assert likeness(appearance(astronaut(), LANDMARKS), appearance(other_person(), mirrored)) < LOOKS_OTHER


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), -4000.0), np.full((5, 2), 1e6)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (64, 64)])
def test_never_fails_for_odd_landmarks_or_frames(landmarks, shape):
    looks = appearance(np.full((*shape, 3), 90, np.uint8), landmarks.astype(np.float32))
    assert np.isfinite(looks).all()


def test_the_thresholds_are_ordered():
    assert 0 < LOOKS_OTHER < LOOKS_SAME < 1
