"""The export of a stream: its own segmentation, also of ranges and across a bridged section."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from distill.core.errors import SourceError
from distill.inference.review.review import ReviewOptions, review
from distill.inference.streaming.finish import finish

Run = Callable[..., Any]


def test_a_stream_with_a_bridged_section_is_exported(go: Run, folder: Path, tmp_path: Path) -> None:
    """Contacts across the gap are in the queue, and lie at the sections next to it."""
    (folder / "s_006.tif").unlink()
    out, to = tmp_path / "out.zarr", tmp_path / "review"
    go(folder, out, method="flood", on_bad=("bridge",))
    found = review(out, to, ReviewOptions(within=1.0, thresholds=(0.5, 0.9)))
    layer = np.asarray(zarr.open_array(to / "webknossos" / "supervoxels" / "1", mode="r")[:])
    assert not layer[6].any()
    assert layer[5].any()
    assert layer[7].any()
    for threshold in found.thresholds:
        finish(out, threshold)
        with h5py.File(to / "webknossos" / "supervoxels" / "agglomerates" / f"merge_{threshold:g}.hdf5") as file:
            mapping = file["segment_to_agglomerate"][:]
        np.testing.assert_array_equal(mapping[layer], zarr.open_array(out / "segmentation", mode="r")[:])
    with (to / "queue.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == found.doubtful > 0
    across = 0
    for row in rows:
        z, y, x = (int(row[axis]) for axis in "zyx")
        pair = {int(row["supervoxel_a"]), int(row["supervoxel_b"])}
        before = layer[z - 2, y, x] if z == 7 else layer[z - 1, y, x] if z else 0
        around = {int(before), int(layer[z, max(0, y - 1), x]), int(layer[z, y, max(0, x - 1)])}
        assert int(layer[z, y, x]) in pair
        assert pair - {int(layer[z, y, x])} <= around
        across += z == 7 and int(before) in pair and int(before) != int(layer[z, y, x])
    assert across, "supervoxels end at the gap, so that contacts across it are decisions"


def test_a_stream_that_is_not_finished_is_refused(go: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    go(folder, out, method="flood", segment=False)
    with pytest.raises(SourceError, match="found affinities alone, expected segments: stream without --no-segment"):
        review(out, tmp_path / "review")
