"""Describe the contents of a file: its arrays, and a summary of the middle section of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.io.readers.array import StoredArray
from distill.io.source import find_arrays

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


def describe(source: str | Path) -> list[VolumeSummary]:
    """Summarise every array of a source, or the one dataset that it names.

    Raises:
        SourceError: the source is missing or unreadable, or holds no array.
    """
    return [_summary(stored) for stored in find_arrays(source)]


def format_summary(summaries: Sequence[VolumeSummary]) -> str:
    """Format the file's name and a plain-text table, one line per array; empty columns are omitted."""
    titles = ("array", "shape", "type", "resolution nm", "offset nm", "chunks", "compression", "middle section", "ids")
    rows = [_row(summary) for summary in summaries]
    kept = [at for at in range(len(titles)) if any(row[at] != "-" for row in rows)]
    table = [[line[at] for at in kept] for line in (titles, *rows)]
    widths = [max(len(line[at]) for line in table) for at in range(len(kept))]
    files = dict.fromkeys(summary.source.removesuffix(f":{summary.dataset}") for summary in summaries)
    return "\n".join([*files, *(("  " + "  ".join(map(str.ljust, line, widths))).rstrip() for line in table)])


def _summary(stored: StoredArray) -> VolumeSummary:
    sample = _sample(stored)
    whole = sample is not None and sample.dtype.kind in "biu"
    labels = whole and stored.dtype.kind in "iu" and _looks_like_labels(stored)
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
    )


def _number(value: Any, whole: bool) -> float | int:
    return int(value) if whole else float(value)


def _looks_like_labels(stored: StoredArray) -> bool:
    name = (stored.dataset or Path(stored.source).name).lower()
    return stored.dtype.itemsize >= 4 or any(word in name for word in ("label", "ids", "seg", "fragments"))


def _sample(stored: StoredArray) -> NDArray[Any] | None:
    """Read the middle section of all channels; None if it is too large, empty or not numeric."""
    index = [slice(0, extent) for extent in stored.shape]
    if len(index) >= 3:
        middle = stored.shape[-3] // 2
        index[-3] = slice(middle, middle + 1)
    values = math.prod(part.stop - part.start for part in index)
    if not 0 < values <= _SAMPLE_VALUES or stored.dtype.kind not in "biuf":
        return None
    with stored.opener() as cut:
        return np.asarray(cut(tuple(index)), stored.dtype)


def _row(summary: VolumeSummary) -> tuple[str, ...]:
    bounds = "-" if summary.minimum is None else f"{summary.minimum:.6g} to {summary.maximum:.6g}"
    if isinstance(summary.minimum, int):
        bounds = f"{summary.minimum} to {summary.maximum}"
    return (
        summary.dataset or "-",
        _joined(summary.shape, " x "),
        str(summary.dtype),
        _joined(summary.resolution, ", ") if summary.resolution else "not given",
        _joined(summary.offset, ", "),
        _joined(summary.chunks, " x "),
        summary.compression or "-",
        bounds,
        "-" if summary.ids is None else str(summary.ids),
    )


def _joined(values: Sequence[float] | None, by: str) -> str:
    return by.join(f"{value:.10g}" for value in values) if values else "-"
