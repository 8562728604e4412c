"""MTCNN's cascade for many frames at once: batched PyTorch implementation of `mtcnn_numpy`.

The steps, windows and thresholds are those of `mtcnn_numpy`. Each network runs on the candidates of all frames, in
batches padded to a fixed size. Kernels are chosen by size, so the padding makes the result for a frame independent of
the other frames. The host waits for the device seven times per batch, whenever it needs the number of remaining boxes.

This module imports PyTorch; import it only inside functions that need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn.functional import adaptive_avg_pool2d, pad  # noqa: TID253
from torchvision.ops import nms  # noqa: TID253

from dfscan.faces.mtcnn_numpy import (
    DECIDED_PX,
    MARGIN_PX,
    MAX_REACH_PX,
    OVERLAP,
    OVERLAP_IN_SCALE,
    REFINED_PX,
    STRIDE_PX,
    THRESHOLDS,
    WINDOW_PX,
    Detections,
    nms_iom,
    pyramid,
)

REFINE_BATCH, DECIDE_BATCH = 512, 64
"""Batch sizes of the second and the third network."""


@dataclass(slots=True, eq=False)
class _Boxes:
    """Candidate boxes of all frames."""

    frame: Tensor
    """[K] index of the frame, int64."""
    xyxy: Tensor
    """[K, 4]"""
    scores: Tensor
    """[K]"""
    offsets: Tensor
    """[K, 4] offsets of the corners, in widths and heights of the box."""

    def __getitem__(self, kept: Tensor) -> _Boxes:
        """Select boxes by an index tensor."""
        return _Boxes(self.frame[kept], self.xyxy[kept], self.scores[kept], self.offsets[kept])

    def corrected(self, *, unit_px: float) -> Tensor:
        """Return the boxes with their offsets applied; see `mtcnn_numpy`."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2] + unit_px
        return self.xyxy + self.offsets * sides.repeat(1, 2)

    def nms(self, group: Tensor, overlap: float, *, reach_px: int) -> _Boxes:
        """Apply non-maximum suppression within each group, by shifting the groups far away from each other."""
        places = self.xyxy.double() + (group * 4 * reach_px)[:, None]
        return self[nms(places, self.scores.double(), overlap)]


@torch.inference_mode()
def find_all_faces(frames: Tensor, networks: Mapping[str, nn.Module], *, min_face_px: float) -> list[Detections]:
    """Detect the faces of several frames.

    Args:
        frames: uint8 [N, H, W, 3] RGB, on the device of the networks.
        networks: ``pnet``, ``rnet`` and ``onet``, see `networks.library_networks`.
        min_face_px: minimum face size.

    Returns:
        For each frame the result of `mtcnn_numpy.find_faces`.
    """
    boxes = _propose(frames, networks["pnet"], min_face_px)
    # [N, H + 1, W + 1, 3]: per channel, the sum of all levels above and left.
    integral = pad(frames.cumsum(dim=1, dtype=torch.int32).cumsum(dim=2, dtype=torch.int32), (0, 0, 1, 0, 1, 0))
    boxes = _refine(integral, networks["rnet"], boxes)
    boxes, landmarks = _decide(integral, networks["onet"], boxes)
    rows = torch.cat([boxes.frame[:, None], boxes.xyxy, boxes.scores[:, None], landmarks.flatten(1)], dim=1)
    table = rows.float().cpu().numpy()
    detections = []
    for i in range(len(frames)):
        mine = table[table[:, 0] == i, 1:]
        candidates = Detections(mine[:, :4], mine[:, 4], mine[:, 5:].reshape(-1, 5, 2))
        detections.append(candidates[nms_iom(candidates.boxes_xyxy, candidates.scores, OVERLAP)])
    return detections


