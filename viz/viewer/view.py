"""View a result in the browser with its image, ground truth and worst errors (`distill view`)."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from distill.core.errors import DistillError, ShapeError, SourceError
from distill.core.geometry import Nanometres
from distill.evaluation.metrics import ObjectError, WorstObjects
from distill.evaluation.worst_objects.locate import Spot, find_spots
from distill.io.readers.zarr import zarr_node, zarr_ranks
from distill.io.volume import NO_RESOLUTION, Volume, open_grey, open_labels, open_volume
from viz.viewer.neuroglancer import Mark, Shown, serve

_SEGMENTATION, _TRUTH = "segmentation", "ground truth"


@dataclass(frozen=True)
class Sources:
    """Sources to show with a store; None is omitted, except for the image, which defaults to the source of the
    store.
    """

    raw: str | None = None
    labels: str | None = None
    embedding: str | None = None
    evaluation: Path | None = None
    resolution: Nanometres | None = None  # of sources without one


def view(
    out: Path,
    sources: Sources,
    port: int,
    *,
    on_block: Callable[[int, int], None],
    note: Callable[[str], None],
    ready: Callable[[str, list[str]], None],
) -> None:
    """Serve a viewer until SIGINT or SIGTERM, which end it normally.

    Args:
        out: Zarr store of `distill stream` or `distill segment`.
        sources: sources to show with it.
        port: on 127.0.0.1; 0 selects a free one.
        on_block: called while errors are located, with the number of blocks read and their total.
        note: called with messages for the user.
        ready: called with the address and one line per error once the viewer responds.

    Raises:
        DistillError: bad input, Neuroglancer is not installed, or the port is in use.
    """
    shown = open_layers(out, sources, note)
    spots = find_errors(shown, sources.evaluation, on_block) if sources.evaluation else []
    segmentation = next((one.volume for one in shown if one.name == _SEGMENTATION), shown[0].volume)
    marks = [_mark(spot, segmentation) for spot in spots]
    with _stop_signals() as stopped, serve(shown, marks, port) as address:
        ready(address, [_line(mark, segmentation) for mark in marks])
        stopped.wait()


def open_browser(address: str) -> None:
    """Open the user's browser if there is a display; a text browser would occupy the terminal."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


def open_layers(out: Path, sources: Sources, note: Callable[[str], None]) -> list[Shown]:
    """Open the layers of a view; only headers are read.

    Raises:
        SourceError: the store contains nothing to show, or a source cannot be opened.
    """
    node = zarr_node(out) if out.is_dir() else None
    names = zarr_ranks(out) if node is not None and node[0].startswith("group") else {}
    if not {_SEGMENTATION, "affinity"} & names.keys():
        raise SourceError(
            f"{out}: found {', '.join(names) or 'no Zarr group'}, expected a store of distill stream or segment, "
            "with segmentation or affinity"
        )
    layers = []
    recorded = _resolution_of(out, names)
    raw = _raw(sources, node[1] if node is not None else {}, recorded, note)
    if raw is not None:
        layers.append(Shown("raw", "raw", raw))
    if _SEGMENTATION in names:
        layers.append(Shown(_SEGMENTATION, "labels", open_labels(f"{out}:{_SEGMENTATION}")))
    if sources.labels is not None:
        layers.append(Shown(_TRUTH, "labels", _opened(open_labels, sources.labels, sources, recorded)))
    affinity = open_volume(f"{out}:affinity") if "affinity" in names else None
    if affinity is not None:
        layers.append(Shown("affinity z y x", "affinity", affinity))
    given = sources.embedding or (f"{out}:embedding" if "embedding" in names else None)
    if given is not None:
        nm = sources.resolution if sources.embedding else None
        layers.append(Shown("embedding", "embedding", open_volume(given, resolution=nm), affinity))
    return layers


def find_errors(shown: list[Shown], evaluation: Path, on_block: Callable[[int, int], None]) -> list[Spot]:
    """Locate the worst objects of an evaluation.

    Raises:
        DistillError: the file is not output of `distill evaluate --json`, or belongs to other volumes.
    """
    volumes = {one.name: one.volume for one in shown}
    if _SEGMENTATION not in volumes:
        raise DistillError(f"--evaluation: {shown[-1].volume.source}: found no segmentation next to it, expected one")
    if _TRUTH not in volumes:
        raise DistillError("--labels: found none, expected the ground truth of the evaluation")
    try:
        return find_spots(volumes[_SEGMENTATION], volumes[_TRUTH], read_worst(evaluation), on_block)
    except ShapeError:
        raise
    except DistillError as error:
        raise DistillError(f"{evaluation}: is of other volumes: {error}") from None


def read_worst(path: Path) -> WorstObjects:
    """Read the worst objects from the output of `distill evaluate --json`.

    Raises:
        DistillError: the file cannot be read or has other content.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["worst"]
        return WorstObjects(*(tuple(ObjectError(**_checked(one)) for one in found[key]) for key in ("split", "merged")))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DistillError(f"{path}: found {reason}, expected what distill evaluate --json prints") from None


def _checked(one: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(value, int | float) for value in one.values()):
        raise TypeError(f"{one} among the worst objects")
    return one


def _resolution_of(out: Path, names: Collection[str]) -> Nanometres | None:
    """Return voxel size of a store, which is that of its image."""
    name = next((name for name in (_SEGMENTATION, "affinity") if name in names), None)
    return None if name is None else open_volume(f"{out}:{name}", missing="zero").resolution


def _raw(sources: Sources, attributes: Any, recorded: Nanometres | None, note: Callable[[str], None]) -> Volume | None:
    """Open the given image, or else the one recorded in the store, if it still exists."""
    if sources.raw is not None:
        return _opened(open_grey, sources.raw, sources, recorded)
    made_by = attributes.get("made_by")
    source = made_by.get("source") if isinstance(made_by, dict) else None
    if not isinstance(source, str):
        return None
    try:
        return open_grey(source, resolution=sources.resolution or recorded)
    except DistillError as error:
        note(f"no image: {error}; give it as --raw")
        return None


def _opened(opener: Callable[..., Volume], source: str, sources: Sources, recorded: Nanometres | None) -> Volume:
    """Open a source that may state no voxel size: it is that of the store then, unless the user gives one."""
    try:
        return opener(source, resolution=sources.resolution)
    except SourceError as error:
        if recorded is None or NO_RESOLUTION not in str(error):
            raise
    return opener(source, resolution=recorded)


def _mark(spot: Spot, segmentation: Volume) -> Mark:
    z, y, x = (
        o + (v + 0.5) * r for o, v, r in zip(segmentation.offset, spot.voxel, segmentation.resolution, strict=True)
    )
    own, other = (_TRUTH, _SEGMENTATION) if spot.kind == "split" else (_SEGMENTATION, _TRUTH)
    return Mark((z, y, x), spot.text, spot.short, {own: (spot.error.id,), other: tuple(p for p in spot.pieces if p)})


def _line(mark: Mark, segmentation: Volume) -> str:
    """Format an error and its position in the viewer's voxels."""
    x, y, z = (math.floor(p / r) for p, r in zip(mark.place[::-1], segmentation.resolution[::-1], strict=True))
    return f"{mark.text}; x {x}, y {y}, z {z}"


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Provide an event that SIGINT and SIGTERM set."""
    stopped = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
