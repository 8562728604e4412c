"""Reconstruct faces with small autoencoders that leave the traces of re-enactment, lip-sync and talking heads.

The last layers of any generator upsample a coarse code to the size of a face, which leaves traces: missing detail and
the pattern of the upsampling itself (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts"; Durall et al. 2020,
"Watch your Up-Convolution", CVPR). An autoencoder leaves them without changing person, pose or lighting, so nothing
else distinguishes its output from its input. Each design upsamples in a different way.

This module needs PyTorch: import it only inside functions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from dfscan.arrays import UInt8Image
from dfscan.dataset.crops import read_crop
from dfscan.dataset.manifest import Sample
from dfscan.errors import TrainingError
from dfscan.files import make_folder, write_bytes
from dfscan.forgery.donors import path_of
from dfscan.forgery.names import DESIGNS, Design
from dfscan.images import encode, resize

ENCODER_WIDTHS = (32, 64, 128)
"""Channels after each halving."""
CODE_WIDTH = 16
"""Channels of the code: 256 x 256 x 3 values become 32 x 32 x 16, a twelfth; fewer need much longer training."""
LAST_WIDTH = 16
"""Channels at full size."""
BATCH_SIZE = 16
MAX_TRAINING_FACES = 10_000
"""Maximum number of training faces; at 256 px they take 2 GB of memory."""
AUTOENCODER_LEARNING_RATE = 1e-3
LOSS_LEVELS = 3
"""Number of sizes at which images are compared: small copies teach where features are, the full size where they end."""
SAY_EVERY_S = 30.0


def reconstruct(
    samples: Sequence[Sample],
    folder: Path,
    out: Path,
    *,
    size_px: int,
    num_steps: int,
    device: torch.device,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """Write a reconstruction of each real crop by each design, unless they exist already.

    Autoencoders are trained only on real faces of the training split; they must not learn the people on whom a detector
    is evaluated. A design with missing reconstructions is trained again.

    Args:
        samples: samples of all splits; fakes are ignored.
        folder: folder of the manifest.
        out: folder in which `donors.path_of` finds the reconstructions.
        size_px: side of the autoencoders' input and output, a multiple of 8.
        num_steps: training steps of each autoencoder, with batches of 16.
        device: device to train and run on.
        seed: seed of the weights and the order.
        tell: called now and then with a line of progress.

    Raises:
        DataError: a crop cannot be read.
        OutputError: a reconstruction cannot be written.
        TrainingError: an autoencoder's loss is not finite.
    """
    real = [sample for sample in samples if sample.label == "real"]
    training = [sample for sample in real if sample.split == "train"]
    training_faces = [training[i] for i in np.random.default_rng(seed).permutation(len(training))[:MAX_TRAINING_FACES]]
    for number, design in enumerate(DESIGNS):
        if is_complete(out, design, samples):
            continue
        images = np.stack([_image(folder, sample, size_px) for sample in training_faces])
        network = _trained(design, images, num_steps, device, seed + number, tell)
        for start in range(0, len(real), BATCH_SIZE):
            batch = real[start : start + BATCH_SIZE]
            originals = np.stack([_image(folder, sample, size_px) for sample in batch])
            with torch.inference_mode():
                levels = (network(_to_tensor(originals, device)) * 255).round().clamp(0, 255).to(torch.uint8)
            reconstructed = np.ascontiguousarray(levels.permute(0, 2, 3, 1).cpu().numpy())
            for sample, image in zip(batch, reconstructed, strict=True):
                path = path_of(out, design, sample)
                make_folder(path.parent, remedy="Choose another --reconstructions.")
                write_bytes(path, encode(image, ".png"))
        tell(f"autoencoder {design}: {len(real)} faces reconstructed")


def is_complete(out: Path, design: Design, samples: Sequence[Sample]) -> bool:
    """Check that the reconstructions of all real faces exist, without reading them."""
    return all(path_of(out, design, sample).exists() for sample in samples if sample.label == "real")


class Autoencoder(nn.Module):
    """Autoencoder with three halvings and three doublings; images are float32 [B, 3, S, S] in [0, 1]."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        down = [
            nn.Sequential(nn.Conv2d(num_in, num_out, 4, stride=2, padding=1), nn.LeakyReLU(0.1))
            for num_in, num_out in zip((3, *ENCODER_WIDTHS), ENCODER_WIDTHS, strict=False)
        ]
        up = [
            _doubling(design, *pair)
            for pair in zip(ENCODER_WIDTHS[::-1], (*ENCODER_WIDTHS[-2::-1], LAST_WIDTH), strict=True)
        ]
        code = [
            nn.Conv2d(ENCODER_WIDTHS[-1], CODE_WIDTH, 1),
            nn.Conv2d(CODE_WIDTH, ENCODER_WIDTHS[-1], 3, padding=1),
            nn.LeakyReLU(0.1),
        ]
        self.layers = nn.Sequential(*down, *code, *up, nn.Conv2d(LAST_WIDTH, 3, 3, padding=1))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, a=0.1)  # signals vanish with PyTorch's default initialisation

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct the images."""
        reconstructed: Tensor = self.layers(images - 0.5)
        return reconstructed + 0.5


def _doubling(design: Design, num_in: int, num_out: int) -> nn.Module:
    """Double the size in the way that the design is named after."""
    layers: dict[Design, Callable[[], list[nn.Module]]] = {
        "transposed": lambda: [nn.ConvTranspose2d(num_in, num_out, 4, stride=2, padding=1)],
        "nearest": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(num_in, num_out, 3, padding=1)],
        "bilinear": lambda: [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(num_in, num_out, 3, padding=1)],
        "shuffle": lambda: [nn.Conv2d(num_in, 4 * num_out, 3, padding=1), nn.PixelShuffle(2)],
    }
    return nn.Sequential(*layers[design](), nn.LeakyReLU(0.1))


def _trained(
    design: Design, images: UInt8Image, num_steps: int, device: torch.device, seed: int, tell: Callable[[str], None]
) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder(design)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=AUTOENCODER_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    rng = np.random.default_rng(seed)
    said_s = time.monotonic()
    for step in range(num_steps):
        batch = images[rng.integers(0, len(images), BATCH_SIZE)]
        is_mirrored = rng.random(BATCH_SIZE) < 0.5
        batch[is_mirrored] = batch[is_mirrored, :, ::-1]
        wanted = _to_tensor(batch, device)
        reconstructed = network(wanted)
        loss = F.l1_loss(reconstructed, wanted)
        for _ in range(LOSS_LEVELS - 1):
            reconstructed, wanted = F.avg_pool2d(reconstructed, 2), F.avg_pool2d(wanted, 2)
            loss = loss + F.l1_loss(reconstructed, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if time.monotonic() - said_s > SAY_EVERY_S or step == num_steps - 1:
            said_s = time.monotonic()
            tell(f"autoencoder {design}: step {step + 1} of {num_steps}, loss {loss.item():.4f}")
    if not math.isfinite(loss.item()):
        raise TrainingError(f"the loss of autoencoder {design} is not finite; use another --seed")
    network.eval()
    return network


def _to_tensor(images: UInt8Image, device: torch.device) -> Tensor:
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def _image(folder: Path, sample: Sample, size_px: int) -> UInt8Image:
    return resize(read_crop(folder / sample.crop), size_px, size_px)
