"""Damage that random campaigns met, each by its kind: one message that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore

from distill.config import StudentNetwork
from distill.core.errors import CheckpointError, SourceError
from distill.inference.settings import read_settings, settings_path
from distill.io.readers.npy import columns
from distill.io.volume import open_grey, open_volume
from distill.models.build import build_student
from distill.models.checkpoint import save_weights
from distill.models.header import read_header
from distill.models.load import load_student

NM = (30.0, 6.0, 6.0)
RAW = np.random.default_rng(2).integers(1, 255, (4, 12, 10), np.uint8)


@pytest.mark.parametrize("kind", ["virtual", "soft", "external", "two virtual"])
def test_hdf5_that_is_made_of_itself(tmp_path: Path, kind: str) -> None:
    """HDF5 would go round in a circle until it crashes; and the labels are not taken for the image that is lost."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["volumes/labels/neuron_ids"] = RAW.astype(np.uint64)
        names = {"volumes/raw": "volumes/other" if kind == "two virtual" else "volumes/raw"}
        names |= {"volumes/other": "volumes/raw"} if kind == "two virtual" else {}
        for name, source in names.items():
            if "virtual" in kind:
                layout = h5py.VirtualLayout(RAW.shape, "u1")
                layout[...] = h5py.VirtualSource(".", source, RAW.shape)
                file.create_virtual_dataset(name, layout)
            else:
                file[name] = h5py.SoftLink(f"/{name}") if kind == "soft" else h5py.ExternalLink("a.h5", name)
    with pytest.raises(SourceError, match=r"a\.h5"):
        open_volume(path, resolution=NM).read()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dimension_separator", 5),
        ("compressor", "blosc"),
        ("filters", 7.5),
        ("chunks", [10**400, 1, 1]),
        ("shape", {"a": 1}),
        ("dtype", ["u1"]),
        ("dtype", "u1,u1"),
    ],
)
def test_headers_of_zarr(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "a.zarr"
    about = {"shape": RAW.shape, "chunks": [4, 12, 10], "dtype": "|u1"}
    spec = {"driver": "zarr", "metadata": about, "kvstore": {"driver": "file", "path": f"{path}/"}}
    tensorstore.open(spec, create=True).result()[...].write(RAW).result()
    header = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(header | {key: value}))
    with pytest.raises(SourceError, match=r"a\.zarr") as stop:
        open_volume(path, resolution=NM)
    assert "\n" not in str(stop.value)


def test_masks_are_no_grey_values(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RAW > 100)
    with pytest.raises(SourceError, match=r"a\.npy: found type bool, expected grey values"):
        open_grey(tmp_path / "a.npy", resolution=NM)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"u": np.arange(3, dtype=np.uint64)}, "4 of count and 3 of u"),
        ({"u": np.arange(4.0)}, r"u of shape \(4,\) and type float64"),
        ({"total": np.array([0, 1, np.nan, 2])}, "total that are no numbers"),
        ({"count": np.zeros((2, 2), np.int64)}, r"count of shape \(2, 2\)"),
    ],
)
def test_columns_of_tables(changed: dict[str, Any], says: str) -> None:
    table = {"count": np.arange(4), "u": np.arange(4, dtype=np.uint64), "total": np.ones(4)}
    assert [len(one) for one in columns(table, count="i", u="u", total="f")] == [4, 4, 4]
    with pytest.raises(ValueError, match=says):
        columns(table | changed, count="i", u="u", total="f")


@pytest.mark.parametrize(
    ("key", "value"),
    [("depth", "16"), ("resolution", [30.0, 6.0]), ("segment", 1), ("offsets", [[1, 2]]), ("depth", None)],
)
def test_settings_of_a_store(tmp_path: Path, key: str, value: Any) -> None:
    whole = {
        **{"source": "a", "model": "b", "precision": "32-true", "backend": "eager", "sections": 4},
        **{"resolution": NM, "offset": [0, 0, 0], "offsets": [[-1, 0, 0]], "embedding": "none", "segment": True},
        **{"depth": 16, "parts": 1, "on_bad": {"blank": "fail"}, "merge_threshold": 0.5},
    }
    path = settings_path(tmp_path, "stream")
    path.parent.mkdir()
    path.write_text(json.dumps(whole))
    assert read_settings(tmp_path, "stream", "stream")["depth"] == 16
    path.write_text(json.dumps(whole | {key: value}))
    with pytest.raises(SourceError, match=rf"job\.json: found {key} "):
        read_settings(tmp_path, "stream", "stream")
    del whole[key]
    path.write_text(json.dumps(whole))
    with pytest.raises(SourceError, match=rf"job\.json: lacks '{key}'"):
        read_settings(tmp_path, "stream", "stream")


@pytest.mark.parametrize("notes", [{"resolution": [30, 6]}, {"merge_threshold": "0.5"}, {"flood_threshold": 7}])
def test_notes_of_weights(tmp_path: Path, notes: dict[str, Any]) -> None:
    import torch

    path = tmp_path / "a.safetensors"
    config = StudentNetwork.model_validate({"kind": "cad", "width": 4, "embedding": 4})
    save_weights(path, "student", {"student": build_student(config)}, config.model_dump(mode="json"), notes)
    assert read_header(path).notes == notes
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: found {next(iter(notes))} "):
        load_student(str(path), torch.device("cpu"))
