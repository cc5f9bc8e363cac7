"""Render surfaces of voxel masks without a display: marching cubes, orthographic projection, z-buffer, smooth shading.

Points and directions are z, y, x in nm; screen axes are right, down and into the screen. Without tilt and turn, the
view is the usual one of a section: x to the right, y down, later sections behind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Nanometres

Floats = npt.NDArray[np.float32]

_SMOOTH, _LEAST = 1.0, 0.6  # Gaussian width relative to the finest cell edge, and minimum relative to each edge
_FINER = 2  # subpixels along each axis
_FRAGMENTS = 2**20  # subpixels tested at a time
_MARGIN = 1.04
_LIGHT = np.array([-0.45, -0.55, -0.70], np.float32)  # direction of light: from the left, above and in front
_AMBIENT, _DIFFUSE, _FADE = 0.42, 0.62, 0.22
_STRIPE = 7  # pixels between stripes of a hatching
_STEP = 0.02  # fraction of the box: minimum step in depth for an outline


@dataclass(frozen=True)
class Surface:
    """A triangle mesh.

    Attributes:
        vertices: (N, 3) z, y, x in nm.
        faces: (M, 3) indices of vertices; (b - a) x (c - a) in this order of axes points outwards.
    """

    vertices: Floats
    faces: npt.NDArray[np.int64]

    @property
    def face_normals(self) -> Floats:
        """Return (M, 3) outward normals with a length of twice the face's area."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        normals: Floats = np.cross(b - a, c - a)
        return normals


@dataclass(frozen=True)
class Solid:
    """A surface with its appearance: colour of (3,) 0..255, hatched or plain."""

    surface: Surface
    colour: tuple[float, float, float]
    hatched: bool = False


@dataclass(frozen=True)
class View:
    """Direction of view, in degrees: `turn` about z, then `tilt` towards the front edge of the sections."""

    tilt: float = 50.0
    turn: float = 20.0

    @property
    def axes(self) -> Floats:
        """Return (3, 3) unit vectors right, down and into the screen, each z, y, x."""
        tilt, turn = math.radians(self.tilt), math.radians(self.turn)
        right = np.array([0.0, math.sin(turn), math.cos(turn)])
        front = np.array([0.0, math.cos(turn), -math.sin(turn)])
        along = np.array([1.0, 0.0, 0.0])
        down = math.cos(tilt) * front + math.sin(tilt) * along
        return np.stack([right, down, math.cos(tilt) * along - math.sin(tilt) * front]).astype(np.float32)


@dataclass(frozen=True)
class Rendering:
    """A rendered image.

    Attributes:
        rgb: (Y, X, 3) uint8 on white.
        shown: (Y, X) int, number of the solid at the centre of each pixel, -1 = none.
        nm_per_pixel: scale in the plane of the screen.
    """

    rgb: npt.NDArray[np.uint8]
    shown: npt.NDArray[np.int64]
    nm_per_pixel: float


def surface(share: Floats, spacing: Nanometres, origin: Nanometres = (0.0, 0.0, 0.0)) -> Surface:
    """Compute the smoothed surface of an object.

    Args:
        share: (Z, Y, X), fraction of each cell filled by the object, 0..1; empty beyond the array.
        spacing: extent of a cell z, y, x in nm.
        origin: corner of the first cell in nm.

    Returns:
        Closed mesh at a fill of one half, or at half of the maximum if smoothing leaves less.

    Raises:
        DistillError: the array does not have three axes or is empty.
    """
    from skimage.measure import marching_cubes

    if share.ndim != 3 or not share.any():
        raise ShapeError(f"surface: found shape {share.shape}, expected z, y, x with something in it")
    finest = min(spacing)
    sigma = [max(_LEAST, _SMOOTH * finest / step) for step in spacing]
    places = ndimage.find_objects((share > 0).astype(np.uint8))[0]
    around = np.pad(share[places].astype(np.float32), 4)
    smooth = ndimage.gaussian_filter(around, sigma)
    level = 0.5 * min(1.0, float(smooth.max()))
    vertices, faces, _, _ = marching_cubes(smooth, level, spacing=spacing)
    corner = [o + s * (p.start - 4 + 0.5) for o, s, p in zip(origin, spacing, places, strict=True)]
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    if np.einsum("ij,ij", a, np.cross(b, c)) < 0:  # the enclosed volume if faces are oriented outwards
        faces = faces[:, ::-1]
    return Surface((vertices + np.array(corner)).astype(np.float32), faces.astype(np.int64))


