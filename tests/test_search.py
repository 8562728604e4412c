"""The detection stages return all frames in order, and free them."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfscan.detector.preprocess import Preprocessing
from dfscan.faces.detect import FaceDetector
from dfscan.gpu import BusyClock
from dfscan.scan.crowd import Crowd
from dfscan.scan.detect import (
    MAX_BATCHES_PASSED,
    BatchedDetectStage,
    DetectStage,
    FaceCropper,
    SequentialDetectStage,
)
from dfscan.scan.timing import Timings
from dfscan.scan.video import VideoState
from dfscan.types import Frame
from tests.pictures import astronaut


@pytest.fixture(autouse=True)
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))


class FakeDetector:
    """Takes batches of four frames and finds no faces."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []

    def batch_size(self, shape: tuple[int, ...]) -> int:
        return 4

    def detect(self, frames: Sequence[np.ndarray]) -> list[list[Any]]:
        self.batches.append([frame.shape[:2] for frame in frames])
        return [[] for _ in frames]


@pytest.fixture
def detector() -> FakeDetector:
    return FakeDetector()


@pytest.fixture
def stage(detector: FakeDetector) -> Iterator[BatchedDetectStage]:
    with ThreadPoolExecutor(1) as pool:
        yield BatchedDetectStage(detector, FaceCropper([Preprocessing()]), Timings(), pool, threads=1)  # type: ignore[arg-type]


def video(name: str) -> VideoState:
    return VideoState(name, None, 0, 3, Crowd(10))


def frame(index: int, *, width_px: int = 40) -> Frame:
    return Frame(np.zeros((30, width_px, 3), np.uint8), index, index / 10, 0)


def drain(stage: DetectStage) -> list[tuple[str, int]]:
    """Return the videos and indices of all frames in order; -1 for the end of a video."""
    out = []
    while stage.is_busy:
        for each in stage.wait():
            out += [(each.video.path, found.frame.index) for found in each.frames]
            out += [(each.video.path, -1)] if each.is_last else []
    return out


def test_frames_of_all_videos_share_batches_by_shape(stage: BatchedDetectStage, detector: FakeDetector) -> None:
    first, second, wide = video("first"), video("second"), video("wide")
    for i in range(3):
        stage.submit(first, frame(i))
        stage.submit(wide, frame(i, width_px=60))
        stage.submit(second, frame(i))
    for each in (first, second, wide):
        stage.end(each)
    found = drain(stage)
    for name in ("first", "second", "wide"):
        assert [i for each, i in found if each == name] == [0, 1, 2, -1]
    assert sorted(detector.batches) == [[(30, 40)] * 2, [(30, 40)] * 4, [(30, 60)] * 3]


def test_frames_of_a_video_stay_in_order_when_its_shape_changes(stage: BatchedDetectStage) -> None:
    changing = video("changing")
    for i in range(11):
        stage.submit(changing, frame(i, width_px=60 if i in (2, 3, 9) else 40))
    stage.end(changing)
    assert drain(stage) == [("changing", i) for i in [*range(11), -1]]


def test_detection_of_a_video_ends_with_its_last_frame(stage: BatchedDetectStage) -> None:
    one, empty = video("one"), video("empty")
    stage.end(empty)
    assert drain(stage) == [("empty", -1)]
    stage.submit(one, frame(0))
    stage.end(one)
    assert stage.next() == []
    assert drain(stage) == [("one", 0), ("one", -1)]


def test_a_rare_shape_does_not_wait_for_the_end(stage: BatchedDetectStage) -> None:
    rare, common = video("rare"), video("common")
    stage.submit(rare, frame(0, width_px=60))
    stage.end(rare)
    for i in range(4 * (MAX_BATCHES_PASSED + 1)):
        stage.submit(common, frame(i))
    assert len(stage._running) == MAX_BATCHES_PASSED + 2
    ended = []
    while stage._running:
        ended += [each.video for each in stage.wait() if each.is_last]
    assert ended == [rare]


def test_an_abandoned_video_is_freed() -> None:
    detector = FaceDetector(threshold=0.95, min_face_px=48, max_faces=10)
    given_up = video("its decoder died")
    with ThreadPoolExecutor(1) as pool:
        stage = SequentialDetectStage(detector, FaceCropper([Preprocessing()]), Timings(), pool, threads=1)
        stage.submit(given_up, Frame(astronaut(), 0, 0.0, 0))
        drain(stage)
        assert len(stage._queues) == 1  # the frame is held until detection has run on the third
        del given_up
        gc.collect()
        assert len(stage._queues) == 0


def test_one_thread_reports_the_end_of_a_video_once() -> None:
    detector = FaceDetector(threshold=0.95, min_face_px=48, max_faces=10)
    short, empty = video("short"), video("empty")
    with ThreadPoolExecutor(1) as pool:
        stage = SequentialDetectStage(detector, FaceCropper([Preprocessing()]), Timings(), pool, threads=1)
        stage.submit(short, frame(0))
        stage.end(empty)
        stage.end(short)
        assert sorted(drain(stage)) == [("empty", -1), ("short", -1), ("short", 0)]


def test_overlapping_gpu_work_is_counted_once() -> None:
    clock = BusyClock()

    both_at_work = threading.Barrier(2)

    def work() -> None:
        with clock.at_work():
            both_at_work.wait()
            time.sleep(0.3)

    threads = [threading.Thread(target=work) for _ in range(2)]
    start_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.3 <= clock.seconds <= time.perf_counter() - start_s
