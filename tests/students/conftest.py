"""Small students of either preset, in evaluation mode, built once; not to be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

import students.streaming.tiling
from students.smp import SmpYShape
from students.student import Student
from students.yshape import YShape

Build = Callable[..., Student]


@cache
def build(name: str, depth: int = 4, fuse: int = 1) -> Student:
    """`cad`, or a Y-shape on the encoder of that name; 4 decoder channels, embeddings of 5.

    As after some training: no layer is switched off, as some are at the start, and few ReLUs are.
    """
    torch.manual_seed(0)
    if name == "cad":
        network: Student = YShape(width=4, embedding=5)
    else:
        network = SmpYShape(name, depth=depth, fuse=fuse, width=4, embedding=5)
    with torch.no_grad():
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            if value.ndim == 1:
                value.uniform_(0, 0.5) if key.endswith(("bias", "mean")) else value.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="session")
def student() -> Build:
    """Builder of small students: `student(NAME, depth, fuse)`."""
    return build


@pytest.fixture(autouse=True, scope="session")
def fields_measured_once() -> Iterator[None]:
    """Runners of tiles share what was measured of a network; `test_receptive` measures for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(students.streaming.tiling, "receptive_field", cache(students.streaming.tiling.receptive_field))
        yield
