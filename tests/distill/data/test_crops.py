"""Training crops: the same for the same seed and index, raw and labels together."""

from __future__ import annotations

import multiprocessing
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.config import AUGMENTATIONS, AugmentConfig, TrainingConfig
from distill.core.affinity import as_label_tensor, widen_borders
from distill.core.errors import ShapeError
from distill.core.geometry import Box
from distill.data.crops import Crops, MixedCrops, as_unit_range
from distill.data.loading import batches, loader

SHAPE = (6, 20, 24)
STILL = AugmentConfig().only()
MOVING = STILL.model_copy(update={"flips": True, "transposes": True, "misalign": 0.7, "misalign_pixels": 3})
WILD = AugmentConfig(elastic_pixels=2, elastic_spacing=5, elastic_sections=2).only(*AUGMENTATIONS)


def training(**changes: Any) -> TrainingConfig:
    values = {"crop": (3, 8, 8), "steps": 5, "batch": 2, "seed": 4, "workers": 0, "widen_borders": False}
    return TrainingConfig(**{**values, **changes})


def numbered() -> tuple[NDArray[np.uint16], NDArray[np.uint64]]:
    """A volume whose grey value is its voxel's number, and so is its label."""
    number = np.arange(1, np.prod(SHAPE) + 1).reshape(SHAPE)
    return number.astype(np.uint16), number.astype(np.uint64)


def items(crops: Crops) -> list[tuple[Tensor, Tensor]]:
    return [crops[n] for n in range(len(crops))]


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_what_a_crop_is() -> None:
    raw, labels = numbered()
    for image, target in items(Crops(raw, labels, training(), WILD)):
        assert image.shape == (1, 3, 8, 8)
        assert image.dtype == torch.float32
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
        assert target.shape == (3, 8, 8)
        assert target.dtype == torch.int64


def test_a_crop_without_augmentation_is_a_piece_of_the_volume() -> None:
    raw, labels = numbered()
    for image, target in items(Crops(raw, labels, training(steps=10), STILL)):
        z, y, x = (int(n) for n in np.unravel_index(int(target[0, 0, 0]) - 1, SHAPE))
        piece = (slice(z, z + 3), slice(y, y + 8), slice(x, x + 8))
        np.testing.assert_array_equal(target, labels[piece].astype(np.int64))
        np.testing.assert_array_equal(image[0], raw[piece] / np.float32(65535))


def test_crops_reach_every_corner() -> None:
    raw, labels = numbered()
    seen = set()
    for _, target in items(Crops(raw, labels, training(steps=200, crop=(5, 18, 22)), STILL)):
        seen |= {int(target[0, 0, 0]), int(target[-1, -1, -1])}
    assert {1, int(np.prod(SHAPE))} <= seen


@pytest.mark.parametrize("augmentation", [MOVING, MOVING.model_copy(update={"misalign": 0.0})])
def test_raw_and_labels_move_together(augmentation: AugmentConfig) -> None:
    raw, labels = numbered()
    for image, target in items(Crops(raw, labels, training(steps=30), augmentation)):
        np.testing.assert_array_equal(np.rint(image[0].numpy() * 65535), target)
        assert len(target.unique()) == target.numel()


def test_the_same_seed_and_index_give_the_same_crop() -> None:
    raw, labels = numbered()
    first, again = Crops(raw, labels, training(), WILD), Crops(raw, labels, training(), WILD)
    np.random.seed(0)  # noqa: NPY002 - nothing here may depend on it
    torch.manual_seed(5)
    backwards = [again[n] for n in reversed(range(len(again)))][::-1]
    assert same(items(first), backwards)
    assert not same(items(first), items(Crops(raw, labels, training(seed=5), WILD)))
    assert not same([first[0]], [first[1]])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
def test_the_number_of_workers_changes_nothing() -> None:
    raw, labels = numbered()
    alone, helped = (
        [tuple(batch) for batch in loader(Crops(raw, labels, training(workers=n), WILD), 0)] for n in (0, 2)
    )
    assert len(alone) == 5
    assert same(alone, helped)  # type: ignore[arg-type]


