"""The checkpoint card: a JSON document with everything that a score depends on besides the weights."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dfscan.config import of_checkpoints
from dfscan.detector.preprocess import Positive, Preprocessing, Unit
from dfscan.types import Bounded, Validation, VerdictLabel
from dfscan.version import __version__

FORMAT_VERSION: Final = 1

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SamplingDefaults(_Section):
    """Default sampling of the frames of a video."""

    num_frames: Count = of_checkpoints("num_frames")


class DetectionDefaults(_Section):
    """Default selection of the faces in a frame."""

    threshold: Unit = of_checkpoints("detection_threshold")
    """Minimum probability of the face detector."""
    min_face_px: Count = of_checkpoints("min_face_px")
    """Minimum face size (shorter box side), in pixels of the upright frame."""
    max_faces: Count = of_checkpoints("max_faces")
    """Maximum number of faces scored per frame."""


class Aggregation(_Section):
    """Parameters that combine the faces of one person into one score.

    A track's logit is ``(sum of its n logits + prior_faces * neutral_logit) / (n + prior_faces)``, which shrinks the
    logit of a short track towards `neutral_logit`.
    """

    min_faces: Count = of_checkpoints("min_faces")
    """Minimum number of faces of a track that can decide a verdict."""
    prior_faces: float = Field(default=2.0, ge=0)
    neutral_logit: float = 0.0


class Calibration(_Section):
    """Parameters that turn logits into probabilities and scores into verdicts.

    The thresholds apply to a video's score. Without `fake_threshold` no video is called fake, and without
    `real_threshold` no video is called real. A trained checkpoint without thresholds is not calibrated, such as one
    whose weights come from another project; its verdict is always inconclusive.
    """

    trained: bool = False
    temperature: Positive = 1.0
    """Divisor of the network's logits (temperature scaling, Guo et al. 2017, section 4.2)."""
    fake_threshold: Unit | None = None
    """Minimum score of a fake video."""
    real_threshold: Unit | None = None
    """Maximum score of a real video; at most `fake_threshold`."""
    real_called_fake_rate: Unit | None = None
    """Proportion of real validation videos at or above `fake_threshold` (false positive rate)."""
    fake_called_real_rate: Unit | None = None
    """Proportion of fake validation videos at or below `real_threshold`."""
    num_real_videos: int | None = Field(default=None, ge=0)
    """Number of real validation videos, from which `real_called_fake_rate` was measured."""
    num_fake_videos: int | None = Field(default=None, ge=0)
    """Number of fake validation videos, from which `fake_called_real_rate` was measured."""
    own_footage: bool = False
    """True if the thresholds were set on the user's own footage by ``dfscan calibrate``. The limits then hold with 95 %
    confidence, and the rates and their intervals count groups instead of videos."""
    num_real_groups: int | None = Field(default=None, ge=0)
    """Number of groups of the real videos, if the rates count groups. It is called fake if one of its videos is."""
    num_fake_groups: int | None = Field(default=None, ge=0)
    """Number of groups of the fake videos, if the rates count groups."""
    max_real_called_fake: Rate | None = None
    """Upper limit on the rate of real videos at or above `fake_threshold`; see `withheld`."""
    max_fake_called_real: Rate | None = None
    """Upper limit on the rate of fake videos at or below `real_threshold`; see `withheld`."""
    real_called_fake_interval: tuple[Unit, Unit] | None = None
    """95 % confidence interval of `real_called_fake_rate` (Clopper and Pearson 1934)."""
    fake_called_real_interval: tuple[Unit, Unit] | None = None
    """95 % confidence interval of `fake_called_real_rate`."""
    likelihood_ratios: dict[Literal["fake", "inconclusive", "real"], tuple[Ratio, Ratio, Ratio]] = {}
    """By verdict: how many times as frequent it is among fake validation videos as among real ones, and the bounds of
    the 95 % confidence interval, see `evaluation.metrics.likelihood_ratio`. Empty without fakes and in older cards."""

    @property
    def is_set(self) -> bool:
        """True if there are thresholds."""
        return self.fake_threshold is not None

    @model_validator(mode="after")
    def _thresholds_agree(self) -> Self:
        if not self.trained and (self.fake_threshold, self.real_threshold) != (None, None):
            raise ValueError("an untrained checkpoint has no thresholds")
        if self.real_threshold is not None:
            if self.fake_threshold is None:
                raise ValueError("real_threshold needs a fake_threshold")
            if self.real_threshold > self.fake_threshold:
                raise ValueError("real_threshold is above fake_threshold")
        return self


