"""Where the worst objects lie: against brute force, and in pictures that show the error."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Nanometres
from distill.evaluation.contingency import Contingency
from distill.evaluation.metrics import WorstObjects, worst_objects
from distill.evaluation.worst_objects.locate import Spot, find_spots
from distill.io.volume import Volume, volume_from_array, voxel_shift
from viz.report.crops import crop

NM = (30.0, 6.0, 6.0)
Ids = NDArray[np.uint64]


def volume(array: NDArray[Any], offset: Nanometres = (0, 0, 0), name: str = "array", nm: Nanometres = NM) -> Volume:
    return volume_from_array(array, nm, offset, name)


def judged(found: Ids, truth: Ids, n: int = 3) -> WorstObjects:
    table = Contingency()
    table.add(found, truth)
    return worst_objects(table, n)


def spots(found: Ids, truth: Ids) -> list[Spot]:
    return find_spots(volume(found), volume(truth), judged(found, truth))


def halves() -> tuple[Ids, Ids]:
    """Object 7 of a ground truth with 3; the segmentation cuts 7 at x = 12 and joins its right part with 3."""
    truth = np.full((4, 20, 40), 3, np.uint64)
    truth[:, :, :30] = 7
    found = np.full_like(truth, 50)
    found[:, :, :12] = 40
    return found, truth


def test_split_and_merge_are_shown_where_the_pieces_meet() -> None:
    found, truth = halves()
    merge, split = sorted(spots(found, truth), key=lambda spot: spot.kind)
    assert (split.error.id, split.error.pieces, split.pieces) == (7, 2, (50, 40))
    assert split.voxel[1:] in ((9, 11), (10, 11))  # the middle of the smaller piece's last column
    assert (merge.error.id, merge.error.pieces, merge.pieces) == (50, 2, (7, 3))
    assert merge.voxel[2] == 30
    assert split.extent.start[1:] == (0, 0)
    assert split.extent.stop[1:] == (20, 30)
    assert split.text == f"split {split.error.bits:.3f} bits: object 7 lies in 2 segments"
    assert merge.text == f"merge {merge.error.bits:.3f} bits: segment 50 covers 2 objects"


@given(st.integers(0, 2**32 - 1))
def test_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (3, 5, 6)).repeat(2, 1).repeat(2, 2).astype(np.uint64)
    truth[0, 0, 0] = 1
    found = rng.integers(0, 4, truth.shape).astype(np.uint64)
    listed = spots(found, truth)
    bits = [spot.error.bits for spot in listed]
    assert bits == sorted(bits, reverse=True)
    assert len(listed) == len(judged(found, truth).split) + len(judged(found, truth).merged)
    for spot in listed:
        own, other = (truth, found) if spot.kind == "split" else (found, truth)
        inside = [int(i) for i in other[own == spot.error.id] if spot.kind == "split" or i]
        counts = {i: inside.count(i) for i in inside}
        assert counts[spot.pieces[0]] == max(counts.values())
        assert counts[spot.pieces[1]] == sorted(counts.values())[-2]
        z, y, x = spot.voxel
        assert own[z, y, x] == spot.error.id
        assert other[z, y, x] == spot.pieces[1]
        first, second = (np.argwhere((own[z] == spot.error.id) & (other[z] == piece)) for piece in spot.pieces[:2])
        if len(first):
            apart = np.linalg.norm(first[:, None] - second[None], axis=-1)
            here = np.linalg.norm(first - (y, x), axis=-1).min()
            assert here == pytest.approx(apart.min())
        both = [
            min(int(((own[k] == spot.error.id) & (other[k] == p)).sum()) for p in spot.pieces[:2]) for k in range(3)
        ]
        assert both[z] == max(both)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_how_the_volume_is_cut_does_not_matter(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (4, 3, 4)).repeat(2, 1).repeat(2, 2).astype(np.uint64)
    truth[0, 0, 0] = 1
    found = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape)).astype(np.uint64)
    whole = spots(found, truth)
    with mock.patch("distill.evaluation.aligned.BLOCK_VOXELS", most):
        assert spots(found, truth) == whole
    for spot in whole:
        own, other = (truth, found) if spot.kind == "split" else (found, truth)
        at = np.argwhere((own == spot.error.id) & (other == spot.pieces[1]))
        assert spot.piece_voxels == len(at)
        assert spot.piece.start == tuple(at.min(0))
        assert spot.piece.stop == tuple(at.max(0) + 1)


def test_large_objects_are_measured_on_a_thinner_grid() -> None:
    found, truth = halves()
    with mock.patch("distill.evaluation.worst_objects.locate._NEAR", 7):
        split = next(spot for spot in spots(found, truth) if spot.kind == "split")
    assert found[split.voxel] == 40
    assert truth[split.voxel] == 7
    assert split.voxel[2] >= 11 - 5


def test_split_along_z_alone() -> None:
    truth = np.zeros((8, 12, 12), np.uint64)
    truth[1:7, 2:10, 3:11] = 5
    truth[6] = 5  # more of it, but farther from the other piece
    found = np.zeros_like(truth)
    found[:5], found[5:] = 1, 2
    (split,) = (spot for spot in spots(found, truth) if spot.kind == "split")
    assert split.pieces == (1, 2)
    assert split.voxel[0] == 5  # the section of the smaller piece next to the larger one
    assert 4 <= split.voxel[1] <= 7  # well inside it
    assert 5 <= split.voxel[2] <= 8


def test_segment_zero_is_a_piece_and_object_zero_is_none() -> None:
    truth = np.zeros((2, 10, 10), np.uint64)
    truth[:, :, :6] = 4
    found = np.full_like(truth, 9)
    found[:, :3] = 0
    assert [(spot.kind, spot.pieces) for spot in spots(found, truth)] == [("split", (9, 0))]


def test_many_small_pieces_are_not_named() -> None:
    truth = np.ones((1, 100, 100), np.uint64)
    found = np.arange(10_000, dtype=np.uint64).reshape(1, 100, 100) + np.uint64(100)
    found[:, :60], found[:, 60:80], found[:, 80:90] = 1, 2, 3
    found[:, 90:94] = 4
    (split,) = spots(found, truth)
    assert split.pieces == (1, 2, 3)
    assert split.error.pieces == 1000 - 400 + 4


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 4)])
def test_segmentation_inside_larger_labels(place: tuple[int, int, int]) -> None:
    found, truth = halves()
    z, y, x = place
    whole = np.pad(truth, [(p, 5) for p in place])
    outside = np.full((9, 30, 60), 77, np.uint8)
    outside[z : z + 4, y : y + 20, x : x + 40] = np.arange(40)
    inner = volume(found, (100 + z * NM[0], y * NM[1], x * NM[2]))
    outer, raw = volume(whole, (100, 0, 0)), volume(outside, (100, 0, 0))
    assert voxel_shift(inner, outer) == place
    listed = find_spots(inner, outer, judged(found, truth))
    assert [spot.voxel for spot in listed] == [spot.voxel for spot in spots(found, truth)]
    split = next(spot for spot in listed if spot.kind == "split")
    seen = crop(split, inner, outer, raw)
    assert seen.section.shape == seen.truth.shape == seen.segmentation.shape == (20, 40, 3)
    np.testing.assert_array_equal(seen.section[0, 20:, 0], np.arange(20, 40))  # away from the ring


def test_crops_paint_object_and_pieces() -> None:
    found, truth = halves()
    split = next(spot for spot in spots(found, truth) if spot.kind == "split")
    seen = crop(split, volume(found), volume(truth), None)
    segmentation, ground, image = seen.segmentation[0], seen.truth[0], seen.section[0]
    assert (image == 128).all()  # without an image
    assert len(np.unique(segmentation, axis=0)) == 2
    assert (segmentation[0] != segmentation[39]).any()
    np.testing.assert_array_equal(segmentation[13], segmentation[39])  # segment 50, also outside the object
    np.testing.assert_array_equal(ground[0], ground[29])
    np.testing.assert_array_equal(ground[30], (128, 128, 128))
    np.testing.assert_array_equal(ground[0], segmentation[39])  # the object has the colour of its largest piece
    ring = np.argwhere((seen.section != 128).any(-1))
    assert np.abs(np.linalg.norm(ring - np.array(split.voxel[1:]), axis=1) - 6).max() < 2
    assert {0, 255} <= set(np.unique(seen.section))


def test_windows_stay_inside_and_around_the_error() -> None:
    truth = np.ones((1, 700, 900), np.uint64)
    found = np.ones_like(truth)
    found[:, 650:, 850:] = 2
    (split,) = (spot for spot in spots(found, truth) if spot.kind == "split")
    raw = np.broadcast_to(np.arange(900) % 251, (1, 700, 900)).astype(np.uint8)
    seen = crop(split, volume(found), volume(truth), volume(raw))
    assert seen.section.shape == (320, 320, 3)
    np.testing.assert_array_equal(seen.section[0, :, 0], raw[0, 0, 580:])


def test_volumes_that_do_not_go_together() -> None:
    found, truth = halves()
    worst = judged(found, truth)
    with pytest.raises(ShapeError, match="small: does not cover the voxels of array"):
        find_spots(volume(found), volume(truth[:, :10], name="small"), worst)
    with pytest.raises(ShapeError, match="expected whole voxels"):
        find_spots(volume(found, (1.0, 0, 0)), volume(truth), worst)
    with pytest.raises(ShapeError, match="expected those of"):
        find_spots(volume(found), volume(truth, nm=(30, 6, 5)), worst)
    with pytest.raises(DistillError, match="labels: found no voxel of id 7, expected the volumes that were evaluated"):
        find_spots(volume(found), volume(truth + np.uint64(100), name="labels"), worst)
    seen: list[tuple[int, int]] = []
    find_spots(volume(found), volume(truth), worst, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
