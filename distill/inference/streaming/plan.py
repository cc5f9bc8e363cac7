"""How a stream is cut: layers of sections that are written and counted at once, and shares of them for processes."""

from __future__ import annotations

from dataclasses import dataclass

from distill.core.errors import DistillError

LAYER_BYTES = 512 * 2**20  # a layer is held in memory until it is full
_USUAL_DEPTH = 16


@dataclass(frozen=True)
class Part:
    """One of several processes that share a stream."""

    index: int = 0
    of: int = 1


WHOLE = Part()


def parse_part(text: str | None) -> Part:
    """A part from `I/N`, I counted from 0.

    Raises:
        DistillError: the text is anything else.
    """
    if text is None:
        return WHOLE
    index, slash, of = text.partition("/")
    if not (slash and index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise DistillError(f"--range: found {text!r}, expected I/N with I from 0 to N - 1, such as 0/4")
    return Part(int(index), int(of))


def share(part: Part, total: int | None, depth: int) -> tuple[range, bool]:
    """Layers of one process, as even as they go.

    Args:
        part: which process of how many.
        total: sections of the stream; None while it is unknown.
        depth: sections of a layer.

    Returns:
        The layers, and whether the stream ends with them; of a stream of unknown length, all.

    Raises:
        DistillError: there are more processes than layers.
    """
    if total is None:
        return range(0, 1), True
    layers = -(-total // depth)
    if part.of > layers:
        raise DistillError(
            f"--range: found {part.index}/{part.of}, expected at most {layers} ranges: {total} sections are {layers} "
            f"layers of {depth}"
        )
    found = range(part.index * layers // part.of, (part.index + 1) * layers // part.of)
    return found, found.stop == layers


def layer_depth(section_bytes: int, slab_step: int | None) -> int:
    """Sections of a layer: as many as slabs of the decoder move on by.

    Args:
        section_bytes: what one section's results take.
        slab_step: sections of a slab less the one that it shares; None without segmentation: then 16, or fewer where
            they would not fit in memory.
    """
    if slab_step is not None:
        return slab_step
    return max(1, min(_USUAL_DEPTH, 1 << (max(1, LAYER_BYTES // section_bytes).bit_length() - 1)))
