"""The folder in which a checkpoint's exported graph and its passed self-tests are remembered."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


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
