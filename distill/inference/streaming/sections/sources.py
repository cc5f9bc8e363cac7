"""Sources of sections: image files, or a volume read section by section."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DecoderError, SourceError
from distill.core.geometry import Box, Nanometres
from distill.inference.streaming.sections.quality import Flaw
from distill.io.readers.array import reason
from distill.io.readers.images import IMAGE_SUFFIXES, common_header, read_section, section_resolution
from distill.io.readers.section_names import in_places, natural_order
from distill.io.volume import Volume, checked_resolution

_TRIED = 16  # files, to find one that tells the size of all


@dataclass(frozen=True)
class Section:
    """One position of a stream."""

    z: int
    name: str
    image: NDArray[Any] | None  # (H, W); None where nothing could be read
    flaw: Flaw | None

    @property
    def checksum(self) -> str:
        """Return the checksum of the pixels; empty without pixels."""
        if self.image is None:
            return ""
        return hashlib.blake2b(np.ascontiguousarray(self.image).data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class SectionKind:
    """Common properties of the sections of a stream."""

    size: tuple[int, int]  # (H, W)
    dtype: np.dtype[Any]
    resolution: Nanometres  # nm, z y x
    offset: Nanometres  # nm, of section 0


class Source(ABC):
    """Sections by number."""

    name: str
    kind: SectionKind
    total: int | None  # None while it is unknown
    stopped: Callable[[], bool]  # whether to give up waiting for a section

    def __init__(self) -> None:
        self.stopped = lambda: False

    @abstractmethod
    def read(self, z: int) -> Section | None:
        """Read section z, in any order, most efficient in ascending order; None if the stream ended before it."""


class VolumeSource(Source):
    """Sections of a volume file."""

    def __init__(self, volume: Volume, sections: tuple[int, int | None] | None) -> None:
        """Select a range of sections; default: all.

        Raises:
            SourceError: the volume has channels, or the sections are not there.
        """
        super().__init__()
        if volume.channels is not None:
            raise SourceError(
                f"{volume.source}: found {volume.channels} channels, expected one grey-value volume z, y, x"
            )
        self._volume = volume
        self._first, last = checked_range(sections, volume.size[0], volume.source)
        self.name, self.total = volume.source, last - self._first
        self.kind = SectionKind(
            volume.size[1:],
            volume.dtype,
            volume.resolution,
            moved(volume.offset, self._first, volume.resolution),
        )
        self._next = -1
        self._sections: Iterator[NDArray[Any]] = iter(())

    def read(self, z: int) -> Section | None:
        assert self.total is not None
        if z >= self.total:
            return None
        name = f"{self.name} section {self._first + z}"
        if z != self._next:
            self._sections = self._volume.sections(self._first + z, self._first + self.total)
        try:
            image = next(self._sections)
        except DecoderError:
            raise
        except SourceError as error:
            self._next = -1
            return Section(z, name, None, Flaw("corrupt", reason(error)))
        self._next = z + 1
        return Section(z, name, image, None)


class SectionFiles(Source):
    """Sections in separate image files; a number missing in the names is a position without a file."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        resolution: Nanometres | None,
        sections: tuple[int, int | None] | None,
        box: Box | None = None,
    ) -> None:
        """Determine the common properties of the files.

        Args:
            name: of the source, for messages.
            paths: in order.
            resolution: nm, z y x; by default what the files say.
            sections: range of places, all by default.
            box: voxels that are taken, in place of `sections`.

        Raises:
            SourceError: there are no files, none of the first can be read, or nothing gives a resolution.
        """
        super().__init__()
        if not paths:
            raise SourceError(f"{name}: found no section images, expected at least one")
        for path in paths:
            check_suffix(path)
        self._places = in_places(name, paths)
        if box is not None:
            sections = (box.start[0], box.stop[0])
        self._first, last = checked_range(sections, len(self._places), name)
        self._places = self._places[self._first : last]
        self.name, self.total = name, len(self._places)
        there = [path for path in self._places if path is not None]
        self.kind = self._whole = kind_of(name, there, resolution, self._first)
        self._box = box
        if box is not None:
            if any(stop > size for stop, size in zip(box.stop[1:], self._whole.size, strict=True)):
                raise SourceError(
                    f"--box: found {box.start} to {box.stop}, expected it within {self._whole.size} (y, x)"
                )
            z, y, x = self._whole.offset
            nm = self._whole.resolution
            place = (z, y + box.start[1] * nm[1], x + box.start[2] * nm[2])
            self.kind = replace(self._whole, size=box.shape[1:], offset=place)

    def read(self, z: int) -> Section | None:
        if z >= len(self._places):
            return None
        path = self._places[z]
        if path is None:
            before = next((p.name for p in reversed(self._places[:z]) if p is not None), "the one before")
            return Section(z, f"{self.name} after {before}", None, Flaw("missing", f"no file follows {before}"))
        found = read_file(z, path, self._whole)
        if self._box is None or found.image is None or found.flaw is not None:
            return found
        return replace(found, image=found.image[self._box.slices[1:]])


