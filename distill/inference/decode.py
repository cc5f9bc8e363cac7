"""Decode a slab of sections into instances, tile by tile.

Legend: D H W = z y x, h w half resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from distill.config import DecoderConfig
from distill.core.geometry import Box, Triple, largest_overlap, tiles
from distill.core.hardware import computing
from distill.decoder.decoder import DecoderInput, QueryDecoder
from distill.decoder.instances import block_instances
from distill.inference.assembly import Piece, Slab
from distill.inference.options import Runtime
from distill.models.build import seed_rule
from distill.models.load import TrainedStudent
from distill.segmentation.supervoxels import supervoxels

FLOOD_TILE = (1024, 1024)  # pixels along y and x that are flooded together
FLOOD_OVERLAP = 64  # of these that neighbouring ones share


def by_method(model: TrainedStudent, method: str, block: Triple | None = None) -> TrainedStudent:
    """Prepare a student for a method: the adapter is needed by `query` only; `flood` has no decoder, and larger tiles.

    Args:
        model: as it was loaded.
        method: `flood`, `query`, `waterz`, `mws` or `fragments`.
        block: voxels of a tile of `flood`; by default the decoder's depth and `FLOOD_TILE`.
    """
    if method == "query":
        return model
    if method != "flood":
        return replace(model, slab=None)
    depth, height, width = block or (model.decoding.block[0], *FLOOD_TILE)
    overlap = (1, min(FLOOD_OVERLAP, height // 2), min(FLOOD_OVERLAP, width // 2))
    tiled = model.decoding.model_copy(update={"block": (depth, height, width), "overlap": overlap})
    return replace(model, slab=None, decoder=None, decoding=tiled)


def decode_slab(model: TrainedStudent, slab: Slab, runtime: Runtime, tiles: Sequence[Box] | None = None) -> list[Piece]:
    """Decode the instances of a slab, in tiles of the decoder's block size, with boxes in volume coordinates.

    Args:
        model: with a decoder; without one the instances are supervoxels by flooding, see `by_method`.
        slab: sections, whole or one region of them.
        runtime: where and how.
        tiles: places in the slab; by default those that cover it.
    """
    if model.slab is None or model.decoder is None:
        stored = slab.stored()
        shape: Triple = stored.shape[1], stored.shape[2], stored.shape[3]
        return [
            Piece(tile.shift((slab.first, 0, 0)), supervoxels(stored[(slice(None), *tile.slices)]).astype(np.uint64))
            for tile in (decoder_tiles(shape, model.decoding) if tiles is None else tiles)
        ]
    height, width = slab.sections[0].affinity.shape[-2:]
    joined = torch.stack([s.joined for s in slab.sections if s.joined is not None])
    logits = torch.stack([s.logits for s in slab.sections if s.logits is not None], 1)
    depth = len(slab.sections)
    pieces = []
    for tile in decoder_tiles((depth, height, width), model.decoding) if tiles is None else tiles:
        z, y, x = tile.slices
        half = tuple(slice(s.start // 2, -(-s.stop // 2)) for s in (y, x))
        with _computing(runtime):
            mixed = model.slab.mix(joined[z, :, *half]).transpose(0, 1)
            given = model.slab.slab(mixed[None], logits[:, z, *half][None])
        labels = decode_tile(model.decoder, given, tile, model.decoding, runtime)
        pieces.append(Piece(tile.shift((slab.first, 0, 0)), labels))
    return pieces


def decoder_tiles(shape: Triple, config: DecoderConfig) -> list[Box]:
    """Return the decoder's tiles over a slab, whole depth; they begin at even y and x, for it has half resolution."""
    block, overlap = config.block[1:], config.overlap[1:]
    stride = [max(2, (b - o) - (b - o) % 2) for b, o in zip(block, overlap, strict=True)]
    found = []
    for tile in tiles(Box.of_shape(shape), (shape[0], *block), (shape[0], stride[0], stride[1])):
        z, y, x = tile.start
        found.append(Box((z, y - y % 2, x - x % 2), tile.stop))
    return found


def decoder_overlap(shape: Triple, config: DecoderConfig) -> Triple:
    """Return the largest overlap of two blocks of a volume that is cut into slabs and tiles."""
    _, y, x = largest_overlap(decoder_tiles((1, *shape[1:]), config))
    return 1, y, x


def _computing(runtime: Runtime) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(torch.inference_mode())
    stack.enter_context(computing(runtime.device, runtime.precision))
    return stack


def decode_tile(
    decoder: QueryDecoder, given: DecoderInput, tile: Box, config: DecoderConfig, runtime: Runtime
) -> NDArray[np.uint64]:
    """Decode the instances (D, h, w) of one tile from its features and affinities."""
    with _computing(runtime):
        output = decoder.last(given, rule=seed_rule(config), background=not config.fill)
        return block_instances(
            output,
            0,
            tile.shape[1:],
            min_voxels=config.min_instance,
            min_piece=config.min_piece,
            fill=config.fill,
        )
