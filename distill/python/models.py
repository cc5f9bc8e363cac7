"""Trained models on grey values in memory: affinities and neurons as arrays.

Legend: D H W = z y x.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import from_uint8
from distill.core.choices import METHODS, Method, Network, check_merge
from distill.core.errors import DistillError
from distill.core.geometry import Nanometres, Triple
from distill.core.hardware import AUTO
from distill.inference.blockwise.networks import as_uint8
from distill.inference.fragments import fragments_for, segment_fragments, threshold_note
from distill.inference.grey_values import GreyValues, normaliser_of
from distill.inference.in_memory import student_sections, student_volume, teacher_affinity, teacher_volume
from distill.inference.options import Options, Runtime, threshold_of
from distill.inference.rescaling.voxel_size import on_grid_of, trained_resolution
from distill.io.volume import Volume, checked_resolution, open_grey, volume_from_array
from distill.models.load import TrainedStudent, TrainedTeacher, load_student, load_teacher, pick_device
from distill.segmentation.agglomeration import merged_above, waterz
from distill.segmentation.mutex_watershed import mutex_watershed
from distill.segmentation.supervoxels import supervoxels

Grey = ArrayLike | Volume | str | Path
Progress = Callable[[int, int], None]  # sections done and their number

_UNKNOWN: Nanometres = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Segmentation:
    """Neurons of a volume.

    Attributes:
        labels: (D, H, W) uint64, ids from 1 on; 0 where there is none.
        affinity: (3, D, H, W) float32 in [0, 1] that the neurons were grown from; edges to the previous voxel along z,
            y, x.
        method: that made them.
        merge: threshold above which supervoxels were merged; None: not merged.
        resolution: voxel size z, y, x in nm; None if unknown.
    """

    labels: NDArray[np.uint64]
    affinity: NDArray[np.float32]
    method: Method
    merge: float | None
    resolution: Nanometres | None

    @property
    def objects(self) -> int:
        """Number of neurons, or parts of them."""
        return len(np.unique(self.labels[self.labels > 0]))

    def __repr__(self) -> str:
        """Describe the segmentation in one line."""
        size = " x ".join(str(n) for n in self.labels.shape)
        merge = "" if self.merge is None else f", merged above {self.merge:g}"
        nm = "" if self.resolution is None else f", voxels of {_size(self.resolution)} nm"
        return f"Segmentation({self.objects} objects in {size} voxels by {self.method}{merge}{nm})"

    def _repr_html_(self) -> str:
        """Show the middle section in a notebook, at most 512 pixels wide."""
        from distill.python.pictures import ids_html

        middle = len(self.labels) // 2
        return ids_html(self.labels[middle], f"section {middle} of {self!r}")


class Model:
    """A trained network that is ready to run. Made by `load`."""

    def __init__(self, trained: TrainedStudent | TrainedTeacher, runtime: Runtime, name: str) -> None:
        self._trained, self._runtime, self.name = trained, runtime, name

    @property
    def network(self) -> Network:
        """Return which network it is: `student` or `teacher`."""
        return "student" if isinstance(self._trained, TrainedStudent) else "teacher"

    @property
    def resolution(self) -> Nanometres | None:
        """Return voxel size z, y, x in nm of the data that it was trained on; None if the file does not state it."""
        return trained_resolution(self._trained.notes)

    @property
    def path(self) -> Path:
        """Return the path of the weights file."""
        return self._trained.path

    def __repr__(self) -> str:
        """Describe the model in one line."""
        nm = "" if self.resolution is None else f", trained on voxels of {_size(self.resolution)} nm"
        return f"Model({self.name!r}, {self.network}{nm}, {self._runtime.device}, {self._runtime.precision})"

    def affinities(
        self,
        raw: Grey,
        *,
        resolution: Nanometres | None = None,
        normalise: str | None = None,
        invert: bool = False,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Predict affinities.

        Args:
            raw: (D, H, W) array of any type and memory order, a volume, or its path. Sections must be whole: their grey
                values are normalised one by one.
            resolution: voxel size z, y, x in nm, for arrays and files that do not state it; replaces the size that a
                volume or file states. A size other than the model's is reported as a warning.
            normalise: kind of normalisation instead of the model's own.
            invert: dark and bright are exchanged.
            progress: called with the sections done and their number.

        Returns:
            (3, D, H, W) float32 in [0, 1]: edges to the previous voxel along z, y, x.

        Raises:
            DistillError: grey values that cannot be normalised, or too few sections.

        Example:
            >>> distill.load("ac4", device="cpu").affinities(raw).shape == (3, *raw.shape)
            True
        """
        return self._affinity(self._opened(raw, resolution), GreyValues(normalise, invert), progress)

    def segment(
        self,
        raw: Grey,
        *,
        method: Method = "flood",
        merge: float | None = None,
        fragments: str | Path | None = None,
        resolution: Nanometres | None = None,
        normalise: str | None = None,
        invert: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment neurons of a volume that fits in memory.

        Args:
            raw: as for `affinities`.
            method: `flood` (supervoxels merged by their contacts), `query` (the query decoder), `waterz` (watershed and
                agglomeration), `mws` (mutex watershed), or `fragments` (watershed fragments merged by a transformer).
            merge: threshold; None = the model's own, chosen on its validation sections, or the method's default.
            fragments: file of `distill fragments`, for the method `fragments`.
            resolution: as for `affinities`.
            normalise: as for `affinities`.
            invert: as for `affinities`.
            progress: as for `affinities`.

        Raises:
            DistillError: an unknown method, a threshold out of range, a model without a decoder under `query`, or as
                for `affinities`.

        Example:
            >>> distill.load("ac4", device="cpu").segment(raw, method="waterz", merge=0.4)
            Segmentation(... objects in 3 x 96 x 96 voxels by waterz, merged above 0.4, voxels of 30 x 6 x 6 nm)
        """
        if method not in METHODS:
            raise DistillError(f"method: found {method!r}, expected one of {', '.join(METHODS)}")
        check_merge(merge)
        volume, grey = self._opened(raw, resolution), GreyValues(normalise, invert)
        digest = sha256(self.path.read_bytes()).hexdigest() if method == "fragments" else None
        scorer = fragments_for(method, None if fragments is None else Path(fragments), digest, str(self.path))
        threshold = threshold_of(method, Options(merge=merge), self._trained.notes | threshold_note(scorer))
        known = None if volume.resolution == _UNKNOWN else volume.resolution
        if method == "query":
            labels, affinity = self._query(volume, grey, threshold, progress)
            return Segmentation(labels, affinity, method, threshold, known)
        affinity = self._affinity(volume, grey, progress)
        assert threshold is not None, "methods without a decoder have a threshold"
        if method == "flood":
            grown = supervoxels(as_uint8(affinity))
            labels = merged_above(grown, affinity, [threshold])[threshold]
        elif scorer is not None:
            labels = segment_fragments(affinity, scorer, [threshold], self._runtime.device)[threshold]
        elif method == "waterz":
            labels = waterz(affinity, [threshold])[threshold]
        else:
            labels = mutex_watershed(affinity, NEAREST, bias=threshold)
        return Segmentation(labels.astype(np.uint64, copy=False), affinity, method, threshold, known)

    def _opened(self, raw: Grey, resolution: Nanometres | None) -> Volume:
        if isinstance(raw, str | Path):
            volume = open_grey(raw, resolution=resolution)
        elif isinstance(raw, Volume):
            volume = raw if resolution is None else replace(raw, resolution=checked_resolution(raw.source, resolution))
        else:
            own = resolution or self.resolution or _UNKNOWN
            volume = volume_from_array(np.asarray(raw), own, source="raw")
        if len(volume.shape) != 3:
            raise DistillError(f"{volume.source}: found shape {volume.shape}, expected (z, y, x)")
        if 0 in volume.shape:
            raise DistillError(f"{volume.source}: found shape {volume.shape}, expected at least one voxel")
        if volume.resolution != _UNKNOWN:
            on_grid_of([self._trained], volume, rescale=False, note=_warn, results="", otherwise="")
        return volume

    def _with(self, grey: GreyValues, volume: Volume) -> TrainedStudent | TrainedTeacher:
        normaliser = normaliser_of(self._trained, grey)
        normaliser.check(volume.dtype)
        return replace(self._trained, normaliser=normaliser)

    def _affinity(self, volume: Volume, grey: GreyValues, progress: Progress | None) -> NDArray[np.float32]:
        trained = self._with(grey, volume)
        if isinstance(trained, TrainedTeacher):
            return teacher_affinity(trained, volume.read(), self._runtime, progress)
        affinity = np.zeros((3, *volume.size), dtype=np.float32)
        found = student_sections(trained, volume.sections(), self._runtime, with_slab=False)
        for z, section in enumerate(found):
            affinity[:, z] = from_uint8(section.affinity)
            if progress is not None:
                progress(z + 1, volume.size[0])
        return affinity

    def _query(
        self, volume: Volume, grey: GreyValues, threshold: float | None, progress: Progress | None
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        trained = self._with(grey, volume)
        if isinstance(trained, TrainedTeacher):
            found = teacher_volume(trained, volume.read(), self._runtime, progress)
        else:
            if trained.decoder is None:
                raise DistillError(
                    f"{trained.path}: found no query decoder, expected one; segment with method flood, waterz or mws"
                )
            found = student_volume(trained, volume.sections(), volume.size, self._runtime, progress)
        return found.labels(threshold), found.affinity


def load(model: str | Path, *, network: Network = "student", device: str = "auto", precision: str = AUTO) -> Model:
    """Load a trained model.

    Args:
        model: name of a bundled model, such as `ac4`, a run folder, or a weights file. Published checkpoints are
            converted by `distill convert` first.
        network: which of a model's two networks.
        device: `auto`, `cpu` or `cuda`.
        precision: see `distill.core.hardware`.

    Returns:
        The model, ready for `affinities` and `segment`.

    Raises:
        CheckpointError: there is no such model; the message lists what there is.
        DistillError: no such device or precision.

    Example:
        >>> distill.load("ac4", device="cpu", precision="32-true")
        Model('ac4', student, trained on voxels of 30 x 6 x 6 nm, cpu, 32-true)
    """
    if network not in ("student", "teacher"):
        raise DistillError(f"network: found {network!r}, expected student or teacher")
    runtime = Runtime(pick_device(device), precision)
    trained: TrainedStudent | TrainedTeacher
    if network == "student":
        trained = load_student(str(model), runtime.device)
    else:
        trained = load_teacher(str(model), runtime.device)
    return Model(trained, runtime, str(model))


def _warn(text: str) -> None:
    """Warn of voxels that the model does not know; resampling is a matter of the caller's arrays."""
    warnings.warn(text.removeprefix("warning: ").partition("; --rescale")[0], UserWarning, stacklevel=5)


def _size(numbers: Nanometres | Triple) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
