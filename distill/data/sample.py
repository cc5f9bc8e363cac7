"""Write the bundled labelled sample of mouse cortex to a file."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py

from distill.core.errors import SourceError
from distill.core.geometry import Nanometres, Triple
from distill.io.volume import LABELS_DATASET, RAW_DATASET, open_grey, open_labels
from distill.io.writers.cremi import check_cremi_name
from distill.io.writers.output import check_place
from distill.io.writers.store import replacing_file, writing

SAMPLE = Path(__file__).parent / "bundled" / "ac4_sample.h5"  # made by tools/make_sample.py


@dataclass(frozen=True)
class Sample:
    """Description of the sample written.

    Attributes:
        raw: SOURCE of the image, uint8.
        labels: SOURCE of the neuron ids, 0 = background, neurons 1..n.
        shape: voxels z, y, x of both.
        resolution: nm per voxel z, y, x.
        neurons: number of labelled neurons.
        source: tissue, microscope and original volume.
        licence: name and address.
        citation: of the publication to cite.
        changes: differences from the published data.
    """

    raw: str
    labels: str
    shape: Triple
    resolution: Nanometres
    neurons: int
    source: str
    licence: str
    citation: str
    changes: str


def write_sample(out: Path, *, overwrite: bool = False) -> Sample:
    """Write the bundled sample as an HDF5 file in CREMI layout.

    Args:
        out: target, with an extension of HDF5.
        overwrite: replace a file that exists.

    Raises:
        SourceError: another extension, an existing file, or a location that cannot be written; nothing is changed in
            these cases.
    """
    check_cremi_name(out)
    check_place(out)
    if os.path.lexists(out) and not overwrite:
        raise SourceError(f"{out}: exists already; expected a new path, or --overwrite")
    with writing(out), replacing_file(out) as temporary:
        shutil.copyfile(SAMPLE, temporary)
    raw, labels = f"{out}:{RAW_DATASET}", f"{out}:{LABELS_DATASET}"
    image, neurons = open_grey(raw), int(open_labels(labels).read().max())  # ids are compact
    with h5py.File(out, "r") as file:
        said = [str(file.attrs[key]) for key in ("source", "licence", "citation", "changes")]
    return Sample(raw, labels, image.size, image.resolution, neurons, *said)
