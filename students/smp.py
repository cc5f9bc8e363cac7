"""The Y-shape student on an encoder of segmentation-models-pytorch.

The structure is that of Liu et al., CVPR 2024: stages that process each section separately, a trunk that combines both,
and one decoder branch per section. In contrast to the paper's network, the whole encoder runs once per section, so its
output can be cached and any encoder fits; fusion takes place where the decoder receives the deeper maps. Upsampling has
fixed sampling positions (align_corners=False), so that a tile computes the same as the whole section. This holds for
encoders without global pooling or attention: see `students.streaming.receptive_field`.

Level l has stride 2^l. Level 0 is an additional small convolution, because these encoders start at half resolution.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from distill.core.errors import ConfigError
from students.student import PairOutput, SectionFeatures, Student, double_conv, join, pad_to_stride, without_padding
from students.torchvision_schemas import heal_torchvision

_TRUNK = (1, 1, 2, 4, 4, 4)  # decoder channels of the levels 0, 1, ..., in units of `width`
_join = partial(join, align_corners=False)


class SmpYShape(Student):
    """Encoder of one channel, fused trunk, one decoder branch for each of the two sections."""

    def __init__(
        self,
        encoder: str = "tu-resnet10t",
        *,
        depth: int = 4,
        fuse: int = 1,
        width: int = 8,
        embedding: int = 16,
        weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            encoder: an encoder name of segmentation-models-pytorch, `tu-NAME` for encoders of timm.
            depth: levels of the encoder, 3 to 5; the coarsest has stride 2^depth.
            fuse: levels 0 .. fuse process one section, deeper levels both; the paper's network has 1.
            width: decoder channels at full resolution.
            embedding: channels of each embedding.
            weights: pretrained encoder weights from a hub (`imagenet`), None for random weights.

        Raises:
            ConfigError: the encoder is unknown or cannot be built with these options, or its weights are not available.
        """
        super().__init__()
        if not 0 <= fuse < depth:
            raise ConfigError(f"fuse: found {fuse}, expected 0 to {depth - 1}, so that something is fused")
        self.encoder = _encoder(encoder, depth, weights)
        self.stride, self.fuse = _least_size(self.encoder, 2**depth), fuse
        channels = cast(Sequence[int], self.encoder.out_channels)
        skips = [width, *channels[1 : depth + 1]]
        wide = [width * factor for factor in _TRUNK]
        self.stem = double_conv(1, width)
        self.merge = nn.ModuleList(  # some encoders have an empty map at level 1
            _pointwise(2 * skips[level], wide[level]) if skips[level] else nn.Identity()
            for level in range(fuse + 1, depth + 1)
        )
        self.trunk = nn.ModuleList(
            double_conv(wide[level + 1] + (wide[level] if skips[level] else 0), wide[level])
            for level in range(fuse + 1, depth)
        )
        self.previous_branch, self.current_branch = (
            nn.ModuleList(double_conv(skips[level] + wide[level + 1], wide[level]) for level in range(fuse + 1))
            for _ in range(2)
        )
        self.previous_out, self.current_out = (nn.Conv2d(width, embedding, 1) for _ in range(2))
        self.half_channels, self.full_channels, self.embedding_channels = wide[1], wide[0], embedding

    def encode(self, section: Tensor) -> SectionFeatures:
        """Run the whole encoder; see `Student.encode`."""
        height, width = section.shape[-2:]
        padded = (pad_to_stride(section, self.stride) - 0.5) / 0.25
        return SectionFeatures((self.stem(padded), *self.encoder(padded)[1:]), (height, width))

    def decode(self, previous: SectionFeatures, current: SectionFeatures) -> PairOutput:
        """Fuse two encoded sections; see `Student.decode`."""
        fused = [
            merge(torch.cat([previous.maps[level], current.maps[level]], 1))
            for level, merge in enumerate(self.merge, start=self.fuse + 1)
        ]
        deep = fused.pop()
        for block in reversed(self.trunk):
            deep = block(_join(fused.pop(), deep))
        before, now = deep, deep
        half = now
        for level in reversed(range(self.fuse + 1)):
            before = self.previous_branch[level](_join(previous.maps[level], before))
            now = self.current_branch[level](_join(current.maps[level], now))
            half = now if level == 1 else half
        return without_padding(
            current.size, previous=self.previous_out(before), current=self.current_out(now), half=half, full=now
        )


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _encoder(name: str, depth: int, weights: str | None) -> nn.Module:
    encoders = _library()
    if not name.startswith("tu-") and name not in encoders.get_encoder_names():
        raise ConfigError(
            f"encoder: found {name!r}, expected one of segmentation-models-pytorch's "
            f"({', '.join(sorted(encoders.get_encoder_names())[:4])}, ...) or tu-NAME for one of timm's"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # deprecated encoder names still work
            encoder: nn.Module = encoders.get_encoder(name, in_channels=1, depth=depth, weights=None)
            strides = _strides(encoder)
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, TypeError) as error:
        raise ConfigError(f"encoder: {name!r} cannot be built with depth {depth}: {error}") from None
    if strides != [2**level for level in range(1, depth + 1)]:
        raise ConfigError(f"encoder: {name!r} has maps of strides {strides}, expected 2, 4, ..., {2**depth}")
    if weights is not None:
        encoder = _pretrained(encoders, name, depth, weights)
    _drop_unused(encoder)
    return encoder


