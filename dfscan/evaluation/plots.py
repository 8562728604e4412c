"""Plots of training runs and evaluations, as PNG files.

Figures use matplotlib's objects instead of pyplot, because a library must not change pyplot's global state. Colours
are those of Okabe and Ito 2008 ("Color Universal Design"), which colour-blind readers can distinguish.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dfscan.arrays import BoolArray, Float64Array
from dfscan.evaluation.metrics import NUM_BINS, Estimate
from dfscan.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, FAKE = "#0072B2", "#D55E00"
SECOND, THIRD, NEUTRAL = "#009E73", "#CC79A7", "#595959"
DPI = 120
NUM_HISTOGRAM_BINS = 40

Curve = Mapping[str, Mapping[str, Estimate]]
"""ROC AUC by condition and level, such as ``curve["CRF 23"]["video"]``, in drawing order."""


def plot_history(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Plot the history of a training run: ``losses.png``, ``auc.png`` and ``learning_rate.png``.

    Args:
        rows: rows of ``metrics.jsonl``: ``{"event": "step", "step", "loss", "lr_head", "lr_backbone"}`` and
            ``{"event": "epoch", "epoch", "step", "train_loss", "val_loss", "val_accuracy", "val_auc", "val_f1"}``;
            values may be missing or None. Other events are ignored.
        folder: existing output folder.

    Raises:
        OutputError: a plot cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    steps = [row for row in rows if row.get("event") == "step"]
    epochs = [row for row in rows if row.get("event") == "epoch"]

    losses, axes = _canvas("Loss", "optimiser step", "loss")
    _line(axes, steps, "step", "loss", color="#A6CBE3", linewidth=0.8, label="training, per step")
    _line(axes, epochs, "step", "train_loss", color=REAL, marker="o", label="training, epoch mean")
    _line(axes, epochs, "step", "val_loss", color=FAKE, marker="s", label="validation")
    axes.set_ylim(bottom=0)
    _legend(axes)

    validation, axes = _canvas("Validation", "epoch", "value")
    styles = {"val_auc": ("ROC AUC", FAKE, "s"), "val_accuracy": ("accuracy", REAL, "o"), "val_f1": ("F1", SECOND, "^")}
    for name, (label, colour, marker) in styles.items():
        _line(axes, epochs, "epoch", name, color=colour, marker=marker, label=label)
    axes.axhline(0.5, color=NEUTRAL, linestyle=":")
    axes.set_ylim(min(axes.get_ylim()[0], 0.45), 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)

    rates, axes = _canvas("Learning rate", "optimiser step", "learning rate")
    _line(axes, steps, "step", "lr_head", color=FAKE, linewidth=2, label="head")
    _line(axes, steps, "step", "lr_backbone", color=REAL, linewidth=2, linestyle="--", label="backbone")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _legend(axes)

    return [
        _save(losses, folder / "losses.png"),
        _save(validation, folder / "auc.png"),
        _save(rates, folder / "learning_rate.png"),
    ]


def plot_scores(
    scores: ArrayLike,
    is_fake: ArrayLike,
    folder: Path,
    *,
    thresholds: tuple[float | None, float | None] = (None, None),
    title: str = "",
) -> list[Path]:
    """Plot a set of scores: ``roc.png``, ``calibration.png`` and ``histogram.png``.

    Args:
        scores: (N,) P(fake) in [0, 1].
        is_fake: (N,).
        folder: existing output folder.
        thresholds: thresholds of `real` and `fake`, marked unless None.
        title: description of the scores, shown below the title.

    Raises:
        OutputError: a plot cannot be written.
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(is_fake, np.bool_)
    return [
        _save(_roc(values, labels, thresholds[1], title), folder / "roc.png"),
        _save(_calibration(values, labels, title), folder / "calibration.png"),
        _save(_histogram(values, labels, thresholds, title), folder / "histogram.png"),
    ]


def plot_robustness(curve: Curve, folder: Path) -> list[Path]:
    """Plot the ROC AUC under each condition with its interval: ``robustness.png``.

    Raises:
        OutputError: the plot cannot be written.
    """
    return [_save(_curve(curve, "Robustness", "condition", "ROC AUC"), folder / "robustness.png")]


def plot_comparisons(curve: Curve, folder: Path) -> list[Path]:
    """Plot overall estimates beside those within sources and takes, with their intervals: ``within.png``.

    Args:
        curve: estimates by subset of the videos and display name of the comparison.
        folder: existing output folder.

    Raises:
        OutputError: the plot cannot be written.
    """
    figure = _curve(curve, "Fakes that score above reals", "videos", "proportion of pairs")
    return [_save(figure, folder / "within.png")]


