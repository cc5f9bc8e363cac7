"""Grow neurites of cortex, one after the other, as random walks with inertia into the remaining space.

The field of a tube is the distance to its centre line minus its radius. Fields are stored on a coarse isotropic grid in
nm, so they do not depend on the voxel size of the rendered volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from distill.core.geometry import Nanometres, Triple

Floats = NDArray[np.floating]

GRID_NM = 30.0  # grid spacing: finer than the thinnest neck, whose radius is 40 nm
MARGIN_NM = 240.0  # margin around the volume: neurites must not end at its faces, and sections are shifted
REACH_NM = 160.0  # a field is cut off this far outside its tube
MITO_REACH_NM = 60.0


@dataclass(frozen=True)
class _Kind:
    """Type of neurite: radius and sheath in nm, fraction of space to fill, events per um of length."""

    radius: tuple[float, float]
    share: float
    wander: float
    branches: float = 0.0
    spines: float = 0.0
    swellings: float = 0.0
    mitochondria: float = 0.3
    sheath: float = 0.0


# Thick neurites first: thin ones fit between thick ones, but not vice versa.
_KINDS = (
    _Kind((500, 720), 0.06, 0.10, spines=0.8, mitochondria=1.5),  # trunks
    _Kind((270, 400), 0.03, 0.10, sheath=90.0),  # myelinated axons
    _Kind((200, 400), 0.28, 0.15, branches=0.3, spines=1.6, mitochondria=0.6),  # dendrites
    _Kind((105, 190), 0.45, 0.22, branches=0.2, swellings=0.7),  # axons
    _Kind((75, 110), 1.00, 0.28, branches=0.2, swellings=0.5),  # the thinnest axons fill the remaining space
)


@dataclass(frozen=True)
class TubeField:
    """Field of a stretch of tube on the coarse grid, minus its cut-off: negative near the tube, zero elsewhere."""

    cell: int
    start: Triple
    field: Floats


@dataclass(frozen=True)
class Synapse:
    """Vesicles of a swelling, and position and radius (0: none) of the density on its surface; nm, z, y, x."""

    cell: int
    vesicles: Floats
    contact: Floats
    reach: float


@dataclass
class Tissue:
    """Neurites grown so far, on a grid whose node (0, 0, 0) lies MARGIN_NM outside the volume's corner."""

    grid: float
    warped: Floats  # (3, Z, Y, X) nm: displacement of each node; bends all straight membranes
    clear: Floats  # (Z, Y, X) nm to the nearest surface, below zero inside
    thickest: float
    pieces: list[TubeField] = field(default_factory=list)
    mitochondria: list[TubeField] = field(default_factory=list)
    synapses: list[Synapse] = field(default_factory=list)
    sheath: list[float] = field(default_factory=lambda: [0.0])
    shade: list[float] = field(default_factory=lambda: [-0.12])

    def node(self, points: Floats) -> tuple[NDArray[np.intp], ...]:
        """Return the index of the nodes nearest to points (..., 3) in nm; points outside the grid map to its border."""
        nearest = np.rint(points / self.grid).astype(np.intp)
        nearest = np.minimum(np.maximum(nearest, 0), np.array(self.clear.shape) - 1)
        return tuple(nearest.T)

    def tube(self, cell: int, points: Floats, reach: float) -> TubeField:
        """Compute the field of spheres (N, 4: z, y, x, radius), cut off at `reach` outside their surface."""
        wide = points[:, 3:] + np.float32(reach + self.grid)
        firsts = np.floor((points[:, :3] - wide) / self.grid).astype(int).clip(0, self.clear.shape)
        lasts = (np.ceil((points[:, :3] + wide) / self.grid).astype(int) + 1).clip(0, self.clear.shape)
        # Two more nodes on every side, so that interpolation never reads beyond the array where the field is not zero.
        low = (firsts.min(0) - 2).clip(0)
        values = np.zeros(np.minimum(lasts.max(0) + 2, self.clear.shape) - low, np.float32)
        for point, first, last in zip(points, firsts, lasts, strict=True):
            away = self.warped[(slice(None), *map(slice, first, last))] - point[:3, None, None, None]
            distance = np.sqrt(np.einsum("czyx,czyx->zyx", away, away)) - np.float32(point[3] + reach)
            here = tuple(map(slice, first - low, last - low))
            np.minimum(values[here], distance, out=values[here])
        return TubeField(cell, (int(low[0]), int(low[1]), int(low[2])), values)

    def place(self, piece: TubeField) -> int:
        """Add a stretch of a cell, and return the number of free nodes that it took."""
        there = tuple(slice(a, a + n) for a, n in zip(piece.start, piece.field.shape, strict=True))
        distance, clear = piece.field + np.float32(REACH_NM), self.clear[there]
        taken = int(np.count_nonzero((distance < 0) & (clear >= 0)))
        np.minimum(clear, distance, out=clear)
        self.pieces.append(piece)
        return taken


