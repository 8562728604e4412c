"""Names of the kinds of made fakes, and of the autoencoders that reconstruct faces."""

from __future__ import annotations

from typing import Literal, get_args

ForgeryKind = Literal["self-blended", "swapped", "warped", "reconstructed"]
FORGERY_KINDS: tuple[ForgeryKind, ...] = get_args(ForgeryKind)
"""Kinds of forgeries made from real faces."""
Design = Literal["transposed", "nearest", "bilinear", "shuffle"]
DESIGNS: tuple[Design, ...] = get_args(Design)
"""Upsampling methods of the autoencoders that reconstruct faces."""
