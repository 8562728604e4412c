from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dfscan.dataset.duplicates import MAX_DISTANCE_BITS, fingerprint, near_duplicates, unpack
from dfscan.dataset.manifest import Sample, Split, TrueLabel
from dfscan.dataset.sources import Source
from dfscan.dataset.splits import assign_splits, check_splits, find_leaks
from dfscan.errors import DataError
from tests.pictures import astronaut, moved, other_person

Picture = NDArray[np.uint8]


def sources(num_groups: int, label: TrueLabel = "real", *, prefix: str = "", per_group: int = 2) -> list[Source]:
    return [
        Source(f"{prefix}{g}_{i}.mp4", label, group=f"{prefix}{g}") for g in range(num_groups) for i in range(per_group)
    ]


def split_of(divided: list[Source]) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for source in divided:
        assert source.split is not None
        assert splits.setdefault(source.group, source.split) == source.split
    return splits


# Dividing


@pytest.mark.parametrize("num_groups", [3, 4, 7, 10, 33, 1000])
def test_fractions_are_exact_to_one_group(num_groups: int) -> None:
    counts = Counter(split_of(assign_splits(sources(num_groups), val=0.15, test=0.2, seed=0)).values())
    assert counts.total() == num_groups
    assert abs(counts["val"] - 0.15 * num_groups) <= 1
    assert abs(counts["test"] - 0.2 * num_groups) <= 1
    assert counts["val"] >= 1
    assert counts["train"] >= 1


def test_the_order_of_the_sources_does_not_matter_but_the_seed_does() -> None:
    ordered = sources(50)
    shuffled = random.Random(1).sample(ordered, len(ordered))
    first = split_of(assign_splits(ordered, val=0.2, test=0.2, seed=5))
    assert first == split_of(assign_splits(shuffled, val=0.2, test=0.2, seed=5))
    assert first != split_of(assign_splits(ordered, val=0.2, test=0.2, seed=6))
    assert [source.path for source in assign_splits(shuffled, val=0.2, test=0.2, seed=5)] == [s.path for s in shuffled]


def test_every_split_has_every_kind_of_group() -> None:
    both = [*sources(5, "real", prefix="b"), *sources(5, "fake", prefix="b")]
    divided = assign_splits([*sources(60), *sources(6, "fake", prefix="f"), *both], val=0.1, test=0.1, seed=0)
    splits = split_of(divided)
    for kind in ("b", "f"):
        assert {split for group, split in splits.items() if group.startswith(kind)} == {"train", "val", "test"}


def test_given_splits_are_kept_and_counted() -> None:
    given = [Source(f"t{i}.mp4", "real", group=f"t{i}", split="test") for i in range(4)]
    tied = [Source("t0_again.mp4", "real", group="t0")]
    splits = split_of(assign_splits([*given, *tied, *sources(16)], val=0.1, test=0.2, seed=0))
    assert {splits[f"t{i}"] for i in range(4)} == {"test"}
    assert Counter(splits.values()) == {"train": 14, "test": 4, "val": 2}


def test_few_groups_or_zero_fractions_leave_groups_for_training() -> None:
    assert set(split_of(assign_splits(sources(1), val=0.5, test=0.4, seed=0)).values()) == {"train"}
    assert "train" in split_of(assign_splits(sources(3), val=0.5, test=0.45, seed=0)).values()
    assert set(split_of(assign_splits(sources(9), val=0, test=0, seed=0)).values()) == {"train"}


# Leaks


def sample(number: int, split: Split, **changes: Any) -> Sample:
    bits = np.random.default_rng(number).bytes(64)
    values: dict[str, Any] = {
        "crop": f"{number}.png",
        "source": f"{number}.mp4",
        "label": "real",
        "kind": "",
        "split": split,
        "group": f"group {number}",
        "source_sha256": f"{number:064x}",
        "crop_sha256": f"{number:064x}",
        "time_s": 0.0,
        "detection_score": 1.0,
        "box_xyxy": np.zeros(4, np.float32),
        "landmarks": np.zeros((5, 2), np.float32),
        "fingerprint": bits.hex(),
    }
    return Sample(**values | changes)


def flipped(digits: str, num_bits: int, *, seed: int = 0) -> str:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    bits[np.random.default_rng(seed).choice(len(bits), num_bits, replace=False)] ^= 1
    return np.packbits(bits).tobytes().hex()


def leaks(*samples: Sample) -> list[str]:
    return find_leaks(samples, unpack([each.fingerprint for each in samples]))


