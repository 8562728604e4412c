"""Evaluations of invented scores with known metrics, and one evaluation of real scans."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from dfscan.cli import app
from dfscan.detector.checkpoint import read_card
from dfscan.evaluation import evaluate as evaluating
from dfscan.evaluation.robustness import CONDITIONS, Condition, shrink, write_copies
from dfscan.media.container import open_video, survey
from dfscan.media.isolate import Limits
from dfscan.media.plan import Timeline
from dfscan.types import Face, FaceScore, Reason, Track, Verdict, VideoInfo, VideoResult
from tests.pictures import astronaut, nobody, other_person
from tests.videos import numbered, numbered_picture, write_video

Rows = Sequence[tuple[str, str, str, str, list[float]]]

ROWS: Rows = (  # name, label, kind, group, scores of its faces
    ("a.mp4", "real", "", "ann", [0.1, 0.2]),
    ("b.mp4", "real", "", "bob", [0.3, 0.5]),
    ("c.mp4", "real", "", "bob", [0.95, 0.95]),
    ("d.mp4", "real", "", "dan", []),
    ("e.mp4", "fake", "swap", "ann", [0.9, 0.98]),
    ("f.mp4", "fake", "swap", "eve", [0.4, 0.6]),
    ("g.mp4", "fake", "puppet", "fay", [0.99, 0.97]),
)


@pytest.fixture(autouse=True)
def surroundings(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))
    for name in [name for name in os.environ if name.startswith("DFSCAN_")]:
        monkeypatch.delenv(name)


def run(*arguments: object) -> Result:
    given = ["evaluate", "--device", "cpu", "--resamples", 20, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def table(folder: Path, rows: Rows = ROWS, **more: Sequence[object]) -> Path:
    """Write a CSV file of labelled videos, and the videos as empty files."""
    folder.mkdir(exist_ok=True)
    for name, *_ in rows:
        (folder / name).touch()
    names = ["path", "label", "kind", "group"]
    frame = pd.DataFrame([row[:4] for row in rows], columns=names).assign(**more)
    frame.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def result(path: str, scores: list[float], threshold: float | None = 0.9) -> VideoResult:
    """Return the scan result of a video with these face scores: their mean is fake from 0.9 and real up to 0.1."""
    info = VideoInfo(size_bytes=0)
    if not scores:
        return VideoResult(path, "ok", Verdict("no_face", threshold=threshold), info)
    mean = float(np.mean(scores))
    nothing, points = np.zeros(4, np.float32), np.zeros((5, 2), np.float32)
    face = Face(0, 0.0, 0, nothing, points, 1.0, nothing, sharpness=mean / 10)
    track = Track(0, tuple(FaceScore(face, float(np.log(score / (1 - score)))) for score in scores))
    label = "fake" if mean >= 0.9 else "real" if mean <= 0.1 else "inconclusive"
    return VideoResult(path, "ok", Verdict(label, mean, threshold, 0), info, 2, (track,))  # type: ignore[arg-type]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make scans return the scores of `ROWS`, last video first, and 0.5 and 0.7 for copies."""
    scores = {name: found for name, *_, found in ROWS}

    def scan_videos(paths: Sequence[str], engine: object, **_: object) -> Iterator[tuple[VideoResult, None]]:
        for path in reversed(paths):
            found = scores.get(Path(path).name)
            yield result(path, [0.5, 0.7] if found is None else found), None

    engine = SimpleNamespace(num_workers=1, limits=Limits())
    monkeypatch.setattr(evaluating, "load_engine", lambda *_: engine)
    monkeypatch.setattr(evaluating, "scan_videos", scan_videos)


