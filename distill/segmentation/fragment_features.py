"""Describe watershed fragments and their contacts by what affinities say of them: the input of a learnt agglomeration.

Fragments are those of `distill.segmentation.agglomeration.fragments`. Nothing depends on their ids: they are numbered
by their first voxel, contacts by the numbers of their two fragments.

Legend: D H W = z y x, N fragments, E contacts, F features of a fragment, C features of a contact, B chosen contacts,
K neighbours on each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.labels import Integers, Relabelling, compact, distinct_ids
from distill.segmentation.agglomeration import RegionGraph, region_graph

_BINS = 32  # of the histogram of a contact's affinities
_QUANTILES = (0.1, 0.5, 0.9)
FRAGMENT_FEATURES = (
    *("size", "extent z", "extent y", "extent x", "sections", "filled share of the extents"),  # all but the last: log
    *("mean inner affinity", "deviation of inner affinities", "contact area", "contacts"),  # the last two: log
)
CONTACT_FEATURES = (
    *("mean", "deviation", "quantile 0.1", "median", "quantile 0.9", "least", "largest"),  # of the affinities
    *("edges along z", "edges along y", "edges along x"),  # log
    *("share of the smaller contact area", "share of the larger contact area"),
    *("overlap along z of the smaller", "overlap along z of the larger", "size ratio"),  # the last: log
)


@dataclass(frozen=True)
class FragmentGraph:
    """Fragments that touch, with features of each fragment and each contact.

    Attributes:
        ids: (N,) uint64 in the order of first voxels.
        fragments: (N, F) float32, see `FRAGMENT_FEATURES`.
        u: (E,) int32 place of one fragment; contacts are sorted by u, then v.
        v: (E,) int32 place of the other one, above u.
        count: (E,) int64 voxel edges of the contact.
        contacts: (E, C) float32, see `CONTACT_FEATURES`.
        first: (N + 1,) int64 place of each fragment's first contact with a later one.
        strongest: (N, K + 1) int32 contacts of each fragment by falling mean affinity, then area; -1 = none.
    """

    ids: NDArray[np.uint64]
    fragments: NDArray[np.float32]
    u: NDArray[np.int32]
    v: NDArray[np.int32]
    count: NDArray[np.int64]
    contacts: NDArray[np.float32]
    first: NDArray[np.int64]
    strongest: NDArray[np.int32]

    def scored(self, scores: NDArray[np.floating[Any]]) -> RegionGraph:
        """Return the graph of the fragments' ids with scores (E,) in place of mean affinities."""
        one, two = self.ids[self.u], self.ids[self.v]
        total = scores.astype(np.float64) * self.count
        return RegionGraph(np.minimum(one, two), np.maximum(one, two), total, self.count)


@dataclass(frozen=True)
class Neighbourhoods:
    """Features around chosen contacts, side by side for their two fragments.

    Attributes:
        contact: (B, C) of the contacts.
        ends: (B, 2, F) of their fragments.
        others: (B, 2, K, F) of the strongest other neighbours of each fragment; 0 where there is none.
        links: (B, 2, K, C) of their contacts with the fragment; 0 where there is none.
        shared: (B, 2, K, C) of their contacts with the fragment on the other side; 0 where they do not touch it.
        there: (B, 2, K) bool, whether there is such a neighbour.
        touching: (B, 2, K) bool, whether it touches the other side.
    """

    contact: NDArray[np.float32]
    ends: NDArray[np.float32]
    others: NDArray[np.float32]
    links: NDArray[np.float32]
    shared: NDArray[np.float32]
    there: NDArray[np.bool_]
    touching: NDArray[np.bool_]


