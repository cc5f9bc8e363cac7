"""Draw neurons in 3D, ground truth next to segmentation (`distill render`).

The neuron is divided into the segments that cover it, each in the colour that it has in every other figure. Parts of
other objects in the neuron's own segments are hatched. Ground truth 0 is not counted and not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.core.geometry import Box, Nanometres, Triple
from distill.evaluation.aligned import overlapping
from distill.evaluation.metrics import worst_objects
from distill.evaluation.partners import MERGE
from distill.evaluation.segmentation import position_in_truth
from distill.evaluation.worst_objects.connected import Pieces, connected_pieces
from distill.io.volume import open_labels
from viz.errors.figure import COLOUR_OF
from viz.errors.survey import OnSection, Survey, hull, survey
from viz.meshes.figure import DrawnObject, Neuron, meshes_figure
from viz.meshes.raster import Solid, surface
from viz.style import check_figure, label_colours

_CELLS = 256  # along the longest edge of a drawing
_SHOWN = 0.01  # fraction of the neuron: smaller fragments are drawn together
_PIECES = 8
_DEFAULT = 3
_REST, _NOTHING = (140.0, 140.0, 140.0), (215.0, 215.0, 215.0)
_EVERY = 2**31  # more than the number of objects


@dataclass(frozen=True)
class SharedVoxels:
    """Overlap of a neuron with a segment, in voxels."""

    segment: int
    voxels: int


@dataclass(frozen=True)
class Foreign:
    """Voxels of another object in a segment of the neuron."""

    object: int
    segment: int
    voxels: int


@dataclass(frozen=True)
class Rendered:
    """Contents of one row of the figure.

    Attributes:
        neuron: ground-truth id.
        voxels: its voxels.
        box: region drawn, in voxels of the labels.
        pieces: segments that cover the neuron, the largest first; 0 = no segment.
        foreign: objects merged with it, the largest first.
        name: of the neuron, with the number of its connected piece if there are several.
    """

    neuron: int
    voxels: int
    box: Box
    pieces: tuple[SharedVoxels, ...]
    foreign: tuple[Foreign, ...]
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self)


def render(
    segmentation: str,
    labels: str,
    out: Path,
    neurons: Sequence[int] = (),
    resolution: Nanometres | None = None,
    on_section: OnSection = lambda done, total: None,
) -> tuple[Rendered, ...]:
    """Draw neurons in 3D.

    Args:
        segmentation: source, positioned in the labels by its offset.
        labels: source of the ground truth, of the same size or larger.
        out: .png, .svg or .pdf.
        neurons: ground-truth ids; by default the three with the largest split or merge errors.
        resolution: for files without one.
        on_section: called with the number of sections read and their total, before drawing.

    Raises:
        DistillError: bad input, or an id that does not overlap the segmentation.
    """
    check_figure(out)
    seen, truth = overlapping(
        open_labels(segmentation, resolution=resolution), open_labels(labels, resolution=resolution)
    )
    box = position_in_truth(seen, truth)
    # Named neurons are drawn whole; the worst are looked for among connected pieces.
    pieces = Pieces(truth, {}, 0.0) if neurons else connected_pieces(truth, box)
    found = survey(seen, pieces, on_section)
    chosen = tuple(neurons) or _worst(found)
    for neuron in chosen:
        if neuron not in found.truth:
            raise DistillError(f"--neuron: found {neuron}, expected an id of {labels} where {segmentation} lies")
    shown = [_contents(found, neuron) for neuron in chosen]
    meshes_figure([_neuron(found, one) for one in shown], out)
    return tuple(_as_neurons(one, pieces) for one in shown)


def _as_neurons(one: Rendered, pieces: Pieces) -> Rendered:
    """Return what was drawn with ids of neurons in place of those of their pieces."""
    foreign = tuple(replace(f, object=pieces.neuron(f.object)) for f in one.foreign)
    return replace(one, neuron=pieces.neuron(one.neuron), name=pieces.name(one.neuron), foreign=foreign)


def _worst(found: Survey) -> tuple[int, ...]:
    """Return the neurons with the largest split or merge errors, then the largest neurons."""
    split, merged = worst_objects(found.table, _EVERY).split, worst_objects(found.neurons, _EVERY).merged
    owners = dict(zip(found.partners.segments.tolist(), found.partners.truth_of[:, 0].tolist(), strict=True))
    costs = [(error.bits, error.id) for error in split]
    costs += [(error.bits, owners[error.id]) for error in merged if error.id]
    pairs = found.table.pairs()
    ids, where = np.unique(pairs.u, return_inverse=True)
    by_size = ids[np.argsort(-np.bincount(where, weights=pairs.count), kind="stable")].tolist()
    worst = [neuron for _, neuron in sorted(costs, key=lambda cost: -cost[0])]
    return tuple(dict.fromkeys([*worst, *by_size]))[:_DEFAULT]


def _contents(found: Survey, neuron: int) -> Rendered:
    """Return the segments of a neuron, and the other objects in the segments that belong to it."""
    pairs, partners = found.table.pairs(), found.partners
    inside = np.flatnonzero(pairs.u == neuron)
    inside = inside[np.argsort(-pairs.count[inside], kind="stable")]
    pieces = tuple(SharedVoxels(int(pairs.v[k]), int(pairs.count[k])) for k in inside)
    voxels = sum(piece.voxels for piece in pieces)
    main = partners.segment_of[np.searchsorted(partners.truth, np.uint64(neuron)), 0]
    whole = found.pieces.neuron(neuron)
    own = np.union1d(partners.segments[partners.truth_of[:, 0] == whole], [main])
    other = found.pieces.whole(pairs.u) != whole
    joined = np.isin(pairs.v, own[own != 0]) & other & (pairs.count >= _SHOWN * voxels)
    order = np.flatnonzero(joined)[np.argsort(-pairs.count[joined], kind="stable")]
    foreign = tuple(Foreign(int(pairs.u[k]), int(pairs.v[k]), int(pairs.count[k])) for k in order)
    box = found.truth[neuron]
    for one in foreign:
        box = hull(box, found.segments[one.segment].intersect(found.truth[one.object]))
    return Rendered(neuron, voxels, box, pieces, foreign)


def _neuron(found: Survey, one: Rendered) -> Neuron:
    """Read the box section by section, and build a surface of every part."""
    shown = [piece.segment for piece in one.pieces[:_PIECES] if piece.voxels >= _SHOWN * one.voxels]
    resolution = found.labels.resolution
    step = _step(one.box, resolution)
    shares = _shares(found, one, shown, step)
    cell = resolution[0] * step[0], resolution[1] * step[1], resolution[2] * step[2]
    z, y, x = (start * size for start, size in zip(one.box.start, resolution, strict=True))

    def part(k: int, label: str, colour: Sequence[float], hatched: bool = False) -> DrawnObject:
        red, green, blue = (float(value) for value in colour)
        solid = Solid(surface(shares[k], cell, (z, y, x)), (red, green, blue), hatched) if shares[k].any() else None
        return DrawnObject(label, (red, green, blue), solid, hatched)

    name = found.pieces.name(one.neuron)
    truth = part(0, f"object {name}: {one.voxels:,} voxels", label_colours([one.neuron])[0])
    parts = [
        part(k, f"{_named(piece.segment)}: {100 * piece.voxels / one.voxels:.1f} %", _colour(piece.segment))
        for k, piece in enumerate(one.pieces[: len(shown)], start=1)
    ]
    rest = one.pieces[len(shown) :]
    if rest:
        count = f"{len(rest)} more segment{'s' if len(rest) > 1 else ''}"
        share = sum(piece.voxels for piece in rest) / one.voxels
        parts.append(part(len(shown) + 1, f"{count}: {100 * share:.1f} %", _REST))
    if one.foreign:
        objects = dict.fromkeys(found.pieces.neuron(f.object) for f in one.foreign)
        named = f"object{'s' if len(objects) > 1 else ''} {', '.join(map(str, objects))}"
        label = f"merged: {sum(f.voxels for f in one.foreign):,} voxels of {named}"
        colour = [int(COLOUR_OF[MERGE][k : k + 2], 16) for k in (1, 3, 5)]
        parts.append(part(len(shown) + 2, "\n".join(wrap(label, 40)), colour, hatched=True))
    far = tuple(stop * size for stop, size in zip(one.box.stop, resolution, strict=True))
    return Neuron(f"Neuron {name}", truth, tuple(parts), ((z, y, x), (far[0], far[1], far[2])))


def _named(segment: int) -> str:
    return f"segment {segment}" if segment else "no segment (0)"


def _colour(segment: int) -> Sequence[float]:
    return label_colours([segment])[0].tolist() if segment else _NOTHING


def _step(box: Box, resolution: Nanometres) -> Triple:
    """Return voxels per cell, so that cells are nearly cubes and the longest edge has at most `_CELLS` of them."""
    longest = max(n * size for n, size in zip(box.shape, resolution, strict=True))
    edge = max(longest / _CELLS, min(resolution))
    z, y, x = (max(1, math.ceil(edge / size - 1e-6)) for size in resolution)
    return z, y, x


def _shares(found: Survey, one: Rendered, shown: Sequence[int], step: Triple) -> list[NDArray[np.float32]]:
    """Compute the fraction of every cell filled by the neuron, its segments, the rest of it, and the objects merged
    with
    it.
    """
    cells = tuple(-(-n // size) for n, size in zip(one.box.shape, step, strict=True))
    shares = [np.zeros(cells, np.float32) for _ in range(len(shown) + 3)]
    for z in range(one.box.start[0], one.box.stop[0]):
        here = Box((z, *one.box.start[1:]), (z + 1, *one.box.stop[1:]))
        true, ids = found.labels.read(here)[0], found.segmentation.read(here.relative_to(found.box.start))[0]
        inside = true == one.neuron
        masks = [inside, *(inside & (ids == segment) for segment in shown), inside & ~np.isin(ids, shown)]
        joined = np.zeros_like(inside)
        for f in one.foreign:
            joined |= (true == f.object) & (ids == f.segment)
        for share, mask in zip(shares, [*masks, joined], strict=True):
            share[(z - one.box.start[0]) // step[0]] += _cells(mask, step[1], step[2]) / step[0]
    return shares


def _cells(mask: NDArray[np.bool_], y: int, x: int) -> NDArray[np.float32]:
    """Average over cells of y x x pixels; empty beyond the mask."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % y), (0, -width % x)))
    share: NDArray[np.float32] = padded.reshape(-(-height // y), y, -(-width // x), x).mean((1, 3), dtype=np.float32)
    return share
