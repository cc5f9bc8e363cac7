"""Load training crops in worker processes and finish them on the training device, in an order that resumes exactly."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from distill.core.errors import DistillError
from distill.core.signals import SIGNALS
from distill.data.crops import Batch, Items, Window

T = TypeVar("T")


class _Windows(Dataset[Window]):
    """Dataset of windows, for augmentation outside the data workers."""

    def __init__(self, crops: Items) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Window:
        return self.crops.window(index)


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach the whole process group: the loop stops cleanly and then ends its
    workers.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Given(Iterator[T]):
    """Items of a loader; an error of a worker is raised without the worker's traceback."""

    def __init__(self, found: Iterator[T]) -> None:
        self.found = found

    def __next__(self) -> T:
        try:
            return next(self.found)
        except DistillError as error:
            name = f"{type(error).__module__}.{type(error).__name__}: "
            plain = type(error)(str(error).strip().splitlines()[-1].removeprefix(name))
        # No reference may keep the loader alive: its workers end with it, and they ignore signals.
        self.found = iter(())
        raise plain


class _Batches:
    """Batches of a loader."""

    def __init__(self, batches: DataLoader[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return _Given(iter(self.batches))


class _FinishedHere:
    """Batches of windows that are augmented by the consuming process."""

    def __init__(self, crops: Items, windows: DataLoader[list[Window]], device: torch.device) -> None:
        self.crops, self.windows, self.device = crops, windows, device

    def __iter__(self) -> Iterator[Batch]:
        return map(self._finish, _Given(iter(self.windows)))  # start the workers now, not at the first batch

    def _finish(self, windows: list[Window]) -> Batch:
        raw, labels = zip(*(self.crops.finish(window.to(self.device)) for window in windows), strict=True)
        return torch.stack(raw), torch.stack(labels)


def batches(
    crops: Items,
    first_step: int,
    device: torch.device,
    *,
    rank: int = 0,
    ranks: int = 1,
    steps: Sequence[int] | None = None,
) -> Iterable[Batch]:
    """Iterate over batches from `first_step`, augmented as `student.augment.device` specifies, with the same content.

    Args:
        crops: the items.
        first_step: steps done already.
        device: of the training; with `augment.device: train`, batches are on this device, otherwise on the CPU.
        rank: this process.
        ranks: number of processes that share every step's batch.
        steps: step numbers in the required order; default: all from `first_step`.
    """
    wanted = range(first_step, crops.training.steps) if steps is None else steps
    if crops.augmentation.device == "worker":
        return _Batches(_load(crops, crops, wanted, rank, ranks))
    windows = _load(_Windows(crops), crops, wanted, rank, ranks, collate=list)
    return _FinishedHere(crops, windows, device)


def loader(crops: Items, first_step: int, *, rank: int = 0, ranks: int = 1) -> DataLoader[Batch]:
    """Load batches from `first_step`, augmented by the workers; with several ranks, each loads its part of every
    batch.
    """
    return _load(crops, crops, range(first_step, crops.training.steps), rank, ranks)


def _load(
    items: Dataset[Any],
    crops: Items,
    steps: Sequence[int],
    rank: int,
    ranks: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    training = crops.training
    threaded = training.workers > 0 and any(source.threaded for source in crops.sources)
    order = [(step * ranks + rank) * training.batch + item for step in steps for item in range(training.batch)]
    return DataLoader(
        items,
        generator=torch.Generator(),  # so that creating a loader does not change torch's random state
        worker_init_fn=_leave_signals_to_the_loop,
        collate_fn=collate,
        batch_size=training.batch,
        sampler=order,
        num_workers=training.workers,
        multiprocessing_context="spawn" if threaded else None,
        prefetch_factor=4 if training.workers else None,
        pin_memory=torch.cuda.is_available(),
    )
