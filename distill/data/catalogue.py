"""Catalogue of public volumes with neuron labels: locations, licences and published splits.

The entries were taken from the data sets' own pages and from published code that downloads them. What neither states is
None and is shown as unknown. None of the addresses has been tested.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from distill.core.errors import DistillError
from distill.core.geometry import Nanometres, Triple


@dataclass(frozen=True)
class RemoteFile:
    """A downloadable file.

    Attributes:
        name: file name on disk, optionally with a folder and `/`.
        url: None if a browser or an account is needed.
        checksum: `sha256:...` or `md5:...`; None = unknown.
        megabytes: approximate size; None = unknown.
    """

    name: str
    url: str | None
    checksum: str | None = None
    megabytes: int | None = None


@dataclass(frozen=True)
class CatalogueVolume:
    """A volume to extract from the files: NAME.h5 in CREMI layout.

    Attributes:
        name: of the volume and of its file.
        raw: FILE[:DATASET] or a pattern of section images, `/` separated, matched from the end of a path.
        labels: as `raw`; None = no labels.
        shape: z, y, x; None = unknown.
        bodies: dataset with pairs (id, neuron), stored next to labels that are supervoxels.
    """

    name: str
    raw: str
    labels: str | None
    shape: Triple | None = None
    bodies: str | None = None


@dataclass(frozen=True)
class PublicData:
    """A public data set.

    Attributes:
        name: name for `distill data get`.
        title: short description.
        resolution: nm, z y x.
        files: files of the data set.
        cuts: volumes to extract; none if the file is already a CREMI file.
        page: web page.
        by_hand: instructions for a manual download; None if the files can be downloaded directly.
        licence: None = unknown.
        citation: with DOI if there is one.
        split: split used in publications.
        note: further remarks.
    """

    name: str
    title: str
    resolution: Nanometres
    files: tuple[RemoteFile, ...]
    cuts: tuple[CatalogueVolume, ...]
    page: str
    by_hand: str | None
    licence: str | None
    citation: str
    split: str
    note: str = ""


_CREMI_BASE = "https://cremi.org/static/data/"
_CREMI_CITED = "Funke, Saalfeld, Bock, Turaga, Perlman: MICCAI Challenge on Circuit Reconstruction from EM Images, 2016"
_CREMI_SHA = {
    "a": "sha256:4c563d1b78acb2bcfb3ea958b6fe1533422f7f4a19f3e05b600bfa11430b510d",
    "b": "sha256:887e85521e00deead18c94a21ad71f278d88a5214c7edeed943130a1f4bb48b8",
    "c": "sha256:2874496f224d222ebc29d0e4753e8c458093e1d37bc53acd1b69b19ed1ae7052",
}
_FIB25_SHA = {
    "training_sample2/grayscale_maps": "ea031c98ee2de778a9a3a1e6d410df5de73e4ac28022df8e7255d84e3394cafa",
    "training_sample2/groundtruth": "fd508e7aee1fe51ac9ae0460db4a841d275236f013c1f2552314b4f21b1010ea",
    "validation_sample/grayscale_maps": "400ccb2a7268a3880c63656e0d794f8e6252e62031869455cc8caeef245b2a83",
    "validation_sample/groundtruth": "2c5e31af0af5476bc9669b88d01a4570a26eb020799eaf6131aa75f2f7d92e98",
}
_KASTHURI = (
    "Kasthuri et al.: Saturated Reconstruction of a Volume of Neocortex, Cell 2015, doi 10.1016/j.cell.2015.06.054"
)


def _cremi(letter: str) -> tuple[PublicData, ...]:
    """Return the training volume, the padded training volume and the test volume of one sample."""
    upper, nm = letter.upper(), (40.0, 4.0, 4.0)
    page, split = "https://cremi.org/data", "first 100 sections for training, last 25 for test (125 in all)"
    plain, padded = f"sample_{upper}_20160501.hdf", f"sample_{upper}_padded_20160501.hdf"
    test = f"sample_{upper}%2B_20160601.hdf"
    place = f"CREMI sample {upper}, adult fly brain, ssTEM"
    return (
        PublicData(
            f"cremi-{letter}",
            f"{place}: 125 x 1250 x 1250 with neuron, cleft and partner labels",
            nm,
            (RemoteFile(plain, _CREMI_BASE + plain, _CREMI_SHA[letter], 170),),
            (),
            page,
            None,
            None,
            _CREMI_CITED,
            split,
        ),
        PublicData(
            f"cremi-{letter}-padded",
            f"{place}: the same labels within a larger image",
            nm,
            (RemoteFile(padded, _CREMI_BASE + padded),),
            (),
            page,
            None,
            None,
            _CREMI_CITED,
            split,
            "the labels' offset says where they lie in the image",
        ),
        PublicData(
            f"cremi-{letter}-test",
            f"CREMI sample {upper}+, adult fly brain, ssTEM: the challenge's test volume",
            nm,
            (RemoteFile(test.replace("%2B", "+"), _CREMI_BASE + test),),
            (),
            page,
            None,
            None,
            _CREMI_CITED,
            "test; labels were never published",
            "section 51 of A+ is all zeros: stream it with --on-bad" if letter == "a" else "",
        ),
    )


DATASETS: tuple[PublicData, ...] = (
    *_cremi("a"),
    *_cremi("b"),
    *_cremi("c"),
    PublicData(
        "snemi3d",
        "SNEMI3D, mouse cortex, ssSEM, 100 x 1024 x 1024 each: AC4 with neuron labels, first sections of AC3 without",
        (30.0, 6.0, 6.0),
        (
            RemoteFile(
                "snemi.zip",
                "https://zenodo.org/records/7142003/files/snemi.zip?download=1",
                "md5:3d25a7025f66698f33c7850ace885939",
                195,
            ),
        ),
        (
            CatalogueVolume("snemi3d-train", "train-input.tif", "train-labels.tif", (100, 1024, 1024)),
            CatalogueVolume("snemi3d-test", "test-input.tif", None, (100, 1024, 1024)),
        ),
        "https://zenodo.org/records/7142003",
        None,
        "CC BY 4.0",
        f"{_KASTHURI}; data doi 10.5281/zenodo.7142003",
        "CAD: sections 0-79 of AC4 for training, 80-99 for validation, AC3 (first 100) for test",
        "the challenge's own pages ask for an account; Zenodo does not. It never published labels of its test volume",
    ),
    PublicData(
        "ac3-ac4",
        "AC3 (256 x 1024 x 1024) and AC4 (100 x 1024 x 1024), mouse cortex, ssSEM, both with neuron labels",
        (30.0, 6.0, 6.0),
        (),
        (
            CatalogueVolume("ac4", "AC4_inputs.h5:main", "AC4_labels.h5:main"),
            CatalogueVolume("ac3", "AC3_inputs.h5:main", "AC3_labels.h5:main"),
        ),
        "https://github.com/weih527/SSNS-Net",
        "follow 'Datasets, Download (Processed)', AC3/AC4, to Google Drive or Baidu (code weih); save AC3_inputs.h5, "
        "AC3_labels.h5, AC4_inputs.h5 and AC4_labels.h5 into one folder",
        None,
        _KASTHURI,
        "AGQ and CAD train on AC4 and test on the first 100 sections of AC3",
        "names of files and datasets are those that the published code opens; rename what you find to them",
    ),
    PublicData(
        "wafer4",
        "Wafer4, mouse medial entorhinal cortex, multi-beam SEM: 125 x 1250 x 1250 with neuron labels",
        (35.0, 8.0, 8.0),
        (
            RemoteFile(
                "wafer4_inputs.h5",
                None,
                "sha256:5bb64ae54d5d89a501b6942a999a4210eb178671293b5053ad63e12211df603a",
            ),
            RemoteFile(
                "wafer4_labels.h5",
                None,
                "sha256:7d3eab21447a0efe327b5192303cc8df8f74ca280eb04e020cbe7dc27beb59c4",
            ),
        ),
        (CatalogueVolume("wafer4", "wafer4_inputs.h5:main", "wafer4_labels.h5:main", (125, 1250, 1250)),),
        "https://github.com/liuxy1103/CAD",
        "follow 'Wafer4 Dataset' to Google Drive; save wafer4_inputs.h5 and wafer4_labels.h5 into one folder",
        "CC BY-NC 4.0",
        "Liu et al.: Cross-dimension Affinity Distillation for 3D EM Neuron Segmentation, CVPR 2024, "
        "doi 10.1109/CVPR52733.2024.01056",
        "first 100 sections for training, last 25 for test",
    ),
    PublicData(
        "fib25",
        "FIB-25, fly medulla, FIB-SEM: FlyEM's training sample (250 x 250 x 250) and validation sample, neuron labels",
        (10.0, 10.0, 10.0),
        tuple(
            RemoteFile(f"{name}.h5", f"https://storage.googleapis.com/ffn-flyem-fib25/{name}.h5", f"sha256:{sha}")
            for name, sha in _FIB25_SHA.items()
        ),
        tuple(
            CatalogueVolume(
                name, f"{folder}/grayscale_maps.h5:raw", f"{folder}/groundtruth.h5:stack", bodies="transforms"
            )
            for name, folder in (("fib25-train", "training_sample2"), ("fib25-validation", "validation_sample"))
        ),
        "https://github.com/google/ffn",
        None,
        "ODC-By 1.0",
        "Takemura et al.: Synaptic circuits and their variations within different columns in the visual system of "
        "Drosophila, PNAS 2015, doi 10.1073/pnas.1509820112",
        "FlyEM: training_sample2 for training, validation_sample for test",
        "isotropic; Neuroglancer's copy of the volume says 8 nm. Every 4th section gives an anisotropic volume",
    ),
    PublicData(
        "vnc",
        "Larval fly ventral nerve cord, ssTEM: two stacks of 20 sections of 1024 x 1024, without neuron ids",
        (50.0, 4.6, 4.6),
        (
            RemoteFile(
                "groundtruth-drosophila-vnc.zip",
                "https://github.com/unidesigner/groundtruth-drosophila-vnc/archive/refs/heads/master.zip",
            ),
        ),
        (
            CatalogueVolume("vnc-stack1", "stack1/raw/*.tif", None, (20, 1024, 1024)),
            CatalogueVolume("vnc-stack2", "stack2/raw/*.tif", None, (20, 1024, 1024)),
        ),
        "https://doi.org/10.6084/m9.figshare.856713",
        None,
        "CC BY-NC-SA 3.0",
        "Gerhard et al.: Segmented anisotropic ssTEM dataset of neural tissue, figshare 2013, "
        "doi 10.6084/m9.figshare.856713",
        "none in the papers; sections without labels, for trying streams",
        "GitHub packs the archive on request, so that its checksum may change",
    ),
)


def dataset(name: str) -> PublicData:
    """Return a data set by its name.

    Raises:
        DistillError: the name is unknown; the message suggests the nearest ones.
    """
    known = {one.name: one for one in DATASETS}
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.3) or list(known)
        raise DistillError(f"data: found {name!r}, expected a name such as {', '.join(near)}; see distill data list")
    return known[name]
