"""Distil a 3D affinity-guided-query teacher into a fast 2D student for neuron segmentation in electron microscopy.

    >>> import distill
    >>> model = distill.load("ac4")
    >>> neurons = model.segment(raw, resolution=(30, 6, 6))  # raw: (z, y, x) grey values
    >>> neurons.labels.shape == raw.shape
    True

`load` opens a trained model, whose `affinities` and `segment` take arrays; `stream`, `segment`, `evaluate`, `sweep`,
`train` and `pca` do what the commands of these names do, and the commands call them. The names of `__all__` are
imported when they are first used, so that `import distill` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distill.core.version import VERSION

if TYPE_CHECKING:
    from distill.core.errors import DistillError
    from distill.io.volume import open_labels, open_volume
    from distill.python.figures import pca
    from distill.python.models import Model, Segmentation, load
    from distill.python.running import segment, stream
    from distill.python.scoring import evaluate, scorecard, sweep
    from distill.python.training import train

__version__ = VERSION
__all__ = [
    "DistillError",
    "Model",
    "Segmentation",
    "evaluate",
    "load",
    "open_labels",
    "open_volume",
    "pca",
    "scorecard",
    "segment",
    "stream",
    "sweep",
    "train",
]

_MODELS, _RUNNING, _SCORING = "distill.python.models", "distill.python.running", "distill.python.scoring"
_MODULES = {
    "DistillError": "distill.core.errors",
    "Model": _MODELS,
    "Segmentation": _MODELS,
    "evaluate": _SCORING,
    "load": _MODELS,
    "open_labels": "distill.io.volume",
    "open_volume": "distill.io.volume",
    "pca": "distill.python.figures",
    "scorecard": _SCORING,
    "segment": _RUNNING,
    "stream": _RUNNING,
    "sweep": _SCORING,
    "train": "distill.python.training",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List what there is, for completion."""
    return sorted([*__all__, "__version__"])
