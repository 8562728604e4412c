"""Link the faces of one video into tracks, one per person.

If two people share a track, one person's fake face can hide behind the other's real face. If one person is split into
two tracks, the verdict depends on fragments. Therefore the most certain links are made first:

1. Within a shot (see `media.shots`), a face is linked to a track by overlap and similarity. If the shot shows only one
   face from sample to sample, it is the same person, even if the head turns or the camera moves fast.
2. Across a cut, a gap within a shot, or bursts, a track continues an earlier one if position, size and similarity
   agree. All pairs of faces are compared and the best pair counts, because a head that turned away has a low average
   similarity to itself.

A link is made only if the second best choice is clearly worse.

`MIN_SIMILARITY` was derived from the best pair of faces of two clips, on 73 real and generated clips of 32 faces each
and on single portraits from one studio (Face Research Lab London Set):

=================================================  =====  ======  ===============
best similarity of two sets of faces                   n  median  highest, lowest
=================================================  =====  ======  ===============
two people, clips                                   2581    0.05             0.58
two people, one studio, one portrait each           1200    0.32             0.68
one person, first and last third of a clip            73    0.84             0.31
one person, two takes in one room                     35    0.80             0.58
=================================================  =====  ======  ===============

The column on the right is the highest value for two people and the lowest for one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from dfscan.arrays import Float32Array
from dfscan.faces.descriptor import best_similarity, scene_distance, similarity
from dfscan.types import Dissolve, Face

Tracklet = list[Face]
"""Faces of one person in one shot of one burst, in order of time."""
Scores = dict[tuple[int, int], float]
"""Candidate links, as (position of the older, position of the newer) -> score of the link."""

Older = TypeVar("Older")
Newer = TypeVar("Newer")

MAX_MISSED = 2
"""Maximum number of samples in which a person may be missed within a tracklet."""
MIN_IOU, MIN_SHOT_SIMILARITY, MIN_FIT = 0.1, 0.55, 1.0
"""Within a shot, the minimum overlap, similarity, and sum of both for a link."""
MIN_SHOT_IOU, MIN_POSE_SIMILARITY = 0.4, 0.1
"""Within a shot, the minimum overlap for a link in any pose, if the similarity is at least `MIN_POSE_SIMILARITY`."""
MAX_NEAR_MOVE, MIN_NEAR_SIMILARITY = 0.75, 0.3
"""Within a shot, the maximum movement in face sizes for a link if the similarity is at least `MIN_NEAR_SIMILARITY`."""
MAX_LONE_MOVE, MAX_LONE_ZOOM = 2.5, 2.0
"""Within a shot, the maximum movement in face sizes and ratio of sizes of the only face in consecutive samples."""
MIN_LONE_IOU = 0.3
"""Within a shot, the minimum overlap of the only face if the similarity is below `MIN_POSE_SIMILARITY`."""
MIN_CUT_DISTANCE = 8.0
"""Change of the frame around a dissimilar face from which a missed cut is assumed: mean L*a*b* distance."""
MIN_SIMILARITY = 0.7
"""Minimum best similarity of two tracklets of the same person; two different people reach 0.68."""
MAX_MOVE, MAX_ZOOM = 1.0, 1.5
"""Across a cut or a burst, the maximum movement in face sizes and ratio of sizes."""
MAX_VIEW_DISTANCE, MAX_SEAT_SHIFT = 3.5, 0.5
"""Maximum change of the frame around a face, and movement in face sizes, for the same seat in the same view. For these,
a best similarity of `MIN_NEAR_SIMILARITY` is enough across a cut or a burst."""
MIN_LEAD = 0.1
"""Minimum lead of a link over the second best, in units of similarity or overlap."""
NUM_COMPARED = 16
"""Maximum number of faces, spread evenly, that are compared per person and per tracklet."""


def link(faces: Sequence[Face]) -> list[list[Face]]:
    """Group the faces of one video by person.

    Args:
        faces: in any order; the result does not depend on it.

    Returns:
        Tracks in order of first appearance, the larger face first if simultaneous. Each has its faces in order of time,
        at most one per frame. Every face is in exactly one track.
    """
    people: list[list[Face]] = []
    closed: set[int] = set()
    num_faces = Counter(face.frame_index for face in faces)

    def fit(person: Sequence[Face], tracklet: Tracklet) -> float | None:
        is_lone = num_faces[person[-1].frame_index] == num_faces[tracklet[0].frame_index] == 1
        return _fit_to_person(person, tracklet, is_lone=is_lone)

    for _, burst in itertools.groupby(sorted(faces, key=_order), key=lambda face: face.burst):
        for _, starting in itertools.groupby(_link_burst(burst), key=lambda tracklet: tracklet[0].frame_index):
            tracklets = list(starting)
            pairs = _pairs(people, tracklets, fit, closed)
            for number, tracklet in enumerate(tracklets):
                if number in pairs:
                    people[pairs[number]].extend(tracklet)
                else:
                    people.append(list(tracklet))
    return people


def with_dissolves(face: Face, dissolves: Sequence[Dissolve]) -> Face:
    """Return the face with a number of its shot in which dissolves count too."""
    at = face.frame_index
    shot = face.shot + sum(each.middle <= at for each in dissolves)
    return replace(face, shot=shot, is_dissolving=any(each.first <= at < each.end for each in dissolves))


def _link_burst(faces: Iterable[Face]) -> list[Tracklet]:
    """Return the tracklets of one burst, in order of their first faces."""
    tracklets: list[Tracklet] = []
    closed: set[int] = set()
    for _, frame in itertools.groupby(faces, key=lambda face: face.frame_index):
        newcomers = list(frame)
        alive = [tracklet for tracklet in tracklets if _is_alive(tracklet, newcomers[0])]
        fit = _fit_lone if len(newcomers) == len(alive) == 1 else _fit_in_shot
        pairs = _pairs(tracklets, newcomers, fit, closed)
        for number, face in enumerate(newcomers):
            if number in pairs:
                tracklets[pairs[number]].append(face)
            else:
                tracklets.append([face])
    return tracklets


def _is_alive(tracklet: Tracklet, face: Face) -> bool:
    """Return whether a tracklet may continue in the frame of a face."""
    last = tracklet[-1]
    return last.shot == face.shot and face.frame_index - last.frame_index <= MAX_MISSED + 1


def _fit_in_shot(tracklet: Tracklet, face: Face) -> float | None:
    """Return overlap plus similarity, or None if the face cannot continue the tracklet."""
    if not _is_alive(tracklet, face):
        return None
    last = tracklet[-1]
    overlap, similar = _overlap(tracklet, face), similarity(last.descriptor, face.descriptor)
    is_similar = overlap >= MIN_IOU and similar >= MIN_SHOT_SIMILARITY and overlap + similar >= MIN_FIT
    stays = overlap >= MIN_SHOT_IOU and similar >= MIN_POSE_SIMILARITY
    is_near = _move(last, face) <= MAX_NEAR_MOVE and _zoom(last, face) <= MAX_ZOOM and similar >= MIN_NEAR_SIMILARITY
    return overlap + similar if is_similar or stays or is_near else None


def _fit_lone(tracklet: Tracklet, face: Face) -> float | None:
    """Return the same as `_fit_in_shot`, with looser limits because there is no other face and no other tracklet."""
    fit = _fit_in_shot(tracklet, face)
    last = tracklet[-1]
    if fit is not None or not _is_alive(tracklet, face):
        return fit
    overlap, similar = _overlap(tracklet, face), similarity(last.descriptor, face.descriptor)
    if _move(last, face) > MAX_LONE_MOVE or _zoom(last, face) > MAX_LONE_ZOOM:
        return None
    if similar < MIN_POSE_SIMILARITY:
        is_one = overlap >= MIN_LONE_IOU and _scene_distance(last, face) < MIN_CUT_DISTANCE
    else:
        is_one = similar >= MIN_NEAR_SIMILARITY or face.frame_index - last.frame_index == 1
    return overlap + similar if is_one else None


def _fit_to_person(person: Sequence[Face], tracklet: Tracklet, *, is_lone: bool) -> float | None:
    """Return best similarity minus half the movement in face sizes, or None if the tracklet cannot continue the track.

    Args:
        person: faces of the person so far.
        tracklet: faces that may belong to the same person.
        is_lone: True if the frames of the person's last and the tracklet's first face contain no other face.
    """
    last, first = person[-1], tracklet[0]
    if last.frame_index >= first.frame_index:
        return None
    is_one_shot = last.shot == first.shot
    never_away = is_lone and first.frame_index - last.frame_index == 1
    seen, found = _undissolved(person), _undissolved(tracklet)
    last, first = seen[-1], found[0]
    move = _move(last, first)
    is_near = move <= MAX_MOVE and _zoom(last, first) <= MAX_ZOOM
    if not is_near and not is_one_shot:
        return None
    similar = best_similarity(_spread(seen), _spread(found))
    if similar >= MIN_SIMILARITY:
        is_one = True
    elif is_one_shot:
        is_one = is_near and similar >= (MIN_NEAR_SIMILARITY if never_away else MIN_SHOT_SIMILARITY)
    else:
        is_one = (
            move <= MAX_SEAT_SHIFT
            and similar >= MIN_NEAR_SIMILARITY
            and _scene_distance(last, first) < MAX_VIEW_DISTANCE
        )
    return similar - min(move, MAX_MOVE) / 2 if is_one else None


def _undissolved(faces: Sequence[Face]) -> Sequence[Face]:
    """Return the faces outside dissolves, or all if there are none. In a dissolve, two people look like one another."""
    return [face for face in faces if not face.is_dissolving] or faces


def _spread(faces: Sequence[Face]) -> Float32Array:
    """Return the descriptors [F, D] of at most `NUM_COMPARED` of the faces."""
    at = np.unique(np.linspace(0, len(faces) - 1, min(len(faces), NUM_COMPARED)).round().astype(int))
    return np.stack([faces[i].descriptor for i in at])


def _pairs(
    older: Sequence[Older], newer: Sequence[Newer], fit: Callable[[Older, Newer], float | None], closed: set[int]
) -> dict[int, int]:
    """Link pairs greedily, best first, if no rival pair is nearly as good.

    Args:
        older: tracks or tracklets that may be continued.
        newer: tracklets or faces that may continue them.
        fit: returns the score of a pair, None if it cannot be linked.
        closed: positions in `older` that must not be continued. Ambiguous ones are added, because continuing them later
            would only meet the same ambiguity again.

    Returns:
        Position in `newer` -> position in `older` for each linked pair.
    """
    left: Scores = {}
    for (i, old), (j, new) in itertools.product(enumerate(older), enumerate(newer)):
        if i not in closed and (score := fit(old, new)) is not None:
            left[i, j] = score
    pairs: dict[int, int] = {}
    while left:
        best = max(left, key=lambda pair: (left[pair], -pair[0], -pair[1]))
        rivals = {
            pair for pair in left if (pair[0] == best[0]) != (pair[1] == best[1]) and left[pair] > left[best] - MIN_LEAD
        }
        spent = {best} | rivals
        if rivals:
            closed |= {older for older, _ in spent}
        else:
            pairs[best[1]] = best[0]
        older_spent, newer_spent = {older for older, _ in spent}, {newer for _, newer in spent}
        left = {
            pair: score for pair, score in left.items() if pair[0] not in older_spent and pair[1] not in newer_spent
        }
    return pairs


def _overlap(tracklet: Tracklet, face: Face) -> float:
    """Return the IoU of a face with the tracklet's last box, or with that box extrapolated by its last movement."""
    last = tracklet[-1]
    overlap = iou(last.box_xyxy, face.box_xyxy)
    if len(tracklet) < 2 or last.time_s <= tracklet[-2].time_s:
        return overlap
    steps = (face.time_s - last.time_s) / (last.time_s - tracklet[-2].time_s)
    shift = (_centre(last.box_xyxy) - _centre(tracklet[-2].box_xyxy)) * np.float32(steps)
    return max(overlap, iou(last.box_xyxy + np.tile(shift, 2), face.box_xyxy))


