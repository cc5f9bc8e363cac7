"""Options and thresholds that stream and segment have in common, and the choice of device and precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distill.core.errors import DistillError
from distill.core.hardware import AUTO, FULL, INT8, MIXED, Chosen, check_precision, choose
from distill.core.notes import Note
from distill.inference.grey_values import AS_RECORDED, GreyValues
from distill.models.load import pick_device
from students.backends.choose import settled
from students.backends.int8 import Calibration

FLOOD_THRESHOLD = 0.3  # mean affinity of a contact; see docs/how-to/thresholds.md for what it was chosen on
WATERZ_THRESHOLD = 0.5  # Liu et al., CVPR 2024
MUTEX_BIAS = 0.5  # affinity above which an edge attracts


@dataclass(frozen=True)
class Options:
    """Options that stream and segment have in common.

    Attributes:
        resolution: voxel size z, y, x in nm, for sources that do not state it.
        sections: first section and one past the last; None = all.
        device: `auto`, `cpu` or `cuda`.
        precision: see `distill.core.hardware`.
        merge: merge threshold; None = the model's own, chosen on its validation sections.
        overwrite: replace an existing store.
        backend: of the student, see `students.backends.choose`.
        grey: normalisation of grey values.
        rescale: compute at the pixel size of the model, see `distill.inference.rescaling.results`.
    """

    resolution: tuple[float, float, float] | None = None
    sections: tuple[int, int | None] | None = None
    device: str = "auto"
    precision: str = AUTO
    merge: float | None = None
    overwrite: bool = False
    backend: str = "auto"
    grey: GreyValues = AS_RECORDED
    rescale: bool = False


@dataclass(frozen=True)
class Callbacks:
    """Functions called while stream or segment runs.

    Attributes:
        on_start: called before the first section or block, with the number already completed and the total, if known.
        on_progress: called as sections or blocks are on disk, with the number completed, the total, and the rate.
        note: called with lines for the user.
    """

    on_start: Callable[[int, int | None], None] = lambda done, total: None
    on_progress: Callable[[int, int | None, str], None] = lambda done, total, rate: None
    note: Note = lambda line: None


SILENT = Callbacks()


def merge_threshold(options: Options, notes: dict[str, Any]) -> float | None:
    """Return the threshold given by the user, or the one that the model's validation chose."""
    if options.merge is not None:
        return options.merge
    chosen = notes.get("merge_threshold")
    return None if chosen is None else float(chosen)


def threshold_of(method: str, options: Options, notes: dict[str, Any]) -> float | None:
    """Return the threshold of a method: the user's, the model's own (flood, query, fragments), or the method's."""
    if method == "query":
        return merge_threshold(options, notes)
    if options.merge is not None:
        return options.merge
    if method == "flood" and notes.get("flood_threshold") is not None:
        return float(notes["flood_threshold"])  # chosen on the model's validation part
    if method == "fragments":
        return float(notes["fragments_threshold"])  # that of the fragment transformer
    return {"flood": FLOOD_THRESHOLD, "waterz": WATERZ_THRESHOLD, "mws": MUTEX_BIAS}[method]


@dataclass(frozen=True)
class Start:
    """How a run computes.

    Attributes:
        device: where this process computes.
        chosen: its precision.
        backend: of the student; `auto` only where each worker has a machine of its own, and for stores that record it.
        lines: to print before anything else.
    """

    device: torch.device
    chosen: Chosen
    backend: str
    lines: tuple[str, ...] = ()

    @property
    def runtime(self) -> Runtime:
        """Return the runtime of this process."""
        return Runtime(self.device, self.chosen.precision, self.backend)


def _moved(options: Options, begun: Mapping[str, Any]) -> bool:
    """Return whether a store is continued on another kind of device, which has other backends."""
    earlier = begun.get("device")
    return earlier in ("cpu", "cuda") and pick_device(options.device).type != earlier


def start(options: Options, begun: Mapping[str, Any], *, elsewhere: bool = False) -> Start:
    """Choose device, precision and backend of a run.

    Args:
        options: what the user asks for.
        begun: settings of the store that is continued; `auto` keeps its precision and backend.
        elsewhere: workers are processes of other machines: `auto` is what each of them can do.

    Raises:
        DistillError: unknown options, or no such device.
    """
    kept_backend = "auto" if not elsewhere and _moved(options, begun) else str(begun.get("backend", "auto"))
    backend = kept_backend if options.backend == "auto" else options.backend
    full = options.precision == AUTO and (elsewhere or backend == "onnxruntime")
    asked, kept = FULL if full else options.precision, begun.get("precision")
    if elsewhere and INT8 in (asked, kept):
        raise DistillError(f"--precision: found {INT8} with --scheduler, expected --workers, or --precision 32-true")
    if elsewhere:
        asked = check_precision(kept if kept and options.precision == AUTO else asked)
        reason = "auto: what every worker can do" if full else "as asked for"
        workers = Chosen(asked, reason, "of each worker")
        line = workers.line + (f"; --precision {MIXED} where all workers have it" if full else "")
        return Start(torch.device("cpu"), workers, backend, (line,))
    device = pick_device(options.device)
    chosen = choose(asked, device, begun=kept)
    taken = settled(backend, chosen.precision, device)[0]
    lines = [f"{chosen.line}, backend {taken}", *chosen.lines[1:]]
    if chosen.warning is not None and taken == "openvino":
        lines.append("warning: OpenVINO uses float32 for the student on this CPU; --backend eager keeps the precision")
    older = backend == begun.get("backend") == "auto"  # of a store from before backends were settled at the start
    return Start(device, chosen, backend if older else taken, tuple(lines))


@dataclass(frozen=True)
class Runtime:
    """Where and how networks run; what is `auto` is settled as it is made.

    Attributes:
        device: where to compute.
        precision: see `distill.core.hardware`.
        backend: of the student, see `students.backends.choose`; others than `eager` are worth their start for long
            streams.
        calibration: sections from which the precision `int8` takes its ranges.
    """

    device: torch.device
    precision: str = AUTO
    backend: str = "eager"
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Resolve values that are `auto`."""
        backend, precision = settled(self.backend, self.precision, self.device)
        object.__setattr__(self, "backend", backend)
        object.__setattr__(self, "precision", precision)
