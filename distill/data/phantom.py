"""Draw a seeded synthetic serial-section TEM volume of cortex with its neuron labels.

All sizes are defined in nm, so every voxel size shows the same tissue. Typical sizes are those of published
reconstructions of mouse cortex and of textbook ultrastructure:

- dendrites 0.5-1.5 um across with about one spine per 0.6 um (neck 80-120 nm, head 250-450 nm);
- unmyelinated axons 100-300 nm across, swelling every 1-2 um to hold a mitochondrion or 40 nm vesicles;
- a few myelinated axons (0.5-0.8 um, sheath about 100 nm) and a few trunks of 1-1.5 um;
- two dark membranes with a narrow gap between all neighbours, hardly any other extracellular space;
- mitochondria 150-300 nm thick and 0.5-1.5 um long, postsynaptic densities 30 nm thick and 200-400 nm wide.

A voxel belongs to the cell whose tube has the smallest field (`distill.data.tissue`), and half of the difference to the
second smallest field is the distance to the membrane between the two cells. The fields are interpolated at the top and
bottom of each section and integrated in between, so that obliquely cut membranes appear wide and grey, as in a
microscope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.special import erf

from distill.core.errors import DistillError
from distill.core.geometry import Nanometres, Triple
from distill.data.tissue import MARGIN_NM, MITO_REACH_NM, REACH_NM, Floats, Tissue, TubeField, grow_tissue, noise

Ints = NDArray[np.int32]
PlaneSlices = tuple[slice, slice]
Taps = tuple[NDArray[np.intp], Floats]

SMALLEST = (1, 32, 32)
COARSEST_NM = 100.0  # the thinnest axons are only slightly wider
SLIDE_NM = 120.0  # how far they may drift
GAP_NM = 7.5  # from the centre of the gap between two cells to the centre of either membrane
WALL_NM = 15.0  # labels exclude voxels this close to the centre of the gap
SLIVER_NM2 = 3500.0  # smaller profiles stay unlabelled, as in manual annotation


@dataclass(frozen=True)
class Phantom:
    """A synthetic volume.

    Attributes:
        raw: (Z, Y, X) uint8, dark membranes on a bright cytoplasm.
        labels: (Z, Y, X) uint64, 0 = membrane, myelin, extracellular space; neurons 1..n without a gap. Branches of one
            neuron carry one label, also where they leave the volume and come back.
        resolution: nm per voxel, z, y, x.
    """

    raw: NDArray[np.uint8]
    labels: NDArray[np.uint64]
    resolution: Nanometres


def make_phantom(
    shape: Triple = (64, 512, 512),
    resolution: Nanometres = (30.0, 6.0, 6.0),
    seed: int = 0,
    *,
    on_section: Callable[[int, int], None] | None = None,
) -> Phantom:
    """Draw a synthetic serial-section EM volume and its neurons.

    The same arguments give the same bytes. Calibres are limited to about a fifth of the volume's width, so that a small
    volume still contains several neurites.

    Args:
        shape: voxels z, y, x, at least 1, 32, 32.
        resolution: nm per voxel z, y, x, above 0, at most 100 (thin axons vanish); z is the section's thickness.
        seed: 0 or above.
        on_section: called with (sections drawn, total) after each section.

    Returns:
        The volume; its labels are compact and contain no isolated specks.

    Raises:
        DistillError: an argument is outside the range given above.
    """
    if len(shape) != 3 or any(n != int(n) or n < least for n, least in zip(shape, SMALLEST, strict=True)):
        raise DistillError(f"shape: found {shape}, expected three whole numbers z, y, x of at least {SMALLEST}")
    if len(resolution) != 3 or not all(0 < nm <= COARSEST_NM for nm in resolution):
        raise DistillError(
            f"resolution: found {resolution}, expected three numbers of nm z, y, x above 0, at most {COARSEST_NM}"
        )
    if seed != int(seed) or seed < 0:
        raise DistillError(f"seed: found {seed}, expected a whole number of 0 or above")
    rng = np.random.default_rng(int(seed))
    tissue = grow_tissue(shape, resolution, rng)
    camera = _Camera(tissue, shape, resolution, rng)
    raw, cells = np.empty(shape, np.uint8), np.empty(shape, np.uint32)
    for z in range(shape[0]):
        raw[z], cells[z] = camera.section(z)
        if on_section is not None:
            on_section(z + 1, shape[0])
    speck = min(1e6 / math.prod(resolution), math.prod(shape) / 1000)
    cells = cc3d.dust(cells, threshold=max(2, round(speck)), connectivity=6, in_place=True)
    present = np.bincount(cells.ravel()) > 0
    present[0] = False
    compact = np.where(present, np.cumsum(present), 0).astype(np.uint64)
    return Phantom(raw, compact[cells], resolution)


@dataclass(frozen=True)
class _Plane:
    """Position of one section's pixels in the tissue: depth, rows and columns in nm, and the nodes to interpolate."""

    grid: float
    depth: float
    at: tuple[Floats, Floats]
    taps: tuple[Taps, Taps]

    def sample(self, piece: TubeField, aside: float = 0.0) -> tuple[PlaneSlices, Floats] | None:
        """Return the field of a piece `aside` nm from the depth, with the window of pixels that it reaches; None if it
        reaches none.
        """
        (z, *start), (depth, *count) = piece.start, piece.field.shape
        level = (self.depth + aside) / self.grid - z
        if not 1 <= level < depth - 2:
            return None
        layer = _layer(piece.field, level)
        if layer.min() > -1:
            return None
        (y0, y1), (x0, x1) = (
            node.searchsorted([a, a + n - 3]) for (node, _), a, n in zip(self.taps, start, count, strict=True)
        )
        (row, u), (column, v) = self.taps
        rows, columns = (row[y0:y1] - start[0], u[:, y0:y1]), (column[x0:x1] - start[1], v[:, x0:x1])
        return np.s_[y0:y1, x0:x1], _stretch(layer, rows, columns)

    def around(self, point: Floats, reach: float) -> tuple[PlaneSlices, Floats]:
        """Return the window of pixels within `reach` of a point, and their in-plane distance from it."""
        (y0, y1), (x0, x1) = (at.searchsorted([p - reach, p + reach]) for at, p in zip(self.at, point[1:], strict=True))
        return np.s_[y0:y1, x0:x1], np.hypot(self.at[0][y0:y1, None] - point[1], self.at[1][x0:x1] - point[2])


