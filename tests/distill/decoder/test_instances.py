"""Masks to instances against the plain full-resolution computation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from second_device import second_device
from torch import Tensor

from distill.core.labels import compact
from distill.decoder import instances as segment
from distill.decoder.decoder import DecoderOutput
from distill.decoder.instances import absorb, arg_max, block_instances, pieces_on_device
from distill.decoder.queries import given_seeds


def naive(logits: Tensor, size: tuple[int, int], min_voxels: float, fill: bool) -> Tensor:
    """Everything at full resolution at once, as the paper has it."""
    present = [c for c in range(len(logits)) if bool(logits[c].isfinite().all()) and not (fill and c == 0)]
    winners = torch.zeros((logits.shape[1], *size), dtype=torch.int64)
    if not any(c > 0 for c in present):
        return winners
    doubled = (logits.shape[1], 2 * logits.shape[2], 2 * logits.shape[3])
    larger = F.interpolate(logits[present].double()[None], doubled, mode="trilinear", align_corners=False)[0]
    share = larger[..., : size[0], : size[1]].softmax(0)
    for row, c in enumerate(present):
        if c > 0 and float(share[row].sum()) < min_voxels:
            share[row] = 0
    number = torch.tensor(present)
    return torch.where(share.amax(0) > 0, number[share.argmax(0)], 0)


def random_logits(seed: int, queries: int, lacking: list[int]) -> Tensor:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (1 + queries, 3, 3, 4)).astype(np.float32))
    logits[lacking] = -torch.inf
    return logits


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 5),
    st.integers(5, 6),
    st.integers(7, 8),
    st.sampled_from([0, 5, 15, 25, 60, 1000]),
    st.booleans(),
    st.lists(st.integers(1, 5), max_size=3),
)
def test_arg_max_is_the_plain_computation(
    seed: int, queries: int, height: int, width: int, min_voxels: int, fill: bool, lacking: list[int]
) -> None:
    logits = random_logits(seed, queries, [c for c in lacking if c <= queries])
    found = arg_max(logits, (height, width), min_voxels, fill)
    assert found.shape == (3, height, width)
    assert found.dtype == torch.int32
    assert torch.equal(found, naive(logits, (height, width), min_voxels, fill).int())


def test_filling_leaves_no_background() -> None:
    logits = random_logits(1, 4, [2])
    logits[0] += 20
    assert not arg_max(logits, (6, 8), 0, False).any()
    filled = arg_max(logits, (6, 8), 0, True)
    assert bool((filled > 0).all())
    assert not bool((filled == 2).any())


def test_a_dropped_query_leaves_its_place_to_the_next_best() -> None:
    logits = torch.zeros(4, 1, 4, 4)
    logits[1] = 10
    logits[2] = -20
    logits[2, :, :1, :1] = 20  # wins a few voxels only
    logits[3] = -50  # wins none
    assert sorted(arg_max(logits, (8, 8), 0, True).unique().tolist()) == [1, 2]
    assert arg_max(logits, (8, 8), 20, True).unique().tolist() == [1]
    logits[1] = -10
    assert arg_max(logits, (8, 8), 20, False).unique().tolist() == [0]
    assert not arg_max(logits, (8, 8), 10_000, True).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype: torch.dtype) -> None:
    logits = random_logits(2, 3, [2]).to(dtype)
    assert torch.equal(arg_max(logits, (6, 8), 5, False), naive(logits.float(), (6, 8), 5, False).int())


def test_only_sections_won_by_a_dropped_query_are_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(4, 5, 3, 4)
    logits[1] = 5
    logits[2] = -30
    logits[2, 3, 1, 1] = 100
    logits[3] = -40  # dropped, but never the best
    calls: list[int] = []
    upsampled = segment._upsampled
    monkeypatch.setattr(
        segment, "_upsampled", lambda section, kept, size: calls.append(len(kept)) or upsampled(section, kept, size)
    )
    found = arg_max(logits, (6, 8), 20, False)
    assert calls == [4] * 5 + [2]  # background and the one query that is kept
    assert torch.equal(found, naive(logits, (6, 8), 20, False).int())
    assert (found == 1).all()


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_doubling_is_the_librarys_interpolation(rows: int, columns: int, channels: int) -> None:
    x = torch.randn(rows, columns, channels, dtype=torch.float64)
    wanted = F.interpolate(x.movedim(-1, 0)[None], scale_factor=2.0, mode="bilinear", align_corners=False)[0]
    found = segment._doubled(segment._doubled(x, 0), 1).movedim(-1, 0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 3, 0)])
@pytest.mark.parametrize("height", [1, 4, 5, 8, 13])  # strips of four rows, one that is cut off, and a single one
def test_strips_and_the_order_in_memory_do_not_show(height: int, order: tuple[int, int, int, int]) -> None:
    generator = torch.Generator().manual_seed(height)
    logits = torch.randn(6, 2, height, 3, generator=generator) * 3
    logits[4] = -torch.inf
    stored = logits.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
    for size in ((2 * height, 6), (2 * height - 1, 5)):
        assert torch.equal(arg_max(stored, size, 4, True), naive(logits, size, 4, True).int())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_the_same(dtype: torch.dtype) -> None:
    logits = random_logits(4, 5, [3]).to(dtype)
    for min_voxels in (0, 25):
        found = arg_max(logits.cuda(), (5, 7), min_voxels, False)
        assert found.is_cuda
        assert torch.equal(found.cpu(), arg_max(logits, (5, 7), min_voxels, False))


MEASURE = """
import torch
import torch.nn.functional as F
from distill.decoder.decoder import DecoderOutput
from distill.decoder.queries import given_seeds
from distill.decoder.instances import block_instances

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
masks = torch.empty(1, 201, 17, 129, 129)
for channel in masks[0]:
    channel.copy_(F.interpolate(torch.randn(1, 17, 9, 9, generator=generator) * 3, (129, 129))[0])
