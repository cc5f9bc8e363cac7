"""Options that several commands have in common, and their parsing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.core.choices import BackendName, NormalisationKind, PresetName
from distill.core.errors import DistillError
from distill.core.hardware import Precision as PrecisionName

if TYPE_CHECKING:
    from distill.core.hardware import Chosen
    from distill.inference.options import Runtime


Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="where networks run; auto: the GPU if there is one")
]
PrecisionOption = Annotated[
    PrecisionName, typer.Option(help="precision of the networks; auto: the fastest of the device")
]
BackendOption = Annotated[BackendName, typer.Option(help="runtime of the student; auto: the fastest on this machine")]
PresetOption = Annotated[PresetName, typer.Option(help="convention of the scores, see docs/reference/scores.md")]
Resolution = Annotated[
    str | None, typer.Option(metavar="Z,Y,X", help="voxel size in nm, for files that do not state it")
]
SectionsOption = Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="only these sections, LAST excluded")]
Normalise = Annotated[
    NormalisationKind | None,
    typer.Option(help="normalisation of the grey values of each section; default: as the model was trained"),
]
Invert = Annotated[bool, typer.Option("--invert", help="exchange dark and bright, for sections with bright membranes")]
Rescale = Annotated[
    bool,
    typer.Option("--rescale", help="resample sections to the pixel size of the model; results keep that of the source"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an existing result")]
Merge = Annotated[
    float | None,
    typer.Option(help="merge objects whose contact exceeds this mean affinity; default: the model's own"),
]
MergeOfMethod = Annotated[
    float | None,
    typer.Option(
        help="flood, query: merge objects whose contact exceeds this mean affinity; waterz: below this score; mws: its "
        "bias; fragments: above this score; default: the model's own"
    ),
]
Thresholds = Annotated[
    Path | None, typer.Option(metavar="FILE", help="take --merge from this file, which distill sweep has written")
]


def merge_of(merge: float | None, thresholds: Path | None, method: str) -> float | None:
    """Return the merge threshold given directly or by a file; None = the model's own."""
    from distill.inference.thresholds import threshold_from_file

    if thresholds is None:
        return merge
    if merge is not None:
        raise DistillError("--thresholds: found --merge as well, expected one of them")
    return threshold_from_file(thresholds, method)


def runtime_of(device: str, precision: str) -> tuple[Runtime, Chosen]:
    """Return device and precision of a command without a store."""
    from distill.core.hardware import choose
    from distill.inference.options import Runtime
    from distill.models.load import pick_device

    chosen = choose(precision, pick_device(device))
    return Runtime(pick_device(device), chosen.precision), chosen


def section_range(sections: str | None) -> tuple[int, int | None] | None:
    if sections is None:
        return None
    first, colon, last = sections.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(first or 0), int(last) if last else None
    except ValueError:
        raise DistillError(f"--sections: found {sections!r}, expected FIRST:LAST such as 64:80") from None


def ids(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",")) if text else ()
    except ValueError:
        raise DistillError(f"--neuron: found {text!r}, expected ids such as 12 or 12,40") from None


def free_out(path: Path | None, overwrite: bool) -> None:
    """Refuse to replace a file that exists, before long work begins.

    Raises:
        DistillError: it exists and `--overwrite` is not given, or nothing can be written there.
    """
    from distill.io.writers.target import check_file

    if path is not None:
        check_file(path, overwrite)