def grow_tissue(shape: Triple, resolution: Nanometres, rng: Generator) -> Tissue:
    """Fill the volume and its margin with neurites."""
    grid = max(GRID_NM, min(resolution))
    extent = [n * nm for n, nm in zip(shape, resolution, strict=True)]
    nodes = [math.ceil((length + 2 * MARGIN_NM) / grid) + 1 for length in extent]
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) * np.float32(grid) for n in nodes), indexing="ij")
    warped = np.stack([a + 32 * noise(nodes, 90 / grid, rng) + 9 * noise(nodes, 36 / grid, rng) for a in axes])
    clear = np.full(nodes, 1e4, np.float32)
    tissue = Tissue(grid, warped, clear, max(45.0, 0.2 * min(extent[1:])))
    for kind in _KINDS:
        thinnest, taken = min(kind.radius[0], tissue.thickest), 0
        for start in rng.permutation(np.flatnonzero(clear >= thinnest)):
            if taken > kind.share * clear.size:
                break
            if clear.flat[start] >= thinnest:
                radius = min(rng.uniform(*kind.radius), tissue.thickest, float(clear.flat[start]))
                point = np.array(np.unravel_index(start, nodes), np.float32) * np.float32(grid)
                taken += _neuron(tissue, kind, point, radius, rng)
    return tissue


def _neuron(tissue: Tissue, kind: _Kind, start: Floats, radius: float, rng: Generator) -> int:
    """Grow one neuron in both directions from a point, with branches and spines; return the number of nodes it took."""
    heading = rng.standard_normal(3, np.float32) * np.array([2.0, 1, 1], np.float32)
    ends = [_walk(tissue, kind, start, sign * heading, radius, rng) for sign in (1, -1)]
    trunk = np.concatenate([ends[0][::-1], ends[1][1:]])
    if _length(trunk) < min(900.0, 6 * tissue.thickest):
        return 0
    paths = [trunk]
    for at in trunk[rng.integers(0, len(trunk), rng.poisson(kind.branches * _length(trunk) / 1000))]:
        heading = rng.standard_normal(3, np.float32)
        paths.append(_walk(tissue, kind, at[:3], heading, max(45.0, 0.75 * float(at[3])), rng))
    for path in paths[:]:
        for at in path[rng.integers(0, len(path), rng.poisson(kind.spines * _length(path) / 1000))]:
            paths.append(_spine(tissue, at, rng))
    cell, taken = len(tissue.sheath), 0
    tissue.sheath.append(min(kind.sheath, 0.4 * radius))
    tissue.shade.append(0.05 * float(rng.standard_normal()))
    for path in paths:
        for first in range(0, len(path), 12):
            taken += tissue.place(tissue.tube(cell, path[first : first + 13], REACH_NM))
        _organelles(tissue, kind, cell, path, rng)
    return taken


