"""Several detectors in one scan: their scores are those of scans with each of them alone."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dfscan
from dfscan.config import ScanSettings, build_settings, read_file
from dfscan.detector.card import Calibration, SeenFiles
from dfscan.detector.checkpoint import create_untrained, load_network, read_card, save_calibrated, save_checkpoint
from dfscan.detector.export import onnx_graph
from dfscan.detector.preprocess import Preprocessing
from dfscan.detector.runtime import TorchRuntime
from dfscan.errors import ConfigError
from dfscan.report.schema import REPORT_COLUMNS
from dfscan.scan.cluster_worker import Dumps, Job
from dfscan.scan.ledger import from_json, to_json
from dfscan.scan.pipeline import scan_videos
from dfscan.scan.setup import detector_names, load_engine, resolve
from dfscan.scan.verdict import AGREEMENT, Rules, agreed
from dfscan.types import Bounded, DetectorResult, Reason, Validation, Verdict, VerdictLabel
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings

FLAGS = ("--num-frames", 4, "--device", "cpu", "--exit-zero")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """Another network with a preprocessing of its own, calibrated, which has seen one of the clips."""
    folder = tmp_path_factory.mktemp("other")
    how = Preprocessing(
        input_size_px=64,
        crop="aligned",
        crop_margin=1.5,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="linear",
    )
    made = create_untrained(folder / "new.safetensors", seed=9, architecture="test_efficientnet", input_size_px=64)
    card = made.card.model_copy(
        update={
            "name": "other",
            "preprocessing": how,
            "calibration": Calibration(trained=True, temperature=0.5, fake_threshold=0.4, real_threshold=0.3),
            "seen": SeenFiles.of([hashlib.sha256((clips / "one.mp4").read_bytes()).hexdigest()], []),
        }
    )
    return save_checkpoint(folder / "other.safetensors", load_network(made), card).path


@pytest.fixture(scope="session")
def scans(
    tmp_path_factory: pytest.TempPathFactory, session_cache: Path, clips: Path, trained: Path, other: Path
) -> Path:
    """Reports of both detectors alone and together."""
    folder = tmp_path_factory.mktemp("scans")
    for name, checkpoints in {"a": [trained], "b": [other], "ab": [trained, other]}.items():
        given = [word for checkpoint in checkpoints for word in ("--checkpoint", checkpoint)]
        outs = [("--out", folder / f"{name}.{suffix}") for suffix in ("csv", "jsonl", "xlsx", "parquet", "jsonld")]
        more = ("--frames-out", folder / f"{name}.faces.csv", "--html", folder / f"{name}.html")
        done = run("scan", clips, *given, *FLAGS, *[word for out in outs for word in out], *more)
        assert done.exit_code == 0, done.stderr
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_the_union_of_single_scans(scans: Path) -> None:
    alone, others, together = (rows_of(scans / f"{name}.csv") for name in ("a", "b", "ab"))
    assert [row["path"] for row in together] == [row["path"] for row in alone]
    assert list(together[0])[len(REPORT_COLUMNS) :] == [
        "score_trained",
        "verdict_trained",
        "score_other",
        "verdict_other",
    ]
    num_scored = 0
    for one, two, both in zip(alone, others, together, strict=True):
        if one["verdict"] == "error":
            assert both["score_trained"] == both["verdict_trained"] == both["verdict_other"] == ""
            continue
        assert (both["score_trained"], both["verdict_trained"]) == (one["score"], one["verdict"])
        assert (both["score_other"], both["verdict_other"]) == (two["score"], two["verdict"])
        num_scored += both["score_other"] not in ("", both["score_trained"])
        combined = {"verdict", "reason", "checkpoint", "statement"}
        assert {name: both[name] for name in one.keys() - combined} == {
            name: one[name] for name in one.keys() - combined
        }
        assert both["checkpoint"] == f"{one['checkpoint']}; {two['checkpoint']}"
    assert num_scored == 2


def test_faces_have_the_scores_of_single_scans(scans: Path) -> None:
    alone, others, together = (rows_of(scans / f"{name}.faces.csv") for name in ("a", "b", "ab"))
    assert len(together) == 12
    for one, two, both in zip(alone, others, together, strict=True):
        assert both == {**one, "score_trained": one["score"], "score_other": two["score"]}


def test_statements_quote_each_detector(scans: Path, tmp_path: Path) -> None:
    rows = {Path(row["path"]).name: row for row in rows_of(scans / "ab.csv")}
    row = rows["two.mkv"]
    scores = {name: f"{float(row[f'score_{name}']):.4f}" for name in ("trained", "other")}
    for name, threshold in (("trained", "0.9000"), ("other", "0.4000")):
        said = (
            f"{name}: {row[f'verdict_{name}']}, with a score of {scores[name]} (threshold for fake {threshold}) for 4"
        )
        assert said in row["statement"]
    assert "other: fake" in row["statement"]
    assert "No conclusion is drawn: one detector gives a verdict that no other one confirms." in row["statement"]
    assert "No face was found" in rows["nobody.mp4"]["statement"]


def test_json_lines_list_the_detectors(scans: Path, trained: Path, other: Path) -> None:
    rows = [json.loads(line) for line in (scans / "ab.jsonl").read_text().splitlines()]
    single = {row["path"]: row for row in map(json.loads, (scans / "b.jsonl").read_text().splitlines())}
    labels = [read_card(path).label for path in (trained, other)]
    for row in rows:
        assert list(row)[-1] == "detectors"
        if row["verdict"] == "error":
            assert row["detectors"] == []
            continue
        assert [each["checkpoint"] for each in row["detectors"]] == labels
        second = row["detectors"][1]
        kept = ("checkpoint", "verdict", "score", "threshold", "reason")
        assert {name: second[name] for name in kept} == {name: single[row["path"]][name] for name in kept}
    assert "detectors" not in single[rows[0]["path"]]
    (seen,) = (row for row in rows if row["path"].endswith("one.mp4"))
    assert "seen_in_training: other: the checkpoint was trained on this file" in seen["reason"]


def test_the_rule_is_stated(scans: Path, trained: Path, other: Path) -> None:
    meta = json.loads((scans / "ab.csv.meta.json").read_text())
    assert meta["verdict_rule"] == AGREEMENT
    assert [each["detector"] for each in meta["checkpoints"]] == ["trained", "other"]
    assert [each["sha256"] for each in meta["checkpoints"]] == [read_card(path).sha256 for path in (trained, other)]
    assert "checkpoint" not in meta
    assert meta["settings"]["threshold"] is None
    assert AGREEMENT in (scans / "ab.html").read_text()
    for path in (trained, other):
        assert f"<h3>Checkpoint <code>{read_card(path).label}</code></h3>" in (scans / "ab.html").read_text()
    single = (scans / "a.csv.meta.json").read_text(), (scans / "a.html").read_text()
    assert all("verdict_rule" not in text and AGREEMENT not in text for text in single)


def test_rebuilt_and_resumed_reports_have_the_same_bytes(
    scans: Path, clips: Path, trained: Path, other: Path, tmp_path: Path
) -> None:
    names = ("ab.csv", "ab.jsonl", "ab.xlsx", "ab.parquet", "ab.jsonld")
    outs = [word for name in names for word in ("--out", tmp_path / name)]
    more = ("--frames-out", tmp_path / "ab.faces.csv", "--html", tmp_path / "ab.html")
    assert run("report", scans / "ab.csv.ledger", *outs, *more).exit_code == 0
    for name in (*names, "ab.faces.csv"):
        assert (tmp_path / name).read_bytes() == (scans / name).read_bytes(), name
    blocks = [(folder / "ab.html").read_text().split('id="details"')[1] for folder in (scans, tmp_path)]
    assert blocks[0] == blocks[1]
    assert json.loads((tmp_path / "ab.csv.meta.json").read_text())["verdict_rule"] == AGREEMENT
    ledger = tmp_path / "copy.ledger"
    shutil.copy(scans / "ab.csv.ledger", ledger)
    checkpoints = ("--checkpoint", trained, "--checkpoint", other)
    done = run("scan", clips, *checkpoints, *FLAGS, "--ledger", ledger, "--out", tmp_path / "again.csv")
    assert "4 known from the ledger" in done.stderr
    assert (tmp_path / "again.csv").read_bytes() == (scans / "ab.csv").read_bytes()
    turned = run("scan", clips, "--checkpoint", other, *FLAGS, "--ledger", ledger, "--out", tmp_path / "b.csv")
    assert "known from the ledger" not in turned.stderr
    assert (tmp_path / "b.csv").read_bytes() == (scans / "b.csv").read_bytes()


def test_both_can_be_calibrated_again(scans: Path, clips: Path, trained: Path, other: Path, tmp_path: Path) -> None:
    new = []
    for path, threshold in ((trained, 0.3), (other, 0.2)):
        checkpoint = read_card(path)
        calibration = Calibration(trained=True, temperature=3.0, fake_threshold=threshold)
        card = checkpoint.card.model_copy(update={"calibration": calibration})
        new.append(save_calibrated(tmp_path / path.name, checkpoint, card).path)
    ledger = scans / "ab.csv.ledger"
    again, fresh = tmp_path / "again.jsonl", tmp_path / "fresh.jsonl"
    given = ("--calibration", new[1], "--calibration", new[0])  # in any order
    assert run("report", ledger, *given, "--out", again).exit_code == 0
    bases = {read_card(path).base_sha256: read_card(path) for path in (trained, other)}
    with pytest.MonkeyPatch.context() as patch:  # the same networks need no second export
        patch.setattr("dfscan.detector.runtime.onnx_graph", lambda each: onnx_graph(bases[each.base_sha256]))
        run("scan", clips, "--checkpoint", new[0], "--checkpoint", new[1], *FLAGS, "--out", fresh)
    assert again.read_bytes() == fresh.read_bytes()
    assert {json.loads(line)["verdict"] for line in again.read_text().splitlines()} == {"fake", "no_face", "error"}
    half = tmp_path / "half.jsonl"
    assert run("report", ledger, "--calibration", new[1], "--out", half).exit_code == 0
    row = json.loads(half.read_text().splitlines()[1])
    before = json.loads((scans / "ab.jsonl").read_text().splitlines()[1])
    assert row["detectors"][0] == before["detectors"][0]
    assert row["detectors"][1]["threshold"] == 0.2
    refused = run("report", ledger, "--threshold", 0.5)
    assert refused.exit_code == 2
    assert "by several detectors, each with its own thresholds; give --calibration" in refused.stderr
    assert run("compare", ledger, half, "--out", tmp_path / "c.csv").exit_code in (0, 1)
    shifts = {Path(row["path"]).name: row["score_shift"] for row in rows_of(tmp_path / "c.csv")}
    assert set(shifts) == {"one.mp4", "two.mkv"}, "only the second score has moved"
    assert all(float(shift) != 0 for shift in shifts.values())


MEASURED = Validation(error_rate=Bounded(0.01, 0.0, 0.05))


def opinions(*labels: VerdictLabel) -> list[DetectorResult]:
    reasons = {"inconclusive": Reason("between_thresholds", "above 0.1")}
    return [
        DetectorResult(f"d{i}", f"d{i}@0", Verdict(label, 0.5 + i / 10, 0.9, 0, reasons.get(label), MEASURED))
        for i, label in enumerate(labels)
    ]


BOTH, FAKE_ONLY, NEITHER = Rules(0.9, 0.1, 3, 2, 0), Rules(0.9, None, 3, 2, 0), Rules(None, None, 3, 2, 0)


@pytest.mark.parametrize(
    ("labels", "rules", "label", "reason"),
    [
        (["fake", "fake"], [BOTH, BOTH], "fake", None),
        (["real", "real"], [BOTH, BOTH], "real", None),
        (["fake", "real"], [BOTH, BOTH], "inconclusive", "detectors_disagree: d0 says fake, d1 says real"),
        (
            ["fake", "fake", "real"],
            [BOTH] * 3,
            "inconclusive",
            "detectors_disagree: d0 says fake, d1 says fake, d2 says real",
        ),
        (["fake", "inconclusive"], [BOTH, BOTH], "inconclusive", "not_confirmed: d0 says fake, d1 says inconclusive"),
        (
            ["inconclusive", "fake", "fake"],
            [BOTH] * 3,
            "fake",
            "detectors_agree: d0 says inconclusive, d1 says fake, d2 says fake; between_thresholds: above 0.1",
        ),
        # A detector without thresholds has no say.
        (["fake", "inconclusive"], [BOTH, NEITHER], "fake", None),
        (
            ["inconclusive", "real"],
            [NEITHER, BOTH],
            "real",
            "detectors_agree: d1 says real; between_thresholds: above 0.1",
        ),
        # One that never says real cannot confirm it, and need not.
        (["real", "inconclusive"], [BOTH, FAKE_ONLY], "real", "detectors_agree: d0 says real, d1 says inconclusive"),
        (["real", "fake"], [BOTH, FAKE_ONLY], "inconclusive", "detectors_disagree: d0 says real, d1 says fake"),
        (["inconclusive"] * 2, [BOTH, NEITHER], "inconclusive", "between_thresholds: above 0.1"),
        (["no_face", "no_face"], [BOTH, BOTH], "no_face", None),
    ],
)
def test_verdicts_are_combined(
    labels: Sequence[VerdictLabel], rules: list[Rules], label: VerdictLabel, reason: str | None
) -> None:
    verdict = agreed(opinions(*labels), rules)
    assert (verdict.label, verdict.reason and str(verdict.reason)) == (label, reason)
    assert (verdict.score, verdict.threshold, verdict.track_id) == (0.5, 0.9, 0)
    num_voters = sum(each is not NEITHER for each in rules)
    assert (verdict.validation is None) == (num_voters != 1), "rates hold for one detector alone"


def test_names_are_unique_and_readable(trained: Path, other: Path, tmp_path: Path) -> None:
    shutil.copy(other, tmp_path / "b (1).safetensors")
    assert detector_names([read_card(trained), read_card(other)]) == ["trained", "other"]
    nameless, named = replace(read_card(other), path=tmp_path / "b (1).safetensors"), read_card(trained)
    nameless = replace(nameless, card=nameless.card.model_copy(update={"name": None}))
    assert detector_names([named, nameless]) == ["trained", "b_1_"]
    namesake = replace(named, sha256="0" * 64, path=tmp_path / "new.safetensors")
    assert detector_names([named, namesake]) == ["trained", "new"], "the names of the files"
    with pytest.raises(ConfigError, match=r"two of .*trained\.safetensors, .* have the same name; rename one"):
        detector_names([named, replace(namesake, path=Path("TRAINED.safetensors"))])
    with pytest.raises(ConfigError, match="are the same file; give each one once"):
        detector_names([named, named])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("scan", "{clip}", "--threshold", 0.5), "--threshold is for one checkpoint"),
        (("info",), "2 checkpoints are given, but this command takes one --checkpoint"),
        (("calibrate", "{clip}", "--label", "real", "--out", "x.safetensors"), "this command takes one --checkpoint"),
        (("evaluate", "{clip}", "--out", "x"), "this command takes one --checkpoint"),
    ],
)
def test_what_needs_one_detector_refuses_several(
    command: tuple[Any, ...], message: str, clips: Path, trained: Path, other: Path, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    shutil.copy(clips / "one.mp4", tmp_path / "real")
    place = tmp_path if command[0] == "evaluate" else clips / "one.mp4"
    arguments = [str(each).replace("{clip}", str(place)).replace("x", str(tmp_path / "x")) for each in command[1:]]
    done = run(command[0], *arguments, "--checkpoint", trained, "--checkpoint", other)
    assert done.exit_code == 2
    assert message in done.stderr


def test_checkpoints_come_from_the_environment_and_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFSCAN_CHECKPOINT", "my own/a.safetensors:hf://lab/b@v1:c.safetensors")
    seen: list[ScanSettings] = []
    monkeypatch.setattr("dfscan.scan.setup.find_checkpoints", lambda settings: seen.append(settings) or 1 / 0)
    run("info")
    assert seen[0].checkpoint == ("my own/a.safetensors", "hf://lab/b@v1", "c.safetensors")
    run("info", "--checkpoint", "d.safetensors")
    assert seen[1].checkpoint == ("d.safetensors",)
    (tmp_path / "one.toml").write_text('checkpoint = "a.safetensors"\n')
    (tmp_path / "two.toml").write_text('checkpoint = ["a.safetensors", "hf://lab/b"]\n')
    for name, expected in (("one", ("a.safetensors",)), ("two", ("a.safetensors", "hf://lab/b"))):
        settings = build_settings(ScanSettings, read_file(tmp_path / f"{name}.toml", ScanSettings))
        assert settings.checkpoint == expected


def test_settings_are_those_of_the_first_detector(
    clips: Path, trained: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = (str(trained), str(other))
    resolved, _ = resolve(ScanSettings(checkpoint=checkpoints, num_frames=4, device="cpu"))
    assert (resolved.num_frames, resolved.threshold) == (4, None)
    labels = [read_card(path).label for path in checkpoints]
    for label in labels:
        assert f"{label}'s error rates are valid only for its own settings; changed: num_frames" in caplog.text


def test_workers_and_batches_give_the_same_results(scans: Path, clips: Path, trained: Path, other: Path) -> None:
    """As a worker of a cluster, and as on a GPU with batches across videos."""
    settings = ScanSettings(checkpoint=(str(trained), str(other)), num_frames=4, device="cpu")
    resolved, checkpoints = resolve(settings)
    paths = [str(clips / name) for name in ("one.mp4", "two.mkv")]
    here = {result.path: to_json(result) for result, _ in scan_videos(paths, load_engine(resolved, checkpoints))}

    class Listener:
        def faces_scored(self, count: int) -> None: ...

        def video_done(self, result: object) -> None: ...

    judge, _ = Job.of(resolved, checkpoints, paths).open(1, Dumps(suffix="png"), Listener())
    assert {result.path: to_json(result) for result, _ in judge(paths)} == here
    engine = load_engine(resolved, checkpoints)
    classifiers = tuple(
        replace(classifier, runtime=TorchRuntime(load_network(checkpoint), device="cpu", batch_size=5, threads=2))
        for classifier, checkpoint in zip(engine.classifiers, checkpoints, strict=True)
    )
    for result, _ in scan_videos(paths, replace(engine, classifiers=classifiers)):
        for one, two in zip(result.detectors, from_json(here[result.path]).detectors, strict=True):
            logits = [[face.logit for track in each.tracks for face in track.faces] for each in (one, two)]
            assert logits[0] == pytest.approx(logits[1], abs=1e-3)


def test_in_python(scans: Path, clips: Path, trained: Path, other: Path) -> None:
    with dfscan.Scanner([trained, str(other)], num_frames=4, device="cpu") as scanner:
        results = list(scanner.scan(clips / "one.mp4"))
    assert [each.name for each in results[0].detectors] == ["trained", "other"]
    document = json.loads(json.dumps(results[0].to_dict()))
    assert [each["name"] for each in document["detectors"]] == ["trained", "other"]
    (row,) = (row for row in rows_of(scans / "ab.csv") if row["path"].endswith("one.mp4"))
    frame = dfscan.to_frame(results)
    assert list(frame.columns) == list(row)
    assert frame["score_other"][0] == float(row["score_other"])
    assert frame["checkpoint"][0] == row["checkpoint"]


def test_bench_states_the_cost_of_each_detector(clips: Path, trained: Path, other: Path) -> None:
    given = ("--checkpoint", trained, "--checkpoint", other, "--num-frames", 2, "--device", "cpu")
    done = run("bench", clips / "one.mp4", *given, "--json")
    assert done.exit_code == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert [stages[f"classify {name}"]["count"] for name in ("trained", "other")] == [2, 2]
    parts = sum(stages[f"classify {name}"]["cpu_s"] for name in ("trained", "other"))
    assert 0 < parts <= stages["classify"]["cpu_s"] + 0.01


def test_heat_maps_are_those_of_the_first_detector(clips: Path, trained: Path, other: Path, tmp_path: Path) -> None:
    dumps = {}
    for name, checkpoints in {"a": [trained], "ab": [trained, other]}.items():
        given = [word for checkpoint in checkpoints for word in ("--checkpoint", checkpoint)]
        done = run("explain", clips / "one.mp4", *given, "--num-frames", 2, "--device", "cpu", "--out", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        dumps[name] = {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.png")}
    assert dumps["ab"] == dumps["a"]
    assert "\n  other: " in done.stdout
