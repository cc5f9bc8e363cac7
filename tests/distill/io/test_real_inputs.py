"""Files as other programs write them, and damaged ones: the right values, or one line that names the file."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore
import tifffile
from numpy.typing import NDArray
from PIL import Image

from distill.core.errors import SourceError
from distill.core.notes import LOGGER, Lines
from distill.io.info import describe, format_summary
from distill.io.labels_or_grey import constancy
from distill.io.readers.section_names import in_places
from distill.io.selection import Selection, parse_box, split_selection
from distill.io.volume import open_grey, open_labels, open_volume
from distill.io.writers.pyramid import add_levels

NM = (30.0, 6.0, 6.0)
RNG = np.random.default_rng(0)
RAW = RNG.integers(1, 255, (6, 40, 36), np.uint8)
IDS = np.kron(RNG.integers(1, 9, (3, 5, 4)), np.ones((2, 8, 9), np.int64)).astype(np.uint64)


@contextmanager
def lines() -> Iterator[list[str]]:
    """What is reported about input."""
    shown: list[str] = []
    handler = Lines(shown.append)
    LOGGER.addHandler(handler)
    try:
        yield shown
    finally:
        handler.finish()
        LOGGER.removeHandler(handler)


def save(path: Path, spec: dict[str, Any], values: NDArray[Any]) -> Path:
    """Write an array with tensorstore, chunks of zeros included."""
    store = {"driver": "file", "path": f"{path}/"}
    more = {"store_data_equal_to_fill_value": True}
    made = tensorstore.open({**spec, **more, "kvstore": store}, create=True).result()
    made[...].write(values).result()
    return path


def precomputed(path: Path, values: NDArray[Any]) -> Path:
    scale = {"size": list(values.shape[::-1]), "resolution": [6, 6, 30], "chunk_size": [16, 16, 4], "encoding": "raw"}
    about = {"type": "image", "data_type": values.dtype.name, "num_channels": 1}
    spec = {"driver": "neuroglancer_precomputed", "multiscale_metadata": about, "scale_metadata": scale}
    return save(path, spec, values.T[..., None])


def zarr2(path: Path, values: NDArray[Any], **attributes: Any) -> Path:
    chunks = [min(n, 16) for n in values.shape]
    save(path, {"driver": "zarr", "metadata": {"shape": values.shape, "chunks": chunks, "dtype": "|u1"}}, values)
    (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def n5(path: Path, values: NDArray[Any], **attributes: Any) -> Path:
    about = {"dimensions": values.shape[::-1], "blockSize": [16, 16, 4], "dataType": values.dtype.name}
    save(path, {"driver": "n5", "metadata": {**about, "compression": {"type": "gzip"}}}, values.T)
    document = path / "attributes.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | attributes))
    return path


def group(path: Path, **attributes: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def multiscales(axes: Any, scale: list[float], path: str = "0", version: str = "0.4") -> list[dict[str, Any]]:
    steps = [{"type": "scale", "scale": scale}]
    return [{"version": version, "axes": axes, "datasets": [{"path": path, "coordinateTransformations": steps}]}]


def axes(names: str) -> list[dict[str, str]]:
    space = {"type": "space", "unit": "nanometer"}
    return [{"name": name, **(space if name in "zyx" else {"type": "channel"})} for name in names]


@pytest.mark.parametrize("every", [1, 2])
def test_chunks_named_after_their_compression(tmp_path: Path, every: int) -> None:
    path = precomputed(tmp_path / "a", RAW)
    chunks = sorted(file for file in path.rglob("*") if "_" in file.name and file.is_file())
    for file in chunks[::every]:
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    np.testing.assert_array_equal(open_volume(path).read(), RAW)
    next(path.rglob("*.gz")).unlink()
    with pytest.raises(SourceError, match=r"1 of 18 chunks are missing.*--missing zero"):
        open_volume(path).read()


@pytest.mark.parametrize("kind", ["zarr", "n5", "precomputed"])
def test_missing_chunks_are_refused_or_reported(tmp_path: Path, kind: str) -> None:
    path = {"zarr": zarr2, "n5": n5, "precomputed": precomputed}[kind](tmp_path / "a", RAW)
    names = ("attributes.json", ".zarray", ".zattrs", "info")
    lost = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in names)[0]
    lost.unlink()
    with pytest.raises(SourceError, match=r"1 of \d+ chunks are missing"):
        open_volume(path, resolution=NM)
    whole = open_volume(f"{path}#missing=zero", resolution=NM).read()
    assert 0 < np.count_nonzero(whole != RAW) <= 16 * 16 * 16
    assert not whole[whole != RAW].any()
    with lines() as shown:
        open_labels(path, resolution=NM).read()
    assert any("chunks are missing and read as background" in line for line in shown)
    assert "chunks are missing" in format_summary(describe(path))


def test_a_virtual_dataset_needs_its_sources(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout(RAW.shape, "u1")
    for k in range(3):
        with h5py.File(tmp_path / f"part{k}.h5", "w") as file:
            file["data"] = RAW[2 * k : 2 * k + 2]
        layout[2 * k : 2 * k + 2] = h5py.VirtualSource(f"part{k}.h5", "data", shape=(2, *RAW.shape[1:]))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    np.testing.assert_array_equal(open_volume(tmp_path / "all.h5", resolution=NM).read(), RAW)
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(SourceError, match=r"all\.h5:raw: is made of part1\.h5, found no such file"):
        open_volume(tmp_path / "all.h5", resolution=NM)


def test_no_file_of_hdf5_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(64)))
    inside = tmp_path / "in"
    inside.mkdir()
    with h5py.File(inside / "a.h5", "w") as file:
        external = [(str(tmp_path / "secret"), 0, 64)]
        file.create_dataset("raw", (4, 4, 4), "u1", external=external)
        file["linked"] = h5py.ExternalLink("../other.h5", "raw")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["raw"] = RAW
    with pytest.raises(SourceError, match=r"raw: its numbers lie in another file"):
        open_volume(inside / "a.h5:raw", resolution=NM)
    with pytest.raises(SourceError, match=r"lies outside"):
        open_volume(f"{inside / 'a.h5'}:linked", resolution=NM)


def test_hdf5_that_was_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = file.create_dataset("raw", RAW.shape, "u1", chunks=(2, 40, 36))
        stored[:2] = RAW[:2]
    with pytest.raises(SourceError, match=r"2 of 3 chunks are missing"):
        open_volume(tmp_path / "a.h5", resolution=NM).read()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_white_is_zero(tmp_path: Path, options: dict[str, Any]) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for z, section in enumerate(RAW):
            turned = z >= 3
            kind = "miniswhite" if turned else "minisblack"
            writer.write(255 - section if turned else section, photometric=kind, metadata=None, **options)
    np.testing.assert_array_equal(open_volume(tmp_path / "a.tif", resolution=NM).read(), RAW)
    tifffile.imwrite(tmp_path / "b.tif", 65535 - RAW.astype("u2"), photometric="miniswhite", **options)
    np.testing.assert_array_equal(open_volume(tmp_path / "b.tif", resolution=NM).read(), RAW)


@pytest.mark.parametrize("dtype", ["u4", "i4", "u8", "i8"])
def test_reserved_ids_are_background_and_counted(tmp_path: Path, dtype: str) -> None:
    ids = IDS.astype(dtype)
    ids[0, 0, :4] = np.array([-1, -2, -3, -4]).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ids"] = ids
    with lines() as shown:
        found = open_labels(tmp_path / "a.h5", resolution=NM).read()
    assert not found[0, 0, :4].any()
    np.testing.assert_array_equal(found.ravel()[4:], IDS.ravel()[4:])
    assert [line for line in shown if ": 4 voxels hold negative or reserved ids" in line]


@pytest.mark.parametrize("names", ["cxyz", "xyz", "zyx", "yzx", "czyx"])
def test_axes_by_name(tmp_path: Path, names: str) -> None:
    order = ["zyx".index(name) for name in names if name != "c"]
    values = RAW.transpose(order)
    values = values[None] if names[0] == "c" else values
    scale = [{"c": 1.0, "z": 30.0, "y": 6.0, "x": 7.0}[name] for name in names]
    path = group(tmp_path / "a.zarr", multiscales=multiscales(axes(names), scale))
    zarr2(path / "0", values)
    volume = open_grey(path)
    assert volume.resolution == (30.0, 6.0, 7.0)
    np.testing.assert_array_equal(volume.read(), RAW)


def test_axes_that_are_not_known(tmp_path: Path) -> None:
    path = zarr2(tmp_path / "a.zarr", RAW, axis_names=["u", "v", "w"])
    with pytest.raises(SourceError, match="found axes u, v, w"):
        open_volume(path, resolution=NM)
    np.testing.assert_array_equal(open_volume(f"{path}#axes=xyz", resolution=NM).read(), RAW.T)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rgb"] = np.stack([RAW] * 3, -1)
    with pytest.raises(SourceError, match="without names of axes"):
        open_volume(tmp_path / "a.h5", resolution=NM)


def test_axistags(tmp_path: Path) -> None:
    def write(name: str, values: NDArray[Any], keys: str) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            file["exported_data"] = values
            file["exported_data"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in keys]})
        return tmp_path / name

    both = write("p.h5", np.stack([RAW, 255 - RAW], -1), "zyxc")
    np.testing.assert_array_equal(open_volume(both, resolution=NM).read(), np.stack([RAW, 255 - RAW]))
    np.testing.assert_array_equal(open_grey(f"{both}#channel=1", resolution=NM).read(), 255 - RAW)
    with pytest.raises(SourceError, match=r"found 2 channels.*--channel"):
        open_grey(both, resolution=NM)
    seg = write("s.h5", IDS.astype("u4")[None, ..., None], "tzyxc")
    np.testing.assert_array_equal(open_labels(seg, resolution=NM).read(), IDS)


@pytest.mark.parametrize("about", [{"version": "0.1"}, {"version": "0.3", "axes": ["z", "y", "x"]}, {"axes": 7}])
def test_old_or_damaged_ome_costs_the_resolution_alone(tmp_path: Path, about: dict[str, Any]) -> None:
    path = group(tmp_path / "a.zarr", multiscales=[{**about, "datasets": [{"path": "0"}]}])
    zarr2(path / "0", RAW)
    with pytest.raises(SourceError, match="no resolution found"):
        open_volume(path)
    np.testing.assert_array_equal(open_volume(path, resolution=NM).read(), RAW)


def test_an_image_one_group_further_down(tmp_path: Path) -> None:
    path = group(tmp_path / "a.zarr", **{"bioformats2raw.layout": 3})
    image = group(path / "0", multiscales=multiscales(axes("tczyx"), [1, 1, 30, 6, 6]))
    zarr2(image / "0", np.stack([RAW, 255 - RAW])[:, None])
    with pytest.raises(SourceError, match=r"found 2 points in time.*--time 0 to 1"):
        open_grey(path)
    np.testing.assert_array_equal(open_grey(f"{path}#time=1").read(), 255 - RAW)


def test_placement_of_n5(tmp_path: Path) -> None:
    um = {"unit": "um", "dimensions": [0.006, 0.006, 0.03]}
    root = tmp_path / "a.n5"
    half = RAW[:, ::2, ::2]
    for name, values, own in (("c/s0", RAW, {}), ("c/s1", half, {"downsamplingFactors": [2, 2, 1]})):
        n5(root / name, values, **own)
    (root / "attributes.json").write_text(json.dumps({"n5": "2.0.0", "pixelResolution": um}))
    assert open_volume(root).resolution == pytest.approx(NM)
    assert open_volume(f"{root}:c/s1").resolution == pytest.approx((30, 12, 12))
    there = {"axes": ["z", "y", "x"], "scale": [30, 6, 6], "translate": [300, 60, 120], "units": ["nm"] * 3}
    placed = open_volume(n5(tmp_path / "b.n5", RAW, transform=there))
    assert (placed.resolution, placed.offset) == (NM, (300, 60, 120))
    with lines() as shown:
        assert open_volume(n5(tmp_path / "d.n5", RAW, pixelResolution=[0.1, 0.1, 0.2])).resolution == (200, 100, 100)
    assert any("without a unit, taken as um" in line for line in shown)


def test_containers_without_metadata_at_their_root(tmp_path: Path) -> None:
    zarr2(tmp_path / "a.zarr/volumes/raw", RAW)
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr", resolution=NM).read(), RAW)
    n5(tmp_path / "b.n5/volumes/raw", RAW)
    np.testing.assert_array_equal(open_volume(tmp_path / "b.n5", resolution=NM).read(), RAW)


def test_pictures_that_are_grey(tmp_path: Path) -> None:
    ramp = [value for k in range(256) for value in (255 - k,) * 3]
    for z, section in enumerate(RAW):
        image = Image.fromarray(255 - section)
        image.putpalette(ramp)
        for name, picture in {
            "palette": image,
            "rgb": Image.fromarray(section).convert("RGB"),
            "la": Image.fromarray(section).convert("LA"),
            "bmp": Image.fromarray(section),
        }.items():
            (tmp_path / name).mkdir(exist_ok=True)
            picture.save(tmp_path / name / f"s{z}.{'bmp' if name == 'bmp' else 'png'}")
    for name in ("palette", "rgb", "la", "bmp"):
        np.testing.assert_array_equal(open_volume(tmp_path / name, resolution=NM).read(), RAW)
    np.testing.assert_array_equal(open_labels(tmp_path / "palette", resolution=NM).read(), 255 - RAW)


def test_numbers_of_sections() -> None:
    def named(*names: str) -> list[str | None]:
        paths = [Path(f"/f/{name}.png") for name in names]
        return [None if path is None else path.stem for path in in_places("f", paths)]

    whole = [f"s_{k:04d}" for k in range(10)]
    with lines() as shown:
        assert named(*whole[:6], "s_0005_2", *whole[6:], "overview") == whole
    assert len(shown) == 2
    assert all("left out" in line for line in shown)
    assert named(*whole[:4], *whole[5:]) == [*whole[:4], None, *whole[5:]]
    assert named("s1", "s2", "s3", "s5", "s6") == ["s1", "s2", "s3", None, "s5", "s6"]
    assert named("s10", "s20", "s40") == ["s10", "s20", None, "s40"]
    assert named("s3", "s5", "s6", "s9") == ["s3", "s5", "s6", "s9"]
    assert named("z-1", "z-2", "z0", "z1") == ["z-2", "z-1", "z0", "z1"]
    with pytest.raises(SourceError, match="is numbered"):
        named(*whole, "s_30000000")


@pytest.mark.parametrize("name", ["r{0}_s{1:03}", "s{1:03}_ch{0}", "2024_s{1:03}_tile{0}_v2"])
def test_tiles_and_channels_are_no_stack(tmp_path: Path, name: str) -> None:
    for one in range(2):
        for z in range(6):
            Image.fromarray(RAW[z % 6]).save(tmp_path / f"{name.format(one, z)}.png")
    with pytest.raises(
        SourceError, match=r"count along two numbers \(.*\), as tiles.*; expected one image per section"
    ):
        open_volume(tmp_path, resolution=NM)
    one_series = tmp_path / f"{name.replace('{1:03}', '*').format(1)}.png"
    np.testing.assert_array_equal(open_volume(one_series, resolution=NM).read(), RAW[:6])
    with lines() as shown:
        assert open_volume(tmp_path / "*", resolution=NM).size[0] == 12
    assert any("are read as one series" in line for line in shown)


@pytest.mark.parametrize(
    "names",
    [
        [f"2024-01-{day:02}_s{day + 6:03}" for day in range(1, 9)],
        [f"2024-01-05_12-{n // 60:02}-{n % 60:02}" for n in range(50, 58)],
        [f"w1_s{n}" for n in range(7)] + ["w2_s7"],
    ],
)
def test_dates_and_times_are_one_series(tmp_path: Path, names: list[str]) -> None:
    for z, one in enumerate(names):
        Image.fromarray(RAW[z % 6]).save(tmp_path / f"{one}.png")
    assert open_volume(tmp_path, resolution=NM).size[0] == 8


def test_a_missing_section_is_refused(tmp_path: Path) -> None:
    for z in (0, 1, 2, 4, 5, 6, 7):
        Image.fromarray(RAW[z % 6]).save(tmp_path / f"s{z}.png")
    with pytest.raises(SourceError, match=r"s2\.png: 1 of 8 sections are missing"):
        open_volume(tmp_path, resolution=NM).read()
    found = open_volume(f"{tmp_path}#missing=zero", resolution=NM).read()
    assert not found[3].any()
    np.testing.assert_array_equal(found[4], RAW[4])


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr2(tmp_path / "a.zarr", RAW)
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("../a.zarr", "../b/../a.zarr/", "~/a.zarr", f"file://{tmp_path}/a.zarr/"):
        np.testing.assert_array_equal(open_volume(source, resolution=NM).read(), RAW)


def test_selections(tmp_path: Path) -> None:
    text, chosen = split_selection("a.h5:raw#channel=1#box=0,1,2:3,4,5#missing=zero")
    assert text == "a.h5:raw"
    assert split_selection(f"a.h5:raw{chosen}") == ("a.h5:raw", chosen)
    assert chosen == Selection(channel=1, box=parse_box("0,1,2:3,4,5", "box"), missing="zero")
    odd = tmp_path / "a#box=1.npy"
    np.save(odd, RAW)
    np.testing.assert_array_equal(open_volume(odd, resolution=NM).read(), RAW)
    volume = open_volume(f"{odd}#box=1,2,3:3,9,12", resolution=NM)
    assert volume.offset == (30.0, 12.0, 18.0)
    np.testing.assert_array_equal(volume.read(), RAW[1:3, 2:9, 3:12])
    for bad in ("1,2:3", "0,0,0:0,1,1", "3,3,3:1,1,1"):
        with pytest.raises(SourceError, match="found box"):
            parse_box(bad, "box")


def test_ids_are_told_from_grey_values() -> None:
    assert (constancy(IDS[0].astype(np.uint8)) or 0) > 0.8
    assert (constancy(RAW[0]) or 1) < 0.1
    assert constancy(np.zeros((40, 40), np.uint8)) is None


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = zarr2(tmp_path / "a.zarr", RAW)
    header = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(header | {"shape": [10**6] * 3, "chunks": [10**5] * 3}))
    with pytest.raises(SourceError, match="a chunk of shape"):
        open_volume(path, resolution=NM)


def test_levels_are_replaced_where_this_program_put_them(tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.txt").write_text("words")
    from distill.io.writers.store import create_zarr, write_group_attributes

    create_zarr(tmp_path / "a.zarr", "raw", shape=(4, 64, 64), dtype="u1", resolution=NM)
    image = {"axes": axes("zyx"), "datasets": [{"path": "raw"}, {"path": "../thesis"}]}
    write_group_attributes(tmp_path / "a.zarr", {"ome": {"version": "0.5", "multiscales": [image]}})
    with pytest.raises(SourceError, match="expected a path inside it"):
        add_levels(f"{tmp_path}/a.zarr:raw", 2, None, True, lambda done, total: None)
    assert os.listdir(precious) == ["chapter.txt"]


def test_micrometres_without_a_unit_are_reported() -> None:
    from distill.io.volume.volume import checked_resolution

    with lines() as shown:
        assert checked_resolution("a.h5:raw", (0.03, 0.006, 0.006)) == (0.03, 0.006, 0.006)
    assert shown == [
        "warning: a.h5:raw: found voxels of 0.03, 0.006, 0.006 nm, smaller than any in electron microscopy: "
        "micrometres or millimetres without their unit? Give nm by --resolution Z,Y,X"
    ]
    with lines() as shown:
        checked_resolution("a.h5:raw", (4.0, 4.0, 4.0))
    assert not shown
