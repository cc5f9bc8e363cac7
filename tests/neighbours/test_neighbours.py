"""What the packages of others read and compute of what distill writes, voxel by voxel.

`make neighbours` names their interpreter in DISTILL_NEIGHBOURS; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.io.volume import open_labels
from distill.models.load import load_student
from students.backends.pair import pair_function

INTERPRETER = os.environ.get("DISTILL_NEIGHBOURS", "")
pytestmark = pytest.mark.skipif(not INTERPRETER, reason="make neighbours runs it")
RESOLUTION, START = (30.0, 6.0, 6.0), (4, 100, 50)  # nm and voxels, z, y, x
PLACE = tuple(n * r for n, r in zip(START, RESOLUTION, strict=True))
IDS = (3, 12, 2**40 + 5)
Cli = Callable[..., Any]
Read = Callable[[str, Path], tuple[dict[str, NDArray[Any]], dict[str, Any]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a source by the package of others."""

    def call(kind: str, source: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        out = tmp_path / f"{kind}.npz"
        script = Path(__file__).with_name("read_with.py")
        own = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        made = subprocess.run(
            [INTERPRETER, str(script), kind, str(source), str(out)],
            check=False,
            capture_output=True,
            text=True,
            env=own,
        )
        assert made.returncode == 0, made.stderr[-2000:]
        with np.load(out) as found:
            arrays = {name: found[name] for name in found.files if name != "about"}
            return arrays, json.loads(str(found["about"]))

    return call


@pytest.fixture
def labels(tmp_path: Path) -> NDArray[np.uint64]:
    """A box, a bar, and an id above 32 bits, as labels.npz."""
    found = np.zeros((14, 40, 60), np.uint64)
    found[2:6, 5:15, 7:20] = IDS[0]
    found[4:8, 20:28, :] = IDS[1]
    found[9:12, 2:10, 30:50] = IDS[2]
    np.savez(tmp_path / "labels.npz", data=found, resolution=RESOLUTION, offset=PLACE)
    return found


@pytest.fixture
def raw(tmp_path: Path) -> NDArray[np.uint8]:
    """Grey values of the same voxels, as raw.npz."""
    found = np.random.default_rng(0).integers(0, 256, (14, 40, 60)).astype(np.uint8)
    np.savez(tmp_path / "raw.npz", data=found, resolution=RESOLUTION, offset=PLACE)
    return found


def done(said: Any) -> None:
    """Check that a command has succeeded."""
    assert said.code == 0, said.err


def bounds(labels: NDArray[np.uint64], one: int) -> NDArray[np.float64]:
    """First and last corner of an object, x, y, z in nm."""
    there = np.argwhere(labels == one)
    return ((np.array([there.min(0), there.max(0) + 1]) + START) * RESOLUTION)[:, ::-1]


@pytest.mark.commands("mesh", "copy")
def test_cloud_volume(labels: NDArray[np.uint64], tmp_path: Path, cli: Cli, read: Read) -> None:
    pytest.importorskip("zmesh")
    pytest.importorskip("kimimaro")
    folder = tmp_path / "seg.precomputed"
    done(cli("copy", tmp_path / "labels.npz", folder, "--labels", "--levels", 2))
    words = ("--skeletons", "--block", "8,25,31", "--error", 0, "--smallest", 10, "--twig", 100)
    done(cli("mesh", folder, *words))
    found, about = read("cloud-volume", folder)
    assert about == {"resolution": [6.0, 6.0, 30.0], "offset": [50, 100, 4], "kind": "segmentation"}
    np.testing.assert_array_equal(found["voxels"].T, labels)
    for one in IDS:
        vertices, nodes = found[f"vertices_{one}"], found[f"nodes_{one}"]
        box = bounds(labels, one)
        np.testing.assert_allclose([vertices.min(0), vertices.max(0)], box, atol=0.01)
        assert found[f"faces_{one}"].max() == len(vertices) - 1
        voxels = np.floor(nodes[:, ::-1] / RESOLUTION - START + 1e-3).astype(int)
        assert set(labels[tuple(voxels.T)].tolist()) == {one}
        assert len(found[f"edges_{one}"]) == len(nodes) - 1
        assert found[f"radii_{one}"].max() > 0


def image(tmp_path: Path, cli: Cli, form: str, *words: str) -> Path:
    """The image with its labels as one store."""
    store = tmp_path / f"{form}.zarr"
    done(cli("copy", tmp_path / "raw.npz", store, "--format", form, "--image", "--levels", 2, *words))
    target = f"{store}:labels/neurons"
    done(cli("copy", tmp_path / "labels.npz", target, "--format", form, "--labels", "--levels", 2, *words))
    return store


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_ome_zarr(
    form: str, raw: NDArray[np.uint8], labels: NDArray[np.uint64], tmp_path: Path, cli: Cli, read: Read
) -> None:
    found, about = read("ome-zarr", image(tmp_path, cli, form))
    assert set(about) == {"image", "neurons"}
    np.testing.assert_array_equal(found["image_0"], raw)
    np.testing.assert_array_equal(found["neurons_0"], labels)
    assert found["image_1"].shape == found["neurons_1"].shape == (14, 20, 30)
    for one in about.values():
        assert one["axes"] == ["z", "y", "x"]
        (fine, shift), (coarse, half) = one["transforms"]
        assert (fine["scale"], shift["translation"]) == ([30, 6, 6], list(PLACE))
        assert coarse["scale"] == [30, 12, 12]
        assert half["translation"] == [PLACE[0], PLACE[1] + 3, PLACE[2] + 3]


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_napari(
    form: str, raw: NDArray[np.uint8], labels: NDArray[np.uint64], tmp_path: Path, cli: Cli, read: Read
) -> None:
    """Its plugin leaves translations to ome-zarr-py, see there; both layers have the same."""
    found, about = read("napari", image(tmp_path, cli, form))
    assert [one["kind"] for one in about.values()] == ["image", "labels"]
    for one in about.values():
        assert (one["scale"], one["units"]) == ([30, 6, 6], ["nanometer"] * 3)
    np.testing.assert_array_equal(found["0_0"], raw)
    np.testing.assert_array_equal(found["1_0"], labels)


@pytest.mark.parametrize("kind", ["ome-zarr", "napari"])
def test_a_result_opens_as_its_segmentation(
    kind: str, run: Path, phantom: Path, cpu: tuple[str, ...], tmp_path: Path, cli: Cli, read: Read
) -> None:
    store = tmp_path / "out.zarr"
    done(cli("segment", f"{phantom}:volumes/raw", "--model", run, "--out", store, "--sections", "0:5", *cpu))
    found, _ = read(kind, store)
    (first, *_) = found.values()
    np.testing.assert_array_equal(first, open_labels(f"{store}:segmentation").read())


def test_webknossos(raw: NDArray[np.uint8], labels: NDArray[np.uint64], tmp_path: Path, cli: Cli, read: Read) -> None:
    found, about = read("webknossos", image(tmp_path, cli, "zarr3", "--webknossos"))
    assert about == {
        "zarr3": {"category": "color", "voxel_size": [6, 6, 30]},
        "neurons": {"category": "segmentation", "voxel_size": [6, 6, 30]},
    }
    np.testing.assert_array_equal(found["zarr3_1"], raw)
    np.testing.assert_array_equal(found["neurons_1"], labels)
    assert found["zarr3_2-2-1"].shape == found["neurons_2-2-1"].shape == (14, 20, 30)


@pytest.mark.commands("export")
def test_bioimageio(tmp_path: Path, cli: Cli, read: Read) -> None:
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    out, words = tmp_path / "package", ("--license", "CC-BY-4.0", "--author", "The distill contributors")
    done(cli("export", "ac4", "--format", "bioimageio", "--out", out, *words))
    found, about = read("bioimageio", out)
    assert about["status"] == "passed", about["report"]
    trained = load_student("ac4", torch.device("cpu"))
    with torch.no_grad():
        wanted = pair_function(trained.student)(torch.from_numpy(found["sections"])).numpy()
    np.testing.assert_allclose(found["affinity"], wanted, atol=1e-4)
