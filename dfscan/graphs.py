"""Export networks to ONNX graphs, keep them in the cache folder, and run them with ONNX Runtime.

Importing PyTorch takes seconds and 0.9 GB. Therefore only a child process imports it, once, to export the graphs.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dfscan.cache import recall, remember
from dfscan.errors import DfscanError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger("dfscan")

# The child uses exactly the import path of its parent. `python -m` would put the working directory first, which may
# contain untrusted files.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; sys.exit(main(sys.argv[2:]))"
)


def cached_graph(key: str, subject: str, export: Callable[[Path], None]) -> bytes:
    """Return the graph stored under `key`; export and cache it first if necessary.

    Args:
        key: must change with everything that the graph depends on.
        subject: name of the exported network, for messages.
        export: writes the graph to the given path.

    Raises:
        DfscanError: the temporary file cannot be written. Exceptions from `export` pass through.
    """
    data = recall(key)
    if data is None:
        log.info("exporting %s to ONNX; needed only once, about 10 s", subject)
        try:
            with tempfile.TemporaryDirectory(prefix="dfscan-") as folder:
                path = Path(folder) / "graph.onnx"
                export(path)
                data = path.read_bytes()
        except OSError as error:
            raise DfscanError(
                f"{subject} cannot be exported to ONNX ({error}): "
                "it needs a writable temporary folder with about 200 MB free; set TMPDIR"
            ) from error
        remember(key, data)
    return data


def run_child(module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``main(arguments)`` of a module in a separate process and capture its stderr."""
    command = [sys.executable, "-P", "-c", _CHILD.format(module=module), json.dumps(sys.path), *arguments]
    return subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def export_failure(subject: str, returncode: int, message: str) -> DfscanError:
    """Describe the failure of a child process in one sentence."""
    if returncode < 0:
        message = f"its process was killed by signal {-returncode}; the export needs about 2.5 GB of memory"
    last_line = message.rpartition("\n")[2] or f"exit status {returncode}"
    return DfscanError(
        f"{subject} cannot be exported to ONNX: {last_line}. "
        "Check the installation of torch, onnx and onnxruntime with `dfscan info`"
    )


def open_session(graph: bytes) -> InferenceSession:
    """Load a graph on the CPU. ``run`` uses only the calling thread and may be called from several threads at once."""
    # Builds since 1.29 send telemetry for every session; disable it, because scanned videos are confidential.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    _share_arena()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    vars(session).pop("_model_bytes", None)  # kept only for provider fallback, and as large as the weights
    # After loading a B4, glibc would keep 90 MB of freed memory. Another C library may not have this function.
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return session


@cache
def _share_arena() -> None:
    """Share one memory arena among all sessions. Separate arenas would each keep the memory of their largest input."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))
