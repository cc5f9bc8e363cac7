"""Blocks own every voxel once, whatever the sizes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config import DecoderConfig
from distill.core.errors import DistillError
from distill.core.geometry import Box, Triple, grid, owned_boxes
from distill.inference.blockwise.finish import _shard, part, part_count
from distill.inference.blockwise.plan import Plan, make_plan
from distill.inference.decode import decoder_tiles
from distill.segmentation.stitching import MOST_BLOCKS

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 90), st.integers(1, 90))
CONFIGS = st.builds(
    lambda block, overlap: DecoderConfig(
        block=block, overlap=tuple(min(o, b - 1) for o, b in zip(overlap, block, strict=True))
    ),
    st.tuples(st.integers(2, 5), st.integers(16, 24), st.integers(16, 24)),
    st.tuples(st.just(1), st.integers(0, 23), st.integers(0, 23)),
)


@settings(max_examples=60)
@given(shape=SHAPES, config=CONFIGS, more=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_owned_boxes_cover_the_volume_once_and_tiles_are_those_of_the_section(
    shape: Triple, config: DecoderConfig, more: tuple[int, int]
) -> None:
    plan = make_plan(shape, config, (config.block[0], config.block[1] + more[0], config.block[2] + more[1]))
    owners, numbers, tiles = np.full(shape, -1), [], {}
    for block in plan.blocks():
        assert plan.block(block.index) == block
        assert (owners[block.owned.slices] == -1).all()
        owners[block.owned.slices] = block.index
        assert block.box.contains(block.owned)
        numbers += [number for number, _ in block.tiles]
        tiles |= dict(block.tiles)
        assert all(block.box.contains(box) for _, box in block.tiles)
    assert (owners >= 0).all()
    assert owners.max() + 1 == plan.count
    assert sorted(numbers) == list(range(len(numbers)))
    flat = decoder_tiles((1, *shape[1:]), config)
    step, depth = config.block[0] - 1, config.block[0]
    wanted = [
        Box((slab * step, *tile.start[1:]), (min(shape[0], slab * step + depth), *tile.stop[1:]))
        for slab in range(plan.slabs)
        for tile in dict.fromkeys(flat)
    ]
    assert [tiles[number] for number in range(len(tiles))] == wanted
    # tiles divide their overlaps in the middle, and so do blocks where their tiles meet
    home = {number: block.index for block in plan.blocks() for number, _ in block.tiles}
    for number, own in enumerate(owned_boxes(wanted)):
        assert (owners[own.slices] == home[number]).all()


@settings(max_examples=30)
@given(shape=SHAPES, config=CONFIGS, seed=st.integers(0, 999))
def test_blocks_of_a_box_are_those_that_own_a_voxel_of_it(shape: Triple, config: DecoderConfig, seed: int) -> None:
    plan, rng = make_plan(shape, config, config.block), np.random.default_rng(seed)
    start = tuple(int(rng.integers(0, n)) for n in shape)
    stop = tuple(int(rng.integers(a + 1, n + 1)) for a, n in zip(start, shape, strict=True))
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    wanted = [block.index for block in plan.blocks() if block.owned.intersect(box).voxels]
    assert [block.index for block in plan.touching(box)] == wanted


@settings(max_examples=30)
@given(shape=SHAPES, config=CONFIGS)
def test_pairs_are_all_blocks_whose_tiles_meet_across_a_face(shape: Triple, config: DecoderConfig) -> None:
    plan = make_plan(shape, config, config.block)
    blocks, wanted = list(plan.blocks()), set()
    for (a, b), axis in itertools.product(itertools.combinations(blocks, 2), range(3)):
        others = [k for k in range(3) if k != axis]
        same = all((a.box.start[k], a.box.stop[k]) == (b.box.start[k], b.box.stop[k]) for k in others)
        touch = a.owned.stop[axis] == b.owned.start[axis] and a.index < b.index
        if same and ((a.box.intersect(b.box).voxels and a.index < b.index) or touch):
            wanted.add((axis, a.index, b.index))
    assert {pair for pair in plan.pairs() if pair[0] > 0} == {pair for pair in wanted if pair[0] > 0}
    slabs = {
        (0, a.index, b.index)
        for a, b in itertools.combinations(blocks, 2)
        if a.slab + 1 == b.slab and (a.row, a.column) == (b.row, b.column)
    }
    assert {pair for pair in plan.pairs() if pair[0] == 0} == slabs


def test_a_block_is_no_smaller_than_a_tile() -> None:
    config = DecoderConfig(block=(17, 257, 257), overlap=(1, 1, 1))
    assert make_plan((40, 1024, 1024), config, None).grid == (3, 1, 1)
    assert make_plan((40, 1100, 3000), config, None).grid == (3, 2, 3)
    for block in ((1, 300, 300), (17, 256, 300), (17, 300, 10)):
        with pytest.raises(DistillError, match=r"--block: found [\d,]+, expected at least 2,257,257, a tile"):
            make_plan((40, 1024, 1024), config, block)
    assert make_plan((40, 100, 100), config, (17, 100, 100)).grid == (3, 1, 1)


def test_a_box_is_looked_up_without_going_through_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last pass does so for every shard: a plan of twice the columns must not take four times as long."""
    plan = make_plan((9, 64, 64 + 48 * 99), DecoderConfig(block=(5, 64, 64), overlap=(1, 16, 16)), (5, 64, 64))
    assert plan.grid == (2, 1, 100)
    asked: list[tuple[int, int, int]] = []
    at = Plan.at
    monkeypatch.setattr(Plan, "at", lambda self, *place: (asked.append(place), at(self, *place))[1])

    class Counted(tuple):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise AssertionError("went through all columns")

    assert plan._ends[1][-1] == plan.shape[2]  # made once
    object.__setattr__(plan, "columns", Counted(plan.columns))
    block = plan.block(57)
    asked.clear()
    assert [one.index for one in plan.touching(block.owned)] == [57]
    assert len(asked) == 1


