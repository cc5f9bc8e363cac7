"""Grey-value changes and section defects: each does what it says, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import BSpline
from torch import Tensor

from distill.config import AugmentConfig
from distill.data.augmentation.intensity import (
    Blank,
    IntensityChanges,
    Optics,
    Shading,
    Tone,
    apply_look,
    disc,
    draw_look,
    gaussian,
    line,
)

ONE_SECTION = ("contrast_jump", "out_of_focus", "motion_blur", "missing", "missing_part")
GREY = ("grey", "grey_section", "noise", "blur", "local_contrast", *ONE_SECTION)
SHAPE = (5, 24, 30)
seeds = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def image(seed: int = 1) -> Tensor:
    return torch.from_numpy(0.2 + 0.6 * rng(seed).random(SHAPE, dtype=np.float32))


def look(name: str, seed: int, config: AugmentConfig | None = None) -> IntensityChanges:
    return draw_look(SHAPE, (config or AugmentConfig()).only(name), rng(seed))


@settings(max_examples=40)
@given(st.sampled_from(GREY), seeds)
def test_every_change_shows_stays_in_range_and_leaves_its_input(name: str, seed: int) -> None:
    raw = image()
    found = apply_look(raw, look(name, seed))
    assert found.shape == raw.shape
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not torch.equal(found, raw)
    assert torch.equal(raw, image())


@settings(max_examples=40)
@given(st.sampled_from(ONE_SECTION), seeds)
def test_a_defect_of_one_section_leaves_the_others_bit_for_bit(name: str, seed: int) -> None:
    raw = image()
    found = apply_look(raw, look(name, seed))
    assert sum(not torch.equal(a, b) for a, b in zip(found, raw, strict=True)) == 1


@pytest.mark.parametrize("name", ONE_SECTION)
def test_every_section_can_have_the_defect(name: str) -> None:
    changed = [(apply_look(image(), look(name, seed)) != image()).flatten(1).any(1) for seed in range(60)]
    assert torch.stack(changed).any(0).all()


def test_nothing_drawn_is_a_copy() -> None:
    raw = image()
    found = apply_look(raw, draw_look(SHAPE, AugmentConfig().only(), rng()))
    assert torch.equal(found, raw)
    assert found.data_ptr() != raw.data_ptr()
    assert apply_look(raw.transpose(1, 2), IntensityChanges()).is_contiguous()


def test_probabilities_are_kept() -> None:
    config = AugmentConfig(noise=0.3, blur=0.1, missing=0.5, missing_part=0, grey=0, grey_section=0)
    drawn = [draw_look((2, 4, 4), config, rng(seed)) for seed in range(600)]
    shares = [np.mean([bool(one) for one in ones]) for ones in zip(*(
        (look.noise is not None, look.blur is not None, look.blanks) for look in drawn
    ), strict=True)]  # fmt: skip
    np.testing.assert_allclose(shares, [0.3, 0.1, 0.5], atol=0.06)


@settings(max_examples=30)
@given(seeds)
def test_tones_follow_their_formula(seed: int) -> None:
    values = [rng(seed).uniform(low, high, 5).astype(np.float32) for low, high in ((0.4, 1.6), (-0.3, 0.3), (0.5, 2))]
    raw = image(seed)
    found = apply_look(raw, IntensityChanges(tones=(Tone(*values),)))
    contrast, brightness, gamma = (value.astype(np.float64)[:, None, None] for value in values)
    wanted = np.clip((raw.numpy() - 0.5) * contrast + 0.5 + brightness, 0, 1) ** gamma
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_tones_are_one_for_the_volume_or_one_for_each_section() -> None:
    flat = torch.full(SHAPE, 0.4)
    assert len(apply_look(flat, look("grey", 0)).unique()) == 1
    assert len(apply_look(flat, look("grey_section", 0)).unique()) == len(flat)


@settings(max_examples=60)
@given(seeds, st.floats(0.2, 2))
def test_a_contrast_jump_is_never_a_small_one(seed: int, strength: float) -> None:
    (tone,) = look("contrast_jump", seed, AugmentConfig(contrast_jump_strength=strength)).tones
    assert tone.section is not None
    for value, neutral, step in ((tone.contrast, 1, 0.3), (tone.brightness, 0, 0.15), (np.log2(tone.gamma), 0, 0.6)):
        assert 0.499 * step * strength <= abs(float(value[0]) - neutral) <= 1.001 * step * strength


@settings(max_examples=20)
@given(seeds, st.integers(4, 40))
def test_shading_is_a_spline_of_its_control_points_in_every_section(seed: int, spacing: int) -> None:
    controls = (SHAPE[0], *((side - 1) // spacing + 4 for side in SHAPE[1:]))
    contrast, brightness = (rng(seed + k).uniform(-0.3, 0.3, controls).astype(np.float32) for k in (0, 1))
    raw = image(seed)
    found = apply_look(raw, IntensityChanges(shading=Shading(contrast, brightness, spacing)))

    def field(values: np.ndarray) -> np.ndarray:
        for axis, side in ((1, SHAPE[1]), (2, SHAPE[2])):
            knots = spacing * np.arange(-3, values.shape[axis] + 1)
            values = BSpline(knots, values.astype(np.float64), 3, axis=axis)(np.arange(side))
        return values

    wanted = np.clip((raw.numpy() - 0.5) * 2 ** field(contrast) + 0.5 + field(brightness), 0, 1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


@settings(max_examples=40)
@given(seeds, st.floats(0.2, 2))
def test_shading_is_as_strong_as_configured_and_differs_between_sections(seed: int, strength: float) -> None:
    drawn = look("local_contrast", seed, AugmentConfig(local_contrast_strength=strength, local_contrast_pixels=16))
    assert drawn.shading is not None
    assert np.abs(drawn.shading.contrast).max() <= strength * 1.001
    assert np.abs(drawn.shading.brightness).max() <= 0.3 * strength * 1.001
    flat = apply_look(torch.full(SHAPE, 0.5), drawn)
    assert 0 < float(np.ptp(flat.numpy())) <= 0.6 * strength * 1.001
    assert len(np.unique(flat.flatten(1).numpy(), axis=0)) == SHAPE[0]


def test_local_contrast_changes_no_other_draw() -> None:
    config = AugmentConfig()
    for seed in range(10):
        without = draw_look(SHAPE, config, rng(seed))
        within = draw_look(SHAPE, config.model_copy(update={"local_contrast": 1.0}), rng(seed))
        assert without.shading is None
        assert within.shading is not None
        plain = IntensityChanges(within.optics, within.blur, within.tones, None, within.noise, within.blanks)
        assert torch.equal(apply_look(image(), without), apply_look(image(), plain))


def test_the_defaults_draw_what_they_drew_before_local_contrast() -> None:
    generator = rng(5)
    for _ in range(50):
        draw_look(SHAPE, AugmentConfig(), generator)
    assert generator.random() == 0.08043360461662918  # the number that followed then


def test_noise_is_as_strong_as_drawn() -> None:
    flat = torch.full((8, 40, 40), 0.5)
    found = [apply_look(flat, draw_look((8, 40, 40), AugmentConfig().only("noise"), rng(seed))) for seed in range(40)]
    spread = [float(one.std()) for one in found]
    assert 0.008 < min(spread) < 0.016
    assert 0.05 < max(spread) < 0.062
    assert all(abs(float(one.mean()) - 0.5) < 0.003 for one in found)


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0, 2.5])
def test_blur_is_a_gaussian_within_the_section(sigma: float) -> None:
    raw = image()
    reach = max(1, math.ceil(3 * sigma))
    wanted = ndimage.gaussian_filter(raw.numpy(), (0, sigma, sigma), mode="nearest", radius=(0, reach, reach))
    np.testing.assert_allclose(apply_look(raw, IntensityChanges(blur=gaussian(sigma))), wanted, atol=1e-5)


@pytest.mark.parametrize(("radius", "angle"), [(1.0, 0.3), (2.7, 1.2), (4.0, 2.9)])
def test_optics_are_convolutions_of_one_section(radius: float, angle: float) -> None:
    raw = image()
    for kernel in (disc(radius), line(2 * radius, angle)):
        found = apply_look(raw, IntensityChanges(optics=(Optics(2, kernel),)))
        wanted = ndimage.correlate(raw[2].numpy().astype(np.float64), kernel, mode="nearest")
        np.testing.assert_allclose(found[2], wanted, atol=1e-5)


@settings(max_examples=60)
@given(st.floats(1, 15), st.floats(0, math.pi))
def test_a_motion_kernel_is_a_line_of_its_length_and_angle(length: float, angle: float) -> None:
    kernel = line(length, angle).astype(np.float64)
    reach = len(kernel) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    assert kernel.shape == (2 * reach + 1,) * 2
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert abs((kernel * across).sum()) < 1e-4
    assert abs((kernel * along).sum()) < 1e-4
    assert (kernel * across**2).sum() < 0.26  # what splitting a point over four pixels adds, at most
    assert (kernel * along**2).sum() == pytest.approx(length**2 / 12, abs=0.26 + 0.03 * length**2)
    assert np.abs(across[kernel > 1e-9]).max() < math.sqrt(2)


@settings(max_examples=30)
@given(st.floats(1, 6))
def test_a_kernel_out_of_focus_is_an_even_disc(radius: float) -> None:
    kernel = disc(radius)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    for turned in (np.rot90(kernel), kernel.T):
        np.testing.assert_array_equal(kernel, turned)
    assert 1 / kernel.max() == pytest.approx(math.pi * (radius**2 + 1 / 12), rel=0.1)  # area of a disc with a soft edge


def test_a_missing_section_is_blank_black_white_or_grey() -> None:
    raw = image()
    seen = set()
    for seed in range(60):
        (blank,) = look("missing", seed).blanks
        section = apply_look(raw, IntensityChanges(blanks=(blank,)))[blank.section]
        assert len(section.unique()) == 1
        assert float(section[0, 0]) == pytest.approx(float(raw.mean()) if blank.value is None else blank.value)
        seen.add(blank.value)
    assert seen == {0.0, 1.0, None}


@settings(max_examples=60)
@given(seeds, st.floats(0.05, 0.5))
def test_a_missing_part_is_one_blank_region_of_a_section(seed: int, share: float) -> None:
    (blank,) = look("missing_part", seed, AugmentConfig(missing_part_share=share)).blanks
    assert blank.mask is not None
    assert 1 <= blank.mask.sum() < blank.mask.size
    assert ndimage.label(blank.mask, np.ones((3, 3)))[1] == 1
    raw = image()
    found = apply_look(raw, IntensityChanges(blanks=(blank,)))
    assert len(found[blank.section][torch.from_numpy(blank.mask)].unique()) == 1
    assert torch.equal(
        found[blank.section][torch.from_numpy(~blank.mask)], raw[blank.section][torch.from_numpy(~blank.mask)]
    )


def test_missing_parts_have_smooth_and_polygonal_outlines_of_many_sizes() -> None:
    masks = [
        draw_look((1, 96, 96), AugmentConfig().only("missing_part"), rng(seed)).blanks[0].mask for seed in range(80)
    ]
    sizes = [float(mask.mean()) for mask in masks if mask is not None]
    assert len(sizes) == 80
    assert min(sizes) < 0.02
    assert 0.15 < max(sizes) < 0.6


def test_blanks_come_last_and_keep_their_value() -> None:
    config = AugmentConfig().only(*GREY)
    for seed in range(20):
        drawn = draw_look(SHAPE, config, rng(seed))
        found = apply_look(image(), drawn)
        last = drawn.blanks[-1]
        if last.value is not None:
            assert found[last.section].unique().tolist() == [last.value]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (1, 3, 2)])
def test_tiny_volumes(shape: tuple[int, int, int]) -> None:
    raw = torch.full(shape, 0.4)
    for seed in range(5):
        found = apply_look(raw, draw_look(shape, AugmentConfig().only(*GREY), rng(seed)))
        assert found.shape == shape
        assert bool(found.isfinite().all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same() -> None:
    for seed in range(10):
        drawn = draw_look(SHAPE, AugmentConfig().only(*GREY), rng(seed))
        torch.testing.assert_close(
            apply_look(image().cuda(), drawn).cpu(), apply_look(image(), drawn), atol=1e-5, rtol=0
        )


def test_a_blank_part_takes_the_mean_of_the_whole_volume() -> None:
    mask = np.zeros(SHAPE[1:], bool)
    mask[3, 4] = True
    found = apply_look(image(), IntensityChanges(blanks=(Blank(1, None, mask),)))
    assert float(found[1, 3, 4]) == pytest.approx(float(image().mean()))
