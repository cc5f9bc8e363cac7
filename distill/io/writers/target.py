"""Target of a copy: parse it, check that it is free, and rename the copy into place.

Local targets are written under a temporary name and renamed. Buckets do not support renaming: there, metadata are
written last, so that an incomplete copy cannot be opened, and existing objects are never replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.core.atomic import flush, hidden, put_in_place
from distill.core.errors import SourceError
from distill.io.readers.images import IMAGE_SUFFIXES
from distill.io.readers.n5 import is_n5, n5_ranks
from distill.io.readers.precomputed import is_precomputed
from distill.io.readers.remote import Place, Remote, kvstore, parse_address, read_document, read_object
from distill.io.readers.zarr import first_level, zarr_node, zarr_ranks
from distill.io.writers.ours import check_only, is_n5_file, is_precomputed_file, is_zarr_file
from distill.io.writers.store import write_json, writing

FORMATS = ("zarr3", "zarr2", "n5", "precomputed", "hdf5", "tiff")
_BY_SUFFIX = {".zarr": "zarr3", ".n5": "n5", ".precomputed": "precomputed", ".tif": "tiff", ".tiff": "tiff"}
_BY_SUFFIX |= dict.fromkeys((".h5", ".hdf", ".hdf5"), "hdf5")
_FILES = ("hdf5", "tiff")
_TRIES, _CALM, _PAUSE = 40, 2, 0.05  # times, times without a new file, seconds
_STATE = "distill-copy.json"  # in a bucket: states whether the copy is complete; needs no permission to remove files


@dataclass(frozen=True)
class Target:
    """Parsed target of a copy.

    Attributes:
        place: file or folder; for a dataset, the container.
        dataset: inside the container; None for the container itself.
        form: one of `FORMATS`.
    """

    place: Place
    dataset: str | None
    form: str

    @property
    def folder(self) -> Place:
        """Return the folder of the array or pyramid."""
        return self.place / self.dataset if self.dataset else self.place

    def __str__(self) -> str:
        return f"{self.place}:{self.dataset}" if self.dataset else str(self.place)


def other_format(path: Path) -> str | None:
    """Return the format that a name promises; None where a folder in Zarr may have it."""
    suffix = path.suffix.lower()
    form = _BY_SUFFIX.get(suffix) or {".npy": "NumPy", ".npz": "NumPy"}.get(suffix)
    if form is None and suffix in IMAGE_SUFFIXES:
        form = "images"
    return None if form == "zarr3" else form


def parse_target(text: str, form: str | None) -> Target:
    """Parse `PATH[:DATASET]` or the address of a bucket; the format follows from the name if not given.

    Raises:
        SourceError: the format or extension is unknown, a dataset is not possible, or the location cannot be written.
    """
    if form is not None and form not in FORMATS:
        raise SourceError(f"--format: found {form!r}, expected one of {', '.join(FORMATS)}")
    address = parse_address(text)
    place: Place
    if address is not None:
        place, dataset, said = address.place, address.dataset, address.kind
        form = form or {"n5": "n5", "precomputed": "precomputed", "zarr": "zarr3"}.get(said or "")
    else:
        name, _, dataset = text.rpartition(":")
        if not name or not (form or Path(name).suffix.lower() in _BY_SUFFIX):
            name, dataset = text, None
        place, dataset = Path(name), (dataset or "").strip("/") or None
    form = form or _BY_SUFFIX.get(place.suffix.lower())
    if form is None:
        raise SourceError(
            f"{place}: found extension {place.suffix!r}, expected {' '.join(_BY_SUFFIX)}, or one of "
            f"{', '.join(FORMATS)} as --format"
        )
    target = Target(place, dataset, form)
    _check_names(target)
    if isinstance(place, Remote):
        if place.root.startswith("http"):
            raise SourceError(f"{place}: cannot be written to over HTTP, expected a path, s3:// or gs://")
        if form in _FILES:
            raise SourceError(
                f"{place}: {form} is written on this machine only, expected zarr3, zarr2, n5 or precomputed"
            )
        if not place.path:
            raise SourceError(f"{place}: found a whole bucket, expected a folder inside it")
    return target


def check_target(target: Target, overwrite: bool) -> None:
    """Check, before a long computation, that a pyramid can be written.

    Raises:
        SourceError: the target exists and may not be replaced, contains more than one array or other data, or lies in
            an array, in a store of another kind, or in a location that cannot be written.
    """
    folder = target.folder
    _check_containers(target)
    if isinstance(folder, Remote):
        for name in ("zarr.json", ".zgroup", ".zarray", "attributes.json", "info"):
            if read_document(folder, name) is not None:
                hint = "; nothing is replaced in a bucket" if overwrite else ""
                raise SourceError(f"{target}: exists already; expected a new name{hint}")
        return
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        _check_replaceable(target, folder)
        if not overwrite:
            raise SourceError(f"{target}: exists already; expected a new name, or --overwrite")
    check_writable(folder)


def check_file(path: Path, overwrite: bool) -> None:
    """Check that a file can be written.

    Raises:
        SourceError: it exists and may not be replaced, is a folder, or lies in a location that cannot be written.
    """
    if path.is_dir():
        raise SourceError(f"{path}: found a folder, expected a file name to write to")
    if path.exists() and not overwrite:
        raise SourceError(f"{path}: exists already; expected a new name, or --overwrite")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Check that a path can be created.

    Raises:
        SourceError: it has no name, or the nearest folder above it is a file or not writable.
    """
    if path.name in ("", ".."):
        raise SourceError(f"{str(path)!r}: found no name, expected a path with a name of its own")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise SourceError(f"{path}: cannot be written: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise SourceError(f"{path}: cannot be written: no permission to write in {above}")


@contextmanager
def placing(target: Target, documents: Mapping[str, Any]) -> Iterator[Place]:
    """Provide the folder for a pyramid's chunks; after the block, metadata are added and the folder is renamed into
    place.

    A local target is unchanged after an exception. In a bucket, chunks without metadata remain.

    Args:
        target: checked by `check_target`.
        documents: metadata by path below the target.
    """
    if isinstance(target.folder, Remote):
        # tensorstore would retry endlessly to write a chunk to a bucket that does not exist; this gives an error
        # instead.
        with writing(str(target)):
            _put(target.folder, _STATE, {"finished": False})
        yield target.folder
        with writing(str(target)):
            for name, document in {**documents, **_missing_groups(target)}.items():
                _put(target.folder, name, document)
            _put(target.folder, _STATE, {"finished": True})
        return
    folder = target.folder
    with writing(str(target)):
        nearest = next(above for above in folder.absolute().parents if above.exists())
        work = hidden(nearest / folder.name, "partial")
    try:
        yield work
        with writing(str(target)):
            for name, document in documents.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                write_json(work / name, document)
            folder.parent.mkdir(parents=True, exist_ok=True)
            for name, document in _missing_groups(target).items():
                write_json(Path(os.path.normpath(folder / name)), document)
            put_in_place(work, folder)
            # It already has its name; some network disks cannot flush a folder.
            with suppress(OSError):
                flush(folder.parent)
    finally:
        _remove(work)


def _remove(work: Path) -> None:
    """Remove an incomplete copy; after an error, chunks that were being written may still come in for a moment."""
    calm = 0 if os.path.lexists(work) else _CALM
    for _ in range(_TRIES):
        if calm >= _CALM:
            return
        shutil.rmtree(work, ignore_errors=True)
        time.sleep(_PAUSE)
        calm = 0 if os.path.lexists(work) else calm + 1


def _check_names(target: Target) -> None:
    dataset = target.dataset
    if dataset is None:
        return
    if target.form in ("precomputed", "tiff"):
        raise SourceError(f"{target}: found dataset {dataset!r}, expected none: {target.form} holds a single array")
    if any(part in ("", ".", "..") or part.startswith((".", "__")) for part in dataset.split("/")):
        raise SourceError(f"{target}: found dataset {dataset!r}, expected a path of plain names such as volumes/raw")


def _containers(target: Target) -> list[Place]:
    """Return the container and the groups between it and the dataset, from the outside in."""
    parts = target.dataset.split("/") if target.dataset else []
    found: list[Place] = [target.place] if parts else []
    for part in parts[:-1]:
        found.append(found[-1] / part)
    return found


def _check_containers(target: Target) -> None:
    for group in _containers(target):
        node = zarr_node(group)
        if node is not None and node[0] != target.form.replace("zarr", "group"):
            raise SourceError(
                f"{group}: found a Zarr {node[0][:-1]} (version {node[0][-1]}), expected nothing or a group of "
                f"{target.form}"
            )
        other = is_precomputed(group) or (target.form != "n5" and is_n5(group)) or (target.form == "n5" and node)
        if other or (isinstance(group, Path) and group.exists() and not group.is_dir()):
            raise SourceError(f"{group}: found another format, expected nothing or a group of {target.form}")
        if node is None and target.form != "n5" and isinstance(group, Path) and group.is_dir() and any(group.iterdir()):
            raise SourceError(f"{group}: found a folder that is no Zarr store, expected nothing or a group of Zarr")
    if isinstance(target.folder, Path):
        for above in target.folder.absolute().parents:
            node = zarr_node(above)
            inside = (node and node[0].startswith("array")) or is_precomputed(above) or "." in _n5_own(above)
            if inside:
                raise SourceError(f"{target}: lies in {above}, which is an array; expected a place outside it")


def _n5_own(folder: Path) -> dict[str, int]:
    text = read_document(folder, "attributes.json")
    return n5_ranks(folder) if text is not None and '"dimensions"' in text else {}


def _check_replaceable(target: Target, folder: Path) -> None:
    """Check that the target consists of one array or one pyramid."""
    if not folder.is_dir():
        raise SourceError(f"{target}: found a file, expected nothing or a folder of {target.form}")
    node = zarr_node(folder)
    names: set[str] = set()
    if node is not None:
        level = first_level(folder)
        images = node[1].get("ome", node[1]).get("multiscales") or [] if level else []
        arrays = set(zarr_ranks(folder))
        names = arrays - {".", *(one["path"].strip("/") for i in images for one in i["datasets"])}
        ours = is_zarr_file(arrays)
    elif is_n5(folder):
        names = {name for name in n5_ranks(folder) if name != "." and not (name[0] == "s" and name[1:].isdecimal())}
        ours = is_n5_file
    elif is_precomputed(folder):
        info = read_object(folder, "info") or {}
        names = {info[key] for key in ("mesh", "skeletons", "segment_properties") if key in info}
        ours = is_precomputed_file({str(one.get("key")) for one in info.get("scales", ()) if isinstance(one, dict)})
    else:
        raise SourceError(
            f"{target}: found a folder that is no Zarr, N5 or precomputed volume; it will not be replaced"
        )
    if names:
        raise SourceError(
            f"{target}: holds {', '.join(sorted(names)[:6])}, which would be lost; expected a new name, or a dataset "
            "after a colon"
        )
    check_only(target, folder, ours)


def _missing_groups(target: Target) -> dict[str, Any]:
    """Return metadata missing in the groups around a dataset, by path below the target's folder."""
    groups = _containers(target)
    found: dict[str, Any] = {}
    for at, group in enumerate(groups):
        up = "../" * (len(groups) - at)
        if target.form == "zarr3" and zarr_node(group) is None:
            found[f"{up}zarr.json"] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        if target.form == "zarr2" and zarr_node(group) is None:
            found[f"{up}.zgroup"] = {"zarr_format": 2}
        if target.form == "n5" and at == 0 and not is_n5(group):
            found[f"{up}attributes.json"] = {"n5": "4.0.0"}
    return found


def _put(folder: Remote, name: str, document: Any) -> None:
    """Write one JSON document to a bucket; a leading `../` of its name refers to the parent folder."""
    import tensorstore

    while name.startswith("../"):
        folder, name = Remote(folder.root, folder.path.rpartition("/")[0]), name[3:]
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    tensorstore.KvStore.open(kvstore(folder)).result().write(name, text.encode()).result()
