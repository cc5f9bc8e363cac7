"""Products at both ends of edges: values and gradients of automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.core.affinity import MULTI, NEAREST, edge_slices, embedding_affinity, unit
from distill.core.edge_products import edge_products
from distill.core.geometry import Triple

OFFSETS = (*NEAREST, (-2, 0, 0), (0, 2, -1), (1, 0, 1), (0, 0, 9))  # the last leaves the volume


def by_slices(here: Tensor, there: Tensor, offsets: tuple[Triple, ...]) -> Tensor:
    """Every edge by itself."""
    found = here.new_zeros(here.shape[0], len(offsets), *here.shape[2:])
    for k, offset in enumerate(offsets):
        at, partner = edge_slices(offset, here.shape[2:])
        found[:, k][(..., *at)] = (here[(..., *at)] * there[(..., *partner)]).sum(1)
    return found


def volume(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 3, 4, 5, generator=generator, dtype=dtype, device="cpu").requires_grad_()


@pytest.mark.parametrize("twice", [True, False])
def test_values_and_gradients(twice: bool) -> None:
    results = []
    for compute in (
        by_slices,
        lambda here, there, offsets: edge_products(here, there, [edge_slices(o, here.shape[2:]) for o in offsets]),
    ):
        here = volume(0)
        there = here if twice else volume(1)
        found = compute(here, there, OFFSETS)
        found.sin().sum().backward()
        results.append((found.detach(), here.grad, there.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gradients_by_differences() -> None:
    ends = [edge_slices(offset, (3, 4, 5)) for offset in OFFSETS]
    given = volume(0, torch.float64), volume(1, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: edge_products(a, b, ends), given)
    assert torch.autograd.gradcheck(lambda a: edge_products(unit(a), unit(a), ends), given[:1])


def test_no_offset_and_no_gradient() -> None:
    fixed = volume(0).detach()
    assert edge_products(fixed, fixed, []).shape == (2, 0, 3, 4, 5)
    assert not embedding_affinity(fixed, MULTI).requires_grad
    moving = volume(1)
    edge_products(fixed, moving, [edge_slices((-1, 0, 0), (3, 4, 5))]).sum().backward()
    assert moving.grad is not None
    torch.testing.assert_close(moving.grad[:, :, :-1], fixed[:, :, 1:])