def read_file(z: int, path: Path, kind: SectionKind) -> Section:
    """Read a section image, and check its size and type."""
    try:
        image = read_section(path)
    except DecoderError:
        raise  # no section of this kind can be read
    except SourceError as error:
        return Section(z, str(path), None, Flaw("corrupt", reason(error)))
    flaw = None
    if image.shape != kind.size or image.dtype.newbyteorder("=") != kind.dtype:
        flaw = Flaw("size", f"found {image.shape} {image.dtype}, expected {kind.size} {kind.dtype}")
    return Section(z, str(path), image.astype(kind.dtype, copy=False) if flaw is None else image, flaw)


def kind_of(name: str, paths: Sequence[Path], resolution: Nanometres | None, first: int = 0) -> SectionKind:
    """Determine size, type and resolution from the first readable file.

    Raises:
        SourceError: none can be read, or nothing gives a resolution.
    """
    if not paths:
        raise SourceError(f"{name}: found no section images, expected at least one")
    header = common_header(paths)
    nm = resolution
    for path in paths[:_TRIED] if nm is None else ():
        try:
            nm = section_resolution(path)
        except SourceError:
            continue
        break
    if nm is None:
        raise SourceError(f"{name}: no resolution found; give it as --resolution Z,Y,X in nm, e.g. --resolution 30,6,6")
    nm = checked_resolution(name, nm)
    return SectionKind(header.size, header.grey_dtype, nm, moved((0.0, 0.0, 0.0), first, nm))


def listed_paths(lines: Iterable[str]) -> list[Path]:
    """Parse paths, one per line; empty lines are ignored."""
    return [Path(line.rstrip("\n")) for line in lines if line.strip()]


def folder_images(folder: Path) -> Iterator[Path]:
    """Iterate over the section images of a folder, in no order."""
    return (item for item in folder.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.name[0] != ".")


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths in natural order: s2 before s10."""
    return sorted(paths, key=natural_order)


def check_suffix(path: Path) -> None:
    """Check the extension of a section image.

    Raises:
        SourceError: another extension.
    """
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise SourceError(
            f"{path}: found extension {path.suffix!r}, expected a section image {' '.join(IMAGE_SUFFIXES)}"
        )


def checked_range(sections: tuple[int, int | None] | None, depth: int, name: str) -> tuple[int, int]:
    """Return a range of existing sections.

    Raises:
        SourceError: they are not.
    """
    first, last = sections or (0, None)
    last = depth if last is None else last
    if not 0 <= first < last <= depth:
        raise SourceError(f"--sections: found {first}:{last}, expected a range within 0:{depth} of {name}")
    return first, last


def moved(offset: Nanometres, sections: int, resolution: Nanometres) -> Nanometres:
    """Shift an offset by a number of sections."""
    return offset[0] + sections * resolution[0], offset[1], offset[2]
