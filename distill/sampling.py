"""Training crops: drawn at random from a labelled volume, the same ones for the same seed and step.

Item i of the dataset depends on (seed, i) alone, so a run that is resumed at a step sees what an unbroken run would
have seen, whatever the number of workers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.affinity import as_label_tensor, widen_borders
from distill.augment import Plan, apply, draw
from distill.config import AugmentConfig, TrainingConfig
from distill.errors import ShapeError
from distill.normalisation import UNCHANGED, Correction, Normaliser

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Window:
    """A crop before its augmentation: what is cut from the volume, and the plan of what is to be done to it.

    Attributes:
        raw: (D, h, w) float32 in [0, 1], the crop with the plan's margin as far as the volume reaches.
        labels: (D, h, w) int64; None for a volume without.
        plan: drawn already.
        origin: where the crop would begin without the augmentation, y and x.
    """

    raw: Tensor
    labels: Tensor | None
    plan: Plan
    origin: tuple[int, int]

    def to(self, device: torch.device) -> Window:
        """The same window on a device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, raw=self.raw.to(device, non_blocking=True), labels=labels)

    def pin_memory(self) -> Window:
        """In memory from which a GPU copies without waiting; called by the data loader."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, raw=self.raw.pin_memory(), labels=labels)


class Crops(Dataset[Batch]):
    """Augmented random crops of one volume; index = position in the run."""

    def __init__(
        self,
        raw: NDArray[Any],
        labels: NDArray[Any] | None,
        training: TrainingConfig,
        augmentation: AugmentConfig,
        normaliser: Normaliser = UNCHANGED,
    ) -> None:
        """Hold the training part in memory.

        Args:
            raw: (D, H, W) whole sections, grey values as recorded.
            labels: (D, H, W) integers; None for a volume without labels, whose items carry zeros.
            training: crop size, seed, border widening, steps, batch.
            augmentation: see `distill.augment`.
            normaliser: brings the sections to the network's scale.

        Raises:
            ShapeError: the crop does not fit into the volume.
        """
        if any(n > size for n, size in zip(training.crop, raw.shape, strict=True)):
            raise ShapeError(
                f"student.training.crop: {list(training.crop)}, found a training volume of {list(raw.shape)} (z, y, x)"
            )
        self.raw, self.training, self.augmentation = raw, training, augmentation
        self.corrections: list[Correction] = [normaliser.of(section) for section in raw]
        self.labels = None if labels is None else as_label_tensor(labels).numpy()

    def __len__(self) -> int:
        return self.training.steps * self.training.batch

    def window(self, index: int) -> Window:
        """Cut a crop and draw its augmentation.

        The window lies inside the volume wherever it can: only a volume too small for crop and margin makes the
        augmentation mirror what is missing.
        """
        rng = np.random.default_rng((self.training.seed, 1, index))
        crop = self.training.crop
        plan = draw(crop, self.augmentation, rng)
        cut, origin = [], []
        for size, length, margin in zip(self.raw.shape, crop, (0, *plan.margin), strict=True):
            spare = margin if length + 2 * margin <= size else 0
            start = int(rng.integers(spare, size - length - spare + 1))
            first = max(0, start - margin)
            cut.append(slice(first, min(size, start + length + margin)))
            origin.append(start - first)
        at = tuple(cut)
        labels = None if self.labels is None else torch.from_numpy(np.array(self.labels[at]))
        corner = at[1].start, at[2].start
        raw = [self.corrections[z].apply(self.raw[z, at[1], at[2]], corner) for z in range(at[0].start, at[0].stop)]
        return Window(torch.from_numpy(np.stack(raw)), labels, plan, (origin[1], origin[2]))

    def __getitem__(self, index: int) -> Batch:
        """Raw (1, D, H, W) float32 in [0, 1] and labels (D, H, W) int64, all 0 for a volume without."""
        return self.finish(self.window(index))

    def finish(self, window: Window) -> Batch:
        """Carry the augmentation of a window out, on the device where it lies; the item it gives."""
        raw, labels = apply(window.raw, window.labels, window.plan, window.origin)
        if labels is None:
            return raw[None], torch.zeros(raw.shape, dtype=torch.int64, device=raw.device)
        return raw[None], widen_borders(labels) if self.training.widen_borders else labels


class _Windows(Dataset[Window]):
    """What data workers make where the augmentation is carried out later."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Window:
        return self.crops.window(index)


