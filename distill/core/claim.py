"""Lock a result against other writers; the lock ends with its process.

Locks are POSIX record locks on a small file next to the result. The kernel (or the server of a network disk) releases
them when their process ends, and child processes do not inherit them. The file names the holder for messages; a file
left by a killed process locks nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.core.errors import SourceError

logger = logging.getLogger(__name__)

_TAKEN = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of the file system
_PAUSE = 0.02  # s


class Taken(SourceError):
    """Another process has locked the result."""


@dataclass
class _Hold:
    """What this process holds: record locks do not hold it off itself, and closing any descriptor drops them all."""

    number: int  # descriptor of the locked file
    shared: bool
    count: int = 1


_HELD: dict[tuple[int, str], _Hold] = {}  # by process, for a fork inherits the table but no lock
_GUARD = threading.Lock()


@contextmanager
def claim(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Lock a result during a block of code, so that no other process writes it.

    Args:
        path: of the result, which need not exist.
        shared: admit others that claim it as shared, such as the ranges of one stream.
        wait: wait for others rather than refuse.

    Raises:
        Taken: another process holds it; the message names host, process and time.
        SourceError: the disk refuses.
    """
    real = os.path.realpath(path)
    lock = _lock_of(Path(real))
    made = _make_folders(lock.parent, path)
    try:
        key = _take(path, lock, shared=shared, wait=wait)
        try:
            yield
        finally:
            _give_back(key)
    finally:
        for folder in made:  # from the inside out; nothing was written there
            with suppress(OSError):
                folder.rmdir()


def _lock_of(real: Path) -> Path:
    """Return the lock file of a result: next to it, or inside it if only the result itself is writable."""
    if real.is_dir() and not os.access(real.parent, os.W_OK | os.X_OK):
        return real / ".lock"
    return real.with_name(f".{real.name}.lock")


def _make_folders(folder: Path, path: Path) -> list[Path]:
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from None
    return missing


def _take(path: Path, lock: Path, *, shared: bool, wait: bool) -> tuple[int, str]:
    key = (os.getpid(), str(lock))
    while True:
        with _GUARD:
            hold = _HELD.get(key)
            if hold is None:
                found = _locked(path, lock, shared=shared)
                if isinstance(found, int):
                    _HELD[key] = _Hold(found, shared)
                    return key
                holder = found
            elif hold.shared and shared:
                hold.count += 1
                return key
            else:
                holder = "this one, in another place"
        if not wait:
            raise Taken(
                f"{path}: another process is writing to it: {holder}; expected one at a time: wait for it or end it, "
                "then type the same again"
            )
        time.sleep(_PAUSE)


def _give_back(key: tuple[int, str]) -> None:
    with _GUARD:
        hold, lock = _HELD[key], Path(key[1])
        hold.count -= 1
        if hold.count:
            return
        del _HELD[key]
        with suppress(OSError):
            if hold.shared:  # another process may hold it still: then the file stays
                fcntl.lockf(hold.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(lock, hold.number):
                lock.unlink()
        os.close(hold.number)


def _locked(path: Path, lock: Path, *, shared: bool) -> int | str:
    """Return the descriptor of the locked file, or the holder if another process has locked it."""
    while True:
        try:
            number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise SourceError(f"{path}: cannot be written: {lock}: {error.strerror or error}") from None
        try:
            fcntl.lockf(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logger.warning("%s: this disk knows no locks; make sure that no other process writes there", path)
                return number
            holder = _holder(number)
            os.close(number)
            if error.errno in _TAKEN:
                return holder
            raise SourceError(f"{path}: cannot be locked: {error.strerror or error}") from None
        if _is_there(lock, number):
            _sign(number)
            return number
        os.close(number)  # its holder has removed it since it was opened


def _is_there(lock: Path, number: int) -> bool:
    try:
        here, there = os.fstat(number), os.stat(lock)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _sign(number: int) -> None:
    """Write who holds the lock; a disk that is full keeps nobody from holding it."""
    since, command = time.strftime("%Y-%m-%d %H:%M:%S"), " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    text = {"host": socket.gethostname(), "process": os.getpid(), "since": since, "command": command}
    with suppress(OSError):
        os.ftruncate(number, 0)
        os.pwrite(number, json.dumps(text).encode(), 0)


def _holder(number: int) -> str:
    """Return the holder of a lock, as recorded in its file."""
    try:
        found: Any = json.loads(os.pread(number, 4096, 0))
        return f"process {found['process']} on {found['host']} since {found['since']} ({found['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "one that has not said which"
