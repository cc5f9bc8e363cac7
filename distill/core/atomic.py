"""Write files and folders atomically: complete or absent, even after the process was killed or the power failed.

A new file or folder is written under a temporary name, forced to disk and renamed. Temporary names are hidden ones that
end in `.new`, `.old` or `.partial`; `sweep_leftovers` removes those that killed processes left.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from distill.core.errors import SourceError

_UNKNOWN = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def replacing(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """Provide a temporary name next to a file; after the block it is forced to disk and replaces the file.

    An exception inside the block, or the end of the process, leaves `path` unchanged.

    Args:
        path: the file, in an existing folder.
        alone: whether no other process writes it at the same time. The temporary name is NAME.writing then, and the
            next writer overwrites it; otherwise it is hidden and unique, and `sweep_leftovers` removes it.
    """
    temporary = path.with_name(path.name + ".writing") if alone else hidden(path, "partial")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a text file atomically.

    Args:
        path: the file, in an existing folder.
        text: content, written as UTF-8.
        errors: what to do about characters that UTF-8 lacks, see `str.encode`.

    Raises:
        SourceError: the file cannot be written; an existing one is unchanged.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors=errors)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def new_folder(path: Path, make_room: Callable[[], None] | None = None) -> Iterator[Path]:
    """Provide an empty hidden folder next to `path`; after the block it is renamed to `path`.

    An exception inside the block removes the new folder and leaves `path` unchanged.

    Args:
        path: the folder; missing folders above it are created.
        make_room: called before the renaming, to move what lies at `path` away; by default it is deleted.

    Raises:
        OSError: the disk refuses.
    """
    made = hidden(path, "new")
    try:
        made.mkdir(parents=True)
        yield made
        if make_room is None:
            discard(path)
        else:
            make_room()
        os.rename(made, path)
        flush(path.absolute().parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put_in_place(created: Path, path: Path) -> None:
    """Rename a complete file or folder to `path`; what lies there is deleted only after that, and restored on failure.

    Raises:
        OSError: the disk refuses.
    """
    kept = hidden(path, "old")
    existed = os.path.lexists(path)
    if existed:
        os.replace(path, kept)
    try:
        os.replace(created, path)
    except BaseException:
        if existed:
            os.replace(kept, path)
        raise
    _remove(kept)


def hidden(path: Path, ending: Literal["new", "old", "partial"]) -> Path:
    """Return a hidden name next to `path` that no other process uses and that `sweep_leftovers` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


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
    """Remove a file or folder atomically: it is renamed to a hidden name before anything is deleted.

    If the process is killed, `path` is complete or absent, and `sweep_leftovers` removes the rest.

    Raises:
        OSError: it cannot be renamed; it is unchanged.
    """
    if not os.path.lexists(path):
        return
    renamed = hidden(path, "old")
    os.rename(path, renamed)
    _remove(renamed)


def sweep_leftovers(path: Path) -> None:
    """Remove what killed processes left under hidden names of a result, which the caller has claimed."""
    _sweep(path.parent, re.escape(path.name))


def sweep_folder(folder: Path) -> None:
    """Remove what killed processes left under hidden names of anything in a folder; see `sweep_leftovers`."""
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
