"""Normalised sections: the same for any cut, any type of file and any brightness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from distill.core.choices import NormalisationKind
from distill.core.errors import DistillError, ShapeError, SourceError
from distill.core.geometry import Box
from distill.core.normalisation import (
    KINDS,
    NONE,
    UNCHANGED,
    Normalisation,
    Normaliser,
    as_picture,
    source_normaliser,
)
from distill.data.crop_source import FileSource, section_corrections
from distill.data.crops import as_unit_range
from distill.inference.blockwise.bad_sections import USE, parse_bad
from distill.inference.blockwise.corrections import (
    Sections,
    join_groups,
    read_corrections,
    undone_groups,
    write_group,
)
from distill.inference.blockwise.tables import FOLDER
from distill.io.volume import Volume, volume_from_array

STATISTICAL: list[NormalisationKind] = ["percentile", "mean-std", "local"]


def section(shape: tuple[int, int] = (150, 170), seed: int = 0) -> NDArray[np.uint8]:
    """Cell-like texture in part of the range."""
    drawn = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return np.clip(110 + 25 * drawn / drawn.std(), 10, 240).astype(np.uint8)


def normaliser(kind: NormalisationKind, *, invert: bool = False) -> Normaliser:
    return Normaliser(Normalisation(kind=kind, tile=48), invert)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@given(y=st.integers(0, 149), x=st.integers(0, 169), height=st.integers(1, 150), width=st.integers(1, 170))
def test_parts_are_normalised_as_the_whole(
    kind: NormalisationKind, dtype: Any, y: int, x: int, height: int, width: int
) -> None:
    image = section().astype(dtype)
    if dtype == np.float32:
        image = image / np.float32(255)
    correction = normaliser(kind).of(image)
    whole = correction.apply(image)
    part = np.s_[y : y + height, x : x + width]
    np.testing.assert_array_equal(correction.apply(image[part], (y, x)), whole[part])
    assert whole.dtype == np.float32
    assert 0 <= whole.min() < whole.max() <= 1


@pytest.mark.parametrize("kind", STATISTICAL)
def test_gain_offset_and_type_of_the_file_do_not_matter(kind: NormalisationKind) -> None:
    image = section()
    whole = normaliser(kind).sections(image[None])[0]
    for other in (
        image.astype(np.uint16) * 16,  # 12 bits of 16
        image.astype(np.uint16) + np.uint16(2**15),
        (image.astype(np.int32) - 2**15).astype(np.int16),
        (image.astype(np.int16) - 128).astype(np.int8),
        image.astype(np.int32) * 1000,
        image.astype(np.float32) / 255,
        image.astype(np.float64) * 3 - 400,
    ):
        found = normaliser(kind).sections(other[None])[0]
        np.testing.assert_allclose(found, whole, atol=2e-3, err_msg=str(other.dtype))
    inverted = normaliser(kind, invert=True).sections((255 - image)[None])[0]
    np.testing.assert_allclose(inverted, whole, atol=0.02 if kind == "percentile" else 1e-5)


def test_mean_and_standard_deviation() -> None:
    found = Normaliser(Normalisation(mean=0.4, std=0.1)).sections(section()[None])
    assert float(found.mean()) == pytest.approx(0.4, abs=1e-3)
    assert float(found.std()) == pytest.approx(0.1, abs=1e-3)


def test_percentiles() -> None:
    found = Normaliser(Normalisation(kind="percentile", low=10, high=90)).sections(section()[None])
    assert 0.05 < (found == 0).mean() < 0.15
    assert 0.05 < (found == 1).mean() < 0.15


def test_local_statistics_even_out_a_shadow() -> None:
    shade = np.linspace(0.4, 1, 170)
    shaded = (section() * shade).astype(np.uint8)
    bright, dark = np.s_[:, 120:], np.s_[:, :50]
    for kind, even in (("mean-std", False), ("local", True)):
        found = normaliser(kind).sections(shaded[None])[0]  # type: ignore[arg-type]
        assert (abs(found[bright].mean() - found[dark].mean()) < 0.1) == even


def test_a_padded_part_of_a_section_takes_the_sections_own_statistics() -> None:
    padded = np.pad(section(), ((0, 0), (0, 200)))
    found, alone = (normaliser("local").of(one) for one in (padded, section()))
    assert found.width.shape == (3, 8)
    np.testing.assert_allclose(found.width[:, :3], alone.width[:, :3], rtol=0.05)
    assert np.isfinite(found.apply(padded)).all()
    assert np.ptp(found.width[:, 5:]) == 0


def test_without_normalisation_the_bits_are_those_of_the_type() -> None:
    for image in (section(), section().astype(np.uint16) * 257, section().astype(np.float32) / 255):
        np.testing.assert_array_equal(UNCHANGED.sections(image[None])[0], as_unit_range(image))


def test_a_section_without_contrast_is_grey() -> None:
    for kind in STATISTICAL:
        assert (normaliser(kind).sections(np.full((1, 20, 20), 9, np.uint16)) == 0.5).all()


def test_what_cannot_be_brought_to_a_scale_is_refused_with_a_way_out() -> None:
    with pytest.raises(ShapeError, match=r"found int16, .*with --normalise mean-std any range is taken"):
        UNCHANGED.of(np.zeros((4, 4), np.int16))
    with pytest.raises(ShapeError, match=r"found grey values from -400 to 2, expected floats from 0 to 1; with"):
        UNCHANGED.of(np.array([[-400, 2.0]], np.float32))
    with pytest.raises(DistillError, match=r"--normalise: found 'clahe', expected none, percentile, mean-std, local"):
        source_normaliser(UNCHANGED, "clahe", invert=False)


def test_a_models_own_normalisation_stays_where_the_same_kind_is_asked_for() -> None:
    own = Normaliser(Normalisation(mean=0.4, std=0.1))
    assert source_normaliser(own, "mean-std", invert=False) == own
    assert source_normaliser(own, None, invert=True) == Normaliser(own.normalisation, True)
    assert source_normaliser(own, "none", invert=False).normalisation == NONE


def test_pictures_show_any_type() -> None:
    image = section()
    np.testing.assert_array_equal(as_picture(image), image)
    np.testing.assert_array_equal(as_picture(image / np.float32(255)), image)
    for other in (image.astype(np.uint16) * 16, image.astype(np.int16) - 999, image.astype(np.float32) * 70):
        found = as_picture(other)
        assert found.dtype == np.uint8
        assert found.min() == 0
        assert found.max() == 255
        assert np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.99


ANY = dict(parse_bad([USE]))  # sections of all kinds are used


def write_corrections(store: Path, one: Normaliser, volume: Volume, first: int, depth: int) -> list[int]:
    """Write the corrections of all groups that are missing, in reverse order; return their numbers."""
    groups = undone_groups(store, one, volume, depth, ANY)
    for number in reversed(groups):
        write_group(store, one, volume, first, depth, number, ANY)
    join_groups(store, one, volume, depth, ANY)
    return groups


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_groups_of_sections_give_what_all_together_give(
    kind: NormalisationKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = np.stack([section(seed=n) // (n + 1) for n in range(6)])
    volume, one = volume_from_array(raw, (30.0, 6.0, 6.0)), normaliser(kind)
    for name in ("whole", "parts"):
        (tmp_path / name / FOLDER).mkdir(parents=True)
    assert write_corrections(tmp_path / "whole", one, volume, 1, 5) == [0]
    monkeypatch.setattr("distill.inference.blockwise.corrections.GROUP", 2)
    write_group(tmp_path / "parts", one, volume, 1, 5, 1, ANY)  # of a run that was interrupted
    with pytest.raises(SourceError, match=r"00000000.npz: no such file"):
        join_groups(tmp_path / "parts", one, volume, 5, ANY)
    assert write_corrections(tmp_path / "parts", one, volume, 1, 5) == [0, 2]
    assert write_corrections(tmp_path / "parts", one, volume, 1, 5) == []
    files = [tmp_path / name / FOLDER / "grey.npz" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {path.name for path in files[1].parent.iterdir()} == {"bad_sections.json", "grey.npz"}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_read_what_whole_sections_give(kind: NormalisationKind, tmp_path: Path) -> None:
    raw = np.stack([section(seed=n) // (n + 1) for n in range(6)])
    volume, one = volume_from_array(raw, (30.0, 6.0, 6.0)), normaliser(kind)
    (tmp_path / FOLDER).mkdir()
    write_corrections(tmp_path, one, volume, 2, 4)
    sections = Sections(volume, 2, read_corrections(tmp_path, one, volume))
    whole = one.sections(raw[2:])
    for box in (Box((0, 0, 0), (4, 150, 170)), Box((1, 30, 7), (3, 99, 160)), Box((3, 149, 0), (4, 150, 1))):
        np.testing.assert_array_equal(sections.read(box), whole[box.slices])


def test_blocks_without_their_statistics_are_refused(tmp_path: Path) -> None:
    volume = volume_from_array(section()[None], (30.0, 6.0, 6.0))
    with pytest.raises(SourceError, match=r"grey.npz: found no corrections of grey values"):
        read_corrections(tmp_path, normaliser("mean-std"), volume)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pixels_that_are_no_numbers_never_enter(
    kind: NormalisationKind, bad: float, dtype: Any, tmp_path: Path
) -> None:
    stack = np.stack([section(seed=n) for n in range(3)]).astype(dtype) / dtype(255)
    stack[1, 7, 9] = bad
    with pytest.raises(ShapeError, match=r"found 1 of 25,500 pixels that are no finite numbers"):
        normaliser(kind).of(stack[0]).apply(stack[1])
    volume = volume_from_array(stack, (30, 6, 6), source="given")
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(SourceError, match=r"given: section 1: raw: found 1 of 25,500 pixels that are no finite"):
        write_corrections(tmp_path, normaliser(kind), volume, 0, 3)
    with pytest.raises(SourceError, match=r"given: section 1: raw: found 1 of 25,500"):
        section_corrections(FileSource(volume, None, Box((1, 0, 0), (3, 150, 170))), normaliser(kind))
    assert as_picture(stack[1]).dtype == np.uint8  # figures show what is there


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("low", [-0.5, 0.0])
def test_floats_without_a_range_are_never_cut_off(depth: int, low: float, tmp_path: Path) -> None:
    """Blocks refuse what streams refuse: before any block, and in a part of a section too."""
    stack = np.full((depth, 20, 20), 0.5, np.float32)
    stack[-1, 3, 4], stack[-1, 5, 5] = low, 1.0 if low else 7.0
    volume = volume_from_array(stack, (30, 6, 6), source="given")
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(SourceError, match=rf"given: section {depth - 1}: raw: found grey values from {low:g} to"):
        write_corrections(tmp_path, UNCHANGED, volume, 0, depth)
    good = volume_from_array(np.clip(stack, 0, 1), (30, 6, 6), source="given")
    write_corrections(tmp_path, UNCHANGED, good, 0, depth)
    corrections = read_corrections(tmp_path, UNCHANGED, good)
    whole = Box.of_shape(stack.shape)
    np.testing.assert_array_equal(Sections(good, 0, corrections).read(whole), np.clip(stack, 0, 1))
    with pytest.raises(ShapeError, match="found grey values from"):
        Sections(volume, 0, corrections).read(whole)
