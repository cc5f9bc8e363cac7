"""Training crops, drawn at random from labelled volumes and reproducible by seed and step.

Item i of the dataset depends on (seed, i) only, so a resumed run sees the same crops as an uninterrupted one, for any
number of workers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from distill.config import AugmentConfig, TrainingConfig
from distill.core.affinity import widen_borders
from distill.core.errors import ShapeError, SourceError
from distill.core.geometry import Box, Triple
from distill.core.known import OTHER, UNKNOWN
from distill.core.normalisation import UNCHANGED, Normaliser
from distill.data.augmentation.augment import AugmentationPlan, apply, draw_plan
from distill.data.crop_source import ArraySource, CropSource, section_corrections

Batch = tuple[Tensor, Tensor]

_DRAWS, _LEAST_KNOWN = 16, 0.01  # positions tried for a crop, and the minimum fraction of known voxels


@dataclass(frozen=True, eq=False)
class Window:
    """A crop before augmentation: the window cut from the volume, and the augmentation plan.

    Attributes:
        raw: (D, h, w) float32 in [0, 1], the crop with the plan's margin, as far as the volume extends.
        labels: (D, h, w) int64; None for a volume without labels.
        plan: augmentation parameters, already drawn.
        origin: position y, x of the crop without augmentation.
    """

    raw: Tensor
    labels: Tensor | None
    plan: AugmentationPlan
    origin: tuple[int, int]

    def to(self, device: torch.device) -> Window:
        """Move the window to a device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, raw=self.raw.to(device, non_blocking=True), labels=labels)

    def pin_memory(self) -> Window:
        """Copy to pinned memory, from which a GPU copies asynchronously; called by the data loader."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, raw=self.raw.pin_memory(), labels=labels)


class Items(Dataset[Batch]):
    """Augmented crops; an item depends only on the seed and its index, the position in the run."""

    def __init__(self, training: TrainingConfig, augmentation: AugmentConfig, sources: Sequence[CropSource]) -> None:
        """Store the settings.

        Args:
            training: crop size, seed, border widening, steps, batch.
            augmentation: see `distill.data.augmentation.augment`.
            sources: sources of the windows.
        """
        self.training, self.augmentation, self.sources = training, augmentation, sources

    def __len__(self) -> int:
        return self.training.steps * self.training.batch

    def of_run(self, training: TrainingConfig, unlabelled_at: Callable[[int], bool]) -> Items:
        """Return the same crops for a run with another number of steps and other phases.

        Args:
            training: of that run.
            unlabelled_at: whether a step of that run uses volumes without labels.
        """
        other = copy.copy(self)
        other.training = training
        return other

    def window(self, index: int) -> Window:
        """Cut a crop and draw its augmentation."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        """Return raw (1, D, H, W) float32 in [0, 1] and labels (D, H, W) int64, all 0 for a volume without labels."""
        return self.finish(self.window(index))

    def finish(self, window: Window) -> Batch:
        """Apply the augmentation of a window on its device, and return the item."""
        raw, labels = apply(window.raw, window.labels, window.plan, window.origin)
        if labels is None:
            return raw[None], torch.zeros(raw.shape, dtype=torch.int64, device=raw.device)
        return raw[None], widen_borders(labels) if self.training.widen_borders else labels


class Crops(Items):
    """Crops of one volume."""

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
            labels: (D, H, W) integers (`distill.core.known`); None for a volume without labels, whose items contain
                zeros.
            training: crop size, seed, border widening, steps, batch.
            augmentation: see `distill.data.augmentation.augment`.
            normaliser: normalises the sections.

        Raises:
            ShapeError: the crop does not fit into the volume.
        """
        self._take(ArraySource(raw, labels), training, augmentation, normaliser)

    @classmethod
    def of(
        cls,
        source: CropSource,
        training: TrainingConfig,
        augmentation: AugmentConfig,
        normaliser: Normaliser = UNCHANGED,
    ) -> Crops:
        """Create crops of any source.

        Raises:
            ShapeError: the crop does not fit into the source.
        """
        crops = cls.__new__(cls)
        crops._take(source, training, augmentation, normaliser)
        return crops

    def _take(
        self, source: CropSource, training: TrainingConfig, augmentation: AugmentConfig, normaliser: Normaliser
    ) -> None:
        if any(n > size for n, size in zip(training.crop, source.shape, strict=True)):
            raise ShapeError(
                f"student.training.crop: {list(training.crop)}, found a training volume of {list(source.shape)} "
                "(z, y, x)"
            )
        super().__init__(training, augmentation, [source])
        self.source = source
        self.corrections = section_corrections(source, normaliser)

    def window(self, index: int) -> Window:
        """Cut a crop and draw its augmentation.

        The window lies inside the volume if possible; only for a volume too small for crop and margin is the missing
        part mirrored. A crop with almost no known labels is redrawn.
        """
        rng = np.random.default_rng((self.training.seed, 1, index))
        crop = self.training.crop
        plan = draw_plan(crop, self.augmentation, rng)
        for _ in range(_DRAWS if self.source.partial else 1):
            cut, origin = self._place(rng, plan)
            labels = self.source.labels(cut)
            if not self.source.partial or labels is None or _known_share(labels, origin, crop) >= _LEAST_KNOWN:
                break
        known = None if labels is None else torch.from_numpy(labels)
        return Window(torch.from_numpy(self.grey(self.source.raw(cut), cut.start)), known, plan, origin)

    def _place(self, rng: np.random.Generator, plan: AugmentationPlan) -> tuple[Box, tuple[int, int]]:
        """Return the position of a window in the source, and of the crop in the window."""
        start, stop, origin = [], [], []
        for size, length, margin in zip(self.source.shape, self.training.crop, (0, *plan.margin), strict=True):
            spare = margin if length + 2 * margin <= size else 0
            first = int(rng.integers(spare, size - length - spare + 1))
            start.append(max(0, first - margin))
            stop.append(min(size, first + length + margin))
            origin.append(first - start[-1])
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])), (origin[1], origin[2])

    def grey(self, raw: NDArray[Any], start: Triple) -> NDArray[np.float32]:
        """Normalise the grey values of a window.

        Args:
            raw: (D, h, w) as recorded.
            start: voxel of the source at which the window begins.
        """
        corner = start[1] + self.source.start[1], start[2] + self.source.start[2]
        try:
            return np.stack([self.corrections[start[0] + z].apply(one, corner) for z, one in enumerate(raw)])
        except ShapeError as error:
            volume = self.source.volume
            raise error if volume is None else SourceError(f"{volume.source}: {error}") from None


