"""Batch video forensics: find videos with manipulated faces and report how certain each verdict is.

Scan videos from Python::

    import dfscan

    scanner = dfscan.Scanner()
    for result in scanner.scan(["a.mp4", "folder"]):
        print(result.path, result.verdict.label, result.verdict.score)

The public names are imported on first use, so that ``import dfscan`` stays fast.
"""

from typing import TYPE_CHECKING

from dfscan.version import __version__

if TYPE_CHECKING:
    from dfscan.api import Scanner, scan_video, to_frame
    from dfscan.errors import CheckpointError, ConfigError, DfscanError, MissingExtraError
    from dfscan.types import Face, FaceScore, Reason, Track, Verdict, VideoInfo, VideoResult

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DfscanError",
    "Face",
    "FaceScore",
    "MissingExtraError",
    "Reason",
    "Scanner",
    "Track",
    "Verdict",
    "VideoInfo",
    "VideoResult",
    "__version__",
    "scan_video",
    "to_frame",
]

_MODULES = {"Scanner": "api", "scan_video": "api", "to_frame": "api"}
_MODULES |= dict.fromkeys(["CheckpointError", "ConfigError", "DfscanError", "MissingExtraError"], "errors")
_MODULES |= dict.fromkeys(["Face", "FaceScore", "Reason", "Track", "Verdict", "VideoInfo", "VideoResult"], "types")


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"dfscan.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
