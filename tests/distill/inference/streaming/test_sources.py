"""Where sections come from: every kind of file gives the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.inference.streaming.sections.sources import (
    SectionFiles,
    VolumeSource,
    in_order,
)
from distill.io.readers.section_names import in_places, missing_between, usual_step
from distill.io.volume import open_volume
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import create_zarr

NM = (40.0, 5.0, 4.0)


@pytest.fixture
def stack() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (7, 33, 21), np.uint8)


def write_n5(path: Path, stack: NDArray[Any], attributes: dict[str, Any]) -> None:
    import tensorstore

    metadata = {
        "dimensions": list(stack.shape[::-1]),
        "dataType": stack.dtype.name,
        "blockSize": [8, 9, 3],
        "compression": {"type": "gzip"},
        **attributes,
    }
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(stack.T).result()


def write_precomputed(path: Path, stack: NDArray[Any], start: tuple[int, int, int]) -> None:
    import tensorstore

    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "multiscale_metadata": {"data_type": stack.dtype.name, "num_channels": 1, "type": "image"},
        "scale_metadata": {
            "size": list(stack.shape[::-1]),
            "encoding": "raw",
            "chunk_size": [8, 9, 3],
            "resolution": list(NM[::-1]),
            "voxel_offset": list(start[::-1]),
            "key": "fine",
        },
    }
    tensorstore.open(spec, create=True).result().write(stack.T[..., None]).result()


def sources(folder: Path, stack: NDArray[Any]) -> Iterator[str]:
    """The stack in every kind of file."""
    write_cremi(folder / "a.h5", raw=stack, resolution=NM)
    yield f"{folder / 'a.h5'}:volumes/raw"
    create_zarr(folder / "a.zarr", "raw", shape=stack.shape, dtype="u1", resolution=NM).write(
        open_volume(folder / "a.h5").box, stack
    )
    yield f"{folder / 'a.zarr'}:raw"
    write_n5(folder / "a.n5" / "raw", stack, {"resolution": list(NM[::-1]), "units": ["nm"] * 3})
    (folder / "a.n5" / "attributes.json").write_text('{"n5": "2.5.1"}')
    yield f"{folder / 'a.n5'}:raw"
    yield f"{folder / 'a.n5'}"
    write_n5(folder / "b.n5", stack, {"pixelResolution": {"dimensions": [n / 1000 for n in NM[::-1]], "unit": "um"}})
    yield f"{folder / 'b.n5'}"
    write_precomputed(folder / "pre", stack, (5, 2, 9))
    yield f"{folder / 'pre'}"
    yield f"{folder / 'pre'}:fine"
    tifffile.imwrite(folder / "pages.tif", stack, compression="zlib")
    yield f"{folder / 'pages.tif'}"


def test_every_kind_of_volume_gives_the_same_sections(tmp_path: Path, stack: NDArray[np.uint8]) -> None:
    kinds = []
    for name in sources(tmp_path, stack):
        volume = open_volume(name, resolution=NM if name.endswith(".tif") else None)
        assert volume.resolution == pytest.approx(NM), name
        assert volume.offset == ((200.0, 10.0, 36.0) if volume.kind == "precomputed" else (0, 0, 0)), name
        np.testing.assert_array_equal(volume.read(), stack)
        source = VolumeSource(volume, (1, 6))
        for z in (2, 3, 0, 4):
            section = source.read(z)
            assert section is not None
            assert section.image is not None
            np.testing.assert_array_equal(section.image, stack[1 + z])
            assert section.flaw is None
        assert source.read(5) is None
        assert source.kind.offset[0] == volume.offset[0] + NM[0]
        kinds.append(volume.kind)
    assert set(kinds) == {"hdf5", "zarr3", "n5", "precomputed", "tiff"}


def test_wrong_datasets_are_named(tmp_path: Path, stack: NDArray[np.uint8]) -> None:
    list(sources(tmp_path, stack))
    with pytest.raises(SourceError, match=r"found no dataset 'row', expected one of: raw"):
        open_volume(f"{tmp_path / 'a.n5'}:row")
    with pytest.raises(SourceError, match=r"found no dataset 'coarse', expected one of: fine"):
        open_volume(f"{tmp_path / 'pre'}:coarse")
    (tmp_path / "pre" / "info").write_text("{")
    with pytest.raises(SourceError, match=r"pre.info: cannot be read"):
        open_volume(tmp_path / "pre")


def write_files(folder: Path, numbers: list[int], stack: NDArray[Any]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"s{number}.tif" for number in numbers]
    for path, section in zip(paths, stack, strict=False):
        tifffile.imwrite(path, section)
    return paths


def test_files_their_gaps_and_flaws(tmp_path: Path, stack: NDArray[np.uint8]) -> None:
    paths = write_files(tmp_path / "s", [7, 8, 9, 11, 12, 13, 14], stack)
    paths[2].write_bytes(paths[2].read_bytes()[:-50])
    tifffile.imwrite(paths[4], stack[4, :20])
    tifffile.imwrite(paths[5], stack[5].astype(np.uint16))
    source = SectionFiles("s", in_order(paths[::-1]), NM, None)
    found = [source.read(z) for z in range(9)]
    assert found[8] is None
    kinds = [one.flaw.kind if one and one.flaw else None for one in found[:8]]
    assert kinds == [None, None, "corrupt", "missing", None, "size", "size", None]
    assert found[5].flaw.why == "found (20, 21) uint8, expected (33, 21) uint8"  # type: ignore[union-attr]
    assert found[3].flaw.why == "no file follows s9.tif"  # type: ignore[union-attr]
    with pytest.raises(SourceError, match=r"--sections: found 3:9, expected a range within 0:8"):
        SectionFiles("s", paths, NM, (3, 9))
    with pytest.raises(SourceError, match="no resolution found"):
        SectionFiles("s", paths, None, None)
    with pytest.raises(SourceError, match="expected a section image"):
        SectionFiles("s", [tmp_path / "a.txt"], NM, None)


@given(st.lists(st.integers(0, 3), max_size=12), st.sampled_from([1, 2, 10]), st.integers(0, 50))
def test_numbers_left_out_are_places(gaps: list[int], step: int, start: int) -> None:
    """Any gaps in at least six sections of ten are found exactly; files keep their order."""
    if sum(gap == 0 for gap in gaps) < 0.8 * len(gaps) or not gaps:
        return
    numbers = [start]
    for gap in gaps:
        numbers.append(numbers[-1] + step * (gap + 1))
    paths = [Path(f"s{number:04d}.tif") for number in numbers]
    places = in_places("s", paths)
    assert [path for path in places if path is not None] == paths
    assert len(places) == len(paths) + sum(gaps)
    assert all(places[(n - start) // step] == path for n, path in zip(numbers, paths, strict=True))


def test_names_that_do_not_count_have_no_gaps() -> None:
    assert usual_step([3, 17, 18, 400]) is None
    assert usual_step([None, 1, 2]) is None
    assert missing_between(1, 9, None) == missing_between(1, 6, 2) == 0
    paths = [Path(name) for name in ("a.tif", "b.tif", "c7.tif")]
    assert in_places("s", paths) == paths


def test_a_broken_page_is_one_bad_section(tmp_path: Path, stack: NDArray[np.uint8]) -> None:
    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, stack, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[3]
        at, length = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[at : at + length] = b"\0" * length
    path.write_bytes(bytes(data))
    source = VolumeSource(open_volume(path, resolution=NM), None)
    found = [source.read(z) for z in range(7)]
    assert [one.flaw.kind if one and one.flaw else None for one in found] == [None] * 3 + ["corrupt"] + [None] * 3
    np.testing.assert_array_equal(found[4].image, stack[4])  # type: ignore[union-attr, arg-type]


def test_pages_are_read_one_by_one(tmp_path: Path, stack: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    import distill.io.readers.tiff as formats

    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, stack, compression="zlib")
    read: list[int] = []
    values: Callable[..., Any] = formats.page_values
    monkeypatch.setattr(formats, "page_values", lambda *given: (read.append(given[1].index), values(*given))[1])
    source = VolumeSource(open_volume(path, resolution=NM), None)
    for z in range(3):
        source.read(z)
        assert len(read) == z + 1
