"""The card of a checkpoint in words, for the report page and for ``dfscan info``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfscan.text import printable

MISSING = "not given"
INTENDED_USE = (
    "Points an analyst to what to examine first. It does not prove that a video is genuine or manipulated, and does "
    "not identify people. Validate it yourself before you use its results in proceedings."
)
_CROPS = {
    "square": "{} times the longer side of the face box",
    "box": "the face box, {} times as wide and high, stretched to a square",
    "aligned": "the aligned face with a margin of {}",
}


def describe_card(card: Mapping[str, Any]) -> dict[str, str]:
    """Describe the network and the default settings of a checkpoint in words, without unknown values.

    Args:
        card: the card as a JSON document; it may come from a ledger of another version, so it is not validated.
    """
    detection, aggregation = section(card, "detection"), section(card, "aggregation")
    preprocessing = section(card, "preprocessing")
    side_px = preprocessing.get("input_size_px")
    facts = {
        "Name": card.get("name"),
        "Source": card.get("source"),
        "Architecture": card.get("architecture"),
        "Input": _sentence("{} by {} px", side_px, side_px),
        "Crop": _sentence(_CROPS.get(str(preprocessing.get("crop", "square")), "{}"), preprocessing.get("crop_margin")),
        "Frames per video": section(card, "sampling").get("num_frames"),
        "Faces": _sentence(
            "detection score of at least {}, at least {} px, at most {} per frame",
            *(detection.get(name) for name in ("threshold", "min_face_px", "max_faces")),
        ),
        "Evidence": _sentence(
            "a track needs at least {} faces to decide; {} neutral faces are added to its average",
            *(aggregation.get(name) for name in ("min_faces", "prior_faces")),
        ),
        "Temperature": section(card, "calibration").get("temperature"),
        "Written by": _sentence("dfscan {}", card.get("dfscan_version")),
    }
    return {name: as_text(value) for name, value in facts.items() if value is not None}


def _sentence(form: str, *values: object) -> str | None:
    return None if None in values else form.format(*map(as_text, values))


def section(document: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """Return a section of a document; empty if it is missing or not a mapping."""
    value = (document or {}).get(name)
    return value if isinstance(value, Mapping) else {}


def as_text(value: object) -> str:
    """Format a value as printable, human-readable text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple, Mapping)):
        return ", ".join(map(as_text, value)) or "none"
    return printable(str(value))
