"""One block from grey values to instances, cut into stages, each with its cost and the least that it could cost.

Legend: D H W = z y x.
"""

from __future__ import annotations

import importlib.util
import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from hardware import DTYPES, Peak
from measure import Cost, Timeline, costs, nbytes
from numpy import uint64
from numpy.typing import NDArray
from scenes import Scene
from torch import Tensor, nn

from distill.config import PUBLISHED_DECODER, DecoderConfig, TeacherConfig, TeacherLoss
from distill.core.errors import DistillError
from distill.core.geometry import Triple
from distill.core.hardware import computing
from distill.decoder.decoder import DecoderInput, DecoderOutput, QueryDecoder
from distill.decoder.instances import block_instances
from distill.decoder.queries import Seeds, find_seeds
from distill.inference.options import Runtime
from distill.models.build import build_decoder, build_teacher, seed_rule
from distill.models.load import load_teacher
from distill.segmentation.agglomeration import fragments, waterz
from teachers.agq import AGQTeacher
from teachers.teacher import TeacherOutput

GROUPS = {
    "affinities by the network": {"backbone": "backbone", "affinities": "fusion, affinity branch"},
    "instances by queries": {
        "components": "queries: components",
        "mask_branch": "decoder: mask branch",
        "instance_features": "decoder: instance features",
        "pooling": "queries: pooling, prior",
        "rounds": "decoder: masks, rounds",
        "instances": "upsampling, instances",
    },
    "instances by watershed + waterz": {"watershed": "watershed", "waterz": "waterz"},
}
HOST = ("watershed", "waterz")  # a GPU has nothing to do in them

_PLAIN = TeacherLoss(multi_offset=0)  # needs no embedding head; the published network has none
NETWORKS = {
    "published": TeacherConfig(decoder=DecoderConfig.model_validate(PUBLISHED_DECODER), loss=_PLAIN),
    "default": TeacherConfig(loss=_PLAIN),  # the same size with our seeds, prior and filling
    "tiny": TeacherConfig(
        filters=(8, 8, 8, 8, 8),
        fused=8,
        branch_width=8,
        branch_depth=1,
        decoder=DecoderConfig(width=8, depth=1, learned=2),
        loss=_PLAIN,
    ),
}
_RESOLUTION = (30.0, 6.0, 6.0)  # nm, for the distances of a mask prior
_WATERZ = 0.5  # threshold of the CAD paper

Ids = NDArray[uint64]


@dataclass(frozen=True)
class Network:
    """A teacher with its decoder, ready to run."""

    teacher: AGQTeacher
    decoder: QueryDecoder
    config: DecoderConfig


@dataclass(frozen=True)
class Rates:
    """What the floors are made of, as measured."""

    operations: Peak  # in the precision of the run
    copy: float  # bytes per second, read and written, where the network runs
    host_copy: float  # the same on the CPU


@dataclass(frozen=True)
class Stage:
    """A line of the result."""

    stage: str
    seconds_min: float
    seconds_median: float
    operations: int
    bytes: int  # least traffic
    floor: float  # seconds
    bound: str  # what the floor comes from: `operations` or `bytes`
    ratio: float  # least time over floor
    peak_bytes: int | None  # beyond what was held when the stage began


@dataclass(frozen=True)
class Block:
    """A block's stages and what was found in it."""

    block: Triple
    seeds: int
    queries: int
    instances: int
    fragments: int | None  # of the watershed; None where it did not run
    segments: int | None
    stages: list[Stage]


def load_network(name: str, model: str | None, device: torch.device) -> Network:
    """A network of this size with random weights, or a trained one in its place.

    Raises:
        DistillError: the trained one is no AGQ network.
    """
    if model is None:
        config = NETWORKS[name]
        torch.manual_seed(0)
        teacher, decoder = build_teacher(config), build_decoder(config.decoder, config.fused, _RESOLUTION)
        for module in (teacher, decoder):
            module.eval().requires_grad_(False).to(device)
    else:
        trained = load_teacher(model, device)
        teacher, decoder, config = trained.teacher, trained.decoder, trained.config
    if not isinstance(teacher, AGQTeacher) or config.decoder.cues != "queries":
        found = f"{config.kind} with cues '{config.decoder.cues}'"
        raise DistillError(f"--model: found {found}, expected agq with cues 'queries'")
    return Network(teacher, decoder, config.decoder)


def whole_block(network: Network, scene: Scene, rates: Rates, runtime: Runtime, repeat: int) -> Block:
    """All stages; those of watershed + waterz if waterz is installed."""

    def by_queries(line: Timeline) -> tuple[TeacherOutput, DecoderOutput, Ids]:
        with _computing(runtime):
            taught = _teach(network, scene, line)
            seeds = find_seeds(scene.logits.sigmoid(), seed_rule(network.config), "size")
            line.mark("components")
            return taught, *_decode(network, taught.decoder_input.features, scene, seeds, line)

    found, (taught, decoded, labels) = costs(by_queries, runtime.device, repeat)
    moved = _teacher_bytes(scene, taught) | _decoder_bytes(
        taught.decoder_input.features, scene, decoded, runtime.precision
    )
    pieces = segments = None
    if importlib.util.find_spec("waterz"):
        more, (cut, merged) = costs(lambda line: _agglomerate(scene, line), torch.device("cpu"), repeat)
        found, moved = found | more, moved | _baseline_bytes(scene)
        pieces, segments = int(cut.max()), int(merged.max())
    return Block(*_facts(scene, decoded, labels), pieces, segments, _held_against(found, moved, rates))


