"""Tell from the content of a file, without decoding it, whether it is a video, a picture, an animation, or text."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

HEAD_BYTES = 4096

_STILL_OR_SOUND_BRANDS = (
    b"M4A M4B M4P F4A F4B heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1 miaf avif avis avio"
    b" jp2 jpx jpm jxl crx aax aaxc"
)
PICTURES = ("jpeg", "png", "webp", "heif", "avif")
"""Formats that `picture_kind` recognises."""
_HEIF_BRANDS = dict.fromkeys(b"heic heix heim heis hevc hevx mif1 mif2 msf1 miaf".split(), "heif")
_HEIF_BRANDS |= dict.fromkeys(b"avif avis avio".split(), "avif")
_VIDEO_HEADS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",  # ASF
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07\xe9\x5e\xad\x8d",  # WTV
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01",  # MXF partition pack
    b".RMF",
    b"DHAV",
    b"DKIF",
    b"YUV4MPEG2",
    b"nut/multimedia container",
)
_OGG_VIDEO_MARKS = (b"\x80theora", b"BBCD\x00", b"OVP80", b"\x01video\x00")

_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

GIF_IMAGE, GIF_EXTENSION = 0x2C, 0x21
MAX_PNG_CHUNKS = 1000
"""Maximum number of chunks before the image data; there are seldom more than ten."""


def looks_like_video(head: bytes) -> bool:
    """Return whether the first `HEAD_BYTES` bytes of a file are those of a video container."""
    atom = head[4:8]
    # "free" and "skip" are English words: the text "The free ..." would be an atom of 1.4 GB.
    is_first_atom = atom in (b"moov", b"mdat") or (head[:1] == b"\0" and atom in (b"wide", b"free", b"skip"))
    # the first bytes of the first packets of a transport stream, without and with a time code before each packet
    syncs = (head[first : first + 2 * step + 1 : step] for first, step in ((0, 188), (4, 192)))
    return (
        head.startswith(_VIDEO_HEADS)
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or is_first_atom
        or (atom == b"ftyp" and head[8:12].rstrip() not in _STILL_OR_SOUND_BRANDS.split())
        or any(len(sync) >= 2 and sync.count(0x47) == len(sync) for sync in syncs)
        or (head.startswith(b"OggS") and any(mark in head for mark in _OGG_VIDEO_MARKS))
    )


def picture_kind(head: bytes) -> str | None:
    """Return the format of a picture, one of `PICTURES`, or None for any other file.

    PNG, WebP and AVIF files may also be animations.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return _HEIF_BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None


def is_text(head: bytes) -> bool:
    """Return whether a file that starts with these bytes is text."""
    return head.startswith(UTF_16_MARKS) or (bool(head) and not _NO_TEXT.search(head))


def is_animation(file: BinaryIO) -> bool:
    """Return whether a file is a GIF, PNG or WebP image with several frames."""
    file.seek(0)
    head = file.read(21)
    if len(head) < 21:
        return False
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _is_animated_gif(file, head)
    if not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)
    file.seek(8)
    for _ in range(MAX_PNG_CHUNKS):  # the control chunk, which precedes the image data, has the number of frames
        chunk = file.read(8)
        if len(chunk) < 8 or chunk[4:] == b"IDAT":
            return False
        if chunk[4:] == b"acTL":
            return int.from_bytes(file.read(4), "big") > 1
        file.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
    return False


def _is_animated_gif(file: BinaryIO, head: bytes) -> bool:
    """Return whether there is a second image. Headers, extensions and images are skipped by their lengths."""
    file.seek(13 + _gif_colours(head[10]))
    num_images = 0
    while kind := file.read(1):
        if kind[0] == GIF_IMAGE:
            num_images += 1
            if num_images == 2:
                return True
            descriptor = file.read(9)
            file.seek(_gif_colours(descriptor[-1]) + 1 if len(descriptor) == 9 else 0, os.SEEK_CUR)
        elif kind[0] == GIF_EXTENSION:
            file.seek(1, os.SEEK_CUR)
        else:
            return False
        while length := file.read(1)[:1].strip(b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return False


def _gif_colours(flags: int) -> int:
    """Return the size in bytes of the colour table that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
