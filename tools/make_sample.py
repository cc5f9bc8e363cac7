"""Cut the bundled sample from AC4; for maintainers.

    python tools/make_sample.py ac4.h5 distill/data/bundled/ac4_sample.h5

`ac4.h5` is AC4 as recorded, 100 x 1024 x 1024 voxels in CREMI layout: `distill data get snemi3d --out data` writes it
as `data/snemi3d-train.h5`. The place was chosen by eye: sections 80-99 are the validation sections of the bundled
models, the crop lies outside the quadrant that the first of them was trained on, it is full of neurites of all sizes
(dendrites with mitochondria, boutons with vesicles, thin axons), and no section is folded, lost or out of focus. The
same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import replacing
from distill.core.geometry import Box
from distill.io.volume import LABELS_DATASET, RAW_DATASET, open_volume

BOX = Box((80, 512, 608), (100, 896, 992))  # in voxels of AC4
ATTRIBUTES = {
    "file_format": "0.2",
    "source": "AC4, mouse somatosensory cortex, serial-section SEM; training volume of the SNEMI3D challenge",
    "licence": "CC-BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "citation": "Kasthuri et al., Saturated Reconstruction of a Volume of Neocortex, Cell 162:648-661, 2015, "
    "https://doi.org/10.1016/j.cell.2015.06.054",
    "changes": "Cropped to sections 80-99, rows 512-895, columns 608-991 of AC4; neuron ids renumbered from 1. "
    "Grey values are as recorded.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut the package's sample out of AC4.")
    parser.add_argument("ac4", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    raw = open_volume(f"{given.ac4}:{RAW_DATASET}").read(BOX)
    labels = open_volume(f"{given.ac4}:{LABELS_DATASET}").read(BOX)
    neurons, compact = np.unique(labels, return_inverse=True)
    if raw.dtype != np.uint8 or neurons[0] != 0 or neurons.size > np.iinfo(np.uint16).max:
        parser.error(
            f"{given.ac4}: found {raw.dtype} and {neurons.size} ids from {neurons[0]}, expected uint8, ids from 0"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(given.out) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(ATTRIBUTES)
        write(file, RAW_DATASET, raw)
        write(file, LABELS_DATASET, compact.reshape(labels.shape).astype(np.uint16))


def write(file: h5py.File, name: str, array: NDArray[Any]) -> None:
    """Store an array losslessly, one section per chunk, with its voxel size and its position in AC4 in nm."""
    resolution = (30.0, 6.0, 6.0)
    chunks = (1, *array.shape[1:])
    made = file.create_dataset(
        name, data=array, chunks=chunks, compression="gzip", compression_opts=9, shuffle=array.itemsize > 1
    )
    made.attrs["resolution"] = resolution
    made.attrs["offset"] = [start * nm for start, nm in zip(BOX.start, resolution, strict=True)]


if __name__ == "__main__":
    main()