@dataclass(frozen=True)
class _Scene:
    """Per pixel of a section: its cell, the nearest other cell, distance to the membrane between them in nm, grey
    value.
    """

    cell: Ints
    other: Ints
    inside: Floats
    grey: Floats


class _Camera:
    """Renders sections one after another: membranes, organelles, then artefacts of knife and microscope."""

    def __init__(self, tissue: Tissue, shape: Triple, resolution: Nanometres, rng: Generator) -> None:
        self.tissue, self.shape, self.resolution, self.rng = tissue, shape, resolution, rng
        self.sheath, self.shade = (np.array(v, np.float32) for v in (tissue.sheath, tissue.shade))
        count = shape[0]
        drift = np.cumsum(rng.normal(0, 2.5, (count, 2)), 0)
        self.shift = np.clip(drift - drift.mean(0), -SLIDE_NM, SLIDE_NM) + rng.uniform(-8, 8, (count, 2))
        self.gain = rng.normal(1.12, 0.07, count).clip(0.9, 1.35)
        self.lift = rng.normal(0, 0.035, count).clip(-0.1, 0.1)
        self.blur = rng.uniform(2.5, 6, count)
        self.reticulum = noise(list(tissue.clear.shape), 42 / tissue.grid, rng)
        shading = noise([1, 8, 8], 1.2, rng) + noise([count, 8, 8], 1.2, rng)
        self.shading = 0.045 * (shading - shading.mean((1, 2), keepdims=True))

    def section(self, z: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """Render one section: grey values, and cell numbers with 0 between cells."""
        thick, pixel, grid = self.resolution[0], self.resolution[1:], self.tissue.grid
        y, x = (MARGIN_NM + self.shift[z, a] + (np.arange(self.shape[a + 1]) + 0.5) * pixel[a] for a in (0, 1))
        plane = _Plane(grid, MARGIN_NM + (z + 0.5) * thick, (y, x), (_spline(y / grid), _spline(x / grid)))
        cell, other, above, core = self._nearest(plane, -thick / 2)
        low_cell, low_other, below, _ = self._nearest(plane, thick / 2)
        below = np.where(cell == low_cell, below, -below)
        slope = np.sqrt(sum(g**2 for g in np.gradient(above, *pixel)) + ((below - above) / thick) ** 2)
        # The gradients of two fields are not always opposite; their slope converts the difference to a distance in nm.
        slope = np.clip(maximum_filter(slope, 3), 0.45, 1)
        above, below = above / slope, below / slope
        middle = (above + below) / 2
        cell, other = np.where(middle >= 0, cell, low_cell), np.where(middle >= 0, other, low_other)
        scene = _Scene(cell, other, np.abs(middle), self._cytoplasm(cell, np.abs(middle), plane))
        self._mitochondria(scene, plane)
        self._synapses(scene, plane)
        sheath, grey = self.sheath[cell], scene.grey
        # Myelin extends to the surface of the axon's tube, so it fills the corners between its neighbours.
        myelin = np.clip((sheath - core) / 12 + 0.5, 0, 1) * (sheath > 0)
        grey += myelin * (0.14 + 0.06 * np.sin(core * (2 * math.pi / 22)) - grey)
        grey += _wall(above, below, math.hypot(4.5, 0.35 * max(pixel))) * (0.13 - grey)
        between = (scene.inside < max(WALL_NM, 0.7 * max(pixel))) | (myelin > 0.5)
        cells = np.where(between, 0, cell).astype(np.uint32)
        sliver = max(2, round(min(SLIVER_NM2 / math.prod(pixel), cells.size / 50)))
        return self._expose(grey, z), cc3d.dust(cells, threshold=sliver, connectivity=4, in_place=True)

    def _nearest(self, plane: _Plane, aside: float) -> tuple[Ints, Ints, Floats, Floats]:
        """Return nearest and second nearest cell of each pixel, half the difference of their fields in nm, and the
        depth
        inside the first cell's tube in nm.
        """
        size = self.shape[1:]
        first, second = np.zeros(size, np.int32), np.zeros(size, np.int32)
        near, far = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for piece in self.tissue.pieces:
            if (found := plane.sample(piece, aside)) is None:
                continue
            there, value = found
            a, b, d, e = first[there], second[there], near[there], far[there]
            fresh, closer = a != piece.cell, value < d
            behind = fresh & ~closer & (value < e)
            push = fresh & closer
            np.copyto(e, d, where=push)
            np.copyto(b, a, where=push)
            np.copyto(d, value, where=closer)
            np.copyto(a, piece.cell, where=push)
            np.copyto(e, value, where=behind)
            np.copyto(b, piece.cell, where=behind)
        return first, second, (far - near) / 2, -near - np.float32(REACH_NM)

    def _cytoplasm(self, cell: Ints, inside: Floats, plane: _Plane) -> Floats:
        """Draw the base grey value of each cell with grain, microtubules and reticulum."""
        grain, mottle = (noise(list(cell.shape), [nm / px for px in self.resolution[1:]], self.rng) for nm in (10, 26))
        grey = 0.69 + self.shade[cell] + 0.05 * grain + 0.04 * mottle - 0.10 * np.clip(grain - 1.3, 0, 2)
        level = _stretch(_layer(self.reticulum, plane.depth / plane.grid), *plane.taps)
        tubule = np.exp(-(((level - 1.35) / 0.14) ** 2)) + np.clip((level - 1.9) * 5, 0, 1)
        drawn: Floats = grey * (1 - 0.65 * tubule * np.clip((inside - 30) / 15, 0, 1))
        return drawn

    def _mitochondria(self, scene: _Scene, plane: _Plane) -> None:
        """Draw a dark matrix with cristae inside two membranes, at a distance from the cell's own membrane."""
        for number, piece in enumerate(self.tissue.mitochondria):
            if (found := plane.sample(piece)) is None:
                continue
            there, value = found
            inside = np.minimum(-MITO_REACH_NM - value, scene.inside[there] - 1.3 * self.sheath[piece.cell] - 28)
            body = np.clip(inside / 7 + 0.5, 0, 1) * (scene.cell[there] == piece.cell)
            y, x = (at[window] for at, window in zip(plane.at, there, strict=True))
            across = math.cos(2.4 * number) * y[:, None] + math.sin(2.4 * number) * x + 0.5 * inside
            cristae = np.sin(across * (2 * math.pi / 46) + 0.02 * plane.depth)
            rim = np.exp(-((inside / 8) ** 2)) + 0.7 * np.exp(-(((inside - 20) / 6) ** 2))
            scene.grey[there] += body * (0.43 + 0.09 * cristae - 0.28 * rim - scene.grey[there])

    def _synapses(self, scene: _Scene, plane: _Plane) -> None:
        """Draw rings of vesicles in the swelling, and a dark density behind the membrane of the contacted cells."""
        for synapse in self.tissue.synapses:
            for point in synapse.vesicles[np.abs(synapse.vesicles[:, 0] - plane.depth) < 20]:
                there, away = plane.around(point, 32)
                radius = math.sqrt(20.0**2 - 0.6 * float(point[0] - plane.depth) ** 2)
                allowed = (scene.cell[there] == synapse.cell) & (scene.inside[there] > 26)
                scene.grey[there] *= 1 - 0.6 * np.exp(-(((away - radius + 3) / 6.5) ** 2)) * allowed
            lag = float(synapse.contact[0]) - plane.depth
            if abs(lag) < synapse.reach:
                there, away = plane.around(synapse.contact, synapse.reach)
                inside = scene.inside[there]
                behind = np.clip((40 - inside) / 14, 0, 1) * (scene.other[there] == synapse.cell)
                before = np.clip((20 - inside) / 8, 0, 1) * (scene.cell[there] == synapse.cell)
                spread = np.clip((synapse.reach - np.hypot(away, lag)) / 30, 0, 1)
                scene.grey[there] *= 1 - 0.7 * spread * (behind + before)

    def _expose(self, grey: Floats, z: int) -> NDArray[np.uint8]:
        """Apply blur, uneven background, contrast and noise of the section's exposure."""
        image = gaussian_filter(grey, [self.blur[z] / nm for nm in self.resolution[1:]])
        rows, columns = (_spline(np.linspace(1.5, 5.5, n)) for n in grey.shape)
        image = (image + _stretch(self.shading[z], rows, columns) - 0.5) * self.gain[z] + 0.45 + self.lift[z]
        electrons, film = (self.rng.standard_normal(grey.shape, np.float32) for _ in range(2))
        shot = gaussian_filter(electrons, 0.5) * np.sqrt(np.clip(image, 0.05, 1))
        image = image + 0.08 * shot + 0.19 * gaussian_filter(film, 1.05)
        exposed: NDArray[np.uint8] = np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)
        return exposed


