"""The ``dfscan evaluate`` command."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, start_logging
from dfscan.config import DETECTOR, INPUT, OUTPUT, ScanSettings
from dfscan.dataset.settings import PrepareSettings
from dfscan.errors import ConfigError
from dfscan.extras import require

if TYPE_CHECKING:
    from dfscan.evaluation.evaluate import Evaluation, SubsetMetrics
    from dfscan.evaluation.metrics import Estimate

Word = TypeVar("Word", bound=str)

SHOWN = {"roc_auc": "ROC AUC", "eer": "EER", "tpr_at_fpr_5": "TPR at 5 % FPR", "accuracy": "accuracy"}
"""Metrics in the printed table. The result files contain all metrics."""
MAX_SAID = 10
"""Maximum number of skipped files listed on stderr."""

log = logging.getLogger("dfscan")


@guarded
@options.with_settings("workers threads timeout max_memory sandbox quiet log_file", DETECTOR)
def evaluate(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="CSV files, folders with real/ and fake/, ledgers with labels, or published data sets.",
            show_default=False,
            metavar="INPUT",
        ),
    ],
    folder: Annotated[
        Path, typer.Option("--out", "-o", rich_help_panel=OUTPUT, help="Folder for the results.", metavar="DIR")
    ],
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            rich_help_panel=OUTPUT,
            help="Also score degraded copies: compressed, smaller, blurred. Takes eight times as long.",
        ),
    ] = False,
    card_path: Annotated[
        Path | None,
        typer.Option(
            "--write-card",
            rich_help_panel=OUTPUT,
            help="Write a copy of the checkpoint with what --robustness measured. Scans with it give no verdict at a "
            "quality at which its error rates do not hold.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=1, rich_help_panel=OUTPUT, help="Bootstrap resamples per interval.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=OUTPUT, help="Seed of the bootstrap.")] = 0,
    label: Annotated[
        str | None, typer.Option(rich_help_panel=INPUT, help="Label for inputs without one: real or fake.")
    ] = None,
    path_column: Annotated[
        str, typer.Option(rich_help_panel=INPUT, help="CSV column with the path.")
    ] = PrepareSettings.path_column,
    label_column: Annotated[
        str, typer.Option(rich_help_panel=INPUT, help="CSV column with the label.")
    ] = PrepareSettings.label_column,
    group_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT,
            help="CSV column with the person or take; intervals treat videos of one group as dependent.",
            metavar="NAME",
        ),
    ] = None,
    kind_column: Annotated[
        str | None,
        typer.Option(rich_help_panel=INPUT, help="CSV column with the kind of manipulation.", metavar="NAME"),
    ] = None,
    source_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT,
            help="CSV column with the origin, such as a page or data set. Adds a comparison within each origin.",
            metavar="NAME",
        ),
    ] = None,
    take_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT,
            help="CSV column with the take. Adds a comparison within each take. Default: the group.",
            metavar="NAME",
        ),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(rich_help_panel=INPUT, help="CSV column with the split.", metavar="NAME")
    ] = None,
    split: Annotated[
        str | None, typer.Option(rich_help_panel=INPUT, help="Evaluate only this split: train, val or test.")
    ] = None,
    allow_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-overlap",
            rich_help_panel=INPUT,
            help="Accept videos that the checkpoint was trained or calibrated on; the results will be too optimistic.",
        ),
    ] = False,
    settings: ScanSettings,
) -> None:
    """Measure a checkpoint's accuracy on labelled videos.

    Uses the checkpoint's own settings and thresholds. Every metric has a 95 % interval from a bootstrap over groups.

    Use people, takes and origins that are new to the checkpoint; otherwise the results are too optimistic. Files
    that the checkpoint was trained or calibrated on are refused.

    If fakes and reals come from several origins, give --source-column. The overall metrics also compare fakes of one
    origin with reals of another, which rewards a detector that only recognises origins.

    Examples:

    \b
      dfscan evaluate ./labelled --checkpoint lab.safetensors --out ./evaluation
      dfscan evaluate labels.csv --group-column person --source-column page --out ./evaluation
      dfscan evaluate ./labelled --out ./evaluation --robustness --write-card robust.safetensors
    """
    require("train", "dfscan evaluate")
    if card_path and not robustness:
        raise ConfigError("--write-card needs --robustness, which measures what it writes")
    if card_path and allow_overlap:
        raise ConfigError(
            "--write-card and --allow-overlap exclude each other: rates on files that the checkpoint has seen are too "
            "optimistic for its card"
        )
    from dfscan.cli.progress import ScanProgressBar
    from dfscan.dataset.manifest import Split, TrueLabel
    from dfscan.dataset.sources import SourceOptions, read_sources
    from dfscan.evaluation.evaluate import run_evaluation
    from dfscan.evaluation.evaluation_files import prepare_folder, write_evaluation, write_videos
    from dfscan.evaluation.quality import write_quality
    from dfscan.files import AtomicFile, spare_inputs
    from dfscan.scan.setup import find_checkpoints, only_one
    from dfscan.text import display_path

    inputs_read = read_sources(
        inputs,
        SourceOptions(
            label=_one_of("--label", label, get_args(TrueLabel)),
            path_column=path_column,
            label_column=label_column,
            group_column=group_column,
            split_column=split_column,
            kind_column=kind_column,
            source_column=source_column,
            take_column=take_column,
        ),
    )
    split = _one_of("--split", split, get_args(Split))
    sources = [source for source in inputs_read.items if split is None or source.split == split]
    if not sources:
        there = sorted({source.split for source in inputs_read.items if source.split})
        raise ConfigError(
            f"none of the {len(inputs_read.items)} videos is in --split {split}; "
            + (f"the inputs contain {', '.join(there)}" if there else "the inputs name no splits: see --split-column")
        )
    paths = [*inputs, *(source.path for source in sources)]
    prepare_folder(folder, inputs=paths)
    if card_path:
        checkpoint = only_one(find_checkpoints(settings))
        if not checkpoint.card.calibration.is_set:
            raise ConfigError(
                f"--write-card: {checkpoint.path} has no thresholds to measure; set them with `dfscan calibrate`"
            )
        spare_inputs([("--write-card", card_path)], [*paths, checkpoint.path])
        AtomicFile(card_path).discard()  # only to check that it can be written
    with ScanProgressBar(is_quiet=settings.quiet) as progress:
        start_logging(is_quiet=settings.quiet, log_path=settings.log_file, handler=progress.log_handler)
        for path, reason in inputs_read.skipped[:MAX_SAID]:
            log.warning("%s: skipped, %s", display_path(path), reason)
        if (num_unsaid := len(inputs_read.skipped) - MAX_SAID) > 0:
            log.warning("%d more files skipped; %s will list all of them", num_unsaid, folder / "evaluation.json")
        result = run_evaluation(
            sources,
            settings,
            with_robustness=robustness,
            with_levels=card_path is None,
            allow_overlap=allow_overlap,
            num_resamples=resamples,
            seed=seed,
            listener=progress,
            on_planned=progress.set_total,
            on_scanned=lambda results: write_videos(folder, results),
        )
    write_evaluation(folder, result, skipped=inputs_read.skipped)
    if card_path:
        write_quality(card_path, result)
    typer.echo("\n".join(_table(result, num_skipped=len(inputs_read.skipped), folder=folder)))


def _one_of(flag: str, value: str | None, known: Sequence[Word]) -> Word | None:
    if value is None:
        return None
    for word in known:
        if word == value:
            return word
    raise ConfigError(f"{flag} must be one of {', '.join(known)}, got {value!r}")


# Printed table


def _table(evaluation: Evaluation, *, num_skipped: int, folder: Path) -> Iterator[str]:
    from dfscan.evaluation.evaluate import count_verdicts
    from dfscan.evaluation.evaluation_files import counts

    of = counts(evaluation.results)
    videos = f"{of['videos']} videos ({of['real']} real, {of['fake']} fake) in {of['groups']} groups"
    yield f"{evaluation.checkpoint.label} on {videos}"
    yield f"{of['judged']} scored, {of['faces']} faces" + (f", {num_skipped} skipped" if num_skipped else "")
    if evaluation.overlap:
        num_seen = len(evaluation.overlap)
        yield f"too optimistic: the checkpoint was trained or calibrated on {num_seen} of these videos"
    yield ""
    table = count_verdicts(evaluation.results)
    yield "truth" + "".join(f"{verdict:>14}" for verdict in next(iter(table.values())))
    for label, row in table.items():
        yield f"{label:<5}" + "".join(f"{count:>14}" for count in row.values())
    yield ""
    yield f"{'level':<7}{'subset':<26}{'videos':>7}" + "".join(f"{name:>23}" for name in SHOWN.values())
    for part in evaluation.parts:
        if "roc_auc" in part.metrics:
            yield _row(part, part.subset)
    for condition in evaluation.conditions:
        yield from (_row(part, condition.name) for part in condition.parts)
    yield from _comparisons(evaluation)
    yield ""
    yield f"95 % intervals from a bootstrap over groups; all metrics, tables and plots are in {folder}"


def _comparisons(evaluation: Evaluation) -> Iterator[str]:
    from dfscan.evaluation.evaluation_files import COMPARISONS
    from dfscan.text import printable

    compared = [part for part in evaluation.parts if part.comparisons]
    if compared:
        yield ""
        yield f"{'compared':<17}{'subset':<26}{'in':>6}{'fakes':>7}{'reals':>7}{'fake scores higher':>23}"
    for name, title in COMPARISONS.items():
        for part in compared:
            if comparison := part.comparisons.get(name):
                sizes = f"{comparison.num_compared:>6}{comparison.num_fakes:>7}{comparison.num_reals:>7}"
                yield f"{title:<17}{printable(part.subset)[:25]:<26}{sizes}{_shown(comparison.estimate):>23}"


def _row(part: SubsetMetrics, name: str) -> str:
    from dfscan.text import printable

    cells = "".join(f"{_shown(part.metrics.get(metric)):>23}" for metric in SHOWN)
    return f"{part.level:<7}{printable(name)[:25]:<26}{part.num_videos:>7}{cells}"


def _shown(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}" + " " * 16
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
