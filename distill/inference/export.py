"""Export the student's two streaming functions to other runtimes, verified against torch (`distill export`)."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from distill.core.atomic import new_folder, sweep_leftovers
from distill.core.choices import ExportFormat
from distill.core.errors import DistillError
from distill.core.hardware import FULL, INT8
from distill.core.normalisation import Normaliser
from distill.core.version import VERSION
from distill.data.phantom import make_phantom
from distill.inference.calibration import from_volume
from distill.io.volume import open_grey
from distill.io.writers.ours import check_only
from distill.io.writers.output import check_folder
from distill.models.load import TrainedStudent, load_student
from students.backends.export import (
    EXPORT_FORMATS,
    Difference,
    ExportedFunction,
    compare,
    functions,
    save_named,
    write,
)
from students.backends.functions import ExtraOutputs
from students.backends.int8 import quantised

Functions = tuple[ExportedFunction, ExportedFunction]

_RECORD = "export.json"
_TOLERANCE = 1e-3  # float32 on another runtime
_NM = (30.0, 6.0, 6.0)  # not used: only grey values are read


@dataclass(frozen=True)
class Exported:
    """Files written, and their difference from torch; for int8, of affinities from float32 on average."""

    files: tuple[Path, ...]
    stride: int
    sample: str
    difference: Difference | float


def export(model: str, form: str, out: Path, sample: str | None, *, overwrite: bool, precision: str = FULL) -> Exported:
    """Export `encode` and `decode` of a trained student, and compare them with torch.

    Args:
        model: run folder or weights file of a student.
        form: `onnx`, `openvino` or `torch`.
        out: folder to create.
        sample: source of at least two sections to compare on; a phantom by default.
        overwrite: replace the folder if it exists.
        precision: `32-true`, or `int8` with the format `openvino`, whose ranges are taken from the sample.

    Raises:
        DistillError: the format is unknown, a package is missing, there are fewer than two sections, or results differ
            from torch's.
    """
    if form not in EXPORT_FORMATS:
        raise DistillError(f"--format: found {form!r}, expected {', '.join(EXPORT_FORMATS)}")
    chosen = cast(ExportFormat, form)
    _check_int8(precision, form, sample)
    check_folder(out)
    if os.path.lexists(out):
        if not overwrite:
            raise DistillError(f"{out}: exists already; expected a new path, or --overwrite")
        if not (out / _RECORD).is_file():
            raise DistillError(f"{out}: is not an export; it will not be overwritten")
        check_only(out, out, lambda file: Path(file).stem in ("encode", "decode", "export"))
    trained = load_student(model, torch.device("cpu"))
    sweep_leftovers(out)
    difference: Difference | float
    try:
        with new_folder(out) as made:
            both = functions(trained.student)
            if precision == INT8 and sample is not None:
                difference, about_int8 = _write_int8(trained, both, sample, made)
            else:
                difference, about_int8 = _write_exact(trained, both, chosen, sample, made), {}
            about = {
                "version": VERSION,
                "model": trained.path.name,
                "format": form,
                "stride": trained.student.stride,
                "input": "sections normalised as below, float32 in [0, 1]",
                "normalisation": trained.normaliser.normalisation.model_dump(mode="json"),
                **about_int8,
                "functions": {one.name: {"inputs": one.inputs, "outputs": one.outputs} for one in both},
            }
            (made / _RECORD).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DistillError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Exported(tuple(sorted(out.iterdir())), trained.student.stride, sample or "a phantom", difference)


def _check_int8(precision: str, form: str, sample: str | None) -> None:
    if precision not in (FULL, INT8):
        raise DistillError(f"--precision: found {precision!r}, expected {FULL} or {INT8}")
    if precision == INT8 and form != "openvino":
        raise DistillError(f"--precision: found {INT8} with --format {form}, expected --format openvino")
    if precision == INT8 and sample is None:
        raise DistillError(f"--precision {INT8}: found no --sample, expected a volume whose sections give the ranges")


def _write_exact(
    trained: TrainedStudent, both: Functions, form: ExportFormat, sample: str | None, folder: Path
) -> Difference:
    """Write both functions in float32, and return their difference from torch.

    Raises:
        DistillError: it is too large.
    """
    pair = sample_sections(sample, trained.normaliser)
    encode, decode = (write(trained.student, one, form, folder) for one in both)
    difference = compare(trained.student, encode, decode, form, pair)
    if not max(difference.maps, difference.embedding) <= _TOLERANCE:
        raise DistillError(
            f"{form}: differs from torch by {difference.maps:.2g} (maps) and {difference.embedding:.2g} "
            f"(embedding), expected at most {_TOLERANCE:g}"
        )
    return difference


def _write_int8(trained: TrainedStudent, both: Functions, sample: str, folder: Path) -> tuple[float, dict[str, object]]:
    """Write both functions quantised to int8, and return their difference from float32 and what is recorded of them."""
    volume = open_grey(sample, resolution=_NM)
    calibration, _ = from_volume(volume, 0, volume.size[0], trained.normaliser, trained.form.stride)
    found = quantised(trained.network, ExtraOutputs(current=True), calibration)
    for one, model in zip(both, (found.models.encode, found.models.decode), strict=True):
        save_named(model, one, folder)
    return found.difference, {"precision": INT8, "calibration": calibration.digest, "difference": found.difference}


def sample_sections(sample: str | None, normaliser: Normaliser) -> NDArray[np.float32]:
    """Return two normalised sections (2, H, W) of a source; of a phantom by default.

    Raises:
        DistillError: it has fewer.
    """
    if sample is None:
        return normaliser.sections(make_phantom((2, 256, 320), _NM, seed=0).raw)
    volume = open_grey(sample, resolution=_NM)
    sections = list(itertools.islice(volume.sections(0, min(2, volume.size[0])), 2))
    if len(sections) < 2:
        raise DistillError(f"{sample}: found {len(sections)} section, expected at least 2")
    return normaliser.sections(np.stack(sections))
