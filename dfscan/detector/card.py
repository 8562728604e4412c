"""The card of a checkpoint: the JSON document with everything besides the weights that a score depends on."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

import dfscan
from dfscan.detector.preprocess import Positive, Preprocessing, Unit

FORMAT_VERSION: Final = 1

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sampling(_Section):
    """Which frames of a video are looked at."""

    num_frames: Count = 32


class Detection(_Section):
    """Which faces of a frame are looked at."""

    threshold: Unit = 0.95
    """Least probability of the face detector."""
    min_face_px: Count = 48
    """Least shorter side of a face's box, in pixels of the upright frame."""
    max_faces: Count = 20
    """Maximum number of faces judged in one frame."""


class Aggregation(_Section):
    """How the faces of one person become one score.

    A track's logit is ``(sum of its n logits + prior_faces * neutral_logit) / (n + prior_faces)``: a short track
    is drawn towards undecided.
    """

    min_faces: Count = 3
    """A track with fewer faces decides nothing."""
    prior_faces: float = Field(default=2.0, ge=0)
    neutral_logit: float = 0.0


class Calibration(_Section):
    """How logits become probabilities, and scores become words.

    The thresholds are on a video's score. Without `fake_threshold` nothing is ever called fake, without
    `real_threshold` nothing is ever called real.
    """

    trained: bool = False
    temperature: Positive = 1.0
    """A calibrated logit is the network's divided by this (Guo et al. 2017, section 4.2)."""
    fake_threshold: Unit | None = None
    """From this score on a video is fake."""
    real_threshold: Unit | None = None
    """Up to this score a video is real; at most `fake_threshold`."""
    real_called_fake_rate: Unit | None = None
    """Stated rate of real validation videos at or above `fake_threshold`."""
    fake_called_real_rate: Unit | None = None
    """Stated rate of fake validation videos at or below `real_threshold`."""
    num_real_videos: int | None = Field(default=None, ge=0)
    """Real videos of the validation split, from which the rates come."""
    num_fake_videos: int | None = Field(default=None, ge=0)
    max_real_called_fake: Rate | None = None
    """Rate of real videos at or above `fake_threshold` that the checkpoint promises at most; see `withheld`."""
    max_fake_called_real: Rate | None = None
    """Rate of fake videos at or below `real_threshold` that the checkpoint promises at most."""
    real_called_fake_interval: tuple[Unit, Unit] | None = None
    """95 % interval of `real_called_fake_rate` (Clopper and Pearson 1934): what so few videos can vouch for."""
    fake_called_real_interval: tuple[Unit, Unit] | None = None

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


class SelfTest(_Section):
    """An input that can be made again anywhere, and the logits that belong to it."""

    seed: int = Field(default=1, ge=0)
    """Of numpy's PCG64, whose raw stream is the same in every version."""
    num_inputs: int = Field(default=2, ge=1, le=16)
    expected_logits: tuple[float, ...] = ()
    """Uncalibrated, one for each input; filled in when a checkpoint is saved."""
    versions: dict[str, str] = {}
    """Of the libraries with which they were computed."""


DIGEST_BYTES: Final = 5
"""How much is kept of the SHA-256 digest of a file that was seen."""
Use = Literal["training", "validation"]


def _checked_digests(text: str) -> str:
    if len(base64.b64decode(text, validate=True)) % DIGEST_BYTES:
        raise ValueError(f"not a list of digests of {DIGEST_BYTES} bytes")
    return text


Digests = Annotated[str, AfterValidator(_checked_digests)]


