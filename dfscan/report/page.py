"""The report page: one HTML file for people that needs nothing beside it and asks nothing of any network.

The shell (summary, method, limits) is written out as HTML; the table and the details are built by the page's own
script from JSON blocks, pictures only when their video is opened. Nothing in it depends on a clock.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dfscan.detector.card import OWN_SETTINGS, changed_settings, withheld
from dfscan.report.schema import finite
from dfscan.report.text import display_path, printable, report_order
from dfscan.report.writers import AtomicFile
from dfscan.types import Label, Picture, Track, VideoResult

if TYPE_CHECKING:
    from jinja2 import Template

SHOWN_ORDER: tuple[Label, ...] = ("fake", "inconclusive", "error", "real", "no_face")
"""Verdicts as the page lists them: what needs an eye comes first."""

_LEAST_SHARE = 0.006
"""Of the summary bar, so that one video among thousands is seen."""
_LABELLED_SHARE = 0.06
_METRIC_NAMES = {
    "roc_auc": "ROC AUC",
    "eer": "equal error rate",
    "tpr_at_fpr_1": "fakes found at 1 % false alarms",
    "tpr_at_fpr_5": "fakes found at 5 % false alarms",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "f1": "F1",
}
_LEVEL_NAMES = {"frame": "single faces", "video": "videos"}
_MISSING = "not given"


@dataclass(frozen=True, slots=True)
class PageVideo:
    """One video of the page."""

    result: VideoResult
    """Its own `pictures` are not looked at."""
    checkpoint: str
    """Short text that names the checkpoint that judged it, such as ``best@d187e11d6436``."""
    version: str
    """Of the dfscan that judged it."""


@dataclass(frozen=True, slots=True)
class Method:
    """How the videos were judged, for the foot of the page."""

    cards: Mapping[str, Mapping[str, Any]]
    """The documents of the checkpoints by their short text; one that is missing is said to be."""
    settings: Mapping[str, Any]
    """Settings of the scan."""
    versions: Mapping[str, str]
    """Of the libraries."""
    skipped: Mapping[str, int]
    """How many files got no row, by reason."""


@dataclass(frozen=True, slots=True)
class PageSummary:
    """What became of the pictures."""

    num_with_pictures: int
    num_left_out: int
    """Videos that have pictures which did not fit into `max_mb`."""


def write_page(
    path: str | os.PathLike[str],
    videos: Sequence[PageVideo],
    *,
    pictures: Callable[[VideoResult], Sequence[Picture]],
    method: Method,
    max_mb: float = 50.0,
) -> PageSummary:
    """Write the page, replacing an older one whole.

    Args:
        path: the HTML file.
        videos: in any order.
        pictures: gives the pictures of one video; called once a video, the most suspicious first.
        method: what the foot of the page tells.
        max_mb: limit of all pictures together as they stand in the page (base64), in 10^6 bytes. A video whose
            pictures do not fit any more goes without.

    Raises:
        OutputError: the file cannot be written there; an older one is untouched.
    """
    ordered = sorted(videos, key=lambda video: report_order(video.result.path))
    blocks = _PictureBlocks(ordered, pictures, max_bytes=max_mb * 1e6)
    file = AtomicFile(path)
    try:
        for part in _template().generate(**_shell(ordered, method), blocks=blocks, to_json=_json, max_mb=f"{max_mb:g}"):
            file.write(part.encode())
    except BaseException:
        file.discard()
        raise
    file.commit()
    return PageSummary(blocks.num_granted, len(blocks.left_out))


class _PictureBlocks:
    """The pictures of each video as JSON, with the number of its row, in the order in which they are granted."""

    def __init__(
        self,
        videos: Sequence[PageVideo],
        pictures: Callable[[VideoResult], Sequence[Picture]],
        *,
        max_bytes: float,
    ) -> None:
        self._videos, self._pictures, self._bytes_left = videos, pictures, max_bytes

        self.num_granted = 0
        self.left_out: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for row in sorted(range(len(self._videos)), key=self._rank):
            records = [_picture_record(picture) for picture in self._pictures(self._videos[row].result)]
            num_bytes = sum(len(record[-1]) for record in records)
            if not records:
                continue
            if num_bytes > self._bytes_left:
                self.left_out.append(row)
                continue
            self._bytes_left -= num_bytes
            self.num_granted += 1
            yield row, _json(records)

    def _rank(self, row: int) -> tuple[bool, float]:
        verdict = self._videos[row].result.verdict
        score = finite(verdict.score)
        return verdict.label != "fake", 1.0 if score is None else -score


def _picture_record(picture: Picture) -> tuple[Any, ...]:
    text = base64.b64encode(picture.jpeg).decode()
    return picture.kind, picture.track_id, _time(picture.time_s), _score(picture.score), text


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html.j2"))


def _asset(name: str) -> str:
    return importlib.resources.files("dfscan.report").joinpath("templates", name).read_text(encoding="utf-8")


def _shell(videos: Sequence[PageVideo], method: Method) -> dict[str, Any]:
    """Everything that the template shows, except the pictures; all text in it is printable."""
    style, script = _asset("page.css"), _asset("page.js")
    checkpoints = sorted({video.checkpoint for video in videos} | set(method.cards))
    cards = [_card_view(name, method.cards.get(name), method.settings) for name in checkpoints]
    return {
        "style": _markup(style),
        "script": _markup(script),
        "policy": _policy(style, script),
        "num_videos": len(videos),
        "bar": _summary_bar(videos),
        "data": _json(_table(videos, checkpoints, method)),
        "details": _lines(_detail(video, checkpoints) for video in videos),
        "cards": cards,
        "untrained": [card["label"] for card in cards if card["is_untrained"]],
        "dfscan_versions": sorted({printable(video.version) for video in videos}),
        "settings": sorted(_flat(method.settings)),
        "versions": sorted(_flat(method.versions)),
        "skipped": [(printable(code), count) for code, count in sorted(method.skipped.items())],
    }


def _policy(style: str, script: str) -> str:
    """The page's content security policy: only its own style and script, and pictures that it carries."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _source_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _markup(text: str) -> str:
    """The text, marked as fit to stand in the page as it is: our own files, and what `_json` gives."""
    from markupsafe import Markup

    return Markup(text)


