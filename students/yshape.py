"""The Y-shape student: two neighbouring sections in, one embedding for each out.

Liu et al., "Cross-dimension Affinity Distillation for 3D EM Neuron Segmentation", CVPR 2024. With the
default widths this is the published network (900,816 parameters).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from students.student import (
    PairOutput,
    SectionFeatures,
    Student,
    double_conv,
    join,
    join_samples,
    pad_to_stride,
    without_padding,
)

_join = partial(join, align_corners=True)


class YShape(Student):
    """Shared encoder, fused trunk, one decoder branch for each of the two sections."""

    stride = 16
    entry = "inc.0"
    aligned_levels = 4

    def __init__(self, *, width: int = 16, embedding: int = 16) -> None:
        """Build the network.

        Args:
            width: channels of the first stage; the paper's 16 gives its 900,816 parameters.
            embedding: channels of each embedding.
        """
        super().__init__()
        w = width
        self.inc = double_conv(1, w)
        self.down = nn.ModuleList(
            double_conv(i, o) for i, o in ((w, 2 * w), (4 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w))
        )
        self.up1 = double_conv(16 * w, 4 * w)
        self.up2 = double_conv(8 * w, 2 * w)
        self.up3_t, self.up3_tn = double_conv(4 * w, w), double_conv(4 * w, w)
        self.up4_t, self.up4_tn = double_conv(2 * w, 2 * w), double_conv(2 * w, 2 * w)
        self.outc_t, self.outc_tn = nn.Conv2d(2 * w, embedding, 1), nn.Conv2d(2 * w, embedding, 1)
        self.half_channels, self.full_channels, self.embedding_channels = w, 2 * w, embedding

    def encode(self, section: Tensor) -> SectionFeatures:
        """Run the stages at full and half resolution; see `Student.encode`."""
        height, width = section.shape[-2:]
        full = self.inc(pad_to_stride(section, self.stride))
        half = self.down[0](F.max_pool2d(full, 2))
        return SectionFeatures((full, half), (height, width))

    def decode(self, previous: SectionFeatures, current: SectionFeatures) -> PairOutput:
        """Fuse two encoded sections; see `Student.decode`."""
        (previous_full, previous_half), (current_full, current_half) = previous.maps, current.maps
        stage2 = self.down[1](F.max_pool2d(torch.cat([previous_half, current_half], 1), 2))
        stage3 = self.down[2](F.max_pool2d(stage2, 2))
        stage4 = self.down[3](F.max_pool2d(stage3, 2))
        up: list[Callable[[Tensor, Tensor], Tensor]] = [_join] * 4
        if current.samples:
            up = [partial(join_samples, samples=level) for level in current.samples]
        trunk = self.up2(up[2](stage2, self.up1(up[3](stage3, stage4))))
        half_previous = self.up3_t(up[1](previous_half, trunk))
        half_current = self.up3_tn(up[1](current_half, trunk))
        full_previous = self.up4_t(up[0](previous_full, half_previous))
        full_current = self.up4_tn(up[0](current_full, half_current))
        return without_padding(
            current.size,
            previous=self.outc_t(full_previous),
            current=self.outc_tn(full_current),
            half=half_current,
            full=full_current,
        )
