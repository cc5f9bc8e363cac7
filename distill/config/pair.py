"""Configuration of a run: one YAML file for the teacher, one for the student, KEY=VALUE overrides.

Unknown keys are refused with the nearest known one. Defaults are the published settings wherever a paper gives one; the
pairs in `configs/` say where each of their values comes from.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from distill.config.data import DataConfig, Strict
from distill.core.errors import ConfigError
from distill.core.geometry import Triple
from distill.core.hardware import AUTO, Precision


class SeedConfig(Strict):
    """Affinity-guided queries (see `distill.decoder.queries.SeedRule`); published: `mean`, min_voxels 100, max_count
    100."""

    kind: Literal["mean", "edges"] = "edges"
    thresholds: tuple[float, float, float] = (0.8, 0.9, 0.9)  # z, y, x; for `edges`
    min_voxels: int = Field(10, ge=0)
    max_count: int = Field(150, ge=0)


class DecoderConfig(Strict):
    """The shared query decoder. Seeds, prior, pieces and filling by default as measured best on real affinities (see
    docs/method.md), not as published; `PUBLISHED_DECODER` holds what was.

    `queries` says which queries there are, `learned` and `seeds.max_count` how many: exactly so many learned ones
    (twice for `double-learned`) and at most so many guided ones. Left out, `learned` is 0 with `queries: guided`, and
    `queries` is `learned` with other cues than queries.

    Light, for CPUs and streams (73 k parameters instead of 484 k): width 32, depth 2, instance_depth 1, rounds 1,
    learned 20.
    """

    width: int = Field(64, ge=8, multiple_of=8)
    depth: int = Field(4, ge=1)  # layers of the mask branch, and of the instance features unless they have their own
    instance_depth: int | None = Field(None, ge=1)
    rounds: int = Field(2, ge=0)
    refine: Literal["agq", "knet", "transformer"] = "agq"  # see `distill.decoder.blocks`
    queries: Literal["guided+learned", "guided", "learned", "double-learned"] = "guided+learned"
    cues: Literal["queries", "affinity", "segmentation"] = "queries"  # the last two: as channels of the input
    learned: int = Field(100, ge=0)
    prior: Literal["none", "distance", "flood"] = "flood"  # left out, it is `none` without guided queries
    norm_momentum: float = Field(0.01, gt=0, le=1)  # of the norms over kernels and logits
    seeds: SeedConfig = SeedConfig()
    block: tuple[int, int, int] = (17, 257, 257)  # voxels of a block at inference
    overlap: tuple[int, int, int] = (1, 1, 1)  # voxels that neighbouring blocks share
    min_instance: int = Field(40, ge=0)  # voxels at full resolution
    min_piece: int = Field(100, ge=0)  # smaller components of an instance go to the nearest larger one
    fill: bool = True  # give every voxel to a query instead of keeping the background channel

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("prior"), bool):  # before there were two kinds
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
    """Weights of the teacher's own terms; 0 switches a term off."""

    multi_offset: float = Field(1.0, ge=0)
    affinity: float = Field(1.0, ge=0)


class QueryLoss(Strict):
    """Weights of the query losses, on the teacher's and on the student's features."""

    cross_entropy: float = Field(0.3, ge=0)
    dice: float = Field(3.0, ge=0)
    discrimination: float = Field(0.1, ge=0)
    samples: int = Field(4096, ge=2)
    points: int = Field(0, ge=0)  # voxels drawn a block for cross-entropy and Dice, 0 = all
    teacher: float = Field(1.0, ge=0)  # factor of the teacher's sum
    student: float = Field(1.0, ge=0)  # factor of the student's sum
    detach_teacher: bool = False  # stop query gradients at the teacher's features
    detach_student: bool = False  # stop query gradients at the student's features
    start: int = Field(0, ge=0)  # first step with query losses
    every: int = Field(1, ge=1)  # steps from one to the next


