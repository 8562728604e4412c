"""The report page: one self-contained HTML file that makes no network requests.

The summary, the method and its limits are plain HTML. The page's own script builds the table and the details from JSON
blocks, and loads pictures only when their video is opened. The page does not depend on a clock.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from dfscan.detector.card import OWN_SETTINGS, changed_settings, own_limit, withheld
from dfscan.detector.describe import INTENDED_USE, MISSING, as_text, describe_card, section
from dfscan.files import AtomicFile
from dfscan.report.copies import First
from dfscan.report.schema import NO_CASE, finite
from dfscan.report.statement import error_rate, statement
from dfscan.text import display_path, printable, report_order
from dfscan.types import (
    FileFacts,
    Picture,
    Review,
    Validation,
    VerdictLabel,
    VideoResult,
    standing,
)

if TYPE_CHECKING:
    from jinja2 import Template

SHOWN_ORDER: tuple[VerdictLabel, ...] = ("fake", "inconclusive", "error", "real", "no_face")
"""Verdicts in the order of the page; those that need attention come first."""

MEANINGS: dict[VerdictLabel, str] = {
    "fake": "Examine these first. This verdict is consistent with manipulation and does not establish it.",
    "inconclusive": "No conclusion is drawn; each row says why. Examine the highest scores next.",
    "error": "The file could not be examined; the reason says what to do.",
    "real": "Nothing like the manipulations in training was found. This does not show that a video is genuine.",
    "no_face": "No face was found, so nothing can be said.",
}
"""What each verdict means, and what to do next."""

_MIN_FRACTION = 0.006
"""Minimum part of the summary bar, so that one video among thousands is visible."""
MAX_COPIES_SHOWN = 20
"""Maximum number of copies of a video that are named on the page."""
_METRIC_NAMES = {
    "roc_auc": "ROC AUC",
    "eer": "equal error rate",
    "tpr_at_fpr_1": "fakes found at 1 % false positive rate",
    "tpr_at_fpr_5": "fakes found at 5 % false positive rate",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "f1": "F1",
}
_LEVEL_NAMES = {"frame": "single faces", "video": "videos"}


@dataclass(frozen=True, slots=True)
class PageVideo:
    """One video on the page."""

    result: VideoResult
    """Result of the video; its `pictures` are ignored."""
    checkpoint: str
    """Label of the checkpoint that judged it, such as ``best@d187e11d6436``; the first of several."""
    version: str
    """Version of dfscan that judged it."""
    number: int
    """Number of its row in the reports, from 0."""
    reviews: tuple[Review, ...] = ()
    """All reviews of its content, in order of time."""
    same_as: First | None = None
    """The first row with the same video."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """How the videos were judged, for the footer of the page."""

    cards: Mapping[str, Mapping[str, Any]]
    """Cards of the checkpoints by label; the page reports a missing card."""
    settings: Mapping[str, Any]
    """Settings of the scan."""
    versions: Mapping[str, str]
    """Versions of the libraries."""
    skipped: Mapping[str, int]
    """Number of files without a row, by reason."""
    verdict_rule: str | None = None
    """How several detectors decide, if there are several."""


@dataclass(frozen=True, slots=True)
class PageSummary:
    """Numbers of videos with and without pictures."""

    num_with_pictures: int
    num_left_out: int
    """Number of videos whose pictures did not fit into `max_mb`."""


def write_page(
    path: str | os.PathLike[str],
    videos: Sequence[PageVideo],
    *,
    pictures: Callable[[PageVideo], Sequence[Picture]],
    method: MethodInfo,
    max_mb: float = 50.0,
    case_facts: Mapping[str, str | None] = NO_CASE,
) -> PageSummary:
    """Write the page, atomically replacing an older one.

    Args:
        path: the HTML file.
        videos: videos in any order.
        pictures: returns the pictures of one video; called once per video, the most suspicious first.
        method: content of the footer.
        max_mb: maximum size of all pictures together, encoded as base64, in 10^6 bytes. The pictures of a video that
            do not fit are omitted.
        case_facts: case, exhibit and examiner, for the head of the page.

    Raises:
        OutputError: the file cannot be written; an older one is unchanged.
    """
    ordered = sorted(videos, key=lambda video: report_order(video.result.path))
    blocks = _PictureBlocks(ordered, pictures, max_bytes=max_mb * 1e6)
    with AtomicFile(path) as file:
        for part in template("page.html.j2").generate(
            **_shell(ordered, method),
            case_facts=_printable(case_facts),
            blocks=blocks,
            to_json=_json,
            max_mb=f"{max_mb:g}",
        ):
            file.write(part.encode())
    return PageSummary(blocks.num_granted, len(blocks.left_out))


class _PictureBlocks:
    """Yields the row number and the pictures of each video as JSON, the most suspicious video first."""

    def __init__(
        self,
        videos: Sequence[PageVideo],
        pictures: Callable[[PageVideo], Sequence[Picture]],
        *,
        max_bytes: float,
    ) -> None:
        self._videos, self._pictures, self._bytes_left = videos, pictures, max_bytes

        self.num_granted = 0
        self.left_out: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, str]]:
        ranked = []
        for row, video in enumerate(self._videos):
            verdict, score = video.result.verdict, finite(video.result.verdict.score)
            ranked.append((verdict.label != "fake", 1.0 if score is None else -score, row))
        for _, _, row in sorted(ranked):
            records = [
                (
                    picture.kind,
                    picture.track_id,
                    _time(picture.time_s),
                    _score(picture.score),
                    base64.b64encode(picture.jpeg).decode(),
                )
                for picture in self._pictures(self._videos[row])
            ]
            num_bytes = sum(len(record[-1]) for record in records)
            if not records:
                continue
            if num_bytes > self._bytes_left:
                self.left_out.append(row)
                continue
            self._bytes_left -= num_bytes
            self.num_granted += 1
            yield row, _json(records)


def template(name: str) -> Template:
    """Return a template of this package; it escapes all values that are not `markup`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset(name))


