"""Quantise the two streaming functions to int8 after training, with NNCF.

Convolutions of the network are computed in int8, with ranges taken from real sections. The embeddings' last
convolutions and everything after them stay in float32: affinities are products of unit vectors, and rounding both
factors first would multiply the error by ten.

Legend: N pairs, H W = y x.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.core.signals import signals_held
from students.backends.cache import cached
from students.backends.functions import ExtraOutputs
from students.backends.fuse import fused
from students.backends.openvino_models import FreeModels, converted, files_of, load_openvino, models_of
from students.deferred import DeferredStudent, StudentForm, network_of
from students.student import Student

LARGEST_DIFFERENCE = 0.01  # of affinities in [0, 1] from float32, on average
_CHECKED = 4  # every fourth pair is not used for ranges, but for the comparison with float32
_INSIDE = "__module.student."  # begins the names of the network's own operations
_EMBEDDINGS = ("previous_out", "current_out", "outc_t", "outc_tn")
_JOINS = ("Concat", "Interpolate")  # they have no names of their own; those of the network pass on int8
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


@dataclass(frozen=True)
class Calibration:
    """Pairs of neighbouring sections from which ranges are taken.

    Attributes:
        digest: of the pairs.
        source: where they come from, for messages.
        pairs: returns (N, 2, H, W) float32 in [0, 1], sides a multiple of the student's stride; read only if the
            quantised models are not in the cache.
    """

    digest: str
    source: str
    pairs: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class Quantised:
    """Quantised functions, and their mean absolute difference from float32 in affinities of other pairs."""

    models: FreeModels
    difference: float


def quantised(student: Student | DeferredStudent, wanted: ExtraOutputs, calibration: Calibration) -> Quantised:
    """Quantise a student, or read the result of an earlier process.

    Args:
        student: in evaluation mode, on the CPU.
        wanted: outputs in addition to the affinities, without features.
        calibration: pairs of sections.

    Raises:
        DistillError: NNCF is not installed, or affinities differ too much.
    """
    key = None
    if isinstance(student, DeferredStudent):
        about = {"current": str(wanted.current), "previous": str(wanted.previous)}
        key = {"kind": "int8", "weights": student.digest, "calibration": calibration.digest, **about}
    if load_nncf() is None:
        raise DistillError("--precision int8: nncf is not installed, expected `pip install 'affinity-distill[int8]'`")
    files = cached(key, lambda: _files(network_of(student), wanted, calibration.pairs()))
    difference = float(json.loads(files["int8.json"])["difference"])
    if not difference <= LARGEST_DIFFERENCE:
        raise DistillError(
            f"--precision int8: affinities of this model differ from float32 by {difference:.4f} on average on "
            f"{calibration.source}, expected at most {LARGEST_DIFFERENCE:g}; use --precision 32-true"
        )
    return Quantised(models_of(files), difference)


def _files(student: Student, wanted: ExtraOutputs, pairs: NDArray[np.float32]) -> dict[str, bytes]:
    exact = converted((fused(student).float(), 1), wanted)
    held = np.arange(len(pairs)) % _CHECKED == _CHECKED - 1
    encoded = list(_encoded(exact, pairs))
    nncf = load_nncf()
    assert nncf is not None
    used = [n for n in range(len(pairs)) if not held[n]] or [0]
    sections = [pairs[n, k][None, None] for n in used for k in (0, 1)]
    models = FreeModels(
        _quantised(nncf, exact.encode, sections),
        _quantised(nncf, exact.decode, [_given(encoded[n]) for n in used]),
    )
    checked = pairs[held] if held.any() else pairs[:1]
    difference = float(np.mean(np.abs(_affinities(models, checked) - _affinities(exact, checked))))
    return {**files_of(models), "int8.json": json.dumps({"difference": difference}).encode()}


def _quantised(nncf: ModuleType, model: Any, items: list[Any]) -> Any:
    """Quantise a model with ranges from these inputs."""
    kept = [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result") and _stays_exact(op)
    ]
    with _silent(), signals_held():
        return nncf.quantize(
            model,
            nncf.Dataset(items),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(items),
            ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        )


def _stays_exact(op: Any) -> bool:
    name = op.get_friendly_name()
    if name.startswith(_INSIDE):
        return name.removeprefix(_INSIDE).split("/")[0] in _EMBEDDINGS
    return op.get_type_name() not in _JOINS


def _encoded(models: FreeModels, pairs: NDArray[np.float32]) -> Iterator[list[list[NDArray[Any]]]]:
    """Iterate over the maps of both sections of every pair."""
    run = _compiled(models.encoder((1, 1, *pairs.shape[2:])))
    for pair in pairs:
        yield [[np.array(part) for part in run(np.ascontiguousarray(one[None, None])).to_tuple()] for one in pair]


def _given(maps: list[list[NDArray[Any]]]) -> dict[int, NDArray[Any]]:
    """Return the inputs of `decode` for the maps of a pair."""
    return dict(enumerate([np.ones((1, 1, 1, 1), np.float32), *maps[0], *maps[1]]))


def _affinities(models: FreeModels, pairs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return affinities (N, 3, H, W) in [0, 1] of the second section of every pair."""
    encoded = list(_encoded(models, pairs))
    run = _compiled(models.decoder([part.shape for part in encoded[0][0]]))
    stored = [np.array(run(_given(maps))[0], np.float32) for maps in encoded]
    found: NDArray[np.float32] = np.concatenate(stored) / np.float32(255)
    return found


def _compiled(model: Any) -> Any:
    with signals_held():
        return load_openvino().Core().compile_model(model, "CPU", _SETTINGS)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress progress bars, advice and warnings of the library."""
    output = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with output[0], output[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_nncf() -> ModuleType | None:
    """Import NNCF without usage statistics; None if it is not installed."""
    load_openvino()  # without the package that sends statistics, which NNCF would use
    try:
        with _silent():
            import nncf
    except ModuleNotFoundError as error:
        if error.name != "nncf":
            raise
        return None
    logging.getLogger("nncf").setLevel(logging.ERROR)
    found: ModuleType = nncf
    return found


def with_digest(source: str, pairs: NDArray[np.float32], stride: int) -> Calibration:
    """Return the calibration of pairs that are in memory.

    Args:
        source: where they come from.
        pairs: (N, 2, H, W) float32 in [0, 1].
        stride: of the student, to multiples of which they are cropped.
    """
    height, width = (length // stride * stride for length in pairs.shape[2:])
    cropped = np.ascontiguousarray(pairs[..., :height, :width])
    digest = hashlib.sha256(str(cropped.shape).encode() + cropped.tobytes()).hexdigest()
    return Calibration(digest, source, lambda: cropped)


def check_parts(form: StudentForm) -> None:
    """Check that parts of sections can be computed in int8.

    Raises:
        DistillError: the student's upsampling depends on the size of the whole section.
    """
    if form.aligned_levels:
        raise DistillError(
            "--precision: found int8 with tiles or blocks of a student whose upsampling depends on the whole section, "
            "expected distill stream without --tile, or --precision 32-true"
        )


def key_of(calibration: Calibration | None) -> Mapping[str, str]:
    """Return what a calibration adds to recorded settings."""
    return {} if calibration is None else {"calibration": calibration.digest}
