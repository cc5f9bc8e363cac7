"""Small whole files of every kind that a command reads, for `fuzz.py` to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import tifffile
import yaml
from PIL import Image

NM = (30.0, 6.0, 6.0)
_RNG = np.random.default_rng(7)
RAW = _RNG.integers(1, 255, (4, 48, 40), np.uint8)
IDS = np.kron(_RNG.permutation(60).reshape(2, 6, 5) + 1, np.ones((2, 8, 8), np.int64)).astype(np.uint64)
TREE = "1 2 20 20 15 4 -1\n2 2 60 60 45 4 1\n3 2 100 100 45 4 2\n4 2 140 60 75 4 2\n"
REPO = Path(__file__).resolve().parents[2]
_CONFIGS = REPO / "configs" / "phantom_cpu"
EXACT = ("--device", "cpu", "--precision", "32-true")
_TINY = ("--block", "4,32,32")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind.
        file: name of the file or folder, which messages must name.
        make: writes it, given its path and a folder with files of all cases (`model.safetensors`, `labels.h5`).
        commands: words by command; FILE, OUT and SHARED stand for paths.
        values: what `copy` must give where the damage does not reach the numbers.
        weak: whether a change of the numbers cannot be seen, for the format has no checksums.
        parts: which files are damaged, of a folder; all by default.
    """

    name: str
    file: str
    make: Callable[[Path, Path], None]
    commands: dict[str, tuple[str, ...]]
    values: Any = None
    weak: bool = False
    parts: tuple[str, ...] = ("*",)


