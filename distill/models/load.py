"""Initialise networks from trained ones, and load trained networks from run folders and weights files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from distill.config import DecoderConfig, StudentConfig, StudentNetwork, TeacherConfig
from distill.core.errors import CheckpointError, DistillError
from distill.core.geometry import Nanometres
from distill.core.normalisation import NONE, UNCHANGED, Normalisation, Normaliser
from distill.core.reasons import shown
from distill.decoder.decoder import QueryDecoder
from distill.models.build import build_decoder, build_slab, build_student, build_teacher
from distill.models.checkpoint import Weights, load_module, read_weights
from distill.models.header import NetworkKind, bundled_models
from students.backends.cache import cached
from students.deferred import DeferredStudent, StudentForm, form_of, network_of
from students.slab_adapter import SlabAdapter
from students.student import Student
from teachers.inflated import InflatedTeacher
from teachers.teacher import Teacher

logger = logging.getLogger(__name__)


def start_teacher(teacher: Teacher, decoder: QueryDecoder, weights: str) -> bool:
    """Initialise a teacher, and the decoder if all its shapes match, from a trained one.

    Returns:
        Whether the decoder was initialised too.

    Raises:
        CheckpointError: there is no teacher, or one of another architecture.
    """
    found = _weights_to_start_from(weights, "teacher")
    load_module(teacher, found.part("teacher"), f"teacher.weights: {found.path} (teacher)")
    return _fill_where_it_fits({"decoder": decoder}, found)


def start_inflated(teacher: InflatedTeacher, weights: str) -> None:
    """Initialise the 2D part of a teacher from a trained student.

    Raises:
        CheckpointError: there is no student, or one of another architecture.
    """
    found = _weights_to_start_from(weights, "student")
    load_module(teacher.backbone.student, found.part("student"), f"teacher.student: {found.path} (student)")


def start_decoder(decoder: QueryDecoder, weights: str) -> bool:
    """Initialise only the decoder, if all its shapes match, from the one stored with a trained teacher.

    Returns:
        Whether it was initialised.

    Raises:
        CheckpointError: there is no teacher.
    """
    return _fill_where_it_fits({"decoder": decoder}, _weights_to_start_from(weights, "teacher"))


def start_student(student: Student, slab: SlabAdapter, decoder: QueryDecoder, weights: str) -> bool:
    """Initialise a student, and its adapter and the decoder if all their shapes match, from a trained one.

    Returns:
        Whether adapter and decoder were initialised too.

    Raises:
        CheckpointError: there is no student, or one of another architecture.
    """
    found = _weights_to_start_from(weights, "student")
    load_module(student, found.part("student"), f"student.weights: {found.path} (student)")
    return _fill_where_it_fits({"slab": slab, "decoder": decoder}, found)


def _weights_to_start_from(weights: str, kind: NetworkKind) -> Weights:
    found = read_weights(find_weights(weights, kind))
    if found.kind != kind:
        raise CheckpointError(f"{kind}.weights: {found.path} holds a {found.kind}, expected a {kind}")
    return found


def _fill_where_it_fits(modules: Mapping[str, nn.Module], found: Weights) -> bool:
    """Load all of the modules or, if one is missing or has other shapes, none."""
    for name, module in modules.items():
        own = {key: value.shape for key, value in module.state_dict().items()}
        if own != {key: value.shape for key, value in found.part(name).items()}:
            return False
    for name, module in modules.items():
        module.load_state_dict(found.part(name))
    return True


@dataclass(frozen=True)
class TrainedStudent:
    """A student ready for inference, with its adapter and decoder if the file contains them."""

    network: Student | DeferredStudent
    slab: SlabAdapter | None
    decoder: QueryDecoder | None
    decoding: DecoderConfig
    notes: dict[str, Any]
    path: Path
    normaliser: Normaliser = UNCHANGED  # normalises the sections of a source as in training

    @property
    def student(self) -> Student:
        """Return the network, which is built at its first use."""
        return network_of(self.network)

    @property
    def form(self) -> StudentForm:
        """Return the form of the network without building it."""
        return form_of(self.network)


@dataclass(frozen=True)
class TrainedTeacher:
    """A teacher ready for inference, with its decoder."""

    teacher: Teacher
    decoder: QueryDecoder
    config: TeacherConfig
    notes: dict[str, Any]
    path: Path
    normaliser: Normaliser = UNCHANGED  # normalises the sections of a source as in training


def student_metadata(
    config: StudentConfig, fused: int, decoding: DecoderConfig, resolution: Nanometres
) -> dict[str, Any]:
    """Return the metadata needed to rebuild a student from its weights file."""
    return {
        **config.model_dump(mode="json", include=set(StudentNetwork.model_fields)),
        "fused": fused,
        "resolution": list(resolution),
        "normalisation": config.data.normalisation.model_dump(mode="json"),
        "decoder": decoding.model_dump(mode="json"),
    }


def teacher_metadata(
    config: TeacherConfig, decoding: DecoderConfig, resolution: Nanometres, normalisation: Normalisation
) -> dict[str, Any]:
    """Return the metadata needed to rebuild a teacher from its weights file."""
    values = config.model_copy(update={"decoder": decoding}).model_dump(
        mode="json", exclude={"weights", "frozen", "student"}
    )
    return {**values, "resolution": list(resolution), "normalisation": normalisation.model_dump(mode="json")}


def find_weights(model: str, kind: NetworkKind) -> Path:
    """Find the weights file of MODEL: a file, the best (otherwise last) one of this kind in a run folder, or a bundled
    model.

    A file or folder in the current folder takes precedence over a bundled model of the same name, which is reported.

    Raises:
        CheckpointError: none of them exists.
    """
    path, bundled = Path(model), bundled_models()
    if path.exists() and model in bundled:
        logger.warning("%s: taken from this folder, not the bundled model of that name", path.resolve())
    if path.is_file():
        return path
    if path.is_dir():
        folder = path / "best" if (path / "best").is_dir() else path / "checkpoints"
        files = sorted(folder.glob(f"{kind}*.safetensors")) or sorted(path.glob(f"{kind}.safetensors"))
        if files:
            return files[-1]
        raise CheckpointError(f"{model}: no {kind}*.safetensors in {folder}; expected a run folder of `distill train`")
    if model in bundled:
        file = bundled[model] / f"{kind}.safetensors"
        if file.exists():
            return file
        raise CheckpointError(f"{model}: the bundled model of that name has no {kind}")
    known = f", or a bundled model: {', '.join(bundled)}" if bundled else "; no model is bundled with this installation"
    raise CheckpointError(f"{model}: no such file or run folder; expected a run folder or a weights file{known}")


def load_student(model: str, device: torch.device) -> TrainedStudent:
    """Load a trained student in evaluation mode.

    Raises:
        CheckpointError: the file is missing, or belongs to a teacher or another architecture.
    """
    weights = read_weights(find_weights(model, "student"))
    if weights.kind != "student":
        raise CheckpointError(f"{weights.path}: holds a {weights.kind}, expected a student")
    config, source = weights.config, str(weights.path)
    student = _deferred(weights, device)
    try:
        decoding = DecoderConfig.model_validate(config.get("decoder") or {})
        normaliser = Normaliser(_normalisation(config))
        slab = decoder = None
        if weights.part("decoder"):
            slab = build_slab(student.form, config["fused"])
            decoder = build_decoder(decoding, config["fused"], tuple(config["resolution"]))
    except (KeyError, TypeError, ValidationError, DistillError) as error:
        raise _not_a_student(source, error) from None
    for name, module in (("slab", slab), ("decoder", decoder)):
        if module is not None:
            _fill(module, weights.part(name), f"{source} ({name})", device)
    return TrainedStudent(student, slab, decoder, decoding, _notes(weights), weights.path, normaliser)


def _deferred(weights: Weights, device: torch.device) -> DeferredStudent:
    """Return the student of a weights file, which is built now unless its form is known from an earlier process.

    Raises:
        CheckpointError: it cannot be built. It could be once if the form is known.
    """
    digest = hashlib.sha256(weights.path.read_bytes()).hexdigest()
    built: list[Student] = []

    def described() -> dict[str, bytes]:
        built.append(_student_of(weights, device))
        return {"form.json": json.dumps(StudentForm.of(built[0]).to_dict()).encode()}

    files = cached({"kind": "form", "weights": digest}, described)
    form = StudentForm(**json.loads(files["form.json"]))
    return DeferredStudent(lambda: built[0] if built else _student_of(weights, device), digest, form)


def _student_of(weights: Weights, device: torch.device) -> Student:
    """Build the student of a weights file in evaluation mode.

    Raises:
        CheckpointError: the file belongs to another architecture.
    """
    network = {name: weights.config[name] for name in StudentNetwork.model_fields if name in weights.config}
    try:
        student = build_student(StudentNetwork.model_validate(network))
    except (KeyError, TypeError, ValidationError, DistillError) as error:
        raise _not_a_student(str(weights.path), error) from None
    _fill(student, weights.part("student"), f"{weights.path} (student)", device)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return student


def _not_a_student(source: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{source}: its configuration is not a student's: {error}")


def load_teacher(model: str, device: torch.device) -> TrainedTeacher:
    """Load a trained teacher in evaluation mode.

    Raises:
        CheckpointError: the file is missing, or belongs to a student or another architecture.
    """
    weights = read_weights(find_weights(model, "teacher"))
    if weights.kind != "teacher":
        raise CheckpointError(f"{weights.path}: holds a {weights.kind}, expected a teacher")
    values = dict(weights.config)
    resolution = tuple(values.pop("resolution", (30.0, 6.0, 6.0)))
    try:
        normaliser = Normaliser(_normalisation(values))
        values.pop("normalisation", None)
        config = TeacherConfig.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{weights.path}: its configuration is not a teacher's: {error}") from None
    teacher, decoder = build_teacher(config), build_decoder(config.decoder, config.fused, resolution)
    for name, module in (("teacher", teacher), ("decoder", decoder)):
        _fill(module, weights.part(name), f"{weights.path} ({name})", device)
    return TrainedTeacher(teacher, decoder, config, _notes(weights), weights.path, normaliser)


def weights_normalisation(model: str, kind: NetworkKind) -> Normalisation:
    """Return the normalisation with which the weights of MODEL were trained.

    Raises:
        CheckpointError: there are no such weights.
    """
    return _normalisation(read_weights(find_weights(model, kind)).config)


def _normalisation(config: Mapping[str, Any]) -> Normalisation:
    """Return the normalisation recorded in a weights file; `none` in files older than normalisation, and in converted
    ones.
    """
    return Normalisation.model_validate(config["normalisation"]) if "normalisation" in config else NONE


def _notes(weights: Weights) -> dict[str, Any]:
    """Return the training notes of a weights file; the voxel size may be recorded only in its configuration."""
    own = {"resolution": weights.config["resolution"]} if weights.config.get("resolution") else {}
    notes = own | weights.notes
    nm = notes.get("resolution")
    if nm is not None and not (isinstance(nm, list) and len(nm) == 3 and all(_is_number(n) and n > 0 for n in nm)):
        raise CheckpointError(f"{weights.path}: found resolution {shown(nm)}, expected three positive numbers Z,Y,X")
    for key in ("merge_threshold", "flood_threshold"):
        value = notes.get(key)
        if value is not None and not (_is_number(value) and 0 <= value <= 1):
            raise CheckpointError(f"{weights.path}: found {key} {shown(value)}, expected a number from 0 to 1")
    return notes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], source: str, device: torch.device) -> None:
    load_module(module, tensors, source)
    module.eval().requires_grad_(False).to(device)


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda[:N]`; a GPU with a number becomes the current one.

    Otherwise pinned memory would occupy the first GPU too.

    Raises:
        DistillError: another name, or a GPU that does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise DistillError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DistillError(f"--device: found {name!r}, but torch finds no GPU; expected auto or cpu")
    if colon:
        count = torch.cuda.device_count()
        if int(number) >= count:
            raise DistillError(
                f"--device: found {name!r}, expected cuda:0 to cuda:{count - 1}: torch sees {count} GPUs"
            )
        torch.cuda.set_device(int(number))
    return torch.device(name)