def test_cells_of_a_grid() -> None:
    found = grid(Box.of_shape((3, 5, 4)), (2, 5, 3))
    assert [box.shape for box in found] == [(2, 5, 3), (2, 5, 1), (1, 5, 3), (1, 5, 1)]
    assert found[-1] == Box((2, 0, 3), (3, 5, 4))


def test_more_tiles_than_numbers_are_refused_when_the_job_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DecoderConfig(block=(3, 16, 18), overlap=(1, 5, 4))
    plan = make_plan((41, 60, 60), config, None)
    assert plan.slabs * plan.tiles == max(number for block in plan.blocks() for number, _ in block.tiles) + 1
    monkeypatch.setattr("distill.inference.blockwise.plan.MOST_BLOCKS", plan.slabs * plan.tiles)
    make_plan((41, 60, 60), config, None)
    with pytest.raises(DistillError, match=r"found 43 of 60 x 60 pixels, \d+ tiles of the decoder, expected at most"):
        make_plan((43, 60, 60), config, None)


@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 3000), st.integers(1, 3000)))
def test_parts_of_the_final_arrays_are_the_grid(shape: Triple) -> None:
    whole = grid(Box.of_shape(shape), _shard(shape))
    assert part_count(shape) == len(whole)
    assert [part(shape, number) for number in range(len(whole))] == whole


def test_a_plan_of_many_blocks_counts_and_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 Pvoxel has half a million tiles per slab; the plan needs their spans along each axis alone."""
    config, made = DecoderConfig(block=(17, 272, 272), overlap=(1, 32, 32)), 0

    class Counted(Box):
        def __new__(cls, *_: Any) -> Any:
            nonlocal made
            made += 1
            return super().__new__(cls)

    monkeypatch.setattr("distill.inference.decode.Box", Counted)
    plan = make_plan((34_200, 171_000, 171_000), config, None)
    assert plan.tiles == 713**2
    assert plan.slabs * plan.tiles < MOST_BLOCKS
    assert plan.count == 2138 * len(plan.rows) * len(plan.columns)
    assert made < 3 * 713
    assert plan.block(plan.count - 1).box.stop == plan.shape
