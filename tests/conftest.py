"""Shared fixtures, and markers that skip tests with a reason."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dfscan.detector.checkpoint import Checkpoint

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {"slow": None if config.getoption("--slow") else "needs --slow"}
    skips["shared"] = None if SHARED_DATA.is_dir() else "needs the media in ../shared/data"
    if any("cuda" in item.keywords for item in items):
        import torch

        skips["cuda"] = None if torch.cuda.is_available() else "needs a CUDA device"
    for item in items:
        for marker, reason in skips.items():
            if marker in item.keywords and reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def shared_data() -> Path:
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Share one cache among all tests, so that each network is exported only once; the user's cache is not touched."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    folder /= "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def export_in_child() -> Iterator[Callable[["Checkpoint", Path], None]]:
    """Export classifiers in the process of the tests, which imports PyTorch only once; yield the product's function."""
    from dfscan.detector import export

    def export_here(checkpoint: "Checkpoint", path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export.write_graph(checkpoint, path)

    with pytest.MonkeyPatch.context() as patch:
        in_child = export._export_in_child
        patch.setattr(export, "_export_in_child", export_here)
        yield in_child


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network with random weights, which runs every step quickly."""
    from dfscan.detector.checkpoint import create_untrained

    path = tmp_path_factory.mktemp("checkpoints") / "untrained.safetensors"
    create_untrained(path, seed=3, architecture="test_efficientnet", input_size_px=96)
    return path


@pytest.fixture(scope="session")
def trained(untrained: Path) -> Path:
    """A checkpoint with the same weights and thresholds, as if it had been calibrated."""
    from dfscan.detector.card import Calibration
    from dfscan.detector.checkpoint import load_network, read_card, save_checkpoint

    checkpoint = read_card(untrained)
    calibration = Calibration(trained=True, temperature=2.0, fake_threshold=0.9, real_threshold=0.1)
    path = untrained.with_name("trained.safetensors")
    card = checkpoint.card.model_copy(update={"calibration": calibration, "name": "trained"})
    save_checkpoint(path, load_network(checkpoint), card)
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos of one person, of two people and of nobody, a text file named like a video, and notes."""
    from tests.pictures import astronaut, moved, nobody, other_person, two_people
    from tests.videos import write_video

    folder = tmp_path_factory.mktemp("clips")
    pair = two_people(right=other_person())
    write_video(folder / "one.mp4", [moved(astronaut(), 6 * i, 2 * i) for i in range(10)], fps=10)
    write_video(folder / "two.mkv", [moved(pair, 4 * i) for i in range(10)], fps=10)
    write_video(folder / "nobody.mp4", [nobody(width_px=320, height_px=240)] * 10, fps=10)
    (folder / "text.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("skipped")
    return folder