class UNETRConfig(Strict):
    """The vision transformer of the teacher `unetr` (see `teachers.unetr`)."""

    features: int = Field(16, ge=1)
    hidden: int = Field(768, ge=1)
    mlp: int = Field(3072, ge=1)
    heads: int = Field(12, ge=1)
    layers: int = Field(12, ge=4, multiple_of=4)
    patch_depth: Literal[1, 2, 4, 8, 16] = 4  # sections of a patch; published 16, for voxels that are cubes
    block: tuple[int, int, int] = (18, 160, 160)  # voxels that the position embedding is learnt for

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


_PUBLISHED: dict[str, dict[str, Any]] = {  # defaults that depend on the kind
    "agq": {"filters": (32, 64, 96, 128, 160), "embedding": 0},
    "superhuman": {"filters": (28, 36, 48, 64, 80), "embedding": 16},
    "unetr": {"embedding": 16},
    "swinunetr": {"embedding": 16},
}
_ONLY_WITH = {  # keys that not every kind has
    "filters": ("agq", "superhuman"),
    "branch_width": ("agq",),
    "branch_depth": ("agq",),
    "unetr": ("unetr",),
    "swinunetr": ("swinunetr",),
}


class TeacherConfig(Strict):
    """teacher.yaml: the 3D network, the shared decoder, their losses.

    A key of another kind is refused where it was set, and left out where the configuration is written.

    With `weights` the teacher, and the shared decoder where its shapes fit, start as another run left them. `frozen`
    keeps the teacher as it is: in evaluation mode, without gradients and without losses of its own, whatever `loss`
    says. Its features still teach the decoder where `queries.teacher` is above 0.
    """

    kind: Literal["agq", "superhuman", "unetr", "swinunetr"] = "agq"
    filters: tuple[int, int, int, int, int] = (32, 64, 96, 128, 160)  # `superhuman`: 28, 36, 48, 64, 80
    fused: int = Field(64, ge=8, multiple_of=8)
    branch_width: int = Field(64, ge=1)
    branch_depth: int = Field(4, ge=0)
    embedding: int = Field(0, ge=0)  # 16 with all other kinds
    weights: str | None = None  # of a trained teacher: run folder or weights file
    frozen: bool = False
    unetr: UNETRConfig = UNETRConfig()
    swinunetr: SwinUNETRConfig = SwinUNETRConfig()
    decoder: DecoderConfig = DecoderConfig()
    loss: TeacherLoss = TeacherLoss()
    queries: QueryLoss = QueryLoss()

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, found: Any) -> Any:
        if isinstance(found, dict) and isinstance(found.get("kind", "agq"), str):
            return {**_PUBLISHED.get(found.get("kind", "agq"), {}), **found}
        return found

    @model_serializer(mode="wrap")
    def _own_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if self.kind in _ONLY_WITH.get(key, (self.kind,))}

    @model_validator(mode="after")
    def _whole(self) -> TeacherConfig:
        for key, kinds in _ONLY_WITH.items():
            if key in self.model_fields_set and self.kind not in kinds:
                wanted = " or ".join(repr(kind) for kind in kinds)
                raise ValueError(f"{key}: set for kind {self.kind!r}, expected only with kind {wanted}")
        if self.kind == "agq" and any(f % 8 for f in self.filters):
            raise ValueError(f"filters: found {list(self.filters)}, expected multiples of 8 (GroupNorm of 8 groups)")
        if min(self.filters) < 1:
            raise ValueError(f"filters: found {list(self.filters)}, expected at least 1 each")
        if self.kind != "agq" and not self.embedding:
            raise ValueError(f"embedding: found 0, expected at least 1 with kind {self.kind!r}")
        if self.frozen and self.weights is None:
            raise ValueError("frozen: true without weights, expected weights to name a run folder or a weights file")
        if self.loss.multi_offset and not self.embedding and not self.frozen:
            raise ValueError(
                "loss.multi_offset: needs an embedding head, expected embedding > 0 or loss.multi_offset 0"
            )
        return self