def _curve(curve: Curve, title: str, x_label: str, y_label: str) -> Figure:
    levels = list(dict.fromkeys(level for estimates in curve.values() for level in estimates))
    figure, axes = _canvas(title, x_label, y_label, width=max(7.0, 1.1 * len(curve) + 1.5))
    for i, (level, colour, marker) in enumerate(zip(levels, (REAL, FAKE, SECOND), "os^", strict=False)):
        offset = 0.16 * (i - (len(levels) - 1) / 2)
        found = [
            (place + offset, each.value, each.low, each.high)
            for place, estimates in enumerate(curve.values())
            if (each := estimates.get(level)) is not None and each.value is not None
        ]
        if found:
            x, value, low, high = np.array(found, np.float64).T
            gaps = np.nan_to_num(np.clip([value - low, high - value], 0, None))
            axes.errorbar(x, value, yerr=gaps, color=colour, marker=marker, markersize=7, capsize=4, linestyle="none",
                          label=f"{level} (95 % interval)")  # fmt: skip
    axes.axhline(0.5, color=NEUTRAL, linestyle=":", label="chance")
    axes.set_xticks(range(len(curve)), [name.replace(" ", "\n", 1) for name in curve])
    axes.set_ylim(min(axes.get_ylim()[0], 0.45), 1.02)
    figure.legend(loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    return figure


# Shared layout


def _canvas(title: str, x_label: str, y_label: str, *, width: float = 7.0, height: float = 4.8) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#E0E0E0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.tick_params(labelsize=11)
    return figure, axes


def _legend(axes: Axes, **more: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=11, framealpha=0.8, edgecolor="none", **more)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", fontsize=13, color=NEUTRAL)


def _save(figure: Figure, path: Path) -> Path:
    png = io.BytesIO()
    figure.savefig(png, format="png")  # without pyplot, PNG uses the Agg backend and needs no display
    write_bytes(path, png.getvalue())
    return path


def _line(axes: Axes, rows: Iterable[Mapping[str, Any]], x: str, y: str, **style: Any) -> None:
    """Draw a column over another one, without rows in which either value is missing or not finite."""
    pairs = [(row[x], row[y]) for row in rows if row.get(x) is not None and row.get(y) is not None]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    if len(table):
        axes.plot(table[:, 0], table[:, 1], **style)


# Scores


def _roc(scores: Float64Array, is_fake: BoolArray, fake_threshold: float | None, title: str) -> Figure:
    from sklearn.metrics import auc, roc_curve

    figure, axes = _canvas(_joined("ROC", title), "false positive rate", "true positive rate", width=5.6, height=5.6)
    if is_fake.any() and not is_fake.all():
        fpr, tpr, _ = roc_curve(is_fake, scores, drop_intermediate=False)
        axes.plot(fpr, tpr, color=REAL, linewidth=2, label=f"AUC {auc(fpr, tpr):.3f}", clip_on=False)
        axes.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", label="chance")
        if fake_threshold is not None:
            called = scores >= fake_threshold
            point = called[~is_fake].mean(), called[is_fake].mean()
            label = f"fake from {fake_threshold:.3f}: {point[0]:.1%} of reals, {point[1]:.1%} of fakes"
            axes.plot(*point, "o", color=FAKE, markersize=9, label=label, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    _legend(axes, loc="lower right")
    return figure


def _calibration(scores: Float64Array, is_fake: BoolArray, title: str) -> Figure:
    figure, axes = _canvas(_joined("Calibration", title), "mean score", "proportion of fakes", width=5.6, height=5.6)
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    filled = counts > 0
    mean_score = np.bincount(bins, weights=scores, minlength=NUM_BINS)[filled] / counts[filled]
    fake_proportion = np.bincount(bins, weights=is_fake, minlength=NUM_BINS)[filled] / counts[filled]
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", label="perfect calibration")
    if filled.any():
        axes.plot(
            mean_score, fake_proportion, "o", color=REAL, markersize=8, label=f"{len(scores)} scores (counts in grey)"
        )
    for x, y, count in zip(mean_score, fake_proportion, counts[filled], strict=True):
        axes.annotate(str(count), (x, y), (7, -4), textcoords="offset points", color=NEUTRAL, fontsize=10, va="top")
    axes.set_xlim(-0.02, 1.05)
    axes.set_ylim(-0.07, 1.05)
    axes.set_aspect("equal")
    _legend(axes, loc="upper left")
    return figure


def _histogram(
    scores: Float64Array,
    is_fake: BoolArray,
    thresholds: tuple[float | None, float | None],
    title: str,
) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas(_joined("Scores", title), "score, P(fake)", "number")
    edges = np.linspace(0, 1, NUM_HISTOGRAM_BINS + 1).tolist()
    if not is_fake.all():
        axes.hist(scores[~is_fake], edges, color=REAL, alpha=0.5, label=f"real ({(~is_fake).sum()})")
    if is_fake.any():
        axes.hist(scores[is_fake], edges, color=FAKE, histtype="step", linewidth=2, label=f"fake ({is_fake.sum()})")
    for threshold, colour, style, label in zip(
        thresholds, (REAL, FAKE), ("-.", "--"), ("real up to", "fake from"), strict=True
    ):
        if threshold is not None:
            axes.axvline(threshold, color=colour, linestyle=style, linewidth=2, label=f"{label} {threshold:.3f}")
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def _joined(name: str, title: str) -> str:
    return f"{name}\n{title}" if title else name
