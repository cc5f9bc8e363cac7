"""Network modules of MONAI, imported only when a teacher is built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.core.errors import DistillError


@dataclass(frozen=True)
class MonaiParts:
    """Classes of MONAI, without its type annotations."""

    ViT: Any
    SwinTransformer: Any
    UnetResBlock: Any
    UnetrUpBlock: Any


def monai_parts(kind: str) -> MonaiParts:
    """Import the modules.

    Args:
        kind: teacher that needs them, for the message.

    Raises:
        DistillError: MONAI, or einops, which its transformers use, is not installed or too old.
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
