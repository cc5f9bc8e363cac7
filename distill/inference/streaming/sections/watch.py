"""Watch a folder for new sections, and return each file once it is complete.

A file counts as complete when its size and modification time have not changed for a while and it can be decoded
completely. The folder is polled, because network disks do not send notifications.
"""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.core.errors import SourceError
from distill.core.geometry import Nanometres
from distill.inference.streaming.sections.quality import Flaw
from distill.inference.streaming.sections.sources import (
    Section,
    Source,
    folder_images,
    in_order,
    kind_of,
    read_file,
)
from distill.io.readers.images import read_section
from distill.io.readers.section_names import missing_between, natural_order, number_of, usual_step

_LOOK = 0.25  # seconds between looks, at most
_RARELY = 20  # times as long as a look takes until the next one
_MANY = 256  # names on either side that tell by how much all count on
_FEW = 6  # names tell by how much they count on; fewer are taken to count by ones
_number = functools.lru_cache(maxsize=4 * _MANY)(number_of)  # every file looks at the names around it


@dataclass(frozen=True)
class Following:
    """When a watched folder's files are taken, and when the stream ends.

    Attributes:
        settle: seconds without change after which a file may be read.
        patience: seconds after which a stable file that cannot be decoded is corrupt, and a number that others have
            overtaken is missing.
        until: sections in all; None for no end.
        idle: seconds without a new section after which the stream ends; None for no end.
        end_marker: a file of this name in the folder says that all files are there.
    """

    settle: float = 2.0
    patience: float = 60.0
    until: int | None = None
    idle: float | None = None
    end_marker: str = "END"


@dataclass
class _Seen:
    """A file that is waited for."""

    stamp: tuple[int, int]  # size, time of change
    since: float  # when it was first seen so
    refused: str | None = None  # why the decoder did not take it