class QualityLevel(_Section):
    """What ``dfscan evaluate --robustness`` measured on videos of one range of sharpness, degraded copies included.

    Each group of videos counts once, with the proportion of its videos that are wrong. The rates hold for
    the thresholds given here.
    """

    below: float | None = Field(default=None, gt=0)
    """Upper limit of the sharpness of the deciding track (see `faces.quality`), exclusive; None for the last level."""
    fake_threshold: Unit | None = None
    """Minimum score of a fake video of this sharpness: that of the calibration if its limit holds here, another one if
    enough groups support it, else None."""
    real_threshold: Unit | None = None
    """Maximum score of a real video of this sharpness, chosen in the same way."""
    num_real_groups: int = Field(default=0, ge=0)
    num_fake_groups: int = Field(default=0, ge=0)
    real_called_fake_at_calibrated: Unit | None = None
    """Rate of real videos at or above the `fake_threshold` of the calibration."""
    fake_called_real_at_calibrated: Unit | None = None
    """Rate of fake videos at or below the `real_threshold` of the calibration."""
    real_called_fake_rate: Unit | None = None
    real_called_fake_interval: tuple[Unit, Unit] | None = None
    fake_called_real_rate: Unit | None = None
    fake_called_real_interval: tuple[Unit, Unit] | None = None


class SelfTest(_Section):
    """A reproducible input and the logits expected for it."""

    seed: int = Field(default=1, ge=0)
    """Seed of numpy's PCG64, whose raw stream is the same in every version."""
    num_inputs: int = Field(default=2, ge=1, le=16)
    expected_logits: tuple[float, ...] = ()
    """Uncalibrated logits, one per input; computed when a checkpoint is saved."""
    versions: dict[str, str] = {}
    """Versions of the libraries that computed the logits."""


DIGEST_BYTES: Final = 5
"""Number of bytes kept from the SHA-256 digest of a seen file."""
Use = Literal["training", "validation"]


def _checked_digests(text: str) -> str:
    if len(base64.b64decode(text, validate=True)) % DIGEST_BYTES:
        raise ValueError(f"must be a list of digests of {DIGEST_BYTES} bytes each")
    return text


Digests = Annotated[str, AfterValidator(_checked_digests)]


class SeenFiles(_Section):
    """Digests of the videos and images used in training and calibration, to recognise them by content.

    Only the first 40 bits of each SHA-256 digest are kept, which take 7 characters in the card; names and paths are
    not. An unseen file matches one of n seen files with probability n / 2**40, or 1 in 10 million for 100,000 files.
    Trimmed or re-encoded copies are not recognised.
    """

    training: Digests = ""
    """Files of the split train: shortened digests, sorted and concatenated, in base64."""
    validation: Digests = ""
    """Files of the split val, which selected the best epoch and the thresholds; same format."""
    is_complete: bool = True
    """False if the digests of some files were unknown."""

    @classmethod
    def of(cls, training: Iterable[str], validation: Iterable[str], *, is_complete: bool = True) -> Self:
        """Create an instance from hex SHA-256 digests."""
        return cls(training=_shortened(training), validation=_shortened(validation), is_complete=is_complete)

    def union(self, other: SeenFiles) -> SeenFiles:
        """Return the union of both sets of files."""
        return SeenFiles(
            training=_joined(_digests(self.training) | _digests(other.training)),
            validation=_joined(_digests(self.validation) | _digests(other.validation)),
            is_complete=self.is_complete and other.is_complete,
        )

    def use_of(self, sha256: str) -> Use | None:
        """Return the use of a file, given its hex SHA-256 digest, or None if the file was not seen."""
        digest = bytes.fromhex(sha256)[:DIGEST_BYTES]
        if digest in _digests(self.training):
            return "training"
        return "validation" if digest in _digests(self.validation) else None

    def counts(self) -> dict[Use, int]:
        """Count the files per use."""
        return {"training": len(_digests(self.training)), "validation": len(_digests(self.validation))}


def _shortened(sha256s: Iterable[str]) -> str:
    return _joined(bytes.fromhex(sha256)[:DIGEST_BYTES] for sha256 in sha256s)


def _joined(digests: Iterable[bytes]) -> str:
    return base64.b64encode(b"".join(sorted(set(digests)))).decode()


@cache
def _digests(text: str) -> frozenset[bytes]:
    data = base64.b64decode(text)
    return frozenset(data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES))


