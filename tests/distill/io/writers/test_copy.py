"""Copies into every format, against h5py, tifffile, zarr-python and this folder's own readers of N5 and precomputed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
import readers
import servers
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import distill.io.readers.remote
import distill.io.writers.blocks
import distill.io.writers.metadata
from distill.core.errors import DistillError, ShapeError, SourceError
from distill.io.volume import open_labels, open_volume
from distill.io.writers.copy import Copied, Copying
from distill.io.writers.copy import copy as run_copy

Cli = Callable[..., Any]
Nm = tuple[float, float, float]
RESOLUTION: Nm = (30.0, 6.0, 8.0)
NAMES = {
    "zarr3": "a.zarr",
    "zarr2": "b.zarr",
    "n5": "a.n5",
    "precomputed": "a.precomputed",
    "hdf5": "a.h5",
    "tiff": "a.tif",
}
TYPES = {
    "zarr3": ["?", "u1", ">u2", "i4", ">u8", "f2", ">f4", "f8"],
    "zarr2": ["?", "u1", ">u2", "i4", ">u8", "f2", ">f4", "f8"],
    "n5": ["u1", ">u2", "i4", ">u8", ">i8", "f4", "f8"],
    "precomputed": ["u1", ">u2", "i4", ">u8", ">f4"],
    "hdf5": ["?", "u1", ">u2", "i4", ">u8", "f2", ">f4", "f8"],
    "tiff": ["u1", ">u2", ">f4"],
}
FOLDERS = ["zarr3", "zarr2", "n5", "precomputed"]


def copy(source: object, target: object, **how: Any) -> Copied:
    return run_copy(str(source), str(target), Copying(**how), lambda done, total: None)


@contextlib.contextmanager
def small_chunks() -> Iterator[None]:
    """Several chunks, shards and blocks in small arrays."""
    with (
        mock.patch.object(distill.io.writers.metadata, "CHUNK", (2, 3, 4)),
        mock.patch.object(distill.io.writers.metadata, "_SHARD", 6),
        mock.patch.object(distill.io.writers.blocks, "BLOCK_BYTES", 150),
        mock.patch.object(distill.io.writers.blocks, "_COARSE_BYTES", 40),
    ):
        yield


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def read_there(form: str, path: Path, level: int = 0) -> tuple[NDArray[Any], list[float], list[float]]:
    """Array (c, )z, y, x, resolution and offset as another library or reader finds them."""
    if form in ("zarr2", "zarr3"):
        group = zarr.open_group(path, mode="r")
        assert group.metadata.zarr_format == int(form[-1])
        stored = group[str(level)]
        assert isinstance(stored, zarr.Array)
        attributes: Any = dict(group.attrs)
        image = attributes.get("ome", attributes)["multiscales"][0]
        assert (attributes["ome"] if form == "zarr3" else image)["version"] == {"zarr3": "0.5", "zarr2": "0.4"}[form]
        assert [axis["name"] for axis in image["axes"]] == ["c", "z", "y", "x"][-stored.ndim :]
        assert {axis["unit"] for axis in image["axes"][-3:]} == {"nanometer"}
        scale, move = image["datasets"][level]["coordinateTransformations"]
        assert image["datasets"][level]["path"] == str(level)
        return np.asarray(stored[...]), scale["scale"][-3:], move["translation"][-3:]
    if form == "n5":
        found = json.loads((path / "attributes.json").read_text())
        assert found["axes"] == ["x", "y", "z", "c"][: len(found["axes"])]
        # n5-viewer and its relatives multiply these two; the level's own size must come out.
        factors = found.get("downsamplingFactors", [1] * len(found["resolution"]))
        finest = [*found["pixelResolution"]["dimensions"], 1]
        assert [a * b for a, b in zip(finest, factors, strict=False)] == found["resolution"]
        return readers.read_n5(path), found["resolution"][2::-1], found["offset"][2::-1]
    if form == "precomputed":
        array, info = readers.read_precomputed(path, level)
        nm, start = info["scale"]["resolution"], info["scale"]["voxel_offset"]
        offset = [n * s for n, s in zip(nm, start, strict=True)]
        return array[0] if info["num_channels"] == 1 else array, nm[::-1], offset[::-1]
    if form == "hdf5":
        with h5py.File(path) as file:
            stored = file["volumes/labels/neuron_ids" if "labels" in file["volumes"] else "volumes/raw"]
            return stored[...], list(stored.attrs["resolution"]), list(stored.attrs.get("offset", (0, 0, 0)))
    with tifffile.TiffFile(path) as tif:
        metadata, tags = tif.imagej_metadata, tif.pages[0].tags
        assert metadata is not None
        assert metadata["unit"] == "nm"
        y, x = (tags[name].value[1] / tags[name].value[0] for name in ("YResolution", "XResolution"))
        nm = [metadata["spacing"], y, x]
        offset = [-metadata.get(f"{axis}origin", 0) * n for axis, n in zip("zyx", nm, strict=True)]
        array = tif.asarray()
        array = array.swapaxes(0, 1) if tif.series[0].axes == "ZCYX" else array
    return array, nm, offset


def sources(form: str) -> st.SearchStrategy[NDArray[Any]]:
    shapes = hnp.array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=7)
    return st.sampled_from(TYPES[form]).flatmap(
        lambda name: hnp.arrays(name, shapes, elements={"allow_nan": False} if "f" in name else None, fill=st.nothing())
    )


@settings(max_examples=8)
@given(data=st.data())
@pytest.mark.parametrize("form", list(NAMES))
def test_values_order_and_place_survive(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    """Of big-endian arrays in Fortran order, too; an axis of one channel is left out."""
    folder = tmp_path_factory.mktemp("v")
    array = data.draw(sources(form))
    expected = array[0] if array.ndim == 4 and len(array) == 1 else array
    if form == "tiff" and (min(expected.shape[-2:]) == 1 or (expected.ndim == 4 and min(expected.shape[:2]) == 1)):
        np.save(folder / "in.npy", array)
        with pytest.raises(ShapeError, match="expected no axis of length 1 but z"):
            copy(folder / "in.npy", folder / "a.tif", resolution=RESOLUTION, labels=False)
        return
    nm = st.sampled_from([1.0, 4.6, 30.0, 7.123456, 0.5])
    resolution: Nm = data.draw(st.tuples(nm, nm, nm))
    steps = data.draw(st.tuples(*[st.integers(-5, 5)] * 3))
    z, y, x = (n * s for n, s in zip(resolution, steps, strict=True))
    np.save(folder / "in.npy", np.asfortranarray(array))
    path = folder / NAMES[form]
    with small_chunks():
        copy(folder / "in.npy", path, form=form, resolution=resolution, offset=(z, y, x), labels=False)
    found, found_nm, found_offset = read_there(form, path)
    np.testing.assert_array_equal(np.squeeze(found), np.squeeze(expected))
    np.testing.assert_allclose(found_nm, resolution, rtol=1e-6)
    np.testing.assert_allclose(found_offset, (z, y, x), rtol=1e-6)
    again = open_volume(path)
    assert (again.shape, again.dtype) == (expected.shape, array.dtype.newbyteorder("="))
    np.testing.assert_array_equal(again.read(), expected)
    np.testing.assert_allclose(again.resolution, resolution, rtol=1e-6)
    np.testing.assert_allclose(again.offset, (z, y, x), rtol=1e-6)
    assert {item.name for item in folder.iterdir()} == {"in.npy", path.name}


@settings(max_examples=5)
@given(
    ids=hnp.arrays(
        "u8",
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        elements=st.sampled_from([0, 1, 7, 2**24 + 1, 2**32, 2**53 + 1, 2**63, 2**63 + 5, 2**64 - 5]),
        fill=st.nothing(),
    )
)
@pytest.mark.parametrize("form", [*FOLDERS, "hdf5"])
def test_ids_of_64_bits_survive(tmp_path_factory: pytest.TempPathFactory, form: str, ids: NDArray[np.uint64]) -> None:
    folder = tmp_path_factory.mktemp("v")
    np.save(folder / "in.npy", ids)
    with small_chunks():
        copied = copy(folder / "in.npy", folder / NAMES[form], form=form, resolution=RESOLUTION)
    assert copied.labels
    found = read_there(form, folder / NAMES[form])[0]
    assert found.dtype.newbyteorder("=") == np.uint64
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(open_labels(folder / NAMES[form]).read(), ids)


@pytest.mark.parametrize("form", [*FOLDERS, "hdf5"])
def test_reserved_ids_are_written_as_background(tmp_path: Path, form: str) -> None:
    np.save(tmp_path / "in.npy", np.array([[[7, *(2**64 - k for k in range(1, 6))]]], "u8"))
    copy(tmp_path / "in.npy", tmp_path / NAMES[form], form=form, resolution=RESOLUTION)
    assert read_there(form, tmp_path / NAMES[form])[0].tolist() == [[[7, 0, 0, 0, 0, 2**64 - 5]]]


@pytest.mark.parametrize("form", ["zarr3", "zarr2", "n5", "hdf5"])
def test_one_channel_of_affinities_stays_a_channel(tmp_path: Path, form: str) -> None:
    """Unlike one of an image: it is named by the offsets stored with it."""
    array = np.arange(24, dtype="u1").reshape(1, 2, 3, 4)
    source = zarr.open_group(tmp_path / "in.zarr", mode="w").create_array("a", shape=array.shape, dtype="u1")
    source[...] = array
    source.attrs.update({"resolution": RESOLUTION, "polarity": "affinity"})
    copy(f"{tmp_path}/in.zarr:a", tmp_path / NAMES[form], form=form, labels=False)
    found = open_volume(tmp_path / NAMES[form])
    assert found.shape == array.shape
    np.testing.assert_array_equal(found.read(), array)


def test_precomputed_labels_are_a_compressed_segmentation(tmp_path: Path) -> None:
    """Blocks of 8 x 8 x 8 with 1, 2, 3, 20 and 300 ids, which take 0 to 16 bits a voxel."""
    ids = np.zeros((9, 10, 43), "u8")
    rng = np.random.default_rng(3)
    for k, count in enumerate((1, 2, 3, 20, 300)):
        ids[:, :, 8 * k : 8 * k + 8] = rng.integers(0, count, (9, 10, 8)).astype("u8") * np.uint64(2**55) + np.uint64(k)
    np.save(tmp_path / "in.npy", ids)
    copy(tmp_path / "in.npy", tmp_path / "seg", form="precomputed", resolution=RESOLUTION)
    found, info = readers.read_precomputed(tmp_path / "seg")
    np.testing.assert_array_equal(found[0], ids)
    assert (info["type"], info["data_type"], info["scale"]["encoding"]) == (
        *("segmentation", "uint64"),
        "compressed_segmentation",
    )
    copy(tmp_path / "in.npy", tmp_path / "image", form="precomputed", resolution=RESOLUTION, labels=False)
    info = readers.read_precomputed(tmp_path / "image")[1]
    assert (info["type"], info["scale"]["encoding"]) == ("image", "raw")


def coarser(array: NDArray[Any], step: tuple[int, ...], start: tuple[int, ...], labels: bool) -> list[list[Any]]:
    """Oracle: of every coarse voxel the values that it may have, voxel by voxel."""
    stop = [-(-(s + n) // f) for s, n, f in zip(start, array.shape, step, strict=True)]
    first = [s // f for s, f in zip(start, step, strict=True)]
    found = []
    for z in range(first[0], stop[0]):
        for y in range(first[1], stop[1]):
            for x in range(first[2], stop[2]):
                window = array[
                    tuple(
                        slice(max(0, at * f - s), max(0, (at + 1) * f - s))
                        for at, f, s in zip((z, y, x), step, start, strict=True)
                    )
                ].ravel()
                if labels:
                    ids, counts = np.unique(window, return_counts=True)
                    found.append(ids[counts == counts.max()].tolist())
                else:
                    found.append([np.rint(np.mean(window.astype("f8"))).astype(array.dtype)])
    return found


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("form", FOLDERS)
def test_pyramid_voxel_by_voxel(tmp_path: Path, form: str, labels: bool) -> None:
    """Of an anisotropic volume whose offset lies across the coarser grids."""
    rng = np.random.default_rng(5)
    array = (
        rng.integers(0, 4, (5, 13, 11)).astype("u8") * np.uint64(2**62)
        if labels
        else rng.integers(0, 255, (5, 13, 11), "u1")
    )
    np.save(tmp_path / "in.npy", array)
    steps = (3, -5, 7)
    z, y, x = (n * s for n, s in zip((12.0, 6.0, 6.0), steps, strict=True))
    with small_chunks():
        copied = copy(
            tmp_path / "in.npy", tmp_path / "out", form=form, levels=4, resolution=(12, 6, 6), offset=(z, y, x)
        )
    assert copied.labels == labels
    start = steps if form == "precomputed" else (0, 0, 0)
    nm = np.array((12.0, 6.0, 6.0))
    for level, step in ((1, (1, 2, 2)), (2, (2, 2, 2)), (3, (2, 2, 2))):
        path = tmp_path / "out"
        found, found_nm, found_offset = read_there(form, path / f"s{level}" if form == "n5" else path, level)
        allowed = coarser(array, step, start, labels)
        assert found.size == len(allowed)
        assert all(value in choice for value, choice in zip(found.ravel().tolist(), allowed, strict=True))
        nm = nm * step
        start = tuple(s // f for s, f in zip(start, step, strict=True))
        assert list(found_nm) == nm.tolist()
        corner = np.array(start) * nm if form == "precomputed" else np.array((z, y, x))
        centre = (nm - (12, 6, 6)) / 2 if form.startswith("zarr") else 0  # OME-Zarr places centres of voxels
        np.testing.assert_allclose(found_offset, corner + centre)
        source = {"n5": f"{path}:s{level}", "precomputed": f"{path}:{'_'.join(f'{n:.10g}' for n in nm[::-1])}"}
        volume = open_volume(source.get(form, f"{path}:{level}"))
        assert (volume.resolution, volume.offset) == (tuple(nm), tuple(corner))
        np.testing.assert_array_equal(volume.read(), found)
        array = found
    if form == "n5":
        group = json.loads((tmp_path / "out" / "attributes.json").read_text())
        assert group["scales"] == [[1, 1, 1], [2, 2, 1], [4, 4, 2], [8, 8, 4]]
    assert open_volume(tmp_path / "out").size == (5, 13, 11)  # the finest level where none is named


def test_channels_stay_apart_in_pyramids(tmp_path: Path) -> None:
    array = np.arange(3 * 4 * 6 * 8, dtype="u1").reshape(3, 4, 6, 8)
    np.save(tmp_path / "in.npy", array)
    for form in FOLDERS:
        path = tmp_path / NAMES[form]
        with small_chunks():
            copy(tmp_path / "in.npy", path, form=form, levels=2, resolution=(30, 6, 6))
        found = read_there(form, path / "s1" if form == "n5" else path, 1)[0]
        expected = np.rint(array.reshape(3, 4, 3, 2, 4, 2).mean((3, 5))).astype("u1")
        np.testing.assert_array_equal(found, expected)


def test_negative_ids_are_background_and_narrow_labels_are_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([[[-1, 5, 2**40]]]))
    copy(tmp_path / "in.npy", tmp_path / "a.n5", resolution=RESOLUTION)
    assert readers.read_n5(tmp_path / "a.n5").tolist() == [[[0, 5, 2**40]]]
    np.save(tmp_path / "narrow.npy", np.ones((2, 3, 4), "u1"))
    assert not copy(tmp_path / "narrow.npy", tmp_path / "b.zarr", resolution=RESOLUTION).labels
    assert copy(tmp_path / "narrow.npy", tmp_path / "c.zarr", resolution=RESOLUTION, labels=True).volume.dtype == "u8"
    np.save(tmp_path / "grey.npy", np.full((2, 3, 4), 0.5))
    with pytest.raises(SourceError, match="labels must be integers"):
        copy(tmp_path / "grey.npy", tmp_path / "d.zarr", resolution=RESOLUTION, labels=True)


@pytest.mark.parametrize("form", list(NAMES))
def test_some_sections_move_the_offset(tmp_path: Path, form: str) -> None:
    array = np.arange(7 * 3 * 4, dtype="u1").reshape(7, 3, 4)
    np.save(tmp_path / "in.npy", array)
    path = tmp_path / NAMES[form]
    copy(tmp_path / "in.npy", path, form=form, resolution=RESOLUTION, offset=(-60, 12, 0), sections=(3, 6))
    found, _, offset = read_there(form, path)
    np.testing.assert_array_equal(found, array[3:6])
    np.testing.assert_allclose(offset, (30, 12, 0))
    with pytest.raises(ShapeError, match=r"found sections 3:8, expected a range within 0:7"):
        copy(tmp_path / "in.npy", tmp_path / "x.zarr", resolution=RESOLUTION, sections=(3, 8))


def test_every_third_section_is_three_times_as_thick(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (9, 4, 5), np.uint8)
    np.savez(tmp_path / "cubes.npz", raw, resolution=(8.0, 8.0, 8.0), offset=(16.0, 0.0, 0.0))
    found = open_volume(copy(tmp_path / "cubes.npz", tmp_path / "thin.zarr", every=3, sections=(1, None)).name)
    np.testing.assert_array_equal(found.read(), raw[[1, 4, 7]])
    assert found.resolution == (24.0, 8.0, 8.0)
    assert found.offset == (24.0, 0.0, 0.0)


def test_what_a_target_cannot_hold_is_refused_with_the_numbers(tmp_path: Path) -> None:
    ids = np.zeros((3, 2, 2), "u8")
    ids[2, 1, 1] = 70_000
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "half.npy", np.zeros((2, 2, 2), "f2"))
    np.save(tmp_path / "wide.npy", np.zeros((2, 2, 2), "i8"))
    before = tree(tmp_path)
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("ids", "a.tif", {}, r"a.tif: found id 70000 in section 2 of .*ids.npy, expected at most 65535 for TIFF"),
        ("half", "a.tif", {}, "found type float16, expected one of uint8, uint16, float32"),
        ("half", "a.n5", {}, "found type float16, expected one of uint8, .* for n5"),
        ("wide", "a.precomputed", {"labels": False}, "found type int64, expected one of .* for precomputed"),
        ("ids", "a.precomputed", {"offset": (15, 0, 2)}, r"which is 0.5, 0, 0.25 voxels, expected whole voxels"),
        ("ids", "a.tif", {"levels": 2}, "found --levels 2, expected 1: tiff holds no pyramid"),
        ("ids", "a.h5", {"levels": 3}, "found --levels 3, expected 1: hdf5 holds no pyramid"),
        ("ids", "a.zarr", {"resolution": (0, 1, 1)}, "expected three positive numbers"),
        ("ids", "a.zarr", {"resolution": None}, "no resolution found"),
        ("ids", "a.xyz", {}, r"a.xyz: found extension '.xyz', expected .zarr .* as --format"),
        ("ids", "a.zarr", {"form": "zarr4"}, "--format: found 'zarr4', expected one of zarr3"),
        ("ids", "a.tif:x", {}, "found dataset 'x', expected none: tiff"),
        ("ids", "a.zarr:../x", {}, "expected a path of plain names"),
        ("ids", "https://h.org/a.zarr", {}, "cannot be written to over HTTP"),
        ("ids", "s3://bucket/a.h5", {}, "hdf5 is written on this machine only"),
        ("ids", "s3://bucket", {"form": "n5"}, "found a whole bucket"),
    ]
    for source, target, how, message in cases:
        with pytest.raises(DistillError, match=message):
            copy(
                tmp_path / f"{source}.npy",
                target if "//" in target else tmp_path / target,
                **{"resolution": RESOLUTION, **how},
            )
        assert tree(tmp_path) == before, target


def test_what_exists_is_kept_unless_asked(tmp_path: Path) -> None:
    one, two = np.zeros((2, 3, 4), "u1"), np.ones((2, 3, 5), "u1")
    np.save(tmp_path / "one.npy", one)
    np.save(tmp_path / "two.npy", two)
    for form, name in NAMES.items():
        copy(tmp_path / "one.npy", tmp_path / name, form=form, resolution=RESOLUTION)
        before = tree(tmp_path)
        with pytest.raises(SourceError, match="exists already; expected a new name, or --overwrite"):
            copy(tmp_path / "two.npy", tmp_path / name, form=form, resolution=RESOLUTION)
        assert tree(tmp_path) == before
        copy(tmp_path / "two.npy", tmp_path / name, form=form, resolution=RESOLUTION, overwrite=True)
        np.testing.assert_array_equal(read_there(form, tmp_path / name)[0], two)
        again = copy(tmp_path / name, tmp_path / name, form=form, overwrite=True)  # from itself
        assert again.volume.size == (2, 3, 5)
        np.testing.assert_array_equal(read_there(form, tmp_path / name)[0], two)
    assert {item.name for item in tmp_path.iterdir()} == {"one.npy", "two.npy", *NAMES.values()}


def test_nothing_else_is_lost_to_an_overwrite(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 3, 4), "u1"))
    zarr.create_array(tmp_path / "a.zarr" / "affinity", shape=(1, 2, 3), dtype="u1")
    (tmp_path / "a.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    copy(tmp_path / "in.npy", tmp_path / "a.n5:one", resolution=RESOLUTION)
    copy(tmp_path / "in.npy", tmp_path / "seg.precomputed", resolution=RESOLUTION)
    info = tmp_path / "seg.precomputed" / "info"
    info.write_text(json.dumps({**json.loads(info.read_text()), "mesh": "mesh_mip_0"}))
    (tmp_path / "notes.zarr").mkdir()
    (tmp_path / "notes.zarr" / "precious.txt").write_text("x")
    (tmp_path / "file.zarr").write_text("x")
    before = tree(tmp_path)
    for name, message in (
        ("a.zarr", "holds affinity, which would be lost"),
        ("a.n5", "holds one, which would be lost"),
        ("seg.precomputed", "holds mesh_mip_0, which would be lost"),
        ("notes.zarr", "found a folder that is no Zarr, N5 or precomputed volume"),
        ("notes.zarr:x", "found a folder that is no Zarr store"),
        ("file.zarr", "found a file"),
        ("a.zarr:affinity/x", r"found a Zarr array \(version 3\), expected nothing or a group of zarr3"),
        ("a.n5:one/two", "which is an array; expected a place outside it"),
        ("seg.precomputed/x.zarr", "which is an array; expected a place outside it"),
        ("a.zarr/affinity/c/x.n5", "which is an array; expected a place outside it"),
    ):
        with pytest.raises(SourceError, match=message):
            copy(tmp_path / "in.npy", tmp_path / name, resolution=RESOLUTION, overwrite=True)
        assert tree(tmp_path) == before, name
    with pytest.raises(SourceError, match=r"found a Zarr group \(version 3\), expected nothing or a group of zarr2"):
        copy(tmp_path / "in.npy", f"{tmp_path}/a.zarr:x", form="zarr2", resolution=RESOLUTION)


def test_datasets_come_beside_each_other(tmp_path: Path) -> None:
    array = np.arange(24, dtype="u1").reshape(2, 3, 4)
    np.save(tmp_path / "in.npy", array)
    for form, name in (("zarr3", "a.zarr"), ("zarr2", "b.zarr"), ("n5", "a.n5"), ("hdf5", "a.h5")):
        for dataset in ("volumes/raw", "volumes/more/copy"):
            copy(tmp_path / "in.npy", f"{tmp_path / name}:{dataset}", form=form, resolution=RESOLUTION)
        for dataset in ("volumes/raw", "volumes/more/copy"):
            np.testing.assert_array_equal(open_volume(f"{tmp_path / name}:{dataset}").read(), array)
        with pytest.raises(SourceError, match="exists already"):
            copy(tmp_path / "in.npy", f"{tmp_path / name}:volumes/raw", form=form, resolution=RESOLUTION)
    with pytest.raises(SourceError, match="found a dataset at volumes/raw, expected a group"):
        copy(tmp_path / "in.npy", f"{tmp_path}/a.h5:volumes/raw/x", resolution=RESOLUTION, overwrite=True)
    with pytest.raises(SourceError, match="found a group, expected a dataset"):
        copy(tmp_path / "in.npy", f"{tmp_path}/a.h5:volumes", resolution=RESOLUTION, overwrite=True)
    (tmp_path / "b.h5").write_text("no HDF5")
    with pytest.raises(SourceError, match=r"b\.h5: cannot be read"):
        copy(tmp_path / "in.npy", tmp_path / "b.h5", resolution=RESOLUTION, overwrite=True)
    assert (tmp_path / "b.h5").read_text() == "no HDF5"


@pytest.mark.parametrize("form", list(NAMES))
def test_a_copy_that_fails_leaves_what_was_there(tmp_path: Path, form: str) -> None:
    sections = tmp_path / "sections"
    sections.mkdir()
    for z in range(6):
        tifffile.imwrite(sections / f"s{z}.tif", np.full((4, 5), z, "u1"))
    path = tmp_path / NAMES[form]
    copy(sections, path, form=form, resolution=RESOLUTION)
    (sections / "s4.tif").write_bytes(b"II*\0broken")
    before = tree(tmp_path)
    with small_chunks(), pytest.raises(SourceError, match=r"s4\.tif: cannot be read"):
        copy(sections, path, form=form, resolution=RESOLUTION, overwrite=True)
    assert tree(tmp_path) == before
    with small_chunks(), pytest.raises(SourceError, match=r"s4\.tif: cannot be read"):
        copy(sections, tmp_path / "deep" / "new" / NAMES[form], form=form, resolution=RESOLUTION)
    assert not list(tmp_path.rglob("*.partial"))
    if form in FOLDERS:
        assert tree(tmp_path) == before


@pytest.mark.parametrize("form", FOLDERS)
def test_interrupted_at_the_last_step(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 3, 4), "u1"))
    copy(tmp_path / "in.npy", tmp_path / "out", form=form, resolution=RESOLUTION)
    before, replace = tree(tmp_path), os.replace

    def stop(a: Path, b: Path) -> None:
        if Path(b) == tmp_path / "out" and ".partial" in str(a):
            raise KeyboardInterrupt
        replace(a, b)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        copy(tmp_path / "in.npy", tmp_path / "out", form=form, resolution=RESOLUTION, overwrite=True)
    assert tree(tmp_path) == before


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 3, 4), "u1"))
    (tmp_path / "file").write_text("x")
    for form, name in NAMES.items():
        with pytest.raises(SourceError, match="file is not a folder"):
            copy(tmp_path / "in.npy", tmp_path / "file" / name, form=form, resolution=RESOLUTION)
    monkeypatch.setattr(os, "access", lambda *_: False)
    for form, name in NAMES.items():
        with pytest.raises(SourceError, match=re.escape(f"no permission to write in {tmp_path}")):
            copy(tmp_path / "in.npy", tmp_path / name, form=form, resolution=RESOLUTION)


@pytest.mark.parametrize("form", list(NAMES))
def test_memory_is_that_of_a_block(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 MiB, what Python and NumPy hold at once."""
    monkeypatch.setattr(distill.io.writers.blocks, "BLOCK_BYTES", 2**20)
    np.save(tmp_path / "in.npy", np.zeros((128, 512, 512), "u1"))
    tracemalloc.start()
    try:
        copy(tmp_path / "in.npy", tmp_path / NAMES[form], form=form, resolution=RESOLUTION)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2**20


