"""Classify files and directories by name: videos, other files, unfinished downloads, and system files."""

from __future__ import annotations

import os
import re

_VIDEO = """
    264 265 266 3g2 3gp 3gp2 3gpp amv asf av1 avc avi bik cavs dav dhav dirac divx drc dv dvr-ms evo f4v
    flc fli flv gxf h261 h263 h264 h265 h266 hevc ivf m1v m2p m2t m2ts m2v m4v mj2 mjpeg mjpg mk3d mkv mov
    mp2v mp4 mp4v mpe mpeg mpeg4 mpg mpv mts mxf nsv nut obu ogm ogv qt r3d rm rmvb roq smk tod tp trp ts
    vc1 vob vro vvc webm wm wmv wtv xvid y4m
"""
_PICTURES = """
    ai apng arw avif bmp cr2 cr3 cur dds dib djvu dng emf eps exr gif hdr heic heif icns ico j2k jfif jp2
    jpe jpeg jpg jxl nef orf pbm pcx pgm png pnm ppm psd raf rw2 svg svgz tga tif tiff webp wmf xcf
"""
# .ogg is omitted because it may contain video too.
_SOUND = """
    ac3 aif aifc aiff amr ape au caf dts eac3 flac m3u m3u8 mid midi mp3 mpa oga opus pls spx tta wav wv xspf
"""
_SOUND_IN_VIDEO_CONTAINERS = "aac m4a m4b m4p m4r mka ra weba wma"
_TEXT = """
    ass bib csv doc docm docx epub htm html ini json jsonl ledger log lrc markdown md mobi ndjson nfo odp
    ods odt pages pdf ppt pptx rst rtf sbv srt ssa sub sup tex toml tsv ttml txt vtt xls xlsm xlsx xml
    yaml yml
"""
_ARCHIVES_AND_CODE = """
    7z apk bash bat bz2 c cab cc cfg class cmd conf cpp cs css cue dart deb diff dll dmg dylib exe go gz h
    hpp ipynb jar java js jsx kt lock lua lz4 lzma mjs o patch php pl ps1 py pyc pyi r rar rb rpm rs s sh
    so sql swift tar tbz2 tgz tsx txz wasm whl xz zip zst
"""
_DATA = """
    arrow avro ckpt crt db db-shm db-wal feather h5 hdf5 key mat md5 npy npz onnx parquet pb pem pickle
    pkl pt pth safetensors sha1 sha256 sig sqlite sqlite-shm sqlite-wal sqlite3 tflite torrent ttf woff
    woff2
"""

VIDEO_SUFFIXES = frozenset(_VIDEO.split())
"""Scanned without a test of the content, unless they are in `SHARED_WITH_TEXT`."""

SHARED_WITH_TEXT = frozenset("drc mts qt smk ts".split())
"""Also used for design rules, TypeScript, Qt translations and Snakemake; scanned unless the file begins as text."""

PICTURE_SUFFIXES = frozenset(_PICTURES.split())

SCANNED_PICTURE_SUFFIXES = frozenset("avif heic heif jfif jpe jpeg jpg png webp".split())
"""Suffixes of the pictures that ``--images`` adds."""

SOUND_SUFFIXES = frozenset(_SOUND_IN_VIDEO_CONTAINERS.split())
"""Skipped without a test of the content, because these files begin like videos."""

OTHER_SUFFIXES = frozenset(f"{_PICTURES} {_SOUND} {_TEXT} {_ARCHIVES_AND_CODE} {_DATA}".split())
"""Scanned only if the content is that of a video, such as a clip that was saved as ``photo.jpg``."""

UNFINISHED_SUFFIXES = frozenset(
    "!bt !qb !ut aria2 crdownload dctmp download dtapart filepart opdownload part partial tmp temp ytdl".split()
)
"""Suffixes of files that browsers and other programs are still writing or left unfinished."""

DOWNLOAD_FOLDER_SUFFIX = "download"
"""Safari keeps an unfinished ``clip.mp4`` in a folder ``clip.mp4.download``."""

SYSTEM_FOLDERS = frozenset(
    name.casefold()
    for name in (
        # macOS
        *(".AppleDB", ".AppleDesktop", ".AppleDouble", ".DocumentRevisions-V100", ".fseventsd", ".Spotlight-V100"),
        *(".TemporaryItems", ".Trash", ".Trashes", "__MACOSX", "Network Trash Folder", "Temporary Items"),
        # Windows
        *("$RECYCLE.BIN", "RECYCLED", "RECYCLER", "System Volume Information"),
        # Linux, and snapshots, which duplicate other files
        *("lost+found", ".snapshot", ".snapshots", "~snapshot", ".zfs"),
        # Synology, QNAP and other NAS
        *("@eaDir", "#recycle", "#snapshot", "@Recently-Snapshot", "@Recycle", "@sharebin", "@tmp"),
        *("@__thumb", ".@__thumb", ".@upload_cache", ".recycle", ".streams"),
        # synchronisers and thumbnails
        *(".dropbox.cache", ".stfolder", ".stversions", ".thumbnails"),
    )
)
"""Folders for trash, thumbnails, indexes and snapshots, created by operating systems and NAS; never searched."""

_SYSTEM_FOLDER = re.compile(r"\.trash-\d+", re.IGNORECASE)
_DELETED_FILE = re.compile(r"\.(nfs[0-9a-f]{12,}|fuse_hidden[0-9a-f]+|smbdelete.*|trashed-\d+-.*)", re.IGNORECASE)
_UNFINISHED_FILE = re.compile(r"\.pending-\d+-.*|.*\.part-frag\d+|[.~]syncthing[.~].*", re.IGNORECASE)
_RSYNC_COPY = re.compile(r"\..+\.([^.]+)\.[A-Za-z0-9]{6}")
"""Matches ``.clip.mp4.Xy12Zs``, rsync's name for ``clip.mp4`` while it is being copied."""


def is_system_folder(name: str) -> bool:
    """Return whether a directory of this name belongs to an operating system or a NAS."""
    return name.casefold() in SYSTEM_FOLDERS or bool(_SYSTEM_FOLDER.fullmatch(name))


def is_deleted_file(name: str) -> bool:
    """Return whether a system uses this name for a file that waits for its final deletion."""
    return bool(_DELETED_FILE.fullmatch(name))


def is_unfinished(name: str) -> bool:
    """Return whether a file of this name is still being written or was left unfinished."""
    copied = _RSYNC_COPY.fullmatch(name)
    if copied and copied[1].lower() in VIDEO_SUFFIXES:
        return True
    return suffix_of(name) in UNFINISHED_SUFFIXES or bool(_UNFINISHED_FILE.fullmatch(name))


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, without its dot."""
    return os.path.splitext(name)[1][1:].lower()
