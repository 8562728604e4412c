"""Scan videos inside a Ray Data pipeline; see `ScanBatch`. For whole scans, use ``dfscan scan --on ray``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from dfscan.api import AnyPath, Scanner, ScannerOptions
from dfscan.errors import DfscanError
from dfscan.media.discover import Discovery
from dfscan.report.schema import REPORT_COLUMNS, detector_columns, report_row
from dfscan.report.tables import arrow_schema
from dfscan.report.writers import typed_cell

if TYPE_CHECKING:
    import pyarrow as pa


class ScanBatch(Scanner):
    """A class for ``map_batches``, which turns a column of paths into the rows of a report::

        import ray
        from dfscan.ray import ScanBatch

        paths = ray.data.from_items([{"path": "/mnt/share/a.mp4"}, {"path": "s3://bucket/b.mp4"}])
        rows = paths.map_batches(ScanBatch, batch_size=16, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=4))
        rows.write_parquet("/mnt/share/report")

    Give the options as ``fn_constructor_kwargs``. Ray Data decides on retries and on the order of the rows. It starts a
    batch again if its worker dies, without end if a video kills every worker.
    """

    def __init__(
        self,
        checkpoint: AnyPath | Sequence[AnyPath] | None = None,
        *,
        column: str = "path",
        **options: Unpack[ScannerOptions],
    ) -> None:
        """Load the models.

        Args:
            checkpoint: see `Scanner`. A file must exist on every node. Write the commit into a name on the Hub, because
                every node looks it up by itself.
            column: name of the column with the paths: absolute paths that every node has, or URLs.
            **options: see `ScannerOptions`. The default of `threads` is 1; it should be the ``num_cpus`` of an actor.

        Raises:
            ConfigError, CheckpointError, DfscanError: as `Scanner`.
        """
        options.setdefault("threads", 1)
        super().__init__(checkpoint, **options)
        self._column = column

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> pa.Table:
        """Judge the videos of a batch.

        Args:
            batch: columns by name, in Ray Data's format ``numpy``.

        Returns:
            One row for each path, in the same order, with the columns, values and types of a Parquet report. Only
            ``same_as`` is empty: a batch holds a part of the videos.

        Raises:
            KeyError: there is no column of paths.
            DfscanError: this scanner is closed, or the device fails.
        """
        import pyarrow as pa

        if self._engine is None:
            raise DfscanError("this ScanBatch is closed; make a new one")
        paths = [os.fsdecode(path) for path in batch[self._column]]
        classifiers = self._engine.classifiers
        names = [classifier.name for classifier in classifiers] if len(classifiers) > 1 else []
        columns = (*REPORT_COLUMNS, *detector_columns(names))
        rows = {}
        for result in self._results_of(Discovery(list(dict.fromkeys(paths)), {}, [], []), self._engine):
            row = report_row(result, checkpoint=result.checkpoint, version=result.dfscan_version, detectors=names)
            rows[result.path] = {column.name: typed_cell(column, row[column.name]) for column in columns}
        return pa.Table.from_pylist([rows[path] for path in paths], schema=arrow_schema(columns))
