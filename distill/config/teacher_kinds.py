"""Keys and defaults that only some kinds of teacher have."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from distill.config.data import Strict
from distill.config.student_network import StudentNetwork

TeacherKind = Literal[
    "agq", "inflated", "superhuman", "unetr", "swinunetr", "resunet", "seunet", "pea", "mala", "lsd", "ml-de"
]


class InflatedConfig(Strict):
    """The student that the teacher `inflated` starts as, and its mixing modules (see `teachers.inflated`)."""

    network: StudentNetwork = StudentNetwork()
    widths: tuple[int, ...] = Field((8, 24, 32, 48, 64), min_length=1)  # of the mixing modules, fine to coarse
    layers: int = Field(2, ge=1)  # 3x3x3 convolutions of each

    @model_validator(mode="after")
    def _fits(self) -> InflatedConfig:
        if min(self.widths) < 1:
            raise ValueError(f"widths: found {list(self.widths)}, expected at least 1 each")
        return self


class UNETRConfig(Strict):
    """The vision transformer of the teacher `unetr` (see `teachers.unetr`)."""

    features: int = Field(16, ge=1)
    hidden: int = Field(768, ge=1)
    mlp: int = Field(3072, ge=1)
    heads: int = Field(12, ge=1)
    layers: int = Field(12, ge=4, multiple_of=4)
    patch_depth: Literal[1, 2, 4, 8, 16] = 4  # sections of a patch; published 16, for isotropic voxels
    block: tuple[int, int, int] = (18, 160, 160)  # block size for which the position embedding is learnt

    @model_validator(mode="after")
    def _fits(self) -> UNETRConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden: found {self.hidden}, expected a multiple of heads {self.heads}")
        if min(self.block) < 1:
            raise ValueError(f"block: found {list(self.block)}, expected at least 1 voxel z, y, x")
        return self


class SwinUNETRConfig(Strict):
    """The Swin transformer of the teacher `swinunetr` (see `teachers.swin_unetr`)."""

    features: int = Field(48, ge=1)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: tuple[int, int, int] = (7, 7, 7)

    @model_validator(mode="after")
    def _fits(self) -> SwinUNETRConfig:
        for name in ("depths", "heads", "window"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}: found {list(getattr(self, name))}, expected at least 1 each")
        widths = [self.features * 2**stage for stage in range(4)]
        if any(width % heads for width, heads in zip(widths, self.heads, strict=True)):
            raise ValueError(f"heads: found {list(self.heads)}, expected divisors of the stages' channels {widths}")
        return self


class PEAConfig(Strict):
    """The embedding pyramid of the teacher `pea` (see `teachers.pea`), and the weights in its own loss."""

    scales: int = Field(2, ge=0, le=4)  # coarser maps with an embedding of their own
    pyramid: float = Field(1.0, ge=0)  # affinities on coarser scales
    views: float = Field(1.0, ge=0)  # affinities across two views

    @model_validator(mode="after")
    def _fits(self) -> PEAConfig:
        if self.scales and not self.pyramid:
            raise ValueError(f"scales: found {self.scales} with pyramid 0, expected 0 scales or pyramid above 0")
        return self


class MALAConfig(Strict):
    """Phases of the teacher `mala` (see `teachers.mala`)."""

    pointwise: float = Field(0.3, ge=0, le=1)  # share of the run trained by errors of single edges, before MALIS


class LSDConfig(Strict):
    """Local shape descriptors of the teacher `lsd` (see `teachers.lsd`)."""

    sigma: float = Field(80.0, gt=0)  # nm, of the Gaussian around each voxel
    auto_context: Literal["none", "descriptors", "descriptors+grey"] = "none"  # MtLSD, AcLSD, AcrLSD


class MLDEConfig(Strict):
    """The discriminative loss of the teacher `ml-de` (see `distill.training.objective.discriminative`)."""

    pull: float = Field(0.5, gt=0)  # distance from the mean within which voxels are not pulled
    push: float = Field(1.5, gt=0)  # half the distance beyond which means are not pushed

    @model_validator(mode="after")
    def _fits(self) -> MLDEConfig:
        if self.push <= self.pull:
            raise ValueError(f"push: found {self.push}, expected more than pull {self.pull}")
        return self


_SYMMETRIC, _FUNKE = (28, 36, 48, 64, 80), (12, 60, 300, 1500)
PUBLISHED: dict[str, dict[str, Any]] = {  # defaults that depend on the kind
    "agq": {"filters": (32, 64, 96, 128, 160), "embedding": 0},
    "inflated": {"embedding": 16, "loss": {"affinity": 0.0, "multi_offset": 0.0}},
    "superhuman": {"filters": _SYMMETRIC, "embedding": 16},
    "unetr": {"embedding": 16},
    "swinunetr": {"embedding": 16},
    "resunet": {"filters": _SYMMETRIC, "embedding": 16},
    "seunet": {"filters": _SYMMETRIC, "embedding": 16},
    "pea": {"filters": _SYMMETRIC, "embedding": 16, "loss": {"affinity": 0.0}},
    "mala": {"filters": _FUNKE, "embedding": 16, "loss": {"affinity": 0.0}},
    "lsd": {"filters": _FUNKE, "embedding": 16},
    "ml-de": {"filters": _SYMMETRIC, "embedding": 16, "loss": {"affinity": 0.0, "multi_offset": 0.0}},
}
WITH_FILTERS = tuple(kind for kind, values in PUBLISHED.items() if "filters" in values)
# kinds without affinities unless they have an embedding
EMBEDDINGS_ONLY = ("inflated", "superhuman", "unetr", "swinunetr", "pea", "ml-de")
# kinds whose affinities at full resolution are not cosines of their embedding
OWN_HEAD = (
    "inflated",
    "resunet",
    "seunet",
    "mala",
    "lsd",
    "ml-de",
)
OWN_LOSS = ("inflated", "mala", "lsd", "pea", "ml-de")  # see `distill.training.objective.own_terms`
ONLY_WITH = {  # keys that only some kinds have
    "filters": WITH_FILTERS,
    "branch_width": ("agq", "inflated"),
    "branch_depth": ("agq", "inflated"),
    "inflated": ("inflated",),
    "student": ("inflated",),
    "unetr": ("unetr",),
    "swinunetr": ("swinunetr",),
    "pea": ("pea",),
    "mala": ("mala",),
    "lsd": ("lsd",),
    "mlde": ("ml-de",),
}
