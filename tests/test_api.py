"""The Python API: what it gives, what it costs to import, and that nothing of it is left behind."""

from __future__ import annotations

import gc
import importlib.util
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement

import dfscan
from dfscan import extras
from dfscan.api import ScannerOptions
from dfscan.config import ScanSettings, rows
from dfscan.report.schema import REPORT_COLUMNS
from dfscan.types import Face, FaceScore, Frame, Reason, Track, Verdict, VideoInfo, VideoResult
from tests.test_cli import run
from tests.test_isolate import children

ROOT = Path(__file__).resolve().parents[1]

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")


@pytest.fixture(autouse=True)
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))


@pytest.fixture
def scanner(untrained: Path) -> dfscan.Scanner:
    return dfscan.Scanner(untrained, device="cpu", num_frames=4)


# The example


def test_the_example_runs(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dfscan.scan.setup.default_checkpoint_path", lambda: untrained)
    monkeypatch.chdir(tmp_path)
    shutil.copy(clips / "one.mp4", "a.mp4")
    Path("folder").mkdir()
    shutil.copy(clips / "nobody.mp4", "folder")
    assert dfscan.__doc__
    example = textwrap.dedent("\n".join(re.findall(r"^(?: {4}.*|)$", dfscan.__doc__, flags=re.MULTILINE)))
    exec(example, {})
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.split()[:2] for line in lines] == [["a.mp4", "inconclusive"], ["folder/nobody.mp4", "no_face"]]
    assert 0 <= float(lines[0].split()[2]) <= 1
    assert lines[1].split()[2] == "None"


def test_a_scan_gives_what_the_command_reports(clips: Path, trained: Path, tmp_path: Path) -> None:
    options = ["--checkpoint", trained, "--device", "cpu", "--num-frames", 4]
    for name in ("report.csv", "report.parquet"):
        assert run("scan", clips, *options, "--out", tmp_path / name).exit_code == 2
    with dfscan.Scanner(trained, device="cpu", num_frames=4) as scanner:
        frame = dfscan.to_frame(scanner.scan(clips))
    assert list(frame.columns) == [column.name for column in REPORT_COLUMNS]
    written = io.StringIO(frame.to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(written), pd.read_csv(tmp_path / "report.csv"))
    parquet = pd.read_parquet(tmp_path / "report.parquet")
    pd.testing.assert_frame_equal(frame.astype(parquet.dtypes), parquet)


def test_one_video_in_one_call(clips: Path, untrained: Path) -> None:
    result = dfscan.scan_video(clips / "one.mp4", untrained, device="cpu", num_frames=4)
    assert (result.path, result.verdict.label) == (str(clips / "one.mp4"), "inconclusive")
    assert [0 <= face.score <= 1 for track in result.tracks for face in track.faces] == [True] * 4
    assert result.checkpoint
    assert result.dfscan_version == dfscan.__version__


def test_paths_may_be_given_in_any_form(scanner: dfscan.Scanner, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clips)
    forms: list[Any] = ["nobody.mp4", Path("nobody.mp4"), ["nobody.mp4"], (path for path in ["nobody.mp4"])]
    assert [[result.path for result in scanner.scan(form)] for form in forms] == [["nobody.mp4"]] * 4
    assert [result.path for result in scanner.scan(["nobody.mp4", clips / "nobody.mp4"])] == [str(clips / "nobody.mp4")]
    assert list(scanner.scan([])) == []


def test_folders_are_searched_with_the_patterns(clips: Path, untrained: Path) -> None:
    with dfscan.Scanner(untrained, device="cpu", num_frames=1, exclude=["t*"]) as scanner:
        names = {Path(result.path).name for result in scanner.scan([clips])}
    assert names == {"nobody.mp4", "one.mp4"}


# Memory and processes


@needs_proc
def test_leaving_the_loop_ends_the_children(scanner: dfscan.Scanner, clips: Path) -> None:
    before = children()
    for _ in scanner.scan([clips]):
        assert children() - before
        break
    assert children() == before


@needs_proc
def test_closing_the_iterator_or_the_scanner_ends_the_children(scanner: dfscan.Scanner, clips: Path) -> None:
    before = children()
    results = scanner.scan([clips])
    next(results)
    assert children() - before
    results.close()
    assert children() == before
    with scanner:
        held = scanner.scan([clips])
        next(held)
        assert children() - before
    assert children() == before
    assert list(held) == []
    with pytest.raises(dfscan.DfscanError, match="closed"):
        scanner.scan([clips])


def count_alive() -> np.ndarray:
    return np.array([sum(type(each) is kind for each in gc.get_objects()) for kind in (VideoResult, Frame)])


