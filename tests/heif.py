"""Write HEIC pictures in tiles, as phones do; no library at hand writes them. ISO/IEC 23008-12, 6.6.2.3."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from tests.videos import Picture


def write_tiles(path: Path, picture: Picture, *, rows: int, columns: int) -> None:
    """Write a picture, whose sides must be divisible, as HEVC tiles of equal size."""
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    tiles = [
        _coded(np.ascontiguousarray(picture[y * height : (y + 1) * height, x * width : (x + 1) * width]))
        for y in range(rows)
        for x in range(columns)
    ]
    ids = range(2, 2 + len(tiles))
    items = [_full(b"infe", 2, struct.pack(">HH4sx", number, 0, kind)) for number, kind in _kinds(ids)]
    references = _box(b"dimg", struct.pack(f">HH{len(ids)}H", 1, len(ids), *ids))
    whole_size, tile_size = (
        _full(b"ispe", 0, struct.pack(">II", *size)) for size in (picture.shape[1::-1], (width, height))
    )
    uses = [struct.pack(">HBB", 1, 1, 1), *(struct.pack(">HBBB", number, 2, 2, 0x83) for number in ids)]
    properties = _box(b"ipco", whole_size, tile_size, _box(b"hvcC", tiles[0][0]))
    parts = [
        _full(b"iinf", 0, struct.pack(">H", len(items)), *items),
        _full(b"iref", 0, references),
        _box(b"iprp", properties, _full(b"ipma", 0, struct.pack(">I", len(uses)), *uses)),
        _box(b"idat", struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *picture.shape[1::-1])),
    ]
    brands = _box(b"ftyp", b"heic\0\0\0\0mif1heic")
    samples = [sample for _, sample in tiles]
    start = len(brands) + len(_meta(parts, ids, samples, 0)) + 8
    path.write_bytes(brands + _meta(parts, ids, samples, start) + _box(b"mdat", *samples))


def _kinds(ids: range) -> list[tuple[int, bytes]]:
    return [(1, b"grid"), *((number, b"hvc1") for number in ids)]


def _meta(parts: list[bytes], ids: range, samples: list[bytes], start: int) -> bytes:
    places = [struct.pack(">HHHHII", 1, 1, 0, 1, 0, 8)]  # the grid, in idat
    for number, sample in zip(ids, samples, strict=True):
        places.append(struct.pack(">HHHHII", number, 0, 0, 1, start, len(sample)))
        start += len(sample)
    handler = _full(b"hdlr", 0, b"\0\0\0\0pict" + bytes(13))
    places_box = _full(b"iloc", 1, struct.pack(">HH", 0x4400, len(places)), *places)
    return _full(b"meta", 0, handler, _full(b"pitm", 0, b"\0\1"), places_box, *parts)


def _coded(pixels: Picture) -> tuple[bytes, bytes]:
    """Return the decoder configuration and the sample of one tile."""
    data = BytesIO()
    with av.open(data, "w", format="matroska") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none:bframes=0"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    data.seek(0)
    with av.open(data) as written:
        sample = bytes(next(written.demux(video=0)))
        return bytes(written.streams.video[0].codec_context.extradata or b""), sample


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full(kind: bytes, version: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24), *parts)
