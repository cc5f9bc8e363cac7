"""Convert published checkpoints to weights files of this package (`distill convert`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.config import PUBLISHED_DECODER, StudentNetwork, TeacherConfig
from distill.core.errors import CheckpointError
from distill.core.geometry import Nanometres
from distill.io.volume import checked_resolution
from distill.io.writers.output import check_place
from distill.models.build import build_decoder, build_student, build_teacher
from distill.models.checkpoint import Published, load_module, read_published, write_tensors

_RESOLUTION = (30.0, 6.0, 6.0)  # nm, of the mouse cortex volumes that the AGQ paper trains on
_NAMED: dict[str, Nanometres] = {  # nm, of the volumes that the names of the published CAD checkpoints begin with
    "ac34": (30.0, 6.0, 6.0),
    "cremi": (40.0, 4.0, 4.0),
}


@dataclass(frozen=True)
class Converted:
    """Description of a converted checkpoint."""

    method: str
    kind: str
    tensors: int
    unplaced: list[str]
    resolution: Nanometres | None


def convert(checkpoint: Path, out: Path, resolution: Nanometres | None = None) -> Converted:
    """Convert a published AGQ or CAD checkpoint.

    Args:
        checkpoint: pickle with tensors (or safetensors) under the published names.
        out: .safetensors to write.
        resolution: z, y, x in nm of its training data; by default that of the AGQ paper, and for CAD that of the volume
            in the published file's name, AC34 or CREMI.

    Raises:
        CheckpointError: it belongs to another architecture, with the first mismatch named, or is unreadable.
        SourceError: `out` cannot be written.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"--out: found {out}, expected a name that ends in .safetensors")
    check_place(out)
    found = read_published(checkpoint)
    notes: dict[str, Any] = {"published": checkpoint.name, "method": found.method}
    nm = resolution or (_RESOLUTION if found.method == "agq" else _named(checkpoint))
    if nm is not None:
        notes["resolution"] = list(checked_resolution("--resolution", nm))
    if found.method == "cad":
        network = StudentNetwork(kind="cad", width=16, embedding=16)
        load_module(build_student(network), _part(found, "student"), str(checkpoint))
        write_tensors(out, "student", found.tensors, network.model_dump(mode="json"), notes)
        return Converted("CAD student", "student", len(found.tensors), found.unplaced, nm)
    config = TeacherConfig.model_validate({"decoder": PUBLISHED_DECODER, "loss": {"multi_offset": 0.0}})
    load_module(build_teacher(config), _part(found, "teacher"), str(checkpoint))
    used = nm or _RESOLUTION
    load_module(build_decoder(config.decoder, config.fused, used), _part(found, "decoder"), str(checkpoint))
    values = {**config.model_dump(mode="json"), "resolution": list(used)}
    write_tensors(out, "teacher", found.tensors, values, notes)
    return Converted("AGQ teacher", "teacher", len(found.tensors), found.unplaced, used)


def _named(checkpoint: Path) -> Nanometres | None:
    """Return the voxel size of the volumes that a published file is named after."""
    name = re.sub(r"[^a-z0-9]", "", checkpoint.stem.lower())
    return next((nm for start, nm in _NAMED.items() if name.startswith(start)), None)


def _part(found: Published, name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in found.tensors.items() if key.startswith(f"{name}.")}
