from pathlib import Path

import numpy as np
import pytest

from dfscan.dataset.crops import encode_crop
from dfscan.dataset.manifest import Sample, Split
from dfscan.errors import ConfigError, DataError
from dfscan.forgery.donors import Donors, check_swaps, path_of
from dfscan.forgery.names import DESIGNS
from dfscan.train.run import reconstructions_in
from dfscan.train.settings import TrainSettings
from tests.datasets import face_picture, write_dataset, write_sample


def test_the_donor_is_from_another_group(tmp_path: Path) -> None:
    samples = [write_sample(tmp_path, i, split="train", group="one" if i < 6 else "two") for i in range(7)]
    donors = Donors(samples, tmp_path, None)
    for seed in range(20):
        other = donors.of(seed % 6, donors.read(0), "swapped", np.random.default_rng(seed))
        assert other is not None
        assert np.array_equal(other.pixels, face_picture(6))


def test_fakes_are_never_donors(tmp_path: Path) -> None:
    samples = [write_sample(tmp_path, i, split="train", label="real" if i < 2 else "fake") for i in range(8)]
    donors = Donors(samples, tmp_path, None)
    for seed in range(10):
        other = donors.of(0, donors.read(0), "swapped", np.random.default_rng(seed))
        assert other is not None
        assert np.array_equal(other.pixels, face_picture(1))


def test_the_most_similar_candidate_is_used(tmp_path: Path) -> None:
    """One person's landmarks match the face's up to translation, scale and rotation; the others' are distorted."""
    samples = write_dataset(tmp_path, num_train=6, num_val=1)
    turn = np.array([[0.9, -0.2], [0.2, 0.9]]) * 1.4
    like = _with_landmarks(samples[5], samples[0].landmarks @ turn.T + 7)
    others = [_with_landmarks(sample, sample.landmarks + np.eye(5, 2) * 15) for sample in samples[1:5]]
    donors = Donors([samples[0], *others, like], tmp_path, None)
    found = [donors.of(0, donors.read(0), "swapped", np.random.default_rng(seed)) for seed in range(30)]
    taken = [np.array_equal(each.pixels, face_picture(5)) for each in found if each]
    assert np.mean(taken) > 0.6  # 8 draws from 6 people miss it a quarter of the time


def _with_landmarks(sample: Sample, landmarks: np.ndarray) -> Sample:
    values = {name: getattr(sample, name) for name in Sample.__slots__}
    return Sample(**{**values, "landmarks": landmarks.astype(np.float32)})


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_with_only_one_person_is_refused(split: Split, tmp_path: Path) -> None:
    samples = [write_sample(tmp_path, i, split=each) for i, each in enumerate(["train", "train", "val", "val"])]
    check_swaps(samples, tmp_path)
    alone = [sample for sample in samples if sample.split != split]
    alone += [write_sample(tmp_path, 9 + i, split=split, group="one") for i in range(2)]
    alone.append(write_sample(tmp_path, 12, split=split, label="fake"))
    with pytest.raises(DataError, match=f"split '{split}'.*--held-out") as caught:
        check_swaps(alone, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_runs_share_reconstructions_only_if_theirs_would_be_equal(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path, num_train=3, num_val=2)
    settings = TrainSettings(forgeries="reconstructed", out=tmp_path / "run")

    def folder(samples: list[Sample] = samples, **changes: object) -> Path | None:
        return reconstructions_in(samples, TrainSettings(**{**settings.__dict__, **changes}))

    here = folder()
    assert here is not None
    assert here.parent == tmp_path / "run" / "reconstructed"
    assert folder(reconstructions=tmp_path / "shared") == tmp_path / "shared" / here.name
    assert folder(forgeries="warped", held_out="reconstructed", epochs=2) == here
    assert folder(forgeries="warped") is None
    other_split = [write_sample(tmp_path, i, split="val" if i in (0, 4) else "train") for i in range(5)]
    others = [folder(other_split), folder(seed=1), folder(reconstruction_px=128), folder(reconstruction_steps=9)]
    assert len({here, *others}) == 5
    assert folder(samples[::-1]) == here
    with pytest.raises(ConfigError, match="--reconstructions"):
        folder(out=None)


def test_a_reconstruction_is_found_by_its_crop_and_resized_to_it(tmp_path: Path) -> None:
    (sample,) = write_dataset(tmp_path, num_train=1, num_val=0)
    for level, design in enumerate(DESIGNS):
        path = path_of(tmp_path / "made", design, sample)
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_crop(np.full((64, 64, 3), 10 * level, np.uint8), "png"))
    donors = Donors([sample], tmp_path, tmp_path / "made")
    face = donors.read(0)
    levels = set()
    for seed in range(30):
        reconstructed = donors.of(0, face, "reconstructed", np.random.default_rng(seed))
        assert reconstructed is not None
        assert reconstructed.pixels.shape == face.pixels.shape
        assert np.array_equal(reconstructed.landmarks, face.landmarks)
        levels.add(int(reconstructed.pixels[0, 0, 0]))
    assert levels == {0, 10, 20, 30}


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_missing_or_damaged_reconstruction_is_named(content: bytes | None, tmp_path: Path) -> None:
    (sample,) = write_dataset(tmp_path, num_train=1, num_val=0)
    for design in DESIGNS:
        path = path_of(tmp_path / "made", design, sample)
        path.parent.mkdir(parents=True)
        if content is not None:
            path.write_bytes(content)
    donors = Donors([sample], tmp_path, tmp_path / "made")
    with pytest.raises(DataError, match=rf"{sample.crop_sha256[:32]}\.png .*delete it .*run again") as caught:
        donors.of(0, donors.read(0), "reconstructed", np.random.default_rng(0))
    assert "manifest" not in str(caught.value)


def test_other_kinds_need_no_donor(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path, num_train=1, num_val=0)
    donors = Donors(samples, tmp_path, None)
    assert donors.of(0, donors.read(0), "warped", np.random.default_rng(0)) is None
    assert donors.of(0, donors.read(0), "self-blended", np.random.default_rng(0)) is None
