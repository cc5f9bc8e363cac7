"""What the two training benchmarks decide by themselves: configurations, blocks, thresholds chosen across slabs."""

from __future__ import annotations

from pathlib import Path

import decoder_ablation
import numpy as np
import pytest
import student_training
import torch

from distill.config import PUBLISHED_DECODER, AugmentConfig, DecoderConfig
from distill.models.build import build_decoder


@pytest.mark.parametrize("name", list(decoder_ablation.VARIANTS))
def test_every_variant_is_a_decoder(name: str) -> None:
    values = {**PUBLISHED_DECODER, **decoder_ablation.SMALL, **decoder_ablation.VARIANTS[name], "width": 8}
    decoder = build_decoder(DecoderConfig.model_validate(values), 8, (30.0, 12.0, 12.0))
    assert sum(p.numel() for p in decoder.parameters()) > 0


def test_a_threshold_is_chosen_on_the_other_slab() -> None:
    def scores(*sums: float) -> np.ndarray:
        return np.array([[0, 0, value, 0] for value in sums], dtype=float)

    rated = {0.3: scores(1, 1, 9, 9), 0.5: scores(5, 5, 2, 2)}  # slab 0 prefers 0.3, slab 1 prefers 0.5
    found = decoder_ablation.crossed(rated, np.array([0, 0, 1, 1]))
    assert found[2] == np.mean([5, 5, 9, 9])


def test_blocks_cover_the_test_sections_once_but_for_the_shared_one() -> None:
    labels = np.zeros((16, 300, 256), np.uint64)
    part = decoder_ablation.Part(torch.zeros(0), torch.zeros(0), torch.zeros(0), labels)
    seen = np.zeros(labels.shape, int)
    for _, box in decoder_ablation.blocks(part):
        seen[box.slices] += 1
    assert (np.delete(seen, 8, 0) == 1).all()
    assert (seen[8] == 2).all()


@pytest.mark.parametrize("network", [{"kind": "cad"}, {"encoder": "resnet18", "width": 4}])
def test_the_student_trains_alone(network: dict[str, object]) -> None:
    pair = student_training.configuration(network, Path("a.h5"), 3, 1e-3)
    assert (pair.student.loss.cross, pair.student.loss.graft, pair.student.loss.slice) == (0, 0, 1)
    assert (pair.teacher.loss.affinity, pair.teacher.queries.student, pair.teacher.queries.teacher) == (0, 0, 0)
    assert (pair.student.training.seed, pair.student.training.lr) == (3, 1e-3)


def test_a_student_is_trained_with_the_augmentation_asked_for() -> None:
    plain = student_training.configuration({}, Path("a.h5"), 0, 1e-3)
    asked = student_training.configuration({}, Path("a.h5"), 0, 1e-3, {"rotate": 0, "elastic_pixels": 3})
    assert plain.student.augment == AugmentConfig()
    assert asked.student.augment == AugmentConfig(rotate=0, elastic_pixels=3)
    assert asked.student.training == plain.student.training
