"""Labels on the grid of their image, voxel by voxel against what the words mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.errors import ShapeError, SourceError
from distill.core.geometry import Box, Triple
from distill.core.known import OTHER_ID, UNKNOWN_ID
from distill.io.truth import Placed, masked_labels, open_truth
from distill.io.volume import Volume, open_labels, volume_from_array, voxel_shift

NM = (30.0, 6.0, 5.0)
SIZE = (9, 7, 8)


def numbers(shape: Triple, high: int = 3, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint64)


def placed(array: NDArray[Any], at: Triple) -> Volume:
    z, y, x = (n * nm for n, nm in zip(at, NM, strict=True))
    return volume_from_array(array, NM, (z, y, x))


IMAGE = placed(np.zeros(SIZE, np.uint8), (0, 0, 0))


@given(
    st.tuples(*(st.integers(-4, 6) for _ in range(3))),
    st.tuples(*(st.integers(1, 9) for _ in range(3))),
    st.sampled_from(["background", "unknown", "other"]),
    st.integers(1, 3),
    st.one_of(st.none(), st.tuples(*(st.integers(-3, 5) for _ in range(3)))),
)
def test_labels_are_where_their_offset_says(
    at: Triple, shape: Triple, zero: Literal["background", "unknown", "other"], every: int, mask_at: Triple | None
) -> None:
    labels, mask = numbers(shape), numbers((5, 6, 6), 2, seed=1)
    covered = Box.of_shape(shape).shift(at).intersect(Box.of_shape(SIZE))
    if shape == SIZE:
        at = (0, 0, 0)
    both = (placed(labels, at), None if mask_at is None else placed(mask, mask_at))
    used = Box.of_shape(SIZE)
    for one in both:
        used = used if one is None else used.intersect(Placed(one, voxel_shift(one, IMAGE)).box)
    if not used.voxels or not any(z % every == 0 for z in range(used.start[0], used.stop[0])):
        with pytest.raises(ShapeError, match=r"covers nothing|has none of every"):
            open_truth(IMAGE, *both, every=every, zero=zero, ignores=False)
        return
    image, truth = open_truth(IMAGE, *both, every=every, zero=zero, ignores=False)
    found = truth.read(image.box)
    assert found.shape == image.size == (-(-SIZE[0] // every), *SIZE[1:])
    for z, y, x in np.ndindex(*found.shape):
        here = tuple(n - o for n, o in zip((z * every, y, x), at, strict=True))
        inside = all(0 <= n < size for n, size in zip(here, shape, strict=True))
        wanted = labels[here] if inside else UNKNOWN_ID
        if wanted == 0:
            wanted = {"background": np.uint64(0), "unknown": UNKNOWN_ID, "other": OTHER_ID}[zero]
        if mask_at is not None:
            there = tuple(n - o for n, o in zip((z * every, y, x), mask_at, strict=True))
            if not (all(0 <= n < size for n, size in zip(there, mask.shape, strict=True)) and mask[there]):
                wanted = UNKNOWN_ID
        assert found[z, y, x] == wanted
    assert truth.whole == (mask_at is None and zero == "background" and covered.shape == SIZE and shape == SIZE)
    part = Box((0, 1, 2), (image.size[0], 5, 6))
    np.testing.assert_array_equal(truth.read(part), found[part.slices])


def test_labels_of_the_images_size_lie_where_it_lies(caplog: pytest.LogCaptureFixture) -> None:
    """Many files give an offset to one of the two alone."""
    labels = numbers(SIZE)
    for image, truth in (
        (placed(np.zeros(SIZE, np.uint8), (4, 0, 0)), placed(labels, (0, 0, 0))),
        (placed(np.zeros(SIZE, np.uint8), (4, 0, 0)), placed(labels, (4, 0, 0))),
    ):
        caplog.clear()
        np.testing.assert_array_equal(open_truth(image, truth, ignores=False)[1].read(IMAGE.box), labels)
        assert len(caplog.messages) == (image.offset != truth.offset)
        assert all("120, 0, 0 nm, which the other one lacks, is not used" in line for line in caplog.messages)
    moved = open_truth(placed(np.zeros(SIZE, np.uint8), (4, 0, 0)), placed(labels, (6, 0, 0)), ignores=False)[1]
    assert (moved.read(IMAGE.box)[:2] == UNKNOWN_ID).all()


def test_labels_elsewhere_are_refused() -> None:
    with pytest.raises(ShapeError, match="covers nothing of array; expected resolution and offset"):
        open_truth(IMAGE, placed(numbers((2, 2, 2)), (9, 0, 0)), ignores=False)
    with pytest.raises(ShapeError, match="expected whole voxels"):
        open_truth(IMAGE, volume_from_array(numbers((2, 2, 2)), NM, (0, 3, 0)), ignores=False)
    with pytest.raises(ShapeError, match="voxels of"):
        open_truth(IMAGE, volume_from_array(numbers((2, 2, 2)), (30, 6, 6)), ignores=False)


@pytest.mark.parametrize(
    ("dtype", "stored", "ignore"),
    [("u8", 2**64 - 1, -1), ("u8", 2**64 - 1, 2**64 - 1), ("i8", -1, -1), ("i8", -1, 2**64 - 1), ("u1", 255, 255)],
)
def test_a_value_to_ignore_is_unknown(tmp_path: Path, dtype: str, stored: int, ignore: int) -> None:
    array = np.array([[[0, 5, stored, 7]]], dtype)
    np.save(tmp_path / "ids.npy", array)
    found = open_labels(tmp_path / "ids.npy", resolution=NM, ignore=ignore).read()
    assert found.flatten().tolist() == [0, 5, int(UNKNOWN_ID), 7]
    plain = open_labels(tmp_path / "ids.npy", resolution=NM).read().flatten().tolist()
    assert plain == [0, 5, 255 if dtype == "u1" else 0, 7]
    np.save(tmp_path / "ids.npy", array.astype(np.uint8))
    with pytest.raises(SourceError, match=r"ids\.npy: found labels of .*, which hold no 70000 to ignore"):
        open_labels(tmp_path / "ids.npy", resolution=NM, ignore=70000)


def test_masked_labels_read_like_labels() -> None:
    labels, mask = numbers((4, 5, 6)), numbers((3, 5, 6), 2, seed=2)
    found = masked_labels(placed(labels, (1, 2, 0)), placed(mask, (2, 2, 0)))
    wanted = labels.copy()
    wanted[0] = UNKNOWN_ID
    wanted[1:][mask == 0] = UNKNOWN_ID
    np.testing.assert_array_equal(found.read(), wanted)
    np.testing.assert_array_equal(np.stack(list(found.sections(1, 3))), wanted[1:3])
    assert found.offset == (30.0, 12.0, 0.0)
    with pytest.raises(ShapeError, match="found 2 channels, expected a mask"):
        masked_labels(placed(labels, (0, 0, 0)), volume_from_array(np.zeros((2, 1, 1, 1)), NM))
