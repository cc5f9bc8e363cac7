"""Training crops: drawn at random from a labelled volume, the same ones for the same seed and step.

Item i of the dataset depends on (seed, i) alone, so a run that is resumed at a step sees what an unbroken run would
have seen, whatever the number of workers.
"""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.affinity import as_label_tensor, widen_borders
from distill.augment import augment, misaligned_crop
from distill.config import AugmentConfig, TrainingConfig
from distill.errors import ShapeError


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented random crops of one volume; index = position in the run."""

    def __init__(
        self, raw: NDArray[Any], labels: NDArray[Any] | None, training: TrainingConfig, augmentation: AugmentConfig
    ) -> None:
        """Hold the training part in memory.

        Args:
            raw: (D, H, W) uint8, or float in [0, 1].
            labels: (D, H, W) integers; None for a volume without labels, whose items carry zeros.
            training: crop size, seed, border widening, steps, batch.
            augmentation: see `distill.augment`.

        Raises:
            ShapeError: the crop and the misalignment margin do not fit into the volume.
        """
        margin = augmentation.misalign_pixels if augmentation.misalign else 0
        need = (training.crop[0], training.crop[1] + 2 * margin, training.crop[2] + 2 * margin)
        if any(n > size for n, size in zip(need, raw.shape, strict=True)):
            raise ShapeError(
                f"student.training.crop: {list(training.crop)} with a misalignment margin of {margin} needs "
                f"{list(need)}, found a training volume of {list(raw.shape)} (z, y, x)"
            )
        self.raw, self.need, self.margin = raw, need, margin
        self.labels = None if labels is None else as_label_tensor(labels).numpy()
        self.training, self.augmentation = training, augmentation

    def __len__(self) -> int:
        return self.training.steps * self.training.batch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Raw (1, D, H, W) float32 in [0, 1] and labels (D, H, W) int64, all 0 for a volume without."""
        rng = np.random.default_rng((self.training.seed, 1, index))
        start = [int(rng.integers(0, size - n + 1)) for n, size in zip(self.need, self.raw.shape, strict=True)]
        at = tuple(slice(s, s + n) for s, n in zip(start, self.need, strict=True))
        raw, labels = as_unit_range(self.raw[at]), None if self.labels is None else self.labels[at]
        raw, labels = misaligned_crop(raw, labels, self.margin, rng, self.augmentation.misalign)
        raw, labels = augment(raw, labels, self.augmentation, rng)
        image = torch.from_numpy(np.ascontiguousarray(raw)).unsqueeze(0)
        if labels is None:
            return image, torch.zeros(image.shape[1:], dtype=torch.int64)
        target = torch.from_numpy(np.ascontiguousarray(labels))
        return image, widen_borders(target) if self.training.widen_borders else target


def as_unit_range(raw: NDArray[Any]) -> NDArray[np.float32]:
    """Grey values in [0, 1]: integers divided by their type's maximum, floats as they are.

    Raises:
        ShapeError: a signed or other type.
    """
    if raw.dtype in (np.uint8, np.uint16):
        return np.asarray(raw, dtype=np.float32) / np.float32(np.iinfo(raw.dtype).max)
    if raw.dtype.kind == "f":
        return np.asarray(raw, dtype=np.float32)
    raise ShapeError(f"raw: found {raw.dtype}, expected uint8, uint16 or float in [0, 1]")


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; the loop stops cleanly and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader(crops: Crops, first_step: int, *, rank: int = 0, ranks: int = 1) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches from `first_step` on; with several ranks each gets its share of every step's batch."""
    training = crops.training
    order = [
        (step * ranks + rank) * training.batch + item
        for step in range(first_step, training.steps)
        for item in range(training.batch)
    ]
    return DataLoader(
        crops,
        generator=torch.Generator(),  # so that making a loader leaves torch's own random state alone
        worker_init_fn=_leave_signals_to_the_loop,
        batch_size=training.batch,
        sampler=order,
        num_workers=training.workers,
        persistent_workers=training.workers > 0,
        prefetch_factor=4 if training.workers else None,
        pin_memory=torch.cuda.is_available(),
    )