def test_disjoint_splits_do_not_leak() -> None:
    same_split = [sample(0, "train"), sample(1, "train", group="group 0", fingerprint=sample(0, "train").fingerprint)]
    assert leaks(*same_split, sample(2, "val"), sample(3, "test")) == []
    check_splits([*same_split, sample(2, "val")], Path("dataset"))


def test_a_group_a_source_or_a_crop_in_two_splits_is_a_leak() -> None:
    first = sample(0, "train")
    assert leaks(first, sample(1, "val", group="group 0")) == ["group in more than one split: 'group 0' (train, val)"]
    source = leaks(first, sample(1, "test", source_sha256=first.source_sha256))
    assert source == ["source file in more than one split: '0.mp4' (train, test)"]
    crop = leaks(first, sample(1, "test", crop_sha256=first.crop_sha256))
    assert crop == ["crop in more than one split: '0.png' (train, test)"]


def test_near_copies_in_two_splits_are_named() -> None:
    first = sample(0, "train")
    near = sample(1, "val", fingerprint=flipped(first.fingerprint, MAX_DISTANCE_BITS))
    far = sample(2, "val", fingerprint=flipped(first.fingerprint, MAX_DISTANCE_BITS + 1, seed=3))
    (clause,) = leaks(first, near, far)
    assert clause == "pair of nearly identical crops in more than one split: '0.png' (train) and '1.png' (val)"


def test_many_offenders_are_counted() -> None:
    pairs = [sample(i, split, group=f"g{i % 9}") for i, split in enumerate(["train"] * 9 + ["val"] * 9)]
    (clause,) = leaks(*pairs)
    assert clause.endswith("'g0' (train, val), 'g1' (train, val), 'g2' (train, val) and 6 more")
    with pytest.raises(DataError, match=r"dataset: the splits leak: group in .*one group or one split"):
        check_splits(pairs, Path("dataset"))


def test_missing_fingerprints_are_computed_from_the_crops(tmp_path: Path) -> None:
    for number, picture in enumerate((astronaut(), cv2.resize(astronaut(), (300, 300), interpolation=cv2.INTER_AREA))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    samples = [sample(0, "train", fingerprint=""), sample(1, "val", fingerprint="")]
    with pytest.raises(DataError, match="nearly identical crops"):
        check_splits(samples, tmp_path)
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1.png: not an image"):
        check_splits(samples, tmp_path)


# Near duplicates


def jpeg(picture: Picture, quality: int) -> Picture:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def distance(first: Picture, second: Picture) -> int:
    a, b = unpack([fingerprint(first), fingerprint(second)])
    return int(np.bitwise_count(a ^ b).sum())


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: jpeg(picture, 50),
        lambda picture: cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda picture: np.clip(picture * 1.05 + 6, 0, 255).astype(np.uint8),
    ],
    ids=["jpeg", "half", "brighter"],
)
@pytest.mark.parametrize("person", [astronaut, other_person])
def test_copies_are_near(change: Any, person: Any) -> None:
    assert distance(person(), change(person())) <= MAX_DISTANCE_BITS


def test_different_images_are_far() -> None:
    assert distance(astronaut(), other_person()) > 2 * MAX_DISTANCE_BITS
    assert distance(astronaut(), moved(astronaut(), 30, 10)) > MAX_DISTANCE_BITS


def test_near_duplicates_equal_an_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    originals = [rng.bytes(64).hex() for _ in range(40)]
    copies = [flipped(digits, 8 + i % 30, seed=i) for i, digits in enumerate(originals)]
    words = unpack([*originals, *copies])
    groups = np.arange(80) % 70  # ten originals share a group with a copy of another original
    expected = {
        (a, b)
        for a in range(80)
        for b in range(a + 1, 80)
        if np.bitwise_count(words[a] ^ words[b]).sum() <= MAX_DISTANCE_BITS and groups[a] != groups[b]
    }
    found = {
        (min(p), max(p)) for a, b in near_duplicates(words, groups) for p in zip(a.tolist(), b.tolist(), strict=True)
    }
    assert found == expected
    assert len(found) >= 20


@pytest.mark.shared
def test_portraits_of_different_people_are_far(shared_data: Path) -> None:
    """London's studio: the same light, background and pose for everyone, and some people twice."""
    paths = sorted((shared_data / "faces" / "london").glob("*.jpg"))[:100]
    words = unpack([fingerprint(cv2.imread(str(path))[..., ::-1].copy()) for path in paths])
    people = np.array([int(path.stem.split("_")[1]) for path in paths])
    assert len(set(people)) == 50
    assert not list(near_duplicates(words, people))