def test_results_and_frames_are_not_kept(scanner: dfscan.Scanner, clips: Path, tmp_path: Path) -> None:
    for i in range(24):
        shutil.copy(clips / "one.mp4", tmp_path / f"{i}.mp4")
    before = count_alive()  # other tests hold some
    alive = [count_alive() - before for _ in scanner.scan(tmp_path)]
    assert len(alive) == 24
    num_results, num_frames = np.max(alive, axis=0)
    assert num_results <= 3
    assert num_frames <= 40  # of 96, those of the videos under way


# Errors


def test_wrong_options_are_refused_together(untrained: Path) -> None:
    wrong: dict[str, Any] = {"num_frame": 3, "timeout": -1.0}
    with pytest.raises(dfscan.ConfigError, match=r"(?s)timeout.*did you mean 'num_frames'"):
        dfscan.Scanner(untrained, **wrong)
    outputs: dict[str, Any] = {"out": "report.csv", "resume": True}
    with pytest.raises(dfscan.ConfigError, match="out, resume: "):
        dfscan.Scanner(untrained, **outputs)
    with pytest.raises(dfscan.ConfigError, match="unknown device"):
        dfscan.Scanner(untrained, device="abacus")


def test_a_checkpoint_that_is_none_is_refused(clips: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", clips / "one.mp4"):
        with pytest.raises(dfscan.CheckpointError):
            dfscan.Scanner(path)


def test_missing_paths_are_refused_before_the_first_result(scanner: dfscan.Scanner, clips: Path) -> None:
    with pytest.raises(dfscan.ConfigError, match=r"absent\.mp4"):
        scanner.scan([clips, "absent.mp4"])
    with pytest.raises(dfscan.ConfigError, match="is a folder"):
        scanner.scan_video(clips)
    with pytest.raises(dfscan.ConfigError, match="no such file"):
        scanner.scan_video("")


def test_a_video_that_cannot_be_judged_is_a_result(scanner: dfscan.Scanner, clips: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, code in ((clips / "text.mp4", "not_video"), (tmp_path / "pipe.mp4", "not_regular")):
        result = scanner.scan_video(path)
        assert (result.status, result.verdict.label, result.verdict.score) == ("error", "error", None)
        assert result.verdict.reason
        assert result.verdict.reason.code == code
        assert result.checkpoint


# Options


def test_a_scanner_takes_every_option_that_decides_a_result() -> None:
    of_reports = set(
        "shard out format frames_out html html_max_mb webvtt keep_pictures excel delimiter ledger resume verify "
        "explain explain_top explain_format fail_on new_only exit_zero quiet log_file checkpoint on max_workers "
        "gpus_per_worker case exhibit examiner annotate annotate_top".split()
    )
    assert set(get_type_hints(ScannerOptions)) == set(rows(ScanSettings)) - of_reports


# Values


def a_result(path: str = "a.mp4", score: float | None = 0.75) -> VideoResult:
    face = Face(
        frame_index=3,
        time_s=0.5,
        burst=0,
        box_xyxy=np.array([1, 2, 3.5, 4], np.float32),
        landmarks=np.arange(10, dtype=np.float32).reshape(5, 2),
        detection_score=0.99,
        descriptor=np.zeros(4, np.float32),
    )
    verdict = Verdict("inconclusive", score, reason=Reason("untrained", "it is"))
    tracks = (Track(0, (FaceScore(face, 0.0),)),)
    return VideoResult(path, "ok", verdict, VideoInfo(size_bytes=5, fps=25.0), 4, tracks, checkpoint="c")


def test_to_dict_is_stable() -> None:
    """Other programs read this; new keys may come, old ones stay."""
    assert a_result().to_dict() == {
        "path": "a.mp4",
        "status": "ok",
        "verdict": {
            "label": "inconclusive",
            "score": 0.75,
            "threshold": None,
            "track_id": None,
            "reason": {"code": "untrained", "text": "it is"},
            "validation": None,
        },
        "info": {
            "size_bytes": 5,
            "sha256": None,
            "width_px": None,
            "height_px": None,
            "fps": 25.0,
            "num_frames": None,
            "duration_s": None,
            "codec": None,
            "rotation_deg": 0,
            "is_hdr": False,
            "num_skipped_streams": None,
        },
        "num_frames": 4,
        "tracks": [
            {
                "track_id": 0,
                "start_s": 0.5,
                "end_s": 0.5,
                "faces": [
                    {
                        "time_s": 0.5,
                        "frame_index": 3,
                        "frame_number": None,
                        "stream": 0,
                        "box_xyxy": [1.0, 2.0, 3.5, 4.0],
                        "landmarks": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]],
                        "detection_score": 0.99,
                        "logit": 0.0,
                        "score": 0.5,
                        "sharpness": None,
                        "blockiness": None,
                    }
                ],
            }
        ],
        "checkpoint": "c",
        "dfscan_version": None,
        "facts": None,
        "detectors": [],
    }


