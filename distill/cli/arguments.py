"""Options of `distill stream` and `distill segment`, in the groups that their functions take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from distill.cli.options import (
    BackendOption,
    Device,
    Invert,
    Merge,
    MergeOfMethod,
    Normalise,
    Overwrite,
    PrecisionOption,
    Rescale,
    Resolution,
    SectionsOption,
    Thresholds,
    merge_of,
    section_range,
)
from distill.core.choices import Method, Network, StoredEmbedding, StreamMethod, check_merge
from distill.core.errors import DistillError
from distill.core.hardware import AUTO

if TYPE_CHECKING:
    from distill.core.geometry import Nanometres, Triple
    from distill.inference.blockwise.options import Blocking
    from distill.inference.options import Options
    from distill.inference.streaming.sections.watch import Following


class RunKeywords(TypedDict):
    """Keywords that `distill.python.running.stream` and `segment` have in common."""

    sections: tuple[int, int | None] | None
    resolution: Nanometres | None
    normalise: str | None
    invert: bool
    rescale: bool
    device: str
    precision: str
    backend: str
    overwrite: bool


@dataclass(frozen=True)
class RunArguments:
    """What stream and segment have in common; see `distill.python.running`."""

    sections: SectionsOption = None
    resolution: Resolution = None
    thresholds: Thresholds = None
    device: Device = "auto"
    precision: PrecisionOption = AUTO
    backend: BackendOption = "auto"
    normalise: Normalise = None
    invert: Invert = False
    rescale: Rescale = False
    overwrite: Overwrite = False

    def merge(self, method: str, merge: float | None) -> float | None:
        """Return the merge threshold, given directly or by a thresholds file; None = the model's own.

        Raises:
            DistillError: both are given, or the number is not from 0 to 1.
        """
        return check_merge(merge_of(merge, self.thresholds, method), "--merge")

    def nm(self) -> Nanometres | None:
        """Return the voxel size given by the user.

        Raises:
            DistillError: it is not three numbers.
        """
        from distill.core.geometry import parse_numbers

        return parse_numbers(self.resolution, "--resolution") if self.resolution else None

    def keywords(self) -> RunKeywords:
        """Return the keywords of `stream` and `segment`, checked.

        Raises:
            DistillError: sections or voxel size that cannot be read.
        """
        return {
            "resolution": self.nm(),
            "sections": section_range(self.sections),
            "normalise": self.normalise,
            "invert": self.invert,
            "rescale": self.rescale,
            "device": self.device,
            "precision": self.precision,
            "backend": self.backend,
            "overwrite": self.overwrite,
        }

    def options(self, method: str, merge: float | None) -> Options:
        """Return the options of an estimate.

        Args:
            method: of segmentation, by which a thresholds file is read.
            merge: threshold given directly.

        Raises:
            DistillError: options that exclude each other, or a wrong value.
        """
        from distill.inference.grey_values import GreyValues
        from distill.inference.options import Options

        return Options(
            resolution=self.nm(),
            sections=section_range(self.sections),
            device=self.device,
            precision=self.precision,
            merge=self.merge(method, merge),
            overwrite=self.overwrite,
            backend=self.backend,
            grey=GreyValues(self.normalise, self.invert),
            rescale=self.rescale,
        )


@dataclass(frozen=True)
class StreamArguments:
    """What a stream computes and how it continues; see `distill.python.running.stream`."""

    no_segment: Annotated[bool, typer.Option("--no-segment", help="write affinities only")] = False
    method: Annotated[
        StreamMethod | None,
        typer.Option(help="flood merges supervoxels by their contacts; query uses the query decoder; default: flood"),
    ] = None
    merge: Merge = None
    offset: Annotated[
        list[str] | None,
        typer.Option(metavar="Z,Y,X", help="also write affinities of this offset, in voxels; may be repeated"),
    ] = None
    embedding: Annotated[StoredEmbedding, typer.Option(help="also write the embedding, in this type")] = "none"
    on_bad: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]POLICY",
            help="treatment of bad sections: fail, skip (leave the section empty and pair no sections across it) or "
            "bridge (pair its neighbours); KIND is missing, corrupt, size, blank, saturated, contrast or position; "
            "default: fail",
        ),
    ] = None
    tile: Annotated[
        int | None,
        typer.Option(min=64, help="process sections that exceed the memory in tiles of this side, in pixels"),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="continue the stream in OUT")] = False
    part: Annotated[
        str | None,
        typer.Option("--range", metavar="I/N", help="process part I of N (from 0); run distill finish after all parts"),
    ] = None

    def offsets(self) -> tuple[Triple, ...]:
        """Return the further offsets.

        Raises:
            DistillError: one is not three whole numbers.
        """
        from distill.core.geometry import parse_triple

        return tuple(parse_triple(text, "--offset") for text in self.offset or [])


@dataclass(frozen=True)
class FollowArguments:
    """How a growing folder is followed; see `distill.inference.streaming.sections.watch.Following`."""

    follow: Annotated[
        bool, typer.Option("--follow", help="watch the folder SOURCE and process sections as they arrive")
    ] = False
    until: Annotated[int | None, typer.Option(min=1, help="--follow: end after this many sections")] = None
    idle: Annotated[float | None, typer.Option(help="--follow: end after this many seconds without a new file")] = None
    end_marker: Annotated[str, typer.Option(help="--follow: name of the file in the folder that ends the stream")] = (
        "END"
    )
    settle: Annotated[float, typer.Option(help="--follow: seconds without change before a file is read")] = 2.0
    patience: Annotated[
        float,
        typer.Option(
            help="--follow: seconds until an unreadable file counts as corrupt, and a skipped number as missing"
        ),
    ] = 60.0

    def following(self) -> Following | None:
        """Return the options of the function; None without `--follow`.

        Raises:
            DistillError: an option of `--follow` without it.
        """
        from distill.inference.streaming.sections.watch import Following

        if self.follow:
            return Following(self.settle, self.patience, self.until, self.idle, self.end_marker)
        if self.until is not None or self.idle is not None:
            raise DistillError("--until, --idle: found no --follow, expected it as well")
        return None


@dataclass(frozen=True)
class BlockArguments:
    """How a volume is segmented in blocks; see `distill.python.running.segment`."""

    network: Annotated[Network, typer.Option(help="network of MODEL that predicts affinities")] = "student"
    method: Annotated[
        Method,
        typer.Option(
            help="flood merges supervoxels by their contacts; query uses the query decoder; waterz is watershed and "
            "agglomeration; mws is the mutex watershed; fragments merges watershed fragments by a trained transformer"
        ),
    ] = "flood"
    merge: MergeOfMethod = None
    block: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="largest block, in voxels; default: the decoder's depth, 1024 x 1024"),
    ] = None
    workers: Annotated[int, typer.Option(min=0, help="processes on this machine; 0 or 1: this process")] = 0
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="host:port or file of a Dask scheduler, instead of --workers"),
    ] = None
    retries: Annotated[int, typer.Option(min=0, help="attempts to repeat a block that fails")] = 2
    on_bad: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]POLICY",
            help="treatment of bad sections: fail, skip (leave the section empty and end objects there), bridge (leave "
            "it empty and join its neighbours) or use (segment it like any other); KIND is corrupt, blank, saturated, "
            "contrast or position; default: blank=bridge, others use",
        ),
    ] = None
    orientations: Annotated[
        int | None,
        typer.Option(
            help="--network teacher: average affinities over this many flips and transposes of a block, 1, 2, 4, 8 or "
            "16; takes as many times as long; default: 1, or as the model says"
        ),
    ] = None
    fragments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="--method fragments: the transformer that distill fragments has trained"),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="continue the segmentation in OUT")] = False

    def extent(self) -> Triple | None:
        """Return the largest block.

        Raises:
            DistillError: options that exclude each other, or a wrong value.
        """
        from distill.core.geometry import parse_triple

        if self.scheduler is not None and self.workers:
            raise DistillError("--scheduler: found --workers as well, expected one of them")
        return None if self.block is None else parse_triple(self.block, "--block")

    def blocking(self) -> Blocking:
        """Return the options of an estimate.

        Raises:
            DistillError: as `extent`.
        """
        from distill.inference.blockwise.options import Blocking

        return Blocking(
            network=self.network,
            method=self.method,
            block=self.extent(),
            workers=self.workers,
            scheduler=self.scheduler,
            retries=self.retries,
            resume=self.resume,
            on_bad=tuple(self.on_bad or ()),
            orientations=self.orientations,
            fragments=self.fragments,
        )


Model = Annotated[str, typer.Option(help="run folder, weights file or name of a bundled model")]
StoreOut = Annotated[Path, typer.Option(metavar="OUT.zarr", help="Zarr store to write")]


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise an error for `--resume` with `--overwrite`."""
    if resume and overwrite:
        raise DistillError("--resume: found --overwrite as well, expected one of them")
