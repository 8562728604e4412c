"""A checkpoint recognises the files it was trained on, and reports this where their scores would mislead."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from dfscan.cli import app
from dfscan.dataset.manifest import MANIFEST_NAME, Sample, read_manifest, write_manifest
from dfscan.detector.card import DIGEST_BYTES, CheckpointCard, SeenFiles
from dfscan.detector.checkpoint import load_network, read_card, save_checkpoint
from tests.datasets import write_dataset
from tests.test_cli import surroundings as surroundings
from tests.test_train import train


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def numbered(*numbers: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def with_seen(checkpoint: Path, path: Path, seen: SeenFiles | None) -> Path:
    old = read_card(checkpoint)
    save_checkpoint(path, load_network(old), old.card.model_copy(update={"seen": seen}))
    return path


@pytest.fixture
def knowing(trained: Path, clips: Path, tmp_path: Path) -> Path:
    """Write a checkpoint that was trained on one of the clips and calibrated on another."""
    seen = SeenFiles.of([sha256(clips / "one.mp4")], [sha256(clips / "two.mkv")])
    return with_seen(trained, tmp_path / "knowing.safetensors", seen)


# The card


def test_only_seen_files_are_recognised_with_their_use() -> None:
    seen = SeenFiles.of(numbered(*range(500)), numbered(*range(500, 600)))
    assert {seen.use_of(each) for each in numbered(*range(500))} == {"training"}
    assert {seen.use_of(each) for each in numbered(*range(500, 600))} == {"validation"}
    assert {seen.use_of(each) for each in numbered(*range(600, 5000))} == {None}
    assert seen.counts() == {"training": 500, "validation": 100}


def test_the_list_is_small_unordered_and_survives_a_round_trip() -> None:
    seen = SeenFiles.of(numbered(*range(1000)), [])
    assert seen == SeenFiles.of(reversed(numbered(*range(1000))), [])
    text = CheckpointCard(seen=seen).model_dump_json()
    assert len(text) - len(CheckpointCard().model_dump_json()) < 1000 * DIGEST_BYTES * 4 / 3 + 100
    assert CheckpointCard.model_validate_json(text).seen == seen


@pytest.mark.parametrize("text", ["AAAA", "no base64!", "AAAAAAA"])
def test_a_damaged_list_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        SeenFiles(training=text)


def test_an_old_card_has_no_list() -> None:
    old = json.loads(CheckpointCard().model_dump_json(exclude={"seen"}))
    assert CheckpointCard.model_validate(old).seen is None


# Training


def test_training_records_seen_files_without_the_test_split(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path / "data", num_train=5, num_val=4)
    kept, held_out = samples[:-1], [samples[-1]]
    write_manifest(tmp_path / "data" / MANIFEST_NAME, [*kept, *(_in_test(each) for each in held_out)])
    done = train(tmp_path / "data", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert "will not recognise" not in done.stderr
    assert (
        "scans will not return fake: calibrated on 3 real videos; a false positive rate of at most 1 %" in done.stderr
    )
    seen = read_card(tmp_path / "run" / "best.safetensors").card.seen
    assert seen is not None
    assert seen.is_complete
    assert [seen.use_of(each) for each in numbered(*range(9))] == ["training"] * 5 + ["validation"] * 3 + [None]

    # A continued training has seen the same files and more.
    write_dataset(tmp_path / "more", num_train=6, num_val=3)
    done = train(tmp_path / "more", tmp_path / "next", "--start-from", tmp_path / "run" / "best.safetensors")
    assert done.exit_code == 0, done.stderr
    seen = read_card(tmp_path / "next" / "best.safetensors").card.seen
    assert seen is not None
    assert seen.is_complete
    assert [seen.use_of(each) for each in numbered(*range(10))] == ["training"] * 6 + ["validation"] * 3 + [None]


def _in_test(sample: Sample) -> Sample:
    return Sample(**{**{name: getattr(sample, name) for name in Sample.__slots__}, "split": "test"})


@pytest.mark.parametrize("is_column_missing", [True, False])
def test_a_data_set_without_digests_still_trains_with_a_note(is_column_missing: bool, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_train=5, num_val=4)
    path = tmp_path / "data" / MANIFEST_NAME
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if is_column_missing:
        del table["source_sha256"]
    else:
        table.loc[0, "source_sha256"] = ""
    table.to_csv(path, index=False)
    done = train(tmp_path / "data", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert "the checkpoint will not recognise all its training videos" in done.stderr
    seen = read_card(tmp_path / "run" / "best.safetensors").card.seen
    assert seen is not None
    assert not seen.is_complete
    assert sum(seen.counts().values()) == (0 if is_column_missing else 8)
    assert "others are not recorded" in run("info", "--checkpoint", tmp_path / "run" / "best.safetensors").stdout


def test_an_invalid_digest_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    table = pd.read_csv(tmp_path / MANIFEST_NAME, dtype=str, keep_default_na=False)
    table.loc[1, "source_sha256"] = "sha256:ab"
    table.to_csv(tmp_path / MANIFEST_NAME, index=False)
    with pytest.raises(Exception, match=r"source_sha256 does not have 64 hex digits \(line 3\)"):
        read_manifest(tmp_path)


# Evaluation


@pytest.fixture
def labels(clips: Path, tmp_path: Path) -> Path:
    """Label file of three clips: one of each use, renamed, and one that was not seen."""
    folder = tmp_path / "labelled"
    folder.mkdir()
    shutil.copy(clips / "one.mp4", folder / "renamed.mp4")
    shutil.copy(clips / "two.mkv", folder / "two.mkv")
    shutil.copy(clips / "nobody.mp4", folder / "nobody.mp4")
    path = folder / "labels.csv"
    path.write_text("path,label\nrenamed.mp4,real\ntwo.mkv,fake\nnobody.mp4,real\n")
    return path


def evaluate(labels: Path, checkpoint: Path, out: Path, *more: object) -> Result:
    return run("evaluate", labels, "--checkpoint", checkpoint, "--device", "cpu", "--resamples", 5, "--out", out, *more)


def test_evaluate_refuses_seen_files(labels: Path, knowing: Path, tmp_path: Path) -> None:
    done = evaluate(labels, knowing, tmp_path / "out")
    assert done.exit_code == 2
    assert "has seen 2 of 3 videos (1 in training, 1 in validation): " in done.stderr
    assert "renamed.mp4" in done.stderr
    assert "two.mkv" in done.stderr
    assert "nobody.mp4" not in done.stderr
    assert "--allow-overlap" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_evaluate_continues_if_seen_files_are_allowed(labels: Path, knowing: Path, tmp_path: Path) -> None:
    done = evaluate(labels, knowing, tmp_path / "out", "--allow-overlap")
    assert done.exit_code == 0, done.stderr
    assert "has seen 2 of 3 videos" in done.stderr
    assert "too optimistic: the checkpoint was trained or calibrated on 2 of these videos" in done.stdout
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {Path(path).name: use for path, use in document["overlap"].items()} == {
        "renamed.mp4": "training", "two.mkv": "validation"
    }  # fmt: skip


def test_evaluate_accepts_other_files_and_warns_if_unknown(labels: Path, trained: Path, tmp_path: Path) -> None:
    other = with_seen(trained, tmp_path / "other.safetensors", SeenFiles.of(numbered(1), numbered(2)))
    done = evaluate(labels, other, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "seen" not in done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["overlap"] == {}
    part = with_seen(trained, tmp_path / "part.safetensors", SeenFiles(is_complete=False))
    for checkpoint, overlap in ((trained, None), (part, {})):
        done = evaluate(labels, checkpoint, tmp_path / "out")
        assert done.exit_code == 0, done.stderr
        assert "does not record all its training videos" in done.stderr
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["overlap"] == overlap


# Scans


def test_scan_notes_seen_videos(clips: Path, knowing: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ("scan", clips, "--checkpoint", knowing, "--device", "cpu", "--num-frames", 4, "-o", out)
    for more in ((), ("--resume",)):
        done = run(*arguments, *more)
        assert "the checkpoint was trained or calibrated on 2 of these 4 videos" in done.stderr
        rows: dict[str, dict[str, Any]] = {
            Path(row["path"]).name: row for row in map(json.loads, out.read_text().splitlines())
        }
        assert "seen_in_training: the checkpoint was trained on this file" in rows["one.mp4"]["reason"]
        assert "seen_in_validation: the checkpoint was calibrated on this file" in rows["two.mkv"]["reason"]
        assert rows["nobody.mp4"]["reason"] is None
        meta = json.loads(Path(f"{out}.meta.json").read_text())
        assert meta["seen_by_checkpoint"] == 2
        assert "seen" not in meta["checkpoint"], "it may be long, and is in the checkpoint"


def test_scan_does_not_note_unseen_videos(clips: Path, trained: Path, tmp_path: Path) -> None:
    checkpoint = with_seen(trained, tmp_path / "other.safetensors", SeenFiles.of(numbered(1), []))
    arguments = ("--device", "cpu", "--num-frames", 4, "-o", tmp_path / "r.csv")
    done = run("scan", clips / "one.mp4", "--checkpoint", checkpoint, *arguments)
    assert "trained" not in done.stderr
    assert "seen" not in (tmp_path / "r.csv").read_text()
    assert json.loads((tmp_path / "r.csv.meta.json").read_text())["seen_by_checkpoint"] == 0
