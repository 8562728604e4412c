"""Geometry of the five landmarks."""

from __future__ import annotations

import numpy as np

from dfscan.faces.landmarks import affine_transform, landmark_shape, similarity_transform

POINTS = np.array([[30, 40], [60, 42], [46, 60], [33, 75], [58, 76]], np.float32)


def test_a_similarity_transform_is_recovered() -> None:
    turn = 1.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    moved = POINTS.astype(np.float64) @ turn.T + (5, -3)
    expected = np.column_stack([turn, (5, -3)])
    np.testing.assert_allclose(similarity_transform(POINTS.astype(np.float64), moved), expected, atol=1e-9)


def test_an_affine_transform_is_recovered_and_implausible_points_give_the_identity() -> None:
    matrix = np.array([[1.2, 0.3, 4], [-0.1, 0.9, 7]])
    moved = (np.column_stack([POINTS, np.ones(5)]) @ matrix.T).astype(np.float32)
    np.testing.assert_allclose(affine_transform(POINTS, moved), matrix, atol=1e-4)
    for wrong in (np.full((5, 2), np.nan, np.float32), np.zeros((5, 2), np.float32)):
        assert np.array_equal(affine_transform(POINTS, wrong), np.eye(2, 3))


def test_the_shape_does_not_depend_on_position_size_and_rotation() -> None:
    turned = (2.5 * POINTS @ np.array([[0, 1], [-1, 0]]) + 100).astype(np.float32)
    np.testing.assert_allclose(landmark_shape(turned), landmark_shape(POINTS), atol=1e-5)
    np.testing.assert_allclose(np.diff(landmark_shape(POINTS)[:2, 1]), 0, atol=1e-9)  # the eyes are level