@pytest.mark.usefixtures("made_up")
def test_known_scores_give_known_metrics(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(table(tmp_path / "in"), "--checkpoint", trained, "--out", out, "--seed", 4)
    assert done.exit_code == 0, done.stderr
    document = json.loads((out / "evaluation.json").read_text())
    video, frame = (document["metrics"][level]["all"] for level in ("video", "frame"))
    # reals 0.15, 0.4, 0.95; fakes 0.94, 0.5, 0.98: the fake is higher in 2 + 2 + 3 of nine pairs
    assert video["roc_auc"]["value"] == pytest.approx(7 / 9)
    assert (video["num_videos"], video["num_groups"]) == (6, 4)
    assert video["accuracy"]["value"] == pytest.approx(4 / 6)
    assert video["precision"]["value"] == video["recall"]["value"] == pytest.approx(2 / 3)
    assert video["brier"]["value"] == pytest.approx(np.mean(np.square([0.15, 0.4, 0.95, 0.06, 0.5, 0.02])))
    reals, fakes = [0.1, 0.2, 0.3, 0.5, 0.95, 0.95], [0.9, 0.98, 0.4, 0.6, 0.99, 0.97]
    assert frame["roc_auc"]["value"] == pytest.approx(roc_auc_score([0] * 6 + [1] * 6, reals + fakes))
    assert frame["num_videos"] == 6
    assert document["verdicts"] == {
        "real": {"fake": 1, "real": 0, "inconclusive": 2, "no_face": 1, "error": 0},
        "fake": {"fake": 2, "real": 0, "inconclusive": 1, "no_face": 0, "error": 0},
    }
    shares = document["metrics"]["video"]["label: real"]
    assert shares["share_no_face"]["value"] == 0.25
    assert shares["share_inconclusive"]["low"] <= 0.5 <= shares["share_inconclusive"]["high"]
    assert document["counts"] == {
        "videos": 7, "real": 4, "fake": 3, "groups": 5, "judged": 6, "faces": 12, "skipped": 0
    }  # fmt: skip
    assert document["thresholds"] == {"real": 0.1, "fake": 0.9}
    assert document["bootstrap"] == {"over": "groups", "confidence": 0.95, "num_resamples": 20, "seed": 4}
    assert document["checkpoint"]["label"].startswith("trained@")
    assert document["settings"]["num_frames"] == 32
    assert document["versions"]["scikit-learn"]


@pytest.mark.usefixtures("made_up")
def test_kinds_and_groups(trained: Path, tmp_path: Path) -> None:
    assert run(table(tmp_path / "in"), "--checkpoint", trained, "--out", tmp_path).exit_code == 0
    document = json.loads((tmp_path / "evaluation.json").read_text())
    video = document["metrics"]["video"]
    assert video["kind: swap"]["roc_auc"]["value"] == pytest.approx(4 / 6)
    assert video["kind: puppet"]["roc_auc"] == {"value": 1.0, "low": None, "high": None}  # one group of fakes
    assert video["kind: puppet"]["num_videos"] == 4
    assert set(document["groups"]) == {"ann", "bob"}
    assert document["groups"]["ann"] == {
        "num_real": 1, "num_fake": 1,
        "mean_score_real": pytest.approx(0.15), "mean_score_fake": pytest.approx(0.94),
        "verdicts": {
            "real": {"fake": 0, "real": 0, "inconclusive": 1, "no_face": 0, "error": 0},
            "fake": {"fake": 1, "real": 0, "inconclusive": 0, "no_face": 0, "error": 0},
        },
    }  # fmt: skip


@pytest.mark.usefixtures("made_up")
def test_tables_and_plots(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(table(tmp_path / "in"), "--checkpoint", trained, "--out", out)
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("evaluation.json", "metrics.csv", "videos.csv"),
        *("roc.png", "calibration.png", "histogram.png", "within.png"),
    }
    videos = pd.read_csv(out / "videos.csv")
    assert list(videos.columns[:7]) == ["path", "label", "kind", "group", "verdict", "score", "num_faces"]
    assert [Path(path).name for path in videos.path] == [row[0] for row in ROWS]
    assert videos.score.round(6).tolist()[:3] == [0.15, 0.4, 0.95]
    assert videos.num_faces.tolist() == [2, 2, 2, 0, 2, 2, 2]
    metrics = pd.read_csv(out / "metrics.csv").set_index(["level", "subset", "metric"])
    assert metrics.loc[("video", "all", "roc_auc"), "value"] == pytest.approx(7 / 9, abs=1e-6)
    assert metrics.loc[("frame", "kind: swap", "roc_auc"), "num_videos"] == 5
    lines = done.stdout.splitlines()
    assert lines[0].endswith("7 videos (4 real, 3 fake) in 5 groups")
    assert lines[1] == "6 scored, 12 faces"
    assert lines[4].split() == ["real", "1", "0", "2", "1", "0"]
    assert any(line.startswith("video  all") and " 0.778 [" in line for line in lines)


@pytest.mark.usefixtures("made_up")
def test_within_sources_and_takes(trained: Path, tmp_path: Path) -> None:
    """Compare with results computed by hand.

    Page x has the reals 0.15 and 0.4 and the fakes 0.94 and 0.98, page y the real 0.95 and the fake 0.5, and page z
    only d.mp4, a real without faces. Both fakes of x score above both reals, the fake of y scores below its real: 2 of
    3 fakes, 4 of 5 pairs. The takes pair e.mp4 with a.mp4 (higher) and f.mp4 with c.mp4 (lower).
    """
    pages, takes = ["x", "x", "y", "z", "x", "y", "x"], ["1", "2", "3", "4", "1", "3", "5"]
    out = tmp_path / "out"
    columns = ["--source-column", "page", "--take-column", "clip"]
    done = run(table(tmp_path / "in", page=pages, clip=takes), "--checkpoint", trained, "--out", out, *columns)
    assert done.exit_code == 0, done.stderr
    video = json.loads((out / "evaluation.json").read_text())["metrics"]["video"]
    within = video["all"]["within_source_auc"]
    assert within["value"] == pytest.approx(2 / 3)
    assert within["low"] <= 2 / 3 <= within["high"]
    sizes = {name: within[name] for name in within if name.startswith("num_")}
    assert sizes == {"num_compared": 2, "num_left_out": 0, "num_fakes": 3, "num_reals": 3, "num_groups": 4}
    assert video["kind: puppet"]["within_source_auc"]["value"] == 1
    assert video["kind: puppet"]["within_source_auc"]["num_left_out"] == 1
    pairs = video["all"]["paired_accuracy"]
    assert (pairs["value"], pairs["num_compared"], pairs["num_left_out"]) == (0.5, 2, 2)
    assert "paired_accuracy" not in video["kind: puppet"]
    metrics = pd.read_csv(out / "metrics.csv").set_index(["level", "subset", "metric"])
    assert metrics.loc[("video", "all", "within_source_auc"), "num_videos"] == 6
    assert metrics.loc[("video", "kind: swap", "paired_accuracy"), "value"] == 0.5
    videos = pd.read_csv(out / "videos.csv", dtype=str)
    assert videos.source.tolist() == pages
    assert videos["take"].tolist() == takes
    line = next(line for line in done.stdout.splitlines() if line.startswith("within sources") and " all " in line)
    assert line.split()[3:7] == ["2", "3", "3", "0.667"]
    assert (out / "within.png").stat().st_size > 1000


@pytest.mark.usefixtures("made_up")
def test_without_sources_there_are_no_metrics_within_sources(trained: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "in", ROWS[1:4] + ROWS[5:])  # no group with both classes
    (tmp_path / "within.png").touch()
    done = run(labels, "--checkpoint", trained, "--out", tmp_path)
    assert done.exit_code == 0
    video = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["video"]["all"]
    assert not {"within_source_auc", "paired_accuracy"} & set(video)
    assert not (tmp_path / "within.png").exists()
    assert "compared" not in done.stdout


@pytest.mark.usefixtures("made_up")
def test_videos_without_a_source_are_left_out_with_a_warning(trained: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "in", page=["x", "", "", "", "x", "", ""])
    done = run(labels, "--checkpoint", trained, "--out", tmp_path, "--source-column", "page")
    assert "5 of 7 videos have no source" in done.stderr
    within = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["video"]["all"]["within_source_auc"]
    assert (within["value"], within["num_fakes"], within["num_reals"]) == (1.0, 1, 1)


@pytest.mark.usefixtures("made_up")
def test_one_class_gives_a_warning_and_partial_metrics(trained: Path, tmp_path: Path) -> None:
    done = run(table(tmp_path / "in", ROWS[:4]), "--checkpoint", trained, "--out", tmp_path)
    assert done.exit_code == 0
    assert "only real videos could be scored" in done.stderr
    video = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["video"]["all"]
    assert video["roc_auc"]["value"] is None
    assert video["accuracy"]["value"] == pytest.approx(2 / 3)


@pytest.mark.usefixtures("made_up")
def test_an_evaluation_without_scores_is_an_error(trained: Path, tmp_path: Path) -> None:
    done = run(table(tmp_path / "in", ROWS[3:4]), "--checkpoint", trained, "--out", tmp_path)
    assert done.exit_code == 2
    assert "none of 1 videos could be scored (1 no_face)" in done.stderr
    assert pd.read_csv(tmp_path / "videos.csv").verdict.tolist() == ["no_face"]


@pytest.mark.usefixtures("made_up")
def test_an_untrained_checkpoint_decides_nothing(untrained: Path, tmp_path: Path) -> None:
    assert run(table(tmp_path / "in"), "--checkpoint", untrained, "--out", tmp_path).exit_code == 0
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert document["thresholds"] == {"real": None, "fake": None}
    assert document["metrics"]["video"]["all"]["accuracy"]["value"] is None
    assert document["metrics"]["video"]["all"]["roc_auc"]["value"] == pytest.approx(7 / 9)


@pytest.mark.usefixtures("made_up")
def test_one_split_only(trained: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "in", split=["train", "test", "test", "val", "test", "train", "val"])
    assert run(labels, "--checkpoint", trained, "--out", tmp_path, "--split", "test").exit_code == 0
    videos = pd.read_csv(tmp_path / "videos.csv")
    assert [Path(path).name for path in videos.path] == ["b.mp4", "c.mp4", "e.mp4"]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "the inputs name no splits"),
        (["--split", "dev"], "--split must be one of train, val, test"),
        (["--label", "true"], "--label must be one of real, fake"),
        (["--label-column", "truth"], "truth"),
        (["--out", "in/labels.csv"], "Give another folder with --out"),
    ],
)
def test_bad_options(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(table(tmp_path / "in"), "--checkpoint", trained, "--out", "out", *options)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.usefixtures("made_up")
def test_results_never_replace_an_input(trained: Path, tmp_path: Path) -> None:
    labels = table(tmp_path).rename(tmp_path / "videos.csv")
    before = labels.read_bytes()
    done = run(labels, "--checkpoint", trained, "--out", tmp_path)
    assert done.exit_code == 2
    assert "would overwrite the input" in done.stderr
    assert labels.read_bytes() == before


def test_real_scans(trained: Path, tmp_path: Path) -> None:
    """Scan two videos with one person each, one without a person, and one file that is not a video."""
    for label in ("real", "fake"):
        (tmp_path / "in" / label).mkdir(parents=True)
    write_video(tmp_path / "in" / "real" / "one.mp4", [astronaut()] * 3)
    write_video(tmp_path / "in" / "fake" / "other.mp4", [other_person()] * 3)
    write_video(tmp_path / "in" / "real" / "nobody.mp4", [nobody(width_px=320, height_px=240)] * 3)
    (tmp_path / "in" / "fake" / "text.mp4").write_text("not a video")
    done = run(tmp_path / "in", "--checkpoint", trained, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document["counts"]["faces"] == 6
    assert document["verdicts"]["real"]["no_face"] == document["verdicts"]["fake"]["error"] == 1
    assert document["metrics"]["video"]["all"]["roc_auc"]["value"] in (0, 1)
    assert "text.mp4: not_video" in done.stderr
    assert "2 scored, 6 faces" in done.stdout


def test_missing_files_are_counted(trained: Path, tmp_path: Path, made_up: None) -> None:
    labels = table(tmp_path / "in")
    (tmp_path / "in" / "a.mp4").unlink()
    done = run(labels, "--checkpoint", trained, "--out", tmp_path)
    assert "5 scored, 10 faces, 1 skipped" in done.stdout
    assert f"warning: {tmp_path}/in/a.mp4: skipped, not_there: no such file" in done.stderr
    skipped = json.loads((tmp_path / "evaluation.json").read_text())["skipped"]
    assert [Path(each["path"]).name for each in skipped] == ["a.mp4"]


@pytest.mark.usefixtures("made_up")
def test_only_the_first_of_many_missing_files_are_listed(trained: Path, tmp_path: Path) -> None:
    missing = [(f"gone{i:02}.mp4", "real", "", "x", []) for i in range(12)]
    labels = table(tmp_path / "in", [*ROWS, *missing])
    for name, *_ in missing:
        (tmp_path / "in" / name).unlink()
    done = run(labels, "--checkpoint", trained, "--out", tmp_path)
    assert done.stderr.count("not_there") == 10
    assert "2 more files skipped" in done.stderr


# Degraded copies


def copies_of(paths: Sequence[Path], condition: Condition, folder: Path, **more: Any) -> Any:
    folder.mkdir()
    return write_copies([str(path) for path in paths], condition, folder, num_workers=1, limits=Limits(), **more)


def timeline(path: Path | str) -> Timeline:
    with FileIO(path) as file:
        return survey(file).streams[0].timeline


def test_copies_keep_every_frame_and_its_time(tmp_path: Path) -> None:
    times_ms = [0, 40, 90, 200, 240, 700, 740]
    write_video(tmp_path / "a.mp4", numbered(7, width_px=66, height_px=50), pts=times_ms)
    found = copies_of([tmp_path / "a.mp4"], Condition("same"), tmp_path / "copies")
    timelines = [timeline(path) for path in (tmp_path / "a.mp4", *found.paths.values())]
    seconds = [(line.pts - line.pts[0]) * line.time_base_s for line in timelines]
    assert seconds[1] == pytest.approx(seconds[0], abs=1e-3)
    assert timelines[1].duration_s == pytest.approx(timelines[0].duration_s, abs=1e-3)


def test_copies_have_even_dimensions(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(3, width_px=66, height_px=50))
    found = copies_of([tmp_path / "a.mp4"], CONDITIONS[3], tmp_path / "copies")
    with FileIO(found.paths[str(tmp_path / "a.mp4")]) as file, open_video(file) as (_, stream):
        assert (stream.width, stream.height) == (32, 24)  # 33 x 25 without the odd row and column


def test_copies_are_limited_in_length_and_broken_files_are_not_copied(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(9))
    (tmp_path / "b.mp4").write_text("not a video")
    found = copies_of([tmp_path / "a.mp4", tmp_path / "b.mp4"], CONDITIONS[0], tmp_path / "copies", max_frames=4)
    assert found.num_cut_short == 1
    assert len(timeline(found.paths[str(tmp_path / "a.mp4")]).pts) == 4
    assert found.failures[str(tmp_path / "b.mp4")].code == "not_video"
    assert len(found.paths) == 1


def test_higher_crf_gives_smaller_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(5)])
    sizes = []
    for condition in CONDITIONS[:3]:
        found = copies_of([tmp_path / "a.mp4"], condition, tmp_path / condition.name)
        sizes.append(Path(*found.paths.values()).stat().st_size)
    assert sizes == sorted(sizes, reverse=True)


