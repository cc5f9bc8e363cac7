"""Blocks without networks: labels cut from a known volume under names of their own, and a run over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import distill.inference.blockwise.segment as recipe
import distill.inference.blockwise.worker as work_module
from distill.config import DecoderConfig
from distill.core.timing import StageTimer
from distill.inference.blockwise.corrections import Sections
from distill.inference.blockwise.networks import Solved, as_uint8
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.phases import Segmented
from distill.inference.blockwise.plan import Block, Plan, make_plan
from distill.inference.blockwise.segment import segment
from distill.inference.blockwise.worker import Work
from distill.inference.options import Callbacks, Options
from distill.io.volume import Volume
from distill.io.writers.cremi import write_cremi

CONFIG = DecoderConfig(block=(3, 16, 18), overlap=(1, 5, 4))
EXACT = Options(device="cpu", precision="32-true", backend="eager", merge=0.5)
Ids = NDArray[np.uint64]


def quiet(*_: Any) -> None:
    """Neither progress nor notes."""


def cells(shape: tuple[int, int, int], seed: int) -> NDArray[np.uint8]:
    """Labels 1.. of boxes of about 2 x 7 x 7 voxels, some of them alike, so that objects are larger than tiles."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 30, tuple(-(-n // k) for n, k in zip(shape, (2, 7, 7), strict=True)))
    fine: NDArray[np.uint8] = np.kron(coarse, np.ones((2, 7, 7), int))[tuple(slice(n) for n in shape)].astype(np.uint8)
    return fine


def edges(labels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """(3, Z, Y, X) affinities, high inside objects, anything between them."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 200, (3, *labels.shape)).astype(np.uint8)
    for axis in range(3):
        here: list[Any] = [slice(None)] * 3
        there = here.copy()
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        found[(axis, *here)][labels[tuple(here)] == labels[tuple(there)]] = 250
    return found


def piece(labels: NDArray[np.uint8], number: int) -> Ids:
    """Ids 1..n of the labels of a tile, in an order of its own; two of them are one, as a network errs."""
    rng = np.random.default_rng(number)
    there, own = np.unique(labels, return_inverse=True)
    names = rng.permutation(len(there)) + 1
    if len(there) > 3:
        names[1] = names[0]
    _, names = np.unique(names, return_inverse=True)
    return (names + 1)[own].reshape(labels.shape).astype(np.uint64)


class Known:
    """Stands in for a network: the source holds labels, and tiles give them back."""

    def __init__(self, whole: NDArray[np.uint8], method: str) -> None:
        self.affinity, self.method = edges(whole, 0), method
        self.solved: list[int] = []
        self.fails: dict[int, int] = {}  # how often a block fails

    def solve(self, block: Block, sections: Sections, timer: StageTimer) -> Solved:
        """See `Instances.solve`."""
        self.solved.append(block.index)
        if self.fails.get(block.index, 0):
            self.fails[block.index] -= 1
            raise RuntimeError("no such luck")
        with timer.timed("network"):
            stored = np.ascontiguousarray(self.affinity[(slice(None), *block.box.slices)])
        affinity = stored.astype(np.float32) / np.float32(255)
        boxes = block.tiles if self.method == "query" else ((block.index, block.box),)
        pieces = [(number, box, piece(sections.volume.read(box), number)) for number, box in boxes]
        assert (as_uint8(affinity) == stored).all()
        return Solved(pieces, affinity, stored, int(np.count_nonzero(sections.volume.read(block.owned) == 0)))


class Setting:
    """A source, and `distill segment` over it without a network."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.shape = folder, shape
        self.source, self.weights = folder / "labels.h5", folder / "weights"
        self.labels = cells(shape, 1)
        self.known = Known(self.labels, "query")
        self.config = CONFIG
        folder.mkdir(parents=True, exist_ok=True)
        write_cremi(self.source, raw=self.labels, resolution=(30, 6, 6))
        self.weights.write_text("a")
        monkeypatch.setattr(recipe, "_work", self.work)
        monkeypatch.setattr(
            work_module, "_tools", lambda work: work_module._Tools(Sections(self.volume(), 0, []), self.known)
        )

    def volume(self) -> Volume:
        """The source."""
        from distill.io.volume import open_volume

        return open_volume(self.source)

    def plan(self, block: tuple[int, int, int] | None) -> Plan:
        """How the source is cut."""
        return make_plan(self.shape, self.config, block or (3, 30, 30))

    def work(self, request: recipe.SegmentRequest, *rest: Any) -> Work:
        """In place of `_work`: no weights are loaded."""
        method = self.known.method
        text = Path(self.weights).read_text()
        return Work(
            source=request.source,
            resolution=None,
            first=0,
            weights=str(self.weights),
            weights_sha256=text,
            network="student",
            method=method,
            threshold=request.options.merge,
            store=str(request.out),
            plan=self.plan(request.blocking.block),
            halo=(0, 0),
            device="cpu",
            precision="32-true",
            backend="eager",
        )

    def run(self, out: Path, options: Options = EXACT, **more: Any) -> Segmented:
        """Segment."""
        callbacks = Callbacks(**{name: more.pop(name) for name in ("on_progress", "note") if name in more})
        return segment(str(self.source), "weights", out, options, Blocking(method="query", **more), callbacks)


def tree(store: Path) -> dict[str, bytes]:
    """All files of a store by path, without the time of day."""
    import json

    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "job.json":
                data = json.dumps(json.loads(data) | {"created": ""}).encode()
            found[path.relative_to(store).as_posix()] = data
    return found
