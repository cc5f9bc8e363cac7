"""Expected run length by hand, and against drawing every point of tiny skeletons."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core.errors import DistillError, ShapeError
from distill.evaluation.run_length.scores import RunLength, run_length
from distill.evaluation.run_length.skeletons import Skeleton


def line(name: str, *lengths: float) -> Skeleton:
    """Nodes along z, the given distances apart."""
    places = np.cumsum([0.0, *lengths])
    nodes = np.stack([places, np.zeros_like(places), np.zeros_like(places)], 1)
    return Skeleton(name, nodes, np.stack([np.arange(len(lengths)), np.arange(1, len(lengths) + 1)], 1))


def judged(skeletons: list[Skeleton], ids: list[list[int]], merge_nodes: int = 1) -> RunLength:
    """Id -1 lies outside."""
    segments = [np.maximum(row, 0).astype(np.uint64) for row in ids]
    return run_length(skeletons, segments, [np.array(row) >= 0 for row in ids], merge_nodes)


def test_without_error() -> None:
    found = judged([line("a", 100, 200), line("b", 700)], [[4, 4, 4], [9, 9]])
    assert found.erl == found.ideal == (300**2 + 700**2) / 1000
    assert found.normalised == 1
    assert (found.total("correct"), found.total("length")) == (1000, 1000)
    assert found.mergers == ()


def test_a_split_in_the_middle() -> None:
    """Ten edges of 1: six right in one segment, three in the other, the edge between them is lost."""
    found = judged([line("a", *[1] * 10)], [[1] * 7 + [2] * 4])
    assert found.erl == pytest.approx((6**2 + 3**2) / 10)
    assert found.ideal == 10
    one = found.skeletons[0]
    assert (one.correct, one.split, one.merged, one.omitted, one.segments) == (9, 1, 0, 0, 2)


def test_a_segment_met_twice_is_one_run() -> None:
    found = judged([line("a", *[1] * 6)], [[1, 1, 1, 2, 1, 1, 1]])
    assert found.erl == pytest.approx(4**2 / 6)
    assert found.skeletons[0].split == 2


def test_a_merger_makes_its_edges_worthless_and_no_others() -> None:
    a, b = line("a", 1, 1, 1, 1), line("b", 1, 1)
    found = judged([a, b], [[1, 1, 1, 5, 5], [5, 5, 5]])
    assert found.erl == pytest.approx(2**2 / 6)
    assert [(one.segment, one.skeletons) for one in found.mergers] == [(5, ("a", "b"))]
    assert [(one.correct, one.split, one.merged) for one in found.skeletons] == [(2, 0, 2), (0, 0, 2)]


def test_contacts_below_the_threshold_do_not_merge() -> None:
    a, b = line("a", 1, 1, 1), line("b", 1, 1, 1)
    ids = [[7, 7, 7, 7], [7, 8, 8, 8]]
    assert judged([a, b], ids).erl == pytest.approx(2**2 / 6)
    found = judged([a, b], ids, 2)
    assert found.erl == pytest.approx((3**2 + 2**2) / 6)
    assert found.mergers == ()
    assert judged([a, b], [[7, 7, 7, 7], [7, 7, 8, 8]], 2).erl == pytest.approx(1 / 6)


def test_background_and_volume_border() -> None:
    """Outside is cut away: it shortens the skeleton, background does not."""
    found = judged([line("a", 1, 2, 4, 8, 16)], [[-1, 3, 3, 0, 3, 3]])
    one = found.skeletons[0]
    assert (one.length, one.outside, one.correct, one.omitted) == (30, 1, 18, 12)
    assert found.erl == pytest.approx(18**2 / 30)
    assert found.ideal == 30
    assert (found.nodes, found.outside_nodes) == (5, 1)
    apart = judged([line("a", 1, 1, 1, 1, 1)], [[3, 3, -1, -1, 3, 3]])
    assert apart.normalised == 1  # in two parts, and one neuron still
    assert apart.erl == 2


def test_a_node_alone_counts_for_mergers_only() -> None:
    lone = Skeleton("lone", np.zeros((1, 3)), np.zeros((0, 2), np.int64))
    found = judged([line("a", 5), lone], [[2, 2], [2]])
    assert (found.erl, len(found.skeletons), found.mergers[0].skeletons) == (0, 1, ("a", "lone"))


def test_numbers_by_name() -> None:
    found = judged([line("a", 1500, 500)], [[1, 1, 2]]).to_dict()
    assert found["erl_um"] == 1500**2 / 2000 / 1000
    assert (found["erl_nm"], found["ideal_erl_nm"], found["ideal_erl_um"]) == (1125, 2000, 2)
    assert found["normalised"] == 1125 / 2000
    assert (found["split_nm"], found["correct_nm"], found["nodes_outside"]) == (500, 1500, 0)
    assert found["skeletons"][0]["run"] == 1125


def by_drawing(skeletons: list[Skeleton], ids: list[list[int]], merge_nodes: int) -> tuple[Fraction, Fraction]:
    """Mean over all unit edges of all skeletons of what can be reached from them, with and without the errors."""
    nodes = Counter((k, i) for k, row in enumerate(ids) for i in row if i > 0)
    merging = {i for row in ids for i in row if sum(nodes[k, i] >= merge_nodes for k in range(len(ids))) > 1}
    runs, ideals = [], []
    for skeleton, row in zip(skeletons, ids, strict=True):
        there = [(row[a], row[b]) for a, b in skeleton.edges.tolist() if min(row[a], row[b]) >= 0]
        right = [a if a == b and a > 0 and a not in merging else None for a, b in there]
        runs += [sum(other == own for other in right) if own is not None else 0 for own in right]
        ideals += [len(there)] * len(there)
    return Fraction(sum(runs), len(runs)), Fraction(sum(ideals), len(ideals))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, 5), min_size=2, max_size=9), min_size=1, max_size=4),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_equals_drawing_every_point(ids: list[list[int]], merge_nodes: int, random: object) -> None:
    skeletons = []
    for k, row in enumerate(ids):
        parents = [random.randrange(child) for child in range(1, len(row))]  # type: ignore[attr-defined]
        nodes = np.zeros((len(row), 3))
        for child, parent in enumerate(parents, 1):  # a tree of unit edges
            nodes[child] = nodes[parent] + np.eye(3)[random.randrange(3)]  # type: ignore[attr-defined]
        skeletons.append(Skeleton(str(k), nodes, np.array([(c, p) for c, p in enumerate(parents, 1)], np.int64)))
    if not any(min(row[a], row[b]) >= 0 for one, row in zip(skeletons, ids, strict=True) for a, b in one.edges):
        with pytest.raises(DistillError, match="no edge with both ends inside"):
            judged(skeletons, ids, merge_nodes)
        return
    found = judged(skeletons, ids, merge_nodes)
    erl, ideal = by_drawing(skeletons, ids, merge_nodes)
    assert found.erl == pytest.approx(float(erl), abs=1e-9)
    assert found.ideal == pytest.approx(float(ideal), abs=1e-9)
    for one in found.skeletons:
        assert one.correct + one.split + one.merged + one.omitted == pytest.approx(one.length)


def test_refuses() -> None:
    with pytest.raises(DistillError, match="--merge-nodes: found 0"):
        judged([line("a", 1)], [[1, 1]], 0)
    with pytest.raises(ShapeError, match="a: found 2 nodes, ids"):
        judged([line("a", 1)], [[1, 1, 1]])
