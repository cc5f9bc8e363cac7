"""What stream and segment have in common: options, thresholds, what is checked before long work begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.errors import DistillError
from distill.geometry import Nanometres, of_another_shape

WATERZ_THRESHOLD = 0.5  # Liu et al., CVPR 2024
MUTEX_BIAS = 0.5  # affinity above which an edge attracts

Note = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What stream and segment have in common."""

    resolution: tuple[float, float, float] | None = None
    sections: tuple[int, int | None] | None = None
    device: str = "auto"
    precision: str = "bf16-mixed"
    merge: float | None = None  # None = the model's own, chosen on its validation part
    overwrite: bool = False
    backend: str = "auto"  # of the student, see `students.backend`


def merge_threshold(options: Options, notes: dict[str, Any]) -> float | None:
    """The one given, else the one that the model's validation chose."""
    if options.merge is not None:
        return options.merge
    chosen = notes.get("merge_threshold")
    return None if chosen is None else float(chosen)


def threshold_of(method: str, options: Options, notes: dict[str, Any]) -> float | None:
    """The threshold of a method: for queries see `merge_threshold`, for waterz and mws the one given or published."""
    if method == "query":
        return merge_threshold(options, notes)
    if options.merge is not None:
        return options.merge
    return WATERZ_THRESHOLD if method == "waterz" else MUTEX_BIAS


def check_resolution(notes: dict[str, Any], source: str, resolution: Nanometres, note: Note) -> None:
    """Tell the user where the volume's voxels are of another shape than those that the model was trained on."""
    trained = notes.get("resolution")
    if trained is None:
        return
    if of_another_shape(resolution, trained):
        found, wanted = (" x ".join(f"{n:g}" for n in r) for r in (resolution, trained))
        note(f"warning: {source} has voxels of {found} nm, the model was trained on {wanted} nm (z, y, x)")


def check_precision(options: Options) -> None:
    """Refuse an unknown precision.

    Raises:
        DistillError: it is one.
    """
    if options.precision not in ("bf16-mixed", "32-true"):
        raise DistillError(f"--precision: found {options.precision!r}, expected bf16-mixed or 32-true")
