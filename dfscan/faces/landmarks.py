"""Geometry of the five landmarks of a face, in the order of `types.Face.landmarks`: eyes, nose, corners of the mouth.

`forgery.self_blend.fit_template` fits a three-dimensional template to them.
"""

from __future__ import annotations

import numpy as np

from dfscan.arrays import Float32Array, Float64Array


def similarity_transform(source: Float64Array, target: Float64Array) -> Float64Array:
    """Return the (2, 3) similarity transform (rotation, uniform scale, shift) that maps source to target.

    Least squares fit after Umeyama 1991, in two dimensions, where rotation and scale are one complex number.
    """
    source_centre, target_centre = source.mean(axis=0), target.mean(axis=0)
    a, b = source - source_centre, target - target_centre
    spread = np.sum(a * a)
    cosine = np.sum(a * b) / spread
    sine = np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / spread
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack([turn, target_centre - turn @ source_centre])


def affine_transform(source: Float32Array, target: Float32Array) -> Float64Array:
    """Return the (2, 3) least-squares affine map between landmarks, or the identity if they are implausible."""
    design = np.column_stack([source, np.ones(len(source))]).astype(np.float64)
    if not (np.isfinite(design).all() and np.isfinite(target).all()):
        return np.eye(2, 3)
    found = np.asarray(np.linalg.lstsq(design, target.astype(np.float64), rcond=None)[0].T, np.float64)
    return found if 0.05 < np.linalg.det(found[:, :2]) < 20 else np.eye(2, 3)


def landmark_shape(landmarks: Float32Array) -> Float64Array:
    """Normalise (5, 2) landmarks for position, scale and rotation, so that the eyes are level."""
    points = landmarks.astype(np.float64) @ np.array([1, 1j])
    across = points[1] - points[0]
    upright = (points - points.mean()) / (across if abs(across) > 1e-6 else 1)
    return np.column_stack([upright.real, upright.imag])
