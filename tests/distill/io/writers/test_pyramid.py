"""Levels added to arrays that are there: what they hold, what the group says, what is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import distill.io.writers.pyramid
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box
from distill.inference.streaming.output.store import ome
from distill.io.volume import open_labels, open_volume
from distill.io.writers.levels import plan_levels
from distill.io.writers.pyramid import add_levels
from distill.io.writers.store import create_zarr, write_group_attributes

Cli = Callable[..., Any]
RESOLUTION, OFFSET = (30.0, 6.0, 6.0), (60.0, -12.0, 0.0)


def quiet(done: int, total: int) -> None:
    pass


def halved(array: NDArray[Any]) -> NDArray[Any]:
    """Mean of 2 x 2 pixels, half to even; of odd extents the last of one pixel."""
    *before, y, x = array.shape
    found = np.zeros((*before, -(-y // 2), -(-x // 2)), array.dtype)
    for at in np.ndindex(found.shape):
        window = array[(*at[:-2], slice(2 * at[-2], 2 * at[-2] + 2), slice(2 * at[-1], 2 * at[-1] + 2))]
        found[at] = np.rint(window.mean())
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store like a stream's: affinities and ids, named in the group's metadata."""
    path = tmp_path / "out.zarr"
    rng = np.random.default_rng(1)
    for name, array in (
        ("affinity", rng.integers(0, 255, (3, 4, 20, 30), "u1")),
        ("segmentation", np.repeat(rng.integers(0, 9, (4, 20, 10), "u8") * np.uint64(2**60), 3, 2)),
    ):
        made = create_zarr(
            path,
            name,
            shape=array.shape,
            dtype=array.dtype,
            resolution=RESOLUTION,
            offset=OFFSET,
            chunks=(2,) * array.ndim,
        )
        made.write(Box.of_shape(array.shape[-3:]), array)
    write_group_attributes(path, {"made_by": {"x": 1}, "ome": ome(["affinity", "segmentation"], RESOLUTION, OFFSET)})
    return path


def test_levels_of_a_stream(store: Path) -> None:
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file() and p.parent != store}
    done: list[tuple[int, int]] = []
    levels = add_levels(f"{store}:segmentation", 3, None, False, lambda a, b: done.append((a, b)))
    assert [level.size for level in levels] == [(4, 20, 30), (4, 10, 15), (4, 5, 8)]
    assert [level.resolution for level in levels] == [(30, 6, 6), (30, 12, 12), (30, 24, 24)]
    assert done == [(k + 1, len(done)) for k in range(len(done))]
    add_levels(f"{store}:affinity", 2, None, False, quiet)
    assert {p: p.read_bytes() for p in before} == before  # the arrays themselves
    group = zarr.open_group(store, mode="r")
    images: Any = {image["name"]: image for image in group.attrs["ome"]["multiscales"]}  # type: ignore[index, call-overload]
    assert group.attrs["made_by"] == {"x": 1}
    assert [one["path"] for one in images["segmentation"]["datasets"]] == [
        "segmentation",
        "levels/segmentation/1",
        "levels/segmentation/2",
    ]
    scale, move = images["segmentation"]["datasets"][2]["coordinateTransformations"]
    assert (scale["scale"], move["translation"]) == ([30, 24, 24], [60, -12 + 9, 9])  # centres of voxels
    assert [one["path"] for one in images["affinity"]["datasets"]] == ["affinity", "levels/affinity/1"]
    affinity = open_volume(f"{store}:affinity").read()
    np.testing.assert_array_equal(open_volume(f"{store}:levels/affinity/1").read(), halved(affinity))
    ids = open_labels(f"{store}:segmentation").read()
    coarse = open_labels(f"{store}:levels/segmentation/1")
    assert (coarse.resolution, coarse.offset) == ((30, 12, 12), OFFSET)
    assert set(np.unique(coarse.read())) <= set(np.unique(ids))
    np.testing.assert_array_equal(zarr.open_array(store, path="levels/segmentation/1", mode="r")[...], coarse.read())


def test_what_is_there_is_replaced_when_asked(store: Path) -> None:
    source = f"{store}:segmentation"
    add_levels(source, 4, None, False, quiet)
    with pytest.raises(SourceError, match=r"out.zarr: has levels already, levels/segmentation/1, .*--overwrite"):
        add_levels(source, 2, None, False, quiet)
    add_levels(source, 2, False, True, quiet)
    assert sorted(p.name for p in (store / "levels" / "segmentation").iterdir()) == ["1", "zarr.json"]
    first = open_volume(source).read()
    expected = first.astype("f8").reshape(4, 10, 2, 15, 2).mean((2, 4))
    np.testing.assert_allclose(open_volume(f"{store}:levels/segmentation/1").read().astype("f8"), expected, rtol=1e-12)
    assert [p.name for p in store.iterdir() if p.name.startswith(".")] == []


