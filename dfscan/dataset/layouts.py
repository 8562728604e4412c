"""Read labelled videos from the folder layouts of public data sets.

Every reader adds its files to `Sources`, grouped so that splits do not leak; no reader opens a video.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfscan.dataset.manifest import SPLITS, TRUE_LABELS, Split, TrueLabel
from dfscan.errors import DataError
from dfscan.media.discover import why_no_video
from dfscan.media.names import VIDEO_SUFFIXES, is_system_folder

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})
LABEL_WORDS: dict[str, TrueLabel] = {"real": "real", "fake": "fake", "0": "real", "1": "fake"}
SPLIT_WORDS: dict[str, Split] = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}
_COMPRESSIONS = ("raw", "c23", "c40")
_ACTORS = ("actors", "DeepFakeDetection")
_TEST_LIST = "List_of_testing_videos.txt"


@dataclass(frozen=True, slots=True)
class Source:
    """One labelled video or image."""

    path: str
    label: TrueLabel
    kind: str = ""
    """Kind of manipulation; empty for real footage or if unknown."""
    group: str = ""
    """Group that must not cross splits; never empty in the result of `read_sources`."""
    split: Split | None = None
    """Split assigned by the data set or the user, if any."""
    domain: str = ""
    """Origin of the footage, such as a data set or a web page; empty if unknown."""
    fold: str = ""
    """Fold of a cross-validation; empty for sources that every fold trains on."""
    take: str = ""
    """Recording that the file shows, or that it was made from; empty if unknown."""


@dataclass(slots=True)
class Sources:
    """Usable and skipped files of the inputs."""

    items: list[Source] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of each file that was named but cannot be used."""

    def add(self, source: Source) -> None:
        """Add a file, or list it as skipped if it does not exist."""
        if os.path.isfile(source.path):
            self.items.append(source)
        else:
            self.skipped.append((source.path, "not_there: no such file"))


def media_files(folder: Path) -> list[Path]:
    """List the videos and images below a folder, by suffix and sorted; empty if the folder does not exist.

    System files and unfinished downloads are left out, as in a scan.
    """
    suffixes = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    files = []
    for path in folder.rglob("*"):
        parents = path.relative_to(folder).parts[:-1]
        if path.suffix[1:].lower() not in suffixes or any(map(is_system_folder, parents)) or not path.is_file():
            continue
        try:
            is_video = why_no_video(path.name, os.path.realpath(path)) is None
        except OSError:
            is_video = True  # decoding it reports why it cannot be read
        if is_video:
            files.append(path)
    return sorted(files)


