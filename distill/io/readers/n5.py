"""N5 containers, which name their axes x, y, z; everything is turned round to z, y, x.

Programs of the N5 family write resolution and offset in different ways, on the dataset or on a group above it:
`pixelResolution` (of the finest level, with `downsamplingFactors` or the group's `scales`), `resolution` and `offset`
(Paintera, BigCAT), `transform` (OpenOrganelle).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.core.errors import SourceError
from distill.core.memory import check_memory
from distill.core.notes import note
from distill.core.reasons import readable, shown
from distill.io.readers.array import StoredArray, axis_names, missing_dataset, nm_per_unit, numbers, stored_type
from distill.io.readers.chunks import Chunks, chunk_counts, open_chunks
from distill.io.readers.remote import Place, above, read_document, read_object

_FILE = "attributes.json"
_CODECS = ("raw", "gzip", "bzip2", "xz", "blosc", "zstd")
_DEEP = 6  # folders below which no dataset is looked for
_LEVEL = re.compile(r"s(\d+)")

Placement = tuple[tuple[float, ...] | None, tuple[float, ...] | None]


def is_n5(folder: Place) -> bool:
    """Return whether a folder is an N5 container, group or dataset."""
    return read_document(folder, _FILE) is not None


def n5_ranks(path: Place) -> dict[str, int]:
    """Rank of every dataset below a folder, by path; the folder itself is `.`. A remote folder is not listed."""
    if not isinstance(path, Path):
        attributes = _attributes(path)
        return {".": len(_extents(path, attributes, "dimensions"))} if "dimensions" in attributes else {}
    ranks: dict[str, int] = {}
    for folder, below, _ in os.walk(path):
        way = Path(folder).relative_to(path)
        below[:] = sorted(name for name in below if not name.startswith(".")) if len(way.parts) < _DEEP else []
        attributes = _attributes(Path(folder))
        if "dimensions" in attributes:
            below.clear()
            ranks[way.as_posix()] = len(_extents(Path(folder), attributes, "dimensions"))
    return ranks


def finest_levels(names: Sequence[str]) -> list[str]:
    """Return datasets without the coarser levels s1, s2, ... of those that have an s0."""
    whole = set(names)
    coarse = {
        name
        for name in names
        if (level := _LEVEL.fullmatch(name.rpartition("/")[2]))
        and int(level[1]) > 0
        and f"{name.rpartition('/')[0]}/s0".lstrip("/") in whole
    }
    return [name for name in names if name not in coarse]


def load_n5(path: Place, dataset: str | None) -> StoredArray:
    """Read the header of an N5 dataset: the folder itself or one inside it; of a pyramid `s0`, its finest level."""
    dataset = None if dataset == "." else dataset
    folder = path / dataset if dataset else path
    attributes = _attributes(folder)
    for inner in ("s0", "data/s0") if "dimensions" not in attributes else ():  # Paintera puts levels into data
        if "dimensions" in (finest := _attributes(folder / inner)):
            dataset = f"{dataset}/{inner}" if dataset else inner
            folder, attributes = path / dataset, finest
            break
    if "dimensions" not in attributes:
        raise missing_dataset(path, dataset or "", list(n5_ranks(path)))
    name = f"{path}:{dataset}" if dataset else str(path)
    if attributes.get("isLabelMultiset"):
        raise SourceError(
            f"{name}: holds label multisets of Paintera, expected one id per voxel; paintera-convert or "
            "n5-label-multisets writes such"
        )
    codec = _codec(attributes)
    if codec not in _CODECS:
        raise SourceError(
            f"{name}: cannot be read: it is packed with {codec}, expected one of {', '.join(_CODECS)}: copy it with "
            "n5-utils or zarr-python into a dataset of such a codec"
        )
    with readable(folder):
        shape = _extents(folder, attributes, "dimensions")[::-1]
        chunks = _extents(folder, attributes, "blockSize", 1)[::-1]
        dtype = stored_type(name, attributes["dataType"])
    if len(chunks) != len(shape):
        raise SourceError(f"{name}: found blockSize of {len(chunks)} axes, expected {len(shape)}")
    check_memory(name, "a block", chunks, dtype)
    groups = [attributes, *(_attributes(group) for group in _groups(path, folder))]
    resolution, offset = _placement(name, folder.name, groups)
    named = _names(attributes)
    where = Chunks(folder, {"driver": "n5"}, name, _block_name, chunk_counts(shape[::-1], chunks[::-1]))
    return StoredArray(
        name,
        dataset,
        "n5",
        shape,
        dtype,
        resolution,
        offset,
        attributes,
        partial(open_chunks, where, True),
        chunks,
        None if codec == "raw" else codec,
        named,
        _ids(groups),
        chunked=where,
    )


def _block_name(at: tuple[int, ...]) -> str:
    return "/".join(map(str, at))


def _codec(attributes: Mapping[str, Any]) -> str:
    found = attributes.get("compression", attributes.get("compressionType", "raw"))
    return str(found.get("type", "raw") if isinstance(found, dict) else found)


def _names(attributes: Mapping[str, Any]) -> tuple[str, ...] | None:
    named = axis_names({"axes": attributes.get("axes")})
    return named and named[::-1]


def _ids(groups: Sequence[Mapping[str, Any]]) -> bool | None:
    for one in groups:
        about = one.get("painteraData")
        if isinstance(about, dict) and about.get("type") in ("label", "raw", "channel"):
            return bool(about["type"] == "label")
    return None


def _extents(folder: Place, attributes: Mapping[str, Any], key: str, least: int = 0) -> tuple[int, ...]:
    found = attributes.get(key)
    if not isinstance(found, list) or not all(isinstance(n, int) and n >= least for n in found):
        raise SourceError(f"{folder}/{_FILE}: found {key} {shown(found)}, expected whole numbers from {least}")
    return tuple(found)


def _attributes(folder: Place) -> dict[str, Any]:
    return read_object(folder, _FILE) or {}


def _groups(path: Place, folder: Place) -> Iterator[Place]:
    """Return groups above a dataset, the nearest first, up to the container."""
    for group, _ in above(folder):
        if isinstance(group, Path) and isinstance(path, Path):
            inside = group.is_relative_to(Path(os.path.abspath(path)))
            if not inside and not (group / _FILE).is_file():
                return
        elif not is_n5(group):
            return
        yield group


def _placement(name: str, level: str, groups: Sequence[Mapping[str, Any]]) -> Placement:
    """Return resolution and offset in nm, z, y, x.

    Args:
        name: for messages.
        level: name of the dataset's folder, such as `s1`.
        groups: attributes of the dataset and of the groups above it, the nearest first.
    """
    own = groups[0]
    if (found := _transformed(name, own.get("transform"))) is not None:
        return found
    base, final = None, False
    for attributes in groups:
        base = _base(name, attributes)
        if base is not None:
            # Earlier versions of this program wrote the level's own resolution next to its factors.
            final = attributes is own and "resolution" in own and "axes" in own
            break
    if base is None:
        return None, None
    resolution: tuple[float, ...] = base[0]  # x first
    scale = base[1]
    factors = None if final else _factors(level, groups)
    if factors is not None and len(factors) == len(resolution):
        resolution = tuple(r * f for r, f in zip(resolution, factors, strict=True))
    offset: tuple[float, ...] | None = None
    for attributes in groups:
        if attributes.get("offset") is not None:
            given = numbers(attributes["offset"])
            offset = given and tuple(n * scale for n in reversed(given))
            break
    return tuple(reversed(resolution)), offset


def _base(name: str, attributes: Mapping[str, Any]) -> tuple[tuple[float, ...], float] | None:
    """Return resolution in nm, x first, that one group gives, and nm per unit of its offset."""
    pixel = attributes.get("pixelResolution")
    given = attributes.get("resolution", attributes.get("voxel_size"))
    if given is not None:
        units = attributes.get("units", "nm")
        scales = {nm_per_unit(unit) for unit in (units[:3] if isinstance(units, list) else [units])}
        scale = scales.pop() if len(scales) == 1 else None
    else:
        unit = pixel.get("unit") if isinstance(pixel, dict) else None
        given = pixel.get("dimensions") if isinstance(pixel, dict) else pixel
        scale = nm_per_unit(unit)
        if given is not None and unit is None:
            sizes = numbers(given) or (math.nan,)
            scale = 1000.0 if max(sizes[:3]) < 1 else 1.0
            taken = "um" if scale > 1 else "nm"
            note(f"{name}: gives a resolution {given} without a unit, taken as {taken}; --resolution Z,Y,X sets it")
    values = numbers(given)
    if values is None or scale is None:
        return None
    return tuple(value * scale for value in values), scale


def _factors(level: str, groups: Sequence[Mapping[str, Any]]) -> tuple[float, ...] | None:
    """Return the factors by which a level is coarser than the finest one, x first."""
    own = numbers(groups[0].get("downsamplingFactors"))
    number = _LEVEL.fullmatch(level)
    if own is not None or number is None:
        return own
    for attributes in groups[1:]:
        scales = attributes.get("scales", attributes.get("downsamplingFactors"))
        if isinstance(scales, list) and len(scales) > int(number[1]) and isinstance(scales[int(number[1])], list):
            return numbers(scales[int(number[1])])
    return None


def _transformed(name: str, about: Any) -> Placement | None:
    """Return the placement of OpenOrganelle's `transform`, which names its axes; None if it cannot be interpreted."""
    if not isinstance(about, dict):
        return None
    axes, units = about.get("axes"), about.get("units")
    scale, move = numbers(about.get("scale")), numbers(about.get("translate"))
    if not isinstance(axes, list) or not isinstance(units, list) or scale is None or set("zyx") - set(map(str, axes)):
        note(f"{name}: its transform is of an unknown form and is not used")
        return None
    at = [axes.index(axis) for axis in "zyx"]
    nm = [nm_per_unit(units[k]) if k < len(units) else None for k in at]
    if None in nm or len(scale) != len(axes) or (move is not None and len(move) != len(axes)):
        note(f"{name}: its transform is of an unknown form and is not used")
        return None
    resolution = tuple(scale[k] * float(one or 1) for k, one in zip(at, nm, strict=True))
    return resolution, move and tuple(move[k] * float(one or 1) for k, one in zip(at, nm, strict=True))
