"""`distill convert`: published checkpoints to weights files of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from distill.checkpoint import Published, load_module, read_published, write_tensors
from distill.config import PUBLISHED_DECODER, StudentNetwork, TeacherConfig
from distill.errors import CheckpointError
from distill.recipes.models import build_decoder, build_student, build_teacher
from distill.recipes.outputs import check_place

_RESOLUTION = (30.0, 6.0, 6.0)  # nm, of the mouse cortex volumes that the AGQ paper trains on


@dataclass(frozen=True)
class Converted:
    """What was found in a published checkpoint."""

    method: str
    kind: str
    tensors: int
    unplaced: list[str]


def convert(checkpoint: Path, out: Path) -> Converted:
    """Convert a published AGQ or CAD checkpoint.

    Args:
        checkpoint: pickle with tensors (or safetensors) under the published names.
        out: .safetensors to write.

    Raises:
        CheckpointError: of another architecture, naming the first mismatch; or unreadable.
        SourceError: nothing can be written at `out`.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"--out: found {out}, expected a name that ends in .safetensors")
    check_place(out)
    found = read_published(checkpoint)
    notes = {"published": checkpoint.name, "method": found.method}
    if found.method == "cad":
        network = StudentNetwork(kind="cad", width=16, embedding=16)
        load_module(build_student(network), _part(found, "student"), str(checkpoint))
        write_tensors(out, "student", found.tensors, network.model_dump(mode="json"), notes)
        return Converted("CAD student", "student", len(found.tensors), found.unplaced)
    config = TeacherConfig.model_validate({"decoder": PUBLISHED_DECODER, "loss": {"multi_offset": 0.0}})
    load_module(build_teacher(config), _part(found, "teacher"), str(checkpoint))
    load_module(build_decoder(config.decoder, config.fused, _RESOLUTION), _part(found, "decoder"), str(checkpoint))
    values = {**config.model_dump(mode="json"), "resolution": list(_RESOLUTION)}
    write_tensors(out, "teacher", found.tensors, values, notes)
    return Converted("AGQ teacher", "teacher", len(found.tensors), found.unplaced)


def _part(found: Published, name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in found.tensors.items() if key.startswith(f"{name}.")}
