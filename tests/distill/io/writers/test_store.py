"""Writing volumes, read back by h5py and zarr-python, and what failures leave behind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import distill.io.writers.store
from distill.core.errors import DistillError, ShapeError, SourceError
from distill.core.geometry import Box
from distill.io.readers.array import Cut, Index
from distill.io.volume import Volume, open_labels, open_volume, volume_from_array
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import ZarrArray, create_zarr, open_zarr_for_writing, write_group_attributes

RESOLUTION = (40.0, 4.0, 5.0)
ON_DISK = settings(deadline=None, max_examples=30)


def ramp(*shape: int, dtype: str = "u1") -> NDArray[Any]:
    """An array whose values tell neighbouring voxels and sections apart."""
    return (np.arange(np.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)


@contextmanager
def _open_failing(array: NDArray[Any], at: int) -> Iterator[Cut]:
    def cut(index: Index) -> NDArray[Any]:
        if index[0].start >= at:
            raise SourceError(f"section {at} is gone")
        return array[index]

    yield cut


def failing_volume(array: NDArray[Any], at: int) -> Volume:
    """A volume whose sections from `at` on cannot be read."""
    return replace(volume_from_array(array, RESOLUTION), _opener=lambda: _open_failing(array, at))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def small_zarr(path: Path, name: str = "affinity", **options: Any) -> ZarrArray:
    return create_zarr(path, name, shape=(2, 3, 4), dtype="u1", resolution=RESOLUTION, **options)


@ON_DISK
@given(
    raw=hnp.arrays("u1", hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)),
    dtype=st.sampled_from(["u1", "u2", "i4", ">u4", "i8", "u8"]),
    offset=st.sampled_from([(0.0, 0.0, 0.0), (80.0, 0.0, -4.0)]),
)
def test_cremi_round_trip(
    tmp_path_factory: pytest.TempPathFactory, raw: NDArray[Any], dtype: str, offset: tuple[float, float, float]
) -> None:
    path = tmp_path_factory.mktemp("v") / "new" / "a.hdf"
    labels = (raw.astype("u8") * (2**53 + 1 if dtype == "u8" else 1) % np.iinfo(dtype).max).astype(dtype)
    volume = volume_from_array(labels, RESOLUTION)
    write_cremi(path, raw=raw, labels=volume, resolution=RESOLUTION, offset=offset, attributes={"animal": "fly"})
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"file_format": "0.2", "animal": "fly"}
        for name, expected, kind in (("raw", raw, "u1"), ("labels/neuron_ids", labels, "u8")):
            stored = file[f"volumes/{name}"]
            assert stored.dtype == kind
            assert (stored.compression, stored.compression_opts, stored.chunks[0]) == ("gzip", 4, 1)
            assert stored.attrs["resolution"].tolist() == list(RESOLUTION)
            assert stored.attrs.get("offset", np.zeros(3)).tolist() == list(offset)
            assert ("offset" in stored.attrs) == any(offset)
            np.testing.assert_array_equal(stored[...], expected)
    again = open_labels(path)
    assert (again.resolution, again.offset) == (RESOLUTION, offset)
    np.testing.assert_array_equal(again.read(), labels)
    assert os.listdir(path.parent) == ["a.hdf"]


def test_cremi_chunks_are_one_section_of_at_most_512(tmp_path: Path) -> None:
    write_cremi(tmp_path / "a.h5", raw=ramp(2, 600, 20), resolution=RESOLUTION)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["volumes/raw"].chunks == (1, 512, 20)
        assert "labels" not in file["volumes"]


@pytest.mark.parametrize("existing", [None, b"precious"])
def test_a_failed_cremi_write_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bytes | None
) -> None:
    path = tmp_path / "a.h5"
    if existing:
        path.write_bytes(existing)
    before = tree(tmp_path)
    with pytest.raises(SourceError, match="section 2 is gone"):
        write_cremi(path, raw=failing_volume(ramp(4, 3, 5), 2), resolution=RESOLUTION)
    assert tree(tmp_path) == before
    with pytest.raises(ShapeError, match=r"found id -1 in section 1 of volumes/labels"):
        write_cremi(path, labels=np.array([[[3]], [[-1]]]), resolution=RESOLUTION)
    assert tree(tmp_path) == before

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=r"a\.h5: cannot be written: .*No space left on device"):
        write_cremi(path, raw=ramp(2, 3, 4), resolution=RESOLUTION)
    assert tree(tmp_path) == before


def test_an_interrupted_cremi_write_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_cremi(tmp_path / "a.h5", raw=ramp(2, 3, 4), resolution=RESOLUTION)
    assert tree(tmp_path) == {}


def test_a_cremi_file_can_be_rewritten_from_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_cremi(path, raw=ramp(2, 3, 4), resolution=RESOLUTION)
    write_cremi(path, raw=open_volume(path), labels=ramp(2, 3, 4), resolution=RESOLUTION)
    np.testing.assert_array_equal(open_volume(path).read(), ramp(2, 3, 4))
    np.testing.assert_array_equal(open_labels(path).read(), ramp(2, 3, 4))


def test_what_cremi_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    volume = ramp(2, 3, 4)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "found neither raw nor labels"),
        ({"raw": volume.astype("u2")}, r"a\.h5:volumes/raw: found \(2, 3, 4\) uint16 from .*, expected uint8"),
        ({"labels": volume.astype("f4")}, "neuron_ids: found .* float32 .*, expected integers"),
        ({"raw": ramp(1, 2, 3, 4)}, "expected 3 axes"),
        ({"raw": volume, "labels": ramp(2, 3, 5)}, r"found raw \(2, 3, 4\) and labels \(2, 3, 5\), expected one size"),
    ]
    for arrays, message in cases:
        with pytest.raises(ShapeError, match=message):
            write_cremi(path, **arrays, resolution=RESOLUTION)
    with pytest.raises(SourceError, match="expected three positive numbers"):
        write_cremi(path, raw=volume, resolution=(0, 1, 1))
    with pytest.raises(SourceError, match=f"^{re.escape(str(tmp_path))}: found a folder, expected a file name"):
        write_cremi(tmp_path, raw=volume, resolution=RESOLUTION)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match=r"file/a\.h5: cannot be written: "):
        write_cremi(tmp_path / "file" / "a.h5", raw=volume, resolution=RESOLUTION)
    assert tree(tmp_path) == {"file": b"x"}


@ON_DISK
@given(
    array=st.sampled_from(["?", "u1", "i2", "u4", "u8", "f4", "f8"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=3, max_dims=4, max_side=6), fill=st.nothing())
    ),
    side=st.integers(1, 9),
)
def test_zarr_round_trip(tmp_path_factory: pytest.TempPathFactory, array: NDArray[Any], side: int) -> None:
    path = tmp_path_factory.mktemp("v") / "new" / "a.zarr"
    created = create_zarr(
        path,
        "volumes/x",
        shape=array.shape,
        dtype=array.dtype,
        resolution=RESOLUTION,
        offset=(1, 2, 3),
        chunks=(side,) * array.ndim,
        attributes={"offsets": np.eye(3, dtype=int), "scale": np.float64(0.5)},
    )
    depth = array.shape[-3]
    for z in range(depth):
        created.write_section(z, array[..., z, :, :])
    stored = zarr.open_array(path, path="volumes/x", mode="r")
    np.testing.assert_array_equal(stored[...], array)
    assert stored.metadata.dimension_names == ("c", "z", "y", "x")[-array.ndim :]  # type: ignore[union-attr]
    assert dict(stored.attrs) == {
        "resolution": list(RESOLUTION),
        "offset": [1, 2, 3],
        "units": "nm",
        "axis_names": ["c", "z", "y", "x"][-array.ndim :],
        "offsets": np.eye(3).tolist(),
        "scale": 0.5,
    }
    volume = created.volume()
    assert (volume.resolution, volume.offset, volume.dtype) == (RESOLUTION, (1, 2, 3), array.dtype)
    np.testing.assert_array_equal(volume.read(), array)
    assert set(zarr.open_group(path, mode="r").group_keys()) == {"volumes"}


def test_zarr_defaults(tmp_path: Path) -> None:
    created = create_zarr(tmp_path / "a.zarr", "a", shape=(3, 5, 600, 100), dtype=np.uint8, resolution=RESOLUTION)
    assert created.chunks == (3, 1, 512, 100)
    assert not created.volume().read(Box((0, 0, 0), (1, 600, 100))).any()
    assert create_zarr(tmp_path / "a.zarr", "b", shape=(2, 3, 4), dtype="?", resolution=RESOLUTION).chunks == (1, 3, 4)
    assert str(created) == f"{tmp_path}/a.zarr:a"


def test_writing_goes_on_after_reopening(tmp_path: Path) -> None:
    array = ramp(2, 3, 4)
    small_zarr(tmp_path / "a.zarr").write_section(0, array[0])
    again = open_zarr_for_writing(tmp_path / "a.zarr", "affinity")
    again.write(Box((1, 0, 1), (2, 3, 3)), array[1:, :, 1:3])
    expected = array.copy()
    expected[1, :, [0, 3]] = 0
    np.testing.assert_array_equal(again.volume().read(), expected)


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    created = small_zarr(tmp_path / "a.zarr")
    before = tree(tmp_path)
    with pytest.raises(
        ShapeError, match=r"a\.zarr:affinity: found box \(2, 0, 0\) to \(3, 3, 4\), expected one within"
    ):
        created.write_section(2, ramp(3, 4))
    with pytest.raises(ShapeError, match=r"found \(1, 3, 5\) uint8, expected \(1, 3, 4\) uint8"):
        created.write_section(0, ramp(3, 5))
    with pytest.raises(ShapeError, match=r"found \(1, 3, 4\) float32, expected \(1, 3, 4\) uint8"):
        created.write_section(0, ramp(3, 4, dtype="f4"))
    assert tree(tmp_path) == before


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    created = small_zarr(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "affinity" / "c").write_text("in the way")
    with pytest.raises(SourceError, match=r"a\.zarr:affinity: cannot be written: "):
        created.write_section(0, ramp(3, 4))


def test_an_existing_array_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    small_zarr(path).write_section(0, ramp(3, 4))
    small_zarr(path, "other").write_section(0, ramp(3, 4))
    before = tree(path)
    with pytest.raises(SourceError, match=r"a\.zarr:affinity: found an existing array, expected nothing there"):
        small_zarr(path)
    assert tree(path) == before
    fresh = small_zarr(path, overwrite=True)
    assert not fresh.volume().read().any()
    np.testing.assert_array_equal(open_volume(f"{path}:other", missing="zero").read()[0], ramp(3, 4))
    assert sorted(os.listdir(path)) == ["affinity", "other", "zarr.json"]


@pytest.mark.parametrize("broken", ["create_tensorstore", "put_in_place", "replace"])
def test_a_failed_overwrite_keeps_the_old_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "a.zarr"
    small_zarr(path).write_section(0, ramp(3, 4))
    before = tree(path)
    original = os.replace

    def fail(*arguments: Any) -> None:
        if broken == "replace" and not str(arguments[0]).endswith(".new"):
            return original(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if broken == "replace" else distill.io.writers.store, broken, fail)
    with pytest.raises(SourceError, match=r"a\.zarr:affinity: cannot be written: .*No space left"):
        small_zarr(path, overwrite=True)
    assert tree(path) == before


def test_only_zarr_v3_groups_are_written_into(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "s0.png").write_bytes(b"x")
    zarr.open_group(tmp_path / "two.zarr", mode="w", zarr_format=2)
    (tmp_path / "file").write_text("x")
    small_zarr(tmp_path / "a.zarr", "groups/affinity")
    cases = {
        ("images", "a"): "images: found something that is no Zarr store, expected a Zarr v3 group",
        ("file", "a"): "file: found something that is no Zarr store",
        ("file/a.zarr", "a"): r"a\.zarr:a: cannot be written: ",
        ("two.zarr", "a"): r"two\.zarr: found a Zarr group \(version 2\), expected a Zarr v3 group",
        ("a.zarr", "groups"): r"a\.zarr:groups: found a group .*, expected an array or nothing",
        ("a.zarr", "groups/affinity/deep"): r"affinity: found a Zarr array \(version 3\), expected a Zarr v3 group",
        ("a.zarr", "../b"): r"found dataset '\.\./b', expected a path of plain names",
        ("a.zarr", ""): "found dataset '', expected a path of plain names",
    }
    before = tree(tmp_path)
    for (store, dataset), message in cases.items():
        with pytest.raises(SourceError, match=message):
            small_zarr(tmp_path / store, dataset, overwrite=True)
    assert tree(tmp_path) == before


def test_what_zarr_cannot_hold_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"shape": (3, 4)}, r"found shape \(3, 4\), expected"),
        ({"shape": (0, 3, 4)}, "each at least 1"),
        ({"dtype": "c8"}, "found type complex64"),
        ({"chunks": (1, 2)}, r"found chunks \(1, 2\), expected 3 extents"),
        ({"chunks": (1, 0, 2)}, "each at least 1"),
        ({"shape": (2**11,) * 3, "chunks": (2**11,) * 3}, "expected less than 2 GiB each"),
        ({"resolution": (1, 1, -1)}, "found resolution"),
        ({"offset": (1, 1, np.nan)}, "found offset"),
        ({"attributes": {"bad": {1, 2}}}, "attribute 'bad' cannot be written as JSON"),
        ({"attributes": {"bad": np.nan}}, "attribute 'bad' cannot be written as JSON"),
        ({"attributes": {"units": "um"}}, "found attribute 'units', expected it as an argument"),
    ]
    good: dict[str, Any] = {"shape": (2, 3, 4), "dtype": "u1", "resolution": RESOLUTION}
    for change, message in cases:
        with pytest.raises(DistillError, match=message):
            create_zarr(tmp_path / "a.zarr", "x", **(good | change))
    assert tree(tmp_path) == {}


def test_opening_for_writing_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.zarr: no such file"):
        open_zarr_for_writing(tmp_path / "a.zarr", "affinity")
    small_zarr(tmp_path / "a.zarr")
    with pytest.raises(SourceError, match=r"a\.zarr: found no dataset 'afinity', expected one of: affinity"):
        open_zarr_for_writing(tmp_path / "a.zarr", "afinity")
    zarr.open_group(tmp_path / "two.zarr", mode="w", zarr_format=2).create_array("a", shape=(2, 2, 2), dtype="u1")
    with pytest.raises(SourceError, match=r"two\.zarr:a: found a Zarr v2 array, expected Zarr v3"):
        open_zarr_for_writing(tmp_path / "two.zarr", "a")


def test_group_attributes_are_updated_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    small_zarr(path)
    write_group_attributes(path, {"seed": np.int64(3), "done": [0]})
    write_group_attributes(path, {"done": [0, 1]})
    assert dict(zarr.open_group(path, mode="r").attrs) == {"seed": 3, "done": [0, 1]}
    before = tree(path)
    with pytest.raises(SourceError, match="attribute 'x' cannot be written as JSON"):
        write_group_attributes(path, {"x": object()})
    with pytest.raises(SourceError, match="found array3, expected a Zarr v3 group"):
        write_group_attributes(path / "affinity", {"x": 1})
    with pytest.raises(SourceError, match="found no Zarr node, expected a Zarr v3 group"):
        write_group_attributes(tmp_path, {"x": 1})

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SourceError, match=r"a\.zarr: cannot be written: .*Input/output error"):
        write_group_attributes(path, {"x": 1})
    assert tree(path) == before
