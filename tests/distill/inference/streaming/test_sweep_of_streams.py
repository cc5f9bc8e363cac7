"""A sweep over part of a stream knows its store, and the sections that are missing from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.evaluation.sweep import read_inputs, sweep

Run = Callable[..., Any]
LABELS = "volumes/labels/neuron_ids"


def test_gaps_and_supervoxels_of_a_box_are_those_of_the_stream(
    go: Run, folder: Path, phantom: Path, tmp_path: Path
) -> None:
    (folder / "s_006.tif").unlink()
    out = tmp_path / "out.zarr"
    go(folder, out, on_bad=("bridge",))
    assert (~read_inputs(f"{out}:affinity", f"{phantom}:{LABELS}").good).nonzero()[0].tolist() == [6]
    part = f"{out}:affinity#box=4,0,0:11,64,96"
    given = read_inputs(part, f"{phantom}:{LABELS}")
    assert given.labels.shape == (7, 64, 96)
    assert (~given.good).nonzero()[0].tolist() == [2]
    assert read_inputs(f"{out}:affinity#box=7,0,0:11,96,96", f"{phantom}:{LABELS}").good.all()
    (curve,) = sweep(
        part,
        f"{phantom}:{LABELS}",
        tmp_path / "swept",
        {"query": (0.5, 0.9)},
        preset="skimage",
        network=None,
        on_step=lambda done, total: None,
    )
    assert [one.threshold for one in curve.tried] == pytest.approx([0.5, 0.9])
