"""Build the engine that judges videos, and the recipe of its results, from settings and a checkpoint."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from dfscan.config import ScanSettings
from dfscan.detector.card import (
    OWN_SETTINGS,
    CheckpointCard,
    broken_limit,
    changed_settings,
    quality_validations,
    validations,
    withheld,
)
from dfscan.detector.checkpoint import Checkpoint, default_checkpoint_path, read_card
from dfscan.detector.runtime import create_runtime
from dfscan.detector.verify import verify_logits
from dfscan.errors import CheckpointError, ConfigError
from dfscan.faces.batched import BatchedFaceDetector
from dfscan.faces.detect import FaceDetector
from dfscan.media.isolate import Limits
from dfscan.media.plan import Sampling
from dfscan.scan.classify import Classifier
from dfscan.scan.ledger import Recipe, RecipeDetector
from dfscan.scan.pipeline import Engine
from dfscan.scan.trust import read_trust_list, trust_list_sha256, with_provenance
from dfscan.scan.verdict import GENUINE_ALONE, TOO_WEAK, UNCALIBRATED, UNTRAINED, QualityRules, Rules
from dfscan.types import Reason, VerdictLabel
from dfscan.version import __version__

MIN_WORKERS = 2
"""Minimum default number of videos decoded at once, so that the first frames of the next video are always ready."""
MAX_DEFAULT_THREADS = 8
"""Limits the default: each thread costs memory, and a container's CPU quota is not visible. See `--threads`."""

MAX_FOUND_FACES = 100
"""Maximum number of faces tracked per frame, so that the same `max_faces` people can be scored in every frame."""
METHOD = 5
"""Increment this when equal settings start to give different results; files in old ledgers are then rescanned."""

log = logging.getLogger("dfscan")


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(ScanSettings):
    """Scan settings completed by a checkpoint.

    The threshold is None if too few validation videos support the checkpoint's own.
    """

    num_frames: int = field()
    detection_threshold: float = field()
    min_face_px: int = field()
    max_faces: int = field()
    min_faces: int = field()


def resolve(settings: ScanSettings) -> tuple[ResolvedSettings, list[Checkpoint]]:
    """Find the checkpoints and complete the settings with those of the first one, as `load_engine` takes both.

    With several checkpoints there is no threshold in the settings: each has its own.

    Raises:
        CheckpointError, MissingExtraError: as `find_checkpoints` and `with_provenance`.
        ConfigError: as `with_checkpoint` and `detector_names`, or a threshold is set for several checkpoints.
    """
    checkpoints = find_checkpoints(settings)
    detector_names(checkpoints)
    resolved = with_checkpoint(with_provenance(settings), checkpoints[0])
    if len(checkpoints) > 1:
        if settings.threshold is not None:
            raise ConfigError("--threshold is for one checkpoint; with several, each one has its own thresholds")
        resolved = replace(resolved, threshold=None)
        for checkpoint in checkpoints[1:]:
            with_checkpoint(resolved, checkpoint)
    return resolved, checkpoints


def find_checkpoints(settings: ScanSettings) -> list[Checkpoint]:
    """Return the checkpoints in the settings, or the embedded one.

    Raises:
        CheckpointError: there is no checkpoint, or one cannot be read.
    """
    paths = settings.checkpoint or default_checkpoint_path()
    if paths is None:
        raise CheckpointError(
            "no checkpoint: this version of dfscan has none built in. Name one with --checkpoint, or create an "
            "untrained one for trials with `dfscan init-checkpoint FILE` (every verdict is then inconclusive)"
        )
    return [read_card(path) for path in (paths if isinstance(paths, tuple) else [paths])]