def _hdf5(path: Path, _: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, values in (("volumes/raw", RAW), ("volumes/labels/neuron_ids", IDS)):
            made = file.create_dataset(name, data=values, chunks=(2, 24, 20), compression="gzip", fletcher32=True)
            made.attrs["resolution"], made.attrs["offset"] = NM, (0.0, 0.0, 0.0)


def _hdf5_plain(path: Path, _: Path) -> None:
    with h5py.File(path, "w") as file:
        file["volumes/raw"] = RAW
        file["volumes/raw"].attrs["resolution"] = NM


def _tiff(path: Path, _: Path) -> None:
    metadata = {"axes": "ZYX", "unit": "nm", "spacing": 30.0}
    tifffile.imwrite(path, RAW, imagej=True, resolution=(1 / 6, 1 / 6), metadata=metadata)


def _tiff_tiled(path: Path, _: Path) -> None:
    tifffile.imwrite(path, RAW, tile=(16, 16), compression="zlib", predictor=True, photometric="minisblack")


def _tiff_ome(path: Path, _: Path) -> None:
    about = {"axes": "ZYX", "PhysicalSizeX": 0.006, "PhysicalSizeY": 0.006, "PhysicalSizeZ": 0.03}
    tifffile.imwrite(path, RAW, ome=True, compression="lzw", metadata=about)


def _images(ending: str) -> Callable[[Path, Path], None]:
    def make(path: Path, _: Path) -> None:
        path.mkdir()
        for z, section in enumerate(RAW):
            Image.fromarray(section).save(path / f"s{z:03d}.{ending}")

    return make


def _npy(path: Path, _: Path) -> None:
    np.save(path, RAW)


def _npz(path: Path, _: Path) -> None:
    np.savez_compressed(path, raw=RAW, resolution=np.array(NM))


def _copied(form: str, labels: bool = False, *more: str) -> Callable[[Path, Path], None]:
    def make(path: Path, shared: Path) -> None:
        from distill.io.writers.copy import Copying, copy

        source = f"{shared / 'labels.h5'}:{'volumes/labels/neuron_ids' if labels else 'volumes/raw'}"
        copy(source, str(path), Copying(form=form, levels=2), lambda done, total: None)

    return make


def _zarr2_plain(path: Path, _: Path) -> None:
    about = {"shape": RAW.shape, "chunks": [2, 24, 20], "dtype": "|u1", "compressor": None}
    spec = {"driver": "zarr", "metadata": about, "kvstore": {"driver": "file", "path": f"{path}/"}}
    tensorstore.open({**spec, "store_data_equal_to_fill_value": True}, create=True).result()[...].write(RAW).result()
    (path / ".zattrs").write_text(json.dumps({"resolution": NM, "offset": [0, 0, 0]}))


def _swc(path: Path, _: Path) -> None:
    path.write_text("# neuron\n" + TREE)


def _configs(path: Path, _: Path) -> None:
    path.mkdir()
    for name in ("teacher.yaml", "student.yaml"):
        shutil.copy(_CONFIGS / name, path / name)


def _thresholds(path: Path, _: Path) -> None:
    path.write_text(yaml.safe_dump({"version": "0.1.0", "methods": {"flood": {"threshold": 0.5, "edge": None}}}))


def _weights(path: Path, shared: Path) -> None:
    shutil.copy(shared / "model.safetensors", path)


def _store(path: Path, shared: Path) -> None:
    shutil.copytree(shared / "stream.zarr", path)


def _blocks(path: Path, shared: Path) -> None:
    shutil.copytree(shared / "blocks.zarr", path)


_ARRAY = {
    "info": ("info", "FILE"),
    "copy": ("copy", "FILE", "OUT.zarr"),
    "info --grey": ("info", "FILE", "--grey"),
    "evaluate": ("evaluate", "FILE", "SHARED/labels.h5", "--worst", "0", "--resolution", "30,6,6"),
    "stream": ("stream", "FILE", "--model", "SHARED/model.safetensors", "--out", "OUT.zarr", "--no-segment", *EXACT),
}
_UNPLACED = _ARRAY | {
    "copy": (*_ARRAY["copy"], "--resolution", "30,6,6"),
    "stream": (*_ARRAY["stream"], "--resolution", "30,6,6"),
}
_SKELETONS = ("evaluate", "SHARED/labels.h5:volumes/labels/neuron_ids", "--skeletons", "FILE")

KINDS = (
    Kind("HDF5", "f.h5", _hdf5, _ARRAY, RAW),
    Kind("HDF5, contiguous", "f.h5", _hdf5_plain, _ARRAY, RAW, weak=True),
    Kind("TIFF", "f.tif", _tiff, _ARRAY, RAW, weak=True),
    Kind("TIFF, tiles", "f.tif", _tiff_tiled, _UNPLACED, RAW),
    Kind("TIFF, OME", "f.ome.tif", _tiff_ome, _UNPLACED, RAW, weak=True),
    Kind("PNG", "f.png.d", _images("png"), _UNPLACED, RAW),
    Kind("BMP", "f.bmp.d", _images("bmp"), _UNPLACED, RAW, weak=True),
    Kind("JPEG", "f.jpg.d", _images("jpg"), _UNPLACED, weak=True),
    Kind("NPY", "f.npy", _npy, _UNPLACED, RAW, weak=True),
    Kind("NPZ", "f.npz", _npz, _ARRAY, RAW),
    Kind("Zarr 2", "f.zarr", _copied("zarr2"), _ARRAY, RAW, weak=True),
    Kind("Zarr 2, packed with nothing", "f.zarr", _zarr2_plain, _ARRAY, RAW, weak=True),
    Kind("Zarr 3", "f.zarr", _copied("zarr3"), _ARRAY, RAW, weak=True),
    Kind("N5", "f.n5", _copied("n5"), _ARRAY, RAW),
    Kind("precomputed", "f.precomputed", _copied("precomputed"), _ARRAY, RAW, weak=True),
    Kind("precomputed, ids", "f.precomputed", _copied("precomputed", True), _ARRAY, IDS, weak=True),
    Kind("SWC", "f.swc", _swc, {"evaluate --skeletons": (*_SKELETONS, "--worst", "0")}),
    Kind(
        "YAML",
        "f.configs",
        _configs,
        {
            "gallery --config": ("gallery", "SHARED/raw.h5", "--config", "FILE", "--section", "2", "--out", "OUT.png"),
            "train": ("train", "FILE/teacher.yaml", "FILE/student.yaml", "student.training.steps=0", "--out", "OUT"),
        },
    ),
    Kind(
        "thresholds",
        "f.yaml",
        _thresholds,
        {
            "segment --thresholds": (
                *("segment", "SHARED/raw.h5", "--model", "SHARED/model.safetensors", "--out", "OUT.zarr"),
                *("--thresholds", "FILE", *_TINY, *EXACT),
            )
        },
    ),
    Kind(
        "weights",
        "f.safetensors",
        _weights,
        {
            "info": ("info", "FILE"),
            "convert": ("convert", "FILE", "--out", "OUT.safetensors"),
            "stream": (
                *("stream", "SHARED/raw.h5", "--model", "FILE", "--out", "OUT.zarr", "--no-segment"),
                *("--sections", "0:2", *EXACT),
            ),
        },
        weak=True,
    ),
    Kind(
        "store of a stream",
        "f.zarr",
        _store,
        {
            "stream --resume": (
                *("stream", "SHARED/raw.h5", "--model", "SHARED/model.safetensors", "--out", "FILE", "--resume"),
                *EXACT,
            ),
            "finish": ("finish", "FILE"),
            "info": ("info", "FILE"),
            "section": ("section", "FILE", "--section", "1", "--out", "OUT.png"),
        },
        weak=True,
        parts=("stream/*", "stream/*/*", "*.json", "manifest.jsonl"),
    ),
    Kind(
        "store of blocks",
        "f.zarr",
        _blocks,
        {
            "segment --resume": (
                *("segment", "SHARED/raw.h5", "--model", "SHARED/model.safetensors", "--out", "FILE", "--resume"),
                *(*_TINY, *EXACT, "--merge", "0.4"),
            ),
            "info": ("info", "FILE"),
        },
        weak=True,
        parts=("blocks/*", "blocks/*/*", "*.json"),
    ),
)


def make_shared(folder: Path) -> None:
    """Write what all cases have in common: labelled volume, model, and two results."""
    import torch

    from distill.config import StudentNetwork
    from distill.models.build import build_student
    from distill.models.checkpoint import save_weights

    _hdf5(folder / "labels.h5", folder)
    shutil.copy(folder / "labels.h5", folder / "raw.h5")
    torch.manual_seed(0)
    config = StudentNetwork.model_validate({"kind": "cad", "width": 4, "embedding": 4})
    modules = {"student": build_student(config)}
    notes = {"merge_threshold": 0.5, "resolution": list(NM)}
    save_weights(folder / "model.safetensors", "student", modules, config.model_dump(mode="json"), notes)
