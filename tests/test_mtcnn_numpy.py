"""The cascade: its parts compared with simple implementations, its networks compared with the library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfscan import graphs
from dfscan.errors import DfscanError
from dfscan.faces import networks as networks_module
from dfscan.faces.mtcnn_numpy import (
    MARGIN_PX,
    PYRAMID_FACTOR,
    _Boxes,
    _crop_resize,
    _edges,
    _nms,
    _pyramid_level,
    _to_square,
    find_faces,
    nms_iom,
    pyramid,
    redetect,
)
from dfscan.faces.networks import OnnxNetworks
from tests.pictures import astronaut, other_person, two_people


def overlap(a: np.ndarray, b: np.ndarray, *, of_smaller: bool = False) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(width * height / (min(areas) if of_smaller else sum(areas) - width * height))


@pytest.mark.parametrize("of_smaller", [False, True])
def test_non_maximum_suppression_equals_a_naive_implementation(of_smaller: bool) -> None:
    rng = np.random.default_rng(3)
    near = rng.uniform(0, 60, (80, 2))
    boxes = np.concatenate([near, near + rng.uniform(5, 40, (80, 2))], axis=1).astype(np.float32)
    scores = rng.uniform(size=80).astype(np.float32)
    expected: list[int] = []
    for i in sorted(range(80), key=lambda i: -scores[i]):
        if all(overlap(boxes[i], boxes[j], of_smaller=of_smaller) <= 0.5 for j in expected):
            expected.append(i)
    best = nms_iom if of_smaller else _nms
    assert best(boxes, scores, 0.5).tolist() == expected
    assert 10 < len(expected) < 80


def test_the_pyramid_reaches_from_the_minimum_face_to_the_frame() -> None:
    scales = list(pyramid(480, 640, 48))
    assert scales[0] * 48 == pytest.approx(12)
    assert 480 * scales[-1] >= 12 > 480 * scales[-1] * PYRAMID_FACTOR
    assert np.allclose(np.diff(np.log(scales)), np.log(PYRAMID_FACTOR))
    assert list(pyramid(47, 640, 48)) == []


def test_squares_keep_the_centre_and_the_longer_side() -> None:
    squares = _to_square(np.array([[0, 10, 20, 20], [5, 5, 6, 9]], np.float32))
    assert squares.tolist() == [[0, 5, 20, 25], [3.5, 5, 7.5, 9]]


def test_boxes_are_padded_with_grey_at_the_border_and_dropped_beyond_it() -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[:20, :30] = 255
    xyxy = np.array([[-20, -20, 30, 20], [31, 21, 60, 40], [70, 5, 90, 25], [np.nan, 0, 9, 9]], np.float32)
    boxes = _Boxes(xyxy, np.arange(4, dtype=np.float32), xyxy)
    kept, crops = _crop_resize(cv2.integral(frame), boxes, 24)
    assert kept.scores.tolist() == [0, 1]
    assert crops.shape == (2, 3, 24, 24)
    assert (crops[0, :, :12] == 0).all()  # the upper half and two fifths on the left are outside the frame
    assert (crops[0, :, :, :9] == 0).all()
    assert crops[0, :, 13:, 10:] == pytest.approx(127.5 / 128)
    assert crops[1] == pytest.approx(-127.5 / 128)


@pytest.mark.parametrize("size_px", [(24, 24), (31, 17), (100, 75), (199, 140)])
def test_copies_and_crops_equal_adaptive_average_pooling(size_px: tuple[int, int]) -> None:
    import torch

    frame = np.random.default_rng(1).integers(0, 256, (200, 141, 3), dtype=np.uint8)
    sums = cv2.integral(frame)

    def by_torch(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        picture = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
        pooled: np.ndarray = torch.nn.functional.adaptive_avg_pool2d(picture, size).numpy()
        return (pooled - 127.5) / 128

    copy = _pyramid_level(sums, *size_px)
    inside = slice(MARGIN_PX, -MARGIN_PX)
    np.testing.assert_allclose(copy[:, :, inside, inside], by_torch(frame, size_px), atol=1e-5)
    assert (copy[:, :, :MARGIN_PX] == 0).all()
    width, height = size_px[1] - 10, size_px[0] - 10
    xyxy = np.array([[11, 6, 10 + width, 5 + height]], np.float32)  # MTCNN includes both ends
    _, crops = _crop_resize(sums, _Boxes(xyxy, xyxy[:, 0], xyxy), 48)
    np.testing.assert_allclose(crops, by_torch(frame[5 : 5 + height, 10 : 10 + width], (48, 48)), atol=1e-5)


def test_ends_of_parts_are_rounded_up() -> None:
    assert [edge.tolist() for edge in _edges(5, 2)] == [[0, 2], [3, 5]]
    assert [edge.tolist() for edge in _edges(np.array([2, 4]), 4)] == [
        [[0, 0, 1, 1], [0, 1, 2, 3]],
        [[1, 1, 2, 2], [1, 2, 3, 4]],
    ]


def test_the_most_probable_face_comes_first() -> None:
    found = find_faces(two_people(right=other_person()), OnnxNetworks(), min_face_px=20)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_a_search_skips_known_faces() -> None:
    networks, picture = OnnxNetworks(), two_people(right=other_person())
    both = find_faces(picture, networks, min_face_px=48)
    assert len(both.scores) == 2
    for i in range(2):
        (other,) = find_faces(picture, networks, min_face_px=48, known_xyxy=both.boxes_xyxy[[i]]).boxes_xyxy
        np.testing.assert_array_equal(other, both.boxes_xyxy[1 - i])
    assert len(find_faces(picture, networks, min_face_px=48, known_xyxy=both.boxes_xyxy).scores) == 0


def test_faces_are_redetected_near_their_known_positions() -> None:
    networks, picture = OnnxNetworks(), two_people(right=other_person())
    both = find_faces(picture, networks, min_face_px=48)
    sides = both.boxes_xyxy[:, 2:] - both.boxes_xyxy[:, :2]
    again = redetect(picture, networks, both.boxes_xyxy + np.tile(0.2 * sides, 2))
    assert len(again.scores) == 2
    for box in again.boxes_xyxy:
        assert max(overlap(box, true) for true in both.boxes_xyxy) > 0.8
    far = redetect(picture, networks, both.boxes_xyxy + np.tile(0.25 * sides, 2)).boxes_xyxy
    assert any(overlap(box, true) > 0.8 for box in far for true in both.boxes_xyxy)  # missed by the second network
    assert len(redetect(picture, networks, both.boxes_xyxy, known_xyxy=both.boxes_xyxy[:1]).scores) == 1
    assert len(redetect(picture, networks, both.boxes_xyxy + np.tile(2 * sides, 2)).scores) == 0


def test_an_export_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks_module, "MAX_EXPORT_ERROR", -1.0)
    assert networks_module.main([str(tmp_path / "x")]) == 1
    assert not (tmp_path / "x").exists()


def test_a_failed_export_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(graphs, "_CHILD", "import sys; sys.stderr.write('OSError: broken'); sys.exit(1)  # {module}")
    with pytest.raises(DfscanError, match="face detector cannot be exported to ONNX: OSError: broken"):
        OnnxNetworks()


def test_the_graphs_are_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    OnnxNetworks()
    monkeypatch.setattr(networks_module, "_export_in_child", lambda _: pytest.fail("exported again"))
    networks = OnnxNetworks()
    assert len(find_faces(astronaut(), networks, min_face_px=48).scores) == 1
    assert len(list((tmp_path / "dfscan").iterdir())) == 1


SHARING = """
import os, numpy as np
from dfscan.faces.networks import OnnxNetworks

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

first, second = OnnxNetworks(), OnnxNetworks()
picture = np.zeros((1, 3, 700, 700), np.float32)
sizes = [resident_bytes()]
for networks in (first, second):
    networks.propose(picture)
    sizes.append(resident_bytes())
print(*np.diff(sizes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's record of a process")
def test_sessions_share_one_memory_arena() -> None:
    child = subprocess.run([sys.executable, "-c", SHARING], capture_output=True, text=True, check=True)
    first, second = map(int, child.stdout.split())
    assert second < 0.3 * first
