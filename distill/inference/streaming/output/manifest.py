"""Records of a stream in its store: the settings it was started with, and one line per completed section.

A line is written after the section's data are on disk; sections without a line are not complete. Every process appends
to its own file, and holds a lock on it.
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
from distill.core.choices import StreamMethod
from distill.core.errors import SourceError
from distill.inference.settings import check_settings, read_settings, settings_path
from distill.io.readers.array import readable
from distill.io.writers.store import write_json, writing

STREAM_FOLDER = "stream"
# may differ on resume
_FREE = ("created", "source", "model", "merge_threshold", "on_bad", "device", "hardware", "precision_by")
_OF_DEVICE = ("batch", "backend")  # follow from the device, which may differ
_NEVER_COMPARED = ("created", "hardware", "precision_by")


@dataclass(frozen=True)
class Line:
    """Record of a completed section."""

    section: int
    source: str  # file, or dataset and number
    checksum: str  # of the pixels; empty where there are none
    flaw: str | None  # kind of a bad section
    why: str | None
    taken: str | None  # policy that was applied: skip or bridge
    time: str
    empty: float | None = None  # share of its pixels without an image; None in stores of earlier versions


class Journal:
    """Manifest lines of one process, open for appending."""

    def __init__(self, store: Path, first_layer: int) -> None:
        """Open or create the file, and lock it.

        Raises:
            SourceError: another process is using it, or a write error.
        """
        self.path = manifest_path(store, first_layer)
        with writing(self.path):
            self._file = self.path.open("a+b", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise SourceError(
                    f"{store}: another process is writing to this range, expected one at a time"
                ) from None
            flush(self.path.parent)

    def keep(self, count: int) -> None:
        """Remove all but the first lines: those of an incomplete layer, or a truncated line."""
        with writing(self.path):
            self._file.seek(0)
            lines = self._file.readlines()[:count]
            self._file.truncate(sum(map(len, lines)))
            os.fsync(self._file.fileno())

    def append(self, lines: Sequence[Line]) -> None:
        """Record sections whose data are on disk, and wait until the record is on disk."""
        with writing(self.path):
            text = "".join(json.dumps(asdict(line)) + "\n" for line in lines).encode()
            if self._file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


def manifest_path(store: Path, first_layer: int) -> Path:
    """Return the manifest of the process that starts at a layer."""
    return store / STREAM_FOLDER / f"manifest-{first_layer:08d}.jsonl"


def read_lines(path: Path) -> list[Line]:
    """Read the lines of a file; a truncated line, and all after it, are ignored."""
    found: list[Line] = []
    if not path.exists():
        return found
    with readable(path):
        text = path.read_bytes()
    for raw in text.splitlines(keepends=True):
        try:
            line = Line(**json.loads(raw))
        except (ValueError, TypeError, RecursionError):
            break
        values: tuple[Any, ...] = (line.section, line.source, line.checksum, line.empty)
        kinds = (int, str, str, int | float | None)
        if not all(isinstance(one, kind) for one, kind in zip(values, kinds, strict=True)):
            break
        if not raw.endswith(b"\n") or (found and line.section != found[-1].section + 1):
            break
        found.append(line)
    return found


def all_lines(store: Path) -> list[Line]:
    """Read the lines of all processes, by section."""
    files = (store / STREAM_FOLDER).glob("manifest-*.jsonl")
    return sorted((line for file in files for line in read_lines(file)), key=lambda line: line.section)


def is_stream(store: Path) -> bool:
    """Return whether a folder is the store of a stream, finished or not."""
    return settings_path(store, STREAM_FOLDER).is_file()


def write_job(store: Path, job: Mapping[str, Any]) -> None:
    """Write the settings."""
    write_json(settings_path(store, STREAM_FOLDER), job)


def read_job(store: Path) -> dict[str, Any]:
    """Read the settings that a stream was started with.

    Raises:
        SourceError: the folder is not the store of a stream.
    """
    return read_settings(store, STREAM_FOLDER, "stream")


def check_job(store: Path, job: Mapping[str, Any], *, free: bool) -> None:
    """Check that a stream is resumed with its original settings.

    Args:
        store: its store.
        job: the current settings.
        free: whether settings may differ that do not affect completed data.

    Raises:
        SourceError: a setting differs.
    """
    begun = read_job(store)
    moved = _OF_DEVICE if begun.get("device") != job["device"] else ()
    check_settings(store, begun | {"method": method_of(begun)}, job, (*_FREE, *moved) if free else _NEVER_COMPARED)


def method_of(job: Mapping[str, Any]) -> StreamMethod:
    """Return the segmentation method of a stream; `query` for stores that do not record it."""
    return "flood" if job.get("method") == "flood" else "query"


def now() -> str:
    """Return the time of day for a line."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def bad_lines(lines: Iterable[Line]) -> list[str]:
    """Format one line per bad section for the user."""
    return [f"section {one.section}, {one.source}: {one.flaw} ({one.why}), {one.taken}" for one in lines if one.flaw]
