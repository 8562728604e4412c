"""Descriptors do not depend on size, tilt and position, and differ between people."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dfscan.faces.descriptor import (
    NUM_VALUES,
    SCENE_CELLS,
    best_similarity,
    face_descriptor,
    scene_descriptor,
    scene_distance,
    similarity,
)
from dfscan.faces.track import (
    MAX_VIEW_DISTANCE,
    MIN_CUT_DISTANCE,
    MIN_NEAR_SIMILARITY,
    MIN_POSE_SIMILARITY,
    MIN_SHOT_SIMILARITY,
    MIN_SIMILARITY,
)
from tests.pictures import astronaut, moved, other_person

LANDMARKS = np.array([[204, 107], [242, 107], [221, 133], [207, 147], [242, 147]], np.float32)


def test_shape_and_range():
    descriptor = face_descriptor(astronaut(), LANDMARKS)
    assert descriptor.shape == (NUM_VALUES,)
    assert descriptor.dtype == np.float32
    lightness = descriptor.reshape(-1, 3)[:, 0]
    assert lightness.min() >= 0
    assert lightness.max() <= 100


def test_similarity_is_one_for_the_same_face_and_symmetric():
    first, second = face_descriptor(astronaut(), LANDMARKS), face_descriptor(astronaut(), LANDMARKS + 9)
    assert similarity(first, first) == 1
    assert similarity(first, second) == similarity(second, first)
    assert 0 <= similarity(first, second) < 1


@pytest.mark.parametrize(("dx_px", "zoom"), [(0, 0.6), (40, 1), (-30, 1.4)])
def test_descriptors_do_not_depend_on_position_and_size(dx_px, zoom):
    picture = moved(astronaut(), dx_px, 100, zoom)
    landmarks = (LANDMARKS - 256) * np.float32(zoom) + np.float32([256 + dx_px, 256 + 100])
    assert similarity(face_descriptor(astronaut(), LANDMARKS), face_descriptor(picture, landmarks)) > 0.8


def test_descriptors_do_not_depend_on_tilt():
    turn = cv2.getRotationMatrix2D((222, 120), 25, 1)
    picture = cv2.warpAffine(astronaut(), turn, (512, 512))
    landmarks = (np.hstack([LANDMARKS, np.ones((5, 1))]) @ turn.T).astype(np.float32)
    assert similarity(face_descriptor(astronaut(), LANDMARKS), face_descriptor(picture, landmarks)) > 0.8


def test_different_people_have_different_descriptors():
    mirrored = LANDMARKS.copy()
    mirrored[:, 0] = 511 - mirrored[:, 0]
    mirrored = mirrored[[1, 0, 2, 4, 3]]
    assert (
        similarity(face_descriptor(astronaut(), LANDMARKS), face_descriptor(other_person(), mirrored))
        < MIN_SHOT_SIMILARITY
    )


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), -4000.0), np.full((5, 2), 1e6)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (64, 64)])
def test_unusual_landmarks_and_frames_do_not_fail(landmarks, shape):
    descriptor = face_descriptor(np.full((*shape, 3), 90, np.uint8), landmarks.astype(np.float32))
    assert np.isfinite(descriptor).all()


def test_the_best_similarity_of_two_sets_is_that_of_the_best_pair():
    rng = np.random.default_rng(2)
    first, second = rng.uniform(0, 30, (2, 5, NUM_VALUES)).astype(np.float32)
    expected = max(similarity(one, other) for one in first for other in second[:4])
    assert best_similarity(first, second[:4]) == pytest.approx(expected)


def test_the_thresholds_are_ordered():
    assert 0 < MIN_POSE_SIMILARITY < MIN_NEAR_SIMILARITY < MIN_SHOT_SIMILARITY < MIN_SIMILARITY < 1


BOX = np.array([180, 60, 265, 175], np.float32)


def test_a_scene_has_coarse_cells_and_their_size():
    view = scene_descriptor(astronaut()[:, :256])
    assert view.cells.shape == (SCENE_CELLS, SCENE_CELLS, 3)
    assert view.cells.dtype == np.float32
    assert view.cell_px == (16, 32)
    assert scene_distance(view, view, BOX) == 0
    assert scene_distance(view, scene_descriptor(astronaut()), BOX) == np.inf


@pytest.mark.parametrize(("dx_px", "dy_px", "zoom"), [(6, 0, 1), (0, -6, 1), (4, 4, 1.01)])
def test_a_small_movement_is_not_a_cut(dx_px, dy_px, zoom):
    picture = moved(astronaut(), dx_px, dy_px, zoom)
    assert scene_distance(scene_descriptor(astronaut()), scene_descriptor(picture), BOX) < MIN_CUT_DISTANCE


def test_a_cut_changes_the_surroundings_of_a_face():
    views = scene_descriptor(astronaut()), scene_descriptor(astronaut()[::-1])
    change = scene_distance(*views, BOX)
    assert change > MIN_CUT_DISTANCE > MAX_VIEW_DISTANCE
    assert change == scene_distance(*views[::-1], BOX)


def test_only_the_surroundings_of_the_face_count():
    changed = astronaut().copy()
    changed[384:] = 255 - changed[384:]
    assert (
        scene_distance(
            scene_descriptor(astronaut()), scene_descriptor(changed), np.array([180, 20, 240, 90], np.float32)
        )
        < 1
    )
    assert scene_distance(scene_descriptor(astronaut()), scene_descriptor(changed), BOX) > 2


@pytest.mark.parametrize("edges", [(-900, -900, -800, -800), (5000, 5000, 5100, 5100), (7, 7, 7, 7), (9, 9, 2, 2)])
def test_unusual_boxes_have_at_least_one_cell(edges):
    assert (
        scene_distance(scene_descriptor(astronaut()), scene_descriptor(other_person()), np.array(edges, np.float32))
        >= 0
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (7, 9)])
def test_unusual_frames_have_a_scene(shape):
    assert np.isfinite(scene_descriptor(np.full((*shape, 3), 90, np.uint8)).cells).all()
