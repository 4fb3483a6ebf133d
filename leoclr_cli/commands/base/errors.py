"""End of a failed command: one line on stderr, JSON on stdout with `--json`, and an exit code."""

from __future__ import annotations

import errno
import os
import re
import resource
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import typer

from leoclr.cli.terminal import print_json, say
from leoclr.datasets.errors import LeoclrError, NotKept, RunError
from leoclr.datasets.storage.addresses import redacted
from leoclr.datasets.wording import first_line, in_bytes

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT
_READER_GONE = 1  # as typer has it
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_NO_CHOICE = re.compile("invalid value for .*: '(.*)' is not one of (.*)")
_EXTRA = re.compile(r"got unexpected extra argument(?:s|\(s\))? \((.*)\)")
_QUOTED = re.compile("'(.*?)'")
_UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EFBIG)
_NO_PROCESS = (errno.EAGAIN, errno.ENOMEM)
_TOO_FEW_THREADS = "the system starts no further thread or process; see `ulimit -u`, a container's limit, or memory"

# typer has a click of its own, or uses the package, by its version: what it offers of it by name serves for both.
_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def exit_code(command: Callable[[], Any], as_json: bool) -> int:
    """Run a command to its end.

    Args:
        command: What typer makes of it, not standing alone: it returns the code of a `typer.Exit`, and raises others.
        as_json: Whether an error is printed as `{"error": ...}` too, unless the result was.
    """
    try:
        code = _told(command) or 0
        sys.stdout.flush()  # Python would tell a failure at exit, in words and a code of its own
        return code
    except NotKept as error:
        return _failed(str(error), USER_ERROR, as_json=False)
    except LeoclrError as error:
        return _failed(_with_limit(redacted(str(error))), USER_ERROR, as_json)
    except (KeyboardInterrupt, typer.Abort):
        if as_json:
            _print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return _READER_GONE  # without a word, as Unix tools do
    except OSError as error:
        if error.errno in _TOO_MANY_FILES:
            return _failed(_with_limit(os.strerror(error.errno)), USER_ERROR, as_json)
        if error.errno in _NO_PROCESS:
            return _failed(f"{_TOO_FEW_THREADS} ({error.strerror})", USER_ERROR, as_json)
        if error.errno not in _UNWRITABLE and error.filename is None:
            raise
        return _failed(f"{error.filename or 'the output cannot be written'}: {error.strerror}", USER_ERROR, as_json)
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        return _failed(f"{_TOO_FEW_THREADS}{_limit_of_memory()}", USER_ERROR, as_json)
    except MemoryError as error:
        return _failed(f"there is not enough memory{_limit_of_memory()} ({first_line(error)})", USER_ERROR, as_json)
    except ImportError as error:
        if ".so" not in str(error):  # a module that is missing is a bug, or tells what to install
            raise
        message = f"a library cannot be loaded{_limit_of_memory()} ({first_line(error)})"
        return _failed(message, USER_ERROR, as_json)
    except _ClickException as error:
        return _failed(usage(error), error.exit_code, as_json)
    finally:
        _discard_what_cannot_be_written()


def _told(command: Callable[[], Any]) -> Any:
    """Run a command. What another package's method or view policy fails with is told in a line, as it is no bug of
    leoclr; what the system lacks is told as everywhere."""
    try:
        return command()
    except (LeoclrError, OSError, MemoryError, _ClickException, typer.Abort):
        raise
    except Exception as error:
        from leoclr.cli.config.plugin_errors import place_in_plugin, told_with_place

        if place_in_plugin(error) is None:
            raise
        raise RunError(told_with_place(error)) from error


def _limit_of_memory() -> str:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f" within the limit of {in_bytes(limit)} (`ulimit -v`)"


def _with_limit(message: str) -> str:
    """The message, with the limit on open files where it tells of that, in whatever words and process it came about."""
    if not any(os.strerror(number) in message for number in _TOO_MANY_FILES):
        return message
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{message}; a process may open {limit} files here (`ulimit -n`), which is too few; 1024 are enough"


def usage(error: Any) -> str:
    """A usage error of click in this project's words: one line, and where to look."""
    message = error.format_message().strip().rstrip("?.")
    for theirs, ours in (("Value error, ", ""), ("Input should be", "must be"), (". Did you mean", "; did you mean")):
        message = message.replace(theirs, ours)
    message = message[:1].lower() + message.partition(", unable to")[0][1:]
    if "did you mean" in message:
        return f"{message}?"
    if (choice := _NO_CHOICE.match(message)) and (meant := get_close_matches(choice[1], _QUOTED.findall(choice[2]), 1)):
        return f"{message}; did you mean {meant[0]}?"
    context = getattr(error, "ctx", None)
    if (extra := _EXTRA.match(message)) and _takes_data(context) and os.path.exists(extra[1]):
        return f"{message}; did you mean --data {shlex.quote(extra[1])}?"
    return message if context is None else f"{message}; see `{context.command_path} --help`"


def _takes_data(context: Any) -> bool:
    return context is not None and any("--data" in option.opts for option in context.command.params)


def _failed(message: str, code: int, as_json: bool) -> int:
    say(f"error: {message}")
    if as_json:
        _print_error(message)
    return code


def _print_error(message: str) -> None:
    with suppress(OSError):  # the error may be that nothing can be printed
        print_json({"error": message})


def _discard_what_cannot_be_written() -> None:
    """Python flushes standard output at exit and tells a failure in a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