def asset(name: str) -> str:
    """Return the text of a file in the folder of templates."""
    return importlib.resources.files("dfscan.report").joinpath("templates", name).read_text(encoding="utf-8")


def _shell(videos: Sequence[PageVideo], method: MethodInfo) -> dict[str, Any]:
    """Return the template variables without the pictures; all text in them is printable."""
    style, script = asset("page.css"), asset("page.js")
    checkpoints = sorted({video.checkpoint for video in videos} | set(method.cards))
    cards = [_card_view(name, method.cards.get(name), method.settings) for name in checkpoints]
    validations: dict[VerdictLabel, set[Validation | None]] = defaultdict(set)
    for video in videos:
        validations[video.result.verdict.label].add(video.result.verdict.validation)
    details = ",\n".join(_json(_known(detail)) for detail in _details(videos, checkpoints))
    return {
        "style": markup(style),
        "script": markup(script),
        # Allows only the page's own style, script and embedded pictures.
        "policy": f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'; "
        f"script-src '{source_hash(script)}'; base-uri 'none'; form-action 'none'",
        "num_videos": len(videos),
        "bar": _summary_bar(videos),
        "meanings": MEANINGS,
        # A verdict whose videos have different rates has no sentence.
        "rates": {
            label: error_rate(label, validation, validation.error_rate)
            for label, (validation, *others) in validations.items()
            if not others and validation and validation.error_rate
        },
        "intended_use": INTENDED_USE,
        "detectors": list(dict.fromkeys(card["label"].split("@")[0] for card in cards)),
        "data": _json(_table(videos, checkpoints, method)),
        # One video per line, so that the page can parse one without the others.
        "details": markup(f"[\n{details}\n]"),
        "cards": cards,
        "verdict_rule": method.verdict_rule,
        "untrained": [card["label"] for card in cards if card["is_untrained"]],
        "uncalibrated": [card["label"] for card in cards if card["is_uncalibrated"]],
        "dfscan_versions": sorted({printable(video.version) for video in videos}),
        "settings": sorted((name, text) for name, text in _flat(method.settings) if text != MISSING),
        "versions": sorted(_flat(method.versions)),
        "skipped": [(printable(code), count) for code, count in sorted(method.skipped.items())],
    }


def source_hash(text: str) -> str:
    """Return the hash by which a content security policy allows a style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def markup(text: str) -> str:
    """Mark text as safe to insert without escaping; only for our own files and the output of `_json`."""
    from markupsafe import Markup

    return Markup(text)


def _json(value: object) -> str:
    """Return JSON that is safe inside a script element, without characters that begin markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markup(text)


