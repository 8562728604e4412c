"""Reports in CASE and UCO, the interchange format of digital forensics, as JSON-LD.

Each video is a file, an analysis action by this tool, and the result of the action. If faces were scored, the result
classifies the file as ``manipulated face``, with the score as its confidence; an untrained checkpoint classifies
nothing. The verdict, the reason and all facts are statements of the result. A review by a person is an action of its
own, with its own result. The case is an investigation with all actions, the exhibit a provenance record of each file,
and the examiner performs the examination. Identifiers are derived from the content, so equal rows give equal bytes.
https://caseontology.org/, UCO 1.4
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dfscan.report.schema import Column
from dfscan.report.writers import ReportWriter, Sink, typed_cell

UCO = "https://ontology.unifiedcyberontology.org/uco"
CONTEXT = {
    "action": f"{UCO}/action/",
    "analysis": f"{UCO}/analysis/",
    "core": f"{UCO}/core/",
    "identity": f"{UCO}/identity/",
    "investigation": "https://ontology.caseontology.org/case/investigation/",
    "observable": f"{UCO}/observable/",
    "tool": f"{UCO}/tool/",
    "types": f"{UCO}/types/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
CLASS = "manipulated face"
UNTRAINED_NOTE = "untrained"
"""Code of the reason of a video that an untrained checkpoint scored."""
SHARED_TYPES = ("tool:AnalyticTool", "identity:Identity")
"""Types of nodes that several rows have in common."""
UNSTATED = frozenset(
    "path sha256 size_bytes checkpoint dfscan_version "
    "reviewer_verdict reviewer reviewed_utc reviewer_note "
    "case exhibit examiner".split()
)
"""Columns that other nodes contain, so that no statement such as ``verdict: fake`` repeats them."""
CASE_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:dfscan:case")

Node = dict[str, Any]


class CaseWriter(ReportWriter):
    """One JSON-LD document with a graph of all videos."""

    def __init__(self, sink: Sink, columns: Sequence[Column]) -> None:
        super().__init__(sink, columns, head=f'{{"@context": {json.dumps(CONTEXT)},\n"@graph": [\n'.encode())
        self._shared: set[str] = set()
        self._is_empty = True
        self._case = ""
        self._actions: list[str] = []

    def append(self, row: Mapping[str, object]) -> None:
        """See `ReportWriter.append`."""
        cells = {column.name: typed_cell(column, row[column.name]) for column in self._columns}
        nodes = [node for node in _nodes(cells) if node["@id"] not in self._shared]
        self._case = str(cells["case"] or "")
        if self._case:
            self._actions += [node["@id"] for node in nodes if node["@type"] == "investigation:InvestigativeAction"]
        self._shared |= {node["@id"] for node in nodes if node["@type"] in SHARED_TYPES}
        lines = ",\n".join(json.dumps(node, ensure_ascii=False, allow_nan=False) for node in nodes)
        separator, self._is_empty = "" if self._is_empty else ",\n", False
        self._write(separator + lines)

    def close(self) -> None:
        """See `ReportWriter.close`."""
        if self._case:
            investigation = {
                "@id": _id("investigation", (self._case,)),
                "@type": "investigation:Investigation",
                "core:name": self._case,
                "core:object": [{"@id": action} for action in self._actions],
            }
            self._write(f",\n{json.dumps(investigation, ensure_ascii=False)}")
        self._write("\n]}\n")
        self._sink.commit()


def _nodes(cells: Mapping[str, Any]) -> Iterator[Node]:
    """Yield the tool, the file, the result and the action of one row."""
    made_by = (cells["dfscan_version"], cells["checkpoint"])
    about = (*made_by, cells["path"], cells["sha256"])
    tool, file, result = _id("tool", made_by), _id("file", about[2:]), _id("result", about)
    yield _known(
        {
            "@id": tool,
            "@type": "tool:AnalyticTool",
            "core:name": "dfscan",
            "tool:version": cells["dfscan_version"],
            "core:description": f"checkpoint {cells['checkpoint']}" if cells["checkpoint"] else None,
        }
    )
    yield {"@id": file, "@type": "observable:File", "core:hasFacet": list(_file_facets(cells, about[2:]))}
    classification = None
    if cells["score"] is not None and not (cells["reason"] or "").startswith(f"{UNTRAINED_NOTE}:"):
        classification = {
            "@id": _id("classification facet", about),
            "@type": "analysis:ArtifactClassificationResultFacet",
            "analysis:classification": {
                "@id": _id("classification", about),
                "@type": "analysis:ArtifactClassification",
                "analysis:class": CLASS,
                "analysis:classificationConfidence": {"@type": "xsd:decimal", "@value": f"{cells['score']:.6f}"},
            },
        }
    yield _known(
        {
            "@id": result,
            "@type": "analysis:AnalyticResult",
            "core:statement": [
                f"{name}: {value}" for name, value in cells.items() if name not in UNSTATED and value is not None
            ],
            "core:hasFacet": classification,
        }
    )
    examiner = _id("person", (cells["examiner"],)) if cells["examiner"] else None
    if examiner:
        yield {"@id": examiner, "@type": "identity:Identity", "core:name": cells["examiner"]}
    yield _known(
        {
            "@id": _id("action", about),
            "@type": "investigation:InvestigativeAction",
            "core:name": "Examine a video for manipulated faces",
            "action:performer": {"@id": examiner} if examiner else None,
            "action:instrument": {"@id": tool},
            "action:object": {"@id": file},
            "action:result": {"@id": result},
        }
    )
    if cells["exhibit"]:
        yield {
            "@id": _id("provenance record", (*about[2:], cells["exhibit"])),
            "@type": "investigation:ProvenanceRecord",
            "investigation:exhibitNumber": cells["exhibit"],
            "core:object": {"@id": file},
        }
    if cells["reviewer_verdict"]:
        yield from _review(cells, about, file)


def _review(cells: Mapping[str, Any], about: tuple[object, ...], file: str) -> Iterator[Node]:
    """Yield the reviewer, the result and the action of a person's review."""
    reviewer, about = _id("person", (cells["reviewer"],)), (*about, cells["reviewer"], cells["reviewed_utc"])
    yield {"@id": reviewer, "@type": "identity:Identity", "core:name": cells["reviewer"]}
    result = _id("review result", about)
    statements = [f"{name}: {cells[name]}" for name in ("reviewer_verdict", "reviewer_note") if cells[name]]
    yield {"@id": result, "@type": "analysis:AnalyticResult", "core:statement": statements}
    yield {
        "@id": _id("review", about),
        "@type": "investigation:InvestigativeAction",
        "core:name": "Review a video",
        "action:performer": {"@id": reviewer},
        "action:endTime": {"@type": "xsd:dateTime", "@value": cells["reviewed_utc"]},
        "action:object": {"@id": file},
        "action:result": {"@id": result},
    }


def _file_facets(cells: Mapping[str, Any], about: tuple[object, ...]) -> Iterator[Node]:
    yield _known(
        {
            "@id": _id("file facet", about),
            "@type": "observable:FileFacet",
            "observable:fileName": os.path.basename(cells["path"]),
            "observable:filePath": cells["path"],
            "observable:sizeInBytes": cells["size_bytes"],
        }
    )
    if cells["sha256"]:
        digest = {
            "@id": _id("hash", about),
            "@type": "types:Hash",
            "types:hashMethod": "SHA256",
            "types:hashValue": {"@type": "xsd:hexBinary", "@value": cells["sha256"]},
        }
        facet = {"@id": _id("content facet", about), "@type": "observable:ContentDataFacet", "observable:hash": digest}
        yield facet


def _id(kind: str, parts: tuple[object, ...]) -> str:
    return f"urn:uuid:{uuid.uuid5(CASE_NAMESPACE, json.dumps([kind, *parts]))}"


def _known(node: Node) -> Node:
    return {name: value for name, value in node.items() if value is not None}
