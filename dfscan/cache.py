"""The folder in which exported graphs and passed self-tests are remembered."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import logging
import os
import secrets
from pathlib import Path

_log = logging.getLogger("dfscan")


def cache_dir() -> Path | None:
    """``$XDG_CACHE_HOME/dfscan`` or ``~/.cache/dfscan``; None where neither is an absolute path.

    The folder need not exist, nor be writable: whoever uses it must do without.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and a user that the system does not know
        return None
    return base / "dfscan" if base.is_absolute() else None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that others see all of it or nothing, whatever happens and whoever else writes it.

    Raises:
        OSError: if it cannot be written; nothing is left behind.
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
    """What was remembered under this key, unless it is damaged: a file's name ends in its own sha256."""
    if (folder := cache_dir()) is None:
        return None
    for path in sorted(folder.glob(f"{key}-*.onnx")):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if path.name == _name(key, data):
            return data
        _log.warning("the cached graph %s is damaged and will be exported anew", path)
    return None


def _name(key: str, data: bytes) -> str:
    return f"{key}-{hashlib.sha256(data).hexdigest()}.onnx"


def remember(key: str, data: bytes) -> None:
    """Keep data under a key, or say why that cannot be."""
    folder = cache_dir()
    try:
        if folder is None:
            raise OSError("no home directory and no XDG_CACHE_HOME")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _name(key, data), data)
    except OSError as error:
        _log.warning(
            "the ONNX graph cannot be cached (%s) and will be exported anew each time: "
            "set XDG_CACHE_HOME to a writable folder",
            error,
        )


def package_version(name: str) -> str:
    """Version of an installed library, without importing it where its metadata tells."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as onnxruntime-gpu, which is imported as onnxruntime
        return str(importlib.import_module(name).__version__)
