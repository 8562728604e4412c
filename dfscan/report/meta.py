"""The metadata file beside a report: clock times, host, command line and versions, none of which are in the report."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dfscan.files import write_bytes
from dfscan.report.schema import REPORT_VERSION
from dfscan.text import printable
from dfscan.version import __version__

_DISTRIBUTIONS = {
    "av": "av",
    "numpy": "numpy",
    "opencv": "opencv-python-headless",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "facenet-pytorch": "facenet-pytorch",
    "c2pa": "c2pa-python",
    "pyarrow": "pyarrow",
    "ray": "ray",
}


OUTPUT_KINDS = ("reports", "faces", "page", "spans", "heat_maps", "ledgers")
"""Kinds of files that belong to a report, in `outputs` of the metadata."""


def meta_path(report_path: str | os.PathLike[str]) -> Path:
    """Return the path of the metadata file beside a report."""
    return Path(f"{os.fspath(report_path)}.meta.json")


def write_meta(report_path: str | os.PathLike[str], document: dict[str, Any]) -> Path:
    """Write the document as JSON beside the report, atomically replacing an older one; return its path.

    The path for ``report.csv`` is ``report.csv.meta.json``. Text is made printable. Values that JSON cannot represent
    are converted with ``str()``.

    Raises:
        OutputError: the file cannot be written.
        ValueError: the document contains NaN or an infinity.
    """
    path = meta_path(report_path)
    versioned = {"report_version": REPORT_VERSION, **document}
    text = json.dumps(_printable_json(versioned), ensure_ascii=False, allow_nan=False, indent=2)
    write_bytes(path, f"{text}\n".encode())
    return path


def related(report_path: str, named: Mapping[str, Iterable[str | os.PathLike[str] | None]]) -> dict[str, list[str]]:
    """Return what belongs to a report, relative to its folder, so that all of it can be moved together.

    Args:
        report_path: the report.
        named: paths for each of `OUTPUT_KINDS`; None is left out.
    """
    folder = os.path.dirname(os.path.abspath(report_path))
    return {
        kind: [os.path.relpath(path, folder) for path in dict.fromkeys(named.get(kind, ())) if path is not None]
        for kind in OUTPUT_KINDS
    }


def versions() -> dict[str, str]:
    """Return the versions of dfscan, Python, the platform and the libraries, without importing the libraries.

    The versions of FFmpeg are included only if PyAV has been imported.
    """
    found = {"dfscan": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if av := sys.modules.get("av"):
        found["ffmpeg"] = av.ffmpeg_version_info
        found |= {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return found


def _printable_json(value: Any) -> Any:
    """Return the value with all text in it made printable, including keys."""
    if isinstance(value, dict):
        return {printable(str(key)): _printable_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable_json(item) for item in value]
    return value if value is None or isinstance(value, (int, float)) else printable(str(value))