def test_a_resumed_loader_goes_on_where_an_unbroken_one_would() -> None:
    raw, labels = numbered()
    crops = Crops(raw, labels, training(), WILD)
    whole, rest = ([tuple(batch) for batch in loader(crops, step)] for step in (0, 3))
    assert whole[0][0].shape == (2, 1, 3, 8, 8)
    assert same(whole[3:], rest)  # type: ignore[arg-type]
    assert same([whole[2]], [tuple(torch.stack(part) for part in zip(crops[4], crops[5], strict=True))])  # type: ignore[list-item]


def test_ranks_share_the_crops_without_overlap() -> None:
    raw, labels = numbered()
    crops = Crops(raw, labels, training(), STILL)
    orders = [list(loader(crops, 1, rank=rank, ranks=3).sampler) for rank in range(3)]
    assert sorted(n for order in orders for n in order) == list(range(6, 30))
    assert orders[1][:2] == [8, 9]


def test_crops_do_not_write_into_the_volume() -> None:
    raw, labels = numbered()
    before = raw.copy(), labels.copy()
    crops = Crops(raw, labels, training(widen_borders=True), WILD)
    for image, target in items(crops):
        image.zero_()
        target.zero_()
    np.testing.assert_array_equal(raw, before[0])
    np.testing.assert_array_equal(labels, before[1])
    np.testing.assert_array_equal(crops.source.labels(Box.of_shape(SHAPE)), before[1].astype(np.int64))


def test_borders_are_widened_after_augmentation() -> None:
    raw, _ = numbered()
    labels = np.random.default_rng(0).integers(1, 3, SHAPE).repeat(4, 1)[:, : SHAPE[1]].astype(np.uint64)
    plain = items(Crops(raw, labels, training(), MOVING))
    for (_, target), (_, widened) in zip(
        plain, items(Crops(raw, labels, training(widen_borders=True), MOVING)), strict=True
    ):
        assert torch.equal(widened, widen_borders(target))
    assert any(
        bool((target == 0).any()) for _, target in items(Crops(raw, labels, training(widen_borders=True), MOVING))
    )


def test_large_ids_stay_distinct() -> None:
    raw, labels = numbered()
    labels = labels + np.uint64(2**63 - 100)
    _, target = Crops(raw, labels, training(), STILL)[0]
    assert len(target.unique()) == target.numel()
    assert set(target.flatten().tolist()) <= set(as_label_tensor(labels).flatten().tolist())


def test_a_crop_must_fit() -> None:
    raw, labels = numbered()
    assert Crops(raw, labels, training(crop=SHAPE), WILD)[0][1].shape == SHAPE
    for crop in ((7, 20, 24), (6, 21, 24), (6, 20, 25)):
        with pytest.raises(ShapeError, match=r"student\.training\.crop: .* found a training volume of \[6, 20, 24\]"):
            Crops(raw, labels, training(crop=crop), WILD)


def test_the_window_has_its_margin_where_the_volume_has_room() -> None:
    raw, labels = numbered()
    big, known = raw.repeat(4, 1).repeat(4, 2), labels.repeat(4, 1).repeat(4, 2)
    margins = set()
    for index in range(60):
        window = Crops(big, known, training(steps=60), WILD).window(index)
        margin = window.plan.margin
        margins.add(margin)
        assert window.origin == margin
        assert window.raw.shape == (3, 8 + 2 * margin[0], 8 + 2 * margin[1])
        assert window.labels is not None
        assert window.labels.shape == window.raw.shape
    assert len(margins) > 5


def test_a_window_takes_what_a_small_volume_has() -> None:
    raw, labels = numbered()
    for index in range(20):
        window = Crops(raw, labels, training(crop=(6, 16, 16), steps=20), WILD).window(index)
        assert window.labels is not None
        corner = np.unravel_index(int(window.labels[0, 0, 0]) - 1, SHAPE)
        for axis, size in ((1, 20), (2, 24)):
            margin, origin = window.plan.margin[axis - 1], window.origin[axis - 1]
            start = int(corner[axis]) + origin
            assert 0 <= start <= size - 16
            assert origin == min(start, margin)
            assert int(corner[axis]) + window.raw.shape[axis] == min(size, start + 16 + margin)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("known", [True, False])
