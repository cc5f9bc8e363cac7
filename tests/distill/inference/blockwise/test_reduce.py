"""Contacts that are merged part by part give the ids of one merge over all tables, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blocks_of_labels import EXACT, Setting, tree

import distill.inference.blockwise.reduce as reduce_module
from distill.inference.blockwise.plan import Plan
from distill.inference.blockwise.reduce import Part, levels, parts_of
from distill.io.volume import open_volume

Make = Callable[[tuple[int, int, int]], Setting]


@pytest.mark.parametrize(("shape", "threshold"), [((9, 40, 40), 0.3), ((5, 24, 90), 0.5), ((1, 46, 46), 0.5)])
def test_parts_give_the_same_store(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], threshold: float
) -> None:
    setting = make(shape)
    setting.known.method = "flood"
    options = replace(EXACT, merge=threshold)
    whole, parts = tmp_path / "whole" / "out.zarr", tmp_path / "parts" / "out.zarr"
    setting.run(whole, options, block=(3, 16, 18))
    monkeypatch.setattr(reduce_module, "FROM_BLOCKS", 1)
    written: list[Part] = []
    plain = reduce_module.write_part
    monkeypatch.setattr(
        "distill.inference.blockwise.worker.write_part",
        lambda store, plan, digest, part, t: (written.append(part), plain(store, plan, digest, part, t)),
    )
    setting.run(parts, options, block=(3, 16, 18))
    assert len(written) > 8
    assert len({part.level for part in written}) >= 3
    assert tree(parts) == tree(whole)
    supervoxels, segments = (open_volume(f"{parts}:{name}").read() for name in ("supervoxels", "segmentation"))
    assert len(np.unique(segments)) < len(np.unique(supervoxels)), "something is merged"


def test_a_merge_in_parts_continues_where_it_was_interrupted(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make((5, 40, 40))
    setting.known.method = "flood"
    setting.run(tmp_path / "whole" / "out.zarr", block=(3, 16, 18))
    monkeypatch.setattr(reduce_module, "FROM_BLOCKS", 1)
    out = tmp_path / "out.zarr"
    plain, left = reduce_module.write_part, [9]

    def dies(store: Path, plan: Plan, digest: str, part: Part, t: float) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        plain(store, plan, digest, part, t)

    monkeypatch.setattr("distill.inference.blockwise.worker.write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        setting.run(out, block=(3, 16, 18))
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("blocks/reduced-*/*.npz")}
    assert len(done) == 8
    setting.run(out, block=(3, 16, 18), resume=True)
    assert tree(out) == tree(tmp_path / "whole" / "out.zarr")


def test_parts_cover_the_blocks_of_every_level(make: Make) -> None:
    plan: Plan = make((9, 61, 40)).plan((3, 16, 18))
    every = {(z, y, x) for z in range(plan.grid[0]) for y in range(plan.grid[1]) for x in range(plan.grid[2])}
    for level in range(levels(plan)):
        found = [place for part in parts_of(plan, level) for place in part.blocks(plan)]
        assert len(found) == plan.count
        assert set(found) == every
        for part in parts_of(plan, level):
            own = {place for one in part.parts(plan) for place in one.blocks(plan)}
            assert own == (set(part.blocks(plan)) if level else set())
            assert all(part.contains(place, 0) == (place in set(part.blocks(plan))) for place in every)
    assert len(parts_of(plan, levels(plan) - 1)) == 1
