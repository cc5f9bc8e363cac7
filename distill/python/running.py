"""`stream` and `segment`: networks over sections and volumes that are larger than memory.

Sources are named as on the command line: a path, with `:dataset` inside containers. Results are written where `out`
says, and are the same as those of the command, which calls these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.core.choices import Method, Network, StoredEmbedding, StreamMethod, check_merge
from distill.core.errors import DistillError
from distill.core.geometry import Nanometres, Triple
from distill.core.hardware import AUTO

if TYPE_CHECKING:
    from distill.inference.options import Callbacks, Options
    from distill.inference.streaming.sections.watch import Following
    from distill.python.stored import StoredBlocks, StoredStream

Where = str | Path
Progress = Callable[[int, int | None], None]  # sections, blocks or steps done, and their number if it is known


def stream(
    source: Where,
    model: Where,
    out: Where,
    *,
    method: StreamMethod | None = None,
    merge: float | None = None,
    segments: bool = True,
    offsets: Sequence[Triple] = (),
    embedding: StoredEmbedding = "none",
    on_bad: Sequence[str] = (),
    tile: int | None = None,
    part: tuple[int, int] = (0, 1),
    following: Following | None = None,
    sections: tuple[int, int | None] | None = None,
    resolution: Nanometres | None = None,
    normalise: str | None = None,
    invert: bool = False,
    rescale: bool = False,
    device: str = "auto",
    precision: str = AUTO,
    backend: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | Callbacks | None = None,
) -> StoredStream:
    """Run the student over a stream of sections and write affinities and neurons to a Zarr store.

    Args:
        source: volume, folder or glob of section images.
        model: bundled model, run folder or weights file.
        out: store to write.
        method: `flood` or `query`; None = `flood`, or that of the store that is continued.
        merge: threshold; None = the model's own.
        segments: write neurons, not affinities alone.
        offsets: further affinities to write, (z, y, x) in voxels.
        embedding: also write the embedding in this type: `none`, `uint8` or `float16`.
        on_bad: policies for bad sections, `POLICY` or `KIND=POLICY` with `fail`, `skip` or `bridge`.
        tile: side of tiles in pixels, for sections that exceed the memory.
        part: number of this process from 0, and number of processes that share the stream.
        following: how a folder is watched while sections arrive; None = the sections that are there.
        sections: first section and one past the last.
        resolution: voxel size z, y, x in nm, for sources that do not state it.
        normalise: kind of normalisation instead of the model's own.
        invert: dark and bright are exchanged.
        rescale: compute at the pixel size of the model.
        device: `auto`, `cpu` or `cuda`.
        precision: see `distill.core.hardware`.
        backend: of the student: `auto`, `eager`, `compile`, `openvino` or `onnxruntime`.
        resume: continue the store.
        overwrite: replace the store.
        progress: called with the sections done and their number; `Callbacks` also receive lines for the user.

    Returns:
        Summary of the run, with a picture in notebooks; the results are in the store.

    Raises:
        DistillError: wrong options, bad input, a bad section under `fail`, or the disk refuses.

    Example:
        >>> found = distill.stream("sample.h5:volumes/raw", "ac4", "stream.zarr", sections=(0, 2), device="cpu")
        >>> found.sections, found.finished
        (2, True)
    """
    from distill.core.affinity import NEAREST
    from distill.inference.streaming.options import Streaming
    from distill.inference.streaming.plan import StreamPart
    from distill.inference.streaming.stream import stream as run

    if not 0 <= part[0] < part[1]:
        raise DistillError(f"part: found {part}, expected (I, N) with I from 0 to N - 1, such as (0, 4)")
    options = _options(
        merge,
        sections=sections,
        resolution=resolution,
        normalise=normalise,
        invert=invert,
        rescale=rescale,
        device=device,
        precision=precision,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
    )
    streaming = Streaming(
        segment=segments,
        method=method,
        offsets=(*NEAREST, *offsets),
        embedding=embedding,
        on_bad=tuple(on_bad),
        resume=resume,
        following=following,
        part=StreamPart(*part),
        tile=tile,
    )
    from distill.python.stored import StoredStream

    found = run(str(source), str(model), Path(out), options, streaming, _callbacks(progress))
    return StoredStream(**vars(found), out=Path(out))


def segment(
    source: Where,
    model: Where,
    out: Where,
    *,
    network: Network = "student",
    method: Method = "flood",
    merge: float | None = None,
    block: Triple | None = None,
    workers: int = 0,
    scheduler: str | None = None,
    retries: int = 2,
    on_bad: Sequence[str] = (),
    orientations: int | None = None,
    fragments: Where | None = None,
    sections: tuple[int, int | None] | None = None,
    resolution: Nanometres | None = None,
    normalise: str | None = None,
    invert: bool = False,
    rescale: bool = False,
    device: str = "auto",
    precision: str = AUTO,
    backend: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | Callbacks | None = None,
) -> StoredBlocks:
    """Segment a volume of any size in blocks, and write neurons and affinities to a Zarr store.

    Arguments that are not listed are those of `stream`.

    Args:
        source: volume.
        model: bundled model, run folder or weights file.
        out: store to write.
        network: which of the model's two networks predicts affinities.
        method: `flood`, `query`, `waterz`, `mws` or `fragments`.
        merge: threshold; None = the model's own, or the method's default.
        block: largest block z, y, x in voxels; None = the decoder's depth, 1024 x 1024.
        workers: processes; 0 or 1 = this one. Scripts that ask for more need `if __name__ == "__main__":`.
        scheduler: host:port or file of a Dask scheduler, instead of `workers`.
        retries: attempts to repeat a block that fails.
        on_bad: policies for bad sections, with `fail`, `skip`, `bridge` or `use`.
        orientations: flips and transposes of a block whose affinities the teacher averages; None = as the model says.
        fragments: file of `distill fragments`, for the method `fragments`.
        sections: first section and one past the last.
        resolution: voxel size in nm.
        normalise: kind of normalisation.
        invert: dark and bright are exchanged.
        rescale: compute at the pixel size of the model.
        device: where to compute.
        precision: of the networks.
        backend: of the student.
        resume: continue the store.
        overwrite: replace the store.
        progress: called with the blocks done and their number; `Callbacks` also receive lines for the user.

    Returns:
        Summary of the run, with a picture in notebooks; the results are in the store.

    Raises:
        DistillError: wrong options, bad input, a block that fails repeatedly, or the disk refuses.

    Example:
        >>> found = distill.segment("sample.h5:volumes/raw", "ac4", "blocks.zarr", sections=(0, 2), device="cpu")
        >>> distill.open_labels("blocks.zarr:segmentation").size
        (2, 384, 384)
    """
    from distill.inference.blockwise.options import Blocking
    from distill.inference.blockwise.segment import segment as run

    if scheduler is not None and workers:
        raise DistillError("scheduler: found workers as well, expected one of them")
    options = _options(
        merge,
        sections=sections,
        resolution=resolution,
        normalise=normalise,
        invert=invert,
        rescale=rescale,
        device=device,
        precision=precision,
        backend=backend,
        resume=resume,
        overwrite=overwrite,
    )
    blocking = Blocking(
        block=block,
        workers=workers,
        scheduler=scheduler,
        retries=retries,
        resume=resume,
        network=network,
        method=method,
        on_bad=tuple(on_bad),
        orientations=orientations,
        fragments=None if fragments is None else Path(fragments),
    )
    from distill.python.stored import StoredBlocks

    found = run(str(source), str(model), Path(out), options, blocking, _callbacks(progress))
    return StoredBlocks(**vars(found), out=Path(out))


def _options(
    merge: float | None,
    *,
    sections: tuple[int, int | None] | None,
    resolution: Nanometres | None,
    normalise: str | None,
    invert: bool,
    rescale: bool,
    device: str,
    precision: str,
    backend: str,
    resume: bool,
    overwrite: bool,
) -> Options:
    """Return what stream and segment have in common, checked."""
    from distill.inference.grey_values import GreyValues
    from distill.inference.options import Options

    if resume and overwrite:
        raise DistillError("resume: found overwrite as well, expected one of them")
    return Options(
        resolution=resolution,
        sections=sections,
        device=device,
        precision=precision,
        merge=check_merge(merge),
        overwrite=overwrite,
        backend=backend,
        grey=GreyValues(normalise, invert),
        rescale=rescale,
    )


def _callbacks(progress: Progress | Callbacks | None) -> Callbacks:
    from distill.inference.options import SILENT, Callbacks

    if progress is None or isinstance(progress, Callbacks):
        return progress or SILENT
    return Callbacks(on_progress=lambda done, total, rate: progress(done, total))
