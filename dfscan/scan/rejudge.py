"""Judge the results of a ledger again, with another calibration or threshold, without scanning anything.

A ledger has the logit of every face, divided by the temperature of the checkpoint that scored it, and the checkpoint's
card. So the scores at another temperature and the verdicts at other thresholds are those of a new scan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dfscan.config import ScanSettings, build_settings
from dfscan.detector.card import OWN_SETTINGS, CheckpointCard, SeenFiles
from dfscan.detector.checkpoint import SOURCE_KEY, Checkpoint, read_card
from dfscan.errors import DataError
from dfscan.scan.ledger import LedgerEntry, Recipe, RecipeDetector
from dfscan.scan.setup import rules_for, with_checkpoint
from dfscan.scan.verdict import Rules, agreed, decide
from dfscan.types import DetectorResult, FaceScore, Picture, VideoResult

QUALITY_METHOD = 5
"""First `setup.METHOD` that measures the sharpness of faces."""


@dataclass(frozen=True, slots=True)
class _NewJudge:
    """How the results of one detector change."""

    label: str
    """Label of the new checkpoint."""
    rules: Rules
    factor: float
    """Factor for the logits in the ledger."""
    seen: SeenFiles | None
    """Files that the new checkpoint has seen."""
    is_replaced: bool
    """True if the checkpoint is one of those with a new calibration."""


@dataclass(frozen=True, slots=True)
class _Change:
    """How the results of one recipe change."""

    recipe: Recipe
    """Recipe of a scan that would give the new results."""
    judges: list[_NewJudge]
    """One for each detector of the recipe."""


class Judge:
    """Judges results again; refuses ledgers that lack what this needs."""

    def __init__(
        self,
        entries: Sequence[LedgerEntry],
        cards: Mapping[str, Mapping[str, Any]],
        *,
        calibrations: Sequence[str],
        threshold: float | None,
    ) -> None:
        """Check that every entry can be judged again.

        Args:
            entries: entries of one or several ledgers.
            cards: cards of their checkpoints, by the sha256 of the file.
            calibrations: checkpoints with new calibrations, each with the weights of a detector of the entries.
            threshold: minimum score of a `fake` video; None takes the threshold of the checkpoint.

        Raises:
            CheckpointError: a checkpoint cannot be read.
            DataError: an entry was scored with other weights or by several detectors, or the ledger does not have what
                is needed.
        """
        self._threshold = threshold
        self._cards = cards
        self.checkpoints = [read_card(calibration) for calibration in calibrations]
        if num_old := sum(not entry.can_be_judged_again for entry in entries):
            raise DataError(
                f"{num_old} of {len(entries)} results come from a version of dfscan that did not store what judging "
                "them again needs; scan these videos again"
            )
        num_of = Counter(entry.recipe.digest for entry in entries)
        self._changes = {
            recipe.digest: self._change(recipe, num_of[recipe.digest])
            for recipe in {entry.recipe.digest: entry.recipe for entry in entries}.values()
        }

    def _change(self, recipe: Recipe, num_results: int) -> _Change:
        if recipe.detectors and self._threshold is not None:
            raise DataError(
                f"{num_results} videos were scored by several detectors, each with its own thresholds; give "
                "--calibration instead of --threshold"
            )
        old = [self._known(*checkpoint, num_results) for checkpoint in recipe.checkpoints.items()]
        new = [
            next((each for each in self.checkpoints if each.base_sha256 == before.base_sha256), before)
            for before in old  # one without a new calibration of its network stays
        ]
        for checkpoint in self.checkpoints:
            if checkpoint not in new:
                raise DataError(
                    f"{num_results} videos were scored by {recipe.checkpoint}, whose network is not that of "
                    f"{checkpoint.path}; scan them with this checkpoint, or give one that was calibrated from theirs"
                )
        for checkpoint in new:
            if checkpoint.card.quality and recipe.method < QUALITY_METHOD:
                raise DataError(
                    f"{num_results} results come from a version of dfscan that did not measure sharpness, on which the "
                    f"thresholds of {checkpoint.path} depend; scan these videos again"
                )
        names = {*OWN_SETTINGS, "every"} - {"threshold"} - ({"num_frames"} if recipe.settings.get("every") else set())
        given = {name: recipe.settings.get(name) for name in names} | {"threshold": self._threshold}
        settings = [with_checkpoint(build_settings(ScanSettings, given), checkpoint) for checkpoint in new]
        detectors = [
            RecipeDetector(name, before.path.name if after is before else after.label, after.sha256)
            for name, before, after in zip(recipe.names or [""], old, new, strict=True)
        ]
        threshold = None if recipe.detectors else settings[0].threshold
        return _Change(
            recipe=Recipe.of(
                detectors,
                version=recipe.version,
                device_kind=recipe.device_kind,
                settings={**recipe.settings, "threshold": threshold},
                method=recipe.method,
            ),
            judges=[
                _NewJudge(
                    label=detector.checkpoint,
                    rules=rules_for(own, after),
                    factor=before.card.calibration.temperature / after.card.calibration.temperature,
                    seen=after.card.seen,
                    is_replaced=after is not before,
                )
                for detector, own, before, after in zip(detectors, settings, old, new, strict=True)
            ],
        )

    def _known(self, label: str, sha256: str, num_results: int) -> Checkpoint:
        """Return a checkpoint of a recipe, with its label as its path."""
        document = self._cards.get(sha256)
        if document is None:
            raise DataError(
                f"the ledger does not have the card of {label}, which scored {num_results} videos, so its "
                "temperature is unknown; scan them again"
            )
        try:
            card = CheckpointCard.model_validate({name: document[name] for name in document.keys() - {SOURCE_KEY}})
        except ValidationError as error:
            raise DataError(
                f"the card of {label} in the ledger is from another version of dfscan; scan again"
            ) from error
        return Checkpoint(Path(label), sha256, card)

    def recipe(self, entry: LedgerEntry) -> Recipe:
        """Return the recipe of a scan that would give the new result."""
        return self._changes[entry.recipe.digest].recipe

    def judged(self, entry: LedgerEntry, result: VideoResult) -> VideoResult:
        """Return the result of an entry with new scores and a new verdict."""
        remarks, sha256 = result.remarks, result.info.sha256
        if remarks is None:
            return result  # an error
        judges = self._changes[entry.recipe.digest].judges
        detectors = result.detectors or [DetectorResult("", "", result.verdict, result.tracks, remarks.used_for)]
        after = []
        for before, judge in zip(detectors, judges, strict=True):
            used_for = before.used_for
            if judge.is_replaced:
                used_for = judge.seen.use_of(sha256) if judge.seen and sha256 else None
            tracks = tuple(
                replace(track, faces=tuple(FaceScore(each.face, each.logit * judge.factor) for each in track.faces))
                for track in before.tracks
            )
            verdict = decide(tracks, judge.rules, replace(remarks, used_for=used_for), is_hdr=result.info.is_hdr)
            after.append(DetectorResult(before.name, judge.label, verdict, tracks, used_for))
        return replace(
            result,
            tracks=after[0].tracks,
            verdict=agreed(after, [judge.rules for judge in judges]) if result.detectors else after[0].verdict,
            remarks=replace(remarks, used_for=after[0].used_for),
            detectors=tuple(after) if result.detectors else (),
        )


def rescored(pictures: Sequence[Picture], result: VideoResult) -> list[Picture]:
    """Return pictures with the scores of their faces in a result."""
    scores = {
        (track.track_id, scored.face.frame_index): scored.score for track in result.tracks for scored in track.faces
    }
    return [
        replace(picture, score=scores.get((picture.track_id, picture.frame_index), picture.score))
        for picture in pictures
    ]
