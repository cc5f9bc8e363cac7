"""Divide a stream into layers, which are written and completed as units, and into shares for several processes."""

from __future__ import annotations

from dataclasses import dataclass

from distill.core.errors import DistillError

LAYER_BYTES = 512 * 2**20  # a layer is held in memory until it is full
_USUAL_DEPTH = 16


@dataclass(frozen=True)
class StreamPart:
    """One of several processes that share a stream."""

    index: int = 0
    of: int = 1


WHOLE = StreamPart()


def parse_part(text: str | None) -> StreamPart:
    """Parse a part from `I/N`, I counted from 0.

    Raises:
        DistillError: the text is anything else.
    """
    if text is None:
        return WHOLE
    index, slash, of = text.partition("/")
    if not (slash and index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise DistillError(f"--range: found {text!r}, expected I/N with I from 0 to N - 1, such as 0/4")
    return StreamPart(int(index), int(of))


def share(part: StreamPart, total: int | None, depth: int) -> tuple[range, bool]:
    """Return the layers of one process, divided as evenly as possible.

    Args:
        part: number of the process, and number of processes.
        total: sections of the stream; None if unknown.
        depth: sections per layer.

    Returns:
        The layers, and whether the stream ends with them; all layers of a stream of unknown length.

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
    """Return the number of sections per layer: the stride between slabs of the decoder.

    Args:
        section_bytes: size of one section's outputs.
        slab_step: sections of a slab minus the shared one. None without segmentation: then 16, or fewer if they would
            not fit into memory.
    """
    if slab_step is not None:
        return slab_step
    return max(1, min(_USUAL_DEPTH, 1 << (max(1, LAYER_BYTES // section_bytes).bit_length() - 1)))