def test_shrink() -> None:
    assert shrink(numbered_picture(3, width_px=100, height_px=60), factor=0.5).shape == (30, 50, 3)
    assert shrink(numbered_picture(3), factor=0.1).shape == (16, 16, 3)


@pytest.mark.usefixtures("made_up")
def test_robustness_writes_metrics_and_a_plot(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All copies score 0.6, so the ROC AUC is at chance level; `d.mp4` cannot be copied."""
    labels = table(tmp_path / "in")
    for name, *_ in ROWS:
        if name != "d.mp4":
            write_video(tmp_path / "in" / name, numbered(2))
    monkeypatch.setattr(evaluating, "CONDITIONS", CONDITIONS[2:4])
    out = tmp_path / "out"
    card = tmp_path / "robust.safetensors"
    done = run(labels, "--checkpoint", trained, "--out", out, "--robustness", "--write-card", card)
    assert done.exit_code == 0, done.stderr
    written, before = read_card(card).card, read_card(trained).card
    assert [level.below for level in written.quality][-1] is None
    assert sum(level.num_real_groups for level in written.quality) >= 2
    assert written.seen is not None
    assert (written.calibration, before.quality) == (before.calibration, ())
    assert run(labels, "--checkpoint", trained, "--out", out, "--write-card", card).exit_code == 2, "needs --robustness"
    refused = run(
        labels, "--checkpoint", trained, "--out", out, "--robustness", "--write-card", card, "--allow-overlap"
    )
    assert refused.exit_code == 2
    assert "too optimistic" in refused.stderr
    document = json.loads((out / "evaluation.json").read_text())
    assert list(document["robustness"]) == ["CRF 40", "half size"]
    worst = document["robustness"]["CRF 40"]
    assert worst["metrics"]["video"]["all"]["roc_auc"]["value"] == 0.5
    assert worst["verdicts"]["real"]["error"] == 1
    assert worst["verdicts"]["fake"]["inconclusive"] == 3
    assert (out / "robustness.png").stat().st_size > 1000
    subsets = set(pd.read_csv(out / "metrics.csv").subset)
    assert {"robustness: CRF 40", "robustness: half size"} < subsets
    assert sum(line.startswith("video  half size") for line in done.stdout.splitlines()) == 1
    assert run(labels, "--checkpoint", trained, "--out", out).exit_code == 0
    assert not (out / "robustness.png").exists()


def test_reasons_reach_the_table_of_videos(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan_videos(paths: Sequence[str], *_: object, **__: object) -> Iterator[tuple[VideoResult, None]]:
        for path in paths:
            yield VideoResult(path, "error", Verdict("error", reason=Reason("empty", "it is")), VideoInfo(0)), None

    monkeypatch.setattr(evaluating, "load_engine", lambda *_: None)
    monkeypatch.setattr(evaluating, "scan_videos", scan_videos)
    assert run(table(tmp_path / "in"), "--checkpoint", trained, "--out", tmp_path).exit_code == 2
    assert set(pd.read_csv(tmp_path / "videos.csv").reason) == {"empty: it is"}