masks[0, 200] -= 60
masks[0, 200, :, :2, :2] += 120  # wins a corner everywhere, yet is too small to stay
nothing = torch.zeros(1, 200, 8)
output = DecoderOutput([masks], nothing[..., 0] == 0, nothing, nothing, given_seeds(torch.zeros(1, 1, 1, 1)))
before = peak()
ids = block_instances(output, 0, (257, 257), min_voxels=300, min_piece=20, fill=True)
assert ids.shape == (17, 257, 257) and ids.min() > 0, ids.min()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from Linux's /proc")
def test_a_published_block_of_200_queries_stays_far_below_two_gigabytes() -> None:
    root = Path(segment.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=root, capture_output=True, text=True, check=True)
    assert 20 < int(done.stdout) < 500  # MB besides the logits; all at once it takes 900, and its softmax as much


def output_of(winners: NDArray[np.int64], channels: int) -> DecoderOutput:
    """A decoder output whose arg-max at full resolution is `winners` repeated twice in y and x."""
    logits = F.one_hot(torch.from_numpy(winners), channels).movedim(-1, 0).float().unsqueeze(0) * 100
    seeds = given_seeds(torch.zeros(1, *winners.shape, dtype=torch.int64))
    nothing = torch.zeros(1, channels - 1, 8)
    first = torch.full_like(logits, torch.nan)  # only the last round counts
    return DecoderOutput([first, logits], torch.ones(1, channels - 1, dtype=torch.bool), nothing, nothing, seeds)


@pytest.mark.parametrize("size", [(12, 16), (11, 15), (12, 15)])
def test_every_instance_is_one_component(size: tuple[int, int]) -> None:
    winners = np.random.default_rng(3).integers(0, 3, (2, 3, 4)).repeat(2, 1).repeat(2, 2)
    found = block_instances(output_of(winners, 4), 0, size, min_voxels=0, fill=False)
    larger = winners.repeat(2, 1).repeat(2, 2)[:, : size[0], : size[1]]
    assert found.dtype == np.uint64
    assert found.shape == larger.shape
    np.testing.assert_array_equal(found == 0, larger == 0)
    wanted = sum(ndimage.label(larger == q, structure=np.ones((3, 3, 3)))[1] for q in (1, 2, 3))
    assert int(found.max()) == wanted == len(np.unique(found)) - (0 in found)
    for id_ in range(1, wanted + 1):
        assert len(np.unique(larger[found == id_])) == 1
        assert ndimage.label(found == id_, structure=np.ones((3, 3, 3)))[1] == 1