def _summary_bar(videos: Sequence[PageVideo]) -> list[dict[str, Any]]:
    """Return the part of the bar for each verdict; positions are percentages of its width."""
    counts = Counter(video.result.verdict.label for video in videos)
    shares = [max(counts[label] / len(videos), _MIN_FRACTION) if counts[label] else 0.0 for label in SHOWN_ORDER]
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
            }
        )
        start += width
    return parts


def _table(videos: Sequence[PageVideo], checkpoints: Sequence[str], method: MethodInfo) -> dict[str, Any]:
    """Return the data that the script needs at start."""
    calibrations = [section(method.cards.get(name), "calibration") for name in checkpoints]
    rows = []
    for video, first in zip(videos, _first_rows(videos), strict=True):
        result, verdict, review = video.result, video.result.verdict, standing(video.reviews)
        decided = result.decided
        row = (
            display_path(result.path),
            verdict.label,
            _score(verdict.score),
            _score(verdict.threshold),
            result.status,
            printable(verdict.reason.code) if verdict.reason else "",
            printable(verdict.reason.text) if verdict.reason else "",
            _time(decided.start_s) if decided else None,
            _time(decided.end_s) if decided else None,
            _time(result.info.duration_s),
            review.verdict if review else "",
            first,
        )
        rows.append(row)
    return {
        "verdicts": SHOWN_ORDER,
        "checkpoints": [
            {"label": printable(name), "real": _score(calibration.get("real_threshold"))}
            for name, calibration in zip(checkpoints, calibrations, strict=True)
        ],
        "rows": rows,
    }


def _first_rows(videos: Sequence[PageVideo]) -> list[int | None]:
    """Return the row of the first video with the same content, or None for each that is the first or has no copy.

    A path alone does not identify it: merged ledgers can have two videos with the same relative path.
    """
    rows = {First.of(video.result): row for row, video in enumerate(videos) if video.same_as is None}
    return [None if video.same_as is None else rows[video.same_as] for video in videos]


