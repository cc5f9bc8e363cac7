"""Package a run's best weights at half precision with a model card, for distribution with the package (`distill
bundle`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.config.data import PartExtent, part_box
from distill.core.atomic import new_folder, sweep_leftovers
from distill.core.errors import CheckpointError, DistillError, SourceError
from distill.core.geometry import Box, Nanometres
from distill.core.hardware import FULL
from distill.inference.in_memory import student_affinity, teacher_volume
from distill.inference.options import Runtime
from distill.io.volume import every_section, open_grey
from distill.io.writers.output import check_folder
from distill.models.checkpoint import Weights, read_weights, write_tensors
from distill.models.header import NetworkKind
from distill.models.load import find_weights, load_student, load_teacher

LARGEST = 15_000_000  # bytes of a bundle
MEAN_CHANGE, LARGEST_CHANGE = 0.002, 0.1  # tolerances of affinities, half a step of the stored type on average
_SAMPLE = (5, 256, 256)  # voxels on which outputs are compared
_EXACT = Runtime(torch.device("cpu"), FULL)


@dataclass(frozen=True)
class Change:
    """Differences between the affinities at half and at full precision."""

    mean: float
    largest: float


@dataclass(frozen=True)
class Bundle:
    """Description of a bundle."""

    files: list[Path]
    size: int  # bytes
    changes: dict[str, Change]  # by kind of network


def bundle(
    model: str,
    out: Path,
    *,
    about: Path | None = None,
    sample: str | None = None,
    resolution: Nanometres | None = None,
) -> Bundle:
    """Write OUT/{student,teacher}.safetensors and OUT/MODEL_CARD.md atomically.

    Args:
        model: run folder with a student, and a teacher if there is one.
        out: folder to create.
        about: Markdown included in the card verbatim: attribution, limitations.
        sample: volume on which outputs at half and full precision are compared; by default the validation sections
            recorded in the weights.
        resolution: nm, if the sample has none.

    Raises:
        DistillError: there is no student, weights exceed the range of half precision, outputs differ too much, or the
            bundle is too large; no files are left in these cases.
    """
    check_folder(out)
    if out.exists():
        raise SourceError(f"{out}: exists, expected a new folder")
    text = _read(about) if about is not None else ""
    found: dict[NetworkKind, Weights] = {"student": read_weights(find_weights(model, "student"))}
    if Path(model).is_dir() and list((Path(model) / "best").glob("teacher.safetensors")):
        found["teacher"] = read_weights(find_weights(model, "teacher"))
    for kind, weights in found.items():
        if weights.kind != kind:
            raise CheckpointError(f"{weights.path}: holds a {weights.kind}, expected a {kind}")
    raw = _sample_of(found["student"], sample, resolution)
    sweep_leftovers(out)
    try:
        with new_folder(out) as made:
            changes: dict[str, Change] = {}
            for kind, weights in found.items():
                path = made / f"{kind}.safetensors"
                write_tensors(path, kind, half_precision(weights), weights.config, _shareable(weights.notes))
                changes[kind] = _change(kind, weights.path, path, raw)
            card = made / "MODEL_CARD.md"
            card.write_text(model_card(out.name, found, changes, text), encoding="utf-8")
            files = sorted(made.iterdir())
            size = sum(file.stat().st_size for file in files)
            if size > LARGEST:
                raise CheckpointError(f"{model}: {size:,} bytes at half precision, expected at most {LARGEST:,}")
    except OSError as error:
        raise SourceError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Bundle([out / file.name for file in files], size, changes)


def half_precision(weights: Weights) -> dict[str, Tensor]:
    """Convert floating-point tensors to float16, others unchanged.

    Raises:
        CheckpointError: a value beyond the range of float16.
    """
    cast = {}
    for name, tensor in weights.tensors.items():
        cast[name] = tensor.half() if tensor.is_floating_point() else tensor
        if not bool(cast[name].isfinite().all()):
            largest = float(tensor.abs().max())
            raise CheckpointError(f"{weights.path}: {name} reaches {largest:g}, expected at most 65504 (float16)")
    return cast


def model_card(name: str, found: Mapping[NetworkKind, Weights], changes: Mapping[str, Change], about: str) -> str:
    """Format the notes of the weights as Markdown."""
    lines = [f"# {name}", "", f"    distill stream SOURCE --model {name} --out OUT.zarr", ""]
    data = _shareable(found["student"].notes).get("data")
    for volume in (data.get("volumes") or [data]) if isinstance(data, dict) else []:
        nm = " x ".join(f"{n:g}" for n in found["student"].notes.get("resolution", ()))
        spans = [f"{part} {_part_text(volume[part])}" for part in _PARTS if volume.get(part)]
        lines += [f"Data: {volume['raw']}, {nm} nm (z, y, x); {', '.join(spans)}.", ""]
    rows = [
        ["network", "values", "step", *_SCORES.values(), "boundary F1 z, y, x", "affinities moved by half precision"]
    ]
    for kind, weights in found.items():
        scores = weights.notes.get("validation") or {}
        shown = [_number(scores.get(key)) for key in _SCORES]
        edges = ", ".join(_number(value) for value in scores.get("boundary_f1_zyx", ())) or "-"
        change = changes[kind]
        count = sum(tensor.numel() for tensor in weights.tensors.values())
        moved = f"{change.mean:.5f} on average, {change.largest:.4f} at most"
        rows.append([f"{kind}, {weights.config.get('kind', '?')}", f"{count:,}", str(weights.notes.get("step", "-"))])
        rows[-1] += [*shown, edges, moved]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(len(lines) - len(found), "|" + " --- |" * len(rows[0]))
    lines += [
        "",
        "Scores of the query decoder on the validation sections, preset skimage, VOI in bits, at the threshold",
    ]
    lines += ["that was chosen there. The decoder's weights come with each network.", ""]
    return "\n".join([*lines, *([about.strip(), ""] if about.strip() else [])])


_PARTS = ("train", "validation", "test")
_SCORES = {"voi_split": "VOI split", "voi_merge": "merge", "voi": "sum", "arand": "ARAND"}


def _part_text(part: Any) -> str:
    """Describe sections, or a box, in words."""
    spans = [f"{first} to {last - 1}" for first, last in (part if isinstance(part[0], list | tuple) else [part])]
    return f"sections {spans[0]}" + (f", rows {spans[1]}, columns {spans[2]}" if len(spans) > 1 else "")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _shareable(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return notes without local folders of the training machine."""
    kept = dict(notes)
    if isinstance(kept.get("data"), dict):
        data = dict(kept["data"])
        data |= _without_folders(data)
        if data.get("volumes"):
            data["volumes"] = [{**entry, **_without_folders(entry)} for entry in data["volumes"]]
        data["unlabelled"] = [{**entry, "raw": _base(entry["raw"])} for entry in data.get("unlabelled") or ()]
        kept["data"] = data
    return kept


