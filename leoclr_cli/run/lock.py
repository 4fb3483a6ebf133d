"""Lock of a run folder: one process writes at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from leoclr.datasets.errors import RunError
from leoclr.datasets.json_text import parse_json_text

_INSTANT_SECONDS = 0.1


class RunLock:
    """Holds RUN/lock while the block runs; a second process is refused with RunError.

    The run folder is made where there is none, and removed where the block fails before anything is in it. The kernel
    holds the lock (flock) for the process, so it ends with it, also by kill -9: the file of a dead process is simply
    taken over. What the file says (process id, host, start) is only for the message.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / "lock"
        self._descriptor: int | None = None
        self._made: list[Path] = []

    def __enter__(self) -> RunLock:
        descriptor = self._opened()
        try:
            _lock(descriptor)
            while not _is_at(self._file, descriptor):  # a run that failed meanwhile has taken its folder away
                os.close(descriptor)
                descriptor = self._opened()
                _lock(descriptor)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_this_process()).encode())
        except BlockingIOError:
            holder = _holder(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise RunError(
                f"{self._file.parent} is in use by {holder}; wait for it or choose another --output"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise RunError(f"cannot lock {self._file}: {error}") from error
        self._descriptor = descriptor
        # A forked loader worker shares the lock, and could outlive a killed trainer with it.
        os.register_at_fork(after_in_child=self._close)
        return self

    def _opened(self) -> int:
        try:
            folder = self._file.parent
            self._made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"cannot write to the run folder {self._file.parent}: {error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self._made:
            with contextlib.suppress(OSError):  # it has gone, or somebody else has put something there
                if [*self._file.parent.iterdir()] == [self._file]:
                    self._file.unlink()
                    for folder in self._made:
                        folder.rmdir()
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> None:
    """Take the lock, or raise BlockingIOError; `is_locked` of another process may hold it for an instant."""
    with contextlib.suppress(BlockingIOError):
        return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    time.sleep(_INSTANT_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def is_locked(run: Path) -> bool:
    """Whether a process writes to a run folder, on this machine or on one that shares the file system's locks."""
    try:
        descriptor = os.open(run / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for an instant; `RunLock` tries twice
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def _this_process() -> dict[str, str | int]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started}


def _holder(content: bytes) -> str:
    try:
        owner = parse_json_text(content)
        return f"process {owner['pid']} on {owner['host']} since {owner['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
