"""MONAI's network parts, imported only when a teacher is built of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.core.errors import DistillError


@dataclass(frozen=True)
class MonaiParts:
    """Classes of MONAI; its own type annotations are not used here."""

    ViT: Any
    SwinTransformer: Any
    UnetResBlock: Any
    UnetrUpBlock: Any


def monai_parts(kind: str) -> MonaiParts:
    """Import them.

    Args:
        kind: teacher that asks, for the message.

    Raises:
        DistillError: MONAI, or einops that its transformers call, is not installed or too old.
    """
    try:
        import einops  # noqa: F401 - MONAI imports without it and fails only when the network runs
        from monai.networks.blocks import UnetResBlock, UnetrUpBlock
        from monai.networks.nets import ViT
        from monai.networks.nets.swin_unetr import SwinTransformer
    except ImportError as error:
        raise DistillError(
            f"teacher.kind: {kind!r} needs MONAI: {error}; pip install 'affinity-distill[teachers]'"
        ) from None
    return MonaiParts(ViT, SwinTransformer, UnetResBlock, UnetrUpBlock)
