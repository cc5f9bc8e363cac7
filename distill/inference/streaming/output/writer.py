"""Writer thread: collect a layer, flush it to disk, then record its sections as complete in the manifest.

Legend: K offsets, E embedding channels, L sections of a layer, H W = y x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.timing import StageTimer
from distill.inference.streaming.output.manifest import STREAM_FOLDER, Journal, Line, now
from distill.inference.streaming.output.store import StreamStore
from distill.inference.streaming.rescaled import OnRecorded
from distill.inference.streaming.slabs import SlabResult, write_slab_table
from distill.inference.streaming.threads import Pipe


@dataclass(frozen=True)
class Done:
    """Outputs of a section, None for a bad one, and its manifest entry."""

    line: Line
    affinity: NDArray[np.uint8] | None  # (K, H, W)
    embedding: NDArray[Any] | None  # (E, H, W)


@dataclass(frozen=True)
class PieceDone:
    """Part of the next section, written immediately."""

    z: int
    rows: slice
    columns: slice
    affinity: NDArray[np.uint8]  # (K, h, w)
    embedding: NDArray[Any] | None  # (E, h, w)


@dataclass(frozen=True)
class Commit:
    """Event: all data of the sections so far have been sent, so they may be recorded as complete."""


@dataclass(frozen=True)
class End:
    """Event: no more data follow; holds the number of sections if the stream has ended."""

    total: int | None


Event = Done | PieceDone | SlabResult | Commit | End


class Writer:
    """Processes events in order."""

    def __init__(
        self,
        store: StreamStore,
        journal: Journal,
        first: int,
        stages: StageTimer,
        on_section: Callable[[int], None],
        *,
        grows: bool,
        in_pieces: bool,
        recorded: OnRecorded | None = None,
    ) -> None:
        """Start at section `first`, the beginning of a layer.

        Args:
            store: store to write to.
            journal: manifest that records completed sections.
            first: section.
            stages: timer of the stages.
            on_section: called with the number of completed sections.
            grows: whether arrays are extended as layers are added.
            in_pieces: whether sections arrive in parts, so that no layer is held in memory.
            recorded: transfers results from the model's grid to that of the store, if they differ.
        """
        self._store, self._journal, self._stages, self._on_section = store, journal, stages, on_section
        self._first, self._grows, self._in_pieces, self._recorded = first, grows, in_pieces, recorded
        self._lines: list[Line] = []
        self._slab: SlabResult | None = None
        self._affinity: NDArray[np.uint8] | None = None
        self._embedding: NDArray[Any] | None = None

    def run(self, events: Pipe[Event]) -> None:
        """Process events until the end."""
        while True:
            event = events.get()
            if isinstance(event, End):
                if self._grows and event.total is not None:
                    self._store.resize(event.total)
                return
            with self._stages.timed("write"):
                self.take(event)

    def take(self, event: Event) -> None:
        """Process one event."""
        if isinstance(event, Done):
            self._gather(event)
        elif isinstance(event, PieceDone):
            if self._grows:
                self._store.resize(max(self._store.depth, event.z + 1))
            self._store.write_piece(event.z, event.rows, event.columns, event.affinity, event.embedding)
        elif isinstance(event, SlabResult):
            self._slab = event if self._recorded is None else self._recorded.slab(event)
        elif isinstance(event, Commit):
            self._commit()

    def _gather(self, done: Done) -> None:
        layout, at = self._store.layout, len(self._lines)
        if self._in_pieces:
            self._lines.append(done.line)
            return
        if self._affinity is None:
            self._affinity = np.zeros((len(layout.offsets), layout.depth, *layout.size), np.uint8)
            if layout.embedding != "none":
                self._embedding = np.zeros((layout.channels, layout.depth, *layout.size), layout.embedding)
        affinity, embedding = done.affinity, done.embedding
        if self._recorded is not None:
            affinity = None if affinity is None else self._recorded.affinity(affinity)
            embedding = None if embedding is None else self._recorded.nearest(embedding)
        self._affinity[:, at] = 0 if affinity is None else affinity
        if self._embedding is not None:
            self._embedding[:, at] = 0 if embedding is None else embedding
        self._lines.append(done.line)

    def _commit(self) -> None:
        """Flush the data first, then write the manifest lines that mark them as complete."""
        count = len(self._lines)
        if not count:
            return
        if self._grows:
            room = max(self._first + count, *(z + 1 for z, _ in self._slab.sections)) if self._slab else 0
            self._store.resize(max(self._store.depth, self._first + self._store.layout.depth, room))
        if self._affinity is None:
            self._store.make_layer_durable(self._first)
        else:
            embedding = None if self._embedding is None else self._embedding[:, :count]
            self._store.write_layer(self._first, self._affinity[:, :count], embedding)
        if self._slab is not None:
            self._store.write_supervoxels(self._slab.sections)
            write_slab_table(
                self._store.path / STREAM_FOLDER / "slabs" / f"{self._slab.number:08d}.npz", self._slab.table
            )
        at = now()
        self._journal.append([replace(line, time=at) for line in self._lines])
        self._first += count
        self._on_section(self._first)
        self._lines, self._slab = [], None
