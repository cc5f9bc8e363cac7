"""The table of what a file holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core.errors import SourceError
from distill.io.info import describe, format_summary
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import create_zarr
from distill.models.describe import format_header
from distill.models.header import WeightsHeader, bundled_models

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


def test_a_model_fits_on_a_screen(cli: Callable[..., Any]) -> None:
    said = cli("info", "ac4")
    assert said.code == 0, said.err
    assert 10 < len(said.out.splitlines()) <= 40
    student = said.out.split("student.safetensors")[1].split("teacher.safetensors")[0]
    for text in (
        "student, smp tu-resnet10t",
        "1,428,129 in 331 tensors",
        "30, 6, 6 nm",
        "mean-std (mean 0.5, std 0.2)",
        "VOI 0.927 (split 0.657, merge 0.271), ARAND 0.157",
        "3,600 steps",
        "ac4.h5:volumes/labels/neuron_ids",
        "train 0:60, validation 60:66, test 80:100",
    ):
        assert text in student
    whole = json.loads(cli("info", "ac4", "--json").out)
    assert sorted(whole) == sorted(str(file) for file in bundled_models()["ac4"].glob("*.safetensors"))
    (found,) = (one for one in whole.values() if one["kind"] == "student")
    assert found["notes"]["validation"]["boundary_f1_zyx"]
    assert found["config"]["decoder"]["seeds"]["min_voxels"] == 10


def test_a_volume_as_json(cli: Callable[..., Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", raw=np.array([[[np.nan, 1]]], np.float32), resolution=RESOLUTION)
    (found,) = json.loads(cli("info", tmp_path / "a.npz", "--json").out, parse_constant=lambda name: pytest.fail(name))
    assert (found["shape"], found["dtype"], found["resolution"]) == ([1, 1, 2], "float32", list(RESOLUTION))
    assert found["minimum"] == "nan"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = ("kind", "encoder", "resolution", "normalisation", "decoder")
NOTE_KEYS = ("resolution", "validation", "merge_threshold", "flood_threshold", "step", "data", "published", "version")


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON),
    st.dictionaries(st.sampled_from(NOTE_KEYS), JSON),
    st.dictionaries(st.sampled_from(("volumes", "raw", "labels", "train", "unlabelled")), JSON),
    st.dictionaries(st.sampled_from(("voi", "voi_split", "voi_merge", "arand")), JSON),
)
def test_any_values_in_a_header_are_lines_of_text(
    config: dict[str, Any], notes: dict[str, Any], data: dict[str, Any], scores: dict[str, Any]
) -> None:
    header = WeightsHeader("student", config, {"data": data, "validation": scores} | notes, {"a": (2, 3)})
    lines = format_header(Path(__file__), header).splitlines()
    assert "6 in 1 tensors" in lines[2]
    assert all(len(line) < 400 and line.isprintable() for line in lines)


def test_info_of_a_file_loads_no_heavy_library(tmp_path: Path) -> None:
    """What it loads decides how long it takes: numpy, h5py and the command line itself are enough."""
    write_cremi(tmp_path / "a.h5", raw=np.zeros((3, 4, 4), np.uint8), resolution=RESOLUTION)
    heavy = ("torch", "scipy", "tensorstore", "tifffile", "zarr", "skimage", "sklearn", "matplotlib", "numba", "dask")
    program = (
        "import sys; from distill.cli import command; "
        f"sys.argv = ['distill', 'info', sys.argv[1]]; command(); "
        f"print('loaded', sorted(set({heavy}) & set(sys.modules)))"
    )
    for source in (tmp_path / "a.h5", "ac4"):
        done = subprocess.run([sys.executable, "-c", program, str(source)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "loaded []"
