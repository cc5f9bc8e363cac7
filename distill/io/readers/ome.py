"""OME-Zarr 0.1 to 0.5: which arrays are the levels of an image, what their axes are, and where they lie.

All of it is optional: metadata that are damaged, or of a form that is not known, cost the resolution and never the
array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.core.errors import SourceError
from distill.core.notes import note
from distill.io.readers.array import nm_per_unit, numbers
from distill.io.readers.names import inner_path


@dataclass(frozen=True)
class Image:
    """An image of a group.

    Attributes:
        paths: of its levels below the group, the finest first.
        axes: their names; None where the metadata do not say.
        five: whether the version prescribes t, c, z, y, x.
        labels: whether its numbers are ids.
        resolution: nm of one level along each axis, channels and time as they are; None where it is not known.
        offset: likewise.
    """

    paths: tuple[str, ...]
    axes: tuple[str, ...] | None
    five: bool
    labels: bool
    resolution: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None


def images_of(group: object, attributes: Mapping[str, Any]) -> list[Image]:
    """Return images of a group by its attributes.

    Raises:
        SourceError: a level lies outside the group.
    """
    found = []
    for image, about in _listed(attributes):
        paths = [inner_path(group, one.get("path")) for one in image.get("datasets") or () if isinstance(one, dict)]
        if paths:
            labels = "image-label" in about
            found.append(Image(tuple(paths), _axes(image), str(image.get("version")) in ("0.1", "0.2"), labels))
    return found


def image_at(group: object, attributes: Mapping[str, Any], name: str) -> Image | None:
    """Return the image that an array is a level of, with that level's place; None where it is none of the group's.

    Args:
        group: for messages.
        attributes: of the group.
        name: of the array, below the group.
    """
    for (image, _), found in zip(_listed(attributes), images_of(group, attributes), strict=False):
        for level, path in zip(image["datasets"], found.paths, strict=False):
            if path == name:
                resolution, offset = _place(group, image, level, found.axes)
                return Image(found.paths, found.axes, found.five, found.labels, resolution, offset)
    return None


def _listed(attributes: Mapping[str, Any]) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    about = attributes.get("ome", attributes)
    about = about if isinstance(about, dict) else {}
    images = about.get("multiscales")
    images = images if isinstance(images, list) else []
    return [(one, about) for one in images if isinstance(one, dict) and isinstance(one.get("datasets"), list)]


def _axes(image: Mapping[str, Any]) -> tuple[str, ...] | None:
    axes = image.get("axes")
    names = [one.get("name") if isinstance(one, dict) else one for one in axes] if isinstance(axes, list) else []
    return tuple(map(str, names)) if names and all(isinstance(name, str) and name for name in names) else None


def _place(
    group: object, image: Mapping[str, Any], level: Mapping[str, Any], names: tuple[str, ...] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Scale and translation of a level in nm, by axis."""
    try:
        scale, move = _combined(level.get("coordinateTransformations"), image.get("coordinateTransformations"))
    except (SourceError, TypeError, AttributeError, LookupError):
        note(
            f"{group}: its scale and translation are of an unknown form and are not used; --resolution Z,Y,X gives them"
        )
        return None, None
    if scale is None or names is None or len(scale) != len(names) or (move is not None and len(move) != len(names)):
        return None, None
    units = [one.get("unit") if isinstance(one, dict) else None for one in image["axes"]]
    nm = [nm_per_unit(unit) for unit in units]
    if any(one is None for one, name in zip(nm, names, strict=True) if name.lower() in ("z", "y", "x")):
        if any(one != 1 for one in scale):
            note(f"{group}: gives a scale without a known unit, which is not used; --resolution Z,Y,X gives it in nm")
        return None, None
    resolution = tuple(value * (unit or 1.0) for value, unit in zip(scale, nm, strict=True))
    return resolution, move and tuple(value * (unit or 1.0) for value, unit in zip(move, nm, strict=True))


def _combined(*steps: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Scale and translation of transformations, those of the level before those of the image."""
    scale: tuple[float, ...] | None = None
    move: tuple[float, ...] | None = None
    for step in (one for many in steps for one in many or ()):
        kind = step["type"]
        if kind == "identity":
            continue
        values = numbers(step.get(kind))
        if kind not in ("scale", "translation") or values is None or not values:
            raise SourceError("unknown")
        if kind == "scale":
            scale = values if scale is None else tuple(a * b for a, b in zip(scale, values, strict=True))
            move = move and tuple(a * b for a, b in zip(move, values, strict=True))
        else:
            move = values if move is None else tuple(a + b for a, b in zip(move, values, strict=True))
    return scale, move
