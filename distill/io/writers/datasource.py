"""`datasource-properties.json`: what webKnossos reads of a folder with Zarr v3 arrays, its voxel size and its layers.

Layers are arrays z, y, x, as they are in OME-Zarr. Their first voxels coincide in webKnossos, whatever their offsets;
layers of one folder must have the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.core.errors import SourceError
from distill.io.writers.metadata import Written
from distill.io.writers.store import write_json, writing
from distill.io.writers.target import Target

NAME = "datasource-properties.json"
_TYPES = {"float32": "float", "float64": "double"}
_ORDER = {"z": 0, "y": 1, "x": 2}


def check_layer(to: Target, written: Written) -> None:
    """Check, before a copy, that it can be a layer.

    Raises:
        SourceError: the target is not Zarr v3 on this machine, has channels, or does not fit the layers that are there.
    """
    if to.form != "zarr3" or not isinstance(to.place, Path):
        raise SourceError(f"{to}: found {to.form}, expected Zarr v3 on this machine for --webknossos")
    if written.channels is not None or written.dtype.name in ("bool", "float16"):
        shape = "channels" if written.channels is not None else written.dtype.name
        raise SourceError(f"{to}: found {shape}, expected integers or float32 (z, y, x) for --webknossos")
    known = _known(to.place)
    if known is None:
        return
    finest = written.levels[0]
    factor = [float(n) for n in finest.resolution[::-1]]
    if known["scale"]["factor"] != factor:
        raise SourceError(
            f"{to.place / NAME}: found voxels of {known['scale']['factor']} nm (x, y, z), expected {factor} as in {to}"
        )
    others = [_offset(to.place, one) for one in known["dataLayers"]]
    if differs := [one for one in others if one is not None and one != list(finest.offset)]:
        raise SourceError(
            f"{to}: found offset {list(finest.offset)} nm (z, y, x), expected {differs[0]} as of the other layers of "
            f"{to.place / NAME}"
        )


def add_layer(to: Target, written: Written) -> Path:
    """Add a layer, or replace the one of its name; the arrays are there.

    Raises:
        SourceError: the disk refuses.
    """
    assert isinstance(to.place, Path)
    finest, below = written.levels[0], f"{to.dataset}/" if to.dataset else ""
    name = to.dataset.rpartition("/")[2] if to.dataset else to.place.stem
    size = dict(zip(("depth", "height", "width"), finest.size, strict=True))
    layer: dict[str, Any] = {
        "name": name,
        "category": "segmentation" if written.labels else "color",
        "boundingBox": {"topLeft": [0, 0, 0], **size},
        "elementClass": _TYPES.get(written.dtype.name, written.dtype.name),
        "dataFormat": "zarr3",
        "numChannels": 1,
        "mags": [
            {"mag": list(level.factor[::-1]), "path": f"./{below}{k}", "axisOrder": _ORDER}
            for k, level in enumerate(written.levels)
        ],
    }
    file, factor = to.place / NAME, [float(n) for n in finest.resolution[::-1]]
    known = _known(to.place) or {
        "id": {"name": to.place.stem, "team": ""},
        "version": 1,
        "scale": {"factor": factor, "unit": "nanometer"},
        "dataLayers": [],
    }
    layers = [one for one in known["dataLayers"] if one["name"] != name]
    with writing(file):
        write_json(file, {**known, "dataLayers": [*layers, layer]})
    return file


def _offset(store: Path, layer: dict[str, Any]) -> list[float] | None:
    """Return the offset of a layer's array; None where it has none."""
    try:
        document = json.loads((store / layer["mags"][0]["path"] / "zarr.json").read_text(encoding="utf-8"))
        return [float(n) for n in document["attributes"]["offset"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _known(store: Path) -> dict[str, Any] | None:
    file = store / NAME
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(found["scale"]["factor"], list)
        assert all("name" in one for one in found["dataLayers"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise SourceError(f"{file}: cannot be read, expected layers of webKnossos in JSON, or no such file") from None
    return dict(found)