def _json(value: object) -> str:
    """JSON that may stand in a script element: it holds none of the characters with which markup begins."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _markup(text)


def _lines(values: Iterable[object]) -> str:
    """A JSON list with each value on a line of its own, so that the page can read one without the others."""
    return _markup("[\n" + ",\n".join(map(_json, values)) + "\n]")


def _summary_bar(videos: Sequence[PageVideo]) -> list[dict[str, Any]]:
    """A part of the bar for each verdict; places in per cent of its width."""
    counts = Counter(video.result.verdict.label for video in videos)
    shares = [max(counts[label] / len(videos), _LEAST_SHARE) if counts[label] else 0.0 for label in SHOWN_ORDER]
    parts, start = [], 0.0
    for label, share in zip(SHOWN_ORDER, shares, strict=True):
        width = 100 * share / (sum(shares) or 1)
        parts.append(
            {
                "label": label,
                "name": label.replace("_", " "),
                "count": counts[label],
                "start": round(start, 3),
                "width": round(width, 3),
                "middle": round(start + width / 2, 3),
                "is_labelled": share >= _LABELLED_SHARE,
            }
        )
        start += width
    return parts


def _table(videos: Sequence[PageVideo], checkpoints: Sequence[str], method: Method) -> dict[str, Any]:
    """What the script needs at once."""
    calibrations = [_part(method.cards.get(name), "calibration") for name in checkpoints]
    return {
        "verdicts": SHOWN_ORDER,
        "checkpoints": [
            {"label": printable(name), "real": _score(calibration.get("real_threshold"))}
            for name, calibration in zip(checkpoints, calibrations, strict=True)
        ],
        "rows": [_row(video.result) for video in videos],
    }


def _row(result: VideoResult) -> tuple[Any, ...]:
    verdict = result.verdict
    return (
        display_path(result.path),
        verdict.label,
        _score(verdict.score),
        _score(verdict.threshold),
        result.status,
        printable(verdict.reason.code) if verdict.reason else "",
        printable(verdict.reason.text) if verdict.reason else "",
        sum(len(track.faces) for track in result.tracks),
        len(result.tracks),
        _time(result.info.duration_s),
    )


def _detail(video: PageVideo, checkpoints: Sequence[str]) -> dict[str, Any]:
    """What the script needs when a video is opened; what is not known is left out."""
    result, info = video.result, video.result.info
    facts = {
        "size": info.size_bytes,
        "sha256": printable(info.sha256) if info.sha256 else None,
        "width": info.width_px,
        "height": info.height_px,
        "fps": _time(info.fps),
        "codec": printable(info.codec) if info.codec else None,
        "turned": info.rotation_deg or None,
        "hdr": info.is_hdr or None,
        "looked": result.num_frames,
        "checkpoint": checkpoints.index(video.checkpoint),
        "version": printable(video.version),
        "decided": result.verdict.track_id,
        "tracks": [_track(track) for track in result.tracks],
    }
    return {name: value for name, value in facts.items() if value is not None}


def _track(track: Track) -> dict[str, Any]:
    return {
        "id": track.track_id,
        "times": [_time(face.face.time_s) for face in track.faces],
        "scores": [_score(face.score) for face in track.faces],
    }


def _score(value: float | None) -> float | None:
    number = finite(value)
    return None if number is None else round(number, 4) + 0.0


def _time(value: float | None) -> float | None:
    number = finite(value)
    return None if number is None else round(number, 3) + 0.0


def _card_view(label: str, card: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's card in words, and in which settings the scan was not as it has them."""
    calibration, training = _part(card, "calibration"), _part(card, "training")
    flat_training = {name: value for name, value in training.items() if name not in ("limits", "settings", "versions")}
    limits = training.get("limits")
    return {
        "label": printable(label),
        "is_missing": card is None,
        "is_untrained": card is not None and not calibration.get("trained"),
        "facts": _card_facts(card) if card else [],
        "thresholds": _threshold_rows(card),
        "changed": _changed(settings, card) if calibration.get("trained") else [],
        "limits": [printable(str(limit)) for limit in limits] if isinstance(limits, (list, tuple)) else [],
        "training": [(name.replace(".", " ").replace("_", " "), text) for name, text in _flat(flat_training)],
        "recipe": [*_flat(_part(training, "settings")), *_flat(_part(training, "versions"))],
        "metrics": [_metric_table(name, values) for name, values in _part(card, "metrics").items()],
    }