def test_a_block_of_background_has_no_instance() -> None:
    found = block_instances(output_of(np.zeros((2, 3, 4), np.int64), 3), 0, (6, 8), min_voxels=1, fill=False)
    assert found.dtype == np.uint64
    assert not found.any()


def test_blocks_of_a_batch_are_told_apart() -> None:
    first, second = np.zeros((1, 2, 2), np.int64), np.ones((1, 2, 2), np.int64)
    a, b = output_of(first, 2), output_of(second, 2)
    both = DecoderOutput([torch.cat([a.masks[1], b.masks[1]])], a.valid, a.kernels, a.mask_features, a.seeds)
    assert not block_instances(both, 0, (4, 4), min_voxels=0, fill=False).any()
    assert block_instances(both, 1, (4, 4), min_voxels=0, fill=False).all()


def test_small_pieces_go_to_the_nearest_larger_one_and_background_stays() -> None:
    labels = np.array([[[1, 1, 1, 2, 3, 3, 3, 0, 0, 4, 0, 0]]])
    found = absorb(labels, 3)
    assert found[0, 0, [0, 1, 2, 4, 5, 6]].tolist() == [1, 1, 1, 3, 3, 3]
    assert found[0, 0, 3] in (1, 3)  # as near to the one as to the other
    assert found[0, 0, 7:].tolist() == [0, 0, 3, 0, 0]


def test_pieces_look_for_a_neighbour_within_the_section_first() -> None:
    labels = np.zeros((2, 1, 5), dtype=np.int64)
    labels[0, 0], labels[1, 0] = [7, 7, 7, 0, 9], [8, 8, 8, 8, 8]
    assert absorb(labels, 2)[0, 0, 4] == 7  # two pixels away; the next section is five pixels away


def test_nothing_is_large_enough() -> None:
    assert not absorb(np.array([[[1, 2, 3]]]), 2).any()
    assert absorb(np.array([[[1, 2, 3]]]), 0).tolist() == [[[1, 2, 3]]]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4),
    st.sampled_from([0, 1, 2, 4, 9, 10_000]),
)
def test_a_device_numbers_pieces_as_the_cpu_does(
    seed: int, shape: tuple[int, int, int], queries: int, min_piece: int
) -> None:
    """Voxels as far from several pieces go to the same one, too."""
    winners = torch.from_numpy(np.random.default_rng(seed).integers(0, 1 + queries, shape).astype(np.int32))
    wanted = compact(absorb(cc3d.connected_components(winners.numpy(), connectivity=26), min_piece))
    np.testing.assert_array_equal(pieces_on_device(winners, min_piece).numpy(), wanted)


@pytest.mark.parametrize("min_piece", [0, 6])
def test_of_a_block_on_a_device_one_array_of_ids_is_read(min_piece: int) -> None:
    winners = np.random.default_rng(5).integers(0, 3, (3, 10, 12))
    given_ = output_of(winners, 4)
    wanted = block_instances(given_, 0, (20, 24), min_voxels=3, min_piece=min_piece, fill=True)
    assert wanted.max() > 1
    with second_device() as (device, mode):
        there = replace(given_, masks=[masks.to(device) for masks in given_.masks])
        mode.blocks_read.clear()
        found = block_instances(there, 0, (20, 24), min_voxels=3, min_piece=min_piece, fill=True)
    np.testing.assert_array_equal(found, wanted)
    assert [size for size in mode.blocks_read if size > 8] == [winners.size * 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("min_piece", [0, 9])
def test_a_gpu_numbers_pieces_as_the_cpu_does(min_piece: int) -> None:
    winners = torch.from_numpy(np.random.default_rng(6).integers(0, 4, (9, 65, 64)).astype(np.int32))
    wanted = compact(absorb(cc3d.connected_components(winners.numpy(), connectivity=26), min_piece))
    np.testing.assert_array_equal(pieces_on_device(winners.cuda(), min_piece).cpu().numpy(), wanted)
