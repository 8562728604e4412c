"""Cache folder for exported graphs and the results of self-tests."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import logging
import os
from pathlib import Path

from dfscan.errors import OutputError
from dfscan.files import make_folder, write_bytes

log = logging.getLogger("dfscan")


def cache_dir() -> Path | None:
    """Return ``$XDG_CACHE_HOME/dfscan`` or ``~/.cache/dfscan``; None if the result is not an absolute path.

    The folder may not exist or may not be writable; callers must handle both.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and a user unknown to the system
        return None
    return base / "dfscan" if base.is_absolute() else None


def recall(key: str) -> bytes | None:
    """Return the data stored under `key`; None if it is absent or damaged.

    The file name ends in the sha256 of the content, which reveals damage.
    """
    if (folder := cache_dir()) is None:
        return None
    for path in sorted(folder.glob(f"{key}-*.onnx")):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if path.name == _name(key, data):
            return data
        log.warning("the cached graph %s is damaged and will be exported again", path)
    return None


def _name(key: str, data: bytes) -> str:
    return f"{key}-{hashlib.sha256(data).hexdigest()}.onnx"


def remember(key: str, data: bytes) -> None:
    """Store data under `key`; log a warning if that fails."""
    folder, remedy = cache_dir(), "Set XDG_CACHE_HOME to a writable folder."
    try:
        if folder is None:
            raise OutputError(f"there is no home directory. {remedy}")
        make_folder(folder, remedy=remedy)
        write_bytes(folder / _name(key, data), data, remedy=remedy)
    except OutputError as error:
        log.warning("the ONNX graph is not cached and will be exported again each time: %s", error)


def package_version(name: str) -> str:
    """Return the version of an installed library; import it only if it has no metadata."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as onnxruntime-gpu, which is imported as onnxruntime
        return str(importlib.import_module(name).__version__)