def _changed(settings: Mapping[str, Any], card: Mapping[str, Any] | None) -> list[str]:
    return changed_settings(settings, {section: _part(card, section) for section, _ in OWN_SETTINGS.values()})


def _card_facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    detection, aggregation = _part(card, "detection"), _part(card, "aggregation")
    preprocessing = _part(card, "preprocessing")
    side_px = preprocessing.get("input_size_px")
    facts = {
        "Name": card.get("name"),
        "Architecture": card.get("architecture"),
        "Input": _sentence("{} by {} px", side_px, side_px),
        "Crop": _sentence("{} times the longer side of the face's box", preprocessing.get("crop_margin")),
        "Frames of a video": _part(card, "sampling").get("num_frames"),
        "Faces": _sentence(
            "found with a probability of at least {}, at least {} px, at most {} of a frame",
            *(detection.get(name) for name in ("threshold", "min_face_px", "max_faces")),
        ),
        "Evidence": _sentence(
            "a person decides with at least {} faces; their mean is drawn towards undecided as by {} more faces",
            *(aggregation.get(name) for name in ("min_faces", "prior_faces")),
        ),
        "Temperature": _part(card, "calibration").get("temperature"),
        "Written by": _sentence("dfscan {}", card.get("dfscan_version")),
    }
    return [(name, _text(value)) for name, value in facts.items() if value is not None]


def _sentence(form: str, *values: object) -> str | None:
    return None if None in values else form.format(*map(_text, values))


def _threshold_rows(card: Mapping[str, Any] | None) -> list[dict[str, str | None]]:
    """Both thresholds, each with what it was measured to do and on how many videos."""
    calibration = _part(card, "calibration")
    document = {"calibration": calibration, "training": {"settings": _part(_part(card, "training"), "settings")}}
    kinds: dict[Literal["fake", "real"], tuple[str, str, str]] = {
        "fake": ("real_called_fake", "num_real_videos", "real videos called fake"),
        "real": ("fake_called_real", "num_fake_videos", "fake videos called real"),
    }
    return [
        {
            "kind": kind,
            "value": _fixed(calibration.get(f"{kind}_threshold")),
            "error": error,
            "rate": _percent(calibration.get(f"{measure}_rate")),
            "interval": _percent_range(calibration.get(f"{measure}_interval")),
            "num_videos": _text(calibration.get(count)),
            "withheld": withheld(document, kind),
        }
        for kind, (measure, count, error) in kinds.items()
    ]


def _metric_table(name: object, values: object) -> dict[str, Any]:
    """The metrics of one data set: a row each, a column for faces and one for videos."""
    values = values if isinstance(values, Mapping) else {"value": values}
    levels = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    counts = {key: value for key, value in values.items() if key not in levels}
    metrics = dict.fromkeys(metric for level in levels.values() for metric in level)
    return {
        "name": printable(str(name)),
        "levels": [printable(_LEVEL_NAMES.get(level, str(level))) for level in levels],
        "rows": [
            (_metric_name(metric), [_estimate(level.get(metric)) for level in levels.values()]) for metric in metrics
        ],
        "counts": ", ".join(f"{text} {key.removeprefix('num_')}" for key, text in _flat(counts)),
    }


def _metric_name(metric: object) -> str:
    return printable(_METRIC_NAMES.get(str(metric), str(metric).replace("_", " ")))


def _estimate(value: object) -> str:
    """A measured value with its interval, where it has one."""
    if not isinstance(value, Mapping):
        return _fixed(value, 3) or _MISSING
    low, high = _fixed(value.get("low"), 3), _fixed(value.get("high"), 3)
    interval = f" ({low} to {high})" if low and high else ""
    return f"{_fixed(value.get('value'), 3) or _MISSING}{interval}"


def _part(document: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """A section of a document; empty where it is missing or none."""
    section = (document or {}).get(name)
    return section if isinstance(section, Mapping) else {}


def _flat(document: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The leaves of nested mappings as text, named like ``data.train.faces``."""
    leaves: list[tuple[str, str]] = []
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves += _flat(value, f"{name}.")
        else:
            leaves.append((printable(name), _text(value)))
    return leaves


def _text(value: object) -> str:
    """A value as people read it, printable."""
    if value is None:
        return _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple, Mapping)):
        return ", ".join(map(_text, value)) or "none"
    return printable(str(value))


def _fixed(value: object, digits: int = 4) -> str | None:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else None


def _percent(value: object) -> str | None:
    return f"{100 * value:.2f} %" if isinstance(value, (int, float)) else None


def _percent_range(value: object) -> str | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = map(_percent, value)
    return f"{low} to {high}" if low and high else None
