"""A Neuroglancer state that shows a review queue over image and segmentation, for a page that is served elsewhere.

The state is a JSON document of Neuroglancer's own (https://neuroglancer-docs.web.app/json/api/index.html): paste it
into the editor behind the braces `{}` of any Neuroglancer page. Volumes are addresses that the browser can read:
folders written by `distill copy` (precomputed, Zarr or N5) and arrays of a store, under a web server that allows
requests from other pages (CORS).

Axes of volumes are z, y, x, those of Neuroglancer's positions x, y, z.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.core.atomic import write_text
from distill.core.errors import SourceError
from distill.core.geometry import Nanometres
from distill.inference.review.tables import DoubtfulContact
from distill.io.readers.zarr import zarr_node

_COLOURS = {"yes": "#ff7f0e", "no": "#1f77b4"}  # merged, and not
_SHADER = (
    "void main() { setColor(defaultColor()); setPointMarkerSize(9.0); setPointMarkerBorderColor(vec4(0, 0, 0, 1)); }"
)


@dataclass(frozen=True)
class Served:
    """Folder whose content a web server shows.

    Attributes:
        folder: on this machine.
        url: its address.
    """

    folder: Path
    url: str

    def source(self, location: str, resolution: Nanometres, offset: Nanometres) -> Any:
        """Return the data source of a volume as Neuroglancer's states name it.

        Args:
            location: path of a folder of precomputed, Zarr or N5 format inside `folder`, or an address with its format,
                such as precomputed://https://host/volume.
            resolution: nm, for arrays that do not state theirs in a form that Neuroglancer reads.
            offset: nm, likewise.

        Raises:
            SourceError: the location lies outside the folder, or is in none of these formats.
        """
        if "://" in location:
            return location
        path = Path(location)
        try:
            inside = path.resolve().relative_to(self.folder.resolve())
        except ValueError:
            raise SourceError(
                f"{location}: lies outside {self.folder}, which --url serves; expected a path inside it, or an address "
                "such as precomputed://https://host/volume"
            ) from None
        address = "/".join((self.url.rstrip("/"), *inside.parts))
        if (path / "info").is_file():
            return f"precomputed://{address}"
        if (path / "attributes.json").is_file():
            return f"n5://{address}"
        node = zarr_node(path) if path.is_dir() else None
        if node is None:
            raise SourceError(
                f"{location}: found no folder of precomputed, Zarr or N5 format, expected one: distill copy SOURCE "
                f"{path.with_suffix('.precomputed')}"
            )
        if node[0].startswith("group"):
            return f"zarr://{address}"
        return {"url": f"zarr://{address}", "transform": _transform(resolution, offset)}


def write_queue_state(
    path: Path,
    queue: Sequence[DoubtfulContact],
    layers: dict[str, Any],
    resolution: Nanometres,
    title: str,
) -> None:
    """Write the state; it opens at the first contact of the queue.

    Args:
        path: file to write.
        queue: contacts, one point each.
        layers: data sources by name: `image`, `segmentation`, `supervoxels`; those that are absent are left out.
        resolution: nm, z, y, x, of a voxel of the segmentation.
        title: of the page.
    """
    write_text(path, json.dumps(queue_state(queue, layers, resolution, title), indent=1) + "\n")


def queue_state(
    queue: Sequence[DoubtfulContact], layers: dict[str, Any], resolution: Nanometres, title: str
) -> dict[str, Any]:
    """Return the state; arguments as for `write_queue_state`."""
    space = {axis: [nm * 1e-9, "m"] for axis, nm in zip("xyz", resolution[::-1], strict=True)}
    shown: list[dict[str, Any]] = []
    if "image" in layers:
        shown.append({"type": "image", "name": "image", "source": layers["image"]})
    labelled = [name for name in ("segmentation", "supervoxels") if name in layers]
    for name in labelled:
        layer: dict[str, Any] = {"type": "segmentation", "name": name, "source": layers[name], "tab": "segments"}
        if queue:
            layer["segments"] = _ids(queue[0], name)
        shown.append(layer | ({"visible": False} if name == "supervoxels" else {}))
    shown.append(
        {
            "type": "annotation",
            "name": "queue",
            "source": {
                "url": "local://annotations",
                "transform": {"outputDimensions": space},
            },
            "tab": "annotations",
            "annotationProperties": [{"id": "color", "type": "rgb", "default": "#ffd400"}],
            "annotationRelationships": labelled,
            "linkedSegmentationLayer": {name: name for name in labelled},
            "shader": _SHADER.replace("defaultColor()", "prop_color()"),
            "annotations": [
                {
                    "type": "point",
                    "id": str(one.rank),
                    "point": _point(one, resolution),
                    "description": _text(one),
                    "segments": [_ids(one, name) for name in labelled],
                    "props": [_COLOURS[one.merged]],
                }
                for one in queue
            ],
        }
    )
    state: dict[str, Any] = {
        "title": title,
        "dimensions": space,
        "crossSectionScale": 1.0,
        "layers": shown,
        "selectedLayer": {"layer": "queue", "visible": True, "size": 320},
        "layout": "xy",
    }
    if queue:
        state["position"] = _point(queue[0], resolution)
    return state


def _point(one: DoubtfulContact, resolution: Nanometres) -> list[float]:
    """Return a position in voxels of the state's dimensions, which begin at 0 nm."""
    return [round(nm / step, 3) for nm, step in zip((one.x_nm, one.y_nm, one.z_nm), resolution[::-1], strict=True)]


def _ids(one: DoubtfulContact, name: str) -> list[str]:
    pair = (one.segment_a, one.segment_b) if name == "segmentation" else (one.supervoxel_a, one.supervoxel_b)
    return [str(number) for number in dict.fromkeys(pair)]


def _text(one: DoubtfulContact) -> str:
    what = "merged" if one.merged == "yes" else "not merged"
    return f"{one.rank}. {what} at {one.score:.3f}; {one.smaller_voxels:,} voxels"


def _transform(resolution: Nanometres, offset: Nanometres) -> dict[str, Any]:
    """Place the voxels of an array z, y, x without units."""
    matrix = [
        [*(float(row == column) for column in range(3)), o / r]
        for row, (o, r) in enumerate(zip(offset, resolution, strict=True))
    ]
    return {
        "matrix": matrix,
        "inputDimensions": {axis: [1, ""] for axis in "zyx"},
        "outputDimensions": {axis: [nm * 1e-9, "m"] for axis, nm in zip("zyx", resolution, strict=True)},
    }