def given_seeds(network: Network, scene: Scene, seeds: Seeds, rates: Rates, runtime: Runtime, repeat: int) -> Block:
    """The stages that depend on the number of seeds, with these."""
    with _computing(runtime):
        features = network.teacher(scene.raw).decoder_input.features

    def by_queries(line: Timeline) -> tuple[DecoderOutput, Ids]:
        with _computing(runtime):
            return _decode(network, features, scene, seeds, line)

    found, (decoded, labels) = costs(by_queries, runtime.device, repeat)
    moved = _decoder_bytes(features, scene, decoded, runtime.precision)
    return Block(*_facts(scene, decoded, labels), None, None, _held_against(found, moved, rates))


def _computing(runtime: Runtime) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(torch.inference_mode())
    stack.enter_context(computing(runtime.device, runtime.precision))
    return stack


def _teach(network: Network, scene: Scene, line: Timeline) -> TeacherOutput:
    with line.after(network.teacher.backbone, "backbone"):
        output: TeacherOutput = network.teacher(scene.raw)
    line.mark("affinities")
    return output


def _decode(
    network: Network, features: Tensor, scene: Scene, seeds: Seeds, line: Timeline
) -> tuple[DecoderOutput, Ids]:
    decoder, config = network.decoder, network.config
    given = DecoderInput(features, scene.logits)
    first = next(m for m in decoder.predictors[0].modules() if isinstance(m, nn.Linear))  # where the rounds begin
    with (
        line.after(decoder.mask_branch, "mask_branch"),
        line.after(decoder.inst_convs[-1], "instance_features"),
        line.before(first, "pooling"),
    ):
        output: DecoderOutput = decoder.last(given, seeds=seeds, background=not config.fill)
    line.mark("rounds")
    labels = block_instances(
        output, 0, scene.block[1:], min_voxels=config.min_instance, min_piece=config.min_piece, fill=config.fill
    )
    line.mark("instances")
    return output, labels


def _agglomerate(scene: Scene, line: Timeline) -> tuple[Ids, Ids]:
    cut = fragments(scene.affinity)
    line.mark("watershed")
    merged = waterz(scene.affinity, [_WATERZ], fragments=cut)[_WATERZ]
    line.mark("waterz")
    return cut, merged


def _facts(scene: Scene, decoded: DecoderOutput, labels: Ids) -> tuple[Triple, int, int, int]:
    return scene.block, decoded.seeds.counts[0], decoded.valid.shape[1], int(labels.max())


def _teacher_bytes(scene: Scene, taught: TeacherOutput) -> dict[str, int]:
    """What a stage must read and write at least: its input and its output once, weights left out."""
    levels, given = nbytes(*taught.levels), taught.decoder_input
    return {
        "backbone": nbytes(scene.raw) + levels,
        "affinities": levels + nbytes(given.features, given.affinity_logits),
    }


def _decoder_bytes(features: Tensor, scene: Scene, decoded: DecoderOutput, precision: str) -> dict[str, int]:
    given, masks, seeds = nbytes(features), nbytes(decoded.mask_features), nbytes(decoded.seeds.components)
    instance = decoded.mask_features.numel() * DTYPES[precision].itemsize
    return {
        "components": nbytes(scene.half) + seeds,
        "mask_branch": given + masks,
        "instance_features": given + instance,
        "pooling": instance + seeds,
        "rounds": instance + masks + nbytes(*decoded.masks),
        "instances": nbytes(decoded.masks[-1]) + _ids_bytes(scene),
    }


def _baseline_bytes(scene: Scene) -> dict[str, int]:
    edges, ids = scene.affinity.nbytes, _ids_bytes(scene)
    return {"watershed": edges * 2 // 3 + ids, "waterz": edges + 2 * ids}


def _ids_bytes(scene: Scene) -> int:
    return math.prod(scene.block) * uint64().itemsize


def _held_against(found: dict[str, Cost], moved: dict[str, int], rates: Rates) -> list[Stage]:
    stages = []
    for name, cost in found.items():
        arithmetic = cost.operations / rates.operations.per_second
        copying = moved[name] / (rates.host_copy if name in HOST else rates.copy)
        floor = max(arithmetic, copying)
        stages.append(
            Stage(
                stage=name,
                seconds_min=cost.best,
                seconds_median=cost.median,
                operations=cost.operations,
                bytes=moved[name],
                floor=floor,
                bound="operations" if arithmetic >= copying else "bytes",
                ratio=cost.best / floor,
                peak_bytes=cost.peak_bytes,
            )
        )
    return stages