def _propose(frames: Tensor, network: nn.Module, min_face_px: float) -> _Boxes:
    _, height, width, _ = frames.shape
    pictures = frames.permute(0, 3, 1, 2).contiguous().float()
    windows, levels, scores, offsets = [], [], [], []
    for level, scale in enumerate(pyramid(height, width, min_face_px)):
        means = adaptive_avg_pool2d(pictures, (int(height * scale + 1), int(width * scale + 1)))
        moves, probs = network(pad(_normalised(means), (MARGIN_PX,) * 4))
        rows, columns = (torch.arange(size, device=frames.device) for size in moves.shape[2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corner = STRIDE_PX * torch.stack([x, y], dim=-1).reshape(-1, 2).double() - MARGIN_PX
        near, far = ((corner + 1) / scale).floor(), ((corner + WINDOW_PX) / scale).floor()
        # Window of each position of the output, [rows * columns, 4], in frame pixels.
        windows.append(torch.cat([near, far], dim=1).float())
        levels.append(torch.full((len(windows[-1]),), level, device=frames.device))
        scores.append(probs[:, 1].flatten(1))
        offsets.append(moves.flatten(2).transpose(1, 2))
    all_scores = torch.cat(scores, dim=1)
    frame, place = torch.nonzero(all_scores >= THRESHOLDS[0], as_tuple=True)
    boxes = _Boxes(frame, torch.cat(windows)[place], all_scores[frame, place], torch.cat(offsets, dim=1)[frame, place])
    reach_px = max(height, width)
    boxes = boxes.nms(frame * len(levels) + torch.cat(levels)[place], OVERLAP_IN_SCALE, reach_px=reach_px)
    boxes = boxes.nms(boxes.frame, OVERLAP, reach_px=reach_px)
    boxes.xyxy = _to_square(boxes.corrected(unit_px=0))
    return boxes


def _refine(integral: Tensor, network: nn.Module, boxes: _Boxes) -> _Boxes:
    crops, is_inside = _crop_resize(integral, boxes, REFINED_PX)
    boxes.offsets, probs = _run(network, crops, REFINE_BATCH)
    boxes.scores = probs[:, 1]
    boxes = boxes[_places(is_inside & (boxes.scores > THRESHOLDS[1]))]
    boxes = boxes.nms(boxes.frame, OVERLAP, reach_px=max(integral.shape[1:3]))
    boxes.xyxy = _to_square(boxes.corrected(unit_px=1))
    return boxes


def _decide(integral: Tensor, network: nn.Module, boxes: _Boxes) -> tuple[_Boxes, Tensor]:
    crops, is_inside = _crop_resize(integral, boxes, DECIDED_PX)
    boxes.offsets, points, probs = _run(network, crops, DECIDE_BATCH)
    boxes.scores = probs[:, 1]
    faces = _places(is_inside & (boxes.scores > THRESHOLDS[2]))
    boxes, points = boxes[faces], points[faces]
    sides = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2] + 1
    landmarks = torch.stack([points[:, :5], points[:, 5:]], dim=2) * sides[:, None] + boxes.xyxy[:, None, :2] - 1
    boxes.xyxy = boxes.corrected(unit_px=1)
    return boxes, landmarks


def _places(mask: Tensor) -> Tensor:
    """Return the indices at which a mask is true. Indexing tensors with them needs no further synchronisation."""
    return torch.nonzero(mask)[:, 0]


def _run(network: nn.Module, crops: Tensor, batch_size: int) -> list[Tensor]:
    num_batches = max(1, -(-len(crops) // batch_size))
    full = pad(crops, (0, 0, 0, 0, 0, 0, 0, num_batches * batch_size - len(crops)))
    outputs = [network(batch) for batch in torch.split(full, batch_size)]
    return [torch.cat(parts)[: len(crops)] for parts in zip(*outputs, strict=True)]


def _crop_resize(integral: Tensor, boxes: _Boxes, side_px: int) -> tuple[Tensor, Tensor]:
    """Return crops [K, 3, side, side] as in `mtcnn_numpy`, and [K] whether they overlap the frame; ignore others."""
    height, width = integral.shape[1] - 1, integral.shape[2] - 1
    bounded = boxes.xyxy.nan_to_num(0, 0, 0).clamp(-MAX_REACH_PX, MAX_REACH_PX).long()
    near, far = bounded[:, :2] - 1, bounded[:, 2:]
    visible = torch.stack([far[:, 0].clamp(max=width), far[:, 1].clamp(max=height)], dim=1) - near.clamp(min=0)
    is_inside = (visible > 0).all(dim=1) & boxes.xyxy.isfinite().all(dim=1)
    near, far = near * is_inside[:, None], torch.where(is_inside[:, None], far, 1)
    # Start and end of the equal parts of each side, [K, parts]; ends are rounded up to whole pixels.
    at = torch.arange(side_px, device=near.device)
    start, size = near[:, :, None], (far - near)[:, :, None]
    begins, ends = start + at * size // side_px, start - (-(at + 1) * size // side_px)
    left, right = begins[:, 0].clamp(0, width), ends[:, 0].clamp(0, width)
    top, bottom = begins[:, 1].clamp(0, height), ends[:, 1].clamp(0, height)
    flat = integral.reshape(-1, 3)
    first = boxes.frame[:, None] * (height + 1)
    above, below = (((first + edge) * (width + 1))[:, :, None] for edge in (top, bottom))
    left, right = left[:, None], right[:, None]
    totals = flat[below + right] - flat[above + right] - flat[below + left] + flat[above + left]
    areas = ((bottom - top)[:, :, None] * (right - left))[..., None]
    levels = _normalised(totals / areas.clamp(min=1)).where(areas > 0, 0)
    return levels.permute(0, 3, 1, 2).contiguous(), is_inside


def _normalised(levels: Tensor) -> Tensor:
    return (levels - 127.5) / 128


def _to_square(xyxy: Tensor) -> Tensor:
    centres = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    half = (xyxy[:, 2:] - xyxy[:, :2]).amax(dim=1, keepdim=True) / 2
    return torch.cat([centres - half, centres + half], dim=1)
