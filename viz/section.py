"""Draw one section of a result: image, segmentation, ground truth, affinities (`distill section`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box
from distill.core.normalisation import as_picture
from distill.evaluation.segmentation import position_in_truth
from distill.io.volume import Volume
from viz.style import STYLE, check_figure, image_grid, matched_ids, outlined, overlay, save_figure, scale_bar, show
from viz.viewer.view import Sources, open_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]


def section(store: Path, sources: Sources, number: int, out: Path) -> list[str]:
    """Draw the figure of one section.

    Args:
        store: Zarr store of `distill stream` or `distill segment`.
        sources: image (by default the source of the store) and ground truth.
        number: of the section in the image.
        out: .png, .svg or .pdf.

    Returns:
        Description of each layer shown.

    Raises:
        DistillError: bad input, no image, a section outside the store, or volumes that do not lie within it.
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
    first, last = position_in_truth(anchor, image).start[0], position_in_truth(anchor, image).stop[0]
    if not first <= number < last:
        raise DistillError(
            f"--section: found {number}, expected {first} to {last - 1}: the sections that {store} holds"
        )
    where = Box((number - first, 0, 0), (number - first + 1, *anchor.size[1:]))
    raw = image.read(where.shift(position_in_truth(anchor, image).start))[0]
    if raw.ndim != 2:
        raise DistillError(f"{image.source}: found channels, expected one grey-value volume z, y, x")
    found: dict[str, NDArray[Any]] = {name: _section(volume, anchor, where) for name, volume in shown.items()}
    if "ground truth" in layers:
        truth = layers["ground truth"]
        found["ground truth"] = truth.read(where.shift(position_in_truth(anchor, truth).start))[0]
    affinity = found.get("affinity z y x")
    section_figure(
        as_picture(raw),
        None if affinity is None else affinity[:3],
        found.get("segmentation"),
        found.get("ground truth"),
        (image.resolution[1], image.resolution[2]),
        out,
        title=f"Section {number}",
    )
    return ["raw", *found]


def _section(volume: Volume, anchor: Volume, where: Box) -> NDArray[Any]:
    """Read (Y, X) or (C, Y, X) of one section of a volume of the same store."""
    start = position_in_truth(anchor, volume).start
    return volume.read(where.shift(start))[..., 0, :, :]


def section_figure(
    raw: Image,
    affinity: npt.NDArray[Any] | None,
    segmentation: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    resolution: tuple[float, float],
    out: Path,
    dpi: int = 300,
    title: str = "Section",
) -> None:
    """Write the figure of `build_section_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_section_figure`, or an `out` that cannot be written.
    """
    save_figure(build_section_figure(raw, affinity, segmentation, labels, resolution, dpi, title), out)


def build_section_figure(
    raw: Image,
    affinity: npt.NDArray[Any] | None,
    segmentation: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    resolution: tuple[float, float],
    dpi: int = 300,
    title: str = "Section",
) -> Figure:
    """Draw one section with its segmentation, ground truth and affinities, as far as available.

    With both, the largest segment of a neuron takes the colour of the neuron, and every other segment one of its own: a
    second colour in a neuron is a split, one colour in two neurons a merge.

    Args:
        raw: (Y, X) uint8.
        affinity: (3, Y, X) in channel order z, y, x; uint8 0..255 or float 0..1, 1 = same neuron; or none.
        segmentation: (Y, X) label ids, 0 = background, or none.
        labels: (Y, X) ground truth ids, or none.
        resolution: nm per voxel in y and x.
        dpi: device pixels per inch of the layout.
        title: of the first image.

    Returns:
        Figure whose axes are raw, segmentation and ground truth if any, the affinities below them, their colour bar.

    Raises:
        DistillError: shapes or types do not match.
    """
    from matplotlib import rc_context

    matched = segmentation if segmentation is None or labels is None else matched_ids(segmentation, labels)
    images: list[tuple[str, npt.NDArray[Any]]] = [(title, raw)]
    images += [
        (name, outlined(overlay(raw, ids), ids))
        for name, ids in (("Segmentation", matched), ("Ground truth", labels))
        if ids is not None
    ]
    first = len(images)
    if affinity is not None:
        images += [(f"Affinity {axis}", c) for axis, c in zip("zyx", _unit_affinity(affinity, raw.shape), strict=True)]
    with rc_context(STYLE):
        titles, below = [title for title, _ in images], 0.0 if affinity is None else 0.42
        notes = [""] * len(titles)
        if segmentation is not None and labels is not None:
            notes[1] = "colours of the neurons in c; a second colour in a neuron is a split"
        fig, axes = image_grid(titles, notes, raw.shape, resolution, 3, dpi, below, first)
        shown = [show(ax, image, resolution) for ax, (_, image) in zip(axes, images, strict=True)]
        scale_bar(axes[0], raw.shape[1], resolution[1])
        if affinity is not None:
            _affinity_bar(fig, shown[-1])
    return fig


def _unit_affinity(affinity: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Convert affinities to (3, Y, X) from 0 to 1."""
    if affinity.shape != (3, *shape) or not (affinity.dtype == np.uint8 or affinity.dtype.kind == "f"):
        raise ShapeError(f"affinity: found {affinity.shape} {affinity.dtype}, expected {(3, *shape)} uint8 or float")
    return affinity / np.float32(255) if affinity.dtype == np.uint8 else affinity


def _affinity_bar(fig: Figure, shown: Any) -> None:
    height = fig.get_size_inches()[1]
    bar = fig.colorbar(shown, cax=fig.add_axes((0.35, 0.30 / height, 0.30, 0.07 / height)), orientation="horizontal")
    bar.set_label("Affinity (0 = boundary, 1 = same neuron)", labelpad=1)
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    bar.ax.tick_params(width=0.6, length=2, pad=1.5)
