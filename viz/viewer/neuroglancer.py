"""Neuroglancer in the browser: layers that read on demand, served to localhost only.

Axes of volumes are z, y, x; the viewer's are x, y, z. Positions are in nm.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Nanometres
from distill.io.volume import Volume
from viz.embeddings.pca import Basis, fit_basis, scores

LayerKind = Literal["raw", "affinity", "embedding", "labels"]
Index = tuple[slice, ...]

_SAMPLE = 512  # voxels along y and x used to fit colours and contrast
_MESH_VOXELS = 2**26  # meshes require the whole volume in memory
_FEW = 0.05  # fraction of pixels
_SPREAD = 2.5  # standard deviations of an embedding's component between black and full colour
_GREY = "#uicontrol invlerp contrast(range=[{low}, {high}])\nvoid main() {{ emitGrayscale(contrast()); }}\n"
_RGB = (
    "#uicontrol float brightness slider(min=-1, max=1, default=0)\n"
    "void main() {{ emitRGB(vec3({0}(getDataValue(0)), {0}(getDataValue(1)), {0}(getDataValue(2))) + brightness); }}\n"
)
_SHOWN = {"b": np.uint8, "f": np.float32, "i": np.int32, "u": np.uint32}  # for types not supported by the browser
_KEYS = "Keys: j next, k previous, x all segments; in the list a left click shows the ids, a right click goes there"
_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")


@dataclass(frozen=True)
class Shown:
    """A volume to show.

    Attributes:
        name: of the layer.
        kind: rendering: grey values, the first three channels as red, green and blue, the first three principal
            components as red, green and blue, or one colour per id.
        volume: (z, y, x), with channels for `affinity` and `embedding`.
        inside: affinity of the same voxels, for an embedding whose colours are fitted to the pixels inside neurites.
    """

    name: str
    kind: LayerKind
    volume: Volume
    inside: Volume | None = None


@dataclass(frozen=True)
class Mark:
    """A position to jump to: z, y, x in nm, a one-line and a short description, and the ids to select by layer."""

    place: Nanometres
    text: str
    short: str
    ids: dict[str, tuple[int, ...]]


class Reader:
    """Array interface for Neuroglancer: shape, type, and parts that are read on demand."""

    def __init__(self, volume: Volume, channels: int | None = None) -> None:
        """Wrap a volume.

        Args:
            volume: (z, y, x) or (c, z, y, x).
            channels: number of channels to show; default: all.
        """
        self._volume = volume
        self.shape = volume.shape if channels is None else (channels, *volume.size)
        self.dtype = np.dtype(volume.dtype if volume.dtype.name in _TYPES else _SHOWN[volume.dtype.kind])

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Read the part given by slices with start and stop, one per axis."""
        z, y, x = index[-3:]
        block = self._shown(self._volume.read(Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))))
        return np.asarray(block[index[0]] if block.ndim == 4 else block, dtype=self.dtype)

    def _shown(self, block: NDArray[Any]) -> NDArray[Any]:
        return block

    def transpose(self) -> NDArray[Any]:
        """Read the entire volume with reversed axes; used only for meshes."""
        return np.transpose(self[tuple(slice(0, extent) for extent in self.shape)])


class ColourReader(Reader):
    """An embedding as (3, z, y, x) uint8: principal components of a sample, with the same scale everywhere."""

    def __init__(self, volume: Volume, inside: Volume | None = None) -> None:
        """Fit the colours to the middle of the volume.

        Args:
            volume: (E, z, y, x) embedding.
            inside: affinity (c, z, y, x), z, y and x first; pixels with an in-plane affinity of at most one half are
                excluded, because membranes vary most and would dominate the colours. Ignored if it lies elsewhere or
                leaves too few pixels.

        Raises:
            DistillError: see `viz.embeddings.pca.fit_basis`.
        """
        super().__init__(volume, 3)
        self.dtype = np.dtype(np.uint8)
        sample = volume.read(middle_section(volume))[:, 0].astype(np.float32)
        if inside is not None and (inside.size, inside.offset) == (volume.size, volume.offset):
            affinity = inside.read(middle_section(volume))[1:3, 0].mean(0)
            chosen = affinity > (127.5 if inside.dtype.kind == "u" else 0.5)
            sample = sample[:, chosen] if chosen.mean() > _FEW else sample
        self.basis: Basis = fit_basis(sample)

    def _shown(self, block: NDArray[Any]) -> NDArray[Any]:
        flat = scores(block.reshape(len(block), -1).astype(np.float32), self.basis)
        rgb: NDArray[np.uint8] = np.rint(np.clip(flat / (2 * _SPREAD) + 0.5, 0, 1) * 255).astype(np.uint8)
        return rgb.reshape(3, *block.shape[1:])