class FollowSource(Source):
    """Sections of a growing folder."""

    total: int | None = None

    def __init__(
        self,
        folder: Path,
        following: Following,
        resolution: Nanometres | None,
        *,
        known: Sequence[str | None] = (),
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Wait for the first section.

        Args:
            folder: to be watched.
            following: see `Following`.
            resolution: nm, z y x; by default what the first file says.
            known: files of the places that are done, None for a place without a file.
            note: called with lines that the user should see.
            clock: seconds.
            sleep: waits some seconds.

        Raises:
            SourceError: the folder is not there, or the stream ends before its first section.
        """
        super().__init__()
        if not folder.is_dir():
            raise SourceError(f"{folder}: found no such folder, expected one to follow")
        self.name, self._folder, self._following = str(folder), folder, following
        self._note, self._clock, self._sleep = note, clock, sleep
        self._places: list[Path | None] = [None if name is None else Path(name) for name in known]
        self._seen: dict[Path, _Seen] = {}
        self._taken = {path.name for path in self._places if path is not None}
        self._late: set[str] = set()
        self._queue: list[Path] = []  # files that are yet to come, in order, as of the last look into the folder
        self._looked, self._pause = -math.inf, _LOOK
        self._corrupt: set[Path] = set()
        self._last_news = clock()
        readable = self._readable()
        while not readable:
            if not self._reach(len(self._places)):
                raise SourceError(f"{self.name}: found no section before the stream ended, expected at least one")
            readable = self._readable()
        self.kind = kind_of(self.name, readable, resolution)

    def read(self, z: int) -> Section | None:
        until = self._following.until
        if (until is not None and z >= until) or not self._reach(z):
            return None
        path = self._places[z]
        if path is None:
            return Section(z, f"{self._folder} place {z}", None, Flaw("missing", "its number did not come"))
        return read_file(z, path, self.kind)

    def _readable(self) -> list[Path]:
        return [path for path in self._places if path is not None and path not in self._corrupt]

    def _reach(self, z: int) -> bool:
        """Wait until position z is filled; False if the stream ends before."""
        while z >= len(self._places):
            if self._take_next():
                continue
            if self.stopped() or self._ended():
                return False
            self._sleep(min(_LOOK, max(self._following.settle / 4, 0.01)))
        return True

    def _ended(self) -> bool:
        """Return whether no more files will come; called only after a poll without a new file."""
        self._list()
        if self._queue:
            return False
        idle = self._following.idle
        if idle is not None and self._clock() - self._last_news > idle:
            return True
        return (self._folder / self._following.end_marker).exists()

    def _waiting(self) -> list[Path]:
        """Return pending files in order; files that sort before a processed one are reported once."""
        if not self._queue or self._clock() - self._looked >= self._pause:
            self._list()
        return self._queue

    def _list(self) -> None:
        """Look into the folder; report files that sort before those already read, once.

        Looking takes as long as there are files. The next look waits for so many times as long, so that the time of all
        looks stays a small share, however many files wait.
        """
        began = self._clock()
        there = {path.name: path for path in folder_images(self._folder)}
        self._queue = [path for path in self._queue if path.name in there]
        waiting = {path.name for path in self._queue}
        last = next((path for path in reversed(self._places) if path is not None), None)
        for path in in_order(there[name] for name in there.keys() - waiting - self._taken - self._late):
            if last is not None and natural_order(Path(path.name)) < natural_order(Path(last.name)):
                self._late.add(path.name)
                self._note(f"warning: {path} came after {last.name} was taken; it is left out")
                continue
            self._look_at(path)
            if path in self._seen:
                bisect.insort(self._queue, path, key=natural_order)
        self._looked = self._clock()
        self._pause = max(_LOOK, _RARELY * (self._looked - began))

    def _take_next(self) -> bool:
        """Process the next file if it is complete; give up on files that have been pending for too long."""
        waiting = self._waiting()
        marked = (self._folder / self._following.end_marker).exists()
        while waiting:
            self._look_at(waiting[0])
            if waiting[0] in self._seen:
                break
            del waiting[0]  # renamed meanwhile
        if not waiting:
            return False
        path = waiting[0]
        seen, now = self._seen[path], self._clock()
        age = now - seen.since
        if age < self._following.settle:
            return False
        if seen.refused is None and not self._decodes(path, seen):
            return False
        patient = age < self._following.patience and not (marked and age >= 2 * self._following.settle)
        if seen.refused is not None and patient:
            self._decodes(path, seen)
            if seen.refused is not None:
                return False
        gap = self._gap(path, waiting)
        if gap and patient:
            return False
        self._check_gap(path, gap)
        self._places += [None] * gap
        self._places.append(path)
        if seen.refused is not None:
            self._corrupt.add(path)
        del self._seen[path], waiting[0]
        self._taken.add(path.name)
        self._last_news = now
        return True

    def _look_at(self, path: Path) -> None:
        """Record a file's size and time; the waiting time restarts whenever they change."""
        try:
            status = path.stat()
        except FileNotFoundError:  # renamed meanwhile
            self._seen.pop(path, None)
            return
        stamp = status.st_size, status.st_mtime_ns
        if path not in self._seen or self._seen[path].stamp != stamp:
            self._seen[path] = _Seen(stamp, self._clock())
            self._last_news = self._clock()

    def _decodes(self, path: Path, seen: _Seen) -> bool:
        """Return whether a settled file can be decoded completely; otherwise keep waiting for it."""
        try:
            read_section(path)
        except SourceError as error:
            seen.refused = str(error)
            return False
        seen.refused = None
        return True

    def _check_gap(self, path: Path, gap: int) -> None:
        """Check that a file's number follows those before it, so that one odd name does not make millions of places.

        Raises:
            SourceError: more sections are missing than there are files.
        """
        most = max(_MANY, len(self._places))
        if gap > most:
            raise SourceError(
                f"{path}: is numbered {gap + 1:,} sections after the one before it, expected at most {most} missing; "
                "move it away, or rename it, and continue with --resume"
            )

    def _gap(self, path: Path, waiting: Sequence[Path]) -> int:
        """Return how many numbers are missing between the last section and this file."""
        last = next((one for one in reversed(self._places) if one is not None), None)
        if last is None:
            return 0
        before, after = number_of(last), number_of(path)
        recent = [one for one in self._places[-_MANY:] if one is not None]
        numbers = [_number(one) for one in (*recent, *waiting[:_MANY])]
        few = len(numbers) < _FEW and before is not None and after is not None and after - before < _FEW
        return missing_between(before, after, 1 if few else usual_step(numbers))
