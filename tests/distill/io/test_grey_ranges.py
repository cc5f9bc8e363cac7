"""Grey values of sections: known changes of one histogram are found again, padding and saturation are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from distill.core.errors import ShapeError
from distill.io.grey_ranges import TILE, GreyRanges, format_grey_ranges, gamma_of, grey_ranges
from distill.io.volume import volume_from_array
from distill.io.writers.cremi import write_cremi

Cli = Callable[..., Any]


def tissue(seed: int = 0, side: int = 2 * TILE) -> np.ndarray:
    """A smooth image with values from 0.2 to 0.8."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 1.5)
    ranks = field.ravel().argsort().argsort().reshape(field.shape) / field.size
    return np.asarray(0.2 + 0.6 * ranks)


def measured(*sections: np.ndarray) -> GreyRanges:
    return grey_ranges(volume_from_array(np.stack(sections), (30, 6, 6)))


def sixteen(*sections: np.ndarray) -> list[np.ndarray]:
    return [np.round(60000 * section).astype(np.uint16) for section in sections]


def test_gain_and_offset_are_those_that_were_given() -> None:
    base = tissue()
    gains, offsets = (0.5, 0.75, 1.0), (0.2, 0.1, -0.05)
    found = measured(*sixteen(*(g * base + o for g, o in zip(gains, offsets, strict=True))))
    for one, gain, offset in zip(found.sections, gains, offsets, strict=True):
        assert one.gain == pytest.approx(gain / 0.75, rel=1e-3)
        mean = 60000 * (gain * base.mean() + offset)
        assert one.mean == pytest.approx(mean, rel=1e-3)
        assert one.std == pytest.approx(60000 * gain * base.std(), rel=1e-3)
        assert one.gamma == pytest.approx(1, abs=2e-3)
        means = [60000 * (g * base.mean() + o) for g, o in zip(gains, offsets, strict=True)]
        assert one.offset == pytest.approx(mean - gain / 0.75 * np.mean(means), abs=60)
    assert found.contrast_change == pytest.approx((0, 0), abs=0.01)
    assert found.brightness_change == pytest.approx((0, 0), abs=0.01)


@given(st.floats(0.3, 3))
def test_a_power_of_the_typical_histogram_has_that_gamma(gamma: float) -> None:
    typical = np.linspace(0, 1, 99) ** 0.8
    assert gamma_of(typical**gamma, typical) == pytest.approx(gamma, rel=1e-3)


def test_gamma_is_found_in_images_under_any_gain() -> None:
    base = (tissue() - 0.2) / 0.6  # gamma acts between the ends of the range
    powers = (0.6, 1.0, 1.6)
    found = measured(*sixteen(*(0.1 + (0.4 + 0.2 * k) * base**power for k, power in enumerate(powers))))
    assert [one.gamma for one in found.sections] == pytest.approx(powers, rel=0.1)


def test_local_contrast_and_brightness_are_those_of_the_tiles() -> None:
    base = tissue(side=2 * TILE) - 0.5
    factors = np.repeat(np.repeat([[1, 2], [1, 2]], TILE, 0), TILE, 1)
    flat, varied = (
        measured(*sixteen(0.5 + base)).sections[0],
        measured(*sixteen(0.5 + 0.4 * factors * base)).sections[0],
    )
    assert varied.local_contrast == pytest.approx(0.5, abs=3 * flat.local_contrast + 0.05)  # 0 and 1 octave
    brighter = measured(*sixteen(0.3 + 0.2 * base + 0.3 * (factors - 1))).sections[0]
    assert brighter.local_brightness == pytest.approx(0.15 / np.sqrt(0.15**2 + (0.2 * base.std()) ** 2), abs=0.02)


def test_padding_and_saturation_are_shares_and_change_nothing_else() -> None:
    rng = np.random.default_rng(0)
    inner = np.round(60 + 120 * tissue(side=4 * TILE)).astype(np.uint8)
    padded = np.zeros((4 * TILE, 5 * TILE), np.uint8)
    padded[:, : 4 * TILE] = inner
    bare, framed = measured(inner).sections[0], measured(padded).sections[0]
    assert framed.constant == pytest.approx(0.2, abs=0.01)
    assert framed.saturated < 0.01
    assert framed.mean == pytest.approx(bare.mean)
    assert framed.std == pytest.approx(bare.std)
    assert framed.local_contrast == pytest.approx(bare.local_contrast, abs=0.02)
    speckled = inner.copy()
    speckled[rng.random(inner.shape) < 0.02] = 255
    found = measured(speckled).sections[0]
    assert found.saturated == pytest.approx(0.02, abs=0.004)
    assert found.mean == pytest.approx(bare.mean, abs=0.2)


def test_sections_without_tissue_are_named(tmp_path: Path) -> None:
    found = measured(*sixteen(tissue()), np.zeros((2 * TILE, 2 * TILE), np.uint16), *sixteen(tissue(1)))
    assert found.empty == (1,)
    assert [one.section for one in found.sections] == [0, 2]
    assert found.contrast_change is None  # no two neighbours
    assert "without tissue: 1 (sections 1)" in format_grey_ranges(found)
    with pytest.raises(ShapeError, match="no section with tissue in 0:1"):
        measured(np.zeros((70, 70), np.uint8))


def test_the_command_prints_ranges_and_sections(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    raw = np.stack([np.round(255 * (g * tissue() + 0.05)).astype(np.uint8) for g in (0.6, 0.8, 1.0)])
    write_cremi(path, raw=raw, resolution=(30, 6, 6))
    said = cli("info", f"{path}:volumes/raw", "--grey", "--json")
    assert said.code == 0, said.err
    rows = json.loads(said.out)
    assert [row["section"] for row in rows["sections"]] == [0, 1, 2]
    assert rows["ranges"]["gain"][0] == pytest.approx(0.75, abs=0.01)
    said = cli("info", f"{path}:volumes/raw", "--grey", "--sections", "1:3")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0] == f"{path}:volumes/raw: uint8, 2 sections with tissue"
    assert "gamma against the typical section" in said.out
    said = cli("info", f"{path}:volumes/raw", "--sections", "1:3")
    assert (said.code, said.out) == (2, "")
    assert "found without --grey" in said.err
