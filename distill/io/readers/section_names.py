"""Number section images by their names: one rule for every command.

The number of a section is the part of its name that changes from file to file. A name that continues another one
(`s_0012_2.png` after `s_0012.png`) is a second image of that section; a name of another form among many alike
(`overview.png`) is no section. Both are left out and reported. Where numbers count evenly, one that is left out is a
section that is missing. Names in which two numbers change independently (`s001_tile0.png`, `s001_tile1.png`) belong to
tiles, channels or several series: which of them follow each other along z cannot be known, so a folder of them is
refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from distill.core.errors import SourceError
from distill.core.notes import warn

_MANY = 0.8  # share of names that must be alike for the others to be odd
_FEWEST = 4  # names; of fewer none is odd
_REGULAR = 0.8  # share of steps that must be alike for numbers to count as a sequence
_MOSTLY = 0.5  # the same where the others are multiples of these, as they are where sections are missing
_PARTS = re.compile(r"(\d+\.\d+(?=\s*(?:nm|um|µm|μm|mm)(?![a-z]))|\d+)")


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """Return a key that sorts s2 before s10."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part[:4000]) if at % 2 else part.lower() for at, part in enumerate(parts)], str(path)


def in_places(name: str, paths: Sequence[Path]) -> list[Path | None]:
    """Put section images into their places, None for a section that is missing.

    Args:
        name: of the source, for messages.
        paths: in natural order, or in the order that the user gives.

    Raises:
        SourceError: a number so far from the others that it is none of theirs, or a folder of several series.
    """
    kept = _without_odd(name, paths)
    _check_one_series(name, kept)
    numbers = section_numbers(kept)
    if all(number is not None for number in numbers) and len({path.parent for path in kept}) == 1:
        signed = [number for number in numbers if number is not None]
        if min(signed, default=0) < 0:
            order = sorted(range(len(kept)), key=lambda at: signed[at])
            kept, numbers = [kept[at] for at in order], [signed[at] for at in order]
    step = usual_step(numbers)
    places: list[Path | None] = list(kept[:1])
    for before, (number, after), path in zip(kept, pairwise(numbers), kept[1:], strict=False):
        missing = missing_between(number, after, step)
        if missing > len(kept):
            raise SourceError(
                f"{path}: is numbered {missing + 1:,} sections after {before.name}, expected at most {len(kept)} "
                f"missing of {len(kept)} files; name the right files by a glob"
            )
        places += [None] * missing
        places.append(path)
    return places


def _without_odd(name: str, paths: Sequence[Path]) -> list[Path]:
    """Leave out second images of a section, and what is no section by its name."""
    forms = [_form(path) for path in paths]
    if len(paths) < _FEWEST:
        return list(paths)
    usual, times = Counter(forms).most_common(1)[0]
    if times < _MANY * len(paths) or "#" not in usual:
        return list(paths)
    signed = usual.replace("#", "-#", 1)
    stems = {path.stem: path for path, form in zip(paths, forms, strict=True) if form == usual}
    kept, numbers = [], set()
    for path, form in zip(paths, forms, strict=True):
        if form not in (usual, signed):
            first = next(
                (stem for stem in stems if path.stem.startswith(stem) and not path.stem[len(stem)].isdigit()), None
            )
            if first is not None:
                warn(f"{name}: {path.name} is taken for a second image of {stems[first].name} and left out")
            else:
                warn(f"{name}: {path.name} is no section by its name and left out; a glob names the sections")
            continue
        key = (path.parent, tuple(float(part) for part in _PARTS.findall(path.stem)), form)
        if key in numbers:
            warn(f"{name}: {path.name} has the number of another file and is left out")
            continue
        numbers.add(key)
        kept.append(path)
    return kept


def _check_one_series(name: str, paths: Sequence[Path]) -> None:
    """Refuse a folder whose names count along two numbers; a glob or a list is read in order, with a warning."""
    alike = _of_one_number(paths)
    if not alike:
        return
    examples = ", ".join(path.name for path in alike[:2])
    found = f"{name}: found names that count along two numbers ({examples}), as tiles, channels or several series do"
    if Path(name).is_dir():
        raise SourceError(
            f"{found}; expected one image per section: select one series by a glob, or confirm this order by a glob "
            f"such as '{Path(name) / '*'}'"
        )
    warn(f"{found}; the images are read as one series, {paths[0].name} to {paths[-1].name}")


def _of_one_number(paths: Sequence[Path]) -> list[Path]:
    """Return images that share the number that changes last, if nearly every pair of two numbers has an image."""
    if len(paths) < _FEWEST or len({_form(path) for path in paths}) > 1:
        return []
    parts = [_PARTS.findall(path.stem) for path in paths]
    columns = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
    if len(columns) < 2:
        return []
    *others, last = columns
    for other in others:
        pairs = len(set(zip(other, last, strict=True)))
        if pairs >= _MANY * max(len(paths), len(set(other)) * len(set(last))):
            return [path for path, number in zip(paths, last, strict=True) if number == last[0]]
    return []


def _form(path: Path) -> str:
    """Return a name with # in place of its numbers."""
    return _PARTS.sub("#", path.stem)


def section_numbers(paths: Sequence[Path]) -> list[int | None]:
    """Return the number of each file, the last part of its name that differs between files; None without one."""
    parts = [_PARTS.findall(path.stem) for path in paths]
    forms = {_form(path) for path in paths}
    if len(forms) == 2 and (signed := _signed(forms)) is not None:
        return [
            (-1 if _form(path) == signed else 1) * _whole(found[0]) for path, found in zip(paths, parts, strict=True)
        ]
    if len(forms) > 1 or not parts or not parts[0]:
        return [_whole(found[-1]) if found else None for found in parts]
    changing = [at for at in range(len(parts[0])) if len({found[at] for found in parts}) > 1]
    at = changing[-1] if changing else -1
    digits = max((len(found[at].partition(".")[2]) for found in parts), default=0)
    return [_whole(found[at], digits) for found in parts]


def _signed(forms: set[str]) -> str | None:
    """Return the form with a minus sign, where the other one is the same without it: z-1 and z1."""
    for one in forms:
        if "-#" in one and one.replace("-#", "#", 1) in forms:
            return one
    return None


def _whole(text: str, digits: int = 0) -> int:
    whole, _, part = text.partition(".")
    return int((whole + part.ljust(digits, "0"))[:4000])


def number_of(path: Path) -> int | None:
    """Return the last number in a file's name; None without one."""
    found = re.findall(r"\d+", path.stem)
    return int(found[-1][:4000]) if found else None


def usual_step(numbers: Sequence[int | None]) -> int | None:
    """Return the step by which names count; None where it varies."""
    steps = [b - a for a, b in pairwise(numbers) if a is not None and b is not None]
    if len(steps) != len(numbers) - 1 or not steps:
        return None
    step, times = Counter(steps).most_common(1)[0]
    if step <= 0:
        return None
    share = _MOSTLY if all(other % step == 0 for other in steps) else _REGULAR
    return step if times >= share * len(steps) else None


def missing_between(before: int | None, after: int | None, step: int | None) -> int:
    """Count places between two files that follow each other."""
    if before is None or after is None or step is None or (after - before) % step or after <= before:
        return 0
    return (after - before) // step - 1
