"""A volume segmented by clusters of an embedding: objects in one piece across blocks, two of one look apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.config import TeacherConfig
from distill.core.affinity import distance_affinity, half_resolution
from distill.decoder.decoder import DecoderInput
from distill.evaluation.metrics import score
from distill.inference.in_memory import teacher_clusters
from distill.inference.options import Runtime
from distill.models.build import build_decoder
from distill.models.load import TrainedTeacher
from teachers.teacher import Teacher, TeacherOutput, certain_logits, half_logits

DECODER = {
    "width": 8,
    "depth": 1,
    "rounds": 1,
    "learned": 4,
    "min_piece": 5,
    "block": [3, 24, 20],
    "overlap": [1, 8, 6],
}


class GreyTeacher(Teacher):
    """Embeds voxels by their grey value: 4 apart for each of the levels 0, 0.25, 0.5, 0.75."""

    embedding_channels = 2

    def forward(self, volume: Tensor) -> TeacherOutput:
        embedding = torch.cat([16 * volume, torch.zeros_like(volume)], 1)
        affinity = distance_affinity(embedding, 3.0)
        features = half_resolution(volume).expand(-1, 8, -1, -1, -1)
        return TeacherOutput(
            DecoderInput(features, half_logits(affinity)), embedding, [volume], certain_logits(affinity)
        )


def test_clusters_of_blocks_become_objects_of_the_volume() -> None:
    config = TeacherConfig.model_validate({"kind": "ml-de", "decoder": DECODER, "fused": 8})
    decoder = build_decoder(config.decoder, 8, (30.0, 6.0, 6.0))
    model = TrainedTeacher(GreyTeacher().eval(), decoder, config, {}, Path("none"))
    truth = np.zeros((7, 40, 44), np.uint64)
    truth[:, :15], truth[:, 15:28], truth[:, 28:, :20], truth[:, 28:, 20:] = 1, 2, 3, 4
    levels = np.array([0, 0, 2, 1, 0], np.float32)  # 1 and 4 look alike and do not touch
    raw = levels[truth] / 4
    found = teacher_clusters(model, raw, Runtime(torch.device("cpu"), "32-true"), bandwidth=1.5)
    scores = score(found.labels(0.5), truth)
    assert (scores.voi_split, scores.voi_merge) == (0, 0)
    assert scores.n_pred == 4
    assert found.affinity.shape == (3, 7, 40, 44)
