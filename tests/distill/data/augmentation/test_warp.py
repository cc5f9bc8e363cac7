"""Warps: one resampling that moves raw and labels to the same place, exactly where the grid allows it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from distill.config import AugmentConfig
from distill.core.affinity import affinity_targets
from distill.data.augmentation.warp import Bend, Warp, draw_warp, rotation, warp_margin, warp_volume

GEOMETRY = ("flips", "transposes", "rotate", "rescale", "elastic", "misalign")
ALL = AugmentConfig(elastic_pixels=3, elastic_spacing=8, elastic_sections=2).only(*GEOMETRY)
HUGE = 2**62
seeds = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def numbered(*shape: int) -> tuple[Tensor, Tensor]:
    """Every voxel has its own huge label, and a grey value that tells which."""
    number = torch.arange(math.prod(shape)).view(shape)
    return number.float() / 2**12, number + HUGE


def ramps(depth: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two images whose grey values are y and x, and labels that number the voxels of a section."""
    y, x = (n.expand(depth, -1, -1).float() for n in torch.meshgrid(*map(torch.arange, (height, width)), indexing="ij"))
    return y, x, torch.arange(height * width).view(height, width).expand(depth, -1, -1)


def oracle(warp: Warp, size: tuple[int, int], origin: tuple[int, int]) -> NDArray[np.float64]:
    """Place (y, x) in the flipped and transposed window of every voxel, from the definition, voxel by voxel."""
    depth, height, width = warp.shape
    places = np.zeros((depth, height, width, 2))
    for z, y, x in np.ndindex(*warp.shape):
        moved = np.array([y, x], dtype=np.float64)
        if warp.bend is not None:
            steps = (warp.bend.sections, warp.bend.spacing, warp.bend.spacing)
            for k in np.ndindex(warp.bend.values[:, 0].shape):
                weight = math.prod(spline(p / step + 1 - n) for p, step, n in zip((z, y, x), steps, k, strict=True))
                moved += weight * warp.bend.values[k[0], :, k[1], k[2]]
        middle = (np.array([height, width]) - 1) / 2
        matrix = np.eye(2) if warp.matrix is None else warp.matrix
        place = origin + middle + matrix @ (moved - middle)
        if warp.shift is not None:
            place = place + warp.shift[z]
        for axis in (0, 1):  # mirrored at the outermost voxels
            while size[axis] > 1 and not 0 <= place[axis] <= size[axis] - 1:
                place[axis] = -place[axis] if place[axis] < 0 else 2 * (size[axis] - 1) - place[axis]
        places[z, y, x] = place
    return places


def spline(t: float) -> float:
    """The uniform cubic B-spline around 0."""
    t = abs(t)
    if t < 1:
        return 2 / 3 - t**2 + t**3 / 2
    return (2 - t) ** 3 / 6 if t < 2 else 0.0


def bilinear(section: NDArray[Any], y: float, x: float) -> float:
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
            if weight:
                total += weight * float(section[row, column])
    return total


