"""The ledger: a SQLite file of results, from which every report is made.

A row is keyed by the file's identity (absolute path or URL, size, modification time, sha256) and by its recipe, and
holds the whole result as JSON. The recipe is a hash of everything else that affects a result; the hashed document is
stored too. Inode and change time, or an object's version, are stored separately. They show when a file must be hashed
before its result is reused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dfscan.errors import DataError, OutputError
from dfscan.media.source import FileIdentity
from dfscan.objects import is_url
from dfscan.types import (
    Bounded,
    DetectorResult,
    Face,
    FaceScore,
    FileFacts,
    Fingerprint,
    Picture,
    Reason,
    Remarks,
    Review,
    Track,
    Validation,
    Verdict,
    VideoInfo,
    VideoResult,
)

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 60.0
"""Time to wait for other programs that use the file, such as a report that is built during the scan."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS recipes (
    recipe TEXT PRIMARY KEY,
    document TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS videos (
    path BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    recipe TEXT NOT NULL,
    result TEXT NOT NULL,
    PRIMARY KEY (path, size_bytes, mtime_ns, sha256, recipe)
);
CREATE TABLE IF NOT EXISTS pictures (
    path BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    recipe TEXT NOT NULL,
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    track_id INTEGER NOT NULL,
    frame_index INTEGER NOT NULL,
    time_s REAL NOT NULL,
    score REAL NOT NULL,
    jpeg BLOB NOT NULL,
    PRIMARY KEY (path, size_bytes, mtime_ns, recipe, position)
);
CREATE TABLE IF NOT EXISTS stamps (
    path BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    recipe TEXT NOT NULL,
    inode TEXT NOT NULL,
    ctime_ns INTEGER NOT NULL,
    PRIMARY KEY (path, size_bytes, mtime_ns, recipe)
);
CREATE TABLE IF NOT EXISTS checkpoints (
    sha256 TEXT PRIMARY KEY,
    card TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS reviews (
    number INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    note TEXT NOT NULL,
    time_utc TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS reviews_of ON reviews (sha256);
"""
SQLITE_START = b"SQLite format 3\0"


@dataclass(frozen=True)
class RecipeDetector:
    """One of the detectors of a recipe."""

    name: str
    """Unique name in the columns of reports."""
    checkpoint: str
    """Short text that names the checkpoint in reports."""
    checkpoint_sha256: str


@dataclass(frozen=True)
class Recipe:
    """Everything besides the file that a result depends on; equal recipes give equal results."""

    checkpoint: str
    """Short text that names the checkpoint in reports; several are separated by semicolons."""
    checkpoint_sha256: str
    version: str
    """Version of dfscan."""
    device_kind: str
    """``cpu`` or ``cuda``; their results differ in the last digits."""
    settings: dict[str, Any]
    method: int = 1
    """See `setup.METHOD`; 1 in ledgers from before it was stored."""
    detectors: tuple[RecipeDetector, ...] = ()
    """All detectors, if there are several; else empty, and then absent from the document."""

    @classmethod
    def of(cls, detectors: Sequence[RecipeDetector], **rest: Any) -> Self:
        """Create a recipe of one or several detectors."""
        return cls(
            checkpoint="; ".join(each.checkpoint for each in detectors),
            checkpoint_sha256="; ".join(each.checkpoint_sha256 for each in detectors),
            detectors=tuple(detectors) if len(detectors) > 1 else (),
            **rest,
        )

    @classmethod
    def from_document(cls, text: str) -> Self:
        """Convert a `document` back to a recipe."""
        document = json.loads(text)
        detectors = tuple(RecipeDetector(**each) for each in document.pop("detectors", []))
        return cls(**document, detectors=detectors)

    @cached_property
    def document(self) -> str:
        """Recipe as JSON with sorted keys."""
        document = asdict(self)
        if not self.detectors:
            del document["detectors"]
        return json.dumps(document, sort_keys=True)

    @property
    def checkpoints(self) -> dict[str, str]:
        """The sha256 of each checkpoint by its label, in the order of the detectors."""
        return {each.checkpoint: each.checkpoint_sha256 for each in self.detectors} or {
            self.checkpoint: self.checkpoint_sha256
        }

    @property
    def names(self) -> list[str]:
        """Names of the detectors, if there are several."""
        return [each.name for each in self.detectors]

    @cached_property
    def digest(self) -> str:
        """Lower-case hex sha256 of `document`."""
        return hashlib.sha256(self.document.encode()).hexdigest()


_OF_FILE = "WHERE path = ? AND size_bytes = ? AND mtime_ns = ? AND recipe = ?"


class Ledger:
    """A SQLite file of results; a context manager. A result is durable when `put` returns."""

    def __init__(
        self, path: Path | None, *, recipe: Recipe, cards: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Open or create the ledger.

        Args:
            path: the file; None uses a temporary file that is deleted when the process ends.
            recipe: recipe under which results are stored and looked up.
            cards: cards of the recipe's checkpoints by the sha256 of their files, for later reports.

        Raises:
            OutputError: the file cannot be created or is not a dfscan ledger of this version.
        """
        self._name = str(path) if path else "temporary ledger"
        self._recipe = recipe
        self._cards = cards or {}
        with self._sqlite_errors():
            self._database = sqlite3.connect(path or "", timeout=BUSY_TIMEOUT_S)
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def _prepare(self) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise OutputError(f"{self._name}: ledger version {version} is from a newer dfscan; name another file")
        if not version and self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise OutputError(f"{self._name}: this is the database of another program; name another file")
        self._database.execute("PRAGMA journal_mode = WAL")
        # One transaction: after a power cut, tables without a version would look like another program's database.
        # IMMEDIATE: SQLite does not wait if a transaction that has already read finds the write lock taken. A reader
        # takes that lock briefly to recover the log of a killed scan (sqlite.org/wal.html, section 2.2).
        self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        row = (self._recipe.digest, self._recipe.document)
        self._database.execute("INSERT OR REPLACE INTO recipes VALUES (?, ?)", row)
        for sha256, card in self._cards.items():
            row = (sha256, json.dumps(card))
            self._database.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", row)
        self._database.commit()

    def put(self, result: VideoResult, identity: FileIdentity | None) -> None:
        """Store a result, replacing an earlier one with the same file identity and recipe.

        Raises:
            OutputError: the result cannot be written.
        """
        row = (
            file_key(result.path),
            *_size_and_time(identity),
            result.info.sha256 or "",
            self._recipe.digest,
            json.dumps(to_json(result)),
        )
        key = (row[0], *_size_and_time(identity), self._recipe.digest)
        pictures = [
            (*key, i, picture.kind, picture.track_id, picture.frame_index, picture.time_s, picture.score, picture.jpeg)
            for i, picture in enumerate(result.pictures)
        ]
        with self._sqlite_errors(), self._database:
            self._database.execute("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?, ?, ?)", row)
            self._database.execute(f"DELETE FROM pictures {_OF_FILE}", key)
            self._database.executemany(f"INSERT INTO pictures VALUES ({','.join('?' * 11)})", pictures)
            self._stamp(key, identity)

    def get(self, path: str, identity: FileIdentity | None) -> VideoResult | None:
        """Return the latest result for this file identity and recipe, with its path set to `path`, or None.

        Pictures are not loaded, see `pictures`.
        """
        with self._sqlite_errors():
            key = (file_key(path), *_size_and_time(identity), self._recipe.digest)
            query = f"SELECT result FROM videos {_OF_FILE} ORDER BY rowid DESC LIMIT 1"
            row = self._database.execute(query, key).fetchone()
        if row is None:
            return None
        result = from_json(json.loads(row[0]))
        # The stored path may be another one of the same file, such as a relative one.
        return replace(result, path=path, dumps=tuple({**dump, "path": path} for dump in result.dumps))

    def has_stamp(self, path: str, identity: FileIdentity) -> bool:
        """Return True if inode and change time are unchanged since the result was last confirmed."""
        with self._sqlite_errors():
            key = (file_key(path), *_size_and_time(identity), self._recipe.digest)
            row = self._database.execute(f"SELECT inode, ctime_ns FROM stamps {_OF_FILE}", key).fetchone()
        return bool(row == _stamp(identity))

    def _stamp(self, key: tuple[object, ...], identity: FileIdentity | None) -> None:
        if identity:
            row = (*key, *_stamp(identity))
            self._database.execute("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?, ?, ?, ?)", row)

    def touch(self, path: str, identity: FileIdentity | None) -> None:
        """Make the stored result the latest one for its path again, after the file has been confirmed unchanged.

        Nothing is written if it is that already. A transaction waits for the disk, which would cost a nightly scan
        several milliseconds per unchanged file.

        Raises:
            OutputError: the ledger cannot be written.
        """
        query = f"SELECT max(rowid), (SELECT max(rowid) FROM videos WHERE path = ?) FROM videos {_OF_FILE}"
        key = (file_key(path), *_size_and_time(identity), self._recipe.digest)
        with self._sqlite_errors():
            row, latest = self._database.execute(query, (key[0], *key)).fetchone()
            if row == latest and (identity is None or self.has_stamp(path, identity)):
                return
            with self._database:
                if row != latest:
                    newest = "UPDATE videos SET rowid = (SELECT max(rowid) + 1 FROM videos) WHERE rowid = ?"
                    self._database.execute(newest, (row,))
                self._stamp(key, identity)

    def pictures(self, path: str, identity: FileIdentity | None) -> list[Picture]:
        """Return the pictures that were stored with a result."""
        with self._sqlite_errors():
            return _pictures(self._database, (file_key(path), *_size_and_time(identity), self._recipe.digest))

    def reviews(self, sha256: str | None) -> list[Review]:
        """Return the reviews of a content in order of time; none for a file that could not be hashed."""
        with self._sqlite_errors():
            return _reviews(self._database, sha256)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(
                f"{self._name}: {error}; close other programs that use it, check the disk, or name another file with "
                "--ledger"
            ) from error


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Reference to the latest result of one file in a ledger."""

    path: str
    """Path as given to the scan."""
    recipe: Recipe
    """Recipe of the result."""
    key: tuple[bytes, int, int, str]
    """Absolute path or URL, size in bytes, modification time in ns, and digest of the recipe."""
    sha256: str
    """sha256 of the file; empty if it could not be hashed."""
    row: int
    can_be_judged_again: bool
    """False if the ledger does not have everything that a verdict depends on, as in version 0.1."""


class LedgerReader:
    """Reads a ledger, across all its recipes; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the ledger.

        Raises:
            DataError: the file does not exist or is not a dfscan ledger of this version.
        """
        self._path = path
        if not path.is_file():
            raise DataError(f"{path}: no such ledger; name the .ledger file beside a report")
        try:
            # Not mode=ro, which cannot read a write-ahead log that no other process has open.
            self._database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
            self._database.execute("BEGIN")  # one snapshot for all reads, even while a scan writes
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error as error:
            raise DataError(f"{path}: cannot be read as a ledger ({error})") from error
        if version != SCHEMA_VERSION or not {"videos", "recipes"} <= tables:
            self._database.close()
            raise DataError(f"{path}: not a ledger of this version of dfscan")
        self._has_pictures = "pictures" in tables
        self._has_reviews = "reviews" in tables

    def entries(self) -> list[LedgerEntry]:
        """List the latest result of every file, sorted by absolute path.

        Raises:
            DataError: a record is damaged.
        """
        query = (
            "SELECT path, size_bytes, mtime_ns, recipe, sha256, rowid, json_extract(result, '$.path'), "
            "json_extract(result, '$.verdict.label') = 'error' OR json_type(result, '$.remarks') = 'object' "
            "FROM videos WHERE rowid IN (SELECT max(rowid) FROM videos GROUP BY path) ORDER BY path"
        )
        with self._corrupt_record_errors():
            documents = self._database.execute("SELECT recipe, document FROM recipes")
            recipes = {digest: Recipe.from_document(document) for digest, document in documents}
            return [
                LedgerEntry(
                    _path_from_json(given),
                    recipes[digest],
                    (path, size_bytes, mtime_ns, digest),
                    sha256,
                    row,
                    bool(is_whole),
                )
                for path, size_bytes, mtime_ns, digest, sha256, row, given, is_whole in self._database.execute(query)
            ]

    def result(self, entry: LedgerEntry) -> VideoResult:
        """Return the whole result, without its pictures.

        Raises:
            DataError: the record is damaged.
        """
        with self._corrupt_record_errors():
            (document,) = self._database.execute("SELECT result FROM videos WHERE rowid = ?", (entry.row,)).fetchone()
            return from_json(json.loads(document))

    def pictures(self, entry: LedgerEntry) -> list[Picture]:
        """Return the pictures that were stored with a result; raises the same errors as `result`."""
        with self._corrupt_record_errors():
            return _pictures(self._database, entry.key) if self._has_pictures else []

    def verdict(self, entry: LedgerEntry) -> Verdict:
        """Return the verdict alone, faster than `result`; raises the same errors."""
        query = "SELECT json_extract(result, '$.verdict') FROM videos WHERE rowid = ?"
        with self._corrupt_record_errors():
            (document,) = self._database.execute(query, (entry.row,)).fetchone()
            return _verdict_from_json(json.loads(document))

    def reviews(self, sha256: str | None) -> list[Review]:
        """Return the reviews of a content in order of time; raises the same errors as `result`."""
        with self._corrupt_record_errors():
            return _reviews(self._database, sha256) if self._has_reviews else []

    @contextmanager
    def _corrupt_record_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._path}: a record is damaged ({error}); scan again") from error

    def cards(self) -> dict[str, dict[str, Any]]:
        """Return the cards of checkpoints by the sha256 of their file; raises the same errors as `result`."""
        if not self._has_pictures:
            return {}
        with self._corrupt_record_errors():
            return {sha256: json.loads(card) for sha256, card in self._database.execute("SELECT * FROM checkpoints")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()


def is_ledger(path: str | os.PathLike[str]) -> bool:
    """Return True if this is a file that can be read and begins like a SQLite database."""
    try:
        if not os.path.isfile(path):  # never read from a pipe
            return False
        with open(path, "rb") as file:
            return file.read(len(SQLITE_START)) == SQLITE_START
    except OSError:
        return False


def add_reviews(path: Path, reviews: Sequence[tuple[str, Review]]) -> None:
    """Store reviews in an existing ledger: all of them, or none.

    Args:
        path: ledger that a `LedgerReader` has accepted.
        reviews: the sha256 of a content, and its review.

    Raises:
        OutputError: the ledger cannot be written.
    """
    rows = [(each.verdict, each.reviewer, each.note, each.time_utc, sha256) for sha256, each in reviews]
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as database, database:
            database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")  # ledgers of 0.1 have no reviews
            database.executemany(f"INSERT INTO reviews ({_REVIEW}, sha256) VALUES (?, ?, ?, ?, ?)", rows)
    except sqlite3.Error as error:
        raise OutputError(f"{path}: {error}; close other programs that use it, and check its permissions") from error


_REVIEW = "verdict, reviewer, note, time_utc"


def _reviews(database: sqlite3.Connection, sha256: str | None) -> list[Review]:
    query = f"SELECT {_REVIEW} FROM reviews WHERE sha256 = ? ORDER BY number"
    return [Review(*row) for row in database.execute(query, (sha256,))]


def _pictures(database: sqlite3.Connection, key: tuple[object, ...]) -> list[Picture]:
    query = f"SELECT kind, track_id, frame_index, time_s, score, jpeg FROM pictures {_OF_FILE} ORDER BY position"
    return [Picture(*row) for row in database.execute(query, key)]


def _size_and_time(identity: FileIdentity | None) -> tuple[int, int]:
    return (identity.size_bytes, identity.mtime_ns) if identity else (-1, -1)


def _stamp(identity: FileIdentity) -> tuple[str, int]:
    return str(identity.inode), identity.ctime_ns  # as text: an inode number may exceed SQLite's integers


def file_key(path: str) -> bytes:
    """Return the absolute path or URL by which a ledger knows a file."""
    return os.fsencode(path if is_url(path) else os.path.abspath(path))


def to_json(result: VideoResult) -> dict[str, Any]:
    """Convert a result to plain JSON values; face descriptors are omitted, since reports do not need them."""
    fingerprint = asdict(result.fingerprint) if result.fingerprint else {}
    document = {
        "path": base64.b64encode(os.fsencode(result.path)).decode(),
        "status": result.status,
        "verdict": asdict(result.verdict),
        "info": asdict(result.info),
        "num_frames": result.num_frames,
        "tracks": [
            {
                "track_id": track.track_id,
                "faces": [
                    {
                        "frame_index": scored.face.frame_index,
                        "time_s": scored.face.time_s,
                        "burst": scored.face.burst,
                        "box_xyxy": [float(value) for value in scored.face.box_xyxy],
                        "landmarks": [[float(x), float(y)] for x, y in scored.face.landmarks],
                        "detection_score": scored.face.detection_score,
                        "logit": scored.logit,
                        "frame_number": scored.face.frame_number,
                        "stream": scored.face.stream,
                        "sharpness": scored.face.sharpness,
                        "blockiness": scored.face.blockiness,
                    }
                    for scored in track.faces
                ],
            }
            for track in result.tracks
        ],
        "dumps": list(result.dumps),
        "facts": asdict(result.facts) if result.facts else None,
        "remarks": asdict(result.remarks) if result.remarks else None,
        "fingerprint": {name: base64.b64encode(data).decode() for name, data in fingerprint.items() if data is not None}
        or None,
    }
    if result.detectors:
        document["detectors"] = [
            {
                "name": each.name,
                "checkpoint": each.checkpoint,
                "verdict": asdict(each.verdict),
                "used_for": each.used_for,
                "logits": [[scored.logit for scored in track.faces] for track in each.tracks],
            }
            for each in result.detectors
        ]
    return document


def from_json(document: dict[str, Any]) -> VideoResult:
    """Convert JSON values back to a result, the inverse of `to_json`."""
    tracks = tuple(
        Track(track["track_id"], tuple(_face_from_json(face) for face in track["faces"]))
        for track in document["tracks"]
    )
    detectors = []
    for each in document.get("detectors", []):
        own = []
        for track, logits in zip(tracks, each["logits"], strict=True):
            pairs = zip(track.faces, logits, strict=True)
            own.append(Track(track.track_id, tuple(FaceScore(scored.face, logit) for scored, logit in pairs)))
        verdict = _verdict_from_json(each["verdict"])
        detectors.append(DetectorResult(each["name"], each["checkpoint"], verdict, tuple(own), each["used_for"]))
    fingerprint = document.get("fingerprint")  # absent before fingerprints
    remarks = document.get("remarks")
    if remarks is not None:
        damage, crowd = (remarks[name] and Reason(**remarks[name]) for name in ("damage", "crowd"))
        notes = tuple(Reason(**note) for note in remarks["notes"])
        turn_deg = remarks.get("turn_deg", 0)
        remarks = Remarks(damage, crowd, remarks["is_picture"], remarks["used_for"], notes, turn_deg)
    return VideoResult(
        path=_path_from_json(document["path"]),
        status=document["status"],
        verdict=_verdict_from_json(document["verdict"]),
        info=VideoInfo(**document["info"]),
        num_frames=document["num_frames"],
        tracks=tracks,
        dumps=tuple(document["dumps"]),
        facts=FileFacts.from_dict(document.get("facts")),  # this and `remarks` are absent from ledgers of 0.1
        remarks=remarks,
        fingerprint=Fingerprint(**{name: base64.b64decode(text) for name, text in fingerprint.items()})
        if fingerprint is not None
        else None,
        detectors=tuple(detectors),
    )


def _verdict_from_json(document: dict[str, Any]) -> Verdict:
    reason, validation = document["reason"], document.get("validation")  # absent from ledgers of 0.1
    if validation:
        bounded = {
            name: validation[name] and Bounded(**validation[name]) for name in ("error_rate", "likelihood_ratio")
        }
        validation = Validation(**{**validation, **bounded})
    return Verdict(**{**document, "reason": reason and Reason(**reason), "validation": validation})


def _path_from_json(encoded: str) -> str:
    return os.fsdecode(base64.b64decode(encoded))


def _face_from_json(document: dict[str, Any]) -> FaceScore:
    face = Face(
        frame_index=document["frame_index"],
        time_s=document["time_s"],
        burst=document["burst"],
        box_xyxy=np.array(document["box_xyxy"], dtype=np.float32),
        landmarks=np.array(document["landmarks"], dtype=np.float32),
        detection_score=document["detection_score"],
        descriptor=np.empty(0, dtype=np.float32),
        frame_number=document.get("frame_number"),  # this and the rest are absent from ledgers of 0.1
        stream=document.get("stream", 0),
        sharpness=document.get("sharpness"),
        blockiness=document.get("blockiness"),
    )
    return FaceScore(face, document["logit"])
