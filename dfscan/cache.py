"""Cache folder for exported graphs and the results of self-tests."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import logging
import os
import secrets
from pathlib import Path

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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see either the complete file or none, even with concurrent writers.

    Raises:
        OSError: the file cannot be written; no temporary file is left behind.
    """
    temporary = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    folder = cache_dir()
    try:
        if folder is None:
            raise OSError("no home directory and no XDG_CACHE_HOME")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _name(key, data), data)
    except OSError as error:
        log.warning(
            "the ONNX graph cannot be cached (%s) and will be exported again each time: "
            "set XDG_CACHE_HOME to a writable folder",
            error,
        )


def package_version(name: str) -> str:
    """Return the version of an installed library; import it only if it has no metadata."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as onnxruntime-gpu, which is imported as onnxruntime
        return str(importlib.import_module(name).__version__)
