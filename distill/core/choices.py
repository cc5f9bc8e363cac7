"""Values that options accept, shared by the command line and the functions behind it."""

from __future__ import annotations

from typing import Literal, get_args

from distill.core.errors import DistillError

BackendName = Literal["auto", "eager", "compile", "openvino", "onnxruntime"]
Network = Literal["student", "teacher"]
StreamMethod = Literal["flood", "query"]
Method = Literal["flood", "query", "waterz", "mws", "fragments"]
METHODS: tuple[Method, ...] = get_args(Method)
StoredEmbedding = Literal["none", "uint8", "float16"]
NormalisationKind = Literal["none", "percentile", "mean-std", "local"]
MissingData = Literal["refuse", "zero"]
VolumeFormat = Literal["zarr3", "zarr2", "n5", "precomputed", "hdf5", "tiff"]
ExportFormat = Literal["onnx", "openvino", "torch"]
PackageFormat = Literal["onnx", "openvino", "torch", "bioimageio"]
PresetName = Literal["skimage", "cremi", "agq", "cad"]
SkeletonUnits = Literal["nm", "um", "voxel"]


def check_merge(merge: float | None, name: str = "merge") -> float | None:
    """Return a merge threshold if it is one, or None for the model's own.

    Args:
        merge: the threshold.
        name: of the argument or option, for the message.

    Raises:
        DistillError: it is not from 0 to 1.
    """
    if merge is not None and not 0 <= merge <= 1:
        raise DistillError(f"{name}: found {merge}, expected a number from 0 to 1")
    return merge
