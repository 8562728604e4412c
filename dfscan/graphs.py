"""Networks as ONNX graphs: exported by a child process, once, kept in the cache folder, run by ONNX Runtime.

PyTorch takes seconds and 0.9 GB to import; so only the child does, and only the first time.
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

_log = logging.getLogger("dfscan")

# The child imports from where its parent does, and from nowhere else: `python -m` would put the working directory,
# perhaps a folder of untrusted files, first.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; sys.exit(main(sys.argv[2:]))"
)


def cached_graph(key: str, subject: str, export: Callable[[Path], None]) -> bytes:
    """What was exported under this key, from the cache or newly exported.

    Args:
        key: changes with everything that the graph depends on.
        subject: what is exported, for people.
        export: writes it to the path that it is given.

    Raises:
        DfscanError: there is no room for it. What `export` raises passes through.
    """
    data = recall(key)
    if data is None:
        _log.info("exporting %s to ONNX, once: about 10 s", subject)
        data = _exported(subject, export)
        remember(key, data)
    return data


def _exported(subject: str, export: Callable[[Path], None]) -> bytes:
    try:
        with tempfile.TemporaryDirectory(prefix="dfscan-") as folder:
            path = Path(folder) / "graph.onnx"
            export(path)
            return path.read_bytes()
    except OSError as error:
        raise DfscanError(
            f"{subject} cannot be exported to ONNX ({error}): "
            "it needs a writable temporary folder with some 200 MB, see TMPDIR"
        ) from error


def run_child(module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``main(arguments)`` of a module in a process of its own; what it says on stderr is kept."""
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
    """What went wrong in a child, as one sentence."""
    if returncode < 0:
        message = f"its process was ended by signal {-returncode}; the export needs about 2.5 GB of memory"
    last_line = message.rpartition("\n")[2] or f"exit status {returncode}"
    return DfscanError(
        f"{subject} cannot be exported to ONNX: {last_line}. "
        "Check that torch, onnx and onnxruntime are whole with `dfscan info`"
    )


def open_session(graph: bytes) -> InferenceSession:
    """Load a graph for the CPU; a call of ``run`` takes the caller's thread only, several may be made at once."""
    # Its builds since 1.29 tell their maker of every session; what is looked at here is nobody's business.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    _share_arena()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    vars(session).pop("_model_bytes", None)  # kept for other providers to fall back from; as large as the weights
    _return_memory()
    return session


@cache
def _share_arena() -> None:
    """Let all sessions draw on one pool of memory: with one each, every network keeps what its largest input took."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))


def _return_memory() -> None:
    """Hand what was freed back to the system; of a B4 that has just been loaded, 90 MB would stay with glibc."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
