"""From exceptions to one clear line and an exit code; logging to stderr and to a file."""

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
    """Wrap a command: nothing that a user can cause ends in a traceback or in a misleading exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = {number: signal.signal(number, _interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
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
                f"unexpected {type(error).__name__}: {error}. This is a bug in dfscan: please report it; commands "
                "with --log-file keep the details there"
            )
        finally:
            _close_handlers()
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


@contextmanager
def resumable(hint: str) -> Iterator[None]:
    """Say how to go on where an interrupt or a termination stops the block.

    Args:
        hint: what is kept, and which command goes on.
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
    """Unwind, so that children end and files stay whole; a second signal does not wait for that."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave_at_once)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_TERMINATED)


def _leave_at_once(number: int, _: object) -> NoReturn:
    os._exit(128 + number)  # the kernel ends the decoding children with us


def _silence(descriptor: int) -> None:
    """Point stdout (1) or stderr (2) at nothing, or Python fails once more, and exits with 120, when it flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def say(message: str) -> None:
    """One line on stderr, whatever is in it."""
    from dfscan.report.text import printable

    if sys.stderr is not None:  # closed by the caller
        try:
            print(f"dfscan: {printable(message)}", file=sys.stderr, flush=True)
        except (OSError, ValueError):  # where nobody can hear, the exit code still tells
            _silence(2)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def start_logging(
    *, is_quiet: bool = False, log_path: Path | None = None, handler: logging.Handler | None = None
) -> None:
    """Send warnings to stderr (errors only when quiet) and everything, with UTC times, to a file if one is named.

    Args:
        is_quiet: keep warnings off stderr.
        log_path: appended to.
        handler: takes the place of the plain stderr lines, as on a terminal with a progress bar.

    Raises:
        OutputError: the log file cannot be written.
        ConfigError: the log file is something else, such as a video.
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


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LOG_PROBE_BYTES)


def _file_handler(log_path: Path) -> logging.Handler:
    try:
        if log_path.is_file() and b"\0" in _head(log_path):
            raise ConfigError(f"{log_path}: is there already and is no text; name another --log-file")
        handler = logging.FileHandler(log_path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{log_path}: cannot be written ({error.strerror}); check --log-file") from error
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    return handler