def test_augmented_where_the_networks_are_trained_batches_are_the_same(workers: int, known: bool) -> None:
    raw, labels = numbered()
    there = WILD.model_copy(update={"device": "train"})
    by_workers, here = (
        [
            tuple(batch)
            for batch in batches(
                Crops(raw, labels if known else None, training(workers=workers, widen_borders=True), augmentation),
                2,
                torch.device("cpu"),
            )
        ]
        for augmentation in (WILD, there)
    )
    assert len(here) == 3
    assert same(by_workers, here)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("place", ["worker", "train"])
def test_workers_start_before_the_first_batch_is_asked_for(place: Literal["worker", "train"]) -> None:
    raw, labels = numbered()
    crops = Crops(raw, labels, training(workers=1), WILD.model_copy(update={"device": place}))
    before = set(multiprocessing.active_children())
    waiting = iter(batches(crops, 0, torch.device("cpu")))
    assert len(set(multiprocessing.active_children()) - before) == 1
    assert len(list(waiting)) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_augments_like_a_worker() -> None:
    raw, labels = numbered()
    there = WILD.model_copy(update={"device": "train"})
    here = loader(Crops(raw, labels, training(), WILD), 0)
    for (image, target), (wanted, known) in zip(
        batches(Crops(raw, labels, training(), there), 0, torch.device("cuda")), here, strict=True
    ):
        assert image.is_cuda
        assert target.is_cuda
        torch.testing.assert_close(image.cpu(), wanted, atol=1e-3, rtol=0)
        assert float((target.cpu() != known).float().mean()) < 0.01  # places half-way between two voxels


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], np.uint16), [0, 0.2, 1]),
        (np.array([0, 0.2, 1], np.float64), [0, 0.2, 1]),
        (np.array([0, 0.25, 1], np.float16), [0, 0.25, 1]),
    ],
)
def test_grey_values_become_unit_range(raw: NDArray[Any], wanted: list[float]) -> None:
    found = as_unit_range(raw)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int32", "bool", "complex64"])
def test_other_grey_values_are_refused(dtype: str) -> None:
    with pytest.raises(ShapeError, match=f"raw: found {dtype}, expected uint8"):
        as_unit_range(np.zeros(3, dtype))


def test_crops_of_a_volume_without_labels_are_those_of_one_with_them() -> None:
    raw, labels = numbered()
    known = items(Crops(raw, labels, training(), WILD))
    for (image, none), (wanted, target) in zip(items(Crops(raw, None, training(), WILD)), known, strict=True):
        assert torch.equal(image, wanted)
        assert none.shape == target.shape
        assert not none.any()


def every_third(step: int) -> bool:
    """Steps 2, 5, 8, ... are without labels."""
    return step % 3 == 2


def mixed(setting: TrainingConfig, ranks: int = 1, augmentation: AugmentConfig = STILL) -> MixedCrops:
    """The numbered volume and two of even grey, 0.25 and, four times as large, 0.5."""
    raw, labels = numbered()
    small, large = np.full((3, 8, 8), 0.25, np.float32), np.full((12, 8, 8), 0.5, np.float32)
    others = [Crops(volume, None, setting, augmentation) for volume in (small, large)]
    return MixedCrops(Crops(raw, labels, setting, augmentation), others, every_third, ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_whole_steps_are_without_labels(ranks: int) -> None:
    setting = training(steps=60)
    crops, labelled = mixed(setting, ranks), Crops(*numbered(), setting, STILL)
    greys = []
    for rank in range(ranks):
        for step, (image, target) in enumerate(loader(crops, 0, rank=rank, ranks=ranks)):
            assert len(image) == len(target) == 2
            if every_third(step):
                assert not target.any()
                greys += [float(one.mean()) for one in image]
            else:
                at = [(step * ranks + rank) * 2 + item for item in (0, 1)]
                assert torch.equal(image, torch.stack([labelled[n][0] for n in at]))
                assert torch.equal(target, torch.stack([labelled[n][1] for n in at]))
    assert set(greys) == {0.25, 0.5}
    assert greys.count(0.5) > 2 * greys.count(0.25)  # drawn by size


def test_mixed_crops_go_on_where_they_were_with_any_number_of_workers() -> None:
    whole = list(loader(mixed(training(steps=7), augmentation=WILD), 0))
    later = list(loader(mixed(training(steps=7, workers=1), augmentation=WILD), 4))
    for (image, target), (again, labels) in zip(whole[4:], later, strict=True):
        assert torch.equal(image, again)
        assert torch.equal(target, labels)