def _scene_distance(last: Face, face: Face) -> float:
    """Return `descriptor.scene_distance`; infinite if a scene is unknown."""
    if last.scene is None or face.scene is None:
        return math.inf
    return scene_distance(last.scene, face.scene, face.box_xyxy)


def _move(last: Face, face: Face) -> float:
    """Return the distance of the centres in sizes of the smaller face."""
    size_px = min(_size_px(last.box_xyxy), _size_px(face.box_xyxy))
    return float(np.linalg.norm(_centre(last.box_xyxy) - _centre(face.box_xyxy))) / max(size_px, 1e-6)


def _zoom(last: Face, face: Face) -> float:
    """Return the ratio of the larger to the smaller face size."""
    smaller_px, larger_px = sorted([_size_px(last.box_xyxy), _size_px(face.box_xyxy)])
    return larger_px / max(smaller_px, 1e-6)


def _order(face: Face) -> tuple[float, ...]:
    return (
        face.burst,
        face.time_s,
        face.frame_index,
        -_size_px(face.box_xyxy),
        *face.box_xyxy.tolist(),
        face.detection_score,
    )


def _centre(box_xyxy: Float32Array) -> Float32Array:
    return (box_xyxy[:2] + box_xyxy[2:]) / np.float32(2)


def _size_px(box_xyxy: Float32Array) -> float:
    """Return the side of a square of the same area."""
    return math.sqrt(_area_px(*box_xyxy.tolist()))


def _area_px(x1: float, y1: float, x2: float, y2: float) -> float:
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def iou(first: Float32Array, second: Float32Array) -> float:
    """Return the intersection over union of two boxes."""
    one, other = first.tolist(), second.tolist()
    shared = _area_px(max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    union = _area_px(*one) + _area_px(*other) - shared
    return shared / union if union > 0 else 0.0
