"""Read and write weights files (safetensors with their configuration), and read published checkpoints (weights only).

A weights file contains one network with everything needed for segmentation: `teacher.*` and `decoder.*`, or
`student.*`, `slab.*` and `decoder.*`. Its metadata contain its kind, its configuration as JSON, and notes on its
training and scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.core.atomic import replacing
from distill.core.errors import CheckpointError
from distill.core.reasons import reason
from distill.models.header import WEIGHTS_FORMAT, NetworkKind, read_header


@dataclass(frozen=True)
class Weights:
    """Contents of a weights file."""

    kind: NetworkKind
    config: dict[str, Any]  # teacher: TeacherConfig; student: its own keys and `decoder`
    notes: dict[str, Any]  # origin, step, scores, thresholds
    tensors: dict[str, Tensor]
    path: Path

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one module without its prefix; empty if the file has none."""
        return {key.removeprefix(f"{name}."): t for key, t in self.tensors.items() if key.startswith(f"{name}.")}


def save_weights(
    path: Path, kind: NetworkKind, modules: Mapping[str, nn.Module], config: Mapping[str, Any], notes: Mapping[str, Any]
) -> None:
    """Write modules and configuration as one safetensors file (temporary name, then rename)."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    write_tensors(path, kind, tensors, config, notes)


def write_tensors(
    path: Path, kind: NetworkKind, tensors: Mapping[str, Tensor], config: Mapping[str, Any], notes: Mapping[str, Any]
) -> None:
    """Write named tensors as a weights file.

    Raises:
        CheckpointError: the file cannot be written.
    """
    metadata = {
        "format": WEIGHTS_FORMAT,
        "kind": kind,
        "config": json.dumps(dict(config)),
        "notes": json.dumps(dict(notes)),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(dict(tensors), temporary, metadata)
            _sort_header(temporary)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None


def _sort_header(path: Path) -> None:
    """Sort the metadata of a safetensors file, which come in another order in every process: equal files are then
    equal byte by byte.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "the same entries"
        file.seek(8)
        file.write(text.ljust(size))


