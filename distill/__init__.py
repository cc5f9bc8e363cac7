"""Distil a 3D affinity-guided-query teacher into a fast 2D student for neuron segmentation in electron microscopy.

The names of `__all__` are imported when they are first used, so that `import distill` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distill.core.version import VERSION

if TYPE_CHECKING:
    from distill.config import load_pair
    from distill.core.errors import DistillError
    from distill.core.geometry import Box
    from distill.evaluation.segmentation import evaluate
    from distill.inference.blockwise.segment import segment
    from distill.inference.in_memory import student_volume, teacher_volume
    from distill.inference.streaming.stream import stream
    from distill.io.volume import open_labels, open_volume
    from distill.models.load import load_student, load_teacher
    from distill.training.train import train

__version__ = VERSION
__all__ = [
    "Box",
    "DistillError",
    "evaluate",
    "load_pair",
    "load_student",
    "load_teacher",
    "open_labels",
    "open_volume",
    "segment",
    "stream",
    "student_volume",
    "teacher_volume",
    "train",
]

_MODULES = {
    "Box": "distill.core.geometry",
    "DistillError": "distill.core.errors",
    "evaluate": "distill.evaluation.segmentation",
    "load_pair": "distill.config",
    "load_student": "distill.models.load",
    "load_teacher": "distill.models.load",
    "open_labels": "distill.io.volume",
    "open_volume": "distill.io.volume",
    "segment": "distill.inference.blockwise.segment",
    "stream": "distill.inference.streaming.stream",
    "student_volume": "distill.inference.in_memory",
    "teacher_volume": "distill.inference.in_memory",
    "train": "distill.training.train",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
