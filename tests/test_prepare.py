"""Test `dfscan prepare` from videos to a manifest: its output, restarts, and rejected inputs."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from dfscan.cli import app
from dfscan.config import build_settings
from dfscan.dataset.crops import cut, encode_crop, read_crop
from dfscan.dataset.journal import Journal, JournalEntry
from dfscan.dataset.manifest import read_manifest
from dfscan.dataset.prepare import PrepareSettings, PrepareSummary, run_prepare
from dfscan.errors import ConfigError, DataError, OutputError
from dfscan.faces.detect import Detection, FaceDetector
from tests.pictures import astronaut, moved, nobody, on_canvas, other_person, two_people
from tests.videos import write_video


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two people in seven files: a video, its copy, a part of it, an image, a fake, nobody, and a text."""
    root = tmp_path_factory.mktemp("footage")
    (root / "real").mkdir()
    (root / "fake" / "recoloured").mkdir(parents=True)
    write_video(root / "real/one.mp4", [moved(astronaut(), 6 * i, 2 * i) for i in range(6)], fps=10)
    shutil.copy(root / "real/one.mp4", root / "real/two.mp4")
    data = (root / "real/one.mp4").read_bytes()
    (root / "real/torn.mp4").write_bytes(_cut_short(data))
    cv2.imwrite(str(root / "real/still.png"), moved(other_person(), -8, -3)[..., ::-1])
    write_video(root / "real/nobody.mp4", [nobody(width_px=320, height_px=240)] * 4, fps=10)
    (root / "real/text.mp4").write_text("no video")
    pair = two_people(left=astronaut()[:, ::-1], right=other_person())
    write_video(root / "fake/recoloured/pair.mkv", [moved(pair, 8 * i, -3 * i) for i in range(6)], fps=10)
    return root


def _cut_short(data: bytes) -> bytes:
    """Overwrite the last frames of the video."""
    start = data.index(b"mdat")
    size = int.from_bytes(data[start - 4 : start], "big")
    end = start - 4 + size
    return data[: end - size // 3] + bytes(size // 3) + data[end:]


def settings(out: Path, **changes: Any) -> PrepareSettings:
    return build_settings(PrepareSettings, {"out": out, "num_frames": 3, **changes})


@dataclass
class Recorder:
    """A listener that interrupts the run after a number of sources."""

    stop_after: int = 1000
    total: int = 0
    done: list[str] = field(default_factory=list)

    def set_total(self, num_sources: int) -> None:
        self.total = num_sources

    def source_done(self, path: str, num_crops: int, reason: str) -> None:
        self.done.append(path)
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareSummary]:
    out = tmp_path_factory.mktemp("made") / "deep" / "dataset"
    return out, run_prepare([str(footage)], settings(out))


def skipped(out: Path) -> dict[str, tuple[int, str]]:
    table = pd.read_csv(out / "skipped.csv")
    return {Path(row.path).name: (row.num_crops, row.reason) for row in table.itertuples()}


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# Output


def test_every_source_is_used_or_skipped_with_a_reason(made: tuple[Path, PrepareSummary], footage: Path) -> None:
    out, summary = made
    samples = read_manifest(out)
    assert {Path(sample.source).name for sample in samples} == {"one.mp4", "torn.mp4", "still.png", "pair.mkv"}
    reasons = skipped(out)
    assert reasons["two.mp4"] == (0, f"duplicate: the same file as {footage}/real/one.mp4")
    assert reasons["nobody.mp4"] == (0, "no_face: no face of 48 px or more in 3 frames")
    assert reasons["text.mp4"][1].startswith("not_video: ")
    assert reasons["torn.mp4"][0] > 0
    assert reasons["torn.mp4"][1].startswith("partial: ")
    assert len(reasons) == 4
    assert summary.num_sources == 4
    assert summary.num_crops == len(samples)
    assert summary.skipped == {"duplicate": 1, "no_face": 1, "not_video": 1}
    assert re.fullmatch(
        r"4 sources \(1 partial\), \d+ crops: \d+ real, 3 fake; .*; skipped: 1 duplicate, 1 no_face, 1 not_video",
        summary.text(),
    )