def _wall(above: Floats, below: Floats, sharp: float) -> Floats:
    """Return the fraction of a section's thickness darkened by two membranes; the distance varies linearly from top to
    bottom.
    """
    middle, run = (above + below) / 2, below - above
    run = np.where(np.abs(run) < 1, np.float32(1), run)
    ends = [sum(erf((middle + half * run + side * GAP_NM) / sharp) for side in (-1, 1)) for half in (-0.5, 0.5)]
    share: Floats = (ends[1] - ends[0]) * np.float32(0.5 * math.sqrt(math.pi) * sharp) / run
    return np.clip(share, 0, 1)


def _spline(at: Floats) -> Taps:
    """Return the first of the four nodes around each position (N), and their weights (4, N) in a smoothing cubic
    B-spline.
    """
    node = np.floor(at).astype(np.intp) - 1
    t = np.abs(at - node - np.arange(4)[:, None])
    weights = np.where(t < 1, 2 / 3 - t * t * (1 - t / 2), np.clip(2 - t, 0, None) ** 3 / 6)
    return node, weights.astype(np.float32)


def _layer(volume: Floats, level: float) -> Floats:
    """Interpolate a volume of nodes at one level of its first axis."""
    low, weights = _spline(np.array([level]))
    layer: Floats = np.einsum("tn,tyx->yx", weights, volume[low[0] : low[0] + 4])
    return layer


def _stretch(layer: Floats, rows: Taps, columns: Taps) -> Floats:
    """Interpolate a layer of nodes at rows and columns. A matrix product is avoided, as its bytes depend on the number
    of
    threads.
    """
    wide: Floats = sum(v * layer[:, columns[0] + t] for t, v in enumerate(columns[1]))
    full: Floats = sum(u[:, None] * wide[rows[0] + t] for t, u in enumerate(rows[1]))
    return full