class SeenFiles(_Section):
    """The videos and pictures that training and calibration have seen, recognised by their content.

    Of each file the first 40 bits of its SHA-256 digest are kept: no name, no path, and 7 characters of the card. Any
    other file is taken for one of n seen files with a probability of n / 2**40, which is 1 in 10 million for 100,000
    files. A copy that was cut or encoded again is not recognised.
    """

    training: Digests = ""
    """Of the split train: the shortened digests, sorted, joined, in base64."""
    validation: Digests = ""
    """Likewise of the split val, which chose the best epoch and set the thresholds."""
    is_complete: bool = True
    """Whether all are there: not if the digests of some were unknown."""

    @classmethod
    def of(cls, training: Iterable[str], validation: Iterable[str], *, is_complete: bool = True) -> Self:
        """Make it from hex SHA-256 digests."""
        return cls(training=_shortened(training), validation=_shortened(validation), is_complete=is_complete)

    def united(self, other: SeenFiles) -> SeenFiles:
        """What both have seen together."""
        return SeenFiles(
            training=_joined(_digests(self.training) | _digests(other.training)),
            validation=_joined(_digests(self.validation) | _digests(other.validation)),
            is_complete=self.is_complete and other.is_complete,
        )

    def use_of(self, sha256: str) -> Use | None:
        """What a file was used for, by its hex SHA-256 digest; None for a file that was not seen."""
        digest = bytes.fromhex(sha256)[:DIGEST_BYTES]
        if digest in _digests(self.training):
            return "training"
        return "validation" if digest in _digests(self.validation) else None

    def counts(self) -> dict[Use, int]:
        """Number of files by their use."""
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
    """All that a score depends on besides the weights, and where the weights come from."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")
    dfscan_version: str = dfscan.__version__
    """The version that wrote the file."""
    architecture: str = "efficientnet_b4"
    preprocessing: Preprocessing = Preprocessing()
    class_order: tuple[Literal["real"], Literal["fake"]] = ("real", "fake")
    """The logit is that of the second class."""
    sampling: Sampling = Sampling()
    detection: Detection = Detection()
    aggregation: Aggregation = Aggregation()
    calibration: Calibration = Calibration()
    training: dict[str, Any] | None = None
    """Summary of the data and settings of training."""
    seen: SeenFiles | None = None
    """Files that training has seen; None where that was not recorded."""
    metrics: dict[str, Any] | None = None
    """As measured, by data set."""
    self_test: SelfTest = SelfTest()


OWN_SETTINGS: Final = {
    "num_frames": ("sampling", "num_frames"),
    "detection_threshold": ("detection", "threshold"),
    "min_face_px": ("detection", "min_face_px"),
    "max_faces": ("detection", "max_faces"),
    "min_faces": ("aggregation", "min_faces"),
    "threshold": ("calibration", "fake_threshold"),
}
"""Settings of a scan, and where a card has its own."""


def changed_settings(settings: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """Names of the settings with which the error rates of a checkpoint do not hold.

    Args:
        settings: of a scan; those that are missing or None are the card's own.
        card: the document.
    """
    own = {name: (card.get(section) or {}).get(key) for name, (section, key) in OWN_SETTINGS.items()}
    own["every"] = None
    if settings.get("every") is not None:
        del own["num_frames"]  # which then counts for nothing
    return sorted(name for name in own if settings.get(name) not in (None, own[name]))


@dataclass(frozen=True, slots=True)
class _Promise:
    """The error rate that a checkpoint promises for one verdict."""

    truth: str
    """What the videos are that it errs on."""
    field: str
    """Name of the rate: of its limit in a calibration and in the settings of training."""
    default: float
    """Limit of the rate in cards that do not state it."""
    name: str
    """The rate in words; takes the limit."""


_PROMISES: Final[Mapping[str, _Promise]] = {
    "fake": _Promise("real", "real_called_fake", 0.01, "a false positive rate of at most {}"),
    "real": _Promise("fake", "fake_called_real", 0.05, "calling at most {} of fakes real"),
}


def min_videos(max_rate: float) -> int:
    """Fewest validation videos of a class that can support an error rate of at most `max_rate` on that class.

    Of n + 1 exchangeable videos each is equally likely to score highest. A new video therefore exceeds all n
    validation videos with a probability of 1 / (n + 1). Even the strictest threshold cannot promise a lower error
    rate, so that ``floor((n + 1) * max_rate)`` must be at least 1 (split conformal prediction, Angelopoulos and
    Bates 2021, section 1). For 1 % that makes 99 videos, for 5 % 19.
    """
    return max(0, math.ceil(1 / max_rate - 1e-9) - 1)  # 1 / 0.07 * 0.07 need not be 1


def withheld(card: Mapping[str, Any], verdict: Literal["fake", "real"]) -> str | None:
    """Say why a checkpoint does not give a verdict although it has a threshold for it.

    Args:
        card: the document. An older one does not state its promised rate: then that of its training's settings
            counts, else the default. A number of videos that it does not state is taken to suffice.
        verdict: the one in question.

    Returns:
        What is there and what is needed, or None where there are enough validation videos.
    """
    calibration = card.get("calibration") or {}
    promise = _PROMISES[verdict]
    num_videos = calibration.get(f"num_{promise.truth}_videos")
    if calibration.get(f"{verdict}_threshold") is None or num_videos is None:
        return None
    max_rate = calibration.get(f"max_{promise.field}") or _asked_of_training(card, promise.field) or promise.default
    if num_videos >= (num_needed := min_videos(max_rate)):
        return None
    plural = "" if num_videos == 1 else "s"
    rate = promise.name.format(f"{100 * max_rate:g} %")
    return f"calibrated on {num_videos} {promise.truth} video{plural}; {rate} needs at least {num_needed}"


def _asked_of_training(card: Mapping[str, Any], setting: str) -> float | None:
    """A rate in the training summary, which may hold anything."""
    recipe = (card.get("training") or {}).get("settings")
    rate = recipe.get(setting) if isinstance(recipe, Mapping) else None
    return rate if isinstance(rate, float) and 0 < rate <= 1 else None
