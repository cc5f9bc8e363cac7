"""Parts of a contact graph, reduced in any grouping, are the graph agglomerated as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.core.labels import Relabelling
from distill.segmentation.agglomeration import RegionGraph, agglomerate_graph
from distill.segmentation.reduction import PartGraph, reduce_part


def graph_on_a_grid(seed: int, side: int, levels: int) -> tuple[RegionGraph, NDArray[np.intp]]:
    """Contacts of ids on a square grid, and the column of each id; few levels make many equal means."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(side * side).reshape(side, side).astype(np.uint64) + np.uint64(1)
    ends = [(ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1]), (ids[1:, 1:], ids[:-1, :-1])]
    u, v = (np.concatenate([pair[k].ravel() for pair in ends]) for k in (0, 1))
    count = rng.integers(1, 4, len(u))
    total = np.array([rng.integers(0, levels + 1, n).sum() for n in count]) / levels
    column = np.zeros(side * side + 1, np.intp)
    column[ids] = np.arange(side)
    return RegionGraph(np.minimum(u, v), np.maximum(u, v), total.astype(float), count), column


def in_parts(
    graph: RegionGraph, part: NDArray[np.intp], threshold: float, levels: int
) -> tuple[Relabelling, list[int]]:
    """Reduce parts of ids, join two neighbouring ones, and so on; also how many contacts are left each time."""
    whole = PartGraph.of(graph)
    held = {int(p): ([], Relabelling(np.zeros(0, np.uint64), np.zeros(0, np.uint64))) for p in np.unique(part[1:])}
    names = {int(i): int(i) for i in np.unique([graph.u, graph.v])}
    left = []
    for _ in range(levels):
        a, b = part[graph.u], part[graph.v]
        found = {}
        for p in sorted(held):
            inside = (a == p) & (b == p)
            done = np.isin(whole.first_u * np.uint64(10**6) + whole.first_v, seen(held, p, graph))
            fresh = inside & ~done
            roots = np.array([names[int(i)] for i in graph.u[fresh]], np.uint64)
            others = np.array([names[int(i)] for i in graph.v[fresh]], np.uint64)
            fresh_part = PartGraph(
                roots, others, graph.total[fresh], graph.count[fresh], graph.u[fresh], graph.v[fresh]
            )
            across = (a == p) ^ (b == p)
            outward = np.concatenate([graph.u[across & (a == p)], graph.v[across & (b == p)]])
            open_ids = np.unique([names[int(i)] for i in outward]).astype(np.uint64)
            reduced = reduce_part([*held[p][0], fresh_part], open_ids, threshold)
            for i, name in names.items():
                at = np.searchsorted(reduced.merged.old, name)
                if at < len(reduced.merged.old) and reduced.merged.old[at] == name:
                    names[i] = int(reduced.merged.new[at])
            found[p] = reduced
        left.append(sum(len(one.left.u) for one in found.values()))
        keys = graph.u * np.uint64(10**6) + graph.v
        merged: dict[int, tuple[list[PartGraph], NDArray[np.uint64]]] = {}
        for p, reduced in found.items():
            before = merged.get(p // 2, ([], np.zeros(0, np.uint64)))
            own = np.concatenate([seen(held, p, graph), keys[(a == p) & (b == p)]])
            merged[p // 2] = ([*before[0], reduced.left], np.concatenate([before[1], own]))
        held = {p: (parts, Relabelling(done, done)) for p, (parts, done) in merged.items()}
        part = part // 2
    ids = np.unique(np.concatenate([graph.u, graph.v]))
    return Relabelling(ids, np.array([names[int(i)] for i in ids], np.uint64)), left


def seen(held: dict[int, tuple[list[PartGraph], Relabelling]], p: int, graph: RegionGraph) -> NDArray[np.uint64]:
    """Contacts that a part has already taken in, as keys."""
    return held[p][1].old


@pytest.mark.parametrize("levels", [2, 3, 1000])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.7])
def test_parts_are_the_whole(seed: int, threshold: float, levels: int) -> None:
    """Equal means too, which many contacts have if affinities take three values."""
    graph, column = graph_on_a_grid(seed, 16, levels)
    found, left = in_parts(graph, column // 4, threshold, 3)
    wanted = agglomerate_graph(graph, threshold)
    np.testing.assert_array_equal(found.old, wanted.old)
    np.testing.assert_array_equal(found.new, wanted.new)
    assert left[-1] == 0, "nothing is left of the whole"
    inside = int((column[graph.u] // 4 == column[graph.v] // 4).sum())
    assert left[0] < inside, "parts become smaller"


def test_a_region_waits_for_its_strongest_contact() -> None:
    """1-2 is weaker than 2-3, and 3 has a stronger contact elsewhere: nothing can be decided but 4-5."""
    ids = np.array([[1, 2], [2, 3], [4, 5], [1, 4]], np.uint64).T
    graph = PartGraph.of(RegionGraph(ids[0], ids[1], np.array([0.5, 0.6, 0.9, 0.2]), np.ones(4, np.int64)))
    found = reduce_part([graph], np.array([3], np.uint64), 0.3)
    assert found.merged.new.tolist() == [1, 2, 3, 4, 4]
    assert sorted(zip(found.left.u.tolist(), found.left.v.tolist(), strict=True)) == [(1, 2), (2, 3)]
    found = reduce_part([found.left], np.zeros(0, np.uint64), 0.3)
    assert set(found.merged.new.tolist()) == {1}
    assert not len(found.left.u)


def test_no_contacts_are_no_merges() -> None:
    none = PartGraph.of(RegionGraph.concatenate([]))
    found = reduce_part([none], np.array([7], np.uint64), 0.3)
    assert not len(found.merged.old)
    assert not len(found.left.u)
