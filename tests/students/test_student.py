"""What holds for a student of either preset: the branches' roles, the range of affinities."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.core.affinity import pair_affinity
from students.smp import SmpYShape
from students.student import PairOutput, SectionFeatures, Student
from students.yshape import YShape

Build = Callable[..., Student]
PRESETS = [("cad", 4, 1), ("tu-resnet10t", 4, 1), ("tu-resnet10t", 3, 0), ("resnet18", 4, 3), ("mit_b0", 4, 1)]
preset = pytest.mark.parametrize(("name", "depth", "fuse"), PRESETS)


def exchange(one: nn.Module, other: nn.Module) -> None:
    """Let two modules swap their weights."""
    kept = copy.deepcopy(one.state_dict())
    one.load_state_dict(other.state_dict())
    other.load_state_dict(kept)


def exchange_halves(fusing: nn.Conv2d) -> None:
    """Let a convolution of two sections' channels take them in the other order."""
    previous, current = fusing.weight.data.chunk(2, dim=1)
    fusing.weight.data = torch.cat([current, previous], dim=1)


def mirrored(student: Student) -> Student:
    """The network that does to the previous section what this one does to the current one, and the reverse."""
    network = copy.deepcopy(student)
    if isinstance(network, YShape):
        for part in ("up3", "up4", "outc"):
            exchange(getattr(network, f"{part}_t"), getattr(network, f"{part}_tn"))
        exchange_halves(network.down[1][0])
    else:
        assert isinstance(network, SmpYShape)
        exchange(network.previous_branch, network.current_branch)
        exchange(network.previous_out, network.current_out)
        for merge in network.merge:
            if isinstance(merge, nn.Sequential):
                exchange_halves(merge[0])
    return network


def section(*size: int, seed: int) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@preset
@pytest.mark.parametrize("size", [(32, 48), (19, 7)])
def test_exchanged_sections_exchange_the_branches(
    student: Build, name: str, depth: int, fuse: int, size: tuple[int, int]
) -> None:
    network = copy.deepcopy(student(name, depth, fuse)).double()
    twin, one, other = mirrored(network), section(*size, seed=1), section(*size, seed=2)
    with torch.no_grad():
        found, turned = network(one, other), twin(other, one)
        unturned = twin(one, other)
    torch.testing.assert_close(turned.current, found.previous, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.previous, found.current, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(unturned.current, found.previous, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found.previous, found.current, rtol=1e-3, atol=1e-3)
    again = mirrored(twin).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(pair: PairOutput) -> tuple[Tensor, Tensor]:
    return pair.previous, pair.current


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    contrast=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
)
@pytest.mark.parametrize("name", ["cad", "tu-resnet10t"])
def test_affinities_lie_between_zero_and_one(
    student: Build, name: str, seed: int, size: tuple[int, int], contrast: float
) -> None:
    """Whatever the grey values: blank sections and such as were never scaled too."""
    network, sections = student(name), contrast * torch.randn(4, 1, 1, *size, generator=generator(seed))
    with torch.inference_mode():
        affinity = torch.cat([pair_affinity(*embeddings(network(*pair))) for pair in itertools.pairwise(sections)])
    assert float(affinity.min()) >= 0
    assert float(affinity.max()) <= 1


def test_rows_of_features_are_those_of_the_sections() -> None:
    maps = (torch.rand(4, 2, 3, 3), torch.rand(4, 5, 2, 2))
    found = SectionFeatures(maps, (3, 3)).rows(torch.tensor([2, 0, 2]))
    assert found.size == (3, 3)
    for part, whole in zip(found.maps, maps, strict=True):
        assert torch.equal(part, torch.stack([whole[2], whole[0], whole[2]]))
