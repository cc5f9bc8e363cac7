"""Options of `distill stream` that `distill segment` does not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.core.affinity import NEAREST
from distill.core.choices import StoredEmbedding, StreamMethod
from distill.core.errors import DistillError
from distill.core.geometry import Triple
from distill.inference.streaming.plan import WHOLE, StreamPart
from distill.inference.streaming.sections.quality import DEFECT_KINDS, POLICIES
from distill.inference.streaming.sections.watch import Following


@dataclass(frozen=True)
class Streaming:
    """Options specific to a stream."""

    segment: bool = True
    method: StreamMethod | None = None  # None: as the store was begun, or `flood`
    offsets: Sequence[Triple] = NEAREST
    embedding: StoredEmbedding = "none"
    on_bad: Sequence[str] = ()  # POLICY for all kinds, or KIND=POLICY
    resume: bool = False
    following: Following | None = None
    part: StreamPart = WHOLE
    tile: int | None = None  # side of tiles in pixels; without segmentation sections are also written in tiles


DEFAULT_STREAMING = Streaming()


def parse_policies(texts: Sequence[str]) -> dict[str, str]:
    """Parse the policies for bad sections, by kind; the default is `fail`, and later entries override earlier ones.

    Raises:
        DistillError: an unknown kind or policy.
    """
    found = dict.fromkeys(DEFECT_KINDS, "fail")
    for text in (part for one in texts for part in one.split(",")):
        kind, equals, policy = text.rpartition("=")
        if policy not in POLICIES:
            raise DistillError(f"--on-bad: found {policy!r}, expected one of {', '.join(POLICIES)}")
        if equals and kind not in DEFECT_KINDS:
            raise DistillError(f"--on-bad: found {kind!r}, expected one of {', '.join(DEFECT_KINDS)}")
        found |= {kind: policy} if equals else dict.fromkeys(DEFECT_KINDS, policy)
    return found
