"""Read the header of a weights file: what it holds and how it was made, without loading torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from distill.core.errors import CheckpointError
from distill.core.reasons import json_kind, reason, shown

NetworkKind = Literal["teacher", "student", "fragments"]
WEIGHTS_FORMAT = "affinity-distill 1"
_BUNDLED = Path(__file__).parent / "bundled"  # one folder per model, as written by `distill bundle`


@dataclass(frozen=True)
class WeightsHeader:
    """What a weights file says of itself."""

    kind: NetworkKind
    config: dict[str, Any]  # teacher: TeacherConfig; student: its own keys and `decoder`
    notes: dict[str, Any]  # origin, step, scores, thresholds
    shapes: dict[str, tuple[int, ...]]  # of the tensors by name

    @property
    def values(self) -> int:
        """Count the numbers of all tensors."""
        return sum(map(math.prod, self.shapes.values()))


def read_header(path: Path) -> WeightsHeader:
    """Read the header of a weights file of this package.

    Raises:
        CheckpointError: no such file, not safetensors, or not written by this package.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({reason(error)}); a published checkpoint first goes through `distill "
            "convert`"
        ) from None
    kind = metadata.get("kind")
    if metadata.get("format") != WEIGHTS_FORMAT:
        raise CheckpointError(f"{path}: format {metadata.get('format')!r}, expected {WEIGHTS_FORMAT!r}")
    if kind not in ("teacher", "student", "fragments"):
        raise CheckpointError(f"{path}: found kind {shown(kind)}, expected teacher, student or fragments")
    return WeightsHeader(kind, _object(path, metadata, "config"), _object(path, metadata, "notes"), shapes)


def _object(path: Path, metadata: dict[str, str], key: str) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {key} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: found {key} of {json_kind(found)}, expected a JSON object")
    return found


def bundled_models() -> dict[str, Path]:
    """Return the folders of the bundled models by name."""
    found = sorted(_BUNDLED.glob("*/student.safetensors"))
    return {file.parent.name: file.parent for file in found}
