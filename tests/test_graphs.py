"""Sessions of ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dfscan import graphs
from dfscan.graphs import open_session


def test_telemetry_is_off_before_onnx_runtime_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime reads the variable once, on import; tracing one short scan may show no telemetry in either case."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os\n"
        "AT_IMPORT = os.environ.get('ORT_DISABLE_TELEMETRY')\n"
        "class SessionOptions:\n"
        "    def add_session_config_entry(self, key, value): pass\n"
        "class InferenceSession:\n"
        "    def __init__(self, graph, options, providers): self.at_import = AT_IMPORT\n"
    )
    monkeypatch.setattr(graphs, "_share_arena", lambda: None)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    try:
        assert vars(open_session(b""))["at_import"] == "1"
    finally:
        sys.modules.pop("onnxruntime", None)
