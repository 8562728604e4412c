"""The face detector compared with facenet-pytorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfscan.faces.detect import LONGER_SIDE, Detection, FaceDetector
from dfscan.faces.mtcnn_numpy import Detections
from tests.pictures import FACE_XYXY, astronaut, moved, nobody, on_canvas, other_person, two_people

ROOT = Path(__file__).resolve().parents[1]


def make(**options) -> FaceDetector:
    return FaceDetector(**{"threshold": 0.95, "min_face_px": 48, "max_faces": 10} | options)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return make()


def library_faces(picture, min_face_px):
    """Return facenet-pytorch's boxes (N, 4), probabilities (N,) and landmarks (N, 5, 2), from left to right."""
    from facenet_pytorch import MTCNN

    boxes, scores, landmarks = MTCNN(keep_all=True, min_face_size=min_face_px).detect(picture, landmarks=True)
    order = np.argsort(boxes[:, 0])
    return boxes[order].astype(np.float32), scores[order].astype(np.float32), landmarks[order].astype(np.float32)


def assert_equal_faces(faces: list[Detection], boxes, scores, landmarks):
    """Assert equality up to rounding: a few thousandths of a pixel, a hundred-thousandth of a score."""
    faces = sorted(faces, key=lambda face: face.box_xyxy[0])
    np.testing.assert_allclose([face.box_xyxy for face in faces], boxes, atol=5e-3)
    np.testing.assert_allclose([face.landmarks for face in faces], landmarks, atol=5e-3)
    np.testing.assert_allclose([face.score for face in faces], [float(score) for score in scores], atol=1e-5)


@pytest.mark.parametrize("picture", [astronaut(), moved(astronaut(), 20, 90, 1.3)])
def test_results_equal_the_library_on_equal_input(detector, picture):
    assert_equal_faces(detector.detect(picture), *library_faces(picture, LONGER_SIDE * 48))


def test_results_equal_the_library_on_the_same_smaller_copy():
    picture = two_people(600, right=other_person())  # 1624 x 512
    scale = np.float32([812 / 1624, 256 / 512])
    small = cv2.resize(picture, (812, 256), interpolation=cv2.INTER_AREA)
    boxes, scores, landmarks = library_faces(small, LONGER_SIDE * 60 * 0.5)
    faces = make(min_face_px=60, min_copy_side_px=812).detect(picture)
    assert len(faces) == 2
    assert_equal_faces(faces, boxes / np.tile(scale, 2), scores, landmarks / scale)


def test_values_have_plain_types_and_are_in_range(detector):
    (face,) = detector.detect(astronaut())
    assert face.box_xyxy.shape == (4,)
    assert face.landmarks.shape == (5, 2)
    assert face.box_xyxy.dtype == face.landmarks.dtype == np.float32
    assert type(face.score) is float
    assert 0.95 <= face.score <= 1
    np.testing.assert_allclose(face.box_xyxy, FACE_XYXY, atol=6)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[1] > nose[1] < right_mouth[1]


def test_results_of_a_shrunk_copy_are_mapped_to_the_full_frame():
    picture = cv2.resize(astronaut(), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    (face,) = make(min_copy_side_px=512).detect(picture)
    np.testing.assert_allclose(face.box_xyxy, 3 * np.array(FACE_XYXY), atol=20)


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 2), (1, 2000), (2000, 1), (19, 19), (20, 20), (47, 47), (48, 48), (49, 400)]
)
@pytest.mark.parametrize("min_face_px", [1, 48])
def test_small_and_thin_frames_have_no_faces(shape, min_face_px):
    assert make(min_face_px=min_face_px).detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_a_frame_without_people_has_no_face(detector):
    assert detector.detect(nobody()) == []
    assert detector.redetect(nobody(), []) == []


def test_read_only_frames_do_not_warn(detector):
    frame = astronaut()
    frame.setflags(write=False)
    assert len(detector.detect(frame)) == 1