def test_to_dict_goes_through_json_and_back(scanner: dfscan.Scanner, clips: Path) -> None:
    for result in [*scanner.scan(clips), a_result(os.fsdecode(b"\xff\n\xc3\xa9.mp4"), float("nan"))]:
        document = result.to_dict()
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        assert json.loads(text.encode()) == document
    assert document["path"] == "\\xff\né.mp4"
    assert document["path_bytes"] == "/wrDqS5tcDQ="
    assert document["verdict"]["score"] is None


def test_a_frame_has_its_columns_without_rows_and_sorts_those_it_has() -> None:
    empty, two = dfscan.to_frame([]), dfscan.to_frame(iter([a_result("b.mp4"), a_result("a.mp4"), a_result("b.mp4")]))
    assert list(empty.dtypes) == list(two.dtypes)
    assert list(two.path) == ["./a.mp4", "./b.mp4", "./b.mp4"]
    assert list(two.index) == [0, 1, 2]
    assert two.width_px.isna().all()


# Imports, types and extras


def test_import_is_light_and_lazy() -> None:
    code = (
        "import sys, dfscan; dir(dfscan)\n"
        "heavy = set(sys.modules) & {'torch', 'numpy', 'cv2', 'av', 'pandas', 'pydantic', 'onnxruntime'}\n"
        "assert not heavy, heavy\n"
        "assert {dfscan.DfscanError, dfscan.Scanner, dfscan.Verdict}\n"
        "assert not set(sys.modules) & {'torch', 'pandas'}, 'dfscan.api imports them'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_there_and_documented() -> None:
    assert set(dfscan.__all__) <= set(dir(dfscan))
    for name in dfscan.__all__:
        assert inspect.getdoc(getattr(dfscan, name))
    with pytest.raises(AttributeError, match="no attribute 'Scaner'"):
        dfscan.Scaner  # type: ignore[attr-defined]  # noqa: B018


PROGRAM = """
import dfscan

with dfscan.Scanner("a.safetensors", device="cpu", num_frames=4, include=["*.mp4"]) as scanner:
    results = scanner.scan(["a.mp4"])
    for result in results:
        score: float | None = result.verdict.score
        print(result.path, result.verdict.label, score)
    results.close()
try:
    one: dfscan.VideoResult = dfscan.scan_video("a.mp4", every=0.5)
except dfscan.ConfigError as error:
    raise SystemExit(str(error)) from error
document: dict[str, object] = one.to_dict()
times: list[float] = [each.face.time_s for track in one.tracks for each in track.faces]
rows: int = len(dfscan.to_frame([one]))
"""
WRONG = "\ndfscan.Scanner(num_frame=4)\nscore_text: str = one.verdict.score\n"


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_a_typed_program_outside_the_package_passes_mypy(tmp_path: Path) -> None:
    # Other libraries say nothing about our types, and reading them takes most of the time.
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = skip\n[mypy-dfscan.*]\nfollow_imports = normal\n")

    def check(text: str) -> tuple[int, str]:
        (tmp_path / "program.py").write_text(text)
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "program.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert check(PROGRAM) == (0, "Success: no issues found in 1 source file\n")
    code, said = check(PROGRAM + WRONG)
    assert code == 1
    assert 'did you mean "num_frames"' in said
    assert "Found 2 errors" in said


TRAIN_COMMANDS = {
    "prepare": ["x", "--out", "y"],
    "train": ["--data", "x", "--out", "y"],
    "preview-training": ["--data", "x", "--out", "y"],
    "bench-training": ["--data", "x"],
    "calibrate": ["x", "--out", "z"],
    "calibrate-folds": ["x", "--checkpoint", "y", "--out", "z"],
    "evaluate": ["x", "--out", "y"],
    "shortcuts": ["--data", "x"],
    "fit-head": ["x", "--data", "y", "--out", "z"],
}


@pytest.mark.parametrize("command", TRAIN_COMMANDS)
def test_an_absent_extra_is_one_sentence_with_its_remedy(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    done = run(command, *TRAIN_COMMANDS[command])
    assert done.exit_code == 2
    assert done.stderr == (
        f"dfscan: error: dfscan {command} needs scikit-learn, tqdm, which are not installed: "
        "pip install 'dfscan[train]'\n"
    )


def test_a_frame_without_pandas_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(dfscan.MissingExtraError, match=r"needs pandas, which is .*pip install 'dfscan\[pandas\]'"):
        dfscan.to_frame([])


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        extra: {Requirement(text) for text in project["optional-dependencies"][extra]} for extra in extras.PACKAGES
    }
    for extra, packages in extras.PACKAGES.items():
        inherited = {name for each in declared[extra] for name in each.extras}
        required = {each.name for each in declared[extra] if not each.extras}
        required |= {each.name for name in inherited for each in declared[name]}  # type: ignore[index]
        assert set(packages.values()) == required
