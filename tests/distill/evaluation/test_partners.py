"""Which voxels are wrong, against a voxel-by-voxel judge."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import DistillError
from distill.evaluation.contingency import Contingency
from distill.evaluation.partners import MERGE, SPLIT, Partners, error_codes, largest_wrong_pieces, main_partners

Labels = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


def partners(segmentation: Labels, labels: Labels) -> Partners:
    table = Contingency()
    table.add(segmentation, labels)
    return main_partners(table)


def judged(segmentation: Labels, labels: Labels, rank: int) -> list[int]:
    """Code of every voxel: rank 0, not in the largest partner; rank 1, in the second largest one."""
    pairs = list(zip(labels.ravel().tolist(), segmentation.ravel().tolist(), strict=True))
    ranked = {}
    for side in (0, 1):
        counts: dict[int, Counter[int]] = {}
        for pair in pairs:
            if pair[0]:
                counts.setdefault(pair[side], Counter())[pair[1 - side]] += 1
        ranked[side] = {own: sorted(c, key=lambda p: (-c[p], p)) for own, c in counts.items()}
    codes = []
    for u, v in pairs:
        if u == 0:
            codes.append(0)
        elif rank == 0:
            codes.append(SPLIT * (ranked[0][u][0] != v) + MERGE * (ranked[1][v][0] != u))
        else:
            codes.append(SPLIT * (ranked[0][u][1:2] == [v]) + MERGE * (ranked[1][v][1:2] == [u]))
    return codes


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_equals_the_voxel_by_voxel_judge(seed: int, objects: int, segments: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, objects + 1, (3, 4, 5)).astype(np.uint64)
    segmentation = rng.integers(0, segments + 1, (3, 4, 5)).astype(np.uint64)
    labels[0, 0, 0] = 1
    who = partners(segmentation, labels)
    assert error_codes(segmentation, labels, who).ravel().tolist() == judged(segmentation, labels, 0)
    assert largest_wrong_pieces(segmentation, labels, who).ravel().tolist() == judged(segmentation, labels, 1)


@given(st.integers(0, 10**6))
def test_names_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 6, (2, 3, 4)), 4, axis=2).astype(np.uint64)
    segmentation = labels.copy()
    segmentation[0, 0, :7] = 9
    labels[0, 0, 0] = 2
    order = np.concatenate([[0], 2**60 + np.arange(20)]).astype(
        np.uint64
    )  # keeps the order of ids, hence who wins ties
    codes = error_codes(segmentation, labels, partners(segmentation, labels))
    renamed = error_codes(order[segmentation], order[labels], partners(order[segmentation], order[labels]))
    assert np.array_equal(codes, renamed)


def test_planted_errors_are_found_where_they_are_and_nowhere_else() -> None:
    labels = np.repeat([1, 2, 3, 4, 0], 20).astype(np.uint64)
    segmentation = np.repeat([10, 20, 30, 40, 10], 20).astype(np.uint64)
    segmentation[:5] = 11  # a piece of object 1
    segmentation[60:68] = 30  # a piece of object 4, in the segment of object 3
    codes = error_codes(segmentation, labels, partners(segmentation, labels))
    expected = np.zeros(100, np.uint8)
    expected[:5] = SPLIT
    expected[60:68] = SPLIT | MERGE
    assert np.array_equal(codes, expected)
    segmentation[60:80] = 30  # all of it
    codes = error_codes(segmentation, labels, partners(segmentation, labels))
    assert (codes[60:80] == MERGE).sum() + (codes[40:60] == MERGE).sum() == 20  # equals: the smaller id stays right
    assert (codes[60:80] == MERGE).all()


def test_segment_zero_is_a_segment_and_object_zero_is_none() -> None:
    labels = np.array([1, 1, 1, 2, 2, 0, 0], np.uint64)
    segmentation = np.array([5, 5, 0, 0, 0, 7, 5], np.uint64)
    who = partners(segmentation, labels)
    assert error_codes(segmentation, labels, who).tolist() == [0, 0, SPLIT | MERGE, 0, 0, 0, 0]
    assert who.segments.tolist() == [0, 5]
    assert who.segment_of.tolist() == [[5, 0], [0, 0]]


def test_bad_input_is_refused() -> None:
    labels = np.ones((2, 3), np.uint64)
    with pytest.raises(DistillError, match=r"segmentation: found shape \(3, 2\)"):
        error_codes(labels.T, labels, partners(labels, labels))
    with pytest.raises(DistillError, match="no voxel to count"):
        partners(labels, np.zeros_like(labels))
