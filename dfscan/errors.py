"""Every exception that dfscan raises on purpose.

DfscanError
+-- ConfigError        an option, a configuration file or an input list is unusable (exit 2, before any work)
+-- CheckpointError    a checkpoint is missing, damaged, foreign, or no longer gives the scores it promised (exit 2)
+-- OutputError        a report, ledger, log or dump cannot be written (exit 2)
+-- MissingExtraError  an optional package is not installed (exit 2, before any work)
+-- LockedError        another run writes the same files (exit 75)
+-- TrainingError      training cannot go on; what was saved before is kept (exit 2)
+-- VideoError         one video cannot be judged: it becomes an ``error`` row and the batch goes on
"""

import os


class DfscanError(Exception):
    """Base of all: the message names the subject, the cause and a remedy, and is shown without a traceback."""

    exit_code = 2


class ConfigError(DfscanError):
    """An option, a configuration file or a list of inputs is unusable."""


class CheckpointError(DfscanError):
    """A checkpoint is missing, damaged, of another architecture, or fails its self-test."""


class OutputError(DfscanError):
    """A report, ledger, log file or dump cannot be written."""


class MissingExtraError(DfscanError):
    """An optional package is not installed; see `dfscan.extras`."""


class LockedError(DfscanError):
    """Another run writes the same report or ledger."""

    exit_code = os.EX_TEMPFAIL


class TrainingError(DfscanError):
    """Training cannot go on: its numbers are no longer finite."""


class VideoError(DfscanError):
    """One video cannot be judged.

    Attributes:
        code: short stable word for the report's ``reason`` column, such as ``encrypted`` or ``timeout``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
