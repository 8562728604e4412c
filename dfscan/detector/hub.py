"""Checkpoints on the Hugging Face Hub, with names like ``hf://owner/name[/FILE.safetensors][@REVISION]``.

The first use of a name finds the commit of its revision, and downloads the file into the cache of `huggingface_hub`. A
record in the cache folder of dfscan then pins the name to this commit and to the SHA-256 digest that the Hub states.
Later uses read the file without the network. Credentials are those of `huggingface_hub`, such as ``HF_TOKEN``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NoReturn

from dfscan.cache import cache_dir
from dfscan.errors import CheckpointError, OutputError
from dfscan.files import make_folder, write_bytes

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

SCHEME = "hf://"
SUFFIX = ".safetensors"
_NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")

log = logging.getLogger("dfscan")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A downloaded file of a repository on the Hub."""

    repository: str
    """Owner and name, separated by a slash."""
    file: str
    """Path within the repository."""
    commit: str
    """Full hash of the commit."""
    sha256: str
    """Lower-case hex digest of the file, as stated by the Hub. The caller must verify it."""
    path: str
    """Path of the downloaded file."""

    @property
    def source(self) -> str:
        """The name that always stands for this file."""
        return f"{SCHEME}{self.repository}/{self.file}@{self.commit}"


def is_hub_name(name: object) -> bool:
    """Return True for a name of a checkpoint on the Hub; a `Path` is never one."""
    return isinstance(name, str) and name.startswith(SCHEME)


def fetch(name: str) -> HubFile:
    """Return the file of a name on the Hub; use the network only if it is not in the cache.

    Raises:
        CheckpointError: the name is malformed, does not stand for exactly one file, or cannot be downloaded.
    """
    parts = _NAME.fullmatch(name)
    if parts is None or not (parts["file"] or SUFFIX).endswith(SUFFIX):
        _refuse(
            name, "it is not the name of a checkpoint on the Hub", "write hf://owner/name[/FILE.safetensors][@REVISION]"
        )
    folder = cache_dir()
    key = hashlib.sha256(json.dumps([_endpoint(), name]).encode()).hexdigest()[:32]
    record = folder / f"hub-{key}.json" if folder else None
    try:
        known = HubFile(**json.loads(record.read_bytes())) if record else None
        if known and not _COMMIT.fullmatch(known.commit):
            known = None
    except (OSError, ValueError, TypeError):  # the name is then resolved again
        known = None
    if known and os.path.isfile(known.path):
        return known
    if known:  # deleted from the cache
        found = _download(name, known.repository, known.file, known.commit)
        if found.sha256 != known.sha256:
            _refuse(name, f"its commit {known.commit} no longer has the same content", "name another revision")
    else:
        found = _download(name, parts["repository"], parts["file"], parts["revision"])
    try:
        if record is None:
            raise OutputError("there is no home directory. Set XDG_CACHE_HOME to a writable folder.")
        make_folder(record.parent)
        write_bytes(record, json.dumps(asdict(found)).encode())
    except OutputError as error:
        log.warning("the revision of %s is not pinned, so the next use needs the network: %s", found.source, error)
    return found


def _refuse(name: str, cause: str, remedy: str, *, origin: BaseException | None = None) -> NoReturn:
    raise CheckpointError(f"checkpoint {name}: {cause}; {remedy}") from origin


def _endpoint() -> str | None:
    """Return the address of the Hub in the environment, or None for the public one."""
    return os.environ.get("HF_ENDPOINT") or None


def _download(name: str, repository: str, file: str | None, revision: str | None) -> HubFile:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    token = "give a token with access in HF_TOKEN"
    try:
        info = huggingface_hub.HfApi(endpoint=_endpoint()).model_info(
            repository, revision=revision, files_metadata=True
        )
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):  # huggingface_hub makes a path in its cache from it
            _refuse(name, "the Hub states no commit", "check HF_ENDPOINT")
        file, sha256 = _choose(name, info, file)
        log.warning("downloading %s%s/%s@%s; needed only once", SCHEME, repository, file, commit)
        path = huggingface_hub.hf_hub_download(repository, file, revision=commit, endpoint=_endpoint())
    except errors.GatedRepoError as error:
        remedy = f"accept its conditions on its page, and {token}"
        _refuse(name, "the access to this repository is restricted", remedy, origin=error)
    except errors.RepositoryNotFoundError as error:
        _refuse(name, "there is no such repository, or it is private", f"check the name, or {token}", origin=error)
    except errors.RevisionNotFoundError as error:
        _refuse(name, f"the repository has no revision {revision!r}", "name a branch, tag or commit", origin=error)
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = token if status in (401, 403) else "try again later"
        _refuse(name, f"the Hub refuses the request (HTTP status {status})", remedy, origin=error)
    except CheckpointError:
        raise
    except Exception as error:  # each version of huggingface_hub has other classes for a lost connection
        message = str(error).strip().partition("\n")[0] or type(error).__name__
        cause = re.sub(r"\?\S*", "", message)  # queries of signed addresses are credentials
        remedy = "check the network, HF_ENDPOINT, HF_HUB_OFFLINE, and the free space of the cache"
        _refuse(name, f"it is not in the cache and cannot be downloaded ({cause})", remedy, origin=error)
    return HubFile(repository, file, commit, sha256, os.path.abspath(path))


def _choose(name: str, info: ModelInfo, file: str | None) -> tuple[str, str]:
    """Return the file of a repository and its SHA-256 digest."""
    siblings = [each for each in info.siblings or [] if not {"", ".", ".."} & set(each.rfilename.split("/"))]
    digests = {each.rfilename: each.lfs and each.lfs.sha256 for each in siblings}
    found = sorted(each for each in digests if each.endswith(SUFFIX))
    if not found:
        _refuse(name, "the repository has no .safetensors file", "name another repository or revision")
    if file is None and len(found) > 1:
        bare, _, revision = name.partition("@")
        form = f"{bare}/FILE{f'@{revision}' if revision else ''}"
        _refuse(name, f"the repository has several checkpoints: {', '.join(found)}", f"write {form}")
    file = file or found[0]
    if file not in digests:
        _refuse(name, f"the repository has no {file}; it has {', '.join(found)}", "name one of them")
    if not (sha256 := digests[file]):
        _refuse(name, f"the Hub states no sha256 of {file}", "store it with Git LFS, or download it yourself")
    return file, sha256
