"""Configuration of a training: one YAML file for the teacher, one for the student, and `KEY=VALUE` overrides."""

from distill.config.data import DataConfig, LabelledVolume, Strict, UnlabelledVolume
from distill.config.load import checked_pair, dump, load_pair, older_defaults, with_overrides
from distill.config.networks import (
    PUBLISHED_DECODER,
    DecoderConfig,
    QueryLoss,
    SeedConfig,
    TeacherConfig,
    TeacherLoss,
)
from distill.config.pair import Pair, StudentConfig
from distill.config.student_network import StudentNetwork
from distill.config.teacher_kinds import (
    InflatedConfig,
    LSDConfig,
    MALAConfig,
    MLDEConfig,
    PEAConfig,
    SwinUNETRConfig,
    UNETRConfig,
)
from distill.config.training import AUGMENTATIONS, AugmentConfig, DistillLoss, TrainingConfig

__all__ = [
    "AUGMENTATIONS",
    "PUBLISHED_DECODER",
    "AugmentConfig",
    "DataConfig",
    "DecoderConfig",
    "DistillLoss",
    "InflatedConfig",
    "LSDConfig",
    "LabelledVolume",
    "MALAConfig",
    "MLDEConfig",
    "PEAConfig",
    "Pair",
    "QueryLoss",
    "SeedConfig",
    "Strict",
    "StudentConfig",
    "StudentNetwork",
    "SwinUNETRConfig",
    "TeacherConfig",
    "TeacherLoss",
    "TrainingConfig",
    "UNETRConfig",
    "UnlabelledVolume",
    "checked_pair",
    "dump",
    "load_pair",
    "older_defaults",
    "with_overrides",
]
