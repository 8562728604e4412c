"""Read what a file states about how it was made. Used in the decoding child only.

Everything here is quoted from the file and can be forged. It stands beside the verdict and never changes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from io import FileIO

import numpy as np
from av.container import InputContainer

from dfscan.media import matroska, mp4
from dfscan.media.content import HEAD_BYTES, PICTURES, picture_kind
from dfscan.media.plan import Timeline
from dfscan.types import FileFacts

MAX_TEXT = 300
"""Maximum number of characters kept of a text."""
MAX_SIGNS = 8
MIN_HIDDEN_S = 0.1
"""A shorter difference comes from rounding and from frames before the first key frame; it is not a cut."""
ENCODER_TEXT_BYTES = 16384
"""Encoders write their names into the first bytes of a stream."""

_MUXERS = ("encoder", "encoding_tool", "software", "com.apple.quicktime.software", "writing_application")
_MAKES = ("com.apple.quicktime.make", "com.android.manufacturer", "make")
_MODELS = ("com.apple.quicktime.model", "com.android.model", "model")
_TIMES = ("com.apple.quicktime.creationdate", "creation_time", "date")

_ENCODER_NAMES = re.compile(rb"x264 - core \d+(?: r\d+\w* \w+)?|x265 \(build \d+\)|(?:XviD|DivX)\w{2,20}")
_ENCODER_SETTINGS = re.compile(rb"\b(?:crf|qp|bitrate|keyint)=[\d.]+")

_SIGNS = {
    "screen recorder": (
        r"ReplayKitRecording|\bscrcpy\b|\bOBS\b|obs-studio|Bandicam|Camtasia|TechSmith|Game ?DVR|Game Bar|ShadowPlay"
        r"|ScreenFlow|SimpleScreenRecorder|screen ?(?:cast|record)|\bFraps\b|XRecorder|ScreenToGif"
    ),
    "online service": (
        r"\bWhatsApp\b|\bTelegram\b|\bWeChat\b|\bWeixin\b|\bViber\b|\bTikTok\b|\bvid:v\d{5}|\bSnapchat\b"
        r"|\bInstagram\b|\bFacebook\b|Twitter-vork|produced by Google|\bYouTube\b|\bVimeo\b|\bdouyin\b"
    ),
    "generator": (
        r"\bAIGC|\bComfyUI\b|AnimateDiff|FaceFusion|DeepFaceL(?:ab|ive)|Wav2Lip|SadTalker|\bHeyGen\b|\bSynthesia\b"
        r"|\bRunwayML\b|\bOpenAI\b|Stable ?(?:Video )?Diffusion|\"prompt\""
    ),
}
"""Words that name a kind of program. Only distinctive ones: a tag may also hold a person's name or a title."""
_SIGN_OF = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _SIGNS.items()}


def read_facts(file: FileIO, container: InputContainer) -> FileFacts:
    """Read the facts that are known as soon as the container is open."""
    tags = _tags(container.metadata)
    video_tags = [_tags(stream.metadata) for stream in container.streams.video]
    main = container.streams.best("video")
    kind, name = picture_kind(os.pread(file.fileno(), HEAD_BYTES, 0)), container.format.name
    brand: str | None = None
    edits: dict[int, mp4.Edits] = {}
    applications: list[str] = []
    if name.startswith("mov,"):
        edits = mp4.read_edits(file)
        if major := tags.get("major_brand", "").strip():
            compatible = tags.get("compatible_brands", "")
            others = " ".join(compatible[i : i + 4].strip() for i in range(0, len(compatible), 4))
            brand = _clean(f"{major} ({others})" if others else major)
        family = tags.get("major_brand", "qt").strip().lower()
        kind = kind or ("3gp" if family.startswith("3g") else "mov" if family == "qt" else "mp4")
    elif name.startswith("matroska"):
        applications = matroska.applications(file)
        kind = kind or matroska.document_type(file) or "matroska"
    tracks = [edits[stream.id] for stream in container.streams.video if stream.id in edits]
    device = [_first(tags, _MAKES), _first(tags, _MODELS)]
    times = (time for each in (tags, *video_tags) if (time := _first(each, _TIMES)))
    signs = dict.fromkeys(
        f"{program}: {tag}={value[:80]}"
        for each in (tags, *video_tags)
        for tag, value in each.items()
        for program, pattern in _SIGN_OF.items()
        if pattern.search(tag) or pattern.search(value)
    )
    return FileFacts(
        container=kind or _clean(name.removesuffix("_pipe")) or "unknown",
        brand=brand,
        muxer=_joined([*(tags.get(tag) for tag in _MUXERS), *applications]),
        encoder=_tags(main.metadata).get("encoder") if main else None,
        device=_joined(device, " "),
        # FFmpeg adds microseconds to times in whole seconds.
        creation_time=next((time.replace(".000000Z", "Z") for time in times), None),
        num_edits=max((track.num_edits for track in tracks), default=None),
        hidden_s=max((hidden for track in tracks if (hidden := track.hidden_s) >= MIN_HIDDEN_S), default=None),
        num_audio_streams=len(container.streams.audio),
        origin_signs=tuple(signs)[:MAX_SIGNS],
    )


def with_stream_facts(facts: FileFacts, timeline: Timeline, *, num_bytes: int, encoder: str | None) -> FileFacts:
    """Add what the packets of the main stream reveal; see `container.Survey`."""
    duration_s, num_frames, keys = timeline.duration_s, len(timeline.pts), np.flatnonzero(timeline.is_key)
    return replace(
        facts,
        is_picture=facts.container in PICTURES and num_frames == 1,
        encoder=_joined([facts.encoder, encoder]),
        bit_rate_bps=round(8 * num_bytes / duration_s) if duration_s and num_bytes else None,
        gop_frames=int(np.diff(keys, append=num_frames).max()) if len(keys) and num_frames > 1 else None,
    )


def encoder_text(data: bytes) -> str | None:
    """Return the name and the main settings that an encoder wrote into the first bytes of its stream, or None.

    x264 and x265 write them as unregistered user data (ITU-T H.264, D.1.7), XviD and DivX as MPEG-4 user data.
    """
    name = _ENCODER_NAMES.search(data)
    if name is None:
        return None
    settings = [found[0] for found in _ENCODER_SETTINGS.finditer(data, name.end())]
    return _joined(part.decode("ascii") for part in (name[0], *settings)[:4])


def _tags(metadata: dict[str, str]) -> dict[str, str]:
    """Return the tags with lower-case names, as their case depends on the container."""
    cleaned = ((_clean(name.lower()), _clean(value)) for name, value in metadata.items())
    return {name: value for name, value in cleaned if name and value}


def _first(tags: dict[str, str], names: Iterable[str]) -> str | None:
    return next((tags[name] for name in names if name in tags), None)


def _joined(texts: Iterable[str | None], separator: str = "; ") -> str | None:
    return _clean(separator.join(dict.fromkeys(text for text in texts if text))) or None


def _clean(text: str) -> str:
    return text.strip("\0 \t\r\n\x1f")[:MAX_TEXT]