@pytest.mark.commands("pyramid")
def test_levels_of_an_image_come_beside_it(cli: Cli, tmp_path: Path) -> None:
    array = np.arange(2 * 600 * 30, dtype="u2").reshape(2, 600, 30)
    np.save(tmp_path / "in.npy", array)
    assert cli("copy", tmp_path / "in.npy", tmp_path / "a.zarr", "--resolution", "30,6,6").code == 0
    said = cli("pyramid", tmp_path / "a.zarr")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        "level 0: 2 x 600 x 30, 30, 6, 6 nm",
        "level 1: 2 x 300 x 15, 30, 12, 12 nm",
        "level 2: 2 x 150 x 8, 30, 24, 24 nm",
    ]
    found = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert [[one["path"] for one in image["datasets"]] for image in found] == [["0", "1", "2"]]
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/a.zarr:1").read(), halved(array))
    assert open_volume(tmp_path / "a.zarr").shape == array.shape
    said = cli("pyramid", tmp_path / "a.zarr", "--levels", "2")
    assert (said.code, said.out) == (2, "")
    # The same as a copy with levels, file by file.
    assert (
        cli("copy", tmp_path / "in.npy", tmp_path / "b" / "a.zarr", "--resolution", "30,6,6", "--levels", "0").code == 0
    )
    trees = [
        {p.relative_to(r).as_posix(): p.read_bytes() for p in r.rglob("*") if p.is_file()}
        for r in (tmp_path / "a.zarr", tmp_path / "b" / "a.zarr")
    ]
    names = [json.loads(tree.pop("zarr.json")) for tree in trees]
    assert names[0] == names[1]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("at", ["coarsen", "put_in_place"])
def test_broken_off(store: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(distill.io.writers.pyramid, at, fail)
    with pytest.raises((SourceError, OSError), match="No space left on device"):
        add_levels(f"{store}:segmentation", 3, None, False, quiet)
    images = json.loads((store / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert [[one["path"] for one in image["datasets"]] for image in images] == [["segmentation"], ["affinity"]]
    assert [p.name for p in store.iterdir() if p.name.startswith(".")] == []
    monkeypatch.undo()
    assert len(add_levels(f"{store}:segmentation", 3, None, False, quiet)) == 3


def test_what_can_have_no_levels(tmp_path: Path, store: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), "u1"))
    zarr.create_array(tmp_path / "lone.zarr", shape=(2, 3, 4), dtype="u1").attrs["resolution"] = RESOLUTION
    old = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    old.create_array("raw", shape=(2, 3, 4), dtype="u1").attrs["resolution"] = RESOLUTION
    create_zarr(store, "0", shape=(2, 300, 4), dtype="u1", resolution=RESOLUTION)
    create_zarr(store, "1", shape=(2, 3, 4), dtype="u1", resolution=RESOLUTION)
    for source, message in (
        (tmp_path / "lone.zarr", "expected an array in a Zarr v3 group"),
        (f"{tmp_path}/old.zarr:raw", "found zarr2, expected an array in a Zarr v3 group"),
        (f"{store}:0", "1: exists already and is no level"),
        (f"{store}:nothing", "found no dataset 'nothing'"),
        (store, "found 4 volumes, expected one after a colon: 0, 1, affinity, segmentation"),
    ):
        with pytest.raises(DistillError, match=message):
            add_levels(str(source), None, None, True, quiet)


@pytest.mark.parametrize("resolution", [(30.0, 6.0, 6.0), (10.0, 10.0, 10.0), (8.0, 4.0, 6.0), (4.0, 40.0, 40.0)])
def test_voxels_become_cubes(resolution: tuple[float, float, float]) -> None:
    levels = plan_levels((900, 5000, 4000), resolution, OFFSET, None)
    assert max(levels[-1].size[1:]) <= 256 < max(levels[-2].size[1:])
    spread = [max(level.resolution) / min(level.resolution) for level in levels]
    assert spread == sorted(spread, reverse=True) or spread[-1] <= 2
    assert spread[-1] <= 2
    for level in levels[1:]:
        assert set(level.step) <= {1, 2}
        assert [r * f for r, f in zip(resolution, level.factor, strict=True)] == list(level.resolution)
        assert [-(-n // f) for n, f in zip((900, 5000, 4000), level.factor, strict=True)] == list(level.size)


def test_nothing_left_to_halve() -> None:
    assert [level.size for level in plan_levels((1, 3, 1), RESOLUTION, OFFSET, 9)] == [(1, 3, 1), (1, 2, 1), (1, 1, 1)]
    assert len(plan_levels((50, 256, 256), RESOLUTION, OFFSET, None)) == 1
