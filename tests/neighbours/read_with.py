"""Read data with the packages of others, in an environment of their own, and store what they found for comparison.

`python read_with.py KIND SOURCE OUT.npz`: arrays, and everything else as JSON under the key `about`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def cloud_volume(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Voxels, surfaces and skeletons by CloudVolume, all axes x, y, z."""
    from cloudvolume import CloudVolume

    volume = CloudVolume(f"file://{Path(source).resolve()}", progress=False, fill_missing=True)
    voxels = np.asarray(volume[:, :, :])[..., 0]
    arrays: dict[str, Any] = {"voxels": voxels}
    for one in np.unique(voxels[voxels > 0]).tolist():
        mesh = volume.mesh.get(one)
        mesh = mesh[one] if isinstance(mesh, dict) else mesh
        arrays[f"vertices_{one}"], arrays[f"faces_{one}"] = mesh.vertices, mesh.faces
        skeleton = volume.skeleton.get(one)
        arrays[f"nodes_{one}"], arrays[f"edges_{one}"] = skeleton.vertices, skeleton.edges
        arrays[f"radii_{one}"] = skeleton.radius
    about = {
        "resolution": [float(n) for n in volume.resolution],
        "offset": [int(n) for n in volume.voxel_offset],
        "kind": volume.layer_type,
    }
    return arrays, about


def ome_zarr(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image and its labels by ome-zarr-py."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    arrays, about = {}, {}
    for node in Reader(parse_url(source))():
        if not node.data:  # the group of labels
            continue
        name = "image" if not arrays else Path(str(node.zarr).split(" ")[0]).name
        for k, level in enumerate(node.data):
            arrays[f"{name}_{k}"] = np.asarray(level)
        axes = [axis["name"] for axis in node.metadata["axes"]]
        about[name] = {"axes": axes, "transforms": node.metadata["coordinateTransformations"]}
    return arrays, about


def napari(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The layers that napari's plugin gives to the viewer."""
    from napari_ome_zarr import napari_get_reader

    arrays, about = {}, {}
    for number, (data, extra, kind) in enumerate(napari_get_reader(source)(source)):
        for k, level in enumerate(data):
            arrays[f"{number}_{k}"] = np.asarray(level)
        about[str(number)] = {"kind": kind, "scale": list(extra["scale"]), "units": list(extra["units"])}
    return arrays, about


def webknossos(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The layers of a folder by webKnossos' library."""
    from webknossos import Dataset

    dataset = Dataset.open(source)
    arrays, about = {}, {}
    for name, layer in dataset.layers.items():
        for mag, view in layer.mags.items():
            arrays[f"{name}_{mag.to_layer_name()}"] = np.asarray(view.read())
        about[name] = {"category": layer.category, "voxel_size": list(dataset.voxel_size)}
    return arrays, about


def bioimageio(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of bioimage.io's test of a package, and its affinities of other sections than the test's."""
    import bioimageio.core as core
    from bioimageio.core.digest_spec import create_sample_for_model

    model = core.load_model_description(Path(source) / "rdf.yaml", format_version="latest")
    checked = core.test_model(model, weight_format="onnx", devices=["cpu"])
    sections = np.random.default_rng(1).random((1, 2, 192, 224), dtype=np.float32)
    with core.create_prediction_pipeline(model, weight_format="onnx") as pipeline:
        given = create_sample_for_model(model, inputs={"sections": sections})
        affinity = pipeline.predict_sample_without_blocking(given).members["affinity"].data.to_numpy()
    return {"sections": sections, "affinity": affinity}, {"status": checked.status, "report": checked.format()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kind, source, out = sys.argv[1:]
    ways = {"cloud-volume": cloud_volume, "ome-zarr": ome_zarr, "napari": napari, "webknossos": webknossos}
    ways["bioimageio"] = bioimageio
    found, about = ways[kind](source)
    np.savez(out, about=json.dumps(about), **found)