class MixedCrops(Crops):
    """Crops of a labelled volume and, at some steps, of volumes without labels; index = position in the run."""

    def __init__(
        self,
        labelled: Crops,
        others: Sequence[Crops],
        unlabelled_at: Callable[[int], bool],
        *,
        ranks: int = 1,
    ) -> None:
        """Mix volumes that are in memory already.

        Args:
            labelled: of the steps with labels.
            others: at least one, without labels, with the same settings.
            unlabelled_at: whether a step is of the others; the whole batch is then.
            ranks: processes that share every step.
        """
        self.__dict__.update(labelled.__dict__)
        self.others, self.unlabelled_at, self.per_step = others, unlabelled_at, labelled.training.batch * ranks
        self.share = np.array([crops.raw.size for crops in others], dtype=np.float64)

    def window(self, index: int) -> Window:
        """As `Crops`; without labels a volume is drawn by its size."""
        if not self.unlabelled_at(index // self.per_step):
            return super().window(index)
        rng = np.random.default_rng((self.training.seed, 3, index))
        return self.others[int(rng.choice(len(self.others), p=self.share / self.share.sum()))].window(index)


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


class _FinishedHere:
    """Batches of windows whose augmentation is carried out by the process that asks for them."""

    def __init__(self, crops: Crops, windows: DataLoader[list[Window]], device: torch.device) -> None:
        self.crops, self.windows, self.device = crops, windows, device

    def __iter__(self) -> Iterator[Batch]:
        return map(self._finish, iter(self.windows))  # the workers start now, not when the first batch is wanted

    def _finish(self, windows: list[Window]) -> Batch:
        raw, labels = zip(*(self.crops.finish(window.to(self.device)) for window in windows), strict=True)
        return torch.stack(raw), torch.stack(labels)


def batches(crops: Crops, first_step: int, device: torch.device, *, rank: int = 0, ranks: int = 1) -> Iterable[Batch]:
    """Batches from `first_step` on, augmented where `student.augment.device` says; what they hold is the same.

    Args:
        crops: the items.
        first_step: steps done already.
        device: of the training; with `augment.device: train` batches come from there, else from the CPU.
        rank: this process.
        ranks: how many share every step's batch.
    """
    if crops.augmentation.device == "worker":
        return loader(crops, first_step, rank=rank, ranks=ranks)
    windows = _load(_Windows(crops), crops.training, first_step, rank, ranks, collate=list)
    return _FinishedHere(crops, windows, device)


def loader(crops: Crops, first_step: int, *, rank: int = 0, ranks: int = 1) -> DataLoader[Batch]:
    """Batches from `first_step` on, augmented by the workers; with several ranks each gets its share of every batch."""
    return _load(crops, crops.training, first_step, rank, ranks)


def _load(
    items: Dataset[Any],
    training: TrainingConfig,
    first_step: int,
    rank: int,
    ranks: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    order = [
        (step * ranks + rank) * training.batch + item
        for step in range(first_step, training.steps)
        for item in range(training.batch)
    ]
    return DataLoader(
        items,
        generator=torch.Generator(),  # so that making a loader leaves torch's own random state alone
        worker_init_fn=_leave_signals_to_the_loop,
        collate_fn=collate,
        batch_size=training.batch,
        sampler=order,
        num_workers=training.workers,
        prefetch_factor=4 if training.workers else None,
        pin_memory=torch.cuda.is_available(),
    )
