"""Markers that skip with a reason."""

from pathlib import Path

import pytest

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
