"""Decide whether C2PA manifests are read, and whose signatures are trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import ssl
from pathlib import Path

from dfscan.config import ScanSettings
from dfscan.errors import ConfigError
from dfscan.extras import is_installed, require

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def with_provenance(settings: ScanSettings) -> ScanSettings:
    """Complete the settings: unless they say so, manifests are read if the extra ``provenance`` is installed.

    Raises:
        ConfigError: the settings contradict each other.
        MissingExtraError: they need the extra, which is not installed.
    """
    if settings.trust_list and settings.provenance is False:
        raise ConfigError("--trust-list and --no-provenance exclude each other: remove one of them")
    if settings.provenance or settings.trust_list:
        require("provenance", "--provenance" if settings.provenance else "--trust-list")
    reads = is_installed("provenance") if settings.provenance is None else settings.provenance
    return dataclasses.replace(settings, provenance=reads)


def read_trust_list(path: Path | None) -> str:
    """Return the certificates in a file, in PEM; empty without a file.

    Raises:
        ConfigError: the file cannot be read, or holds no certificates.
    """
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check --trust-list") from error
    certificates = "\n".join(_CERTIFICATE.findall(text))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: holds no usable certificates in PEM format, which begin with -----BEGIN CERTIFICATE-----; check "
            "--trust-list"
        ) from error
    return certificates


def trust_list_sha256(path: Path | None) -> str | None:
    """Return the lower-case hex sha256 of the certificates in a file, or None without a file.

    Raises:
        ConfigError: as `read_trust_list`.
    """
    return hashlib.sha256(read_trust_list(path).encode()).hexdigest() if path else None