@pytest.mark.parametrize("form", FOLDERS)
def test_into_a_bucket(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(5 * 7 * 9, dtype="u8").reshape(5, 7, 9) * np.uint64(2**52)
    np.save(tmp_path / "in.npy", array)
    dataset = "" if form == "precomputed" else ":volumes/seg"
    store = servers.Store()
    with servers.serving(store) as address, small_chunks():
        for name, value in (("ENDPOINT_URL", address), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
            monkeypatch.setenv(f"AWS_{name}", value)
        target = f"s3://bucket/{NAMES[form]}{dataset}"
        copy(tmp_path / "in.npy", target, form=form, levels=2, resolution=RESOLUTION, offset=(30, -12, 16))
        asked = list(store.asked)
        volume = open_labels(target)
        assert (volume.resolution, volume.offset) == (RESOLUTION, (30, -12, 16))
        np.testing.assert_array_equal(volume.read(), array)
        before = dict(store.files)
        for overwrite in (False, True):
            with pytest.raises(SourceError, match="exists already; expected a new name"):
                copy(tmp_path / "in.npy", target, form=form, resolution=RESOLUTION, overwrite=overwrite)
        assert store.files == before
        store.refuse_writing = True
        with pytest.raises(SourceError, match=r"new: cannot be written: .*denied|new: cannot be written: PERM"):
            copy(tmp_path / "in.npy", "s3://bucket/new", form=form, resolution=RESOLUTION)
    states = [name for name in store.files if name.endswith("distill-copy.json")]
    assert json.loads(store.files.pop(states[0])) == {"finished": True}
    there = tmp_path / "there"
    for name, content in store.files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content)
    written = [line for line in asked if line.startswith("PUT")]
    documents = [
        k
        for k, line in enumerate(written)
        if line.endswith(("zarr.json", "attributes.json", ".zarray", ".zattrs", ".zgroup", "/info"))
    ]
    chunks = [k for k, line in enumerate(written) if k not in documents and "distill-copy" not in line]
    assert max(chunks) < min(documents)  # what was broken off does not open
    with small_chunks():
        copy(
            tmp_path / "in.npy",
            f"{tmp_path}/here/{NAMES[form]}{dataset}",
            form=form,
            levels=2,
            resolution=RESOLUTION,
            offset=(30, -12, 16),
        )
    assert tree(tmp_path / "here") == tree(there / "bucket")


@pytest.mark.commands("copy")
def test_command(cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.arange(24, dtype="u4").reshape(2, 3, 4))
    words = ("--resolution", "30,6,6", "--offset", "60,0,-6", "--sections", "1:2", "--levels", "2")
    said = cli("copy", tmp_path / "in.npy", tmp_path / "a.zarr:seg", *words)
    assert said.code == 0, said.err
    assert f"{tmp_path}/a.zarr:seg: zarr3, ids, 1 x 3 x 4 uint64, 30, 6, 6 nm" in said.out
    assert "level 1: 1 x 2 x 2" in said.out
    assert open_volume(f"{tmp_path}/a.zarr:seg").offset == (90, 0, -6)
    said = cli("copy", tmp_path / "in.npy", tmp_path / "a.zarr:seg", *words)
    assert (said.code, said.out) == (2, "")
    assert said.err == f"distill: {tmp_path}/a.zarr:seg: exists already; expected a new name, or --overwrite\n"
    said = cli("copy", tmp_path / "in.npy", tmp_path / "a.zarr:seg", *words, "--overwrite", "--image")
    assert "zarr3, grey values, 1 x 3 x 4 uint32" in said.out
    assert "uint32" in cli("info", f"{tmp_path}/a.zarr").out
