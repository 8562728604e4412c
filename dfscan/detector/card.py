"""The card of a checkpoint: the JSON document with everything besides the weights that a score depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

import dfscan
from dfscan.detector.preprocess import Positive, Preprocessing, Unit

FORMAT_VERSION: Final = 1

Count = Annotated[int, Field(ge=1)]


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
