"""An engine for tests of the cluster: it opens no file, and does with a path what its name says.

Workers import this module, so it imports little.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dfscan.errors import DfscanError
from dfscan.media.source import FileIdentity
from dfscan.scan.cluster_worker import Dumps, Job, JudgedVideo, JudgeVideos
from dfscan.scan.pipeline import ScanListener
from dfscan.types import Verdict, VideoInfo, VideoResult

IDENTITY = FileIdentity(1, 2, 3)
PATIENCE_S = 120
WARNING = "a warning of each worker"


@dataclass(frozen=True)
class StubJob(Job):
    """Every result names the node that it comes from as its codec."""

    pause_s: float = 0.0
    notes: str = ""
    """Folder for notes about nodes that have judged, and paths that were judged before."""

    def open(self, threads: int, dumps: Dumps, listener: ScanListener) -> tuple[JudgeVideos, int]:
        self._check_files()
        logging.getLogger("dfscan").warning(WARNING)
        return self.judge, 2

    def judge(self, paths: Iterable[str]) -> Iterator[JudgedVideo]:
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        for path in paths:
            time.sleep(self.pause_s)
            if wanted := re.match(r"after-(\d)-nodes", path):
                self._wait_for_nodes(node_id, int(wanted[1]))
            if "poison" in path or ("kills-one" in path and self._is_first_time(path)):
                os.kill(os.getpid(), signal.SIGKILL)
            if "raises-once" in path and self._is_first_time(path):
                raise DfscanError("the device failed")
            yield VideoResult(path, "ok", Verdict("no_face"), VideoInfo(1, codec=node_id)), IDENTITY

    def _wait_for_nodes(self, node_id: str, count: int) -> None:
        """Wait until this number of nodes have come this far."""
        (Path(self.notes) / f"{node_id}.node").touch()
        end_s = time.monotonic() + PATIENCE_S
        while len(list(Path(self.notes).glob("*.node"))) < count:
            assert time.monotonic() < end_s, f"{count} nodes were expected"
            time.sleep(0.02)

    def _is_first_time(self, path: str) -> bool:
        try:
            (Path(self.notes) / path).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
