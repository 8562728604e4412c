"""The batched cascade, run on the CPU here, compared with the cascade for single frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dfscan.errors import DfscanError
from dfscan.faces import batched
from dfscan.faces.batched import BatchedFaceDetector
from dfscan.faces.detect import Detection, FaceDetector
from tests.pictures import astronaut, moved, nobody, other_person, two_people


@pytest.fixture(autouse=True)
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))
    monkeypatch.setattr(batched, "MAX_BATCH_FRAMES", 3)  # on a CPU, padding frames cost as much as others


def detectors(**more: Any) -> tuple[FaceDetector, BatchedFaceDetector]:
    alone = FaceDetector(**{"threshold": 0.95, "min_face_px": 48, "max_faces": 10, **more})
    return alone, BatchedFaceDetector(alone, device="cpu")


def assert_alike(given: Sequence[Sequence[Detection]], expected: Sequence[Sequence[Detection]], atol: float) -> None:
    assert [len(faces) for faces in given] == [len(faces) for faces in expected]
    for mine, theirs in zip(chain(*given), chain(*expected), strict=True):
        np.testing.assert_allclose(mine.box_xyxy, theirs.box_xyxy, atol=atol)
        np.testing.assert_allclose(mine.landmarks, theirs.landmarks, atol=atol)
        assert mine.score == pytest.approx(theirs.score, abs=atol / 1000)
        assert mine.box_xyxy.dtype == mine.landmarks.dtype == np.float32
        assert type(mine.score) is float


def pictures() -> list[np.ndarray]:
    small = cv2.resize(astronaut(), None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    return [
        astronaut(),
        two_people(right=other_person()),
        nobody(width_px=512, height_px=512),
        moved(astronaut(), -150),  # beyond the frame
        small,
        moved(astronaut(), 20, 90, 1.3),
        np.zeros((1, 1, 3), np.uint8),
        two_people(),
    ]


def test_batched_detection_equals_detection_frame_by_frame() -> None:
    alone, together = detectors()
    given, expected = together.detect(pictures()), [alone.detect(pixels) for pixels in pictures()]
    assert [len(faces) for faces in expected] == [1, 2, 0, 1, 1, 1, 0, 2]
    assert_alike(given, expected, atol=5e-3)


@pytest.mark.parametrize("settings", [{"min_face_px": 90}, {"max_faces": 1}, {"threshold": 0.9999}])
def test_thresholds_and_sizes_come_from_the_detector(settings: dict[str, Any]) -> None:
    alone, together = detectors(**settings)
    assert_alike(together.detect(pictures()[:4]), [alone.detect(each) for each in pictures()[:4]], atol=5e-3)


def test_large_frames_are_halved() -> None:
    alone, together = detectors(min_copy_side_px=400)
    large = [cv2.resize(two_people(), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)]
    expected = [alone.detect(large[0])]
    assert len(expected[0]) == 2
    assert_alike(together.detect(large), expected, atol=2e-2)


def test_results_do_not_depend_on_the_other_frames_of_a_batch() -> None:
    _, together = detectors()
    crowd = together.detect(pictures())
    for faces, pixels in zip(crowd, pictures(), strict=True):
        (alone,) = together.detect([pixels])
        assert_alike([alone], [faces], atol=0)


def test_no_frames_give_no_faces() -> None:
    assert detectors()[1].detect([]) == []


def short_of_memory(monkeypatch: pytest.MonkeyPatch, *, most: int) -> list[int]:
    """Simulate a GPU whose memory fits at most `most` frames."""
    import torch

    from dfscan.faces import mtcnn_torch

    search, sizes = mtcnn_torch.find_all_faces, []

    def limited(frames: torch.Tensor, *rest: Any, **more: Any) -> Any:
        sizes.append(len(frames))
        if len(frames) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return search(frames, *rest, **more)

    monkeypatch.setattr(mtcnn_torch, "find_all_faces", limited)
    return sizes


def test_batches_are_halved_when_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone, together = detectors()
    sizes = short_of_memory(monkeypatch, most=1)
    frames = [astronaut(), moved(astronaut(), 10)]
    with caplog.at_level(logging.WARNING, "dfscan"):
        faces = together.detect(frames)
    assert sizes == [3, 1, 1]
    assert "in batches of 1 frames" in caplog.text
    assert_alike(faces, [alone.detect(frame) for frame in frames], atol=5e-3)


def test_the_cpu_is_used_when_one_frame_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone, together = detectors()
    sizes = short_of_memory(monkeypatch, most=0)
    frames = [astronaut(), moved(astronaut(), 10)]
    with caplog.at_level(logging.WARNING, "dfscan"):
        faces = [*together.detect(frames), *together.detect(frames)]
    assert sizes == [3, 1]
    assert "detecting faces on the CPU" in caplog.text
    assert_alike(faces, [alone.detect(frame) for frame in frames] * 2, atol=0)


def test_a_device_failure_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from dfscan.faces import mtcnn_torch

    _, together = detectors()
    monkeypatch.setattr(
        mtcnn_torch, "find_all_faces", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("CUDA error\nx"))
    )
    with pytest.raises(DfscanError, match="cannot run on cpu: CUDA error; try --device cpu"):
        together.detect([astronaut()])
    with pytest.raises(DfscanError, match=r"cannot run on nonsense.*--device cpu"):
        BatchedFaceDetector(detectors()[0], device="nonsense")


@pytest.mark.cuda
def test_cuda_and_cpu_detect_the_same_faces() -> None:
    alone, _ = detectors()
    together = BatchedFaceDetector(alone, device="cuda")
    assert_alike(together.detect(pictures()), [alone.detect(pixels) for pixels in pictures()], atol=5e-2)
