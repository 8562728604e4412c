"""Calibration on own footage: limits that hold for new videos, groups, refusals, and whole runs of the command."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from scipy.stats import beta, norm

from dfscan.dataset.sources import Source
from dfscan.detector.card import Aggregation, Calibration, CheckpointCard, SamplingDefaults, SeenFiles, own_limit
from dfscan.detector.checkpoint import Checkpoint, load_network, read_card, save_calibrated, save_checkpoint
from dfscan.errors import DataError
from dfscan.evaluation.calibrate import expit, fit_thresholds
from dfscan.evaluation.metrics import likelihood_ratio
from dfscan.evaluation.own_footage import (
    GENUINE_ALONE_LIMIT,
    OWN_FOOTAGE,
    Footage,
    by_group,
    fit,
    min_groups,
    min_rate,
    num_allowed,
    usable_footage,
)
from dfscan.types import Face, FaceScore, Reason, Track, Verdict, VideoInfo, VideoResult
from tests.pictures import astronaut, moved, nobody
from tests.test_cli import run
from tests.test_cli import surroundings as surroundings
from tests.videos import write_video

NUM_REPETITIONS = 1000
CARD = CheckpointCard(aggregation=Aggregation(prior_faces=0), calibration=Calibration(trained=True))


def footage(reals: object, fakes: object = (), groups: list[str] | None = None) -> Footage:
    """Return videos with these logits, each with one track of ten faces."""
    logits = np.concatenate([np.asarray(reals, np.float64), np.asarray(fakes, np.float64)])
    num_reals = len(logits) - len(np.asarray(fakes))
    names = groups or [str(i) for i in range(len(logits))]
    sources = [Source(f"{i}.mp4", "real" if i < num_reals else "fake", group=names[i]) for i in range(len(logits))]
    sha256s = [f"{i:064x}" for i in range(len(logits))]
    return Footage(sources, sha256s, logits * 10, np.full(len(logits), 10.0), list(range(len(logits))))


def threshold(reals: object, max_fpr: float, groups: list[str] | None = None) -> float:
    found = fit(footage(reals, groups=groups), CARD, max_fpr=max_fpr, max_fnr=0.05).fake_threshold
    assert found is not None
    return found


# The limits


@pytest.mark.parametrize(("num", "max_fpr"), [(50, 0.1), (200, 0.02), (299, 0.01), (1000, 0.01)])
def test_the_limit_holds_in_at_least_95_percent_of_repetitions(num: int, max_fpr: float) -> None:
    """The rate of new genuine videos at the threshold is known exactly, because the distribution of logits is.

    299 is the smallest number for 1 %: there the probability is 95.05 %, so the observed proportion varies around it.
    """
    rng = np.random.default_rng(num)
    limits = {"temperature": 1.0, "max_fpr": max_fpr, "max_fnr": 0.05, "num_allowed": num_allowed}
    sets = expit(rng.normal(3, 1, (NUM_REPETITIONS, num)))
    found = [fit_thresholds(scores, np.zeros(num, np.bool_), **limits).fake_threshold for scores in sets]
    held = np.mean(norm.sf(logit(np.array(found)), 3, 1) <= max_fpr)
    assert held >= (0.93 if num == min_groups(max_fpr) else 0.95)


def logit(scores: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(scores) - np.log1p(-scores))


def test_a_limit_on_average_is_exceeded_more_often() -> None:
    """Above the highest of 99 videos, the rate is at most 1 % on average, but more for 37 % of the sets."""
    rng = np.random.default_rng(0)
    rates = norm.sf(rng.normal(size=(NUM_REPETITIONS, 99)).max(axis=1))
    assert rates.mean() == pytest.approx(0.01, abs=0.001)
    assert np.mean(rates > 0.01) == pytest.approx(0.37, abs=0.04)
    with pytest.raises(ValueError, match="99 groups cannot support"):
        num_allowed(99, 0.01)


@pytest.mark.parametrize("max_rate", [0.001, 0.01, 0.02, 0.05, 0.3])
def test_numbers_of_groups_are_the_smallest_that_keep_the_limit(max_rate: float) -> None:
    num = min_groups(max_rate)
    assert (1 - max_rate) ** num <= 0.05 < (1 - max_rate) ** (num - 1)
    assert min_rate(num) <= max_rate < min_rate(num - 1)
    for more in (num, 2 * num, 5 * num):
        beyond = num_allowed(more, max_rate)
        # The rate above the (k + 1)-th highest of n values is Beta(k + 1, n - k) distributed.
        assert beta.cdf(max_rate, beyond + 1, more - beyond) >= 0.95 > beta.cdf(max_rate, beyond + 2, more - beyond - 1)


def test_known_numbers() -> None:
    assert [min_groups(rate) for rate in (0.01, 0.02, 0.05)] == [299, 149, 59]
    assert [num_allowed(num, 0.01) for num in (299, 473, 1000)] == [0, 1, 4]
    assert min_rate(200) == pytest.approx(0.0149, abs=1e-4)
    assert min_rate(0) == 1


def test_a_threshold_is_directly_above_the_highest_scores_that_must_stay_below() -> None:
    reals = np.linspace(0.5, 5, 1000)
    found = fit(footage(reals), CARD, max_fpr=0.01, max_fnr=0.05)
    assert found.fake_threshold is not None
    scores = expit(reals)
    assert scores[-5] < found.fake_threshold < scores[-4]
    assert found.real_called_fake_rate == 0.004
    assert found.real_called_fake_interval == pytest.approx((0.0011, 0.0102), abs=1e-4)


def test_groups_count_once_by_their_worst_video() -> None:
    scores = np.array([0.1, 0.9, 0.3, 0.8, 0.4, 0.7])
    is_fake = np.array([False, False, False, True, True, True])
    values, kinds = by_group(scores, is_fake, ["a", "a", "b", "a", "b", "b"])
    assert values.tolist() == [0.9, 0.3, 0.8, 0.4]
    assert kinds.tolist() == [False, False, True, True]


def test_the_limit_holds_for_new_people_with_dependent_videos() -> None:
    """Each of 60 people has five videos that share most of their logit. Counted as 300 videos, the limit would fail."""
    rng = np.random.default_rng(5)

    def people(num: int) -> np.ndarray:
        return rng.normal(3, 1, (num, 1)) + rng.normal(0, 0.3, (num, 5))

    new = np.sort(people(100_000).max(axis=1))
    names = [str(i // 5) for i in range(300)]
    for groups, holds in ((names, True), (None, False)):
        found = logit(np.array([threshold(people(60).ravel(), 0.05, groups) for _ in range(200)]))
        rates = 1 - np.searchsorted(new, found) / len(new)
        assert bool(np.mean(rates <= 0.05) >= 0.95) is holds


# Fitting


def test_genuine_videos_alone_keep_the_temperature_and_give_no_real() -> None:
    card = CARD.model_copy(update={"calibration": Calibration(trained=True, temperature=2.5)})
    found = fit(footage(np.linspace(-5, 4, 100)), card, max_fpr=0.05, max_fnr=0.05)
    assert (found.temperature, found.real_threshold, found.max_fake_called_real) == (2.5, None, None)
    assert (found.num_real_videos, found.num_fake_videos, found.num_real_groups) == (100, 0, 100)
    assert found.own_footage
    assert own_limit({"calibration": found.model_dump()}, "real") is None
    assert own_limit({"calibration": found.model_dump()}, "fake") == (
        "set on 100 real videos of the user's own footage: with 95 % confidence, at most 5 % of such videos reach it"
    )


def test_labelled_videos_set_everything() -> None:
    rng = np.random.default_rng(2)
    reals, fakes = rng.normal(-6, 4, 400), rng.normal(6, 4, 300)
    groups = [f"person {i // 2}" for i in range(700)]
    found = fit(footage(reals, fakes, groups), CARD, max_fpr=0.02, max_fnr=0.05)
    assert found.temperature == pytest.approx(16 / 12, rel=0.2)  # the log-odds of these classes are 12 x / 16
    assert (found.num_real_groups, found.num_fake_groups) == (200, 150)
    assert (found.num_real_videos, found.num_fake_videos) == (400, 300)
    assert found.real_threshold is not None
    assert found.fake_threshold is not None
    assert found.fake_called_real_rate == num_allowed(150, 0.05) / 150
    first = expit(np.concatenate([reals, fakes])[::2] / found.temperature)
    num_fakes, num_reals = (int((part >= found.fake_threshold).sum()) for part in (first[200:], first[:200]))
    assert found.likelihood_ratios["fake"] == likelihood_ratio(num_fakes, 150, num_reals, 200), (
        "one video of each group"
    )
    assert own_limit({"calibration": found.model_dump()}, "real") == (
        "set on 300 fake videos in 150 groups of the user's own footage: with 95 % confidence, at most 5 % of such "
        "groups are at or below it"
    )


def test_genuine_videos_that_score_1_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 of 300 genuine groups have a score of 1\.0, and at most 0 may"):
        fit(footage([0.0] * 298 + [800.0] * 2), CARD, max_fpr=0.01, max_fnr=0.05)


# Usable videos


def result(path: str, logits: list[list[float]], sha256: str) -> VideoResult:
    nothing = np.zeros(4, np.float32)
    tracks = []
    for i, values in enumerate(logits):
        faces = [Face(j, j / 4, 0, nothing, np.zeros((5, 2), np.float32), 1.0, nothing) for j in range(len(values))]
        tracks.append(Track(i, tuple(FaceScore(face, value) for face, value in zip(faces, values, strict=True))))
    verdict = Verdict("inconclusive", 0.5) if logits else Verdict("no_face")
    return VideoResult(path, "ok", verdict, VideoInfo(1, sha256), tracks=tuple(tracks))


def test_unusable_videos_are_left_out() -> None:
    card = CARD.model_copy(
        update={"calibration": Calibration(trained=True, temperature=2.0), "seen": SeenFiles.of(["5" * 64], ["6" * 64])}
    )
    results = [
        result("a", [[1.0] * 3, [4.0] * 5, [9.0] * 2], "1" * 64),  # the third track is too short to decide
        result("b", [[1.0] * 4], "2" * 64),
        result("copy of a", [[1.0] * 3], "1" * 64),
        result("short", [[9.0] * 2], "3" * 64),
        result("nobody", [], "4" * 64),
        result("trained on", [[-9.0] * 4], "5" * 64),
        result("calibrated on", [[0.0] * 4], "6" * 64),
        replace(result("broken", [], ""), verdict=Verdict("error", reason=Reason("crashed", ""))),
    ]
    sources = [Source(each.path, "real", group=each.path) for each in results]
    checkpoint = Checkpoint(Path("x.safetensors"), "ab" * 32, card)
    used = usable_footage(sources, {each.path: each for each in results}, checkpoint)
    assert [source.path for source in used.sources] == ["a", "b", "calibrated on"]
    assert used.left_out == Counter(
        {
            "without enough faces": 2,
            "that are copies": 1,
            "that the checkpoint was trained on": 1,
            "that cannot be judged": 1,
        }
    )
    # Raw logits are twice those in the results. The video's score is that of its highest track.
    assert used.video_logits(1.0, card.aggregation).tolist() == [8.0, 2.0, 0.0]
    sources[2] = replace(sources[2], label="fake")
    with pytest.raises(DataError, match="copy of a is fake, but a copy of a: remove the wrong one"):
        usable_footage(sources, {each.path: each for each in results}, checkpoint)


# From videos to a checkpoint


@pytest.fixture(scope="module")
def quick(trained: Path) -> Path:
    """The trained checkpoint, for four frames per video."""
    checkpoint = read_card(trained)
    card = checkpoint.card.model_copy(update={"sampling": SamplingDefaults(num_frames=4)})
    path = trained.with_name("quick.safetensors")
    save_checkpoint(path, load_network(checkpoint), card)
    return path


@pytest.fixture(scope="module")
def own_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of one person each, a copy of the first, and one of nobody."""
    folder = tmp_path_factory.mktemp("own")
    for i in range(5):
        picture = moved(astronaut(), 10 * i, zoom=1 + i / 20)
        write_video(folder / f"{i}.mp4", [moved(picture, 3 * j) for j in range(4)], fps=4)
    shutil.copy(folder / "0.mp4", folder / "copy.mp4")
    write_video(folder / "nobody.mp4", [nobody(width_px=128, height_px=128)] * 4, fps=4)
    return folder


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


