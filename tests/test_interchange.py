"""Reports for other programs: the JSON Schema of a row, CASE/UCO, and WebVTT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dfscan.errors import OutputError
from dfscan.report.case import CONTEXT
from dfscan.report.formats import open_writer
from dfscan.report.row_schema import DESCRIPTIONS, row_schema
from dfscan.report.schema import DETECTOR_COLUMNS, REPORT_COLUMNS, report_row
from dfscan.report.webvtt import Span, spans, write_webvtt
from dfscan.types import FileFacts, Provenance, Reason, Verdict, VideoResult
from tests.test_cli import run, scan
from tests.test_cli import surroundings as surroundings
from tests.test_page import COLLECTION, track, video
from tests.test_report import judged, unjudged

FACTS = FileFacts("mp4", "isom", "Lavf", num_audio_streams=1, provenance=Provenance("trusted", "Signer"))
RESULTS = [*COLLECTION, judged("a\n.mp4"), unjudged("b.mp4"), replace(judged("c.mp4"), facts=FACTS)]


def written(path: Path, results: list[VideoResult]) -> Path:
    with open_writer(path, REPORT_COLUMNS, format="case" if path.suffix == ".jsonld" else "jsonl") as writer:
        for result in results:
            writer.append(report_row(result, checkpoint="best@0123", version="1.2.3"))
    return path


# The schema


def test_every_row_fits_the_schema(tmp_path: Path) -> None:
    schema = json.loads(run("schema").stdout)
    assert schema == row_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    rows = [json.loads(line) for line in written(tmp_path / "r.jsonl", RESULTS).read_text().splitlines()]
    assert any("path_bytes" in row for row in rows)
    for row in rows:
        validator.validate(row)
    for name, value in (("verdict", "genuine"), ("score", 1.5), ("num_frames", None), ("provenance", "fake")):
        assert not validator.is_valid({**rows[0], name: value}), name
    del rows[0]["sound"]
    assert not validator.is_valid(rows[0])


def test_the_schema_describes_every_column_in_order() -> None:
    names = [column.name for column in REPORT_COLUMNS]
    of_detectors = {column.name for column in DETECTOR_COLUMNS}
    assert [name for name in DESCRIPTIONS if name in names] == names
    assert set(DESCRIPTIONS) == {*names, *of_detectors}
    assert list(row_schema()["properties"]) == [*names, "path_bytes", "detectors"]


# CASE


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every node of a JSON-LD document that is defined in it, not only referred to."""
    if isinstance(value, dict):
        if "@type" in value and "@id" in value:
            yield value
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def test_case_links_each_file_with_its_result(tmp_path: Path) -> None:
    document = json.loads(written(tmp_path / "r.jsonld", RESULTS).read_text())
    assert document["@context"] == CONTEXT
    by_id: dict[str, dict[str, Any]] = {}
    for node in nodes(document["@graph"]):
        assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", node["@id"])
        assert node["@id"] not in by_id, "an identifier names one thing"
        by_id[node["@id"]] = node
        prefixes = {key.partition(":")[0] for key in (*node, node["@type"]) if not key.startswith("@")}
        assert prefixes <= set(CONTEXT)
    actions = [node for node in by_id.values() if node["@type"] == "investigation:InvestigativeAction"]
    assert len(actions) == len(RESULTS)
    for action, result in zip(actions, RESULTS, strict=True):
        assert by_id[action["action:instrument"]["@id"]]["tool:version"] == "1.2.3"
        facets = by_id[action["action:object"]["@id"]]["core:hasFacet"]
        assert facets[0]["observable:fileName"] in (Path(result.path).name, "a\\n.mp4")
        told = by_id[action["action:result"]["@id"]]
        assert f"verdict: {result.verdict.label}" in told["core:statement"]
        assert ("core:hasFacet" in told) == (result.verdict.score is not None)
        if result.verdict.score is not None:
            classified = told["core:hasFacet"]["analysis:classification"]
            assert classified["analysis:class"] == "manipulated face"
            confidence = classified["analysis:classificationConfidence"]
            assert (confidence["@type"], float(confidence["@value"])) == (
                "xsd:decimal",
                pytest.approx(result.verdict.score, abs=1e-6),
            )
    tools = [node for node in by_id.values() if node["@type"] == "tool:AnalyticTool"]
    assert [tool["core:description"] for tool in tools] == ["checkpoint best@0123"]