LONG_RANGE: tuple[Triple, ...] = (  # the teacher's offsets beyond the nearest neighbours (`distill.affinity.MULTI`)
    *((-2, 0, 0), (0, -3, 0), (0, 0, -3)),
    *((-3, 0, 0), (0, -9, 0), (0, 0, -9)),
    *((-4, 0, 0), (0, -27, 0), (0, 0, -27)),
)


class DistillLoss(Strict):
    """Weights of the student's terms (specified by the student paper); 0 switches a term off."""

    slice: float = Field(1.0, ge=0)
    multi_offset: float = Field(0.0, ge=0)  # affinities of the labels at `offsets`, an auxiliary task
    offsets: tuple[Triple, ...] = LONG_RANGE  # (-k, 0, 0) sections, or (0, y, x) pixels
    offset_grid: int = Field(2, ge=1)  # every how many pixels such an edge begins; all are drawn in turn
    cross: float = Field(1.0, ge=0)
    cross_from: Literal["embedding", "logits"] = "embedding"
    graft: float = Field(1.0, ge=0)
    graft_distances: tuple[int, ...] = (1, 2, 3, 4)
    graft_from: Literal["labels", "teacher"] = "labels"  # targets: of the labels, or the teacher's own clamped cosines
    masks: float = Field(0.0, ge=0)  # the teacher's soft instance masks, times the query losses' own weights
    detach_teacher: bool = False  # stop cross and graft gradients at the teacher; masks never reach it

    @field_validator("offsets")
    @classmethod
    def _between_sections_or_within(cls, offsets: tuple[Triple, ...]) -> tuple[Triple, ...]:
        for z, y, x in offsets:
            if not ((z < 0 and y == x == 0) or (z == 0 and (y or x))):
                raise ValueError(
                    f"found {[z, y, x]}, expected [-k, 0, 0] with k > 0, or [0, y, x] other than [0, 0, 0]"
                )
        return offsets


AUGMENTATIONS = (
    *("flips", "transposes", "rotate", "rescale", "elastic", "misalign"),
    *("grey", "grey_section", "contrast_jump", "noise", "blur", "out_of_focus", "motion_blur"),
    *("missing", "missing_part", "local_contrast"),
)