def _walk(tissue: Tissue, kind: _Kind, point: Floats, heading: Floats, radius: float, rng: Generator) -> Floats:
    """Follow a random walk with inertia that prefers free space, until blocked or off the grid; return (N, 4) points
    and
    radii.
    """
    heading, here, gone, phase = _unit(heading), radius, 0.0, rng.uniform(0, 2 * math.pi)
    path = [np.append(point, np.float32(radius))]
    while all(0 <= p <= tissue.grid * (n - 1) for p, n in zip(point, tissue.clear.shape, strict=True)):
        step = np.float32(max(0.45 * here, 0.8 * tissue.grid))
        turns = _unit(heading + np.float32(kind.wander) * rng.standard_normal((10, 3), np.float32))
        near, far = (tissue.clear[tissue.node(point + ahead * turns)] for ahead in (step, 3 * step))
        best = int(np.argmax(np.minimum(np.minimum(near, far) / here, 1.2) + 0.4 * (turns * heading).sum(1)))
        if near[best] < 0.75 * min(here, kind.radius[0]):
            break
        heading, point, gone = turns[best], point + step * turns[best], gone + float(step)
        swelling = max(0.0, math.sin(phase + 2 * math.pi * gone * kind.swellings / 1000)) ** 4
        wish = min(radius * (1 + 1.3 * swelling * bool(kind.swellings)), float(near[best]))
        here = max(50.0, min(max(wish, 0.85 * here), 1.18 * here))
        path.append(np.append(point, np.float32(here)))
    return np.asarray(path, np.float32)


def _spine(tissue: Tissue, at: Floats, rng: Generator) -> Floats:
    """Grow a thin neck and a round head on a dendrite; stops where another cell is in the way."""
    out = _unit(rng.standard_normal(3, np.float32))
    neck, head = rng.uniform(40, 60), rng.uniform(120, 220)
    along = np.arange(0, float(at[3]) + rng.uniform(200, 600), 30, dtype=np.float32)[:, None]
    points = at[:3] + along * out + 60 * np.sin(along / 250) * rng.standard_normal(3, np.float32)
    blocked = np.flatnonzero(tissue.clear[tissue.node(points)] < neck)
    points = points[: max(1, blocked[0]) if len(blocked) else None]
    radii = np.full((len(points), 1), neck, np.float32)
    radii[-1] = min(head, max(neck, float(tissue.clear[tissue.node(points[-1])])))
    return np.concatenate([points, radii], 1)


def _organelles(tissue: Tissue, kind: _Kind, cell: int, path: Floats, rng: Generator) -> None:
    """Place mitochondria along a neurite, and vesicles and possibly a synapse in each of its swellings."""
    wide = path[:, 3]
    for at in rng.integers(0, len(path), rng.poisson(kind.mitochondria * _length(path) / 1000)):
        if wide[at] >= 85:
            steps = max(3, round(rng.uniform(400, 1500) / max(0.45 * float(wide[at]), 0.8 * tissue.grid)))
            part, thick = path[at : at + steps].copy(), rng.uniform(70, 150)
            aside = _unit(rng.standard_normal(3, np.float32))
            part[:, :3] += 0.7 * aside * np.maximum(0, part[:, 3:] - np.float32(thick + 60))
            part[:, 3] = np.minimum(thick, 0.62 * part[:, 3])
            tissue.mitochondria.append(tissue.tube(cell, part, MITO_REACH_NM))
    for at in range(1, len(path) - 1) if kind.swellings else ():
        if wide[at] >= 120 and wide[at - 1] < wide[at] >= wide[at + 1]:
            crowd = int(rng.integers(30, 200) * min(2.0, float(wide[at]) / 150))
            ball = _unit(rng.standard_normal((crowd, 3), np.float32))
            ball *= 0.9 * wide[at] * np.cbrt(rng.random((crowd, 1), np.float32))
            side = _unit(rng.standard_normal(3, np.float32))
            contact = path[at, :3] + side * (wide[at] + np.float32(20))
            reach = rng.uniform(100, 200) if rng.random() < 0.7 else 0.0
            tissue.synapses.append(Synapse(cell, path[at, :3] + ball, contact, reach))


def _length(path: Floats) -> float:
    return float(np.sqrt((np.diff(path[:, :3], axis=0) ** 2).sum(1)).sum())


def noise(shape: list[int], width: float | list[float], rng: Generator) -> Floats:
    """Return Gaussian noise of unit variance, smooth over `width` nodes or pixels."""
    smooth: Floats = gaussian_filter(rng.standard_normal(shape, np.float32), width)
    return smooth / np.float32(max(float(smooth.std()), 1e-6))


def _unit(vectors: Floats) -> Floats:
    length: Floats = np.sqrt((vectors**2).sum(-1, keepdims=True))
    return vectors / length
