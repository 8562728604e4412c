"""Exceptions that dfscan raises deliberately.

DfscanError
+-- ConfigError        an option, configuration file or input list is unusable (exit 2)
+-- DataError          a data set, ledger or saved state is missing, damaged or unsuitable (exit 2)
+-- CheckpointError    a checkpoint is missing, damaged, of another format, or fails its self-test (exit 2)
+-- OutputError        a report, ledger, log or dump cannot be written (exit 2)
+-- MissingExtraError  an optional package is not installed (exit 2, before any work)
+-- LockedError        another run writes the same files (exit 75)
+-- TrainingError      training has diverged; saved states are kept (exit 2)
+-- VideoError         one video cannot be scored; it becomes an ``error`` row and the batch continues
"""

import os


class DfscanError(Exception):
    """Base class. The message gives the subject, the cause and a remedy; it is shown without a traceback."""

    exit_code = 2


class ConfigError(DfscanError):
    """An option, a configuration file or a list of inputs is unusable."""


class DataError(DfscanError):
    """A data set, a ledger, a journal or the state of a run is missing, damaged or unsuitable."""


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
    """Training has diverged: its values are not finite, or so large that scores saturate."""


class VideoError(DfscanError):
    """One video cannot be scored.

    Attributes:
        code: short stable identifier for the report's ``reason`` column, such as ``encrypted`` or ``timeout``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
