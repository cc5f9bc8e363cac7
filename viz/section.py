"""`distill section`: one section of a result as it is printed: image, segmentation, ground truth, affinities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.core.normalisation import as_picture
from distill.evaluation.segmentation import placed
from distill.io.volume import Volume
from viz.figures import section_figure
from viz.layout import check_figure
from viz.viewer.view import Sources, open_layers


def section(store: Path, sources: Sources, number: int, out: Path) -> list[str]:
    """Make the figure.

    Args:
        store: Zarr store of `distill stream` or `distill segment`.
        sources: image (by default the one that the store was made from) and ground truth.
        number: of the section in the image.
        out: .png, .svg or .pdf.

    Returns:
        What is shown, by layer.

    Raises:
        DistillError: bad input, no image, a section that the store does not hold, or volumes that do not lie in it.
    """
    check_figure(out)
    notes: list[str] = []
    layers = {one.name: one.volume for one in open_layers(store, sources, notes.append)}
    image = layers.pop("raw", None)
    if image is None:
        raise DistillError(
            f"--raw: found none ({'; '.join(notes) or f'{store} names no image'}), expected the sections"
        )
    shown = {name: layers[name] for name in ("segmentation", "affinity z y x") if name in layers}
    anchor = next(iter(shown.values()))
    first, last = placed(anchor, image).start[0], placed(anchor, image).stop[0]
    if not first <= number < last:
        raise DistillError(
            f"--section: found {number}, expected {first} to {last - 1}: the sections that {store} holds"
        )
    where = Box((number - first, 0, 0), (number - first + 1, *anchor.size[1:]))
    raw = image.read(where.shift(placed(anchor, image).start))[0]
    if raw.ndim != 2:
        raise DistillError(f"{image.source}: found channels, expected one grey-value volume z, y, x")
    found: dict[str, NDArray[Any]] = {name: _section(volume, anchor, where) for name, volume in shown.items()}
    if "ground truth" in layers:
        truth = layers["ground truth"]
        found["ground truth"] = truth.read(where.shift(placed(anchor, truth).start))[0]
    affinity = found.get("affinity z y x")
    section_figure(
        as_picture(raw),
        None if affinity is None else affinity[:3],
        found.get("segmentation"),
        found.get("ground truth"),
        (image.resolution[1], image.resolution[2]),
        out,
    )
    return ["raw", *found]


def _section(volume: Volume, anchor: Volume, where: Box) -> NDArray[Any]:
    """(Y, X) or (C, Y, X) of one section of a volume of the same store."""
    start = placed(anchor, volume).start
    return volume.read(where.shift(start))[..., 0, :, :]
