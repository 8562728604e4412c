"""Descriptors that tell apart the faces of one video, and a cut from a movement, without a neural network.

The head is aligned by its landmarks in a small patch that includes hair, collar and some background. The patch is
averaged to a few cells of CIE L*a*b*, where distances match human perception. The descriptor recognises one take of
one person, not a person in general: with other clothes, in other light or in profile, two descriptors of one person
differ. In these cases the surroundings of the face help, because they change little while a head turns and abruptly at
a cut.
"""

from __future__ import annotations

import cv2
import numpy as np

from dfscan.arrays import Float32Array, UInt8Image
from dfscan.faces.landmarks import similarity_transform
from dfscan.types import SceneDescriptor

CELLS = 8
PATCH_PX = 64
PATCH_LANDMARKS = np.array([[0.396, 0.41], [0.604, 0.41], [0.5, 0.536], [0.414, 0.63], [0.586, 0.63]], np.float64)
"""Positions of the eyes, nose and corners of the mouth in the patch, as fractions of its side."""
DISTANCE_SCALE = 10.0
"""Root mean square L*a*b* distance at which the similarity falls to 1/e."""
NUM_VALUES = CELLS * CELLS * 3
INNER_PX = 32
INNER_SCALE = 1.9
"""Size of the inner face in its patch, in relation to `PATCH_LANDMARKS`."""
SCENE_CELLS = 16
"""Number of cells along each side of the frame."""
SCENE_ROWS = 8
"""Number of pixel rows averaged per cell; `scene_distance` differs by 0.03 from its value with all rows."""


def face_descriptor(frame_pixels: UInt8Image, landmarks: Float32Array) -> Float32Array:
    """Return the descriptor of one face.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution, each side at most 32,766 px.
        landmarks: (5, 2) in frame pixels.

    Returns:
        (192,): L* in [0, 100], a* and b* of 8 x 8 cells. The frame is extended by its border pixels.
    """
    to_frame = similarity_transform(PATCH_LANDMARKS * PATCH_PX, np.asarray(landmarks, np.float64))
    patch = cv2.warpAffine(
        frame_pixels,
        to_frame,
        (PATCH_PX, PATCH_PX),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    cells = cv2.resize(patch.astype(np.float32) / 255, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(cells, cv2.COLOR_RGB2LAB), np.float32).ravel()


def inner_face(frame_pixels: UInt8Image, landmarks: Float32Array) -> UInt8Image:
    """Return the inner part of a face, from the brows to the chin, (32, 32), grey, aligned by its landmarks.

    Args:
        frame_pixels: (H, W, 3) RGB, full resolution, each side at most 32,766 px.
        landmarks: (5, 2) in frame pixels.
    """
    inner = (PATCH_LANDMARKS - 0.5) * INNER_SCALE + 0.5
    to_frame = similarity_transform(inner * PATCH_PX, np.asarray(landmarks, np.float64))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(frame_pixels, to_frame, (PATCH_PX, PATCH_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (INNER_PX, INNER_PX), interpolation=cv2.INTER_AREA), np.uint8)


def similarity(first: Float32Array, second: Float32Array) -> float:
    """Return the similarity of two descriptors, in [0, 1]; 1 if they are equal."""
    distance = float(np.sqrt(3 * np.mean(np.square(first - second))))
    return float(np.exp(-distance / DISTANCE_SCALE))


def best_similarity(first: Float32Array, second: Float32Array) -> float:
    """Return the maximum `similarity` over all pairs of descriptors from two sets.

    Args:
        first: [N, D], N >= 1.
        second: [M, D], M >= 1.
    """
    squares = np.square(first[:, None] - second[None]).mean(axis=2)
    return float(np.exp(-np.sqrt(3 * squares.min()) / DISTANCE_SCALE))


def scene_descriptor(frame_pixels: UInt8Image) -> SceneDescriptor:
    """Return the descriptor of a whole frame.

    Args:
        frame_pixels: (H, W, 3) RGB.
    """
    height_px, width_px = frame_pixels.shape[:2]
    some_rows = frame_pixels[:: max(1, height_px // (SCENE_CELLS * SCENE_ROWS))]
    cells = cv2.resize(some_rows, (SCENE_CELLS, SCENE_CELLS), interpolation=cv2.INTER_AREA)
    lab = np.asarray(cv2.cvtColor(cells.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    return SceneDescriptor(lab, (width_px / SCENE_CELLS, height_px / SCENE_CELLS))


def scene_distance(first: SceneDescriptor, second: SceneDescriptor, box_xyxy: Float32Array) -> float:
    """Return the change of the frame around a face: mean L*a*b* distance of the cells, infinite if frame sizes differ.

    The area extends one face size to the sides and above, and two below, where the clothes are. Each cell is compared
    with its most similar neighbour, so that arms, a turning head or a moving camera count for little.
    """
    if first.cell_px != second.cell_px:
        return float("inf")
    x1, y1, x2, y2 = (float(edge) for edge in box_xyxy)
    width_px, height_px = x2 - x1, y2 - y1
    columns = _cells(x1 - width_px, x2 + width_px, first.cell_px[0])
    rows = _cells(y1 - height_px, y2 + 2 * height_px, first.cell_px[1])
    around = rows, columns
    change = np.maximum(_distance_to_nearest(first, second, around), _distance_to_nearest(second, first, around))
    return float(change.mean())


def _cells(start_px: float, stop_px: float, cell_px: float) -> slice:
    """Return the cells between two positions along one axis, at least one."""
    first = int(np.clip(np.floor(start_px / cell_px), 0, SCENE_CELLS - 1))
    last = int(np.clip(np.floor(stop_px / cell_px), first, SCENE_CELLS - 1))
    return slice(first, last + 1)


def _distance_to_nearest(first: SceneDescriptor, second: SceneDescriptor, around: tuple[slice, slice]) -> Float32Array:
    """Return the distance from each cell of `first` to the most similar cell in its 3 x 3 neighbourhood of `second`."""
    edged = np.arange(-1, SCENE_CELLS + 1).clip(0, SCENE_CELLS - 1)
    padded = second.cells[edged][:, edged]
    neighbours = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[around]
    squares = np.square(neighbours - first.cells[around][..., None, None]).sum(axis=2)
    return np.asarray(np.sqrt(squares.min(axis=(2, 3))), np.float32)
