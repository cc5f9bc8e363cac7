"""The Y-shape student: published weights, sizes, and its two ways to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.core.affinity import pair_affinity
from distill.models.checkpoint import load_module, read_published
from students.student import PairOutput, pad_to_stride
from students.yshape import YShape


def student(width: int = 4, embedding: int = 5) -> YShape:
    torch.manual_seed(0)
    return YShape(width=width, embedding=embedding).eval()


def section(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["AC34", "CremiC"])
def test_published_weights_give_the_golden_embeddings(
    name: str, golden: Callable[[str], Path], checkpoints: Callable[[str], Path]
) -> None:
    wanted = load_file(golden("cad_outputs.safetensors"))
    published = read_published(checkpoints(f"cad/{name}.ckpt"))
    assert published.method == "cad"
    assert published.unplaced == []
    network = YShape().eval()
    load_module(network, {k.removeprefix("student."): v for k, v in published.tensors.items()}, name)
    with torch.no_grad():
        encoded = [network.encode(section) for section in wanted["sections"].split(1, dim=1)]
        pairs = [network.decode(encoded[z - 1], encoded[z]) for z in (1, 2)]
    for ours, theirs in ((pairs[0].previous, "embedding_previous"), (pairs[0].current, "embedding_current")):
        golden_value = wanted[f"{name}.{theirs}"]
        torch.testing.assert_close(ours, golden_value, rtol=0, atol=1e-4 * float(golden_value.abs().max()))
    affinity = torch.stack([pair_affinity(pair.previous, pair.current) for pair in pairs], 2)
    torch.testing.assert_close(affinity, wanted[f"{name}.affinity"], rtol=0, atol=1e-4)


def test_the_paper_counts_its_parameters() -> None:
    assert sum(p.numel() for p in YShape().parameters()) == 900_816


@pytest.mark.parametrize("size", [(33, 47), (16, 16), (5, 3), (1, 1), (2, 40), (17, 32)])
def test_any_size(size: tuple[int, int]) -> None:
    found = student()(section(*size), section(*size, seed=1))
    height, width = size
    assert found.previous.shape == found.current.shape == (1, 5, height, width)
    assert found.full.shape == (1, 8, height, width)
    assert found.half.shape == (1, 4, (height + 1) // 2, (width + 1) // 2)
    assert bool(found.current.isfinite().all())


def tensors(output: PairOutput) -> list[Tensor]:
    return [output.previous, output.current, output.half, output.full]


@pytest.mark.parametrize("size", [(32, 48), (21, 35)])
def test_both_sections_at_once_are_encode_and_decode(size: tuple[int, int]) -> None:
    network, previous, current = student(), section(*size), section(*size, seed=1)
    with torch.no_grad():
        found = network(previous, current)
        wanted = network.decode(network.encode(previous), network.encode(current))
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(wanted), strict=True))


def test_the_two_sections_are_told_apart() -> None:
    network, previous, current = student(), section(32, 32), section(32, 32, seed=1)
    with torch.no_grad():
        found, turned = network(previous, current), network(current, previous)
    assert not torch.allclose(found.current, turned.previous, atol=1e-3)
    assert not torch.allclose(found.current, turned.current, atol=1e-3)


def test_pairs_of_a_batch_do_not_mix() -> None:
    network = student()
    previous = torch.cat([section(32, 32, seed=n) for n in range(3)])
    current = torch.cat([section(32, 32, seed=n) for n in range(3, 6)])
    with torch.no_grad():
        together = network(previous, current)
        alone = network(previous[1:2], current[1:2])
    for many, one in zip(tensors(together), tensors(alone), strict=True):
        torch.testing.assert_close(many[1:2], one, rtol=1e-5, atol=1e-5)


def reflected(n: int, position: int) -> int:
    """Where a ball that bounces between 0 and n - 1 is after `position` steps."""
    at, step = 0, 1
    for _ in range(position):
        if n == 1:
            return 0
        if not 0 <= at + step < n:
            step = -step
        at += step
    return at


@pytest.mark.parametrize("size", [(1, 2), (3, 16), (17, 5), (33, 31)])
def test_padding_reflects_to_and_fro(size: tuple[int, int]) -> None:
    image = section(*size)
    found = pad_to_stride(image, YShape.stride)
    for padded, given in zip(found.shape[-2:], size, strict=True):
        assert padded % YShape.stride == 0
        assert 0 <= padded - given < YShape.stride
    rows = [reflected(size[0], y) for y in range(found.shape[-2])]
    columns = [reflected(size[1], x) for x in range(found.shape[-1])]
    assert torch.equal(found, image[..., rows, :][..., columns])


def test_padding_a_whole_number_of_strides_does_nothing() -> None:
    image = section(32, 16)
    assert torch.equal(pad_to_stride(image, YShape.stride), image)


def test_an_odd_section_is_the_reflected_one_cut_back() -> None:
    network, previous, current = student(), section(27, 40), section(27, 40, seed=1)
    with torch.no_grad():
        found = network(previous, current)
        whole = network(pad_to_stride(previous, YShape.stride), pad_to_stride(current, YShape.stride))
    assert torch.equal(found.previous, whole.previous[..., :27, :40])
    assert torch.equal(found.current, whole.current[..., :27, :40])
    assert torch.equal(found.half, whole.half[..., :14, :20])


def test_the_border_does_not_reach_further_than_the_receptive_field() -> None:
    # radius: convolutions 2 * (1 + 2 + 4 + 8 + 16) down, 2 * (8 + 4 + 2 + 1) up; interpolation 8 + 4 + 2 + 1 + 15
    reach = 62 + 30 + 30
    network, previous, current = student(), section(320, 16), section(320, 16, seed=1)
    changed = current.clone()
    changed[..., 304:, :] = 50
    with torch.no_grad():
        plain, found = network(previous, current), network(previous, changed)
    assert torch.equal(plain.current[..., : 304 - reach, :], found.current[..., : 304 - reach, :])
    assert torch.equal(plain.previous[..., : 304 - reach, :], found.previous[..., : 304 - reach, :])
    assert not torch.equal(plain.current[..., 303:304, :], found.current[..., 303:304, :])


def test_gradients_reach_every_parameter() -> None:
    network = student().train()
    pair = torch.cat([section(32, 32, seed=n) for n in range(2)])
    found = network(pair, pair.flip(0))
    (found.previous.square().sum() + found.current.square().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
