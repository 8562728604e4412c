import multiprocessing
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from dfscan.detector.preprocess import Preprocessing, to_input
from dfscan.errors import DataError
from dfscan.forgery.names import FORGERY_KINDS
from dfscan.train.batches import Key, plan_epoch
from dfscan.train.dataset import Faces, FaceSet, _start_worker, load
from dfscan.train.settings import TrainSettings
from dfscan.train.validation import normalised
from tests.datasets import write_dataset, write_sample

SETTINGS = TrainSettings(forgeries="self-blended", input_size_px=64, resize_px=70, batch_size=8)
PLAIN = TrainSettings(input_size_px=64, resize_px=70, batch_size=8)


def face_set(folder: Path, settings: TrainSettings, *, is_training: bool = True, **made: object) -> FaceSet:
    return FaceSet(write_dataset(folder, **made), folder, settings, is_training=is_training)


def test_reals_come_with_a_fake_and_fakes_without(tmp_path: Path) -> None:
    faces = face_set(tmp_path, SETTINGS, with_fakes=True, num_train=4, num_val=1)
    assert faces.num_faces == [2] * 5 + [1] * 5
    batches = list(load(faces, [(Key(0, 0, 0), Key(0, 7, 0), Key(0, 1, 0))], num_workers=0, pin_memory=False))
    assert batches[0].pixels.shape == (5, 64, 64, 3)
    assert batches[0].is_fake.tolist() == [0, 1, 1, 0, 1]
    assert batches[0].index.tolist() == [0, 0, 7, 1, 1]


def test_without_forgeries_every_sample_is_one_face(tmp_path: Path) -> None:
    faces = face_set(tmp_path, PLAIN, with_fakes=True, num_train=2, num_val=1)
    assert faces.num_faces == [1] * 6
    (batch,) = load(faces, [tuple(Key(0, i, 0) for i in range(6))], num_workers=0, pin_memory=False)
    assert batch.is_fake.tolist() == [0, 0, 0, 1, 1, 1]


def test_workers_do_not_change_the_batches(tmp_path: Path) -> None:
    cv2.setNumThreads(2)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (900, 900))  # starts a thread pool that workers do not inherit
    faces = face_set(tmp_path, SETTINGS)
    batches = plan_epoch(faces.num_faces, epoch=1, seed=0, batch_size=8)
    alone = list(load(faces, batches, num_workers=0, pin_memory=False))
    helped = list(load(faces, batches, num_workers=2, pin_memory=False))
    assert len(alone) == len(helped) == len(batches)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.is_fake, b.is_fake)


def test_signals_to_all_processes_stop_no_worker(tmp_path: Path) -> None:
    """`timeout` and service managers signal the whole group; the main process must still be able to save its state."""
    faces = face_set(tmp_path, SETTINGS)
    batches = plan_epoch(faces.num_faces, epoch=0, seed=0, batch_size=2)
    loaded = load(faces, batches, num_workers=1, pin_memory=False)
    seen = [next(loaded)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len([*seen, *loaded]) == len(batches) > 5
    assert not worker.is_alive()


def test_views_change_with_epoch_and_repeat_in_training_only(tmp_path: Path) -> None:
    training = face_set(tmp_path, SETTINGS)
    seen = [training.views_of(Key(epoch, 0, view))[0].pixels for epoch, view in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert (seen[0] != seen[1]).any()
    assert (seen[0] != seen[2]).any()
    assert (seen[0] == seen[3]).all()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("content", "word"), [(b"no picture", "decoded"), (b"", "decoded"), (None, "cannot be read")])
def test_an_unreadable_crop_is_named_with_a_remedy(
    content: bytes | None, word: str, num_workers: int, tmp_path: Path
) -> None:
    faces = face_set(tmp_path, SETTINGS)
    crop = tmp_path / faces.samples[2].crop
    crop.unlink()
    if content is not None:
        crop.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(load(faces, [(Key(0, 1, 0), Key(0, 2, 0))], num_workers=num_workers, pin_memory=False))
    assert str(crop) in str(caught.value)
    assert word in str(caught.value)
    assert "dfscan prepare" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_normalisation_on_the_device_equals_that_of_a_scan() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    preprocessing = Preprocessing(input_size_px=40)
    faces = Faces(torch.from_numpy(pixels), torch.zeros(3), torch.arange(3), *torch.zeros(2, 3, dtype=torch.int64))
    made = normalised(faces, preprocessing, torch.device("cpu"))
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(made.numpy(), to_input(list(pixels), preprocessing), atol=1e-6)


def test_kinds_are_drawn_at_random_in_training_and_rotate_in_evaluation(tmp_path: Path) -> None:
    settings = TrainSettings(**{**SETTINGS.__dict__, "forgeries": "self-blended,swapped", "held_out": "warped"})
    training = face_set(tmp_path, settings)
    assert training.num_faces == [2] * 9
    drawn = [training.views_of(Key(epoch, 0, 0))[1].kind for epoch in range(40)]
    assert 8 < drawn.count("swapped") < 32
    assert set(drawn) == {"self-blended", "swapped"}
    held_out = face_set(tmp_path, settings, is_training=False)
    assert held_out.num_faces == [3] * 9
    kinds = [[view.kind for view in held_out.views_of(Key(0, index, 0))] for index in range(3)]
    assert kinds == [[None, "self-blended", "warped"], [None, "swapped", "warped"], [None, "self-blended", "warped"]]
    (batch,) = load(held_out, [(Key(0, 1, 0),)], num_workers=0, pin_memory=False)
    assert [FORGERY_KINDS[made - 1] if made else None for made in batch.made.tolist()] == kinds[1]


def test_all_frames_of_a_video_get_one_kind_of_fake_and_fakes_do_not_advance_the_rotation(tmp_path: Path) -> None:
    settings = TrainSettings(**{**SETTINGS.__dict__, "forgeries": "self-blended,warped"})
    plan = [
        ("a.mp4", "real"),
        ("x.mp4", "fake"),
        ("a.mp4", "real"),
        ("b.mp4", "real"),
        ("y.mp4", "fake"),
        ("c.mp4", "real"),
    ]
    samples = [write_sample(tmp_path, i, split="val", label=label, source=name) for i, (name, label) in enumerate(plan)]
    held_out = FaceSet(samples, tmp_path, settings, is_training=False)
    kinds = [[view.kind for view in held_out.views_of(Key(0, index, 0))][1:] for index in range(6)]
    assert kinds == [["self-blended"], [], ["self-blended"], ["warped"], [], ["self-blended"]]
    assert held_out.num_faces == [2, 1, 2, 2, 1, 2]


def test_a_held_out_kind_changes_no_other_face(tmp_path: Path) -> None:
    without = face_set(tmp_path, SETTINGS, is_training=False)
    more = TrainSettings(**{**SETTINGS.__dict__, "held_out": "swapped"})
    beside = face_set(tmp_path, more, is_training=False)
    for index in range(3):
        pairs = zip(without.views_of(Key(0, index, 0)), beside.views_of(Key(0, index, 0)), strict=False)
        assert all((a.pixels == b.pixels).all() for a, b in pairs)


def test_a_worker_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of this process stay
    num_threads = cv2.getNumThreads(), torch.get_num_threads()
    with threadpool_limits(2):
        _start_worker(0)
        pools = [pool["num_threads"] for pool in threadpool_info()]
        own = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(num_threads[0])
    torch.set_num_threads(num_threads[1])
    assert set(pools) == {1}
    assert own == (1, 1)
