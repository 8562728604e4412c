"""Face detection compared with facenet-pytorch on each frame at full size: time ratio, recall, false positives.

``pytest --slow -n 0 -s tests/test_detection_speed.py`` prints the numbers; it needs the portraits of ../shared.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfscan.faces.detect import FaceDetector
from dfscan.faces.keyframes import KeyframeDetector
from dfscan.types import Frame
from tests.test_mtcnn_numpy import overlap

Pixels = np.ndarray
Made = tuple[Pixels, np.ndarray]
"""A frame and the boxes of its faces."""
WIDTH_PX, HEIGHT_PX = 1920, 1080
NUM_VIDEOS, NUM_FRAMES = 3, 12
STEP = 0.15
"""Maximum movement of a face from one sample to the next, in face sizes, along x and y."""
FACES_PX = (64, 80, 100, 140, 200)
MARGIN = 0.5
"""Margin of a portrait around the face, in face sizes."""


def portraits(folder: Path) -> list[tuple[Pixels, np.ndarray]]:
    """Return images and the boxes of their faces, for images with enough margin around the face."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows[:: len(rows) // 200]:
        box = np.array([float(row[f"face_{edge}"]) for edge in ("x0", "y0", "x1", "y1")])
        pixels = cv2.imread(str(folder / row["file"]))[..., ::-1]
        room = MARGIN * float(np.max(box[2:] - box[:2]))
        if (box[:2] >= room / 2).all() and (box[2:] + room / 2 <= np.array(pixels.shape[1::-1])).all():
            found.append((pixels, box))
    return found


def made_video(chance: np.random.Generator, people: Sequence[tuple[Pixels, np.ndarray]]) -> list[Made]:
    """Make 1080p frames of smooth noise in which a portrait of each size moves in its own column.

    Two of them appear after the first frame, and one of these disappears before the last frame.
    """
    noise = chance.integers(0, 256, (HEIGHT_PX // 40, WIDTH_PX // 40, 3), dtype=np.uint8)
    empty = cv2.resize(noise, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
    frames = [empty.copy() for _ in range(NUM_FRAMES)]
    boxes: list[list[np.ndarray]] = [[] for _ in frames]
    late = dict(zip(chance.permutation(len(FACES_PX))[:2].tolist(), ((5, NUM_FRAMES), (2, 7)), strict=True))
    for column, side_px in enumerate(FACES_PX):
        pixels, box = people[chance.integers(len(people))]
        scale = side_px / float(np.max(box[2:] - box[:2]))
        reach = MARGIN / 2 * float(np.max(box[2:] - box[:2]))
        x1, y1, x2, y2 = np.concatenate([box[:2] - reach, box[2:] + reach]).round().astype(int)
        part = cv2.resize(pixels[y1:y2, x1:x2], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        steps = chance.uniform(-STEP, STEP, (NUM_FRAMES, 2)) * side_px
        start = np.array([column * WIDTH_PX // len(FACES_PX) + 40, chance.integers(0, HEIGHT_PX)])
        most = np.array([WIDTH_PX - part.shape[1], HEIGHT_PX - part.shape[0]])
        places = (start + steps.cumsum(axis=0)).clip(0, most).astype(int)
        for i in range(*late.get(column, (0, NUM_FRAMES))):
            x, y = places[i]
            frames[i][y : y + len(part), x : x + part.shape[1]] = part
            boxes[i].append(np.tile([x - x1 * scale, y - y1 * scale], 2) + box * scale)
    return [(frame, np.array(each)) for frame, each in zip(frames, boxes, strict=True)]


def timed(
    find: Callable[[Sequence[Pixels]], list[np.ndarray]], videos: Sequence[Sequence[Pixels]]
) -> tuple[list[np.ndarray], float]:
    """Return the boxes in each frame, and the CPU seconds per frame."""
    find(videos[0][:2])
    start_s = time.process_time()
    found = [boxes for frames in videos for boxes in find(frames)]
    return found, (time.process_time() - start_s) / len(found)


def hits(boxes: np.ndarray, others: np.ndarray) -> list[bool]:
    """Return for each box whether its IoU with one of the others is at least 0.5."""
    return [any(overlap(box, other) >= 0.5 for other in others) for box in boxes]


def recall(true: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> int:
    return sum(hit for boxes, others in zip(true, found, strict=True) for hit in hits(boxes, others))


@pytest.mark.slow
@pytest.mark.shared
def test_recall_and_time_compared_with_the_library_at_full_size(shared_data: Path) -> None:
    import torch
    from facenet_pytorch import MTCNN

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    chance = np.random.default_rng(5)
    people = portraits(shared_data / "faces")
    made = [made_video(chance, people) for _ in range(NUM_VIDEOS)]
    library, detector = MTCNN(keep_all=True), FaceDetector(threshold=0.95, min_face_px=48, max_faces=99)

    def by_library(frames: Sequence[Pixels]) -> list[np.ndarray]:
        found = [library.detect(frame) for frame in frames]
        return [
            np.empty((0, 4)) if boxes is None else boxes[np.asarray(scores, float) >= 0.95].astype(float)
            for boxes, scores in found
        ]

    def by_dfscan(frames: Sequence[Pixels]) -> list[np.ndarray]:
        follower = KeyframeDetector(detector)
        looks = [look for i, frame in enumerate(frames) for look in follower.add(Frame(frame, i, i / 4, 0))]
        looks += follower.finish()
        return [np.array([face.box_xyxy for face in look.faces]).reshape(-1, 4) for look in looks]

    videos = [[frame for frame, _ in video] for video in made]
    theirs, their_s = timed(by_library, videos)
    mine, my_s = timed(by_dfscan, videos)
    large = [boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= 64] for boxes in theirs]
    again = [hit for boxes, others in zip(large, mine, strict=True) for hit in hits(boxes, others)]
    true = [boxes for video in made for _, boxes in video]
    my_false = sum(not hit for boxes, faces in zip(mine, true, strict=True) for hit in hits(boxes, faces))
    their_false = sum(not hit for boxes, faces in zip(theirs, true, strict=True) for hit in hits(boxes, faces))
    print(
        f"{len(mine)} frames of {WIDTH_PX} x {HEIGHT_PX}, {len(np.concatenate(true))} faces: library {their_s:.3f}, "
        f"dfscan {my_s:.3f} CPU s per frame, {their_s / my_s:.1f} times less; {sum(again)} of its {len(again)} faces "
        f"of at least 64 px detected too; true positives: library {recall(true, theirs)}, dfscan {recall(true, mine)}; "
        f"false positives: library {their_false}, dfscan {my_false}"
    )
    assert sum(again) / len(again) >= 0.98
    assert my_false <= their_false
