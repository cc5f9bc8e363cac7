"""Build networks from their configurations."""

from __future__ import annotations

from collections.abc import Callable

from distill.config import DecoderConfig, StudentNetwork, TeacherConfig
from distill.config.teacher_kinds import TeacherKind
from distill.core.geometry import Nanometres
from distill.decoder.decoder import QueryDecoder
from distill.decoder.queries import SeedRule
from students.deferred import StudentForm
from students.slab_adapter import SlabAdapter
from students.smp import SmpYShape
from students.student import Student
from students.yshape import YShape
from teachers.agq import AGQTeacher
from teachers.inflated import InflatedTeacher
from teachers.lsd import LSDTeacher
from teachers.mala import MALATeacher
from teachers.ml_de import MLDETeacher
from teachers.pea import PEATeacher
from teachers.resunet import ResUNetTeacher
from teachers.seunet import SeUNetTeacher
from teachers.superhuman import SuperHumanTeacher
from teachers.swin_unetr import SwinUNETRTeacher
from teachers.teacher import Teacher
from teachers.unetr import UNETRTeacher


def build_teacher(config: TeacherConfig) -> Teacher:
    """Build the 3D network.

    Raises:
        DistillError: the network requires MONAI, which is not installed.
    """
    return _BUILD[config.kind](config)


def _agq(config: TeacherConfig) -> Teacher:
    return AGQTeacher(
        filters=config.filters,
        fused=config.fused,
        branch_width=config.branch_width,
        branch_depth=config.branch_depth,
        embedding=config.embedding,
    )


def _inflated(config: TeacherConfig) -> Teacher:
    return InflatedTeacher(
        build_student(config.inflated.network),
        widths=config.inflated.widths,
        layers=config.inflated.layers,
        fused=config.fused,
        branch_width=config.branch_width,
        branch_depth=config.branch_depth,
    )


def _unetr(config: TeacherConfig) -> Teacher:
    vit = config.unetr
    return UNETRTeacher(
        features=vit.features,
        hidden=vit.hidden,
        mlp=vit.mlp,
        heads=vit.heads,
        layers=vit.layers,
        patch_depth=vit.patch_depth,
        block=vit.block,
        fused=config.fused,
        embedding=config.embedding,
    )


def _swin_unetr(config: TeacherConfig) -> Teacher:
    swin = config.swinunetr
    return SwinUNETRTeacher(
        features=swin.features,
        depths=swin.depths,
        heads=swin.heads,
        window=swin.window,
        fused=config.fused,
        embedding=config.embedding,
    )


def _pea(config: TeacherConfig) -> Teacher:
    return PEATeacher(filters=config.filters, scales=config.pea.scales, fused=config.fused, embedding=config.embedding)


def _lsd(config: TeacherConfig) -> Teacher:
    return LSDTeacher(
        filters=config.filters,
        auto_context=config.lsd.auto_context,
        fused=config.fused,
        embedding=config.embedding,
    )


def _ml_de(config: TeacherConfig) -> Teacher:
    return MLDETeacher(filters=config.filters, push=config.mlde.push, fused=config.fused, embedding=config.embedding)


def _by_filters(
    network: type[SuperHumanTeacher | ResUNetTeacher | SeUNetTeacher | MALATeacher],
) -> Callable[[TeacherConfig], Teacher]:
    """Return the builder of a network whose only option of its own is `filters`."""
    return lambda config: network(filters=config.filters, fused=config.fused, embedding=config.embedding)


_BUILD: dict[TeacherKind, Callable[[TeacherConfig], Teacher]] = {
    "agq": _agq,
    "inflated": _inflated,
    "superhuman": _by_filters(SuperHumanTeacher),
    "unetr": _unetr,
    "swinunetr": _swin_unetr,
    "resunet": _by_filters(ResUNetTeacher),
    "seunet": _by_filters(SeUNetTeacher),
    "pea": _pea,
    "mala": _by_filters(MALATeacher),
    "lsd": _lsd,
    "ml-de": _ml_de,
}


def build_student(config: StudentNetwork, *, weights: str | None = None) -> Student:
    """Build the 2D network.

    Args:
        config: of the network.
        weights: pretrained encoder weights from a hub, for the preset `smp`.
    """
    if config.kind == "cad":
        return YShape(width=config.width, embedding=config.embedding)
    return SmpYShape(
        config.encoder,
        depth=config.depth,
        fuse=config.fuse,
        width=config.width,
        embedding=config.embedding,
        weights=weights,
    )


def build_slab(student: Student | StudentForm, fused: int) -> SlabAdapter:
    """Build the student's adapter to the decoder."""
    return SlabAdapter(half=student.half_channels, full=student.full_channels, features=fused)


def build_decoder(config: DecoderConfig, fused: int, resolution: Nanometres) -> QueryDecoder:
    """Build the decoder; the resolution (nm, full) determines the distances of its mask prior."""
    z, y, x = resolution
    return QueryDecoder(
        features=fused,
        width=config.width,
        depth=config.depth,
        instance_depth=config.instance_depth,
        rounds=config.rounds,
        refine=config.refine,
        learned=2 * config.learned if config.queries == "double-learned" else config.learned,
        cues=None if config.cues == "queries" and not config.queries.startswith("guided") else config.cues,
        seeds=seed_rule(config),
        prior=config.prior,
        momentum=config.norm_momentum,
        sampling=(z / (2 * x), y / x, 1.0),
    )


def seed_rule(config: DecoderConfig) -> SeedRule:
    """Return the seed rule of a configuration."""
    seeds = config.seeds
    return SeedRule(seeds.kind, seeds.thresholds, seeds.min_voxels, seeds.max_count)
