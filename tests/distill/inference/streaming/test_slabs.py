"""Tables of slabs: what the last pass reads of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import distill.inference.streaming.slabs as slabs_module
from distill.inference.streaming.finish import final_ids
from distill.inference.streaming.output.manifest import STREAM_FOLDER
from distill.inference.streaming.slabs import Border, SlabTable, read_slab_table, seam, write_slab_table
from distill.segmentation.agglomeration import RegionGraph
from distill.segmentation.shared_voxels import Shares

SIDE, TILES, SLABS = 128, 24, 5


def planes(first: int) -> list[NDArray[np.uint64]]:
    """Ids of the tiles of a section, two by two."""
    rng = np.random.default_rng(first)
    return [
        (np.uint64(first + 2 * tile + 1) + rng.integers(0, 2, (SIDE, SIDE)).astype(np.uint64)) for tile in range(TILES)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Tables of slabs of two sections; each shares its first with the one before."""
    folder = tmp_path / "out.zarr" / STREAM_FOLDER / "slabs"
    folder.mkdir(parents=True)
    none = np.zeros(0, np.uint64)
    for k in range(SLABS):
        ids = np.arange(1, 2 * TILES + 1, dtype=np.uint64) + np.uint64(1000 * k)
        contacts = RegionGraph(none, none, np.zeros(0), np.zeros(0, np.int64))
        both = planes(1000 * k), planes(1000 * k)
        table = SlabTable(ids, np.ones(len(ids), bool), Shares.joined([]), contacts, 2 * k, 2 * k + 2, *both)
        write_slab_table(folder / f"{k:08d}.npz", table)
    return tmp_path / "out.zarr"


def test_the_last_pass_holds_the_planes_of_one_tile_at_a_time(store: Path) -> None:
    final_ids(store, 2 * SLABS, 2, 0.5)  # imports and caches
    tracemalloc.start()
    try:
        found = final_ids(store, 2 * SLABS, 2, 0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.old) == 2 * TILES * SLABS
    assert peak < TILES * SIDE * SIDE * 8  # of one plane; a table has two


def test_planes_are_read_once_a_seam(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, ...]] = []
    count = slabs_module.shared_voxels
    monkeypatch.setattr(slabs_module, "shared_voxels", lambda a, b: (compared.append(a.shape), count(a, b))[1])
    final_ids(store, 2 * SLABS, 2, 0.5)
    assert len(compared) == TILES * (SLABS - 1)


def test_a_seam_is_that_of_the_planes(store: Path) -> None:
    one, other = (store / STREAM_FOLDER / "slabs" / f"{k:08d}.npz" for k in (1, 2))
    before, after = read_slab_table(one), read_slab_table(other)
    pairs = zip(before.last_plane, after.first_plane, strict=True)
    wanted = Shares.joined(slabs_module.shared_voxels(a, b) for a, b in pairs)
    found, contacts = seam(one, other)
    for name in ("a", "b", "share"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert len(found.a) == 4 * TILES
    assert len(contacts.u) == 0
    assert len(seam(one, store / STREAM_FOLDER / "slabs" / "00000004.npz")[0].a) == 0


def test_contacts_across_a_seam_are_those_of_both_sections(tmp_path: Path) -> None:
    none = np.zeros(0, np.uint64)
    inside = RegionGraph(none, none, np.zeros(0), np.zeros(0, np.int64))
    ids = np.array([[1, 1, 2], [0, 2, 2]], np.uint64)
    edges = np.array([[255, 51, 0], [255, 102, 255]], np.uint8)
    paths = []
    for k, at in enumerate(((0, 2), (2, 4), (5, 6))):
        own = ids + np.uint64(10 * k) * (ids > 0)
        table = SlabTable(
            np.unique(own[own > 0]), np.ones(2, bool), Shares.joined([]), inside, *at, [], [], Border(own, edges, own)
        )
        paths.append(tmp_path / f"{k}.npz")
        write_slab_table(paths[-1], table)
    shares, found = seam(paths[0], paths[1])
    assert list(zip(found.u, found.v, found.total.round(6), found.count, strict=True)) == [
        (1, 11, 1.2, 2),
        (2, 12, 1.4, 3),
    ]
    assert len(shares.a) == 0
    assert len(seam(paths[1], paths[2])[1].u) == 0, "they share no section"
