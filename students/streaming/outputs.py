"""What the stream gives for a section, in host memory, and how a section is put together from tiles.

Legend: K offsets, E embedding channels, H W = y x, h w half resolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EmbeddingType = Literal["uint8", "float16", "float32"]


@dataclass(frozen=True)
class SectionOutput:
    """What the stream gives for a section, or for a tile of it."""

    affinity: NDArray[np.uint8]  # (K, H, W); edges to a section that the stream has not seen are 0
    embedding: NDArray[Any] | None  # (E, H, W) of length one if asked for; uint8: -1..1 as 0..255
    joined: Tensor | None  # (J, h, w): what the slab adapter mixes tile by tile, None without an adapter
    logits: Tensor | None  # (3, h, w): affinity logits at half resolution


def stored(embedding: Tensor, kind: EmbeddingType) -> Tensor:
    """Embeddings in [-1, 1] as they are stored: uint8 takes -1..1 to 0..255, floats stay as they are."""
    if kind == "uint8":
        embedding = (embedding * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    elif kind == "float16":
        embedding = embedding.half()
    return embedding


def assembled(pieces: Iterable[tuple[slice, slice, SectionOutput]], size: tuple[int, int]) -> SectionOutput:
    """A section (H, W) from its tiles: rows and columns of each in the section, and its results."""
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    whole: SectionOutput | None = None
    for rows, columns, piece in pieces:
        if whole is None:
            whole = SectionOutput(
                np.empty((len(piece.affinity), *size), np.uint8),
                None if piece.embedding is None else np.empty((len(piece.embedding), *size), piece.embedding.dtype),
                *(None if part is None else part.new_empty(len(part), *half) for part in (piece.joined, piece.logits)),
            )
        small = tuple(slice(part.start // 2, -(-part.stop // 2)) for part in (rows, columns))
        places = {"affinity": (rows, columns), "embedding": (rows, columns), "joined": small, "logits": small}
        for name, here in places.items():
            into = getattr(whole, name)
            if into is not None:
                into[:, *here] = getattr(piece, name)
    assert whole is not None, "no tile"
    return whole