def test_faces_are_sorted_by_size_and_limited_to_max_faces():
    small = cv2.resize(astronaut(), None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    picture = two_people(left=on_canvas(small, width_px=512, height_px=512))
    both = make().detect(picture)
    assert [face.box_xyxy[0] > 512 for face in both] == [True, False]
    assert both[0].area_px > both[1].area_px
    (largest,) = make(max_faces=1).detect(picture)
    np.testing.assert_array_equal(largest.box_xyxy, both[0].box_xyxy)


@pytest.mark.parametrize(("min_face_px", "num_faces"), [(80, 1), (100, 0)])
def test_faces_below_the_minimum_size_are_dropped(min_face_px, num_faces):
    assert len(make(min_face_px=min_face_px).detect(astronaut())) == num_faces


@pytest.mark.parametrize(("min_face_px", "height_px"), [(100, 122), (100, 100), (48, 58)])
def test_a_face_that_fills_a_small_frame_is_detected(min_face_px, height_px):
    x1, y1, x2, y2 = (int(edge) for edge in FACE_XYXY)
    scale = 1.3 * min_face_px / (x2 - x1)
    face = cv2.resize(astronaut()[y1 - 20 : y2 + 20, x1 - 120 : x2 + 120], None, fx=scale, fy=scale)
    top = (len(face) - height_px) // 2
    assert make(min_face_px=min_face_px, threshold=0.7).detect(face) != []
    (found,) = make(min_face_px=min_face_px, threshold=0.7).detect(np.ascontiguousarray(face[top : top + height_px]))
    assert found.area_px >= min_face_px**2


def test_threshold_applies_to_the_final_probability(detector):
    (face,) = detector.detect(astronaut())
    assert len(make(threshold=face.score).detect(astronaut())) == 1
    assert make(threshold=1.0).detect(astronaut()) == []


CUTS = {
    "left": lambda x1, y1, x2, y2: (slice(None), slice(x1 + round(0.3 * (x2 - x1)), None)),
    "right": lambda x1, y1, x2, y2: (slice(None), slice(None, x2 - round(0.3 * (x2 - x1)))),
    "top": lambda x1, y1, x2, y2: (slice(y1 + round(0.3 * (y2 - y1)), None), slice(None)),
    "bottom": lambda x1, y1, x2, y2: (slice(None, y2 - round(0.3 * (y2 - y1))), slice(None)),
    "top left": lambda x1, y1, x2, y2: (
        slice(y1 + round(0.15 * (y2 - y1)), None),
        slice(x1 + round(0.15 * (x2 - x1)), None),
    ),
    "bottom right": lambda x1, y1, x2, y2: (
        slice(None, y2 - round(0.15 * (y2 - y1))),
        slice(None, x2 - round(0.15 * (x2 - x1))),
    ),
}
"""Parts of the portrait whose border cuts the face, and the corner of each part in the portrait."""


@pytest.mark.parametrize("zoom", [1, 2])
@pytest.mark.parametrize("border", CUTS)
def test_a_face_cut_by_the_border_is_detected_at_its_position(detector, border, zoom):
    portrait = cv2.resize(astronaut(), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    rows, columns = CUTS[border](*(int(zoom * edge) for edge in FACE_XYXY))
    part = np.ascontiguousarray(portrait[rows, columns])
    (face,) = detector.detect(part)
    corner = np.array([columns.start or 0, rows.start or 0] * 2)
    np.testing.assert_allclose(face.box_xyxy + corner, zoom * np.array(FACE_XYXY), atol=20 * zoom)
    (again,) = detector.redetect(part, [face])
    np.testing.assert_allclose(again.box_xyxy, face.box_xyxy, atol=16 * zoom)


NAN = float("nan")


@pytest.mark.parametrize(
    ("box", "eye_x", "kept"),
    [
        ((10, 10, 110, 110), 30, True),
        ((-40, -40, 60, 60), -5, True),
        ((-80, 10, 20, 110), 5, False),
        ((10, 10, 110, NAN), 30, False),
        ((10, 10, 110, 110), NAN, False),
        ((110, 10, 10, 110), 30, False),
        ((10, 10, 10, 10), 10, False),
    ],
)
def test_invalid_boxes_are_dropped_and_boxes_at_the_border_are_not_clipped(detector, monkeypatch, box, eye_x, kept):
    landmarks = np.full((1, 5, 2), 30.0, np.float32)
    landmarks[0, 0, 0] = eye_x
    answer = Detections(np.array([box], np.float32), np.array([0.99], np.float32), landmarks)
    monkeypatch.setattr("dfscan.faces.detect.find_faces", lambda *_, **__: answer)
    faces = detector.detect(nobody(width_px=200, height_px=200))
    assert [face.box_xyxy.tolist() for face in faces] == ([list(box)] if kept else [])


def test_the_exported_detector_works_without_torch():
    make()
    code = (
        "import sys; from dfscan.faces.detect import FaceDetector; from tests.pictures import astronaut; "
        "found = FaceDetector(threshold=0.95, min_face_px=48, max_faces=1).detect(astronaut()); "
        "assert len(found) == 1; assert not {'torch', 'facenet_pytorch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
