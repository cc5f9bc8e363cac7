"""Describe the contents of a file: its arrays, and a summary of the middle section of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.geometry import grid
from distill.io.arrange import arrange
from distill.io.labels_or_grey import judge
from distill.io.readers.array import Reading, StoredArray
from distill.io.readers.chunks import missing_chunks
from distill.io.selection import split_selection
from distill.io.source import Unreadable, find_arrays
from distill.io.volume import open_volume

_SAMPLE_VALUES = 64 * 2**20


@dataclass(frozen=True)
class VolumeSummary:
    """Summary of one array of a file.

    Attributes:
        source: `path[:dataset]`.
        dataset: path inside the file; None for files that hold one array.
        kind: format, as in `Volume.kind`.
        shape: extent per axis in voxels.
        dtype: type in native byte order.
        resolution: nm per axis; None where the file gives none.
        offset: nm per axis; None where the file gives none.
        chunks: extent of a reading unit; None if not chunked.
        compression: codec; None where not compressed.
        minimum: smallest value of the middle section; None where nothing was sampled.
        maximum: largest value of the middle section; None where nothing was sampled.
        ids: number of non-zero ids in the middle section; None for arrays that are no labels.
        trouble: why nothing more can be read of it; empty where it can.
    """

    source: str
    dataset: str | None
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    resolution: tuple[float, ...] | None
    offset: tuple[float, ...] | None
    chunks: tuple[int, ...] | None
    compression: str | None
    minimum: float | int | None
    maximum: float | int | None
    ids: int | None
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON."""
        found = {**asdict(self), "dtype": str(self.dtype) if self.shape else None}
        for name in ("minimum", "maximum"):
            if found[name] is not None and not math.isfinite(found[name]):
                found[name] = str(found[name])  # JSON has no such numbers
        return found


def describe(source: str | Path) -> list[VolumeSummary]:
    """Summarise every array of a source, or the one dataset that it names.

    Raises:
        SourceError: the source is missing or unreadable, or holds no array.
    """
    chosen = split_selection(str(source))[1]
    found = []
    for stored in find_arrays(source):
        if isinstance(stored, Unreadable):
            found.append(_unreadable(stored.source, stored.dataset, stored.reason))
            continue
        try:
            found.append(_summary(arrange(stored, chosen)))
        except SourceError as error:
            found.append(_unreadable(stored.source, stored.dataset, str(error), stored))
    return found


def share_without_id(source: str, blocks: int = 64) -> float:
    """Estimate the share of voxels of a segmentation that belong to no object.

    Args:
        source: with ids; blocks of it that are not stored belong to none.
        blocks: number of chunks that are read, evenly spaced over the array; all if it has fewer.

    Raises:
        SourceError: it cannot be read.
    """
    volume = open_volume(source, grey=False, missing="zero")
    chunk = volume.chunks[-3:] if volume.chunks else (1, *volume.size[1:])
    boxes = grid(volume.box, (chunk[0], chunk[1], chunk[2]))
    chosen = sorted({round(at) for at in np.linspace(0, len(boxes) - 1, min(blocks, len(boxes)))})
    zeros = voxels = 0
    with volume.reading() as read:
        for at in chosen:
            found = read(boxes[at])
            zeros, voxels = zeros + int(np.count_nonzero(found == 0)), voxels + found.size
    return zeros / voxels


def _unreadable(source: str, dataset: str | None, reason: str, stored: StoredArray | None = None) -> VolumeSummary:
    kind, shape, dtype = ("", (), np.dtype(np.uint8)) if stored is None else (stored.kind, stored.shape, stored.dtype)
    return VolumeSummary(source, dataset, kind, shape, dtype, None, None, None, None, None, None, None, reason)


def format_summary(summaries: Sequence[VolumeSummary]) -> str:
    """Format the file's name and a plain-text table, one line per array; empty columns are omitted."""
    titles = ("array", "shape", "type", "resolution nm", "offset nm", "chunks", "compression", "middle section", "ids")
    rows = [_row(summary) for summary in summaries]
    kept = [at for at in range(len(titles)) if any(row[at] != "-" for row in rows)]
    table = [[line[at] for at in kept] for line in (titles, *rows)]
    widths = [max(len(line[at]) for line in table) for at in range(len(kept))]
    files = dict.fromkeys(summary.source.removesuffix(f":{summary.dataset}") for summary in summaries)
    troubles = [f"  {summary.trouble}" for summary in summaries if summary.trouble]
    lines = (("  " + "  ".join(map(str.ljust, line, widths))).rstrip() for line in table)
    return "\n".join([*files, *lines, *troubles])


def _summary(stored: StoredArray) -> VolumeSummary:
    ids = judge(stored).ids
    sample = _sample(stored, Reading(grey=not ids, missing="zero")) if 0 not in stored.shape else None
    whole = sample is not None and (ids or sample.dtype.kind in "biu")
    labels = whole and ids
    trouble = ""
    if stored.chunked is not None and (missing := missing_chunks(stored.chunked)) and missing[0]:
        trouble = f"{stored.source}: {missing[0]:,} of {missing[1]:,} chunks are missing"
    elif stored.lost:
        trouble = f"{stored.source}: {stored.lost}"
    return VolumeSummary(
        source=stored.source,
        dataset=stored.dataset,
        kind=stored.kind,
        shape=stored.shape,
        dtype=stored.dtype,
        resolution=stored.resolution,
        offset=stored.offset,
        chunks=stored.chunks,
        compression=stored.compression,
        minimum=None if sample is None else _number(np.min(sample), whole),
        maximum=None if sample is None else _number(np.max(sample), whole),
        ids=int(np.count_nonzero(np.unique(sample))) if sample is not None and labels else None,
        trouble=trouble,
    )


def _number(value: Any, whole: bool) -> float | int:
    return int(value) if whole else float(value)


def _sample(stored: StoredArray, reading: Reading) -> NDArray[Any] | None:
    """Return the middle section of all channels; None where that is too much, empty or not numeric."""
    index = [slice(0, extent) for extent in stored.shape]
    if len(index) >= 3:
        middle = stored.shape[-3] // 2
        index[-3] = slice(middle, middle + 1)
    values = math.prod(part.stop - part.start for part in index)
    if not 0 < values <= _SAMPLE_VALUES or stored.dtype.kind not in "biuf":
        return None
    with stored.opener(reading) as cut:
        return np.asarray(cut(tuple(index)))


def _row(summary: VolumeSummary) -> tuple[str, ...]:
    bounds = "-" if summary.minimum is None else f"{summary.minimum:.6g} to {summary.maximum:.6g}"
    if isinstance(summary.minimum, int):
        bounds = f"{summary.minimum} to {summary.maximum}"
    return (
        summary.dataset or "-",
        _joined(summary.shape, " x "),
        str(summary.dtype) if summary.shape else "-",
        _joined(summary.resolution, ", ") if summary.resolution else "not given" if summary.shape else "-",
        _joined(summary.offset, ", "),
        _joined(summary.chunks, " x "),
        summary.compression or "-",
        bounds,
        "-" if summary.ids is None else str(summary.ids),
    )


def _joined(values: Sequence[float] | None, by: str) -> str:
    return by.join(f"{value:.10g}" for value in values) if values else "-"