def only_one(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return the only checkpoint.

    Raises:
        ConfigError: there are several.
    """
    if len(checkpoints) > 1:
        raise ConfigError(f"{len(checkpoints)} checkpoints are given, but this command takes one --checkpoint")
    return checkpoints[0]


def detector_names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return a unique name for each checkpoint: those in the cards, or if these are not unique, those of the files.

    Raises:
        ConfigError: neither are unique, or two checkpoints are the same.
    """
    if len({each.sha256 for each in checkpoints}) < len(checkpoints):
        raise ConfigError("--checkpoint: two of the checkpoints are the same file; give each one once")
    for names in ([each.name for each in checkpoints], [each.path.stem for each in checkpoints]):
        readable = [re.sub(r"[^\w.+-]+", "_", name, flags=re.ASCII) for name in names]
        if len({name.casefold() for name in readable}) == len(checkpoints):
            return readable
    listed = ", ".join(str(each.path) for each in checkpoints)
    raise ConfigError(f"--checkpoint: two of {listed} have the same name; rename one of the files")


def with_checkpoint(settings: ScanSettings, checkpoint: Checkpoint) -> ResolvedSettings:
    """Replace unset settings by the checkpoint's own, for which its thresholds are valid.

    Raises:
        ConfigError: a threshold is set for a checkpoint that is untrained or not calibrated.
    """
    card = checkpoint.card
    if settings.threshold is not None and not card.calibration.trained:
        raise ConfigError(f"--threshold: {checkpoint.path} is untrained; its scores mean nothing at any threshold")
    if settings.threshold is not None and not card.calibration.is_set:
        raise ConfigError(
            f"--threshold: {checkpoint.path} is not calibrated, so no threshold has a known error rate; calibrate it "
            "with `dfscan calibrate`"
        )
    if settings.max_frames is not None and settings.every is None:
        raise ConfigError("--max-frames works only with --every; without --every, use --num-frames")
    document = card.model_dump()
    changed = changed_settings(settings.document(), document)
    if changed and card.calibration.is_set:
        owner = "the checkpoint" if len(settings.checkpoint or ()) < 2 else checkpoint.label
        log.warning("%s's error rates are valid only for its own settings; changed: %s", owner, ", ".join(changed))
    own = {name: document[section][key] for name, (section, key) in OWN_SETTINGS.items()}
    if withheld(document, "fake"):
        own["threshold"] = None
    given = vars(settings)
    return ResolvedSettings(**given | {name: own[name] for name in own if given[name] is None})


def load_engine(settings: ResolvedSettings, checkpoints: Sequence[Checkpoint]) -> Engine:
    """Load the models; take the arguments from `resolve`.

    Raises:
        ConfigError: the device is not available, or the trust list cannot be read.
        CheckpointError: the weights cannot be used, or do not reproduce the scores recorded in the checkpoint.
    """
    threads = settings.threads or default_threads()
    classifiers = []
    for name, checkpoint in zip(detector_names(checkpoints), checkpoints, strict=True):
        runtime = create_runtime(checkpoint, device=settings.device, batch_size=settings.batch_size, threads=threads)
        verify_logits(runtime, checkpoint)
        classifiers.append(
            Classifier(
                name=name,
                label=checkpoint.label,
                runtime=runtime,
                preprocessing=checkpoint.card.preprocessing,
                temperature=checkpoint.card.calibration.temperature,
                rules=rules_for(settings, checkpoint),
                seen=checkpoint.card.seen,
            )
        )
    runtime = classifiers[0].runtime
    for classifier in classifiers[1:]:
        classifier.runtime.clock = runtime.clock  # they share the device
    detector = FaceDetector(
        threshold=settings.detection_threshold,
        min_face_px=settings.min_face_px,
        max_faces=max(MAX_FOUND_FACES, settings.max_faces),
    )
    batched = None
    if runtime.device != "cpu":
        batched = BatchedFaceDetector(detector, device=runtime.device, clock=runtime.clock)
    limit_threads()
    return Engine(
        detector=detector,
        batched_detector=batched,
        classifiers=tuple(classifiers),
        sampling=Sampling(settings.num_frames, settings.every, settings.max_frames, settings.stream),
        max_faces=settings.max_faces,
        num_workers=settings.workers or default_workers(threads, runtime.device),
        limits=Limits(settings.timeout, settings.max_memory, settings.sandbox),
        images=settings.images,
        trust_list=read_trust_list(settings.trust_list) if settings.provenance else None,
    )


def rules_for(settings: ResolvedSettings, checkpoint: Checkpoint) -> Rules:
    """Return the verdict rules of a checkpoint, with the user's threshold and minimum number of faces, if set."""
    card = checkpoint.card
    document = card.model_dump()
    no_fake, no_real = withheld(document, "fake"), withheld(document, "real")
    is_changed = bool(changed_settings(settings.document(), document))
    without = UNCALIBRATED if card.calibration.trained else UNTRAINED
    without_real = GENUINE_ALONE if card.calibration.num_fake_videos == 0 else TOO_WEAK
    own_threshold = None if no_fake else card.calibration.fake_threshold
    return Rules(
        fake_threshold=own_threshold if settings.threshold is None else settings.threshold,
        real_threshold=None if no_real else card.calibration.real_threshold,
        min_faces=settings.min_faces,
        prior_faces=card.aggregation.prior_faces,
        neutral_logit=card.aggregation.neutral_logit,
        no_fake=Reason("too_few_validation_videos", f"fake is withheld: {no_fake}") if no_fake else without,
        no_real=f"real is withheld: {no_real}" if no_real else without_real,
        validations={} if is_changed else validations(card),
        levels=tuple(_quality_rules(settings, card, no_fake, no_real, is_changed=is_changed)),
    )


def _quality_rules(
    settings: ResolvedSettings, card: CheckpointCard, no_fake: str | None, no_real: str | None, *, is_changed: bool
) -> Iterator[QualityRules]:
    """Yield the rules of each level of sharpness; the user's threshold replaces those for `fake`."""
    is_own_threshold = settings.threshold not in (None, card.calibration.fake_threshold)
    for level, words, measured in quality_validations(card):
        reasons: dict[VerdictLabel, Reason] = {}
        fake_threshold, real_threshold = level.fake_threshold, level.real_threshold
        if is_own_threshold or no_fake:
            fake_threshold = settings.threshold
        elif fake_threshold != card.calibration.fake_threshold:
            text = f"sharpness {words}; {broken_limit(card, level, 'fake')}"
            reasons["fake"] = Reason("low_quality", text)
        if no_real:
            real_threshold = None
        elif real_threshold != card.calibration.real_threshold:
            text = f"sharpness {words}; {broken_limit(card, level, 'real')}"
            reasons["real"] = Reason("low_quality", text)
        yield QualityRules(
            level.below, fake_threshold, real_threshold, reasons, {} if is_changed or is_own_threshold else measured
        )


def default_threads() -> int:
    """Return the number of cores that this process may use, at most `MAX_DEFAULT_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_DEFAULT_THREADS)


def default_workers(threads: int, device: str) -> int:
    """Return the number of videos to decode at once; a fast classifier needs more."""
    return max(MIN_WORKERS, threads // 2 if device == "cpu" else threads)


def limit_threads() -> None:
    """Disable the thread pools of OpenCV and PyTorch; on busy cores, competing pools are up to 8 times slower."""
    import cv2

    cv2.setNumThreads(1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


NOT_IN_RECIPE = frozenset(
    "include exclude follow_symlinks checkpoint device batch_size out format frames_out html html_max_mb webvtt "
    "annotate annotate_top "
    "keep_pictures shard excel delimiter ledger resume verify on max_workers gpus_per_worker workers trust_list "
    "threads timeout max_memory sandbox fail_on new_only exit_zero quiet log_file case exhibit examiner".split()
)
"""Settings that affect which files are scanned and what is written, but not the result of a video."""


def scan_recipe(settings: ScanSettings, checkpoints: Sequence[Checkpoint], *, device: str) -> Recipe:
    """Return everything besides the file that a result depends on; `device` must come from `choose_device`.

    Raises:
        ConfigError: the trust list cannot be read.
    """
    detectors = [
        RecipeDetector(name, checkpoint.label, checkpoint.sha256)
        for name, checkpoint in zip(detector_names(checkpoints), checkpoints, strict=True)
    ]
    return Recipe.of(
        detectors,
        version=__version__,
        device_kind=device.partition(":")[0],
        settings={
            **{name: value for name, value in settings.document().items() if name not in NOT_IN_RECIPE},
            "trust_list_sha256": trust_list_sha256(settings.trust_list),
        },
        method=METHOD,
    )
