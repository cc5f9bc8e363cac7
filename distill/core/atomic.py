"""Files that are whole or not there at all, even after the process was killed or the machine lost its power."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNKNOWN = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def replacing(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """A temporary name beside `path`; what was written there is forced to disk and takes its place after the block.

    An exception inside the block leaves `path` as it was and removes the temporary file. A process that is killed
    leaves `path` as it was; the next writer overwrites the temporary file.

    Args:
        path: the file.
        alone: whether nobody else writes it at the same time; else the temporary name is one that nobody shares, and
            stays behind a process that is killed.
    """
    temporary = path.with_name(path.name + ("" if alone else f".{secrets.token_hex(4)}") + ".writing")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to a text file and force it to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk; some network disks cannot do so for folders."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _UNKNOWN or not stat.S_ISDIR(os.fstat(number).st_mode):
            raise
    finally:
        os.close(number)


def discard(path: Path) -> None:
    """Remove a file or folder: it loses its name at once, before anything of it is deleted.

    A process that is killed leaves all of it or nothing under its name, and what is left of it under a hidden one,
    which `sweep` removes.

    Raises:
        OSError: it cannot be renamed; it is whole then.
    """
    if not os.path.lexists(path):
        return
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    os.rename(path, hidden)
    _remove(hidden)


def sweep(path: Path) -> None:
    """Remove what killed processes left under hidden names of a result; to be called by who has claimed it."""
    _sweep(path.parent, re.escape(path.name))


def sweep_folder(folder: Path) -> None:
    """Remove what killed processes left under hidden names of anything in a folder; see `sweep`."""
    _sweep(folder, ".+")


def _sweep(folder: Path, name: str) -> None:
    ours = re.compile(rf"\.{name}\.[0-9a-f]{{8}}\.(new|old|partial)")
    with suppress(OSError):
        for leftover in list(folder.iterdir()):
            if ours.fullmatch(leftover.name):
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
