"""Outputs of the stream for a section, in host memory, and assembly of a section from tiles.

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
    """Outputs of the stream for a section, or for a tile of it."""

    affinity: NDArray[np.uint8]  # (K, H, W); edges to sections before the start of the stream are 0
    embedding: NDArray[Any] | None  # (E, H, W) of unit length if requested; uint8: -1..1 as 0..255
    joined: Tensor | None  # (J, h, w): input of the slab adapter, mixed tile by tile; None without an adapter
    logits: Tensor | None  # (3, h, w): affinity logits at half resolution


def stored(embedding: Tensor, kind: EmbeddingType) -> Tensor:
    """Convert embeddings in [-1, 1] to the stored type: uint8 maps -1..1 to 0..255, floats are unchanged."""
    if kind == "uint8":
        embedding = (embedding * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    elif kind == "float16":
        embedding = embedding.half()
    return embedding


def assembled(pieces: Iterable[tuple[slice, slice, SectionOutput]], size: tuple[int, int]) -> SectionOutput:
    """Assemble a section (H, W) from its tiles, given as rows and columns in the section and outputs."""
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