class CheckpointCard(_Section):
    """Everything that a score depends on besides the weights, and the origin of the weights."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")
    dfscan_version: str = __version__
    """Version of dfscan that wrote the file."""
    architecture: str = "efficientnet_b4"
    preprocessing: Preprocessing = Preprocessing()
    class_order: tuple[Literal["real"], Literal["fake"]] = ("real", "fake")
    """The logit belongs to the second class."""
    sampling: SamplingDefaults = SamplingDefaults()
    detection: DetectionDefaults = DetectionDefaults()
    aggregation: Aggregation = Aggregation()
    calibration: Calibration = Calibration()
    quality: tuple[QualityLevel, ...] = ()
    """Levels of sharpness, from low to high; empty if they were not measured with this calibration."""
    training: dict[str, Any] | None = None
    """Summary of the training data and settings."""
    seen: SeenFiles | None = None
    """Files used in training; None if they were not recorded."""
    metrics: dict[str, Any] | None = None
    """Measured metrics, by data set."""
    self_test: SelfTest = SelfTest()
    base_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 digest of the checkpoint file that this one was calibrated from, with the same weights and settings; the
    first one, if it was calibrated several times. None if the calibration is the first one."""


OWN_SETTINGS: Final = {
    "num_frames": ("sampling", "num_frames"),
    "detection_threshold": ("detection", "threshold"),
    "min_face_px": ("detection", "min_face_px"),
    "max_faces": ("detection", "max_faces"),
    "min_faces": ("aggregation", "min_faces"),
    "threshold": ("calibration", "fake_threshold"),
}
"""Maps a scan setting to the section and key of its default in a card."""


