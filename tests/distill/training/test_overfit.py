"""The small teacher and the shared decoder can learn one real block by heart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distill.config import DecoderConfig, TeacherConfig
from distill.core.affinity import affinity_targets, as_label_tensor, half_resolution, widen_borders
from distill.core.geometry import Box
from distill.decoder.decoder import DecoderInput
from distill.decoder.instances import block_instances
from distill.decoder.matching import match
from distill.evaluation.metrics import score
from distill.io.volume import open_labels, open_volume
from distill.models.build import build_decoder, build_teacher
from distill.training.objective.losses import (
    affinity_cross_entropy,
    instance_discrimination,
    instance_targets,
    mask_cross_entropy,
    mask_dice,
)
from distill.training.objective.query_terms import split_instances

STEPS, QUERIES_FROM, RATE = 60, 12, 1e-2
BLOCK = Box((0, 0, 128), (5, 56, 184))  # 5 ids, 2 % background


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The same arithmetic on every machine, and no barriers where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_real_block_is_learnt_by_heart(real_data: Callable[[str], Path]) -> None:
    file = real_data("ac4_quadrant.h5")
    raw = open_volume(f"{file}:volumes/raw").read(BLOCK)
    truth = open_labels(f"{file}:volumes/labels/neuron_ids").read(BLOCK).astype(np.uint64)
    decoding = DecoderConfig.model_validate(
        {"width": 16, "depth": 2, "learned": 12, "prior": "none", "norm_momentum": 0.1, "seeds": {"min_voxels": 4}}
    )
    config = TeacherConfig.model_validate(
        {
            "filters": [8, 8, 16, 16, 24],
            "fused": 16,
            "branch_width": 8,
            "branch_depth": 2,
            "loss": {"multi_offset": 0.0},
            "decoder": decoding,
        }
    )
    torch.manual_seed(0)
    teacher, decoder = build_teacher(config), build_decoder(decoding, 16, (30.0, 6.0, 6.0))
    both = nn.ModuleList([teacher, decoder])
    optimizer = torch.optim.AdamW(both.parameters(), lr=RATE, weight_decay=0.0)
    volume = torch.from_numpy(raw.astype(np.float32) / 255)[None, None]
    labels = as_label_tensor(truth)[None]
    targets = affinity_targets(widen_borders(labels))
    half, valid = half_resolution(targets.target), half_resolution(targets.valid.float()) > 0
    instances = split_instances(instance_targets(labels))
    curve = {}
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        both.train()
        seen = teacher(volume).decoder_input
        loss = affinity_cross_entropy(seen.affinity_logits, half, valid)
        if step >= QUERIES_FROM:
            guide = DecoderInput(seen.features.detach(), seen.affinity_logits.detach())
            decoded = decoder(guide, order="random", rng=np.random.default_rng(step))
            pairs = match(decoded.masks[0], instances)
            loss = loss + 0.1 * instance_discrimination(decoded.mask_features, instances, samples=1024)
            for masks in decoded.masks:
                loss = loss + 0.3 * mask_cross_entropy(masks, instances, pairs) + 3 * mask_dice(masks, instances, pairs)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step in (0, STEPS - 1):
            both.eval()
            with torch.no_grad():
                output = decoder(teacher(volume).decoder_input)
            found = block_instances(output, 0, truth.shape[1:], min_voxels=40, min_piece=100, fill=True)
            curve[step + 1] = score(found, truth).voi_sum
    assert curve[1] > 1.5, curve
    assert curve[STEPS] < 0.4, curve
