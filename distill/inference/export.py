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
from distill.core.normalisation import Normaliser
from distill.core.version import VERSION
from distill.data.phantom import make_phantom
from distill.io.volume import open_grey
from distill.io.writers.ours import check_only
from distill.io.writers.output import check_folder
from distill.models.load import load_student
from students.backends.export import EXPORT_FORMATS, Difference, compare, functions, write

_RECORD = "export.json"
_TOLERANCE = 1e-3  # float32 on another runtime
_NM = (30.0, 6.0, 6.0)  # not used: only grey values are read


@dataclass(frozen=True)
class Exported:
    """Files written, and their difference from torch."""

    files: tuple[Path, ...]
    stride: int
    sample: str
    difference: Difference


def export(model: str, form: str, out: Path, sample: str | None, *, overwrite: bool) -> Exported:
    """Export `encode` and `decode` of a trained student, and compare them with torch.

    Args:
        model: run folder or weights file of a student.
        form: `onnx`, `openvino` or `torch`.
        out: folder to create.
        sample: source of at least two sections to compare on; a phantom by default.
        overwrite: replace the folder if it exists.

    Raises:
        DistillError: the format is unknown, a package is missing, there are fewer than two sections, or results differ
            from torch's.
    """
    if form not in EXPORT_FORMATS:
        raise DistillError(f"--format: found {form!r}, expected {', '.join(EXPORT_FORMATS)}")
    chosen = cast(ExportFormat, form)
    check_folder(out)
    if os.path.lexists(out):
        if not overwrite:
            raise DistillError(f"{out}: exists already; expected a new path, or --overwrite")
        if not (out / _RECORD).is_file():
            raise DistillError(f"{out}: is not an export; it will not be overwritten")
        check_only(out, out, lambda file: Path(file).stem in ("encode", "decode", "export"))
    trained = load_student(model, torch.device("cpu"))
    pair = _sections(sample, trained.normaliser)
    sweep_leftovers(out)
    try:
        with new_folder(out) as made:
            both = functions(trained.student)
            encode, decode = (write(trained.student, one, chosen, made) for one in both)
            difference = compare(trained.student, encode, decode, chosen, pair)
            if not max(difference.maps, difference.embedding) <= _TOLERANCE:
                raise DistillError(
                    f"{form}: differs from torch by {difference.maps:.2g} (maps) and {difference.embedding:.2g} "
                    f"(embedding), expected at most {_TOLERANCE:g}"
                )
            about = {
                "version": VERSION,
                "model": trained.path.name,
                "format": form,
                "stride": trained.student.stride,
                "input": "sections normalised as below, float32 in [0, 1]",
                "normalisation": trained.normaliser.normalisation.model_dump(mode="json"),
                "functions": {one.name: {"inputs": one.inputs, "outputs": one.outputs} for one in both},
            }
            (made / _RECORD).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DistillError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Exported(tuple(sorted(out.iterdir())), trained.student.stride, sample or "a phantom", difference)


def _sections(sample: str | None, normaliser: Normaliser) -> NDArray[np.float32]:
    if sample is None:
        return normaliser.sections(make_phantom((2, 256, 320), _NM, seed=0).raw)
    volume = open_grey(sample, resolution=_NM)
    sections = list(itertools.islice(volume.sections(0, min(2, volume.size[0])), 2))
    if len(sections) < 2:
        raise DistillError(f"{sample}: found {len(sections)} section, expected at least 2")
    return normaliser.sections(np.stack(sections))
