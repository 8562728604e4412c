"""The report page: hostile names, pictures and their size limit, and its behaviour in a real browser."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import pytest

from dfscan import __version__
from dfscan.detector.card import Calibration, CheckpointCard
from dfscan.detector.describe import INTENDED_USE
from dfscan.errors import OutputError
from dfscan.report import page as report_page
from dfscan.report.copies import First
from dfscan.report.page import MethodInfo, PageSummary, PageVideo, write_page
from dfscan.scan.pictures import heat_map_jpeg
from dfscan.types import (
    VERDICT_LABELS,
    Bounded,
    DetectorResult,
    Face,
    FaceScore,
    Picture,
    Reason,
    Track,
    Validation,
    Verdict,
    VerdictLabel,
    VideoInfo,
    VideoResult,
)
from tests.browser import browser, visit
from tests.pictures import astronaut

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = [
    b'"><img src=x onerror=alert(1)>.mp4',
    b"</script><script>alert(1)</script>.mp4",
    b"<!-- <script>.mp4",
    "\u2028\u202egp4.exe\x1b[31m\n.mp4".encode(),
    b"bad\xff\xed\xa0\x80.mp4",
    b"{{ 7 * 7 }}&lt;'.mp4",
]
CHECKPOINT = "best@d187e11d6436"
NONE = "\u2013"
"""Text that the page shows for a missing value."""


def judged_face(score: float, time_s: float) -> FaceScore:
    nothing = np.zeros(4, np.float32), np.zeros((5, 2), np.float32)
    return FaceScore(Face(0, time_s, 0, *nothing, 0.99, nothing[0]), float(np.log(score / (1 - score))))


def track(number: int, scores: Sequence[float], *, start_s: float = 0.0, step_s: float = 0.5) -> Track:
    return Track(number, tuple(judged_face(score, start_s + step_s * i) for i, score in enumerate(scores)))


def video(path: str, label: VerdictLabel, score: float | None = None, *tracks: Track, **fields: Any) -> VideoResult:
    decided = tracks[-1].track_id if tracks else None
    info = VideoInfo(1234567, "0e9f" * 16, 640, 480, 29.97, 99, 3.3, "h264")
    reason = fields.pop("reason", None)
    verdict = Verdict(label, score, 0.75, decided, reason)
    return replace(VideoResult(path, "ok", verdict, info, 8, tracks), **fields)


def failed(path: str) -> VideoResult:
    reason = Reason("encrypted", "the stream is <b>encrypted</b>; decrypt it first")
    return VideoResult(path, "error", Verdict("error", reason=reason), VideoInfo(None))


def jpeg(grey: int = 128) -> bytes:
    return cv2.imencode(".jpg", np.full((32, 32, 3), grey, np.uint8))[1].tobytes()


def two_pictures(result: VideoResult) -> list[Picture]:
    """Return a face and a heat map of the first track, or none for a video without faces."""
    return [
        Picture(kind, one.track_id, 0, one.start_s, one.faces[0].score, jpeg())
        for one in result.tracks[:1]
        for kind in ("face", "heat_map")
    ]


def no_pictures(_: object) -> list[Picture]:
    return []


def trained_card(**fields: Any) -> Mapping[str, Any]:
    calibration = Calibration(
        trained=True,
        fake_threshold=0.75,
        real_threshold=0.1,
        real_called_fake_rate=0.0094,
        real_called_fake_interval=(0.0011, 0.0337),
        num_real_videos=212,
    )
    metrics = {"test": {"video": {"roc_auc": {"value": 0.6631, "low": 0.62, "high": 0.71}}, "num_videos": 364}}
    training = {"epochs": 6, "limits": ["Blind to <other> kinds."], "settings": {"seed": 0}}
    card = CheckpointCard(name="small", calibration=calibration, metrics=metrics, training=training, **fields)
    return card.model_dump(mode="json")


def method(card: Mapping[str, Any] | None = None) -> MethodInfo:
    cards = {CHECKPOINT: trained_card() if card is None else card}
    return MethodInfo(cards, {"num_frames": 32, "every_s": None}, {"dfscan": __version__}, {"not_video": 3})


def make(
    path: Path,
    results: Sequence[VideoResult],
    *,
    pictures: Callable[[VideoResult], Sequence[Picture]] = two_pictures,
    how: MethodInfo | None = None,
    max_mb: float = 50,
) -> PageSummary:
    videos = [PageVideo(result, CHECKPOINT, __version__, i) for i, result in enumerate(results)]
    return write_page(
        path, videos, pictures=lambda shown: pictures(shown.result), method=how or method(), max_mb=max_mb
    )


def block(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found, name
    return json.loads(found.group(1))


COLLECTION = [
    video("clips/b.mp4", "real", 0.05, track(0, [0.05] * 4)),
    video("clips/a.mp4", "real", 0.02, track(0, [0.02] * 3)),
    video("x/fake2.mp4", "fake", 0.8, track(0, [0.8] * 5)),
    video("x/fake1.mp4", "fake", 0.93, track(0, [0.2, 0.25, 0.3]), track(1, [0.9, 0.95, 0.93, 0.94], start_s=1.5)),
    video("mid.mp4", "inconclusive", 0.5, track(0, [0.5] * 3), reason=Reason("between_thresholds", "Above 0.1")),
    video("nobody.mp4", "no_face", info=VideoInfo(5, duration_s=4000.25)),
    failed("broken.mp4"),
]
SUSPICIOUS_FIRST = ["fake1.mp4", "fake2.mp4", "mid.mp4", "broken.mp4", "b.mp4", "a.mp4", "nobody.mp4"]


# ---- The file ----------------------------------------------------------------------------------------------------


def test_hostile_names_are_text_not_markup(tmp_path: Path) -> None:
    results = [video(os.fsdecode(name), "real", 0.05, track(0, [0.05])) for name in HOSTILE]
    make(tmp_path / "p.html", results)
    data = (tmp_path / "p.html").read_bytes()
    page = data.decode()
    # Only elements of the template, none from a file name.
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 4 + len(HOSTILE)
    assert "alert(1)>" not in page
    assert not re.search("[\u2028\u2029\u202e\x1b]", page)
    paths = [row[0] for row in block(page, "data")["rows"]]
    assert './"><img src=x onerror=alert(1)>.mp4' in paths
    assert "./bad\\xff\\xed\\xa0\\x80.mp4" in paths
    assert "./\\u2028\\u202egp4.exe\\x1b[31m\\n.mp4" in paths


def test_json_contains_no_markup() -> None:
    text = "</script><!-- & \u2028\u2029 \u00e9"
    written = report_page._json({text: text})
    assert not re.search("[<>&\u2028\u2029]", written)
    assert json.loads(written) == {text: text}


def test_other_foreign_text_is_escaped(tmp_path: Path) -> None:
    nasty = "</script><img src=x>\x1b\udcff"
    result = video("a", "real", 0.1, track(0, [0.1]), reason=Reason(nasty, nasty), info=VideoInfo(1, codec=nasty))
    card = dict(trained_card(), name=nasty, training={nasty: nasty, "limits": [nasty]}, metrics={nasty: {nasty: 1}})
    how = MethodInfo({nasty: card}, {nasty: nasty}, {nasty: nasty}, {nasty: 1})
    write_page(tmp_path / "p", [PageVideo(result, nasty, nasty, 0)], pictures=no_pictures, method=how)
    page = (tmp_path / "p").read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("<script") == 4
    assert "\x1b" not in page


def test_content_security_policy_matches_the_content(tmp_path: Path) -> None:
    make(tmp_path / "p.html", COLLECTION)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    for name, element in (("style-src", "style"), ("script-src", "script")):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert " style=" not in page
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_pictures_go_to_the_most_suspicious_first(tmp_path: Path) -> None:
    asked: list[str] = []

    def pictures(result: VideoResult) -> list[Picture]:
        asked.append(Path(result.path).name)
        return two_pictures(result)

    one_video_bytes = 2 * len(base64.b64encode(jpeg()))
    short = video("short.mp4", "inconclusive", 0.99, track(0, [0.99]))
    summary = make(tmp_path / "p", [*COLLECTION, short], pictures=pictures, max_mb=2.5 * one_video_bytes / 1e6)
    assert asked[:6] == ["fake1.mp4", "fake2.mp4", "short.mp4", "mid.mp4", "b.mp4", "a.mp4"]
    assert sorted(asked) == sorted(Path(result.path).name for result in [*COLLECTION, short])
    assert summary == PageSummary(num_with_pictures=2, num_left_out=4)
    page = (tmp_path / "p").read_text(encoding="utf-8")
    names = [Path(row[0]).name for row in block(page, "data")["rows"]]
    granted = [names[int(row)] for row in re.findall(r'id="pictures-(\d+)"', page)]
    assert granted == ["fake1.mp4", "fake2.mp4"]
    assert [names[row] for row in block(page, "left-out")["rows"]] == ["short.mp4", "mid.mp4", "b.mp4", "a.mp4"]


@pytest.mark.parametrize(("spare", "num_granted"), [(0, 5), (-1, 4)])
def test_picture_limit_counts_encoded_bytes(tmp_path: Path, spare: int, num_granted: int) -> None:
    all_bytes = 5 * 2 * len(base64.b64encode(jpeg()))
    summary = make(tmp_path / "p", COLLECTION, max_mb=(all_bytes + spare) / 1e6)
    assert summary == PageSummary(num_granted, 5 - num_granted)


def test_copies_are_grouped_by_content_not_by_path(tmp_path: Path) -> None:
    """Merged ledgers can have two videos with one relative path."""
    paths_and_contents = [("a.mp4", "1"), ("b.mp4", "1"), ("a.mp4", "2"), ("c.mp4", "2")]
    results = [video(path, "real", 0.05, track(0, [0.05] * 4)) for path, _ in paths_and_contents]
    results = [
        replace(result, info=replace(result.info, sha256=sha256))
        for result, (_, sha256) in zip(results, paths_and_contents, strict=True)
    ]
    firsts = [None, First("a.mp4", "1"), None, First("a.mp4", "2")]
    videos = [
        PageVideo(result, CHECKPOINT, __version__, i, same_as=first)
        for i, (result, first) in enumerate(zip(results, firsts, strict=True))
    ]
    write_page(tmp_path / "p", videos, pictures=no_pictures, method=method())
    page = (tmp_path / "p").read_text(encoding="utf-8")
    assert [(row[0], row[-1]) for row in block(page, "data")["rows"]] == [
        ("./a.mp4", None),
        ("./a.mp4", None),
        ("./b.mp4", 0),
        ("./c.mp4", 1),
    ]
    assert [detail.get("copies") for detail in block(page, "details")] == [["./b.mp4"], ["./c.mp4"], None, None]


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "a", COLLECTION)
    make(tmp_path / "b", COLLECTION[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numbers_are_rounded_and_never_nan(tmp_path: Path) -> None:
    odd = Verdict("inconclusive", float("nan"), 0.123456789, 0)
    result = VideoResult("a", "ok", odd, VideoInfo(1, fps=float("inf"), duration_s=1.23456), 1, (track(0, [1 / 3]),))
    make(tmp_path / "p", [result])
    page = (tmp_path / "p").read_text(encoding="utf-8")
    assert block(page, "data")["rows"][0][2:4] == [None, 0.1235]
    assert block(page, "data")["rows"][0][9] == 1.235
    (detail,) = block(page, "details")
    assert detail["tracks"] == [{"id": 0, "times": [0.0], "scores": [0.3333]}]
    assert "fps" not in detail


def test_failure_keeps_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    path.write_text("old")

    def broken(result: VideoResult) -> list[Picture]:
        raise OutputError("the ledger cannot be read")

    with pytest.raises(OutputError, match="ledger"):
        make(path, COLLECTION, pictures=broken)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["p.html"]


def test_unwritable_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        make(tmp_path / "none" / "p.html", COLLECTION)


def test_a_malformed_card_is_shown_as_far_as_possible(tmp_path: Path) -> None:
    card = trained_card() | {"sampling": "often", "detection": [1]}
    make(tmp_path / "p", COLLECTION, how=method(card))
    text = (tmp_path / "p").read_text(encoding="utf-8")
    assert "Fake</strong> at or above" in text
    assert "(num_frames; see" in text


def test_method_is_readable_without_a_script(tmp_path: Path) -> None:
    make(tmp_path / "p", COLLECTION)
    text = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "p").read_text(encoding="utf-8")).split())
    assert "Fake at or above 0.7500: real videos called fake in validation: 0.94 %" in text
    assert "(95 % interval 0.11 % to 3.37 %)" in text
    assert "measured on 212 videos" in text
    assert "Real up to 0.1000: no error rate is stated" in text
    assert "Blind to &lt;other&gt; kinds." in text
    assert "ROC AUC 0.663 (0.620 to 0.710)" in text
    assert "3 not_video" in text
    assert "2 fake" in text
    assert "Untrained" not in text
    assert INTENDED_USE in text


def test_the_summary_says_how_sure_a_verdict_is_and_what_is_next(tmp_path: Path) -> None:
    def summary(results: Sequence[VideoResult]) -> str:
        make(tmp_path / "p", results)
        page = (tmp_path / "p").read_text(encoding="utf-8")
        return " ".join(re.sub("<[^>]*>", " ", page[page.index("counts") : page.index("<noscript")]).split())

    def measured(result: VideoResult, num_videos: int) -> VideoResult:
        validation = Validation(Bounded(2 / 212, 0.0011, 0.0337), num_videos)
        return replace(result, verdict=replace(result.verdict, validation=validation))

    text = summary([measured(each, 212) if each.verdict.label == "fake" else each for each in COLLECTION])
    assert "2 fake Examine these first." in text
    rate = "Of 212 genuine videos of the validation set, 2 got this verdict (0.94 %, 95 % interval 0.11 to 3.37 %)."
    assert rate in text
    assert text.count("got this verdict") == 1  # none is known for real
    others = [measured(each, i) if each.verdict.label == "fake" else each for i, each in enumerate(COLLECTION, 212)]
    assert "got this verdict" not in summary(others), "two nights with different thresholds"


def test_untrained_checkpoint_has_a_prominent_warning(tmp_path: Path) -> None:
    make(tmp_path / "p", COLLECTION, how=method(CheckpointCard().model_dump(mode="json")))
    page = (tmp_path / "p").read_text(encoding="utf-8")
    assert page.index("<strong>Untrained checkpoint.</strong>") < page.index("<main>")
    assert "This checkpoint calls no video fake" in page


def test_missing_card_is_reported(tmp_path: Path) -> None:
    make(tmp_path / "p", COLLECTION, how=MethodInfo({}, {}, {}, {}))
    assert "The card of this checkpoint is not available" in (tmp_path / "p").read_text(encoding="utf-8")


def test_template_files_are_in_the_package() -> None:
    import importlib.resources

    folder = importlib.resources.files("dfscan.report") / "templates"
    assert {"page.html.j2", "page.css", "page.js"} <= {entry.name for entry in folder.iterdir()}


# ---- In the browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    make(path, COLLECTION)
    return path


@pytest.fixture
def page(chromium: "Browser", page_path: Path) -> Iterator["Page"]:
    with visit(chromium, page_path) as shown:
        yield shown


def names(page: "Page") -> list[str]:
    return page.locator("tr.video .file").all_inner_texts()


def open_video(page: "Page", name: str) -> Any:
    page.get_by_role("button", name=name).click()
    return page.locator("tr.detail")


def test_most_suspicious_first(page: "Page") -> None:
    assert names(page) == SUSPICIOUS_FIRST
    first = page.locator("tr.video").first
    assert first.locator("td").all_inner_texts()[1:] == [
        "fake",
        "0.9300",
        "reaches 0.7500",
        "0:01.5 \u2013 0:03.0",
        "0:03.3",
    ]
    assert page.get_by_role("status").inner_text() == "Showing 7 videos."


SORTS = {
    "Score": ["fake1.mp4", "fake2.mp4", "mid.mp4", "b.mp4", "a.mp4", "broken.mp4", "nobody.mp4"],
    "Verdict": ["fake1.mp4", "fake2.mp4", "mid.mp4", "broken.mp4", "a.mp4", "b.mp4", "nobody.mp4"],
    "Why": ["mid.mp4", "broken.mp4", "a.mp4", "b.mp4", "nobody.mp4", "fake1.mp4", "fake2.mp4"],
    "Look at": ["a.mp4", "b.mp4", "mid.mp4", "fake2.mp4", "fake1.mp4", "broken.mp4", "nobody.mp4"],
    "Duration": ["nobody.mp4", "a.mp4", "b.mp4", "mid.mp4", "fake1.mp4", "fake2.mp4", "broken.mp4"],
    "Video": ["broken.mp4", "a.mp4", "b.mp4", "mid.mp4", "nobody.mp4", "fake1.mp4", "fake2.mp4"],
}


@pytest.mark.parametrize(("column", "expected"), SORTS.items(), ids=SORTS)
def test_sort(page: "Page", column: str, expected: list[str]) -> None:
    head = page.get_by_role("columnheader", name=column, exact=True)
    assert head.get_attribute("aria-sort") is None
    head.get_by_role("button").click()
    assert names(page) == expected
    first = head.get_attribute("aria-sort")
    head.get_by_role("button").press("Enter")
    assert {first, head.get_attribute("aria-sort")} == {"ascending", "descending"}
    missing = {"Score": 2, "Why": 5, "Look at": 2, "Duration": 1}.get(column, 0)
    known = len(expected) - missing
    assert names(page) != expected
    assert set(names(page)[:known]) == set(expected[:known])
    assert names(page)[known:] == expected[known:]  # missing values stay last


def test_filters(page: "Page") -> None:
    status = page.get_by_role("status")
    page.get_by_label("2 real").uncheck()
    page.get_by_label("1 no face").uncheck()
    assert names(page) == ["fake1.mp4", "fake2.mp4", "mid.mp4", "broken.mp4"]
    assert status.inner_text() == "Showing 4 videos that match, of 7 in total."
    page.get_by_label("Minimum score").fill("0.8")
    assert names(page) == ["fake1.mp4", "fake2.mp4"]
    page.get_by_label("Minimum score").fill("")
    page.get_by_label("Name or reason").fill("BETWEEN_thr")
    assert names(page) == ["mid.mp4"]
    page.get_by_label("Name or reason").fill("between thr")
    assert names(page) == ["mid.mp4"]
    page.get_by_label("Name or reason").fill("above")
    assert names(page) == ["mid.mp4"]
    page.get_by_label("Name or reason").fill("X/fake")
    assert names(page) == ["fake1.mp4", "fake2.mp4"]
    page.get_by_label("Name or reason").fill("no such")
    assert status.inner_text() == "Showing 0 videos that match, of 7 in total."
    page.get_by_role("button", name="Reset").click()
    assert names(page) == SUSPICIOUS_FIRST
    page.get_by_label("Order").select_option(label="By name")
    assert names(page) == SORTS["Video"]


def test_detail_opens_and_closes(page: "Page") -> None:
    detail = open_video(page, "fake1.mp4")
    button = page.get_by_role("button", name="fake1.mp4")
    assert button.get_attribute("aria-expanded") == "true"
    assert detail.get_attribute("id") == button.get_attribute("aria-controls")
    text = detail.inner_text()
    for part in (
        "The score 0.9300 reaches 0.7500, the threshold for fake.",
        "640 \u00d7 480 px",
        "1.2 MB",
        "29.97",
        "h264",
        "0e9f" * 16,
    ):
        assert part in text
    assert detail.locator(".person-head h4").all_inner_texts()[0] == "Track 1"
    page.get_by_role("columnheader", name="Duration").get_by_role("button").click()
    assert detail.count() == 1  # it stays open through a sort
    assert page.locator("tr.detail").evaluate("row => row.previousElementSibling.innerText").startswith("fake1.mp4")
    button.click()
    assert page.locator("tr.detail").count() == 0
    assert button.get_attribute("aria-expanded") == "false"


def test_keyboard_only_use(page: "Page") -> None:
    page.locator("thead button").last.focus()
    focused = "document.activeElement.querySelector('.file')?.textContent ?? document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "fake1.mp4"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "fake2.mp4"
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("tr.detail").count() == 0
    assert page.evaluate(focused) == "fake2.mp4"
    page.keyboard.press("Space")
    assert page.locator("tr.detail").count() == 1
    page.locator("tr.detail .statement").click()  # takes the focus away
    page.keyboard.press("Escape")
    assert page.locator("tr.detail").count() == 0
    assert page.evaluate(focused) == "fake2.mp4"


def test_timeline(page: "Page") -> None:
    detail = open_video(page, "fake1.mp4")
    chart = detail.locator("svg.timeline")
    assert chart.locator(".point").count() == 7
    assert chart.locator(".line").count() == 2
    assert chart.locator(".limit.fake").count() == chart.locator(".limit.real").count() == 1
    names = detail.locator(".limit-name")
    assert names.all_text_contents() == ["fake threshold 0.7500", "real threshold 0.1000"]
    foot_px = chart.evaluate("chart => chart.getBoundingClientRect().bottom")
    assert all(name.bounding_box()["y"] >= foot_px for name in names.all())  # they cover no line of the chart
    assert chart.locator(".span-name").text_content() == "track 1 decides"
    assert "track 1: 4 faces from 0:01.5 to 0:03.0, scores 0.9000 to 0.9500" in (chart.text_content() or "")
    # Score 0 is at y = 216 px and 1 at 26 px.
    assert chart.locator(".limit.fake").get_attribute("d").startswith("M44 73.5H")
    shapes = {point.get_attribute("d") for point in chart.locator(".point").all()}
    assert len(shapes) == 2
    places = [point.get_attribute("transform") for point in chart.locator(".point").all()]
    assert places[0] == "translate(44 178)"
    assert len(set(places)) == 7


def test_pictures_load(page: "Page") -> None:
    assert page.locator("img").count() == 0
    detail = open_video(page, "fake1.mp4")
    images = detail.locator("img")
    assert images.count() == 2
    images.first.evaluate("image => image.decode()")
    assert [image.evaluate("image => image.naturalWidth") for image in images.all()] == [32, 32]
    assert images.first.get_attribute("alt") == "Face of track 0 at 0:00.0, score 0.2000"
    assert "it is not proof of manipulation" in detail.inner_text()
    open_video(page, "fake1.mp4")
    assert page.locator("img").count() == 0


def test_missing_pictures_are_explained(chromium: "Browser", tmp_path: Path) -> None:
    def some(result: VideoResult) -> list[Picture]:
        return two_pictures(result) if "fake" in result.path else []

    make(tmp_path / "p.html", COLLECTION, pictures=some, max_mb=0.000001)
    with visit(chromium, tmp_path / "p.html") as page:
        assert "omitted to keep the pictures on this page within 1e-06 MB" in open_video(page, "fake1.mp4").inner_text()
        open_video(page, "fake1.mp4")
        assert "this scan stored none" in open_video(page, "mid.mp4").inner_text()


def test_frames_of_a_video_without_faces_are_shown(chromium: "Browser", tmp_path: Path) -> None:
    def some(result: VideoResult) -> list[Picture]:
        times_s = (0.5, 1.5) if result.verdict.label == "no_face" else ()
        return [Picture("frame", -1, i, time_s, 0.0, jpeg()) for i, time_s in enumerate(times_s)]

    make(tmp_path / "p.html", COLLECTION, pictures=some)
    with visit(chromium, tmp_path / "p.html") as page:
        detail = open_video(page, "nobody.mp4")
        assert "Some of the searched frames" in detail.inner_text()
        assert [image.get_attribute("alt") for image in detail.locator("img").all()] == [
            "Frame at 0:00.5",
            "Frame at 0:01.5",
        ]


def test_several_detectors_copies_and_pictures(chromium: "Browser", tmp_path: Path) -> None:
    """Nothing is told twice: the statement has the scores of each detector, and a picture has no timeline."""
    between = Reason("between_thresholds", "above 0.1")
    opinions = [
        DetectorResult(name, f"{name}@0123", Verdict("fake", 0.8, 0.75, 0, reason), (track(0, [0.8] * 3),))
        for name, reason in (("one", None), ("two", between))
    ]
    first = video("x/a.mp4", "fake", 0.8, track(0, [0.8] * 3), detectors=tuple(opinions))
    copy = replace(first, path="y/b.mp4")
    picture = video("c.jpg", "inconclusive", 0.5, track(0, [0.5]), info=VideoInfo(9, "1"))
    results = [(first, None), (copy, First.of(first)), (picture, None)]
    videos = [PageVideo(each, CHECKPOINT, __version__, i, same_as=same_as) for i, (each, same_as) in enumerate(results)]
    write_page(tmp_path / "p.html", videos, pictures=no_pictures, method=method())
    with visit(chromium, tmp_path / "p.html") as page:
        assert page.locator(".folder").all_inner_texts() == ["./x/", "./y/", "same video as a.mp4"]
        page.get_by_label("Name or reason").fill("a.mp4")
        assert names(page) == ["a.mp4", "b.mp4"]
        page.get_by_label("Name or reason").fill("")
        detail = open_video(page, "b.mp4")
        assert detail.locator(".notice").inner_text() == "two (between_thresholds: above 0.1)"
        assert "one@0123, two@0123 with dfscan" in detail.inner_text()
        assert "over time (m:ss), by one" in (detail.locator("svg.timeline").text_content() or "")
        assert detail.locator(".span, .tag").count() == 0  # there is only one track
        open_video(page, "b.mp4")
        detail = open_video(page, "c.jpg")
        assert detail.locator("svg.timeline").count() == 0
        assert "1 face \u00b7 0:00.0 \u00b7 score 0.5000" in detail.inner_text()


def test_error_and_no_face(page: "Page") -> None:
    detail = open_video(page, "broken.mp4")
    text = detail.inner_text()
    assert "The file could not be examined. Nothing can be said about it." in text
    assert "encrypted: the stream is <b>encrypted</b>; decrypt it first" in text
    assert detail.locator("svg.timeline, b").count() == 0
    open_video(page, "broken.mp4")
    assert "1:06:40.3" in open_video(page, "nobody.mp4").inner_text()


def test_hostile_names_in_the_browser(chromium: "Browser", tmp_path: Path) -> None:
    results = [video(os.fsdecode(name), "fake", 0.9, track(0, [0.9])) for name in HOSTILE]
    make(tmp_path / "p.html", results, pictures=no_pictures)
    with visit(chromium, tmp_path / "p.html") as page:
        for button in page.locator(".open").all():
            button.click()
        assert page.locator("tr.detail").count() == len(HOSTILE)
        assert page.locator("img, iframe").count() == 0
        assert page.locator("script").count() == 4
        shown = page.locator("tr.detail .facts bdi").all_inner_texts()
        assert './"><img src=x onerror=alert(1)>.mp4' in shown
        assert "./</script><script>alert(1)</script>.mp4" in shown
        assert "./{{ 7 * 7 }}&lt;'.mp4" in shown


CONTRAST = """(selector) => {
  const channels = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (text) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = channels(text).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : colour;
  };
  const ratio = (node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  return Math.min(...[...document.querySelectorAll(selector)].map(ratio));
}"""
TEXTS = (
    "body, p, a, td, th button, label, .counts span, .badge, .folder, .dim, dt, dd, code, h1, h2, h4, li, .about, .tag"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(chromium: "Browser", page_path: Path, scheme: str) -> None:
    with visit(chromium, page_path, color_scheme=scheme) as page:
        open_video(page, "fake1.mp4")
        lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(lightness) > 600) == (scheme == "light")
        page.mouse.move(0, 0)
        assert page.evaluate(CONTRAST, "body") >= 7
        assert page.evaluate(CONTRAST, TEXTS) >= 4.5
        # Text of the chart is filled, not coloured.
        page.locator(".timeline text").evaluate_all(
            "all => all.forEach(t => (t.style.color = getComputedStyle(t).fill))"
        )
        assert page.evaluate(CONTRAST, ".timeline text") >= 4.5


def test_print(chromium: "Browser", page_path: Path) -> None:
    with visit(chromium, page_path, color_scheme="dark") as page:
        detail = open_video(page, "fake1.mp4")
        page.mouse.move(0, 0)
        page.emulate_media(media="print")
        assert not page.locator(".controls").is_visible()
        assert not page.locator(".more").is_visible()
        assert detail.locator("svg.timeline").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate(CONTRAST, TEXTS) >= 4.5
        assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("width_px", [320, 400, 800, 1000, 1121])
def test_narrow(chromium: "Browser", tmp_path: Path, width_px: int) -> None:
    code = "r" * 60
    long = video("folder/" * 30 + "n" * 200 + ".mp4", "fake", 0.9, track(0, [0.9] * 32), reason=Reason(code, "x" * 200))
    make(tmp_path / "p.html", [*COLLECTION, long])
    with visit(chromium, tmp_path / "p.html", width_px=width_px) as page:
        for button in page.locator(".open").all()[:3]:
            button.click()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width_px


def test_every_control_has_a_name(page: "Page") -> None:
    open_video(page, "fake1.mp4")
    unnamed = """[...document.querySelectorAll("input, select, button, a, [role=img], [role=region]")]
      .filter((node) => !node.labels?.length && !node.textContent.trim() && !node.getAttribute("aria-label"))
      .map((node) => node.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.evaluate("document.documentElement.lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


def test_without_script(chromium: "Browser", page_path: Path) -> None:
    with visit(chromium, page_path, java_script_enabled=False) as page:
        text = page.locator("body").inner_text()
        assert "scripts are turned off" in text
        assert "Method and limits" in text
        assert not page.locator("input").first.is_visible()
        assert not page.locator(".controls").is_visible()


def test_no_videos(chromium: "Browser", tmp_path: Path) -> None:
    assert make(tmp_path / "p.html", []) == PageSummary(0, 0)
    with visit(chromium, tmp_path / "p.html") as page:
        assert page.get_by_role("status").inner_text() == "Showing 0 videos."
        assert not page.locator("#videos table").is_visible()


def many(count: int) -> list[VideoResult]:
    """Return random results with 32 faces each."""
    random = np.random.default_rng(7)
    results = []
    for i in range(count):
        label = VERDICT_LABELS[i % len(VERDICT_LABELS)]
        score = None if label in ("no_face", "error") else float(random.uniform(0.01, 0.99))
        tracks = () if score is None else (track(0, random.uniform(0.01, 0.99, 32).tolist(), step_s=1.37),)
        path = f"archive/{i % 97:02d}/case {i % 1000}/recording-{i:05d}.mp4"
        reason = Reason("damaged", "a packet was lost") if i % 7 == 0 else None
        results.append(video(path, label, score, *tracks, reason=reason))
    return results


ACT = """([selector, event, value]) => new Promise((done) => {
  const node = document.querySelector(selector);
  if (event === "click") node.click();
  else { node.value = value; node.dispatchEvent(new Event("input", { bubbles: true })); }
  requestAnimationFrame(() => setTimeout(done));
})"""


def test_ten_thousand_videos(chromium: "Browser", tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    make(path, many(10_000), pictures=no_pictures)
    with visit(chromium, path) as page:
        assert page.locator("tr.video").count() == 200
        assert page.get_by_role("status").inner_text() == "Showing 200 of 10,000 videos."
        page.evaluate(ACT, ["th.score button", "click", None])
        page.evaluate(ACT, ["th.name button", "click", None])
        page.evaluate(ACT, ["[name=text]", "input", "recording-000"])
        assert page.get_by_role("status").inner_text() == "Showing 100 videos that match, of 10,000 in total."
        page.evaluate(ACT, ["[name=text]", "input", ""])
        page.evaluate(ACT, [".video.fake .open", "click", None])
        page.evaluate(ACT, [".video.real .open", "click", None])
        assert page.locator(".timeline .point").count() == 64
        page.evaluate(ACT, [".more button", "click", None])
        assert page.locator("tr.video").count() == 400
        focused = "[...document.querySelectorAll('.open')].indexOf(document.activeElement)"
        assert page.evaluate(focused) == 200  # the first new row
        page.evaluate("""() => dispatchEvent(new Event("beforeprint"))""")
        assert page.locator("tr.video").count() == 2000
        page.emulate_media(media="print")
        assert page.locator(".print-note").inner_text() == "Only the first 2,000 of 10,000 videos are printed."


# For the README


def shown(result: VideoResult) -> list[Picture]:
    """Return faces and heat maps as a scan creates them, all of the same portrait."""
    portrait = astronaut()[20:240, 110:330]
    warm = np.zeros((7, 7), np.float32)
    warm[3:6, 2:5] = [[0.4, 0.6, 0.4], [0.8, 1, 0.8], [0.5, 0.7, 0.5]]
    heat_map = heat_map_jpeg(portrait, warm)
    face = cv2.imencode(".jpg", cv2.cvtColor(cv2.resize(portrait, (96, 96)), cv2.COLOR_RGB2BGR))[1].tobytes()
    faces = [(one.track_id, scored) for one in result.tracks for scored in one.faces[::3]]
    best = sorted(faces, key=lambda each: -each[1].score)[:3]
    return [
        Picture(kind, track_id, 0, scored.face.time_s, scored.score, data)
        for kind, data, chosen in (("face", face, faces), ("heat_map", heat_map, best))
        for track_id, scored in chosen
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_for_the_readme(chromium: "Browser", tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    """Write the screenshots for the README; set README_PICTURES=.readme to keep them there."""
    wave = [0.86 + 0.07 * np.sin(1.7 * i) for i in range(20)]
    calm = [0.2 + 0.06 * np.cos(1.3 * i) for i in range(12)]
    info = VideoInfo(4_812_345, "0e9f" * 16, 1280, 720, 29.97, 360, 12.012, "h264")
    fake = video(
        "interviews/press conference.mp4", "fake", 0.8512, track(0, calm), track(1, wave, start_s=2), info=info
    )
    rate = Validation(Bounded(2 / 212, 0.0011, 0.0337), 212)
    results = [
        replace(fake, verdict=replace(fake.verdict, validation=rate)),
        video("interviews/street.mov", "inconclusive", 0.55, track(0, [0.55] * 9)),
        video("archive/0117.mkv", "real", 0.04, track(0, [0.04] * 8)),
        failed("archive/broken.mp4"),
    ]
    make(tmp_path / "page.html", results, pictures=shown)
    with visit(chromium, tmp_path / "page.html", width_px=1200, height_px=1100, color_scheme=scheme) as page:
        open_video(page, "press conference.mp4")
        picture = page.screenshot()
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert (pixels[0, 0].mean() > 128) == (scheme == "light")
    assert pixels.std() > 20
    (Path(os.environ.get("README_PICTURES", tmp_path)) / f"page-{scheme}.png").write_bytes(picture)