def test_rows_describe_their_crops_correctly(made: tuple[Path, PrepareSummary]) -> None:
    out, _ = made
    samples = read_manifest(out)
    assert [(sample.source, sample.crop) for sample in samples] == sorted((s.source, s.crop) for s in samples)
    for sample in samples:
        assert re.fullmatch(r"crops/(..)/\1.{14}_\d{4}_0\.png", sample.crop)
        assert sample.crop.split("/")[2].startswith(sample.source_sha256[:16])
        pixels = read_crop(out / sample.crop)
        side_px = float(np.max(sample.box_xyxy[2:] - sample.box_xyxy[:2]))
        assert pixels.shape[0] == pixels.shape[1] == pytest.approx(1.8 * side_px, abs=1)
        assert np.all(sample.landmarks > sample.box_xyxy[:2])
        assert np.all(sample.landmarks < sample.box_xyxy[2:])
    pair = [sample for sample in samples if sample.label == "fake"]
    assert {sample.kind for sample in pair} == {"recoloured"}
    assert [sample.time_s for sample in pair] == pytest.approx([0.1, 0.3, 0.5], abs=0.01)


def test_the_detector_finds_each_face_where_the_manifest_places_it(made: tuple[Path, PrepareSummary]) -> None:
    out, _ = made
    detector = FaceDetector(threshold=0.9, min_face_px=40, max_faces=1)
    for sample in read_manifest(out)[::3]:
        (found,) = detector.detect(read_crop(out / sample.crop))
        side_px = float(np.max(sample.box_xyxy[2:] - sample.box_xyxy[:2]))
        assert np.abs(found.landmarks - sample.landmarks).max() < 0.03 * side_px
        assert np.abs(found.box_xyxy - sample.box_xyxy).max() < 0.08 * side_px


def test_copies_in_other_groups_are_kept_in_one_split(made: tuple[Path, PrepareSummary]) -> None:
    out, summary = made
    groups = {Path(sample.source).name: sample.group for sample in read_manifest(out)}
    assert groups["one.mp4"] == groups["torn.mp4"] != groups["pair.mkv"]
    assert summary.num_merged_groups >= 1


# Geometry


@pytest.mark.parametrize("max_crop_px", [640, 150, 96])
@pytest.mark.parametrize("corner", [(300, 200), (5, 30)], ids=["inside", "over the border"])
def test_box_and_landmarks_are_in_pixels_of_the_crop(corner: tuple[int, int], max_crop_px: int) -> None:
    frame = np.zeros((600, 800, 3), np.uint8)
    left, top = corner
    box = np.array([left, top, left + 120.5, top + 150.25], np.float32)
    landmarks = np.array([[35, 60], [85, 62], [60, 90], [40, 120], [80, 121]], np.float32) + corner
    for x, y in landmarks.astype(int):
        frame[y - 3 : y + 3, x - 3 : x + 3] = 255
    crop = cut(frame, Detection(box, landmarks, 1.0), margin=1.8, max_crop_px=max_crop_px)
    size_px = min(round(1.8 * 150.25), max_crop_px)
    assert crop.pixels.shape == (size_px, size_px, 3)
    marks = cv2.connectedComponentsWithStats((crop.pixels[..., 0] > 60).astype(np.uint8))[3][1:] + 0.5
    assert len(marks) == 5
    for point in crop.landmarks:
        assert np.linalg.norm(marks - point, axis=1).min() < 1
    assert np.allclose((crop.box_xyxy[:2] + crop.box_xyxy[2:]) / 2, size_px / 2, atol=1)
    assert np.allclose(crop.box_xyxy[2:] - crop.box_xyxy[:2], np.array([120.5, 150.25]) * size_px / 270, atol=0.5)


