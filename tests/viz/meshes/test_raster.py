"""Surfaces enclose what they should, and pixels show the nearest of them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import DistillError
from distill.core.geometry import Nanometres
from viz.meshes.raster import Solid, Surface, View, _fragments, draw_solids, fitting_height, surface

FRAME = (0.0, 0.0, 0.0), (400.0, 400.0, 400.0)
FLAT = View(tilt=0, turn=0)
RED = (200.0, 40.0, 40.0)


def ball(spacing: Nanometres, radius: float = 120, middle: float = 200) -> np.ndarray:
    """Share of cells inside a ball of nm, 400 nm on each side."""
    axes = [np.arange(0.5, 400 / step) * step - middle for step in spacing]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (z**2 + y**2 + x**2 < radius**2).astype(np.float32)


def volume(mesh: Surface) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(float) for k in range(3))
    return float(np.einsum("ij,ij", a, np.cross(b, c)) / 6)


def slab(z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> Surface:
    """A cuboid of cells of 10 nm."""
    share = np.zeros((40, 40, 40), np.float32)
    share[slice(*z), slice(*y), slice(*x)] = 1
    return surface(share, (10, 10, 10))


@pytest.mark.parametrize("spacing", [(10, 10, 10), (40, 8, 8), (30, 12, 6)])
@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (1000.0, -50.0, 7.0)])
def test_surface_of_a_ball(spacing: Nanometres, origin: Nanometres) -> None:
    mesh = surface(ball(spacing), spacing, origin)
    away = np.linalg.norm(mesh.vertices - np.array(origin) - 200, axis=1)
    assert np.abs(away - 120).max() < max(spacing)
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 120**3, rel=0.05)  # positive: the faces look outwards
    edges = Counter((a, b) for face in mesh.faces.tolist() for a, b in zip(face, [*face[1:], face[0]], strict=True))
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)  # closed


def test_surface_is_closed_at_the_border_and_keeps_a_single_cell() -> None:
    whole = surface(np.ones((12, 15, 18), np.float32), (10, 10, 10))
    assert volume(whole) == pytest.approx(12 * 15 * 18 * 1000, rel=0.1)
    one = np.zeros((5, 5, 5), np.float32)
    one[2, 2, 2] = 1
    assert np.allclose(surface(one, (30, 10, 10)).vertices.mean(axis=0), (75, 25, 25), atol=0.5)
    with pytest.raises(DistillError, match="with something in it"):
        surface(np.zeros((3, 3, 3), np.float32), (1, 1, 1))


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_views_turn_without_mirroring(tilt: float, turn: float) -> None:
    axes = View(tilt, turn).axes
    assert np.allclose(axes @ axes.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(axes[:, ::-1].astype(float)) == pytest.approx(1, abs=1e-5)  # x, y, z right-handed


def test_untilted_view_is_the_section() -> None:
    share = np.zeros((40, 40, 40), np.float32)
    share[10:30, 4:14, 6:36] = share[10:30, 14:30, 6:12] = 1  # an L: wide at the top, its leg at the left
    shown = draw_solids([Solid(surface(share, (10, 10, 10)), RED)], FRAME, (400, 400), FLAT).shown
    scale = 400 / (1.04 * 40)
    rows, columns = ((np.arange(400) - 199.5) / scale + 20 for _ in range(2))
    mask = share[20][np.clip(rows.astype(int), 0, 39)][:, np.clip(columns.astype(int), 0, 39)] > 0
    assert ((shown == 0) & mask).sum() / ((shown == 0) | mask).sum() > 0.93
    assert FLAT.axes.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_tilt_shows_the_front_edge_and_later_sections_below() -> None:
    _, down, away = View(tilt=50, turn=0).axes
    assert down[0] > 0.5  # later sections lie lower
    assert down[1] > 0.5  # and so do larger y
    assert away[1] < 0  # which are nearer to us


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_solid_hides_the_other_whatever_comes_first(order: tuple[int, int]) -> None:
    near, far = slab((4, 8), (10, 30), (10, 30)), slab((30, 34), (5, 35), (5, 35))
    solids = [Solid((near, far)[k], RED) for k in order]
    shown = draw_solids(solids, FRAME, (200, 200), FLAT).shown
    assert shown[100, 100] == order.index(0)
    assert shown[100, 40] == order.index(1)  # past the edge of the near one
    assert shown[3, 3] == -1
    from_behind = draw_solids(solids, FRAME, (200, 200), View(tilt=180, turn=0)).shown
    assert from_behind[100, 100] == order.index(1)


@given(st.integers(0, 10**6))
def test_fragments_equal_the_pixel_by_pixel_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    at = rng.uniform(-3, 15, (4, 3, 3)).astype(np.float32)
    shade = rng.random((4, 3)).astype(np.float32)
    found = {}
    for pixel, depth, light in _fragments(at, shade, (9, 12)):
        for p, d, s in zip(pixel.tolist(), depth.tolist(), light.tolist(), strict=True):
            found.setdefault(p, []).append((d, s))
    for row in range(9):
        for column in range(12):
            expected = []
            for corners, bright in zip(at.astype(float), shade, strict=True):
                system = np.stack([corners[:, 0], corners[:, 1], np.ones(3)])
                weights = np.linalg.solve(system, [column, row, 1])
                if weights.min() > 1e-4:
                    expected.append((weights @ corners[:, 2], weights @ bright))
                elif weights.min() > -1e-4:
                    expected = None  # on an edge: either way
                    break
            if expected is not None:
                assert np.allclose(sorted(found.get(12 * row + column, [])), sorted(expected), atol=1e-2)


def test_lengths_are_those_of_the_scale() -> None:
    drawing = draw_solids([Solid(slab((18, 22), (0, 40), (0, 40)), RED)], FRAME, (300, 520), FLAT)
    columns = np.flatnonzero((drawing.shown == 0).any(axis=0))
    assert np.ptp(columns) * drawing.nm_per_pixel == pytest.approx(400, abs=3 * drawing.nm_per_pixel)
    assert drawing.nm_per_pixel == pytest.approx(1.04 * 400 / 300)


def test_colour_is_kept_and_hatching_is_seen() -> None:
    mesh = slab((10, 30), (5, 35), (5, 35))
    plain, hatched = (
        draw_solids([Solid(mesh, RED, h)], FRAME, (200, 200), FLAT).rgb[60:140, 60:140] for h in (False, True)
    )
    assert np.ptp(plain.reshape(-1, 3), axis=0).max() <= 8  # one face, one shade
    red, green, blue = plain.reshape(-1, 3).mean(axis=0) - 255 * 0.22 * 0.25
    assert red > 3 * green
    assert green == pytest.approx(blue, abs=1)
    stripes = hatched.mean(axis=2) < 0.8 * plain.mean(axis=2)
    assert 0.15 < stripes.mean() < 0.5
    assert np.array_equal(stripes[:-1, 1:], stripes[1:, :-1])  # along the diagonal


def test_a_line_is_drawn_where_one_solid_ends_on_another() -> None:
    left, right = slab((10, 30), (5, 35), (5, 20)), slab((10, 30), (5, 35), (20, 35))
    rgb = draw_solids([Solid(left, RED), Solid(right, RED)], FRAME, (200, 200), FLAT).rgb
    assert rgb[100, 95:106].min() < 0.7 * rgb[100, 80].min() + 40
    assert rgb[100, 95:106].sum(axis=1).argmin() in range(3, 8)


def test_image_height_fits_the_box() -> None:
    assert fitting_height(FRAME, 300, FLAT) == 300
    flat = (0.0, 0.0, 0.0), (100.0, 1000.0, 2000.0)
    assert fitting_height(flat, 300, FLAT) == 150
    for bad in (((0.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (1.0, -1.0, 1.0))):
        with pytest.raises(DistillError, match="draw: found box"):
            draw_solids([], bad, (10, 10), FLAT)
    empty = draw_solids([], FRAME, (50, 50), View())
    assert (empty.shown == -1).all()
    assert empty.rgb.min() < 200  # the edges of the box
