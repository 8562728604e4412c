"""Tracks of synthetic cases: which faces are linked, and above all which are not."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import pytest

from dfscan.faces.descriptor import NUM_VALUES, SCENE_CELLS, face_descriptor, scene_descriptor
from dfscan.faces.detect import FaceDetector
from dfscan.faces.track import link, with_dissolves
from dfscan.types import Dissolve, Face, SceneDescriptor
from tests.pictures import moved, other_person, two_people

LOOKS = {
    "a": 40.0, "b": 70.0, "c": 10.0, "twin": 40.5, "a turned": 50.0, "a half turned": 47.0,
    "double": 43.0, "a and double": 41.5,
}  # fmt: skip
"""Lightness of each synthetic descriptor. A distance of 30 is a similarity near 0; the similarity of `a` to its twin is
0.92, to itself turned 0.18, to itself half turned 0.30, to its double 0.59, and to a mixture of both 0.77."""


class Seen(NamedTuple):
    """A person in a frame. Frames are 0.25 s apart within a burst, bursts 60 s."""

    who: str
    burst: int
    step: int
    x_px: float
    y_px: float = 100
    size_px: float = 100
    shot: float | None = 30
    """Lightness of the frame around the face; None if unknown."""
    cuts: int = 0
    """Number of cuts before it within its burst."""

    def face(self) -> Face:
        x1, y1 = self.x_px - self.size_px / 2, self.y_px - self.size_px / 2
        box_xyxy = np.array([x1, y1, x1 + self.size_px, y1 + self.size_px], np.float32)
        return Face(
            frame_index=self.burst * 32 + self.step,
            time_s=self.burst * 60 + self.step * 0.25,
            burst=self.burst,
            box_xyxy=box_xyxy,
            landmarks=np.zeros((5, 2), np.float32),
            detection_score=0.99,
            descriptor=np.full(NUM_VALUES, LOOKS[self.who], np.float32),
            scene=None if self.shot is None else flat_scene(self.shot),
            shot=100 * self.burst + self.cuts,
        )


def flat_scene(lightness: float) -> SceneDescriptor:
    return SceneDescriptor(np.full((SCENE_CELLS, SCENE_CELLS, 3), lightness, np.float32), (40.0, 30.0))


def tracks_of(scene: list[Seen]) -> list[str]:
    """Return each track as the names of its faces, in the order of `link`."""
    names = {(seen.face().frame_index, seen.x_px, seen.y_px): seen.who for seen in scene}
    assert len(names) == len(scene)
    return [" ".join(name_of(face, names) for face in track) for track in link([seen.face() for seen in scene])]


def name_of(face: Face, names: dict[tuple[int, float, float], str]) -> str:
    x_px, y_px = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2
    return next(
        who for (index, x, y), who in names.items() if index == face.frame_index and abs(x - x_px) + abs(y - y_px) < 0.1
    )


def walk(
    who: str, steps: range | list[int], *, start_px: float, speed_px: float, burst: int = 0, cuts: int = 0
) -> list[Seen]:
    return [Seen(who, burst, step, start_px + speed_px * step, cuts=cuts) for step in steps]


def turns(descriptor: list[str], *, shots: list[float | None], x_px: float = 300) -> list[Seen]:
    """Return neighbouring samples at one position, each with its descriptor and the lightness around it."""
    return [Seen(who, 0, step, x_px, shot=shot) for step, (who, shot) in enumerate(zip(descriptor, shots, strict=True))]


def sits(who: str, bursts: list[int], *, x_px: float = 300, size_px: float = 100) -> list[Seen]:
    return [Seen(who, burst, step, x_px, size_px=size_px) for burst in bursts for step in range(4)]


SCENES: dict[str, tuple[list[Seen], list[str]]] = {
    "nobody": ([], []),
    "one face": ([Seen("a", 0, 0, 50)], ["a"]),
    "one person moving": (walk("a", range(6), start_px=100, speed_px=40), ["a a a a a a"]),
    "one person running, at a known speed": (
        walk("a", [0, 1, 4, 7], start_px=100, speed_px=50),
        ["a a a a"],
    ),
    "two side by side": (
        walk("a", range(4), start_px=100, speed_px=0) + walk("b", range(4), start_px=210, speed_px=0),
        ["a a a a", "b b b b"],
    ),
    "twins side by side are separated by position": (
        walk("a", range(4), start_px=100, speed_px=5) + walk("twin", range(4), start_px=210, speed_px=5),
        ["a a a a", "twin twin twin twin"],
    ),
    "two crossing": (
        walk("a", range(8), start_px=100, speed_px=40) + walk("b", range(8), start_px=400, speed_px=-40),
        ["a a a a a a a a", "b b b b b b b b"],
    ),
    "crossing behind another, missed for two frames": (
        walk("a", range(8), start_px=100, speed_px=30) + walk("b", [0, 1, 2, 5, 6, 7], start_px=330, speed_px=-30),
        ["a a a a a a a a", "b b b b b b"],
    ),
    "missed for two frames": (walk("a", [0, 1, 4, 5], start_px=100, speed_px=20), ["a a a a"]),
    "missed for three frames in one shot": (walk("a", [0, 1, 5, 6], start_px=100, speed_px=20), ["a a a a"]),
    "another person after three frames without a face": (
        walk("a", [0, 1], start_px=100, speed_px=0) + walk("b", [5, 6], start_px=100, speed_px=0),
        ["a a", "b b"],
    ),
    "a jump within a shot": ([Seen("a", 0, 0, 100), Seen("a", 0, 1, 400)], ["a a"]),
    "a jump with a dissimilar descriptor within a shot": (
        [Seen("a", 0, 0, 100), Seen("a turned", 0, 1, 400)],
        ["a", "a turned"],
    ),
    "a cut to another person at the same position within a burst": (
        walk("a", range(3), start_px=100, speed_px=0) + walk("b", range(3, 6), start_px=100, speed_px=0, cuts=1),
        ["a a a", "b b b"],
    ),
    "alternating shots": (
        [Seen("ab"[step // 3 % 2], 0, step, 200, cuts=step // 3) for step in range(12)],
        ["a a a a a a", "b b b b b b"],
    ),
    "a turning head in one shot": (
        turns(["a", "a turned", "a", "a half turned", "a turned"], shots=[30] * 5),
        ["a a turned a a half turned a turned"],
    ),
    "a turning head with a shaking camera": (
        [
            Seen(who, 0, step, 300 + 60 * (-1) ** step, shot=30 + 9 * step)
            for step, who in enumerate(["a", "a turned"] * 3)
        ],
        ["a a turned a a turned a a turned"],
    ),
    "a turning head with a shaking camera and another person": (
        [Seen(who, 0, step, 300 + 60 * (-1) ** step) for step, who in enumerate(["a", "a turned", "a"])]
        + [Seen("c", 0, step, 900) for step in range(3)],
        ["a a", "c c c", "a turned"],
    ),
    "a dissimilar descriptor after a cut": (
        [Seen("a", 0, 0, 300), Seen("a turned", 0, 1, 300, cuts=1)],
        ["a", "a turned"],
    ),
    "another person in another view after a missed cut": (turns(["a", "b"], shots=[30, 50]), ["a", "b"]),
    "a dissimilar descriptor after a jump in one shot": (
        [Seen("a", 0, 0, 300), Seen("a turned", 0, 1, 345)],
        ["a a turned"],
    ),
    "a dissimilar descriptor after a long gap in one shot": (
        [Seen("a", 0, 0, 300), Seen("a turned", 0, 4, 300)],
        ["a", "a turned"],
    ),
    "a turning head beside another person": (
        turns(["a", "a turned", "a"], shots=[30] * 3) + turns(["b", "b", "b"], shots=[30] * 3, x_px=420),
        ["a a turned a", "b b b"],
    ),
    "another person at the same position in the next burst": (sits("a", [0]) + sits("b", [1]), ["a a a a", "b b b b"]),
    "one person over bursts": (sits("a", [0, 1, 3]), ["a a a a a a a a a a a a"]),
    "shot and reverse shot at one position": (
        sits("a", [0, 2]) + sits("b", [1, 3]),
        ["a a a a a a a a", "b b b b b b b b"],
    ),
    "slow zoom within a burst": (
        [Seen("a", 0, step, 300, size_px=60 * 1.25**step) for step in range(8)],
        ["a a a a a a a a"],
    ),
    "a small zoom between bursts": (sits("a", [0]) + sits("a", [1], size_px=130), ["a a a a a a a a"]),
    "a large zoom between bursts is ambiguous": (sits("a", [0]) + sits("a", [1], size_px=180), ["a a a a", "a a a a"]),
    "another position in the next burst is ambiguous": (
        sits("a", [0]) + sits("a", [1], x_px=450),
        ["a a a a", "a a a a"],
    ),
    "two people swap positions between bursts": (
        sits("a", [0], x_px=100) + sits("b", [0], x_px=300) + sits("b", [1], x_px=100) + sits("a", [1], x_px=300),
        ["a a a a", "b b b b", "b b b b", "a a a a"],
    ),
    "twins keep their positions": (
        sits("a", [0, 1], x_px=100) + sits("twin", [0, 1], x_px=300),
        ["a a a a a a a a", "twin twin twin twin twin twin twin twin"],
    ),
    "a face between two twins is linked to neither": (
        sits("a", [0], x_px=100) + sits("twin", [0], x_px=200) + sits("twin", [1, 2], x_px=150),
        ["a a a a", "twin twin twin twin", "twin twin twin twin twin twin twin twin"],
    ),
    "order: by first appearance, then larger": (
        [Seen("a", 0, 0, 100, size_px=50), Seen("b", 0, 0, 300, size_px=90), Seen("c", 0, 1, 600, size_px=200)],
        ["b", "a", "c"],
    ),
}


@pytest.mark.parametrize(("scene", "expected"), SCENES.values(), ids=SCENES.keys())
def test_tracks_of_each_case(scene, expected):
    assert tracks_of(scene) == expected


@pytest.mark.parametrize(("scene", "expected"), SCENES.values(), ids=SCENES.keys())
def test_the_order_of_the_input_does_not_matter(scene, expected):
    shuffled = scene.copy()
    random.Random(7).shuffle(shuffled)
    assert tracks_of(shuffled) == expected


@pytest.mark.parametrize("seed", range(10))
def test_every_face_is_in_one_track_with_at_most_one_face_per_frame(seed):
    rng = random.Random(seed)
    faces = [
        Seen(rng.choice("abc"), burst, step, rng.uniform(0, 400), rng.uniform(0, 300), rng.uniform(50, 150)).face()
        for burst in range(3)
        for step in range(6)
        for _ in range(rng.randrange(5))
    ]
    tracks = link(faces)
    assert sorted(id(face) for track in tracks for face in track) == sorted(id(face) for face in faces)
    for track in tracks:
        indices = [face.frame_index for face in track]
        assert indices == sorted(set(indices))
    starts_s = [track[0].time_s for track in tracks]
    assert starts_s == sorted(starts_s)


def dissolve(*, first: int, middle: int, end: int) -> list[list[str]]:
    """Return the tracks of two people at one position, who look alike, as names of their faces."""
    mixture = "a and double"
    who = ["a"] * first + [mixture] * (end - first) + ["double"] * 4
    seen = turns(who, shots=np.linspace(30, 50, len(who)).tolist())
    tracks = link([with_dissolves(each.face(), [Dissolve(first, middle, end)]) for each in seen])
    return [[who[face.frame_index] for face in track] for track in tracks]


@pytest.mark.parametrize("middle", [4, 5, 6])
def test_a_dissolve_separates_people_who_look_alike(middle: int) -> None:
    (before, after) = dissolve(first=4, middle=middle, end=6)
    assert "double" not in before
    assert "a" not in after
    assert len(before) == middle


def test_a_dissolve_between_two_samples_separates_people_who_look_alike() -> None:
    assert dissolve(first=4, middle=4, end=4) == [["a"] * 4, ["double"] * 4]


def test_a_dissolve_to_the_same_person_does_not_split_the_track() -> None:
    faces = [each.face() for each in turns(["a"] * 8, shots=[30] * 4 + [45] * 4)]
    assert len(link([with_dissolves(face, [Dissolve(3, 4, 5)]) for face in faces])) == 1


def test_frames_with_equal_times_do_not_break_the_prediction():
    faces = [Seen("a", 0, step, 100).face() for step in range(3)]
    stuck = [Face(f.frame_index, 0.0, 0, f.box_xyxy, f.landmarks, f.detection_score, f.descriptor) for f in faces]
    assert [len(track) for track in link(stuck)] == [3]


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(threshold=0.95, min_face_px=48, max_faces=10)


@pytest.mark.parametrize("right", [None, other_person()], ids=["equal people", "different people"])
def test_detections_of_two_moving_people_give_two_tracks(detector, right):
    """Six frames in two bursts; the border between the portraits is at x = 512 + shift."""
    shifts_px = [0, 12, 24, 40, 52, 64]
    picture = two_people(right=right)
    faces = [
        Face(index, index * 0.25 + (index // 3) * 30, index // 3, d.box_xyxy, d.landmarks, d.score, descriptor, view)
        for index, shift in enumerate(shifts_px)
        for pixels in [moved(picture, dx_px=shift, dy_px=shift / 4, zoom=1 + index / 100)]
        for d in detector.detect(pixels)
        for descriptor, view in [(face_descriptor(pixels, d.landmarks), scene_descriptor(pixels))]
    ]
    tracks = link(faces)
    assert len(tracks) == 2
    assert min(len(track) for track in tracks) >= 5  # MTCNN may miss one face
    for track in tracks:
        sides = {bool(face.box_xyxy[0] > 512 + shifts_px[face.frame_index] - 60) for face in track}
        assert len(sides) == 1
