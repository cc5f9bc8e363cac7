"""Thresholds that a sweep chose on labelled validation data, kept in a file for the runs that follow.

The file says where they come from, and nothing that differs between two sweeps of the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from distill.core.atomic import write_text
from distill.core.choices import Method
from distill.core.errors import ConfigError
from distill.core.reasons import read_yaml
from distill.core.version import VERSION

Edge = Literal["lowest", "highest"]


@dataclass(frozen=True)
class ChosenThreshold:
    """A method's threshold with the least VOI sum.

    Attributes:
        threshold: in [0, 1]; flood, query: merge above this mean affinity (1 = nothing), waterz: below this score,
            mws: bias, fragments: merge above this score.
        edge: whether it is the lowest or the highest that was tried; the best one may lie beyond.
        voi_split: bits.
        voi_merge: bits.
        arand: adapted Rand error.
    """

    threshold: float
    edge: Edge | None
    voi_split: float
    voi_merge: float
    arand: float


@dataclass(frozen=True)
class Provenance:
    """What thresholds were chosen on."""

    affinity: str
    labels: str
    preset: str
    made_by: dict[str, Any]  # what the affinities' store says of its model and source


def write_thresholds(path: Path, chosen: dict[Method, ChosenThreshold], of: Provenance) -> None:
    """Write the file, whole or not at all.

    Raises:
        SourceError: the disk refuses.
    """
    document = {
        "version": VERSION,
        "chosen_on": asdict(of),
        "methods": {method: asdict(one) for method, one in chosen.items()},
    }
    write_text(path, yaml.safe_dump(document, sort_keys=False))


def threshold_from_file(path: Path, method: str) -> float:
    """Read the threshold of a method from a file.

    Raises:
        SourceError: the file is not there or cannot be read.
        ConfigError: not such a file, no such method in it, or a threshold outside [0, 1].
    """
    document = read_yaml(path)
    methods = document.get("methods") if isinstance(document, dict) else None
    if not isinstance(methods, dict):
        raise ConfigError(f"{path}: found no key 'methods', expected a file written by distill sweep")
    if method not in methods:
        raise ConfigError(
            f"{path}: found thresholds for {', '.join(map(str, methods)) or 'nothing'}, expected {method}"
        )
    entry = methods[method]
    value = entry.get("threshold") if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{path}: methods.{method}.threshold: found {value!r}, expected a number from 0 to 1")
    return float(value)


def parse_thresholds(text: str, name: str) -> tuple[float, ...]:
    """Parse thresholds: FIRST:LAST:STEP, LAST included, or a list with commas.

    Args:
        text: such as 0.3:0.9:0.1 or 0.3,0.5.
        name: of the option, for messages.

    Raises:
        ConfigError: anything else, or a number outside [0, 1].
    """
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if step <= 0 or last < first:
                raise ValueError
            count = int((last - first) / step + 1e-6) + 1
            found = tuple(round(first + n * step, 6) for n in range(count))
        else:
            found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{name}: found {text!r}, expected FIRST:LAST:STEP such as 0.3:0.9:0.1, or 0.3,0.5") from None
    if not found or not all(0 <= value <= 1 for value in found):
        raise ConfigError(f"{name}: found {text!r}, expected numbers from 0 to 1")
    return tuple(sorted(set(found)))


def edge_of(threshold: float, tried: Sequence[float]) -> Edge | None:
    """Return which end of the tried range a threshold lies at; None if it lies inside."""
    if threshold == max(tried):
        return "highest"
    return "lowest" if threshold == min(tried) else None