def test_an_untrained_checkpoint_classifies_nothing(tmp_path: Path) -> None:
    verdict = Verdict("inconclusive", 0.7, reason=Reason("untrained", "its scores mean nothing"))
    document = json.loads(written(tmp_path / "r.jsonld", [replace(judged("a.mp4"), verdict=verdict)]).read_text())
    assert "ArtifactClassification" not in json.dumps(document["@graph"])


def test_case_without_rows_is_a_document(tmp_path: Path) -> None:
    assert json.loads(written(tmp_path / "r.jsonld", []).read_text())["@graph"] == []
    first, again = (written(tmp_path / name, RESULTS).read_bytes() for name in ("1.jsonld", "2.jsonld"))
    assert first == again


def test_case_has_no_rows_of_faces(clips: Path, untrained: Path, tmp_path: Path) -> None:
    done = scan(untrained, clips / "one.mp4", "-o", tmp_path / "r.csv", "--frames-out", tmp_path / "f.jsonld")
    assert done.exit_code == 2
    assert "one entry per video, not per face" in done.stderr


# WebVTT


def test_spans_are_runs_of_faces_at_or_above_the_threshold() -> None:
    up_and_down = track(4, [0.8, 0.9, 0.2, 0.76, 0.1], start_s=1, step_s=0.5)
    other = track(5, [0.99], start_s=1.2)
    result = video("a.mp4", "fake", 0.8, up_and_down, other)
    assert [replace(span, max_score=round(span.max_score, 4)) for span in spans(result)] == [
        Span(4, 1.0, 1.5, 2, 0.9),
        Span(5, 1.2, 1.2, 1, 0.99),
        Span(4, 2.5, 2.5, 1, 0.76),
    ]
    assert spans(replace(result, verdict=replace(result.verdict, threshold=None))) == []
    assert spans(video("b.mp4", "no_face")) == []


def test_webvtt_of_a_video(tmp_path: Path) -> None:
    long = track(1, [0.9, 0.8], start_s=3600, step_s=61.25)
    result = video("in/a --> b\n.mp4", "fake", 0.85, long, track(2, [0.76], start_s=0.3))
    path = write_webvtt(tmp_path / "spans", result)
    assert re.fullmatch(r"a_--_b_\.mp4-[0-9a-f]{12}\.vtt", path.name)
    assert path.read_text() == (
        "WEBVTT\n\n"
        "NOTE\nFile: ./in/a -- > b\\n.mp4\nVerdict: fake, score 0.8500, threshold 0.7500\n"
        "Spans: examined faces at or above the threshold. Nothing between the sampled frames was examined.\n\n"
        "00:00:00.300 --> 00:00:00.800\ntrack 2: 1 face, score up to 0.7600\n\n"
        "01:00:00.000 --> 01:01:01.250\ntrack 1: 2 faces, score up to 0.9000\n"
    )
    write_webvtt(tmp_path / "spans", video(result.path, "real", 0.01, track(0, [0.01])))
    assert "-->" not in path.read_text(), "no spans of an earlier scan stay"


def test_webvtt_in_an_unusable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_webvtt(tmp_path / "file", video("a.mp4", "fake", 0.9))


# All together


def test_a_report_writes_all_of_them(clips: Path, trained: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "r.jsonl", tmp_path / "spans"
    done = scan(trained, clips, "-o", out, "-o", tmp_path / "r.jsonld", "--webvtt", folder, "--exit-zero")
    assert done.exit_code == 0, done.stderr
    validator = jsonschema.Draft202012Validator(row_schema())
    for line in out.read_text().splitlines():
        validator.validate(json.loads(line))
    assert len(list(folder.iterdir())) == 4
    again = tmp_path / "again"
    arguments = ("--format", "case", "--webvtt", again)
    done = run("report", f"{out}.ledger", *arguments)
    assert json.loads(done.stdout) == json.loads((tmp_path / "r.jsonld").read_text())
    assert {path.name: path.read_text() for path in again.iterdir()} == {
        path.name: path.read_text() for path in folder.iterdir()
    }