def test_crops_are_never_enlarged_and_png_keeps_every_pixel(tmp_path: Path) -> None:
    frame = on_canvas(astronaut(), width_px=800, height_px=600, left_px=100, top_px=50)
    box = np.array([281, 112, 368, 222], np.float32)
    crop = cut(frame, Detection(box, np.zeros((5, 2), np.float32), 1.0), margin=1.8, max_crop_px=640)
    assert np.array_equal(crop.pixels, frame[68:266, 226:424])
    for crop_format, most in (("png", 0), ("jpg", 40)):
        path = tmp_path / f"crop.{crop_format}"
        path.write_bytes(encode_crop(crop.pixels, crop_format))  # type: ignore[arg-type]
        assert np.abs(read_crop(path).astype(int) - crop.pixels).max() <= most


# Restart


def test_interrupted_and_uninterrupted_runs_write_the_same_bytes(
    made: tuple[Path, PrepareSummary], footage: Path, tmp_path: Path
) -> None:
    out, _ = made
    first = Recorder(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        run_prepare([str(footage)], settings(tmp_path / "d"), listener=first)
    with (tmp_path / "d/progress.jsonl").open("ab") as journal:
        journal.write(b'{"path": "torn')
    second = Recorder()
    run_prepare([str(footage)], settings(tmp_path / "d"), listener=second)
    again = {path for path in first.done if path in second.done}
    assert {Path(path).name for path in again} <= {"text.mp4"}  # failed sources are retried
    assert second.total == len(second.done) < 7
    assert {**files(tmp_path / "d"), "progress.jsonl": b""} == {**files(out), "progress.jsonl": b""}


def test_a_finished_data_set_accepts_more_sources_and_restores_missing_crops(footage: Path, tmp_path: Path) -> None:
    one, still = str(footage / "real/one.mp4"), str(footage / "real/still.png")
    out = tmp_path / "d"
    run_prepare([one], settings(out, label="real"))
    before = files(out)
    (out / read_manifest(out)[0].crop).unlink()
    listener = Recorder()
    run_prepare([one], settings(out, label="real", val=0.3), listener=listener)
    assert listener.done == [one]
    assert files(out)["manifest.csv"] == before["manifest.csv"]
    listener = Recorder()
    summary = run_prepare([one, still], settings(out, label="fake"), listener=listener)
    assert listener.done == [still]
    assert summary.labels == {"fake": summary.num_crops}
    with pytest.raises(ConfigError, match=r"was started with num_frames 3, not 2\. Use the same .*progress.jsonl"):
        run_prepare([one], settings(out, label="real", num_frames=2))


def test_a_replaced_source_is_cut_again_and_one_with_the_same_content_is_not(footage: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "still.png", tmp_path / "d"
    data = (footage / "real/still.png").read_bytes()
    source.write_bytes(data)
    status = source.stat()

    def prepared(content: bytes) -> list[str]:
        source.unlink()
        source.write_bytes(content)
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        listener = Recorder()
        run_prepare([str(source)], settings(out, label="real"), listener=listener)
        return listener.done

    assert prepared(data) == [str(source)]
    assert prepared(data) == []
    other = data[:-4] + bytes(4)  # another checksum of the last chunk, the same image
    assert prepared(other) == [str(source)]
    journal = (out / "progress.jsonl").read_text().splitlines()
    old = [json.loads(line) for line in journal]
    for entry in old[1:]:
        del entry["inode"], entry["ctime_ns"]  # as in older journals
    (out / "progress.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in old))
    assert prepared(other) == []


def test_control_c_keeps_finished_sources(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def append_then_interrupt(journal: Journal, entry: JournalEntry) -> None:
        append(journal, entry)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Journal, "append", append_then_interrupt)
    result = run("prepare", footage, "-o", tmp_path / "d", "--num-frames", 3)
    assert (result.exit_code, result.stderr) == (130, "dfscan: interrupted: to continue, run the same command again\n")
    assert (tmp_path / "d/progress.jsonl").read_bytes().count(b"\n") == 2
    assert not (tmp_path / "d/manifest.csv").exists()


def test_a_data_set_inside_the_searched_folder_ignores_its_own_crops(footage: Path, tmp_path: Path) -> None:
    shutil.copy(footage / "real/still.png", tmp_path / "still.png")
    for _ in range(2):
        summary = run_prepare([str(tmp_path)], settings(tmp_path / "d", label="real"))
        assert summary.num_sources == summary.num_crops == 1


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "d", {}), pytest.raises(ConfigError, match="another `dfscan prepare` is running there"):
        Journal(tmp_path / "d", {})


# Rejected inputs


def test_one_file_with_two_labels_is_refused(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "fake").mkdir()
    shutil.copy(footage / "real/still.png", tmp_path / "real/a.png")
    shutil.copy(footage / "real/still.png", tmp_path / "fake/b.png")
    for _ in range(2):
        with pytest.raises(DataError, match=r"the same file is (real|fake) as .*: remove the wrong one"):
            run_prepare([str(tmp_path)], settings(tmp_path / "d"))


def test_given_splits_that_leak_are_refused(footage: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    lines = [f"{footage}/real/one.mp4,real,train", f"{footage}/real/torn.mp4,real,test"]
    listing.write_text("\n".join(["path,label,split", *lines]))
    result = run("prepare", listing, "-o", tmp_path / "d", "--num-frames", 3)
    assert result.exit_code == 2
    assert "the splits leak: group in more than one split: " in result.stderr
    assert len(read_manifest(tmp_path / "d")) >= 4


def test_inputs_without_any_face_are_refused(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no source shows a usable face; skipped.csv there gives the reasons"):
        run_prepare([str(footage / "real/nobody.mp4")], settings(tmp_path / "d", label="real"))
    assert len(skipped(tmp_path / "d")) == 1


def test_folders_unfit_for_a_data_set_are_refused(footage: Path, tmp_path: Path) -> None:
    still = str(footage / "real/still.png")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/d/progress.jsonl': Not a directory\. .*another --out"):
        run_prepare([still], settings(tmp_path / "file" / "d", label="real"))
    with pytest.raises(ConfigError, match="is not empty and not a data set"):
        run_prepare([still], settings(tmp_path, label="real"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/progress.jsonl").write_text('{"num_frames": 3}\nnonsense\n')
    with pytest.raises(DataError, match=r"progress.jsonl: is damaged .*delete it"):
        run_prepare([still], settings(tmp_path / "d", label="real"))


def test_a_full_disk_is_reported(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match=r"No space left on device\. Free some space there"):
        run_prepare([str(footage / "real/still.png")], settings(tmp_path / "d", label="real"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"val": 0.5, "test": 0.5}, "test: .*val and test leave nothing to train on"),
        ({"val": 0.9}, "leave nothing to train on"),
        ({"min_face_px": 3, "crop_format": "gif"}, "min_face_px: .*; crop_format: "),
        ({"label": "maybe"}, "label: input should be 'real' or 'fake'"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        settings(tmp_path, **changes)


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command(footage: Path, tmp_path: Path) -> None:
    result = run("prepare", footage / "real/still.png", "--label", "real", "--out", tmp_path / "d")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(
        r"dfscan: 1 sources, 1 crops: 1 real, 0 fake; 1 train, 0 val, 0 test; skipped: none in \d+ s - .*/d\n",
        result.stderr,
    )
    quiet = run("prepare", footage / "real/still.png", "--label", "real", "--out", tmp_path / "d", "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")


@pytest.mark.parametrize(
    "arguments", [["/gone", "--out", "d"], ["."], [".", "--out", "d"], [".", "-o", "d", "--val", 2]]
)
def test_command_with_bad_arguments(arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("prepare", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "d").exists()


def test_help_has_three_examples() -> None:
    examples = run("prepare", "--help").stdout.split("Examples:")[1].split("\n\n")[1]
    assert len(re.findall(r"^ +dfscan prepare\b", examples, flags=re.MULTILINE)) == 3
