from pathlib import Path

import numpy as np
import pytest
import torch

from dfscan.dataset.crops import read_crop
from dfscan.dataset.manifest import Sample
from dfscan.errors import OutputError
from dfscan.forgery import autoencoder as module
from dfscan.forgery.autoencoder import Autoencoder, reconstruct
from dfscan.forgery.donors import path_of
from dfscan.forgery.names import DESIGNS, Design
from tests.datasets import write_dataset

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENCODER_WIDTHS", (16, 24, 32))
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    monkeypatch.setattr(module, "AUTOENCODER_LEARNING_RATE", 5e-3)


def make(samples: list[Sample], folder: Path, *, num_steps: int = 2, seed: int = 0) -> Path:
    out = folder / "made"
    reconstruct(samples, folder, out, size_px=32, num_steps=num_steps, device=CPU, seed=seed, tell=print)
    return out


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_keeps_the_image_size(design: Design) -> None:
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 40, 24)
    assert Autoencoder(design)(pictures).shape == pictures.shape


def test_designs_leave_different_traces() -> None:
    """Given a grey image, an untrained network's output repeats with its upsampling, which reveals the design."""
    periods = {}
    for design in DESIGNS:
        torch.manual_seed(0)
        with torch.inference_mode():
            row = Autoencoder(design)(torch.full((1, 3, 96, 96), 0.4))[0, 0, 48, 24:72]
        periods[design] = float((row[1:] - row[:-1]).abs().mean())
    assert periods["transposed"] > 10 * periods["bilinear"]
    assert periods["shuffle"] > 10 * periods["nearest"]


def test_a_trained_autoencoder_reconstructs_its_input(tmp_path: Path) -> None:
    """Each reconstruction is far more similar to its own face than to any other."""
    samples = write_dataset(tmp_path, num_train=6, num_val=0)
    out = make(samples, tmp_path, num_steps=200)
    wanted = np.array([module._image(tmp_path, sample, 32) for sample in samples], float)
    for design in DESIGNS:
        reconstructed = np.array([read_crop(path_of(out, design, sample)) for sample in samples], float)
        errors = np.abs(reconstructed[:, None] - wanted).mean(axis=(2, 3, 4))
        assert (errors.argmin(axis=1) == np.arange(6)).all(), design
        others = errors[~np.eye(6, dtype=bool)]
        assert np.diag(errors).mean() < 0.7 * others.mean(), design


def test_only_real_faces_of_the_training_split_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = write_dataset(tmp_path, num_train=3, num_val=2, with_fakes=True)
    taught: list[int] = []
    trained = module._trained

    def noted(design: Design, pictures: np.ndarray, *rest: object) -> Autoencoder:
        taught.append(len(pictures))
        return trained(design, pictures, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_trained", noted)
    out = make(samples, tmp_path)
    assert taught == [3] * len(DESIGNS)
    for sample in samples:
        assert all(path_of(out, design, sample).exists() == (sample.label == "real") for design in DESIGNS)


def test_existing_reconstructions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = write_dataset(tmp_path, num_train=3, num_val=1)
    out = make(samples, tmp_path)
    path_of(out, "bilinear", samples[3]).unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    trained = module._trained
    made: list[Design] = []
    monkeypatch.setattr(module, "_trained", lambda design, *a, **k: (made.append(design), trained(design, *a, **k))[1])
    make(samples, tmp_path)
    assert made == ["bilinear"]
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(after) == 16
    assert all(after[path] == then for path, then in before.items() if "bilinear" not in path.parts)


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    pictures = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        samples = write_dataset(tmp_path / name, num_train=3, num_val=1)
        out = make(samples, tmp_path / name, seed=seed)
        pictures.append(path_of(out, "shuffle", samples[0]).read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path, num_train=2, num_val=0)
    (tmp_path / "made").write_text("a file")
    with pytest.raises(OutputError, match="--reconstructions"):
        make(samples, tmp_path)
