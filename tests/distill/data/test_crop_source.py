"""Crops from files are the crops from memory, bit for bit, whatever the format and the number of workers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.config import AUGMENTATIONS, AugmentConfig, TrainingConfig
from distill.core.errors import SourceError
from distill.core.geometry import Box
from distill.core.known import UNKNOWN, UNKNOWN_ID
from distill.data.crop_source import ArraySource, CropSource, FileSource
from distill.data.crops import Crops, Items, PooledCrops
from distill.data.loading import batches
from distill.io.truth import Truth, open_truth
from distill.io.volume import Volume, open_labels, open_volume, volume_from_array
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import create_zarr

NM = (30.0, 6.0, 6.0)
SIZE = (8, 20, 24)
TRAIN = Box((1, 2, 0), (7, 20, 22))
STILL = AugmentConfig().only()
WILD = AugmentConfig(elastic_pixels=2, elastic_spacing=5, elastic_sections=2).only(*AUGMENTATIONS)
FORKS = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)


def training(**changes: Any) -> TrainingConfig:
    values = {"crop": (3, 8, 8), "steps": 4, "batch": 2, "seed": 4, "workers": 0, "widen_borders": False}
    return TrainingConfig(**{**values, **changes})


def arrays(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Grey noise and lumps of large ids."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 5, (4, 5, 6)).repeat(2, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)
    ids[ids == 4] = 2**63 + 7
    return rng.integers(0, 256, SIZE).astype(np.uint8), ids


def in_hdf5(folder: Path) -> tuple[Volume, Volume]:
    raw, ids = arrays()
    write_cremi(folder / "a.h5", raw=raw, labels=ids, resolution=NM)
    return open_volume(folder / "a.h5"), open_labels(folder / "a.h5")


def in_zarr(folder: Path) -> tuple[Volume, Volume]:
    for name, values in zip(("raw", "ids"), arrays(), strict=True):
        create_zarr(folder / "a.zarr", name, shape=SIZE, dtype=values.dtype, resolution=NM, offset=(0, 0, 0)).write(
            Box.of_shape(SIZE), values
        )
    return open_volume(folder / "a.zarr:raw"), open_labels(folder / "a.zarr:ids")


def in_npy(folder: Path) -> tuple[Volume, Volume]:
    for name, values in zip(("raw", "ids"), arrays(), strict=True):
        np.save(folder / f"{name}.npy", values)
    return open_volume(folder / "raw.npy", resolution=NM), open_labels(folder / "ids.npy", resolution=NM)


def source_of(volumes: tuple[Volume, Volume], **said: Any) -> FileSource:
    image, truth = open_truth(*volumes, ignores=False, **said)
    return FileSource(image, truth, TRAIN)


def all_batches(items: Items, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [tuple(batch) for batch in batches(items, first, torch.device("cpu"))]  # type: ignore[misc]


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) > 0 and all(
        torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("write", [in_hdf5, in_npy])
def test_files_memory_and_arrays_give_the_same_crops(
    write: Callable[[Path], tuple[Volume, Volume]], tmp_path: Path
) -> None:
    raw, ids = arrays()
    file = source_of(write(tmp_path))
    sources: list[CropSource] = [file, file.held(), pickle.loads(pickle.dumps(file))]
    wanted = all_batches(Crops(raw[TRAIN.slices], ids[TRAIN.slices], training(), WILD))
    for source in sources:
        assert (source.shape, source.start, source.partial) == (TRAIN.shape, TRAIN.start, False)
        assert same(all_batches(Crops.of(source, training(), WILD)), wanted)


@FORKS
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_open_their_own_files(workers: int, tmp_path: Path) -> None:
    """The file is open in this process, too, when the workers are forked."""
    source = source_of(in_hdf5(tmp_path))
    alone = all_batches(Crops.of(source, training(), WILD))
    assert same(all_batches(Crops.of(source, training(workers=workers), WILD)), alone)
    assert same(all_batches(Crops.of(source, training(workers=workers), WILD), 2), alone[2:])
    assert same(all_batches(Crops.of(source, training(), WILD)), alone)


def test_readers_with_threads_are_not_forked(tmp_path: Path) -> None:
    volumes = in_zarr(tmp_path)
    source = source_of(volumes)
    assert source.threaded
    alone = all_batches(Crops.of(source, training(steps=2), STILL))
    assert same(all_batches(Crops.of(source, training(steps=2, workers=1), STILL)), alone)
    raw, ids = arrays()
    assert same(alone, all_batches(Crops(raw[TRAIN.slices], ids[TRAIN.slices], training(steps=2), STILL)))
    assert not source.held().threaded


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_one_line(workers: int, tmp_path: Path) -> None:
    source = source_of(in_npy(tmp_path))
    (tmp_path / "raw.npy").write_bytes(b"no array")
    with pytest.raises(SourceError) as error:
        all_batches(Crops.of(source, training(workers=workers), STILL))
    assert str(error.value).startswith(f"{tmp_path}/raw.npy: cannot be read: ")
    assert "\n" not in str(error.value)


def test_memory_that_holding_takes(tmp_path: Path) -> None:
    source = source_of(in_hdf5(tmp_path))
    held = source.held()
    assert held.numbers is not None
    assert source.held_bytes == held.image.nbytes + held.numbers.nbytes == TRAIN.voxels * 5
    assert FileSource(source.files[0], None, TRAIN).held_bytes == TRAIN.voxels


def counted_source(raw: NDArray[Any], truth: Truth) -> FileSource:
    return FileSource(volume_from_array(raw, NM), truth, Box.of_shape(raw.shape))


def test_crops_are_drawn_where_something_is_known() -> None:
    """One corner of a large volume is labelled; nearly all crops would miss it."""
    raw = np.zeros((6, 64, 64), np.uint8)
    ids = np.full(raw.shape, 9, np.uint64)
    mask = np.zeros(raw.shape, np.uint8)
    mask[:, :24, :24] = 1
    _, truth = open_truth(*(volume_from_array(one, NM) for one in (raw, ids, mask)), ignores=False)
    crops = Crops.of(counted_source(raw, truth), training(steps=40), STILL)
    reported = [bool((crops[n][1] == 9).any()) for n in range(len(crops))]
    assert sum(reported) > 60  # of 80; by chance some 15
    again = Crops.of(counted_source(raw, truth), training(steps=40), STILL)
    assert all(torch.equal(crops[n][1], again[n][1]) for n in (7, 3, 79))
    for n in range(20):
        labels = crops[n][1]
        assert set(labels.unique().tolist()) <= {9, UNKNOWN}


def test_raw_and_unknown_labels_move_together() -> None:
    rng = np.random.default_rng(3)
    raw = np.where(rng.random(SIZE) < 0.5, 0, 255).astype(np.uint8)
    ids = np.where(raw == 0, UNKNOWN_ID, np.uint64(5))
    moving = STILL.model_copy(update={"flips": True, "transposes": True, "misalign": 0.7, "misalign_pixels": 2})
    crops = Crops(raw, ids, training(steps=10, widen_borders=True), moving)
    for n in range(len(crops)):
        image, labels = crops[n]
        assert torch.equal(labels == UNKNOWN, image[0] == 0)


def numbered(value: int, shape: tuple[int, int, int]) -> Crops:
    grey = np.full(shape, value, np.uint8)
    return Crops(grey, np.full(shape, value, np.uint64), training(steps=200), STILL)


def test_volumes_are_drawn_by_weight_and_the_same_again() -> None:
    volumes = [numbered(1, (3, 8, 8)), numbered(2, (9, 9, 9)), numbered(3, (3, 8, 8))]
    pooled = PooledCrops(volumes, [1.0, 2.0, 5.0])
    drawn = [int(pooled[n][1][0, 0, 0]) for n in range(len(pooled))]
    shares = [drawn.count(k) / len(drawn) for k in (1, 2, 3)]
    np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 5 / 8], atol=0.07)
    again = PooledCrops(volumes, [0.5, 1.0, 2.5])
    assert [int(again[n][1][0, 0, 0]) for n in (399, 5, 17)] == [drawn[n] for n in (399, 5, 17)]
    for n in range(30):
        image, labels = pooled[n]
        own = volumes[drawn[n] - 1][n]
        assert torch.equal(image, own[0])
        assert torch.equal(labels, own[1])


def test_an_array_says_whether_it_has_unknown_voxels() -> None:
    raw, ids = arrays()
    assert not ArraySource(raw, ids).partial
    ids[0, 0, 0] = UNKNOWN_ID
    assert ArraySource(raw, ids).partial


def test_a_file_stays_open_and_is_closed_after_holding(tmp_path: Path) -> None:
    source = source_of(in_hdf5(tmp_path))
    source.raw(Box.of_shape((1, 1, 1)))
    with pytest.raises(OSError, match="unable to"):
        h5py.File(tmp_path / "a.h5", "w")
    source.held()
    h5py.File(tmp_path / "a.h5", "w").close()
