"""Whole scans of synthetic videos with a real face, with a tiny network in place of B4."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfscan.config import ScanSettings
from dfscan.detector.checkpoint import load_network, read_card
from dfscan.detector.runtime import TorchRuntime
from dfscan.faces import batched
from dfscan.faces.batched import BatchedFaceDetector
from dfscan.media.isolate import Decoded, Event, decode_videos
from dfscan.report.dumps import DumpFolder
from dfscan.scan import classify, detect, pipeline
from dfscan.scan.ledger import Recipe, from_json, to_json
from dfscan.scan.pipeline import Engine, scan_videos
from dfscan.scan.run import ScanSummary
from dfscan.scan.setup import load_engine, resolve, scan_recipe
from dfscan.types import Reason, Verdict, VideoInfo, VideoResult
from tests.pictures import FACE_XYXY, astronaut, moved, nobody
from tests.videos import write_streams, write_video


@pytest.fixture(autouse=True)
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))


def engine_for(checkpoint: Path, **settings: Any) -> Engine:
    sampling = {} if "every" in settings else {"num_frames": 4}
    chosen = ScanSettings(checkpoint=(str(checkpoint),), device="cpu", **{**sampling, **settings})
    return load_engine(*resolve(chosen))


def scan(paths: list[Path], engine: Engine, **more: Any) -> list[VideoResult]:
    results = {result.path: result for result, _ in scan_videos([str(path) for path in paths], engine, **more)}
    return [results[str(path)] for path in paths]


def inputs(clips: Path) -> list[Path]:
    return [clips / name for name in ("nobody.mp4", "one.mp4", "text.mp4", "two.mkv")]


def test_people_are_detected_tracked_and_scored(clips: Path, untrained: Path) -> None:
    nobody, one, text, two = scan(inputs(clips), engine_for(untrained))
    assert [r.verdict.label for r in (nobody, one, text, two)] == ["no_face", "inconclusive", "error", "inconclusive"]
    assert [len(track.faces) for track in one.tracks] == [4]
    assert sorted(len(track.faces) for track in two.tracks) == [4, 4]
    first = one.tracks[0].faces[0].face
    expected = np.array(FACE_XYXY) + 6 * round(first.time_s * 10) * np.array([1, 0, 1, 0])
    assert np.abs(first.box_xyxy - expected).max() < 20
    assert text.verdict.reason is not None
    assert text.verdict.reason.code == "not_video"
    assert text.verdict.score is None
    assert nobody.verdict.score is None


def test_results_do_not_depend_on_workers_and_threads(clips: Path, untrained: Path) -> None:
    def found(workers: int, threads: int) -> list[Any]:
        engine = engine_for(untrained, workers=workers, threads=threads)
        results = scan(inputs(clips), engine, num_explained=3, keeps_pictures=True)
        return [(to_json(result), [astuple(each) for each in result.pictures]) for result in results]

    expected = found(1, 1)
    assert [len(pictures) for _, pictures in expected] == [4, 4 + 3, 0, 8 + 3]
    for workers, threads in ((2, 1), (4, 2), (1, 16)):
        assert found(workers, threads) == expected


def test_detection_and_scoring_use_at_most_the_given_threads(
    clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_for(untrained, threads=2)
    at_work: dict[str, set[int]] = {"detect": set(), "predict": set()}

    def watch(subject: Any, name: str) -> None:
        act = getattr(subject, name)

        def watched(*args: Any, **more: Any) -> Any:
            at_work[name].add(threading.get_ident())
            return act(*args, **more)

        monkeypatch.setattr(subject, name, watched)

    watch(engine.detector, "detect")
    watch(engine.runtime, "predict")
    scan(inputs(clips), engine)
    assert all(at_work.values())
    assert len(at_work["detect"] | at_work["predict"]) <= 2


def test_batching_across_videos_does_not_change_scores(clips: Path, untrained: Path) -> None:
    alone = engine_for(untrained)
    network = load_network(read_card(untrained))
    runtime = TorchRuntime(network, device="cpu", batch_size=5, threads=3)
    together = replace(alone, classifiers=(replace(alone.main, runtime=runtime),))
    for one, other in zip(scan(inputs(clips), alone), scan(inputs(clips), together), strict=True):
        logits, others = ([face.logit for track in r.tracks for face in track.faces] for r in (one, other))
        assert logits == pytest.approx(others, abs=1e-3)


def as_with_a_gpu(engine: Engine, checkpoint: Path, **more: Any) -> Engine:
    """Run the GPU path on the CPU: detection and scoring in batches across videos, in float16."""
    options = {"batch_size": 4, "threads": 2, "mixed_precision": True} | more
    runtime = TorchRuntime(load_network(read_card(checkpoint)), device="cpu", **options)
    classifiers = (replace(engine.main, runtime=runtime),)
    batched_detector = BatchedFaceDetector(engine.detector, device="cpu")
    return replace(engine, classifiers=classifiers, batched_detector=batched_detector)


def logits_of(result: VideoResult) -> list[float]:
    scored = [score for track in result.tracks for score in track.faces]
    return [score.logit for score in sorted(scored, key=lambda each: (each.face.time_s, each.face.box_xyxy[0]))]


def test_gpu_path_gives_the_same_verdicts_as_the_cpu(
    clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "MAX_BATCH_FRAMES", 5)
    engine = engine_for(untrained)
    on_cpu = scan(inputs(clips), engine)
    on_gpu = scan(inputs(clips), as_with_a_gpu(engine, untrained))
    in_fp32 = scan(inputs(clips), as_with_a_gpu(engine, untrained, mixed_precision=False))
    assert [len(logits_of(result)) for result in on_gpu] == [0, 4, 0, 8]
    for one, other, precise in zip(on_cpu, on_gpu, in_fp32, strict=True):
        assert (one.verdict.label, one.num_frames) == (other.verdict.label, other.num_frames)
        assert [len(track.faces) for track in one.tracks] == [len(track.faces) for track in other.tracks]
        assert logits_of(other) == pytest.approx(logits_of(precise), abs=2e-2)
        assert logits_of(other) == pytest.approx(logits_of(one), abs=0.1)  # boxes of tracked faces differ
    assert logits_of(on_gpu[1]) != logits_of(in_fp32[1])
    engine = engine_for(untrained, workers=3)
    again = scan(inputs(clips), as_with_a_gpu(engine, untrained, threads=4))
    assert [to_json(result) for result in again] == [to_json(result) for result in on_gpu]


def test_temperature_divides_logits(clips: Path, untrained: Path, trained: Path) -> None:
    (cold,), (warm,) = (scan([clips / "one.mp4"], engine_for(path)) for path in (untrained, trained))
    assert warm.tracks[0].faces[0].logit == pytest.approx(cold.tracks[0].faces[0].logit / 2, abs=1e-6)


@pytest.mark.parametrize(("threshold", "label"), [(0.0, "fake"), (0.999, "inconclusive")])
def test_user_threshold_decides(clips: Path, trained: Path, threshold: float, label: str) -> None:
    (result,) = scan([clips / "one.mp4"], engine_for(trained, threshold=threshold))
    assert result.verdict.label == label
    assert result.verdict.threshold == threshold


def grow(clip: Path) -> None:
    with clip.open("ab") as file:
        file.write(b"more")


def replace_by_another(clip: Path) -> None:
    other = clip.with_name("other")
    other.write_bytes(clip.read_bytes())
    status = clip.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(clip)


CHANGES: dict[str, Callable[[Path], object]] = {
    "growing": grow,
    "cut off": lambda clip: os.truncate(clip, 100),
    "replaced": replace_by_another,
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_during_the_scan_is_an_error_and_others_are_unaffected(
    change: str, clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes((clips / "one.mp4").read_bytes())
    before = len(os.listdir("/proc/self/fd"))

    def decode_and_change(*arguments: Any, **options: Any) -> Iterator[Event]:
        has_changed = False
        for event in decode_videos(*arguments, **options):
            yield event
            if isinstance(event, Decoded) and event.path == str(clip) and not has_changed:
                CHANGES[change](clip)
                has_changed = True

    monkeypatch.setattr(pipeline, "decode_videos", decode_and_change)
    result, other = scan([clip, clips / "two.mkv"], engine_for(untrained))
    assert result.verdict.reason is not None
    assert (result.verdict.label, result.verdict.reason.code) == ("error", "changed")
    assert other.status == "ok"
    assert len(os.listdir("/proc/self/fd")) == before


def test_dumps_show_the_highest_scoring_faces(clips: Path, untrained: Path, tmp_path: Path) -> None:
    dumps = DumpFolder(tmp_path, suffix="png")
    (result,) = scan([clips / "two.mkv"], engine_for(untrained), dumps=dumps, num_explained=3)
    scores = sorted((face.score for track in result.tracks for face in track.faces), reverse=True)
    assert [row["score"] for row in result.dumps] == pytest.approx(scores[:3], abs=1e-9)
    assert all(
        (tmp_path / row[f"{kind}_file"]).stat().st_size
        for row in result.dumps
        for kind in ("face", "heat_map", "frame")
    )


def test_classifier_failure_ends_the_scan_and_its_child_processes(
    clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_for(untrained)
    monkeypatch.setattr(type(engine.runtime), "predict", lambda *_: (_ for _ in ()).throw(RuntimeError("gone")))
    with pytest.raises(RuntimeError, match="gone"):
        scan(inputs(clips), engine)
    assert not [each for each in threading.enumerate() if each.name.startswith(("faces", "score"))]
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert not children.exists() or not children.read_text().split()


def test_a_frame_that_breaks_the_detector_fails_one_video(
    clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_for(untrained)
    detect = engine.detector.detect

    def fragile(pixels: Any, **more: Any) -> Any:
        if pixels.shape[1] == 320:  # nobody.mp4
            raise IndexError("index 3 is out of bounds")
        return detect(pixels, **more)

    monkeypatch.setattr(engine.detector, "detect", fragile)
    nobody, one, _, two = scan(inputs(clips), engine)
    assert nobody.verdict.reason is not None
    assert (nobody.verdict.label, nobody.verdict.reason.code) == ("error", "internal")
    assert (one.verdict.label, len(logits_of(two))) == ("inconclusive", 8)


def test_a_frame_that_breaks_a_batch_fails_one_video(
    clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = as_with_a_gpu(engine_for(untrained), untrained)
    assert engine.batched_detector is not None
    detect, sizes = engine.detector.detect, []

    def fragile(frames: Any) -> Any:
        sizes.append(len(frames))
        if any(pixels.shape[1] == 320 for pixels in frames):  # nobody.mp4
            raise IndexError("index 3 is out of bounds")
        return [detect(pixels) for pixels in frames]

    monkeypatch.setattr(engine.batched_detector, "detect", fragile)
    nobody, one, _, two = scan(inputs(clips), engine)
    assert sorted(sizes) == [1, 1, 1, 1, 4, 4, 4]  # first all frames of one shape together, then each frame alone
    assert nobody.verdict.reason is not None
    assert (nobody.verdict.label, nobody.verdict.reason.code) == ("error", "internal")
    assert (one.verdict.label, len(logits_of(two))) == ("inconclusive", 8)


def test_number_of_waiting_batches_is_bounded(clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MAX_BATCH_FRAMES", 1)
    engine = as_with_a_gpu(engine_for(untrained), untrained, threads=1)
    monkeypatch.setattr(engine.batched_detector, "detect", lambda frames: [engine.detector.detect(f) for f in frames])
    most, submit = [0], detect.BatchedDetectStage.submit

    def watched(stage: detect.BatchedDetectStage, video: Any, frame: Any) -> None:
        submit(stage, video, frame)
        most.append(len(stage._running))

    monkeypatch.setattr(detect.BatchedDetectStage, "submit", watched)
    results = scan(inputs(clips), engine)
    assert [result.num_frames for result in results] == [4, 4, 0, 4]
    assert max(most) == 2


def test_number_of_waiting_frames_is_bounded(clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_for(untrained, threads=1)
    most_frames = most_batches = 0
    submit, flush = detect.SequentialDetectStage.submit, classify.ScoreStage.flush

    def watched_submit(stage: detect.SequentialDetectStage, video: Any, frame: Any) -> None:
        nonlocal most_frames
        submit(stage, video, frame)
        most_frames = max(most_frames, stage._num_waiting)

    def watched_flush(stage: classify.ScoreStage) -> None:
        nonlocal most_batches
        flush(stage)
        most_batches = max(most_batches, len(stage._running))

    monkeypatch.setattr(detect.SequentialDetectStage, "submit", watched_submit)
    monkeypatch.setattr(classify.ScoreStage, "flush", watched_flush)
    results = scan(inputs(clips), engine)
    assert [result.num_frames for result in results] == [4, 4, 0, 4]
    assert 1 <= most_frames <= detect.MAX_WAITING_FRAMES + 1
    assert 1 <= most_batches <= 1 + classify.MAX_WAITING_BATCHES + 1


def test_damaged_video_is_judged_and_marked(clips: Path, untrained: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    write_video(cut, [moved(astronaut(), i) for i in range(40)], fps=20)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    (result,) = scan([cut], engine_for(untrained))
    assert result.status == "partial"
    assert "damaged: " in str(result.verdict.reason)
    assert result.tracks


def test_a_scan_cut_short_by_max_frames_is_partial(clips: Path, untrained: Path) -> None:
    (result,) = scan([clips / "one.mp4"], engine_for(untrained, every=0.2, max_frames=3))
    assert (result.status, result.num_frames) == ("partial", 3)
    assert "max_frames: " in str(result.verdict.reason)


def test_people_who_look_alike_are_two_tracks_after_a_dissolve(untrained: Path, tmp_path: Path) -> None:
    here, there = astronaut().astype(float), np.roll(astronaut()[..., [0, 2, 1]], (6, 9), (0, 1)).astype(float)
    shares = np.clip((np.arange(90) - 34) / 21, 0, 1).tolist()
    frames = [np.rint((1 - share) * here + share * there).astype(np.uint8) for share in shares]
    write_video(tmp_path / "a.mp4", frames)
    (result,) = scan([tmp_path / "a.mp4"], engine_for(untrained, num_frames=15))
    kinds = [{shares[face.face.frame_number] for face in track.faces} & {0.0, 1.0} for track in result.tracks]
    assert kinds == [{0.0}, {1.0}]


@pytest.fixture
def two_cameras(tmp_path: Path) -> Path:
    """Write a file with nobody in the first stream, and one person in the larger second stream and the third."""
    empty = [nobody(width_px=160, height_px=120)] * 10
    person = [moved(astronaut(), 6 * i, 2 * i) for i in range(10)]
    write_streams(tmp_path / "x.mkv", [empty, person, [picture[::2, ::2] for picture in person]])
    return tmp_path / "x.mkv"


def test_faces_of_all_streams_are_scored_in_separate_tracks(two_cameras: Path, untrained: Path) -> None:
    (result,) = scan([two_cameras], engine_for(untrained, min_face_px=40))
    assert (result.status, result.num_frames) == ("ok", 12)
    assert [{scored.face.stream for scored in track.faces} for track in result.tracks] == [{1}, {2}]
    assert result.info.num_skipped_streams == 0
    assert "skipped_streams" not in str(result.verdict.reason)
    assert from_json(to_json(result)).tracks[1].faces[0].face.stream == 2


def test_skipped_streams_are_named(two_cameras: Path, untrained: Path) -> None:
    (result,) = scan([two_cameras], engine_for(untrained, stream=0))
    assert (result.status, result.verdict.label) == ("ok", "no_face")
    assert str(result.verdict.reason).startswith("skipped_streams: 2 not looked at: stream 1 (h264, ")
    assert result.info.num_skipped_streams == 2


def test_a_stream_that_cannot_be_decoded_makes_the_row_partial(two_cameras: Path, untrained: Path) -> None:
    data = two_cameras.read_bytes()
    two_cameras.write_bytes(data[::-1].replace(b"V_MPEG4/ISO/AVC"[::-1], b"V_UNKNOWN/CODEC"[::-1], 1)[::-1])
    (result,) = scan([two_cameras], engine_for(untrained))
    assert result.status == "partial"
    assert "skipped_streams: 1 not looked at: stream 2: nothing here decodes its video codec" in str(
        result.verdict.reason
    )


def test_missing_frames_are_noted(clips: Path, untrained: Path) -> None:
    (result,) = scan([clips / "nobody.mp4"], engine_for(untrained, num_frames=32))
    assert (result.status, result.num_frames) == ("ok", 10)
    assert str(result.verdict.reason) == "few_frames: the file gave only 10 of the 32 frames asked for"


def test_frames_of_a_finished_video_are_freed(clips: Path, untrained: Path, tmp_path: Path) -> None:
    """While a first video is slow, later results are returned and their frames are freed."""
    slow = tmp_path / "slow.mp4"
    write_video(slow, [moved(astronaut(), i % 50) for i in range(400)], fps=100)
    paths = [str(slow), str(clips / "one.mp4"), str(clips / "nobody.mp4")]
    engine = replace(engine_for(untrained, every=0.02), num_workers=2)
    order = [Path(result.path).name for result, _ in scan_videos(paths, engine)]
    assert order == ["one.mp4", "nobody.mp4", "slow.mp4"]


def test_a_result_survives_json(clips: Path, untrained: Path) -> None:
    (result,) = scan([clips / "one.mp4"], engine_for(untrained))
    assert to_json(from_json(to_json(result))) == to_json(result)


def result_of(label: Any, status: Any = "ok") -> VideoResult:
    return VideoResult("x", status, Verdict(label, reason=Reason("a", "b")), VideoInfo(1))


@pytest.mark.parametrize(
    ("labels", "settings", "code"),
    [
        ([], {}, 0),
        (["real", "inconclusive", "no_face"], {}, 0),
        (["real", "fake"], {}, 1),
        (["error"], {}, 2),
        (["error", "fake"], {}, 1),
        (["error", "fake"], {"exit_zero": True}, 0),
        (["error"], {"fail_on": ("fake",)}, 0),
        (["inconclusive"], {"fail_on": ("inconclusive",)}, 1),
        (["no_face"], {"fail_on": ("no_face", "error")}, 1),
        (["fake"], {"fail_on": ("error",)}, 0),
        (["partial"], {"fail_on": ("partial",)}, 1),
        (["partial"], {}, 0),
    ],
)
def test_exit_codes(labels: list[str], settings: dict[str, Any], code: int) -> None:
    tally = ScanSummary()
    for label in labels:
        tally.count(result_of("inconclusive", "partial") if label == "partial" else result_of(label), is_new=True)
    assert tally.exit_code(ScanSettings(**settings)) == code


def test_files_in_a_ledger_without_a_method_number_are_rescanned(untrained: Path) -> None:
    now = scan_recipe(ScanSettings(num_frames=4), [read_card(untrained)], device="cpu")
    document = json.loads(now.document)
    del document["method"]
    assert Recipe(**document).method == 1 < now.method
    assert Recipe(**document).digest != now.digest


def test_recipe_changes_only_with_settings_that_affect_results(untrained: Path, trained: Path) -> None:
    def digest(checkpoint: Path = untrained, device: str = "cpu", **change: Any) -> str:
        given = change if "every" in change else {"num_frames": 4, **change}
        return scan_recipe(ScanSettings(**given), [read_card(checkpoint)], device=device).digest

    assert digest(workers=7, threads=5, out="x.csv", quiet=True) == digest()
    assert digest(device="cuda:0") == digest(device="cuda:1") != digest()
    for change in ({"threshold": 0.5}, {"min_face_px": 60}, {"every": 2.0}, {"explain_top": 9}):
        assert digest(**change) != digest()
    assert digest(trained) != digest()
