"""One tiny teacher of every kind; those of MONAI's parts skip where MONAI is absent."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from distill.config import TeacherConfig
from distill.config.teacher_kinds import OWN_HEAD
from distill.models.build import build_teacher
from teachers.teacher import Teacher

SIZES: dict[str, dict[str, Any]] = {
    "agq": {"filters": [8] * 5, "branch_width": 4, "branch_depth": 1},
    "inflated": {
        "inflated": {"network": {"kind": "cad", "width": 4, "embedding": 4}, "widths": [2, 3]},
        **{"branch_width": 4, "branch_depth": 1},
    },
    "superhuman": {"filters": [4] * 5},
    "unetr": {"unetr": {"features": 4, "hidden": 8, "mlp": 8, "heads": 2, "layers": 4, "block": [8, 32, 48]}},
    "resunet": {"filters": [4] * 5},
    "seunet": {"filters": [4] * 5},
    "pea": {"filters": [4] * 5},
    "mala": {"filters": [4, 4, 5, 6], "mala": {"pointwise": 0}},
    "lsd": {"filters": [4, 4, 5, 6]},
    "ml-de": {"filters": [4] * 5},
    "swinunetr": {"swinunetr": {"features": 4, "depths": [1, 2, 1, 1], "heads": [1, 2, 4, 4], "window": [3, 3, 3]}},
}
WITH_MONAI = ("unetr", "swinunetr")
NO_MONAI = find_spec("monai") is None or find_spec("einops") is None
REASON = "MONAI or einops is not installed: pip install 'affinity-distill[teachers]'"
Build = Callable[..., Teacher]


def _marked(kind: str) -> Any:
    return pytest.param(kind, marks=[pytest.mark.skipif(NO_MONAI, reason=REASON)] if kind in WITH_MONAI else [])


@pytest.fixture(params=[_marked(kind) for kind in SIZES])
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of teacher that can run here."""
    found: str = request.param
    return found


@pytest.fixture(params=[_marked(kind) for kind in SIZES if kind not in ("agq", *OWN_HEAD)])
def embedding_kind(request: pytest.FixtureRequest) -> str:
    """Every kind whose affinities are its embedding's own."""
    found: str = request.param
    return found


@pytest.fixture
def monai() -> None:
    """Skips where the teachers of MONAI's parts cannot run."""
    if NO_MONAI:
        pytest.skip(REASON)


@pytest.fixture
def tiny_values() -> Callable[[str], dict[str, Any]]:
    """Values of a teacher's configuration that make it tiny."""
    return lambda kind: {"kind": kind, **SIZES[kind], "fused": 8, "embedding": 4}


@pytest.fixture
def left_zero() -> Callable[[Teacher], Teacher]:
    """Give random values to weights that start at zero and so hide what lies before them."""

    def filled(teacher: Teacher) -> Teacher:
        for parameter in teacher.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
        return teacher

    return filled


@pytest.fixture
def tiny_teacher(tiny_values: Callable[[str], dict[str, Any]], left_zero: Callable[[Teacher], Teacher]) -> Build:
    """Build a tiny teacher of a kind, in evaluation mode, always with the same weights."""

    def build(kind: str) -> Teacher:
        torch.manual_seed(0)
        return left_zero(build_teacher(TeacherConfig.model_validate(tiny_values(kind)))).eval()

    return build