def read_weights(path: Path) -> Weights:
    """Read a weights file of this package.

    Raises:
        CheckpointError: no such file, not safetensors, not written by this package, or not finite.
    """
    header = read_header(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: its tensors cannot be read: {reason(error)}") from None
    _check_finite(tensors, str(path))
    return Weights(header.kind, header.config, header.notes, tensors, path)


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{source}: {key!r} holds values that are not finite (NaN or infinite), expected finite weights; "
                "take an earlier checkpoint"
            )


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a module, with an error that names the first mismatch.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape, so the weights belong to another
            architecture; or it holds values that are not finite, with which every output is wrong.
    """
    wanted = module.state_dict()
    for key, value in wanted.items():
        if key not in tensors:
            raise CheckpointError(
                f"{source}: of another architecture: no tensor {key!r}, expected shape {tuple(value.shape)}"
            )
        if tensors[key].shape != value.shape:
            raise CheckpointError(
                f"{source}: of another architecture: {key!r} has shape {tuple(tensors[key].shape)}, "
                f"expected {tuple(value.shape)}"
            )
    for key in tensors:
        if key not in wanted:
            raise CheckpointError(f"{source}: of another architecture: unknown tensor {key!r}")
    _check_finite(tensors, source)
    module.load_state_dict(dict(tensors))


@dataclass(frozen=True)
class Published:
    """A published checkpoint under the parameter names of this package."""

    method: Literal["agq", "cad"]
    tensors: dict[str, Tensor]  # teacher.* and decoder.*, or student.*
    unplaced: list[str]  # keys without a counterpart


def read_published(path: Path) -> Published:
    """Read a published AGQ or CAD checkpoint (a pickle through torch's weights-only loader, or safetensors).

    Raises:
        CheckpointError: it cannot be loaded without executing code, or belongs to neither method.
    """
    state = {key.removeprefix("module."): value for key, value in _state_dict(path).items()}
    for method, rename in (("cad", cad_name), ("agq", agq_name)):
        if _SIGNATURE[method] in state:
            named = {key: rename(key) for key in state}
            placed = {ours: state[key] for key, ours in named.items() if ours is not None}
            return Published(method, placed, [key for key, ours in named.items() if ours is None])  # type: ignore[arg-type]
    first = next(iter(state), "nothing")
    raise CheckpointError(
        f"{path}: neither an AGQ nor a CAD checkpoint: found {first!r} first, expected {_SIGNATURE['agq']!r} or "
        f"{_SIGNATURE['cad']!r}"
    )


_SIGNATURE = {"agq": "conv_in.0.weight", "cad": "inc.conv.conv.0.weight"}


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a safetensors file: {reason(error)}") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - unpickling fails in many ways; all mean the same to the user
        why = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not loadable as weights only, without running its code: {why}") from None
    for key in ("model_weights", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise CheckpointError(f"{path}: expected named tensors, or them under 'model_weights' or 'state_dict'")
    return dict(found)


def cad_name(key: str) -> str | None:
    """Translate the name of a published Y-shape parameter; None if it has no counterpart."""
    match = re.fullmatch(r"(inc|up[12]|up[34]_tn?)\.conv\.conv\.([0134]\.\w+)", key)
    if match:
        return f"student.{match[1]}.{match[2]}"
    match = re.fullmatch(r"down\.([0-3])\.mpconv\.1\.conv\.([0134]\.\w+)", key)
    if match:
        return f"student.down.{match[1]}.{match[2]}"
    match = re.fullmatch(r"(outc_tn?)\.conv\.(weight|bias)", key)
    return f"student.{match[1]}.{match[2]}" if match else None


Rule = tuple[str, str | Callable[[re.Match[str]], str]]
_AGQ_RULES: tuple[Rule, ...] = (
    (r"conv_in\.(.+)", r"teacher.backbone.conv_in.\1"),
    (r"down_layers\.(\d)\.1\.(.+)", r"teacher.backbone.down_layers.\1.0.\2"),
    (r"down_layers\.(\d)\.2\.(.+)", r"teacher.backbone.down_layers.\1.1.\2"),
    (r"up_layers\.(.+)", r"teacher.backbone.up_layers.\1"),
    (r"fusion_block\.pre_convs\.(.+)", r"teacher.pre_convs.\1"),
    (r"fusion_block\.post_convs\.0\.(.+)", r"teacher.post_conv.\1"),
    (r"affinity_branch\.mask_convs\.(\d)\.0\.weight", r"teacher.affinity_branch.convs.\1.weight"),
    (r"affinity_branch\.projection\.(.+)", r"teacher.affinity_branch.projection.\1"),
    (r"mask_branch\.mask_convs\.(\d)\.0\.weight", r"decoder.mask_branch.convs.\1.weight"),
    (r"mask_branch\.projection\.(.+)", r"decoder.mask_branch.projection.\1"),
    (r"inst_decoder\.rpn\.inst_convs\.(.+)", r"decoder.inst_convs.\1"),
    (r"inst_decoder\.rpn\.learned_masks_embed\.weight", r"decoder.learned"),
    (r"inst_decoder\.rpn\.mask_kernel\.(.+)", r"decoder.predictors.0.fc_kernel.\1"),
    (r"inst_decoder\.rpn\.(norm_kernel|norm_logits)\.(.+)", r"decoder.predictors.0.\1.\2"),
    (r"inst_decoder\.predictors\.(\d)\.(.+)", lambda m: f"decoder.predictors.{int(m[1]) + 1}.{m[2]}"),
    # the last background convolution belongs to the first masks
    (r"inst_decoder\.bg_convs\.(\d)\.(.+)", lambda m: f"decoder.backgrounds.{(int(m[1]) + 1) % 3}.{m[2]}"),
    (r"inst_decoder\.kernel_updators\.(.+)", r"decoder.updaters.\1"),
    (r"inst_decoder\.kernel_interactors\.(\d)\.attn\.c_attn\.(.+)", r"decoder.interactors.\1.c_attn.\2"),
    (r"inst_decoder\.kernel_interactors\.(\d)\.attn\.c_proj\.(.+)", r"decoder.interactors.\1.attn_proj.\2"),
    (r"inst_decoder\.kernel_interactors\.(\d)\.mlp\.c_fc\.(.+)", r"decoder.interactors.\1.c_fc.\2"),
    (r"inst_decoder\.kernel_interactors\.(\d)\.mlp\.c_proj\.(.+)", r"decoder.interactors.\1.mlp_proj.\2"),
    (r"inst_decoder\.kernel_interactors\.(\d)\.(ln_[12])\.(.+)", r"decoder.interactors.\1.\2.\3"),
)


def agq_name(key: str) -> str | None:
    """Translate the name of a published AGQ parameter; None if it has no counterpart."""
    for pattern, replacement in _AGQ_RULES:
        match = re.fullmatch(pattern, key)
        if match:
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None
