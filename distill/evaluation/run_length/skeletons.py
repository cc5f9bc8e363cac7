"""Skeletons of neurons, and reading of SWC files.

Format: R. C. Cannon et al., An on-line archive of reconstructed hippocampal neurons, J. Neurosci. Methods 84 (1998): a
line a node, `id type x y z radius parent`, parent -1 (in some files 0) at a root, `#` before a
comment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distill.core.errors import SourceError
from distill.core.notes import warn

_COLUMNS = 7


@dataclass(frozen=True)
class Skeleton:
    """One neuron as a graph of one or several connected parts.

    Attributes:
        name: of the neuron.
        nodes: (N, 3) positions z, y, x.
        edges: (E, 2) node indices.
    """

    name: str
    nodes: NDArray[np.float64]
    edges: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Return the (E,) lengths of the edges, in the unit of the nodes."""
        found: NDArray[np.float64] = np.linalg.norm(self.nodes[self.edges[:, 0]] - self.nodes[self.edges[:, 1]], axis=1)
        return found


def read_skeletons(path: Path) -> list[Skeleton]:
    """Read the skeletons of an SWC file, or of all SWC files in a folder by name; one file is one neuron.

    Args:
        path: file or folder.

    Returns:
        At least one skeleton; nodes in the unit of the file, turned to z, y, x. Of a folder, files that are no SWC are
        left out and reported.

    Raises:
        SourceError: there is none, or no file is an SWC; the message names file and line.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".swc" and file.is_file())
        if not files:
            raise SourceError(f"{path}: found no file that ends in .swc, expected skeletons")
        found, failed = [], []
        for file in files:
            try:
                found.append(read_swc(file))
            except SourceError as error:
                failed.append(error)
                warn(str(error))
        if not found:
            raise failed[0]
        if failed:
            warn(f"{path}: {len(failed)} of {len(files)} skeletons cannot be read and are left out")
        return found
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    return [read_swc(path)]


def read_swc(path: Path) -> Skeleton:
    """Read the skeleton of one SWC file.

    Raises:
        SourceError: the file cannot be read, a line is malformed, an id is repeated, a parent is missing, parents form
            a cycle, or there is no node.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if b"\0" in content:
        raise SourceError(f"{path}: cannot be read: found bytes that are no text, expected an SWC file")
    # Comments may be of any encoding; numbers are ASCII in all of them.
    lines = content.decode("latin-1").splitlines()
    index: dict[int, int] = {}
    nodes: list[tuple[float, float, float]] = []
    parents: list[tuple[int, int]] = []  # line and id
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        node, place, parent = _node(f"{path}, line {number}", fields)
        if node in index:
            raise SourceError(f"{path}, line {number}: found node {node} a second time, expected each id once")
        index[node] = len(nodes)
        nodes.append(place)
        parents.append((number, parent))
    if not nodes:
        raise SourceError(f"{path}: found no node, expected lines of id, type, x, y, z, radius, parent")
    edges = []
    for child, (number, parent) in enumerate(parents):
        if parent < 0 or (parent == 0 and 0 not in index):
            continue
        if parent not in index:
            raise SourceError(f"{path}, line {number}: found parent {parent}, expected the id of a node, or -1")
        edges.append((child, index[parent]))
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(nodes), len(nodes)))
    if len(nodes) - connected_components(graph, directed=False)[0] != len(pairs):
        raise SourceError(f"{path}: found parents that go round in a circle, expected trees that end at parent -1")
    return Skeleton(path.stem, np.array(nodes, np.float64), pairs)


def _node(where: str, fields: list[str]) -> tuple[int, tuple[float, float, float], int]:
    """Parse id, position z, y, x, and parent."""
    if len(fields) < _COLUMNS:
        raise SourceError(f"{where}: found {len(fields)} columns, expected 7: id, type, x, y, z, radius, parent")
    try:
        node, parent = _whole(fields[0]), _whole(fields[6])
        x, y, z = (float(field) for field in fields[2:5])
    except ValueError:
        raise SourceError(
            f"{where}: found {' '.join(fields[:_COLUMNS])!r}, expected numbers: id, type, x, y, z, radius, parent"
        ) from None
    if not all(map(math.isfinite, (x, y, z))):
        raise SourceError(f"{where}: found place {x}, {y}, {z}, expected finite numbers")
    if node < 0:
        raise SourceError(f"{where}: found id {node}, expected 0 or more")
    return node, (z, y, x), parent


def _whole(text: str) -> int:
    """Parse an integer, which some programs write as 1.0.

    Raises:
        ValueError: anything else.
    """
    number = float(text)
    if not number.is_integer() or abs(number) >= 2**53:
        raise ValueError(text)
    return int(number)