def _pretrained(encoders: ModuleType, name: str, depth: int, weights: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: nn.Module = encoders.get_encoder(name, in_channels=1, depth=depth, weights=weights)
    except Exception as error:  # noqa: BLE001 - whatever the hub's client raises without a network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"encoder_weights: {weights!r} for {name!r} cannot be obtained: {reason}; train without them "
            "(encoder_weights: null), or copy the folder HF_HOME of a machine that has fetched them"
        ) from None
    return found


def _strides(encoder: nn.Module) -> list[int]:
    """Return the strides of the maps after the first."""
    with torch.no_grad():
        maps = encoder.eval()(torch.zeros(1, 1, 64, 64, device="cpu"))
    return [64 // found.shape[-1] for found in maps[1:]]


def _least_size(encoder: nn.Module, stride: int) -> int:
    """Return the smallest multiple of the stride that the encoder accepts as size (at most 64, see `_strides`).

    Some encoders pool their maps before attention, and some have branches coarser than the last map.
    """
    encoder.eval()
    while stride < 64:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, 1, stride, stride, device="cpu"))
        except RuntimeError:
            stride *= 2
        else:
            break
    encoder.train()
    return stride


def _drop_unused(encoder: nn.Module) -> None:
    """Remove layers after the last map that is used; some encoders include their whole classifier.

    If the encoder does not run without them, they are kept but frozen.
    """
    encoder.eval()
    image = torch.zeros(1, 1, 64, 64, device="cpu")
    with torch.enable_grad():
        maps = encoder(image)
        torch.autograd.backward([found.sum() for found in maps[1:] if found.requires_grad])
    idle = {
        name: module
        for name, module in encoder.named_modules()
        if name and any(True for _ in module.parameters()) and all(p.grad is None for p in module.parameters())
    }
    idle = {name: module for name, module in idle.items() if not any(name.startswith(f"{other}.") for other in idle)}
    _replace(encoder, {name: _Removed() for name in idle})
    try:
        with torch.no_grad():
            encoder(image)
    except (RuntimeError, TypeError):
        _replace(encoder, idle)
        for module in idle.values():
            module.requires_grad_(False)
    encoder.zero_grad(set_to_none=True)
    encoder.train()


def _replace(encoder: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, module)


class _Removed(nn.Module):
    def forward(self, x: Tensor, *_rest: object) -> Tensor:
        return x


def _library() -> ModuleType:
    """Import the encoders of segmentation-models-pytorch when needed; the import takes a second."""
    heal_torchvision()
    from segmentation_models_pytorch import encoders

    return cast(ModuleType, encoders)
