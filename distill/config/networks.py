"""Configuration of the networks: teacher, student, query decoder.

Defaults are the published settings where a paper states them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from distill.config.data import Strict
from distill.config.teacher_kinds import (
    EMBEDDINGS_ONLY,
    ONLY_WITH,
    OWN_HEAD,
    OWN_LOSS,
    PUBLISHED,
    InflatedConfig,
    LSDConfig,
    MALAConfig,
    MLDEConfig,
    PEAConfig,
    SwinUNETRConfig,
    TeacherKind,
    UNETRConfig,
)


class SeedConfig(Strict):
    """Affinity-guided queries (see `distill.decoder.queries.SeedRule`); published: `mean`, min_voxels 100, max_count
    100.
    """

    kind: Literal["mean", "edges"] = "edges"
    thresholds: tuple[float, float, float] = (0.8, 0.9, 0.9)  # z, y, x; for `edges`
    min_voxels: int = Field(10, ge=0)
    max_count: int = Field(150, ge=0)


class DecoderConfig(Strict):
    """The query decoder. The defaults of seeds, prior, pieces and filling are those with the best scores on real
    affinities.

    See docs/explanation/method.md for the measurements; `PUBLISHED_DECODER` contains the published values.

    `queries` selects the kinds of queries, `learned` and `seeds.max_count` their numbers: exactly this many learned
    queries (twice for `double-learned`) and at most this many guided ones. If not set, `learned` is 0 with `queries:
    guided`, and `queries` is `learned` with cues other than queries.

    Light configuration for CPUs and streams (73 k parameters instead of 484 k): width 32, depth 2, instance_depth 1,
    rounds 1, learned 20.
    """

    width: int = Field(64, ge=8, multiple_of=8)
    depth: int = Field(4, ge=1)  # layers of the mask branch, and of the instance features unless set separately
    instance_depth: int | None = Field(None, ge=1)
    rounds: int = Field(2, ge=0)
    refine: Literal["agq", "knet", "transformer"] = "agq"  # see `distill.decoder.blocks`
    queries: Literal["guided+learned", "guided", "learned", "double-learned"] = "guided+learned"
    cues: Literal["queries", "affinity", "segmentation"] = "queries"  # the last two: as channels of the input
    learned: int = Field(100, ge=0)
    prior: Literal["none", "distance", "flood"] = "flood"  # default: `none` without guided queries
    norm_momentum: float = Field(0.01, gt=0, le=1)  # momentum of the norms over kernels and logits
    seeds: SeedConfig = SeedConfig()
    block: tuple[int, int, int] = (17, 257, 257)  # voxels of a block at inference
    overlap: tuple[int, int, int] = (1, 1, 1)  # overlap of neighbouring blocks in voxels
    min_instance: int = Field(40, ge=0)  # voxels at full resolution
    min_piece: int = Field(100, ge=0)  # smaller components of an instance are assigned to the nearest larger one
    fill: bool = True  # assign every voxel to a query instead of keeping the background channel

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("prior"), bool):  # from versions with one kind
            values = {**values, "prior": "distance" if values["prior"] else "none"}
        if values.get("cues", "queries") != "queries":
            values = {"queries": "learned", **values}
        if values.get("queries") == "guided":
            values = {"learned": 0, **values}
        if not str(values.get("queries", "guided")).startswith("guided"):
            values = {"prior": "none", **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> DecoderConfig:
        guided, queries, cues = self.queries.startswith("guided"), f"queries '{self.queries}'", f"cues '{self.cues}'"
        if guided and self.cues != "queries":
            raise ValueError(f"queries: found '{self.queries}', expected 'learned' or 'double-learned' with {cues}")
        if self.queries == "guided" and self.learned:
            raise ValueError(f"learned: found {self.learned}, expected 0 with {queries}")
        if not guided and not self.learned:
            raise ValueError(f"learned: found 0, expected at least 1 with {queries}")
        if not guided and self.prior != "none":
            raise ValueError(f"prior: found '{self.prior}', expected 'none' with {queries}, it surrounds guided ones")
        if self.seeds.max_count == 0 and (self.cues == "segmentation" or not self.learned):
            raise ValueError(f"seeds.max_count: found 0, expected at least 1 with {cues} and learned {self.learned}")
        return self

    @model_validator(mode="after")
    def _shares(self) -> DecoderConfig:
        if self.block[0] < 2 or min(self.block[1:]) < 16:
            raise ValueError(f"block: found {list(self.block)}, expected at least 2 sections of 16 x 16 voxels")
        if any(not 0 <= o < b for o, b in zip(self.overlap, self.block, strict=True)):
            raise ValueError(f"overlap: found {list(self.overlap)}, expected less than the block {list(self.block)}")
        return self


# Chen et al., ICLR 2025, where the defaults above differ
PUBLISHED_DECODER: dict[str, Any] = {
    "prior": "none",
    "seeds": {"kind": "mean", "min_voxels": 100, "max_count": 100},
    "min_piece": 0,
    "fill": False,
}


class TeacherLoss(Strict):
    """Weights of the teacher's own loss terms; 0 disables a term."""

    multi_offset: float = Field(1.0, ge=0)  # default 0 with `ml-de` and `inflated`
    affinity: float = Field(1.0, ge=0)  # default 0 with `pea`, `mala`, `ml-de`, `inflated`
    own: float = Field(1.0, ge=0)  # the kind's own loss: `pea`, `mala`, `lsd`, `ml-de`, `inflated`


