"""The method `flood`: slabs and tiles are the volume in one piece, and gaps do not cut neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from distill.config import DecoderConfig
from distill.core.affinity import NEAREST, affinity_targets, as_label_tensor
from distill.core.affinity_conventions import from_uint8
from distill.evaluation.metrics import score
from distill.evaluation.sweep import Inputs, _flood, _mutex, _without_gaps
from distill.inference.assembly import Assembly, Piece
from distill.inference.decode import by_method, decoder_tiles
from distill.io.volume import Volume
from distill.models.load import TrainedStudent
from distill.segmentation.agglomeration import merged_above
from distill.segmentation.supervoxels import supervoxels

SHAPE = (13, 90, 100)


def neurites(seed: int = 0) -> NDArray[np.uint64]:
    """Columns that wander from section to section, with membranes of two pixels."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 100, (30, 2))
    labels = np.zeros(SHAPE, np.uint64)
    for section in labels:
        at += rng.normal(0, 1, at.shape)
        free = np.ones(SHAPE[1:], bool)
        free[tuple(np.clip(at.round().astype(int), 0, np.array(SHAPE[1:]) - 1).T)] = False
        y, x = ndimage.distance_transform_edt(free, return_distances=False, return_indices=True)
        near = np.zeros(SHAPE[1:], np.uint64)
        near[tuple(np.clip(at.round().astype(int), 0, np.array(SHAPE[1:]) - 1).T)] = np.arange(1, 31)
        section[...] = near[y, x]
        section[ndimage.maximum_filter(section, 3) != ndimage.minimum_filter(section, 3)] = 0
    return labels


def affinities(labels: NDArray[np.uint64], seed: int = 0) -> NDArray[np.uint8]:
    """High inside neurites and low at membranes, with blurred noise and a few leaks."""
    rng = np.random.default_rng(seed)
    inside = affinity_targets(as_label_tensor(labels)).target.numpy()
    noise = ndimage.gaussian_filter(rng.normal(0, 1, inside.shape), (0, 0.5, 1.5, 1.5))
    leaks = rng.random(inside.shape) < 0.002
    soft = ndimage.gaussian_filter(inside.astype(float), (0, 0, 0.7, 0.7)) + 0.15 * noise / noise.std() + leaks
    return np.rint(np.clip(soft, 0, 1) * 255).astype(np.uint8)


def in_parts(stored: NDArray[np.uint8], depth: int, side: int, threshold: float) -> NDArray[np.uint64]:
    """Slabs and tiles on their way to one volume, as stream and segment make it."""
    student = cast(Any, TrainedStudent)(None, None, None, DecoderConfig(), {}, Path("weights"))
    config = by_method(student, "flood", (depth, side, side)).decoding
    assembly, ids = Assembly(None), np.zeros(SHAPE, np.uint64)
    for first in range(0, SHAPE[0] - 1, depth - 1):
        slab = stored[:, first : first + depth]
        pieces = [
            Piece(tile.shift((first, 0, 0)), supervoxels(slab[(slice(None), *tile.slices)]).astype(np.uint64))
            for tile in decoder_tiles((slab.shape[1], *SHAPE[1:]), config)
        ]
        ids[first + (first > 0) : first + depth] = assembly.add(pieces, from_uint8(slab))[int(first > 0) :]
    return assembly.finish(threshold).apply(ids)


def test_slabs_are_as_good_as_the_whole() -> None:
    labels = neurites()
    stored = affinities(labels)
    pieces = supervoxels(stored)
    whole = merged_above(pieces, from_uint8(stored), [0.3])[0.3]
    assert score(whole, labels).voi_sum < 0.03
    assert pieces.max() > whole.max() >= 25
    for depth, side, most in ((13, 40, 0.05), (7, 120, 0.15), (5, 48, 0.15)):  # seeds find less in thin slabs
        parts = in_parts(stored, depth, side, 0.3)
        parts[labels == 0] = 0
        assert score(parts, labels).voi_sum < most, (depth, side)


def test_ids_of_parts_meet_in_the_middle_of_overlaps_and_across_slabs() -> None:
    """One neurite through a plain volume: cut by every border, and one object again."""
    stored = np.full((3, *SHAPE), 255, np.uint8)
    assert (in_parts(stored, 3, 32, 0.3) == 1).all()
    stored[0, 4:] = 0  # no affinity along z from section 4 on
    assert [len(np.unique(one)) for one in in_parts(stored, 3, 32, 0.3)] == [1] * SHAPE[0]
    assert len(np.unique(in_parts(stored, 3, 32, 0.3))) == 1 + SHAPE[0] - 4


def test_a_section_left_out_does_not_cut_neurites() -> None:
    pytest.importorskip("mwatershed", reason="needs the baselines extra")
    labels = neurites()
    good = np.ones(SHAPE[0], bool)
    good[[5, 6]] = False
    there = from_uint8(affinities(labels[good]))  # the section after the gap is paired with the one before
    stored = np.zeros((3, *SHAPE), np.float32)
    stored[:, good] = there
    given = Inputs(stored, NEAREST, labels, cast(Volume, None), good)
    for run, threshold in ((_flood, 0.3), (_mutex, 0.5)):
        found = _without_gaps(given, run, [threshold])[threshold]
        assert not found[~good].any()
        np.testing.assert_array_equal(
            found[good],
            run(Inputs(there, NEAREST, labels[good], cast(Volume, None), good[good]), [threshold])[threshold],
        )
        assert score(found[good], labels[good]).voi_split < 0.2
        cut = run(given, [threshold])[threshold]
        assert score(cut[good], labels[good]).voi_split > 0.5, "as neighbours of an empty section they are cut"
