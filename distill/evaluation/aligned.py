"""Two volumes on one voxel grid, read block by block by one or several processes."""

from __future__ import annotations

import itertools
import math
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Triple
from distill.core.notes import note
from distill.io.volume import Volume, on_grid, part, voxel_shift

BLOCK_VOXELS = 2**22  # limits the size of a block; a larger chunk of the file is read as a whole
_AHEAD = 2  # blocks per worker that are waiting or done

OnBlock = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Aligned:
    """A volume positioned inside its ground truth.

    Attributes:
        found: the volume to score.
        truth: ground truth, of the same size or larger.
        shift: voxel of `truth` at the position of voxel (0, 0, 0) of `found`.
    """

    found: Volume
    truth: Volume
    shift: Triple

    @property
    def box(self) -> Box:
        """Return the position of `found`, in voxels of `truth`."""
        return self.found.box.shift(self.shift)

    def labels(self, box: Box) -> NDArray[np.uint64]:
        """Read the ground truth of a box in voxels of `found`."""
        return self.truth.read(box.shift(self.shift))


def align(found: Volume, truth: Volume) -> Aligned:
    """Position a volume inside its ground truth.

    Raises:
        ShapeError: part of a voxel between them, or no voxel in common.
    """
    found, truth = overlapping(found, truth)
    return Aligned(found, truth, voxel_shift(found, truth))


def overlapping(found: Volume, truth: Volume) -> tuple[Volume, Volume]:
    """Bring ground truth onto a volume's voxel grid, and the volume to where ground truth is.

    What is left out of either is reported.

    Args:
        found: what is judged.
        truth: ground truth, of voxels of any size, or sections.

    Returns:
        The part of the volume that the other one covers, and the other one on its grid.

    Raises:
        ShapeError: part of a voxel between them, or no voxel in common.
    """
    other = on_grid(truth, found)
    if other is not truth:
        theirs, own = (" x ".join(f"{n:g}" for n in one.resolution) for one in (truth, found))
        note(f"{truth.source}: voxels of {theirs} nm are compared at the centres of those of {found.source}, {own} nm")
    shift = voxel_shift(found, other)
    box = found.box.shift(shift)
    shared = other.box.intersect(box)
    if not shared.voxels:
        raise ShapeError(
            f"{found.source}: covers voxels {box.start} to {box.stop} (z, y, x) of {other.source}, which has "
            f"{other.size}; they share no voxel, expected their offsets (nm) to fit"
        )
    if shared == box:
        return found, other
    inside = shared.relative_to(shift)
    share = 100 * shared.voxels / box.voxels
    note(
        f"{found.source}: {share:.3g} % of it lies in {truth.source}, only voxels {inside.start} to {inside.stop} "
        "(z, y, x) are used"
    )
    return part(found, inside), other


def chunk_blocks(volume: Volume) -> list[Box]:
    """Cover a volume with blocks of whole chunks of its file, so that no chunk is read or decompressed twice.

    Args:
        volume: chunked or not; without chunks, blocks are whole rows, then whole sections.

    Returns:
        Boxes in z, y, x order, of `BLOCK_VOXELS` voxels at most, channels counted, or of one chunk.
    """
    extent = block_extent(volume)
    steps = [
        [(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(volume.size, extent, strict=True)
    ]
    return [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z, y, x in itertools.product(*steps)]


def block_extent(volume: Volume) -> Triple:
    """Return the extent of the blocks of `chunk_blocks`, except those clipped at the far borders."""
    chunks = (1, 1, 1) if volume.chunks is None else volume.chunks[-3:]
    extent = [min(chunk, size) for chunk, size in zip(chunks, volume.size, strict=True)]
    for axis in (2, 1, 0):
        times = max(1, BLOCK_VOXELS // (math.prod(extent) * (volume.channels or 1)))
        extent[axis] = min(volume.size[axis], extent[axis] * times)
    return extent[0], extent[1], extent[2]


def over_blocks(
    work: Callable[[Box], T], blocks: Sequence[Box], workers: int = 1, on_block: OnBlock = lambda done, total: None
) -> Generator[T, None, None]:
    """Apply `work` to every block, and iterate over the results in order; closing it ends the workers.

    Args:
        work: must be picklable, with picklable results, for several workers.
        blocks: the blocks.
        workers: number of processes; 1 = this process.
        on_block: called with the number of blocks done and their total.

    Raises:
        DistillError: fewer than one worker, or a worker died; and what `work` raises.
    """
    if workers < 1:
        raise DistillError(f"--workers: found {workers}, expected at least 1")
    if workers == 1 or len(blocks) < 2:
        for done, block in enumerate(blocks, 1):
            yield work(block)
            on_block(done, len(blocks))
        return
    count = min(workers, len(blocks))
    # Ctrl-C reaches the whole group; this process ends the workers.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=signal.signal, initargs=quiet)
    try:
        waiting: deque[Future[T]] = deque()
        left = iter(blocks)
        for done in range(1, len(blocks) + 1):
            waiting.extend(pool.submit(work, block) for block in itertools.islice(left, _AHEAD * count - len(waiting)))
            yield waiting.popleft().result()
            on_block(done, len(blocks))
    except BrokenProcessPool:
        raise DistillError(
            f"--workers: one of {count} worker processes died, expected all to finish; with too little memory, "
            "take fewer"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):  # nobody needs the blocks that they are computing
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