def changed_settings(settings: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """List the settings that differ from the card, so that the checkpoint's error rates do not apply.

    Args:
        settings: settings of a scan; a missing setting or None stands for the card's own value.
        card: the card as a JSON document.

    Returns:
        The names of the settings, sorted.
    """
    own = {name: (card.get(section) or {}).get(key) for name, (section, key) in OWN_SETTINGS.items()}
    own["every"] = None
    if settings.get("every") is not None:
        del own["num_frames"]  # `every` overrides it
    return sorted(name for name in own if settings.get(name) not in (None, own[name]))


@dataclass(frozen=True, slots=True)
class _Promise:
    """The limit on the error rate of one verdict that a checkpoint guarantees."""

    truth: str
    """True class of the videos on which the verdict is wrong."""
    rate: str
    """Name of the rate in the calibration section, where its limit has the prefix ``max_``."""
    setting: str
    """Name of the limit in the training settings; older cards call it `rate` there."""
    default: float
    """Limit for cards that do not state one."""
    name: str
    """Description of the rate, a format string for the limit."""
    beyond: str
    """Predicate of videos beyond the threshold."""


_PROMISES: Final[Mapping[Literal["fake", "real"], _Promise]] = {
    "fake": _Promise("real", "real_called_fake", "max_fpr", 0.01, "a false positive rate of at most {}", "reach it"),
    "real": _Promise(
        "fake", "fake_called_real", "max_fnr", 0.05, "calling at most {} of fakes real", "are at or below it"
    ),
}


def min_videos(max_rate: float) -> int:
    """Return the minimum number of validation videos of a class that supports an error rate of at most `max_rate`.

    Each of n + 1 exchangeable videos is equally likely to have the highest score. A new video therefore exceeds all n
    validation videos with probability 1 / (n + 1), and even the strictest threshold cannot guarantee a lower error
    rate. So ``floor((n + 1) * max_rate)`` must be at least 1 (split conformal prediction, Angelopoulos and Bates 2021,
    section 1): a rate of 1 % needs 99 videos, a rate of 5 % needs 19.
    """
    return max(0, math.ceil(1 / max_rate - 1e-9) - 1)  # tolerance for rounding errors in 1 / max_rate


def withheld(card: Mapping[str, Any], verdict: Literal["fake", "real"]) -> str | None:
    """Explain why a checkpoint does not give a verdict although it has a threshold for it.

    Args:
        card: the card as a JSON document. If it does not state the limit of the error rate, as in older versions, the
            limit in its training settings applies, else the default. If it does not state the number of validation
            videos, that number is assumed to be sufficient.
        verdict: the verdict to explain.

    Returns:
        The existing and the required number of validation videos, or None if there are enough.
    """
    calibration = card.get("calibration") or {}
    promise = _PROMISES[verdict]
    num_videos = calibration.get(f"num_{promise.truth}_videos")
    if calibration.get(f"{verdict}_threshold") is None or num_videos is None:
        return None
    limit = max_rate(card, verdict)
    if num_videos >= (num_needed := min_videos(limit)):
        return None
    plural = "" if num_videos == 1 else "s"
    rate = promise.name.format(f"{100 * limit:g} %")
    return f"calibrated on {num_videos} {promise.truth} video{plural}; {rate} needs at least {num_needed}"


def own_limit(card: Mapping[str, Any], verdict: Literal["fake", "real"]) -> str | None:
    """State what the threshold of a verdict guarantees, if it was set on the user's own footage.

    Args:
        card: the card as a JSON document.
        verdict: the verdict of the threshold.

    Returns:
        A sentence without its full stop, or None if there is no such threshold.
    """
    calibration = card.get("calibration") or {}
    if not calibration.get("own_footage") or calibration.get(f"{verdict}_threshold") is None:
        return None
    promise = _PROMISES[verdict]
    num_videos, num_groups = (calibration.get(f"num_{promise.truth}_{unit}") for unit in ("videos", "groups"))
    limit = 100 * calibration.get(f"max_{promise.rate}", promise.default)
    unit, of = ("videos", "") if num_groups == num_videos else ("groups", f" in {num_groups} groups")
    return (
        f"set on {num_videos} {promise.truth} videos{of} of the user's own footage: with 95 % confidence, at most "
        f"{limit:g} % of such {unit} {promise.beyond}"
    )


def validations(card: CheckpointCard) -> dict[VerdictLabel, Validation]:
    """Return what was measured for each verdict that the checkpoint gives with its own settings."""
    document = card.model_dump()
    calibration = document["calibration"]
    ratios = {verdict: Bounded(*ratio) for verdict, ratio in card.calibration.likelihood_ratios.items()}
    if any(withheld(document, verdict) for verdict in _PROMISES):
        ratios.pop("inconclusive", None)  # it was measured between the thresholds, and scores beyond one are added
    is_own = card.calibration.own_footage
    found: dict[VerdictLabel, Validation] = {
        "inconclusive": Validation(is_own_footage=is_own, likelihood_ratio=ratios.get("inconclusive"))
    }
    for verdict, promise in _PROMISES.items():
        num_videos, num_groups = (calibration[f"num_{promise.truth}_{unit}"] for unit in ("videos", "groups"))
        found[verdict] = Validation(
            error_rate=_rate(calibration, promise),
            num_videos=num_videos if num_groups is None else num_groups,
            counts_groups=num_groups not in (None, num_videos),
            is_own_footage=is_own,
            likelihood_ratio=ratios.get(verdict),
        )
    return found


def quality_validations(card: CheckpointCard) -> Iterator[tuple[QualityLevel, str, dict[VerdictLabel, Validation]]]:
    """Yield the levels of sharpness, each with its range in words and what was measured for each verdict."""
    above: float | None = None
    for level in card.quality:
        if above is None:
            words = "of any value" if level.below is None else f"below {level.below:.4f}"
        else:
            words = f"of at least {above:.4f}" if level.below is None else f"from {above:.4f} to {level.below:.4f}"
        document = level.model_dump()
        found: dict[VerdictLabel, Validation] = {
            verdict: Validation(
                error_rate=_rate(document, promise),
                num_videos=document[f"num_{promise.truth}_groups"],
                counts_groups=True,
                quality=words,
            )
            for verdict, promise in _PROMISES.items()
        }
        yield level, words, found
        above = level.below


def broken_limit(card: CheckpointCard, level: QualityLevel, verdict: Literal["fake", "real"]) -> str:
    """Say in words how often the calibrated threshold of a verdict is wrong at a level of sharpness."""
    promise, kinds = _PROMISES[verdict], {"real": "genuine", "fake": "manipulated"}
    rate = getattr(level, f"{promise.rate}_at_calibrated")
    num_groups = getattr(level, f"num_{promise.truth}_groups")
    limit = max_rate(card.model_dump(), verdict)
    return (
        f"of {num_groups} groups of {kinds[promise.truth]} videos of this sharpness, {100 * rate:.1f} % would "
        f"be {verdict}, where at most {100 * limit:g} % may be"
    )


def max_rate(card: Mapping[str, Any], verdict: Literal["fake", "real"]) -> float:
    """Return the limit on the error rate of a verdict, given the card as a JSON document; see `withheld`."""
    promise = _PROMISES[verdict]
    calibration = card.get("calibration") or {}
    limit: float | None = calibration.get(f"max_{promise.rate}")
    if limit:
        return limit
    settings = (card.get("training") or {}).get("settings")  # the training summary is not validated
    asked = settings.get(promise.setting, settings.get(promise.rate)) if isinstance(settings, Mapping) else None
    return asked if isinstance(asked, float) and 0 < asked <= 1 else promise.default


def _rate(document: Mapping[str, Any], promise: _Promise) -> Bounded | None:
    rate, interval = document[f"{promise.rate}_rate"], document[f"{promise.rate}_interval"]
    return Bounded(rate, *interval) if rate is not None and interval else None