def _known_share(labels: NDArray[np.int64], origin: tuple[int, int], crop: Triple) -> float:
    """Return the fraction of a crop's voxels with known labels."""
    y, x = origin
    inside = labels[:, y : y + crop[1], x : x + crop[2]]
    return 1 - float(np.isin(inside, (UNKNOWN, OTHER)).mean())


class PooledCrops(Items):
    """Crops of several labelled volumes; the volume of each item is drawn by weight."""

    def __init__(self, volumes: Sequence[Crops], weights: Sequence[float]) -> None:
        """Pool volumes.

        Args:
            volumes: at least two, with the same settings.
            weights: one each, above 0; normalised by their sum.
        """
        super().__init__(volumes[0].training, volumes[0].augmentation, [crops.source for crops in volumes])
        self.volumes = volumes
        self.share = np.array(weights, dtype=np.float64) / np.sum(weights)

    def window(self, index: int) -> Window:
        """Cut a window from the volume drawn; see `Crops`."""
        rng = np.random.default_rng((self.training.seed, 4, index))
        return self.volumes[int(rng.choice(len(self.volumes), p=self.share))].window(index)


class MixedCrops(Items):
    """Crops of labelled volumes and, in some steps, of volumes without labels."""

    def __init__(
        self,
        labelled: Items,
        others: Sequence[Crops],
        unlabelled_at: Callable[[int], bool],
        *,
        ranks: int = 1,
    ) -> None:
        """Mix volumes.

        Args:
            labelled: of the steps with labels.
            others: at least one, without labels, with the same settings.
            unlabelled_at: whether the whole batch of a step comes from the others.
            ranks: number of processes that share every step.
        """
        sources = [*labelled.sources, *(crops.source for crops in others)]
        super().__init__(labelled.training, labelled.augmentation, sources)
        self.labelled, self.others = labelled, others
        self.unlabelled_at, self.per_step = unlabelled_at, labelled.training.batch * ranks
        self.share = np.array([math.prod(crops.source.shape) for crops in others], dtype=np.float64)

    def of_run(self, training: TrainingConfig, unlabelled_at: Callable[[int], bool]) -> Items:
        """Return the same crops for another run; see `Items.of_run`."""
        other = copy.copy(self)
        other.training, other.unlabelled_at = training, unlabelled_at
        return other

    def window(self, index: int) -> Window:
        """Cut a window; see `Crops`. Volumes without labels are drawn in proportion to their size."""
        if not self.unlabelled_at(index // self.per_step):
            return self.labelled.window(index)
        rng = np.random.default_rng((self.training.seed, 3, index))
        return self.others[int(rng.choice(len(self.others), p=self.share / self.share.sum()))].window(index)


def as_unit_range(raw: NDArray[Any]) -> NDArray[np.float32]:
    """Convert grey values to [0, 1]: integers divided by their type's maximum, floats unchanged.

    Raises:
        ShapeError: a signed or other type.
    """
    if raw.dtype in (np.uint8, np.uint16):
        return np.asarray(raw, dtype=np.float32) / np.float32(np.iinfo(raw.dtype).max)
    if raw.dtype.kind == "f":
        return np.asarray(raw, dtype=np.float32)
    raise ShapeError(f"raw: found {raw.dtype}, expected uint8, uint16 or float in [0, 1]")