@settings(max_examples=25)
@given(seeds, st.sampled_from([(3, 7, 7), (2, 5, 8), (1, 6, 6)]), st.integers(0, 2))
def test_raw_labels_and_affinities_follow_the_definition(seed: int, shape: tuple[int, int, int], room: int) -> None:
    depth, height, width = shape
    size = (height + 2 * room, width + 3 * room)
    raw = torch.from_numpy(rng(seed).random((depth, *size), dtype=np.float32))
    labels = torch.from_numpy(rng(seed).integers(0, 4, (depth, *size)))
    warp = draw_warp(shape, ALL, rng(seed))
    image, target = warp_volume(raw, labels, warp, (room, room))
    assert target is not None
    assert image.shape == target.shape == shape
    axes = [axis for axis in range(3) if warp.flips[axis]]
    seen, known = np.flip(raw.numpy(), axes), np.flip(labels.numpy(), axes)
    origin = (room, 2 * room if warp.flips[2] else room)
    if warp.transpose:
        seen, known, origin = seen.transpose(0, 2, 1), known.transpose(0, 2, 1), origin[::-1]
    places = oracle(warp, (seen.shape[1], seen.shape[2]), origin)
    wanted = np.zeros(shape, np.int64)
    ties = 0
    for z, y, x in np.ndindex(*shape):
        at = places[z, y, x]
        assert float(image[z, y, x]) == pytest.approx(bilinear(seen[z], *at), abs=2e-4)
        tie = np.abs(at % 1 - 0.5).min() < 1e-4
        ties += tie
        row, column = (min(int(p + 0.5), n - 1) for p, n in zip(at, seen.shape[1:], strict=True))
        wanted[z, y, x] = target[z, y, x] if tie else known[z, row, column]
    np.testing.assert_array_equal(target.numpy(), wanted)
    assert ties < wanted.size / 4
    edges = affinity_targets(target).target.numpy()
    for k, offset in enumerate(np.eye(3, dtype=int)):
        for p in np.ndindex(*shape):
            q = tuple(np.subtract(p, offset))
            if min(q) >= 0:
                assert edges[k][p] == (wanted[p] == wanted[q] != 0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flips", [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)])
def test_symmetries_of_a_stack_are_numpys(flips: tuple[bool, bool, bool], transpose: bool, turns: int) -> None:
    raw, labels = numbered(3, 6, 6)
    warp = Warp((3, 6, 6), flips, transpose, rotation(90.0 * turns) if turns else None)
    image, target = warp_volume(raw, labels, warp, (0, 0))
    wanted = np.flip(labels.numpy(), [axis for axis in range(3) if flips[axis]])
    wanted = np.rot90(wanted.transpose(0, 2, 1) if transpose else wanted, turns, axes=(1, 2))
    assert target is not None
    np.testing.assert_array_equal(target.numpy(), wanted)
    np.testing.assert_allclose(image * 2**12, wanted - HUGE, atol=0 if not turns else 1e-3)


def test_drawn_flips_and_transposes_are_the_16_symmetries_of_a_stack() -> None:
    _, labels = numbered(2, 3, 3)
    config = AugmentConfig().only("flips", "transposes")
    seen = set()
    for seed in range(300):
        _, found = warp_volume(torch.zeros(2, 3, 3), labels, draw_warp((2, 3, 3), config, rng(seed)), (0, 0))
        assert found is not None
        seen.add(found.numpy().tobytes())
    assert len(seen) == 16


def test_oblong_sections_are_not_transposed() -> None:
    for seed in range(10):
        assert not draw_warp((2, 3, 4), AugmentConfig().only("transposes"), rng(seed)).transpose


@settings(max_examples=40)
@given(seeds, st.sampled_from([(4, 24, 24), (2, 16, 30), (1, 9, 9)]))
def test_grey_values_come_from_where_labels_come_from(seed: int, shape: tuple[int, int, int]) -> None:
    warp = draw_warp(shape, ALL, rng(seed))
    margin = warp_margin(warp)
    y, x, labels = ramps(shape[0], shape[1] + 2 * margin[0], shape[2] + 2 * margin[1])
    width = labels.shape[2]
    (rows, target), (columns, _) = (warp_volume(ramp, labels, warp, margin) for ramp in (y, x))
    assert target is not None
    assert float((target // width - rows).abs().max()) <= 0.501
    assert float((target % width - columns).abs().max()) <= 0.501


@settings(max_examples=40)
@given(seeds, st.sampled_from([(4, 24, 24), (2, 16, 30), (3, 11, 11)]))
def test_the_margin_is_enough_and_nothing_beyond_it_is_seen(seed: int, shape: tuple[int, int, int]) -> None:
    warp = draw_warp(shape, ALL, rng(seed))
    my, mx = warp_margin(warp)
    far = 5
    size = (shape[0], shape[1] + 2 * (my + far), shape[2] + 2 * (mx + far))
    big = torch.from_numpy(rng(seed).random(size, dtype=np.float32))
    window = big[:, far:-far, far:-far]
    poisoned = torch.full_like(big, torch.nan)
    poisoned[:, far:-far, far:-far] = window
    whole, _ = warp_volume(poisoned, None, warp, (my + far, mx + far))
    tight, _ = warp_volume(window, None, warp, (my, mx))
    assert bool(whole.isfinite().all())
    torch.testing.assert_close(whole, tight, atol=1e-3, rtol=0)


@settings(max_examples=30)
@given(seeds, st.integers(0, 3))
def test_no_id_is_invented_and_large_ids_stay_exact(seed: int, room: int) -> None:
    ids = rng(seed).integers(-(2**63), 2**63 - 1, 5)
    window = rng(seed).choice(ids, (3, 12 + room, 12))
    _, target = warp_volume(
        torch.zeros(window.shape), torch.from_numpy(window), draw_warp((3, 12, 12), ALL, rng(seed)), (0, 0)
    )
    assert target is not None
    assert set(target.unique().tolist()) <= set(ids.tolist())


@settings(max_examples=25)
@given(seeds, st.floats(0.5, 3.2), st.integers(1, 5))
def test_elastic_displacement_is_bounded_smooth_and_does_not_fold(seed: int, pixels: float, sections: int) -> None:
    config = AugmentConfig(elastic_pixels=pixels, elastic_spacing=8, elastic_sections=sections).only("elastic")
    warp = draw_warp((6, 40, 33), config, rng(seed))
    my, mx = warp_margin(warp)
    y, x, labels = ramps(6, 40 + 2 * my, 33 + 2 * mx)
    assert max(my, mx) <= math.ceil(pixels)
    rows, columns = (warp_volume(ramp, labels, warp, (my, mx))[0].double() for ramp in (y, x))
    moved = (rows - y[:, my : my + 40, mx : mx + 33], columns - x[:, my : my + 40, mx : mx + 33])
    for u in moved:
        assert float(u.abs().max()) <= pixels + 1e-3
        # The slope of a cubic B-spline is at most the largest step between control points over their distance.
        assert float(u.diff(dim=0).abs().max()) <= 2 * pixels / sections + 1e-3
        assert float(u.diff(dim=1).abs().max()) <= 2 * pixels / 8 + 1e-3
        assert float(u.diff(dim=2).abs().max()) <= 2 * pixels / 8 + 1e-3
    jacobian = (
        rows.diff(dim=1)[:, :, :-1] * columns.diff(dim=2)[:, :-1]
        - rows.diff(dim=2)[:, :-1] * columns.diff(dim=1)[:, :, :-1]
    )
    assert float(jacobian.min()) > 0


def test_rotation_and_scale_reach_their_limits_and_keep_within() -> None:
    config = AugmentConfig(rotate_degrees=30, rescale_by=0.5)
    turned = [draw_warp((1, 8, 8), config.only("rotate"), rng(seed)).matrix for seed in range(200)]
    angles = [math.degrees(math.atan2(m[0, 1], m[0, 0])) for m in turned if m is not None]
    assert len(angles) == 200
    assert -30 <= min(angles) < -28 < 28 < max(angles) <= 30
    scaled = [draw_warp((1, 8, 8), config.only("rescale"), rng(seed)).matrix for seed in range(200)]
    factors = [1 / m[0, 0] for m in scaled if m is not None]
    assert 1 / 1.5 <= min(factors) < 0.69 < 1.45 < max(factors) <= 1.5


def test_probabilities_are_kept() -> None:
    config = AugmentConfig(rotate=0.3, rescale=0, elastic=0.6, misalign=0.2, flips=False, transposes=False)
    drawn = [draw_warp((4, 16, 16), config, rng(seed)) for seed in range(600)]
    shares = [np.mean([getattr(warp, name) is not None for warp in drawn]) for name in ("matrix", "bend", "shift")]
    np.testing.assert_allclose(shares, [0.3, 0.6, 0.2], atol=0.06)
    assert not any(warp.transpose or any(warp.flips) for warp in drawn)


@settings(max_examples=50)
@given(seeds, st.integers(1, 3), st.integers(2, 6))
def test_a_misalignment_is_a_translation_from_a_section_on_or_a_slip_of_one(seed: int, pixels: int, depth: int) -> None:
    raw, labels = numbered(depth, 5 + 2 * pixels, 4 + 2 * pixels)
    warp = draw_warp((depth, 5, 4), AugmentConfig(misalign_pixels=pixels).only("misalign"), rng(seed))
    assert warp.shift is not None
    image, cut = warp_volume(raw, labels, warp, (pixels, pixels))
    assert cut is not None
    for z, (dy, dx) in enumerate(warp.shift):
        assert -pixels <= min(dy, dx) <= max(dy, dx) <= pixels
        at = (z, slice(pixels + dy, pixels + dy + 5), slice(pixels + dx, pixels + dx + 4))
        assert torch.equal(cut[z], labels[at])
        assert torch.equal(image[z], raw[at])
    assert not warp.shift[0].any()
    moved = [z for z in range(depth) if warp.shift[z].any()]
    if moved:
        assert len({tuple(warp.shift[z]) for z in moved}) == 1
        assert len(moved) == 1 or moved == list(range(moved[0], depth))


def test_every_shift_and_both_kinds_of_misalignment_occur() -> None:
    drawn = [draw_warp((4, 6, 6), AugmentConfig(misalign_pixels=1).only("misalign"), rng(seed)) for seed in range(300)]
    shifts = [warp.shift for warp in drawn if warp.shift is not None]
    assert len({tuple(one) for shift in shifts for one in shift}) == 9
    assert {tuple(shift.any(axis=1)) for shift in shifts} == {
        (False, False, False, False),
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, True),
        (False, True, False, False),
        (False, False, True, False),
    }


@pytest.mark.parametrize("changes", [{"misalign_pixels": 0}, {"elastic_pixels": 0}, {"rescale_by": 0}])
def test_without_strength_nothing_moves(changes: dict[str, Any]) -> None:
    name = next(iter(changes)).partition("_")[0]
    raw, labels = numbered(3, 7, 8)
    image, target = warp_volume(raw, labels, draw_warp((3, 7, 8), AugmentConfig(**changes).only(name), rng()), (0, 0))
    assert torch.equal(image, raw)
    assert target is not None
    assert torch.equal(target, labels)


def test_one_section_has_no_neighbour_to_be_misaligned_with() -> None:
    assert draw_warp((1, 7, 8), AugmentConfig().only("misalign"), rng()).shift is None


def test_beyond_the_window_both_volumes_are_mirrored() -> None:
    raw, labels = numbered(1, 4, 5)
    image, target = warp_volume(raw, labels, Warp((1, 4, 5), shift=np.array([[-2, 3]])), (0, 0))
    wanted = np.pad(labels.numpy(), ((0, 0), (2, 0), (0, 3)), mode="reflect")[:, :4, 3:]
    assert target is not None
    np.testing.assert_array_equal(target.numpy(), wanted)
    np.testing.assert_allclose(image * 2**12, wanted - HUGE, atol=1e-3)


def test_a_window_of_one_pixel_is_repeated() -> None:
    bend = Bend(np.ones((4, 2, 4, 4), np.float32), 8, 8)
    image, target = warp_volume(
        torch.full((2, 1, 1), 0.3), torch.full((2, 1, 1), HUGE), Warp((2, 1, 1), bend=bend), (0, 0)
    )
    assert target is not None
    assert target.tolist() == [[[HUGE]], [[HUGE]]]
    torch.testing.assert_close(image, torch.full((2, 1, 1), 0.3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same() -> None:
    raw = torch.from_numpy(rng().random((5, 60, 60), dtype=np.float32))
    labels = torch.from_numpy(rng().integers(0, 2**62, (5, 60, 60)))
    for seed in range(10):
        warp = draw_warp((5, 48, 48), ALL, rng(seed))
        image, target = warp_volume(raw, labels, warp, (6, 6))
        there, known = warp_volume(raw.cuda(), labels.cuda(), warp, (6, 6))
        torch.testing.assert_close(there.cpu(), image, atol=1e-3, rtol=0)
        assert target is not None
        assert known is not None
        assert float((known.cpu() != target).float().mean()) < 1e-3  # places half-way between two voxels