def middle_section(volume: Volume) -> Box:
    """Return the middle of the middle section."""
    z, y, x = volume.size
    top, left = (max(0, (extent - _SAMPLE) // 2) for extent in (y, x))
    return Box((z // 2, top, left), (z // 2 + 1, min(y, top + _SAMPLE), min(x, left + _SAMPLE)))


@contextmanager
def serve(shown: Sequence[Shown], marks: Sequence[Mark], port: int = 0) -> Iterator[str]:
    """Serve a viewer to localhost while the block runs.

    Args:
        shown: layers, at least one.
        marks: positions, listed next to the sections; the viewer opens at the first, or else in the middle of the
            result.
        port: TCP port on 127.0.0.1; 0 selects a free one.

    Yields:
        The address. It contains a random token, which the server requires.

    Raises:
        DistillError: Neuroglancer is not installed, the port is not available, or a layer cannot be shown.
    """
    neuroglancer = _neuroglancer()
    state = viewer_state(shown, marks)
    _check_port(port)
    neuroglancer.set_server_bind_address("127.0.0.1", port)
    viewer = neuroglancer.Viewer(allow_credentials=False)
    try:
        viewer.set_state(state)
        if marks:
            _Tour(viewer, shown, marks)
        yield viewer.get_viewer_url()
    finally:
        neuroglancer.stop()


def viewer_state(shown: Sequence[Shown], marks: Sequence[Mark] = ()) -> Any:
    """Build Neuroglancer's state for layers and positions; arguments and errors as `serve`.

    Every layer except the image has its own panel, with the image below it. One more shows the selected objects of the
    first labels in 3D, if they are small enough for meshes. Four or more panels are arranged in two rows.
    """
    neuroglancer = _neuroglancer()
    unit = _unit(shown)
    state = neuroglancer.ViewerState()
    state.title = unit.source
    state.dimensions = _space(unit, "xyz")
    state.display_dimensions = ["x", "y", "z"]
    state.position = [o + n / 2 for o, n in zip(_voxels(unit.offset, unit), unit.size, strict=True)][::-1]
    state.cross_section_scale = max(unit.size[1:]) / 640
    for one in shown:
        state.layers.append(name=one.name, layer=_layer(one))
    if marks:
        labelled = [one.name for one in shown if one.kind == "labels"]
        state.layers.append(name="errors", layer=_mark_layer(unit, marks, labelled))
        state.selected_layer = neuroglancer.SelectedLayerState(layer="errors", visible=True, size=300)
        go_to(state, marks[0], unit)
    raw = [one.name for one in shown if one.kind == "raw"]
    over = ["errors"] if marks else []
    groups = [[*raw, one.name, *over] for one in shown if one.kind != "raw"] or [[*raw, *over]]
    panels = [neuroglancer.LayerGroupViewer(layers=names, layout="xy") for names in groups]
    solid = next((one.name for one in shown if one.kind == "labels" and _has_meshes(one.volume)), None)
    if solid is not None:
        panels.append(neuroglancer.LayerGroupViewer(layers=[solid, *over], layout="3d"))
        state.show_slices = False  # they would hide the surfaces
    across = len(panels) if len(panels) < 4 else 2
    rows = [neuroglancer.row_layout(panels[k : k + across]) for k in range(0, len(panels), across)]
    state.layout = rows[0] if len(rows) == 1 else neuroglancer.column_layout(rows)
    return state


def go_to(state: Any, mark: Mark, unit: Volume) -> None:
    """Move a viewer's state to a position and select its ids; other ids fade."""
    state.position = _voxels(mark.place, unit)[::-1]
    for layer in state.layers:
        if layer.type == "segmentation":
            layer.layer.segments = mark.ids.get(layer.name, ())


class _Tour:
    """Key bindings that step through the marked positions."""

    def __init__(self, viewer: Any, shown: Sequence[Shown], marks: Sequence[Mark]) -> None:
        self._viewer, self._unit, self._marks, self._at = viewer, _unit(shown), marks, 0
        for name, step in (("next-error", 1), ("previous-error", -1)):
            viewer.actions.add(name, partial(self._move, step))
        with viewer.config_state.txn() as config:
            config.input_event_bindings.viewer["keyj"] = "next-error"
            config.input_event_bindings.viewer["keyk"] = "previous-error"
        self._say()

    def _move(self, step: int, _: object) -> None:
        self._at = (self._at + step) % len(self._marks)
        with self._viewer.txn() as state:
            go_to(state, self._marks[self._at], self._unit)
        self._say()

    def _say(self) -> None:
        text = f"error {self._at + 1} of {len(self._marks)}: {self._marks[self._at].text}"
        with self._viewer.config_state.txn() as config:
            config.status_messages["error"] = f"{text}. {_KEYS}"


def _check_port(port: int) -> None:
    """Try the port before the server does, because a failing server leaves a socket open."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise DistillError(f"--port: {port} cannot be had: {error.strerror or error}") from None


def _unit(shown: Sequence[Shown]) -> Volume:
    """Return the volume whose voxels are the viewer's unit: the first result, otherwise the image."""
    return next((one.volume for one in shown if one.kind != "raw"), shown[0].volume)


def _neuroglancer() -> Any:
    try:
        import neuroglancer
    except ImportError:
        raise DistillError(
            "view: Neuroglancer is not installed, expected the extra: pip install 'affinity-distill[view]'"
        ) from None
    return neuroglancer


def _space(volume: Volume, axes: str) -> Any:
    """Return the coordinate space of a volume's voxels."""
    scales = dict(zip("zyx", volume.resolution, strict=True))
    names = ["c^" if axis == "c" else axis for axis in axes]
    return _neuroglancer().CoordinateSpace(
        names=names,
        units=["" if axis == "c" else "nm" for axis in axes],
        scales=[1 if axis == "c" else scales[axis] for axis in axes],
    )


def _voxels(place: Sequence[float], volume: Volume) -> list[float]:
    """Convert a position in nm to units of a volume's voxels, from the world's origin."""
    return [p / r for p, r in zip(place, volume.resolution, strict=True)]


def _layer(one: Shown) -> Any:
    neuroglancer = _neuroglancer()
    volume = one.volume
    if (volume.channels is None) != (one.kind in ("raw", "labels")):
        wanted = "z, y, x" if one.kind in ("raw", "labels") else "channels, z, y, x"
        raise ShapeError(f"{volume.source}: found shape {volume.shape}, expected {wanted} for the {one.kind} layer")
    if one.kind == "labels":
        return neuroglancer.SegmentationLayer(
            source=_source(volume, Reader(volume), "segmentation", _has_meshes(volume)),
            selected_alpha=0.35,
            not_selected_alpha=0.1,
        )
    if one.kind == "raw":
        low, high = np.percentile(volume.read(middle_section(volume)), (0.2, 99.8))
        shader = _GREY.format(low=float(low), high=float(high) if high > low else float(low) + 1)
        return neuroglancer.ImageLayer(source=_source(volume, Reader(volume), "image"), shader=shader, opacity=1.0)
    if one.kind == "affinity" and (volume.channels or 0) < 3:
        raise ShapeError(f"{volume.source}: found {volume.channels} channels, expected at least 3, z, y and x")
    reader = ColourReader(volume, one.inside) if one.kind == "embedding" else Reader(volume, 3)
    shader = _RGB.format("toNormalized" if reader.dtype.kind == "u" else "float")
    return neuroglancer.ImageLayer(source=_source(volume, reader, "image"), shader=shader, opacity=1.0)


def _has_meshes(volume: Volume) -> bool:
    return math.prod(volume.size) <= _MESH_VOXELS


def _source(volume: Volume, reader: Reader, kind: str, meshes: bool = True) -> Any:
    """Place a volume; a fraction of a voxel, which the viewer does not accept as an offset, becomes a transform."""
    neuroglancer = _neuroglancer()
    axes = "czyx"[-len(reader.shape) :]
    start = [0.0] * (len(axes) - 3) + _voxels(volume.offset, volume)
    whole = [math.floor(s + 1e-3) for s in start]
    space = _space(volume, axes)
    local = neuroglancer.LocalVolume(
        reader, dimensions=space, voxel_offset=whole, volume_type=kind, downsampling="2d", encoding="npz"
    )
    part = np.array(start) - whole
    source = neuroglancer.LayerDataSource(local)
    if np.abs(part).max() > 1e-3:
        matrix = np.column_stack([np.eye(len(axes)), part])
        source.transform = neuroglancer.CoordinateSpaceTransform(output_dimensions=space, matrix=matrix)
    if not meshes:
        source.enable_default_subsources = False
        source.subsources = {"default": True}
    return source


def _mark_layer(unit: Volume, marks: Sequence[Mark], labelled: Sequence[str]) -> Any:
    """Build the list of positions; each is linked to its ids in the layers named `labelled`, which a click on it
    shows.
    """
    neuroglancer = _neuroglancer()
    return neuroglancer.LocalAnnotationLayer(
        dimensions=_space(unit, "xyz"),
        annotations=[
            neuroglancer.PointAnnotation(
                id=str(number),
                point=_voxels(mark.place, unit)[::-1],
                description=f"{number}. {mark.short}",
                segments=[mark.ids.get(name, ()) for name in labelled],
            )
            for number, mark in enumerate(marks, 1)
        ],
        annotation_relationships=list(labelled),
        linked_segmentation_layer={name: name for name in labelled},
        annotation_color="#ffd400",
        tab="annotations",
        shader="void main() { setColor(defaultColor()); setPointMarkerSize(9.0); }",
    )
