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
from dfscan.scan.ledger import LedgerEntry, Recipe
from dfscan.scan.setup import rules_for, with_checkpoint
from dfscan.scan.verdict import Rules, decide
from dfscan.types import FaceScore, Picture, Track, VideoResult

QUALITY_METHOD = 5
"""First `setup.METHOD` that measures the sharpness of faces."""


@dataclass(frozen=True, slots=True)
class _Change:
    """How the results of one recipe change."""

    recipe: Recipe
    """Recipe of a scan that would give the new results."""
    rules: Rules
    factor: float
    """Factor for the logits in the ledger."""
    seen: SeenFiles | None
    """Files that the new checkpoint has seen."""


class Judge:
    """Judges results again; refuses ledgers that lack what this needs."""

    def __init__(
        self,
        entries: Sequence[LedgerEntry],
        cards: Mapping[str, Mapping[str, Any]],
        *,
        calibration: str | None,
        threshold: float | None,
    ) -> None:
        """Check that every entry can be judged again.

        Args:
            entries: entries of one or several ledgers.
            cards: cards of their checkpoints, by the sha256 of the file.
            calibration: checkpoint with the new calibration, and the weights with which the entries were scored.
            threshold: minimum score of a `fake` video; None takes the threshold of the checkpoint.

        Raises:
            CheckpointError: the checkpoint cannot be read.
            DataError: an entry was scored with other weights, or the ledger does not have what is needed.
        """
        self._threshold = threshold
        self.checkpoint = read_card(calibration) if calibration else None
        if num_old := sum(not entry.can_be_judged_again for entry in entries):
            raise DataError(
                f"{num_old} of {len(entries)} results come from a version of dfscan that did not store what judging "
                "them again needs; scan these videos again"
            )
        num_of = Counter(entry.recipe.digest for entry in entries)
        self._changes = {
            recipe.digest: self._change(recipe, cards, num_of[recipe.digest])
            for recipe in {entry.recipe.digest: entry.recipe for entry in entries}.values()
        }

    def _change(self, recipe: Recipe, cards: Mapping[str, Mapping[str, Any]], num_results: int) -> _Change:
        document = cards.get(recipe.checkpoint_sha256)
        if document is None:
            raise DataError(
                f"the ledger does not have the card of {recipe.checkpoint}, which scored {num_results} videos, so its "
                "temperature is unknown; scan them again"
            )
        try:
            card = CheckpointCard.model_validate({name: document[name] for name in document.keys() - {SOURCE_KEY}})
        except ValidationError as error:
            raise DataError(
                f"the card of {recipe.checkpoint} in the ledger is from another version of dfscan; scan again"
            ) from error
        old = Checkpoint(Path(recipe.checkpoint), recipe.checkpoint_sha256, card)
        new = self.checkpoint or old
        if new.base_sha256 != old.base_sha256:
            raise DataError(
                f"{num_results} videos were scored by {recipe.checkpoint}, whose network is not that of {new.path}; "
                "scan them with this checkpoint, or give one that was calibrated from theirs"
            )
        if new.card.quality and recipe.method < QUALITY_METHOD:
            raise DataError(
                f"{num_results} results come from a version of dfscan that did not measure sharpness, on which the "
                f"thresholds of {new.path} depend; scan these videos again"
            )
        names = {*OWN_SETTINGS, "every"} - {"threshold"} - ({"num_frames"} if recipe.settings.get("every") else set())
        given = {name: recipe.settings.get(name) for name in names} | {"threshold": self._threshold}
        settings = with_checkpoint(build_settings(ScanSettings, given), new)
        return _Change(
            recipe=replace(
                recipe,
                checkpoint=recipe.checkpoint if new is old else new.label,
                checkpoint_sha256=new.sha256,
                settings={**recipe.settings, "threshold": settings.threshold},
            ),
            rules=rules_for(settings, new),
            factor=old.card.calibration.temperature / new.card.calibration.temperature,
            seen=new.card.seen,
        )

    def recipe(self, entry: LedgerEntry) -> Recipe:
        """Return the recipe of a scan that would give the new result."""
        return self._changes[entry.recipe.digest].recipe

    def judged(self, entry: LedgerEntry, result: VideoResult) -> VideoResult:
        """Return the result of an entry with new scores and a new verdict."""
        remarks = result.remarks
        if remarks is None:
            return result  # an error
        change = self._changes[entry.recipe.digest]
        tracks = tuple(_scaled(track, change.factor) for track in result.tracks)
        if self.checkpoint:
            sha256 = result.info.sha256
            remarks = replace(remarks, used_for=change.seen.use_of(sha256) if change.seen and sha256 else None)
        verdict = decide(tracks, change.rules, remarks, is_hdr=result.info.is_hdr)
        return replace(result, tracks=tracks, verdict=verdict, remarks=remarks)


def _scaled(track: Track, factor: float) -> Track:
    return replace(track, faces=tuple(FaceScore(scored.face, scored.logit * factor) for scored in track.faces))


def rescored(pictures: Sequence[Picture], result: VideoResult) -> list[Picture]:
    """Return pictures with the scores of their faces in a result."""
    scores = {
        (track.track_id, scored.face.frame_index): scored.score for track in result.tracks for scored in track.faces
    }
    return [
        replace(picture, score=scores.get((picture.track_id, picture.frame_index), picture.score))
        for picture in pictures
    ]
