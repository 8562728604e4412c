"""The face detector beside facenet-pytorch's at full resolution: time as a ratio, faces found, false faces.

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
from tests.test_mtcnn import overlap

Pixels = np.ndarray
WIDTH_PX, HEIGHT_PX, NUM_FRAMES = 1920, 1080, 24
FACES_PX = (64, 80, 100, 140, 200)
MARGIN = 0.5
"""Of a portrait, this much of the face's side is kept all round it."""


def portraits(folder: Path) -> list[tuple[Pixels, np.ndarray]]:
    """Pictures and the boxes of their faces, those with room about the face."""
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


def made_frame(chance: np.random.Generator, people: Sequence[tuple[Pixels, np.ndarray]]) -> tuple[Pixels, np.ndarray]:
    """A 1080p frame of soft noise with a portrait of each size in a column of its own, and the boxes of the faces."""
    noise = chance.integers(0, 256, (HEIGHT_PX // 40, WIDTH_PX // 40, 3), dtype=np.uint8)
    frame = cv2.resize(noise, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
    boxes = []
    for column, side_px in enumerate(FACES_PX):
        pixels, box = people[chance.integers(len(people))]
        scale = side_px / float(np.max(box[2:] - box[:2]))
        reach = MARGIN / 2 * float(np.max(box[2:] - box[:2]))
        x1, y1, x2, y2 = np.concatenate([box[:2] - reach, box[2:] + reach]).round().astype(int)
        part = cv2.resize(pixels[y1:y2, x1:x2], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        x, y = column * WIDTH_PX // len(FACES_PX), int(chance.integers(0, HEIGHT_PX - len(part)))
        frame[y : y + len(part), x : x + part.shape[1]] = part
        boxes.append(np.tile([x - x1 * scale, y - y1 * scale], 2) + box * scale)
    return np.ascontiguousarray(frame), np.array(boxes)


def measured(find: Callable[[Pixels], np.ndarray], frames: Sequence[Pixels]) -> tuple[list[np.ndarray], float]:
    find(frames[0])
    start_s = time.process_time()
    found = [find(frame) for frame in frames]
    return found, (time.process_time() - start_s) / len(frames)


def hits(boxes: np.ndarray, others: np.ndarray) -> list[bool]:
    """Which of the boxes one of the others overlaps by half."""
    return [any(overlap(box, other) >= 0.5 for other in others) for box in boxes]


def recall(true: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> int:
    return sum(hit for boxes, others in zip(true, found, strict=True) for hit in hits(boxes, others))


@pytest.mark.slow
@pytest.mark.shared
def test_it_finds_what_the_library_finds_at_full_size_and_says_in_what_time(shared_data: Path) -> None:
    import torch
    from facenet_pytorch import MTCNN

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    chance = np.random.default_rng(5)
    people = portraits(shared_data / "faces")
    made = [made_frame(chance, people) for _ in range(NUM_FRAMES)]
    library, detector = MTCNN(keep_all=True), FaceDetector(threshold=0.95, min_face_px=48, max_faces=99)

    def by_library(frame: Pixels) -> np.ndarray:
        boxes, scores = library.detect(frame)
        return np.empty((0, 4)) if boxes is None else boxes[np.asarray(scores, float) >= 0.95].astype(float)

    def by_dfscan(frame: Pixels) -> np.ndarray:
        return np.array([face.box_xyxy for face in detector.detect([frame])[0]]).reshape(-1, 4)

    frames = [frame for frame, _ in made]
    theirs, their_s = measured(by_library, frames)
    mine, my_s = measured(by_dfscan, frames)
    large = [boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= 64] for boxes in theirs]
    again = [hit for boxes, others in zip(large, mine, strict=True) for hit in hits(boxes, others)]
    true = [boxes for _, boxes in made]
    my_false = sum(not hit for boxes, faces in zip(mine, true, strict=True) for hit in hits(boxes, faces))
    their_false = sum(not hit for boxes, faces in zip(theirs, true, strict=True) for hit in hits(boxes, faces))
    print(
        f"{NUM_FRAMES} frames of {WIDTH_PX} x {HEIGHT_PX}, {len(np.concatenate(true))} faces: library {their_s:.3f}, "
        f"dfscan {my_s:.3f} CPU s a frame, {their_s / my_s:.1f} times less; {sum(again)} of its {len(again)} faces of "
        f"64 px or more found too; of all faces the library finds {recall(true, theirs)}, dfscan {recall(true, mine)}; "
        f"false: library {their_false}, dfscan {my_false}"
    )
    assert sum(again) / len(again) >= 0.98
    assert my_false <= their_false
