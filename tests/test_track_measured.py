"""Split and merged tracks, measured on real clips and on videos composed of them.

``pytest -n 0 -s tests/test_track_measured.py`` prints the table; it needs the clips of ../shared.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dfscan.detector.preprocess import Preprocessing
from dfscan.faces.detect import FaceDetector
from dfscan.faces.keyframes import KeyframeDetector
from dfscan.faces.track import link
from dfscan.media.isolate import Decoded, Ended, Limits, decode_videos
from dfscan.media.plan import Sampling
from dfscan.scan.detect import FaceCropper
from dfscan.types import Face

pytestmark = pytest.mark.shared

MAX_SPLIT_CLIPS = 4
"""Three clips have several faces or cuts: ghost_video5, lp_s13 (a false positive), help (a bystander)."""
SAME_PERSON = ("ghost_", "edtalk_", "intel_asl", "may")
"""Names of clips that may show the same person as another clip."""


def faces_of(paths: list[Path]) -> Iterator[tuple[Path, list[Face]]]:
    detector, cutter = FaceDetector(threshold=0.95, min_face_px=48, max_faces=20), FaceCropper(Preprocessing())
    events = decode_videos(map(str, paths), sampling=Sampling(), num_workers=1, limits=Limits())
    follower, found = KeyframeDetector(detector), list[Face]()
    for event in events:
        if isinstance(event, Decoded | Ended):
            looks = follower.add(event.frame) if isinstance(event, Decoded) else follower.finish()
            found += [crop.face for look in looks for crop in cutter.crop_faces(look.frame, look.faces).crops]
        if isinstance(event, Ended):
            yield Path(event.path), found
            follower, found = KeyframeDetector(detector), []


@pytest.fixture(scope="module")
def clips() -> dict[Path, list[Face]]:
    from tests.conftest import SHARED_DATA

    suffixes = {".mp4", ".webm", ".mpg", ".mkv"}
    folders = [SHARED_DATA / name for name in ("videos", "real_videos")]
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes)
    return dict(faces_of(paths))


@pytest.fixture(scope="module", autouse=True)
def cache(session_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_cache))
        yield


def test_one_person_is_one_track(clips: dict[Path, list[Face]]) -> None:
    sizes = {path.name: [len(track) for track in link(faces)] for path, faces in clips.items()}
    split = {name: each for name, each in sizes.items() if len(each) > 1}
    print(f"\n{len(split)} of {len(sizes)} clips have several tracks:", *split.items(), sep="\n")
    assert sizes["lp_d12.mp4"] == [32]
    assert sizes["lp_s13.mp4"][0] >= 31
    assert len(split) <= MAX_SPLIT_CLIPS


@pytest.mark.parametrize("is_burst", [False, True], ids=["shots", "bursts"])
def test_two_alternating_people_never_share_a_track(clips: dict[Path, list[Face]], is_burst: bool) -> None:
    single = {
        path: faces
        for path, faces in clips.items()
        if len({face.frame_index for face in faces}) == len(faces) == 32 and "pose_ref" not in path.name
    }
    num_pairs = num_merged = num_surplus = 0
    for (one, a), (other, b) in itertools.combinations(single.items(), 2):
        if any(name in str(one) and name in str(other) for name in SAME_PERSON):
            continue
        tracks = link(in_turn(a, b, is_burst=is_burst))
        people = [Counter(face.frame_index // 4 % 2 for face in track) for track in tracks]
        num_pairs += 1
        num_merged += any(len(each) > 1 for each in people)
        num_surplus += len(tracks) - 2
    print(f"\n{num_pairs} pairs: {num_merged} merged, {num_surplus} surplus tracks")
    assert num_pairs > 2000
    assert num_merged == 0


def in_turn(a: list[Face], b: list[Face], *, is_burst: bool) -> list[Face]:
    """Alternate four faces of each, twice, as in shot and reverse shot or in bursts a minute apart."""
    runs = [a[:4], b[:4], a[4:8], b[4:8]]
    return [
        replace(face, frame_index=4 * i + j, time_s=60 * i + j / 4, burst=i if is_burst else 0, shot=i)
        for i, run in enumerate(runs)
        for j, face in enumerate(run)
    ]
