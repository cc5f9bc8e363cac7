"""Interface of all runtimes of the student.

Legend: B sections of a step, H W = y x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from students.backends.functions import Decoded
from students.student import Samples

Maps = tuple[Any, ...]  # an encoded section as the backend keeps it


class Backend(Protocol):
    """Runs `Encode` and `Decode` for sections of any size; deterministic to the bit."""

    name: str
    difference: float | None  # of affinities from float32 on average, as measured for int8
    batch: int  # maximum number of sections per step

    def encode(self, grey: Tensor) -> Maps:
        """Encode (B, 1, H, W) float32 in [0, 1]; the result remains valid until the second next call."""

    def decode(
        self, previous: Maps, current: Maps, linked: Tensor, size: tuple[int, int], samples: Sequence[Samples] = ()
    ) -> Decoded:
        """Decode pairs of sections (or tiles) of this size before padding; see `Decode.forward`."""

    def previous(self, last: Maps | None, current: Maps) -> Maps:
        """Return the maps of the sections before those of a step: the last one of the previous step, then all but
        the last of this step.
        """

    def last(self, current: Maps, place: int) -> Maps:
        """Return the maps of one section of a step, for `previous` in the next."""