def test_footage_is_scanned_once_and_its_rates_are_quoted(
    own_videos: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, out = tmp_path / "all.ledger", tmp_path / "own.safetensors"
    before = tmp_path / "before.csv"
    base = ("--checkpoint", quick, "--device", "cpu")
    assert run("scan", own_videos, *base, "--ledger", ledger, "--out", before, "--exit-zero").exit_code == 0
    command = ("calibrate", own_videos, "--label", "real", *base, "--ledger", ledger, "--out", out)
    few = run(*command)
    assert few.exit_code == 2
    assert "7 genuine videos in 7 groups are too few: an error rate of at most 1 %" in few.stderr
    assert "needs at least 299; add genuine videos, or give --max-fpr 0.349" in few.stderr
    with monkeypatch.context() as patch:
        patch.setattr("dfscan.scan.run.load_engine", None)  # nothing is scanned
        fewer = run(*command, "--max-fpr", 0.4)
        assert "5 genuine videos in 5 groups are too few, 1 more that are copies, 1 more without enough" in fewer.stderr
        assert not out.exists()
        done = run(*command, "--max-fpr", 0.5)
    assert done.exit_code == 0, done.stderr

    original, copy = read_card(quick), read_card(out)
    scores = [float(rows(before)[f"{i}.mp4"]["score"]) for i in range(5)]
    calibration = copy.card.calibration
    assert calibration.fake_threshold is not None
    assert calibration.fake_threshold == pytest.approx(max(*scores, 0.5), abs=1e-6)
    assert (calibration.num_real_videos, calibration.real_called_fake_rate) == (5, 0)
    assert copy.base_sha256 == original.sha256
    assert copy.card.sampling == original.card.sampling
    assert copy.card.training is not None
    assert GENUINE_ALONE_LIMIT in copy.card.training["limits"]
    for name, tensor in safetensors.numpy.load_file(quick).items():
        assert np.array_equal(tensor, safetensors.numpy.load_file(out)[name])

    assert "left out 1 of 7 videos that are copies" in done.stderr
    limit = "with 95 % confidence, at most 50 % of such videos reach it"
    assert f"set on 5 real videos of the user's own footage: {limit}" in done.stderr
    assert limit in run("info", "--checkpoint", out).stdout
    assert "never, it was calibrated on genuine videos alone" in run("info", "--checkpoint", out).stdout
    after, page = tmp_path / "after.csv", tmp_path / "after.html"
    judged = run("report", ledger, "--calibration", out, "--out", after, "--html", page)
    assert judged.exit_code == 0, judged.stderr
    assert limit in page.read_text()
    for i in range(5):
        row = rows(after)[f"{i}.mp4"]
        assert row["verdict"] == "inconclusive"
        assert "this checkpoint was calibrated on genuine videos alone and calls no video real" in row["reason"]
        assert "seen_in_validation" in row["reason"]


def test_labelled_footage_measures_the_checkpoint(own_videos: Path, quick: Path, tmp_path: Path) -> None:
    """Five people with a fake each; here the fakes are other excerpts of the same clips."""
    lines = ["path,label,person"]
    for i in range(5):
        write_video(tmp_path / f"fake {i}.mp4", [moved(astronaut(), 5 + 9 * i, 9)] * 4, fps=4)
        lines += [f"{own_videos / f'{i}.mp4'},real,p{i}", f"{tmp_path / f'fake {i}.mp4'},fake,p{i}"]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "own.safetensors"
    flags = ("--checkpoint", quick, "--device", "cpu", "--max-fpr", 0.5, "--max-fnr", 0.5, "--out", out)
    done = run("calibrate", tmp_path / "labels.csv", "--group-column", "person", *flags)
    assert done.exit_code == 0, done.stderr
    card = read_card(out).card
    assert (card.calibration.num_real_groups, card.calibration.num_fake_groups) == (5, 5)
    assert card.calibration.temperature != read_card(quick).card.calibration.temperature
    assert card.metrics is not None
    assert card.metrics[OWN_FOOTAGE]["num_groups"] == 5
    assert card.metrics[OWN_FOOTAGE]["video"]["roc_auc"]["value"] is not None
    assert Path(f"{out}.ledger").is_file()


def test_a_calibrated_copy_can_be_calibrated_again(quick: Path, tmp_path: Path) -> None:
    first, second = read_card(quick), tmp_path / "second.safetensors"
    again = save_calibrated(second, first, first.card)
    third = save_calibrated(tmp_path / "third.safetensors", again, again.card)
    assert third.base_sha256 == again.base_sha256 == first.sha256
    assert read_card(third.path).card == third.card
    other = save_checkpoint(tmp_path / "other.safetensors", load_network(third), third.card)
    assert other.card.base_sha256 is None  # its weights may differ


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "fake"], "0 genuine videos in 0 groups are too few"),
        ([], "cannot tell what is real; set --label"),
        (["--label", "real", "--checkpoint", "UNTRAINED"], "is untrained: its scores mean nothing"),
        (["--label", "real", "--out", "CHECKPOINT"], "--out would overwrite the input"),
        (["--label", "real", "--ledger", "own.safetensors"], "--out and --ledger are the same file"),
    ],
)
def test_unsuitable_inputs_are_refused_before_the_scan(
    arguments: list[str], message: str, own_videos: Path, quick: Path, untrained: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"UNTRAINED": untrained, "CHECKPOINT": quick}
    given = [str(places.get(argument, argument)) for argument in arguments]
    checkpoint = [] if "--checkpoint" in given else ["--checkpoint", quick]
    base = ["--max-fpr", 0.4, "--out", "own.safetensors", "--device", "cpu"]
    done = run("calibrate", own_videos, *checkpoint, *base, *given)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.glob("*"))


def test_the_folder_of_a_training_run_is_recognised(quick: Path, tmp_path: Path) -> None:
    (tmp_path / "validation.csv").touch()
    done = run("calibrate", tmp_path, "--checkpoint", quick, "--out", tmp_path / "x.safetensors")
    assert done.exit_code == 2
    assert "is the folder of a training run; for those, use `dfscan calibrate-folds`" in done.stderr
