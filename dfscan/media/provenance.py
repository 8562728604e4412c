"""Read and validate the C2PA manifest of a file, offline. Used in the decoding child only.

A manifest is a signed statement on where a file comes from. It is read by the C2PA project's own library, which is
loaded before the sandbox closes and then works on the open file inside it. Manifests on servers are never fetched and
certificates are never looked up (OCSP). A missing manifest means nothing: most files have none, and it is easy to
remove. https://spec.c2pa.org/
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import chdir
from io import FileIO
from pathlib import Path
from typing import Any

from dfscan.types import DeclaredAi, Provenance, ProvenanceState

MAX_MANIFEST_TEXT = 300
"""Maximum number of characters kept of a text."""
MAX_ACTIONS = 20
PACKAGE = "c2pa"

OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
    "core": {"allowed_network_hosts": []},
}
"""Settings of the library; the second section also forbids requests of any other kind."""

_STATES: dict[str, ProvenanceState] = {"Invalid": "invalid", "Valid": "valid", "Trusted": "trusted"}
"""Our names for the library's states. ``Valid`` also covers signers that are not on the trust list."""
_UNTRUSTED = "signingCredential.untrusted"
_WHOLE = ("/trainedAlgorithmicMedia", "/trainedAlgorithmicData")
_PART = ("/compositeWithTrainedAlgorithmicMedia", "/compositeSynthetic")
"""Last parts of IPTC digital source types, https://cv.iptc.org/newscodes/digitalsourcetype/, and of C2PA's own."""
_NO_ASSET = ("Io:", "Other: asset could not be parsed")
"""Begin of errors about the file itself, which say nothing about a manifest."""
_REMOTE = "Remote: must fetch remote manifests from url"


class ManifestReader:
    """Reads manifests. Create it before the sandbox closes, because later imports and libraries are forbidden."""

    def __init__(self, trust_list: str) -> None:
        """Load the library.

        Args:
            trust_list: certificates of the authorities whose signers are trusted, in PEM; empty if nobody is trusted.
        """
        self._problem: str | None = None
        try:
            found = importlib.util.find_spec(PACKAGE)
            if found is None or found.origin is None:
                raise ModuleNotFoundError(f"no package {PACKAGE}")
            # The library looks for its shared part in the working directory first, which may hold untrusted files.
            with chdir(Path(found.origin).parent / "libs"):
                self._c2pa: Any = importlib.import_module(PACKAGE)
            trust = {"trust": {"trust_anchors": trust_list}} if trust_list else {}
            self._context = self._c2pa.Context.from_dict(OFFLINE | trust)
        except Exception as error:  # any error of a foreign library; no file may fail because of it
            self._problem = f"the C2PA library cannot be loaded ({type(error).__name__}: {error})"

    def read(self, file: FileIO, check: Callable[[], None]) -> Provenance:
        """Read and validate the manifest of a file.

        Args:
            file: open for reading; its position stays.
            check: called for every read; raises an exception to stop.
        """
        if self._problem:
            return unreadable(self._problem)
        source = _Source(file, check)
        errors = self._c2pa.C2paError
        try:
            with self._c2pa.Reader(None, source, context=self._context) as reader:
                return _found(json.loads(reader.json()))
        except errors as error:
            if source.failure:
                return unreadable(str(source.failure))
            if isinstance(error, (errors.ManifestNotFound, errors.NotSupported)):
                return Provenance("unknown")
            text = str(error)
            if text.startswith(_REMOTE):
                url = text.removeprefix(_REMOTE).strip()
                problem = f"the manifest is stored elsewhere and was not fetched: {url}"
                return Provenance("present", problem=_clean(problem))
            if text.startswith(_NO_ASSET):
                return unreadable(f"the file is damaged ({text})")
            return Provenance("invalid", problem=_clean(text))
        except MemoryError:
            return unreadable("the manifest needs more memory than --max-memory allows")
        except Exception as error:  # as above
            return unreadable(f"unexpected {type(error).__name__}: {error}")


def unreadable(problem: str) -> Provenance:
    """Return the provenance of a file that may have a manifest, but in which none could be read."""
    return Provenance("unreadable", problem=_clean(problem))


def _found(store: dict[str, Any]) -> Provenance:
    """Return what a manifest store says; `store` is the library's JSON."""
    manifests = store.get("manifests") or {}
    active = manifests.get(store.get("active_manifest")) or {}
    failures = ((store.get("validation_results") or {}).get("activeManifest") or {}).get("failure") or []
    codes = dict.fromkeys(str(each.get("code")) for each in failures)
    state = _STATES[store["validation_state"]]
    signature = active.get("signature_info") or {}
    signers = dict.fromkeys(str(signature[key]) for key in ("common_name", "issuer") if signature.get(key))
    programs = active.get("claim_generator_info") or []
    generators = [" ".join(str(each[key]) for key in ("name", "version") if each.get(key)) for each in programs]
    generator = ", ".join(filter(None, generators)) or str(active.get("claim_generator") or "")
    actions = dict.fromkeys(
        _clean(str(each.get("action")))
        for assertion in active.get("assertions") or []
        if str(assertion.get("label")).startswith("c2pa.actions")
        for each in (assertion.get("data") or {}).get("actions") or []
    )
    declared_ai: DeclaredAi | None = None
    told = (text for manifest in manifests.values() for text in _texts(manifest.get("assertions")))
    if any(text.endswith(_WHOLE) for text in _texts(active.get("assertions"))):
        declared_ai = "generated"
    elif any(text.endswith((*_WHOLE, *_PART)) for text in told):  # the content has ingredients of this kind
        declared_ai = "partly generated"
    return Provenance(
        state,
        signer=_clean(", ".join(signers)) or None,
        generator=_clean(generator) or None,
        actions=tuple(actions)[:MAX_ACTIONS],
        declared_ai=declared_ai,
        problem=_clean(", ".join(code for code in codes if code != _UNTRUSTED)) or None,
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(each)


def _clean(text: str) -> str:
    return text.strip()[:MAX_MANIFEST_TEXT]


class _Source:
    """The file as the library wants it: with its own position, so that FFmpeg's stays."""

    def __init__(self, file: FileIO, check: Callable[[], None]) -> None:
        self._file = file
        self._check = check
        self._position = 0
        self.failure: Exception | None = None
        """Why a read failed; the library reports only that it did."""

    def readinto(self, buffer: memoryview) -> int:
        try:
            self._check()
            num_read = os.preadv(self._file.fileno(), [buffer], self._position)
        except Exception as error:
            self.failure = error
            raise
        self._position += num_read
        return num_read

    def read(self, size: int = -1) -> bytes:
        data = os.pread(self._file.fileno(), max(0, size), self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._file.fileno()).st_size}.get(whence, 0)
        if start + offset < 0:
            raise ValueError("before the start of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes) -> int:
        raise OSError("read only")

    def flush(self) -> None:
        pass
