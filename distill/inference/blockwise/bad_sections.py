"""Leave bad sections out of a segmentation in blocks, and join what is before and after them.

Blocks are those of the sections that remain, as if the others had not been recorded: networks pair the sections on both
sides of a gap, and every method segments across it. Results have the depth of the source, with 0 at bad sections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box
from distill.core.normalisation import Correction
from distill.core.reasons import json_object, read_text
from distill.inference.blockwise.tables import FOLDER
from distill.inference.streaming.pairing import LONGEST_BRIDGE
from distill.inference.streaming.sections.quality import DEFECT_KINDS, PAST, POLICIES, Flaw, Inspector
from distill.io.volume import Volume
from distill.io.writers.store import write_json, writing

USE = "use"  # policy: sections of this kind are segmented like any other
WITHOUT_IMAGE = ("blank", "corrupt")  # kinds that are seen without the sections before
_LISTED = 20  # bad sections that are printed one by one
Policies = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BadSection:
    """A section that is left out.

    Attributes:
        section: number, from the first one that is segmented.
        flaw: kind of defect.
        why: description.
        taken: `bridge`, or `skip` where objects end.
    """

    section: int
    flaw: str
    why: str
    taken: str


@dataclass(frozen=True)
class Remaining:
    """Sections that are segmented.

    Attributes:
        depth: sections with the bad ones.
        good: numbers of those that remain, ascending.
        cuts: places in `good` of sections that are not paired with the one before.
    """

    depth: int
    good: tuple[int, ...]
    cuts: tuple[int, ...]

    def start_of(self, at: int) -> int:
        """Return the place in `good` of the first section that is joined to section `at` without a cut."""
        return max((cut for cut in self.cuts if cut <= at), default=0)

    def runs(self, box: Box) -> list[Box]:
        """Divide a box of the remaining sections at the cuts."""
        edges = [box.start[0], *(cut for cut in self.cuts if box.start[0] < cut < box.stop[0]), box.stop[0]]
        return [Box((z, *box.start[1:]), (stop, *box.stop[1:])) for z, stop in pairwise(edges)]

    def within(self, box: Box) -> tuple[Box, NDArray[np.intp]]:
        """Return the remaining sections of a box of the result, and where they lie in it."""
        first, stop = np.searchsorted(self._numbers, [box.start[0], box.stop[0]]).tolist()
        there = Box((first, *box.start[1:]), (stop, *box.stop[1:]))
        return there, self._numbers[first:stop] - box.start[0]

    @cached_property
    def _numbers(self) -> NDArray[np.intp]:
        return np.array(self.good, np.intp)


def parse_bad(texts: Sequence[str]) -> Policies:
    """Parse the policies for bad sections, by kind: by default blank sections are bridged, and all others are used.

    Raises:
        DistillError: an unknown kind or policy.
    """
    found = dict.fromkeys(DEFECT_KINDS, USE) | {"blank": "bridge"}
    for text in (part for one in texts for part in one.split(",")):
        kind, equals, policy = text.rpartition("=")
        if policy not in (*POLICIES, USE):
            raise DistillError(f"--on-bad: found {policy!r}, expected one of {', '.join((*POLICIES, USE))}")
        if equals and kind not in DEFECT_KINDS:
            raise DistillError(f"--on-bad: found {kind!r}, expected one of {', '.join(DEFECT_KINDS)}")
        found |= {kind: policy} if equals else dict.fromkeys(DEFECT_KINDS, policy)
    return tuple(found.items())


def looks_for(policies: Mapping[str, str]) -> bool:
    """Return whether any kind of bad section is looked for."""
    return any(policy != USE for policy in policies.values())


def inspected(
    volume: Volume, start: int, stop: int, policies: Mapping[str, str]
) -> Iterator[tuple[int, NDArray[Any] | None, Flaw | None, Inspector]]:
    """Read sections, with the defects that do not need their normalisation.

    Args:
        volume: the source.
        start: first section that is wanted; a few before it are read where a verdict depends on them.
        stop: one past the last.
        policies: by kind.

    Yields:
        Number, image, defect of an unreadable section, and the inspector for the verdict on others.
    """
    looked = {kind for kind, policy in policies.items() if policy != USE}
    begin = start if looked <= set(WITHOUT_IMAGE) else max(0, start - 2 * PAST)
    inspector, z = Inspector(), begin
    while z < stop:
        try:
            for image in volume.sections(z, stop):
                yield z, image, None, inspector
                z += 1
        except SourceError as error:
            if policies["corrupt"] == USE:
                raise
            try:
                image = next(iter(volume.sections(z, z + 1)))
            except SourceError:
                yield z, None, Flaw("corrupt", str(error)), inspector
            else:
                yield z, image, None, inspector
            z += 1


def verdict(
    name: str,
    z: int,
    image: NDArray[Any] | None,
    known: Flaw | None,
    correction: Correction | None,
    inspector: Inspector,
    policies: Mapping[str, str],
) -> Flaw | None:
    """Return the defect of a section that is to be left out.

    Args:
        name: of the source, for messages.
        z: number of the section, for messages.
        image: (H, W).
        known: defect already found.
        correction: of its grey values.
        inspector: that has seen the sections before.
        policies: by kind.

    Raises:
        SourceError: the section is bad, and the policy is `fail`.
    """
    flaw = inspector.look(image, known, correction)
    if flaw is None or policies[flaw.kind] == USE:
        return None
    if policies[flaw.kind] == "fail":
        raise SourceError(
            f"{name}: section {z} is bad: {flaw.kind} ({flaw.why}); fix it, or use --on-bad {flaw.kind}=bridge (or "
            "skip)"
        )
    return flaw


def write_bad(store: Path, depth: int, flaws: Mapping[int, Flaw], policies: Mapping[str, str]) -> None:
    """Record the bad sections.

    Args:
        store: of the blocks.
        depth: sections that are segmented, with the bad ones.
        flaws: by number, from the first section that is segmented.
        policies: by kind.

    Raises:
        SourceError: all sections are bad.
    """
    if flaws and len(flaws) == depth:
        kinds = ", ".join(sorted({flaw.kind for flaw in flaws.values()}))
        raise SourceError(f"{store}: all {depth} sections are bad ({kinds}), expected at least one that is not")
    found = [BadSection(z, flaw.kind, flaw.why, policies[flaw.kind]) for z, flaw in sorted(flaws.items())]
    rows = [one.section - at for at, one in enumerate(found)]  # the same number throughout a row of bad sections
    long = {row for row, length in Counter(rows).items() if length > LONGEST_BRIDGE}
    found = [replace(one, taken="skip") if row in long else one for one, row in zip(found, rows, strict=True)]
    with writing(store):
        write_json(_path(store), {"sections": depth, "bad": [asdict(one) for one in found]})


def read_bad(store: Path) -> list[BadSection] | None:
    """Read the bad sections; None where they have not been looked for yet.

    Raises:
        SourceError: the record is damaged.
    """
    path = _path(store)
    if not path.is_file():
        return None
    try:
        return [BadSection(**one) for one in json_object(path, read_text(path))["bad"]]
    except (KeyError, TypeError):
        raise SourceError(f"{path}: is damaged, expected the bad sections as distill segment wrote them") from None


def remaining(depth: int, bad: Sequence[BadSection]) -> Remaining | None:
    """Return the sections that are segmented; None if that is all of them.

    Args:
        depth: sections with the bad ones.
        bad: sections that are left out.
    """
    if not bad:
        return None
    taken = {one.section: one.taken for one in bad}
    good = tuple(z for z in range(depth) if z not in taken)
    cuts = tuple(at for at in range(1, len(good)) if any(taken[z] == "skip" for z in range(good[at - 1] + 1, good[at])))
    return Remaining(depth, good, cuts)


def bad_lines(bad: Sequence[BadSection]) -> list[str]:
    """Format lines for the user."""
    lines = [f"section {one.section}: {one.flaw} ({one.why}), {one.taken}" for one in bad[:_LISTED]]
    return lines if len(bad) <= _LISTED else [*lines, f"and {len(bad) - _LISTED} more bad sections"]


def _path(store: Path) -> Path:
    return store / FOLDER / "bad_sections.json"
