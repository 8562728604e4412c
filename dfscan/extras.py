"""The optional parts of the installation: which packages they need, and how to install them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from dfscan.errors import MissingExtraError

Extra = Literal["pandas", "provenance", "ray", "train"]

PACKAGES: dict[Extra, dict[str, str]] = {
    "pandas": {"pandas": "pandas"},
    "provenance": {"c2pa": "c2pa-python"},
    "ray": {"ray": "ray"},
    "train": {
        "albumentations": "albumentations",
        "matplotlib": "matplotlib",
        "pandas": "pandas",
        "scipy": "scipy",
        "threadpoolctl": "threadpoolctl",
        "sklearn": "scikit-learn",
        "tqdm": "tqdm",
    },
}
"""For each extra of pyproject.toml, the name that each of its packages is imported by, and the name of the package."""


def is_installed(extra: Extra) -> bool:
    """Return whether the packages of an extra are installed, without importing them."""
    return not _missing(extra)


def require(extra: Extra, subject: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: the extra.
        subject: what needs it, as the start of the message, such as ``dfscan train``.

    Raises:
        MissingExtraError: some are not installed; the message names them and the command that installs them.
    """
    if missing := _missing(extra):
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"{subject} needs {', '.join(missing)}, which {verb} not installed: pip install 'dfscan[{extra}]'"
        )


def _missing(extra: Extra) -> list[str]:
    return [package for module, package in PACKAGES[extra].items() if find_spec(module) is None]
