"""Reading volumes, against files written by h5py, tifffile, imageio, NumPy and zarr-python."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from volume_files import RESOLUTION, arrays, assert_reads, ramp, save_sections, save_tiff, save_zarr

import distill.io.readers.images
import distill.io.volume.volume
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box
from distill.io.readers.array import Index, Reading
from distill.io.volume import Volume, open_volume, volume_from_array

ON_DISK = settings(deadline=None, max_examples=30)


TYPES = ["|b1", "|u1", "|i1", "<u2", ">u2", ">i4", "<u8", ">i8", "<f4", ">f8"]


TIFF_TYPES = [name for name in TYPES if name not in ("|b1", "<u8", ">i8")]


@ON_DISK
@given(array=arrays(TYPES), chunked=st.booleans())
def test_hdf5_round_trip(tmp_path_factory: pytest.TempPathFactory, array: NDArray[Any], chunked: bool) -> None:
    path = tmp_path_factory.mktemp("v") / "a.hdf"
    with h5py.File(path, "w") as file:
        file.create_dataset("x/y", data=array, chunks=tuple(min(2, n) for n in array.shape) if chunked else None)
    assert_reads(open_volume(f"{path}:/x/y", resolution=RESOLUTION), array)
    assert_reads(open_volume(path, resolution=RESOLUTION), array)


@ON_DISK
@given(array=arrays(TIFF_TYPES, (3, 3)), zipped=st.booleans(), order=st.sampled_from("<>"))
def test_tiff_round_trip(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[Any], zipped: bool, order: str
) -> None:
    path = tmp_path_factory.mktemp("v") / "a.tif"
    save_tiff(path, array, byteorder=order, compression="zlib" if zipped else None, metadata={"axes": "ZYX"})
    assert_reads(open_volume(path, resolution=RESOLUTION), array)


@ON_DISK
@given(array=arrays(TYPES), packed=st.booleans(), fortran=st.booleans())
def test_numpy_round_trip(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[Any], packed: bool, fortran: bool
) -> None:
    folder = tmp_path_factory.mktemp("v")
    saved = np.asfortranarray(array) if fortran else array
    np.save(folder / "a.npy", saved)
    assert_reads(open_volume(folder / "a.npy", resolution=RESOLUTION), array)
    (np.savez_compressed if packed else np.savez)(folder / "a.npz", raw=saved, resolution=np.array(RESOLUTION))
    volume = open_volume(folder / "a.npz")
    assert volume.resolution == RESOLUTION
    assert_reads(volume, array)


@ON_DISK
@given(array=arrays(TYPES), side=st.integers(1, 4), version=st.sampled_from([2, 3]))
def test_zarr_round_trip(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[Any], side: int, version: int
) -> None:
    path = tmp_path_factory.mktemp("v") / "a.zarr"
    save_zarr(path, array, tuple(min(side, n) for n in array.shape), version, resolution=RESOLUTION)
    volume = open_volume(f"{path}:a/b")
    assert (volume.kind, volume.resolution) == (f"zarr{version}", RESOLUTION)
    assert_reads(volume, array)
    assert_reads(open_volume(path / "a" / "b"), array)


@ON_DISK
@given(array=arrays(TYPES))
def test_array_round_trip(array: NDArray[Any]) -> None:
    volume = volume_from_array(array[..., ::-1], RESOLUTION, (1.0, 2.0, 3.0))
    assert_reads(volume, array[..., ::-1])
    assert volume.offset == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_folder_and_glob_are_read_in_natural_order(tmp_path: Path, suffix: str, dtype: str) -> None:
    array = ramp(12, 6, 5, dtype=dtype) * (300 if dtype == "u2" else 1)
    folder = save_sections(tmp_path / "sections", array, suffix)
    (folder / "notes.txt").write_text("not an image")
    (folder / f"._s0.{suffix}").write_text("not an image either")
    assert_reads(open_volume(folder, resolution=RESOLUTION), array)
    assert_reads(open_volume(f"{folder}/s*.{suffix}", resolution=RESOLUTION), array)
    assert_reads(open_volume(folder / f"s2.{suffix}", resolution=RESOLUTION), array[2:3])


def test_sections_of_a_folder_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_sections(tmp_path / "s", ramp(6, 5, 4))
    (folder / "s4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    read: list[str] = []
    original = distill.io.readers.images.read_section

    def noted(path: Path, reading: Reading) -> NDArray[Any]:
        read.append(path.name)
        return original(path, reading)

    monkeypatch.setattr(distill.io.readers.images, "read_section", noted)
    volume = open_volume(folder, resolution=RESOLUTION)
    assert read == []  # headers tell size and type
    volume.read(Box((2, 0, 0), (3, 5, 4)))
    assert read == ["s2.png"]
    given_sections: list[NDArray[Any]] = []
    with pytest.raises(SourceError, match=r"s4\.png: cannot be read: "):
        given_sections.extend(volume.sections())
    np.testing.assert_array_equal(given_sections, ramp(6, 5, 4)[:4])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_stack_is_never_held_whole(tmp_path: Path, compression: str | None) -> None:
    section = np.zeros((256, 256), np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for z in range(200):
            writer.write(section + np.uint16(z), contiguous=compression is None, compression=compression)
    volume = open_volume(tmp_path / "a.tif", resolution=RESOLUTION)
    assert volume.shape == (200, 256, 256)
    list(volume.sections(0, 1))
    tracemalloc.start()
    means = [int(part.mean()) for part in volume.sections()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert means == list(range(200))
    assert peak < 20 * section.nbytes


def test_deep_chunks_are_read_once_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    array = ramp(11, 6, 6)
    path = save_zarr(tmp_path / "a.zarr", array, (4, 6, 6), 3, resolution=RESOLUTION)
    depths: list[tuple[int, int]] = []
    original = Volume._index

    def noted(volume: Volume, box: Box) -> Index:
        depths.append((box.start[0], box.stop[0]))
        return original(volume, box)

    monkeypatch.setattr(Volume, "_index", noted)
    sections = list(open_volume(f"{path}:a/b").sections(2))
    assert depths == [(2, 4), (4, 8), (8, 11)]
    np.testing.assert_array_equal(sections, array[2:])
    monkeypatch.setattr(distill.io.volume.volume, "_BLOCK_BYTES", 2 * 36)
    depths.clear()
    list(open_volume(f"{path}:a/b").sections(0, 4))
    assert depths == [(0, 2), (2, 4)]


@pytest.mark.parametrize(("axes", "shape"), [("CZYX", (2, 3, 8, 7)), ("ZCYX", (3, 2, 8, 7))])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_channels_come_first(tmp_path: Path, axes: str, shape: tuple[int, ...], compression: str | None) -> None:
    array = ramp(*shape)
    path = save_tiff(tmp_path / "a.tif", array, metadata={"axes": axes}, compression=compression)
    assert_reads(open_volume(path, resolution=RESOLUTION), array if axes[0] == "C" else array.swapaxes(0, 1))


@pytest.mark.parametrize(("unit", "scale"), [("nm", 1.0), ("um", 1000.0), ("micron", 1000.0), ("\\u00B5m", 1000.0)])
def test_resolution_from_imagej(tmp_path: Path, unit: str, scale: float) -> None:
    options = {"imagej": True, "resolution": (1 / 5, 1 / 4), "metadata": {"spacing": 40, "unit": unit, "axes": "ZYX"}}
    volume = open_volume(save_tiff(tmp_path / "a.tif", ramp(3, 6, 5), **options))
    assert volume.resolution == pytest.approx([40 * scale, 4 * scale, 5 * scale])
    assert_reads(volume, ramp(3, 6, 5))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resolution": (72, 72), "resolutionunit": "INCH"},
        {"resolution": (1, 1), "resolutionunit": "NONE"},
        {"resolution": (2.5e6, 2.5e6), "resolutionunit": "CENTIMETER"},
        {"imagej": True, "resolution": (1, 1), "metadata": {"spacing": 1, "unit": "pixel", "axes": "ZYX"}},
        {"imagej": True, "resolution": (1, 1), "metadata": {"unit": "nm", "axes": "ZYX"}},
    ],
)
def test_resolution_tags_without_a_z_unit_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save_tiff(tmp_path / "a.tif", ramp(3, 6, 5), **options)
    message = f"{path}: no resolution found; give it as --resolution Z,Y,X in nm, e.g. --resolution 30,6,6"
    with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
        open_volume(path)


def test_resolution_of_section_images_from_their_tags(tmp_path: Path) -> None:
    options = {"imagej": True, "resolution": (1 / 5, 1 / 4), "metadata": {"spacing": 30, "unit": "nm", "axes": "YX"}}
    for z in range(2):
        save_tiff(tmp_path / f"{z}.tif", ramp(6, 5), **options)
    assert open_volume(tmp_path).resolution == pytest.approx((30, 4, 5))


@pytest.mark.parametrize(
    ("attributes", "resolution", "offset"),
    [
        ({"resolution": [4.0, 2.0, 1.0]}, (4, 2, 1), (0, 0, 0)),
        ({"voxel_size": np.array([4, 2, 1]), "offset": [8, 0, -2], "units": "nm"}, (4, 2, 1), (8, 0, -2)),
        ({"resolution": [0.04, 0.004, 0.004], "offset": [1, 0, 0], "units": "um"}, (40, 4, 4), (1000, 0, 0)),
        ({"resolution": [0.04, 0.004, 0.004], "units": ["micrometers"] * 3}, (40, 4, 4), (0, 0, 0)),
    ],
)
def test_resolution_from_attributes(
    tmp_path: Path, attributes: dict[str, Any], resolution: tuple[float, ...], offset: tuple[float, ...]
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("volumes/raw", data=ramp(2, 3, 4)).attrs.update(attributes)
    volume = open_volume(tmp_path / "a.h5")
    assert volume.resolution == pytest.approx(resolution)
    assert volume.offset == pytest.approx(offset)
    assert open_volume(tmp_path / "a.h5", resolution=(9, 8, 7), offset=(1, 1, 1)).resolution == (9, 8, 7)
    assert open_volume(tmp_path / "a.h5", resolution=(9, 8, 7), offset=(1, 1, 1)).offset == (1, 1, 1)


@pytest.mark.parametrize("text", ["30, 6, 6", "30,6,6", "[30.0 6.0 6.0]", b"(30, 6, 6)"])
def test_resolution_as_text(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=ramp(2, 3, 4)).attrs["resolution"] = text
    assert open_volume(f"{path}:raw").resolution == (30.0, 6.0, 6.0)


@pytest.mark.parametrize("bad", [[0, 1, 1], [1, -1, 1], [np.nan, 1, 1], [np.inf, 1, 1], [1, 1], "nonsense", 4.0])
def test_resolution_must_be_three_positive_numbers(tmp_path: Path, bad: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=ramp(2, 3, 4)).attrs["resolution"] = bad
    with pytest.raises(SourceError, match=r"a\.h5:raw: found resolution .* expected three positive numbers"):
        open_volume(tmp_path / "a.h5")
    assert open_volume(tmp_path / "a.h5", resolution=RESOLUTION).resolution == RESOLUTION
    if isinstance(bad, list):
        with pytest.raises(SourceError, match="expected three positive numbers"):
            volume_from_array(ramp(2, 3, 4), tuple(bad))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("unit", "nm"), [("micrometer", 1000.0), ("nanometer", 1.0)])
def test_resolution_from_ome_zarr(tmp_path: Path, version: int, unit: str, nm: float) -> None:
    path = save_zarr(tmp_path / "a.zarr", ramp(2, 3, 4, 5), (1, 1, 4, 5), version)
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space", "unit": unit} for name in "zyx")]
    steps = [{"type": "scale", "scale": [1, 0.5, 4, 5]}, {"type": "translation", "translation": [0, 1, 2, 3]}]
    images: Any = [{"axes": axes, "datasets": [{"path": "a/b", "coordinateTransformations": steps}]}]
    attributes = zarr.open_group(path, mode="a").attrs
    attributes.update({"ome": {"version": "0.5", "multiscales": images}} if version == 3 else {"multiscales": images})
    for volume in (open_volume(f"{path}:a/b"), open_volume(path / "a/b")):
        assert volume.resolution == pytest.approx((0.5 * nm, 4 * nm, 5 * nm))
        assert volume.offset == pytest.approx((nm, 2 * nm, 3 * nm))
    del axes[1]["unit"]
    attributes.update({"ome": {"multiscales": images}} if version == 3 else {"multiscales": images})
    with pytest.raises(SourceError, match="no resolution found"):
        open_volume(f"{path}:a/b")


def test_a_box_outside_is_refused() -> None:
    volume = volume_from_array(ramp(2, 3, 4), RESOLUTION, source="cell")
    with pytest.raises(DistillError, match=r"cell: found box \(0, 0, 0\) to \(2, 3, 5\), expected .* \(2, 3, 4\)"):
        volume.read(Box((0, 0, 0), (2, 3, 5)))
    with pytest.raises(DistillError, match=r"found box \(-1, 0, 0\)"):
        volume.read(Box((-1, 0, 0), (2, 3, 4)))
    for start, stop in ((-1, 1), (0, 3), (2, 1)):
        with pytest.raises(DistillError, match="cell: found sections"):
            volume.sections(start, stop)
