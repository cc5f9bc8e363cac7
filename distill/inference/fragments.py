"""Segment affinities by watershed fragments that a trained transformer merges (`--method fragments`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.decoder.fragment_transformer import ContactTokens, FragmentTransformer
from distill.models.fragment_file import FragmentModel, check_model, load_fragments
from distill.segmentation.agglomeration import fragments
from distill.segmentation.fragment_features import (
    FragmentGraph,
    Neighbourhoods,
    fragment_graph,
    merged_by_scores,
    neighbourhoods,
)

_BATCH = 8192  # contacts that are scored at a time


def segment_fragments(
    affinity: NDArray[np.float32],
    model: FragmentModel,
    thresholds: Sequence[float],
    device: torch.device,
) -> dict[float, NDArray[np.uint64]]:
    """Cut sections into watershed fragments, score their contacts, and merge them above each threshold.

    Args:
        affinity: (3, D, H, W) in [0, 1], edges to the previous voxel along z, y, x.
        model: the trained transformer.
        thresholds: scores in [0, 1].
        device: of the transformer.

    Returns:
        For each threshold (D, H, W) compact ids.
    """
    pieces = fragments(affinity)
    graph = fragment_graph(pieces, affinity, model.architecture.neighbours)
    scores = contact_scores(model.network, graph, device)
    return {threshold: merged_by_scores(pieces, graph, scores, threshold) for threshold in thresholds}


@torch.inference_mode()
def contact_scores(network: FragmentTransformer, graph: FragmentGraph, device: torch.device) -> NDArray[np.float32]:
    """Score the merge of the two fragments of every contact.

    Args:
        network: in evaluation mode; it is moved to the device.
        graph: of the fragments.
        device: where to compute, in float32.

    Returns:
        (E,) scores in [0, 1].

    Raises:
        DistillError: a score is not a number.
    """
    network.to(device)
    found = np.empty(len(graph.u), np.float32)
    for start in range(0, len(found), _BATCH):
        chosen = np.arange(start, min(start + _BATCH, len(found)))
        logits = network(tokens_of(neighbourhoods(graph, chosen), device))
        found[chosen] = torch.sigmoid(logits).cpu().numpy()
    if not np.isfinite(found).all():
        raise DistillError("fragments: found scores that are not numbers, expected affinities in [0, 1]")
    return found


def tokens_of(around: Neighbourhoods, device: torch.device) -> ContactTokens:
    """Move the features around contacts to a device."""
    return ContactTokens(*(torch.from_numpy(getattr(around, one.name)).to(device) for one in fields(around)))


def given_file(file: Path | None) -> Path:
    """Return the file of the method `fragments`.

    Raises:
        DistillError: none was given.
    """
    if file is None:
        raise DistillError("--fragments: found none, expected a file of distill fragments for the method fragments")
    return file


def fragments_for(method: str, file: Path | None, sha256: str | None, model: str) -> FragmentModel | None:
    """Load the transformer of the method `fragments`; None for other methods.

    Args:
        method: of segmentation.
        file: given by the user.
        sha256: checksum of the weights that predict the affinities.
        model: their name.

    Raises:
        DistillError: the method has no file, or another method has one.
        CheckpointError: no such file, or one that was trained on affinities of other weights.
    """
    if method != "fragments":
        if file is not None:
            raise DistillError(f"--fragments: found it with --method {method}, expected --method fragments")
        return None
    found = load_fragments(given_file(file))
    check_model(found, sha256, model)
    return found


def threshold_note(model: FragmentModel | None) -> dict[str, float]:
    """Return the threshold of a transformer as a note of a model."""
    return {} if model is None else {"fragments_threshold": model.threshold}


def named(model: FragmentModel | None) -> tuple[str, str] | None:
    """Return file and checksum of a transformer that was read from a file."""
    if model is None:
        return None
    assert model.path is not None, "it was read from a file"
    assert model.sha256 is not None, "likewise"
    return str(model.path.absolute()), model.sha256
