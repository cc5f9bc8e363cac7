"""Write the worst objects as a list for proofreading: a table, or points in Neuroglancer."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.core.atomic import replacing
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Nanometres
from distill.evaluation.worst_objects.locate import Spot
from distill.io.volume import Volume
from distill.io.writers.output import check_place

_METRES_PER_NM = 1e-9
_COLUMNS = (
    *("number", "error", "id", "bits", "voxels", "pieces", "partners", "piece", "piece_voxels"),
    *("z", "y", "x", "z_nm", "y_nm", "x_nm", "z_first", "y_first", "x_first", "z_last", "y_last", "x_last"),
)


def check_list(path: Path) -> None:
    """Check, before a long computation, that a list can be written.

    Raises:
        DistillError: a suffix other than .csv and .json, or a location that cannot be written.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise DistillError(f"--list: found {str(path)!r}, expected a file ending in .csv, or .json for Neuroglancer")
    check_place(path)


def place_nm(spot: Spot, segmentation: Volume) -> Nanometres:
    """Return the centre of a spot's voxel, z, y, x in nm in world coordinates."""
    z, y, x = (
        o + (v + 0.5) * r for o, v, r in zip(segmentation.offset, spot.voxel, segmentation.resolution, strict=True)
    )
    return z, y, x


def error_rows(spots: Sequence[Spot], segmentation: Volume) -> list[dict[str, Any]]:
    """Convert spots to plain values, ready for JSON; voxels are those of the segmentation, z, y, x.

    `point` lies in the erroneous fragment `piece`, where it comes closest to the largest fragment in its section; `box`
    is the bounding box of the fragment. `partners` are the largest fragments; the first is the correct one.
    """
    return [
        {
            "number": number,
            "error": spot.kind,
            "id": spot.error.id,
            "bits": spot.error.bits,
            "voxels": spot.error.voxels,
            "pieces": spot.error.pieces,
            "partners": list(spot.pieces),
            "piece": spot.pieces[min(1, len(spot.pieces) - 1)],
            "piece_voxels": spot.piece_voxels,
            "point_voxel_zyx": list(spot.voxel),
            "point_nm_zyx": list(place_nm(spot, segmentation)),
            "box_start_zyx": list(spot.piece.start),
            "box_stop_zyx": list(spot.piece.stop),
        }
        for number, spot in enumerate(spots, 1)
    ]


def write_list(path: Path, spots: Sequence[Spot], segmentation: Volume) -> None:
    """Write the list atomically: a table (.csv), or a Neuroglancer state with one point per error (.json).

    Raises:
        DistillError: see `check_list`, or the file cannot be written.
    """
    check_list(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".csv":
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(_COLUMNS)
                rows.writerows(map(_cells, error_rows(spots, segmentation)))
            else:
                file.write(json.dumps(neuroglancer_state(spots, segmentation), indent=2) + "\n")
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from None


def _cells(row: dict[str, Any]) -> list[Any]:
    last = [stop - 1 for stop in row["box_stop_zyx"]]
    plain = [row[name] for name in ("number", "error", "id", "bits", "voxels", "pieces")]
    partners = " ".join(map(str, row["partners"]))
    places = [*row["point_voxel_zyx"], *row["point_nm_zyx"], *row["box_start_zyx"], *last]
    return [*plain, partners, row["piece"], row["piece_voxels"], *places]


def neuroglancer_state(spots: Sequence[Spot], segmentation: Volume) -> dict[str, Any]:
    """Build a viewer state with one layer that contains a point for every spot.

    Axes are x, y, z, in voxels of the segmentation from the world's origin.
    """
    scales = segmentation.resolution[::-1]
    dimensions = {axis: [nm * _METRES_PER_NM, "m"] for axis, nm in zip("xyz", scales, strict=True)}
    points = [
        [p / r for p, r in zip(place_nm(spot, segmentation), segmentation.resolution, strict=True)][::-1]
        for spot in spots
    ]
    annotations = [
        {"type": "point", "id": str(number), "point": point, "description": f"{number}. {spot.text}"}
        for number, (spot, point) in enumerate(zip(spots, points, strict=True), 1)
    ]
    source = {"url": "local://annotations", "transform": {"outputDimensions": dimensions}}
    layer = {
        "type": "annotation",
        "name": "errors",
        "source": source,
        "tab": "annotations",
        "annotationColor": "#ffd400",
        "annotations": annotations,
    }
    state: dict[str, Any] = {"dimensions": dimensions, "layers": [layer], "selectedLayer": {"layer": "errors"}}
    return state | ({"position": points[0]} if points else {})