class QueryLoss(Strict):
    """Weights of the query losses, on the teacher's and on the student's features."""

    cross_entropy: float = Field(0.3, ge=0)
    dice: float = Field(3.0, ge=0)
    discrimination: float = Field(0.1, ge=0)
    samples: int = Field(4096, ge=2)
    points: int = Field(0, ge=0)  # voxels drawn per block for cross-entropy and Dice, 0 = all
    teacher: float = Field(1.0, ge=0)  # factor of the teacher's sum
    student: float = Field(1.0, ge=0)  # factor of the student's sum
    detach_teacher: bool = False  # stop query gradients at the teacher's features
    detach_student: bool = False  # stop query gradients at the student's features
    start: int = Field(0, ge=0)  # first step with query losses
    every: int = Field(1, ge=1)  # steps between query losses


class TeacherConfig(Strict):
    """teacher.yaml: the 3D network, the decoder, and their losses.

    A key of another kind is refused if it was set, and omitted when the configuration is written.

    With `weights`, the teacher, and the decoder if its shapes match, are initialised from another run. `frozen` keeps
    the teacher unchanged: in evaluation mode, without gradients and without losses of its own, regardless of `loss`.
    The decoder still learns from its features if `queries.teacher` is above 0.

    With `orientations`, affinities at inference are means over that many flips and transposes of a block, and a frozen
    teacher sees a random one of them in every step, so that a student learns their mean.
    """

    kind: TeacherKind = "agq"
    filters: tuple[int, ...] = (32, 64, 96, 128, 160)  # `mala`, `lsd`: 12, 60, 300, 1500; others: 28, 36, 48, 64, 80
    fused: int = Field(64, ge=8, multiple_of=8)
    branch_width: int = Field(64, ge=1)
    branch_depth: int = Field(4, ge=0)
    embedding: int = Field(0, ge=0)  # 16 with all other kinds than `agq`
    weights: str | None = None  # of a trained teacher: run folder or weights file
    student: str | None = None  # `inflated`: trained student to start from: run folder, weights file or bundled model
    frozen: bool = False
    unetr: UNETRConfig = UNETRConfig()
    swinunetr: SwinUNETRConfig = SwinUNETRConfig()
    pea: PEAConfig = PEAConfig()
    mala: MALAConfig = MALAConfig()
    lsd: LSDConfig = LSDConfig()
    mlde: MLDEConfig = MLDEConfig()
    inflated: InflatedConfig = InflatedConfig()
    orientations: Literal[1, 2, 4, 8, 16] = 1  # flips and transposes whose affinities are averaged at inference
    decoder: DecoderConfig = DecoderConfig()
    loss: TeacherLoss = TeacherLoss()
    queries: QueryLoss = QueryLoss()

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, found: Any) -> Any:
        if isinstance(found, dict) and isinstance(found.get("kind", "agq"), str):
            published = PUBLISHED.get(found.get("kind", "agq"), {})
            values = {**published, **found}
            if isinstance(values.get("loss", {}), dict):
                values["loss"] = {**published.get("loss", {}), **values.get("loss", {})}
                if values.get("embedding") == 0:  # these terms compare embeddings
                    values["loss"].setdefault("multi_offset", 0.0)
            return values
        return found

    @model_serializer(mode="wrap")
    def _own_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = {key: value for key, value in dump(self).items() if self.kind in ONLY_WITH.get(key, (self.kind,))}
        if self.kind not in OWN_LOSS and "loss" in values:
            values["loss"] = {key: value for key, value in values["loss"].items() if key != "own"}
        return values

    @model_validator(mode="after")
    def _whole(self) -> TeacherConfig:
        for key, kinds in ONLY_WITH.items():
            if key in self.model_fields_set and self.kind not in kinds:
                wanted = " or ".join(repr(kind) for kind in kinds)
                raise ValueError(f"{key}: set for kind {self.kind!r}, expected only with kind {wanted}")
        if "own" in self.loss.model_fields_set and not self.has_own_loss:
            wanted = " or ".join(repr(kind) for kind in OWN_LOSS)
            raise ValueError(f"loss.own: set for kind {self.kind!r}, expected only with kind {wanted}")
        scales = len(PUBLISHED[self.kind].get("filters", self.filters))
        if len(self.filters) != scales:
            raise ValueError(f"filters: found {list(self.filters)}, expected {scales} numbers with kind {self.kind!r}")
        if self.kind == "agq" and any(f % 8 for f in self.filters):
            raise ValueError(f"filters: found {list(self.filters)}, expected multiples of 8 (GroupNorm of 8 groups)")
        if min(self.filters) < 1:
            raise ValueError(f"filters: found {list(self.filters)}, expected at least 1 each")
        if self.kind in EMBEDDINGS_ONLY and not self.embedding:
            raise ValueError(f"embedding: found 0, expected at least 1 with kind {self.kind!r}")
        if self.frozen and self.weights is None:
            raise ValueError("frozen: true without weights, expected weights to name a run folder or a weights file")
        if self.kind == "inflated" and self.embedding != self.inflated.network.embedding:
            raise ValueError(
                f"embedding: found {self.embedding}, expected {self.inflated.network.embedding} as in inflated.network"
            )
        if self.student is not None and self.weights is not None:
            raise ValueError(
                "student: found together with weights, expected only one of them: each initialises the teacher"
            )
        if self.loss.multi_offset and not self.embedding and not self.frozen:
            raise ValueError(
                "loss.multi_offset: needs an embedding head, expected embedding > 0 or loss.multi_offset 0"
            )
        return self

    @property
    def has_own_head(self) -> bool:
        """Return whether affinities at full resolution come from a head of their own, not from cosines."""
        return self.kind in OWN_HEAD

    @property
    def has_own_loss(self) -> bool:
        """Return whether this kind has a loss of its own, weighted by `loss.own`."""
        return self.kind in OWN_LOSS
