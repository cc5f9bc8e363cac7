"""Configuration of a training: weights of the distillation terms, augmentation, optimiser."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from distill.config.data import Strict
from distill.core.geometry import Triple
from distill.core.hardware import TrainingPrecision

# the teacher's offsets beyond the nearest neighbours (`distill.core.affinity.MULTI`)
LONG_RANGE: tuple[Triple, ...] = (
    *((-2, 0, 0), (0, -3, 0), (0, 0, -3)),
    *((-3, 0, 0), (0, -9, 0), (0, 0, -9)),
    *((-4, 0, 0), (0, -27, 0), (0, 0, -27)),
)


class DistillLoss(Strict):
    """Weights of the student's loss terms (defined by the student paper); 0 disables a term."""

    slice: float = Field(1.0, ge=0)
    multi_offset: float = Field(0.0, ge=0)  # affinities of the labels at `offsets`, an auxiliary task
    offsets: tuple[Triple, ...] = LONG_RANGE  # (-k, 0, 0) sections, or (0, y, x) pixels
    offset_grid: int = Field(2, ge=1)  # spacing in pixels of the first ends of such edges; the phase is random
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
    """Augmentation of training volumes: probabilities per volume, and strengths (docs/explanation/augmentation.md)."""

    flips: bool = True
    transposes: bool = True
    rotate: float = Field(0.3, ge=0, le=1)
    rotate_degrees: float = Field(180.0, ge=0, le=180)  # maximum, in either direction
    rescale: float = Field(0.2, ge=0, le=1)
    rescale_by: float = Field(0.2, ge=0, le=1)  # larger or smaller by a factor of up to 1 + this
    elastic: float = Field(0.3, ge=0, le=1)
    elastic_pixels: float = Field(8.0, ge=0)  # maximum displacement
    elastic_spacing: int = Field(32, ge=4)  # pixels between control points
    elastic_sections: int = Field(8, ge=1)  # the same in z
    misalign: float = Field(0.2, ge=0, le=1)  # shift of one section, or of all from one onwards
    misalign_pixels: int = Field(4, ge=0)
    grey: float = Field(0.5, ge=0, le=1)  # contrast, brightness, gamma of the volume
    grey_strength: float = Field(1.0, ge=0)  # 1: up to 30 %, 0.15, a factor of 1.5
    grey_section: float = Field(0.3, ge=0, le=1)  # the same, drawn separately for every section
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
    missing_part: float = Field(0.05, ge=0, le=1)  # part of one section blank
    missing_part_share: float = Field(0.35, gt=0, le=1)  # largest radius as a share of the shorter side
    local_contrast: float = Field(0.0, ge=0, le=1)  # contrast and brightness that vary smoothly within each section
    local_contrast_strength: float = Field(1.0, ge=0)  # 1: contrast by a factor of up to 2, brightness by 0.3
    local_contrast_pixels: int = Field(64, ge=4)  # pixels between control points
    device: Literal["worker", "train"] = "worker"  # applied by data workers, or on the training device

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
        """Return the same strengths with only these of all `AUGMENTATIONS`, with certainty."""
        switches = {name: type(getattr(self, name))(name in names) for name in AUGMENTATIONS}
        return self.model_copy(update=switches)


class TrainingConfig(Strict):
    """Settings of the training loop.

    With `minutes`, trial steps are timed and the run gets as many steps as fit, regardless of `steps`. `steps` is then
    the length to which `warmup`, `lr_warmup` and the teacher's `queries.start` refer: they keep their fraction of the
    run.
    """

    steps: int = Field(200_000, ge=1)
    minutes: float | None = Field(None, gt=0, allow_inf_nan=False)  # total of steps, validations and saving
    warmup: int = Field(10_000, ge=0)  # steps with only the teacher's own loss and the slice loss
    crop: tuple[int, int, int] = (18, 160, 160)
    batch: int = Field(2, ge=1)
    teacher_every: int = Field(1, ge=1)  # the 3D network runs every n-th step, the student in each
    unlabelled_every: int = Field(2, ge=2)  # after the warm-up, every n-th step uses `data.unlabelled`
    widen_borders: bool = True
    lr: float = Field(1e-4, gt=0)
    lr_warmup: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.0, ge=0)  # maximum gradient norm, 0 = off
    ema: float = Field(0.0, ge=0, lt=1)  # decay of averaged weights, 0 = off
    precision: TrainingPrecision = "auto"  # depends on the device, see docs/how-to/training.md
    compile: bool = False  # teacher and student through torch.compile; see docs/how-to/training.md
    workers: int = Field(2, ge=0)
    seed: int = Field(0, ge=0)
    log_every: int = Field(20, ge=1)
    tensorboard: bool = False  # also write the scalars of metrics.jsonl to RUN/tensorboard, for TensorBoard
    validate_every: int = Field(1000, ge=1)
    validations: int = Field(0, ge=0)  # number of validations, evenly spaced, instead of `validate_every`; 0 = off
    patience: int = Field(0, ge=0)  # training stops after this many validations without a better VOI; 0 = off
    save_every: int = Field(1000, ge=1)

    @property
    def validation_interval(self) -> int:
        """Return the number of steps between validations."""
        return max(1, -(-self.steps // self.validations)) if self.validations else self.validate_every

    @field_validator("crop")
    @classmethod
    def _room(cls, crop: tuple[int, int, int]) -> tuple[int, int, int]:
        if crop[0] < 2 or min(crop[1:]) < 8:
            raise ValueError(f"found {list(crop)}, expected at least 2 sections (a slice pair) of 8 x 8")
        return crop
