"""Group, replace and compact segment ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Integers = NDArray[np.integer[Any]]
Columns = TypeVar("Columns", bound="DataclassInstance")


@dataclass(frozen=True)
class PairSums:
    """Counts and sums over the distinct pairs of ids, in ascending order of (u, v).

    Attributes:
        u: (P,) uint64.
        v: (P,) uint64.
        count: (P,) int64, number of occurrences of the pair.
        total: (P,) float64, sum of the values of the pair.
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    count: NDArray[np.int64]
    total: NDArray[np.float64]


def concatenate(tables: Iterable[Columns]) -> Columns:
    """Concatenate tables whose columns are the fields of a dataclass.

    Args:
        tables: at least one; every field is an array of (N, ...) rows.
    """
    listed = list(tables)
    names = [field.name for field in fields(listed[0])]
    return type(listed[0])(*(np.concatenate([getattr(table, name) for table in listed]) for name in names))


def sum_pairs(
    u: Integers, v: Integers, *, count: Integers | None = None, values: NDArray[np.floating[Any]] | None = None
) -> PairSums:
    """Group pairs of ids and sum their counts and values.

    Neighbouring voxels usually carry the same pair, so runs are summed before sorting.

    Args:
        u: ids of any integer type and shape; negative ids are taken modulo 2**64.
        v: ids of the same shape.
        count: weight of each entry; 1 by default.
        values: values summed into `total`; 0 by default.

    Returns:
        Each distinct pair once, in ascending order. The order of summation, and therefore every bit of the result,
        depends only on the order of the entries.
    """
    flat_u, flat_v = np.ravel(u), np.ravel(v)
    if not flat_u.size:
        none = np.zeros(0, np.uint64)
        return PairSums(none, none, np.zeros(0, np.int64), np.zeros(0))
    starts = _run_starts(flat_u, flat_v)
    runs = np.diff(starts, append=flat_u.size) if count is None else np.add.reduceat(count, starts, dtype=np.int64)
    sums = np.zeros(len(starts)) if values is None else np.add.reduceat(np.ravel(values), starts, dtype=np.float64)
    run_u, run_v = flat_u[starts].astype(np.uint64), flat_v[starts].astype(np.uint64)
    fits = max(run_u.max(), run_v.max()) < 2**32
    key = (run_u << np.uint64(32)) | run_v
    order = np.argsort(key, kind="stable") if fits else np.lexsort((run_v, run_u))
    run_u, run_v = run_u[order], run_v[order]
    first = _run_starts(run_u, run_v)
    counts, totals = np.add.reduceat(runs[order], first, dtype=np.int64), np.add.reduceat(sums[order], first)
    return PairSums(run_u[first], run_v[first], counts, totals)


def _run_starts(u: Integers, v: Integers) -> NDArray[np.intp]:
    """Return the positions at which the pair (u, v) differs from the previous one."""
    new = np.empty(u.size, bool)
    new[0] = True
    np.not_equal(u[1:], u[:-1], out=new[1:])
    new[1:] |= v[1:] != v[:-1]
    return np.flatnonzero(new)


@dataclass(frozen=True)
class Relabelling:
    """Map from old to new ids; background 0 stays 0.

    Attributes:
        old: (N,) uint64, ascending, without 0.
        new: (N,) uint64.
    """

    old: NDArray[np.uint64]
    new: NDArray[np.uint64]

    def apply(self, labels: Integers) -> NDArray[np.uint64]:
        """Replace every id of a volume and return a copy.

        Args:
            labels: ids of any shape; each is 0 or listed in `old`.

        Raises:
            DistillError: an id is not listed.
        """
        starts, ids = _runs(labels)
        where = np.searchsorted(self.old, ids)
        known = where < len(self.old)
        known[known] = self.old[where[known]] == ids[known]
        if (ids[~known] != 0).any():
            raise DistillError(f"labels: found id {ids[~known].max()}, expected 0 or one of {len(self.old)} known ids")
        new = np.zeros(len(ids), np.uint64)
        new[known] = self.new[where[known]]
        return np.repeat(new, np.diff(starts, append=labels.size)).reshape(labels.shape)


def compact(labels: Integers) -> NDArray[np.uint64]:
    """Relabel a volume to ids 1..n in ascending order of the old ids; 0 stays 0. Returns a copy."""
    ids = distinct_ids(labels)
    return Relabelling(ids, ranks(ids)).apply(labels)


def distinct_ids(labels: Integers) -> NDArray[np.uint64]:
    """Return the distinct non-zero ids of a volume, ascending."""
    ids: NDArray[np.uint64] = np.unique(_runs(labels)[1])
    return ids[np.flatnonzero(ids)]


def ranks(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the 1-based rank of each entry among the distinct entries."""
    position: NDArray[np.intp] = np.unique(ids, return_inverse=True)[1]
    return (position + 1).astype(np.uint64)


def _runs(labels: Integers) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Return the starts of runs of one id in C order, and their ids. Runs are far fewer than voxels."""
    flat = np.ravel(labels)
    starts = np.flatnonzero(np.concatenate([np.ones(min(flat.size, 1), bool), flat[1:] != flat[:-1]]))
    return starts, flat[starts].astype(np.uint64)
