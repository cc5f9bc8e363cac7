"""The model of cost: counts are those of the plan, rates those of the results, and its page shows the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scale
import scheduler_simulation as simulation

from distill.inference.blockwise.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", [(50, 2300, 3100), (17, 1200, 1024), (33, 500, 2000)])
def test_counts_are_those_of_the_plan(shape: tuple[int, int, int]) -> None:
    plan, counts = make_plan(shape, scale.DECODER, None), scale.Counts.of(shape)
    assert counts.blocks == plan.count
    assert counts.pairs == len(list(plan.pairs()))
    assert counts.tiles == sum(len(block.tiles) for block in plan.blocks())
    assert counts.computed == sum(block.box.voxels for block in plan.blocks())
    assert counts.faces == simulation.face_voxels(plan).sum()
    around = np.array([2 * scale.HALO * (count > 1) for count in plan.grid[1:]])
    assert counts.network == sum(
        block.box.shape[0] * int(np.prod(np.array(block.box.shape[1:]) + around)) for block in plan.blocks()
    )


def test_rates_are_those_of_the_results_and_scale_with_the_volume() -> None:
    rates = scale.Rates.read(ROOT / "benchmarks" / "results", "flood")
    assert all(value > 0 for value in vars(rates).values())
    assert rates.scratch < rates.arrays
    shape = scale.cube(10**12)
    assert shape[1] == shape[2] == scale.RATIO * shape[0]
    assert abs(np.prod(shape, dtype=np.float64) / 1e12 - 1) < 0.01


def test_the_page_shows_the_tables_of_the_script() -> None:
    page = (ROOT / "docs" / "results" / "scale.md").read_text()
    for table in scale.tables(scale.Rates.read(ROOT / "benchmarks" / "results", "flood")):
        assert table in page
