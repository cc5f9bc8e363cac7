"""Options that several commands have in common, and their parsing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.core.errors import DistillError
from distill.core.hardware import PRECISIONS, check_precision

if TYPE_CHECKING:
    from distill.core.hardware import Chosen
    from distill.inference.options import Options, Runtime


Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Precision = Annotated[str, typer.Option(help=f"{', '.join(PRECISIONS)}; auto is what the device computes fast")]
Backend = Annotated[
    str, typer.Option(help="of the student: auto (the fastest here), eager, compile, openvino or onnxruntime")
]
Resolution = Annotated[str | None, typer.Option(metavar="Z,Y,X", help="nm per voxel, for files without one")]
Sections = Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="only these sections, LAST excluded")]
Normalise = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="of grey values, section by section: none, percentile, mean-std or local; default: the model's own",
    ),
]
Invert = Annotated[bool, typer.Option("--invert", help="exchange dark and bright, for sections with bright membranes")]
Rescale = Annotated[
    bool,
    typer.Option("--rescale", help="resample sections to the model's pixels; results are on the source's own"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what exists")]
Merge = Annotated[
    float | None,
    typer.Option(help="merge above this mean affinity (waterz: below this score); default: the model's own"),
]

Thresholds = Annotated[
    Path | None, typer.Option(metavar="FILE", help="take --merge from what distill sweep chose for this method")
]


def merge_of(merge: float | None, thresholds: Path | None, method: str) -> float | None:
    """Return the merge threshold given directly or by a file; None = the model's own."""
    from distill.inference.thresholds import threshold_of

    if thresholds is None:
        return merge
    if merge is not None:
        raise DistillError("--thresholds: found --merge beside it, expected one of them")
    return threshold_of(thresholds, method)


def run_options(
    sections: str | None,
    resolution: str | None,
    merge: float | None,
    device: str,
    precision: str,
    overwrite: bool,
    backend: str,
    normalise: str | None,
    invert: bool,
    rescale: bool,
) -> Options:
    from distill.core.geometry import parse_numbers
    from distill.inference.grey_values import GreyValues
    from distill.inference.options import Options

    check_precision(precision)
    if merge is not None and not 0 <= merge <= 1:
        raise DistillError(f"--merge: found {merge}, expected a number from 0 to 1")
    nm = parse_numbers(resolution, "--resolution") if resolution else None
    grey = GreyValues(normalise, invert)
    return Options(nm, section_range(sections), device, precision, merge, overwrite, backend, grey, rescale)


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
