"""Package a student for bioimage.io: `rdf.yaml` (format 0.5), ONNX weights, test tensors, cover (`distill export`)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from distill.core.atomic import new_folder, sweep_leftovers
from distill.core.errors import DistillError
from distill.core.version import VERSION
from distill.inference.export import sample_sections
from distill.io.writers.ours import check_only
from distill.io.writers.output import check_folder
from distill.models.load import TrainedStudent, load_student
from students.backends.onnx import load_runtime
from students.backends.pair import OPSET, pair_function, write_pair

_FORMAT = "0.5.3"
_FILES = ("rdf.yaml", "README.md", "weights.onnx", "test_input.npy", "test_output.npy", "cover.png")
_COVER = 256  # pixels of each of the two pictures
_TOLERANCE = 1e-3
_PAPER = {
    "text": "Liu et al., Cross-Dimension Affinity Distillation for 3D EM Neuron Segmentation, CVPR 2024",
    "url": "https://openaccess.thecvf.com/content/CVPR2024/html/Liu_Cross-Dimension_Affinity_Distillation_for_3D_EM_"
    "Neuron_Segmentation_CVPR_2024_paper.html",
}


@dataclass(frozen=True)
class Package:
    """What was written.

    Attributes:
        files: of the package.
        stride: divisor of height and width.
        sample: that the test tensors come from.
        difference: largest difference of ONNX Runtime's affinities from torch's.
    """

    files: tuple[Path, ...]
    stride: int
    sample: str
    difference: float


def export_bioimageio(
    model: str, out: Path, sample: str | None, *, licence: str | None, authors: list[str], overwrite: bool
) -> Package:
    """Write the package of a student, and run its weights on the test tensors.

    Args:
        model: run folder, weights file or bundled model.
        out: folder to create.
        sample: source of at least two sections for the test tensors; a phantom by default.
        licence: of the weights, an SPDX identifier.
        authors: names of those who trained the model.
        overwrite: replace the folder if it is such a package.

    Raises:
        DistillError: licence or authors are missing, the sections are too small, a package is missing, or ONNX Runtime
            differs from torch.
    """
    if not licence or not authors:
        raise DistillError(
            "--license, --author: found none, expected both, as bioimage.io requires them: such as --license CC-BY-4.0 "
            "--author 'Name'"
        )
    check_folder(out)
    if os.path.lexists(out):
        if not overwrite:
            raise DistillError(f"{out}: exists already; expected a new path, or --overwrite")
        if not (out / "rdf.yaml").is_file():
            raise DistillError(f"{out}: is not a package for bioimage.io; it will not be overwritten")
        check_only(out, out, lambda file: file in _FILES)
    trained = load_student(model, torch.device("cpu"))
    given = _test_input(trained, sample)
    with torch.no_grad():
        wanted = pair_function(trained.student)(torch.from_numpy(given)).numpy()
    sweep_leftovers(out)
    name, source = Path(model).name, sample or "a phantom"
    try:
        with new_folder(out) as made:
            write_pair(trained.student, made / "weights.onnx")
            difference = float(np.abs(_run(made / "weights.onnx", given) - wanted).max())
            if not difference <= _TOLERANCE:
                raise DistillError(f"onnx: differs from torch by {difference:.2g}, expected at most {_TOLERANCE:g}")
            np.save(made / "test_input.npy", given)
            np.save(made / "test_output.npy", wanted)
            Image.fromarray(_cover(given, wanted)).save(made / "cover.png")
            (made / "README.md").write_text(_readme(name, trained, source, difference), encoding="utf-8")
            about = description(made, name, trained.student.stride, given.shape[2:], licence, authors)
            text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120)
            (made / "rdf.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise DistillError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Package(tuple(sorted(out.iterdir())), trained.student.stride, source, difference)


def description(
    folder: Path, name: str, stride: int, size: tuple[int, ...], licence: str, authors: list[str]
) -> dict[str, Any]:
    """Return the content of rdf.yaml.

    Args:
        folder: with the other files.
        name: of the model.
        stride: divisor of height and width.
        size: height and width of the test tensors.
        licence: SPDX identifier.
        authors: names.
    """
    smallest = {"y": min(size[0], 4 * stride), "x": min(size[1], 4 * stride)}

    def axes(channels: list[str], sized: dict[str, Any]) -> list[dict[str, Any]]:
        space = [{"type": "space", "id": axis, "size": sized[axis]} for axis in ("y", "x")]
        return [{"type": "batch", "size": 1}, {"type": "channel", "channel_names": channels}, *space]

    free = {axis: {"min": least, "step": stride} for axis, least in smallest.items()}
    same = {axis: {"tensor_id": "sections", "axis_id": axis} for axis in ("y", "x")}
    unit = {"type": "float32", "range": [0.0, 1.0]}
    return {
        "format_version": _FORMAT,
        "type": "model",
        "name": f"distill {re.sub('[^A-Za-z0-9_+ ()-]', '-', name)} (affinities of neurons)",
        "description": "Affinities between neighbouring voxels of electron microscopy sections, to segment neurons.",
        "authors": [{"name": author} for author in authors],
        "cite": [_PAPER],
        "license": licence,
        "covers": ["cover.png"],
        "documentation": "README.md",
        "tags": ["electron-microscopy", "neurons", "affinities", "2d", "instance-segmentation", "connectomics"],
        "version": VERSION,
        "inputs": [
            {
                "id": "sections",
                "description": "two neighbouring sections, normalised as README.md says, the previous one first",
                "axes": axes(["previous", "current"], free),
                "data": unit,
                "test_tensor": _file(folder, "test_input.npy"),
            }
        ],
        "outputs": [
            {
                "id": "affinity",
                "description": "edges of the current section to the previous voxel along z, y, x; 1 = the same object",
                "axes": axes(["z", "y", "x"], same),
                "data": unit,
                "test_tensor": _file(folder, "test_output.npy"),
            }
        ],
        "weights": {"onnx": {**_file(folder, "weights.onnx"), "opset_version": OPSET}},
    }


def _file(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": sha256((folder / name).read_bytes()).hexdigest()}


def _test_input(trained: TrainedStudent, sample: str | None) -> NDArray[np.float32]:
    """Return (1, 2, H, W) normalised grey values, whose sides are multiples of the stride."""
    stride, pair = trained.student.stride, sample_sections(sample, trained.normaliser)
    height, width = (min(length, 512) // stride * stride for length in pair.shape[1:])
    if 0 in (height, width):
        raise DistillError(f"sample: found sections of {pair.shape[1:]}, expected at least {stride} pixels a side")
    return np.ascontiguousarray(pair[None, :, :height, :width], dtype=np.float32)


def _run(path: Path, given: NDArray[np.float32]) -> NDArray[np.float32]:
    session = load_runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"sections": given})[0], np.float32)


def _cover(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw the current section and its affinities as colours next to each other, (H, 2 H, 3) uint8."""
    side = min(_COVER, *given.shape[2:])
    grey = np.repeat(given[0, 1, :side, :side, None], 3, axis=2)
    colours = wanted[0, :, :side, :side].transpose(1, 2, 0)
    drawn: NDArray[np.uint8] = np.rint(255 * np.clip(np.concatenate([grey, colours], axis=1), 0, 1)).astype(np.uint8)
    return drawn


def _readme(name: str, trained: TrainedStudent, sample: str, difference: float) -> str:
    normalisation = yaml.safe_dump(trained.normaliser.normalisation.model_dump(mode="json"), sort_keys=False)
    nm = trained.notes.get("resolution")
    voxels = "not recorded" if nm is None else " x ".join(f"{n:g}" for n in nm) + " nm (z, y, x)"
    return f"""# distill {name}

A 2D student of cross-dimension affinity distillation. Two neighbouring sections go in, the previous one first; out come
the affinities of the second one to the previous voxel along z, y and x. 1 means that both voxels belong to one object.

Voxels of the training data: {voxels}. Grey values are float32 in [0, 1] after this normalisation of each whole section
(`distill.core.normalisation`):

```yaml
{normalisation}```

Height and width are multiples of {trained.student.stride}. Neurons follow from the affinities by watershed and
agglomeration; `distill stream SOURCE --model MODEL --out OUT.zarr` does all of it.

## Validation

ONNX Runtime's affinities differ from torch's by at most {difference:.1e} on the test tensors, two sections of {sample}.
Accuracy on labelled data is not part of this package; `distill evaluate` measures it.
"""
