"""Volumes in files of every format: datasets, sections, grey values, errors."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from volume_files import RESOLUTION, assert_reads, ramp, save_sections, save_tiff, save_zarr

from distill.core.errors import ShapeError, SourceError
from distill.core.geometry import Box
from distill.io.source import find_arrays
from distill.io.volume import Volume, check_pair, every_section, open_labels, open_volume, volume_from_array


def save_hdf5(path: Path, **arrays: NDArray[Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name.replace("__", "/"), data=array).attrs["resolution"] = RESOLUTION
    return path


def test_hdf5_default_dataset(tmp_path: Path) -> None:
    many = save_hdf5(tmp_path / "m.h5", one=ramp(2, 3, 4), two=ramp(2, 3, 4), flat=ramp(3))
    with pytest.raises(SourceError, match=r"m\.h5: found 2 volumes, expected one after a colon: one, two"):
        open_volume(many)
    assert open_volume(save_hdf5(tmp_path / "a.h5", only=ramp(2, 3, 4), flat=ramp(3))).source.endswith("a.h5:only")
    cremi = save_hdf5(tmp_path / "c.h5", volumes__raw=ramp(2, 3, 4), volumes__labels__neuron_ids=ramp(2, 3, 4))
    assert open_volume(cremi).source.endswith(":volumes/raw")
    assert open_labels(cremi).source.endswith(":volumes/labels/neuron_ids")
    names = {"affinity": ramp(3, 2, 3, 4), "segmentation": ramp(2, 3, 4), "supervoxels": ramp(2, 3, 4)}
    assert open_labels(save_hdf5(tmp_path / "s.h5", **names)).source.endswith("s.h5:segmentation")
    with pytest.raises(SourceError, match=r"f\.h5: found no 3D or 4D array, expected one among: flat"):
        open_volume(save_hdf5(tmp_path / "f.h5", flat=ramp(3)))


def test_missing_dataset_names_the_nearest_first(tmp_path: Path) -> None:
    path = save_hdf5(tmp_path / "a.h5", labels=ramp(2, 3, 4), volumes__raw=ramp(2, 3, 4))
    with pytest.raises(SourceError, match=r"a\.h5: found no dataset 'volumes/row', expected one of: volumes/raw, lab"):
        open_volume(f"{path}:volumes/row")
    with pytest.raises(SourceError, match=r"found no dataset 'volumes'"):
        open_volume(f"{path}:volumes")
    np.savez(tmp_path / "a.npz", raw=ramp(2, 3, 4))
    with pytest.raises(SourceError, match=r"a\.npz: found no dataset 'rew', expected one of: raw"):
        open_volume(f"{tmp_path}/a.npz:rew")
    store = save_zarr(tmp_path / "a.zarr", ramp(2, 3, 4), (1, 3, 4), 3)
    with pytest.raises(SourceError, match=r"a\.zarr: found no dataset 'a/c', expected one of: a/b"):
        open_volume(f"{store}:a/c")
    assert open_volume(store, resolution=RESOLUTION).source.endswith("a.zarr:a/b")  # its only array


def test_paths_with_a_colon(tmp_path: Path) -> None:
    path = save_hdf5(tmp_path / "2024:cell.h5", raw=ramp(2, 3, 4), other=ramp(2, 3, 4))
    assert open_volume(f"{path}:raw").source == f"{path}:raw"
    assert len(find_arrays(path)) == 2
    folder = save_sections(tmp_path / "a:b", ramp(2, 3, 4))
    assert open_volume(folder, resolution=RESOLUTION).size == (2, 3, 4)


@pytest.mark.parametrize("name", ["a.h5", "a.h5:volumes/raw", "a.tif", "folder", "a.zarr:raw", "a.npz:raw"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    file = re.escape(str(tmp_path / name.split(":")[0]))
    with pytest.raises(SourceError, match=f"^{file}: no such file$"):
        open_volume(f"{tmp_path}/{name}")
    with pytest.raises(SourceError, match=r"s\*\.tif: no file matches$"):
        open_volume(f"{tmp_path}/s*.tif")


@pytest.mark.parametrize("name", ["a.h5", "a.tif", "a.npy", "a.npz", "a.png", "a.zarr"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_corrupt_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    if name == "a.zarr":
        path.mkdir()
        (path / "zarr.json").write_bytes(content)
    else:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"{re.escape(name)}(/zarr\.json)?: cannot be read: .+") as caught:
        open_volume(path, resolution=RESOLUTION)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"metadata": None},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"tile": (16, 16)},
    ],
)
def test_a_cut_off_tiff_is_never_taken_for_a_shorter_stack(tmp_path: Path, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 30, 40), np.uint8)
    path = save_tiff(tmp_path / "a.tif", noise, **options)
    assert_reads(open_volume(path, resolution=RESOLUTION), noise)
    content = path.read_bytes()
    refusals = []
    for size in range(0, len(content), 101):
        path.write_bytes(content[:size])
        try:
            found = open_volume(path, resolution=RESOLUTION).read()
        except SourceError as error:
            refusals.append(str(error))
        else:
            np.testing.assert_array_equal(found, noise)
    assert len(refusals) > 40
    assert all("a.tif: cannot be read: " in refusal for refusal in refusals)


def test_a_cut_off_section_image_is_refused(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "s0.tif", ramp(30, 40), compression="zlib", rowsperstrip=5)
    save_tiff(tmp_path / "s1.tif", ramp(30, 40), compression="zlib", rowsperstrip=5)
    volume = open_volume(tmp_path, resolution=RESOLUTION)
    with tifffile.TiffFile(path) as tif:
        starts = tif.pages[0].dataoffsets
    for size in (starts[3], starts[3] + 5):
        (tmp_path / "s1.tif").write_bytes(path.read_bytes()[:size])
        with pytest.raises(SourceError, match=r"s1\.tif: cannot be read: the file is cut off"):
            volume.read()


def test_pages_written_one_by_one_are_a_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for section in ramp(5, 20, 21):
            writer.write(section, compression="zlib")
    assert_reads(open_volume(tmp_path / "a.tif", resolution=RESOLUTION), ramp(5, 20, 21))


def test_volumetric_tiles_are_read(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", ramp(5, 20, 21), tile=(4, 16, 16), volumetric=True)
    assert_reads(open_volume(path, resolution=RESOLUTION), ramp(5, 20, 21))


def test_a_missing_codec_is_named(tmp_path: Path) -> None:
    path = save_zarr(tmp_path / "a.zarr", ramp(2, 3, 4), (1, 3, 4), 3, resolution=RESOLUTION)
    header = json.loads((path / "a/b/zarr.json").read_text())
    header["codecs"][-1] = {"name": "homemade", "configuration": {}}
    (path / "a/b/zarr.json").write_text(json.dumps(header))
    with pytest.raises(SourceError, match=r"a/b: cannot be read: .*homemade"):
        open_volume(f"{path}:a/b").read()


def test_folders_and_names_that_hold_no_volume(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found no section images in this folder"):
        open_volume(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SourceError, match=r"a\.txt: found extension '\.txt', expected \.h5"):
        open_volume(tmp_path / "a.txt")
    with pytest.raises(SourceError, match=r"a\.txt: found extension '\.txt', expected a section image"):
        open_volume(f"{tmp_path}/*.txt")
    path = save_tiff(tmp_path / "a.tif", ramp(2, 20, 20))
    with pytest.raises(SourceError, match=r"a\.tif: found dataset 'raw', expected none"):
        open_volume(f"{path}:raw")


def test_arrays_that_are_no_volume(tmp_path: Path) -> None:
    cases = {
        "flat": ramp(3, 4),
        "empty": ramp(0, 3, 4),
        "text": np.full((2, 2, 2), b"x"),
        "complex": ramp(2, 2, 2) + 0j,
    }
    path = save_hdf5(tmp_path / "a.h5", **cases)
    for name, message in {
        "flat": r"found shape \(3, 4\), expected 3 axes",
        "empty": "found an empty array",
        "text": r"found type \|S1, expected integer or floating",
        "complex": "found type complex128, expected integer or floating",
    }.items():
        with pytest.raises(SourceError, match=rf"a\.h5:{name}: {message}"):
            open_volume(f"{path}:{name}")


@pytest.mark.parametrize("other", [ramp(4, 4), ramp(3, 5, dtype="u2")])
def test_a_section_that_differs_is_named(tmp_path: Path, other: NDArray[Any]) -> None:
    folder = save_sections(tmp_path / "s", ramp(4, 3, 5))
    iio.imwrite(folder / "s2.png", other)
    volume = open_volume(folder, resolution=RESOLUTION)
    found = re.escape(f"s2.png: found {other.shape} {other.dtype}, expected (3, 5) uint8 as in ")
    with pytest.raises(SourceError, match=f"{found}.*s0"):
        volume.read()
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (2, 3, 5))), ramp(4, 3, 5)[:2])


def test_colour_and_stacked_sections_are_refused(tmp_path: Path) -> None:
    iio.imwrite(tmp_path / "rgb.png", ramp(6, 5, 3))
    with pytest.raises(SourceError, match=r"rgb\.png: found 3 channels per pixel that differ, expected greyscale"):
        open_volume(tmp_path / "rgb.png", resolution=RESOLUTION).read()
    tifffile.imwrite(tmp_path / "rgb.tif", ramp(2, 6, 5, 3), photometric="rgb")
    with pytest.raises(SourceError, match=r"rgb\.tif: found 3 channels per pixel that differ, expected greyscale"):
        open_volume(tmp_path / "rgb.tif", resolution=RESOLUTION).read()
    save_tiff(tmp_path / "s0.tif", ramp(3, 20, 20))
    with pytest.raises(SourceError, match=r"s0\.tif: found 3 pages, expected one section per file"):
        open_volume(f"{tmp_path}/s*.tif", resolution=RESOLUTION)
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as writer:
        writer.write(ramp(20, 20))
        writer.write(ramp(21, 20))
    with pytest.raises(SourceError, match=r"mixed\.tif: found pages of different size or type"):
        open_volume(tmp_path / "mixed.tif", resolution=RESOLUTION)


@pytest.mark.parametrize("dtype", ["i8", "i4", ">i8"])
def test_negative_labels_read_as_background(tmp_path: Path, dtype: str) -> None:
    stored = np.array([[[0, 1, -1, 7, -5, 2**30]]], dtype)
    labels = open_labels(save_hdf5(tmp_path / "a.h5", volumes__labels__neuron_ids=stored))
    assert labels.dtype == np.uint64
    assert labels.read().dtype == np.uint64
    assert labels.read().tolist() == [[[0, 1, 0, 7, 0, 2**30]]]
    assert [section.tolist() for section in labels.sections()] == [[[0, 1, 0, 7, 0, 2**30]]]


def test_the_unsigned_no_label_mark_reads_as_background(tmp_path: Path) -> None:
    top = [2**64 - 1, 2**64 - 2, 2**64 - 3, 2**64 - 4, 2**64 - 5]
    stored = np.array([[[0, 5, *top, 2**53 + 1]]], np.uint64)
    labels = open_labels(save_hdf5(tmp_path / "a.h5", ids=stored))
    assert labels.read().tolist() == [[[0, 5, 0, 0, 0, 0, 2**64 - 5, 2**53 + 1]]]
    narrow = open_labels(save_hdf5(tmp_path / "b.h5", ids=np.array([[[2**32 - 1, 2**32 - 5, 255]]], np.uint32)))
    assert narrow.read().tolist() == [[[0, 2**32 - 5, 255]]]
    small = open_labels(save_hdf5(tmp_path / "c.h5", ids=np.array([[[65535, 255]]], np.uint16)))
    assert small.read().tolist() == [[[65535, 255]]]  # 16 bits have no ids to spare


def test_labels_must_be_3d_integers(tmp_path: Path) -> None:
    path = save_hdf5(
        tmp_path / "a.h5", f=ramp(2, 3, 4, dtype="f4") + 0.5, b=ramp(2, 3, 4, dtype="?"), c=ramp(2, 2, 3, 4)
    )
    save_hdf5(tmp_path / "whole.h5", f=ramp(2, 3, 4, dtype="f4"))
    np.testing.assert_array_equal(open_labels(tmp_path / "whole.h5").read(), ramp(2, 3, 4))
    with pytest.raises(SourceError, match=r"^labels must be integers: found float32 with .*a\.h5:f$"):
        open_labels(f"{path}:f").read()
    assert open_labels(f"{path}:b").read().max() == 1  # a mask
    with pytest.raises(SourceError, match=r"labels must be 3D \(z, y, x\): found shape \(2, 2, 3, 4\)"):
        open_labels(f"{path}:c")


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("kind", ["hdf5", "tiff", "array"])
def test_every_section(tmp_path: Path, kind: str, step: int) -> None:
    array = np.random.default_rng(step).integers(0, 255, (7, 5, 6), dtype=np.uint8)
    if kind == "hdf5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["volumes/raw"] = array
        whole = open_volume(tmp_path / "a.h5", resolution=(10, 10, 10))
    elif kind == "tiff":
        tifffile.imwrite(tmp_path / "a.tif", array)
        whole = open_volume(tmp_path / "a.tif", resolution=(10, 10, 10))
    else:
        whole = volume_from_array(array, (10, 10, 10))
    volume, expected = every_section(whole, step), array[::step]
    assert volume.shape == expected.shape
    assert volume.resolution == (10 * step, 10, 10)
    np.testing.assert_array_equal(volume.read(), expected)
    np.testing.assert_array_equal(np.stack(list(volume.sections())), expected)
    last = len(expected)
    box = Box((last - 1, 1, 2), (last, 4, 6))
    np.testing.assert_array_equal(volume.read(box), expected[-1:, 1:4, 2:6])


def test_every_section_of_channels_and_labels() -> None:
    array = np.arange(2 * 5 * 3 * 4, dtype=np.uint16).reshape(2, 5, 3, 4)
    volume = every_section(volume_from_array(array, (10, 4, 4)), 2)
    np.testing.assert_array_equal(volume.read(), array[:, ::2])
    with pytest.raises(ShapeError, match="found a step of 0 sections, expected at least 1"):
        every_section(volume, 0)


def test_check_pair() -> None:
    raw = volume_from_array(ramp(2, 3, 4), (30, 6, 6), source="raw.h5")
    check_pair(raw, volume_from_array(ramp(2, 3, 4), (30, 6.0000001, 6), source="ids.h5"))
    with pytest.raises(ShapeError, match=r"ids\.h5: found size \(2, 3, 5\), expected \(2, 3, 4\) .* as in raw\.h5"):
        check_pair(raw, volume_from_array(ramp(2, 3, 5), (30, 6, 6), source="ids.h5"))
    with pytest.raises(ShapeError, match=r"ids\.h5: found resolution \(40\.0, 6\.0, 6\.0\) nm, expected .* raw\.h5"):
        check_pair(raw, volume_from_array(ramp(2, 3, 4), (40, 6, 6), source="ids.h5"))


def test_read_gives_a_copy_and_holds_no_file(tmp_path: Path) -> None:
    array = ramp(2, 3, 4)
    np.save(tmp_path / "a.npy", array)
    for volume in (open_volume(tmp_path / "a.npy", resolution=RESOLUTION), volume_from_array(array, RESOLUTION)):
        volume.read()[...] = 99
        next(volume.sections())[...] = 99
        np.testing.assert_array_equal(volume.read(), ramp(2, 3, 4))
    held = open_volume(tmp_path / "a.npy", resolution=RESOLUTION)
    part = held.read()
    (tmp_path / "a.npy").unlink()
    np.testing.assert_array_equal(part, array)
    with pytest.raises(SourceError, match=r"a\.npy: no such file"):
        held.read()


def _total(volume: Volume) -> int:
    return int(volume.read().sum())


@pytest.mark.parametrize("kind", ["hdf5", "zarr3"])
def test_an_open_volume_survives_pickling_and_fork(tmp_path: Path, kind: str) -> None:
    array = ramp(2, 3, 4)
    save_zarr(tmp_path / "a.zarr", array, (1, 3, 4), 3, resolution=RESOLUTION)
    save_hdf5(tmp_path / "a.h5", raw=array)
    volume = open_volume(f"{tmp_path}/a.zarr:a/b" if kind == "zarr3" else tmp_path / "a.h5")
    assert pickle.loads(pickle.dumps(volume)) == volume
    with multiprocessing.get_context("forkserver" if kind == "zarr3" else "fork").Pool(1) as pool:
        assert pool.apply(_total, (volume,)) == array.sum()


def test_sharded_zarr_is_read_by_inner_chunks(tmp_path: Path) -> None:
    array = ramp(8, 8, 8)
    stored = zarr.create_array(tmp_path / "a.zarr", shape=(8, 8, 8), dtype="u1", chunks=(2, 8, 8), shards=(8, 8, 8))
    stored[...] = array
    volume = open_volume(tmp_path / "a.zarr", resolution=RESOLUTION)
    assert volume.chunks == (2, 8, 8)
    assert_reads(volume, array)


@pytest.mark.parametrize(
    ("name", "shape", "resolution"),
    [
        ("ac4_quadrant.h5", (80, 512, 512), (30, 6, 6)),
        ("cremi_sample_B_sections_46_50.hdf", (5, 500, 500), (40, 4, 4)),
    ],
)
def test_real_cremi_files(
    real_data: Callable[[str], Path], name: str, shape: tuple[int, ...], resolution: tuple[float, ...]
) -> None:
    path = real_data(name)
    raw, labels = open_volume(path), open_labels(path)
    check_pair(raw, labels)
    assert (raw.shape, raw.dtype, raw.resolution) == (shape, np.dtype(np.uint8), resolution)
    with h5py.File(path) as file:
        expected = file["volumes/labels/neuron_ids"][3:5]
        np.testing.assert_array_equal(raw.read(Box((3, 10, 20), (4, 90, 80))), file["volumes/raw"][3:4, 10:90, 20:80])
    np.testing.assert_array_equal(list(labels.sections(3, 5)), expected)


@pytest.mark.parametrize(("name", "depth"), [("vnc_stack1.tif", 20), ("ac4_sections", 24), ("ac4_sections/*.tif", 24)])
def test_real_stacks(real_data: Callable[[str], Path], name: str, depth: int) -> None:
    path = real_data(name.split("/")[0])
    source = path / "*.tif" if "*" in name else path
    with pytest.raises(SourceError, match="no resolution found"):
        open_volume(source)
    volume = open_volume(source, resolution=(50, 4.6, 4.6))
    assert volume.shape == (depth, 1024, 1024)
    file, page = (path, 7) if path.is_file() else (path / "section_0007.tif", 0)
    np.testing.assert_array_equal(next(volume.sections(7)), tifffile.imread(file, key=page))


def test_the_streamed_sections_hold_the_labelled_quadrant(real_data: Callable[[str], Path]) -> None:
    sections = open_volume(real_data("ac4_sections"), resolution=(30, 6, 6))
    quadrant = open_volume(real_data("ac4_quadrant.h5"))
    box = Box((11, 0, 0), (12, 512, 512))
    assert sections.read(box.shift((0, 512, 512))).shape == quadrant.read(box).shape