def _without_folders(volume: Mapping[str, Any]) -> dict[str, str]:
    return {key: _base(volume[key]) for key in ("raw", "labels", "mask") if isinstance(volume.get(key), str)}


def _base(source: str) -> str:
    """Shorten `folder/cell.h5:volumes/raw` to `cell.h5:volumes/raw`; network addresses are unchanged."""
    if "://" in source:
        return source
    path, colon, dataset = source.partition(":")
    return Path(path).name + colon + dataset


def _sample_of(weights: Weights, sample: str | None, resolution: Nanometres | None) -> NDArray[Any]:
    """Read a part from the middle of the sample, or of the validation sections."""
    data = weights.notes.get("data") or {}
    data = next((one for one in data.get("volumes") or () if one.get("validation")), data)
    if sample is None and not data.get("raw"):
        raise DistillError(f"--sample: {weights.path} names no volume, expected one to compare outputs on")
    source = sample or data["raw"]
    volume = open_grey(source, resolution=resolution or (None if sample else data.get("resolution")))
    part: PartExtent = (0, volume.size[0])
    if sample is None:
        volume = every_section(volume, data.get("every", 1))
        part = data.get("validation", (0, volume.size[0]))
    box = part_box(part, volume.size)
    start = [
        low + max(0, (high - low - most) // 2) for low, high, most in zip(box.start, box.stop, _SAMPLE, strict=True)
    ]
    stop = [min(high, low + most) for low, high, most in zip(start, box.stop, _SAMPLE, strict=True)]
    z, y, x = start
    return volume.read(Box((z, y, x), (stop[0], stop[1], stop[2])))


def _change(kind: NetworkKind, full: Path, half: Path, raw: NDArray[Any]) -> Change:
    """Compare the affinities of both files.

    Raises:
        CheckpointError: they differ by more than allowed.
    """
    one, other = (_affinity(kind, path, raw) for path in (full, half))
    moved = np.abs(one - other)
    change = Change(float(moved.mean()), float(moved.max()))
    if not (change.mean <= MEAN_CHANGE and change.largest <= LARGEST_CHANGE):
        raise CheckpointError(
            f"{full}: half precision moves affinities by {change.mean:.4f} on average, {change.largest:.3f} at most; "
            f"expected no more than {MEAN_CHANGE} and {LARGEST_CHANGE}"
        )
    return change


def _affinity(kind: NetworkKind, path: Path, raw: NDArray[Any]) -> NDArray[np.float32]:
    z, y, x = raw.shape
    if kind == "student":
        return student_affinity(load_student(str(path), _EXACT.device), iter(raw), (z, y, x), _EXACT)
    teacher = load_teacher(str(path), _EXACT.device)
    config = teacher.config.decoder.model_copy(update={"block": (max(2, z), y, x), "overlap": (1, 0, 0)})
    whole = replace(teacher, config=teacher.config.model_copy(update={"decoder": config}))
    return teacher_volume(whole, raw, _EXACT).affinity


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None
