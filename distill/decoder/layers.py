"""Network layers shared by teachers, the students' adapter and the decoder.

Legend: B batch, C channels, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_LINES = 20_480  # channels x sections x lines of a batch of 1, up to which torch does without oneDNN


class Conv(nn.Module):
    """3D convolution with replicate padding that preserves the size (before stride).

    Kernels that span a single section run as 2D convolutions over all sections, which is arithmetically identical and
    several times faster on a CPU. Parameters have the names and shapes of `torch.nn.Conv3d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        bias: bool,
    ) -> None:
        super().__init__()
        reference = nn.Conv3d(inputs, outputs, kernel, stride, bias=bias)
        self.weight, self.bias = reference.weight, reference.bias
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, D, H, W) to (B, outputs, ceil(D / stride), ...)."""
        front, top, left = (k // 2 for k in self.kernel)
        if self.kernel[0] != 1 or self.stride[0] != 1:
            padded = F.pad(x, (left, left, top, top, front, front), mode="replicate")
            if x.requires_grad and torch.is_grad_enabled():
                return self._with_fast_kernels(padded)
            return F.conv3d(padded, self.weight, self.bias, self.stride)
        batch, _, depth, _, _ = x.shape
        sections = x.transpose(1, 2).flatten(0, 1)
        if top or left:
            sections = F.pad(sections, (left, left, top, top), mode="replicate")
        found = F.conv2d(sections, self.weight[:, :, 0], self.bias, self.stride[1:])
        blocks: Tensor = found.unflatten(0, (batch, depth))  # type: ignore[no-untyped-call]
        return blocks.transpose(1, 2)

    def _with_fast_kernels(self, padded: Tensor) -> Tensor:
        """Convolve with lines of zeros below where torch would not use oneDNN, and leave out what comes of them.

        In float32 on a CPU, torch 2.13 takes kernels that are eight times slower for a batch of 1 with few lines.
        """
        batch, channels, depth, height, _ = padded.shape
        lines = _FEW_LINES // (channels * depth) + 1
        slow = batch == 1 and padded.device.type == "cpu" and padded.dtype == torch.float32
        if not slow or not height < lines <= 2 * height:  # more lines cost what the kernels gain
            return F.conv3d(padded, self.weight, self.bias, self.stride)
        found = F.conv3d(F.pad(padded, (0, 0, 0, lines - height)), self.weight, self.bias, self.stride)
        return found[..., : (height - self.kernel[1]) // self.stride[1] + 1, :]


class ConvStack(nn.Module):
    """`depth` layers of convolution (no bias) and ELU, then a 1x1x1 projection with bias: the branches of AGQ."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int, *, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv(inputs if i == 0 else width, width, kernel, bias=False) for i in range(depth))
        self.projection = Conv(width if depth else inputs, outputs, (1, 1, 1), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, D, H, W) to (B, outputs, D, H, W)."""
        for conv in self.convs:
            x = F.elu(conv(x))
        found: Tensor = self.projection(x)
        return found


def coordinates(like: Tensor) -> Tensor:
    """Return three coordinate channels z, x, y (the published order), each from -1 to 1 along its axis: (B, 3, D, H,
    W).
    """
    batch, _, *shape = like.shape
    z, y, x = (torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in shape)
    deep, down, across = torch.meshgrid(z, y, x, indexing="ij")
    return torch.stack([deep, across, down]).expand(batch, 3, *shape)


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Resize to (D, H, W) trilinearly, or bilinearly by section if the depth is unchanged."""
    wanted = tuple(size)
    if tuple(x.shape[-3:]) == wanted:
        return x
    if x.shape[-3] != wanted[0]:
        return F.interpolate(x, wanted, mode="trilinear", align_corners=align_corners)
    batch, _, depth, _, _ = x.shape
    sections = x.transpose(1, 2).flatten(0, 1)
    found = F.interpolate(sections, wanted[1:], mode="bilinear", align_corners=align_corners)
    blocks: Tensor = found.unflatten(0, (batch, depth))  # type: ignore[no-untyped-call]
    return blocks.transpose(1, 2)
