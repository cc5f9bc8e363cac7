"""Reading the labels of stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from blocks_of_labels import Setting
from numpy.typing import NDArray

from distill.core.geometry import Triple
from distill.io.volume import open_labels

Make = Callable[[Triple], Setting]


def labels_of(out: Path) -> NDArray[np.uint64]:
    return open_labels(f"{out}:segmentation").read()