class AugmentConfig(Strict):
    """Augmentation of training volumes: probabilities per volume, each with its strengths (docs/augmentation.md)."""

    flips: bool = True
    transposes: bool = True
    rotate: float = Field(0.3, ge=0, le=1)
    rotate_degrees: float = Field(180.0, ge=0, le=180)  # at most, either way
    rescale: float = Field(0.2, ge=0, le=1)
    rescale_by: float = Field(0.2, ge=0, le=1)  # larger or smaller by a factor of up to 1 + this
    elastic: float = Field(0.3, ge=0, le=1)
    elastic_pixels: float = Field(8.0, ge=0)  # nothing moves further
    elastic_spacing: int = Field(32, ge=4)  # pixels between control points
    elastic_sections: int = Field(8, ge=1)  # the same in z
    misalign: float = Field(0.2, ge=0, le=1)  # one section, or all from one on, shifted
    misalign_pixels: int = Field(4, ge=0)
    grey: float = Field(0.5, ge=0, le=1)  # contrast, brightness, gamma of the volume
    grey_strength: float = Field(1.0, ge=0)  # 1: up to 30 %, 0.15, a factor of 1.5
    grey_section: float = Field(0.3, ge=0, le=1)  # the same, anew for every section
    grey_section_strength: float = Field(0.5, ge=0)
    contrast_jump: float = Field(0.05, ge=0, le=1)  # the same, in one section
    contrast_jump_strength: float = Field(1.5, ge=0)
    noise: float = Field(0.3, ge=0, le=1)
    noise_sigma: float = Field(0.06, ge=0)  # at most, grey values 0 to 1
    blur: float = Field(0.1, ge=0, le=1)
    blur_sigma: float = Field(1.0, gt=0)  # at most, pixels
    out_of_focus: float = Field(0.05, ge=0, le=1)  # one section
    out_of_focus_pixels: float = Field(4.0, ge=1)  # largest radius
    motion_blur: float = Field(0.05, ge=0, le=1)  # one section
    motion_blur_pixels: float = Field(11.0, ge=1)  # largest length
    missing: float = Field(0.05, ge=0, le=1)  # one section blank
    missing_part: float = Field(0.05, ge=0, le=1)  # a part of one section blank
    missing_part_share: float = Field(0.35, gt=0, le=1)  # largest radius as a share of the shorter side
    local_contrast: float = Field(0.0, ge=0, le=1)  # contrast and brightness that vary smoothly within each section
    local_contrast_strength: float = Field(1.0, ge=0)  # 1: contrast by a factor of up to 2, brightness by 0.3
    local_contrast_pixels: int = Field(64, ge=4)  # pixels between control points
    device: Literal["worker", "train"] = "worker"  # carried out by data workers, or where the networks are trained

    @model_validator(mode="after")
    def _does_not_fold(self) -> AugmentConfig:
        most = 0.4 * self.elastic_spacing  # Choi and Lee, 2000: 0.48 in a plane
        if self.elastic and self.elastic_pixels > most:
            raise ValueError(
                f"elastic_pixels: found {self.elastic_pixels:g}, expected at most 0.4 elastic_spacing = {most:g}, "
                "so that no place is shown twice"
            )
        return self

    def only(self, *names: str) -> AugmentConfig:
        """The same strengths, but of all `AUGMENTATIONS` these for certain and no other."""
        switches = {name: type(getattr(self, name))(name in names) for name in AUGMENTATIONS}
        return self.model_copy(update=switches)


class TrainingConfig(Strict):
    """The optimiser's loop.

    With `minutes` the first steps are timed and the run gets as many steps as fit, whatever `steps` says. `steps` is
    then the length that `warmup`, `lr_warmup` and the teacher's `queries.start` are written for: they keep their share
    of the run.
    """

    steps: int = Field(200_000, ge=1)
    minutes: float | None = Field(None, gt=0, allow_inf_nan=False)  # of the steps, validations and saving, together
    warmup: int = Field(10_000, ge=0)  # steps with the teacher's own and the slice loss alone
    crop: tuple[int, int, int] = (18, 160, 160)
    batch: int = Field(2, ge=1)
    teacher_every: int = Field(1, ge=1)  # the 3D network runs every so many steps, the student at each
    unlabelled_every: int = Field(2, ge=2)  # after the warm-up every so many steps one is of `data.unlabelled`
    widen_borders: bool = True
    lr: float = Field(1e-4, gt=0)
    lr_warmup: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.0, ge=0)  # norm of the gradient, 0 = off
    ema: float = Field(0.0, ge=0, lt=1)  # decay of averaged weights, 0 = off
    precision: Precision = AUTO  # by what the device has, see docs/training.md
    compile: bool = False  # teacher and student through torch.compile; see docs/training.md
    workers: int = Field(2, ge=0)
    seed: int = Field(0, ge=0)
    log_every: int = Field(20, ge=1)
    validate_every: int = Field(1000, ge=1)
    validations: int = Field(0, ge=0)  # so many in the run, evenly spread, in place of `validate_every`; 0 = off
    patience: int = Field(0, ge=0)  # the run ends after so many validations without a better VOI; 0 = off
    save_every: int = Field(1000, ge=1)

    @property
    def validation_interval(self) -> int:
        """Steps from one validation to the next."""
        return max(1, -(-self.steps // self.validations)) if self.validations else self.validate_every

    @field_validator("crop")
    @classmethod
    def _room(cls, crop: tuple[int, int, int]) -> tuple[int, int, int]:
        if crop[0] < 2 or min(crop[1:]) < 8:
            raise ValueError(f"found {list(crop)}, expected at least 2 sections (a slice pair) of 8 x 8")
        return crop


_ONLY_SMP = ("encoder", "depth", "fuse", "encoder_weights")


class StudentNetwork(Strict):
    """The 2D network: the paper's (`cad`) or the same shape on a library's encoder (`smp`, see `students.smp`).

    The default is the one that did better in the same minutes and is faster (docs/students.md). A key of the other kind
    is refused where it was set, and left out where the configuration is written.
    """

    kind: Literal["cad", "smp"] = "smp"
    width: int = Field(8, ge=1)  # `cad`: 16
    embedding: int = Field(16, ge=1)
    encoder: str = "tu-resnet10t"  # of segmentation-models-pytorch, `tu-NAME` for timm's
    depth: int = Field(4, ge=3, le=5)  # levels of the encoder
    fuse: int = Field(1, ge=0)  # levels up to this one see one section, deeper ones both

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, found: Any) -> Any:
        return {"width": 16, **found} if isinstance(found, dict) and found.get("kind") == "cad" else found

    @model_serializer(mode="wrap")
    def _own_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if self.kind == "smp" or key not in _ONLY_SMP}

    @model_validator(mode="after")
    def _fits(self) -> StudentNetwork:
        for key in _ONLY_SMP:
            if self.kind == "cad" and key in self.model_fields_set:
                raise ValueError(f"{key}: set for kind 'cad', expected only with kind 'smp'")
        if self.fuse >= self.depth:
            raise ValueError(f"fuse: found {self.fuse}, expected at most depth - 1 = {self.depth - 1}")
        return self