def components(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Find the connected components of the pairs; a pair (a, a) adds a single member.

    Returns:
        For each member, the smallest member of its component.
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = parents[parent]
            name = parent
        return name

    for pair in pairs:
        low, high = sorted(root(name) for name in pair)
        parents[high] = low
    return {name: root(name) for name in list(parents)}


def read_real_and_fake(root: Path, sources: Sources) -> None:
    """Read ``real/`` and ``fake/``; the folders in ``fake/`` name kinds of manipulation."""
    for label in TRUE_LABELS:
        for file in media_files(root / label):
            first, *rest = file.relative_to(root / label).parts
            sources.add(Source(str(file), label, first if rest and label == "fake" else "", str(file)))


def read_face_forensics(root: Path, sources: Sources) -> None:
    """Read FaceForensics++, including DeepFakeDetection, in every compression that is present.

    A fake ``071_054.mp4`` puts ``071`` and ``054`` into one group, and so does a pair in the split files. The actors
    are all swapped with one another, so they form only a few groups.
    """
    files = [
        (file, folder.parts[-3])
        for area in ("original_sequences", "manipulated_sequences")
        for folder in sorted((root / area).glob("*/*/videos"))
        if folder.parts[-2] in _COMPRESSIONS
        for file in media_files(folder)
    ]
    splits: dict[tuple[str, ...], Split] = {
        tuple(map(str, pair)): split
        for split in SPLITS
        for path in (root / f"{split}.json", root / "splits" / f"{split}.json")
        if path.is_file()
        for pair in _json(path, list)
    }
    pairs = [pair for pair in splits if len(pair) == 2]
    # Target, then donor: 071_054 is 071 with the face of 054; 01_02__talking__A1B2 is actors 01 and 02.
    people = {
        file: [f"actor {name}" if kind in _ACTORS else name for name in file.stem.split("__")[0].split("_")]
        for file, kind in files
    }
    groups = components([*((ids[0], ids[-1]) for ids in people.values()), *((a, b) for a, b in pairs)])
    split_of = {name: split for pair, split in splits.items() for name in pair}
    for file, kind in files:
        is_real = file.is_relative_to(root / "original_sequences")
        target = people[file][0]
        label: TrueLabel = "real" if is_real else "fake"
        sources.add(Source(str(file), label, "" if is_real else kind, f"ff++ {groups[target]}", split_of.get(target)))


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(value, kind):
        raise DataError(f"{path}: does not hold a JSON {kind.__name__}; download it again")
    return value


def read_celeb_df(root: Path, sources: Sources) -> None:
    """Read Celeb-DF.

    ``id0_id1_0000.mp4`` is id0's video 0000 with the face of id1. Swaps connect nearly all identities into one
    component, so a group is the target identity, and the donor face of a fake may appear in another split. The test
    list defines the test videos. It contains some videos of nearly every identity, so a test group is a target video
    with its fakes. Files of a test video that the list omits are skipped. Other videos of that identity are trained on,
    as the list intends.
    """
    test_list = root / _TEST_LIST
    lines = test_list.read_text(encoding="utf-8", errors="replace").splitlines() if test_list.is_file() else []
    tested = {line.split(maxsplit=1)[1].strip() for line in lines if " " in line.strip()}
    tested_videos = {_celeb_video(Path(name)) for name in tested}
    for folder in ("Celeb-real", "YouTube-real", "Celeb-synthesis"):
        for file in media_files(root / folder):
            name = file.relative_to(root)
            video, is_tested = _celeb_video(name), name.as_posix() in tested
            if video in tested_videos and not is_tested:
                sources.skipped.append((str(file), f"test_video: not in {_TEST_LIST}, but another of {video} is"))
                continue
            group = video if is_tested else _celeb_identity(name)
            label: TrueLabel = "fake" if folder == "Celeb-synthesis" else "real"
            kind = "face swap" if label == "fake" else ""
            sources.add(Source(str(file), label, kind, group, "test" if is_tested else None))


def _celeb_video(name: Path) -> str:
    """Return the target video: ``id0_0000`` and its fakes, such as ``id0_id1_0000``, share one."""
    if name.parts[0] == "YouTube-real":
        return _celeb_identity(name)
    parts = name.stem.split("_")
    return f"celeb-df {parts[0]}_{parts[-1]}"


def _celeb_identity(name: Path) -> str:
    is_celebrity = name.parts[0] != "YouTube-real"
    return f"celeb-df {name.stem.split('_')[0]}" if is_celebrity else f"celeb-df youtube {name.stem}"


def read_dfdc(metadata: Sequence[Path], sources: Sources) -> None:
    """Read parts of DFDC; a group is an original with its fakes.

    All files of the public download have ``"split": "train"``, which carries no information and is ignored.
    """
    for path in metadata:
        for name, facts in sorted(_json(path, dict).items()):
            label = LABEL_WORDS.get(str(facts.get("label")).lower()) if isinstance(facts, dict) else None
            if label is None:
                raise DataError(f"{path}: '{name}' has no label REAL or FAKE; download it again")
            split = SPLIT_WORDS.get(str(facts.get("split")).lower())
            group = f"dfdc {facts.get('original') or name}"
            sources.add(Source(str(path.parent / name), label, "", group, None if split == "train" else split))
