"""Error handling and logging: report exceptions as one line with an exit code; log to stderr and to a file."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import typer

from dfscan.errors import ConfigError, DfscanError, OutputError

EXIT_ERROR = 2
LOG_PROBE_BYTES = 4096
EXIT_CLOSED_PIPE = 128 + signal.SIGPIPE
EXIT_TERMINATED = 128 + signal.SIGTERM

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("dfscan")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that errors end in one line on stderr and the right exit code, never in a traceback.

    The wrapped command also refuses misspelt ``DFSCAN_*`` variables, even if it has no option that reads one.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = {number: signal.signal(number, _interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if any(name.startswith("DFSCAN_") for name in os.environ):
                from dfscan.config import ScanSettings, check_environment

                check_environment(os.environ, [ScanSettings])
            return command(*args, **kwargs)
        except DfscanError as error:
            _fail(str(error), error.exit_code)
        except BrokenPipeError:
            _silence(1)
            raise typer.Exit(EXIT_CLOSED_PIPE) from None
        except KeyboardInterrupt as stop:
            say(f"interrupted: {stop}" if stop.args else "interrupted")
            raise typer.Exit(128 + signal.SIGINT) from None
        except typer.Exit:
            raise
        except Exception as error:
            log.debug("unexpected error", exc_info=True)
            _fail(
                f"unexpected {type(error).__name__}: {error}. This is a bug in dfscan, please report it; the file of "
                "--log-file, if given, contains the details"
            )
        finally:
            _close_handlers()
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


@contextmanager
def resumable(hint: str) -> Iterator[None]:
    """Print a hint on how to continue if an interrupt or a termination stops the block.

    Args:
        hint: which results are kept, and which command continues.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None
    except SystemExit as stop:
        if stop.code == EXIT_TERMINATED:
            say(f"terminated: {hint}")
        raise


def _fail(message: str, code: int = EXIT_ERROR) -> NoReturn:
    say(f"error: {message}")
    log.debug("failed: %s", message)
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _silence(1)
    raise typer.Exit(code)


def _interrupted(number: int, _: object) -> NoReturn:
    """Raise, so that cleanup ends child processes and leaves no partial files; a second signal exits at once."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave_at_once)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_TERMINATED)


def _leave_at_once(number: int, _: object) -> NoReturn:
    os._exit(128 + number)  # the kernel kills the decoding children together with this process


def _silence(descriptor: int) -> None:
    """Redirect stdout (1) or stderr (2) to /dev/null; otherwise Python's final flush fails and it exits with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def say(message: str) -> None:
    """Print one line to stderr, with unprintable characters escaped."""
    from dfscan.text import printable

    if sys.stderr is not None:  # closed by the caller
        try:
            print(f"dfscan: {printable(message)}", file=sys.stderr, flush=True)
        except (OSError, ValueError):  # stderr is unusable; the exit code still reports the result
            _silence(2)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def start_logging(
    *, is_quiet: bool = False, log_path: Path | None = None, handler: logging.Handler | None = None
) -> None:
    """Log warnings (only errors when quiet) to stderr and everything, with UTC times, to a file if one is given.

    Args:
        is_quiet: keep warnings off stderr.
        log_path: file to append to.
        handler: replaces the plain stderr handler, for example on a terminal with a progress bar.

    Raises:
        OutputError: the log file cannot be written.
        ConfigError: the log file exists and is not text, for example a video.
    """
    _close_handlers()
    log.setLevel(logging.DEBUG)
    log.propagate = False
    shown = handler or _StderrHandler()
    shown.setLevel(logging.ERROR if is_quiet else logging.WARNING)
    log.addHandler(shown)
    if log_path:
        log.addHandler(_file_handler(log_path))


def _close_handlers() -> None:
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()


def _file_handler(log_path: Path) -> logging.Handler:
    try:
        if log_path.is_file():
            with log_path.open("rb") as file:
                if b"\0" in file.read(LOG_PROBE_BYTES):
                    raise ConfigError(f"{log_path}: exists and is not a text file; choose another --log-file")
        handler = logging.FileHandler(log_path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{log_path}: cannot be written ({error.strerror}); check --log-file") from error
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    return handler