class StudentConfig(StudentNetwork):
    """student.yaml: the 2D network, the distillation, data and training.

    With `weights` the student, its adapter and the shared decoder where their shapes fit start as another run left
    them; of two decoders, a teacher's and a student's, the student's is taken.
    """

    encoder_weights: str | None = None  # from a hub, e.g. `imagenet`; for `smp`
    weights: str | None = None  # of a trained student: run folder, weights file or bundled model
    loss: DistillLoss = DistillLoss()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()


class Pair(Strict):
    """A teacher and the student that it teaches."""

    teacher: TeacherConfig
    student: StudentConfig

    @model_validator(mode="after")
    def _fit(self) -> Pair:
        if not (self.student_runs or self.teacher_learns):
            raise ValueError("every loss is 0; expected one at least above 0 that trains the student or the teacher")
        if not self._every_step_has_a_loss():
            raise ValueError(
                "student.loss.slice: 0 leaves steps without any loss; expected student.training.teacher_every 1, and "
                "student.training.warmup 0 where the teacher has no loss of its own"
            )
        if self.student.weights is not None and not self.student_runs:
            raise ValueError(
                "student.weights: set, but no loss trains the student; expected one above 0, or no weights"
            )
        if self.student.loss.graft and self.teacher.embedding != self.student.embedding:
            raise ValueError(
                f"student.loss.graft: compares embeddings, but teacher.embedding is {self.teacher.embedding} and "
                f"student.embedding {self.student.embedding}; expected the same number, or student.loss.graft 0"
            )
        if self.student.loss.cross and self.student.loss.cross_from == "embedding" and not self.teacher.embedding:
            raise ValueError("student.loss.cross_from: 'embedding' needs teacher.embedding > 0; expected 'logits'")
        queries = self.teacher.queries
        if self.student.loss.masks and not (queries.cross_entropy or queries.dice):
            raise ValueError(
                "student.loss.masks: multiplies teacher.queries.cross_entropy and teacher.queries.dice, found both 0; "
                "expected one above 0, or student.loss.masks 0"
            )
        return self

    @model_validator(mode="after")
    def _phases_have_a_length(self) -> Pair:
        training = self.student.training
        lengths: dict[str, BaseModel] = {f"student.training.{key}": training for key in ("warmup", "lr_warmup")}
        lengths["teacher.queries.start"] = self.teacher.queries
        if training.minutes is None or "steps" in training.model_fields_set:
            return self
        for key, holder in lengths.items():
            name = key.rpartition(".")[2]
            if name in holder.model_fields_set and getattr(holder, name):
                raise ValueError(
                    f"{key}: found {getattr(holder, name)} with student.training.minutes alone, expected "
                    "student.training.steps as well: the length that it is written for; it keeps its share of the run"
                )
        return self

    @model_validator(mode="after")
    def _unlabelled_steps_have_losses(self) -> Pair:
        loss, queries = self.student.loss, self.teacher.queries
        if self.student.data.unlabelled and not (
            loss.cross
            or (loss.graft and loss.graft_from == "teacher")
            or (loss.masks and queries.every == 1 and queries.start <= self.student.training.warmup)
        ):
            raise ValueError(
                "student.data.unlabelled: no loss at every step without labels; expected student.loss.cross above 0, "
                "student.loss.graft with graft_from teacher, or student.loss.masks at every step after the warm-up "
                "(teacher.queries.every 1, start no later than the warm-up)"
            )
        return self

    def unlabelled_at(self, step: int) -> bool:
        """Whether a step is of the unlabelled volumes: after the warm-up the last of every `unlabelled_every`."""
        training = self.student.training
        phase = step % training.unlabelled_every == training.unlabelled_every - 1
        return bool(self.student.data.unlabelled) and step >= training.warmup and phase

    def labelled_before(self, step: int) -> int:
        """How many of the steps before this one are of the labelled volume; `teacher_every` and such count those."""
        training = self.student.training
        if not self.student.data.unlabelled or step <= training.warmup:
            return step
        return step - (step // training.unlabelled_every - training.warmup // training.unlabelled_every)

    @property
    def distils(self) -> bool:
        """Whether the teacher teaches the student."""
        loss = self.student.loss
        return any((loss.cross, loss.graft, loss.masks))

    @property
    def student_runs(self) -> bool:
        """Whether any loss needs the 2D network; else the teacher is trained alone."""
        return self.distils or any((self.student.loss.slice, self.teacher.queries.student))

    @property
    def teacher_runs(self) -> bool:
        """Whether any loss needs the 3D network; else the student is trained alone."""
        return self.distils or self.teacher_losses or bool(self.teacher.queries.teacher)

    @property
    def teacher_learns(self) -> bool:
        """Whether training changes what the teacher gives with the decoder, so that validation must look at it."""
        return self.teacher_runs and (not self.teacher.frozen or bool(self.teacher.queries.teacher))

    @property
    def teacher_losses(self) -> bool:
        """Whether the teacher has losses of its own."""
        return not self.teacher.frozen and any((self.teacher.loss.multi_offset, self.teacher.loss.affinity))

    def _every_step_has_a_loss(self) -> bool:
        queries, loss, training = self.teacher.queries, self.student.loss, self.student.training
        queries_at_each = queries.start == 0 and queries.every == 1
        distilled = loss.cross or loss.graft or (loss.masks and queries_at_each)
        with_teacher = (
            self.teacher_losses or (distilled and training.warmup == 0) or (queries.teacher and queries_at_each)
        )
        return bool(
            loss.slice or (queries.student and queries_at_each) or (with_teacher and training.teacher_every == 1)
        )


def load_pair(teacher: Path, student: Path, overrides: Sequence[str] = ()) -> Pair:
    """Read, override and check both files.

    Args:
        teacher: teacher.yaml.
        student: student.yaml.
        overrides: `teacher.KEY=VALUE` or `student.KEY=VALUE`, nested keys with dots, values as YAML.

    Raises:
        ConfigError: a file that is missing or no mapping, an unknown key (the nearest known one is named), a bad value.
    """
    names = {"teacher": str(teacher), "student": str(student)}
    return checked_pair(with_overrides({"teacher": _read(teacher), "student": _read(student)}, overrides, names), names)


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Apply overrides to the values of both files, check their keys and fill environment variables in.

    Args:
        values: under `teacher` and `student`; not changed.
        overrides: `teacher.KEY=VALUE` or `student.KEY=VALUE`, nested keys with dots, values as YAML.
        names: what to call the two in messages.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), or a value that is no YAML.
    """
    found: dict[str, Any] = copy.deepcopy(dict(values))
    for text in overrides:
        _override(found, text)
    _known_keys(found["teacher"], TeacherConfig, names["teacher"], "")
    _known_keys(found["student"], StudentConfig, names["student"], "")
    expanded: dict[str, Any] = _expand(found)
    return expanded


def older_defaults(student: Path) -> list[str]:
    """Overrides that give the keys which a resolved student.yaml of an earlier version lacks the meaning they had then.

    Raises:
        ConfigError: a file that is missing or no mapping.
    """
    data = _read(student).get("data")
    known = isinstance(data, dict) and "normalisation" in data
    return [] if known else ["student.data.normalisation=none"]


def checked_pair(values: Mapping[str, Any], names: Mapping[str, str]) -> Pair:
    """A pair from the values of both files.

    Args:
        values: under `teacher` and `student`.
        names: what to call the two in messages.

    Raises:
        ConfigError: a bad value, or values that do not go together.
    """
    try:
        return Pair.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, names)) from None


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found {type(found).__name__}, expected a mapping of keys")
    return found


def _override(found: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    part, dot, rest = key.partition(".")
    if not equals or not dot or part not in found:
        raise ConfigError(f"{text}: expected teacher.KEY=VALUE or student.KEY=VALUE")
    node = found[part]
    *path, last = rest.split(".")
    for step in path:
        if isinstance(node, list):  # entries by number
            if not step.isdecimal() or int(step) >= len(node):
                raise ConfigError(f"{text}: found {step!r}, expected a number below {len(node)}")
            node = node[int(step)]
        else:
            node = node.setdefault(step, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"{text}: {step!r} holds a value, not a group of keys")
    if isinstance(node, list):
        raise ConfigError(f"{text}: {path[-1]!r} holds a list, expected a number and a key of its entries")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{text}: the value is not YAML") from None


def _known_keys(values: Any, model: type[BaseModel], where: str, prefix: str) -> None:
    if isinstance(values, list):  # of groups of keys
        for number, entry in enumerate(values):
            _known_keys(entry, model, where, f"{prefix}{number}.")
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        field = model.model_fields.get(str(key))
        if field is None:
            known = list(_all_keys(model))
            leaves = [name for name in known if name.rpartition(".")[2] == str(key)]
            near = leaves or difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"did you mean {prefix + near[0]!r}?" if near else f"expected one of {sorted(model.model_fields)}"
            raise ConfigError(f"{where}: unknown key {prefix + str(key)!r}; {hint}")
        inner = _model_of(field.annotation)
        if inner is not None:
            _known_keys(value, inner, where, f"{prefix}{key}.")


def _all_keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        inner = _model_of(field.annotation)
        if inner is not None:
            yield from (f"{name}.{key}" for key in _all_keys(inner))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any) -> Any:
    """Environment variables in strings: `${NAME}` or `${NAME:-default}`."""
    if isinstance(value, dict):
        return {key: _expand(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner) for inner in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        filled = os.environ.get(match[1], match[2])
        if filled is None:
            raise ConfigError(f"{value}: the environment variable {match[1]} is not set")
        return filled

    return _VARIABLE.sub(fill, value)


def _explain(error: ValidationError, names: Mapping[str, str]) -> str:
    first = error.errors()[0]
    part, *rest = [str(step) for step in first["loc"]] or ["pair"]
    key = ".".join(rest)
    message = first["msg"].removeprefix("Value error, ")
    if part not in names:
        return f"{names['teacher']} with {names['student']}: {message}"
    found = f", found {first['input']!r}" if key and first["type"] not in ("missing", "value_error") else ""
    return f"{names[part]}: {key + ': ' if key else ''}{message}{found}"
