"""What a store says about its own stream: the settings it was begun with, and a line for every section that is done.

A line is written after the section's data are on disk; what the lines do not name does not count. Every process appends
to a file of its own, and holds a lock on it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.core.atomic import flush
from distill.core.errors import SourceError
from distill.inference.settings import check_settings, read_settings, settings_path
from distill.io.readers.array import readable
from distill.io.writers.store import write_json, writing

FOLDER = "stream"
# may differ when a stream goes on
_FREE = ("created", "source", "model", "merge_threshold", "on_bad", "device", "hardware", "precision_by")
_NEVER_COMPARED = ("created", "hardware", "precision_by")


@dataclass(frozen=True)
class Line:
    """A section that is done."""

    section: int
    source: str  # file, or dataset and number
    checksum: str  # of the pixels; empty where there are none
    flaw: str | None  # kind of a bad section
    why: str | None
    taken: str | None  # what was done about it: skip or bridge
    time: str


class Journal:
    """Lines of one process, open for appending."""

    def __init__(self, store: Path, first_layer: int) -> None:
        """Open or begin the file and lock it.

        Raises:
            SourceError: another process is at it, or the disk refuses.
        """
        self.path = manifest_path(store, first_layer)
        with writing(self.path):
            self._file = self.path.open("a+b", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise SourceError(f"{store}: another process is writing to it, expected one at a time") from None
            flush(self.path.parent)

    def keep(self, count: int) -> None:
        """Drop all but the first lines: those of a layer that was not finished, or a line that was cut off."""
        with writing(self.path):
            self._file.seek(0)
            lines = self._file.readlines()[:count]
            self._file.truncate(sum(map(len, lines)))
            os.fsync(self._file.fileno())

    def append(self, lines: Sequence[Line]) -> None:
        """Note sections whose data are on disk, and wait until the note is."""
        with writing(self.path):
            text = "".join(json.dumps(asdict(line)) + "\n" for line in lines).encode()
            if self._file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()


def manifest_path(store: Path, first_layer: int) -> Path:
    """Where the process that begins at a layer notes its sections."""
    return store / FOLDER / f"manifest-{first_layer:08d}.jsonl"


def read_lines(path: Path) -> list[Line]:
    """Lines of a file; one that was cut off, and all after it, are left out."""
    found: list[Line] = []
    if not path.exists():
        return found
    with readable(path):
        text = path.read_bytes()
    for raw in text.splitlines(keepends=True):
        try:
            line = Line(**json.loads(raw))
        except (ValueError, TypeError):
            break
        if not raw.endswith(b"\n") or (found and line.section != found[-1].section + 1):
            break
        found.append(line)
    return found


def all_lines(store: Path) -> list[Line]:
    """Lines of all processes, by section."""
    files = (store / FOLDER).glob("manifest-*.jsonl")
    return sorted((line for file in files for line in read_lines(file)), key=lambda line: line.section)


def is_stream(store: Path) -> bool:
    """Whether a folder is the store of a stream, finished or not."""
    return settings_path(store, FOLDER).is_file()


def write_job(store: Path, job: Mapping[str, Any]) -> None:
    """Note the settings."""
    write_json(settings_path(store, FOLDER), job)


def read_job(store: Path) -> dict[str, Any]:
    """The settings that a stream was begun with.

    Raises:
        SourceError: the folder is not the store of a stream.
    """
    return read_settings(store, FOLDER, "stream")


def check_job(store: Path, job: Mapping[str, Any], *, free: bool) -> None:
    """Make sure that a stream goes on as it was begun.

    Args:
        store: its store.
        job: the settings of now.
        free: whether those may differ that change no bytes of what is done.

    Raises:
        SourceError: a setting differs.
    """
    check_settings(store, read_job(store), job, _FREE if free else _NEVER_COMPARED)


def now() -> str:
    """Time of day for a line."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def bad_lines(lines: Iterable[Line]) -> list[str]:
    """A line of text for every bad section, for the user."""
    return [f"section {one.section}, {one.source}: {one.flaw} ({one.why}), {one.taken}" for one in lines if one.flaw]
