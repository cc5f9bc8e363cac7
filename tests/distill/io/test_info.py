"""What a file holds, told in a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from distill.core.errors import SourceError
from distill.io.info import describe, format_summary
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import create_zarr

RESOLUTION = (40.0, 4.0, 5.0)


def test_describe_a_cremi_file(tmp_path: Path) -> None:
    ids = np.array([[[0, 0]], [[9, 4]], [[1, 1]]])
    write_cremi(
        tmp_path / "a.h5",
        raw=np.arange(6, dtype=np.uint8).reshape(3, 1, 2),
        labels=ids,
        resolution=RESOLUTION,
        offset=(1, 0, 0),
    )
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["name"] = "text"
    labels, raw, text = sorted(describe(tmp_path / "a.h5"), key=lambda summary: -len(summary.dataset or ""))[:3]
    assert (labels.dataset, labels.ids, labels.minimum, labels.maximum) == ("volumes/labels/neuron_ids", 2, 4, 9)
    assert (raw.resolution, raw.offset, raw.ids, raw.chunks, raw.compression) == (
        RESOLUTION,
        (1, 0, 0),
        None,
        (1, 1, 2),
        "gzip",
    )
    assert (raw.minimum, raw.maximum) == (2, 3)
    assert (text.dataset, text.shape, text.minimum) == ("name", (), None)
    lines = format_summary([labels, raw]).splitlines()
    assert lines[0] == str(tmp_path / "a.h5")
    column = lines[1].index("resolution nm")
    assert [line[column : column + 8] for line in lines[2:]] == ["40, 4, 5"] * 2
    assert lines[2].split()[-1] == "2"
    assert [summary.dataset for summary in describe(f"{tmp_path}/a.h5:volumes/raw")] == ["volumes/raw"]


def test_describe_other_sources(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 20, 21), np.uint8), photometric="minisblack", compression="zlib")
    create_zarr(tmp_path / "a.zarr", "x/y", shape=(2, 3, 4), dtype=np.uint8, resolution=RESOLUTION)
    np.savez(tmp_path / "a.npz", raw=np.arange(24, dtype=np.float32).reshape(2, 3, 4), resolution=RESOLUTION)
    (tiff,) = describe(tmp_path / "a.tif")
    assert (tiff.shape, tiff.resolution, tiff.compression, tiff.kind) == ((3, 20, 21), None, "adobe_deflate", "tiff")
    assert "not given" in format_summary([tiff])
    (stored,) = describe(tmp_path / "a.zarr")
    assert (stored.dataset, stored.resolution, stored.compression, stored.kind) == ("x/y", RESOLUTION, "zstd", "zarr3")
    assert describe(tmp_path / "a.zarr" / "x" / "y")[0].dataset is None
    (array,) = describe(tmp_path / "a.npz")
    assert (array.dataset, array.resolution, array.minimum, array.ids) == ("raw", RESOLUTION, 12.0, None)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(SourceError, match=r"empty\.h5: found no array inside"):
        describe(tmp_path / "empty.h5")


def test_describe_a_real_cremi_file(real_data: Callable[[str], Path]) -> None:
    found = {summary.dataset: summary for summary in describe(real_data("cremi_sample_B_sections_46_50.hdf"))}
    assert found.keys() == {"volumes/raw", "volumes/membrane", "volumes/labels/neuron_ids", "volumes/labels/fragments"}
    assert found["volumes/labels/neuron_ids"].ids == 16
    assert found["volumes/raw"].ids is None
    assert found["volumes/raw"].resolution == (40, 4, 4)
