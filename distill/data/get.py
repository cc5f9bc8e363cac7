"""Obtain a public data set as CREMI files for training and evaluation (`distill data get`).

Files are downloaded, or taken from a folder, and converted to volumes; existing files are kept.
"""

from __future__ import annotations

import fnmatch
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError, SourceError
from distill.core.notes import Note
from distill.data.catalogue import CatalogueVolume, PublicData
from distill.data.download import OnBytes, fetch, verify
from distill.io.readers.array import readable
from distill.io.volume import Volume, open_grey, open_labels
from distill.io.writers.cremi import write_cremi
from distill.io.writers.output import check_folder
from distill.io.writers.store import writing

RAW, LABELS = "volumes/raw", "volumes/labels/neuron_ids"


@dataclass(frozen=True)
class Got:
    """CREMI files of a data set."""

    files: tuple[Path, ...]


def get(data: PublicData, out: Path, given: Path | None, *, on_bytes: OnBytes, note: Note) -> Got:
    """Obtain a data set in a folder.

    Args:
        data: the data set.
        out: folder for downloads and volumes.
        given: a file, archive or folder downloaded manually; None = download.
        on_bytes: called with the bytes of a file on disk, and its size.
        note: called with lines that the user should see.

    Raises:
        DistillError: it has to be downloaded manually and is not given; the message gives instructions.
        SourceError: a download fails, or a given file is missing, damaged or not the expected one.
        ShapeError: the shape of a volume differs from that of the data set.
    """
    if given is None and data.by_hand is not None:
        raise DistillError(by_hand(data, out))
    if given is not None and not given.exists():
        raise SourceError(f"{given}: no such file or folder, expected {expected(data)}")
    check_folder(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if not data.cuts:
        return Got(tuple(_whole_files(data, out, given, on_bytes, note)))
    made = tuple(out / f"{cut.name}.h5" for cut in data.cuts)
    missing = [cut for cut, path in zip(data.cuts, made, strict=True) if not path.exists()]
    for path in made:
        if path.exists():
            note(f"{path} exists and is kept")
    if not missing:
        return Got(made)
    place = given
    if place is None:
        for file in data.files:
            _download(data, file.name, out, on_bytes, note)
        place = out / data.files[0].name if len(data.files) == 1 else out
    else:
        _verify_given(data, place)
    for cut in missing:
        with _members(place, cut) as folder:
            _write(cut, folder, out / f"{cut.name}.h5", data)
        note(f"{out / cut.name}.h5")
    return Got(made)


def expected(data: PublicData) -> str:
    """Return the names of the files that `--from` must contain."""
    names = [file.name for file in data.files] or [
        source.partition(":")[0] for cut in data.cuts for source in (cut.raw, cut.labels) if source
    ]
    return ", ".join(names) if len(names) == 1 else f"a folder with {', '.join(names)}"


def by_hand(data: PublicData, out: Path) -> str:
    """Return instructions for a manual download."""
    return (
        f"{data.name}: cannot be downloaded by a program; open {data.page}: {data.by_hand}; then: distill data get "
        f"{data.name} --from FOLDER --out {out}"
    )


def _whole_files(data: PublicData, out: Path, given: Path | None, on_bytes: OnBytes, note: Note) -> Iterator[Path]:
    """Iterate over files that are already CREMI files, verified by checksum and by opening them."""
    for file in data.files:
        path = out / file.name
        if given is None:
            _download(data, file.name, out, on_bytes, note)
        else:
            found = given / file.name if given.is_dir() else given
            if not found.is_file():
                raise SourceError(f"{given}: found no {file.name}, expected {expected(data)}")
            if file.checksum is not None:
                verify(found, file.checksum)
            path = found
        volume = open_grey(f"{path}:{RAW}")
        if volume.resolution != data.resolution:
            raise ShapeError(f"{path}: found voxels of {volume.resolution} nm, expected {data.resolution}")
        yield path


def _download(data: PublicData, name: str, out: Path, on_bytes: OnBytes, note: Note) -> None:
    (file,) = (one for one in data.files if one.name == name)
    assert file.url is not None
    if file.checksum is None:
        note(f"{name}: no checksum is known, only its size can be checked")
    try:
        if not fetch(file.url, out / name, checksum=file.checksum, on_bytes=on_bytes, note=note):
            note(f"{out / name} exists and is kept")
    except SourceError as error:
        raise SourceError(f"{error}; or open {data.page}, save {name} and give it: --from FILE") from None


def _verify_given(data: PublicData, given: Path) -> None:
    for file in data.files:
        found = given / file.name if given.is_dir() else given
        if file.checksum is not None and found.is_file() and found.name == file.name:
            verify(found, file.checksum)


@contextmanager
def _members(place: Path, cut: CatalogueVolume) -> Iterator[Path]:
    """Provide a folder with the files of a volume; archives are unpacked into a temporary folder next to them."""
    if place.is_dir():
        yield place
        return
    if not zipfile.is_zipfile(place):
        raise SourceError(f"{place}: found neither a folder nor a zip archive, expected one of them")
    wanted = [source.partition(":")[0] for source in (cut.raw, cut.labels) if source]
    with TemporaryDirectory(dir=place.parent, prefix=".unpacked-") as name:
        folder = Path(name)
        with readable(place), zipfile.ZipFile(place) as archive:
            entries = [
                entry
                for entry in archive.infolist()
                if not entry.is_dir() and any(_matches(entry.filename, pattern) for pattern in wanted)
            ]
            _check_room(place, entries)
            for entry in entries:
                target = folder.joinpath(*_safe(place, entry.filename))
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise SourceError(f"{place}: found {entry.filename} twice, expected it once")
                with archive.open(entry) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
        yield folder


def _check_room(place: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse an archive whose files do not fit on the disk; no more is unpacked of a file than it says.

    Raises:
        SourceError: they do not.
    """
    size, free = sum(entry.file_size for entry in entries), shutil.disk_usage(place.parent).free
    if size > free:
        raise SourceError(
            f"{place}: found {size / 1e9:,.1f} GB of files inside, expected at most the {free / 1e9:,.1f} GB that are "
            f"free in {place.parent.absolute()}; unpack it elsewhere and give the folder"
        )


def _safe(place: Path, name: str) -> list[str]:
    """Return the parts of an archive member's name, without those that lead out of the folder.

    Raises:
        SourceError: one does.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
        raise SourceError(f"{place}: found a file named {name!r}, expected names that stay in the archive")
    return parts


def _matches(path: str, pattern: str) -> bool:
    """Return whether the last parts of a path match a pattern."""
    parts, wanted = path.split("/"), pattern.split("/")
    pairs = zip(parts[-len(wanted) :], wanted, strict=False)
    return len(parts) >= len(wanted) and all(fnmatch.fnmatchcase(part, want) for part, want in pairs)


def _write(cut: CatalogueVolume, folder: Path, target: Path, data: PublicData) -> None:
    raw = open_grey(_source(folder, cut.raw), resolution=data.resolution)
    if cut.shape is not None and raw.size != cut.shape:
        raise ShapeError(f"{raw.source}: found {raw.size} voxels, expected {cut.shape} (z, y, x)")
    labels = None
    if cut.labels is not None:
        source = _source(folder, cut.labels)
        pieces = open_labels(source, resolution=data.resolution)
        labels = pieces if cut.bodies is None else _bodies(pieces, source, cut.bodies)
    about = {"dataset": data.name, "citation": data.citation, "licence": data.licence or "unknown"}
    write_cremi(target, raw=raw, labels=labels, resolution=data.resolution, attributes=about)


def _bodies(pieces: Volume, source: str, dataset: str) -> NDArray[np.uint64]:
    """Return the neuron of every voxel, held in memory; supervoxels that are not in the pairs become background."""
    import h5py

    path = source.rpartition(":")[0]
    with readable(path), h5py.File(path, "r") as file:
        pairs = file[dataset][()].astype(np.uint64)
    order = np.argsort(pairs[:, 0])
    old, new = pairs[order, 0], pairs[order, 1]
    found = np.zeros(pieces.size, np.uint64)
    for into, section in zip(found, pieces.sections(), strict=True):
        where = np.minimum(np.searchsorted(old, section), len(old) - 1)
        into[...] = np.where(old[where] == section, new[where], 0)
    return found


def _source(folder: Path, source: str) -> str:
    """Return the file or the folder of section images that matches a pattern."""
    pattern, colon, inside = source.partition(":")
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and _matches(path.relative_to(folder).as_posix(), pattern)
    )
    if not files:
        raise SourceError(f"{folder}: found no {pattern}, expected it there or below")
    if "*" in pattern:
        parents = sorted({path.parent for path in files})
        if len(parents) > 1:
            raise SourceError(f"{folder}: found {pattern} in {len(parents)} folders, expected one")
        return str(parents[0] / pattern.rpartition("/")[2])
    if len(files) > 1:
        raise SourceError(f"{folder}: found {pattern} {len(files)} times, expected it once")
    return f"{files[0]}{colon}{inside}"