def fragment_graph(labels: Integers, affinity: NDArray[np.floating[Any]], neighbours: int) -> FragmentGraph:
    """Measure fragments and contacts.

    Args:
        labels: (D, H, W) ids of fragments, 0 = background, which touches nothing.
        affinity: (3 or more, D, H, W) in [0, 1]; channel k at p = edge to p's predecessor along z, y, x.
        neighbours: contacts to keep of each fragment, in addition to the one that is asked for later.

    Returns:
        The same graph for any ids of the fragments, but for `ids`.

    Raises:
        ShapeError: shapes do not go together, or affinities are not floating point.
    """
    from distill.segmentation import fragment_sums as loops

    ranked, ids = compact(labels), distinct_ids(labels)
    numbers = loops.number_by_first_voxel(ranked, len(ids))
    places = numbers[ranked.astype(np.int64)]
    order = np.argsort(numbers[1:])
    graph = region_graph(places, affinity)
    u, v = (graph.u - 1).astype(np.int32), (graph.v - 1).astype(np.int32)
    first = np.searchsorted(u, np.arange(len(ids) + 1)).astype(np.int64)
    size, extent, sections, inner = loops.sum_fragments(places, affinity, len(ids))
    area = np.bincount(np.concatenate([u, v]), np.tile(graph.count, 2), len(ids))
    touching = np.bincount(np.concatenate([u, v]), minlength=len(ids))
    mean, deviation = _moments(inner[:, 0], inner[:, 1], inner[:, 2])
    fragments = np.stack(
        [
            *(np.log(size), *np.log(extent).T, np.log(sections), size / np.prod(extent, axis=1)),
            *(mean, deviation, np.log1p(area), np.log1p(touching)),
        ],
        axis=1,
    )
    edges, total, extremes, histogram = loops.sum_edges(places, affinity, first, v, _BINS)
    mean, deviation = _moments(graph.count, total[:, 0], total[:, 1])
    of_area, of_size = (_both(values, u, v) for values in (area, size))
    contacts = np.stack(
        [
            *(mean, deviation, *loops.quantiles_of(histogram, np.array(_QUANTILES)).T, *extremes.T),
            *(*np.log1p(edges).T, graph.count / of_area[0], graph.count / of_area[1]),
            *(edges[:, 0] / of_size[0], edges[:, 0] / of_size[1], np.log(of_size[0] / of_size[1])),
        ],
        axis=1,
    )
    strongest = _strongest(u, v, mean, graph.count, len(ids), neighbours + 1)
    return FragmentGraph(
        ids[order], fragments.astype(np.float32), u, v, graph.count, contacts.astype(np.float32), first, strongest
    )


def neighbourhoods(graph: FragmentGraph, chosen: NDArray[np.int64]) -> Neighbourhoods:
    """Gather the features around contacts.

    Args:
        graph: of the fragments.
        chosen: (B,) places of contacts.
    """
    from distill.segmentation.fragment_sums import gather_neighbours

    k = graph.strongest.shape[1] - 1
    others, links, shared = gather_neighbours(chosen, graph.u, graph.v, graph.first, graph.strongest, k)
    there, touching = others >= 0, shared >= 0
    return Neighbourhoods(
        graph.contacts[chosen],
        graph.fragments[np.stack([graph.u[chosen], graph.v[chosen]], axis=1)],
        np.where(there[..., None], graph.fragments[others], np.float32(0)),
        np.where(there[..., None], graph.contacts[links], np.float32(0)),
        np.where(touching[..., None], graph.contacts[shared], np.float32(0)),
        there,
        touching,
    )


def merged_by_scores(
    labels: Integers, graph: FragmentGraph, scores: NDArray[np.floating[Any]], threshold: float
) -> NDArray[np.uint64]:
    """Merge fragments, best score first, until the score of no contact is above the threshold.

    Scores of contacts that become one are averaged, weighted by their voxel edges.

    Args:
        labels: (D, H, W) the fragments of the graph.
        graph: of them.
        scores: (E,) in [0, 1].
        threshold: in [0, 1].

    Returns:
        (D, H, W) compact ids.
    """
    from distill.segmentation.agglomeration import merges_above

    ids = np.sort(graph.ids)
    roots = ids.copy()
    merged = merges_above(graph.scored(scores), threshold).above(threshold)
    roots[np.searchsorted(ids, merged.old)] = merged.new
    return compact(Relabelling(ids, roots).apply(labels))


def _moments(
    count: NDArray[Any], total: NDArray[np.float64], squares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation; 0 without any."""
    many = np.maximum(count, 1)
    mean = total / many
    return mean, np.sqrt(np.maximum(squares / many - mean * mean, 0))


def _both(values: NDArray[Any], u: NDArray[np.int32], v: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the smaller and the larger value of the two fragments of each contact."""
    return np.minimum(values[u], values[v]), np.maximum(values[u], values[v])


def _strongest(
    u: NDArray[np.int32],
    v: NDArray[np.int32],
    mean: NDArray[np.float64],
    count: NDArray[np.int64],
    fragments: int,
    keep: int,
) -> NDArray[np.int32]:
    """Return (N, keep) contacts of each fragment by falling mean, then area, then the order of the other fragment."""
    own, other = np.concatenate([u, v]), np.concatenate([v, u])
    contact = np.tile(np.arange(len(u), dtype=np.int32), 2)
    order = np.lexsort((other, -count[contact], -mean[contact], own))
    own = own[order]
    rank = np.arange(len(own)) - np.searchsorted(own, own)
    kept = rank < keep
    found = np.full((fragments, keep), -1, np.int32)
    found[own[kept], rank[kept]] = contact[order][kept]
    return found
