"""Boxes, tiles and what users type for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import DistillError
from distill.core.geometry import Box, Triple, parse_numbers, parse_triple, tiles

sizes = st.tuples(*[st.integers(1, 9)] * 3)


@given(sizes, sizes, st.data())
def test_tiles_cover_everything_inside_and_keep_their_size(shape: Triple, size: Triple, data: st.DataObject) -> None:
    z, y, x = (data.draw(st.integers(1, n)) for n in size)
    whole = Box.of_shape(shape).shift((3, -2, 5))
    covered = np.zeros(shape, dtype=int)
    for tile in tiles(whole, size, (z, y, x)):
        assert whole.contains(tile)
        assert tile.shape == tuple(min(a, b) for a, b in zip(size, shape, strict=True))
        covered[tile.relative_to(whole.start).slices] += 1
    assert covered.min() >= 1


@given(sizes, sizes)
def test_tiles_without_overlap_come_in_order_and_once(shape: Triple, size: Triple) -> None:
    found = list(tiles(Box.of_shape(shape), size, size))
    assert found == sorted(set(found))


@pytest.mark.parametrize(("size", "stride"), [((0, 1, 1), (1, 1, 1)), ((2, 2, 2), (2, 3, 2)), ((2, 2, 2), (0, 1, 1))])
def test_tiles_that_would_leave_voxels_out_are_refused(size: Triple, stride: Triple) -> None:
    with pytest.raises(DistillError, match="expected 1 <= stride <= size"):
        list(tiles(Box.of_shape((4, 4, 4)), size, stride))


@given(sizes, sizes, sizes, sizes)
def test_intersection_holds_just_the_voxels_of_both(a: Triple, m: Triple, b: Triple, n: Triple) -> None:
    one, other = Box.of_shape(m).shift(a), Box.of_shape(n).shift(b)
    grid = np.zeros((2, 20, 20, 20), dtype=bool)
    grid[(0, *one.slices)], grid[(1, *other.slices)] = True, True
    shared = one.intersect(other)
    assert shared.voxels == grid.all(0).sum()
    if shared.voxels:
        assert grid.all(0)[shared.slices].all()


def test_growing_stops_at_the_border() -> None:
    box = Box((1, 1, 1), (2, 3, 3))
    assert box.grow((2, 1, 0), Box.of_shape((5, 5, 5))) == Box((0, 0, 1), (4, 4, 3))


def test_a_box_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(DistillError, match="lies before start"):
        Box((0, 2, 0), (1, 1, 1))


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a,b,c", "nan,1,1", "inf,1,1", "1.5,1,1"])
def test_what_is_no_triple_is_refused_by_name(text: str) -> None:
    with pytest.raises(DistillError, match=r"^--shape: found .*expected three"):
        parse_triple(text, "--shape")


def test_numbers_may_have_fractions() -> None:
    assert parse_numbers("29.5,6,6", "--resolution") == (29.5, 6.0, 6.0)
    assert parse_triple("64,512,512", "--shape") == (64, 512, 512)
