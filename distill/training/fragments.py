"""Train a fragment transformer on affinities with labels (`distill fragments`).

A contact is to be merged where most voxels of both of its fragments belong to the same neuron. Contacts of a fragment
that is mostly background are left out. Validation sections choose the step and the threshold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from distill.core.affinity_conventions import to_waterz
from distill.core.errors import DistillError
from distill.core.labels import Integers, Relabelling, distinct_ids, sum_pairs
from distill.decoder.fragment_transformer import FragmentTransformer
from distill.evaluation.contingency import Contingency, Scores
from distill.evaluation.sweep import TRIED, Inputs, read_inputs
from distill.inference.fragments import contact_scores, tokens_of
from distill.inference.origin import model_of_store
from distill.io.selection import split_selection
from distill.io.volume import open_volume, voxel_shift
from distill.models.fragment_file import FragmentArchitecture, FragmentModel
from distill.segmentation.agglomeration import fragments, merges_above
from distill.segmentation.fragment_features import FragmentGraph, fragment_graph, neighbourhoods

_CPU = torch.device("cpu")
OnStep = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FragmentTraining:
    """How a fragment transformer is trained.

    Attributes:
        steps: of the optimiser.
        batch: contacts a step.
        lr: highest learning rate, reached after a twentieth of the steps, then falling to 0 along a cosine.
        weight_decay: of AdamW.
        validations: times at which the validation part is segmented, the last one at the end.
        seed: of the weights and the order of contacts.
    """

    steps: int = 500
    batch: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.01
    validations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            DistillError: one of them is out of range.
        """
        for name in ("steps", "batch", "validations"):
            if getattr(self, name) < 1:
                raise DistillError(f"{name}: found {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True)
class LabelledFragments:
    """Fragments of a part, and what the labels say of their contacts.

    Attributes:
        graph: of the fragments.
        same: (E,) float32, 1 where both fragments belong to one neuron.
        known: (P,) places of the contacts between fragments that belong to a neuron.
        table: voxels that fragments and neurons have in common.
        ids: (N,) all fragments, ascending.
    """

    graph: FragmentGraph
    same: NDArray[np.float32]
    known: NDArray[np.int64]
    table: Contingency
    ids: NDArray[np.uint64]


@dataclass(frozen=True)
class Chosen:
    """Best threshold of a network on the validation part."""

    threshold: float
    scores: Scores


def train_fragments(
    affinity: str,
    labels: str,
    validation: str,
    architecture: FragmentArchitecture,
    training: FragmentTraining,
    on_step: OnStep = lambda done, total, note: None,
) -> FragmentModel:
    """Train on the affinities of one part and choose on those of another.

    Args:
        affinity: source of affinities for the training.
        labels: source of the ground truth of both parts.
        validation: source of affinities of the same store, without a voxel of the first part.
        architecture: size of the network.
        training: see `FragmentTraining`.
        on_step: called with steps done, their number and the last validation.

    Returns:
        The network with the least VOI sum on the validation part.

    Raises:
        DistillError: sources that do not fit, parts that overlap, or labels without a neuron.
    """
    _check_apart(affinity, validation)
    parts = [_part(read_inputs(source, labels), architecture.neighbours, source) for source in (affinity, validation)]
    network, chosen, step = fit(parts[0], parts[1], architecture, training, on_step)
    text, _ = split_selection(affinity)
    model, digest = model_of_store(Path(text.rpartition(":")[0] or text))
    notes: dict[str, Any] = {
        "model": model,
        "trained_on": {"affinity": affinity, "validation": validation, "labels": labels},
        "step": step,
        "training": {name: getattr(training, name) for name in training.__dataclass_fields__},
        "contacts": len(parts[0].known),
        "validation": {
            **{"voi": chosen.scores.voi_sum, "voi_split": chosen.scores.voi_split},
            **{"voi_merge": chosen.scores.voi_merge, "arand": chosen.scores.arand},
        },
    }
    return FragmentModel(network, architecture, chosen.threshold, digest, notes)


def label_fragments(
    pieces: NDArray[np.uint64], affinity: NDArray[np.float32], labels: Integers, neighbours: int
) -> LabelledFragments:
    """Measure fragments and compare them with labels.

    Args:
        pieces: (D, H, W) fragments.
        affinity: (3 or more, D, H, W) in [0, 1].
        labels: (D, H, W) neurons, 0 = background.
        neighbours: of the network.
    """
    graph = fragment_graph(pieces, affinity, neighbours)
    neuron = majority(pieces, labels, graph.ids)
    one, two = neuron[graph.u], neuron[graph.v]
    table = Contingency()
    table.add(pieces, labels)
    known = np.flatnonzero((one != 0) & (two != 0))
    return LabelledFragments(graph, (one == two).astype(np.float32), known, table, distinct_ids(pieces))


def majority(pieces: Integers, labels: Integers, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the label, 0 included, of most voxels of each fragment (N,); of as many the lowest."""
    pairs = sum_pairs(pieces, labels)
    order = np.lexsort((pairs.v, -pairs.count, pairs.u))
    own, first = np.unique(pairs.u[order], return_index=True)
    return pairs.v[order][first][np.searchsorted(own, ids)]


def fit(
    train: LabelledFragments,
    validation: LabelledFragments,
    architecture: FragmentArchitecture,
    training: FragmentTraining,
    on_step: OnStep = lambda done, total, note: None,
) -> tuple[FragmentTransformer, Chosen, int]:
    """Train a network.

    Returns:
        The network of the best validation, its threshold and scores, and its step. The result depends on the parts,
        the settings and the seed alone.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    network = architecture.build()
    network.standard_fragment.fix(torch.from_numpy(train.graph.fragments))
    network.standard_contact.fix(torch.from_numpy(train.graph.contacts))
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, training.lr, total_steps=training.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    weights = class_weights(train)
    looks = {round(training.steps * (n + 1) / training.validations) for n in range(training.validations)}
    best: tuple[Chosen, int, dict[str, Any]] | None = None
    note, batches = "", _batches(train.known, training.batch, rng)
    for step in range(1, training.steps + 1):
        chosen = next(batches)
        loss = merge_loss(network, train, chosen, weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step in looks:
            found = choose_threshold(network.eval(), validation)
            network.train()
            note = f"VOI {found.scores.voi_sum:.3f} at {found.threshold:g}"
            if best is None or found.scores.voi_sum < best[0].scores.voi_sum:
                best = found, step, copy.deepcopy(network.state_dict())
        on_step(step, training.steps, note)
    assert best is not None, "the last step is validated"
    network.load_state_dict(best[2])
    return network.eval().requires_grad_(False), best[0], best[1]


def class_weights(part: LabelledFragments) -> tuple[float, float]:
    """Return the weight of a contact to be kept apart and of one to be merged: both classes weigh the same."""
    merged = float(part.same[part.known].mean())
    return 0.5 / max(1 - merged, 1e-6), 0.5 / max(merged, 1e-6)


def merge_loss(
    network: FragmentTransformer, part: LabelledFragments, chosen: NDArray[np.int64], weights: tuple[float, float]
) -> torch.Tensor:
    """Return the mean weighted cross-entropy of contacts."""
    target = torch.from_numpy(part.same[chosen])
    weight = torch.where(target > 0, weights[1], weights[0])
    logits = network(tokens_of(neighbourhoods(part.graph, chosen), _CPU))
    return F.binary_cross_entropy_with_logits(logits, target, weight)


def choose_threshold(network: FragmentTransformer, part: LabelledFragments) -> Chosen:
    """Return the threshold with the least VOI sum, of equal ones the lowest."""
    graph = part.graph.scored(contact_scores(network, part.graph, _CPU))
    tried = TRIED["fragments"]
    merges = merges_above(graph, min(tried))
    found = []
    for threshold in tried:
        roots, merged = part.ids.copy(), merges.above(threshold)
        roots[np.searchsorted(part.ids, merged.old)] = merged.new
        found.append(Chosen(threshold, part.table.renamed(Relabelling(part.ids, roots)).scores()))
    return min(found, key=lambda one: one.scores.voi_sum)


def _batches(places: NDArray[np.int64], size: int, rng: np.random.Generator) -> Any:
    """Yield contacts in random order, each once before any comes again."""
    size = min(size, len(places))
    while True:
        order = rng.permutation(places)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def _part(given: Inputs, neighbours: int, source: str) -> LabelledFragments:
    """Cut a part into fragments; sections that a stream has skipped are taken out."""
    affinity = to_waterz(given.affinity, given.offsets)[:, given.good]
    found = label_fragments(fragments(affinity), affinity, given.labels[given.good], neighbours)
    kinds = np.unique(found.same[found.known])
    if len(kinds) < 2:
        what = "no contact" if not len(kinds) else f"contacts {'within' if kinds[0] else 'between'} neurons alone"
        raise DistillError(f"{source}: found {what} in the labels, expected contacts within and between neurons")
    return found


def _check_apart(affinity: str, validation: str) -> None:
    """Refuse a validation part that shares voxels with the training part."""
    first, second = open_volume(affinity), open_volume(validation)
    shared = first.box.intersect(second.box.shift(voxel_shift(second, first)))
    if shared.voxels:
        raise DistillError(
            f"{validation}: found {shared.voxels} voxels of the training part, expected none: a part to train on "
            "(--box) and another one to choose on (--validation)"
        )
