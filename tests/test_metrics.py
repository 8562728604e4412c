"""Metrics compared with scikit-learn and with results computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from dfscan.evaluation.metrics import (
    Comparison,
    Estimate,
    by_source,
    clopper_pearson,
    measure,
    paired_accuracy,
    proportion,
    quick,
    within_source_auc,
)

NEED_BOTH = ("roc_auc", "average_precision", "eer", "tpr_at_fpr_1", "tpr_at_fpr_5", "precision", "recall", "f1")


def values(found: dict[str, Estimate]) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in found.items()}


def drawn(num_groups: int = 30, size: int = 10, *, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw scores of groups of one class each, whose members have similar scores."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(num_groups), size)
    is_fake = group % 2 == 1
    logits = rng.normal(size=num_groups)[group] + 0.3 * rng.normal(size=len(group)) + np.where(is_fake, shift, -shift)
    scores = np.round(1 / (1 + np.exp(-logits)), 2)  # with ties
    return scores, is_fake, [f"group {i}" for i in group]


def test_agrees_with_scikit_learn() -> None:
    scores, is_fake, groups = drawn()
    called = scores >= 0.6
    expected = {
        "roc_auc": reference.roc_auc_score(is_fake, scores),
        "average_precision": reference.average_precision_score(is_fake, scores),
        "log_loss": reference.log_loss(is_fake, scores),
        "brier": reference.brier_score_loss(is_fake, scores),
        "accuracy": reference.accuracy_score(is_fake, called),
        "precision": reference.precision_score(is_fake, called),
        "recall": reference.recall_score(is_fake, called),
        "f1": reference.f1_score(is_fake, called),
    }
    found = values(measure(scores, is_fake, groups, fake_threshold=0.6, num_resamples=1))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_resampled_metrics_are_those_of_the_repeated_data() -> None:
    """Reproduce one bootstrap draw by repeating rows, and compare with scikit-learn."""
    scores, is_fake, groups = drawn(6)
    found = measure(scores, is_fake, groups, fake_threshold=0.6, num_resamples=1, seed=2)
    picked = np.random.default_rng(2).integers(6, size=6)
    rows = np.concatenate([np.flatnonzero(np.array(groups) == f"group {i}") for i in picked])
    assert len(set(picked)) < 6
    assert found["roc_auc"].low == found["roc_auc"].high
    assert found["roc_auc"].low == pytest.approx(reference.roc_auc_score(is_fake[rows], scores[rows]))
    expected = reference.average_precision_score(is_fake[rows], scores[rows])
    assert found["average_precision"].low == pytest.approx(expected)
    assert found["f1"].low == pytest.approx(reference.f1_score(is_fake[rows], scores[rows] >= 0.6))


def test_metrics_computed_by_hand() -> None:
    """Four reals and five fakes, in descending order of score: F F R F F R F R R.

    The fake is higher in 4 + 4 + 3 + 3 + 2 = 16 of the 20 pairs. At a false positive rate of 1/4 the false negative
    rate falls from 3/5 to 1/5, so the interpolated ROC has equal rates at 1/4.
    """
    scores = [0.95, 0.9, 0.8, 0.7, 0.65, 0.5, 0.4, 0.2, 0.1]
    is_fake = [True, True, False, True, True, False, True, False, False]
    found = values(measure(scores, is_fake, list("abcdefghi"), fake_threshold=0.7, num_resamples=1))
    assert found["roc_auc"] == pytest.approx(16 / 20)
    assert found["eer"] == pytest.approx(1 / 4)
    assert found["tpr_at_fpr_1"] == found["tpr_at_fpr_5"] == pytest.approx(2 / 5)
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 5 + 5 / 7) / 5)
    assert found["accuracy"] == pytest.approx(6 / 9)
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))


def test_calibration_error_computed_by_hand() -> None:
    """Bins are 1/15 wide: 0.01 and 0.02 are in the first, 0.5 in the eighth and 1.0 in the last.

    The first bin has mean score 0.015 and no fakes; the others have one fake each, with scores of 0.5 and 1.0:
    2/4 * 0.015 + 1/4 * 0.5 + 1/4 * 0 = 0.1325.
    """
    found = values(measure([0.01, 0.02, 0.5, 1.0], [0, 0, 1, 1], list("abcd"), fake_threshold=None, num_resamples=1))
    assert found["ece"] == pytest.approx(0.1325)
    assert found["brier"] == pytest.approx((0.01**2 + 0.02**2 + 0.5**2) / 4)
    assert found["log_loss"] == pytest.approx(-np.log([0.99, 0.98, 0.5, 1.0]).mean())


def test_true_positive_rate_at_a_limited_false_positive_rate() -> None:
    """1 % of 200 reals is two: the two highest may reach the threshold, but not the third."""
    reals = np.linspace(0, 0.5, 200)
    fakes = [reals[-1] + 0.1, (reals[-2] + reals[-1]) / 2, (reals[-3] + reals[-2]) / 2, (reals[-4] + reals[-3]) / 2]
    scores, is_fake = [*reals, *fakes], [False] * 200 + [True] * 4
    found = values(measure(scores, is_fake, [str(i) for i in range(204)], fake_threshold=None, num_resamples=1))
    assert found["tpr_at_fpr_1"] == 3 / 4
    assert found["tpr_at_fpr_5"] == 1


def test_equal_scores_are_at_chance_level() -> None:
    found = values(measure([0.3] * 4, [0, 1, 0, 1], list("abcd"), fake_threshold=0.3, num_resamples=5))
    assert found["roc_auc"] == 0.5
    assert found["eer"] == 0.5
    assert found["tpr_at_fpr_5"] == 0


def test_one_class_gives_only_some_metrics() -> None:
    found = measure([0.2, 0.9, 0.4], [0, 0, 0], list("abc"), fake_threshold=0.5, num_resamples=50)
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert found["accuracy"].low is not None
    assert found["brier"].value == pytest.approx((0.04 + 0.81 + 0.16) / 3)
    assert all(found[name] == Estimate(None, None, None) for name in NEED_BOTH)


def test_without_a_threshold_its_metrics_are_none() -> None:
    scores, is_fake, groups = drawn(4)
    found = measure(scores, is_fake, groups, fake_threshold=None, num_resamples=20)
    assert all(found[name] == Estimate(None, None, None) for name in ("accuracy", "precision", "recall", "f1"))
    assert found["roc_auc"].low is not None


def test_precision_is_none_if_nothing_is_classified_as_fake() -> None:
    found = measure([0.2, 0.3, 0.1, 0.4], [0, 1, 0, 1], list("abcd"), fake_threshold=0.9, num_resamples=20)
    assert found["precision"] == Estimate(None, None, None)
    assert found["recall"].value == found["f1"].value == 0


def test_groups_widen_the_interval() -> None:
    scores, is_fake, groups = drawn()
    alone = [str(i) for i in range(len(scores))]
    widths = []
    for each in (groups, alone):
        auc = measure(scores, is_fake, each, fake_threshold=0.5, num_resamples=200)["roc_auc"]
        assert auc.value is not None
        assert auc.low is not None
        assert auc.high is not None
        assert auc.low < auc.value < auc.high
        widths.append(auc.high - auc.low)
    assert widths[0] > 2 * widths[1]


def test_the_seed_determines_the_interval() -> None:
    scores, is_fake, groups = drawn()
    first, again, other = (
        measure(scores, is_fake, groups, fake_threshold=0.5, num_resamples=30, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first["roc_auc"].low != other["roc_auc"].low


def test_too_few_groups_give_no_interval() -> None:
    found = measure([0.1, 0.8, 0.3, 0.9], [0, 1, 0, 1], ["a", "b", "c", "b"], fake_threshold=0.5, num_resamples=20)
    assert found["roc_auc"] == Estimate(1.0, None, None)


def test_draws_that_lack_a_class_are_repeated() -> None:
    """With two groups per class, one draw in eight lacks a class, for which the AUC is undefined."""
    found = measure([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], list("abcd"), fake_threshold=0.5, num_resamples=100)
    assert found["roc_auc"] == Estimate(1.0, 1.0, 1.0)


@pytest.mark.parametrize("scores", [[], [0.5, float("nan")], [0.5, 1.5]])
def test_invalid_scores_are_rejected(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        measure(scores, [True] * len(scores), ["a"] * len(scores), fake_threshold=None)


def test_proportion_and_its_interval() -> None:
    flags = [True] * 5 + [False] * 15
    alone = proportion(flags, [str(i) for i in range(20)], num_resamples=300)
    assert alone.value == 0.25
    assert alone.low is not None
    assert alone.high is not None
    assert 0.05 <= alone.low <= 0.15
    assert 0.4 <= alone.high <= 0.5
    assert proportion([], []) == Estimate(None, None, None)


def test_clopper_pearson() -> None:
    """Without hits the upper bound solves (1 - p)^n = 0.025; the other values are from Clopper and Pearson's tables."""
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert clopper_pearson(3, 10) == pytest.approx((0.0667, 0.6525), abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_by_source_averages_logits() -> None:
    found = by_source([1.0, 4.0, 3.0, -2.0], [1, 0, 1, 0], ["b", "a", "b", "a"], ["x", "y", "x", "y"])
    assert found.sources.tolist() == ["a", "b"]
    assert found.logits.tolist() == [1.0, 2.0]
    assert found.is_fake.tolist() == [False, True]
    assert found.groups.tolist() == ["y", "x"]
    assert found.num_faces.tolist() == [2, 2]


def test_quick() -> None:
    found = quick([2.0, -1.0, 0.5, -3.0], [1, 1, 0, 0])
    assert found == {"accuracy": 0.5, "roc_auc": 0.75, "f1": 0.5}
    assert quick([2.0, -1.0], [0, 0]) == {"accuracy": 0.5, "roc_auc": None, "f1": 0.0}
    assert quick([-2.0], [0]) == {"accuracy": 1.0, "roc_auc": None, "f1": None}
    assert quick([], []) == {"accuracy": None, "roc_auc": None, "f1": None}
    assert quick([float("nan"), 1.0], [0, 1])["roc_auc"] is None


# Within sources


def test_fakes_are_compared_with_reals_of_their_own_source() -> None:
    """Two sources computed by hand, and two with only one class.

    In source a, the fakes 0.9 and 0.4 score above 1 and 3/4 of the reals 0.4 and 0.1. In source b, the fake 0.5 scores
    above 1/4 of the reals 0.6, 0.7, 0.8 and 0.2. The mean over three fakes is 2/3. By pair, it is 2 + 1.5 + 1 of 8.
    """
    scores = [0.9, 0.4, 0.4, 0.1, 0.5, 0.6, 0.7, 0.8, 0.2, 0.99, 0.01]
    is_fake = [1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    sources = [*"aaaa", *"bbbbb", "c", "d"]
    alone = [str(i) for i in range(len(scores))]
    found = within_source_auc(scores, is_fake, sources, alone, num_resamples=1)
    assert found.estimate.value == pytest.approx(2 / 3)
    counts = (found.num_compared, found.num_left_out, found.num_fakes, found.num_reals, found.num_groups)
    assert counts == (2, 2, 3, 6, 9)
    assert paired_accuracy(scores, is_fake, sources, alone, num_resamples=1).estimate.value == pytest.approx(4.5 / 8)


def test_with_one_source_comparisons_equal_the_roc_auc() -> None:
    scores, is_fake, groups = drawn()
    one_source = ["a"] * len(scores)
    expected = measure(scores, is_fake, groups, fake_threshold=None, num_resamples=50)["roc_auc"]
    for compare in (within_source_auc, paired_accuracy):
        found = compare(scores, is_fake, one_source, groups, num_resamples=50).estimate
        assert found.value == pytest.approx(expected.value)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_agrees_with_scikit_learn_within_sources() -> None:
    scores, is_fake, groups = drawn()
    sources = np.random.default_rng(3).integers(4, size=len(scores))
    parts = [
        (reference.roc_auc_score(is_fake[at], scores[at]), is_fake[at].sum())
        for at in (sources == np.arange(4)[:, None])
    ]
    found = within_source_auc(scores, is_fake, [str(i) for i in sources], groups, num_resamples=30).estimate
    assert found.value == pytest.approx(sum(auc * num for auc, num in parts) / is_fake.sum())
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_a_detector_of_sources_is_at_chance_level_within_sources() -> None:
    """Scores that depend only on the source give a high overall ROC AUC, but 0.5 within sources."""
    sources = ["mostly fake"] * 10 + ["mostly real"] * 10
    is_fake = [True] * 9 + [False] + [True] + [False] * 9
    scores = [0.9] * 10 + [0.1] * 10
    alone = [str(i) for i in range(20)]
    assert quick(np.array(scores) - 0.5, is_fake)["roc_auc"] == pytest.approx(0.9)
    assert within_source_auc(scores, is_fake, sources, alone, num_resamples=20).estimate.value == 0.5


def test_nothing_to_compare() -> None:
    nothing = Estimate(None, None, None)
    assert within_source_auc([0.1, 0.9], [0, 1], ["a", "b"], ["a", "b"]) == Comparison(nothing, 0, 2, 0, 0, 0)
    assert within_source_auc([], [], [], []) == Comparison(nothing, 0, 0, 0, 0, 0)
    assert within_source_auc([float("nan"), 1.0], [0, 1], ["a", "a"], ["a", "b"]).estimate == nothing
    one_group = within_source_auc([0.1, 0.9], [0, 1], ["a", "a"], ["x", "x"])
    assert one_group == Comparison(Estimate(1.0, None, None), 1, 0, 1, 1, 1)