def draw_solids(
    solids: Sequence[Solid], frame: tuple[Nanometres, Nanometres], size: tuple[int, int], view: View
) -> Rendering:
    """Draw solids and the edges of a bounding box.

    Args:
        solids: surfaces to draw.
        frame: first and last corner of the box z, y, x in nm; it fills the image.
        size: pixels y and x.
        view: direction of view.

    Returns:
        Image, and the visible solid at each pixel.

    Raises:
        DistillError: the box has no extent or the image no pixels.
    """
    canvas = _Canvas(frame, size, view)
    for number, solid in enumerate(solids):
        canvas.add(solid.surface, number)
    return canvas.paint(solids)


def fitting_height(frame: tuple[Nanometres, Nanometres], width: int, view: View) -> int:
    """Return the height in pixels of an image of a box that fills `width` pixels."""
    extent = np.ptp(_corners(frame) @ view.axes.T, axis=0)
    return max(1, math.ceil(width * float(extent[1] / extent[0])))


class _Canvas:
    """Depth, brightness and number of the visible surface at each subpixel."""

    def __init__(self, frame: tuple[Nanometres, Nanometres], size: tuple[int, int], view: View) -> None:
        if any(b <= a for a, b in zip(*frame, strict=True)) or min(size) < 1:
            raise DistillError(f"draw: found box {frame} and size {size}, expected an extent along each axis")
        self.size, self.axes = size, view.axes
        self.fine = size[0] * _FINER, size[1] * _FINER
        self.corners = _corners(frame)
        placed = self.corners @ self.axes.T
        self.middle, self.extent = (placed.max(0) + placed.min(0)) / 2, np.ptp(placed, axis=0)
        self.nm_per_pixel = float(max(self.extent[0] / size[1], self.extent[1] / size[0])) * _MARGIN
        self.depth = np.full(self.fine[0] * self.fine[1], np.inf, np.float32)
        self.light = np.zeros_like(self.depth)
        self.shown = np.full(self.depth.shape, -1, np.int64)

    def project(self, points: Floats) -> Floats:
        """Project points to subpixels right and down from the upper left corner, and nm into the screen."""
        at: Floats = points @ self.axes.T - self.middle
        at[:, :2] *= _FINER / self.nm_per_pixel
        at[:, 0] += self.fine[1] / 2 - 0.5
        at[:, 1] += self.fine[0] / 2 - 0.5
        return at

    def add(self, surface: Surface, number: int) -> None:
        """Add a surface; it replaces what lies behind it."""
        at, normals = self.project(surface.vertices), surface.face_normals
        smooth = np.zeros_like(surface.vertices)
        for corner in range(3):
            np.add.at(smooth, surface.faces[:, corner], normals)
        smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-9)
        shade = np.clip(smooth @ self.axes.T @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)
        front = surface.faces[normals @ self.axes[2] < 0]
        for pixel, depth, light in _fragments(at[front], shade[front], self.fine):
            np.minimum.at(self.depth, pixel, depth)
            nearest = self.depth[pixel] == depth
            self.light[pixel[nearest]] = light[nearest]
            self.shown[pixel[nearest]] = number

    def paint(self, solids: Sequence[Solid]) -> Rendering:
        """Compute colours from shading, hatching, distance and outlines, averaging subpixels."""
        colour = np.full((len(self.depth), 3), 255, np.float32)
        hit = np.flatnonzero(self.shown >= 0)
        row, column = np.divmod(hit, self.fine[1])
        table = np.array([solid.colour for solid in solids], np.float32).reshape(-1, 3)[self.shown[hit]]
        hatched = np.array([solid.hatched for solid in solids], bool)[self.shown[hit]]
        stripe = hatched & ((row + column) // _FINER % _STRIPE < 2)
        lit = table * (_AMBIENT + _DIFFUSE * self.light[hit, None]) * np.where(stripe, 0.4, 1)[:, None]
        away = _FADE * np.clip(self.depth[hit, None] / self.extent[2] + 0.5, 0, 1)
        colour[hit] = np.clip(lit, 0, 255) * (1 - away) + 255 * away
        colour[self._outlines()] *= 0.3
        for pixel, depth in self._edges():
            free = depth < self.depth[pixel]
            colour[pixel[free]] = 0.6 * 255
        image = colour.reshape(self.size[0], _FINER, self.size[1], _FINER, 3).mean(axis=(1, 3))
        centre = self.shown.reshape(self.fine)[::_FINER, ::_FINER].copy()
        return Rendering(np.rint(image).astype(np.uint8), centre, self.nm_per_pixel)

    def _outlines(self) -> npt.NDArray[np.int64]:
        """Return subpixels in front of a step in depth or of the background, and at borders between solids."""
        depth = np.where(np.isinf(self.depth), 1e9, self.depth).reshape(self.fine)
        behind = ndimage.maximum_filter(depth, footprint=ndimage.generate_binary_structure(2, 1))
        line = behind - depth > _STEP * float(self.extent.max())
        shown = self.shown.reshape(self.fine)
        line[1:] |= shown[1:] != shown[:-1]
        line[:, 1:] |= shown[:, 1:] != shown[:, :-1]
        return np.flatnonzero((line & (shown >= 0)).reshape(-1))

    def _edges(self) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """Iterate over subpixels and depths along the edges of the box."""
        at = self.project(self.corners)
        for one, other in itertools.combinations(range(8), 2):
            if (one ^ other).bit_count() == 1:
                steps = int(np.abs(at[one, :2] - at[other, :2]).max()) + 2
                line = np.linspace(at[one], at[other], steps, dtype=np.float32)
                column, row = np.rint(line[:, :2]).astype(np.int64).T
                inside = (row >= 0) & (row < self.fine[0]) & (column >= 0) & (column < self.fine[1])
                yield (row * self.fine[1] + column)[inside], line[inside, 2]


def _corners(frame: tuple[Nanometres, Nanometres]) -> Floats:
    """Return the corners (8, 3); corners whose indices differ in one bit share an edge."""
    return np.array(list(itertools.product(*zip(*frame, strict=True))), np.float32)


def _fragments(
    at: Floats, shade: Floats, fine: tuple[int, int]
) -> Iterator[tuple[npt.NDArray[np.int64], Floats, Floats]]:
    """Iterate over subpixel, depth and brightness wherever a triangle covers a subpixel's centre.

    Args:
        at: (M, 3, 3) corners of triangles: right, down, depth.
        shade: (M, 3) brightness at the corners.
        fine: subpixels y and x.
    """
    low = np.maximum(np.ceil(at[..., :2].min(axis=1)), 0).astype(np.int64)
    high = np.minimum(np.floor(at[..., :2].max(axis=1)), (fine[1] - 1, fine[0] - 1)).astype(np.int64)
    wide, tall = np.maximum(high - low + 1, 0).T
    edge, far = at[:, 1, :2] - at[:, 0, :2], at[:, 2, :2] - at[:, 0, :2]
    area = edge[:, 0] * far[:, 1] - edge[:, 1] * far[:, 0]
    some = np.flatnonzero((wide * tall > 0) & (np.abs(area) > 1e-9))
    ends = np.cumsum((wide * tall)[some])
    first = 0
    while first < len(some):
        last = max(first + 1, int(np.searchsorted(ends, (ends[first - 1] if first else 0) + _FRAGMENTS)))
        now = some[first:last]
        tests = (wide * tall)[now]
        which = np.repeat(now, tests)
        local = np.arange(len(which)) - np.repeat(np.cumsum(tests) - tests, tests)
        down, right = np.divmod(local, wide[which])
        x, y = low[which, 0] + right, low[which, 1] + down
        dx, dy = x - at[which, 0, 0], y - at[which, 0, 1]
        one = (dx * far[which, 1] - dy * far[which, 0]) / area[which]
        two = (dy * edge[which, 0] - dx * edge[which, 1]) / area[which]
        inside = (one >= 0) & (two >= 0) & (one + two <= 1)
        which, one, two = which[inside], one[inside], two[inside]
        mixed = [
            (v[which, 0] + one * (v[which, 1] - v[which, 0]) + two * (v[which, 2] - v[which, 0])).astype(np.float32)
            for v in (at[..., 2], shade)
        ]
        yield (y * fine[1] + x)[inside], mixed[0], mixed[1]
        first = last
