"""Pictures as inputs of a scan: found on request, one row each, and never fake or real."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfscan.media.content import picture_kind
from dfscan.media.discover import discover
from dfscan.scan.verdict import Rules, decide
from dfscan.types import Remarks
from tests.heif import write_tiles
from tests.pictures import astronaut
from tests.test_cli import scan
from tests.test_cli import surroundings as surroundings
from tests.test_facts import ends
from tests.test_page import track

KINDS = {".jpg": "jpeg", ".png": "png", ".webp": "webp", ".avif": "avif"}


def save(path: Path, *, orientation: int = 1, pixels: np.ndarray | None = None) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(astronaut() if pixels is None else pixels).save(path, exif=exif)
    return path


def names(folder: Path, *, images: bool) -> list[str]:
    return [Path(path).name for path in discover([folder], images=images).paths]


def test_folders_give_pictures_on_request(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.heic", "d.avif", "e.webp", "f.mp4", "g.gif", "h.tiff", "i.txt", "j.json"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    (tmp_path / "camera roll").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\x16\7")
    (tmp_path / "k.jpg.part").write_bytes(b"\xff\xd8\xff")
    assert names(tmp_path, images=False) == ["f.mp4"]
    wanted = ["a.jpg", "b.PNG", "c.heic", "camera roll", "d.avif", "e.webp", "f.mp4"]
    assert names(tmp_path, images=True) == wanted
    excluded = discover([tmp_path], images=True, exclude=["*.jpg"])
    assert str(tmp_path / "a.jpg") not in excluded.paths


@pytest.mark.parametrize("suffix", KINDS)
def test_pictures_are_recognised_and_turned_upright(suffix: str, tmp_path: Path) -> None:
    plain, turned = save(tmp_path / f"plain{suffix}"), save(tmp_path / f"turned{suffix}", orientation=6)
    assert picture_kind(plain.read_bytes()[:4096]) == KINDS[suffix]
    found = ends(plain, turned)
    for name, rotation_deg in ((plain.name, 0), (turned.name, 90)):
        facts, info = found[name].facts, found[name].info
        assert facts is not None
        assert info is not None
        assert (facts.container, facts.is_picture, info.num_frames) == (KINDS[suffix], True, 1)
        assert info.rotation_deg == rotation_deg


def test_an_animation_is_no_picture(tmp_path: Path) -> None:
    frames = [Image.fromarray(astronaut()[::4, ::4]), Image.fromarray(astronaut()[::-4, ::4])]
    for name in ("a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        facts = ends(tmp_path / name)[name].facts
        assert facts is not None
        assert not facts.is_picture


def test_a_picture_in_tiles_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    """Each tile would be searched for faces on its own."""
    write_tiles(tmp_path / "a.heic", astronaut(), rows=2, columns=2)
    end = ends(tmp_path / "a.heic")["a.heic"]
    assert str(end.failure) == "no_decoder: its picture is stored in 4 tiles; convert it to JPEG and scan that"
    assert end.facts is not None
    assert end.facts.container == "heif"


def test_no_rule_calls_a_picture_fake_or_real() -> None:
    rules = Rules(fake_threshold=0.9, real_threshold=0.1, min_faces=1, prior_faces=0, neutral_logit=0)
    for score in (0.999, 0.5, 0.001):
        judged = decide([track(0, [score])], rules, Remarks(is_picture=True))
        assert (judged.label, judged.threshold) == ("inconclusive", None)
        assert judged.reason is not None
        assert judged.reason.code == "single_frame"
        assert judged.score == pytest.approx(score)
        assert decide([track(0, [score])], rules).label != "inconclusive" or score == 0.5
    assert decide([], rules, Remarks(is_picture=True)).label == "no_face"
    untrained = replace(rules, fake_threshold=None)
    assert decide([track(0, [0.5])], untrained, Remarks(is_picture=True)).reason == judged.reason


def test_each_picture_gets_a_row_and_the_rows_of_videos_stay(clips: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clips / "one.mp4", folder / "z.mp4")
    save(folder / "a.jpg")
    save(folder / "b.avif", orientation=8, pixels=np.ascontiguousarray(np.rot90(astronaut(), -1)))
    save(folder / "c.png", pixels=np.full((64, 64, 3), 90, np.uint8))
    cv2.imwrite(str(folder / "d.webp"), cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR))
    (folder / "e.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    assert scan(trained, folder, "-o", before, "--min-faces", 1, "--exit-zero").exit_code == 0
    assert scan(trained, folder, "-o", after, "--min-faces", 1, "--exit-zero", "--images").exit_code == 0
    table = pd.read_csv(after)
    assert [Path(path).name for path in table.path] == ["a.jpg", "b.avif", "c.png", "d.webp", "e.jpg", "z.mp4"]
    assert table.verdict.tolist()[:5] == ["inconclusive", "inconclusive", "no_face", "inconclusive", "error"]
    told = table[table.verdict == "inconclusive"].iloc[:3]
    assert set(told.reason) == {"single_frame: a picture; the thresholds of this checkpoint are those for videos"}
    assert told.score.notna().all()
    assert told.threshold.isna().all()
    assert set(told.num_frames) == {1}
    assert after.read_text().splitlines()[-1] == before.read_text().splitlines()[-1]