def _details(videos: Sequence[PageVideo], checkpoints: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the data that the script needs when a video is opened."""
    copies: dict[int, list[str]] = defaultdict(list)
    for video, first in zip(videos, _first_rows(videos), strict=True):
        if first is not None:
            copies[first].append(display_path(video.result.path))
    for row, video in enumerate(videos):
        result, info = video.result, video.result.info
        found = copies.get(row, [])
        yield {
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
            "statement": printable(statement(result)),
            "decided": result.verdict.track_id,
            "tracks": [
                {
                    "id": track.track_id,
                    "times": [_time(face.face.time_s) for face in track.faces],
                    "scores": [_score(face.score) for face in track.faces],
                }
                for track in result.tracks
            ],
            "stated": _stated(result.facts) if result.facts else None,
            "reviews": [_printable(asdict(review)) for review in video.reviews] or None,
            "detectors": [
                _known(
                    {
                        **_printable({"name": each.name, "checkpoint": each.checkpoint}),
                        "verdict": each.verdict.label,
                        "reason": printable(str(each.verdict.reason)) if each.verdict.reason else None,
                        "score": _score(each.verdict.score),
                        "threshold": _score(each.verdict.threshold),
                    }
                )
                for each in result.detectors
            ]
            or None,
            "copies": found[:MAX_COPIES_SHOWN] or None,
            "num_copies": len(found) or None,
        }


def _stated(facts: FileFacts) -> dict[str, Any]:
    """Return what the file states about itself, without what it does not state."""
    manifest = None
    if provenance := facts.provenance:
        claims = {
            "state": provenance.state,
            "signer": provenance.signer,
            "generator": provenance.generator,
            "actions": ", ".join(provenance.actions) or None,
            "problem": provenance.problem,
            "ai": provenance.declared_ai,
        }
        manifest = _known(_printable(claims))
    texts = {
        "container": facts.container,
        "brand": facts.brand,
        "muxer": facts.muxer,
        "encoder": facts.encoder,
        "device": facts.device,
        "created": facts.creation_time,
        "signs": "; ".join(facts.origin_signs) or None,
    }
    numbers = {
        "hidden": _time(facts.hidden_s),
        "bit_rate": facts.bit_rate_bps,
        "gop": facts.gop_frames,
        "sounds": facts.num_audio_streams,
    }
    return _known(_printable(texts) | numbers | {"provenance": manifest})


def _printable(texts: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: printable(text) if text else None for name, text in texts.items()}


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _score(value: float | None) -> float | None:
    number = finite(value)
    return None if number is None else round(number, 4) + 0.0


def _time(value: float | None) -> float | None:
    number = finite(value)
    return None if number is None else round(number, 3) + 0.0


def _card_view(label: str, card: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's card as text, and the settings of the scan that differ from it."""
    calibration, training = section(card, "calibration"), section(card, "training")
    flat_training = {name: value for name, value in training.items() if name not in ("limits", "settings", "versions")}
    limits = training.get("limits")
    sections = {name: section(card, name) for name, _ in OWN_SETTINGS.values()}
    return {
        "label": printable(label),
        "is_missing": card is None,
        "is_untrained": card is not None and not calibration.get("trained"),
        "is_uncalibrated": bool(calibration.get("trained")) and calibration.get("fake_threshold") is None,
        "facts": list(describe_card(card).items()) if card else [],
        "thresholds": _threshold_rows(card),
        "changed": changed_settings(settings, sections) if calibration.get("fake_threshold") is not None else [],
        "limits": [printable(str(limit)) for limit in limits] if isinstance(limits, (list, tuple)) else [],
        "training": [(name.replace(".", " ").replace("_", " "), text) for name, text in _flat(flat_training)],
        "recipe": [*_flat(section(training, "settings")), *_flat(section(training, "versions"))],
        "metrics": [_metric_table(name, values) for name, values in section(card, "metrics").items()],
    }


def _threshold_rows(card: Mapping[str, Any] | None) -> list[dict[str, str | None]]:
    """Return both thresholds, each with its measured error rate and the number of videos."""
    calibration = section(card, "calibration")
    document = {"calibration": calibration, "training": {"settings": section(section(card, "training"), "settings")}}
    kinds: dict[Literal["fake", "real"], tuple[str, str, str]] = {
        "fake": ("real_called_fake", "num_real_videos", "real videos called fake"),
        "real": ("fake_called_real", "num_fake_videos", "fake videos called real"),
    }
    rows = []
    for kind, (measure, count, error) in kinds.items():
        interval = calibration.get(f"{measure}_interval")
        low = high = None
        if isinstance(interval, (list, tuple)) and len(interval) == 2:
            low, high = map(_percent, interval)
        row = {
            "kind": kind,
            "value": _fixed(calibration.get(f"{kind}_threshold")),
            "error": error,
            "rate": _percent(calibration.get(f"{measure}_rate")),
            "interval": f"{low} to {high}" if low and high else None,
            "num_videos": as_text(calibration.get(count)),
            "own_limit": own_limit(document, kind),
            "withheld": withheld(document, kind),
        }
        rows.append(row)
    return rows


def _metric_table(name: object, values: object) -> dict[str, Any]:
    """Return the metrics of one data set, with a row per metric and a column each for faces and videos.

    A measured value has its interval, if there is one.
    """
    values = values if isinstance(values, Mapping) else {"value": values}
    levels = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    counts = {key: value for key, value in values.items() if key not in levels}
    rows = []
    for metric in dict.fromkeys(metric for level in levels.values() for metric in level):
        cells = []
        for level in levels.values():
            measured = level.get(metric)
            if not isinstance(measured, Mapping):
                measured = {"value": measured}
            value, low, high = (_fixed(measured.get(name), 3) for name in ("value", "low", "high"))
            cells.append(f"{value or MISSING} ({low} to {high})" if low and high else value or MISSING)
        rows.append((printable(_METRIC_NAMES.get(str(metric), str(metric).replace("_", " "))), cells))
    return {
        "name": printable(str(name)),
        "levels": [printable(_LEVEL_NAMES.get(level, str(level))) for level in levels],
        "rows": rows,
        "counts": ", ".join(f"{text} {key.removeprefix('num_')}" for key, text in _flat(counts)),
    }


def _flat(document: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the leaves of nested mappings as text, with names like ``data.train.faces``."""
    leaves: list[tuple[str, str]] = []
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves += _flat(value, f"{name}.")
        else:
            leaves.append((printable(name), as_text(value)))
    return leaves


def _fixed(value: object, digits: int = 4) -> str | None:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else None


def _percent(value: object) -> str | None:
    return f"{100 * value:.2f} %" if isinstance(value, (int, float)) else None
