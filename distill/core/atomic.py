"""Files that are whole or not there at all, even after the process was killed or the machine lost its power."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
    """Wait until a file, or a folder's list of names, is on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
