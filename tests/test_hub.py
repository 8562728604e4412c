"""Checkpoints on the Hugging Face Hub: a server on loopback answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import dfscan
from dfscan.detector.checkpoint import read_card
from dfscan.detector.hub import fetch, is_hub_name
from dfscan.errors import CheckpointError
from tests.hub import Hub, Repository
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings

NAME = "hf://lab/detector"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surroundings: None) -> Iterator[Hub]:
    """A Hub with a new address, under which nothing is recorded, and an empty cache of downloads."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def repository(hub: Hub, untrained: Path) -> Repository:
    hub.repositories["lab/detector"] = Repository({"README.md": b"notes", "b4.safetensors": untrained.read_bytes()})
    return hub.repositories["lab/detector"]


def test_a_checkpoint_is_downloaded_once(hub: Hub, repository: Repository, untrained: Path) -> None:
    first = read_card(NAME)
    assert first.sha256 == hashlib.sha256(untrained.read_bytes()).hexdigest()
    assert first.source == f"hf://lab/detector/b4.safetensors@{repository.commit}"
    assert first.label == f"untrained-3@{first.sha256[:12]}"
    num_requests = len(hub.requests)
    assert num_requests
    assert read_card(NAME) == first
    assert len(hub.requests) == num_requests
    hub.close()
    assert read_card(NAME) == first, "without a network"


def test_a_name_keeps_its_commit(hub: Hub, repository: Repository) -> None:
    """Even if the branch has moved on, and the cache was emptied."""
    first, old = fetch(NAME), repository.commit
    assert fetch(f"{NAME}@{old}").commit == old
    os.remove(os.path.realpath(first.path))
    assert fetch(NAME) == first
    repository.commit, repository.files["b4.safetensors"] = "d" * 40, b"newer"
    assert fetch(NAME) == first
    assert fetch(f"{NAME}@main").commit == "d" * 40, "another name, resolved for the first time"
    os.remove(os.path.realpath(first.path))
    repository.commit = old
    with pytest.raises(CheckpointError, match="no longer has the same content"):
        fetch(NAME)


def test_a_file_and_a_revision_can_be_named(hub: Hub, repository: Repository, untrained: Path) -> None:
    repository.files["small/b0.safetensors"] = untrained.read_bytes()
    repository.revisions.add("refs/pr/1")
    found = fetch(f"{NAME}/small/b0.safetensors@{repository.commit}")
    assert (found.file, found.commit) == ("small/b0.safetensors", repository.commit)
    with pytest.raises(
        CheckpointError,
        match=r"several checkpoints: b4\.safetensors, small/b0\.safetensors; write hf://lab/detector/FILE@main$",
    ):
        fetch(f"{NAME}@main")
    with pytest.raises(CheckpointError, match=r"has no b1\.safetensors; it has b4\.safetensors, small/b0\.safetensors"):
        fetch(f"{NAME}/b1.safetensors")


@pytest.mark.parametrize("name", ["hf://", "hf://lab", "hf://lab/", "hf://lab/d/weights.bin", "hf://a b/c", f"{NAME}@"])
def test_a_malformed_name_is_refused(name: str, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"write hf://owner/name\[/FILE\.safetensors\]\[@REVISION\]"):
        read_card(name)
    assert hub.requests == []


def test_a_path_is_not_a_name() -> None:
    assert is_hub_name(NAME)
    assert not is_hub_name(Path(NAME))


@pytest.mark.parametrize(
    ("denied", "message"),
    [
        ((403, "GatedRepo"), "access to this repository is restricted; accept its conditions on its page"),
        ((401, "RepoNotFound"), "no such repository, or it is private; check the name, or give a token"),
        ((403, "Forbidden"), r"refuses the request \(HTTP status 403\); give a token with access in HF_TOKEN"),
        ((418, "Teapot"), r"refuses the request \(HTTP status 418\); try again later"),
    ],
)
def test_a_denied_access_is_explained(
    denied: tuple[int, str], message: str, repository: Repository, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.denied = denied
    with pytest.raises(CheckpointError, match=f"^checkpoint {NAME}: .*{message}"):
        fetch(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(NAME).commit == repository.commit
    assert "Bearer hf_secret" in hub.tokens


def test_other_failures_are_explained(hub: Hub, repository: Repository) -> None:
    def message(name: str) -> str:
        with pytest.raises(CheckpointError) as caught:
            read_card(name)
        return str(caught.value)

    assert "no such repository" in message("hf://lab/other")
    assert "has no revision 'v9'" in message(f"{NAME}@v9")
    repository.stated["b4.safetensors"] = None
    assert "states no sha256 of b4.safetensors" in message(NAME)
    repository.stated["b4.safetensors"] = "0" * 64
    assert f"but the Hub states {'0' * 64}; delete " in message(NAME)
    del repository.files["b4.safetensors"]
    assert "has no .safetensors file" in message(f"{NAME}@main")
    hub.close()
    assert "is not in the cache and cannot be downloaded" in message("hf://lab/third")


@pytest.mark.parametrize("commit", ["main", "../../profile", ""])
def test_only_a_hash_is_taken_as_the_commit(commit: str, hub: Hub, repository: Repository) -> None:
    """Otherwise the name would not be pinned, and huggingface_hub would write a file of that name."""
    repository.commit = commit
    with pytest.raises(CheckpointError, match="states no commit; check HF_ENDPOINT"):
        fetch(NAME)


def test_a_file_outside_the_repository_is_ignored(hub: Hub, repository: Repository) -> None:
    repository.files = {"../b4.safetensors": b"", "/b4.safetensors": b""}
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        fetch(NAME)


def test_queries_of_addresses_are_not_shown(repository: Repository, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("https://storage/x?X-Amz-Signature=secret timed out")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(https://storage/x timed out\)"):
        fetch(NAME)


def test_a_damaged_download_is_noticed(repository: Repository, hub: Hub) -> None:
    blob = Path(os.path.realpath(fetch(NAME).path))
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"delete {blob} to download it again"):
        read_card(NAME)
    blob.unlink()
    assert read_card(NAME).source


def test_reports_state_the_commit(
    hub: Hub, repository: Repository, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands take the same names, and need no network after the first use; no token is written."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    report, page, log_file = tmp_path / "a.csv", tmp_path / "a.html", tmp_path / "a.log"
    done = run("scan", clips / "nobody.mp4", "--checkpoint", NAME, "-o", report, "--html", page, "--log-file", log_file)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    source = f"hf://lab/detector/b4.safetensors@{repository.commit}"
    assert json.loads(report.with_suffix(".csv.meta.json").read_text())["checkpoint"]["source"] == source
    assert source in page.read_text()
    assert source in log_file.read_text()
    assert all(b"hf_secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    hub.close()
    again = tmp_path / "again.html"
    run("report", f"{report}.ledger", "--html", again)
    assert again.read_text() == page.read_text()
    rejudged = run("report", f"{report}.ledger", "--calibration", NAME, "-o", tmp_path / "b.csv")
    assert rejudged.exit_code == 0, rejudged.stderr
    assert (tmp_path / "b.csv").read_bytes() == report.read_bytes()
    shown = run("info", "--checkpoint", NAME).stdout
    assert f"source: {source}" in shown
    with dfscan.Scanner(NAME, device="cpu") as scanner:
        assert scanner.scan_video(clips / "nobody.mp4").verdict.label == "no_face"
